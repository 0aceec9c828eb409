import { DatabaseSync } from '@photostructure/sqlite'
import Fastify, { type FastifyInstance, type InjectOptions } from 'fastify'
import { exportJWK, exportPKCS8, generateKeyPair, SignJWT, type JWTPayload } from 'jose'
import crypto, { hash, randomBytes } from 'node:crypto'
import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import { existsSync, readFileSync } from 'node:fs'
import { syncBuiltinESMExports } from 'node:module'
import { join } from 'node:path'
import process from 'node:process'
import { setTimeout as sleep } from 'node:timers/promises'
import { inspect } from 'node:util'
import pg from 'pg'
import t, { type Test } from 'tap'
import mcpOAuth, { type AuditEvent, type ConfiguredClient, type McpOAuthOptions } from '../dist/index.js'
import { deriveKey, parseKey } from '../dist/protocol/secret.js'
import remoteGuard from '../dist/remote.js'
import { postgresStore } from '../dist/store/postgres.js'
import { newRow } from '../dist/store/schema.js'
import { sqliteStore } from '../dist/store/sqlite.js'
import type { TokenStore } from '../dist/store/store.js'
import { CALLBACK, FORM, ISSUER, bearer, dance, fieldOf, folder, form, replace, testApp, testOptions } from './app.js'
import { Network } from './network.js'
import { startPostgres } from './postgres.js'
import { freePort } from './scripts/free-port.js'

t.setTimeout(120_000)

const PAGE = '/my/connected_apps'
const JSON_ONLY = { accept: 'application/json' }
const random = (): string => randomBytes(32).toString('base64url')
const sha256 = (text: string): Buffer => hash('sha256', text, 'buffer')

// What is looked for

/** What a secret may have become: written for a URL, a form, JSON or a database, or a part of it. */
function formsOf (secret: string): Map<string, Buffer> {
  const forms = new Map<string, Buffer>()
  const add = (name: string, form: Buffer | string): void => { forms.set(name, Buffer.from(form)) }
  const encode = (name: string, bytes: Buffer): void => {
    add(`${name} in hexadecimal`, bytes.toString('hex'))
    add(`${name} in capital hexadecimal`, bytes.toString('hex').toUpperCase())
    // In the middle of something longer it has three forms, by what is before it; what it shares with that is left out.
    for (const before of [0, 1, 2]) {
      const base64 = Buffer.concat([Buffer.alloc(before), bytes]).toString('base64').replace(/=+$/, '')
      const own = base64.slice(Math.ceil(before * 8 / 6), (before + bytes.length) % 3 === 0 ? undefined : -1)
      add(`${name} in base64 after ${before} bytes`, own)
      add(`${name} in base64url after ${before} bytes`, own.replaceAll('+', '-').replaceAll('/', '_'))
    }
  }
  add('itself', secret)
  add('in JSON', JSON.stringify(secret).slice(1, -1))
  add('percent-encoded', encodeURIComponent(secret))
  add('form-encoded', new URLSearchParams([['', secret]]).toString().slice(1))
  add('in UTF-16', Buffer.from(secret, 'utf16le'))
  encode('it', Buffer.from(secret))
  for (const core of coresOf(secret)) {
    // An error that quotes some of it is a leak as well. In hexadecimal, eight characters could be chance.
    const width = /^[\da-f]+$/.test(core) ? 16 : 8
    for (let at = 0; at + width <= core.length; at += 3) if (at < 40 || at > core.length - 40) add(`its characters from ${at} of ${core.length}`, core.slice(at, at + width))
    const bytes = Buffer.from(core, 'base64url')
    if (bytes.toString('base64url') !== core) continue
    add(`the bytes of ${core.length} characters`, bytes)
    encode(`the bytes of ${core.length} characters`, bytes)
  }
  return forms
}

/** What of a secret nobody could know: without its prefix, the id of its grant or client, and what a JWE or JWS says openly. */
function coresOf (secret: string): string[] {
  if (Buffer.from(secret, 'base64').toString('base64') === secret && Buffer.from(secret, 'base64').includes(':')) return []
  if (/^(oat_|pat_|ocs_)/.test(secret)) return [secret.slice(4)]
  if (secret.startsWith('ort_')) return [secret.slice(4 + 22)]
  const parts = secret.split('.')
  if (parts.length === 3) return parts.slice(2)
  if (parts.length === 5) return parts.slice(3)
  return [secret]
}

/** By its name on the wire, all that is secret in what was sent and answered. */
class Secrets {
  readonly #kinds = new Map<string, string>()

  add (kind: string, secret: string | null | undefined): void {
    if (secret != null && secret.length >= 20) this.#kinds.set(secret, this.#kinds.get(secret) ?? kind)
  }

  addFields (entries: Iterable<[string, unknown]>): void {
    for (const [name, value] of entries) {
      if (typeof value === 'object' && value !== null) this.addFields(Object.entries(value))
      else if (/^(access_token|refresh_token|token|code|code_verifier|client_secret|client_assertion|ticket)$/.test(name)) this.add(name, String(value))
    }
  }

  count (kind: string): number {
    return [...this.#kinds.values()].filter((other) => other === kind).length
  }

  get size (): number { return this.#kinds.size }

  /** Where which of them is, by kind and form. */
  leaks (places: Record<string, Buffer>): string[] {
    const found: string[] = []
    for (const [secret, kind] of this.#kinds) {
      for (const [form, bytes] of formsOf(secret)) {
        for (const [name, place] of Object.entries(places)) if (place.includes(bytes)) found.push(`${kind}, ${form}: ${name}`)
      }
    }
    return found
  }
}

/** The app, with an eye on every request to it and every answer. */
function observed (app: FastifyInstance, secrets: Secrets): FastifyInstance {
  const inject = async (options: InjectOptions | string) => {
    const { headers: sent = {}, payload } = typeof options === 'string' ? {} : options
    const authorization = String((sent as Record<string, string>).authorization ?? '')
    secrets.add('authorization', authorization.split(' ')[1])
    if (/^basic /i.test(authorization)) secrets.add('client_secret', new URLSearchParams(`secret=${Buffer.from(authorization.slice(6), 'base64').toString().split(':').at(-1)!}`).get('secret'))
    if (typeof payload === 'string') secrets.addFields(new URLSearchParams(payload))
    const response = await app.inject(options)
    const { location } = response.headers
    if (location !== undefined) secrets.addFields(new URL(String(location), ISSUER).searchParams)
    secrets.add('ticket', fieldOf(response.body, 'ticket'))
    for (const [token] of response.body.matchAll(/pat_[\w-]{43}/g)) secrets.add('personal token', token)
    if (String(response.headers['content-type']).startsWith('application/json')) secrets.addFields(Object.entries(response.json<object>()))
    return response
  }
  return new Proxy(app, { get: (target, name) => name === 'inject' ? inject : Reflect.get(target, name, target) as unknown })
}

// Where it is looked for

interface Database {
  store: TokenStore
  /** All that is kept. */
  dump: () => Promise<Buffer>
  /** Runs SQL beside the store. */
  run: (sql: string) => Promise<void>
  /** Takes the database away, and brings it back. */
  stop: () => Promise<void>
  start: () => Promise<void>
}

async function openSqlite (): Promise<Database> {
  const path = join(folder(), 'tokens.db')
  const store = sqliteStore({ path })
  return {
    store,
    dump: async () => Buffer.concat([path, `${path}-wal`, `${path}-shm`, `${path}-journal`].filter((file) => existsSync(file)).map((file) => readFileSync(file))),
    run: async (sql) => {
      const database = new DatabaseSync(path)
      database.exec(sql)
      database.close()
    },
    stop: async () => await store.close(),
    start: async () => await store.open()
  }
}

/** Every column of every table, as text and as bytes, and both in hexadecimal and base64. */
async function dumpPostgres (client: pg.Client): Promise<Buffer> {
  const parts: Buffer[] = []
  const { rows: tables } = await client.query<{ schema: string, name: string }>("SELECT table_schema AS schema, table_name AS name FROM information_schema.tables WHERE table_schema NOT IN ('pg_catalog', 'information_schema')")
  for (const { schema, name } of tables) {
    const { rows } = await client.query<Record<string, unknown>>(`SELECT * FROM ${client.escapeIdentifier(schema)}.${client.escapeIdentifier(name)}`)
    for (const value of rows.flatMap((row) => Object.values(row))) {
      if (value === null) continue
      const bytes = Buffer.isBuffer(value) ? value : Buffer.from(String(value))
      parts.push(bytes, Buffer.from(`\n${bytes.toString('hex')}\n${bytes.toString('base64')}\n`))
    }
  }
  return Buffer.concat(parts)
}

const server = await startPostgres(t)

async function openPostgres (): Promise<Database> {
  const connectionString = await server.database()
  const name = new URL(connectionString).pathname.slice(1)
  const use = async <T>(url: string, work: (client: pg.Client) => Promise<T>): Promise<T> => {
    const client = new pg.Client(url)
    await client.connect()
    try {
      return await work(client)
    } finally {
      await client.end()
    }
  }
  return {
    store: postgresStore({ connectionString }),
    dump: async () => await use(connectionString, dumpPostgres),
    run: async (sql) => { await use(connectionString, async (client) => await client.query(sql)) },
    stop: async () => await use(server.url, async (client) => {
      await client.query(`ALTER DATABASE ${name} ALLOW_CONNECTIONS false`)
      await client.query('SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1', [name])
    }),
    start: async () => { await use(server.url, async (client) => await client.query(`ALTER DATABASE ${name} ALLOW_CONNECTIONS true`)) }
  }
}

// The run

const KEYS = [random(), randomBytes(32).toString('hex')]
/** With all that has to be encoded somewhere. */
const SECRET = `${random()} + 100% /=&"é🙂\\: ${random()}`
const SERVICE_SECRET = `ocs_${random()}`
const HOSTED = 'https://client.example/client.json'
const UNREACHABLE = 'https://client.example/unreachable.json'
const INDISCREET = 'https://client.example/indiscreet.json'
const MCP = `${ISSUER}/mcp`

const pair = await generateKeyPair('ES256', { extractable: true })
const foreign = await generateKeyPair('ES256', { extractable: true })
const publicKey = { ...await exportJWK(pair.publicKey), kid: 'a', alg: 'ES256' }

const CLIENTS: ConfiguredClient[] = [
  { clientId: 'web', clientName: 'Web', redirectUris: [CALLBACK], clientSecretHashes: [sha256(SECRET).toString('base64url')], scopes: ['read'], introspects: [MCP] },
  { clientId: 'resource', clientName: 'Resource', clientSecretHashes: [sha256(SERVICE_SECRET).toString('hex')], introspects: [MCP] },
  { clientId: 'service', clientName: 'Service', redirectUris: [CALLBACK], jwks: { keys: [publicKey] }, scopes: ['read'] },
  { clientId: 'plain', clientName: 'Plain', redirectUris: [CALLBACK], clientSecretHashes: [sha256(random()).toString('hex')] }
]

async function assertion (clientId: string, claims: JWTPayload = {}, key = pair.privateKey): Promise<Record<string, string>> {
  return {
    client_assertion_type: 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer',
    client_assertion: await new SignJWT({ iss: clientId, sub: clientId, aud: ISSUER, jti: random(), exp: Math.floor(Date.now() / 1000) + 60, ...claims }).setProtectedHeader({ alg: 'ES256', kid: 'a' }).sign(key)
  }
}

const basic = (id: string, secret: string): Record<string, string> => ({ authorization: `Basic ${Buffer.from([id, secret].map((text) => new URLSearchParams([['', text]]).toString().slice(1)).join(':')).toString('base64')}` })

/** Everything that the plugin does, right and wrong, with all that it says of it. */
async function everything (t: Test, database: Database) {
  const secrets = new Secrets()
  const [logged, errors, events, measured, printed]: [string[], string[], AuditEvent[], unknown[], string[]] = [[], [], [], [], []]
  for (const key of KEYS) {
    secrets.add('key', key)
    const bytes = parseKey(key)!
    secrets.add('key', bytes.toString('base64url'))
    for (const purpose of ['code', 'consent', 'page', 'client', 'refresh']) secrets.add('key', deriveKey(bytes, purpose, 32).toString('base64url'))
  }
  for (const { privateKey } of [pair, foreign]) {
    secrets.add('private key', (await exportJWK(privateKey)).d)
    secrets.add('private key', (await exportPKCS8(privateKey)).split('\n')[1])
  }

  t.capture(process.stderr, 'write', (text: string | Uint8Array) => {
    printed.push(String(text))
    return true
  })
  const measure = (measurement: unknown): void => { measured.push(measurement) }
  subscribe('fastify-mcp-oauth:request', measure)
  t.teardown(() => unsubscribe('fastify-mcp-oauth:request', measure))

  const network = await Network.start(t)
  const document = (id: string, more: object = {}): object => ({ client_id: id, client_name: 'Hosted', redirect_uris: [CALLBACK], token_endpoint_auth_method: 'private_key_jwt', jwks_uri: 'https://keys.example/jwks.json', ...more })
  network.publish(HOSTED, document(HOSTED))
  network.publish('https://keys.example/jwks.json', { keys: [publicKey] })
  network.publish(UNREACHABLE, document(UNREACHABLE, { jwks_uri: 'https://gone.client.example/jwks.json' }))
  network.names.set('gone.client.example', ['ESERVFAIL'])
  const indiscretion = random()
  secrets.add('client_secret', indiscretion)
  network.publish(INDISCREET, document(INDISCREET, { client_secret: indiscretion }))

  const apiKeys = [`older-${random()}`, `older-${random()}`]
  const logger = { level: 'trace', stream: { write: (line: string) => { logged.push(line) } } }
  const options: McpOAuthOptions = testOptions({
    keys: KEYS,
    store: database.store,
    clients: CLIENTS,
    clientIdMetadata: { agent: network },
    accessTokenLifetime: 3600,
    refreshTokenLifetime: 7200,
    refreshGrace: 0,
    idleLifetime: 3600,
    findUser: (id) => id === 'deleted' ? null : { id },
    userinfo: ({ id }) => ({ name: id }),
    fallbackToken: (token) => token === apiKeys[0] ? { userId: 'alice', scopes: ['read'] } : null,
    onEvent: (event) => {
      events.push(event)
      if (event.type === 'consent.shown') throw new Error('the handler broke')
    },
    rateLimit: { register: { max: 50 } }
  })
  const host = async (prepare: (app: FastifyInstance) => Promise<unknown>): Promise<FastifyInstance> => {
    const app = Fastify({ logger })
    t.teardown(() => app.close())
    // Whatever is thrown: the host may print it as it likes.
    app.addHook('onError', async (_request, _reply, error) => { errors.push(inspect(error, { depth: 10, showHidden: true, maxStringLength: Infinity })) })
    await prepare(app)
    app.post('/mcp', { onRequest: app.oauth.protect({ scopes: ['read'] }) }, async ({ oauth }) => ({ userId: oauth!.userId }))
    app.post('/write', { onRequest: app.oauth.protect() }, async ({ oauth }) => oauth!.require('write'))
    app.get('/broken', async ({ query }) => { throw new Error(`broken: ${String((query as { why?: string }).why)}`) })
    await app.ready()
    return app
  }
  const issuer = `http://127.0.0.1:${await freePort()}`
  const bare = await host(async (app) => await app.register(mcpOAuth, options))
  const app = observed(bare, secrets)

  const alice = dance(app)
  const post = async (url: string, fields: Record<string, string | string[]>, headers: Record<string, string> = {}) => await app.inject({ method: 'POST', url, headers: { ...FORM, ...headers }, payload: form(fields) })
  const call = async (token: string, url = '/mcp') => await app.inject({ method: 'POST', url, headers: bearer(token) })
  interface Tokens { access_token: string, refresh_token: string }
  const refresh = async (client: string, token: string, more: Record<string, string> = {}) => await post('/oauth/token', { grant_type: 'refresh_token', client_id: client, refresh_token: token, ...more })
  const statuses: number[] = []
  const expects = async (status: number, what: string, response: Promise<{ statusCode: number }>): Promise<void> => {
    const { statusCode } = await response
    statuses.push(statusCode)
    t.equal(statusCode, status, what)
  }

  // A public client: consent, a code used twice, refreshing, a refresh token used twice.
  const client = await alice.clientId()
  await expects(303, 'deny', alice.consent({ ticket: await alice.ticket(client), decision: 'deny' }))
  const code = await alice.code(client)
  const first = (await alice.redeem(client, code)).json<Tokens>()
  await expects(200, 'a call', call(first.access_token))
  await expects(200, 'userinfo', app.inject({ url: '/oauth/userinfo', headers: bearer(first.access_token) }))
  const second = (await refresh(client, first.refresh_token)).json<Tokens>()
  await expects(400, 'another scope', refresh(client, second.refresh_token, { scope: 'read write admin' }))
  await sleep(5)
  await expects(400, 'reuse', refresh(client, first.refresh_token))
  await expects(401, 'after reuse', call(second.access_token))
  await expects(400, 'replay', alice.redeem(client, code))

  // Codes that are refused.
  const refused = await alice.code(client)
  const other = await alice.clientId({ client_name: 'Other' })
  for (const changes of [{ code_verifier: random() }, { code_verifier: `${random()}!` }, { code_verifier: '' }, { client_id: other }, { redirect_uri: 'http://127.0.0.1:1/callback' }, { resource: `${ISSUER}/other` }, { code: random() }, { code: `${refused}x` }, { code: refused.replace(/.$/, '') }, { grant_type: 'password' }] as Array<Record<string, string>>) {
    await expects(400, `another ${Object.keys(changes).join()}`, alice.redeem(client, refused, changes))
  }
  for (const changes of [{ client_id: 'nobody' }, { client_secret: random() }, { client_assertion: random() }] as Array<Record<string, string>>) await expects(401, `another ${Object.keys(changes).join()}`, alice.redeem(client, refused, changes))
  for (const token of [`ort_${randomBytes(65).toString('base64url')}`, `${second.refresh_token.slice(0, -1)}-`, random(), first.access_token]) await expects(400, 'a refresh token that is none', refresh(client, token))
  const deleted = dance(app, 'deleted')
  await expects(400, 'a deleted user', deleted.redeem(client, await deleted.code(client)))

  // Confidential clients, by secret and by assertion, right and wrong.
  for (const [headers, fields, status] of [
    [basic('web', SECRET), {}, 200], [{}, { client_id: 'web', client_secret: SECRET }, 200], [{}, await assertion('service'), 200],
    [basic('web', random()), {}, 401], [{}, { client_id: 'web', client_secret: `${SECRET}x` }, 401], [basic('web', SECRET), { client_id: 'web', client_secret: SECRET }, 401], [basic('nobody', SECRET), {}, 401],
    [basic('service', SECRET), {}, 401], [{ authorization: `Basic ${Buffer.from(SECRET).toString('base64')}` }, {}, 401], [{ authorization: `Bearer ${SERVICE_SECRET}` }, {}, 401],
    [{}, await assertion('service', {}, foreign.privateKey), 401], [{}, await assertion('service', { aud: 'https://elsewhere.example' }), 401], [{}, await assertion('service', { exp: 1 }), 401], [{}, await assertion('web'), 401], [{}, { client_id: 'service', ...await assertion('service'), client_secret: SECRET }, 401],
    [basic('plain', random()), {}, 401]
  ] as Array<[Record<string, string>, Record<string, string>, number]>) await expects(status, Object.keys({ ...headers, ...fields }).join(), post('/oauth/token', { grant_type: 'client_credentials', ...fields }, headers))

  const confidential = (await post('/oauth/token', { grant_type: 'authorization_code', code: await alice.code('web'), code_verifier: alice.codeVerifier, redirect_uri: CALLBACK }, basic('web', SECRET))).json<Tokens>()
  const assured = (await post('/oauth/token', { grant_type: 'authorization_code', code: await alice.code('service'), code_verifier: alice.codeVerifier, redirect_uri: CALLBACK, ...await assertion('service') })).json<Tokens>()
  for (const token of [confidential.access_token, assured.access_token, confidential.refresh_token, `oat_${random()}`, random()]) await expects(200, 'introspection', post('/oauth/introspect', { token }, basic('resource', SERVICE_SECRET)))
  await expects(400, 'introspection by another', post('/oauth/introspect', { token: confidential.access_token, ...await assertion('service') }))
  await expects(400, "another client's refresh token", refresh(client, confidential.refresh_token))
  await expects(200, 'a refresh by secret', post('/oauth/token', { grant_type: 'refresh_token', refresh_token: confidential.refresh_token }, basic('web', SECRET)))
  await expects(200, 'a refresh by assertion', post('/oauth/token', { grant_type: 'refresh_token', refresh_token: assured.refresh_token, ...await assertion('service') }))

  // Clients known by a URL, with keys elsewhere.
  for (const [id, status] of [[HOSTED, 200], [UNREACHABLE, 503]] as const) {
    const code = await alice.code(id)
    await expects(401, 'without a proof', alice.redeem(id, code))
    await expects(status, id, alice.redeem(id, code, await assertion(id)))
  }
  await expects(400, 'a document with a secret in it', alice.authorize(INDISCREET))

  // Revocation, guard, personal tokens and the page.
  const lent = (await alice.redeem(client, await alice.code(client, {}, ['read']))).json<Tokens>()
  await expects(403, 'a scope that is missing', call(lent.access_token, '/write'))
  for (const token of [`oat_${random()}`, `ort_${randomBytes(64).toString('base64url')}`, lent.refresh_token]) await expects(200, 'revocation', post('/oauth/revoke', { client_id: client, token }))
  for (const token of [lent.access_token, `oat_${random()}`, `pat_${random()}`, random(), apiKeys[1]!]) await expects(401, 'a token that is refused', call(token))
  await expects(401, 'userinfo', app.inject({ url: '/oauth/userinfo', headers: bearer(`oat_${random()}`) }))
  await expects(200, 'an older API key', call(apiKeys[0]!))
  const page = async (user: string, headers: Record<string, string> = {}) => await app.inject({ url: PAGE, headers: { 'x-user': user, ...headers } })
  const ticket = async (user = 'alice'): Promise<string> => (await page(user, JSON_ONLY)).json<{ ticket: string }>().ticket
  const onPage = async (fields: Record<string, string>, headers: Record<string, string> = {}) => await post(PAGE, fields, { 'x-user': 'alice', ...headers })
  const once = await ticket()
  await expects(200, 'a personal token', onPage({ ticket: once, name: 'script', scope: 'read' }))
  await expects(303, 'a ticket that is spent', onPage({ ticket: once, name: 'script', scope: 'read' }))
  const personal = (await onPage({ ticket: await ticket(), name: 'other', scope: 'read' }, JSON_ONLY)).json<{ token: string, grantId: string }>()
  await expects(200, 'a personal token', call(personal.token))
  await expects(303, 'its end', onPage({ ticket: await ticket(), grant: personal.grantId }))
  for (const wrong of [await ticket('bob'), await alice.ticket(client), random(), `${once}x`, code]) await expects(403, 'a ticket that is none', onPage({ ticket: wrong, client }))
  const late = await alice.code(client)
  await alice.redeem(client, await alice.code(client))
  await expects(303, 'a disconnect', onPage({ ticket: await ticket(), client }))
  await expects(400, 'a code from before', alice.redeem(client, late))
  await expects(200, 'the page', page('alice'))
  await app.oauth.tokens.revoke({ userId: 'bob' })
  await sleep(2)
  const { token: minted } = await app.oauth.tokens.create({ userId: 'alice', name: 'minted', scopes: ['read'] })
  secrets.add('personal token', minted)
  const now = Date.now()
  const clock = replace(t, Date, 'now', () => now + 4000 * 1000)
  await expects(401, 'a token that has expired', call(first.access_token))
  await expects(401, 'a token that has been idle', call(minted))
  clock.restore()

  // Secrets where none belong.
  const misplaced = [random(), `oat_${random()}`, code, SECRET]
  misplaced.forEach((secret) => secrets.add('token', secret))
  for (const secret of misplaced) {
    const send = async (url: string, type: string, payload: string) => await app.inject({ method: 'POST', url, headers: { 'content-type': type }, payload })
    await expects(400, 'broken JSON', send('/oauth/register', 'application/json', `{"client_name":"x","token":${secret}`))
    await expects(400, 'another JSON', send('/oauth/register', 'application/json', JSON.stringify([secret])))
    await expects(415, 'a type that is not read', send('/oauth/token', 'application/json', JSON.stringify({ client_secret: secret })))
    await expects(413, 'a body that is too long', send('/oauth/token', FORM['content-type'], form({ client_secret: secret, filler: 'x'.repeat(20_000) })))
    await expects(400, 'a parameter twice', send('/oauth/token', FORM['content-type'], `${form({ client_secret: secret })}&${form({ client_secret: secret })}`))
    await expects(400, 'an array', send('/oauth/token', FORM['content-type'], form({ 'client_secret[]': secret })))
    await expects(401, 'a grant type that is a secret', post('/oauth/token', { grant_type: secret, client_assertion: secret }))
  }

  // Another server that guards with our tokens, while we are there and after.
  const speaker = await host(async (app) => await app.register(mcpOAuth, { ...options, issuer, clients: [{ ...CLIENTS[1]!, introspects: ['https://files.example.com/mcp'] }], resources: [{ path: '/mcp' }, { url: 'https://files.example.com/mcp' }], store: sqliteStore({ path: join(folder(), 'tokens.db') }) }).after(() => {
    const { protect } = app.oauth
    app.oauth.protect = (options) => protect({ resource: '/mcp', ...options })
  }))
  await speaker.listen({ port: Number(new URL(issuer).port), host: '127.0.0.1' })
  const remote = observed(await host(async (app) => await app.register(remoteGuard, { issuer, origin: 'https://files.example.com', clientId: 'resource', clientSecret: SERVICE_SECRET, scopes: ['read', 'write'], onEvent: (event: AuditEvent) => events.push(event) })), secrets)
  const { token: distant } = await speaker.oauth.tokens.create({ userId: 'alice', name: 'distant', scopes: ['read'] })
  secrets.add('personal token', distant)
  const callRemote = async (token: string) => await remote.inject({ method: 'POST', url: '/mcp', headers: bearer(token) })
  await expects(200, 'a call elsewhere', callRemote(distant))
  await expects(401, 'a token that nobody knows', callRemote(`pat_${random()}`))
  await speaker.close()
  await expects(503, 'a call elsewhere, while we are away', callRemote(distant))

  // A bug of the store's, and its outage.
  const inHand = await Promise.all([1, 2].map(async () => await alice.code(client)))
  const kept = (await alice.redeem(client, await alice.code(client))).json<Tokens>()
  const pageTicket = await ticket()
  const tries = async (status: number, code: string): Promise<void> => {
    await expects(status, 'redeeming', alice.redeem(client, code))
    await expects(status, 'refreshing', refresh(client, kept.refresh_token))
    await expects(status, 'calling', call(kept.access_token))
    await expects(status, 'revoking', post('/oauth/revoke', { client_id: client, token: kept.access_token }))
    await expects(status, 'introspecting', post('/oauth/introspect', { token: kept.access_token }, basic('resource', SERVICE_SECRET)))
    await expects(status, 'asking for itself', post('/oauth/token', { grant_type: 'client_credentials' }, basic('web', SECRET)))
    await expects(status, 'making a token', onPage({ ticket: pageTicket, name: 'x', scope: 'read' }))
  }
  await database.run('ALTER TABLE access_tokens RENAME TO elsewhere')
  await tries(500, inHand[0]!)
  await database.run('ALTER TABLE elsewhere RENAME TO access_tokens')
  await database.stop()
  await tries(503, inHand[1]!)
  await database.start()
  await expects(200, 'afterwards', call(kept.access_token))

  // What is refused at the start.
  const start = async (changes: object): Promise<void> => {
    const error = await Fastify({ logger }).register(mcpOAuth, { ...options, store: sqliteStore({ path: ':memory:' }), ...changes } as McpOAuthOptions).then(() => null, (error: unknown) => error)
    if (error === null) t.fail('nothing refused')
    errors.push(inspect(error, { depth: 10 }), String((error as Error).stack))
  }
  const web = CLIENTS[0]!
  for (const changes of [{ keys: [` ${KEYS[0]}`] }, { keys: [KEYS[0]!.slice(0, 42)] }, { keys: KEYS[0] }, { keys: [{ key: KEYS[0] }] }, { clients: [{ ...web, clientSecretHashes: [SERVICE_SECRET] }] }, { clients: [{ ...web, clientSecretHashes: SECRET }] }, { clients: [{ ...web, clientSecret: SECRET }] }, { clients: [{ ...web, clientSecretHashes: [{ secret: SECRET }] }] },
    { clients: [{ ...CLIENTS[2], jwks: { keys: [await exportJWK(pair.privateKey)] } }] }, { clients: [{ ...CLIENTS[2], clientSecretHashes: [SECRET] }] }]) await start(changes)
  secrets.add('key', KEYS[0]!.slice(0, 42))

  const places = async (): Promise<Record<string, Buffer>> => ({
    'the log': Buffer.from(logged.join('')),
    'standard error': Buffer.from(printed.join('')),
    'the events': Buffer.from(`${JSON.stringify(events)}\n${inspect(events, { depth: 10, maxArrayLength: Infinity })}`),
    'the metrics': Buffer.from(JSON.stringify(measured)),
    'the errors': Buffer.from(errors.join('\n')),
    'the database': await database.dump()
  })
  return { app, bare, secrets, places, events, logged, statuses, measured }
}

for (const [name, open] of [['SQLite', openSqlite], ['PostgreSQL', openPostgres]] as const) {
  t.test(`no token, code, verifier, ticket, client secret, assertion or key is in the log, on standard error, in an event, a metric, an error or the table (${name})`, async (t) => {
    const database = await open()
    const { bare, secrets, places, events, logged, statuses, measured } = await everything(t, database)
    for (const [kind, least] of Object.entries({ access_token: 8, refresh_token: 6, code: 12, code_verifier: 2, ticket: 20, client_secret: 5, client_assertion: 10, 'personal token': 3, token: 5, authorization: 15, key: 12, 'private key': 4 })) {
      t.ok(secrets.count(kind) >= least, `${secrets.count(kind)} of ${kind}`)
    }
    t.strictSame([200, 303, 400, 401, 403, 413, 415, 500, 503].filter((status) => !statuses.includes(status)), [], 'every kind of answer was among them')
    t.strictSame(['client.registered', 'registration.rejected', 'client.rejected', 'consent.shown', 'consent.approved', 'consent.denied', 'code.rejected', 'token.issued', 'token.refreshed', 'token.revoked', 'token.rejected'].filter((type) => !events.some((event) => event.type === type)), [], 'and every event')
    t.equal(bare.log.level, 'trace')
    t.ok(measured.length > 100, `${measured.length} measurements`)
    t.comment(`${secrets.size} secrets, ${logged.length} lines, ${events.length} events, ${statuses.length} checked answers`)
    const before = await places()
    t.strictSame(secrets.leaks(before), [])

    // A search that finds nothing must be able to: what is no secret, planted by the same ways, is found.
    const planted = new Secrets()
    const [plant, rawPlant] = [`oat_${random()}`, `oat_${random()}`]
    planted.add('plant', plant)
    t.strictSame(planted.leaks(before), [])
    await bare.oauth.tokens.create({ userId: plant, name: 'x', scopes: ['read'] })
    await bare.inject(`/broken?why=${plant}`)
    process.stderr.write(`${plant}\n`)
    t.strictSame(new Set(planted.leaks(await places()).filter((leak) => leak.includes('itself')).map((leak) => leak.split(': ')[1])), new Set(['the log', 'standard error', 'the events', 'the errors', 'the database']))

    const raw = new Secrets()
    raw.add('raw plant', rawPlant)
    const bytes = Buffer.from(rawPlant.slice(4), 'base64url')
    await database.store.issue(newRow({ id: random(), tokenHash: bytes, scopes: 'read', createdAt: 1 }))
    t.ok(raw.leaks({ 'the database': await database.dump() }).includes('raw plant, the bytes of 43 characters: the database'), 'a token kept as bytes')
    for (const [form, text] of formsOf(rawPlant)) {
      if (!/^[ -~]+$/.test(text.toString('latin1'))) continue
      await bare.oauth.tokens.create({ userId: 'alice', name: `before ${text.toString()} after`, scopes: ['read'] })
      t.ok(raw.leaks({ 'the database': await database.dump() }).includes(`raw plant, ${form}: the database`), form)
    }
  })
}

// How secrets are compared

/** Every pair that is compared in constant time, while the real comparison goes on. */
function comparisons (t: Test): Array<[Buffer, Buffer]> {
  const compared: Array<[Buffer, Buffer]> = []
  const real = crypto.timingSafeEqual
  const set = (compare: typeof real): void => {
    crypto.timingSafeEqual = compare
    syncBuiltinESMExports()
  }
  set((one, other) => {
    compared.push([Buffer.from(one as Uint8Array), Buffer.from(other as Uint8Array)])
    return real(one, other)
  })
  t.teardown(() => set(real))
  return compared
}

const has = (compared: Array<[Buffer, Buffer]>, one: Buffer, other: Buffer): boolean =>
  compared.some(([left, right]) => (left.equals(one) && right.equals(other)) || (left.equals(other) && right.equals(one)))

t.test('client secrets, verifiers and refresh tokens are compared in constant time, secrets and verifiers by their hashes', async (t) => {
  const compared = comparisons(t)
  const app = await testApp(t, { clients: CLIENTS, accessTokenLifetime: 60, refreshTokenLifetime: 60 })
  const { clientId, code, redeem, codeVerifier, codeChallenge } = dance(app)
  const forItself = async (headers: Record<string, string>, fields: Record<string, string>) => await app.inject({ method: 'POST', url: '/oauth/token', headers: { ...FORM, ...headers }, payload: form({ grant_type: 'client_credentials', ...fields }) })
  for (const secret of [SECRET, `${SECRET}x`, SECRET.slice(1), random(), 'x']) {
    for (const proof of [basic('web', secret), { client_id: 'web', client_secret: secret }] as Array<Record<string, string>>) {
      compared.length = 0
      const { statusCode } = await forItself('authorization' in proof ? proof : {}, 'authorization' in proof ? {} : proof)
      t.equal(statusCode, secret === SECRET ? 200 : 401)
      t.ok(has(compared, sha256(SECRET), sha256(secret)), `${secret === SECRET ? 'the' : 'another'} secret, in ${Object.keys(proof).join()}`)
    }
  }

  const client = await clientId()
  for (const verifier of [random(), 'v'.repeat(43), 'v'.repeat(128), codeVerifier]) {
    const issued = await code(client)
    compared.length = 0
    const { statusCode } = await redeem(client, issued, { code_verifier: verifier })
    t.equal(statusCode, verifier === codeVerifier ? 200 : 400)
    t.ok(has(compared, Buffer.from(codeChallenge), Buffer.from(hash('sha256', verifier, 'base64url'))), `a verifier of ${verifier.length} characters`)
  }

  const { refresh_token: token } = (await redeem(client, await code(client))).json<{ refresh_token: string }>()
  const change = (at: number): string => token.slice(0, at) + (token[at] === 'A' ? 'B' : 'A') + token.slice(at + 1)
  for (const presented of [change(10), change(40), change(80), token]) {
    compared.length = 0
    const { statusCode } = await app.inject({ method: 'POST', url: '/oauth/token', headers: FORM, payload: form({ grant_type: 'refresh_token', client_id: client, refresh_token: presented }) })
    t.equal(statusCode, presented === token ? 200 : 400)
    t.ok(compared.some(([one, other]) => one.length === other.length && other.toString().endsWith(presented.slice(-22))), 'a refresh token')
    t.equal(compared.some(([one, other]) => one.equals(other)), presented === token)
  }
})

t.test('the store is asked for hashes: it is never given a token', async (t) => {
  const asked: unknown[][] = []
  const real = sqliteStore({ path: join(folder(), 'tokens.db') })
  const watched = new Proxy(real, {
    get (target, name) {
      const value = Reflect.get(target, name) as unknown
      return typeof value === 'function' ? (...args: unknown[]) => { asked.push([name, ...args]); return value.apply(target, args) as unknown } : value
    }
  })
  const app = await testApp(t, { store: watched, accessTokenLifetime: 60, refreshTokenLifetime: 60, refreshGrace: 0, clients: CLIENTS })
  const { clientId, code, redeem } = dance(app)
  const client = await clientId()
  const post = async (url: string, fields: Record<string, string>, headers = {}) => await app.inject({ method: 'POST', url, headers: { ...FORM, ...headers }, payload: form(fields) })
  const secrets = new Secrets()
  const all: unknown[][] = []
  const given = async (work: () => Promise<unknown>): Promise<Buffer[]> => {
    asked.length = 0
    await work()
    all.push(...asked)
    return asked.flat(2).flatMap((value) => typeof value === 'object' && value !== null ? [value, ...Object.values(value as object)] : [value]).filter((value): value is Buffer => value instanceof Uint8Array).map((value) => Buffer.from(value))
  }
  const isGiven = (given: Buffer[], token: string): boolean => given.some((bytes) => bytes.equals(sha256(token)))

  let first = { access_token: '', refresh_token: '' }
  const issued = await given(async () => { first = (await redeem(client, await code(client))).json() })
  t.ok(isGiven(issued, first.access_token) && isGiven(issued, first.refresh_token), 'issuing')
  secrets.addFields(Object.entries(first))
  t.ok(isGiven(await given(async () => await app.inject({ method: 'POST', url: '/mcp', headers: bearer(first.access_token) })), first.access_token), 'calling')
  t.ok(isGiven(await given(async () => await post('/oauth/introspect', { token: first.access_token }, basic('web', SECRET))), first.access_token), 'introspecting')
  let second = first
  const rotated = await given(async () => { second = (await post('/oauth/token', { grant_type: 'refresh_token', client_id: client, refresh_token: first.refresh_token })).json() })
  t.ok([first.refresh_token, second.refresh_token, second.access_token].every((token) => isGiven(rotated, token)), 'refreshing')
  secrets.addFields(Object.entries(second))
  const unknown = `oat_${random()}`
  secrets.add('token', unknown)
  t.ok(isGiven(await given(async () => await app.oauth.tokens.verify(unknown)), unknown), 'a token that is unknown')
  await given(async () => {
    const { token } = await app.oauth.tokens.create({ userId: 'alice', name: 'x', scopes: ['read'] })
    secrets.add('personal token', token)
    await app.oauth.tokens.verify(token)
    await post('/oauth/revoke', { client_id: client, token: second.refresh_token })
  })
  // Bytes as hexadecimal; the replacer is handed a Buffer only after its toJSON().
  const shown = (calls: unknown): Buffer => Buffer.from(inspect(calls, { depth: 10, maxArrayLength: Infinity, maxStringLength: Infinity }) + JSON.stringify(calls, function (this: Record<string, unknown>, key, value: unknown) {
    const held = this[key]
    return held instanceof Uint8Array ? Buffer.from(held).toString('hex') : value
  }))
  t.ok(all.length >= 10)
  t.strictSame(secrets.leaks({ 'what the store was given': shown(all) }), [])
  t.not(secrets.leaks({ 'what it could be given': shown([['find', Buffer.from(unknown)]]) }).length, 0, 'bytes are looked into')
})

t.test('codes, tickets and client ids are opened by Web Crypto, which compares their tags itself', async (t) => {
  const opened: string[] = []
  const { subtle } = globalThis.crypto
  for (const name of ['decrypt', 'verify'] as const) {
    const real = subtle[name].bind(subtle) as (...args: unknown[]) => Promise<unknown>
    t.intercept(subtle, name, {
      value: async (...args: unknown[]) => {
        const outcome = await real(...args).then((result) => result === false ? 'refused' : 'opened', () => 'refused')
        opened.push(`${name} ${outcome}`)
        return await real(...args)
      }
    })
  }
  const app = await testApp(t)
  const { clientId, ticket, consent, code, redeem } = dance(app)
  const changed = (value: string): string => value.replace(/.(?=.$)/, (last) => last === 'A' ? 'B' : 'A')
  const outcomes = async (work: () => Promise<unknown>): Promise<string[]> => {
    opened.length = 0
    await work()
    return [...opened]
  }
  const client = await clientId()
  t.strictSame(await outcomes(async () => await ticket(client)), ['verify opened'], 'a client id')
  t.strictSame(await outcomes(async () => await ticket(client)), [], 'which is remembered')
  const [form, issued] = [await ticket(client), await code(client)]
  t.strictSame(await outcomes(async () => await redeem(changed(client), issued)), ['verify refused'])
  t.strictSame(await outcomes(async () => await consent({ ticket: form, decision: 'approve', scope: 'read' })), ['decrypt opened'], 'a ticket')
  t.strictSame(await outcomes(async () => await consent({ ticket: changed(form), decision: 'approve', scope: 'read' })), ['decrypt refused'])
  t.strictSame(await outcomes(async () => await redeem(client, changed(issued))), ['decrypt refused'], 'a code')
  t.strictSame(await outcomes(async () => await redeem(client, issued)), ['decrypt opened'])
})
