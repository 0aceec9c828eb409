import cors, { type FastifyCorsOptions } from '@fastify/cors'
import formbody from '@fastify/formbody'
import helmet from '@fastify/helmet'
import rateLimit from '@fastify/rate-limit'
import view from '@fastify/view'
import { Eta } from 'eta'
import Fastify, { type FastifyError, type FastifyInstance, type FastifyReply, type FastifyServerOptions, type InjectOptions } from 'fastify'
import { copyFileSync, rmSync, writeFileSync } from 'node:fs'
import { get, request as httpRequest } from 'node:http'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import mcpOAuth, { type McpOAuthOptions } from '../dist/index.js'
import { sqliteStore } from '../dist/store/sqlite.js'
import { connectClient } from '../dist/testing.js'
import { CALLBACK, FORM, ISSUER, bearer, dance, fieldOf, folder, form, testApp, testOptions } from './app.js'

type Response = Awaited<ReturnType<FastifyInstance['inject']>>

interface Host {
  server?: FastifyServerOptions
  options?: Partial<McpOAuthOptions>
  /** What the host does before the plugin, … */
  before?: (app: FastifyInstance) => unknown
  /** … and after it. */
  after?: (app: FastifyInstance) => unknown
  /** The guarded routes. */
  guarded?: (app: FastifyInstance) => unknown
}

/** A host, with the plugin or as it was before there was one. */
async function boot (t: Test, { server = {}, options = {}, before, after, guarded = guardedMcp }: Host, withPlugin = true): Promise<FastifyInstance> {
  const app = Fastify(server)
  t.teardown(() => app.close())
  await before?.(app)
  if (withPlugin) await app.register(mcpOAuth, testOptions({ store: sqliteStore({ path: join(testFolder(t), 'tokens.db') }), ...options }))
  await after?.(app)
  if (withPlugin) await guarded(app)
  await app.ready()
  return app
}

/** The host with the plugin, after its answers to the probes were compared with those of the host alone. */
async function bootUnchanged (t: Test, host: Host, probes: Array<string | InjectOptions>): Promise<FastifyInstance> {
  const [alone, app] = [await boot(t, host, false), await boot(t, host)]
  const expected: Record<string, object> = {}
  const actual: Record<string, object> = {}
  for (const [index, probe] of probes.entries()) {
    const name = `${index} ${JSON.stringify(probe)}`
    expected[name] = answer(await alone.inject(probe))
    actual[name] = answer(await app.inject(probe))
  }
  t.strictSame(actual, expected, 'the host answers as it did without the plugin')
  return app
}

function answer ({ statusCode, headers, body }: Response): object {
  const { date, 'x-ratelimit-reset': reset, 'retry-after': after, ...others } = headers
  return { statusCode, headers: others, body }
}

function guardedMcp (app: FastifyInstance): void {
  app.post('/mcp', { onRequest: app.oauth.protect({ scopes: ['read'] }) }, async ({ oauth }) => ({ userId: oauth!.userId }))
}

/** Registers, consents, redeems, calls, is listed, is disconnected. */
async function danceCompletes (t: Test, app: FastifyInstance): Promise<void> {
  const { connect } = dance(app)
  const { clientId, token, scope } = await connect()
  t.equal(scope, 'read write', 'the dance ends with a token')
  const call = async () => await app.inject({ method: 'POST', url: '/mcp', headers: bearer(token) })
  const called = await call()
  t.equal(called.statusCode, 200, 'the token opens the guarded route')
  t.match(called.body, '"userId":"alice"')

  const page = { url: '/my/connected_apps', headers: { 'x-user': 'alice', accept: 'application/json' } }
  const { ticket, apps } = (await app.inject(page)).json<{ ticket: string, apps: Array<{ name: string }> }>()
  t.match(apps, [{ name: 'Test client' }], 'the connected-apps page lists the client')
  const disconnected = await app.inject({ ...page, method: 'POST', headers: { ...page.headers, ...FORM }, payload: form({ ticket, client: clientId }) })
  t.strictSame(disconnected.json(), { disconnected: true })
  t.equal((await call()).statusCode, 401, 'disconnecting ends the token')
}

function testFolder (t: Test): string {
  const path = folder()
  t.teardown(() => rmSync(path, { recursive: true, force: true }))
  return path
}

function isJsonError (t: Test, response: Response, statusCode: number, error: string, message: string): void {
  t.equal(response.statusCode, statusCode, `${message}: ${statusCode}`)
  t.match(String(response.headers['content-type']), /^application\/json/, `${message}: JSON`)
  t.equal(parsed(response.body)['error'], error, `${message}: ${error}`)
}

function parsed (body: string): Record<string, unknown> {
  try {
    return JSON.parse(body) as Record<string, unknown>
  } catch {
    return { body }
  }
}

function isPage (t: Test, response: Response, statusCode: number, message: string): void {
  t.equal(response.statusCode, statusCode, `${message}: ${statusCode}`)
  t.match(String(response.headers['content-type']), /^text\/html/, `${message}: a page`)
  t.match(response.headers['content-security-policy'], "frame-ancestors 'none'", `${message}: ours`)
}

const hostRoutes = (app: FastifyInstance): void => {
  app.get('/hello', async () => ({ hello: 'host' }))
  app.post('/echo', async ({ body, query }) => ({ body, query }))
  app.get('/fail', async () => { throw Object.assign(new Error('host trouble'), { statusCode: 409 }) })
}
const FORM_PROBE: InjectOptions = { method: 'POST', url: '/echo?a=1&a=2', headers: FORM, payload: 'x=1&x=2&y=' }
const JSON_PROBE: InjectOptions = { method: 'POST', url: '/echo?a=1', headers: { 'content-type': 'application/json' }, payload: '{"x":1}' }
const BROKEN_JSON_PROBE: InjectOptions = { ...JSON_PROBE, payload: '{"x":' }
const PROBES = ['/hello', '/hello?x=1', '/fail', '/nowhere', FORM_PROBE, JSON_PROBE, BROKEN_JSON_PROBE, { method: 'DELETE' as const, url: '/hello' }, { method: 'OPTIONS' as const, url: '/hello' }]

t.test('a host keeps everything it is not told to give: no parser, decorator or handler leaks into it', async (t) => {
  const app = await bootUnchanged(t, { before: hostRoutes }, PROBES)
  t.notOk(app.hasContentTypeParser('application/x-www-form-urlencoded'), 'no form parser')
  for (const name of ['rateLimit', 'createRateLimit', 'view', 'oauthView']) t.notOk(app.hasDecorator(name), `no app.${name}`)
  for (const name of ['view', 'viewAsync', 'oauthView', 'oauthViewAsync', 'locals']) t.notOk(app.hasReplyDecorator(name), `no reply.${name}`)
  t.notOk(app.hasRequestDecorator('corsPreflightEnabled'))
  await danceCompletes(t, app)
})

t.test('request.oauth is null wherever no guard accepted a token', async (t) => {
  const seen: unknown[] = []
  const app = await boot(t, {
    before: (app) => app.get('/before', async (request) => ({ oauth: (request as { oauth?: unknown }).oauth })),
    after: (app) => {
      app.get('/unguarded', async ({ oauth }) => ({ oauth }))
      app.setNotFoundHandler(async ({ oauth }) => ({ oauth }))
      app.addHook('onResponse', async ({ oauth, routeOptions }) => { if (routeOptions.url === '/mcp') seen.push(oauth) })
    }
  })
  const token = await app.oauth.tokens.create({ userId: 'alice', name: 'test', scopes: ['write'] })
  for (const url of ['/before', '/unguarded', '/nowhere']) {
    t.strictSame((await app.inject({ url, headers: bearer(token.token) })).json(), { oauth: null }, url)
  }
  await app.inject({ method: 'POST', url: '/mcp' })
  await app.inject({ method: 'POST', url: '/mcp', headers: bearer('oat_wrong') })
  t.equal((await app.inject({ method: 'POST', url: '/mcp', headers: bearer(token.token) })).statusCode, 403)
  t.strictSame(seen, [null, null, null], 'and null after a guard refused')
})

t.test('the host keeps its own body parsers, and the endpoints read bodies their own way', async (t) => {
  const parsers = async (app: FastifyInstance): Promise<void> => {
    await app.register(formbody, { parser: (body: string) => ({ hostForm: body.toUpperCase() }) })
    app.removeContentTypeParser('application/json')
    app.addContentTypeParser('application/json', { parseAs: 'string' }, (_request, body, done) => done(null, { hostJson: body }))
    app.addContentTypeParser('*', { parseAs: 'string' }, (_request, body, done) => done(null, { hostAny: body }))
  }
  const xml: InjectOptions = { method: 'POST', url: '/echo', headers: { 'content-type': 'application/xml' }, payload: '<a/>' }
  for (const [when, host] of Object.entries({ before: { before: parsers, after: hostRoutes }, after: { before: hostRoutes, after: parsers } })) {
    await t.test(`set ${when} the plugin`, async (t) => {
      const app = await bootUnchanged(t, host, [...PROBES, xml])
      t.match((await app.inject(FORM_PROBE)).json(), { body: { hostForm: 'X=1&X=2&Y=' } })
      await danceCompletes(t, app)
      isJsonError(t, await app.inject({ ...BROKEN_JSON_PROBE, url: '/oauth/register' }), 400, 'invalid_client_metadata', 'broken JSON at registration')
      isJsonError(t, await app.inject({ ...xml, url: '/oauth/register' }), 415, 'invalid_request', 'XML at registration')
      isJsonError(t, await app.inject({ ...xml, url: '/oauth/token' }), 415, 'invalid_request', 'XML at the token endpoint')
      isJsonError(t, await app.inject({ method: 'POST', url: '/oauth/token', headers: FORM, payload: 'client_id=a&client_id=b' }), 400, 'invalid_request', 'a repeated parameter')
    })
  }
})

t.test('the host keeps its own body limit, and the endpoints keep theirs', async (t) => {
  const post = (url: string, bytes: number): InjectOptions => ({ method: 'POST', url, headers: { 'content-type': 'application/json' }, payload: JSON.stringify({ x: 'y'.repeat(bytes) }) })
  for (const bodyLimit of [64, 10 * 1024 * 1024]) {
    const app = await bootUnchanged(t, { server: { bodyLimit }, before: hostRoutes }, [post('/echo', 20), post('/echo', 100), post('/echo', 40_000)])
    await danceCompletes(t, app)
    isJsonError(t, await app.inject(post('/oauth/register', 20_000)), 413, 'invalid_request', `20 kB at registration, host limit ${bodyLimit}`)
    isJsonError(t, await app.inject({ method: 'POST', url: '/oauth/token', headers: FORM, payload: 'x'.repeat(20_000) }), 413, 'invalid_request', `20 kB at the token endpoint, host limit ${bodyLimit}`)
    for (const [bytes, statusCode] of [[16 * 1024, 201], [16 * 1024 + 1, 413]] as const) {
      const metadata = JSON.stringify({ redirect_uris: [CALLBACK], filler: '' })
      const payload = metadata.replace('""', `"${'x'.repeat(bytes - metadata.length)}"`)
      t.equal((await app.inject({ ...post('/oauth/register', 0), payload })).statusCode, statusCode, `${bytes} bytes at registration, host limit ${bodyLimit}`)
    }
  }
})

t.test('the host keeps its own query parser, and the endpoints read queries their own way', async (t) => {
  const server = { routerOptions: { querystringParser: (text: string) => ({ hostQuery: text.length, client_id: 'host', state: ['host'] }) } }
  const app = await bootUnchanged(t, { server, before: hostRoutes }, PROBES)
  await danceCompletes(t, app)
  const { authorize, clientId } = dance(app)
  const denied = await authorize(await clientId(), { response_type: 'token', state: 'a b&c' })
  t.equal(new URL(String(denied.headers.location)).searchParams.get('state'), 'a b&c')
  t.match((await app.inject({ url: '/my/connected_apps?done=disconnected', headers: { 'x-user': 'alice' } })).body, /disconnected/i)
})

t.test('the host keeps its own error and not-found handlers, and never sees the errors of the endpoints', async (t) => {
  for (const when of ['before', 'after'] as const) {
    await t.test(`set ${when} the plugin`, async (t) => {
      const seen: string[] = []
      const handlers = (app: FastifyInstance): void => {
        app.setErrorHandler((error: FastifyError, request, reply) => {
          seen.push(`${request.method} ${request.url}`)
          return reply.code(error.statusCode ?? 500).type('text/html').send(`<h1>Host error ${error.message}</h1>`)
        })
        app.setNotFoundHandler(async (_request, reply) => reply.code(404).type('text/html').send('<h1>Host knows no such page</h1>'))
        app.addHook('onRequest', async ({ headers }) => { if (headers['x-fail'] !== undefined) throw new Error('a secret of the host') })
      }
      const app = await bootUnchanged(t, {
        [when]: (app: FastifyInstance) => { handlers(app); hostRoutes(app) },
        guarded: (app) => {
          guardedMcp(app)
          app.post('/write', { onRequest: app.oauth.protect() }, async ({ oauth }) => oauth!.require('write'))
        },
        options: { currentUser: ({ headers }) => { if (headers['x-user'] === 'broken') throw new Error('no session'); return headers['x-user'] === undefined ? null : { id: String(headers['x-user']) } } }
      }, [...PROBES, { method: 'PUT', url: '/oauth/token' }, { url: '/hello', headers: { 'x-fail': '1' } }])
      await danceCompletes(t, app)

      seen.length = 0
      const post = (url: string, payload = '', headers: Record<string, string> = FORM): InjectOptions => ({ method: 'POST', url, headers, payload })
      isJsonError(t, await app.inject(post('/oauth/register', '{', { 'content-type': 'application/json' })), 400, 'invalid_client_metadata', 'broken registration')
      isJsonError(t, await app.inject(post('/oauth/token')), 401, 'invalid_client', 'an empty token request')
      isJsonError(t, await app.inject(post('/oauth/revoke')), 401, 'invalid_client', 'an empty revocation')
      isPage(t, await app.inject('/oauth/authorize'), 400, 'authorize without parameters')
      isPage(t, await app.inject({ url: '/my/connected_apps', headers: { 'x-user': 'broken' } }), 500, 'a currentUser that throws')
      isJsonError(t, await app.inject(post('/mcp')), 401, 'invalid_token', 'no token')
      t.strictSame(seen, [], 'none of them reached the host')

      const fail = { 'x-fail': '1' }
      for (const url of ['/.well-known/oauth-protected-resource', '/.well-known/oauth-authorization-server', '/.well-known/oauth-unknown']) {
        isJsonError(t, await app.inject({ url, headers: fail }), 500, 'server_error', `a hook of the host throws at ${url}`)
      }
      for (const url of ['/oauth/register', '/oauth/token', '/oauth/revoke']) {
        const response = await app.inject(post(url, '', { ...FORM, ...fail }))
        isJsonError(t, response, 500, 'server_error', `a hook of the host throws at ${url}`)
        t.notMatch(response.body, 'secret')
      }
      for (const url of ['/oauth/authorize', '/my/connected_apps']) {
        const response = await app.inject({ url, headers: fail })
        isPage(t, response, 500, `a hook of the host throws at ${url}`)
        t.notMatch(response.body, 'secret')
      }
      t.strictSame(seen, [], 'none of them reached the host')

      seen.length = 0
      const { token } = await app.oauth.tokens.create({ userId: 'alice', name: 'test', scopes: ['read'] })
      const refused = await app.inject({ method: 'POST', url: '/write', headers: bearer(token) })
      t.equal(refused.statusCode, 403, 'require() throws into the handler of the host, …')
      t.match(refused.headers['www-authenticate'], /^Bearer error="insufficient_scope".*scope="read write"/, '… with the challenge on the reply')
      t.strictSame(seen, ['POST /write'])
    })
  }
})

t.test('the hooks of the host run as before, and for the endpoints too, since sessions need them', async (t) => {
  for (const when of ['before', 'after'] as const) {
    await t.test(`added ${when} the plugin`, async (t) => {
      const hooks = (app: FastifyInstance): void => {
        app.addHook('onRequest', async (_request, reply) => { reply.header('x-host-request', '1') })
        app.addHook('preParsing', async (_request, _reply, payload) => payload)
        app.addHook('preValidation', async (request) => { if (request.body === null) request.body = 'host' })
        app.addHook('preHandler', async (_request, reply) => { reply.header('x-host-handler', '1') })
        app.addHook('preSerialization', async (_request, _reply, payload) => ({ ...payload as object, host: true }))
        app.addHook('onSend', async (_request, reply, payload) => { reply.header('x-host-send', '1'); return payload })
      }
      const app = await bootUnchanged(t, { [when]: (app: FastifyInstance) => { hooks(app); hostRoutes(app) } }, PROBES)
      await danceCompletes(t, app)
      const { headers, body } = await app.inject({ method: 'POST', url: '/oauth/register', payload: { redirect_uris: [CALLBACK] } })
      t.match({ ...headers }, { 'x-host-request': '1', 'x-host-handler': '1', 'x-host-send': '1' })
      t.notOk('host' in parsed(body), 'what the wire needs is not added to')
    })
  }
})

t.test('the serializer of the host stays with the host', async (t) => {
  for (const when of ['before', 'after'] as const) {
    await t.test(`set ${when} the plugin`, async (t) => {
      const app = await bootUnchanged(t, {
        [when]: (app: FastifyInstance) => { app.setReplySerializer((payload) => JSON.stringify({ envelope: payload })); hostRoutes(app) }
      }, PROBES)
      t.strictSame((await app.inject('/hello')).json(), { envelope: { hello: 'host' } })
      await danceCompletes(t, app)
      for (const url of ['/.well-known/oauth-protected-resource/mcp', '/.well-known/oauth-authorization-server', '/.well-known/oauth-unknown']) {
        t.notMatch((await app.inject(url)).body, 'envelope', url)
      }
      t.match((await app.inject('/oauth/styles.css')).body, '{')
      t.notMatch((await app.inject({ method: 'POST', url: '/mcp' })).body, 'envelope', 'the guard')
      t.notMatch((await app.inject({ method: 'POST', url: '/oauth/token', headers: FORM, payload: '' })).body, 'envelope', 'errors')
      t.equal((await app.inject({ method: 'POST', url: '/oauth/register', headers: { origin: 'https://a.example' } })).headers['access-control-allow-origin'], '*')
    })
  }
})

t.test('the host keeps its own view engine, whatever its templates are called', async (t) => {
  const templates = testFolder(t)
  for (const ext of ['eta', 'html']) {
    writeFileSync(join(templates, `layout.${ext}`), '<html><title>Host layout</title><%~ it.body %></html>')
    for (const name of ['consent', 'connected-apps', 'error']) writeFileSync(join(templates, `${name}.${ext}`), `<p>Host ${name} <%= it.siteName %> <%= it.who %></p>`)
  }
  const locals = { stylesUrl: '/host.css', siteName: 'Host site', title: 'Host title' }
  const engine = (options: object) => async (app: FastifyInstance): Promise<void> => {
    await app.register(view, { engine: { eta: new Eta({ views: templates }) }, root: templates, defaultContext: { siteName: 'Default site' }, production: true, ...options })
  }
  const routes = (app: FastifyInstance): void => {
    for (const name of ['consent', 'connected-apps', 'error']) app.get(`/host/${name}`, async (_request, reply) => await reply.view(name, { who: name }))
  }
  const probes = ['/host/consent', '/host/connected-apps', '/host/error', '/host/consent']
  const variants = { 'with a layout': { layout: 'layout.eta' }, 'with templates that end otherwise': { viewExt: 'html' }, 'while it is being written': { production: false } }

  for (const [name, options] of Object.entries(variants)) {
    for (const when of ['before', 'after'] as const) {
      await t.test(`${name}, set ${when} the plugin`, async (t) => {
        const register = engine(options)
        const app = await bootUnchanged(t, when === 'before' ? { before: register, after: routes } : { after: async (app) => { await register(app); routes(app) } }, probes)
        t.match((await app.inject('/host/error')).body, '<p>Host error Default site error</p>')

        const { authorize, clientId } = dance(app)
        const pages = [await authorize(await clientId()), await app.inject({ url: '/my/connected_apps', headers: { 'x-user': 'alice' } }), await app.inject('/oauth/authorize')]
        for (const { body } of pages) {
          t.match(body, /<link rel="stylesheet" href="\/oauth\/styles\.css\?v=/)
          t.notMatch(body, /Default site|Host (layout|consent|connected-apps|error)/)
        }
        t.match(pages[0]!.body, 'to use <bdi>Notes</bdi>')
        await danceCompletes(t, app)
        t.match((await app.inject('/host/consent')).body, '<p>Host consent Default site consent</p>', 'and the host renders as before once the pages were shown')
      })
    }
  }

  await t.test('what the host keeps in reply.locals for its own pages does not change ours', async (t) => {
    const app = await boot(t, { before: async (app) => { await engine({})(app); app.addHook('preHandler', async (_request, reply) => { (reply as FastifyReply & { locals: object }).locals = locals }) } })
    const { authorize, clientId } = dance(app)
    const { body } = await authorize(await clientId())
    t.match(body, /<link rel="stylesheet" href="\/oauth\/styles\.css\?v=/)
    t.notMatch((await app.inject({ url: '/my/connected_apps', headers: { 'x-user': 'alice' } })).body, 'Host site')
  })
})

t.test('a global rate limit of the host counts as before, and its refusals leave the endpoints in their own shape', async (t) => {
  const limiter = (max: number) => async (app: FastifyInstance): Promise<void> => { await app.register(rateLimit, { max, timeWindow: '1 hour' }) }
  for (const when of ['before', 'after'] as const) {
    await t.test(`registered ${when} the plugin`, async (t) => {
      const limit = limiter(3)
      const host: Host = when === 'before' ? { before: limit, after: hostRoutes } : { after: async (app) => { await limit(app); hostRoutes(app) } }
      const app = await bootUnchanged(t, { ...host, options: { rateLimit: {} } }, ['/hello', '/hello', '/hello', '/hello', '/fail'])
      t.equal((await app.inject('/hello')).statusCode, 429, 'the limit of the host holds for the host')

      const answers = []
      for (let n = 0; n < 11; n++) answers.push(await dance(app).register())
      t.strictSame(answers.slice(0, 10).map(({ statusCode }) => statusCode), Array(10).fill(201), 'ten registrations pass, as the plugin has it')
      isJsonError(t, answers[10]!, 429, 'temporarily_unavailable', 'the eleventh')
    })
    await t.test(`registered ${when} the plugin, with room for the dance`, async (t) => {
      const limit = limiter(100)
      const host: Host = when === 'before' ? { before: limit, after: hostRoutes } : { after: async (app) => { await limit(app); hostRoutes(app) } }
      await danceCompletes(t, await bootUnchanged(t, { ...host, options: { rateLimit: {} } }, PROBES))
    })
  }

  await t.test('where only the host limits', async (t) => {
    const app = await boot(t, {
      before: async (app) => {
        await limiter(2)(app)
        app.setErrorHandler((_error, _request, reply) => reply.code(500).type('text/html').send('<h1>Host error</h1>'))
      },
      options: { rateLimit: false }
    })
    const third = async (options: InjectOptions) => {
      await app.inject(options)
      await app.inject(options)
      return await app.inject(options)
    }
    const addressed = (remoteAddress: string, options: InjectOptions): InjectOptions => ({ remoteAddress, ...options })
    isJsonError(t, await third(addressed('10.0.0.1', { method: 'POST', url: '/oauth/register', payload: {} })), 429, 'temporarily_unavailable', 'register')
    isJsonError(t, await third(addressed('10.0.0.2', { method: 'POST', url: '/oauth/token', headers: FORM, payload: '' })), 429, 'temporarily_unavailable', 'token')
    isPage(t, await third(addressed('10.0.0.3', { url: '/oauth/authorize' })), 429, 'authorize')
    isJsonError(t, await third(addressed('10.0.0.4', { url: '/.well-known/oauth-protected-resource' })), 429, 'temporarily_unavailable', 'metadata')
  })
})

const HOST_ORIGIN = 'https://app.example.com'
const ORIGINS = [HOST_ORIGIN, 'https://inspector.example.net']
const CORS_HEADERS = ['access-control-allow-origin', 'access-control-allow-credentials', 'access-control-expose-headers', 'access-control-allow-methods', 'access-control-allow-headers']
const METADATA = ['/.well-known/oauth-protected-resource', '/.well-known/oauth-protected-resource/mcp', '/.well-known/oauth-authorization-server', '/.well-known/oauth-unknown', '/.well-known/openid-configuration']

// Paths that only begin like ours are the host's, preflights included.
const NEIGHBOURS = ['/nowhere', '/mcp-admin', '/.well-known/webfinger', '/oauth/tokens', '/oauth/registered']

function preflight (url: string, method: string, origin: string): InjectOptions {
  return { method: 'OPTIONS', url, headers: { origin, 'access-control-request-method': method, 'access-control-request-headers': 'authorization,content-type,mcp-protocol-version' } }
}

/** What is wrong with the CORS headers of an answer that any origin may read. */
function notOpen ({ headers }: Response): string[] {
  const problems: string[] = []
  const allowed = headers['access-control-allow-origin']
  if (allowed !== '*') problems.push(`allows ${String(allowed)}`)
  if (headers['access-control-allow-credentials'] !== undefined) problems.push('allows credentials')
  return problems
}

const ALLOWED = ['Authorization', 'Content-Type', 'Accept', 'MCP-Protocol-Version', 'Mcp-Session-Id', 'Last-Event-ID', 'Mcp-Method', 'Mcp-Name']

async function corsIsOurs (t: Test, app: FastifyInstance): Promise<void> {
  const { connect, clientId, authorize } = dance(app)
  const { token } = await connect()
  const { token: weak } = await app.oauth.tokens.create({ userId: 'alice', name: 'weak', scopes: ['write'] })
  const problems: string[] = []

  for (const origin of ORIGINS) {
    const readable = async (what: string, options: InjectOptions): Promise<void> => {
      const response = await app.inject({ ...options, headers: { origin, ...options.headers } })
      const exposed = String(response.headers['access-control-expose-headers']).toLowerCase().split(/, */)
      for (const problem of notOpen(response)) problems.push(`${what} from ${origin} ${problem}`)
      for (const name of ['www-authenticate', 'mcp-session-id']) if (!exposed.includes(name)) problems.push(`${what} from ${origin} hides ${name}`)
    }
    for (const url of METADATA) await readable(url, { url })
    await readable('registration', { method: 'POST', url: '/oauth/register', payload: { redirect_uris: [CALLBACK] } })
    await readable('a refused registration', { method: 'POST', url: '/oauth/register', payload: {} })
    await readable('a registration in XML', { method: 'POST', url: '/oauth/register', headers: { 'content-type': 'application/xml' }, payload: '<a/>' })
    await readable('a refused token request', { method: 'POST', url: '/oauth/token', headers: FORM, payload: '' })
    await readable('a token request in JSON', { method: 'POST', url: '/oauth/token', payload: {} })
    await readable('a refused revocation', { method: 'POST', url: '/oauth/revoke', headers: FORM, payload: '' })
    await readable('/mcp without a token', { method: 'POST', url: '/mcp' })
    await readable('/mcp with a bad token', { method: 'POST', url: '/mcp', headers: bearer('oat_bad') })
    await readable('/mcp with too little scope', { method: 'POST', url: '/mcp', headers: bearer(weak) })
    await readable('/mcp', { method: 'POST', url: '/mcp', headers: bearer(token) })

    for (const [url, method] of [...METADATA.map((url) => [url, 'GET']), ...['/oauth/register', '/oauth/token', '/oauth/revoke', '/mcp'].map((url) => [url, 'POST'])] as Array<[string, string]>) {
      const response = await app.inject(preflight(url, method, origin))
      const what = `preflight for ${url} from ${origin}`
      if (![200, 204].includes(response.statusCode)) problems.push(`${what} is ${response.statusCode}`)
      for (const problem of notOpen(response)) problems.push(`${what} ${problem}`)
      if (!String(response.headers['access-control-allow-methods']).split(/, */).includes(method)) problems.push(`${what} refuses ${method}`)
      const allowed = String(response.headers['access-control-allow-headers']).toLowerCase().split(/, */)
      const refused = ALLOWED.filter((name) => !allowed.includes(name.toLowerCase()))
      if (refused.length > 0) problems.push(`${what} refuses ${refused.join(', ')}`)
    }

    const ticket = fieldOf((await authorize(await clientId())).body, 'ticket')
    const pages: InjectOptions[] = [
      { url: '/oauth/authorize' },
      { url: '/my/connected_apps', headers: { 'x-user': 'alice' } },
      { url: '/my/connected_apps', headers: { 'x-user': 'alice', accept: 'application/json' } },
      { method: 'POST', url: '/oauth/authorize', headers: { ...FORM, 'x-user': 'alice' }, payload: form({ ticket, decision: 'deny' }) },
      preflight('/oauth/authorize', 'GET', origin),
      preflight('/oauth/authorize', 'POST', origin),
      preflight('/my/connected_apps', 'POST', origin)
    ]
    for (const options of pages) {
      const { headers } = await app.inject({ ...options, headers: { origin, ...options.headers } })
      // A preflight may be the host's to answer: what counts is that no other origin can read a page.
      const isOpen = options.method === 'OPTIONS' ? headers['access-control-allow-origin'] === '*' : 'access-control-allow-origin' in headers
      if (isOpen) problems.push(`${options.method ?? 'GET'} ${String(options.url)} is open to ${origin}`)
    }
  }
  t.strictSame(problems, [], 'clients of any origin may read discovery, registration, token and guarded routes, never with credentials, and none the pages')
}

t.test('without CORS in the host, discovery, registration, token and guarded routes are open to any origin, the pages to none', async (t) => {
  for (const [name, guarded] of Object.entries({ 'app.post': guardedMcp, 'app.all': allMcp, 'a scope of guarded routes': scopedMcp })) {
    await t.test(name, async (t) => {
      const app = await bootUnchanged(t, { before: hostRoutes, guarded }, [...PROBES, ...ORIGINS.flatMap((origin) => [{ url: '/hello', headers: { origin } }, ...['/hello', ...NEIGHBOURS].map((url) => preflight(url, 'GET', origin))])])
      await corsIsOurs(t, app)
      for (const url of ['/oauth/authorize', '/my/connected_apps']) {
        for (const options of [{ url, headers: { origin: HOST_ORIGIN } }, preflight(url, 'POST', HOST_ORIGIN)]) {
          const { headers } = await app.inject(options)
          t.strictSame(CORS_HEADERS.filter((header) => header in headers), [], `no CORS header at ${url}`)
        }
      }
    })
  }
})

function allMcp (app: FastifyInstance): void {
  app.all('/mcp', { onRequest: app.oauth.protect({ scopes: ['read'] }) }, async ({ oauth }) => ({ userId: oauth!.userId }))
}

async function scopedMcp (app: FastifyInstance): Promise<void> {
  await app.register(async (scope) => {
    scope.addHook('onRequest', scope.oauth.protect({ scopes: ['read'] }))
    scope.post('/mcp', async ({ oauth }) => ({ userId: oauth!.userId }))
  })
}

t.test('with CORS in the host, its own routes keep its policy and ours keep ours', async (t) => {
  const policy: FastifyCorsOptions = { origin: HOST_ORIGIN, credentials: true, methods: ['GET', 'PUT'], allowedHeaders: ['x-host'], exposedHeaders: ['x-host'], maxAge: 5 }
  const policies: Record<string, FastifyCorsOptions> = {
    'one origin': policy,
    'a list of origins': { ...policy, origin: [HOST_ORIGIN] },
    'a function': { ...policy, origin: (origin, callback) => callback(null, origin === HOST_ORIGIN) },
    'a delegator': { delegator: async () => policy } as FastifyCorsOptions,
    'a later hook': { ...policy, origin: [HOST_ORIGIN], hook: 'preHandler' },
    'any origin with credentials': { ...policy, origin: true }
  }
  const routes = (app: FastifyInstance): void => {
    hostRoutes(app)
    app.put('/mcp-admin', async () => 'host')
    app.get('/.well-known/webfinger', async () => 'host')
  }
  const probes = ORIGINS.flatMap((origin) => [
    ...['/hello', '/fail', '/nowhere', '/.well-known/webfinger'].map((url) => ({ url, headers: { origin } })),
    ...['/hello', ...NEIGHBOURS].map((url) => preflight(url, 'PUT', origin))
  ])
  for (const [name, options] of Object.entries(policies)) {
    for (const when of ['before', 'after'] as const) {
      for (const [how, guarded] of Object.entries({ 'app.post': guardedMcp, 'app.all': allMcp, 'a scope of guarded routes': scopedMcp })) {
        await t.test(`${name}, registered ${when} the plugin, /mcp through ${how}`, async (t) => {
          const register = async (app: FastifyInstance): Promise<void> => { await app.register(cors, options) }
          const app = await bootUnchanged(t, { ...(when === 'before' ? { before: register, after: routes } : { after: async (app) => { await register(app); routes(app) } }), guarded }, probes)
          await corsIsOurs(t, app)
          await danceCompletes(t, app)
        })
      }
    }
  }

  await t.test('a resource at the root takes no other preflight from the host', async (t) => {
    for (const when of ['before', 'after'] as const) {
      const register = async (app: FastifyInstance): Promise<void> => { await app.register(cors, policy) }
      const app = await bootUnchanged(t, {
        ...(when === 'before' ? { before: register, after: routes } : { after: async (app) => { await register(app); routes(app) } }),
        options: { resources: [{ path: '/' }] },
        guarded: (app) => app.post('/', { onRequest: app.oauth.protect() }, async ({ oauth }) => ({ userId: oauth!.userId }))
      }, probes)
      for (const origin of ORIGINS) {
        t.strictSame(notOpen(await app.inject(preflight('/', 'POST', origin))), [], `preflight, registered ${when} the plugin, from ${origin}`)
        t.strictSame(notOpen(await app.inject({ method: 'POST', url: '/', headers: { origin } })), [], `registered ${when} the plugin, from ${origin}`)
      }
    }
  })
})

t.test('the pages carry their own security headers, the host keeps those of helmet', async (t) => {
  const register = async (app: FastifyInstance): Promise<void> => {
    await app.register(helmet, {
      contentSecurityPolicy: { directives: { defaultSrc: ["'self'"], scriptSrc: ["'self'", "'unsafe-inline'"], formAction: ["'self'"] } },
      frameguard: { action: 'sameorigin' },
      referrerPolicy: { policy: 'unsafe-url' },
      enableCSPNonces: false
    })
  }
  for (const when of ['before', 'after'] as const) {
    await t.test(`helmet registered ${when} the plugin`, async (t) => {
      const app = await bootUnchanged(t, when === 'before' ? { before: register, after: hostRoutes } : { after: async (app) => { await register(app); hostRoutes(app) } }, PROBES)
      t.match({ ...(await app.inject('/hello')).headers }, { 'x-frame-options': 'SAMEORIGIN', 'referrer-policy': 'unsafe-url', 'content-security-policy': 'unsafe-inline' })

      const { authorize, clientId, consent } = dance(app)
      const shown = await authorize(await clientId())
      const pages = { consent: shown, error: await app.inject('/oauth/authorize'), 'connected apps': await app.inject({ url: '/my/connected_apps', headers: { 'x-user': 'alice' } }) }
      for (const [name, { headers }] of Object.entries(pages)) {
        const csp = headers['content-security-policy']
        t.match(csp, "default-src 'none'", name)
        t.match(csp, "frame-ancestors 'none'", name)
        t.notMatch(csp, /unsafe-inline|upgrade-insecure-requests/, name)
        t.equal(headers['x-frame-options'], 'DENY', name)
        t.equal(headers['referrer-policy'], 'no-referrer', name)
        t.equal(headers['cache-control'], 'no-store', name)
      }
      t.notMatch(shown.headers['content-security-policy'], 'form-action', 'the app may lead the browser on')
      const approved = await consent({ ticket: fieldOf(shown.body, 'ticket'), decision: 'approve', scope: 'read' })
      t.equal(approved.headers['referrer-policy'], 'no-referrer', 'the code leaves no trace in a Referer header')
      await danceCompletes(t, app)
    })
  }
})

t.test('whatever the router of the host forgives, the dance completes and nothing is left unguarded', async (t) => {
  const variants: Array<{ routerOptions: NonNullable<FastifyServerOptions['routerOptions']>, spell: (path: string) => string }> = [
    { routerOptions: { ignoreTrailingSlash: true }, spell: (path) => `${path}/` },
    { routerOptions: { caseSensitive: false }, spell: (path) => path.toUpperCase() },
    { routerOptions: { ignoreDuplicateSlashes: true }, spell: (path) => path.replaceAll('/', '//') },
    { routerOptions: { ignoreTrailingSlash: true, caseSensitive: false, ignoreDuplicateSlashes: true }, spell: (path) => `${path.toUpperCase().replaceAll('/', '//')}/` }
  ]
  for (const { routerOptions, spell } of variants) {
    await t.test(JSON.stringify(routerOptions), async (t) => {
      const app = await bootUnchanged(t, { server: { routerOptions }, before: hostRoutes }, [...PROBES, spell('/hello'), spell('/nowhere')])
      await danceCompletes(t, app)

      const { clientId, query, code, redeem, connect } = dance(app)
      const client = await clientId()
      isPage(t, await app.inject({ url: `${spell('/oauth/authorize')}?${form(query(client))}`, headers: { 'x-user': 'alice' } }), 200, 'authorize, spelled otherwise')
      const login = await app.inject(`${spell('/oauth/authorize')}?${form(query(client))}`)
      t.match(decodeURIComponent(String(login.headers.location)), /^\/login\?return_to=\/oauth\/authorize\?response_type=code/, 'and leads back to the one address')
      t.equal((await app.inject({ method: 'POST', url: spell('/oauth/token'), headers: FORM, payload: '' })).json<{ error: string }>().error, 'invalid_client', 'token')
      t.equal((await app.inject({ method: 'POST', url: spell('/mcp') })).statusCode, 401, 'the guard')
      const { token } = await connect()
      t.equal((await app.inject({ method: 'POST', url: spell('/mcp'), headers: bearer(token) })).statusCode, 200)
      t.equal((await redeem(client, await code(client))).statusCode, 200)
      for (const path of METADATA) {
        const { headers, body } = await app.inject(spell(path))
        t.match(headers['content-type'], /^application\/json/, spell(path))
        t.notMatch(body, spell('/oauth/token'), 'documents name one spelling')
      }
    })
  }
})

t.test('every method of a route guarded with app.all is guarded, but the preflight', async (t) => {
  const app = await boot(t, { guarded: allMcp })
  const { token } = await dance(app).connect()
  for (const method of ['GET', 'POST', 'PUT', 'PATCH', 'DELETE', 'HEAD'] as const) {
    const refused = await app.inject({ method, url: '/mcp' })
    t.equal(refused.statusCode, 401, method)
    t.match(refused.headers['www-authenticate'], /^Bearer resource_metadata="http:\/\/localhost:3000\/\.well-known\/oauth-protected-resource\/mcp", scope="read"$/, method)
    t.equal((await app.inject({ method, url: '/mcp', headers: bearer(token) })).statusCode, 200, method)
  }
  const options = await app.inject({ method: 'OPTIONS', url: '/mcp' })
  t.equal(options.statusCode, 204)
  t.equal(options.body, '', 'and the handler did not run')
})

t.test('the catch-all of a single-page app gets what it got before, but never a discovery document', async (t) => {
  const spa = async (_request: unknown, reply: FastifyReply) => reply.type('text/html').send('<div id="app"></div>')
  const catchAlls: Record<string, (app: FastifyInstance) => unknown> = {
    'app.get(/*)': (app) => app.get('/*', spa),
    'app.all(*)': (app) => app.all('*', spa),
    'a not-found handler': (app) => app.setNotFoundHandler(spa),
    'parameters, below /.well-known too': (app) => { app.get('/:page', spa); app.get('/:section/:page', spa); app.get('/:section/:sub/:page', spa); app.get('/:section/:sub/:sub2/:page', spa); app.get('/.well-known/:page', spa) }
  }
  for (const [name, catchAll] of Object.entries(catchAlls)) {
    for (const when of ['before', 'after'] as const) {
      await t.test(`${name}, ${when} the plugin`, async (t) => {
        const app = await bootUnchanged(t, { [when]: catchAll }, ['/', '/notes', '/notes/1', '/.well-known/security', '/oauth', '/oauth/x', '/mcpx', '/my/apps', { method: 'POST', url: '/notes' }])
        await danceCompletes(t, app)
        for (const url of [
          '/.well-known/openid-configuration', '/.well-known/openid-configuration/mcp', '/mcp/.well-known/openid-configuration',
          '/.well-known/oauth', '/.well-known/oauth-unknown', '/.well-known/oauth-authorization-server/mcp', '/.well-known/oauth-authorization-server/',
          '/.well-known/oauth-protected-resource/other', '/.well-known/oauth-protected-resource/mcp/deeper', '/.well-known/oauth-unknown?x=1'
        ]) {
          isJsonError(t, await app.inject(url), 404, 'not_found', url)
          t.equal((await app.inject({ method: 'HEAD', url })).statusCode, 404, `HEAD ${url}`)
        }
      })
    }
  }
})

t.test('the plugin may come after many routes and before many more', async (t) => {
  const routes = (prefix: string) => (app: FastifyInstance): void => {
    for (let n = 0; n < 200; n++) app.get(`/${prefix}/${n}/:id`, async ({ params }) => ({ n, params }))
  }
  const app = await bootUnchanged(t, { before: routes('oauth'), after: routes('my') }, ['/oauth/7/x', '/my/199/x', '/oauth/token/x', '/my/x'])
  await danceCompletes(t, app)
})

t.test('a guarded route may be at / below a prefix', async (t) => {
  for (const method of ['GET', 'POST', ['GET', 'POST', 'DELETE']]) {
    for (const prefix of ['/mcp', '/files']) {
      const app = Fastify()
      t.teardown(() => app.close())
      await app.register(mcpOAuth, testOptions())
      await app.register(async (scope) => { scope.route({ method, url: '/', onRequest: scope.oauth.protect(), handler: async () => 'ok' }) }, { prefix })
      await app.ready()
      for (const url of [prefix, `${prefix}/`]) {
        t.equal((await app.inject({ method: [method].flat()[0] as 'GET', url })).statusCode, 401, `${String(method)} ${url}`)
      }
      t.equal((await app.inject({ method: 'OPTIONS', url: prefix })).statusCode, 204, `OPTIONS ${prefix}`)
    }
  }
})

t.test('the plugin need not be awaited, and may be used from a scope of the host', async (t) => {
  const app = Fastify()
  t.teardown(() => app.close())
  app.register(mcpOAuth, testOptions())
  app.register(async (api) => { guardedMcp(api) }, { prefix: '' })
  app.after(() => t.ok(app.oauth))
  await app.ready()
  await danceCompletes(t, app)
})

t.test('a second registration and a prefix are refused at boot', async (t) => {
  const twice = Fastify()
  await twice.register(mcpOAuth, testOptions())
  await t.rejects(async () => await twice.register(mcpOAuth, testOptions()), { code: 'FST_MCP_OAUTH_ALREADY_REGISTERED' })
  await twice.close()
  const prefixed = Fastify()
  await t.rejects(async () => await prefixed.register(async (scope) => { await scope.register(mcpOAuth, testOptions()) }, { prefix: '/v1' }), { code: 'FST_MCP_OAUTH_PREFIX' })
  await prefixed.close()
})

t.test('everything of a host at once', async (t) => {
  const templates = testFolder(t)
  writeFileSync(join(templates, 'layout.eta'), '<title>Host</title><%~ it.body %>')
  writeFileSync(join(templates, 'consent.eta'), '<p>Host consent</p>')
  const app = await bootUnchanged(t, {
    server: { routerOptions: { ignoreTrailingSlash: true, caseSensitive: false, ignoreDuplicateSlashes: true, querystringParser: () => ({ host: true }) }, bodyLimit: 100 },
    options: { rateLimit: {}, rootAliases: true },
    before: async (app) => {
      await app.register(helmet)
      await app.register(cors, { origin: HOST_ORIGIN, credentials: true })
      await app.register(rateLimit, { max: 1000 })
      await app.register(formbody, { parser: (body: string) => ({ hostForm: body }) })
      await app.register(view, { engine: { eta: new Eta() }, root: templates, layout: 'layout.eta' })
      app.setReplySerializer((payload) => JSON.stringify({ envelope: payload }))
      app.setErrorHandler((error: FastifyError, _request, reply) => reply.code(error.statusCode ?? 500).send({ hostError: error.message }))
      app.setNotFoundHandler((_request, reply) => reply.code(404).send({ hostNotFound: true }))
      app.addHook('onSend', async (_request, reply, payload) => { reply.header('x-host', '1'); return payload })
      app.get('/consent', async (_request, reply) => await reply.view('consent'))
      app.get('/*', async (_request, reply) => await reply.type('text/html').send('<div id="app"></div>'))
    },
    after: hostRoutes
  }, ['/consent', '/', ...PROBES])
  await danceCompletes(t, app)
  isJsonError(t, await app.inject('/.well-known/openid-configuration'), 404, 'not_found', 'no OpenID')
})

t.test('each endpoint has a limit for each address: JSON with Retry-After for clients, a page for people', async (t) => {
  const app = await testApp(t, { rateLimit: {} })
  const flood = async (times: number, options: InjectOptions): Promise<Response[]> => {
    const responses: Response[] = []
    for (let n = 0; n < times; n++) responses.push(await app.inject(options))
    return responses
  }
  const isLimited = (responses: Response[], max: number, name: string): Response => {
    t.notOk(responses.slice(0, max).some(({ statusCode }) => statusCode === 429), `${name}: ${max} pass`)
    const last = responses[max]!
    const seconds = Number(last.headers['retry-after'])
    t.ok(Number.isInteger(seconds) && seconds > 0 && seconds <= 60, `${name}: Retry-After is ${seconds}`)
    t.equal(last.headers['cache-control'], 'no-store', name)
    return last
  }

  const registration: InjectOptions = { method: 'POST', url: '/oauth/register', payload: { redirect_uris: [CALLBACK] } }
  const refused = isLimited(await flood(11, registration), 10, 'register')
  isJsonError(t, refused, 429, 'temporarily_unavailable', 'register')
  t.equal(refused.headers['access-control-allow-origin'], '*', 'a browser-based client can read why')
  t.equal((await app.inject({ ...registration, remoteAddress: '192.0.2.7' })).statusCode, 201, 'another address is not limited')
  isJsonError(t, (await flood(11, { ...registration, payload: {}, remoteAddress: '192.0.2.8' }))[10]!, 429, 'temporarily_unavailable', 'refused registrations count')

  isJsonError(t, isLimited(await flood(121, { method: 'POST', url: '/oauth/token', headers: FORM, payload: '' }), 120, 'token'), 429, 'temporarily_unavailable', 'token')
  isJsonError(t, isLimited(await flood(121, { method: 'POST', url: '/oauth/revoke', headers: FORM, payload: '' }), 120, 'revoke'), 429, 'temporarily_unavailable', 'revoke')

  for (const options of [{ url: '/oauth/authorize' }, { method: 'POST', url: '/oauth/authorize', headers: FORM, payload: '' }, { url: '/my/connected_apps' }] as InjectOptions[]) {
    const name = `${options.method ?? 'GET'} ${String(options.url)}`
    const page = isLimited(await flood(61, options), 60, name)
    isPage(t, page, 429, name)
    t.match(page.body, 'Wait a minute', name)
  }

  for (const url of METADATA.slice(0, 3)) {
    t.notOk((await flood(150, { url })).some(({ statusCode }) => statusCode !== 200), `${url} has no limit`)
  }
  t.notOk((await flood(150, { method: 'POST', url: '/mcp' })).some(({ statusCode }) => statusCode !== 401), 'guarded routes have the limit of the host, not ours')
})

t.test('limits can be turned off, all of them or one by one, and set', async (t) => {
  const count = async (rateLimit: NonNullable<McpOAuthOptions['rateLimit']>, options: InjectOptions, times = 15): Promise<number> => {
    const app = await testApp(t, { rateLimit })
    let passed = 0
    for (let n = 0; n < times; n++) if ((await app.inject(options)).statusCode !== 429) passed++
    return passed
  }
  const register: InjectOptions = { method: 'POST', url: '/oauth/register', payload: {} }
  const token: InjectOptions = { method: 'POST', url: '/oauth/token', headers: FORM, payload: '' }
  t.equal(await count(false, register), 15, 'rateLimit: false')
  t.equal(await count(false, { url: '/oauth/authorize' }, 65), 65, 'rateLimit: false, authorize')
  t.equal(await count({}, register), 10, 'the default')
  t.equal(await count({ register: false }, register), 15, 'register: false')
  t.equal(await count({ register: { max: 2 } }, register), 2, 'register: 2')
  t.equal(await count({ register: { max: 2 } }, token), 15, 'and no other')
  t.equal(await count({ token: { max: 3 } }, token), 3, 'token: 3')
  t.equal(await count({ authorize: { max: 4 } }, { url: '/oauth/authorize' }), 4, 'authorize: 4')
  t.equal(await count({ authorize: { max: 4 } }, { url: '/my/connected_apps' }), 4, 'connected apps count as authorize')
  t.equal(await count({ register: { max: 1, keyGenerator: () => Math.random().toString() } }, register), 15, 'a key of one endpoint')
  t.equal(await count({ keyGenerator: () => Math.random().toString() }, register), 15, 'a key of all')
  t.equal(await count({ allowList: ['127.0.0.1'] }, register), 15, 'what else the limiter takes')

  const app = await testApp(t, { rateLimit: { register: { max: 1, timeWindow: 2000 } } })
  t.equal((await dance(app).register()).statusCode, 201)
  t.equal((await dance(app).register()).statusCode, 429)
  await new Promise((resolve) => setTimeout(resolve, 2100))
  t.equal((await dance(app).register()).statusCode, 201, 'after its window a limit is new')
})

t.test('who has no address, as on a Unix socket, is answered, and shares a limit; an IPv6 network has one address', async (t) => {
  const app = await testApp(t, { rateLimit: { register: { max: 2 } } })
  const socketPath = join(folder(), 'app.sock')
  await app.listen({ path: socketPath })
  const register = async (): Promise<number> => await new Promise((resolve, reject) => {
    const request = httpRequest({ socketPath, method: 'POST', path: '/oauth/register', headers: { 'content-type': 'application/json', connection: 'close' } }, (response) => {
      response.resume().once('end', () => resolve(response.statusCode!))
    })
    request.once('error', reject).end(JSON.stringify({ redirect_uris: [CALLBACK] }))
  })
  t.strictSame([await register(), await register(), await register()], [201, 201, 429])

  const registerFrom = async (app: FastifyInstance, remoteAddress: string): Promise<number> =>
    (await app.inject({ method: 'POST', url: '/oauth/register', payload: { redirect_uris: [CALLBACK] }, remoteAddress })).statusCode
  const addresses = ['2001:db8::1', '2001:db8::2', '2001:db8::3', '2001:db8:0:1::1', '::ffff:192.0.2.1', '192.0.2.1', '::FFFF:192.0.2.1']
  const statusCodes = async (app: FastifyInstance): Promise<number[]> => {
    const all = []
    for (const address of addresses) all.push(await registerFrom(app, address))
    return all
  }
  t.strictSame(await statusCodes(app), [201, 201, 429, 201, 201, 201, 429])
  for (const rateLimit of [{ register: { max: 2, ipv6Subnet: 128 } }, { ipv6Subnet: 128, register: { max: 2 } }]) {
    t.strictSame(await statusCodes(await testApp(t, { rateLimit })), [201, 201, 201, 201, 201, 201, 429], 'unless it is told otherwise')
  }
})

t.test('a ban by the limiter is no complaint about the body', async (t) => {
  const app = await testApp(t, { rateLimit: { ban: 1, register: { max: 1 } } })
  const statusCodes: number[] = []
  let last: Response | undefined
  for (let n = 0; n < 3; n++) {
    last = await dance(app).register()
    statusCodes.push(last.statusCode)
  }
  t.strictSame(statusCodes, [201, 429, 403])
  t.not(last!.json<{ error: string }>().error, 'invalid_client_metadata')
})

t.test('root aliases serve the whole dance for clients that know no metadata, and only when asked for', async (t) => {
  for (const rootAliases of [false, true]) {
    await t.test(`rootAliases: ${rootAliases}`, async (t) => {
      const app = await boot(t, { options: { rootAliases }, before: (app) => app.setNotFoundHandler(async (_request, reply) => reply.code(404).send({ host: true })) })
      await danceCompletes(t, app)
      const registered = await app.inject({ method: 'POST', url: '/register', payload: { redirect_uris: [CALLBACK], client_name: 'Old client' } })
      if (!rootAliases) {
        t.strictSame([registered, await app.inject('/authorize'), await app.inject({ method: 'POST', url: '/token', headers: FORM, payload: '' })].map(({ statusCode }) => statusCode), [404, 404, 404])
        t.strictSame((await app.inject('/authorize')).json(), { host: true }, 'the paths are the host’s')
        return
      }
      const { query, consent, codeVerifier } = dance(app)
      const { client_id: client } = registered.json<{ client_id: string }>()
      const page = await app.inject({ url: `/authorize?${form(query(client))}`, headers: { 'x-user': 'alice' } })
      isPage(t, page, 200, '/authorize')
      const signedOut = await app.inject(`/authorize?${form(query(client))}`)
      t.equal(signedOut.statusCode, 303)
      const { headers } = await consent({ ticket: fieldOf(page.body, 'ticket'), decision: 'approve', scope: 'read' })
      const redirect = new URL(String(headers.location))
      t.equal(redirect.searchParams.get('iss'), ISSUER)
      const posted = await app.inject({ method: 'POST', url: '/authorize', headers: { ...FORM, 'x-user': 'alice' }, payload: form({ ticket: fieldOf(page.body, 'ticket'), decision: 'deny' }) })
      t.equal(posted.statusCode, 303, 'the form may be posted to the alias too')
      const redeemed = await app.inject({
        method: 'POST',
        url: '/token',
        headers: { ...FORM, origin: HOST_ORIGIN },
        payload: form({ grant_type: 'authorization_code', client_id: client, code: redirect.searchParams.get('code')!, redirect_uri: CALLBACK, code_verifier: codeVerifier })
      })
      t.equal(redeemed.statusCode, 200)
      t.strictSame(notOpen(redeemed), [], '/token')
      for (const url of ['/register', '/token']) t.strictSame(notOpen(await app.inject(preflight(url, 'POST', HOST_ORIGIN))), [], `preflight for ${url}`)
      t.match((await app.inject('/.well-known/oauth-authorization-server')).json(), { token_endpoint: `${ISSUER}/oauth/token` }, 'the metadata names the one address')
    })
  }
})

t.test('an issuer with a path has its endpoints below it and its documents where RFC 8414 and RFC 9728 put them', async (t) => {
  const issuer = 'https://example.com/tenant'
  const app = await boot(t, {
    before: (app) => app.get('/*', async (_request, reply) => await reply.type('text/html').send('<div id="app"></div>')),
    options: { issuer, resources: [{ path: '/tenant/mcp', name: 'Tenant notes' }], rootAliases: false },
    guarded: (app) => app.post('/tenant/mcp', { onRequest: app.oauth.protect() }, async ({ oauth }) => ({ userId: oauth!.userId, resource: oauth!.resource }))
  })
  const metadata = (await app.inject('/.well-known/oauth-authorization-server/tenant')).json<Record<string, string>>()
  t.match(metadata, {
    issuer,
    authorization_endpoint: `${issuer}/oauth/authorize`,
    token_endpoint: `${issuer}/oauth/token`,
    registration_endpoint: `${issuer}/oauth/register`,
    revocation_endpoint: `${issuer}/oauth/revoke`
  })
  for (const url of ['/.well-known/oauth-protected-resource', '/.well-known/oauth-protected-resource/tenant/mcp']) {
    t.match((await app.inject(url)).json(), { resource: 'https://example.com/tenant/mcp', authorization_servers: [issuer] }, url)
  }
  for (const url of ['/.well-known/oauth-authorization-server', '/.well-known/openid-configuration', '/.well-known/openid-configuration/tenant', '/tenant/.well-known/openid-configuration', '/tenant/mcp/.well-known/openid-configuration']) {
    isJsonError(t, await app.inject(url), 404, 'not_found', url)
  }
  t.match((await app.inject({ method: 'POST', url: '/tenant/mcp' })).headers['www-authenticate'], 'resource_metadata="https://example.com/.well-known/oauth-protected-resource/tenant/mcp"')

  const { accessToken, clientId, headers } = await connectClient(app, { headers: { 'x-user': 'alice' } })
  t.match(accessToken, /^oat_/)
  const called = await app.inject({ method: 'POST', url: '/tenant/mcp', headers })
  t.strictSame(called.json(), { userId: 'alice', resource: 'https://example.com/tenant/mcp' })

  const { query, codeVerifier } = dance(app)
  const asked = { url: `/tenant/oauth/authorize?${form(query(clientId, { redirect_uri: 'http://127.0.0.1:1/callback' }))}` }
  const page = await app.inject({ ...asked, headers: { 'x-user': 'alice' } })
  isPage(t, page, 200, 'consent')
  t.match(page.body, 'action="/tenant/oauth/authorize"')
  const [, styles] = page.body.match(/<link rel="stylesheet" href="([^"]*)"/) ?? []
  t.match(styles, /^\/tenant\/oauth\/styles\.css\?v=/)
  t.match((await app.inject(styles!)).headers['content-type'], 'text/css')
  t.match(decodeURIComponent(String((await app.inject(asked)).headers.location)), /^\/login\?return_to=\/tenant\/oauth\/authorize\?/)
  const approved = await app.inject({ method: 'POST', url: '/tenant/oauth/authorize', headers: { ...FORM, 'x-user': 'alice' }, payload: form({ ticket: fieldOf(page.body, 'ticket'), decision: 'approve', scope: 'read' }) })
  const redirect = new URL(String(approved.headers.location))
  t.equal(redirect.searchParams.get('iss'), issuer)
  t.equal((await app.inject({
    method: 'POST',
    url: '/tenant/oauth/token',
    headers: FORM,
    payload: form({ grant_type: 'authorization_code', client_id: clientId, code: redirect.searchParams.get('code')!, redirect_uri: 'http://127.0.0.1:1/callback', code_verifier: codeVerifier, resource: 'https://example.com/tenant/mcp' })
  })).statusCode, 200)
  t.match((await app.inject('/oauth/authorize')).body, 'id="app"', 'the same paths at the root stay the host’s')
})

t.test('a folder of views replaces the built-in files one by one', async (t) => {
  const views = testFolder(t)
  const consent = (text: string): void => writeFileSync(join(views, 'consent.eta'), `<% layout('./layout', { title: 'Ours', stylesUrl: it.stylesUrl }) %>
<form method="post" action="<%= it.action %>"><input type="hidden" name="ticket" value="<%= it.ticket %>">
${text} <%= it.client.name %>
<% for (const scope of it.scopes) { %><input type="checkbox" name="scope" value="<%= scope.name %>" checked><% } %></form>`)
  consent('Our consent for')
  writeFileSync(join(views, 'styles.css'), 'body { color: rebeccapurple }')
  writeFileSync(join(views, 'unrelated.eta'), 'unrelated')

  const app = await boot(t, { options: { views } })
  const builtIn = await boot(t, {})
  const { authorize, clientId, consent: decide } = dance(app)
  const client = await clientId()
  const page = await authorize(client, {}, { 'x-user': 'alice' })
  isPage(t, page, 200, 'consent')
  t.match(page.body, 'Our consent for Test client', 'the page is ours')
  t.match(page.body, '<!doctype html>', 'its layout is built in')
  t.match(page.body, '<title>Ours</title>')
  t.match((await decide({ ticket: fieldOf(page.body, 'ticket'), decision: 'approve', scope: 'read' })).headers.location, 'code=')

  const stylesUrl = (body: string): string => body.match(/href="(\/oauth\/styles\.css[^"]*)"/)?.[1] ?? ''
  t.equal((await app.inject(stylesUrl(page.body))).body, 'body { color: rebeccapurple }', 'the styles are ours')
  const theirs = await builtIn.inject('/oauth/authorize')
  t.not(stylesUrl(page.body), stylesUrl(theirs.body), 'and have an address of their own, since browsers keep them')
  t.match((await builtIn.inject(stylesUrl(theirs.body))).headers['cache-control'], 'immutable')

  const error = await app.inject('/oauth/authorize')
  t.equal(error.body.replace(stylesUrl(error.body), ''), theirs.body.replace(stylesUrl(theirs.body), ''), 'the error page is the built-in one')
  t.match((await app.inject({ url: '/my/connected_apps', headers: { 'x-user': 'alice' } })).body, /<!doctype html>[^]*\/oauth\/styles\.css/, 'and so is the connected-apps page')

  consent('Our newer consent for')
  t.match((await authorize(client)).body, 'Our newer consent for Test client', 'while it is being written, a view is read anew')
  t.match((await dance(builtIn).authorize(await dance(builtIn).clientId())).body, 'Not verified', 'another app in the process keeps the built-in ones')

  writeFileSync(join(views, 'layout.eta'), '<main class="ours"><%~ it.body %></main>')
  const ownLayout = await boot(t, { options: { views } })
  for (const { body } of [await ownLayout.inject('/oauth/authorize'), await dance(ownLayout).authorize(await dance(ownLayout).clientId())]) {
    t.match(body, '<main class="ours">', 'a layout of ours holds the built-in pages too')
  }
  await danceCompletes(t, app)
})

t.test('app.close() leaves nothing open', async (t) => {
  const path = join(testFolder(t), 'tokens.db')
  const before = process.getActiveResourcesInfo()
  const app = await boot(t, { options: { store: sqliteStore({ path }), rateLimit: {} } })
  const { token } = await dance(app).connect()
  await app.inject({ method: 'POST', url: '/mcp', headers: bearer(token) })
  const address = await app.listen({ port: 0 })
  const status = await new Promise((resolve, reject) => get(`${address}/.well-known/oauth-protected-resource`, { agent: false }, (response) => {
    response.resume().on('end', () => resolve(response.statusCode))
  }).on('error', reject))
  t.equal(status, 200)

  await app.close()
  for (let n = 0; n < 200 && openSince(before).length > 0; n++) await new Promise((resolve) => setTimeout(resolve, 10))
  t.strictSame(openSince(before), [], 'no timer, socket or file keeps the process alive')

  const copy = join(testFolder(t), 'copy.db')
  copyFileSync(path, copy)
  const again = await boot(t, { options: { store: sqliteStore({ path: copy }) } })
  t.equal((await again.inject({ method: 'POST', url: '/mcp', headers: bearer(token) })).statusCode, 200, 'the one file holds everything: nothing is left in a journal beside it')
  t.ok((await again.oauth.tokens.list({ userId: 'alice' }))[0]!.lastUsedAt, 'with the use that was noted before the close')
})

function openSince (before: readonly string[]): string[] {
  const rest = [...before]
  return process.getActiveResourcesInfo().filter((name) => {
    const index = rest.indexOf(name)
    if (index !== -1) rest.splice(index, 1)
    return index === -1 && name !== 'Immediate'
  })
}
