import { execFile } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join, relative, sep } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import t from 'tap'
import { installed as program } from './program.js'

const REPOSITORY = fileURLToPath(new URL('../', import.meta.url))
const run = promisify(execFile)

// What people get: the tarball, installed into a project that has nothing else.
t.setTimeout(300_000)
const work = mkdtempSync(join(tmpdir(), 'mcp-oauth-package-'))
t.teardown(() => rmSync(work, { recursive: true, force: true }))
const project = join(work, 'project')
const installed = join(project, 'node_modules', 'fastify-mcp-oauth')
let tarball = ''

t.before(async () => {
  // Packing builds (`prepare`), so it is done on a copy: other tests read dist meanwhile.
  const copy = join(work, 'repository')
  cpSync(REPOSITORY, copy, { recursive: true, filter: (path) => !['node_modules', 'dist', '.git', '.tap'].includes(basename(path)) })
  symlinkSync(join(REPOSITORY, 'node_modules'), join(copy, 'node_modules'), 'junction')
  await command(copy, 'npm', ['pack', '--pack-destination', work])
  const [packed, ...others] = readdirSync(work).filter((name) => name.endsWith('.tgz'))
  t.strictSame(others, [])
  tarball = join(work, packed!)
  mkdirSync(project)
  writeFileSync(join(project, 'package.json'), JSON.stringify({ name: 'project', private: true, type: 'module' }))
  await command(project, 'npm', ['install', '--no-audit', '--no-fund', '--prefer-offline', '--ignore-scripts', tarball, 'fastify@5'])
})

t.test('the package holds what it needs and nothing else', async (t) => {
  const files = readdirSync(installed, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => relative(installed, join(entry.parentPath ?? entry.path, entry.name)).split(sep).join('/'))
    .filter((name) => !name.startsWith('node_modules/'))
    .sort()

  const needed = ['dist/index.js', 'dist/index.d.ts', 'dist/store/sqlite.js', 'dist/store/sqlite.d.ts', 'dist/testing.js', 'dist/testing.d.ts', 'dist/remote.js', 'dist/remote.d.ts', 'views/styles.css',
    ...readdirSync(join(REPOSITORY, 'views')).filter((name) => name.endsWith('.eta')).map((name) => `views/${name}`)]
  t.strictSame(needed.filter((name) => !files.includes(name)), [], 'nothing is missing')
  t.ok(needed.includes('views/consent.eta'))

  const expected = /^(dist\/.+\.(js|d\.ts)|views\/.+\.(eta|css)|docs\/[\w-]+\.md|README\.md|LICENSE|CHANGELOG\.md|SECURITY\.md|package\.json)$/
  t.strictSame(files.filter((name) => !expected.test(name)), [], 'nothing is in it that does not belong')
  t.strictSame(files.filter((name) => /(^|\/)(test|lib|examples|bench)\/|\.test\./.test(name)), [], 'no tests, sources or examples')

  const sources = readdirSync(join(REPOSITORY, 'lib'), { recursive: true }).map(String).filter((name) => name.endsWith('.ts'))
  const built = files.filter((name) => name.startsWith('dist/') && name.endsWith('.js'))
  t.strictSame(built, sources.map((name) => `dist/${name.split(sep).join('/').replace(/\.ts$/, '.js')}`).sort(), 'every source is built')
})

t.test('whatever the package imports comes with it', async (t) => {
  const { dependencies = {}, optionalDependencies = {}, peerDependencies = {} } = JSON.parse(readFileSync(join(installed, 'package.json'), 'utf8')) as Record<string, Record<string, string>>
  const declared = new Set(Object.keys({ ...dependencies, ...optionalDependencies, ...peerDependencies }))
  const undeclared = new Set<string>()
  for (const name of readdirSync(join(installed, 'dist'), { recursive: true }).map(String).filter((name) => /\.(js|d\.ts)$/.test(name))) {
    for (const [, specifier] of readFileSync(join(installed, 'dist', name), 'utf8').matchAll(/(?:from|import)\s*\(?\s*'([^'.][^']*)'/g)) {
      if (specifier!.startsWith('node:')) continue
      const dependency = specifier!.split('/').slice(0, specifier!.startsWith('@') ? 2 : 1).join('/')
      if (!declared.has(dependency)) undeclared.add(`${dependency} in ${name}`)
    }
  }
  t.strictSame([...undeclared], [])
  t.notOk(existsSync(join(project, 'node_modules', 'typescript')), 'and no tool of ours')
})

t.test('an app with the package connects a client, with the default store and the built-in views, and ends by itself', async (t) => {
  write('app.js', `
    import Fastify from 'fastify'
    import mcpOAuth, { OAuthError, StoreUnavailableError } from 'fastify-mcp-oauth'
    import { sqliteStore } from 'fastify-mcp-oauth/sqlite'
    import { connectClient, mintToken } from 'fastify-mcp-oauth/testing'

    const app = Fastify()
    await app.register(mcpOAuth, {
      issuer: 'http://localhost:3000',
      keys: ['k'.repeat(43)],
      scopes: { read: 'Read your notes', write: 'Change your notes' },
      currentUser: ({ headers }) => headers.cookie === 'user=alice' ? { id: 'alice', name: 'Alice' } : null,
      loginUrl: '/login'
    })
    app.post('/mcp', { onRequest: app.oauth.protect({ scopes: ['read'] }) }, async ({ oauth }) => ({ userId: oauth.userId, clientName: oauth.clientName }))

    const registered = await app.inject({ method: 'POST', url: '/oauth/register', payload: { client_name: 'Test client', redirect_uris: ['http://127.0.0.1/callback'] } })
    const query = new URLSearchParams({
      response_type: 'code', client_id: registered.json().client_id, redirect_uri: 'http://127.0.0.1:5000/callback',
      code_challenge: 'c'.repeat(43), code_challenge_method: 'S256'
    })
    const cookie = { cookie: 'user=alice' }
    const consent = await app.inject({ url: '/oauth/authorize?' + query, headers: cookie })
    const styles = await app.inject(consent.body.match(/href="([^"]*styles[^"]*)"/)[1])
    const error = await app.inject('/oauth/authorize')
    const { headers, scopes } = await connectClient(app, { headers: cookie })
    const called = await app.inject({ method: 'POST', url: '/mcp', headers })
    const apps = await app.inject({ url: '/my/connected_apps', headers: cookie })
    const minted = await app.inject({ method: 'POST', url: '/mcp', headers: { authorization: 'Bearer ' + await mintToken(app, { userId: 'bob', scopes: ['read'] }) } })
    await app.listen({ port: 0, host: '127.0.0.1' })
    await app.close()
    console.log(JSON.stringify({
      consent: [consent.statusCode, consent.body], styles: [styles.statusCode, styles.headers['content-type']], error: [error.statusCode, error.headers['content-type']],
      scopes, called: called.json(), apps: apps.body, minted: minted.json(), names: [typeof sqliteStore, OAuthError.name, StoreUnavailableError.name]
    }))
  `)
  const { consent, apps, ...others } = JSON.parse(await command(project, process.execPath, ['app.js'])) as { consent: [number, string], apps: string }
  t.equal(consent[0], 200)
  t.match(consent[1], /Allow <bdi class="name">Test client<\/bdi>[^]*Alice[^]*Read your notes[^]*Change your notes[^]*name="decision" value="approve"/)
  t.match(apps, 'Test client')
  t.strictSame(others, {
    styles: [200, 'text/css; charset=utf-8'],
    error: [400, 'text/html; charset=utf-8'],
    scopes: ['read', 'write'],
    called: { userId: 'alice', clientName: 'Test client' },
    minted: { userId: 'bob', clientName: null },
    names: ['function', 'OAuthError', 'StoreUnavailableError']
  })
  t.ok(existsSync(join(project, 'oauth.db')), 'the default store is a file beside the app')
})

t.test('only what is exported can be imported', async (t) => {
  write('exports.js', `
    const answers = {}
    for (const path of process.argv.slice(2)) {
      answers[path] = await import('fastify-mcp-oauth' + path).then((module) => Object.keys(module).sort(), ({ code }) => code)
    }
    console.log(JSON.stringify(answers))
  `)
  const inside = ['/plugin', '/dist/index.js', '/dist/plugin.js', '/store/sqlite', '/options', '/views/consent.eta', '/lib/index.ts']
  const answers = JSON.parse(await command(project, process.execPath, ['exports.js', '', '/sqlite', '/postgres', '/testing', '/remote', '/connections', '/connections/postgres', ...inside])) as Record<string, string | string[]>
  t.match(answers[''], ['OAuthError', 'StoreUnavailableError', 'default'])
  t.strictSame(answers['/sqlite'], ['sqliteStore'])
  t.strictSame(answers['/postgres'], ['postgresStore'])
  t.strictSame(answers['/testing'], ['connectClient', 'mintToken'])
  t.strictSame(answers['/remote'], ['default'])
  t.strictSame(answers['/connections'], ['NotConnectedError', 'ReconnectRequiredError', 'UserNeededError', 'createConnections', 'default', 'fetchPublic', 'sqliteConnectionStore'])
  t.strictSame(answers['/connections/postgres'], ['postgresConnectionStore'])
  for (const path of inside) t.equal(answers[path], 'ERR_PACKAGE_PATH_NOT_EXPORTED', path)
})

t.test('publint finds nothing to say', async (t) => {
  t.match(await command(work, process.execPath, [program('publint/src/cli.js'), 'run', tarball, '--strict']), /All good!/)
})

t.test('attw finds the types of every export, for modules and bundlers', async (t) => {
  const { analysis, problems } = JSON.parse(await command(work, process.execPath, [program('@arethetypeswrong/cli/dist/index.js'), tarball, '--profile', 'esm-only', '--format', 'json'])) as {
    analysis: { entrypoints: Record<string, { resolutions: Record<string, { resolution?: { fileName: string, isTypeScript: boolean } }> }> }
    problems?: Record<string, Array<{ kind: string, entrypoint?: string, resolutionKind?: string }>>
  }
  const { exports } = JSON.parse(readFileSync(join(installed, 'package.json'), 'utf8')) as { exports: Record<string, { types: string }> }
  t.strictSame(Object.keys(analysis.entrypoints).sort(), Object.keys(exports).sort())
  for (const [entrypoint, { resolutions }] of Object.entries(analysis.entrypoints)) {
    for (const kind of ['node16-esm', 'bundler']) {
      t.match(resolutions[kind]?.resolution, { fileName: new RegExp(`${exports[entrypoint]!.types.slice(1)}$`), isTypeScript: true }, `${entrypoint} by ${kind}`)
    }
  }
  // The package has modules only, which CommonJS imports with import(). node10 is the resolution of a Node that knows no exports.
  const ignored = ['node10', 'node16-cjs']
  t.strictSame(Object.values(problems ?? {}).flat().filter(({ resolutionKind }) => !ignored.includes(resolutionKind ?? '')), [])
})

t.test('the types of the package hold in a strict project, its libraries checked too', async (t) => {
  // Its own declarations must be complete; those of Node and of its database driver are the project's to bring.
  mkdirSync(join(project, 'node_modules', '@types'), { recursive: true })
  for (const name of ['@types/node', '@types/pg', 'undici-types']) {
    if (!existsSync(join(project, 'node_modules', name))) symlinkSync(join(REPOSITORY, 'node_modules', name), join(project, 'node_modules', name), 'junction')
  }
  write('app.ts', `
    import Fastify, { type FastifyInstance } from 'fastify'
    import { Agent } from 'node:https'
    import mcpOAuth, {
      OAuthError, StoreUnavailableError,
      type AuditEvent, type AuthInfo, type ClientIdMetadata, type ConfiguredClient, type FallbackGrant, type Grant, type Guard, type ListedGrant, type McpOAuth, type McpOAuthOptions, type ProtectOptions,
      type RateLimits, type RequestGrant, type ResourceOptions, type ScopeDefinition, type Selector, type TokenRow, type Tokens, type TokenStats, type TokenStore, type User
    } from 'fastify-mcp-oauth'
    import { postgresStore, type PostgresStoreOptions } from 'fastify-mcp-oauth/postgres'
    import { sqliteStore, type SqliteStoreOptions } from 'fastify-mcp-oauth/sqlite'
    import { connectClient, mintToken, type ConnectedClient } from 'fastify-mcp-oauth/testing'

    const storeOptions: SqliteStoreOptions = { path: 'tokens.db' }
    const store: TokenStore = sqliteStore(storeOptions)
    const postgresOptions: PostgresStoreOptions = { connectionString: 'postgres://db.example.com/app', max: 5, migrate: false, timeout: 1000 }
    const resource: ResourceOptions = { path: '/mcp', name: 'Notes' }
    const write: ScopeDefinition = { description: 'Change your notes', implies: ['read'] }
    const limits: RateLimits = { register: { max: 5, timeWindow: '1 minute' }, token: false }
    const hosted: ClientIdMetadata = { allowHosts: ['claude.ai'], redirectUris: ['https://vscode.dev/redirect'], agent: new Agent({ keepAlive: true }) }
    const desk: ConfiguredClient = { clientId: 'desk', clientName: 'Desk', redirectUris: ['https://desk.example.com/callback'], clientSecretHashes: ['h'.repeat(43)] }
    const old: FallbackGrant = { userId: 'alice', scopes: ['read'] }
    const events: AuditEvent['type'][] = []
    const options: McpOAuthOptions = {
      issuer: 'https://notes.example.com',
      keys: ['k'.repeat(43)],
      store,
      scopes: { read: 'Read your notes', write },
      resources: [resource],
      currentUser: async (request): Promise<User | null> => typeof request.headers['x-user'] === 'string' ? { id: request.headers['x-user'] } : null,
      loginUrl: (request, returnTo) => request.hostname + returnTo,
      rateLimit: limits,
      clientIdMetadata: hosted,
      fallbackToken: async (token) => token === 'old' ? old : null,
      onEvent: ({ type }) => { events.push(type) }
    }
    export const every: Required<McpOAuthOptions> = {
      ...options,
      store: postgresStore(postgresOptions),
      resources: [resource, { url: 'https://files.example.com/files', scopes: ['read'], documentation: 'https://docs.example.com' }],
      codeLifetime: 60,
      accessTokenLifetime: 3600,
      refreshTokenLifetime: 86_400,
      refreshGrace: 30,
      idleLifetime: null,
      registration: { enabled: true, redirectUris: ['https://web.example.com/callback'] },
      clientIdMetadata: true,
      clients: [desk],
      connectedApps: { path: '/apps' },
      rateLimit: false,
      views: '/views',
      rootAliases: true,
      findUser: async (userId) => ({ id: userId }),
      userinfo: (user, grant) => ({ name: user.name, scopes: grant.scopes }),
      fallbackToken: () => null,
      onEvent: () => {}
    }
    // @ts-expect-error a client has an id
    export const anonymous: McpOAuthOptions = { ...options, clients: [{ clientName: 'Desk', redirectUris: [] }] }
    export const lookUp: McpOAuthOptions = { ...options, clients: async (clientId) => clientId === 'desk' ? desk : null }
    const app: FastifyInstance = Fastify()
    await app.register(mcpOAuth, options)
    const oauth: McpOAuth = app.oauth
    const tokens: Tokens = oauth.tokens
    const needed: ProtectOptions = { scopes: ['read'] }
    const guard: Guard = oauth.protect(needed)
    app.post('/mcp', { onRequest: guard }, async (request) => {
      const grant: RequestGrant | null = request.oauth
      grant?.require('write')
      const info: AuthInfo | undefined = grant?.authInfo()
      return { info, userId: grant?.userId }
    })
    app.get('/mcp', { onRequest: [guard] }, async ({ oauth }) => oauth!.scopes)
    const selector: Selector = { userId: 'alice', clientId: 'x' }
    const revoked: number = await tokens.revoke(selector)
    const listed: ListedGrant[] = await tokens.list({ userId: 'alice' })
    const verified: Grant | null = await tokens.verify('oat_x')
    const { active }: TokenStats = await tokens.stats()
    const token: string = await mintToken(app, { userId: 'alice', scopes: ['read'] })
    const client: ConnectedClient = await connectClient(app, { headers: { cookie: 'x' } })
    const row: Pick<TokenRow, 'id' | 'userId'> = { id: '', userId: null }
    export { revoked, listed, verified, active, token, client, row, events, OAuthError, StoreUnavailableError }

    // @ts-expect-error an option that does not exist
    await app.register(mcpOAuth, { ...options, isuer: 'https://notes.example.com' } satisfies McpOAuthOptions)
    // @ts-expect-error a required option is missing
    await app.register(mcpOAuth, { issuer: 'https://notes.example.com' })
    // @ts-expect-error request.oauth may be null
    app.get('/unguarded', async ({ oauth }) => oauth.userId)
    // @ts-expect-error a lifetime is a number of seconds
    export const lifetime: McpOAuthOptions = { ...options, accessTokenLifetime: '1 hour' }
    // @ts-expect-error a user has an id
    export const nobody: McpOAuthOptions = { ...options, currentUser: () => ({ name: 'Alice' }) }
    // @ts-expect-error a resource is an object with a path or a URL
    export const unlike: McpOAuthOptions = { ...options, resources: ['/mcp'] }
    export const unhosted: McpOAuthOptions = { ...options, clientIdMetadata: false }
    // @ts-expect-error the hosts of clients are a list
    export const host: McpOAuthOptions = { ...options, clientIdMetadata: { allowHosts: 'claude.ai' } }
    // @ts-expect-error a limit that does not exist
    export const limitless: RateLimits = { tokens: false }

    app.get('/types', { onRequest: guard }, async (request) => {
      const { userId, tenantId, clientId, clientName, scopes, resource, expiresAt, grantId } = request.oauth!
      const nullable: Array<string | null> = [userId, tenantId, clientId, clientName, resource]
      const named: [string, readonly string[], number | null] = [grantId, scopes, expiresAt]
      // @ts-expect-error a client that acts for itself has no user
      const user: string = userId
      // @ts-expect-error scopes are names
      request.oauth!.require(5)
      // @ts-expect-error a grant does not hold its token
      return [nullable, named, user, request.oauth!.token]
    })
    // @ts-expect-error a guard is told its scopes in a list
    oauth.protect({ scopes: 'read' })
    // @ts-expect-error whose tokens to revoke must be said
    await tokens.revoke({})

    function audit (event: AuditEvent): string {
      const common: [number, string | null, string | null, string | null] = [event.at, event.requestId, event.userId, event.clientId]
      switch (event.type) {
        case 'client.registered': return event.clientName + event.redirectUris.join()
        case 'consent.shown': case 'consent.approved': case 'token.issued': return event.scopes.join()
        case 'token.refreshed': return event.grantId
        case 'token.revoked': return event.reason + event.grants
        case 'registration.rejected': case 'client.rejected': case 'consent.denied': case 'code.rejected': case 'token.rejected': return event.reason
        default: { const none: never = event; return String(none) + common.join() }
      }
    }
    export const audited: McpOAuthOptions = { ...options, onEvent: audit }
    // @ts-expect-error only a refusal has a reason
    export const reasons: McpOAuthOptions = { ...options, onEvent: (event) => event.reason }
    // @ts-expect-error no event has a token
    export const leaks: McpOAuthOptions = { ...options, onEvent: (event) => event.token }
    // @ts-expect-error an event that does not exist
    export const missed: McpOAuthOptions = { ...options, onEvent: ({ type }) => type === 'token.stolen' }
  `)
  // The one that most apps have still, and the one that comes.
  const compile = (compiler: 'typescript' | 'typescript-7', ...files: string[]) => command(project, process.execPath, [
    join(REPOSITORY, 'node_modules', compiler, 'bin', 'tsc'),
    '--noEmit', '--strict', '--module', 'nodenext', '--target', 'es2022', '--skipLibCheck', 'false', '--types', 'node', ...files
  ])
  t.equal(await compile('typescript', 'app.ts'), '')
  write('remote.ts', `
    import Fastify from 'fastify'
    import type { AuditEvent, Grant } from 'fastify-mcp-oauth'
    import remoteGuard, { type RemoteGuardOptions } from 'fastify-mcp-oauth/remote'

    const app = Fastify()
    const options: RemoteGuardOptions = {
      issuer: 'https://login.example.com',
      origin: 'https://files.example.com',
      clientId: 'files',
      clientSecret: 'secret',
      scopes: ['read'],
      resources: [{ path: '/mcp', name: 'Files' }],
      cacheLifetime: 60,
      onEvent: ({ type }: AuditEvent) => { console.log(type) }
    }
    await app.register(remoteGuard, options)
    app.post('/mcp', { onRequest: app.oauth.protect({ scopes: ['read'] }) }, async ({ oauth }): Promise<Grant> => oauth!)

    // @ts-expect-error an option that does not exist
    await app.register(remoteGuard, { ...options, keys: [] } satisfies RemoteGuardOptions)
    // @ts-expect-error a required option is missing
    await app.register(remoteGuard, { issuer: 'https://login.example.com' })
  `)
  write('subpaths.ts', `
    // @ts-expect-error not exported
    import 'fastify-mcp-oauth/plugin'
    // @ts-expect-error not exported
    import 'fastify-mcp-oauth/dist/plugin.js'
    export {}
  `)
  write('connections.ts', `
    import Fastify from 'fastify'
    import mcpConnections, {
      NotConnectedError, createConnections, sqliteConnectionStore, type Connection, type ConnectionEvent, type ConnectionStore, type McpConnectionsOptions
    } from 'fastify-mcp-oauth/connections'
    import { postgresConnectionStore } from 'fastify-mcp-oauth/connections/postgres'

    const stores: ConnectionStore[] = [sqliteConnectionStore({ path: 'connections.db' }), postgresConnectionStore({ connectionString: 'postgres://db.example.com/app' })]
    const store = stores[0]!
    const options: McpConnectionsOptions = {
      baseUrl: 'https://digest.example.com',
      keys: [process.env.KEY],
      store,
      servers: async (userId: string) => ({ notes: { url: 'https://notes.example.com/mcp/' + userId, scopes: ['read'], userSupplied: true } }),
      currentUser: () => ({ id: 'alice' }),
      loginUrl: '/login',
      onEvent: ({ type, userId, server }: ConnectionEvent) => { console.log(type, userId, server) }
    }
    const app = Fastify()
    await app.register(mcpConnections, options)
    export const listed: Connection[] = await app.connections.list('alice')
    export const jobs = createConnections({ keys: ['x'], store, servers: { notes: { url: 'https://notes.example.com/mcp' } } })
    export const whose = (error: NotConnectedError): [string, string] => [error.userId, error.server]

    // @ts-expect-error a required option is missing
    await app.register(mcpConnections, { baseUrl: 'https://digest.example.com' })
    // @ts-expect-error an option that does not exist
    createConnections({ keys: ['x'], store, servers: {}, path: '/' })
  `)
  t.equal(await compile('typescript-7', 'remote.ts', 'connections.ts', 'subpaths.ts'), '', 'the other plugins, and what they add to an app, without the first; and no inside has types')
})

function write (name: string, text: string): void {
  writeFileSync(join(project, name), text.replace(/^ {4}/gm, ''))
}

/** Runs a command to its end; answers what it printed, and throws with all of it where it failed. */
async function command (cwd: string, file: string, args: string[]): Promise<string> {
  // Neither the loaders of the test runner nor the package that npm runs it for are the child's business. The runner puts
  // its loader into every environment that is given, so it is taken out behind it.
  const { NODE_OPTIONS: _, npm_config_local_prefix: __, ...env } = process.env
  const onWindows = process.platform === 'win32'
  const [program, ...before] = onWindows ? [file] as const : ['env', '-u', 'NODE_OPTIONS', file] as const
  try {
    const { stdout } = await run(program, [...before, ...args], { cwd, env, shell: onWindows && file === 'npm', timeout: 240_000, maxBuffer: 16 * 1024 * 1024 })
    return stdout
  } catch (error) {
    const { message, stdout, stderr } = error as { message: string, stdout: string, stderr: string }
    throw new Error(`${basename(file)} ${args.join(' ')}: ${message}\n${stdout}\n${stderr}`)
  }
}
