import { toWebRequest } from '@modelcontextprotocol/node'
import { McpServer, createMcpHandler } from '@modelcontextprotocol/server'
import Fastify, { type FastifyInstance } from 'fastify'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import mcpOAuth, { type AuditEvent, type McpOAuthOptions } from '../dist/index.js'
import { createRefreshToken, refreshTokenGrant, successorPair } from '../dist/protocol/refresh-token.js'
import { postgresStore } from '../dist/store/postgres.js'
import { sqliteStore } from '../dist/store/sqlite.js'
import { FORM, ISSUER, KEY, bearer, dance, fieldOf, folder, form, replace, testApp, testOptions } from './app.js'
import { startPostgres } from './postgres.js'
import { SDKS, type Sdk, type Session } from './sdk.js'
import { freePort } from './scripts/free-port.js'

const OTHER_KEY = 'cd'.repeat(32)
const HOUR = 3600
const DAY = 24 * HOUR

interface Answer { access_token: string, refresh_token: string, expires_in: number, scope: string, error: string }

/** An app with refresh on, a connected client, and a clock of its own. */
async function connected (t: Test, options: Partial<McpOAuthOptions> = {}, { user = 'alice' } = {}) {
  const events: AuditEvent[] = []
  const app = await testApp(t, { accessTokenLifetime: HOUR, refreshTokenLifetime: 30 * DAY, onEvent: (event) => events.push(event), ...options })
  let now = Date.now()
  replace(t, Date, 'now', () => now)
  const pass = (seconds: number) => { now += seconds * 1000 }
  const { clientId, code, redeem } = dance(app, user)
  const client = await clientId()
  const first = (await redeem(client, await code(client))).json<Answer>()
  const refresh = async (refreshToken: string, changes: Record<string, string> = {}, node = app) => {
    const response = await node.inject({ method: 'POST', url: '/oauth/token', headers: FORM, payload: form({ grant_type: 'refresh_token', client_id: client, refresh_token: refreshToken, ...changes }) })
    return { ...response.json<Answer>(), status: response.statusCode }
  }
  const works = async (token: string, node = app) => (await node.inject({ method: 'POST', url: '/mcp', headers: bearer(token) })).statusCode === 200
  return { app, events, pass, client, clientId, first, refresh, works }
}

t.test('an access token expires, and its refresh token brings the next pair (RFC 6749 §6)', async (t) => {
  const { events, pass, first, refresh, works } = await connected(t)
  t.match(first, { access_token: /^oat_[\w-]{43}$/, refresh_token: /^ort_[\w-]{87}$/, expires_in: HOUR, scope: 'read write' })
  pass(HOUR - 1)
  t.ok(await works(first.access_token))
  pass(1)
  t.notOk(await works(first.access_token))
  const second = await refresh(first.refresh_token)
  t.match(second, { status: 200, access_token: /^oat_[\w-]{43}$/, refresh_token: /^ort_[\w-]{87}$/, expires_in: HOUR, scope: 'read write' })
  t.not(second.refresh_token, first.refresh_token)
  t.ok(await works(second.access_token))
  t.equal(events.filter(({ type }) => type === 'token.refreshed').length, 1)
})

t.test('the refresh token slides: used in time it lives on, left alone it ends', async (t) => {
  const { app, pass, first, refresh } = await connected(t)
  let { refresh_token: token } = first
  for (let month = 0; month < 12; month++) {
    pass(29 * DAY)
    token = (await refresh(token)).refresh_token
  }
  t.equal((await app.oauth.tokens.list({ userId: 'alice' })).length, 1, 'one grant, whatever its age')
  pass(30 * DAY)
  t.equal((await refresh(token)).error, 'invalid_grant')
  t.equal((await app.oauth.tokens.list({ userId: 'alice' })).length, 0)
})

t.test('twenty parallel refreshes, and a retry within the grace, get the same pair', async (t) => {
  const { pass, first, refresh, works } = await connected(t)
  const answers = await Promise.all(Array.from({ length: 20 }, async () => await refresh(first.refresh_token)))
  t.ok(answers.every(({ status }) => status === 200))
  t.equal(new Set(answers.map((answer) => answer.refresh_token)).size, 1)
  t.equal(new Set(answers.map((answer) => answer.access_token)).size, 1)
  t.ok(await works(answers[0]!.access_token))
  pass(30)
  const retry = await refresh(first.refresh_token)
  t.equal(retry.access_token, answers[0]!.access_token)
  t.equal(retry.expires_in, HOUR - 30, 'with what is left of its time')
})

t.test('the same across nodes, and across a change of the first key in between', async (t) => {
  const path = join(folder(), 'tokens.db')
  const lifetimes = { accessTokenLifetime: HOUR, refreshTokenLifetime: 30 * DAY }
  const { first, refresh } = await connected(t, { store: sqliteStore({ path }), keys: [KEY] })
  const other = await testApp(t, { ...lifetimes, store: sqliteStore({ path }), keys: [OTHER_KEY, KEY] })
  const here = await refresh(first.refresh_token)
  const there = await refresh(first.refresh_token, {}, other)
  t.equal(there.refresh_token, here.refresh_token)
  const next = await refresh(here.refresh_token, {}, other)
  t.equal(next.status, 200, 'a token of the old key is exchanged for one of the new')
  const removed = await testApp(t, { ...lifetimes, store: sqliteStore({ path }), keys: [OTHER_KEY] })
  const client = await dance(removed).clientId()
  t.equal((await refresh(next.refresh_token, { client_id: client }, removed)).error, 'invalid_grant', 'the client id ended with its key, so another client it is')
})

t.test('parallel refreshes on four nodes over PostgreSQL give one pair', async (t) => {
  const connectionString = await (await startPostgres(t)).database()
  const { first, refresh, works, app } = await connected(t, { store: postgresStore({ connectionString }) })
  const nodes = [app, ...await Promise.all([1, 2, 3].map(async () => await testApp(t, { accessTokenLifetime: HOUR, refreshTokenLifetime: 30 * DAY, store: postgresStore({ connectionString }) })))]
  let token = first.refresh_token
  for (let round = 0; round < 10; round++) {
    const answers = await Promise.all(Array.from({ length: 20 }, async (_, index) => await refresh(token, {}, nodes[index % 4])))
    t.strictSame(answers.map(({ status }) => status), Array(20).fill(200))
    t.equal(new Set(answers.map((answer) => answer.refresh_token + answer.access_token)).size, 1)
    for (const node of nodes) t.ok(await works(answers[0]!.access_token, node))
    token = answers[0]!.refresh_token
  }
})

t.test('reuse after the grace ends the grant, for the thief and for the owner (RFC 9700 §4.14.2)', async (t) => {
  const { events, pass, first, refresh, works } = await connected(t)
  const owner = await refresh(first.refresh_token)
  pass(31)
  t.equal((await refresh(first.refresh_token)).error, 'invalid_grant')
  t.notOk(await works(owner.access_token))
  t.equal((await refresh(owner.refresh_token)).error, 'invalid_grant')
  t.match(events.find(({ type }) => type === 'token.revoked'), { reason: 'refresh_reused', userId: 'alice' })
  t.match(events.filter(({ type }) => type === 'token.rejected').map((event) => 'reason' in event && event.reason), ['refresh_reused', 'token_revoked', 'token_revoked'])
})

t.test('any older generation counts as reuse, within the grace too', async (t) => {
  const { first, refresh, works } = await connected(t)
  const second = await refresh(first.refresh_token)
  const third = await refresh(second.refresh_token)
  t.equal((await refresh(first.refresh_token)).error, 'invalid_grant')
  t.notOk(await works(third.access_token))
})

t.test('who cannot prove possession ends nothing', async (t) => {
  const { app, client, clientId, first, refresh, works } = await connected(t)
  const { grantId } = (await app.oauth.tokens.list({ userId: 'alice' }))[0]!
  const thief = await clientId({ client_name: 'Thief' })
  const forged = createRefreshToken(Buffer.alloc(32), grantId)
  for (const [title, token, changes, error] of [
    ['another client', first.refresh_token, { client_id: thief }, 'invalid_grant'],
    ['an unknown client', first.refresh_token, { client_id: 'nobody' }, 'invalid_client'],
    ['a made-up token with the grant’s id', forged, {}, 'invalid_grant'],
    ['a changed character', first.refresh_token.replace(/.$/, (last) => last === 'A' ? 'B' : 'A'), {}, 'invalid_grant'],
    ['an access token', first.access_token, {}, 'invalid_grant'],
    ['no token', '', {}, 'invalid_request'],
    ['more scope', first.refresh_token, { scope: 'read admin' }, 'invalid_scope'],
    ['another resource', first.refresh_token, { resource: `${ISSUER}/other` }, 'invalid_target']
  ] as Array<[string, string, Record<string, string>, string]>) t.equal((await refresh(token, changes)).error, error, title)
  t.notOk(await works(first.refresh_token), 'a refresh token is no access token')
  t.ok(await works(first.access_token))
  const narrowed = await refresh(first.refresh_token, { scope: 'read', resource: `${ISSUER}/mcp` })
  t.equal(narrowed.status, 200)
  t.equal(narrowed.scope, 'read write', 'the answer says what the token carries')
  t.ok(client)
})

t.test('a disconnect and a revocation by the client end the refresh token too', async (t) => {
  for (const end of [
    async ({ app }: Awaited<ReturnType<typeof connected>>) => { await app.oauth.tokens.revoke({ userId: 'alice' }) },
    ...(['refresh_token', 'access_token'] as const).map((hint) => async ({ app, client, first }: Awaited<ReturnType<typeof connected>>) => {
      await app.inject({ method: 'POST', url: '/oauth/revoke', headers: FORM, payload: form({ client_id: client, token: first[hint], token_type_hint: hint }) })
    })
  ]) {
    const grant = await connected(t)
    await end(grant)
    t.equal((await grant.refresh(grant.first.refresh_token)).error, 'invalid_grant')
    t.notOk(await grant.works(grant.first.access_token), 'RFC 7009 §2.1: both tokens of the grant')
  }
})

t.test('a grant that is not used for idleLifetime ends; one that is used does not', async (t) => {
  const store = sqliteStore({ path: join(folder(), 'tokens.db') })
  const { app, pass, first, refresh, works } = await connected(t, { idleLifetime: 10 * 60, store })
  pass(9 * 60)
  t.ok(await works(first.access_token))
  // Uses are written a second later, by the real clock.
  await new Promise((resolve) => setTimeout(resolve, 1100))
  pass(9 * 60)
  t.ok(await works(first.access_token), 'which counted as use')
  await new Promise((resolve) => setTimeout(resolve, 1100))
  pass(5 * 60)
  const second = await refresh(first.refresh_token)
  pass(9 * 60)
  t.ok(await works(second.access_token), 'and so did the refresh')
  await new Promise((resolve) => setTimeout(resolve, 1100))
  pass(10 * 60)
  t.notOk(await works(second.access_token))
  t.equal((await refresh(second.refresh_token)).error, 'invalid_grant')
  t.equal((await app.oauth.tokens.list({ userId: 'alice' })).length, 0)
})

t.test('metadata, registration and answers say exactly what is on', async (t) => {
  for (const [options, grantTypes, fields] of [
    [{}, ['authorization_code'], ['access_token', 'scope', 'token_type']],
    [{ accessTokenLifetime: HOUR }, ['authorization_code'], ['access_token', 'expires_in', 'scope', 'token_type']],
    [{ accessTokenLifetime: HOUR, refreshTokenLifetime: DAY }, ['authorization_code', 'refresh_token'], ['access_token', 'expires_in', 'refresh_token', 'scope', 'token_type']],
    [{ idleLifetime: HOUR }, ['authorization_code'], ['access_token', 'scope', 'token_type']]
  ] as Array<[Partial<McpOAuthOptions>, string[], string[]]>) {
    const title = JSON.stringify(options)
    const app = await testApp(t, options)
    const { register, code, redeem } = dance(app)
    t.strictSame((await app.inject('/.well-known/oauth-authorization-server')).json().grant_types_supported, grantTypes, title)
    const registered = (await register({ grant_types: ['authorization_code', 'refresh_token'] })).json<{ client_id: string, grant_types: string[] }>()
    t.strictSame(registered.grant_types, grantTypes, title)
    t.strictSame((await register()).json().grant_types, grantTypes, 'a client that asks for none in particular gets what there is')
    const answer = (await redeem(registered.client_id, await code(registered.client_id))).json<object>()
    t.strictSame(Object.keys(answer).sort(), fields, title)
    const refused = await app.inject({ method: 'POST', url: '/oauth/token', headers: FORM, payload: form({ grant_type: 'refresh_token', client_id: registered.client_id, refresh_token: 'x' }) })
    t.equal(refused.json().error, grantTypes.includes('refresh_token') ? 'invalid_grant' : 'unsupported_grant_type', title)
  }
})

t.test('offline_access is in no document and no challenge, and who asks for it gets the rest', async (t) => {
  const app = await testApp(t, { accessTokenLifetime: HOUR, refreshTokenLifetime: DAY })
  const { clientId, code, redeem } = dance(app)
  for (const response of [
    await app.inject('/.well-known/oauth-protected-resource'), await app.inject('/.well-known/oauth-authorization-server'),
    await app.inject({ method: 'POST', url: '/mcp' }), await app.inject({ method: 'POST', url: '/mcp', headers: { authorization: 'Bearer x' } })
  ]) t.notMatch(response.body + JSON.stringify(response.headers), 'offline_access')
  const client = await clientId({ scope: 'read offline_access' })
  t.match((await redeem(client, await code(client, { scope: 'read offline_access' }, ['read']))).json(), { scope: 'read', refresh_token: /^ort_/ })
})

t.test('a successor is derived, another for each key and token, and cannot be told from a random one', async (t) => {
  const [one, other] = [Buffer.alloc(32, 1), Buffer.alloc(32, 2)]
  const grantId = 'g'.repeat(22)
  const token = createRefreshToken(one, grantId)
  t.equal(refreshTokenGrant([other, one], token), grantId)
  t.equal(refreshTokenGrant([other], token), undefined)
  t.strictSame(successorPair(one, token), successorPair(one, token))
  t.not(successorPair(one, token).accessToken, successorPair(other, token).accessToken)
  t.not(createRefreshToken(one, grantId), token)
  t.equal(refreshTokenGrant([one], successorPair(one, token).refreshToken), grantId)
})

/** An MCP server on the network with refresh on, an SDK that alice has connected to it, and a clock of their own. */
async function connectedSdk (t: Test, sdk: Sdk) {
  const port = await freePort()
  const issuer = `http://localhost:${port}`
  const store = sqliteStore({ path: join(folder(), 'tokens.db') })
  const events: AuditEvent[] = []
  let app: FastifyInstance
  const start = async (keys: string[]): Promise<void> => {
    app = Fastify()
    await app.register(mcpOAuth, testOptions({ issuer, keys, store, accessTokenLifetime: HOUR, refreshTokenLifetime: 30 * DAY, onEvent: (event) => events.push(event) }))
    const mcp = createMcpHandler(({ authInfo }) => {
      const server = new McpServer({ name: 'test', version: '1.0.0' })
      server.registerTool('whoami', { description: 'Says who you are.' }, async () => ({ content: [{ type: 'text', text: String(authInfo?.extra?.userId) }] }))
      return server
    })
    app.post('/mcp', { onRequest: app.oauth.protect({ scopes: ['read'] }) }, async (request) => {
      if ((request.body as { params?: { name?: string } }).params?.name === 'write') request.oauth!.require('write')
      return await mcp.fetch(await toWebRequest(request.raw as never, request.body), { authInfo: request.oauth!.authInfo(), parsedBody: request.body })
    })
    await app.listen({ port, host: 'localhost' })
  }
  await start([KEY])
  t.teardown(async () => await app.close())
  let now = Date.now()
  replace(t, Date, 'now', () => now)

  const provider = sdk.provider()
  /** The user's part, once the client has sent them away. */
  const approve = async (session: Session): Promise<void> => {
    const { pathname, search } = provider.authorizationUrl!
    provider.authorizationUrl = undefined
    const page = await app.inject({ url: pathname + search, headers: { 'x-user': 'alice' } })
    const approved = await app.inject({ method: 'POST', url: pathname, headers: { ...FORM, 'x-user': 'alice' }, payload: form({ ticket: fieldOf(page.body, 'ticket'), decision: 'approve', scope: 'read' }) })
    await session.finishAuth(new URL(String(approved.headers.location)))
  }
  const first = sdk.session(`${issuer}/mcp`, provider)
  t.ok(await first.connect().catch((error: unknown) => error) instanceof sdk.Unauthorized)
  await approve(first)
  await first.close()
  const session = sdk.session(`${issuer}/mcp`, provider)
  t.teardown(async () => await session.close())
  await session.connect()
  t.equal(await session.call('whoami'), 'alice')
  return {
    events,
    provider,
    session,
    approve,
    revoke: async () => await app.oauth.tokens.revoke({ userId: 'alice' }),
    pass: (seconds: number) => { now += seconds * 1000 },
    restart: async (keys: string[]) => {
      await app.close()
      await start(keys)
    }
  }
}

for (const sdk of SDKS) {
  t.test(`${sdk.name} whose grant was revoked drops its tokens and asks the user again`, async (t) => {
    const { events, provider, session, approve, revoke, pass } = await connectedSdk(t, sdk)
    t.equal(await revoke(), 1)
    pass(1)
    t.ok(await session.call('whoami').catch((error: unknown) => error) instanceof sdk.Unauthorized)
    t.equal(events.filter((event) => event.type === 'token.rejected' && event.reason === 'token_revoked').length, 2, 'its access token, and then its refresh token')
    t.equal(provider.tokens(), undefined)
    await approve(session)
    t.equal(await session.call('whoami'), 'alice')
    t.equal(provider.registrations, 1, 'as the client that it was')
  })

  t.test(`${sdk.name} whose registration is known no more registers again and asks the user`, async (t) => {
    const { provider, session, approve, pass, restart } = await connectedSdk(t, sdk)
    await restart([OTHER_KEY])
    t.equal(await session.call('whoami'), 'alice', 'its access token is none of the key')
    pass(HOUR + 1)
    t.ok(await session.call('whoami').catch((error: unknown) => error) instanceof sdk.Unauthorized)
    t.equal(provider.registrations, 2)
    await approve(session)
    t.equal(await session.call('whoami'), 'alice')
  })

  t.test(`${sdk.name} with a refresh token, at a tool that needs more: v1 does not ask its user, v2 does`, async (t) => {
    const { provider, session } = await connectedSdk(t, sdk)
    const asks = sdk.name !== 'MCP SDK v1'
    const error = await session.call('write').catch((error: unknown) => error)
    if (asks) t.ok(error instanceof sdk.Unauthorized)
    else t.match(error, { message: sdk.afterRefusedStepUp.message })
    t.equal(provider.authorizationUrl?.searchParams.get('scope'), asks ? 'read write' : undefined)
    t.equal(await session.call('whoami'), 'alice', 'and goes on as before')
  })

  t.test(`${sdk.name} goes on for several lifetimes of its access token without asking the user again`, async (t) => {
    const { events, provider, session, pass } = await connectedSdk(t, sdk)
    for (let lifetime = 0; lifetime < 4; lifetime++) {
      t.equal(await session.call('whoami'), 'alice')
      pass(HOUR + 1)
    }
    t.equal(await session.call('whoami'), 'alice')
    t.equal(provider.authorizationUrl, undefined, 'the user was not sent anywhere')
    t.equal(events.filter(({ type }) => type === 'token.refreshed').length, 4)
    t.equal(events.filter(({ type }) => type === 'consent.shown').length, 1)
  })
}
