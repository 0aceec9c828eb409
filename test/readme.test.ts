import { Client, StreamableHTTPClientTransport } from '@modelcontextprotocol/client'
import { DatabaseSync } from '@photostructure/sqlite'
import { ESLint } from 'eslint'
import Fastify, { type FastifyInstance } from 'fastify'
import { execFile, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, readdirSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { setTimeout } from 'node:timers/promises'
import { promisify } from 'node:util'
import t, { type Test } from 'tap'
import mcpOAuth from '../dist/index.js'
import { COLUMNS } from '../dist/store/schema.js'
import { sqliteStore } from '../dist/store/sqlite.js'
import { connectClient, mintToken } from '../dist/testing.js'
import { bearer, dance, fieldOf, folder, testApp } from './app.js'
import { startPostgres } from './postgres.js'
import { freePort } from './scripts/free-port.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const readme = readFileSync(join(root, 'README.md'), 'utf8')
const security = readFileSync(join(root, 'SECURITY.md'), 'utf8')
/** The README and the pages behind it. */
const pages = ['README.md', ...readdirSync(join(root, 'docs')).filter((file) => file.endsWith('.md')).map((file) => `docs/${file}`)]
const text = pages.map((file) => readFileSync(join(root, file), 'utf8')).join('\n')
const programsIn = (text: string): string[] => [...text.matchAll(/```js\n([^]*?)```/g)].map(([, code]) => code!)
/** What stands below a heading, on whichever page, up to the next one. */
const section = (heading: string): string => text.split(new RegExp(`^#+ ${heading}\\n`, 'm'))[1]!.split(/\n#+ /)[0]!
const table = (heading: string): string[][] => section(heading).split('\n')
  .filter((line) => line.startsWith('| `')).map((line) => line.split('|').slice(1, -1).map((cell) => cell.trim()))

/** A program below a heading: the first, unless another is named. */
function programOf (heading: string, index = 0): string {
  const program = programsIn(section(heading))[index]!
  run.add(program)
  return program
}

const run = new Set<string>()

/** Node without the loader that tap gives to whatever is spawned. */
const [NODE, ...ARGS] = ['env', '-u', 'NODE_OPTIONS', process.execPath] as const

/** A program of a page in a folder in which the package is installed. */
function install (code: string): string {
  const project = folder()
  mkdirSync(join(project, 'node_modules'))
  symlinkSync(root, join(project, 'node_modules', 'fastify-mcp-oauth'))
  for (const name of ['fastify', '@modelcontextprotocol', '@opentelemetry']) symlinkSync(join(root, 'node_modules', name), join(project, 'node_modules', name))
  writeFileSync(join(project, 'package.json'), '{ "type": "module" }')
  writeFileSync(join(project, 'server.js'), code)
  return project
}

/** A program on another port, for what asks an app: only the asking is borrowed, the answers are its own. */
async function proxyOf (t: Test, issuer: string): Promise<FastifyInstance> {
  const app = Fastify()
  t.teardown(() => app.close())
  app.all('/*', async (request, reply) => {
    const answer = await fetch(issuer + request.url, { method: request.method, headers: request.headers as Record<string, string>, redirect: 'manual', ...(request.body !== undefined && { body: request.body as string }) })
    return await reply.code(answer.status).headers(Object.fromEntries([...answer.headers].filter(([name]) => !/^(content-length|transfer-encoding|connection|content-encoding)$/.test(name)))).send(await answer.text())
  })
  app.removeAllContentTypeParsers()
  app.addContentTypeParser('*', { parseAs: 'string' }, (_request, body, done) => done(null, body))
  return app
}

/** Starts a program of a page on a free port and asks its route without a token. */
async function challenge (t: Test, code: string, env: Record<string, string> = {}, port?: number): Promise<{ cwd: string, issuer: string, response: Response, output: () => string }> {
  const issuer = `http://localhost:${port ?? await freePort()}`
  const cwd = install(code.replaceAll('3000', new URL(issuer).port))
  const child = spawn(NODE, [...ARGS, 'server.js'], { cwd, env: { PATH: process.env.PATH, OAUTH_KEY: 'k'.repeat(43), ...env }, stdio: ['ignore', 'pipe', 'pipe'] })
  t.teardown(() => child.kill('SIGKILL'))
  let [output, complaints] = ['', '']
  child.stdout.on('data', (chunk) => { output += String(chunk) })
  child.stderr.on('data', (chunk) => { complaints += String(chunk) })
  for (let attempt = 0; attempt < 200; attempt++) {
    try {
      return { cwd, issuer, response: await fetch(`${issuer}/mcp`, { method: code.includes('app.post') ? 'POST' : 'GET' }), output: () => output }
    } catch {
      await setTimeout(50)
    }
  }
  throw new Error(`the server did not start: ${complaints}`)
}

t.test('the whole server in the README guards its route', async (t) => {
  const { cwd, issuer, response, output } = await challenge(t, programOf('Use it in your app'))
  t.equal(response.status, 401)
  t.equal(response.headers.get('www-authenticate'), `Bearer resource_metadata="${issuer}/.well-known/oauth-protected-resource/mcp", scope="read"`)
  t.ok(existsSync(join(cwd, 'oauth.db')), 'with the default store')
  t.equal(output(), '')
  t.equal((await fetch(issuer)).status, 404)

  // The steps that show that it works, as they stand.
  const [first, second] = section('Use it in your app').match(/^curl .*$/gm)!
  const curl = async (line: string): Promise<string> => (await promisify(execFile)('sh', ['-c', line.replace('curl ', 'curl -s ').replace('localhost:3000', new URL(issuer).host)])).stdout
  t.match(await curl(first!), /^HTTP\/1\.1 401 [^]*www-authenticate: Bearer resource_metadata=/i)
  const page = `${issuer}${/<http:\/\/localhost:3000(.*)>/.exec(section('Use it in your app'))![1]!}`
  const accept = { accept: 'application/json' }
  const { ticket } = await (await fetch(page, { headers: accept })).json() as { ticket: string }
  const { token } = await (await fetch(page, { method: 'POST', headers: accept, body: new URLSearchParams({ ticket, name: 'test', scope: 'read' }) })).json() as { token: string }
  t.equal(await curl(second!.replace('pat_…', token)), /The answer is `(.*?)`/.exec(section('Use it in your app'))![1])
})

t.test('the MCP server in the README serves a tool to a client that was allowed to use it', async (t) => {
  const { issuer, response } = await challenge(t, programOf('Use it in your app', 1))
  t.equal(response.status, 401)
  const app = await proxyOf(t, issuer)
  const { headers } = await connectClient(app, { headers: {} })
  const client = new Client({ name: 'test', version: '1.0.0' })
  await client.connect(new StreamableHTTPClientTransport(new URL(`${issuer}/mcp`), { requestInit: { headers } }))
  t.match(await client.callTool({ name: 'list_notes' }), { content: [{ text: 'The notes of alice' }] })
  await client.close()
})

t.test('and so does the one for several nodes, on PostgreSQL', async (t) => {
  const server = await startPostgres(t)
  const { response } = await challenge(t, programOf('Several nodes'), { DATABASE_URL: await server.database() })
  t.equal(response.status, 401)
})

t.test('the two separate servers of the README work together: a token of the one is good at the other', async (t) => {
  const [issuer, files] = [await freePort(), await freePort()]
  const [authorizationServer, filesServer] = [0, 1].map((index) => programOf('Separate servers', index).replaceAll('3000', `${issuer}`).replaceAll('3001', `${files}`))
  const secret = 'a secret of both'
  const guarded = await challenge(t, filesServer!, { FILES_SECRET: secret }, files)
  t.equal(guarded.response.status, 401)
  const ask = async (authorization: string): Promise<Response> => await fetch(`${guarded.issuer}/mcp`, { method: 'POST', headers: { authorization } })
  t.equal((await ask('Bearer x')).status, 503, 'the other is not there yet')
  t.equal(guarded.response.headers.get('www-authenticate'), `Bearer resource_metadata="${guarded.issuer}/.well-known/oauth-protected-resource/mcp", scope="read"`)
  const { cwd, output: log } = await challenge(t, authorizationServer!, { FILES_SECRET_HASH: createHash('sha256').update(secret).digest('base64url') }, issuer)

  const app = Fastify()
  t.teardown(() => app.close())
  // A token from the same file: the server itself has no sign-in yet.
  await app.register(mcpOAuth, { issuer: `http://localhost:${issuer}`, keys: ['k'.repeat(43)], scopes: { read: 'Read' }, resources: [{ url: `${guarded.issuer}/mcp` }], store: sqliteStore({ path: join(cwd, 'oauth.db') }), currentUser: () => null, loginUrl: '/login' })
  const authorization = `Bearer ${await mintToken(app, { userId: 'bob', scopes: ['read'] })}`
  t.equal(await (await ask(authorization)).text(), 'bob')

  // An answer may be here before its line in the log is.
  const says = async (log: () => string, reason: string): Promise<void> => {
    for (let attempt = 0; attempt < 100 && !log().includes(`"reason":"${reason}"`); attempt++) await setTimeout(20)
    t.match(log(), `"reason":"${reason}"`, 'the reason is in the log')
  }
  for (const reason of ['token_missing', 'introspection_failed']) await says(guarded.output, reason)
  const authorizing = `http://localhost:${issuer}`
  await fetch(`${authorizing}/oauth/introspect`, { method: 'POST', headers: { authorization: `Basic ${Buffer.from('files-server:wrong').toString('base64')}` }, body: new URLSearchParams({ token: 'x' }) })
  await says(log, 'client_secret_mismatch')
})

t.test('the app and the job of the page about connections work together: what alice connects, the job uses', async (t) => {
  const [notes, port] = [await freePort(), await freePort()]
  const [app, job] = ['In your app', 'In your jobs'].map((heading) => programOf(heading).replaceAll('3000', `${notes}`).replaceAll('3001', `${port}`))
  const env = { PATH: process.env.PATH!, CONNECTIONS_KEY: 'k'.repeat(43) }
  await challenge(t, programOf('Use it in your app', 1), {}, notes)
  const { cwd } = await challenge(t, app!, env, port)
  writeFileSync(join(cwd, 'job.js'), job!)
  const runJob = async (): Promise<string> => (await promisify(execFile)(NODE, [...ARGS, 'job.js'], { cwd, env })).stdout.trim()
  t.equal(await runJob(), 'alice has to connect notes first')

  const page = `http://localhost:${port}/my/connections`
  const ticketOf = async (url: string): Promise<string> => fieldOf(await (await fetch(url)).text(), 'ticket')
  const post = async (url: string, fields: Record<string, string>): Promise<string> => (await fetch(url, { method: 'POST', redirect: 'manual', body: new URLSearchParams(fields) })).headers.get('location')!
  const asked = await post(page, { ticket: await ticketOf(page), connect: 'notes' })
  const callback = await post(`http://localhost:${notes}/oauth/authorize`, { ticket: await ticketOf(asked), decision: 'approve', scope: 'read' })
  t.match(await (await fetch(callback)).text(), /Connected\./)
  t.equal(await runJob(), 'list_notes')
  t.ok(existsSync(join(cwd, 'connections.db')))

  const apps = `http://localhost:${notes}/my/connected_apps`
  const { ticket, apps: [connected] } = await (await fetch(apps, { headers: { accept: 'application/json' } })).json() as { ticket: string, apps: Array<{ clientId: string }> }
  await post(apps, { ticket, client: connected!.clientId })
  t.equal(await runJob(), 'alice has to connect notes again')
})

// A secret that is another one where it is not encoded.
const REPORT_SECRET = 'the secret: 100%+'
const REPORT_SECRET_HASH = createHash('sha256').update(REPORT_SECRET).digest('base64url')
const output = async (code: string): Promise<string> => (await promisify(execFile)(NODE, [...ARGS, 'server.js'], { cwd: install(code), env: { PATH: process.env.PATH, REPORT_SECRET, REPORT_SECRET_HASH } })).stdout.trim()

t.test('the small programs in the README and its pages run as they stand', async (t) => {
  for (const [heading, said] of [['In your tests', 'alice alice'], ['Expiry and refresh', 'authorization_code,refresh_token'],
    ['Clients with secrets and keys', 'reports:write'], ['Clients known by a URL', 'true'], ['app.oauth.tokens', ''], ['Your older API keys', 'alice alice']] as const) {
    t.equal(await output(programOf(heading)), said, heading)
  }
})

t.test('the audit log in the README has a line for each step of a flow, and no secret', async (t) => {
  const { cwd, issuer } = await challenge(t, programOf('Events'))
  const app = await proxyOf(t, issuer)
  const { clientId, ticket, code, redeem, codeVerifier } = dance(app)
  const client = await clientId()
  const consent = await ticket(client)
  const issued = await code(client, {}, ['read'])
  const { access_token: token } = (await redeem(client, issued)).json<{ access_token: string }>()
  t.equal((await app.inject({ url: '/mcp', headers: bearer(token) })).body, 'alice')
  t.equal((await redeem(client, issued)).statusCode, 400)
  t.equal((await app.inject({ url: '/mcp', headers: bearer(token) })).statusCode, 401)

  const log = readFileSync(join(cwd, 'audit.log'), 'utf8')
  t.equal(log.slice(-1), '\n')
  const events = log.trimEnd().split('\n').map((line) => JSON.parse(line) as { type: string, reason?: string, at: number })
  t.strictSame(events.map(({ type, reason }) => [type, reason].join(' ').trim()), [
    'token.rejected token_missing', 'client.registered', 'consent.shown', 'consent.shown', 'consent.approved', 'token.issued',
    'token.revoked code_replayed', 'code.rejected code_replayed', 'token.rejected token_revoked'
  ])
  for (const event of events) t.match(event, { at: Number, requestId: String })
  for (const line of log.trimEnd().split('\n')) t.match(line, /^\{"at":\d+,"type":"/)
  t.match(events.find(({ type }) => type === 'token.issued'), { userId: 'alice', clientId: client, scopes: ['read'] })
  for (const secret of [token, issued, consent, codeVerifier, 'k'.repeat(43)]) t.notOk(log.includes(secret.slice(4)), 'no token, code, ticket, verifier or key')
  t.equal(statSync(join(cwd, 'audit.log')).mode & 0o077, 0, 'and nobody else may read it')
})

t.test('the metrics in the README are what happened', async (t) => {
  const cwd = install(programOf('Metrics'))
  writeFileSync(join(cwd, 'app.js'), `
    import { metrics } from '@opentelemetry/api'
    import { AggregationTemporality, InMemoryMetricExporter, MeterProvider, PeriodicExportingMetricReader } from '@opentelemetry/sdk-metrics'
    import Fastify from 'fastify'
    import mcpOAuth from 'fastify-mcp-oauth'
    import { sqliteStore } from 'fastify-mcp-oauth/sqlite'
    import { mintToken } from 'fastify-mcp-oauth/testing'

    const exporter = new InMemoryMetricExporter(AggregationTemporality.CUMULATIVE)
    const provider = new MeterProvider({ readers: [new PeriodicExportingMetricReader({ exporter })] })
    metrics.setGlobalMeterProvider(provider)
    await import('./server.js')

    const app = Fastify()
    await app.register(mcpOAuth, {
      issuer: 'http://localhost:3000', keys: ['0'.repeat(64)], store: sqliteStore({ path: ':memory:' }), scopes: { read: 'Read' }, loginUrl: '/login',
      currentUser: () => { throw new Error('the session is gone') }
    })
    app.get('/mcp', { onRequest: app.oauth.protect() }, async () => 'ok')
    const headers = { authorization: 'Bearer ' + await mintToken(app, { userId: 'alice', scopes: ['read'] }) }
    for (const options of [
      '/.well-known/oauth-authorization-server', '/.well-known/oauth-authorization-server', '/.well-known/openid-configuration',
      '/mcp', { url: '/mcp', headers }, { url: '/mcp', headers }, { url: '/mcp', headers }, '/my/connected_apps'
    ]) await app.inject(options)
    await app.close()

    await provider.forceFlush()
    const [{ scopeMetrics: [{ scope, metrics: collected }] }] = exporter.getMetrics()
    await provider.shutdown()
    console.log(JSON.stringify({ scope: scope.name, collected }))
  `)
  const { stdout } = await promisify(execFile)(NODE, [...ARGS, 'app.js'], { cwd })
  interface Point { attributes: object, value: number | { count: number, sum: number } }
  const { scope, collected } = JSON.parse(stdout) as { scope: string, collected: Array<{ descriptor: { name: string, unit: string }, dataPoints: Point[] }> }
  t.equal(scope, 'fastify-mcp-oauth')
  const points = (name: string): Point[] => collected.find(({ descriptor }) => descriptor.name === name)!.dataPoints
  t.strictSame(points('oauth.request.duration').map(({ attributes, value }) => [...Object.values(attributes), (value as { count: number }).count]), [
    ['metadata', 200, 2], ['metadata', 404, 1], ['guard', 401, 1], ['guard', 200, 3], ['connected_apps', 500, 1]
  ])
  t.strictSame(Object.keys(points('oauth.request.duration')[0]!.attributes), ['endpoint', 'http.response.status_code'])
  for (const { value } of points('oauth.request.duration')) t.ok((value as { sum: number }).sum > 0, 'milliseconds')
  t.strictSame(points('oauth.request.refused').map(({ attributes, value }) => [attributes, value]), [[{ endpoint: 'metadata' }, 1], [{ endpoint: 'guard' }, 1]])
  t.strictSame(points('oauth.request.failed').map(({ attributes, value }) => [attributes, value]), [[{ endpoint: 'connected_apps' }, 1]])
})

t.test('every program in the README and its pages was run above', async (t) => {
  t.strictSame(programsIn(text).filter((program) => !run.has(program)), [])
})

t.test('the README and its pages name every option, column, command, event and file there is, and no other', async (t) => {
  const source = (file: string): string => readFileSync(join(root, file), 'utf8')
  const options = [...source('lib/options.ts').matchAll(/^const NAMES: .* = \[([^]*?)\]$/gm)][0]![1]!.match(/\w+/g)!
  t.strictSame(table('Options').map(([name]) => name!.replaceAll('`', '')).sort(), [...options].sort())

  const columns = table('The table').flatMap(([names]) => names!.match(/\w+/g)!)
  t.strictSame(columns.sort(), COLUMNS.map(([, column]) => column).sort())

  const commands = [...source('lib/cli.ts').split('const COMMANDS')[1]!.split('])\n')[0]!.matchAll(/^ {2}\['(\w+)'/gm)].map(([, command]) => command!)
  t.strictSame(table('Operations').map(([name]) => name!.replaceAll('`', '')), commands)
  t.strictSame([...source('lib/cli.ts').matchAll(/^ {2}(\w+)(?: \[database\])?  +\w/gm)].map(([, command]) => command!), commands, 'and so does the help')

  const clientOptions = source('lib/clients/configured.ts').match(/expectNames\(client, `\$\{at\}\.`, \[([^\]]*)\]/)![1]!.match(/\w+/g)!
  t.strictSame(table('Clients with secrets and keys').flatMap(([names]) => names!.match(/\w+/g)!).sort(), [...clientOptions].sort())
  const metadataOptions = source('lib/clients/metadata-document.ts').match(/expectNames\(clientIdMetadata, '[\w.]+', \[([^\]]*)\]/)![1]!.match(/\w+/g)!
  t.strictSame(table('Clients known by a URL').map(([name]) => name!.replaceAll('`', '')).sort(), [...metadataOptions].sort())
  const reasons = source('lib/protocol/errors.ts').split('export type Reason =')[1]!.split('/**')[0]!.match(/\w+/g)!
  t.strictSame(table('Where it cannot ask').map(([reason]) => reason!.replaceAll('`', '')).filter((reason) => !reasons.includes(reason)), [])
  const remote = source('lib/remote.ts').match(/expectNames\(options, '', \[([^\]]*)\]/)![1]!.match(/\w+/g)!
  t.strictSame(table('Separate servers').flatMap(([names]) => names!.match(/\w+/g)!).sort(), [...remote].sort())

  const connections = source('lib/connections/plugin.ts').match(/expectNames\(options, '', \[([^\]]*)\]/)![1]!.match(/\w+/g)!
  t.strictSame(table('In your app').map(([name]) => name!.replaceAll('`', '')).sort(), [...connections].sort())
  const servers = source('lib/connections/servers.ts').match(/expectNames\(server, `\$\{at\}\.`, \[([^\]]*)\]/)![1]!.match(/\w+/g)!
  t.strictSame(table('A server').map(([name]) => name!.replaceAll('`', '')).sort(), [...servers].sort())
  const methods = source('lib/connections/connections.ts').split('export interface Connections {')[1]!.split('\n}')[0]!.matchAll(/^ {2}(\w+): \(/gm)
  t.strictSame(table('app.connections').map(([name]) => name!.match(/\w+/)![0]), [...methods].map(([, name]) => name))
  const fields = source('lib/connections/connections.ts').split('export interface Connection {')[1]!.split('\n}')[0]!.matchAll(/^ {2}(\w+): /gm)
  t.strictSame(table('app.connections')[2]![1]!.match(/(?<=`)\w+(?=`)/g), [...fields].map(([, name]) => name))

  const events = [...source('lib/events.ts').matchAll(/\{ type: '([\w.]+)'(.*) \}$/gm)].map(([, type, fields]) => [type!, ...[...fields!.matchAll(/(\w+):/g)].map(([, field]) => field!)])
  t.strictSame(table('Events').map(([type, fields]) => [type, fields].flatMap((cell) => cell!.match(/[\w.]+/g)!)), events)
  t.match(source('lib/protocol/errors.ts'), /^export type Reason =$/m)

  const endpoints = /endpoint: (.*)/.exec(source('lib/http/metrics.ts'))![1]!.match(/\w+/g)!
  t.strictSame(section('Metrics').split('The endpoint is ')[1]!.split('.')[0]!.match(/\w+(?=`)/g), endpoints)

  const headings = (file: string): string[] => [...readFileSync(file, 'utf8').matchAll(/^#+ (.*)$/gm)].map(([, heading]) => heading!.toLowerCase().replace(/[^\w -]/g, '').replaceAll(' ', '-'))
  for (const file of [...pages, 'CHANGELOG.md', 'CONTRIBUTING.md', 'SECURITY.md']) {
    for (const [, target, anchor] of source(file).matchAll(/(?:\]\(|src="|srcset=")(?!https?:)([^)"#]*)(?:#([^)"]+))?/g)) {
      const path = target === '' ? join(root, file) : resolve(root, dirname(file), target!)
      t.ok(existsSync(path), `${file}: ${target}`)
      if (anchor !== undefined) t.ok(headings(path).includes(anchor), `${file}: ${target}#${anchor}`)
    }
  }
  const all = pages.flatMap((file) => headings(join(root, file)))
  t.strictSame(all.filter((heading, index) => all.indexOf(heading) !== index), [], 'and no heading is there twice, or the tests would read one and not the other')
})

t.test('connected apps in JSON have the fields of their page, and take its forms', async (t) => {
  const headers = { 'x-user': 'alice', accept: 'application/json' }
  const app = await testApp(t)
  const { clientId } = await connectClient(app, { headers })
  await app.oauth.tokens.create({ userId: 'alice', name: 'script', scopes: ['read'] })
  const names = (cell: string): string[] => cell.match(/(?<=`)\w+(?=`)/g)!
  const list = async () => (await app.inject({ url: '/my/connected_apps', headers })).json<{ ticket: string, apps: object[], personalTokens: Array<{ grantId: string }> }>()

  const answer = await list()
  const fields = table('What GET answers')
  t.strictSame(fields.map(([name]) => names(name!)[0]), Object.keys(answer))
  t.strictSame(names(fields[1]![1]!), Object.keys(answer.apps[0]!))
  t.strictSame(names(fields[2]![1]!), Object.keys(answer.personalTokens[0]!))

  const values = [[clientId], [answer.personalTokens[0]!.grantId], ['another', 'read', '30']]
  for (const [index, [fields, , status, shown]] of table('What POST takes').entries()) {
    const form = new URLSearchParams(Object.fromEntries(names(fields!).map((name, which) => [name, values[index]![which]!])))
    form.set('ticket', answer.ticket)
    const post = { method: 'POST', url: '/my/connected_apps', headers: { ...headers, 'content-type': 'application/x-www-form-urlencoded' }, payload: form.toString() } as const
    const made = await app.inject(post)
    t.equal(String(made.statusCode), status, fields!)
    t.strictSame(Object.keys(made.json<object>()), shown!.match(/\w+/g)!.filter((word) => word !== 'true'))
    t.equal((await app.inject(post)).statusCode, index === 2 ? 409 : 404, 'and again')
    t.equal((await app.inject({ ...post, payload: '' })).statusCode, 403, 'without a ticket')
    t.equal((await app.inject({ ...post, headers: { ...post.headers, 'x-user': '' } })).statusCode, 403, 'without a user')
    t.equal((await app.inject({ ...post, payload: `ticket=${answer.ticket}` })).statusCode, 400, 'with the ticket alone')
  }
  t.equal((await app.inject({ url: '/my/connected_apps', headers: { accept: headers.accept } })).statusCode, 401)
})

t.test('after a leak, what was issued since is ended as SECURITY.md says, and what is older goes on', async (t) => {
  const statement = /```sql\n([^]*?)```/.exec(security)![1]!
  const path = join(folder(), 'tokens.db')
  const app = await testApp(t, { store: sqliteStore({ path }) })
  const older = await mintToken(app, { userId: 'alice', scopes: ['read'] })
  await setTimeout(5)
  const leakedAt = Date.now()
  const newer = await mintToken(app, { userId: 'bob', scopes: ['read'] })
  const database = new DatabaseSync(path)
  const [find, end] = statement.replace(/(?<=revoked_at = )\d{13}/, String(Date.now())).replaceAll(/(?<=created_at >= )\d{13}/g, String(leakedAt)).split(';')
  t.strictSame(database.prepare(find!).all().map((row) => ({ ...row as object })), [{ user_id: 'bob' }])
  database.exec(end!)
  database.close()
  const call = async (token: string) => (await app.inject({ method: 'POST', url: '/mcp', headers: bearer(token) })).statusCode
  t.strictSame([await call(older), await call(newer)], [200, 401])

  const [, program] = /```js\n(const grant[^]*?)```/.exec(security)!
  const { end: endOne } = await import(`data:text/javascript,${encodeURIComponent(`export async function end (app, token) { ${program} }`)}`) as { end: (...args: unknown[]) => Promise<void> }
  await endOne(app, older)
  t.equal(await call(older), 401, 'and of one token that leaked')
})

t.test('SECURITY.md names each package that is installed along', async (t) => {
  const { packages } = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8')) as { packages: Record<string, { dev?: true, peer?: true, devOptional?: true }> }
  const installed = Object.entries(packages).filter(([path, { dev, peer, devOptional }]) => path !== '' && !dev && !peer && !devOptional).map(([path]) => path.split('node_modules/').at(-1)!)
  const [, list] = security.split('## What is installed')
  t.strictSame([...new Set([...list!.matchAll(/`([^`]+)`/g)].map(([, name]) => name))].sort(), [...new Set(installed)].sort())
})

t.test('the test command of the README is the one that CI runs', async (t) => {
  t.match(readme, /```sh\nnpm ci && npm start\n```/)
  t.match(readme, /```sh\nnpm ci && npm test\n```/)
  t.match(readFileSync(join(root, '.ci/run'), 'utf8'), /^npm ci && npm test$/m)
})

t.test('the figures of the README are those that were measured', async (t) => {
  const { summary, growth, soak, chart, tables } = await import('../bench/report.js' as string) as Record<'summary' | 'growth' | 'soak' | 'chart' | 'tables', (results: unknown) => string>
  const results = (name: string): string => readFileSync(join(root, 'bench/results', name), 'utf8')
  const [run, grown, soaked] = ['run.json', 'growth.json', 'soak.json'].map((name) => JSON.parse(results(name)) as unknown)
  const unwrapped = readme.replaceAll('\n', ' ')
  t.ok(readme.includes(summary!(run)), summary!(run))
  t.ok(unwrapped.includes(growth!(grown)), growth!(grown))
  t.ok(unwrapped.includes(soak!(soaked)), soak!(soaked))
  t.equal(results('run.md'), tables!(run))
  t.equal(results('run.svg'), chart!(run))
})

t.test('an import against the direction is a lint error', async (t) => {
  const eslint = new ESLint({ cwd: root })
  const imports = async (file: string, from: string): Promise<string[]> => {
    const [result] = await eslint.lintText(`import '${from}'\n`, { filePath: join(root, file) })
    return result!.messages.map(({ ruleId }) => ruleId ?? '')
  }
  for (const [file, from] of [
    ['lib/protocol/pkce.ts', '../http/guard.js'],
    ['lib/protocol/pkce.ts', '../options.js'],
    ['lib/store/sqlite.ts', '../grants/grant.js'],
    ['lib/clients/client.ts', '../options.js'],
    ['lib/grants/tokens.ts', '../http/errors.js'],
    ['lib/http/guard.ts', '../endpoints/token.js'],
    ['lib/endpoints/token.ts', '../plugin.js'],
    ['lib/options.ts', './plugin.js'],
    ['lib/plugin.ts', './index.js'],
    ['lib/protocol/pkce.ts', '../expect.js'],
    ['lib/expect.ts', './options.js'],
    ['lib/http/guard.ts', '../remote.js'],
    ['lib/plugin.ts', './remote.js'],
    ['lib/http/pages.ts', '../connections/vault.js']
  ] as const) t.strictSame(await imports(file, from), ['no-restricted-imports'], `${file} → ${from}`)
  for (const [file, from] of [
    ['lib/http/guard.ts', '../protocol/secret.js'],
    ['lib/endpoints/token.ts', '../http/errors.js'],
    ['lib/plugin.ts', './endpoints/token.js'],
    ['lib/clients/configured.ts', '../expect.js'],
    ['lib/remote.ts', './endpoints/metadata.js']
  ] as const) t.strictSame(await imports(file, from), [], `${file} → ${from}`)
})
