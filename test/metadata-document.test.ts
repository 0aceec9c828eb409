import type { FastifyInstance } from 'fastify'
import { exportJWK, generateKeyPair, SignJWT, type CryptoKey, type JWK } from 'jose'
import http, { type RequestListener } from 'node:http'
import type { AgentOptions } from 'node:https'
import net, { isIP } from 'node:net'
import { join } from 'node:path'
import { performance } from 'node:perf_hooks'
import { setTimeout } from 'node:timers/promises'
import type { TLSSocket } from 'node:tls'
import t, { type Test } from 'tap'
import { metadataClients } from '../dist/clients/metadata-document.js'
import { getPublicJson, isPublicAddress } from '../dist/clients/public-https.js'
import type { ClientIdMetadata, McpOAuthOptions } from '../dist/index.js'
import { isClientIdUrl, parseMetadataDocument, vouchingHost } from '../dist/protocol/metadata-document.js'
import { sqliteStore } from '../dist/store/sqlite.js'
import { CALLBACK, FORM, ISSUER, bearer, dance, fieldOf, folder, form, replace, testApp } from './app.js'
import { Network, PUBLIC } from './network.js'

// Client ID Metadata Documents: draft-ietf-oauth-client-id-metadata-document-01, and MCP 2026-07-28.

const TOKEN_ENDPOINT = `${ISSUER}/oauth/token`
const HOSTED = 'https://client.example/oauth/client.json'
const HOSTED_CALLBACK = 'https://client.example/callback'

/** As Claude Code's is: a program on the user's computer, with a loopback redirect of no port. */
const CLAUDE_CODE = 'https://claude.ai/oauth/claude-code-client-metadata'
const CODEX = 'https://chatgpt.com/oauth/codex/client.json'

function documentOf (clientId: string, changes: object = {}): Record<string, unknown> {
  return {
    client_id: clientId,
    client_name: 'Hosted client',
    redirect_uris: [HOSTED_CALLBACK, 'http://localhost/callback', 'http://127.0.0.1/callback'],
    grant_types: ['authorization_code', 'refresh_token'],
    response_types: ['code'],
    token_endpoint_auth_method: 'none',
    ...changes
  }
}

interface Hosted {
  app: FastifyInstance
  network: Network
  flow: ReturnType<typeof dance>
  /** Every line of the log, parsed. */
  log: Array<Record<string, unknown> & { reason?: string, detail?: string, err?: { message: string } }>
  options: Partial<McpOAuthOptions>
}

/** An app in a network where `HOSTED` is published. */
async function hosted (t: Test, overrides: Partial<McpOAuthOptions> = {}, settings: Omit<ClientIdMetadata, 'agent'> = {}): Promise<Hosted> {
  const network = await Network.start(t)
  network.publish(HOSTED, documentOf(HOSTED))
  const options = { ...overrides, clientIdMetadata: { ...settings, agent: network } }
  const log: Hosted['log'] = []
  const app = await testApp(t, options, { logger: { level: 'trace', stream: { write: (line: string) => { log.push(JSON.parse(line) as Hosted['log'][number]) } } } })
  return { app, network, flow: dance(app), log, options }
}

/** What the consent page says, its markup and white space taken out. */
function text (html: string): string {
  return html.replace(/<head>.*<\/head>/s, '').replace(/<[^>]*>/g, '').replace(/&#39;/g, "'").replace(/\s+/g, ' ').trim()
}

/** Moves the clock by which documents and counts grow old, which is read at most once a millisecond. */
async function at (t: Test, milliseconds: number): Promise<{ restore: () => void }> {
  const clock = replace(t, performance, 'now', () => milliseconds)
  await setTimeout(5)
  return clock
}

function location (response: { headers: Record<string, unknown> }): URL {
  return new URL(String(response.headers.location), ISSUER)
}

interface Key {
  alg: string
  publicKey: CryptoKey
  privateKey: CryptoKey
}

async function keyOf (alg: string): Promise<Key> {
  return { alg, ...await generateKeyPair(alg, { extractable: true }) }
}

async function jwkOf ({ publicKey, alg }: Key, kid: string): Promise<JWK> {
  return { ...await exportJWK(publicKey), kid, alg, use: 'sig' }
}

async function assertionOf (id: string, { alg, privateKey }: Key, { kid = 'a', aud = TOKEN_ENDPOINT }: { kid?: string, aud?: string | string[] } = {}): Promise<Record<string, string>> {
  return {
    client_assertion_type: 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer',
    client_assertion: await new SignJWT({ iss: id, sub: id, aud }).setProtectedHeader({ alg, kid }).setIssuedAt().setExpirationTime('2m').sign(privateKey)
  }
}

// The rules

t.test('§3: a client id is an https URL with a path, without dot segments, fragment and userinfo, written in one way only', async (t) => {
  for (const id of [CLAUDE_CODE, CODEX, 'https://client.example/a', 'https://client.example:8443/client.json', 'https://xn--bcher-kva.example/c', 'https://client.example/a?v=1', 'https://client.example/a/']) {
    t.ok(isClientIdUrl(id), id)
  }
  for (const id of ['http://client.example/a', 'https://client.example', 'https://client.example/', 'https://client.example/?a', 'https://client.example/a#', 'https://client.example/a#b',
    'https://user@client.example/a', 'https://user:pw@client.example/a', 'https://:pw@client.example/a', 'https://@client.example/a', 'https://client.example/a/../b', 'https://client.example/./a', 'https://client.example/a/%2e%2e/b',
    'https://client.example/a/..', 'https://CLIENT.example/a', 'HTTPS://client.example/a', 'https://client.example:443/a', 'https:/client.example/a', 'https:client.example/a', 'https:\\\\client.example\\a',
    'https://client.example\\a', 'https://client.example/a b', ' https://client.example/a', 'https://client.example/a\n', 'https://cl\tient.example/a', 'https://bücher.example/a', 'https://client.example/ä',
    'https://0x7f000001/a', 'https://127.1/a', 'https://client.example:99999/a', 'https://client.example:0/a', 'https:///a', 'https://', '', 'client', 'javascript:https://client.example/a']) {
    t.notOk(isClientIdUrl(id), JSON.stringify(id).replace(/[^ -~]/g, '?'))
  }
  t.equal(vouchingHost('https://client.example:8443/client.json'), 'client.example:8443', 'a port is part of who vouches')
  for (const id of ['not a URL', 'http://client.example/a', 'https://client.example', 'https://client.example/']) t.equal(vouchingHost(id), null, id)
})

t.test('addresses that are special anywhere are not public, in whatever form they come, and their neighbours are', async (t) => {
  // IANA's registries of special-purpose addresses, with the first and the last one of each block.
  const special = ['0.0.0.0', '0.255.255.255', '10.0.0.0', '10.255.255.255', '100.64.0.0', '100.127.255.255', '127.0.0.0', '127.0.0.1', '127.255.255.255', '169.254.0.0', '169.254.169.254', '169.254.255.255',
    '172.16.0.0', '172.31.255.255', '192.0.0.0', '192.0.0.255', '192.0.2.0', '192.0.2.255', '192.88.99.0', '192.88.99.255', '192.168.0.0', '192.168.255.255', '198.18.0.0', '198.19.255.255', '198.51.100.0',
    '203.0.113.255', '224.0.0.0', '239.255.255.255', '240.0.0.0', '255.255.255.255', '100.100.100.200', '192.0.0.192', '168.63.129.16']
  const open = ['1.0.0.0', '9.255.255.255', '11.0.0.0', '100.63.255.255', '100.128.0.0', '126.255.255.255', '128.0.0.0', '169.253.255.255', '169.255.0.0', '172.15.255.255', '172.32.0.0', '192.0.1.0',
    '192.167.255.255', '192.169.0.0', '198.17.255.255', '198.20.0.0', '203.0.112.255', '203.0.114.0', '223.255.255.255', '168.63.129.15', PUBLIC]
  const hex = (address: string): string => address.split('.').map((part) => Number(part).toString(16).padStart(2, '0')).join('').replace(/^(.{4})/, '$1:')
  for (const address of special) {
    for (const form of [address, `::ffff:${address}`, `::ffff:${hex(address)}`, `64:ff9b::${hex(address)}`, `::${hex(address)}`, `2002:${hex(address)}::1`, `::ffff:0:${hex(address)}`]) t.notOk(isPublicAddress(form), form)
  }
  for (const address of open) {
    for (const form of [address, `::ffff:${address}`, `64:ff9b::${hex(address)}`]) t.ok(isPublicAddress(form), form)
    // Tunnels and forms that nothing should answer in, whatever they carry.
    for (const form of [`::${hex(address)}`, `::${address}`, `2002:${hex(address)}::1`, `::ffff:0:${hex(address)}`, `64:ff9b:1::${hex(address)}`]) t.notOk(isPublicAddress(form), form)
  }
  for (const address of ['::', '::1', '100::1', '100:0:0:1::1', '2001::1', '2001:2::1', '2001:10::1', '2001:20::1', '2001:db8::1', '2001:db8:ffff:ffff:ffff:ffff:ffff:ffff', '3fff::1', '5f00::1', 'fc00::1', 'fd00:ec2::254',
    'fdff:ffff::1', 'fe80::1', 'fe80::1%eth0', 'fe80::1%a-b', '2606:4700::6810:1%eth0', 'febf::1', 'fec0::1', 'ff02::1', '4000::1', '1fff::1', '', 'localhost', '1.2.3', '1.2.3.4.5', '1.2.3.4/8', ' 1.2.3.4']) {
    t.notOk(isPublicAddress(address), address)
  }
  for (const address of ['2606:4700::6810:1', '2a00:1450:4001::200e', '2001:4860:4860::8888', '2400:cb00::1']) t.ok(isPublicAddress(address), address)
})

t.test('§4.1: a document speaks of its own URL, has a name, and redirects to its own host or to the user\'s computer', async (t) => {
  const policy = { redirectUris: ['https://elsewhere.example/cb', 'hosted://cb'], grantTypes: ['authorization_code', 'refresh_token'] }
  const parse = (changes: object): unknown => parseMetadataDocument(documentOf(HOSTED, changes), HOSTED, policy)

  t.strictSame(parse({}), { clientName: 'Hosted client', redirectUris: [HOSTED_CALLBACK, 'http://localhost/callback', 'http://127.0.0.1/callback'] })
  t.strictSame(parse({
    redirect_uris: [HOSTED_CALLBACK, 'https://evil.example/cb', 'https://sub.client.example/cb', 'https://client.example:8443/cb', 'https://client.example@evil.example/cb', 'https://client.example.evil.example/cb',
      'http://client.example/cb', 'javascript:alert(1)', 'other://cb', 'other://client.example/cb', 'https://', 'https://user@client.example/cb', 'https://client.example/c b', 'https://elsewhere.example/cb', 'https://elsewhere.example/cb2', 'hosted://cb', 'https://client.example/cb#f', ' https://client.example/cb', 'http://localhost.evil.example/']
  }),
  { clientName: 'Hosted client', redirectUris: [HOSTED_CALLBACK, 'https://elsewhere.example/cb', 'hosted://cb'] }, 'what may not be used is dropped')
  t.match(parse({ client_name: 'Claude\u202e\u0007 Code' }), { clientName: 'Claude Code' })
  t.match(parse({ token_endpoint_auth_method: undefined, grant_types: undefined, response_types: undefined }), { clientName: 'Hosted client' })
  t.notOk('jwksUri' in (parse({ jwks_uri: 'https://client.example/keys' }) as object), 'without a method that uses them, keys are nobody\'s')

  const key: JWK = await exportJWK((await generateKeyPair('ES256')).publicKey)
  t.match(parse({ token_endpoint_auth_method: 'private_key_jwt', jwks: { keys: [key] } }), { jwks: { keys: [key] } })
  t.match(parse({ token_endpoint_auth_method: 'private_key_jwt', jwks_uri: 'https://keys.example/jwks.json' }), { jwksUri: 'https://keys.example/jwks.json' })

  for (const [changes, reason] of [
    [{ client_id: undefined }, 'client_metadata_mismatch'], [{ client_id: `${HOSTED}/` }, 'client_metadata_mismatch'], [{ client_id: HOSTED.toUpperCase() }, 'client_metadata_mismatch'],
    [{ client_id: 'https://client.example/oauth/../oauth/client.json' }, 'client_metadata_mismatch'], [{ client_id: [HOSTED] }, 'client_metadata_mismatch'],
    [{ client_secret: 's' }, 'client_metadata_secret'], [{ client_secret: '' }, 'client_metadata_secret'], [{ client_secret_expires_at: 0 }, 'client_metadata_secret'],
    [{ client_name: undefined }, 'client_metadata_invalid'], [{ client_name: 7 }, 'client_metadata_invalid'], [{ client_name: 'x'.repeat(101) }, 'client_metadata_invalid'],
    [{ redirect_uris: undefined }, 'redirect_uri_missing'], [{ redirect_uris: [] }, 'redirect_uri_missing'], [{ redirect_uris: HOSTED_CALLBACK }, 'redirect_uri_missing'], [{ redirect_uris: [HOSTED_CALLBACK, 7] }, 'redirect_uri_missing'],
    [{ redirect_uris: ['https://evil.example/cb'] }, 'redirect_uri_not_allowed'],
    [{ grant_types: ['client_credentials'] }, 'client_metadata_invalid'], [{ response_types: ['token'] }, 'client_metadata_invalid'],
    ...['client_secret_basic', 'client_secret_post', 'client_secret_jwt', 'tls_client_auth', '', null, 7].flatMap((method) => [{}, { jwks: { keys: [key] } }].map((keys) => [{ token_endpoint_auth_method: method, ...keys }, 'client_metadata_method'])),
    ...[{}, { jwks_uri: 'http://client.example/keys' }, { jwks_uri: 'https://' }, { jwks_uri: 7 }, { jwks: {} }, { jwks: { keys: 'x' } }, { jwks: { keys: [null] } }, { jwks: [key] },
      { jwks: { keys: [key] }, jwks_uri: 'https://client.example/keys' }].map((keys) => [{ token_endpoint_auth_method: 'private_key_jwt', ...keys }, 'client_metadata_method']),
    [{ token_endpoint_auth_method: 'private_key_jwt', jwks: { keys: [key, { ...key, d: 'x' }] } }, 'client_metadata_secret'],
    [{ token_endpoint_auth_method: 'private_key_jwt', jwks: { keys: [{ kty: 'oct', k: 'x' }] } }, 'client_metadata_secret']
  ] as Array<[object, string]>) {
    t.throws(() => parse(changes), { name: 'OAuthError', reason }, JSON.stringify(changes))
  }
})

// The flow

t.test('Claude Code and Codex connect with the URL as their id and a port of their own, twice, and are one entry each', async (t) => {
  const { app, network, flow } = await hosted(t)
  network.publish(CLAUDE_CODE, documentOf(CLAUDE_CODE, { client_name: 'Claude Code', redirect_uris: ['http://localhost/callback', 'http://127.0.0.1/callback'] }))
  network.publish(CODEX, documentOf(CODEX, { client_name: 'Codex', redirect_uris: ['http://127.0.0.1/callback'] }))
  const metadata = (await app.inject('/.well-known/oauth-authorization-server')).json<Record<string, unknown>>()
  t.match(metadata, { client_id_metadata_document_supported: true, token_endpoint_auth_methods_supported: ['none', 'private_key_jwt'] })

  for (const [id, name, callback, again] of [[CLAUDE_CODE, 'Claude Code', 'http://localhost:53682/callback', 'http://localhost:40123/callback'], [CODEX, 'Codex', 'http://127.0.0.1:1455/callback', 'http://127.0.0.1:2/callback']] as const) {
    for (const uri of [callback, again]) {
      const page = await flow.authorize(id, { redirect_uri: uri })
      t.equal(page.statusCode, 200)
      const shown = text(page.body)
      t.match(shown, `Allow ${name} to use Notes?`)
      t.match(shown, `Not verified. This app says that it is ${name} from ${new URL(id).host}. Any app can say that.`)
      t.match(shown, 'Access goes to a program on this computer')
      const answer = location(await flow.consent({ ticket: fieldOf(page.body, 'ticket'), decision: 'approve', scope: 'read' }))
      t.equal(answer.origin + answer.pathname, uri)
      const token = (await flow.redeem(id, answer.searchParams.get('code') ?? '', { redirect_uri: uri })).json<{ access_token: string }>().access_token
      t.equal((await app.inject({ method: 'POST', url: '/mcp', headers: bearer(token) })).statusCode, 200)
    }
  }
  t.strictSame(network.asked, [CLAUDE_CODE, CODEX], 'each document was asked for once')
  const { apps } = (await app.inject({ url: '/my/connected_apps', headers: { 'x-user': 'alice', accept: 'application/json' } })).json<{ apps: Array<Record<string, unknown>> }>()
  for (const [clientId, name, vouchedForBy] of [[CODEX, 'Codex', 'chatgpt.com'], [CLAUDE_CODE, 'Claude Code', 'claude.ai']] as const) {
    t.match(apps.filter((app) => app.clientId === clientId), [{ name, vouchedForBy, connections: 2, isLoopback: true }])
  }
  t.equal((await flow.authorize(CLAUDE_CODE, { redirect_uri: 'http://localhost:1/other' })).statusCode, 400, 'another path')
  t.equal((await flow.authorize(CODEX, { redirect_uri: 'http://localhost:1/callback' })).statusCode, 400, 'another loopback name')
})

t.test('a hosted client gets its code at its own host; the page names the host as what it is, and the name as a claim', async (t) => {
  const { network, flow } = await hosted(t)
  const impostor = network.publish('https://client.example/impostor.json', documentOf('https://client.example/impostor.json', { client_name: 'Claude <b>Code</b>' }))
  const page = await flow.authorize(HOSTED, { redirect_uri: HOSTED_CALLBACK })
  t.match(text(page.body), 'This app comes from client.example and calls itself Hosted client.')
  t.match(text(page.body), 'Access goes to client.example ')
  t.notMatch(text(page.body), 'knows this app', 'nobody here has registered it')
  t.match((await flow.authorize(impostor, { redirect_uri: HOSTED_CALLBACK })).body, '<bdi>Claude &lt;b&gt;Code&lt;/b&gt;</bdi>')

  const answer = location(await flow.consent({ ticket: fieldOf(page.body, 'ticket'), decision: 'approve', scope: 'read' }))
  t.equal(answer.origin + answer.pathname, HOSTED_CALLBACK)
  t.equal((await flow.redeem(HOSTED, answer.searchParams.get('code') ?? '', { redirect_uri: HOSTED_CALLBACK })).statusCode, 200)
  t.match((await flow.redeem(HOSTED, 'x'.repeat(300), { redirect_uri: HOSTED_CALLBACK })).json(), { error: 'invalid_grant' }, 'a client that is known needs nobody to be known again')
  const ported = network.publish('https://client.example:8443/client.json', documentOf('https://client.example:8443/client.json', { redirect_uris: ['https://client.example:8443/callback', HOSTED_CALLBACK] }))
  const there = await flow.authorize(ported, { redirect_uri: 'https://client.example:8443/callback' })
  t.match(text(there.body), 'This app comes from client.example:8443 and calls itself', 'a port is another site')
  t.equal((await flow.authorize(ported, { redirect_uri: HOSTED_CALLBACK })).statusCode, 400)
  for (const uri of ['https://client.example/other', 'https://client.example:8443/callback', 'https://evil.example/callback', `${HOSTED_CALLBACK}?x=1`]) {
    const refused = await flow.authorize(HOSTED, { redirect_uri: uri })
    t.equal(refused.statusCode, 400, uri)
    t.notOk('location' in refused.headers)
  }
})

t.test('a logo that a document names is neither asked for nor shown', async (t) => {
  const { app, network, flow } = await hosted(t)
  const logo = network.publish('https://logos.example/client.png', {})
  network.publish(HOSTED, documentOf(HOSTED, { logo_uri: logo }))
  const consent = await flow.authorize(HOSTED)
  t.equal((await flow.redeem(HOSTED, await flow.code(HOSTED))).statusCode, 200)
  const apps = await app.inject({ url: '/my/connected_apps', headers: { 'x-user': 'alice' } })
  for (const { statusCode, body } of [consent, apps]) {
    t.equal(statusCode, 200)
    t.match(body, 'Hosted client')
    t.notMatch(body, /logos\.example|<img/)
  }
  t.strictSame([network.lookups, network.asked], [['client.example'], [HOSTED]], 'nothing but the document was asked for')
})

t.test('connected apps of one host stand together, and each is disconnected by itself', async (t) => {
  const { app, network, flow } = await hosted(t)
  const second = network.publish('https://client.example/second.json', documentOf('https://client.example/second.json', { client_name: 'Second client' }))
  const other = network.publish(CODEX, documentOf(CODEX, { client_name: 'Codex' }))
  for (const id of [HOSTED, other, second]) await flow.redeem(id, await flow.code(id))
  await flow.connect()
  const page = async (accept: string) => await app.inject({ url: '/my/connected_apps', headers: { 'x-user': 'alice', accept } })
  const list = async (): Promise<string[]> => (await page('application/json')).json<{ apps: Array<{ clientId: string }> }>().apps.map(({ clientId }) => clientId)

  t.equal((await list()).length, 4)
  t.equal(Math.abs((await list()).indexOf(HOSTED) - (await list()).indexOf(second)), 1, 'next to each other')
  const { body } = await page('text/html')
  t.equal(body.match(/From <code>client\.example<\/code>/g)?.length, 1)
  t.equal(body.match(/From <code>chatgpt\.com<\/code>/g)?.length, 1)
  t.equal(body.match(/>Disconnect</g)?.length, 4)
  await app.inject({ method: 'POST', url: '/my/connected_apps', headers: { ...FORM, 'x-user': 'alice' }, payload: form({ ticket: fieldOf(body, 'ticket'), client: second }) })
  t.notOk((await list()).includes(second))
  t.ok((await list()).includes(HOSTED), 'its neighbour stays')
})

t.test('§6.2: a client with keys proves itself at the token endpoint and when it refreshes and revokes, with keys from its document or its jwks_uri', async (t) => {
  const { app, network, flow, log } = await hosted(t, { accessTokenLifetime: 600, refreshTokenLifetime: 3600 })
  const [one, two, foreign] = [await keyOf('RS256'), await keyOf('ES256'), await keyOf('RS256')]
  const inline = network.publish('https://client.example/inline.json', documentOf('https://client.example/inline.json', { token_endpoint_auth_method: 'private_key_jwt', jwks: { keys: [await jwkOf(one, 'a')] } }))
  // As ChatGPT's: it would do without, and prefers to prove itself.
  const remote = network.publish('https://chatgpt.com/oauth/client.json', documentOf('https://chatgpt.com/oauth/client.json', {
    token_endpoint_auth_method: 'private_key_jwt', token_endpoint_auth_methods_supported: ['none', 'private_key_jwt'], jwks_uri: 'https://keys.example/jwks.json'
  }))
  network.publish('https://keys.example/jwks.json', { keys: [await jwkOf(one, 'a')] })

  const post = async (path: string, fields: Record<string, string>) => await app.inject({ method: 'POST', url: path, headers: FORM, payload: form(fields) })

  for (const id of [inline, remote]) {
    const code = await flow.code(id)
    for (const [about, fields] of [['no proof', {}], ['a foreign key', await assertionOf(id, foreign)], ['another audience', await assertionOf(id, one, { aud: 'https://evil.example' })],
      ['the audience in a list', await assertionOf(id, one, { aud: [TOKEN_ENDPOINT, 'https://evil.example/token'] })]] as const) {
      const refused = await flow.redeem(id, code, fields)
      t.match([refused.statusCode, refused.json()], [401, { error: 'invalid_client' }], about)
    }
    const issued = await flow.redeem(id, code, await assertionOf(id, one))
    t.equal(issued.statusCode, 200, 'the code was not burnt; the token endpoint is an audience, as ChatGPT has it')
    const { refresh_token: refreshToken } = issued.json<{ refresh_token: string }>()
    t.equal((await post('/oauth/token', { grant_type: 'refresh_token', refresh_token: refreshToken, client_id: id })).statusCode, 401)
    const refreshed = await post('/oauth/token', { grant_type: 'refresh_token', refresh_token: refreshToken, client_id: id, ...await assertionOf(id, one, { aud: ISSUER }) })
    t.equal(refreshed.statusCode, 200, 'so is the issuer')
    const { access_token: token } = refreshed.json<{ access_token: string }>()
    t.equal((await post('/oauth/revoke', { token, client_id: id })).statusCode, 401)
    t.equal((await post('/oauth/revoke', { token, ...await assertionOf(id, one) })).statusCode, 200)
    t.equal((await app.inject({ method: 'POST', url: '/mcp', headers: bearer(token) })).statusCode, 401)
  }

  // Keys change: a new one is looked for, twice a minute at most, and without an answer nothing is said about the client.
  const at = Date.now()
  network.publish('https://keys.example/jwks.json', { keys: [await jwkOf(one, 'a'), await jwkOf(two, 'b')] })
  const code = await flow.code(remote)
  t.equal((await flow.redeem(remote, code, await assertionOf(remote, two, { kid: 'b' }))).statusCode, 401, 'just asked')
  t.equal(network.asked.filter((url) => url.includes('jwks')).length, 1)
  const now = replace(t, Date, 'now', () => at + 31_000)
  const later = await flow.redeem(remote, code, await assertionOf(remote, two, { kid: 'b' }))
  t.equal(later.statusCode, 200)
  now.restore()

  const gone = network.publish('https://client.example/gone.json', documentOf('https://client.example/gone.json', { token_endpoint_auth_method: 'private_key_jwt', jwks_uri: 'https://gone.client.example/jwks.json' }))
  const inside = network.publish('https://client.example/inside.json', documentOf('https://client.example/inside.json', { token_endpoint_auth_method: 'private_key_jwt', jwks_uri: 'https://inside.client.example/jwks.json' }))
  network.names.set('gone.client.example', ['ENOTFOUND'])
  network.names.set('inside.client.example', [['10.0.0.1']])
  for (const id of [gone, inside]) {
    const refused = await flow.redeem(id, await flow.code(id), await assertionOf(id, one))
    t.match([refused.statusCode, refused.headers['retry-after'], refused.json()], [503, '5', { error: 'temporarily_unavailable' }])
    t.ok(log.some(({ reason, clientId }) => reason === 'client_keys_unreachable' && clientId === id))
    const [before, again] = [network.lookups.length, await flow.redeem(id, await flow.code(id), await assertionOf(id, one))]
    t.equal(again.statusCode, 503)
    t.equal(network.lookups.length, before, 'that nobody answers is remembered')
  }

  // What is at a jwks_uri is held to what a document is, but may be longer.
  const keys = JSON.stringify({ keys: [await jwkOf(one, 'a')], filler: '' })
  const sized = (size: number): string => keys.replace('"filler":""', `"filler":"${'x'.repeat(size - keys.length)}"`)
  for (const [path, body, type, reason] of [
    ['full', sized(16_384), 'application/jwk-set+json', undefined], ['huge', sized(16_385), 'application/json', 'client_metadata_unreadable'],
    ['html', keys, 'text/html', 'client_metadata_unreadable'], ['empty', '{}', 'application/json', 'client_assertion_invalid']
  ] as Array<[string, string, string, string | undefined]>) {
    const id = network.publish(`https://client.example/${path}.json`, documentOf(`https://client.example/${path}.json`, { token_endpoint_auth_method: 'private_key_jwt', jwks_uri: `https://keys.example/${path}` }))
    network.publish(`https://keys.example/${path}`, (_request, response) => { response.setHeader('content-type', type).end(body) })
    const answer = await flow.redeem(id, await flow.code(id), await assertionOf(id, one))
    t.equal(answer.statusCode, reason === undefined ? 200 : 401, path)
    t.equal(log.find((line) => line.clientId === id && line.reason !== undefined)?.reason, reason, path)
  }
})

t.test('keys that cannot be had are asked for once in 5 seconds at most, whoever sends assertions', async (t) => {
  const { network, flow } = await hosted(t)
  const key = await keyOf('ES256')
  for (const [path, status] of [['missing', 401], ['down', 503]] as const) {
    const id = network.publish(`https://client.example/${path}`, documentOf(`https://client.example/${path}`, { token_endpoint_auth_method: 'private_key_jwt', jwks_uri: `https://keys.example/${path}` }))
    network.publish(`https://keys.example/${path}`, (_request, response) => { response.writeHead(path === 'down' ? 500 : 404).end() })
    const code = await flow.code(id)
    const start = Date.now()
    const counts = []
    for (const seconds of [0, 0, 4.9, 5, 9.9, 10]) {
      const clock = replace(t, Date, 'now', () => start + seconds * 1000)
      t.equal((await flow.redeem(id, code, await assertionOf(id, key))).statusCode, status)
      clock.restore()
      counts.push(network.asked.filter((url) => url === `https://keys.example/${path}`).length)
    }
    t.strictSame(counts, [1, 1, 1, 2, 2, 3], path)
  }
})

t.test('keys are asked for on behalf of a user too, up to 16 KiB of them, and the log says what was wrong with them', async (t) => {
  const { app, network, flow, log } = await hosted(t)
  const { privateKey } = await generateKeyPair('ES256')
  const keyed = (path: string): string => network.publish(`https://client.example/${path}`, documentOf(`https://client.example/${path}`, { token_endpoint_auth_method: 'private_key_jwt', jwks_uri: `https://keys.example/${path}` }))
  const post = async (id: string, fields: Record<string, string>) => await app.inject({
    method: 'POST',
    url: '/oauth/token',
    headers: FORM,
    payload: form({
      grant_type: 'authorization_code',
      redirect_uri: CALLBACK,
      code_verifier: flow.codeVerifier,
      client_assertion_type: 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer',
      client_assertion: await new SignJWT({ iss: id, sub: id, aud: ISSUER }).setProtectedHeader({ alg: 'ES256', kid: 'x' }).setExpirationTime('2m').sign(privateKey),
      ...fields
    })
  })
  const id = keyed('gone')
  const code = await flow.code(id)
  t.match((await post(id, { code: 'made up' })).json(), { error: 'invalid_client' })
  t.notOk(network.asked.some((url) => url.startsWith('https://keys.example')), 'nobody asks for them without a user\'s grant')

  t.match((await post(id, { code })).json(), { error: 'invalid_client' })
  t.match(log.find(({ detail }) => detail !== undefined), { reason: 'client_metadata_unreadable', detail: 'https://keys.example/gone answered 404', clientId: id })
  for (const [path, size, status] of [['full', 16 * 1024, 401], ['huge', 16 * 1024 + 1, 401]] as const) {
    const sized = keyed(path)
    network.publish(`https://keys.example/${path}`, { keys: [], x: 'x'.repeat(size - 18) })
    log.length = 0
    t.equal((await post(sized, { code: await flow.code(sized) })).statusCode, status)
    t.equal(log.some(({ detail }) => /over 16384 bytes/.test(detail ?? '')), path === 'huge', `${size} bytes`)
  }
})

t.test('whatever an agent is set to, names are looked up here, and only https is spoken', async (t) => {
  for (const [options, addresses, status] of [
    [{ autoSelectFamily: false }, [PUBLIC], 200], [{ autoSelectFamily: false }, [PUBLIC, '127.0.0.1'], 503], [{ autoSelectFamily: false }, ['::1'], 503],
    [{ family: 4 }, [PUBLIC, '2606:4700::1'], 200], [{ family: 6 }, ['2606:4700::1', PUBLIC], 200], [{ family: 6 }, [PUBLIC], 503], [{ family: 4 }, [PUBLIC, '::1'], 503]
  ] as Array<[AgentOptions, string[], number]>) {
    const network = await Network.start(t, options)
    network.publish(HOSTED, documentOf(HOSTED))
    network.names.set('client.example', [addresses])
    const app = await testApp(t, { clientIdMetadata: { agent: network } })
    t.equal((await dance(app).authorize(HOSTED)).statusCode, status, `${JSON.stringify(options)} ${addresses.join()}`)
    const family = (options as { family?: number }).family
    if (status === 200) t.strictSame(network.connections.filter((address) => family !== undefined && isIP(address) !== family), [])
    else t.strictSame(network.connections, [])
  }
  await t.rejects(getPublicJson('http://client.example/', 5120), { message: 'http://client.example/ is not https' })
})

t.test('without a user nobody is asked: not before sign-in, nor by anything that can be sent to the token and revocation endpoint', async (t) => {
  const { app, network, flow } = await hosted(t, { accessTokenLifetime: 600, refreshTokenLifetime: 3600 })
  const unknown = await flow.authorize(HOSTED, {}, {})
  t.equal(unknown.statusCode, 303)
  t.equal(location(unknown).pathname, '/login')
  t.match(location(unknown).searchParams.get('return_to'), /^\/oauth\/authorize\?.*client_id=https%3A%2F%2Fclient\.example/)
  for (const [id, headers] of [['nobody', {}], ['nobody', { 'x-user': 'alice' }], ['https://client.example/a/../b', {}], ['https://client.example/a/../b', { 'x-user': 'alice' }]] as const) {
    const nobody = await flow.authorize(id, {}, headers)
    t.match([nobody.statusCode, text(nobody.body)], [400, 'This app is not registered here.'], `${id} is no such id, and nobody has to sign in for it`)
  }

  const mine = (await flow.redeem(await flow.clientId(), await flow.code(await flow.clientId()))).json<Record<string, string>>()
  const post = async (path: string, fields: Record<string, string>) => await app.inject({ method: 'POST', url: path, headers: FORM, payload: form({ client_id: HOSTED, ...fields }) })
  for (const [path, fields] of [
    ['/oauth/token', { grant_type: 'authorization_code', code: 'x'.repeat(300), code_verifier: flow.codeVerifier }], ['/oauth/token', { grant_type: 'authorization_code', code: await flow.code(await flow.clientId()), code_verifier: flow.codeVerifier }],
    ['/oauth/token', { grant_type: 'refresh_token', refresh_token: mine.refresh_token! }], ['/oauth/token', { grant_type: 'refresh_token', refresh_token: 'ort_x' }], ['/oauth/token', { grant_type: 'client_credentials' }],
    ['/oauth/revoke', { token: mine.access_token! }], ['/oauth/revoke', { token: 'oat_x' }], ['/oauth/revoke', {}]
  ] as Array<[string, Record<string, string>]>) {
    const refused = await post(path, fields)
    t.match([refused.statusCode, refused.json()], [401, { error: 'invalid_client' }], `${path} ${Object.keys(fields).join()}`)
  }
  t.strictSame([network.lookups, network.asked], [[], []], 'nobody was asked')
})

t.test('another node, which has not met the client, asks on behalf of the user whose code, refresh token or token it is given', async (t) => {
  const path = join(folder(), 'tokens.db')
  const lifetimes = { accessTokenLifetime: 600, refreshTokenLifetime: 3600 }
  const { network, flow, options } = await hosted(t, { store: sqliteStore({ path }), ...lifetimes })
  const node = async (): Promise<FastifyInstance> => await testApp(t, { ...options, store: sqliteStore({ path }) })
  const post = async (path: string, fields: Record<string, string>) => await (await node()).inject({ method: 'POST', url: path, headers: FORM, payload: form({ client_id: HOSTED, ...fields }) })

  const redeemed = await post('/oauth/token', { grant_type: 'authorization_code', code: await flow.code(HOSTED), code_verifier: flow.codeVerifier, redirect_uri: CALLBACK })
  t.equal(redeemed.statusCode, 200)
  const refreshed = await post('/oauth/token', { grant_type: 'refresh_token', refresh_token: redeemed.json<Record<string, string>>().refresh_token! })
  t.equal(refreshed.statusCode, 200)
  t.equal((await post('/oauth/revoke', { token: refreshed.json<Record<string, string>>().access_token! })).statusCode, 200)
  t.equal((await post('/oauth/revoke', { token: refreshed.json<Record<string, string>>().access_token! })).statusCode, 200, 'and once more')
  t.strictSame(network.asked, Array(5).fill(HOSTED), 'each of them asked')

  const [old, fresh] = [await flow.code(HOSTED), await flow.code(HOSTED)]
  const later = Date.now() + 61_000
  const clock = replace(t, Date, 'now', () => later)
  t.equal((await post('/oauth/token', { grant_type: 'authorization_code', code: old })).statusCode, 401)
  clock.restore()
  t.equal(network.asked.length, 5, 'an old code is nobody\'s')
  const busy = await node()
  for (let index = 0; index < 10; index++) t.equal((await dance(busy).authorize(network.publish(`https://chatgpt.com/${index}`, documentOf(`https://chatgpt.com/${index}`)))).statusCode, 200)
  const unlimited = await busy.inject({ method: 'POST', url: '/oauth/token', headers: FORM, payload: form({ grant_type: 'authorization_code', client_id: HOSTED, code: fresh, code_verifier: flow.codeVerifier, redirect_uri: CALLBACK }) })
  t.equal(unlimited.statusCode, 200, 'what the user has used up is not taken from the client')

  network.names.set('client.example', ['ESERVFAIL'])
  const unreachable = await post('/oauth/token', { grant_type: 'refresh_token', refresh_token: refreshed.json<Record<string, string>>().refresh_token! })
  t.match([unreachable.statusCode, unreachable.json()], [503, { error: 'temporarily_unavailable' }], 'a client that is told 401 would forget its tokens')
})

t.test('a mistake of a hosted client is shown with a link, and never sends anybody there unasked; choosing Deny does', async (t) => {
  const { flow } = await hosted(t, { clients: [{ clientId: 'web', clientName: 'By hand', redirectUris: [HOSTED_CALLBACK] }] })
  const refused = await flow.authorize(HOSTED, { redirect_uri: HOSTED_CALLBACK, code_challenge_method: 'plain' })
  t.equal(refused.statusCode, 400)
  t.notOk('location' in refused.headers)
  t.match(text(refused.body), 'Go back to client.example')
  const link = new URL(refused.body.match(/<a href="([^"]*)"/)![1]!.replaceAll('&amp;', '&'))
  t.equal(link.origin + link.pathname, HOSTED_CALLBACK)
  t.strictSame(Object.fromEntries(link.searchParams), { error: 'invalid_request', error_description: 'The code_challenge_method must be S256.', state: 'xyz', iss: ISSUER })

  const loopback = await flow.authorize(HOSTED, { code_challenge_method: 'plain' })
  t.equal(location(loopback).searchParams.get('error'), 'invalid_request', 'a program of the user\'s own is told at once')
  const configured = await flow.authorize('web', { redirect_uri: HOSTED_CALLBACK, code_challenge_method: 'plain' })
  t.equal(location(configured).searchParams.get('error'), 'invalid_request', 'so is a client that the app has named')
  const ticket = await flow.ticket(HOSTED, { redirect_uri: HOSTED_CALLBACK })
  const denied = location(await flow.consent({ ticket, decision: 'deny' }))
  t.equal(denied.origin + denied.pathname, HOSTED_CALLBACK)
  t.equal(denied.searchParams.get('error'), 'access_denied')
})

// The fence. ATTACKS.md 36.

/** Opens consent for a client that must not be reached, and hands back what the log says of it. */
async function refuse (t: Test, { flow, log }: Hosted, id: string, about: string, { status = 503, says }: { status?: number, says: RegExp }): Promise<string> {
  log.length = 0
  const page = await flow.authorize(id)
  t.equal(page.statusCode, status, about)
  t.equal(page.headers['retry-after'], status === 503 ? '5' : undefined)
  t.notOk('location' in page.headers)
  t.match(text(page.body), says)
  t.match(text(page.body), new URL(id).host.replaceAll('&', '&amp;'), 'the page names the host')
  const line = log.find(({ reason }) => reason !== undefined)
  const why = `${line?.reason ?? ''} ${line?.detail ?? ''}${JSON.stringify(line?.err ?? '')}`
  if (status === 503) t.notMatch(page.body.replaceAll(new URL(id).host, ''), /\d+\.\d+\.\d+\.\d+|ECONN|ENOTFOUND|certificate|timeout|ms\b/i, 'and nothing of this server\'s network')
  return why
}

const UNREACHABLE = { says: /This site could not ask .* about the app\. It has to know who the app is before you can allow it/ }
const UNUSABLE = { status: 400, says: /What .* says about this app cannot be used\. Nothing was changed\. Only the makers of the app can fix this/ }

t.test('a name that leads to an address of this network is refused before a connection, whatever its form, also beside a public one', async (t) => {
  const at = await hosted(t, {}, {})
  const { network } = at
  let count = 0
  for (const addresses of [['127.0.0.1'], ['10.1.2.3'], ['172.16.0.1'], ['192.168.1.1'], ['169.254.169.254'], ['100.100.100.200'], ['0.0.0.0'], ['224.0.0.1'], ['::1'], ['fe80::1'], ['fd00:ec2::254'], ['::ffff:127.0.0.1'], ['::ffff:7f00:1'], ['64:ff9b::a00:1'],
    ['64:ff9b::7f00:1'], ['::7f00:1'], [`::${PUBLIC}`], ['2002:7f00:1::'], [PUBLIC, '127.0.0.1'], ['127.0.0.1', PUBLIC], [PUBLIC, '::1']]) {
    const host = `x${++count}.client.example`
    network.names.set(host, [addresses])
    const id = network.publish(`https://${host}/client.json`, documentOf(`https://${host}/client.json`))
    const other = { ...at, flow: dance(at.app, `user ${count}`) }
    t.match(await refuse(t, other, id, addresses.join(), UNREACHABLE), /client_metadata_unreachable .*is not a public address/)
  }
  // What only this machine knows is no name: DNS alone is asked.
  network.pages.set('https://localhost/client.json', documentOf('https://localhost/client.json'))
  t.match(await refuse(t, at, 'https://localhost/client.json', 'localhost', UNREACHABLE), /ENOTFOUND/)
  t.strictSame([network.connections, network.asked], [[], []], 'nothing was connected to')
})

t.test('an address instead of a name is refused, public or not', async (t) => {
  const at = await hosted(t)
  for (const host of ['127.0.0.1', '[::1]', '[::ffff:7f00:1]', '10.0.0.1', '169.254.169.254', PUBLIC]) {
    const id = `https://${host}/client.json`
    at.network.pages.set(id, documentOf(id))
    t.match(await refuse(t, at, id, host, UNREACHABLE), 'an address instead of a name')
  }
  t.strictSame([at.network.asked, at.network.lookups], [[], []])
})

t.test('DNS rebinding: what was checked is what is connected to, and nothing is looked up twice', async (t) => {
  const { network, flow } = await hosted(t)
  network.names.set('client.example', [[PUBLIC], ['127.0.0.1']])
  t.equal((await flow.authorize(HOSTED)).statusCode, 200)
  t.strictSame([network.lookups, network.connections], [['client.example'], [PUBLIC]])
  network.names.set('rebind.client.example', [['127.0.0.1'], [PUBLIC]])
  const id = network.publish('https://rebind.client.example/c', documentOf('https://rebind.client.example/c'))
  t.equal((await flow.authorize(id)).statusCode, 503)
  t.equal(network.lookups.length, 2)
})

t.test('a name is looked up once too where Node takes one address of it', async (t) => {
  const at = await hosted(t)
  const { network, flow } = at
  const before = net.getDefaultAutoSelectFamily()
  net.setDefaultAutoSelectFamily(false)
  t.teardown(() => net.setDefaultAutoSelectFamily(before))
  t.equal((await flow.authorize(HOSTED)).statusCode, 200)
  network.names.set('mixed.client.example', [[PUBLIC, '127.0.0.1']])
  t.match(await refuse(t, at, network.publish('https://mixed.client.example/c', documentOf('https://mixed.client.example/c')), 'mixed', UNREACHABLE), /not a public address/)
  t.strictSame([network.lookups, network.connections], [['client.example', 'mixed.client.example'], [PUBLIC]])
})

t.test('by default nothing of another request goes along: no connection, no TLS session, no header that tells of this app or its user', async (t) => {
  const network = await Network.start(t)
  network.catchAll(t)
  const seen: object[] = []
  const ids = ['a', 'b'].map((path) => network.publish(`https://client.example/${path}`, ({ method, headers, socket }, response) => {
    seen.push({ method, headers, isReused: (socket as TLSSocket).isSessionReused() })
    response.setHeader('content-type', 'application/json').end(JSON.stringify(documentOf(`https://client.example/${path}`)))
  }))
  const { authorize } = dance(await testApp(t))
  const timers = (): number => process.getActiveResourcesInfo().filter((type) => type === 'Timeout').length
  const before = timers()
  for (const id of ids) t.equal((await authorize(id)).statusCode, 200)
  t.equal(timers(), before, 'nothing is left to wait for')
  t.strictSame(seen, ids.map(() => ({ method: 'GET', headers: { accept: 'application/json', 'accept-encoding': 'identity', 'user-agent': 'fastify-mcp-oauth', host: 'client.example', connection: 'close' }, isReused: false })))
  t.strictSame(network.connections, [PUBLIC, PUBLIC])

  network.names.set('inside.client.example', [['10.0.0.1']])
  t.equal((await authorize(network.publish('https://inside.client.example/c', documentOf('https://inside.client.example/c')))).statusCode, 503)
  t.equal(network.connections.length, 2)
})

t.test('no agent of the app makes it ask without TLS', async (t) => {
  const network = await Network.start(t)
  network.names.set('client.example', [[PUBLIC]])
  await t.rejects(getPublicJson('http://client.example/c', 100, new http.Agent() as Network), /is not https/)
  await t.rejects(getPublicJson('https://client.example/c', 100, new http.Agent() as Network), { code: 'ERR_INVALID_PROTOCOL' })
  t.strictSame(network.lookups, [])
})

t.test('redirects, other statuses, other types, encodings and sizes are no documents', async (t) => {
  const at = await hosted(t)
  const { network } = at
  const json = (body: string, headers: Record<string, string> = {}, status = 200): RequestListener => (_request, response) => { response.writeHead(status, { 'content-type': 'application/json', ...headers }).end(body) }
  const own = (path: string, changes = {}): string => JSON.stringify(documentOf(`https://client.example/${path}`, changes))
  const filler = 'x'.repeat(6000)
  let count = 0
  for (const [path, page, wanted, why] of [
    ['redirect', json('', { location: HOSTED }, 302), UNUSABLE, /client_metadata_unreadable .* answered 302/], ['permanent', json('', { location: 'https://127.0.0.1/' }, 308), UNUSABLE, /answered 308/],
    ['created', json(own('created'), {}, 201), UNUSABLE, /answered 201/], ['partial', json(own('partial'), {}, 206), UNUSABLE, /answered 206/], ['gone', json('{}', {}, 410), UNUSABLE, /answered 410/],
    ['broken', json('{}', {}, 500), UNREACHABLE, /answered 500/], ['limited', json('{}', {}, 429), UNREACHABLE, /answered 429/],
    ['html', json(own('html'), { 'content-type': 'text/html' }), UNUSABLE, /no JSON by its content type/], ['untyped', json(own('untyped'), { 'content-type': '' }), UNUSABLE, /no JSON by its content type/], ['jsonp', json(own('jsonp'), { 'content-type': 'application/jsonp' }), UNUSABLE, /no JSON by its content type/],
    ['other', json(own('other'), { 'content-type': 'text/x; q=application/json' }), UNUSABLE, /no JSON by its content type/], ['almost', json(own('almost'), { 'content-type': 'application/notjson' }), UNUSABLE, /no JSON by its content type/], ['suffix', json(own('suffix'), { 'content-type': 'application/json+xml' }), UNUSABLE, /no JSON by its content type/],
    ['text', json('not JSON'), UNUSABLE, /no JSON object/], ['list', json('[]'), UNUSABLE, /no JSON object/], ['null', json('null'), UNUSABLE, /no JSON object/],
    ['huge', json(own('huge', { filler })), UNUSABLE, /over 5120 bytes/], ['huge-in-parts', ((_request, response) => { response.setHeader('content-type', 'application/json'); response.write(own('huge-in-parts', { filler }).slice(0, 5000)); response.end(filler) }) as RequestListener, UNUSABLE, /over 5120 bytes/],
    ['huge-in-many', ((_request, response) => { response.setHeader('content-type', 'application/json'); for (const part of own('huge-in-many', { filler }).match(/.{1,2000}/g)!) response.write(part); response.end() }) as RequestListener, UNUSABLE, /over 5120 bytes/],
    ['endless', ((_request, response) => {
      response.setHeader('content-type', 'application/json')
      const write = (): void => { while (!response.destroyed && response.write(filler)); }
      response.on('drain', write)
      write()
    }) as RequestListener, UNUSABLE, /over 5120 bytes/],
    ['gzip', json(own('gzip'), { 'content-encoding': 'gzip' }), UNUSABLE, /encoding that was not asked for/],
    ['cut', ((_request, response) => { response.writeHead(200, { 'content-type': 'application/json', 'content-length': '900' }); response.write('{'); setImmediate(() => response.destroy()) }) as RequestListener, UNREACHABLE, /client_metadata_unreachable/],
    ['chunks', (({ socket }) => { socket.write('HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n', () => { setImmediate(() => socket.write('no number\r\n')) }) }) as RequestListener, UNREACHABLE, /client_metadata_unreachable/],
    ['another', json(own('someone-else')), UNUSABLE, /client_metadata_mismatch/], ['secret', json(own('secret', { client_secret: 'x' })), UNUSABLE, /client_metadata_secret/]
  ] as Array<[string, RequestListener, typeof UNREACHABLE, RegExp]>) {
    const id = network.publish(`https://client.example/${path}`, page)
    t.match(await refuse(t, { ...at, flow: dance(at.app, `user ${++count}`) }, id, path, wanted), why)
  }
  for (const [path, type] of Object.entries({ typed: 'application/vnd.client+json; charset=utf-8', specific: 'application/vnd.client-1+json; charset=utf-8', spaced: 'application/json ; charset=utf-8', upper: 'Application/JSON' })) {
    const id = network.publish(`https://client.example/${path}`, json(own(path), { 'content-type': type }))
    t.equal((await at.flow.authorize(id)).statusCode, 200, type)
  }
  for (const [size, statusCode] of [[5120, 200], [5121, 400]] as const) {
    const filler = 'x'.repeat(size - own(String(size), { filler: '' }).length)
    t.equal((await at.flow.authorize(network.publish(`https://client.example/${size}`, json(own(String(size), { filler }))))).statusCode, statusCode, `${size} bytes`)
  }
  t.notOk(network.asked.some((url) => url.includes('127.0.0.1')), 'no redirect was followed')

  const find = metadataClients({ redirectUris: [], grantTypes: ['authorization_code'], agent: network })
  t.match(await find('https://client.example/redirect', async () => 'zoe').catch((error) => error), { name: 'OAuthError', detail: 'https://client.example/redirect answered 302' }, 'what was wrong is in the error')
})

t.test('a host that is slow to begin, slow to go on, silent or without the right certificate is given up after 5 seconds at most', async (t) => {
  const { app, network, log } = await hosted(t)
  const closed: string[] = []
  const pages: Record<string, RequestListener> = {
    silent: ({ socket }) => { socket.once('close', () => closed.push('silent')) },
    garbage: (_request, response) => { response.socket!.write('Z'.repeat(60_000)) },
    drip: ({ socket }, response) => {
      socket.once('close', () => closed.push('drip'))
      response.setHeader('content-type', 'application/json')
      const timer = setInterval(() => response.write(' '), 100)
      response.once('close', () => clearInterval(timer))
    },
    'drip-of-headers': (_request, response) => {
      response.socket!.write('HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx:')
      const timer = setInterval(() => response.socket?.write('x'), 100)
      response.once('close', () => clearInterval(timer))
    },
    'many-headers': (_request, response) => { response.socket!.end(`HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n${'x: y\r\n'.repeat(20_000)}\r\n{}`) },
    switching: (_request, response) => { response.socket!.end('HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n') },
    continuing: (_request, response) => { response.socket!.write('HTTP/1.1 103 Early Hints\r\n\r\n'.repeat(100)) }
  }
  network.names.set('silent-name.example', ['nothing'])
  const ids = Object.entries(pages).map(([path, page]) => network.publish(`https://client.example/${path}`, page))
  network.names.set('untrusted.example', [[PUBLIC]])
  ids.push('https://silent-name.example/c', network.publish('https://untrusted.example/c', documentOf('https://untrusted.example/c')))

  const started = performance.now()
  await Promise.all(ids.map(async (id, index) => {
    const page = await dance(app, `user ${index}`).authorize(id)
    t.equal(page.statusCode, 503, id)
    t.ok(performance.now() - started < 9000, `after ${Math.round(performance.now() - started)} ms`)
  }))
  t.equal(log.filter(({ err }) => /no whole answer within 5000 ms/.test(JSON.stringify(err ?? ''))).length, 5)
  t.ok(log.some(({ err }) => /over 10 answers of 1xx/.test(err?.message ?? '')), 'announcements for 5 seconds would keep this server busy for as long')
  t.ok(log.some(({ err }) => /altnames/.test(JSON.stringify(err ?? ''))), 'the certificate is of another name')
  t.ok(log.every((line) => JSON.stringify(line).length < 3000), 'neither what came nor certificates are kept and logged')
  for (let wait = 0; wait < 100 && closed.length < 2; wait++) await setTimeout(50)
  t.strictSame(closed.sort(), ['drip', 'silent'], 'no connection is left')
})

t.test('a name with thousands of addresses is connected to at few of them', async (t) => {
  const { network, flow } = await hosted(t)
  network.names.set('client.example', [[...Array.from({ length: 20 }, (_, index) => `93.184.216.${index}`), ...Array.from({ length: 20 }, (_, index) => `2606:4700::${index + 1}`)]])
  t.equal((await flow.authorize(HOSTED)).statusCode, 200)
  t.strictSame([network.connections.filter((address) => address.includes('.')).length, network.connections.filter((address) => address.includes(':')).length], [16, 16])
})

t.test('where no host can be asked, the user is told which one was meant, and the log says why', async (t) => {
  const at = await hosted(t)
  for (const code of ['ENOTFOUND', 'ESERVFAIL', 'EREFUSED']) {
    const host = `${code.toLowerCase()}.example`
    at.network.names.set(host, [code])
    t.match(await refuse(t, at, `https://${host}/client.json`, code, UNREACHABLE), new RegExp(`client_metadata_unreachable .*${code}`, 's'))
  }
})

t.test('a spray of URLs is stopped for the user, and for the host; a document that is known is not counted', async (t) => {
  const { app, network, log } = await hosted(t)
  // Called as the host is: what one has used up is not the other's.
  const flow = dance(app, 'client.example')
  const ids = Array.from({ length: 80 }, (_, index) => network.publish(`https://client.example/${index}`, documentOf(`https://client.example/${index}`)))
  const statuses = []
  for (const id of ids.slice(0, 12)) statuses.push((await flow.authorize(id)).statusCode)
  t.strictSame(statuses, [...Array<number>(10).fill(200), 429, 429], 'ten a minute for each user')
  t.equal(network.asked.length, 10)
  const refused = await flow.authorize(ids[79]!)
  t.match(text(refused.body), 'Too many apps were looked up. Wait a minute, then try again.')
  t.ok(log.some(({ reason }) => reason === 'client_lookups_limited'))
  t.equal((await flow.authorize(ids[0]!)).statusCode, 200, 'this one is known')

  for (const [index, id] of ids.slice(12, 75).entries()) statuses.push((await dance(app, `user ${index}`).authorize(id)).statusCode)
  t.strictSame(statuses.slice(12), [...Array<number>(50).fill(200), ...Array<number>(13).fill(429)], 'sixty a minute for each host')
  t.equal(network.asked.length, 60)
  t.equal((await dance(app, 'zoe').authorize(network.publish(CODEX, documentOf(CODEX)))).statusCode, 200, 'another host is asked')
  const elsewhere = network.publish('https://chatgpt.com/keys-elsewhere', documentOf('https://chatgpt.com/keys-elsewhere', { token_endpoint_auth_method: 'private_key_jwt', jwks_uri: 'https://client.example/keys' }))
  const zoe = dance(app, 'zoe')
  const keyless = await zoe.redeem(elsewhere, await zoe.code(elsewhere), await assertionOf(elsewhere, await keyOf('ES256')))
  t.match([keyless.statusCode, keyless.json()], [401, { error: 'invalid_client' }], 'keys are counted apart')
  t.ok(network.asked.includes('https://client.example/keys'))
  const start = performance.now()
  await at(t, start + 61_000)
  t.equal((await dance(app, 'zoe').authorize(ids[78]!)).statusCode, 200, 'a minute later')
})

t.test('who asks a host for what is not there keeps nobody from the clients of that host that are known', async (t) => {
  const { app, network, flow } = await hosted(t, { accessTokenLifetime: 600, refreshTokenLifetime: 3600 })
  const issued = (await flow.redeem(HOSTED, await flow.code(HOSTED))).json<Record<string, string>>()
  await at(t, performance.now() + 301_000)
  for (let index = 0; index < 60; index++) await dance(app, `user ${index % 6}`).authorize(`https://client.example/no/${index}`)
  t.equal((await dance(app, 'zoe').authorize('https://client.example/no/60')).statusCode, 429)
  const refreshed = await app.inject({ method: 'POST', url: '/oauth/token', headers: FORM, payload: form({ grant_type: 'refresh_token', client_id: HOSTED, refresh_token: issued.refresh_token! }) })
  t.equal(refreshed.statusCode, 200)
  t.equal(network.asked.filter((url) => url === HOSTED).length, 2, 'its document was 5 minutes old')
})

t.test('keys are asked for on behalf of a user, seldom where they fail, and apart from the documents of their host', async (t) => {
  const { app, network, flow } = await hosted(t)
  const ids = Array.from({ length: 70 }, (_, index) => network.publish(`https://client.example/${index}`, documentOf(`https://client.example/${index}`, { token_endpoint_auth_method: 'private_key_jwt', jwks_uri: `https://claude.ai/${index}` })))
  const { privateKey } = await generateKeyPair('ES256')
  const redeem = async (id: string, code: string) => await flow.redeem(id, code, {
    client_assertion_type: 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer',
    client_assertion: await new SignJWT({ iss: id, sub: id, aud: ISSUER }).setProtectedHeader({ alg: 'ES256' }).setExpirationTime('2m').sign(privateKey)
  })
  network.names.set('claude.ai', [[PUBLIC]])
  network.pages.set('https://claude.ai/0', { no: 'keys' })
  const codes = await Promise.all(ids.slice(0, 60).map(async (id, index) => await dance(app, `user ${index}`).code(id)))
  const keys = (): number => network.asked.filter((url) => url.startsWith('https://claude.ai/')).length

  t.match((await redeem(ids[0]!, 'x')).json(), { error: 'invalid_client' })
  t.match((await redeem(ids[0]!, codes[1]!)).json(), { error: 'invalid_client' })
  t.equal(keys(), 0, 'with the code of nobody, or of another client')
  for (const [id, code] of [[ids[0]!, codes[0]!], [ids[1]!, codes[1]!]] as const) {
    const [first, again] = [await redeem(id, code), await redeem(id, code)]
    t.equal(first.statusCode, 401)
    t.equal(again.statusCode, 401)
  }
  t.equal(keys(), 2, 'one that is no keys, and one that is not there, are remembered')
  const now = Date.now()
  const later = replace(t, Date, 'now', () => now + 10_001)
  await redeem(ids[0]!, codes[0]!)
  t.equal(keys(), 3)
  later.restore()
  for (const [index, id] of ids.slice(0, 60).entries()) await redeem(id, codes[index]!)
  t.equal(keys(), 60)
  t.equal((await redeem(ids[0]!, codes[0]!)).statusCode, 401)
  network.publish(CLAUDE_CODE, documentOf(CLAUDE_CODE))
  t.equal((await dance(app, 'zoe').authorize(CLAUDE_CODE)).statusCode, 200, 'the host that others have named may be asked who its clients are')
})

t.test('what a client makes this server look up is not taken from its user, who may have disconnected it', async (t) => {
  const { app, network, flow } = await hosted(t, { accessTokenLifetime: 600, refreshTokenLifetime: 3600 })
  const ids = [HOSTED, network.publish('https://client.example/second.json', documentOf('https://client.example/second.json'))]
  const tokens = []
  for (const id of ids) tokens.push((await flow.redeem(id, await flow.code(id))).json<Record<string, string>>().refresh_token!)
  for (const id of ids) network.publish(id, (_request, response) => { response.writeHead(500).end() })
  network.asked.length = 0
  const start = performance.now()
  for (let round = 0; round < 5; round++) {
    const clock = await at(t, start + 86_500_000 + round * 10_100)
    for (const [index, id] of ids.entries()) {
      const refused = await app.inject({ method: 'POST', url: '/oauth/token', headers: FORM, payload: form({ grant_type: 'refresh_token', client_id: id, refresh_token: tokens[index]! }) })
      t.equal(refused.statusCode, 503)
    }
    if (round === 4) t.equal((await flow.authorize(network.publish(CODEX, documentOf(CODEX)))).statusCode, 200)
    clock.restore()
  }
  t.equal(network.asked.length, 11)
})

t.test('the minute in which hosts are asked begins with the first question, and no other prolongs it', async (t) => {
  const { network, flow } = await hosted(t)
  const start = performance.now()
  let count = 0
  const ask = async (seconds: number, times: number): Promise<number[]> => {
    const clock = await at(t, start + seconds * 1000)
    const statuses = []
    while (statuses.length < times) statuses.push((await flow.authorize(network.publish(`https://client.example/${++count}`, documentOf(`https://client.example/${count}`)))).statusCode)
    clock.restore()
    return statuses
  }
  t.strictSame(await ask(0, 1), [200])
  t.strictSame(await ask(40, 10), [...Array<number>(9).fill(200), 429])
  t.strictSame(await ask(59, 1), [429])
  t.strictSame(await ask(62, 10), Array(10).fill(200))
})

t.test('a thousand documents are kept, the latest; one that makes way while it is asked for still reaches who waits', async (t) => {
  const network = await Network.start(t)
  const find = metadataClients({ redirectUris: [], grantTypes: ['authorization_code'], agent: network })
  let release = (): void => {}
  const slow = network.publish('https://client.example/slow', (_request, response) => {
    release = () => { response.setHeader('content-type', 'application/json').end(JSON.stringify(documentOf(slow))) }
  })
  const clock = await at(t, performance.now())
  const waiting = find(slow, async () => 'zoe')
  while (network.asked.length === 0) await setTimeout(5)
  // Addresses, which are refused without delay: nobody waits for the slow one for more than 5 seconds.
  const sought: number[] = []
  const ask = async (index: number, user = `user ${Math.floor(index / 10)}`): Promise<unknown> => await find(`https://10.0.${index >> 8}.${index & 255}/c`, async () => {
    sought.push(index)
    return user
  }).catch(({ reason }) => reason)
  const reasons = new Set()
  for (let index = 0; index <= 1000; index++) reasons.add(await ask(index))
  t.strictSame([...reasons], ['client_metadata_unreachable'])
  sought.length = 0
  await ask(1, 'zoe')
  t.strictSame(sought, [], 'one of the latest thousand')
  await ask(0, 'zoe')
  t.strictSame(sought, [0], 'this one made way')
  t.equal(await ask(2000, 'user 0'), 'client_lookups_limited', 'that this user has asked ten times did not')
  release()
  t.match(await waiting, { clientName: 'Hosted client' })
  clock.restore()
})

t.test('of many that want one document at once, one asks; it is kept as long as its headers allow, from 5 minutes to a day', async (t) => {
  const { app, network, flow } = await hosted(t)
  const pages = await Promise.all(Array.from({ length: 30 }, async (_, index) => await dance(app, `user ${index}`).authorize(HOSTED)))
  t.ok(pages.every(({ statusCode }) => statusCode === 200))
  t.equal(network.asked.length, 1)

  const ids = Object.entries({ plain: {}, short: { 'cache-control': 'max-age=10' }, never: { 'cache-control': 'no-store' }, hour: { 'cache-control': 'public, max-age=3600' }, aged: { 'cache-control': 'max-age=3600', age: '3000' }, year: { 'cache-control': 'max-age=31536000' }, broken: { 'cache-control': 'max-age=soon' }, old: { 'last-modified': 'Thu, 01 Jan 2015 00:00:00 GMT' }, expires: { expires: new Date(Date.now() + 3600_000).toUTCString() } })
    .map(([path, headers]) => network.publish(`https://client.example/${path}`, (_request, response) => { response.writeHead(200, { 'content-type': 'application/json', ...headers }).end(JSON.stringify(documentOf(`https://client.example/${path}`))) }))
  const start = performance.now()
  const asked = async (seconds: number): Promise<string[]> => {
    const clock = await at(t, start + seconds * 1000)
    network.asked.length = 0
    for (const id of ids) t.equal((await flow.authorize(id)).statusCode, 200)
    clock.restore()
    return network.asked.map((url) => url.split('/').at(-1)!)
  }
  t.equal((await asked(0)).length, ids.length)
  t.strictSame(await asked(290), [])
  t.strictSame(await asked(320), ['plain', 'short', 'never', 'broken', 'old'])
  t.strictSame(await asked(640), ['plain', 'short', 'never', 'aged', 'broken', 'old'])
  t.strictSame(await asked(3700), ['plain', 'short', 'never', 'hour', 'aged', 'broken', 'old', 'expires'])
  t.notOk((await asked(86_300)).includes('year'))
  t.ok((await asked(86_500)).includes('year'))

  // A failure is remembered too, but not for long.
  const zoe = dance(app, 'zoe')
  const failing = network.publish('https://client.example/failing', (_request, response) => { response.writeHead(500).end() })
  t.equal((await zoe.authorize(failing)).statusCode, 503)
  network.publish(failing, documentOf(failing))
  t.equal((await zoe.authorize(failing)).statusCode, 503)
  const later = performance.now()
  for (const [milliseconds, statusCode] of [[4000, 503], [5500, 200]] as const) {
    const clock = await at(t, later + milliseconds)
    t.equal((await zoe.authorize(failing)).statusCode, statusCode, `${milliseconds} ms later`)
    clock.restore()
  }
})

t.test('the app chooses: no such clients at all, those of some hosts, further redirect URIs', async (t) => {
  const off = await testApp(t, { clientIdMetadata: false })
  t.notOk('client_id_metadata_document_supported' in (await off.inject('/.well-known/oauth-authorization-server')).json<object>())
  const refused = await dance(off).authorize(HOSTED, {}, {})
  t.equal(refused.statusCode, 400, 'nobody has to sign in for it')
  t.match(text(refused.body), 'This app is not registered here.')

  const { app, network, flow } = await hosted(t, {}, { allowHosts: ['chatgpt.com', 'client.example:8443'], redirectUris: ['https://elsewhere.example/cb', 'other://chatgpt.com/cb'] })
  const page = await flow.authorize(HOSTED, {}, {})
  t.equal(page.statusCode, 400, 'nobody has to sign in for it')
  t.match(text(page.body), 'Apps of client.example may not connect here.')
  t.match(text((await flow.authorize('https://chatgpt.com:8443/client.json')).body), 'Apps of chatgpt.com:8443 may not connect here.')
  const told = await app.inject({ method: 'POST', url: '/oauth/token', headers: FORM, payload: form({ client_id: HOSTED, grant_type: 'refresh_token', refresh_token: 'ort_x' }) })
  t.match([told.statusCode, told.json()], [400, { error: 'unauthorized_client' }], 'and its tokens are not lost to it if that changes')
  t.strictSame(network.lookups, [])
  t.equal((await flow.authorize(network.publish('https://client.example:8443/client.json', documentOf('https://client.example:8443/client.json')))).statusCode, 200)
  network.publish(CODEX, documentOf(CODEX, { redirect_uris: ['https://elsewhere.example/cb', 'https://other.example/cb', 'other://chatgpt.com/cb'] }))
  const elsewhere = await flow.authorize(CODEX, { redirect_uri: 'https://elsewhere.example/cb' })
  t.equal(elsewhere.statusCode, 200)
  t.match(text(elsewhere.body), 'Access goes to elsewhere.example ')
  t.match(text(elsewhere.body), 'Not verified. This app says that it is Hosted client from chatgpt.com.', 'the host does not vouch for what is elsewhere')
  t.match(text((await flow.authorize(CODEX, { redirect_uri: 'other://chatgpt.com/cb' })).body), 'Not verified. This app says that it is Hosted client from chatgpt.com.', 'nor for a program that has its name in a scheme of its own')
  t.equal((await flow.authorize(CODEX, { redirect_uri: 'https://other.example/cb' })).statusCode, 400)

  const configured = await hosted(t, { clients: [{ clientId: HOSTED, clientName: 'By hand', redirectUris: ['https://client.example/by-hand'] }] })
  t.match(text((await configured.flow.authorize(HOSTED, { redirect_uri: 'https://client.example/by-hand' })).body), 'By hand')
  t.strictSame(configured.network.lookups, [], 'what the app says of a client comes first')
})
