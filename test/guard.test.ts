import Fastify from 'fastify'
import { request as httpRequest, type IncomingMessage } from 'node:http'
import { connect } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import mcpOAuth, { StoreUnavailableError, type AuditEvent, type TokenStore } from '../dist/index.js'
import { sqliteStore } from '../dist/store/sqlite.js'
import { connectClient, mintToken } from '../dist/testing.js'
import { FORM, ISSUER, bearer, dance, folder, form, replace, testApp, testOptions } from './app.js'
import { row } from './store/contract.js'

const METADATA = `resource_metadata="${ISSUER}/.well-known/oauth-protected-resource/mcp"`

t.test('without a valid token: 401, the challenge, whatever the method and the body (RFC 6750 §3, RFC 9728 §5.1)', async (t) => {
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(mcpOAuth, testOptions())
  app.route({ method: ['GET', 'POST', 'DELETE', 'PUT'], url: '/mcp', onRequest: app.oauth.protect({ scopes: ['read', 'write'] }), handler: async () => 'never' })
  const token = await mintToken(app, { userId: 'alice', scopes: ['read', 'write'] })
  const missing = `Bearer ${METADATA}, scope="read write"`
  const invalid = `Bearer error="invalid_token", error_description="The access token is invalid.", ${METADATA}, scope="read write"`
  const cases: Array<[title: string, authorization: string | undefined, challenge: string]> = [
    ['no header', undefined, missing],
    ['empty', '', missing],
    ['Bearer alone', 'Bearer', missing],
    ['Bearer and a space', 'Bearer ', missing],
    ['Bearer and spaces', 'Bearer    ', missing],
    ['Basic', 'Basic YWxpY2U6', missing],
    ['a token without scheme', token, missing],
    ['unknown', `Bearer oat_${'x'.repeat(43)}`, invalid],
    ['no token of ours', 'Bearer abc', invalid],
    ['one character more', `Bearer ${token}x`, invalid],
    ['two tokens', `Bearer ${token} ${token}`, invalid],
    ['100 kB', `Bearer ${'x'.repeat(10_000)}`, invalid],
    ['SQL', "Bearer ' OR 1=1 --", invalid]
  ]
  for (const [title, authorization, challenge] of cases) {
    for (const method of ['GET', 'POST', 'DELETE'] as const) {
      const response = await app.inject({ method, url: '/mcp', headers: { ...(authorization !== undefined && { authorization }), ...(method === 'POST' && { 'content-type': 'text/nonsense' }) }, ...(method === 'POST' && { payload: '{' }) })
      t.equal(response.statusCode, 401, `${title}, ${method}`)
      t.equal(response.headers['www-authenticate'], challenge, `${title}, ${method}`)
      t.equal(response.json().error, 'invalid_token')
      t.equal(response.headers['access-control-allow-origin'], '*')
      t.match(response.headers['access-control-expose-headers'], /WWW-Authenticate/)
    }
  }
  for (const scheme of ['Bearer', 'bearer', 'BEARER']) {
    t.equal((await app.inject({ url: '/mcp', headers: { authorization: `${scheme} ${token}` } })).statusCode, 200, scheme)
  }
  const elsewhere = await app.inject({ method: 'POST', url: `/mcp?access_token=${token}`, headers: FORM, payload: form({ access_token: token }) })
  t.equal(elsewhere.statusCode, 401, 'a token in the query or in a form is never read')
  for (const [status, type, payload] of [[400, 'application/json', '{'], [413, 'application/json', `"${'x'.repeat(1024 * 1024)}"`], [415, 'text/nonsense', '{']] as const) {
    const post = async (headers: Record<string, string>) => (await app.inject({ method: 'POST', url: '/mcp', headers: { 'content-type': type, ...headers }, payload })).statusCode
    t.strictSame([await post({}), await post(bearer(token))], [401, status], `401 comes before ${status}`)
  }
})

t.test('a guard without scopes asks for none', async (t) => {
  const app = await testApp(t)
  const { headers } = await app.inject({ method: 'POST', url: '/write' })
  t.equal(headers['www-authenticate'], `Bearer ${METADATA}`)
})

t.test('too little scope: 403, and one challenge with all that is needed (RFC 6750 §3.1)', async (t) => {
  const events: AuditEvent[] = []
  const app = await testApp(t, { scopes: { read: 'Read', write: 'Write', admin: 'Administer', all: { description: 'All', implies: ['read', 'write'] } }, onEvent: (event) => events.push(event) })
  const reader = await mintToken(app, { userId: 'alice', scopes: ['read'] })
  const admin = await mintToken(app, { userId: 'alice', scopes: ['admin'] })
  const needs = (scope: string): string => `Bearer error="insufficient_scope", error_description="The access token lacks a scope.", ${METADATA}, scope="${scope}"`

  const byGuard = await app.inject({ method: 'POST', url: '/mcp', headers: bearer(admin) })
  t.equal(byGuard.statusCode, 403)
  t.equal(byGuard.headers['www-authenticate'], needs('admin read'), 'what it has is asked for again')
  t.equal(byGuard.json().error, 'insufficient_scope')

  const byHandler = await app.inject({ method: 'POST', url: '/write', headers: bearer(reader) })
  t.equal(byHandler.statusCode, 403)
  t.equal(byHandler.headers['www-authenticate'], needs('read write'))
  t.equal(byHandler.headers['access-control-expose-headers'], 'WWW-Authenticate, Mcp-Session-Id')
  t.match(events.filter(({ type }) => type === 'token.rejected'), [{ reason: 'token_scope_insufficient', userId: 'alice' }, { reason: 'token_scope_insufficient' }])

  const writer = await mintToken(app, { userId: 'alice', scopes: ['write'] })
  t.equal((await app.inject({ method: 'POST', url: '/write', headers: bearer(writer) })).statusCode, 200)
  const broad = await mintToken(app, { userId: 'alice', scopes: ['all'] })
  for (const url of ['/mcp', '/write']) t.equal((await app.inject({ method: 'POST', url, headers: bearer(broad) })).statusCode, 200, `a broader scope satisfies what it implies: ${url}`)
})

t.test('require() keeps its challenge under an error handler of the host', async (t) => {
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(mcpOAuth, testOptions())
  app.setErrorHandler(async (error: { statusCode?: number }, _request, reply) => reply.code(error.statusCode ?? 500).send({ mine: true }))
  app.post('/mcp', { onRequest: app.oauth.protect() }, async ({ oauth }) => oauth!.require('write'))
  const response = await app.inject({ method: 'POST', url: '/mcp', headers: bearer(await mintToken(app, { userId: 'alice', scopes: ['read'] })) })
  t.equal(response.statusCode, 403)
  t.strictSame(response.json(), { mine: true })
  t.match(response.headers['www-authenticate'], /^Bearer error="insufficient_scope"/)
})

t.test('revoked, expired, deleted: 401 at the very next request', async (t) => {
  const app = await testApp(t)
  const status = async (token: string) => (await app.inject({ method: 'POST', url: '/mcp', headers: bearer(token) })).statusCode
  const { accessToken, clientId } = await connectClient(app, { headers: { 'x-user': 'alice' } })
  t.equal(await status(accessToken), 200)
  await app.oauth.tokens.revoke({ userId: 'alice', clientId })
  t.equal(await status(accessToken), 401)

  const now = Date.now()
  const brief = await mintToken(app, { userId: 'alice', scopes: ['read'], expiresAt: now + 60_000 })
  t.equal(await status(brief), 200)
  let later = now + 60_000
  replace(t, Date, 'now', () => later)
  t.equal(await status(brief), 401)
  t.equal(await app.oauth.tokens.verify(brief), null)
  later += 31 * 24 * 60 * 60 * 1000
  await app.oauth.tokens.purge()
  t.equal((await app.oauth.tokens.stats()).total, 0)
  for (const token of [accessToken, brief]) t.equal(await status(token), 401)
})

t.test('a revocation on one node is seen by another on the same file', async (t) => {
  const path = join(folder(), 'tokens.db')
  const [one, other] = [await testApp(t, { store: sqliteStore({ path }) }), await testApp(t, { store: sqliteStore({ path }) })]
  const token = await mintToken(one, { userId: 'alice', scopes: ['read'] })
  t.equal((await other.inject({ method: 'POST', url: '/mcp', headers: bearer(token) })).statusCode, 200)
  await one.oauth.tokens.revoke({ userId: 'alice' })
  t.equal((await other.inject({ method: 'POST', url: '/mcp', headers: bearer(token) })).statusCode, 401)
})

t.test('request.oauth is the grant, and authInfo() what the MCP SDK takes', async (t) => {
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(mcpOAuth, testOptions({ currentUser: () => ({ id: 'alice', tenantId: 'acme' }) }))
  app.get('/mcp', { onRequest: app.oauth.protect() }, async ({ oauth }) => ({ grant: oauth, info: oauth!.authInfo() }))
  app.get('/open', async ({ oauth }) => ({ oauth }))
  const { accessToken, clientId } = await connectClient(app, { headers: {}, scopes: ['read'], clientName: 'Client' })
  const { grant, info } = (await app.inject({ url: '/mcp', headers: bearer(accessToken) })).json()
  t.match(grant, { grantId: /^[\w-]{22}$/, userId: 'alice', tenantId: 'acme', clientId, clientName: 'Client', scopes: ['read'], resource: `${ISSUER}/mcp`, expiresAt: null })
  t.notOk(JSON.stringify(grant).includes(accessToken), 'the grant shows no token')
  t.strictSame(info, { token: accessToken, clientId, scopes: ['read'], resource: `${ISSUER}/mcp`, extra: { userId: 'alice', tenantId: 'acme', grantId: grant.grantId, clientName: 'Client' } })
  const expiresAt = Date.now() + 1_000_000
  const personal = await mintToken(app, { userId: 'alice', scopes: ['read'], expiresAt })
  t.match((await app.inject({ url: '/mcp', headers: bearer(personal) })).json().info, { expiresAt: Math.floor(expiresAt / 1000), clientId: String })
  t.strictSame((await app.inject('/open')).json(), { oauth: null })
})

t.test('preflights need no token, and no OPTIONS request reaches a handler', async (t) => {
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(mcpOAuth, testOptions({ resources: [{ path: '/mcp' }] }))
  let reached = 0
  app.post('/mcp', { onRequest: app.oauth.protect() }, async () => ++reached)
  app.all('/all', { onRequest: app.oauth.protect() }, async () => ++reached)
  for (const url of ['/mcp', '/all', '/oauth/token', '/oauth/register', '/oauth/revoke', '/.well-known/oauth-authorization-server', '/.well-known/oauth-protected-resource/mcp']) {
    const { statusCode, headers } = await app.inject({ method: 'OPTIONS', url, headers: { origin: 'https://app.example', 'access-control-request-method': 'POST', 'access-control-request-headers': 'authorization, mcp-protocol-version' } })
    t.equal(statusCode, 204, url)
    t.equal(headers['access-control-allow-origin'], '*', url)
    t.match(headers['access-control-allow-headers'], /Authorization, .*MCP-Protocol-Version.*Mcp-Session-Id.*Last-Event-ID/, url)
    t.match(headers['access-control-allow-methods'], /POST/, url)
    t.notOk('access-control-allow-credentials' in headers, url)
  }
  t.equal(reached, 0)
  for (const url of ['/oauth/authorize', '/my/connected_apps']) {
    const { headers } = await app.inject({ method: 'OPTIONS', url, headers: { origin: 'https://app.example', 'access-control-request-method': 'POST' } })
    t.notOk('access-control-allow-origin' in headers, url)
    t.notOk('access-control-allow-origin' in (await app.inject({ url, headers: { origin: 'https://app.example', 'x-user': 'alice' } })).headers, url)
  }
})

t.test('fallbackToken is asked for what the store does not know, and only for that', async (t) => {
  const asked: string[] = []
  const app = await testApp(t, {
    fallbackToken: async (token) => {
      asked.push(token)
      if (token === 'broken') throw new Error('database on fire')
      if (token === 'jwt') throw Object.assign(new Error('no JWT of ours'), { statusCode: 401 })
      return ({
        old: { userId: 'alice', scopes: ['read'] },
        narrow: { userId: 'alice', scopes: [] },
        expired: { userId: 'alice', scopes: ['read'], expiresAt: Date.now() - 1 },
        elsewhere: { userId: 'alice', scopes: ['read'], resource: 'https://other.example/mcp' }
      } as Record<string, { userId: string, scopes: string[] }>)[token] ?? null
    }
  })
  const call = async (token: string) => await app.inject({ method: 'POST', url: '/mcp', headers: bearer(token) })
  t.strictSame((await call('old')).json(), { userId: 'alice', scopes: ['read'] })
  t.equal((await call('narrow')).statusCode, 403)
  for (const token of ['expired', 'elsewhere', 'nobody']) t.equal((await call(token)).statusCode, 401, token)
  const broken = await call('broken')
  t.equal(broken.statusCode, 500)
  t.strictSame(broken.json(), { error: 'server_error', error_description: 'Something went wrong.' })
  const refused = await call('jwt')
  t.equal(refused.statusCode, 401)
  t.strictSame([refused.headers['www-authenticate'], refused.json()], [(await call('nobody')).headers['www-authenticate'], (await call('nobody')).json()], 'with the challenge, whoever refuses')

  asked.length = 0
  const ours = await mintToken(app, { userId: 'alice', scopes: ['read'] })
  t.equal((await call(ours)).statusCode, 200)
  await app.oauth.tokens.revoke({ userId: 'alice' })
  t.equal((await call(ours)).statusCode, 401)
  t.strictSame(asked, [], 'a revoked token of ours is not offered to the app')
})

t.test('what fallbackToken answers is checked, and brings along what its scopes imply', async (t) => {
  const answers: unknown[] = [
    { userId: 'alice', scopes: 'bread' }, { userId: 'alice' }, { userId: 5, scopes: ['read'] }, { userId: '', scopes: ['read'] }, 'alice'
  ]
  const app = await testApp(t, {
    scopes: { read: 'Read', write: { description: 'Write', implies: ['read'] } },
    fallbackToken: (token) => (token === 'writer' ? { userId: 'alice', scopes: ['write', 'unheard-of'] } : answers[Number(token)]) as never
  })
  for (const index of answers.keys()) {
    t.equal((await app.inject({ method: 'POST', url: '/mcp', headers: bearer(`${index}`) })).statusCode, 500, JSON.stringify(answers[index]))
  }
  t.strictSame((await app.inject({ method: 'POST', url: '/mcp', headers: bearer('writer') })).json().scopes, ['read', 'write'])
})

t.test('mistakes in protect(), require() and tokens are named, and change nothing', async (t) => {
  const app = await testApp(t)
  const protect = app.oauth.protect as (...args: unknown[]) => unknown
  for (const args of [['read'], [['read']], [{ scope: ['read'] }], [{ scopes: 'read' }], [{ raw: {} }, {}]]) {
    t.throws(() => protect(...args), { code: 'FST_MCP_OAUTH_INVALID_PROTECT' }, JSON.stringify(args))
  }
  const misspelt = Fastify()
  t.teardown(() => misspelt.close())
  await misspelt.register(mcpOAuth, testOptions())
  misspelt.get('/mcp', { onRequest: misspelt.oauth.protect() }, async ({ oauth }) => oauth!.require('wrte'))
  const answer = await misspelt.inject({ url: '/mcp', headers: bearer(await mintToken(misspelt, { userId: 'alice', scopes: ['read'] })) })
  t.equal(answer.statusCode, 500)
  t.notOk('www-authenticate' in answer.headers, 'no client is sent for a scope that does not exist')

  const tokens = app.oauth.tokens as unknown as Record<string, (options: unknown) => Promise<unknown>>
  const token = { userId: 'alice', name: 'script', scopes: ['read'] }
  for (const changes of [{ expires: 4 }, { scopes: 'read' }, { scopes: [] }, { scopes: ['wrte'] }, { userId: 7 }, { name: '' }, { resource: '/mcp' }, { expiresAt: 4 }]) {
    await t.rejects(tokens.create!({ ...token, ...changes }), { code: 'FST_MCP_OAUTH_INVALID_TOKEN_OPTION' }, JSON.stringify(changes))
  }
  for (const selector of [{}, { user: 'alice' }, { userId: '' }, { userId: 'alice', clientId: undefined }, { userId: 'alice', foo: 'x' }, { grantId: 'x', userId: 'alice' }]) {
    await t.rejects(tokens.revoke!(selector), { code: 'FST_MCP_OAUTH_INVALID_SELECTOR' }, JSON.stringify(selector))
  }
  await t.rejects(tokens.list!({}), { code: 'FST_MCP_OAUTH_INVALID_SELECTOR' })
  t.equal((await app.oauth.tokens.stats()).total, 0)
})

t.test('the stats of an app are its totals, its personal tokens and one entry a client', async (t) => {
  const app = await testApp(t)
  const { tokens } = app.oauth
  t.strictSame(await tokens.stats(), { total: 0, active: 0, revoked: 0, expired: 0, personal: 0, clients: [] })
  const kept = await dance(app).connect({ client_name: 'Kept' })
  await dance(app, 'bob').connect({ client_name: 'Kept' })
  const left = await dance(app).connect({ client_name: 'Left' })
  await tokens.revoke({ userId: 'alice', clientId: left.clientId })
  for (const name of ['one', 'two', 'revoked']) {
    const { grantId } = await tokens.create({ userId: 'alice', name, scopes: ['read'] })
    if (name === 'revoked') await tokens.revoke({ grantId })
  }
  t.same(await tokens.stats(), {
    total: 6,
    active: 4,
    revoked: 2,
    expired: 0,
    personal: 2,
    clients: [
      { clientId: kept.clientId, clientName: 'Kept', active: 2, revoked: 0, expired: 0 },
      { clientId: left.clientId, clientName: 'Left', active: 0, revoked: 1, expired: 0 }
    ]
  })
})

t.test('purge of an app deletes, batch after batch, what ended over 30 days ago', async (t) => {
  const store = sqliteStore({ path: join(folder(), 'tokens.db') })
  const app = await testApp(t, { store })
  const days = (number: number): number => Date.now() - number * 24 * 60 * 60 * 1000
  await Promise.all(Array.from({ length: 1200 }, async () => await store.issue(row({ revokedAt: days(31), revokedReason: 'disconnected' }))))
  for (const kept of [row({ expiresAt: days(29) }), row()]) await store.issue(kept)
  t.equal(await app.oauth.tokens.purge(), 1200)
  t.equal((await app.oauth.tokens.stats()).total, 2)
})

t.test('a resource that no route serves is warned of at start', async (t) => {
  const lines: string[] = []
  const app = Fastify({ logger: { level: 'warn', stream: { write: (line: string) => { lines.push(line) } } } })
  t.teardown(() => app.close())
  await app.register(mcpOAuth, testOptions())
  app.post('/api/mcp', { onRequest: app.oauth.protect() }, async () => 'ok')
  await app.ready()
  t.match(lines.join(''), /no route is served at \/mcp, .* Guarded routes: \/api\/mcp/)
})

t.test('the store out of reach: 503 with Retry-After, never 401, and no restart after it', async (t) => {
  const real = sqliteStore({ path: join(folder(), 'tokens.db') })
  let down = false
  const flaky = new Proxy(real, {
    get (target, name) {
      const value = Reflect.get(target, name) as unknown
      if (typeof value !== 'function') return value
      return (...args: unknown[]) => {
        if (down && name !== 'close') throw new StoreUnavailableError(new Error('connection refused to secret-host'))
        return value.apply(target, args)
      }
    }
  }) as TokenStore
  const app = await testApp(t, { store: flaky })
  const { clientId, code, redeem } = dance(app)
  const client = await clientId()
  const token = await mintToken(app, { userId: 'alice', scopes: ['read'] })
  const issued = await code(client)
  down = true
  for (const response of [
    await app.inject({ method: 'POST', url: '/mcp', headers: bearer(token) }),
    await redeem(client, issued),
    await app.inject({ method: 'POST', url: '/oauth/revoke', headers: FORM, payload: form({ client_id: client, token }) }),
    await app.inject({ url: '/my/connected_apps', headers: { 'x-user': 'alice' } })
  ]) {
    t.equal(response.statusCode, 503)
    t.match(response.headers['retry-after'], /^\d+$/)
    t.notMatch(response.body, /secret-host/)
    t.notOk('www-authenticate' in response.headers)
  }
  t.equal((await app.inject('/.well-known/oauth-authorization-server')).statusCode, 200)
  down = false
  t.equal((await app.inject({ method: 'POST', url: '/mcp', headers: bearer(token) })).statusCode, 200)
  t.equal((await redeem(client, issued)).statusCode, 200, 'the code was not lost either')
})

t.test('the use of a token is noted once a minute and shown on close', async (t) => {
  const path = join(folder(), 'tokens.db')
  const app = await testApp(t, { store: sqliteStore({ path }) })
  const token = await mintToken(app, { userId: 'alice', scopes: ['read'] })
  for (let use = 0; use < 5; use++) await app.inject({ method: 'POST', url: '/mcp', headers: bearer(token) })
  const before = Date.now()
  await app.close()
  const store = sqliteStore({ path })
  await store.open()
  t.teardown(() => store.close())
  const [row] = await store.list({ userId: 'alice' }, Date.now())
  t.ok(row!.lastUsedAt! <= before && row!.lastUsedAt! > before - 60_000)
})

t.test('tokens.verify() knows the resources of the app, and no others', async (t) => {
  const app = await testApp(t, { resources: [{ path: '/mcp' }, { path: '/other' }] }, {}, { resource: '/mcp' })
  const anywhere = await mintToken(app, { userId: 'alice', scopes: ['read'] })
  const bound = await mintToken(app, { userId: 'alice', scopes: ['read'], resource: `${ISSUER}/mcp` })
  const verify = async (token: string, resource?: string) => (await app.oauth.tokens.verify(token, resource === undefined ? {} : { resource }))?.userId
  t.strictSame([await verify(anywhere), await verify(anywhere, `${ISSUER}/mcp`), await verify(anywhere, `${ISSUER}/other`)], ['alice', 'alice', 'alice'])
  t.strictSame([await verify(bound), await verify(bound, `${ISSUER}/mcp`), await verify(bound, `${ISSUER}/other`)], ['alice', 'alice', undefined])
  for (const unknown of ['https://evil.example/mcp', `${ISSUER}/elsewhere`, '', 'mcp']) t.strictSame([await verify(anywhere, unknown), await verify(bound, unknown)], [undefined, undefined], unknown)
})

t.test('two Authorization headers on the wire are one bad token, not a choice', async (t) => {
  const app = await testApp(t)
  const token = await mintToken(app, { userId: 'alice', scopes: ['read'] })
  await app.listen({ port: 0 })
  const { port } = app.server.address() as { port: number }
  const ask = async (...headers: string[]) => await new Promise<IncomingMessage>((resolve, reject) => {
    httpRequest({ port, path: '/mcp', method: 'POST', headers: ['Host', 'localhost', 'Content-Length', '0', ...headers] }, (response) => resolve(response.resume())).on('error', reject).end()
  })
  t.equal((await ask('Authorization', `Bearer ${token}`, 'X-Authorization', 'Bearer x')).statusCode, 200)
  for (const [first, second] of [['Bearer x', `Bearer ${token}`], [`Bearer ${token}`, 'Bearer x'], [`Bearer ${token}`, `Bearer ${token}`], [`Bearer ${token}`, 'Basic eDp5']] as const) {
    const { statusCode, headers } = await ask('Authorization', first, 'authorization', second)
    t.equal(statusCode, 401, `${first}, ${second}`)
    t.match(headers['www-authenticate'], /^Bearer error="invalid_token"/)
  }
})

t.test('no handler runs for a refused request whose client hangs up, however slow the onSend hooks of the host are', async (t) => {
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(mcpOAuth, testOptions())
  let answers = 0
  let handled = 0
  app.addHook('onSend', async () => {
    await sleep(100)
    answers++
  })
  for (const hook of ['onRequest', 'preHandler']) {
    app.route({ method: ['GET', 'DELETE', 'OPTIONS'], url: `/${hook}`, [hook]: app.oauth.protect({ scopes: ['write'] }), handler: async () => { handled++ } })
  }
  await app.listen({ port: 0, host: '127.0.0.1' })
  const { port } = app.server.address() as { port: number }
  const readToken = await mintToken(app, { userId: 'alice', scopes: ['read'] })
  let sent = 0
  for (const path of ['/onRequest', '/preHandler']) {
    for (const [method, authorization] of [['GET', ''], ['DELETE', 'Authorization: Bearer x\r\n'], ['DELETE', `Authorization: Bearer ${readToken}\r\n`], ['OPTIONS', '']]) {
      for (const hangUp of ['resetAndDestroy', 'destroySoon'] as const) {
        sent++
        const socket = connect(port, '127.0.0.1').on('error', () => {})
        socket.write(`${method} ${path} HTTP/1.1\r\nHost: localhost\r\n${authorization}\r\n`, () => setTimeout(() => socket[hangUp](), 25))
      }
    }
  }
  for (const deadline = Date.now() + 5000; Date.now() < deadline; await sleep(20)) if (answers >= sent) break
  await sleep(100)
  t.ok(answers >= sent / 2, `${answers} of ${sent} were answered`)
  t.equal(handled, 0)
})
