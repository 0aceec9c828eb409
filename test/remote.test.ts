import cors from '@fastify/cors'
import Fastify, { type FastifyInstance, type FastifyServerOptions } from 'fastify'
import { createHash } from 'node:crypto'
import { createServer, request as httpRequest, type IncomingMessage, type ServerResponse } from 'node:http'
import { join } from 'node:path'
import { performance } from 'node:perf_hooks'
import { setTimeout as sleep } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import t, { type Test } from 'tap'
import mcpOAuth, { StoreUnavailableError, type AuditEvent, type McpOAuthOptions } from '../dist/index.js'
import remoteGuard, { type RemoteGuardOptions } from '../dist/remote.js'
import { sqliteStore } from '../dist/store/sqlite.js'
import { connectClient, mintToken } from '../dist/testing.js'
import { CALLBACK, FORM, bearer, dance, folder, form, replace, testOptions } from './app.js'
import { Browser, callMcp, callTool, startExample, type Example } from './example.js'
import { SDKS } from './sdk.js'
import { freePort } from './scripts/free-port.js'

// The servers of these tests are real ones, each on a port of its own, and ask each other over HTTP.

/** Each character that form-encoding and Basic could get wrong. */
const SECRET = 'fïles: 100 % + & = ~*'
const FILES_SERVER = { clientId: 'files:server', clientName: 'Files', clientSecretHashes: [createHash('sha256').update(SECRET).digest('base64url')] }
const address = async (): Promise<string> => `http://localhost:${await freePort()}`
const portOf = (url: string): number => Number(new URL(url).port)

/** An app that keeps its log, closed with the test. */
function newApp (t: Test, options: FastifyServerOptions = {}): { app: FastifyInstance, lines: string[] } {
  const lines: string[] = []
  const app = Fastify({ logger: { level: 'trace', stream: { write: (line: string) => { lines.push(line) } } }, ...options })
  t.teardown(() => app.close())
  return { app, lines }
}

interface Guarded {
  app: FastifyInstance
  origin: string
  lines: string[]
  events: AuditEvent[]
  call: (token?: string, path?: string, init?: RequestInit) => Promise<Response>
  /** The status of a call; for 200 with whose it is. */
  outcome: (token: string, path?: string) => Promise<string>
}

/** A server with a guarded POST /mcp, whose tokens another one knows. */
async function startGuard (t: Test, issuer: string, { origin = '', ...options }: Partial<RemoteGuardOptions> = {}): Promise<Guarded> {
  origin ||= await address()
  const events: AuditEvent[] = []
  const { app, lines } = newApp(t)
  await app.register(remoteGuard, { issuer, origin, clientId: FILES_SERVER.clientId, clientSecret: SECRET, scopes: ['read', 'write'], onEvent: (event) => events.push(event), ...options })
  for (const { path } of options.resources ?? [{ path: '/mcp' }]) {
    app.post(path!, { onRequest: app.oauth.protect({ scopes: ['read'], resource: path! }) }, async ({ oauth }) => oauth)
  }
  app.post('/write', { onRequest: app.oauth.protect({ resource: options.resources?.[0]?.path ?? '/mcp' }) }, async ({ oauth }) => oauth!.require('write'))
  await app.listen({ port: portOf(origin) })
  const call: Guarded['call'] = async (token, path = '/mcp', { headers = {}, ...init } = {}) =>
    await fetch(origin + path, { method: 'POST', ...init, headers: { ...token !== undefined && bearer(token), ...headers as object } })
  const outcome = async (token: string, path?: string): Promise<string> => {
    const response = await call(token, path)
    const { userId } = await response.json() as { userId?: string }
    return response.status === 200 ? `200 ${userId}` : String(response.status)
  }
  return { app, origin, lines, events, call, outcome }
}

interface Server {
  app: FastifyInstance
  issuer: string
  lines: string[]
  /** How often it was asked about a token. */
  asked: number
}

/** An authorization server for resources elsewhere, each of which the files server may introspect. */
async function startServer (t: Test, issuer: string, urls: readonly string[], options: Partial<McpOAuthOptions> = {}): Promise<Server> {
  const { app, lines } = newApp(t)
  const server = { app, issuer, lines, asked: 0 }
  app.addHook('onRequest', async ({ url }) => { if (url.endsWith('/oauth/introspect')) server.asked++ })
  await app.register(mcpOAuth, testOptions({ issuer, resources: urls.map((url) => ({ url })), clients: [{ ...FILES_SERVER, introspects: urls }], ...options }))
  await app.listen({ port: portOf(issuer) })
  return server
}

/** The two together. The authorization server has one more resource, into whose tokens the files server may not look. */
async function startBoth (t: Test, { server = {}, guard = {} }: { server?: Partial<McpOAuthOptions>, guard?: Partial<RemoteGuardOptions> } = {}): Promise<{ there: Server, here: Guarded }> {
  const [issuer, origin] = [await address(), await address()]
  const resources = [{ url: `${origin}/mcp` }, { url: 'https://other.example/mcp' }]
  return {
    there: await startServer(t, issuer, [`${origin}/mcp`], { resources, ...server }),
    here: await startGuard(t, issuer, { origin, ...guard })
  }
}

/** A refused request, and why; the client learns the first, the log the second. */
async function refusedFor (t: Test, { call, origin, events }: Guarded, token: string, reason: string, title = reason): Promise<void> {
  const response = await call(token)
  t.equal(response.status, 401, title)
  t.equal(response.headers.get('www-authenticate'), `Bearer error="invalid_token", error_description="The access token is invalid.", resource_metadata="${origin}/.well-known/oauth-protected-resource/mcp", scope="read"`)
  t.match(events.at(-1), { type: 'token.rejected', reason }, title)
}

/** What a promise rejects with must be of that class; v1 of the SDK gives its errors no name of their own. */
async function refusal (t: Test, promise: Promise<unknown>, type: new () => Error): Promise<void> {
  t.ok(await promise.then(() => 'it was not refused', (error: unknown) => error) instanceof type, 'refused')
}

// End to end: the two programs of examples/separate-servers, as their users start them.

async function startSeparate (t: Test): Promise<{ example: Example, issuer: string, url: string }> {
  const [issuer, files] = [await address(), await address()]
  const example = await startExample(t, { program: 'separate-servers/main.js', port: portOf(files), env: { ISSUER: issuer, FILES: files } })
  return { example, issuer, url: `${files}/mcp` }
}

for (const sdk of SDKS) {
  t.test(`${sdk.name} knows only the URL of the files server: it is sent to the other, steps up, and is refused once disconnected`, async (t) => {
    const { issuer, url } = await startSeparate(t)
    const alice = new Browser({ url: issuer }, 'alice')
    const provider = sdk.provider()

    const first = sdk.session(url, provider)
    await refusal(t, first.connect(), sdk.Unauthorized)
    t.equal(provider.authorizationUrl?.origin, issuer)
    t.equal(provider.authorizationUrl?.searchParams.get('resource'), url)
    const { asked, callback } = await provider.askUser(alice)
    t.strictSame(asked, ['read'])
    await first.finishAuth(callback)
    await first.close()

    const session = sdk.session(url, provider)
    t.teardown(async () => await session.close())
    await session.connect()
    t.strictSame((await session.listTools()).sort(), ['list_files', 'write_file'])
    t.equal(await session.call('list_files'), 'There are no files yet.')

    await refusal(t, session.call('write_file', { name: 'a.txt', text: 'a' }), sdk.Unauthorized)
    const stepUp = await provider.askUser(alice)
    t.strictSame(stepUp.asked, ['read', 'write'])
    await session.finishAuth(stepUp.callback)
    t.equal(await session.call('write_file', { name: 'a.txt', text: 'a' }), 'Written.')
    t.equal(await session.call('list_files'), 'a.txt')

    const { access_token: token } = provider.tokens()!
    const { apps } = await alice.connectedApps()
    t.match(apps, [{ name: provider.clientMetadata.client_name, connections: 2 }])
    await alice.disconnect(apps[0]!.clientId)
    t.equal((await callMcp(url, token, 'tools/list')).status, 401, 'the very next request')
    await refusal(t, session.call('list_files'), sdk.Unauthorized)
    await session.finishAuth((await provider.askUser(alice)).callback)
    t.equal(await session.call('list_files'), 'a.txt')
    t.equal(provider.registrations, 1)
  })
}

t.test('the example tells its user what to do, keeps its secrets to itself, and ends with 0', async (t) => {
  const { example, issuer, url } = await startSeparate(t)
  const printed = example.output()
  t.match(printed, `\n  ${url}\n`)
  t.match(printed, `claude mcp add --transport http files ${url}`)
  t.match(printed, `${issuer}/my/connected_apps`)
  t.notMatch(printed, /warning|deprecat/i)
  const [, json] = printed.match(/--add-mcp '(.*)'/) ?? []
  t.strictSame(JSON.parse(json ?? '{}'), { name: 'files', type: 'http', url })

  const rebound = await new Promise<number | undefined>((resolve, reject) => {
    httpRequest(url, { method: 'POST', headers: { host: 'evil.example' } }, (response) => { response.resume(); resolve(response.statusCode) }).on('error', reject).end()
  })
  t.equal(rebound, 403, 'a foreign name for this computer is refused')
  t.equal((await example.stop()).code, 0)
})

t.test('as processes of their own either may start first, and come back: 503 meanwhile, and the token still works', async (t) => {
  const [issuer, files] = [await address(), await address()]
  const env = { ISSUER: issuer, FILES: files }
  const filesServer = await startExample(t, { program: 'separate-servers/files-server.js', prints: '', port: portOf(files), env })
  const startServer = async () => await startExample(t, { program: 'separate-servers/authorization-server.js', prints: '', port: portOf(issuer), env, dataDir: filesServer.dataDir, ready: '/.well-known/oauth-authorization-server' })
  const away = async (token: string): Promise<void> => {
    const response = await callMcp(`${files}/mcp`, token, 'tools/list')
    t.equal(response.status, 503)
    t.equal(response.headers.get('retry-after'), '5')
  }
  await away('oat_x')
  t.equal((await callMcp(`${files}/mcp`, undefined, 'tools/list')).status, 401, 'without a token there is nothing to ask about')

  const first = await startServer()
  const sdk = SDKS[1]!
  const provider = sdk.provider()
  const session = sdk.session(`${files}/mcp`, provider)
  t.teardown(async () => await session.close())
  await refusal(t, session.connect(), sdk.Unauthorized)
  await session.finishAuth((await provider.askUser(new Browser({ url: issuer }, 'bob'))).callback)
  const { access_token: token } = provider.tokens()!
  t.equal(await callTool(`${files}/mcp`, token, 'list_files'), 'There are no files yet.')

  await first.stop('SIGKILL')
  await away(token)
  t.match(filesServer.output(), /"reason":"introspection_failed"/)
  await startServer()
  t.equal(await callTool(`${files}/mcp`, token, 'list_files'), 'There are no files yet.')
  t.notOk(filesServer.output().includes(token))
})

// What a token is good for.

t.test('request.oauth is the grant as the authorization server has it', async (t) => {
  const { there, here } = await startBoth(t, { server: { currentUser: () => ({ id: 'alice', tenantId: 'acme' }), accessTokenLifetime: 3600 } })
  const { accessToken, clientId } = await connectClient(there.app, { headers: {}, scopes: ['read'], clientName: 'Client' })
  const response = await here.call(accessToken)
  t.equal(response.status, 200)
  const [grant] = await there.app.oauth.tokens.list({ userId: 'alice' })
  t.match(await response.json(), {
    grantId: grant!.grantId, userId: 'alice', tenantId: 'acme', clientId, clientName: 'Client', scopes: ['read'], resource: `${here.origin}/mcp`, expiresAt: Math.floor(grant!.expiresAt! / 1000) * 1000
  })
})

t.test('personal tokens work, for this resource or for all, and so do those of a client that acts for itself', async (t) => {
  const [issuer, origin] = [await address(), await address()]
  const { app } = await startServer(t, issuer, [`${origin}/mcp`], {
    clients: [
      { ...FILES_SERVER, introspects: [`${origin}/mcp`] },
      { clientId: 'robot', clientName: 'Robot', clientSecretHashes: [createHash('sha256').update('r').digest('hex')], scopes: ['read'] }
    ]
  })
  const { outcome } = await startGuard(t, issuer, { origin })
  t.equal(await outcome(await mintToken(app, { userId: 'alice', scopes: ['read'] })), '200 alice')
  t.equal(await outcome(await mintToken(app, { userId: 'alice', scopes: ['read'], resource: `${origin}/mcp` })), '200 alice')
  const response = await fetch(`${issuer}/oauth/token`, { method: 'POST', headers: FORM, body: form({ grant_type: 'client_credentials', client_id: 'robot', client_secret: 'r' }) })
  t.equal(await outcome((await response.json() as { access_token: string }).access_token), '200 null')
})

t.test('a token for another resource of the same authorization server is refused, at either end', async (t) => {
  const { there, here } = await startBoth(t)
  const { accessToken } = await connectClient(there.app, { headers: { 'x-user': 'alice' }, resource: 'https://other.example/mcp' })
  await refusedFor(t, here, accessToken, 'token_unknown', 'it is not even told that there is such a token')
  await refusedFor(t, here, await mintToken(there.app, { userId: 'alice', scopes: ['read'], resource: 'https://other.example/mcp' }), 'token_unknown')
})

t.test('of two resources on one server, each takes its own tokens only', async (t) => {
  const [issuer, origin] = [await address(), await address()]
  const { app } = await startServer(t, issuer, [`${origin}/mcp`, `${origin}/admin`])
  const here = await startGuard(t, issuer, { origin, resources: [{ path: '/mcp' }, { path: '/admin' }], cacheLifetime: 60 })
  for (const path of ['/mcp', '/admin'] as const) {
    const { accessToken } = await connectClient(app, { headers: { 'x-user': 'alice' }, resource: origin + path })
    t.equal(await here.outcome(accessToken, path), '200 alice')
    t.equal(await here.outcome(accessToken, path === '/mcp' ? '/admin' : '/mcp'), '401')
    t.match(here.events.at(-1), { reason: 'token_for_another_resource', userId: 'alice' })
    t.equal(await here.outcome(accessToken, path), '200 alice', 'the answer about it is kept for both')
  }
  const all = await mintToken(app, { userId: 'bob', scopes: ['read'] })
  for (const path of ['/mcp', '/admin']) t.equal(await here.outcome(all, path), '200 bob')
  t.match(await (await here.call(all)).json(), { resource: null })
})

t.test('refresh tokens, codes and garbage are refused', async (t) => {
  const { there, here } = await startBoth(t, { server: { accessTokenLifetime: 3600, refreshTokenLifetime: 7200 } })
  const { clientId, code, redeem } = dance(there.app)
  const client = await clientId({ redirect_uris: [CALLBACK] })
  const { access_token: access, refresh_token: refresh } = (await redeem(client, await code(client))).json<Record<string, string>>()
  t.equal(await here.outcome(access!), '200 alice')
  t.match(refresh, /^ort_/)
  for (const token of [refresh!, await code(client), client, 'abc', `${access!}x`, `${access!} ${access!}`, 'a&token=b', '"', "' OR 1=1 --", 'é', 'x'.repeat(10_000)]) {
    await refusedFor(t, here, token, 'token_unknown', token.slice(0, 20))
  }
})

t.test('a scope that is missing: 403 with the challenge, by protect() and by require()', async (t) => {
  const { there, here } = await startBoth(t)
  const writer = await mintToken(there.app, { userId: 'alice', scopes: ['write'] })
  const reader = await mintToken(there.app, { userId: 'alice', scopes: ['read'] })
  for (const [token, path, scope] of [[writer, '/mcp', 'write read'], [reader, '/write', 'read write']] as const) {
    const response = await here.call(token, path)
    t.equal(response.status, 403)
    t.equal(response.headers.get('www-authenticate'), `Bearer error="insufficient_scope", error_description="The access token lacks a scope.", resource_metadata="${here.origin}/.well-known/oauth-protected-resource/mcp", scope="${scope}"`)
    t.match(here.events.at(-1), { reason: 'token_scope_insufficient', userId: 'alice' })
  }
  t.equal((await here.call(writer, '/write')).status, 200)
})

// Revocation, and what cacheLifetime changes about it.

t.test('without a cache every request is asked about, and a revoked or expired token is refused at the next', async (t) => {
  const { there, here } = await startBoth(t)
  const { accessToken, clientId } = await connectClient(there.app, { headers: { 'x-user': 'alice' } })
  for (let request = 1; request <= 3; request++) {
    t.equal(await here.outcome(accessToken), '200 alice')
    t.equal(there.asked, request)
  }
  await there.app.oauth.tokens.revoke({ userId: 'alice', clientId })
  await refusedFor(t, here, accessToken, 'token_unknown')

  const now = Date.now()
  const brief = await mintToken(there.app, { userId: 'alice', scopes: ['read'], expiresAt: now + 60_000 })
  t.equal(await here.outcome(brief), '200 alice')
  replace(t, Date, 'now', () => now + 60_000)
  await refusedFor(t, here, brief, 'token_unknown')
})

t.test('asking counts as a use: a grant that is used elsewhere does not become idle', async (t) => {
  const { there, here } = await startBoth(t, { server: { idleLifetime: 600 } })
  const token = await mintToken(there.app, { userId: 'alice', scopes: ['read'] })
  let now = Date.now()
  replace(t, Date, 'now', () => now)
  for (let use = 0; use < 2; use++) {
    now += 599_000
    t.equal(await here.outcome(token), '200 alice')
    // It is written down a moment later.
    const isWritten = async (): Promise<boolean> => (await there.app.oauth.tokens.list({ userId: 'alice' }))[0]!.lastUsedAt === now
    for (let attempt = 0; attempt < 200 && !await isWritten(); attempt++) await sleep(50)
    t.ok(await isWritten())
  }
  now += 600_000
  await refusedFor(t, here, token, 'token_unknown')
})

t.test('with cacheLifetime a good answer is believed for so long, and not a millisecond longer', async (t) => {
  const { there, here } = await startBoth(t, { guard: { cacheLifetime: 60 } })
  const { accessToken } = await connectClient(there.app, { headers: { 'x-user': 'alice' } })
  const start = Date.now()
  let now = start
  replace(t, Date, 'now', () => now)
  for (let request = 0; request < 3; request++) t.equal(await here.outcome(accessToken), '200 alice')
  t.equal(there.asked, 1)
  await there.app.oauth.tokens.revoke({ userId: 'alice' })
  now = start + 59_999
  t.equal(await here.outcome(accessToken), '200 alice', 'the price of the cache')
  t.equal(there.asked, 1, 'being used makes no answer last longer')
  now = start + 60_000
  await refusedFor(t, here, accessToken, 'token_unknown')
  t.equal(there.asked, 2)
})

t.test('a token that expires inside the cache is refused on its second', async (t) => {
  const { there, here } = await startBoth(t, { guard: { cacheLifetime: 300 } })
  const start = Math.ceil(Date.now() / 1000) * 1000
  let now = start
  replace(t, Date, 'now', () => now)
  const token = await mintToken(there.app, { userId: 'alice', scopes: ['read'], expiresAt: start + 10_000 })
  t.equal(await here.outcome(token), '200 alice')
  now = start + 9999
  t.equal(await here.outcome(token), '200 alice')
  now = start + 10_000
  await refusedFor(t, here, token, 'token_expired')
  t.equal(there.asked, 1, 'nobody was asked for that')
})

t.test('the cache holds no refusal: what was unknown works as soon as it is known', async (t) => {
  const foreign = await startForeign(t)
  const { outcome } = await startGuard(t, foreign.issuer, { origin: foreign.files, cacheLifetime: 300 })
  foreign.introspection = json({ active: false })
  t.equal(await outcome('opaque'), '401')
  foreign.introspection = json({}, 500)
  t.equal(await outcome('opaque'), '503')
  foreign.introspection = json(foreign.good)
  t.equal(await outcome('opaque'), '200 alice')
  foreign.introspection = json({ active: false })
  t.equal(await outcome('opaque'), '200 alice', 'now it is kept')
  t.equal(await outcome('opaque '), '200 alice')
  t.equal(await outcome('Opaque'), '401', 'for this token alone')
})

t.test('once an answer is too old to be believed, an authorization server that is away is 503', async (t) => {
  const foreign = await startForeign(t)
  const { outcome } = await startGuard(t, foreign.issuer, { origin: foreign.files, cacheLifetime: 60 })
  const start = Date.now()
  t.equal(await outcome('opaque'), '200 alice')
  foreign.introspection = json({}, 500)
  t.equal(await outcome('opaque'), '200 alice')
  replace(t, Date, 'now', () => start + 120_000)
  t.equal(await outcome('opaque'), '503')
})

t.test('what a handler does to its grant stays with its request', async (t) => {
  const foreign = await startForeign(t)
  const { app } = newApp(t)
  await app.register(remoteGuard, { issuer: foreign.issuer, origin: foreign.files, clientId: 'x', clientSecret: 'x', scopes: ['read', 'write'], cacheLifetime: 60 })
  app.post('/mcp', { onRequest: app.oauth.protect() }, async ({ oauth }) => (oauth!.scopes as string[]).push('write'))
  for (let request = 0; request < 3; request++) t.equal((await app.inject({ method: 'POST', url: '/mcp', headers: bearer('opaque') })).body, '2')
  t.equal(foreign.asked.length, 1)
})

t.test('the cache is bounded: of 10,001 tokens the first is asked about again', async (t) => {
  // Only the way to the authorization server is cut short: over a real one this takes a minute.
  const asked: string[] = []
  const origin = await address()
  replace(t, globalThis, 'fetch', (async (url: string, { body = '' }: { body?: string } = {}) => {
    if (url.includes('/.well-known/')) return Response.json({ issuer: 'https://login.example', introspection_endpoint: 'https://login.example/introspect' })
    asked.push(new URLSearchParams(body).get('token')!)
    return Response.json({ active: true, sub: 'alice', scope: 'read', aud: `${origin}/mcp` })
  }) as typeof fetch)
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(remoteGuard, { issuer: 'https://login.example', origin, clientId: 'x', clientSecret: 'x', scopes: ['read'], cacheLifetime: 300 })
  app.post('/mcp', { onRequest: app.oauth.protect() }, async () => 'ok')
  const call = async (token: number): Promise<void> => {
    const { statusCode } = await app.inject({ method: 'POST', url: '/mcp', headers: bearer(`${token}`) })
    if (statusCode !== 200) t.fail(`${token}: ${statusCode}`)
  }
  for (let token = 1; token <= 10_000; token++) await call(token)
  asked.length = 0
  await call(1)
  t.strictSame(asked, [], '10,000 are kept')
  await call(10_001)
  await call(2)
  t.strictSame(asked, ['10001'], 'one more, and the second is still there')
  await call(1)
  t.strictSame(asked, ['10001', '1'], 'but the first had to go')
})

// Authorization servers that are not ours, and those that fail.

type Handler = (request: IncomingMessage, response: ServerResponse, body: string) => void

interface Foreign {
  issuer: string
  /** The origin of the server that it is asked by. */
  files: string
  /** What it says of a good token. */
  good: Record<string, unknown>
  metadata: Handler
  introspection: Handler
  asked: Array<{ authorization: string | undefined, body: string }>
  stop: () => Promise<void>
  start: () => Promise<void>
}

/** A small authorization server that answers as a test wants it to, at every address of this computer. */
async function startForeign (t: Test): Promise<Foreign> {
  const [issuer, files] = [await address(), await address()]
  const server = createServer((request, response) => {
    let body = ''
    request.setEncoding('utf8').on('data', (text: string) => { body += text }).on('end', () => {
      const isIntrospection = request.method === 'POST'
      if (isIntrospection) foreign.asked.push({ authorization: request.headers.authorization, body })
      foreign[isIntrospection ? 'introspection' : 'metadata'](request, response, body)
    })
  })
  const good = { active: true, sub: 'alice', scope: 'read', aud: `${files}/mcp`, client_id: 'client', token_type: 'bearer' }
  const foreign: Foreign = {
    issuer,
    files,
    good,
    metadata: json({ issuer, introspection_endpoint: `${issuer}/introspect` }),
    introspection: json(good),
    asked: [],
    stop: async () => await new Promise((resolve) => { server.close(() => resolve()).closeAllConnections() }),
    start: async () => await new Promise((resolve) => { server.listen(portOf(issuer), resolve) })
  }
  await foreign.start()
  t.teardown(async () => await foreign.stop())
  return foreign
}

function json (value: unknown, status = 200): Handler {
  return (_request, response) => { response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(value)) }
}

function html (status: number): Handler {
  return (request, response, body) => { response.writeHead(status, { 'content-type': 'text/html' }).end(`${request.headers.authorization} ${body}`) }
}

t.test('a token is taken only with an audience, and only as a bearer token that has not expired', async (t) => {
  const foreign = await startForeign(t)
  const here = await startGuard(t, foreign.issuer, { origin: foreign.files })
  const mine = `${foreign.files}/mcp`
  const { aud: _, ...withoutAudience } = foreign.good
  for (const [title, answer, reason] of [
    ['no audience', withoutAudience, 'token_for_another_resource'],
    ...[null, [], '', {}, 'https://other.example/mcp', `${mine}/`, `${mine}x`, foreign.files, [foreign.files], [[[mine]]], { 0: mine }, mine.toUpperCase(), ` ${mine}`]
      .map((aud) => [`aud ${JSON.stringify(aud)}`, { ...foreign.good, aud }, 'token_for_another_resource'] as const),
    ['expired', { ...foreign.good, exp: 1 }, 'token_expired'],
    ['a refresh token', { ...foreign.good, token_type: 'refresh_token' }, 'token_type_unsupported'],
    ['a token that needs a proof', { ...foreign.good, token_type: 'DPoP' }, 'token_type_unsupported'],
    ['not active', { ...foreign.good, active: false }, 'token_unknown'],
    ['not active, in a hurry', { active: false, exp: 'never' }, 'token_unknown']
  ] as const) {
    foreign.introspection = json(answer)
    await refusedFor(t, here, 'opaque', reason, title)
  }
  const { token_type: __, ...withoutType } = foreign.good
  for (const answer of [foreign.good, withoutType, { ...foreign.good, aud: ['https://other.example/mcp', mine] }, { ...foreign.good, exp: Date.now() / 1000 + 60.5 }]) {
    foreign.introspection = json(answer)
    t.equal(await here.outcome('opaque'), '200 alice', JSON.stringify(answer))
  }
})

t.test('it is asked as RFC 7662 and RFC 6749 §2.3.1 say', async (t) => {
  const foreign = await startForeign(t)
  const { outcome } = await startGuard(t, foreign.issuer, { origin: foreign.files })
  t.equal(await outcome('a+b/c%20=&d'), '200 alice')
  const { authorization, body } = foreign.asked[0]!
  const [id, secret] = Buffer.from(authorization!.replace(/^Basic /, ''), 'base64').toString().split(':').map((half) => new URLSearchParams(`x=${half}`).get('x'))
  t.strictSame([id, secret], ['files:server', SECRET])
  t.strictSame([...new URLSearchParams(body)], [['token', 'a+b/c%20=&d'], ['token_type_hint', 'access_token']])
})

/** Each makes the authorization server fail in a way of its own; whoever believed the answer would let the token in. */
const FAILURES: Record<string, (foreign: Foreign, elsewhere: Foreign) => void | Promise<void>> = {
  'is down': async (foreign) => await foreign.stop(),
  'hangs up': (foreign) => { foreign.introspection = (request) => { request.socket.destroy() } },
  'hangs up halfway': (foreign) => { foreign.introspection = (_request, response) => { response.writeHead(200, { 'content-length': '1000' }).write('{"active":', () => response.destroy()) } },
  ...Object.fromEntries([204, 400, 401, 403, 404, 429, 500, 502, 503].map((status) => [`answers ${status}`, (foreign: Foreign) => {
    foreign.introspection = status === 204 ? (_request, response) => { response.writeHead(status).end() } : json({ ...foreign.good, active: status % 2 === 0 }, status)
  }])),
  'repeats token and secret in a page of 500': (foreign) => { foreign.introspection = html(500) },
  'repeats token and secret in a page of 200': (foreign) => { foreign.introspection = html(200) },
  'repeats the token bare, as a parser would quote it': (foreign) => { foreign.introspection = (_request, response, body) => { response.end(new URLSearchParams(body).get('token')) } },
  'repeats the token in a string': (foreign) => { foreign.introspection = json('opaque-token') },
  ...Object.fromEntries([null, 5, [], [{ active: true }], {}, { active: 'true' }, { active: 1 }, { active: null }, { error: 'server_error' }].map((answer) => [`says ${JSON.stringify(answer)}`, (foreign: Foreign) => {
    foreign.introspection = json(answer)
  }])),
  ...Object.fromEntries([{ exp: 'never' }, { exp: null }, { exp: [] }, { scope: ['read'] }, { scope: null }, { sub: 5 }, { sub: { id: 'alice' } }, { client_id: [] }, { tenant_id: 7 }, { jti: {} }, { token_type: [] }].map((part) => [`says ${JSON.stringify(part)}`, (foreign: Foreign) => {
    foreign.introspection = json({ ...foreign.good, ...part })
  }])),
  'says that it expires at 1e999': (foreign) => { foreign.introspection = (_request, response) => { response.end(JSON.stringify({ ...foreign.good, exp: 0 }).replace('"exp":0', '"exp":1e999')) } },
  ...Object.fromEntries([301, 302, 303, 307, 308].map((status) => [`redirects with ${status}`, (foreign: Foreign, elsewhere: Foreign) => {
    foreign.introspection = (_request, response) => { response.writeHead(status, { location: `${elsewhere.issuer}/introspect` }).end() }
  }])),
  'has metadata of another issuer': (foreign) => { foreign.metadata = json({ issuer: 'https://evil.example', introspection_endpoint: `${foreign.issuer}/introspect` }) },
  'has metadata of its issuer with a slash': (foreign) => { foreign.metadata = json({ issuer: `${foreign.issuer}/`, introspection_endpoint: `${foreign.issuer}/introspect` }) },
  'has metadata of nobody': (foreign) => { foreign.metadata = json({ introspection_endpoint: `${foreign.issuer}/introspect` }) },
  'has metadata without an introspection endpoint': (foreign) => { foreign.metadata = json({ issuer: foreign.issuer }) },
  'has an introspection endpoint that is no URL': (foreign) => { foreign.metadata = json({ issuer: foreign.issuer, introspection_endpoint: '/introspect' }) },
  // 127.0.0.2 is this computer too, but no name that a browser or we take for it.
  'has an introspection endpoint without TLS': (foreign) => { foreign.metadata = json({ issuer: foreign.issuer, introspection_endpoint: `${foreign.issuer.replace('localhost', '127.0.0.2')}/introspect` }) },
  'has metadata that are null': (foreign) => { foreign.metadata = json(null) },
  'has a page for metadata': (foreign) => { foreign.metadata = html(200) },
  'has no metadata': (foreign) => { foreign.metadata = json({ issuer: foreign.issuer, introspection_endpoint: `${foreign.issuer}/introspect` }, 404) },
  'has its metadata elsewhere': (foreign, elsewhere) => {
    elsewhere.metadata = foreign.metadata
    foreign.metadata = (_request, response) => { response.writeHead(302, { location: `${elsewhere.issuer}/.well-known/oauth-authorization-server` }).end() }
  }
}

t.test('an authorization server that fails is 503 with Retry-After, never 401; the log says why; and nobody restarts anything', async (t) => {
  const token = 'opaque-token'
  const basic = Buffer.from(['files:server', SECRET].map((text) => new URLSearchParams([['', text]]).toString().slice(1)).join(':')).toString('base64')
  for (const [title, fail] of Object.entries(FAILURES)) {
    const [foreign, elsewhere] = [await startForeign(t), await startForeign(t)]
    elsewhere.introspection = foreign.introspection
    const { metadata, introspection } = foreign
    const here = await startGuard(t, foreign.issuer, { origin: foreign.files, cacheLifetime: 60 })

    await fail(foreign, elsewhere)
    const response = await here.call(token)
    t.equal(response.status, 503, title)
    t.equal(response.headers.get('retry-after'), '5', title)
    t.equal(response.headers.get('www-authenticate'), null, title)
    t.equal(response.headers.get('access-control-allow-origin'), '*', title)
    t.strictSame(await response.json(), { error: 'temporarily_unavailable', error_description: 'The authorization server does not confirm tokens at present.' }, title)
    const failures = here.lines.filter((line) => line.includes('"reason":"introspection_failed"'))
    t.equal(failures.length, 1, title)
    t.match(JSON.parse(failures[0]!), { level: 50, msg: 'oauth: temporarily_unavailable', err: { message: /\w/ } }, title)
    t.strictSame(here.events, [], 'nothing is said about the token')
    t.strictSame(elsewhere.asked, [], `${title}: the secret goes nowhere else`)

    Object.assign(foreign, { metadata, introspection })
    if (title === 'is down') await foreign.start()
    if (!t.equal(await here.outcome(token), '200 alice', `${title}, and then works again`)) t.comment(here.lines.join('\n'))
    const told = here.lines.filter((line) => [token, SECRET, encodeURIComponent(SECRET), basic].some((secret) => line.includes(secret)))
    t.strictSame(told, [], `${title}: no log line holds the token or the secret`)
  }
})

t.test('an authorization server that does not answer is 503 after five seconds, whether it is silent from the start or halfway', async (t) => {
  // fetch() forgets its signal once the answer has begun, if garbage is collected meanwhile: so it is, here.
  setFlagsFromString('--expose-gc')
  const collecting = setInterval(runInNewContext('gc') as () => void, 100)
  t.teardown(() => clearInterval(collecting))
  await Promise.all([
    async () => await timed((foreign) => { foreign.introspection = () => {} }),
    async () => await timed((foreign) => { foreign.introspection = (_request, response) => { response.write('{"active":true') } }),
    async () => await timed((foreign) => { foreign.metadata = () => {} })
  ].map(async (run) => await run()))
  async function timed (fail: (foreign: Foreign) => void): Promise<void> {
    const foreign = await startForeign(t)
    const { metadata, introspection } = foreign
    const here = await startGuard(t, foreign.issuer, { origin: foreign.files })
    fail(foreign)
    const startedAt = performance.now()
    const response = await here.call('opaque-token', '/mcp', { signal: AbortSignal.timeout(20_000) })
    const took = performance.now() - startedAt
    t.equal(response.status, 503)
    t.equal(response.headers.get('retry-after'), '5')
    t.ok(took > 4900 && took < 9000, `${Math.round(took)} ms`)
    t.match(here.lines.join(''), /"reason":"introspection_failed"/)
    t.match(here.lines.join(''), /timeout/)
    Object.assign(foreign, { metadata, introspection })
    t.equal(await here.outcome('opaque-token'), '200 alice')
  }
})

t.test('it finds an authorization server that has moved its introspection endpoint meanwhile', async (t) => {
  const foreign = await startForeign(t)
  const here = await startGuard(t, foreign.issuer, { origin: foreign.files })
  t.equal(await here.outcome('opaque'), '200 alice')
  foreign.metadata = json({ issuer: foreign.issuer, introspection_endpoint: `${foreign.issuer}/v2/introspect/?tenant=acme` })
  foreign.introspection = ({ url = '' }, response, body) => url === '/v2/introspect/?tenant=acme' ? json(foreign.good)(undefined as never, response, body) : json({}, 404)(undefined as never, response, body)
  t.equal(await here.outcome('opaque'), '503')
  t.equal(await here.outcome('opaque'), '200 alice')
})

t.test('an issuer with a path is found where RFC 8414 §3 says', async (t) => {
  const [issuer, origin] = [`${await address()}/auth`, await address()]
  const { app } = await startServer(t, issuer, [`${origin}/mcp`])
  const { outcome } = await startGuard(t, issuer, { origin })
  t.equal(await outcome(await mintToken(app, { userId: 'alice', scopes: ['read'] })), '200 alice')
})

t.test('our authorization server without its store, with another secret or away is 503; and no log line of either holds a token', async (t) => {
  const store = sqliteStore({ path: join(folder(), 'tokens.db') })
  const find = store.findByTokenHash.bind(store)
  let isDown = false
  store.findByTokenHash = async (hash) => {
    if (isDown) throw new StoreUnavailableError(new Error('disk on fire'))
    return await find(hash)
  }
  const { there, here } = await startBoth(t, { server: { store } })
  const token = await mintToken(there.app, { userId: 'alice', scopes: ['read'] })
  t.equal(await here.outcome(token), '200 alice')
  isDown = true
  t.equal(await here.outcome(token), '503')
  isDown = false
  t.equal(await here.outcome(token), '200 alice')

  const wrong = await startGuard(t, there.issuer, { clientSecret: 'guessed' })
  t.equal(await wrong.outcome(token), '503')
  t.match(wrong.lines.join(''), /introspect answered 401/)
  t.match(there.lines.join(''), /"reason":"client_secret_mismatch"/, 'the other end knows more')
  t.equal(await here.outcome(token), '200 alice')

  await there.app.close()
  t.equal(await here.outcome(token), '503')
  for (const secret of [token, SECRET, encodeURIComponent(SECRET), 'guessed']) {
    t.strictSame([...here.lines, ...wrong.lines, ...there.lines].filter((line) => line.includes(secret)), [])
  }
})

// Discovery, CORS, and what is refused at start.

t.test('every URL comes from origin, never from the Host of a request', async (t) => {
  const { here, there } = await startBoth(t, { guard: { resources: [{ path: '/mcp', name: 'Files', documentation: 'https://docs.example/files' }] } })
  const ask = async (path: string, method: string): Promise<{ challenge: string | undefined, body: string }> => await new Promise((resolve, reject) => {
    httpRequest(here.origin + path, { method, headers: { host: 'evil.example', 'x-forwarded-host': 'evil.example' } }, (response) => {
      let body = ''
      response.setEncoding('utf8').on('data', (text: string) => { body += text }).on('end', () => resolve({ challenge: response.headers['www-authenticate'], body }))
    }).on('error', reject).end()
  })
  t.equal((await ask('/mcp', 'POST')).challenge, `Bearer resource_metadata="${here.origin}/.well-known/oauth-protected-resource/mcp", scope="read"`)
  for (const path of ['/.well-known/oauth-protected-resource', '/.well-known/oauth-protected-resource/mcp']) {
    t.strictSame(JSON.parse((await ask(path, 'GET')).body), {
      resource: `${here.origin}/mcp`,
      authorization_servers: [there.issuer],
      bearer_methods_supported: ['header'],
      scopes_supported: ['read', 'write'],
      resource_name: 'Files',
      resource_documentation: 'https://docs.example/files'
    })
  }
})

t.test('the other well-known paths are 404 in JSON, whatever the app answers elsewhere', async (t) => {
  const { app } = newApp(t)
  await app.register(remoteGuard, { issuer: 'https://login.example', origin: 'https://files.example', clientId: 'x', clientSecret: 'x', scopes: ['read'] })
  app.setNotFoundHandler(async (_request, reply) => reply.type('text/html').send('<!doctype html>'))
  app.post('/mcp', { onRequest: app.oauth.protect() }, async () => 'ok')
  for (const path of ['oauth-authorization-server', 'oauth-authorization-server/mcp', 'openid-configuration', 'openid-configuration/mcp', 'oauth-protected-resource/other']) {
    const { statusCode, headers, body } = await app.inject(`/.well-known/${path}`)
    t.equal(statusCode, 404, path)
    t.match(headers['content-type'], 'application/json', path)
    t.equal(JSON.parse(body).error, 'not_found', path)
  }
  t.match((await app.inject('/elsewhere')).body, 'doctype', 'and nothing else is ours')
})

t.test('preflights, and answers for any origin without credentials, as with an authorization server in the same app', async (t) => {
  const { app } = newApp(t)
  await app.register(cors, { origin: true, credentials: true })
  const foreign = await startForeign(t)
  await app.register(remoteGuard, { issuer: foreign.issuer, origin: foreign.files, clientId: 'x', clientSecret: 'x', scopes: ['read'] })
  let reached = 0
  app.post('/mcp', { onRequest: app.oauth.protect() }, async () => ++reached)
  for (const url of ['/mcp', '/.well-known/oauth-protected-resource', '/.well-known/oauth-protected-resource/mcp', '/.well-known/oauth-authorization-server']) {
    const { statusCode, headers } = await app.inject({ method: 'OPTIONS', url, headers: { origin: 'https://app.example', 'access-control-request-method': 'POST', 'access-control-request-headers': 'authorization' } })
    t.equal(statusCode, 204, url)
    t.match(headers['access-control-allow-headers'], /Authorization, .*MCP-Protocol-Version.*Mcp-Session-Id/, url)
    t.match(headers['access-control-allow-methods'], /POST/, url)
    const answer = await app.inject({ method: url === '/mcp' ? 'POST' : 'GET', url, headers: { origin: 'https://app.example' } })
    for (const { headers: given } of [{ headers }, answer]) {
      t.equal(given['access-control-allow-origin'], '*', url)
      t.equal(given['access-control-expose-headers'], 'WWW-Authenticate, Mcp-Session-Id', url)
      t.notOk('access-control-allow-credentials' in given, url)
    }
  }
  t.equal(reached, 0)
  t.strictSame(foreign.asked, [], 'and nobody was asked about nothing')
})

const OPTIONS: RemoteGuardOptions = { issuer: 'https://login.example', origin: 'https://files.example', clientId: 'files', clientSecret: 'hush-hush', scopes: ['read', 'write'] }

async function bootError (app: FastifyInstance): Promise<{ code?: string, message: string }> {
  return await app.ready().then(() => ({ message: 'it boots' }), (error: Error) => error)
}

t.test('options that cannot work are named at start', async (t) => {
  const refused: Array<[changes: Record<string, unknown>, name: string, ...said: string[]]> = [
    [{ issuer: undefined }, 'issuer', 'https://login.example.com'],
    [{ issuer: 'http://login.example' }, 'issuer', 'http only for localhost'],
    [{ issuer: 'https://login.example/' }, 'issuer', 'without a trailing slash'],
    [{ issuer: 'login.example' }, 'issuer'],
    [{ origin: undefined }, 'origin', 'https://files.example.com'],
    [{ origin: 'http://files.example' }, 'origin'],
    [{ origin: 'https://files.example/mcp' }, 'origin', 'without a path'],
    [{ origin: 'https://files.example/' }, 'origin'],
    [{ clientId: undefined }, 'clientId', 'environment variable'],
    [{ clientId: '' }, 'clientId'],
    [{ clientSecret: undefined }, 'clientSecret', 'environment variable'],
    [{ clientSecret: '' }, 'clientSecret', 'environment variable'],
    [{ clientSecret: ['hush-hush'] }, 'clientSecret', 'got object'],
    [{ scopes: undefined }, 'scopes'],
    [{ scopes: [] }, 'scopes'],
    [{ scopes: 'read' }, 'scopes'],
    [{ scopes: ['read write'] }, 'scopes'],
    [{ scopes: ['re"ad'] }, 'scopes'],
    [{ scopes: { read: 'Read' } }, 'scopes'],
    [{ resources: [] }, 'resources'],
    [{ resources: ['/mcp'] }, 'resources[0]'],
    [{ resources: [{ url: 'https://files.example/mcp' }] }, 'resources', 'paths, since they are served here'],
    [{ resources: [{ path: 'mcp' }] }, 'resources[0].path'],
    [{ resources: [{ path: '/mcp', scopes: ['admin'] }] }, 'resources[0].scopes', 'read, write'],
    [{ resources: [{ path: '/mcp' }, { path: '/mcp' }] }, 'resources[1].path'],
    ...[-1, 1.5, 301, '60', null, Infinity, NaN].map((cacheLifetime): [Record<string, unknown>, string, string] => [{ cacheLifetime }, 'cacheLifetime', 'from 0 to 300']),
    [{ onEvent: 'log' }, 'onEvent'],
    [{ cacheLifetme: 60 }, 'cacheLifetme', 'an option that does not exist'],
    [{ keys: ['hush-hush'] }, 'keys']
  ]
  for (const [changes, name, ...said] of refused) {
    const { app } = newApp(t)
    app.register(remoteGuard, { ...OPTIONS, ...changes } as RemoteGuardOptions)
    const { code, message } = await bootError(app)
    t.equal(code, 'FST_MCP_OAUTH_INVALID_OPTION', `${JSON.stringify(changes)}: ${message}`)
    for (const text of [`Option ${name}: expected `, ...said]) t.ok(message.includes(text), `${message} – has: ${text}`)
    t.notOk(message.includes('hush-hush'), 'the secret is not told')
  }
  const { app } = newApp(t)
  app.register(remoteGuard, { ...OPTIONS, cacheLifetime: 300 })
  t.equal((await bootError(app)).message, 'it boots')
})

t.test('one app has one app.oauth: a second of either kind is refused, in either order, and so is a prefix', async (t) => {
  const local = (app: FastifyInstance): unknown => app.register(mcpOAuth, testOptions())
  const remote = (app: FastifyInstance): unknown => app.register(remoteGuard, OPTIONS)
  for (const [first, second] of [[local, remote], [remote, local], [remote, remote]] as const) {
    const { app } = newApp(t)
    first(app)
    second(app)
    const { code, message } = await bootError(app)
    t.equal(code, 'FST_MCP_OAUTH_ALREADY_REGISTERED', message)
    t.match(message, /app\.oauth is there already.*remoteGuard.*`resources`/)
  }
  const { app } = newApp(t)
  app.register(async (scope) => { await scope.register(remoteGuard, OPTIONS) }, { prefix: '/api' })
  t.match(await bootError(app), { code: 'FST_MCP_OAUTH_PREFIX', message: /without a prefix, got \/api/ })
})

t.test('app.oauth.tokens is with the authorization server, and says so', async (t) => {
  const { app } = newApp(t)
  await app.register(remoteGuard, OPTIONS)
  app.post('/mcp', { onRequest: app.oauth.protect() }, async () => 'ok')
  t.throws(() => app.oauth.tokens, { code: 'FST_MCP_OAUTH_NO_TOKENS', message: /authorization server/ })
  t.throws(() => app.oauth.protect({ scopes: ['admin'] }), { code: 'FST_MCP_OAUTH_INVALID_PROTECT' })
})

// The authorization server's side.

t.test('protect() where all resources are elsewhere fails at start, and says why', async (t) => {
  const { app } = newApp(t)
  app.register(mcpOAuth, testOptions({ resources: [{ url: 'https://files.example/mcp' }] }))
  app.register(async (scope) => { scope.post('/mcp', { onRequest: scope.oauth.protect() }, async () => 'ok') })
  t.match(await bootError(app), { code: 'FST_MCP_OAUTH_INVALID_PROTECT', message: /no resource has a path: those with a url are guarded by the servers that serve them/ })
})

t.test('the metadata of a resource are served where it is, and not by its authorization server', async (t) => {
  const { there } = await startBoth(t)
  for (const path of ['oauth-protected-resource', 'oauth-protected-resource/mcp']) {
    const response = await fetch(`${there.issuer}/.well-known/${path}`)
    t.equal(response.status, 404, path)
    t.match(await response.json(), { error: 'not_found' })
  }
  const metadata = await (await fetch(`${there.issuer}/.well-known/oauth-authorization-server`)).json() as Record<string, unknown>
  t.match(metadata, { issuer: there.issuer, introspection_endpoint: `${there.issuer}/oauth/introspect` })
  t.equal((await fetch(`${there.issuer}/.well-known/openid-configuration`)).status, 404, 'nobody is signed in here')
})

t.test('resources here and elsewhere in one authorization server: each guard takes its own tokens only', async (t) => {
  const [issuer, origin] = [await address(), await address()]
  const { app, lines } = newApp(t)
  const resources = [{ url: `${origin}/mcp` }, { path: '/mcp', name: 'Notes' }]
  await app.register(mcpOAuth, testOptions({ issuer, resources, clients: [{ ...FILES_SERVER, introspects: [`${origin}/mcp`] }] }))
  app.post('/mcp', { onRequest: app.oauth.protect() }, async ({ oauth }) => oauth!.userId)
  await app.listen({ port: portOf(issuer) })
  t.notMatch(lines.join(''), /no route is served/)
  const { outcome } = await startGuard(t, issuer, { origin })
  const local = async (token: string): Promise<number> => (await fetch(`${issuer}/mcp`, { method: 'POST', headers: bearer(token) })).status
  const connect = async (resource: string): Promise<string> => (await connectClient(app, { headers: { 'x-user': 'alice' }, resource })).accessToken

  const [forFiles, forNotes] = [await connect(`${origin}/mcp`), await connect(`${issuer}/mcp`)]
  t.strictSame([await outcome(forFiles), await local(forFiles)], ['200 alice', 401])
  t.strictSame([await outcome(forNotes), await local(forNotes)], ['401', 200])
  for (const path of ['oauth-protected-resource', 'oauth-protected-resource/mcp']) {
    t.match(await (await fetch(`${issuer}/.well-known/${path}`)).json(), { resource: `${issuer}/mcp`, resource_name: 'Notes' })
  }
})

t.test('the consent page says to which server access is given: by its name, or else by its host', async (t) => {
  const { app } = newApp(t)
  await app.register(mcpOAuth, testOptions({ issuer: 'https://login.example', resources: [{ path: '/mcp', name: 'Notes' }, { url: 'https://files.example/mcp' }, { url: 'https://mail.example/mcp', name: 'Mail' }] }))
  app.post('/mcp', { onRequest: app.oauth.protect() }, async () => 'ok')
  const { clientId, authorize } = dance(app)
  const client = await clientId()
  for (const [resource, name] of [['https://login.example/mcp', 'Notes'], ['https://files.example/mcp', 'files.example'], ['https://mail.example/mcp', 'Mail']] as const) {
    t.match((await authorize(client, { resource })).body, `to use <bdi>${name}</bdi>?`)
  }
})
