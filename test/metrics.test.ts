import Fastify, { type FastifyInstance, type InjectOptions } from 'fastify'
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { channel, subscribe, unsubscribe } from 'node:diagnostics_channel'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import t, { type Test } from 'tap'
import mcpOAuth, { StoreUnavailableError, type McpOAuthOptions, type Measurement, type TokenStore } from '../dist/index.js'
import remoteGuard from '../dist/remote.js'
import { sqliteStore } from '../dist/store/sqlite.js'
import { connectClient, mintToken } from '../dist/testing.js'
import { CALLBACK, FORM, bearer, dance, fieldOf, folder, form, replace, testApp, testOptions } from './app.js'
import { freePort } from './scripts/free-port.js'

const CHANNEL = 'fastify-mcp-oauth:request'
const SECRET = 's'.repeat(43)
const FILES_SERVER = { client_id: 'files', client_secret: SECRET }

/** What is published until the test ends; `take()` empties it. */
function listen (t: Test): { take: () => Measurement[] } {
  let published: unknown[] = []
  const subscriber = (message: unknown): void => { published.push(message) }
  subscribe(CHANNEL, subscriber)
  t.teardown(() => unsubscribe(CHANNEL, subscriber))
  return {
    take () {
      const taken = published as Measurement[]
      published = []
      return taken
    }
  }
}

/** Everything that has an endpoint. */
async function wholeApp (t: Test, changes: Partial<McpOAuthOptions> = {}): Promise<FastifyInstance> {
  return await testApp(t, {
    store: sqliteStore({ path: ':memory:' }),
    clients: [{ clientId: 'files', clientName: 'Files', clientSecretHashes: [createHash('sha256').update(SECRET).digest('base64url')], introspects: [`${changes.issuer ?? 'http://localhost:3000'}/mcp`] }],
    findUser: async (id) => ({ id }),
    userinfo: async () => ({ name: 'Alice' }),
    rootAliases: true,
    ...changes
  })
}

const post = (url: string, fields: Record<string, string>, headers: Record<string, string> = {}): InjectOptions =>
  ({ method: 'POST', url, headers: { ...FORM, ...headers }, payload: form(fields) })

t.test('every answer of an endpoint is one measurement, with its endpoint, status and time and nothing else', async (t) => {
  const app = await wholeApp(t)
  const { register, query, code, codeVerifier } = dance(app)
  const { client_id: client } = (await register()).json<{ client_id: string }>()
  const token = await mintToken(app, { userId: 'alice', scopes: ['read'] })
  const alice = { 'x-user': 'alice' }
  const redemption = { grant_type: 'authorization_code', client_id: client, redirect_uri: CALLBACK, code_verifier: codeVerifier }
  const consent = await app.inject({ url: `/oauth/authorize?${form(query(client))}`, headers: alice })
  const { etag } = (await app.inject('/.well-known/oauth-authorization-server')).headers
  const measured = listen(t)

  const cases: Record<Measurement['endpoint'], Array<[number, InjectOptions | string]>> = {
    guard: [],
    metadata: [
      [200, '/.well-known/oauth-authorization-server'],
      [304, { url: '/.well-known/oauth-authorization-server', headers: { 'if-none-match': etag } }],
      [200, { method: 'HEAD', url: '/.well-known/oauth-authorization-server' }],
      [200, '/.well-known/oauth-protected-resource'],
      [200, '/.well-known/oauth-protected-resource/mcp'],
      [404, '/.well-known/oauth-nonsense'],
      [404, '/.well-known/openid-configuration'],
      [404, '/mcp/.well-known/openid-configuration'],
      [204, { method: 'OPTIONS', url: '/.well-known/oauth-protected-resource' }]
    ],
    register: [
      [201, { method: 'POST', url: '/oauth/register', payload: { redirect_uris: [CALLBACK] } }],
      [201, { method: 'POST', url: '/register', payload: { redirect_uris: [CALLBACK] } }],
      [400, { method: 'POST', url: '/oauth/register', payload: {} }],
      [413, { method: 'POST', url: '/oauth/register', payload: { client_name: 'x'.repeat(20_000) } }],
      [415, post('/oauth/register', {})],
      [204, { method: 'OPTIONS', url: '/oauth/register' }]
    ],
    authorize: [
      [200, { url: `/oauth/authorize?${form(query(client))}`, headers: alice }],
      [400, '/oauth/authorize'],
      [400, '/authorize'],
      [303, { url: `/oauth/authorize?${form(query(client, { response_type: 'token' }))}`, headers: alice }],
      [303, `/oauth/authorize?${form(query(client))}`],
      [303, post('/oauth/authorize', { ticket: fieldOf(consent.body, 'ticket'), decision: 'approve', scope: 'read' }, alice)],
      [303, post('/oauth/authorize', { ticket: fieldOf(consent.body, 'ticket'), decision: 'deny' }, alice)],
      [403, post('/oauth/authorize', {})]
    ],
    token: [
      [200, post('/oauth/token', { ...redemption, code: await code(client) })],
      [200, post('/token', { ...redemption, code: await code(client) })],
      [400, post('/oauth/token', redemption)],
      [401, post('/oauth/token', { client_id: 'nobody' })],
      [415, { method: 'POST', url: '/oauth/token', payload: {} }]
    ],
    revoke: [
      [200, post('/oauth/revoke', { client_id: client, token: 'nonsense' })],
      [400, post('/oauth/revoke', { client_id: client })],
      [401, post('/oauth/revoke', {})]
    ],
    introspect: [
      [200, post('/oauth/introspect', { ...FILES_SERVER, token })],
      [400, post('/oauth/introspect', { client_id: client, token })],
      [401, post('/oauth/introspect', { ...FILES_SERVER, client_secret: 'wrong', token })]
    ],
    userinfo: [
      [200, { url: '/oauth/userinfo', headers: bearer(token) }],
      [401, '/oauth/userinfo']
    ],
    connected_apps: [
      [200, { url: '/my/connected_apps', headers: alice }],
      [200, { url: '/my/connected_apps', headers: { ...alice, accept: 'application/json' } }],
      [303, '/my/connected_apps'],
      [401, { url: '/my/connected_apps', headers: { accept: 'application/json' } }],
      [403, post('/my/connected_apps', {}, alice)]
    ]
  }
  // `code()` above asked /oauth/authorize.
  measured.take()
  for (const [endpoint, table] of Object.entries(cases)) {
    for (const [statusCode, options] of table) {
      const response = await app.inject(options)
      t.equal(response.statusCode, statusCode, JSON.stringify(options))
      const [measurement, ...others] = measured.take()
      const { duration, ...rest } = measurement ?? { duration: NaN }
      t.strictSame(rest, { endpoint, statusCode }, `${endpoint} ${statusCode}`)
      t.ok(duration >= 0 && duration < 60_000, `${duration} ms`)
      t.strictSame(others, [], 'one for each')
    }
  }
})

t.test('so are refusals by a limit and failures, of the store or of the app', async (t) => {
  let down = false
  const store = new Proxy(sqliteStore({ path: ':memory:' }), {
    get (target, name) {
      const value: unknown = Reflect.get(target, name)
      if (typeof value !== 'function') return value
      return (...args: unknown[]) => {
        if (down && name !== 'close') throw new StoreUnavailableError(new Error('down'))
        return value.apply(target, args)
      }
    }
  }) as TokenStore
  let failing = false
  const app = await wholeApp(t, {
    store,
    rateLimit: { register: { max: 1 }, token: { max: 3 }, authorize: { max: 4 } },
    currentUser: () => {
      if (failing) throw new Error('the session is gone')
      return { id: 'alice' }
    }
  })
  const token = await mintToken(app, { userId: 'alice', scopes: ['read'] })
  const { clientId, authorize, code, redeem } = dance(app)
  const client = await clientId()
  const issued = await code(client)
  const measured = listen(t)
  const told = (): unknown[] => measured.take().map(({ endpoint, statusCode }) => [endpoint, statusCode])

  down = true
  await redeem(client, issued)
  t.strictSame(told(), [['token', 503]])
  await app.inject(post('/oauth/revoke', { client_id: client, token }))
  t.strictSame(told(), [['revoke', 503]])
  await app.inject(post('/oauth/introspect', { ...FILES_SERVER, token }))
  t.strictSame(told(), [['introspect', 503]])
  await app.inject({ url: '/oauth/userinfo', headers: bearer(token) })
  t.strictSame(told(), [['userinfo', 503]])
  await app.inject({ url: '/my/connected_apps' })
  t.strictSame(told(), [['connected_apps', 503]])
  await app.inject({ method: 'POST', url: '/mcp', headers: bearer(token) })
  t.strictSame(told(), [['guard', 503]])
  down = false

  failing = true
  await authorize(client)
  await app.inject('/my/connected_apps')
  t.strictSame(told(), [['authorize', 500], ['connected_apps', 500]])
  failing = false

  for (const url of ['/oauth/register', '/oauth/token', '/oauth/revoke', '/oauth/authorize', '/my/connected_apps']) {
    for (let request = 0; request < 5; request++) await app.inject({ method: url.startsWith('/my') ? 'GET' : 'POST', url })
  }
  const limited = measured.take().filter(({ statusCode }) => statusCode === 429).map(({ endpoint }) => endpoint)
  t.strictSame([...new Set(limited)], ['register', 'token', 'revoke', 'authorize', 'connected_apps'])
})

t.test('the guard is measured by itself: its own answer and its own time, not those of the handler', async (t) => {
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(mcpOAuth, testOptions({
    store: sqliteStore({ path: ':memory:' }),
    fallbackToken: async (token) => {
      await sleep(50)
      return token === 'slow' ? { userId: 'alice', scopes: ['read'] } : null
    }
  }))
  const { protect } = app.oauth
  app.post('/mcp', { onRequest: protect({ scopes: ['read'] }) }, async () => {
    await sleep(400)
    throw new Error('the handler fails')
  })
  app.post('/write', { onRequest: protect({ scopes: ['write'] }) }, async () => 'written')
  app.post('/twice', { onRequest: [protect(), protect({ scopes: ['write'] })] }, async () => 'written')
  app.post('/later', { onRequest: protect() }, async ({ oauth }) => { oauth!.require('write') })
  await app.ready()
  const token = await mintToken(app, { userId: 'alice', scopes: ['read'] })
  const measured = listen(t)
  const call = async (url: string, headers: Record<string, string>) => {
    const { statusCode } = await app.inject({ method: 'POST', url, headers })
    const taken = measured.take()
    return { answers: [statusCode, ...taken.map(({ duration: _, ...rest }) => rest)], duration: taken[0]!.duration }
  }
  const guard = (statusCode: number): object => ({ endpoint: 'guard', statusCode })

  const passed = await call('/mcp', bearer(token))
  t.strictSame(passed.answers, [500, guard(200)])
  t.ok(passed.duration < 350, `${passed.duration} ms`)
  const slow = await call('/mcp', bearer('slow'))
  t.strictSame(slow.answers, [500, guard(200)])
  t.ok(slow.duration >= 45, `${slow.duration} ms, with what the app is asked`)
  t.strictSame((await call('/mcp', {})).answers, [401, guard(401)])
  t.strictSame((await call('/mcp', bearer('nobody'))).answers, [401, guard(401)])
  t.strictSame((await call('/write', bearer(token))).answers, [403, guard(403)])
  t.strictSame((await call('/twice', bearer(token))).answers, [403, guard(200), guard(403)], 'each of several')
  t.strictSame((await call('/later', bearer(token))).answers, [403, guard(200)], 'what a handler requires is the handler’s answer')
})

t.test('what is not an endpoint is not measured', async (t) => {
  const app = await wholeApp(t)
  const measured = listen(t)
  const { body } = await app.inject('/oauth/authorize')
  measured.take()
  for (const [url, statusCode] of [['/', 404], ['/nowhere', 404], ['/oauth', 404], ['/oauth/nowhere', 404], ['/oauth/token', 404], ['/.well-known/security.txt', 404], [/href="([^"]*styles[^"]*)"/.exec(body)![1]!, 200]] as const) {
    t.equal((await app.inject(url)).statusCode, statusCode, url)
    t.strictSame(measured.take(), [], url)
  }
})

t.test('where nobody listens, nothing is published and no clock is read', async (t) => {
  const app = Fastify()
  t.teardown(() => app.close())
  // Fastify reads the clock too; whose a reading is, its caller tells.
  let readings = 0
  const reading = (): number => {
    if (/\/dist\/http\/(metrics|guard)\./.test(new Error().stack!.split('\n')[3]!)) readings++
    return 0
  }
  const now = (): number => reading()
  replace(t, performance, 'now', now)
  let published = 0
  Object.defineProperty(channel(CHANNEL), 'publish', { configurable: true, value: () => { published++ } })
  t.teardown(() => { delete (channel(CHANNEL) as { publish?: unknown }).publish })

  await app.register(mcpOAuth, testOptions({ store: sqliteStore({ path: ':memory:' }) }))
  app.post('/mcp', { onRequest: app.oauth.protect() }, async () => 'ok')
  const token = await mintToken(app, { userId: 'alice', scopes: ['read'] })
  const ask = async (): Promise<void> => {
    t.equal((await app.inject('/.well-known/oauth-authorization-server')).statusCode, 200)
    t.equal((await app.inject({ method: 'POST', url: '/mcp', headers: bearer(token) })).statusCode, 200)
    t.equal((await app.inject({ method: 'POST', url: '/mcp' })).statusCode, 401)
  }
  await ask()
  t.strictSame({ readings, published }, { readings: 0, published: 0 })
  listen(t)
  await ask()
  t.strictSame({ readings, published }, { readings: 2 + 2 + 2, published: 3 }, 'where somebody does, they are')
})

t.test('a subscriber comes and goes while the app runs, and several hear the same', async (t) => {
  const app = await wholeApp(t)
  const heard: string[] = []
  const one = (message: unknown): void => { heard.push(`one ${(message as Measurement).statusCode}`) }
  const two = (message: unknown): void => { heard.push(`two ${(message as Measurement).statusCode}`) }
  await app.inject('/.well-known/oauth-authorization-server')
  subscribe(CHANNEL, one)
  await app.inject('/.well-known/oauth-authorization-server')
  subscribe(CHANNEL, two)
  await app.inject('/.well-known/openid-configuration')
  unsubscribe(CHANNEL, one)
  await app.inject({ method: 'POST', url: '/mcp' })
  unsubscribe(CHANNEL, two)
  await app.inject({ method: 'POST', url: '/mcp' })
  t.strictSame(heard, ['one 200', 'one 404', 'two 404', 'two 401'])
})

t.test('several apps of one process publish on the one channel, a server that only guards too', async (t) => {
  const issuer = `http://localhost:${await freePort()}`
  const login = await wholeApp(t, { issuer })
  const other = await testApp(t, { store: sqliteStore({ path: ':memory:' }) })
  const files = Fastify()
  t.teardown(() => files.close())
  await files.register(remoteGuard, { issuer, origin: issuer, clientId: 'files', clientSecret: SECRET, scopes: ['read', 'write'] })
  files.post('/mcp', { onRequest: files.oauth.protect({ scopes: ['read'] }) }, async () => 'ok')
  await login.listen({ port: Number(new URL(issuer).port), host: 'localhost' })
  const { accessToken } = await connectClient(login, { headers: { 'x-user': 'alice' } })

  const measured = listen(t)
  const told = (): string[] => measured.take().map(({ endpoint, statusCode }) => `${endpoint} ${statusCode}`)
  await Promise.all([login.inject({ method: 'POST', url: '/mcp' }), other.inject({ method: 'POST', url: '/oauth/register', payload: {} })])
  t.strictSame(told().sort(), ['guard 401', 'register 400'])
  t.equal((await files.inject({ method: 'POST', url: '/mcp', headers: bearer(accessToken) })).statusCode, 200)
  t.strictSame(told(), ['metadata 200', 'introspect 200', 'guard 200'], 'over the wire as well')
  await files.inject('/.well-known/oauth-protected-resource')
  await files.inject('/.well-known/oauth-nonsense')
  t.strictSame(told(), ['metadata 200', 'metadata 404'])
})

t.test('what a subscriber throws changes no answer: Node makes an uncaught exception of it', async (t) => {
  const file = join(folder(), 'throwing.js')
  const from = (path: string): string => JSON.stringify(new URL(`../${path}`, import.meta.url).href)
  const run = async (handler: string): Promise<{ stdout: string, stderr: string }> => {
    writeFileSync(file, `
      import Fastify from ${from('node_modules/fastify/fastify.js')}
      import { subscribe } from 'node:diagnostics_channel'
      import mcpOAuth from ${from('dist/index.js')}
      import { sqliteStore } from ${from('dist/store/sqlite.js')}

      const errors = []
      ${handler}
      subscribe('${CHANNEL}', () => { throw new Error('the subscriber broke') })
      const app = Fastify()
      await app.register(mcpOAuth, {
        issuer: 'http://localhost:3000', keys: ['k'.repeat(43)], store: sqliteStore({ path: ':memory:' }), scopes: { read: 'Read' }, currentUser: () => null, loginUrl: '/login'
      })
      app.get('/mcp', { onRequest: app.oauth.protect() }, async () => 'handled')
      const { token } = await app.oauth.tokens.create({ userId: 'alice', name: 'test', scopes: ['read'] })
      const answers = []
      for (const authorization of ['', 'Bearer ' + token]) answers.push((await app.inject({ url: '/mcp', headers: { authorization } })).body)
      answers.push((await app.inject('/.well-known/oauth-authorization-server')).json().issuer)
      console.log(JSON.stringify({ answers, errors }))
      await app.close()
    `)
    return await promisify(execFile)('env', ['-u', 'NODE_OPTIONS', process.execPath, file], { env: { PATH: process.env.PATH } }).catch((error: Awaited<ReturnType<typeof run>>) => error)
  }
  writeFileSync(join(file, '../package.json'), '{ "type": "module" }')
  const { stdout } = await run("process.on('uncaughtException', ({ message }) => { errors.push(message) })")
  t.match(JSON.parse(stdout), { answers: [/"invalid_token"/, 'handled', 'http://localhost:3000'], errors: Array(3).fill('the subscriber broke') })
  const ended = await run('')
  t.match(ended, { stdout: '', stderr: /the subscriber broke/ }, 'which ends a process that does not catch it')
})
