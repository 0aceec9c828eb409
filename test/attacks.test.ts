import { DatabaseSync } from '@photostructure/sqlite'
import Fastify, { type FastifyInstance, type FastifyRequest, type FastifyServerOptions } from 'fastify'
import { CompactEncrypt, CompactSign, SignJWT, UnsecuredJWT } from 'jose'
import { generateKeyPairSync, hash } from 'node:crypto'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { createServer, type IncomingMessage, type RequestListener } from 'node:http'
import { connect as connectHttp2 } from 'node:http2'
import { connect as connectTo } from 'node:net'
import { dirname, join } from 'node:path'
import { performance } from 'node:perf_hooks'
import process from 'node:process'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import mcpConnections, { sqliteConnectionStore } from '../dist/connections/index.js'
import mcpOAuth, { type AuditEvent, type McpOAuthOptions } from '../dist/index.js'
import { createRefreshToken } from '../dist/protocol/refresh-token.js'
import { createSealer, createSigner } from '../dist/protocol/sealed.js'
import { deriveKey, hashToken, parseKey } from '../dist/protocol/secret.js'
import { postgresStore } from '../dist/store/postgres.js'
import { sqliteStore } from '../dist/store/sqlite.js'
import { mintToken } from '../dist/testing.js'
import { CALLBACK, FORM, ISSUER, KEY, bearer, dance, fieldOf, folder, form, pkce, replace, testApp, testOptions } from './app.js'
import { Network, PUBLIC } from './network.js'
import { CLIENT, count, forEach, mintCode, redemption, startNodes, tokenOf, type AppNode } from './node.js'
import { startPostgres, type PostgresServer } from './postgres.js'

// What must not work. Each number is one attack, with those next to it; the last test counts them.

const EVIL = 'https://evil.example/cb'
const OTHER_KEY = 'ab'.repeat(32)
const HOUR = 3600
const DAY = 24 * HOUR

interface Response { statusCode: number, headers: Record<string, unknown>, body: string }
interface Tokens { access_token: string, refresh_token: string, scope: string }

/** An app that is attacked, with what a client does there, and all that its audit log says. */
async function attacked (t: Test, options: Partial<McpOAuthOptions> = {}, { server = {}, path = join(folder(), 'tokens.db') }: { server?: FastifyServerOptions, path?: string } = {}) {
  const events: AuditEvent[] = []
  const app = await testApp(t, { store: sqliteStore({ path }), onEvent: (event) => events.push(event), ...options }, server)
  const { get, post, use } = requests(app)
  const call = async (token: string): Promise<number> => (await use('/mcp', token)).statusCode
  const refresh = async (clientId: string, refreshToken: string, fields: Record<string, string> = {}) => await post('/oauth/token', { grant_type: 'refresh_token', client_id: clientId, refresh_token: refreshToken, ...fields })
  const page = async (user = 'alice'): Promise<string> => (await get('/my/connected_apps', { 'x-user': user })).body
  const happened = (type: AuditEvent['type']): number => events.filter((event) => event.type === type).length
  return { app, path, events, happened, get, post, use, call, refresh, page, ...dance(app) }
}

function requests (app: FastifyInstance) {
  const get = async (url: string, headers: Record<string, string> = {}) => await app.inject({ url, headers })
  const post = async (url: string, fields: Record<string, string | string[]> | string, headers: Record<string, string> = {}) =>
    await app.inject({ method: 'POST', url, headers: { ...FORM, ...headers }, payload: typeof fields === 'string' ? fields : form(fields) })
  /** Calls a guarded route. */
  const use = async (url: string, token: string) => await app.inject({ method: 'POST', url, headers: bearer(token) })
  return { get, post, use }
}

/** The status and the error code of a refusal in JSON. */
function refusal ({ statusCode, body }: { statusCode: number, body: string }): string {
  return `${statusCode} ${statusCode === 200 ? 'granted' : (JSON.parse(body) as { error: string }).error}`
}

/** Where a response leads. */
function locationOf ({ headers }: Pick<Response, 'headers'>): URL {
  return new URL(String(headers.location), ISSUER)
}

function codeOf (response: Pick<Response, 'headers'>): string {
  return locationOf(response).searchParams.get('code') ?? ''
}

/** What is wrong where the browser was to stay, on a page that leads nowhere and repeats nothing of the attack; empty if nothing is. */
function wayOut ({ statusCode, headers, body }: Response): string {
  return [
    statusCode === 400 ? '' : `status ${statusCode}`,
    headers.location === undefined ? '' : `to ${String(headers.location)}`,
    /^text\/html/.test(String(headers['content-type'])) ? '' : `type ${String(headers['content-type'])}`,
    /evil|http-equiv/i.exec(body)?.[0] ?? ''
  ].filter((each) => each !== '').join(', ')
}

/** A value as the name of an assertion: short, and in plain ASCII, because a TAP line ends at more than a line feed. */
function shown (value: unknown): string {
  return JSON.stringify(value).slice(0, 80).replace(/[^ -~]/g, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`)
}

/** The app on a port of its own, for attacks on what reads the bytes. */
async function listen (app: FastifyInstance) {
  const origin = await app.listen({ port: 0, host: '127.0.0.1' })
  const { port } = new URL(origin)
  /** Sends bytes as they are, and answers with all that came back. */
  const send = async (lines: string[], body = ''): Promise<string> => {
    const socket = connectTo({ host: '127.0.0.1', port: Number(port) })
    let answer = ''
    // Who waits for more than there is must not keep the test waiting.
    socket.setTimeout(SOON, () => socket.destroy())
    socket.write([...lines, 'Connection: close', '', body].join('\r\n'))
    socket.setEncoding('utf8').on('data', (chunk: string) => { answer += chunk }).on('error', () => {})
    await once(socket, 'close')
    return answer
  }
  return { origin, send }
}

/** The time that something takes, in milliseconds. */
async function timed (work: () => Promise<unknown>): Promise<number> {
  const startedAt = performance.now()
  await work()
  return performance.now() - startedAt
}

/** Milliseconds: far more than an answer takes on a machine that is busy, far less than an attack is meant to cost. */
const SOON = 5000

/** How many rows the file has. */
function rowsIn (path: string): number {
  const database = new DatabaseSync(path)
  try {
    return (database.prepare('SELECT count(*) AS count FROM access_tokens').get() as { count: number }).count
  } finally {
    database.close()
  }
}

/** What is made when it is first wanted, and once. */
function lazily<T> (make: () => Promise<T>): () => Promise<T> {
  let made: Promise<T> | undefined
  return async () => await (made ??= make())
}

type Node = Pick<AppNode, 'guard' | 'redeem' | 'giveBack' | 'connectedApps' | 'disconnect'>

/** An app of this process, as if it were one of its own. */
function asNode (app: FastifyInstance): Node {
  const { get, post, use } = requests(app)
  const answer = ({ statusCode, headers, body }: Awaited<ReturnType<typeof post>>) => ({ status: statusCode, headers: headers as IncomingMessage['headers'], body, took: 0 })
  return {
    guard: async (token) => (await use('/mcp', token)).statusCode,
    redeem: async (code) => answer(await post('/oauth/token', redemption(code))),
    giveBack: async (token) => answer(await post('/oauth/revoke', { client_id: CLIENT, token })),
    connectedApps: async (user) => (await get('/my/connected_apps', { 'x-user': user, accept: 'application/json' })).json(),
    disconnect: async (user, ticket) => answer(await post('/my/connected_apps', { ticket, client: CLIENT }, { 'x-user': user, accept: 'application/json' }))
  }
}

const postgres: () => Promise<PostgresServer> = lazily(async () => await startPostgres(t))

/** Where a grant may be attacked from two sides at once; processes are those of what was built, as in test/nodes.test.ts. */
const DEPLOYMENTS: Array<[where: string, nodes: () => Promise<Node[]>]> = [
  ['one app', lazily(async () => [asNode(await testApp(t))])],
  ['three apps on one SQLite file', lazily(async () => {
    const path = join(folder(), 'tokens.db')
    return await Promise.all([1, 2, 3].map(async () => asNode(await testApp(t, { store: sqliteStore({ path }) }))))
  })],
  ['two processes on one SQLite file', lazily(async () => await startNodes(t, 2, { store: { sqlite: join(folder(), 'tokens.db') } }))],
  ['two processes on PostgreSQL', lazily(async () => await startNodes(t, 2, { store: { postgres: { connectionString: await (await postgres()).database() } } }))]
]

// Codes

t.test('1. of many parallel redemptions of one code one succeeds and the rest are invalid_grant, on one process, on several over one SQLite file and on several over PostgreSQL', async (t) => {
  const [CODES, TIMES] = [8, 24]
  for (const [where, deployment] of DEPLOYMENTS) {
    const nodes = await deployment()
    const statuses: string[] = []
    const winners: number[] = []
    const guarded: number[] = []
    await forEach(await Promise.all(Array.from({ length: CODES }, async (_, index) => await mintCode(`user ${index}`))), 2, async (code) => {
      const answers = await Promise.all(Array.from({ length: TIMES }, async (_, index) => await nodes[index % nodes.length]!.redeem(code)))
      statuses.push(...answers.map(({ status, body }) => refusal({ statusCode: status, body })))
      const tokens = answers.filter(({ status }) => status === 200).map(tokenOf)
      winners.push(tokens.length)
      for (const node of nodes) guarded.push(...await Promise.all(tokens.map(node.guard)))
    })
    t.strictSame(count(winners), { 1: CODES }, where)
    t.strictSame(count(statuses), { '200 granted': CODES, '400 invalid_grant': CODES * (TIMES - 1) }, where)
    t.strictSame(count(guarded), { 401: CODES * nodes.length }, `${where}: and since others had the code too, its token is worth nothing`)
  }

  // A crowd that holds the code but no verifier stops nobody.
  const { clientId, code, redeem, call } = await attacked(t)
  const client = await clientId()
  const issued = await code(client)
  const answers = await Promise.all(Array.from({ length: 24 }, async (_, index) => await redeem(client, issued, index === 12 ? {} : { code_verifier: pkce().codeVerifier })))
  t.strictSame(count(answers.map(refusal)), { '200 granted': 1, '400 invalid_grant': 23 })
  t.equal(await call(answers[12]!.json<Tokens>().access_token), 200)
})

t.test('2. a code that is replayed after its success is invalid_grant, and ends what it was redeemed for', async (t) => {
  const { app, clientId, code, redeem, refresh, call, happened } = await attacked(t, { accessTokenLifetime: HOUR, refreshTokenLifetime: DAY })
  const client = await clientId()
  const thief = await clientId({ client_name: 'Thief' })
  const [issued, another] = [await code(client), await code(client)]
  const first = (await redeem(client, issued)).json<Tokens>()
  const second = (await refresh(client, first.refresh_token)).json<Tokens>()
  const neighbour = (await redeem(client, another)).json<Tokens>()

  for (const [title, who, changes] of [['another client', thief, {}], ['a wrong verifier', client, { code_verifier: pkce().codeVerifier }], ['another redirect URI', client, { redirect_uri: `${CALLBACK}/x` }]] as const) {
    t.equal(refusal(await redeem(who, issued, changes)), '400 invalid_grant', title)
  }
  t.equal(refusal(await redeem(client, issued, { code_verifier: '' })), '400 invalid_request', 'no verifier')
  t.equal(await call(second.access_token), 200, 'who cannot prove possession cannot end the grant either')
  t.equal(happened('token.revoked'), 0)

  for (let replay = 0; replay < 3; replay++) t.equal(refusal(await redeem(client, issued)), '400 invalid_grant')
  for (const token of [first.access_token, second.access_token]) t.equal(await call(token), 401, 'not even what it was refreshed to')
  for (const token of [first.refresh_token, second.refresh_token]) t.equal(refusal(await refresh(client, token)), '400 invalid_grant')
  t.equal(await call(neighbour.access_token), 200, 'the other grant of the same user and client goes on')
  t.equal((await app.oauth.tokens.list({ userId: 'alice' })).length, 1)
  t.equal((await redeem(client, await code(client))).statusCode, 200, 'and a new consent works')
})

t.test('3. a code that is replayed after a restart, on another node, or when its token is long expired is refused all the same', async (t) => {
  for (const [where, deployment] of DEPLOYMENTS.slice(1)) {
    const nodes = await deployment()
    const code = await mintCode('replayed elsewhere')
    const token = tokenOf(await nodes[0]!.redeem(code))
    for (const node of nodes) t.equal(await node.guard(token), 200, where)
    const { status, body } = await nodes.at(-1)!.redeem(code)
    t.equal(refusal({ statusCode: status, body }), '400 invalid_grant', where)
    for (const node of nodes) t.equal(await node.guard(token), 401, where)
  }

  const before = await attacked(t, { codeLifetime: 600, accessTokenLifetime: 60 })
  const client = await before.clientId()
  const [early, late] = [await before.code(client), await before.code(client)]
  const tokens = [(await before.redeem(client, early)).json<Tokens>().access_token, (await before.redeem(client, late)).json<Tokens>().access_token]
  await before.app.close()
  const after = await attacked(t, { codeLifetime: 600, accessTokenLifetime: 60 }, { path: before.path })
  const again = async (code: string) => await after.redeem(client, code, { code_verifier: before.codeVerifier })
  t.equal(await after.call(tokens[0]!), 200)
  t.equal(refusal(await again(early)), '400 invalid_grant', 'after a restart')
  t.equal(await after.call(tokens[0]!), 401)

  // The code outlives its token here, and old rows are deleted: that of a code which still lives must not be.
  const now = Date.now()
  replace(t, Date, 'now', () => now + 120_000)
  t.equal(await after.app.oauth.tokens.purge(), 0)
  t.equal(refusal(await again(late)), '400 invalid_grant', 'after its token has expired')
  t.equal(await after.call(tokens[1]!), 401)
  t.equal((await after.app.oauth.tokens.stats()).active, 0)
})

t.test('4. a code that is replayed within its life after the user disconnected the app, or the app gave its token back, is refused', async (t) => {
  const { app, clientId, code, redeem, post, call, page } = await attacked(t)
  const client = await clientId()
  const ends: Array<[title: string, end: (token: string, grantId: string) => Promise<{ statusCode: number } | number>]> = [
    ['disconnected by the user', async () => await post('/my/connected_apps', { ticket: fieldOf(await page(), 'ticket'), client }, { 'x-user': 'alice' })],
    ['its one grant revoked by the user', async (_token, grantId) => await post('/my/connected_apps', { ticket: fieldOf(await page(), 'ticket'), grant: grantId }, { 'x-user': 'alice' })],
    ['given back by the client', async (token) => await post('/oauth/revoke', { client_id: client, token })],
    ['revoked by the app', async () => await app.oauth.tokens.revoke({ userId: 'alice' })]
  ]
  for (const [title, end] of ends) {
    const issued = await code(client)
    const token = (await redeem(client, issued)).json<Tokens>().access_token
    await end(token, (await app.oauth.tokens.list({ userId: 'alice' }))[0]!.grantId)
    t.equal(await call(token), 401, title)
    for (let replay = 0; replay < 2; replay++) t.equal(refusal(await redeem(client, issued)), '400 invalid_grant', title)
    t.strictSame(await app.oauth.tokens.list({ userId: 'alice' }), [], title)
    // A disconnect counts for all of its millisecond.
    await new Promise((resolve) => setTimeout(resolve, 2))
  }
  t.equal((await redeem(client, await code(client))).statusCode, 200, 'a new consent works')
})

t.test('5. a code on its way when the user disconnects the app is refused, whoever ends it and however close, and nobody else’s is', async (t) => {
  const { app, clientId, ticket, consent, code, redeem, connect, post, page, events } = await attacked(t)
  const { clientId: client } = await connect()
  const other = await clientId({ client_name: 'Other' })
  const bob = dance(app, 'bob')
  let now = Date.now()
  replace(t, Date, 'now', () => now)
  const pass = (milliseconds: number): void => { now += milliseconds }

  const inFlight = await code(client)
  const [bobs, others] = [await bob.code(client), await code(other)]
  t.equal((await post('/my/connected_apps', { ticket: fieldOf(await page(), 'ticket'), client }, { 'x-user': 'alice' })).statusCode, 303)
  t.equal(refusal(await redeem(client, inFlight)), '400 invalid_grant', 'on the page')
  t.equal(refusal(await redeem(client, await code(client))), '400 invalid_grant', 'a consent of the very same millisecond is not taken for a later one')
  t.equal((await bob.redeem(client, bobs)).statusCode, 200, 'another user’s')
  t.equal((await redeem(other, others)).statusCode, 200, 'another client’s')
  pass(1)
  t.equal((await redeem(client, await code(client))).statusCode, 200, 'a millisecond later they may connect again')

  // Where there is no grant yet that could be revoked.
  const carol = dance(app, 'carol')
  for (const selector of [{ userId: 'carol' }, { clientId: client }, { userId: 'carol', clientId: client }]) {
    const issued = await carol.code(client)
    pass(10)
    t.equal(await app.oauth.tokens.revoke(selector), selector.userId === undefined ? 2 : 0)
    t.equal(refusal(await carol.redeem(client, issued)), '400 invalid_grant', Object.keys(selector).join())
    pass(1)
  }
  const issued = await carol.code(client)
  const { grantId } = events.findLast(({ type }) => type === 'consent.approved') as { grantId: string }
  await app.oauth.tokens.revoke({ grantId })
  t.equal(refusal(await carol.redeem(client, issued)), '400 invalid_grant', 'by the grant that its consent was to become')

  // Two tabs: what counts is when the user said yes.
  const open = await ticket(client)
  await app.oauth.tokens.revoke({ userId: 'alice', clientId: client })
  pass(1)
  t.equal((await redeem(client, codeOf(await consent({ ticket: open, decision: 'approve', scope: 'read' })))).statusCode, 200)
})

t.test('6. a wrong verifier is invalid_grant, and the owner can still redeem the code', async (t) => {
  const { clientId, code, redeem, call, connect, codeVerifier, codeChallenge, happened } = await attacked(t)
  const { token: earlier } = await connect()
  const client = await clientId()
  const issued = await code(client)
  const wrong = [
    pkce().codeVerifier, codeChallenge, codeVerifier.toUpperCase(), codeVerifier.toLowerCase(), codeVerifier + 'A', codeVerifier.replace(/.$/, (last) => last === 'A' ? 'B' : 'A'),
    [...codeVerifier].reverse().join(''), 'A'.repeat(43), '~'.repeat(128), hash('sha256', codeChallenge, 'base64url')
  ]
  for (const verifier of wrong) t.equal(refusal(await redeem(client, issued, { code_verifier: verifier })), '400 invalid_grant', verifier)
  t.equal(happened('token.revoked'), 0)
  const answer = await redeem(client, issued)
  t.equal(answer.statusCode, 200)
  for (const verifier of wrong) t.equal(refusal(await redeem(client, issued, { code_verifier: verifier })), '400 invalid_grant', `${verifier}, once it is redeemed`)
  t.equal(happened('token.revoked'), 0)
  t.strictSame([await call(answer.json<Tokens>().access_token), await call(earlier)], [200, 200], 'no grant was ended')
})

t.test('7. without PKCE, with the method plain or none, or with a verifier that is too short or too long, there is no token', async (t) => {
  const { clientId, authorize, ticket, code, redeem, codeChallenge, happened } = await attacked(t)
  const client = await clientId()
  for (const changes of [
    { code_challenge: '' }, { code_challenge: '', code_challenge_method: '' }, { code_challenge_method: '' }, { code_challenge_method: 'plain' }, { code_challenge_method: 's256' }, { code_challenge_method: 'S256 ' },
    { code_challenge_method: 'S512' }, { code_challenge_method: 'none' }, { code_challenge: codeChallenge.slice(1) }, { code_challenge: `${codeChallenge}A` }, { code_challenge: `${codeChallenge}=` },
    { code_challenge: `${codeChallenge.slice(1)}+` }, { code_challenge: `${codeChallenge.slice(1)} ` }, { code_challenge: `${codeChallenge}\n` }, { code_challenge: 'v'.repeat(128) }
  ] as Array<Record<string, string>>) {
    const refused = await authorize(client, changes)
    t.equal(refused.statusCode, 303, shown(changes))
    t.match(Object.fromEntries(locationOf(refused).searchParams), { error: 'invalid_request', state: 'xyz' }, shown(changes))
    t.equal(codeOf(refused), '')
    t.equal(await ticket(client, changes), '', 'nor is anything shown that could be allowed')
  }

  for (const length of [43, 128]) {
    const verifier = 'v~._-'.repeat(26).slice(0, length)
    const issued = await code(client, { code_challenge: hash('sha256', verifier, 'base64url') })
    for (const wrong of ['', 'v'.repeat(42), 'v'.repeat(129), verifier.slice(0, 42), `${verifier.slice(0, 42)} `, `${verifier.slice(0, 42)}=`, `${verifier}\n`, `${verifier.slice(0, 43)}é`, 'v'.repeat(10_000)]) {
      t.equal(refusal(await redeem(client, issued, { code_verifier: wrong })), '400 invalid_request', shown(wrong))
    }
    t.equal((await redeem(client, issued, { code_verifier: verifier })).statusCode, 200, `${length} characters are a verifier`)
  }
  // 42 and 129 characters are none, though they match.
  for (const length of [42, 129]) {
    const verifier = 'v'.repeat(length)
    const issued = await code(client, { code_challenge: hash('sha256', verifier, 'base64url') })
    t.equal(refusal(await redeem(client, issued, { code_verifier: verifier })), '400 invalid_request', String(length))
  }
  t.equal(happened('token.issued'), 2)
})

t.test('8. a code with another client, redirect URI or resource is refused, and not burnt', async (t) => {
  const uris = [CALLBACK, 'http://localhost:33418/callback', 'http://127.0.0.1:33418/other']
  const { clientId, code, redeem, call, happened } = await attacked(t, {
    clients: [{ clientId: 'desk', clientName: 'Desk', redirectUris: [CALLBACK] }], resources: [{ path: '/mcp' }, { url: 'https://files.example.com/mcp' }]
  })
  const client = await clientId({ redirect_uris: uris })
  const issued = await code(client)
  for (const thief of ['desk', await clientId({ client_name: 'Thief' }), await clientId({ redirect_uris: uris.slice(0, 2) })]) {
    t.equal(refusal(await redeem(thief, issued)), '400 invalid_grant', thief.slice(0, 20))
  }
  for (const unknown of ['nobody', client.toUpperCase(), `${client} `, client.slice(0, -1)]) t.equal(refusal(await redeem(unknown, issued)), '401 invalid_client', unknown.slice(-20))
  for (const uri of [...uris.slice(1), CALLBACK.replace('33418', '33419'), CALLBACK.replace(':33418', ''), CALLBACK.replace('http:', 'https:'), `${CALLBACK}/`, `${CALLBACK}?`, `${CALLBACK}?a=b`, `${CALLBACK}#`, CALLBACK.toUpperCase(), ` ${CALLBACK}`, EVIL]) {
    t.equal(refusal(await redeem(client, issued, { redirect_uri: uri })), '400 invalid_grant', uri)
  }
  for (const resource of ['https://files.example.com/mcp', `${ISSUER}/mcp/x`, `${ISSUER}`, 'mcp', EVIL]) {
    t.equal(refusal(await redeem(client, issued, { resource })), '400 invalid_target', resource)
  }
  t.equal(happened('token.revoked') + happened('token.issued'), 0)
  const answer = await redeem(client, issued)
  t.equal(answer.statusCode, 200, 'its owner redeems it')
  t.equal(await call(answer.json<Tokens>().access_token), 200)
})

t.test('9. a tampered code, another alg, enc or zip, PBES2 with a huge count and a code of 1 MB are refused, quickly and never with a 5xx', async (t) => {
  const { app, clientId, ticket, code, redeem, codeVerifier, codeChallenge, happened } = await attacked(t)
  const client = await clientId()
  const issued = await code(client)
  const { origin, send } = await listen(app)
  const post = async (value: string, init: { body?: string, headers?: Record<string, string> } = {}): Promise<{ statusCode: number, body: string }> => {
    const body = form({ grant_type: 'authorization_code', client_id: client, code: value, redirect_uri: CALLBACK, code_verifier: codeVerifier })
    const answer = await fetch(`${origin}/oauth/token`, { method: 'POST', headers: { ...FORM, ...init.headers }, body: init.body ?? body })
    return { statusCode: answer.status, body: await answer.text() }
  }

  // A whole grant for mallory, in every wrapping that is not ours, some of them under the right key.
  const key = deriveKey(parseKey(KEY)!, 'code', 32)
  const { kid, typ } = JSON.parse(Buffer.from(issued.split('.')[0]!, 'base64url').toString()) as { kid: string, typ: string }
  const grant = {
    grantId: 'g'.repeat(22), userId: 'mallory', tenantId: null, clientId: client, clientName: 'x', redirectUri: CALLBACK, codeChallenge, scopes: ['read', 'write'], resource: `${ISSUER}/mcp`, issuedAt: Date.now(), expiresAt: Date.now() + 60_000
  }
  const wrapped = async (header: object, bytes: Uint8Array = key): Promise<string> =>
    await new CompactEncrypt(Buffer.from(JSON.stringify(grant))).setProtectedHeader({ alg: 'dir', enc: 'A256GCM', kid, typ, ...header } as { alg: string, enc: string }).encrypt(bytes)
  const [header, encrypted, iv, body, tag] = issued.split('.') as [string, string, string, string, string]
  const said = (changes: object, wrappedKey = encrypted): string => [Buffer.from(JSON.stringify({ alg: 'dir', enc: 'A256GCM', kid, typ, ...changes })).toString('base64url'), wrappedKey, iv, body, tag].join('.')
  const flipped = (text: string, at: number): string => text.slice(0, at) + (text[at] === 'A' ? 'B' : 'A') + text.slice(at + 1)
  const pbes2 = { alg: 'PBES2-HS512+A256KW', p2c: 2 ** 31 - 1, p2s: 'c2FsdCBzYWx0IHNhbHQ' }
  const forged: Record<string, string> = {
    'a foreign key': await wrapped({}, Buffer.alloc(32, 7)),
    'the configured key itself': await wrapped({}, parseKey(KEY)!.subarray(0, 32)),
    'alg A256KW': await wrapped({ alg: 'A256KW' }),
    'alg A256GCMKW': await wrapped({ alg: 'A256GCMKW' }),
    'alg PBES2': await wrapped({ alg: 'PBES2-HS512+A256KW' }),
    'enc A128CBC-HS256': await wrapped({ enc: 'A128CBC-HS256' }),
    'enc A128GCM': await wrapped({ enc: 'A128GCM' }, key.subarray(0, 16)),
    'zip, and packed': await wrapped({ zip: 'DEF' }),
    'the purpose of a ticket': await wrapped({ typ: 'mcp-oauth-consent' }),
    'PBES2 with a huge count': said(pbes2, 'A'.repeat(54)),
    'alg RSA-OAEP': said({ alg: 'RSA-OAEP-256' }),
    'alg ECDH-ES with a key of its own': said({ alg: 'ECDH-ES', epk: { kty: 'EC', crv: 'P-256', x: 'AA', y: 'AA' } }),
    'alg none': said({ alg: 'none' }),
    'zip, said afterwards': said({ zip: 'DEF' }),
    'another kid': said({ kid: 'x' }),
    'no kid': said({ kid: undefined }),
    'an unknown crit': said({ crit: ['x'], x: 1 }),
    'a header that is no JSON': ['eHg', encrypted, iv, body, tag].join('.'),
    'a signed JWT': await new SignJWT(grant).setProtectedHeader({ alg: 'HS256' }).sign(key),
    'an unsigned JWT': new UnsecuredJWT(grant).encode(),
    'a client id': client,
    'a consent ticket': await ticket(client),
    'a ticket under another purpose of the same key': await (await createSealer<typeof grant>([parseKey(KEY)!], 'consent')).seal(grant),
    'the JSON serialization': JSON.stringify({ protected: header, encrypted_key: encrypted, iv, ciphertext: body, tag }),
    'four parts': [header, iv, body, tag].join('.'),
    'six parts': `${issued}.A`,
    'a space behind it': `${issued} `,
    'spare bits': `${issued.slice(0, -1)}${'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'['ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'.indexOf(issued.at(-1)!) ^ 1]!}`,
    'dots alone': '....',
    'many dots': '.'.repeat(5000),
    NUL: '\0',
    '10 kB': 'A'.repeat(10_000),
    '10 kB of header': said({ x: 'A'.repeat(7000) })
  }
  for (const [at, part] of [header, iv, body, tag].entries()) {
    for (const index of [0, Math.floor(part.length / 2), part.length - 2]) forged[`part ${at}, character ${index}`] = issued.replace(part, flipped(part, index))
  }
  for (const [title, value] of Object.entries(forged)) {
    let answer
    const took = await timed(async () => { answer = await post(value) })
    t.equal(refusal(answer!), '400 invalid_grant', title)
    t.ok(took < SOON, `${title}: ${Math.round(took)} ms`)
  }

  // Whatever is too large to be one is not even read.
  const huge = 'A'.repeat(1_000_000)
  for (const [title, request] of [
    ['a code of 1 MB', async () => await post(huge)],
    ['the same, percent-encoded', async () => await post('', { body: `code=${'%41'.repeat(333_333)}` })],
    ['a thousand codes', async () => await post('', { body: `code=${issued}&`.repeat(1000) })]
  ] as const) {
    let answer
    t.ok(await timed(async () => { answer = await request() }) < SOON, title)
    t.equal(refusal(answer!), '413 invalid_request', title)
  }
  const head = ['POST /oauth/token HTTP/1.1', 'Host: localhost', `Content-Type: ${FORM['content-type']}`]
  t.match(await send([...head, 'Transfer-Encoding: chunked'], `${`4000\r\n${'A'.repeat(0x4000)}\r\n`.repeat(4)}0\r\n\r\n`), /^HTTP\/1\.1 413 /, 'in pieces that say nothing of the whole')
  t.match(await send([...head, 'Content-Length: 1000000000000'], 'code='), /^HTTP\/1\.1 413 /, 'a length alone')
  t.match(await send([...head, 'Content-Encoding: gzip', 'Content-Length: 3'], '\x1f\x8b\x08'), /^HTTP\/1\.1 40[01] /, 'nothing is unpacked')

  t.equal(happened('token.issued'), 0)
  t.equal((await redeem(client, issued)).statusCode, 200, 'after all of which the code is as good as it was')
})

t.test('10. a code is refused a second after its life, and from its last millisecond on', async (t) => {
  for (const codeLifetime of [1, 60, 600]) {
    const { clientId, code, redeem, call, refresh, happened } = await attacked(t, { codeLifetime, accessTokenLifetime: HOUR, refreshTokenLifetime: DAY })
    const client = await clientId()
    let now = Date.now()
    const clock = replace(t, Date, 'now', () => now)
    const [early, late, later, redeemed] = [await code(client), await code(client), await code(client), await code(client)]
    const tokens = (await redeem(client, redeemed)).json<Tokens>()
    now += codeLifetime * 1000 - 1
    t.equal((await redeem(client, early)).statusCode, 200, `${codeLifetime} s less a millisecond`)
    now += 1
    t.equal(refusal(await redeem(client, late)), '400 invalid_grant', `${codeLifetime} s`)
    now += 1000
    t.equal(refusal(await redeem(client, later)), '400 invalid_grant', `${codeLifetime + 1} s`)
    t.equal(refusal(await redeem(client, redeemed)), '400 invalid_grant', 'and one that was redeemed stays so')
    now += DAY * 1000
    t.equal(refusal(await redeem(client, late)), '400 invalid_grant', 'a day later')
    now -= DAY * 1000
    t.equal(await call(tokens.access_token), 200, 'what was redeemed in time goes on')
    t.equal((await refresh(client, tokens.refresh_token)).statusCode, 200)
    t.equal(happened('token.revoked'), 0)
    clock.restore()
  }
})

// Redirects and registration

/** What a browser would run or open, and what would hide it. */
const RUNNABLE = [
  'javascript:alert(1)', 'javascript://localhost/%0aalert(1)', 'javascript://127.0.0.1:1/%0aalert(1)', 'data:text/html,<script>alert(1)</script>', 'data:text/html;base64,PHNjcmlwdD4=', 'vbscript:msgbox(1)',
  'file:///etc/passwd', 'blob:https://evil.example/1', 'about:blank', 'view-source:https://evil.example/', 'filesystem:https://evil.example/a'
].flatMap((uri) => [
  uri, uri.toUpperCase(), uri[0]!.toUpperCase() + uri.slice(1), ` ${uri}`, `  ${uri}`, `\t${uri}`, `\n${uri}`, `\0${uri}`, `\u0001${uri}`, `\u200b${uri}`, `${uri.slice(0, 3)}\t${uri.slice(3)}`, `${uri.slice(0, 3)}\n${uri.slice(3)}`, uri.replace(':', '\r:')
])

/** What only looks as if it led to this computer, or leads to it in a way that others can reach. */
const LOOKALIKES = [
  'http://127.0.0.1@evil.example/', 'http://localhost@evil.example/cb', 'http://localhost:80@evil.example/', 'http://localhost:@evil.example/', 'http://[::1]@evil.example/', 'http://user@localhost/cb', 'http://@localhost/cb',
  'http://127.0.0.1.evil.example/', 'http://localhost.evil.example/', 'http://localhost./cb', 'http://notlocalhost/cb', 'http://localhost%2eevil.example/', 'http://localhost%00.evil.example/', 'http://127.0.0.1%2f@evil.example/',
  'http://evil.example/#http://localhost/', 'http://evil.example/http://localhost/', 'http://evil.example\\@localhost/', 'http://localhost\\@evil.example/', 'http:\\\\localhost\\cb', '//evil.example/cb', '///evil.example', 'http:evil.example', 'https:evil.example/cb',
  'http://0.0.0.0/', 'http://0.0.0.0:33418/callback', 'http://[::]/callback', 'http://127.0.0.2/callback', 'http://127.1/callback', 'http://2130706433/callback', 'http://0x7f.1/callback', 'http://0177.0.0.1/callback', 'http://[::ffff:127.0.0.1]/callback', 'http://[0:0:0:0:0:0:0:1]/callback',
  'http://169.254.169.254/', 'http://10.0.0.1/callback', 'http://[fe80::1]/callback',
  'https://localhost/callback', 'https://127.0.0.1:33418/callback', 'https://[::1]/callback', 'ws://localhost/callback', 'ftp://127.0.0.1/callback', 'HTTP://127.0.0.1/callback', 'http://LOCALHOST/callback', 'http:/127.0.0.1/callback', 'http:///127.0.0.1/callback', '127.0.0.1:33418/callback',
  'http://localhost/callback#', 'http://localhost/callback#fragment', 'http://localhost#@evil.example/', 'http://127.0.0.1/callback ', ' http://127.0.0.1/callback', 'http://127.0.0.1/call\tback', 'http://127.0.0.1/callback\r\nSet-Cookie: a=b', 'http://127.0.0.1/\0',
  'http://127.0.0.1:99999/callback', 'http://127.0.0.1:/callback', 'http://127.0.0.1:1:2/callback', 'http://127.0.0.1:٣/callback', 'http://127。0。0。1/callback', 'http://ｌocalhost/callback', 'http://locаlhost/callback', 'http://127.0.0.1/"><script>', 'http://*/callback', 'http://localhost*/callback', '*', ''
]

t.test('11. a redirect URI that is not registered gets a page and never a redirect, alone or beside any other error, signed in or not', async (t) => {
  const { app, clientId, query, get, happened } = await attacked(t, { registration: { redirectUris: ['https://client.example/cb'] } })
  const client = await clientId()
  const web = await clientId({ redirect_uris: ['https://client.example/cb'] })
  const others: Array<Record<string, string>> = [
    {}, { response_type: 'token' }, { response_type: '' }, { code_challenge: '' }, { code_challenge_method: 'plain' }, { scope: 'admin' }, { resource: 'https://elsewhere.example/' }, { state: EVIL }, { prompt: 'none' }, { response_mode: 'fragment' }, { request_uri: EVIL }
  ]
  const uris = [EVIL, '', 'http://127.0.0.1:33418/other', 'https://127.0.0.1:33418/callback', 'http://localhost:33418/callback', 'https://client.example/cb/', 'https://client.example/cb?x=evil', 'https://client.example.evil.example/cb', 'https://CLIENT.example/cb', `${CALLBACK}/../evil`]
  const ids = [client, web, 'nobody', EVIL.replace('https', 'http')]
  for (const headers of [{ 'x-user': 'alice' }, {}] as Array<Record<string, string>>) {
    const ask = async (fields: Record<string, string | string[]>): Promise<string> => wayOut(await get(`/oauth/authorize?${form(fields)}`, headers))
    for (const uri of uris) {
      const out = []
      for (const [id, changes] of ids.flatMap((id) => others.map((changes) => [id, changes] as const))) out.push(await ask(query(id, { ...changes, redirect_uri: uri })))
      t.strictSame(count(out), { '': ids.length * others.length }, uri)
    }
    for (const id of ['', 'nobody', `${client}x`]) t.equal(await ask(query(id, { redirect_uri: id === '' ? CALLBACK : EVIL })), '', `client ${id.slice(-10)}`)
    // Two URIs, in either order: which one counts must not be a matter of who reads.
    const { redirect_uri: _, ...rest } = query(client)
    for (const pair of [[CALLBACK, EVIL], [EVIL, CALLBACK], [CALLBACK, CALLBACK]]) t.equal(await ask({ ...rest, redirect_uri: pair }), '', pair.join())
  }
  const head = await app.inject({ method: 'HEAD', url: `/oauth/authorize?${form(query(client, { redirect_uri: EVIL }))}` })
  t.notOk('location' in head.headers, 'HEAD')
  t.equal(happened('consent.shown'), 0)
})

t.test('12. javascript:, data:, vbscript: and their like, in any disguise, are taken in no field that holds a URI', async (t) => {
  const { clientId, register, authorize } = await attacked(t)
  const client = await clientId()
  for (const uri of RUNNABLE) {
    t.equal(refusal(await register({ redirect_uris: [uri] })), '400 invalid_redirect_uri', shown(uri))
    const mixed = await register({ redirect_uris: [uri, CALLBACK], client_uri: uri, logo_uri: uri, tos_uri: uri, policy_uri: uri, jwks_uri: uri, sector_identifier_uri: uri, initiate_login_uri: uri, post_logout_redirect_uris: [uri] })
    t.strictSame(mixed.json<{ redirect_uris: string[] }>().redirect_uris, [CALLBACK], shown(uri))
    t.notOk(mixed.body.includes(JSON.stringify(uri).slice(1, -1)), 'and what has no use is not repeated')
    const page = await authorize(mixed.json<{ client_id: string }>().client_id)
    t.notOk(page.body.includes(uri), 'nor shown')
    const refused = await authorize(client, { redirect_uri: uri })
    t.strictSame([refused.statusCode, refused.headers.location], [400, undefined], shown(uri))
    t.equal((await authorize(client, { resource: uri })).headers.location?.toString().startsWith(CALLBACK), true, 'a resource is a name here, and leads nowhere')
  }

  const options: Record<string, (uri: string) => object> = {
    issuer: (uri) => ({ issuer: uri }),
    loginUrl: (uri) => ({ loginUrl: uri }),
    'registration.redirectUris': (uri) => ({ registration: { redirectUris: [uri] } }),
    'clientIdMetadata.redirectUris': (uri) => ({ clientIdMetadata: { redirectUris: [uri] } }),
    'clients[].redirectUris': (uri) => ({ clients: [{ clientId: 'desk', clientName: 'Desk', redirectUris: [uri] }] }),
    'resources[].url': (uri) => ({ resources: [{ url: uri }] }),
    'resources[].path': (uri) => ({ resources: [{ path: uri }] }),
    'resources[].documentation': (uri) => ({ resources: [{ path: '/mcp', documentation: uri }] }),
    'connectedApps.path': (uri) => ({ connectedApps: { path: uri } })
  }
  const base = testOptions()
  for (const [name, option] of Object.entries(options)) {
    const taken: string[] = []
    // A third of them, which has each scheme and each disguise: an app boots slower than it answers.
    for (const uri of RUNNABLE.filter((_, index) => index % 3 === 0)) {
      const code = await Fastify().register(mcpOAuth, { ...base, ...option(uri) }).then(() => 'taken', ({ code }: { code: string }) => code)
      if (code !== 'FST_MCP_OAUTH_INVALID_OPTION') taken.push(`${uri}: ${code}`)
    }
    t.strictSame(taken, [], name)
  }
})

t.test('13. what only looks like this computer, in userinfo, host name, number or scheme, is no loopback redirect URI', async (t) => {
  const { clientId, register, authorize } = await attacked(t)
  const client = await clientId({ redirect_uris: ['http://127.0.0.1/callback', 'http://localhost/callback', 'http://[::1]/callback', 'http://localhost'] })
  for (const uri of LOOKALIKES) {
    t.equal(refusal(await register({ redirect_uris: [uri] })), '400 invalid_redirect_uri', shown(uri))
    t.strictSame((await register({ redirect_uris: [uri, CALLBACK] })).json<{ redirect_uris: string[] }>().redirect_uris, [CALLBACK], shown(uri))
    const { statusCode, headers } = await authorize(client, { redirect_uri: uri })
    t.strictSame([statusCode, headers.location], [400, undefined], shown(uri))
  }
  for (const uri of ['https://*.client.example/cb', 'https://client.example/*', 'http://localhost:*/callback', 'app://*']) {
    await t.rejects(testApp(t, { registration: { redirectUris: [uri] } }), { code: 'FST_MCP_OAUTH_INVALID_OPTION' }, `nor does the app allow a pattern: ${uri}`)
  }
  // A bare host and one with a path are two.
  const bare = await clientId({ redirect_uris: ['http://localhost'] })
  const slash = await clientId({ redirect_uris: ['http://localhost/'] })
  const path = await clientId({ redirect_uris: ['http://localhost/callback'] })
  const accepted = async (id: string, uri: string): Promise<boolean> => (await authorize(id, { redirect_uri: uri })).statusCode === 200
  const uris = ['http://localhost', 'http://localhost:1', 'http://localhost/', 'http://localhost:1/', 'http://localhost/callback', 'http://localhost:1/callback', 'http://localhost?x', 'http://localhost:1?x']
  for (const [id, own] of [[bare, [0, 1]], [slash, [2, 3]], [path, [4, 5]]] as const) {
    for (const [index, uri] of uris.entries()) t.equal(await accepted(id, uri), (own as readonly number[]).includes(index), uri)
  }
})

t.test('14. the port of a loopback redirect URI may be another, and its path, query, scheme and host may not', async (t) => {
  const { clientId, authorize, ticket, consent, redeem } = await attacked(t, { registration: { redirectUris: ['https://client.example/cb', 'https://localhost/cb', 'app://cb'] } })
  for (const host of ['127.0.0.1', 'localhost', '[::1]']) {
    const client = await clientId({ redirect_uris: [`http://${host}:33418/callback?a=b`] })
    for (const port of ['', ':1', ':80', ':443', ':33418', ':65535']) {
      const uri = `http://${host}${port}/callback?a=b`
      const answer = await consent({ ticket: await ticket(client, { redirect_uri: uri }), decision: 'approve', scope: 'read' })
      t.ok(String(answer.headers.location).startsWith(`${uri}&code=`), uri)
      t.equal((await redeem(client, codeOf(answer), { redirect_uri: uri })).statusCode, 200)
    }
    const other = ['127.0.0.1', 'localhost', '[::1]', '0.0.0.0', 'evil.example'].filter((name) => name !== host)
    for (const uri of [
      ...other.map((name) => `http://${name}:33418/callback?a=b`), `https://${host}:33418/callback?a=b`, `http://${host}:33418/callback`, `http://${host}:33418/callback?`, `http://${host}:33418/callback?a=c`, `http://${host}:33418/callback?a=b&c=d`, `http://${host}:33418/callback?a=b#`,
      `http://${host}:33418/callback/?a=b`, `http://${host}:33418/Callback?a=b`, `http://${host}:33418/%63allback?a=b`, `http://${host}:33418/x/../callback?a=b`, `http://${host}:33418//callback?a=b`, `http://${host}:33418/?a=b`, `http://${host}:65536/callback?a=b`, `http://${host}:0x1/callback?a=b`, `http://${host}:-1/callback?a=b`
    ]) t.equal((await authorize(client, { redirect_uri: uri })).statusCode, 400, uri)
  }
  for (const uri of ['https://client.example/cb', 'https://localhost/cb', 'app://cb']) {
    const client = await clientId({ redirect_uris: [uri] })
    t.equal((await authorize(client, { redirect_uri: uri })).statusCode, 200, uri)
    for (const wrong of [uri.replace('/cb', ':8443/cb'), uri.replace('://', '://:443@'), `${uri}/`, uri.replace('cb', 'CB'), uri.replace(/^\w+/, 'http')]) t.equal((await authorize(client, { redirect_uri: wrong })).statusCode, 400, wrong)
  }
})

t.test('15. the query that a redirect URI has of its own is kept as it is, and code, state and iss come once', async (t) => {
  const uris = ['http://127.0.0.1:33418/cb?a=1&b=%20x+y&a=2&c', 'http://127.0.0.1:33418/cb?', 'https://client.example/cb?tenant=%C3%A9&next=https://client.example/?q=1', 'app://cb?x=1']
  const { clientId, ticket, consent, authorize } = await attacked(t, { registration: { redirectUris: uris.slice(2) } })
  const client = await clientId({ redirect_uris: uris })
  const states = ['xyz', 'a&code=evil&iss=evil#x', '?x=1&state=evil', '\r\nSet-Cookie: a=b', 'é 🙂+%20', '"><script>', '='.repeat(50)]
  for (const [uri, state] of uris.flatMap((uri) => states.map((state) => [uri, state] as const))) {
    const title = `${uri} ${shown(state)}`
    const asked = { redirect_uri: uri, state }
    const own = [...new URL(uri).searchParams]
    const answers: Array<[response: Response, names: string[]]> = [
      [await consent({ ticket: await ticket(client, asked), decision: 'approve', scope: 'read' }), ['code', 'state', 'iss']],
      [await consent({ ticket: await ticket(client, asked), decision: 'deny' }), ['error', 'error_description', 'state', 'iss']],
      [await authorize(client, { ...asked, scope: 'admin' }), ['error', 'error_description', 'state', 'iss']]
    ]
    for (const [{ statusCode, headers }, names] of answers) {
      t.equal(statusCode, 303, title)
      const location = String(headers.location)
      t.ok(location.startsWith(uri), title)
      t.match(location, /^[!-~]+$/, 'nothing in it ends the header')
      const { searchParams, hash } = new URL(location)
      t.strictSame([...searchParams].slice(0, own.length), own, title)
      t.strictSame([...searchParams.keys()].slice(own.length), names, title)
      t.strictSame([searchParams.getAll('state'), searchParams.getAll('iss'), hash], [[state], [ISSUER], ''], title)
    }
  }
  const { searchParams } = locationOf(await consent({ ticket: await ticket(client, { redirect_uri: uris[0]!, state: '' }), decision: 'approve', scope: 'read' }))
  t.notOk(searchParams.has('state'), 'a state that was not sent does not come back')
})

t.test('16. a repeated parameter or an array is invalid_request at every endpoint, and nothing that is sent makes a 500', async (t) => {
  const logged: string[] = []
  const { app, query, code, redeem, call, connect, codeVerifier, happened } = await attacked(t, { clients: [{ clientId: 'api', clientName: 'API', clientSecretHashes: [hash('sha256', 'secret', 'base64url')], introspects: [`${ISSUER}/mcp`] }] },
    { server: { logger: { level: 'error', stream: { write: (line: string) => { logged.push(line) } } } } })
  const { clientId: client, token } = await connect()
  const issued = await code(client)
  const { origin, send } = await listen(app)
  const requests: Record<string, { fields: Record<string, string>, send: (raw: string) => Promise<{ status: number, headers: Headers, body: string }> }> = {}
  const read = async (answer: globalThis.Response) => ({ status: answer.status, headers: answer.headers, body: await answer.text() })
  const posted = (path: string) => async (raw: string) => await read(await fetch(origin + path, { method: 'POST', headers: FORM, body: raw }))
  requests.authorize = { fields: { ...query(client), scope: 'read', resource: `${ISSUER}/mcp` }, send: async (raw) => await read(await fetch(`${origin}/oauth/authorize?${raw}`, { headers: { 'x-user': 'alice' }, redirect: 'manual' })) }
  requests.token = { fields: { grant_type: 'authorization_code', client_id: client, code: issued, redirect_uri: CALLBACK, code_verifier: codeVerifier, resource: `${ISSUER}/mcp` }, send: posted('/oauth/token') }
  requests.refresh = { fields: { grant_type: 'refresh_token', client_id: client, refresh_token: 'ort_x', scope: 'read' }, send: posted('/oauth/token') }
  requests.revoke = { fields: { client_id: client, token, token_type_hint: 'access_token' }, send: posted('/oauth/revoke') }
  requests.introspect = { fields: { client_id: 'api', client_secret: 'secret', token }, send: posted('/oauth/introspect') }

  for (const [endpoint, { fields, send }] of Object.entries(requests)) {
    const refused = async (raw: string): Promise<void> => {
      const { status, headers, body } = await send(raw)
      const [, error] = (endpoint === 'authorize' ? /<code>(\w+)<\/code>/ : /"error":"(\w+)"/).exec(body) ?? []
      t.strictSame([status, headers.get('location'), error], [400, null, 'invalid_request'], `${endpoint}: ${raw.slice(-60)}`)
    }
    for (const [name, value] of Object.entries(fields)) {
      const { [name]: _, ...others } = fields
      for (const [one, two] of [[value, value], [value, 'x'], ['x', value], [value, ''], ['', value]] as const) await refused(form({ ...others, [name]: [one, two] }))
      for (const array of [`${name}[]`, `${name}[0]`, `${name}[x]`, `${name}[x][y]`]) {
        await refused(form({ ...others, [array]: value }))
        await refused(form({ ...fields, [array]: value }).replaceAll('%5B', '[').replaceAll('%5D', ']'))
      }
    }
    for (const raw of [`${form(fields)}&x=1&x=2`, 'scope[]=a&scope[]=b', 'a=1&'.repeat(2000), 'a[]', '__proto__[x]=1', `${form(fields)}&__proto__[admin]=1`]) await refused(raw)
    for (const raw of ['', '&', '&'.repeat(5000), '=', '=x', '%', '%zz', '%00', '%ff%fe', '%c0%80=%c0%80', '__proto__=x', 'constructor=x', 'client_id', 'client_id=__proto__', 'client_id=%00', 'client_id=%ff', 'client_id=🙂', ';', 'a;b', '{"client_id":"x"}', '\u2028']) {
      const { status } = await send(raw)
      t.ok(status < 500, `${endpoint}: ${status} ${shown(raw)}`)
    }
  }
  t.equal(await call(token), 200, 'none of which revoked anything')
  t.equal(happened('token.issued'), 1, 'nor issued anything')

  // What could be read in two ways on its way here.
  const body = form({ client_id: client, token })
  const smuggled = `POST /oauth/revoke HTTP/1.1\r\nHost: localhost\r\nContent-Type: ${FORM['content-type']}\r\nContent-Length: ${body.length}\r\n\r\n${body}`
  const head = ['POST /oauth/token HTTP/1.1', 'Host: localhost', `Content-Type: ${FORM['content-type']}`]
  for (const lines of [['Content-Length: 5', 'Transfer-Encoding: chunked'], ['Content-Length: 5', 'Content-Length: 6'], ['Content-Length: 5, 6'], ['Content-Length: +5'], ['Transfer-Encoding: chunked, identity'], ['Transfer-Encoding: xchunked'], ['Content-Length : 5'], ['Content-Length: 5\nX: y']]) {
    const answer = await send([...head, ...lines], `0\r\n\r\n${smuggled}`)
    t.match(answer, /^HTTP\/1\.1 40[01] /, lines.join())
    t.equal(answer.match(/HTTP\/1\.1 /g)?.length, 1, 'and no second answer')
  }
  t.match(await send(['GET /oauth/authorize?client_id=a HTTP/1.1', 'Host: localhost', 'Content-Length: 11'], 'client_id=b'), /^HTTP\/1\.1 400 /, 'a GET reads its query alone')
  t.match(await send([`POST /oauth/revoke?${body} HTTP/1.1`, 'Host: localhost', `Content-Type: ${FORM['content-type']}`, 'Content-Length: 0']), /^HTTP\/1\.1 401 [^]*"error":"invalid_client"/, 'and a POST its body')
  t.equal(await call(token), 200)
  t.equal((await redeem(client, issued)).statusCode, 200)
  t.strictSame(logged, [], 'the log holds no error')
})

t.test('17. a name of 100 kB, a thousand redirect URIs and a flood of registrations are refused, leave no row and hold nobody up', async (t) => {
  const { app, path } = await attacked(t, { rateLimit: { register: { max: 10_000 } } })
  const { origin, send } = await listen(app)
  const register = async (body: string, at = origin, headers: Record<string, string> = {}) => await fetch(`${at}/oauth/register`, { method: 'POST', headers: { 'content-type': 'application/json', ...headers }, body })
  const redirectUris = [CALLBACK]
  const bodies: Record<string, string> = {
    'a name of 100 kB': JSON.stringify({ client_name: 'x'.repeat(100_000), redirect_uris: redirectUris }),
    'a name of 15 kB': JSON.stringify({ client_name: 'x'.repeat(15_000), redirect_uris: redirectUris }),
    'a name of 101 characters': JSON.stringify({ client_name: 'x'.repeat(101), redirect_uris: redirectUris }),
    'a name of 101 emoji': JSON.stringify({ client_name: '🙂'.repeat(101), redirect_uris: redirectUris }),
    'a pile of accents': JSON.stringify({ client_name: 'a\u0301b'.repeat(3000), redirect_uris: redirectUris }),
    'a thousand redirect URIs': JSON.stringify({ redirect_uris: Array.from({ length: 1000 }, (_, index) => `http://127.0.0.1/${index}`) }),
    'five hundred, in less than 16 kB': JSON.stringify({ redirect_uris: Array.from({ length: 500 }, (_, index) => `http://127.0.0.1/${index}`) }),
    eleven: JSON.stringify({ redirect_uris: Array.from({ length: 11 }, (_, index) => `http://127.0.0.1/${index}`) }),
    'ten that are long': JSON.stringify({ redirect_uris: Array.from({ length: 10 }, (_, index) => `http://127.0.0.1/${index}${'x'.repeat(300)}`) }),
    'one of 15 kB': JSON.stringify({ redirect_uris: [`http://127.0.0.1/${'x'.repeat(15_000)}`] }),
    'lists in lists': `{"redirect_uris":${'['.repeat(8000)}${']'.repeat(8000)}}`,
    'a list of lists': JSON.stringify({ redirect_uris: [[CALLBACK]] }),
    'no list': JSON.stringify({ redirect_uris: CALLBACK }),
    'objects for strings': JSON.stringify({ redirect_uris: [{ toString: CALLBACK }], client_name: { length: 1 } }),
    'no JSON': '{"redirect_uris":',
    'no object': '[]',
    nothing: ''
  }
  for (const [title, body] of Object.entries(bodies)) {
    let status = 0
    const took = await timed(async () => { status = (await register(body)).status })
    t.ok(status === 400 || status === 413, `${title}: ${status}`)
    t.ok(took < SOON, `${title}: ${Math.round(took)} ms`)
  }
  // What is stripped before it is counted may be 201, but no slower for it.
  for (const [name, status] of [['a' + '\u0301'.repeat(7000), 201], ['\u202e'.repeat(5000), 201], [' '.repeat(15_000), 201], ['\u200b \u202e\u0301'.repeat(1500), 400], [`${'\t'.repeat(7000)}x`, 201]] as const) {
    let answer: globalThis.Response | undefined
    t.ok(await timed(async () => { answer = await register(JSON.stringify({ client_name: name, redirect_uris: redirectUris })) }) < SOON, shown(name))
    const { client_name: left = '' } = await answer!.json() as { client_name?: string }
    t.equal(answer!.status, status, shown(name))
    t.ok(left.length <= 100, shown(left))
  }
  t.match(await send(['POST /oauth/register HTTP/1.1', 'Host: localhost', 'Content-Type: application/json', 'Transfer-Encoding: chunked'], `${`4000\r\n${' '.repeat(0x4000)}\r\n`.repeat(4)}0\r\n\r\n`), /^HTTP\/1\.1 413 /, 'in pieces')
  t.equal((await register('{"__proto__":{"redirect_uris":["http://127.0.0.1/"],"polluted":true}}')).status, 400)
  t.equal(({} as { polluted?: boolean }).polluted, undefined)
  for (const type of ['text/plain', 'application/x-www-form-urlencoded', 'application/json5', 'multipart/form-data; boundary=x']) {
    t.equal((await register(JSON.stringify({ redirect_uris: redirectUris }), origin, { 'content-type': type })).status, 415, `what is not said to be JSON is not read: ${type}`)
  }
  t.equal(rowsIn(path), 0)

  const limited = await attacked(t, { rateLimit: {} })
  const { origin: flooded } = await listen(limited.app)
  const good = JSON.stringify({ redirect_uris: redirectUris })
  const statuses = []
  // Who names another address for each request is still one.
  for (let index = 0; index < 10; index++) statuses.push((await register(index % 2 === 0 ? good : '{}', flooded, { 'x-forwarded-for': `192.0.2.${index}`, forwarded: `for=192.0.2.${index}`, 'x-real-ip': `192.0.2.${index}` })).status)
  t.strictSame(statuses, [201, 400, 201, 400, 201, 400, 201, 400, 201, 400])
  const answers = await Promise.all(Array.from({ length: 20 }, async (_, index) => await register(good, flooded, { 'x-forwarded-for': `192.0.2.${index}` })))
  for (const answer of answers) {
    t.equal(answer.status, 429)
    const seconds = Number(answer.headers.get('retry-after'))
    t.ok(seconds > 0 && seconds <= 60, `Retry-After: ${seconds}`)
    t.match(await answer.json(), { error: 'temporarily_unavailable' })
  }
  const home = []
  for (let index = 1; index <= 11; index++) home.push((await limited.app.inject({ method: 'POST', url: '/oauth/register', remoteAddress: `2001:db8::${index}`, payload: {} })).statusCode)
  t.strictSame(count(home), { 400: 10, 429: 1 }, 'so is a household, which has more addresses of IPv6 than anybody can count')
  const token = async () => await limited.post('/oauth/token', '')
  t.equal((await token()).statusCode, 401, 'other endpoints have limits of their own')
  for (let index = 1; index < 120; index++) await token()
  t.strictSame([(await token()).statusCode, (await limited.post('/oauth/revoke', '')).statusCode], [429, 401])
  for (let index = 0; index < 60; index++) await limited.get('/oauth/authorize')
  t.match(await limited.get('/oauth/authorize'), { statusCode: 429, headers: { 'retry-after': /^\d+$/, 'content-type': /^text\/html/ } })
  t.equal(rowsIn(limited.path), 0)
})

t.test('18. a client id with a flipped bit, cut short, signed by a foreign key or with alg none is nobody’s', async (t) => {
  const { clientId, query, code, redeem, post, get, happened } = await attacked(t)
  const client = await clientId()
  const issued = await code(client)
  const [header, payload, signature] = client.split('.') as [string, string, string]
  const { kid, typ } = JSON.parse(Buffer.from(header, 'base64url').toString()) as { kid: string, typ: string }
  // Mallory's own: the name of another app, and a redirect that she reads.
  const wanted = { client_name: 'Claude Code', redirect_uris: [EVIL, CALLBACK] }
  const key = deriveKey(parseKey(KEY)!, 'client', 32)
  const encoded = (value: object): string => Buffer.from(JSON.stringify(value)).toString('base64url')
  const signed = async (changes: object, secret: Uint8Array = key): Promise<string> =>
    await new CompactSign(Buffer.from(JSON.stringify(wanted))).setProtectedHeader({ alg: 'HS256', kid, typ, ...changes } as { alg: string }).sign(secret)
  const forged: Record<string, string> = {
    'a foreign key': await signed({}, Buffer.alloc(32, 7)),
    'a foreign server’s': await (await createSigner<object>([parseKey(OTHER_KEY)!], 'client')).sign(wanted),
    'the configured key itself': await signed({}, parseKey(KEY)!),
    'alg none': new UnsecuredJWT(wanted).encode(),
    'alg none under our kid': `${encoded({ alg: 'none', kid, typ })}.${encoded(wanted)}.`,
    'alg None': `${encoded({ alg: 'None', kid, typ })}.${encoded(wanted)}.`,
    'alg none, with the signature left on': `${encoded({ alg: 'none', kid, typ })}.${payload}.${signature}`,
    'HS512 under our key': await signed({ alg: 'HS512' }, Buffer.concat([key, key])),
    'another purpose': await signed({ typ: 'mcp-oauth-code' }),
    'no purpose': await signed({ typ: undefined }),
    'another purpose of our key': await (await createSigner<object>([parseKey(KEY)!], 'consent')).sign(wanted),
    'another kid': await signed({ kid: 'x' }),
    'its own payload under our signature': [header, encoded(wanted), signature].join('.'),
    'no signature': `${header}.${payload}.`,
    'no signature and no dot': `${header}.${payload}`,
    'two signatures': `${client}.${signature}`,
    'a code': issued,
    'a huge one': client + 'A'.repeat(3000),
    'white space': `${client}\n`,
    padding: `${client}=`
  }
  for (let index = 0; index < client.length; index++) {
    // Each bit of base64url in turn, the spare ones of the last character too.
    const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'
    const at = alphabet.indexOf(client[index]!)
    if (at !== -1) forged[`bit ${index % 6} of character ${index}`] = client.slice(0, index) + alphabet[at ^ (1 << (index % 6))]! + client.slice(index + 1)
  }
  for (let bit = 0; bit < 4; bit++) {
    const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'
    forged[`bit ${bit} of the last character`] = client.slice(0, -1) + alphabet[alphabet.indexOf(client.at(-1)!) ^ (1 << bit)]!
  }
  for (let length = 1; length < client.length; length += 7) forged[`${length} characters`] = client.slice(0, length)

  for (const [title, id] of Object.entries(forged)) {
    const answers = []
    for (const uri of [CALLBACK, EVIL]) answers.push(wayOut(await get(`/oauth/authorize?${form(query(id, { redirect_uri: uri }))}`, { 'x-user': 'alice' })))
    answers.push(refusal(await redeem(id, issued)), refusal(await post('/oauth/revoke', { client_id: id, token: 'oat_x' })))
    t.strictSame(answers, ['', '', '401 invalid_client', '401 invalid_client'], title)
  }
  t.equal(happened('consent.shown'), 1)
  t.equal((await redeem(client, issued)).statusCode, 200)
})

// Consent

/** The tags of a page with the names of their attributes: what must stay the same whatever is shown in it. */
function skeleton (html: string): string {
  return html.match(/<[/!]?[a-z](?:"[^"]*"|[^">])*>/gi)!.map((tag) => tag.replace(/="[^"]*"/g, '')).join('\n')
}

t.test('19. no name, scope, state, error or host that is shown becomes markup, and nothing hidden or turned round is shown', async (t) => {
  const markup = ['<script>alert(1)</script>', '"><img src=x onerror=alert(1)>', "' onfocus='alert(1)' autofocus='", '" onfocus="alert(1)" autofocus="', '</title></textarea></button><svg onload=alert(1)>', '&lt;script&gt;', '<%= it.ticket %>', '{{7*7}}', '$' + '{alert(1)}', '<!--', ']]>', 'javascript:alert(1)']
  const hidden = ['\u202e', '\u202d', '\u2066', '\u2069', '\u200f', '\u061c', '\u200b', '\u200d', '\ufeff', '\u00ad', '\u2060', '\u0000', '\u0007', '\u001b', '\u007f', '\u0085', '\u009b', '\u2028', '\u180e', '\u{e0041}', '\u3164', '\ue000']
  const users = new Map<string, string>()
  const { register, query, redeem, get, post } = await attacked(t, {
    currentUser: ({ headers }) => typeof headers['x-user'] === 'string' ? { id: headers['x-user'], name: users.get(headers['x-user']) ?? null } : null,
    clients: [{ clientId: 'known', clientName: markup.join(''), redirectUris: ['https://known.example/cb'] }]
  })
  const pages = async (user: string, name: string): Promise<Record<string, Response>> => {
    users.set(user, name)
    const headers = { 'x-user': user }
    const { client_id: client } = (await register({ client_name: name })).json<{ client_id: string }>()
    const consent = await get(`/oauth/authorize?${form(query(client, { state: name, scope: `read ${name}`, prompt: name, login_hint: name, ui_locales: name }))}`, headers)
    const code = codeOf(await post('/oauth/authorize', { ticket: fieldOf(consent.body, 'ticket'), decision: 'approve', scope: ['read', name] }, headers))
    t.equal((await redeem(client, code)).statusCode, 200)
    const list = await get(`/my/connected_apps?done=${encodeURIComponent(name)}&error=${encodeURIComponent(name)}`, headers)
    const created = await post('/my/connected_apps', { ticket: fieldOf(list.body, 'ticket'), name: `token ${name}`, scope: 'read' }, headers)
    return {
      consent,
      list: await get('/my/connected_apps', headers),
      created,
      'no client': await get(`/oauth/authorize?client_id=${encodeURIComponent(name)}`, headers),
      'no redirect URI': await get(`/oauth/authorize?${form({ client_id: client, redirect_uri: name, error: name, error_description: name })}`, headers),
      'no ticket': await post('/oauth/authorize', { ticket: name, decision: name, scope: name }, headers),
      'no grant': await post('/my/connected_apps', { ticket: fieldOf(list.body, 'ticket'), grant: name }, headers),
      'no lifetime': await post('/my/connected_apps', { ticket: fieldOf(list.body, 'ticket'), name, scope: 'read', days: name }, headers)
    }
  }
  t.equal(skeleton('<p title="a>b" hidden>x</p>'), '<p title hidden>\n</p>')
  const plain = await pages('plain', 'Plain')
  t.strictSame(Object.values(plain).map(({ statusCode }) => statusCode), [200, 200, 200, 400, 400, 403, 404, 400])
  t.match(plain.list?.body, /aria-label="Disconnect Plain"[^]*aria-label="Revoke token Plain"/)
  for (const [index, name] of [...markup, markup.join('').slice(0, 90)].entries()) {
    for (const [page, { body, headers }] of Object.entries(await pages(`user ${index}`, name))) {
      t.equal(skeleton(body), skeleton(plain[page]!.body), `${page}: ${shown(name)}`)
      t.match(headers['content-security-policy'], /^default-src 'none'; style-src 'self'; /, 'and if it did, nothing would run')
      t.match(headers['x-content-type-options'], 'nosniff')
    }
  }
  for (const character of hidden) {
    const name = `Cl${character}aude${character}`
    for (const [page, { body }] of Object.entries(await pages(`hidden ${character.codePointAt(0)!.toString(16)}`, name))) {
      // A user's own name is the app's to choose; it stands in a box of its own.
      const shownToUser = body.replaceAll(`<bdi>${name}</bdi>`, '')
      t.notOk(shownToUser.includes(character), `${page}: ${shown(character)}`)
    }
  }
  const known = await get(`/oauth/authorize?${form(query('known', { redirect_uri: 'https://known.example/cb' }))}`, { 'x-user': 'plain' })
  t.equal(known.statusCode, 200)
  t.notMatch(known.body, /<script|<img|<svg/, 'nor of a client that the app has named')
  for (const uri of ['https://evil"onload=alert(1).example/', 'https://<script>.example/', "app'x://cb", 'https://evil\u202eexample.com/']) {
    await t.rejects(testApp(t, { registration: { redirectUris: [uri] } }), { code: 'FST_MCP_OAUTH_INVALID_OPTION' }, 'a host that could be markup is none')
  }
})

t.test('20. pages cannot be framed, and a post without a ticket, with another’s, an expired or an edited one is 403 and makes no code', async (t) => {
  const { app, clientId, ticket, consent, code, get, post, page, call, connect, happened } = await attacked(t)
  const { clientId: client, token } = await connect()
  const { origin } = await listen(app)
  const { query } = dance(app)
  const approvals = happened('consent.approved')
  for (const [name, url] of [['consent', `/oauth/authorize?${form(query(client))}`], ['connected apps', '/my/connected_apps'], ['error', '/oauth/authorize']] as const) {
    const { headers } = await fetch(origin + url, { headers: { 'x-user': 'alice' } })
    t.match(headers.get('content-security-policy'), /(^|; )frame-ancestors 'none'(;|$)/, name)
    t.equal(headers.get('x-frame-options'), 'DENY', name)
    for (const allowed of ['access-control-allow-origin', 'access-control-allow-credentials']) t.equal(headers.get(allowed), null, `${name}: ${allowed}`)
  }

  // A host that answers everybody by hand, cookies and all, as many do.
  const careless = Fastify()
  t.teardown(() => careless.close())
  careless.addHook('onRequest', async ({ headers: { origin = '' } }, reply) => { reply.header('access-control-allow-origin', origin).header('access-control-allow-credentials', 'true') })
  await careless.register(mcpOAuth, testOptions())
  careless.post('/mcp', { onRequest: careless.oauth.protect() }, async () => 'ok')
  for (const url of ['/oauth/token', '/oauth/revoke', '/oauth/register', '/mcp', '/.well-known/oauth-authorization-server', '/.well-known/oauth-protected-resource/mcp']) {
    for (const method of ['GET', 'POST', 'OPTIONS'] as const) {
      const { statusCode, headers } = await careless.inject({ method, url, headers: { origin: 'https://evil.example' } })
      if (statusCode !== 404) t.strictSame([headers['access-control-allow-origin'], headers['access-control-allow-credentials']], ['*', undefined], `${method} ${url}`)
    }
  }

  const good = await ticket(client)
  const bobs = await dance(app, 'bob').ticket(client)
  const pageTicket = fieldOf(await page(), 'ticket')
  const [header, key, iv, body, tag] = good.split('.') as [string, string, string, string, string]
  const edited = (changes: object): string => [Buffer.from(JSON.stringify({ ...JSON.parse(Buffer.from(header, 'base64url').toString()), ...changes })).toString('base64url'), key, iv, body, tag].join('.')
  const foreign = await (await createSealer<{ expiresAt: number }>([parseKey(OTHER_KEY)!], 'consent')).seal({ expiresAt: Date.now() + 60_000 })
  const tickets: Record<string, string> = {
    'no ticket': '',
    'a made-up one': 'x.y.z.a.b',
    'another user’s': bobs,
    'that of the other page': pageTicket,
    'a code': await code(client),
    'a client id': client,
    'an access token': token,
    'another server’s': foreign,
    'an edited header': edited({ typ: 'mcp-oauth-page' }),
    'an edited body': [header, key, iv, body.replace(/^./, (first) => first === 'A' ? 'B' : 'A'), tag].join('.'),
    'an edited tag': [header, key, iv, body, tag.replace(/^./, (first) => first === 'A' ? 'B' : 'A')].join('.'),
    'its payload in the clear': Buffer.from(JSON.stringify({ userId: 'alice', tenantId: null })).toString('base64url')
  }
  const counted = approvals + 1
  for (const [title, value] of Object.entries(tickets)) {
    for (const decision of ['approve', 'deny', '']) {
      const { statusCode, headers } = await consent({ ticket: value, decision, scope: ['read', 'write'] })
      t.strictSame([statusCode, headers.location], [403, undefined], `${title}, ${decision}`)
    }
    if (value === pageTicket) continue
    for (const action of [{ client }, { grant: 'x' }, { name: 'x', scope: 'read' }] as Array<Record<string, string>>) {
      t.equal((await post('/my/connected_apps', { ticket: value, ...action }, { 'x-user': 'alice' })).statusCode, 403, `${title}, ${Object.keys(action).join()}`)
    }
  }
  for (const [title, headers, payload] of [
    ['plain text, which a form of any site may send', { 'content-type': 'text/plain' }, form({ ticket: good, decision: 'approve', scope: 'read' })],
    ['JSON', { 'content-type': 'application/json' }, JSON.stringify({ ticket: good, decision: 'approve', scope: 'read' })],
    ['parts', { 'content-type': 'multipart/form-data; boundary=x' }, `--x\r\nContent-Disposition: form-data; name="ticket"\r\n\r\n${good}\r\n--x--`]
  ] as const) {
    t.equal((await app.inject({ method: 'POST', url: '/oauth/authorize', headers: { ...headers, 'x-user': 'alice' }, payload })).statusCode, 415, title)
  }
  t.equal((await get(`/oauth/authorize?${form({ ...query(client), ticket: good, decision: 'approve' })}`, { 'x-user': 'alice' })).statusCode, 200, 'a GET asks, whatever is in it')
  t.equal((await post(`/oauth/authorize?${form({ ticket: good, decision: 'approve', scope: 'read' })}`, '', { 'x-user': 'alice' })).statusCode, 403, 'a ticket in the address is none')
  const now = Date.now()
  const clock = replace(t, Date, 'now', () => now + 10 * 60 * 1000)
  t.equal((await consent({ ticket: good, decision: 'approve', scope: 'read' })).statusCode, 403, 'after ten minutes')
  clock.restore()
  const later = replace(t, Date, 'now', () => now + 60 * 60 * 1000 + 1000)
  t.equal((await post('/my/connected_apps', { ticket: pageTicket, client }, { 'x-user': 'alice' })).statusCode, 403, 'after an hour')
  later.restore()
  t.equal(happened('consent.approved'), counted, 'only the one that made the code above')
  t.equal(happened('token.revoked'), 0)
  t.equal(await call(token), 200)

  // Fields that are edited or added count for nothing beside the ticket.
  const answer = await consent({ ticket: good, decision: 'approve', scope: 'read', client_id: await clientId({ client_name: 'Thief' }), redirect_uri: EVIL, state: 'evil', code_challenge: 'evil', resource: EVIL, userId: 'bob', user: 'bob' })
  const location = locationOf(answer)
  t.equal(location.origin + location.pathname, CALLBACK)
  t.equal(location.searchParams.get('state'), 'xyz')
  // A code may say anything.
  location.searchParams.delete('code')
  t.notMatch(location.href, /evil/)
})

t.test('21. scopes that are posted beyond those of the ticket are never granted, nor added later', async (t) => {
  const { app, clientId, ticket, consent, redeem, refresh, page, post } = await attacked(t, {
    scopes: { read: 'Read', write: { description: 'Write', implies: ['read'] }, admin: { description: 'Administer', implies: ['write'] } },
    resources: [{ path: '/mcp' }, { url: 'https://files.example.com/mcp', scopes: ['write'] }],
    accessTokenLifetime: HOUR,
    refreshTokenLifetime: DAY
  })
  const client = await clientId({ scope: 'read write admin' })
  const granted = async (asked: Record<string, string>, ticked: string[]): Promise<string> => {
    const code = codeOf(await consent({ ticket: await ticket(client, asked), decision: 'approve', scope: ticked }))
    return code === '' ? 'nothing' : (await redeem(client, code)).json<Tokens>().scope
  }
  for (const [asked, ticked, scope] of [
    [{ scope: 'read' }, ['read', 'write', 'admin'], 'read'],
    [{ scope: 'read' }, ['admin'], 'nothing'],
    [{ scope: 'read' }, ['write'], 'nothing'],
    [{ scope: 'read' }, ['read write admin'], 'nothing'],
    [{ scope: 'read' }, ['read', 'read', 'read'], 'read'],
    [{ scope: 'read' }, ['*'], 'nothing'],
    [{ scope: 'read' }, ['READ', ' read', 'read ', 'read\0', '__proto__', 'constructor'], 'nothing'],
    [{ scope: 'write' }, ['write', 'admin'], 'read write'],
    [{ scope: 'read write' }, ['read', 'admin'], 'read'],
    [{ scope: 'nonsense read' }, ['nonsense', 'read'], 'read'],
    [{ scope: 'admin' }, ['read'], 'read'],
    [{ scope: 'admin', resource: 'https://files.example.com/mcp' }, ['read', 'write', 'admin'], 'nothing'],
    [{ scope: 'write', resource: 'https://files.example.com/mcp' }, ['read', 'write', 'admin'], 'write'],
    [{ resource: 'https://files.example.com/mcp' }, ['read', 'write', 'admin'], 'write']
  ] as Array<[Record<string, string>, string[], string]>) {
    t.equal(await granted(asked, ticked), scope, `${shown(asked)} and ${shown(ticked)}`)
  }

  const code = codeOf(await consent({ ticket: await ticket(client, { scope: 'read' }), decision: 'approve', scope: 'read' }))
  const first = (await redeem(client, code, { scope: 'read write admin' })).json<Tokens>()
  t.equal(first.scope, 'read', 'a scope at the token endpoint adds nothing')
  for (const scope of ['write', 'read write', 'read admin', 'admin']) t.equal(refusal(await refresh(client, first.refresh_token, { scope })), '400 invalid_scope', scope)
  t.equal((await refresh(client, first.refresh_token)).json<Tokens>().scope, 'read')
  const made = await post('/my/connected_apps', { ticket: fieldOf(await page(), 'ticket'), name: 'x', scope: ['read', 'root', '*', 'read admin'] }, { 'x-user': 'alice' })
  t.strictSame((await app.oauth.tokens.verify(made.body.match(/pat_[\w-]{43}/)![0]))?.scopes, ['read'])
})

t.test('22. a ticket that is used twice ends in one grant at most', async (t) => {
  const { app, clientId, ticket, consent, redeem, call, page, post } = await attacked(t)
  const client = await clientId()
  const live = async (): Promise<number> => (await app.oauth.tokens.list({ userId: 'alice' })).length
  const approve = async (value: string, scope: string[] = ['read']): Promise<string> => codeOf(await consent({ ticket: value, decision: 'approve', scope }))

  const once = await ticket(client)
  const codes = [await approve(once), await approve(once, ['read', 'write']), await approve(once)]
  t.equal(new Set(codes).size, 3)
  const { access_token: token, scope } = (await redeem(client, codes[0]!)).json<Tokens>()
  t.equal(scope, 'read')
  t.equal(refusal(await redeem(client, codes[1]!)), '400 invalid_grant', 'nor is it widened')
  t.equal(await call(token), 401)
  t.equal(refusal(await redeem(client, codes[2]!)), '400 invalid_grant')
  t.equal(refusal(await redeem(client, await approve(once))), '400 invalid_grant', 'nor later')
  t.equal(await live(), 0)

  for (let round = 0; round < 5; round++) {
    const twice = await ticket(client)
    const answers = await Promise.all(Array.from({ length: 8 }, async () => await redeem(client, await approve(twice))))
    t.strictSame(count(answers.map(refusal)), { '200 granted': 1, '400 invalid_grant': 7 })
    t.equal(await live(), 0)
  }

  const form = { ticket: fieldOf(await page(), 'ticket'), name: 'script', scope: 'read' }
  const made = await Promise.all(Array.from({ length: 8 }, async () => await post('/my/connected_apps', form, { 'x-user': 'alice' })))
  t.ok(made.filter(({ body }) => body.includes('pat_')).length <= 1, 'one form makes at most one personal token')
  t.ok(await live() <= 1)
  t.equal((await post('/my/connected_apps', form, { 'x-user': 'alice' })).statusCode, 303)
  t.ok(await live() <= 1)
})

t.test('23. a consent that was opened signed in as one user and is posted as another, or as nobody, is 403', async (t) => {
  const { app, events, post, get, query, clientId, redeem } = await attacked(t, {
    currentUser: ({ headers }) => typeof headers['x-user'] === 'string' ? { id: headers['x-user'], ...(typeof headers['x-tenant'] === 'string' && { tenantId: headers['x-tenant'] }) } : null
  })
  const client = await clientId()
  const sessions: Array<Record<string, string>> = [{ 'x-user': 'alice' }, { 'x-user': 'bob' }, { 'x-user': 'alice', 'x-tenant': 'acme' }, { 'x-user': 'alice', 'x-tenant': 'globex' }, { 'x-user': 'Alice' }, { 'x-user': 'alice ' }, {}]
  for (const opened of sessions.slice(0, -1)) {
    const ticket = fieldOf((await get(`/oauth/authorize?${form(query(client))}`, opened)).body, 'ticket')
    const pageTicket = fieldOf((await get('/my/connected_apps', opened)).body, 'ticket')
    for (const posted of sessions.filter((session) => session !== opened)) {
      for (const decision of ['approve', 'deny']) {
        const { statusCode, headers } = await post('/oauth/authorize', { ticket, decision, scope: 'read' }, posted)
        t.strictSame([statusCode, headers.location], [403, undefined], `${shown(opened)} and ${shown(posted)}`)
      }
      t.equal((await post('/my/connected_apps', { ticket: pageTicket, name: 'x', scope: 'read' }, posted)).statusCode, 403)
    }
    t.strictSame(events.filter(({ type }) => /^consent\.(approved|denied)|^token/.test(type)), [])
    const answer = await post('/oauth/authorize', { ticket, decision: 'approve', scope: 'read' }, opened)
    t.equal(answer.statusCode, 303, 'who opened it may answer it')
    const { access_token: token } = (await redeem(client, codeOf(answer))).json<Tokens>()
    t.match(await app.oauth.tokens.verify(token), { userId: opened['x-user'], tenantId: opened['x-tenant'] ?? null }, 'and it is theirs')
    events.length = 0
  }
})

t.test('24. a program that waits on a loopback port receives its code when the user allows, and access_denied when not', async (t) => {
  const received: Array<{ method: string, url: URL, headers: IncomingMessage['headers'], body: string }> = []
  const answer: RequestListener = async (request, response) => {
    let body = ''
    for await (const chunk of request) body += String(chunk)
    received.push({ method: request.method!, url: new URL(request.url!, 'http://127.0.0.1'), headers: request.headers, body })
    response.end('You may close this window.')
  }
  const program = createServer(answer).listen(0, '127.0.0.1')
  await once(program, 'listening')
  t.teardown(() => program.close())
  const { port } = program.address() as { port: number }

  const { app, clientId, query, redeem, happened } = await attacked(t)
  const { origin } = await listen(app)
  const client = await clientId()
  const redirectUri = `http://127.0.0.1:${port}/callback`
  for (const decision of ['approve', 'deny']) {
    const consent = await fetch(`${origin}/oauth/authorize?${form(query(client, { redirect_uri: redirectUri }))}`, { headers: { 'x-user': 'alice' } })
    const policy = consent.headers.get('content-security-policy') ?? ''
    t.match(policy, /^default-src 'none'/)
    t.notMatch(policy, /form-action|navigate-to|sandbox/, 'nothing in the policy keeps the browser from following')
    const body = form({ ticket: fieldOf(await consent.text(), 'ticket'), decision, scope: 'read' })
    const post = async (redirect: 'manual' | 'follow') => await fetch(`${origin}/oauth/authorize`, { method: 'POST', headers: { ...FORM, 'x-user': 'alice' }, body, redirect })
    const sent = await post('manual')
    t.equal(sent.status, 303, 'a 307 would repeat the form, ticket and all, at the client')
    t.strictSame([sent.headers.get('referrer-policy'), sent.headers.get('cache-control')], ['no-referrer', 'no-store'])
    t.equal(await (await post('follow')).text(), 'You may close this window.')
    const { method, url, headers, body: form2 } = received.pop()!
    t.strictSame([method, url.pathname, form2, headers.referer], ['GET', '/callback', '', undefined])
    t.strictSame([url.searchParams.get('state'), url.searchParams.get('iss')], ['xyz', ISSUER])
    if (decision === 'approve') {
      t.equal((await redeem(client, url.searchParams.get('code')!, { redirect_uri: redirectUri })).statusCode, 200)
    } else {
      t.equal(url.searchParams.get('error'), 'access_denied')
      t.notOk(url.searchParams.has('code'))
    }
  }
  t.equal(happened('token.issued'), 1)
})

// Tokens and guard

t.test('25. a token for one resource is refused at another, and a read token at a route that writes, with a challenge', async (t) => {
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(mcpOAuth, testOptions({
    resources: [{ path: '/a' }, { path: '/ab', scopes: ['read'] }, { url: 'https://files.example.com/mcp' }], accessTokenLifetime: HOUR, refreshTokenLifetime: DAY, clients: [{ clientId: 'files', clientName: 'Files', clientSecretHashes: [hash('sha256', 'secret', 'base64url')], introspects: ['https://files.example.com/mcp'] }]
  }))
  let written = 0
  for (const resource of ['/a', '/ab']) {
    app.route({ method: ['GET', 'POST'], url: resource, onRequest: app.oauth.protect({ resource, scopes: ['read'] }), handler: async () => 'ok' })
    app.post(`${resource}/write`, { onRequest: app.oauth.protect({ resource, scopes: ['write'] }) }, async () => { written++ })
    app.post(`${resource}/tool`, { onRequest: app.oauth.protect({ resource }) }, async ({ oauth }) => { oauth!.require('write'); written++ })
  }
  const left: unknown[] = []
  app.post('/both', { onRequest: ['/a', '/ab'].map((resource) => app.oauth.protect({ resource })), onResponse: async ({ oauth }) => { left.push(oauth?.userId ?? null) } }, async () => { written++ })
  const { get, post, use } = requests(app)
  const { clientId, code, redeem } = dance(app)
  const client = await clientId()
  const tokensFor = async (resource: string, scope: string[] = ['read', 'write']): Promise<Tokens> => (await redeem(client, await code(client, { resource }, scope))).json<Tokens>()
  const status = async (url: string, { access_token: token }: Tokens): Promise<number> => (await get(url, bearer(token))).statusCode
  const [a, ab, files] = [await tokensFor(`${ISSUER}/a`), await tokensFor(`${ISSUER}/ab`), await tokensFor('https://files.example.com/mcp')]
  t.strictSame([await status('/a', a), await status('/ab', a)], [200, 401])
  t.strictSame([await status('/a', ab), await status('/ab', ab)], [401, 200])
  t.strictSame([await status('/a', files), await status('/ab', files)], [401, 401])
  const refused = await get('/ab', bearer(a.access_token))
  t.match(refused.headers['www-authenticate'], `Bearer error="invalid_token", error_description="The access token is invalid.", resource_metadata="${ISSUER}/.well-known/oauth-protected-resource/ab", scope="read"`)
  for (const method of ['HEAD', 'GET', 'POST'] as const) t.equal((await app.inject({ method, url: '/ab', headers: bearer(a.access_token) })).statusCode, 401, method)
  const { token: personal } = await app.oauth.tokens.create({ userId: 'alice', name: 'x', scopes: ['read'], resource: `${ISSUER}/a` })
  t.strictSame([(await get('/a', bearer(personal))).statusCode, (await get('/ab', bearer(personal))).statusCode], [200, 401], 'a personal token too')
  const introspected = async (token: string): Promise<boolean> => (await post('/oauth/introspect', { token, client_id: 'files', client_secret: 'secret' })).json<{ active: boolean }>().active
  t.strictSame([await introspected(a.access_token), await introspected(files.access_token), await introspected(personal)], [false, true, false], 'nor may another server look into it')

  // What it is for was fixed at consent.
  const issued = await code(client, { resource: `${ISSUER}/a` })
  t.equal(refusal(await redeem(client, issued, { resource: `${ISSUER}/ab` })), '400 invalid_target')
  const kept = (await redeem(client, issued)).json<Tokens>()
  const refresh = async (resource: string) => await post('/oauth/token', { grant_type: 'refresh_token', client_id: client, refresh_token: kept.refresh_token, resource })
  for (const resource of [`${ISSUER}/ab`, 'https://files.example.com/mcp', `${ISSUER}/a/b`, 'x']) t.equal(refusal(await refresh(resource)), '400 invalid_target', resource)
  t.strictSame([await status('/a', (await refresh(`${ISSUER}/a`)).json<Tokens>()), await status('/ab', kept)], [200, 401])

  const reader = await tokensFor(`${ISSUER}/a`, ['read'])
  for (const [url, scope] of [['/a/write', 'read write'], ['/a/tool', 'read write']] as const) {
    const answer = await use(url, reader.access_token)
    t.equal(answer.statusCode, 403, url)
    t.equal(answer.headers['www-authenticate'], `Bearer error="insufficient_scope", error_description="The access token lacks a scope.", resource_metadata="${ISSUER}/.well-known/oauth-protected-resource/a", scope="${scope}"`, url)
  }
  t.equal((await use('/ab/write', reader.access_token)).statusCode, 401, 'another resource tells nothing of scopes')
  t.equal((await use('/both', a.access_token)).statusCode, 401, 'of two guards each wants a token for itself')
  t.strictSame(left, [null], 'and what the first one let in, the second does not keep')
  t.equal(written, 0)
  t.equal((await use('/a/write', a.access_token)).statusCode, 200)
  t.equal(written, 1)
})

t.test('26. a refresh token is for its own client, and for nothing but refreshing; nothing else refreshes', async (t) => {
  const { app, clientId, code, ticket, redeem, refresh, call, get, post, happened } = await attacked(t, { accessTokenLifetime: HOUR, refreshTokenLifetime: DAY })
  const client = await clientId()
  const thief = await clientId({ client_name: 'Thief' })
  const { access_token: accessToken, refresh_token: refreshToken } = (await redeem(client, await code(client))).json<Tokens>()
  const stolen = (await dance(app, 'mallory').connect({ client_name: 'Thief' })).token
  t.equal(refusal(await refresh(thief, refreshToken)), '400 invalid_grant', 'another client')
  for (const nobody of ['nobody', '', client.slice(0, -1)]) t.equal(refusal(await refresh(nobody, refreshToken)), '401 invalid_client', `client ${nobody.slice(-10)}`)

  const unredeemed = await code(client)
  const personal = await mintToken(app, { userId: 'alice', scopes: ['read'] })
  const { grantId } = (await app.oauth.tokens.list({ userId: 'alice' }))[0]!
  const forged = refreshToken.slice(0, 26) + createRefreshToken(Buffer.alloc(32, 7), 'g'.repeat(22)).slice(26)
  for (const [title, value] of [
    ['an access token', accessToken], ['another client’s access token', stolen], ['a personal token', personal], ['a code', unredeemed], ['a ticket', await ticket(client)], ['a client id', client], ['a grant id', grantId],
    ['an access token dressed up', accessToken.replace('oat_', 'ort_')], ['a made-up token with the grant’s id', forged], ['one of another key', createRefreshToken(deriveKey(parseKey(OTHER_KEY)!, 'refresh', 32), grantId)],
    ['another grant’s id', `ort_${'g'.repeat(22)}${refreshToken.slice(26)}`], ['cut short', refreshToken.slice(0, -1)], ['grown', `${refreshToken}A`], ['in upper case', refreshToken.toUpperCase()]
  ] as const) {
    t.equal(refusal(await refresh(client, value)), '400 invalid_grant', title)
    t.equal(await call(accessToken), 200, `${title} ends nothing`)
  }
  for (const [title, value] of [['a refresh token', refreshToken], ['dressed up', refreshToken.replace('ort_', 'oat_')], ['its last part', `oat_${refreshToken.slice(26, 69)}`], ['a code', unredeemed], ['a ticket', await ticket(client)], ['a client id', client], ['a grant id', grantId], ['as a personal token', accessToken.replace('oat_', 'pat_')]] as const) {
    t.equal(await call(value), 401, `${title} as access token`)
    t.equal(await app.oauth.tokens.verify(value), null, title)
  }
  for (const value of [accessToken, refreshToken, personal]) t.equal(refusal(await redeem(client, value)), '400 invalid_grant', 'as a code')
  t.equal((await post(`/mcp?access_token=${accessToken}`, { access_token: accessToken })).statusCode, 401, 'nor is a token read from an address or a form')
  t.equal((await get(`/mcp?access_token=${accessToken}`)).statusCode, 404)
  t.equal(happened('token.revoked') + happened('token.refreshed'), 0)
  t.equal((await refresh(client, refreshToken)).statusCode, 200, 'its owner refreshes')
})

t.test('27. twenty parallel refreshes get one successor pair; a token that is used again later, or is of any older generation, ends the grant', async (t) => {
  const path = join(folder(), 'tokens.db')
  const options = { accessTokenLifetime: HOUR, refreshTokenLifetime: DAY }
  const { app, clientId, code, redeem, refresh, call, happened } = await attacked(t, options, { path })
  const others = await Promise.all([1, 2].map(async () => await attacked(t, options, { path })))
  const nodes = [refresh, ...others.map((other) => other.refresh)]
  const client = await clientId()
  let now = Date.now()
  replace(t, Date, 'now', () => now)
  const start = async (): Promise<Tokens> => (await redeem(client, await code(client))).json<Tokens>()

  let current = await start()
  for (let round = 0; round < 5; round++) {
    const answers = await Promise.all(Array.from({ length: 20 }, async (_, index) => await nodes[index % nodes.length]!(client, current.refresh_token)))
    t.strictSame(count(answers.map(refusal)), { '200 granted': 20 })
    const pairs = answers.map((answer) => answer.json<Tokens>())
    t.equal(new Set(pairs.map((pair) => `${pair.access_token} ${pair.refresh_token}`)).size, 1)
    t.equal(await call(current.access_token), 401, 'the old access token is over')
    t.equal(await call(pairs[0]!.access_token), 200)
    current = pairs[0]!
  }
  t.equal((await app.oauth.tokens.list({ userId: 'alice' })).length, 1)

  const reused = async (title: string, generations: number, wait: number, isReuse: boolean): Promise<void> => {
    const first = await start()
    let last = first
    for (let generation = 0; generation < generations; generation++) last = (await refresh(client, last.refresh_token)).json<Tokens>()
    now += wait
    const before = happened('token.revoked')
    const answer = await refresh(client, first.refresh_token)
    t.equal(refusal(answer), isReuse ? '400 invalid_grant' : '200 granted', title)
    if (!isReuse) t.equal(answer.json<Tokens>().refresh_token, last.refresh_token, title)
    t.equal(await call(last.access_token), isReuse ? 401 : 200, title)
    t.equal((await refresh(client, last.refresh_token)).statusCode, isReuse ? 400 : 200, `${title}: for the thief and for the owner`)
    t.equal(happened('token.revoked') - before, isReuse ? 1 : 0, title)
  }
  await reused('within the window', 1, 30_000, false)
  await reused('a millisecond after it', 1, 30_001, true)
  await reused('an hour after it', 1, 3600_000, true)
  for (const generations of [2, 3, 7]) await reused(`${generations} generations back, within the window`, generations, 0, true)

  const none = await attacked(t, { ...options, refreshGrace: 0 })
  const strict = await none.clientId()
  const only = (await none.redeem(strict, await none.code(strict))).json<Tokens>()
  const next = (await none.refresh(strict, only.refresh_token)).json<Tokens>()
  now += 1
  t.equal(refusal(await none.refresh(strict, only.refresh_token)), '400 invalid_grant', 'where there is no window, at once')
  t.equal(await none.call(next.access_token), 401)

  const gone = await start()
  await app.oauth.tokens.revoke({ userId: 'alice' })
  const answers = await Promise.all(Array.from({ length: 20 }, async (_, index) => await nodes[index % nodes.length]!(client, gone.refresh_token)))
  t.strictSame(count(answers.map(refusal)), { '400 invalid_grant': 20 }, 'a disconnected app gets nothing, however often it asks')
})

t.test('28. a client that revokes another’s token, or a personal one, is told 200 like any other, and nothing happens', async (t) => {
  const { app, connect, clientId, code, redeem, post, call, happened } = await attacked(t, { accessTokenLifetime: HOUR, refreshTokenLifetime: DAY })
  const { clientId: thief, token: own } = await connect({ client_name: 'Thief' })
  const client = await clientId()
  const { access_token: accessToken, refresh_token: refreshToken } = (await redeem(client, await code(client))).json<Tokens>()
  const bobs = (await dance(app, 'bob').connect({ client_name: 'Other' })).token
  const personal = await mintToken(app, { userId: 'alice', scopes: ['read'] })
  const { grantId } = (await app.oauth.tokens.list({ userId: 'bob' }))[0]!
  const unredeemed = await code(client)
  const answers = []
  for (const token of [accessToken, refreshToken, bobs, personal, `oat_${'x'.repeat(43)}`, `ort_${grantId}${'x'.repeat(65)}`, grantId, unredeemed, client, 'x', '*', "' OR 1=1 --", '%', 'x'.repeat(8000)]) {
    for (const hint of ['', 'access_token', 'refresh_token', 'nonsense']) answers.push(await post('/oauth/revoke', { client_id: thief, token, token_type_hint: hint }))
  }
  for (const { statusCode, body, headers } of answers) t.strictSame([statusCode, body, headers['cache-control'], headers['content-length']], [200, '', 'no-store', '0'], 'the same answer whatever there is')
  t.equal(happened('token.revoked'), 0)
  for (const token of [own, accessToken, bobs, personal]) t.equal(await call(token), 200)
  for (const nobody of ['', 'nobody', `${client}x`]) t.equal(refusal(await post('/oauth/revoke', { client_id: nobody, token: accessToken })), '401 invalid_client', nobody.slice(-10))
  t.equal(refusal(await post('/oauth/revoke', { client_id: thief })), '400 invalid_request')
  t.equal(await call(accessToken), 200)

  t.equal((await post('/oauth/revoke', { client_id: client, token: refreshToken, token_type_hint: 'access_token' })).statusCode, 200)
  t.equal(await call(accessToken), 401, 'its own ends, both tokens of it')
  t.strictSame([await call(own), await call(bobs), await call(personal), happened('token.revoked')], [200, 200, 200, 1])
})

t.test('29. two ways of client authentication at once, or two ids, are refused wherever clients authenticate, and burn nothing', async (t) => {
  const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
  const secrets = [hash('sha256', 'secret', 'base64url')]
  const { app, code, redeem, refresh, post, call, codeVerifier, clientId, happened } = await attacked(t, {
    accessTokenLifetime: HOUR,
    refreshTokenLifetime: DAY,
    clients: [
      { clientId: 'web', clientName: 'Web', redirectUris: [CALLBACK], clientSecretHashes: secrets, scopes: ['read'], introspects: [`${ISSUER}/mcp`] },
      { clientId: 'other', clientName: 'Other', redirectUris: [CALLBACK], clientSecretHashes: secrets, scopes: ['read'], introspects: [`${ISSUER}/mcp`] },
      { clientId: 'service', clientName: 'Service', redirectUris: [CALLBACK], jwks: { keys: [publicKey.export({ format: 'jwk' })] }, scopes: ['read'], introspects: [`${ISSUER}/mcp`] },
      { clientId: 'public', clientName: 'Public', redirectUris: [CALLBACK] }
    ]
  })
  type Proof = [headers: Record<string, string>, fields: Record<string, string>]
  const basic = (id: string, secret = 'secret'): Proof => [{ authorization: `Basic ${Buffer.from(`${id}:${secret}`).toString('base64')}` }, {}]
  const inForm = (id: string, secret = 'secret'): Proof => [{}, { client_id: id, client_secret: secret }]
  const asserted = async (id: string): Promise<Proof> => [{}, {
    client_assertion_type: 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer', client_assertion: await new SignJWT({ iss: id, sub: id, aud: ISSUER }).setProtectedHeader({ alg: 'ES256' }).setExpirationTime('1m').sign(privateKey)
  }]
  const id = (name: string): Proof => [{}, { client_id: name }]
  const all = (...proofs: Proof[]): Proof => [Object.assign({}, ...proofs.map(([headers]) => headers)) as Record<string, string>, Object.assign({}, ...proofs.map(([, fields]) => fields)) as Record<string, string>]

  const ofWeb = await code('web')
  const { access_token: token, refresh_token: refreshToken } = (await redeem('web', await code('web'), { client_secret: 'secret' })).json<Tokens>()
  const dynamic = await clientId()
  const refused: Record<string, Proof> = {
    'Basic and a secret in the form': all(basic('web'), inForm('web')),
    'Basic and a wrong secret in the form': all(basic('web'), inForm('web', 'x')),
    'a wrong Basic and a secret in the form': all(basic('web', 'x'), inForm('web')),
    'Basic and a secret alone': all(basic('web'), [{}, { client_secret: 'secret' }]),
    'Basic and an assertion': all(basic('web'), await asserted('web')),
    'Basic and an assertion of another': all(basic('web'), await asserted('service')),
    'a secret and an assertion': all(inForm('web'), await asserted('web')),
    'all three': all(basic('web'), inForm('web'), await asserted('service')),
    'Basic and the type of an assertion': all(basic('web'), [{}, { client_assertion_type: 'x' }]),
    'Basic and the id of another in the form': all(basic('web'), id('other')),
    'Basic of another and the id in the form': all(basic('other'), id('web')),
    'an assertion and the id of another': all(await asserted('service'), id('web')),
    'a secret in the form and a bearer token': all(inForm('web'), [bearer(token), {}]),
    'a bearer token for Basic': all(id('web'), [bearer(token), {}]),
    'the secret of another': inForm('service'),
    'an assertion where a secret is agreed on': await asserted('web'),
    'a secret for a public client': inForm('public'),
    'a secret for a dynamic client': inForm(dynamic),
    'no proof': id('web'),
    'an empty secret': inForm('web', ''),
    'the hash for the secret': inForm('web', secrets[0]!),
    nothing: [{}, {}]
  }
  for (const [title, [headers, fields]] of Object.entries(refused)) {
    for (const [endpoint, request] of [
      ['/oauth/token', { grant_type: 'authorization_code', code: ofWeb, redirect_uri: CALLBACK, code_verifier: codeVerifier }], ['/oauth/token', { grant_type: 'refresh_token', refresh_token: refreshToken }],
      ['/oauth/token', { grant_type: 'client_credentials' }], ['/oauth/revoke', { token }], ['/oauth/introspect', { token }]
    ] as const) t.equal(refusal(await post(endpoint, { ...request, ...fields }, headers)), '401 invalid_client', `${title}: ${endpoint} ${shown(Object.keys(request))}`)
  }
  const [headers, fields] = inForm('web')
  t.equal(refusal(await post(`/oauth/token?${form({ ...fields, grant_type: 'client_credentials' })}`, { grant_type: 'client_credentials' }, headers)), '401 invalid_client', 'credentials in the address are not read')
  const { send } = await listen(app)
  const [good, wrong, other] = [basic('web'), basic('web', 'x'), basic('other')].map(([{ authorization }]) => `Authorization: ${authorization!}`) as [string, string, string]
  const body = form({ token })
  for (const endpoint of ['/oauth/token', '/oauth/revoke', '/oauth/introspect']) {
    const ask = async (...lines: string[]) => await send([`POST ${endpoint} HTTP/1.1`, 'Host: localhost', `Content-Type: ${FORM['content-type']}`, `Content-Length: ${body.length}`, ...lines], body)
    for (const lines of [[good, wrong], [wrong, good], [good, other], [good, good], [good, `Authorization: Bearer ${token}`]]) {
      t.match(await ask(...lines), /^HTTP\/1\.1 401 [^]*"invalid_client"/, `two headers: ${endpoint} ${lines.join(', ')}`)
    }
  }
  t.equal(happened('token.revoked') + happened('token.refreshed'), 0)
  t.equal(await call(token), 200)
  t.equal((await refresh('web', refreshToken, { client_secret: 'secret' })).statusCode, 200)
  t.equal((await redeem('web', ofWeb, { client_secret: 'secret' })).statusCode, 200, 'the code is as good as it was')
})

t.test('30. a dump of the database, or a backup, holds no token, code or secret that could be used', async (t) => {
  const logged: string[] = []
  const { app, path, clientId, code, ticket, redeem, refresh, page, post, call, codeVerifier } = await attacked(t, {
    accessTokenLifetime: HOUR, refreshTokenLifetime: DAY, clients: [{ clientId: 'web', clientName: 'Web', redirectUris: [CALLBACK], clientSecretHashes: [hash('sha256', 'a secret of some length', 'base64url')], scopes: ['read'] }]
  }, { server: { logger: { level: 'trace', stream: { write: (line: string) => { logged.push(line) } } } } })
  const client = await clientId()
  const redeemed = await code(client)
  const first = (await redeem(client, redeemed)).json<Tokens>()
  const second = (await refresh(client, first.refresh_token)).json<Tokens>()
  const own = (await post('/oauth/token', { grant_type: 'client_credentials', client_id: 'web', client_secret: 'a secret of some length' })).json<Tokens>().access_token
  const pageTicket = fieldOf(await page(), 'ticket')
  const personal = (await post('/my/connected_apps', { ticket: pageTicket, name: 'script', scope: 'read' }, { 'x-user': 'alice' })).body.match(/pat_[\w-]{43}/)![0]
  for (const token of [second.access_token, own, personal]) t.equal(await call(token), 200)
  const secrets = [
    ...[first.access_token, second.access_token, own, personal].map((token) => token.slice(4)), ...[first.refresh_token, second.refresh_token].map((token) => token.slice(26)),
    redeemed, await code(client), await ticket(client), pageTicket, codeVerifier, 'a secret of some length', KEY
  ]
  // The file with its journal as it lies there, a backup, and a dump as text.
  const database = new DatabaseSync(path)
  database.exec(`VACUUM INTO '${path}.backup'`)
  const rows = database.prepare('SELECT * FROM access_tokens').all() as Array<Record<string, string | number | Uint8Array | null>>
  database.close()
  t.equal(rows.length, 3)
  const files = [...['', '-wal', '-shm', '.backup'].map((suffix) => readFileSync(path + suffix)), Buffer.from(JSON.stringify(rows.map((row) => Object.values(row).map((value) => value instanceof Uint8Array ? Buffer.from(value).toString('hex') : value))))]
  t.ok(files.some((bytes) => bytes.includes(hashToken(personal))), 'the hashes are where this looks for tokens')
  for (const [index, secret] of secrets.entries()) {
    for (const form of [secret, Buffer.from(secret, 'base64url'), Buffer.from(secret).toString('hex'), Buffer.from(secret, 'base64url').toString('hex'), Buffer.from(secret).toString('base64')]) {
      t.notOk(files.some((bytes) => bytes.includes(form)), `secret ${index}`)
      if (typeof form === 'string') t.notOk(logged.some((line) => line.includes(form)), `secret ${index}, in the log`)
    }
  }
  // Nor is anything in it good for anything by itself.
  for (const value of rows.flatMap((row) => Object.values(row)).filter((value) => value !== null)) {
    const texts = value instanceof Uint8Array ? ['hex', 'base64', 'base64url', 'latin1'].map((encoding) => Buffer.from(value).toString(encoding as BufferEncoding)) : [String(value)]
    for (const text of texts) {
      for (const token of [text, `oat_${text}`, `pat_${text}`, `ort_${text}`]) {
        t.equal(await app.oauth.tokens.verify(token), null)
        t.not((await refresh(client, token)).statusCode, 200)
        t.not((await redeem(client, token)).statusCode, 200)
      }
    }
  }
  t.equal(await call(second.access_token), 200)
})

t.test('31. a token that is revoked on one node is 401 at the next request on every other', async (t) => {
  for (const [where, deployment] of DEPLOYMENTS.slice(1)) {
    const nodes = await deployment()
    for (let round = 0; round < 8; round++) {
      const [user, on, from] = [`revoked ${round}`, nodes[round % nodes.length]!, nodes[(round + 1) % nodes.length]!]
      const tokens = [tokenOf(await from.redeem(await mintCode(user))), tokenOf(await on.redeem(await mintCode(user)))]
      for (const node of nodes) t.strictSame(await Promise.all(tokens.map(node.guard)), [200, 200], where)
      if (round % 2 === 0) for (const token of tokens) t.equal((await on.giveBack(token)).status, 200)
      else t.equal((await on.disconnect(user, (await on.connectedApps(user)).ticket)).status, 200)
      for (const node of [...nodes].reverse()) t.strictSame(await Promise.all(tokens.map(node.guard)), [401, 401], where)
      t.strictSame((await from.connectedApps(user)).apps, [], where)
    }
  }
})

t.test('32. another user’s grant on the connected-apps page is 404, to the letter the same as one that does not exist', async (t) => {
  const { app, path, connect, page, get, post, call, happened } = await attacked(t)
  const { clientId: client, token } = await connect()
  const { token: personal, grantId } = await app.oauth.tokens.create({ userId: 'alice', name: 'hers', scopes: ['read'] })
  const grants = await app.oauth.tokens.list({ userId: 'alice' })
  const gone = await app.oauth.tokens.create({ userId: 'bob', name: 'his, before', scopes: ['read'] })
  await app.oauth.tokens.revoke({ grantId: gone.grantId })
  const ticket = fieldOf(await page('bob'), 'ticket')
  const [rows, revoked] = [rowsIn(path), happened('token.revoked')]

  for (const accept of ['text/html', 'application/json']) {
    const headers = { 'x-user': 'bob', accept }
    const comparable = ({ statusCode, headers: { date: _, ...headers }, body }: Response) => ({ statusCode, headers, body })
    const expected = comparable(await post('/my/connected_apps', { ticket, grant: 'n'.repeat(22) }, headers))
    t.equal(expected.statusCode, 404)
    const fields: Array<Record<string, string>> = [
      ...grants.map(({ grantId }) => ({ grant: grantId })), { grant: gone.grantId }, { client }, { client: 'nobody' }, { client: '' }, { grant: '' }, { client: client.toUpperCase() }, { client, grant: grantId }, { client: 'nobody', grant: grantId },
      ...['%', '*', "' OR 1=1 --", '"', '\0', `${grantId}\0`, ` ${grantId}`, '\ud800', '__proto__', 'null', 'x'.repeat(5000)].flatMap((id): Array<Record<string, string>> => [{ grant: id }, { client: id }])
    ]
    for (const field of fields) t.strictSame(comparable(await post('/my/connected_apps', { ticket, ...field }, headers)), expected, `${accept}: ${shown(field)}`)
  }
  t.equal(rowsIn(path), rows, 'nor is anything written')
  t.equal(happened('token.revoked'), revoked)
  t.strictSame([await call(token), await call(personal)], [200, 200])
  const { body } = await get('/my/connected_apps', { 'x-user': 'bob', accept: 'application/json' })
  t.match(JSON.parse(body), { apps: [], personalTokens: [] }, 'and the list shows none of them')
  t.notMatch(body, grantId)
  t.equal((await post('/my/connected_apps', { ticket: fieldOf(await page('alice'), 'ticket'), grant: grantId }, { 'x-user': 'alice' })).statusCode, 303, 'its owner revokes it')
})

t.test('33. whatever Host, X-Forwarded-Host or target a request names, no URL in a document, challenge or redirect changes', async (t) => {
  for (const [issuer, trustProxy] of [[ISSUER, false], [ISSUER, true], ['https://notes.example.com', false], ['https://notes.example.com', true]] as const) {
    const { app, query, ticket, code, codeVerifier, page, connect } = await attacked(t, { issuer }, { server: { trustProxy } })
    const { clientId: client } = await connect()
    const { send } = await listen(app)
    const fresh = async (): Promise<Array<[title: string, request: string, headers: string[], body: string]>> => {
      const asForm = (fields: Record<string, string>): [string[], string] => [[`Content-Type: ${FORM['content-type']}`, 'X-User: alice', `Content-Length: ${form(fields).length}`], form(fields)]
      const registration = JSON.stringify({ client_name: 'x', redirect_uris: [CALLBACK] })
      return [
        ...['/.well-known/oauth-authorization-server', '/.well-known/oauth-protected-resource', '/.well-known/oauth-protected-resource/mcp', '/.well-known/openid-configuration'].map((path): [string, string, string[], string] => [path, `GET ${path}`, [], '']),
        ['the challenge', 'POST /mcp', ['Content-Length: 0'], ''],
        ['the challenge for a bad token', 'POST /mcp', ['Authorization: Bearer x', 'Content-Length: 0'], ''],
        ['registration', 'POST /oauth/register', ['Content-Type: application/json', `Content-Length: ${registration.length}`], registration],
        ['consent', `GET /oauth/authorize?${form(query(client))}`, ['X-User: alice'], ''],
        ['sign-in', `GET /oauth/authorize?${form(query(client))}`, [], ''],
        ['an error for the client', `GET /oauth/authorize?${form(query(client, { scope: 'admin' }))}`, ['X-User: alice'], ''],
        ['an error page', 'GET /oauth/authorize', ['X-User: alice'], ''],
        ['approval', 'POST /oauth/authorize', ...asForm({ ticket: await ticket(client), decision: 'approve', scope: 'read' })],
        ['refusal', 'POST /oauth/authorize', ...asForm({ ticket: await ticket(client), decision: 'deny' })],
        ['a token', 'POST /oauth/token', ...asForm({ grant_type: 'authorization_code', client_id: client, code: await code(client), code_verifier: codeVerifier })],
        ['connected apps', 'GET /my/connected_apps', ['X-User: alice'], ''],
        ['connected apps, signed out', 'GET /my/connected_apps', [], ''],
        ['a revocation by the user', 'POST /my/connected_apps', ...asForm({ ticket: fieldOf(await page(), 'ticket'), grant: (await app.oauth.tokens.create({ userId: 'alice', name: 'x', scopes: ['read'] })).grantId })],
        ['the styles', 'GET /oauth/styles.css', [], '']
      ]
    }
    // What differs from one answer to the next, whoever asks.
    const comparable = (answer: string): string => answer.replace(/^date:.*\r\n/mi, '').replace(/eyJ[\w-]{10,}\.[\w-]*\.[\w.-]+/g, '<sealed>').replace(/oat_[\w-]+/, '<token>').replace(/"client_id_issued_at":\d+/, '').replace(/grant" value="[\w-]+|about-[\w-]+/g, '').replace(/^content-length:.*\r\n/mi, '')
    const listings = /connected apps$/
    // On loopback these are refused by another name: attack 37.
    const pages = /^(consent|sign-in|an error for the client|approval|refusal|connected apps.*|a revocation by the user)$/
    const honest = new Map<string, string>()
    for (const [title, request, headers, body] of await fresh()) honest.set(title, comparable(await send([`${request} HTTP/1.1`, 'Host: localhost:3000', ...headers], body)))
    for (const [title, answer] of honest) t.match(answer, /^HTTP\/1\.1 (200|201|303|400|401|404) /, title)
    for (const forged of [
      ['Host: evil.example'], ['Host: evil.example:1'], ['Host: localhost:3000@evil.example'], ['Host: localhost:3000', 'X-Forwarded-Host: evil.example'], ['Host: localhost:3000', 'X-Forwarded-Host: evil.example, localhost:3000', 'X-Forwarded-Proto: evil', 'X-Forwarded-Port: 666'],
      ['Host: evil.example', 'Forwarded: host=evil.example;proto=https', 'X-Original-Host: evil.example', 'X-Original-URL: /evil', 'X-Rewrite-URL: /evil', 'X-Forwarded-Prefix: /evil', 'X-Forwarded-For: evil', 'Origin: https://evil.example', 'Referer: https://evil.example/']
    ]) {
      for (const [title, request, headers, body] of await fresh()) {
        const answer = comparable(await send([`${request} HTTP/1.1`, ...forged, ...headers], body))
        t.notMatch(answer, /evil/, `${title}: ${forged.join()}`)
        if (issuer === ISSUER && pages.test(title) && forged[0] !== 'Host: localhost:3000') t.match(answer, /^HTTP\/1\.1 421 (?![^]*^location:)/mi, `${title}: ${forged.join()}`)
        else if (!listings.test(title)) t.equal(answer, honest.get(title), `${title}: ${forged.join()}`)
      }
    }
    // The target may be a whole URL, which comes before Host. RFC 9112 §3.2.2.
    for (const [title, request, headers, body] of await fresh()) {
      const answer = await send([`${request.replace(' ', ' http://evil.example')} HTTP/1.1`, 'Host: localhost:3000', ...headers], body)
      t.match(answer, /^HTTP\/1\.1 [2-4]\d\d /, title)
      t.notMatch(answer.replace(/Route \w+:http:\/\/evil\.example\S* not found/, ''), /evil\.example/, `${title}: as a whole URL`)
    }
    for (const lines of [['Host: localhost', 'Host: evil.example'], ['Host: evil.example', 'Host: localhost'], []]) {
      const answer = await send(['GET /.well-known/oauth-authorization-server HTTP/1.1', ...lines])
      t.match(answer, /^HTTP\/1\.1 (200|400) /, 'two hosts, or none')
      t.notMatch(answer, /evil/, 'two hosts, or none')
    }
  }
})

t.test('34. an OAuth token opens neither consent nor connected apps, and makes no personal token: those take the app’s own session', async (t) => {
  const { app, connect, ticket, query, page, get, post, happened } = await attacked(t, {
    // The app of someone who meant it well: whoever has a session, or else whoever the guard let in.
    currentUser: ({ headers, oauth }) => typeof headers['x-user'] === 'string' ? { id: headers['x-user'] } : oauth?.userId != null ? { id: oauth.userId } : null
  })
  const { clientId: client, token } = await connect()
  const personal = await mintToken(app, { userId: 'alice', scopes: ['read', 'write'] })
  const approvals = happened('consent.approved')
  const grants = (await app.oauth.tokens.list({ userId: 'alice' })).length
  const [consentTicket, pageTicket] = [await ticket(client), fieldOf(await page(), 'ticket')]
  for (const value of [token, personal]) {
    for (const [title, headers, inUrl] of [
      ['in the header', bearer(value), ''], ['as Basic', { authorization: `Basic ${Buffer.from(`alice:${value}`).toString('base64')}` }, ''], ['in a cookie', { cookie: `access_token=${value}; session=${value}` }, ''], ['in the address', {}, `access_token=${value}`]
    ] as Array<[string, Record<string, string>, string]>) {
      const login = await get(`/oauth/authorize?${form(query(client))}&${inUrl}`, headers)
      t.strictSame([login.statusCode, locationOf(login).pathname], [303, '/login'], `consent, ${title}`)
      const list = await get(`/my/connected_apps?${inUrl}`, headers)
      t.strictSame([list.statusCode, locationOf(list).pathname], [303, '/login'], `connected apps, ${title}`)
      t.equal((await get(`/my/connected_apps?${inUrl}`, { ...headers, accept: 'application/json' })).statusCode, 401, `in JSON, ${title}`)
      const inForm = inUrl === '' ? {} : { access_token: value }
      for (const [url, fields] of [
        [`/oauth/authorize?${inUrl}`, { ticket: consentTicket, decision: 'approve', scope: 'read' }], [`/my/connected_apps?${inUrl}`, { ticket: pageTicket, name: 'x', scope: 'read' }], [`/my/connected_apps?${inUrl}`, { ticket: pageTicket, client }]
      ] as const) {
        const refused = await post(url, { ...fields, ...inForm }, headers)
        t.strictSame([refused.statusCode, refused.headers.location], [403, undefined], `${shown(Object.keys(fields))}, ${title}`)
        t.notMatch(refused.body, /pat_/)
      }
    }
  }
  t.equal(happened('consent.approved'), approvals)
  t.equal((await app.oauth.tokens.list({ userId: 'alice' })).length, grants)
  t.equal((await post('/my/connected_apps', { ticket: pageTicket, name: 'x', scope: 'read' }, { 'x-user': 'alice' })).statusCode, 200, 'the session does')
})

t.test('35. without its database the guard and the token endpoint are 503 with Retry-After, and they come back by themselves', { skip: process.env.TEST_POSTGRES_URL !== undefined && 'needs a server of its own, without TEST_POSTGRES_URL' }, async (t) => {
  const server = await postgres()
  const store = postgresStore({ connectionString: await server.database(), timeout: 1000 })
  const { clientId, register, authorize, code, connect, redeem, refresh, post, get, use, call, ticket, page, happened } = await attacked(t, { store, accessTokenLifetime: HOUR, refreshTokenLifetime: DAY })
  const client = await clientId()
  const { token } = await connect({ client_name: 'Connected' })
  const issued = await code(client)
  const { refresh_token: refreshToken, access_token: accessToken } = (await redeem(client, await code(client))).json<Tokens>()
  const pageTicket = fieldOf(await page(), 'ticket')
  t.equal(await call(token), 200)

  await server.stop()
  for (const [title, request] of [
    ['the guard', async () => await use('/mcp', token)], ['the guard, for a token that nobody has', async () => await use('/mcp', `oat_${'x'.repeat(43)}`)], ['a code', async () => await redeem(client, issued)], ['the same again', async () => await redeem(client, issued)],
    ['a refresh', async () => await refresh(client, refreshToken)], ['a revocation', async () => await post('/oauth/revoke', { client_id: client, token: accessToken })],
    ['the list', async () => await get('/my/connected_apps', { 'x-user': 'alice' })], ['a personal token', async () => await post('/my/connected_apps', { ticket: pageTicket, name: 'x', scope: 'read' }, { 'x-user': 'alice' })]
  ] as const) {
    let answer: Response | undefined
    t.ok(await timed(async () => { answer = await request() }) < SOON, title)
    t.equal(answer!.statusCode, 503, title)
    t.match(answer!.headers['retry-after'], /^[1-9]\d*$/, title)
    t.notOk('www-authenticate' in answer!.headers, `${title}: a client that is told 401 would throw its token away`)
    t.notMatch(answer!.body, /ECONN|postgres|127\.0\.0\.1|connect/i, `${title}: and nothing of what lies behind`)
  }
  t.equal((await use('/mcp', 'nonsense')).statusCode, 401, 'what is no token of ours needs no database')
  t.equal((await get('/.well-known/oauth-authorization-server')).statusCode, 200)
  t.strictSame([(await register()).statusCode, (await authorize(client)).statusCode], [201, 200], 'nor do registration and consent')
  t.not(await ticket(client), '')
  t.equal(happened('token.issued'), 2)

  await server.start()
  t.strictSame([await call(token), await call(accessToken)], [200, 200])
  t.equal((await redeem(client, issued)).statusCode, 200, 'no code was lost')
  t.equal((await refresh(client, refreshToken)).statusCode, 200, 'and no refresh token')
})

// Client ID Metadata Documents

t.test('36. no client id makes this server ask an address of its own network, follow a redirect, wait for long, read much or believe another’s document', async (t) => {
  const network = await Network.start(t)
  const { app, happened } = await attacked(t, { clientIdMetadata: { agent: network } })
  const documentOf = (id: string, changes: object = {}): object => ({ client_id: id, client_name: 'Hosted', redirect_uris: [CALLBACK, EVIL], ...changes })
  let users = 0
  const refused = async (title: string, id: string, status: number): Promise<void> => {
    const page = await dance(app, `user ${++users}`).authorize(id)
    t.strictSame([page.statusCode, page.headers.location], [status, undefined], title)
  }

  // Before anything is connected to.
  const addresses = ['127.0.0.1', '127.8.8.8', '10.0.0.1', '172.16.0.1', '172.31.255.255', '192.168.0.1', '169.254.0.1', '169.254.169.254', '168.63.129.16', '100.64.0.1', '100.100.100.200', '0.0.0.0', '224.0.0.1', '255.255.255.255', '192.0.2.1', '198.18.0.1', '240.0.0.1',
    '::', '::1', 'fe80::1', 'fc00::1', 'fd00:ec2::254', 'ff02::1', '2001:db8::1', '::ffff:127.0.0.1', '::ffff:10.0.0.1', '::ffff:a9fe:a9fe', '::127.0.0.1', '64:ff9b::7f00:1', '64:ff9b::a9fe:a9fe', '2002:7f00:1::1']
  for (const [index, address] of addresses.entries()) {
    for (const [kind, answer] of Object.entries({ alone: [address], 'beside a public one': [PUBLIC, address], 'before it': [address, PUBLIC] })) {
      const id = `https://x${index}-${kind.length}.client.example/c`
      network.names.set(new URL(id).hostname, [answer])
      network.pages.set(id, documentOf(id))
      await refused(`${address}, ${kind}`, id, 503)
    }
    const direct = `https://${address.includes(':') ? `[${new URL(`http://[${address}]`).hostname.slice(1, -1)}]` : address}/c`
    network.pages.set(direct, documentOf(direct))
    await refused(`${address}, directly`, direct, 503)
  }
  for (const id of [`https://${PUBLIC}/c`, 'https://localhost/c', 'https://metadata.google.internal/c', 'https://intranet/c']) await refused(id, id, 503)
  // Other spellings of one address, and what is no such id, are clients that nobody knows.
  for (const id of ['https://2130706433/c', 'https://0x7f.1/c', 'https://127.1/c', 'https://0177.0.0.1/c', 'http://client.example/c', 'https://client.example', 'https://client.example/', 'https://user@client.example/c', 'https://client.example/c#x', 'https://client.example/../c', 'https://CLIENT.example/c', 'file:///etc/passwd', 'javascript:alert(1)', 'https://client.example:99999/c']) await refused(id, id, 400)
  t.strictSame([network.connections, network.asked], [[], []], 'none of which was connected to')

  // Between check and connection.
  network.names.set('rebind.client.example', [[PUBLIC], ['127.0.0.1']])
  const rebinding = network.publish('https://rebind.client.example/c', documentOf('https://rebind.client.example/c'))
  t.equal((await dance(app).authorize(rebinding)).statusCode, 200)
  t.strictSame([network.connections, network.lookups.filter((name) => name.startsWith('rebind'))], [[PUBLIC], ['rebind.client.example']], 'what was checked is what was connected to')

  // What it answers.
  const json = (body: string, { status = 200, ...headers }: { status?: number } & Record<string, string | number> = {}): RequestListener => (_request, response) => { response.writeHead(status, { 'content-type': 'application/json', ...headers }).end(body) }
  const at = (path: string): string => `https://client.example/${path}`
  const own = (path: string, changes: object = {}): string => JSON.stringify(documentOf(at(path), changes))
  const answers: Record<string, [status: number, page: RequestListener]> = {
    'redirect-inside': [400, json('', { status: 302, location: 'https://127.0.0.1/c' })],
    'redirect-outside': [400, json('', { status: 307, location: rebinding })],
    'redirect-to-http': [400, json('', { status: 301, location: 'http://169.254.169.254/latest/meta-data' })],
    'redirect-with-a-document': [400, json(own('redirect-with-a-document'), { status: 308, location: rebinding })],
    missing: [400, json('{}', { status: 404 })],
    broken: [503, json('{}', { status: 500 })],
    html: [400, json(own('html'), { 'content-type': 'text/html' })],
    text: [400, json(own('text'), { 'content-type': 'text/plain; application/json' })],
    untyped: [400, json(own('untyped'), { 'content-type': '' })],
    packed: [400, json(own('packed'), { 'content-encoding': 'gzip' })],
    huge: [400, json(own('huge', { filler: 'x'.repeat(6000) }))],
    endless: [400, (_request, response) => {
      response.writeHead(200, { 'content-type': 'application/json' })
      const more = (): void => { if (!response.destroyed) response.write(' '.repeat(1000), () => setImmediate(more)) }
      more()
    }],
    'no-json': [400, json('{"client_id":')],
    list: [400, json('[]')],
    another: [400, json(own('somebody-else'))],
    'almost-itself': [400, json(own('almost-itself/'))],
    nameless: [400, json(own('nameless', { client_name: undefined }))],
    secret: [400, json(own('secret', { client_secret: 'x' }))],
    'secret-method': [400, json(own('secret-method', { token_endpoint_auth_method: 'client_secret_basic' }))],
    'private-key': [400, json(own('private-key', { token_endpoint_auth_method: 'private_key_jwt', jwks: { keys: [{ kty: 'oct', k: 'x' }] } }))],
    'elsewhere-alone': [400, json(own('elsewhere-alone', { redirect_uris: [EVIL, 'https://client.example.evil.example/cb', 'https://client.example@evil.example/cb', 'javascript:alert(1)', 'http://client.example/cb'] }))],
    silent: [503, () => {}],
    slow: [503, (_request, response) => {
      response.writeHead(200, { 'content-type': 'application/json' })
      const timer = setInterval(() => response.write(' '), 200)
      response.once('close', () => clearInterval(timer))
    }]
  }
  const slowest = await timed(async () => await Promise.all(Object.entries(answers).map(async ([path, [status, page]]) => await refused(path, network.publish(at(path), page), status))))
  t.ok(slowest < 5000 + SOON, `${Math.round(slowest)} ms`)
  t.strictSame(network.asked.filter((url) => !Object.keys(answers).includes(url.replace('https://client.example/', '')) && url !== rebinding), [], 'and nobody else was asked')
  const good = network.publish(at('good'), documentOf(at('good')))
  const page = await dance(app).authorize(good)
  t.equal(page.statusCode, 200)
  t.match(page.body, /<\/q> from client\.example\./, 'who vouches is shown')
  t.equal((await dance(app, 'zoe').authorize(good, { redirect_uri: EVIL })).statusCode, 400, 'a redirect URI of another host is dropped')
  const hosted = network.publish(at('hosted'), documentOf(at('hosted'), { redirect_uris: ['https://client.example/cb'] }))
  const mistaken = await dance(app, 'zoe').authorize(hosted, { redirect_uri: 'https://client.example/cb', scope: 'admin' })
  t.strictSame([mistaken.statusCode, mistaken.headers.location], [400, undefined], 'and a mistake sends nobody to its own host unasked')

  // On behalf of nobody, nobody is asked; and of one user not without end.
  const asked = network.asked.length
  const signedOut = await dance(app).authorize(at('signed-out'), {}, {})
  t.strictSame([signedOut.statusCode, locationOf(signedOut).pathname], [303, '/login'])
  const { post } = requests(app)
  const ofAnother = await dance(app).code(await dance(app).clientId())
  for (const [url, fields] of [['/oauth/token', { grant_type: 'authorization_code', code: 'x' }], ['/oauth/token', { grant_type: 'authorization_code', code: ofAnother }], ['/oauth/token', { grant_type: 'refresh_token', refresh_token: 'x' }], ['/oauth/revoke', { token: 'x' }]] as const) {
    t.equal(refusal(await post(url, { client_id: at('signed-out'), ...fields })), '401 invalid_client')
  }
  t.equal(network.asked.length, asked)
  const sprayed = []
  for (let index = 0; index < 15; index++) sprayed.push((await dance(app, 'mallory').authorize(network.publish(`https://spray${index}.client.example/c`, documentOf(`https://spray${index}.client.example/c`)))).statusCode)
  t.strictSame(count(sprayed), { 200: 10, 429: 5 })
  t.equal(happened('token.issued'), 0)
})

t.test('37. a web site that points its own name at this computer is shown no page, and nothing that it posts counts', async (t) => {
  const asked: string[] = []
  // The app of one user, on their own computer: no cookie says whose browser it is.
  const currentUser = ({ headers, hostname }: FastifyRequest) => {
    asked.push(headers.host ?? hostname)
    return { id: 'alice' }
  }
  for (const trustProxy of [false, true]) {
    const { app, events, path, clientId, query, ticket, page } = await attacked(t, { currentUser }, { server: { trustProxy } })
    const connected = Fastify({ trustProxy })
    t.teardown(async () => await connected.close())
    await connected.register(mcpConnections, { baseUrl: ISSUER, keys: [KEY], store: sqliteConnectionStore({ path: join(folder(), 'connections.db') }), servers: { notes: { url: `${ISSUER}/mcp` } }, currentUser, loginUrl: '/login' })
    const client = await clientId()
    const { grantId } = await app.oauth.tokens.create({ userId: 'alice', name: 'x', scopes: ['read'] })
    const connectTicket = fieldOf((await connected.inject('/my/connections')).body, 'ticket')
    const [consentTicket, pageTicket] = [await ticket(client), fieldOf(await page(), 'ticket')]
    const requests: Array<[app: FastifyInstance, url: string, fields?: Record<string, string>]> = [
      [app, `/oauth/authorize?${form(query(client))}`], [app, `/oauth/authorize?${form(query(client, { scope: 'read' }))}`], [app, '/my/connected_apps'], [connected, '/my/connections'],
      [app, '/oauth/authorize', { ticket: consentTicket, decision: 'approve', scope: 'read' }], [app, '/oauth/authorize', { ticket: consentTicket, decision: 'deny' }],
      [app, '/my/connected_apps', { ticket: pageTicket, name: 'x', scope: 'read' }], [app, '/my/connected_apps', { ticket: pageTicket, grant: grantId }],
      [connected, '/my/connections', { ticket: connectTicket, connect: 'notes' }], [connected, '/my/connections', { ticket: connectTicket, disconnect: 'notes' }]
    ]
    const ask = async ([app, url, fields]: typeof requests[number], headers: Record<string, string>) => await app.inject({ url, headers: { ...FORM, ...headers }, ...(fields !== undefined && { method: 'POST', payload: form(fields) }) })
    const [before, rows, askedBefore] = [events.length, rowsIn(path), asked.length]
    for (const headers of [
      ...['evil.example', 'evil.example:3000', 'localhost.evil.example:3000', '127.0.0.1.evil.example', 'localhost:3000@evil.example', 'evil.example:3000:3000', 'evil.example#localhost', 'evillocalhost', '[::1].evil.example', '0.0.0.0:3000', '192.168.0.7:3000', '[::2]:3000', ':3000'].map((host) => ({ host })),
      { host: 'evil.example:3000', 'x-forwarded-host': 'localhost:3000' }, { host: 'evil.example', 'x-forwarded-host': '127.0.0.1', forwarded: 'host=localhost', origin: ISSUER }
    ] as Array<Record<string, string>>) {
      for (const request of requests) {
        for (const accept of ['text/html', 'application/json']) {
          const { statusCode, headers: { location }, body } = await ask(request, { ...headers, accept })
          t.strictSame([statusCode, location], [421, undefined], `${request[1].slice(0, 30)} ${Object.keys(request[2] ?? {}).join()} as ${shown(headers)}, ${accept}`)
          t.notMatch(body, /eyJ|evil|alice/)
        }
      }
    }
    t.equal(asked.length, askedBefore, 'nobody is asked who the user is')
    t.equal(events.length, before, 'nothing has happened')
    t.equal(rowsIn(path), rows, 'and nothing is written')
    t.match(await app.oauth.tokens.list({ userId: 'alice' }), [{ grantId }])
    for (const host of ['localhost:3000', 'localhost', 'localhost:8080', '127.0.0.1:3000', '[::1]:3000', '[::1]']) {
      for (const request of requests.slice(0, 4)) t.equal((await ask(request, { host, 'x-forwarded-host': 'notes.example' })).statusCode, 200, `${request[1].slice(0, 30)} as ${host}`)
    }
  }

  // Of HTTP/2 the name is in :authority.
  const app = Fastify({ http2: true })
  t.teardown(async () => await app.close())
  await app.register(mcpOAuth, testOptions({ currentUser }) as never)
  const session = connectHttp2(await app.listen({ port: 0, host: '127.0.0.1' }))
  t.teardown(() => session.destroy())
  for (const [authority, status] of [['localhost:3000', 200], ['evil.example:3000', 421]] as const) {
    const [headers] = await once(session.request({ ':authority': authority, ':path': '/my/connected_apps' }), 'response') as [Record<string, unknown>]
    t.equal(headers[':status'], status, `HTTP/2 as ${authority}`)
  }
})

t.test('the numbers 1 to 37 are each the beginning of exactly one test here', async (t) => {
  const source = readFileSync(join(dirname(fileURLToPath(import.meta.url)), 'attacks.test.ts'), 'utf8')
  const numbers = [...source.matchAll(/^t\.test\('(\d+)\. /gm)].map(([, number]) => Number(number))
  t.strictSame(numbers, Array.from({ length: 37 }, (_, index) => index + 1), 'and they stand in order')
})
