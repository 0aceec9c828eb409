import Fastify, { type FastifyInstance, type InjectOptions } from 'fastify'
import { SignJWT, exportJWK, generateKeyPair, type CryptoKey, type JWK } from 'jose'
import { createHash } from 'node:crypto'
import { isDeepStrictEqual } from 'node:util'
import t from 'tap'
import mcpOAuth, { type ConfiguredClient, type McpOAuthOptions, type ResourceOptions } from '../dist/index.js'
import { sqliteStore } from '../dist/store/sqlite.js'
import { CALLBACK, FORM, bearer, fieldOf, form, pkce, testOptions } from './app.js'
import { Network } from './network.js'

// That the documents say what is on, and that what they say is true: for combinations of every option that turns
// something on or off, once by what `documents()` here makes of the options, and once by asking each endpoint.

const HOUR = 3600
const FILES = 'https://files.example/files'
const SECRET = 's'.repeat(43)
const METHODS = ['none', 'client_secret_basic', 'client_secret_post', 'private_key_jwt'] as const
const GRANT_TYPES = ['authorization_code', 'refresh_token', 'client_credentials', 'password', 'urn:ietf:params:oauth:grant-type:jwt-bearer']
const ALGORITHMS = ['ES256', 'ES384', 'PS256', 'RS256', 'EdDSA', 'Ed25519']

type Method = typeof METHODS[number]

/** Each kind of client that `clients` may name, by its id. */
const CLIENTS: Record<string, { methods: readonly Method[], scopes?: string[], introspects?: true }> = {
  desk: { methods: ['none'] },
  shop: { methods: ['client_secret_basic', 'client_secret_post'] },
  bank: { methods: ['private_key_jwt'] },
  robot: { methods: ['client_secret_basic', 'client_secret_post'], scopes: ['read'] },
  files: { methods: ['private_key_jwt'], introspects: true }
}

/** A client whose id is the URL of its metadata, and the one way in which it proves itself. */
const HOSTED = 'https://client.example/client.json'
const HOSTED_METHOD = 'private_key_jwt'

/** The options that turn something on or off, with their values. The first of each is the default, or the least. */
const AXES = {
  issuer: ['https://notes.example', 'https://example.com/tenant'],
  lifetimes: [{}, { accessTokenLifetime: HOUR }, { accessTokenLifetime: HOUR, refreshTokenLifetime: 30 * HOUR }],
  registration: [true, false],
  clientIdMetadata: [true, 'with an agent', false],
  clients: [[], ['desk'], ['shop'], ['bank'], ['robot'], ['files'], Object.keys(CLIENTS), 'a function'],
  user: ['nothing', 'findUser', 'userinfo'],
  connectedApps: ['/my/connected_apps', '/settings/apps', false],
  resources: [
    [{ path: '/mcp', name: 'Notes', documentation: 'https://docs.example/' }],
    [{ path: '/mcp' }, { path: '/deep/er', scopes: ['read'] }],
    [{ path: '/files' }, { url: FILES, scopes: ['read'] }],
    [{ url: FILES, name: 'Files' }, { path: '/mcp' }],
    [{ url: FILES }]
  ],
  rootAliases: [false, true]
} satisfies Record<string, readonly unknown[]>

type Combination = { [axis in keyof typeof AXES]: typeof AXES[axis][number] }

/** Options that decide something together: what a client may do, what is said of a token, which paths there are. */
const ENTWINED = [
  ['lifetimes', 'registration', 'clientIdMetadata', 'clients'],
  ['issuer', 'clients', 'resources'],
  ['issuer', 'registration', 'rootAliases']
]

/**
 * Of the full product, which takes minutes (COMBINATIONS=all), those that bring together something new: values of two
 * options, or of three that are entwined. It is walked in steps that are no divisor of its length, so that neighbours differ.
 */
function combinations (): Combination[] {
  const axes = Object.entries(AXES) as Array<[string, readonly unknown[]]>
  const total = axes.reduce((product, [, { length }]) => product * length, 1)
  const met = new Set<string>()
  return Array.from({ length: total }, (_, step) => {
    let index = step * 161 % total
    return axes.map(([axis, { length }]) => {
      const value = index % length
      index = Math.floor(index / length)
      return { axis, value }
    })
  }).filter((choice) => {
    const together = choice.flatMap((one, i) => choice.slice(i + 1).flatMap((two, j) => [
      [one, two],
      ...choice.slice(i + j + 2).map((three) => [one, two, three]).filter((three) => ENTWINED.some((axes) => three.every(({ axis }) => axes.includes(axis))))
    ])).map((values) => JSON.stringify(values))
    const isNew = together.some((values) => !met.has(values))
    together.forEach((values) => met.add(values))
    return isNew || process.env.COMBINATIONS === 'all'
  }).map((choice) => Object.fromEntries(choice.map(({ axis, value }) => [axis, AXES[axis as keyof Combination][value]])) as Combination)
}

const { publicKey, privateKey } = await generateKeyPair('ES256')

function clientOf (clientId: string, resource: string, jwk: JWK): ConfiguredClient {
  const { methods, scopes, introspects } = CLIENTS[clientId]!
  return {
    clientId,
    clientName: clientId,
    redirectUris: [CALLBACK],
    ...(methods.includes('client_secret_basic') && { clientSecretHashes: [createHash('sha256').update(SECRET).digest('base64url')] }),
    ...(methods.includes('private_key_jwt') && { jwks: { keys: [jwk] } }),
    ...(scopes !== undefined && { scopes }),
    ...(introspects !== undefined && { introspects: [resource] })
  }
}

/** What the documents have to be, by the options alone. */
function documents ({ issuer, lifetimes, registration, clientIdMetadata, clients, user, resources }: Combination) {
  const { origin, pathname } = new URL(issuer)
  const base = pathname === '/' ? '' : pathname
  const known = clients === 'a function' ? Object.keys(CLIENTS) : clients as string[]
  const has = (is: (client: typeof CLIENTS[string]) => boolean): boolean => known.some((clientId) => is(CLIENTS[clientId]!))
  const isOn = {
    register: registration,
    hosted: clientIdMetadata !== false,
    introspect: has(({ introspects }) => introspects === true),
    userinfo: user === 'userinfo',
    refresh: 'refreshTokenLifetime' in lifetimes
  }
  // Whoever registered before registration was turned off is still known: its id is its own proof.
  const configured = METHODS.filter((method) => has((client) => client.methods.includes(method)))
  const methods = METHODS.filter((method) => method === 'none' || configured.includes(method) || (isOn.hosted && method === HOSTED_METHOD))
  // Only a client that the app has named may look into tokens.
  const confidential = configured.filter((method) => method !== 'none')
  const userGrantTypes = ['authorization_code', ...(isOn.refresh ? ['refresh_token'] : [])]
  const algorithms = (methods: readonly Method[]) => methods.includes('private_key_jwt') ? ALGORITHMS : undefined

  const server: Record<string, unknown> = {
    issuer,
    authorization_endpoint: `${issuer}/oauth/authorize`,
    token_endpoint: `${issuer}/oauth/token`,
    revocation_endpoint: `${issuer}/oauth/revoke`,
    ...(isOn.register && { registration_endpoint: `${issuer}/oauth/register` }),
    ...(isOn.hosted && { client_id_metadata_document_supported: true }),
    ...(isOn.introspect && { introspection_endpoint: `${issuer}/oauth/introspect`, introspection_endpoint_auth_methods_supported: confidential }),
    ...(isOn.userinfo && { userinfo_endpoint: `${issuer}/oauth/userinfo` }),
    scopes_supported: ['read', 'write'],
    response_types_supported: ['code'],
    response_modes_supported: ['query'],
    grant_types_supported: [...userGrantTypes, ...(has(({ scopes }) => scopes !== undefined) ? ['client_credentials'] : [])],
    token_endpoint_auth_methods_supported: methods,
    revocation_endpoint_auth_methods_supported: methods,
    token_endpoint_auth_signing_alg_values_supported: algorithms(methods),
    revocation_endpoint_auth_signing_alg_values_supported: algorithms(methods),
    introspection_endpoint_auth_signing_alg_values_supported: isOn.introspect ? algorithms(confidential) : undefined,
    code_challenge_methods_supported: ['S256'],
    authorization_response_iss_parameter_supported: true
  }

  const served = (resources as ResourceOptions[]).filter(({ path }) => path !== undefined)
  const protectedResources = new Map(served.flatMap(({ path, name, scopes, documentation }, index) => {
    const document = {
      resource: origin + path,
      authorization_servers: [issuer],
      bearer_methods_supported: ['header'],
      scopes_supported: scopes ?? ['read', 'write'],
      ...(name !== undefined && { resource_name: name }),
      ...(documentation !== undefined && { resource_documentation: documentation })
    }
    const at = `/.well-known/oauth-protected-resource${path}`
    return index === 0 ? [['/.well-known/oauth-protected-resource', document], [at, document]] as const : [[at, document]] as const
  }))
  const [first] = resources as [ResourceOptions]
  return { base, known, isOn, userGrantTypes, server, protectedResources, paths: served.map(({ path }) => path!), resource: first.url ?? origin + first.path }
}

/** The id of an app that registered at another time, under the same key. */
const REGISTERED = { client_name: 'Test client', redirect_uris: [CALLBACK] }
const registeredId = await (async () => {
  const app = Fastify()
  await app.register(mcpOAuth, testOptions({ store: sqliteStore({ path: ':memory:' }) }))
  const { client_id: clientId } = (await app.inject({ method: 'POST', url: '/oauth/register', payload: REGISTERED })).json<{ client_id: string }>()
  await app.close()
  return clientId
})()
const jwk = await exportJWK(publicKey)

/** What proves, or fails to prove, that a request is of that client. */
async function credentials (clientId: string, method: Method, issuer: string, key: CryptoKey = privateKey, header: { alg: string, kid?: string } = { alg: 'ES256' }): Promise<{ headers?: Record<string, string>, fields: Record<string, string> }> {
  switch (method) {
    case 'none': return { fields: { client_id: clientId } }
    case 'client_secret_post': return { fields: { client_id: clientId, client_secret: SECRET } }
    case 'client_secret_basic': return { headers: { authorization: `Basic ${Buffer.from(`${encodeURIComponent(clientId)}:${SECRET}`).toString('base64')}` }, fields: {} }
    case 'private_key_jwt': return {
      fields: {
        client_assertion_type: 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer',
        client_assertion: await new SignJWT().setProtectedHeader(header).setIssuer(clientId).setSubject(clientId).setAudience(issuer).setExpirationTime('5m').sign(key)
      }
    }
  }
}

async function appOf ({ issuer, lifetimes, registration, clientIdMetadata, clients, user, connectedApps, resources, rootAliases }: Combination, network: Network, paths: string[], resource: string): Promise<FastifyInstance> {
  const app = Fastify()
  // What is not ours is answered by the host, and never in JSON.
  app.setNotFoundHandler(async (_request, reply) => await reply.code(404).type('text/html').send('<h1>Not found</h1>'))
  await app.register(mcpOAuth, testOptions({
    issuer,
    ...lifetimes,
    registration: { enabled: registration },
    clientIdMetadata: typeof clientIdMetadata === 'boolean' ? clientIdMetadata : { agent: network },
    clients: clients === 'a function'
      ? async (clientId: string) => Object.hasOwn(CLIENTS, clientId) ? clientOf(clientId, resource, jwk) : null
      : (clients as string[]).map((clientId) => clientOf(clientId, resource, jwk)),
    ...(user !== 'nothing' && { findUser: async (id: string) => ({ id, name: 'Alice' }) }),
    ...(user === 'userinfo' && { userinfo: async ({ name }) => ({ name }) }),
    connectedApps: connectedApps === false ? false : { path: connectedApps as string },
    resources: resources as ResourceOptions[],
    rootAliases,
    scopes: { read: 'Read your notes', write: { description: 'Change your notes', implies: ['read'] } },
    store: sqliteStore({ path: ':memory:' })
  }))
  for (const path of paths) app.post(path, { onRequest: app.oauth.protect({ resource: path }) }, async ({ oauth }) => ({ userId: oauth!.userId }))
  await app.ready()
  return app
}

/** All that the documents and the endpoints of one combination do that they should not. */
async function disagreements (combination: Combination, network: Network): Promise<string[]> {
  const { base, known, isOn, userGrantTypes, server, protectedResources, paths, resource } = documents(combination)
  const { issuer, connectedApps, rootAliases } = combination
  const lifetimes: { accessTokenLifetime?: number, refreshTokenLifetime?: number } = combination.lifetimes
  const app = await appOf(combination, network, paths, resource)
  const problems: string[] = []
  const is = (what: string, actual: unknown, expected: unknown): void => {
    if (!isDeepStrictEqual(actual, expected)) problems.push(`${what}: ${JSON.stringify(actual)} where ${JSON.stringify(expected)} is right`)
  }
  const ask = async (options: InjectOptions | string) => {
    const response = await app.inject(options)
    const isJson = String(response.headers['content-type']).startsWith('application/json')
    return { status: response.statusCode, headers: response.headers, body: response.body, json: isJson ? response.json<Record<string, unknown>>() : null }
  }
  const post = async (url: string, fields: Record<string, string>, headers: Record<string, string> = {}) =>
    await ask({ method: 'POST', url, headers: { ...FORM, ...headers }, payload: form(fields) })

  // The documents, field by field, wherever clients look for them.
  const metadata = (await ask(`/.well-known/oauth-authorization-server${base}`)).json ?? {}
  for (const field of new Set([...Object.keys(server), ...Object.keys(metadata)])) is(field, metadata[field], server[field])
  for (const [url, document] of protectedResources) is(url, (await ask(url)).json, document)

  // And nowhere else, but readable for clients in a browser: not those of resources that another server serves, and nothing for OpenID Connect.
  const nowhere = [
    ...['', '/tenant', '/mcp'].flatMap((path) => [`/.well-known/oauth-authorization-server${path}`, `/.well-known/openid-configuration${path}`]),
    ...['', '/mcp', '/files', '/deep/er', '/other'].map((path) => `/.well-known/oauth-protected-resource${path}`),
    ...[base, ...paths].map((path) => `${path}/.well-known/openid-configuration`),
    '/.well-known/oauth', '/.well-known/oauth-client/mcp'
  ]
  for (const url of nowhere.filter((url) => url !== `/.well-known/oauth-authorization-server${base}` && !protectedResources.has(url))) {
    const { status, headers, json } = await ask(url)
    is(url, [status, json?.error, headers['access-control-allow-origin']], [404, 'not_found', '*'])
  }

  // Each endpoint answers at its advertised URL, and what is not advertised is the host's to answer.
  const at = (name: string, otherwise = `/without/${name}`): string => typeof metadata[name] === 'string' ? new URL(metadata[name]).pathname : otherwise
  const endpoints: Array<[url: string, method: 'GET' | 'POST', answer: number]> = [
    [at('authorization_endpoint'), 'GET', 400], [at('authorization_endpoint'), 'POST', 403], [at('token_endpoint'), 'POST', 401], [at('revocation_endpoint'), 'POST', 401],
    [at('registration_endpoint', `${base}/oauth/register`), 'POST', isOn.register ? 400 : 404],
    [at('introspection_endpoint', `${base}/oauth/introspect`), 'POST', isOn.introspect ? 401 : 404],
    [at('userinfo_endpoint', `${base}/oauth/userinfo`), 'GET', isOn.userinfo ? 401 : 404],
    ['/authorize', 'GET', rootAliases ? 400 : 404], ['/authorize', 'POST', rootAliases ? 403 : 404], ['/token', 'POST', rootAliases ? 401 : 404],
    ['/register', 'POST', rootAliases && isOn.register ? 400 : 404],
    ['/revoke', 'POST', 404], ['/introspect', 'POST', 404], ['/userinfo', 'GET', 404],
    ...['/my/connected_apps', '/settings/apps'].map((path): [string, 'GET', number] => [path, 'GET', connectedApps === path ? 303 : 404]),
    ...(base === '' ? [] : ['authorize', 'token', 'revoke', 'register', 'introspect', 'userinfo']).map((name): [string, 'GET' | 'POST', number] => [`/oauth/${name}`, name === 'userinfo' ? 'GET' : 'POST', 404])
  ]
  for (const [url, method, answer] of endpoints) {
    const { status, body } = method === 'POST' && url.endsWith('register') ? await ask({ method, url, payload: {} }) : method === 'POST' ? await post(url, {}) : await ask(url)
    is(`${method} ${url}`, [status, body === '<h1>Not found</h1>'], [answer, answer === 404])
  }

  // Each grant type is taken or is not supported.
  for (const type of GRANT_TYPES) {
    const { json } = await post(at('token_endpoint'), { client_id: registeredId, grant_type: type })
    is(`grant_type ${type} is refused`, json?.error === 'unsupported_grant_type', !(server.grant_types_supported as string[]).includes(type))
  }

  // A client with a URL becomes known when a user opens the consent page for it.
  const { codeVerifier, codeChallenge } = pkce()
  const user = { 'x-user': 'alice' }
  const query = { response_type: 'code', redirect_uri: CALLBACK, code_challenge: codeChallenge, code_challenge_method: 'S256', state: 'xyz' }
  const authorize = async (clientId: string, changes: Record<string, string> = {}) => await ask({ url: `${at('authorization_endpoint')}?${form({ ...query, client_id: clientId, ...changes })}`, headers: user })
  network.asked.length = 0
  is('the consent page of a client with a URL', (await authorize(HOSTED)).status, metadata.client_id_metadata_document_supported === true ? 200 : 400)
  is('what is asked about it', network.asked, isOn.hosted ? [HOSTED] : [])

  // Each client is taken with what it has, and with nothing else; methods that are not advertised are nobody's.
  const all: typeof CLIENTS = { ...CLIENTS, [registeredId]: { methods: ['none'] }, [HOSTED]: { methods: [HOSTED_METHOD] } }
  const clients = [...known, registeredId, ...(isOn.hosted ? [HOSTED] : [])]
  const accepted = new Set<Method>()
  for (const [clientId, has] of Object.entries(all)) {
    const isKnown = clients.includes(clientId)
    // Of one that is not known, its own method is enough to see that it stays out.
    for (const method of isKnown ? METHODS : has.methods.slice(0, 1)) {
      const { headers, fields } = await credentials(clientId, method, issuer)
      const who = `${clientId === registeredId ? 'a registered client' : clientId} with ${method}`
      const mayEnter = isKnown && has.methods.includes(method)
      const token = await post(at('token_endpoint'), { ...fields, grant_type: 'authorization_code' }, headers)
      is(`${who} at the token endpoint`, [token.status, token.json?.error], mayEnter ? [400, 'invalid_request'] : [401, 'invalid_client'])
      if (token.status === 400) accepted.add(method)
      if (!isKnown) continue
      const revoked = await post(at('revocation_endpoint'), { ...fields, token: 'oat_unknown' }, headers)
      is(`${who} at the revocation endpoint`, revoked.status, mayEnter ? 200 : 401)
      if (!isOn.introspect) continue
      const introspected = await post(at('introspection_endpoint'), { ...fields, token: 'oat_unknown' }, headers)
      is(`${who} at the introspection endpoint`, introspected.json?.active ?? introspected.json?.error, !mayEnter ? 'invalid_client' : 'introspects' in has ? false : 'unauthorized_client')
    }
  }
  is('methods that some client may use', METHODS.filter((method) => accepted.has(method)), metadata.token_endpoint_auth_methods_supported)

  // A registration is told what is on.
  if (isOn.register) {
    const { json } = await ask({ method: 'POST', url: at('registration_endpoint'), payload: { ...REGISTERED, grant_types: GRANT_TYPES, response_types: ['code', 'token'], token_endpoint_auth_method: 'client_secret_basic', scope: 'nonsense write' } })
    const { client_id_issued_at: issuedAt, ...others } = json ?? {}
    is('registration', others, { client_id: registeredId, ...REGISTERED, grant_types: userGrantTypes, response_types: ['code'], token_endpoint_auth_method: 'none', scope: 'read write' })
    is('client_id_issued_at', typeof issuedAt, 'number')
  }

  // Challenge methods, response types and iss, by what comes back to the client.
  const returned = (location: unknown) => Object.fromEntries(new URL(String(location ?? 'x:')).searchParams)
  for (const [changes, error] of [
    [{ code_challenge_method: 'plain' }, 'invalid_request'], [{ code_challenge_method: '' }, 'invalid_request'], [{ code_challenge: '' }, 'invalid_request'],
    [{ response_type: 'token' }, 'unsupported_response_type'], [{ response_type: 'code id_token' }, 'unsupported_response_type']
  ] as Array<[Record<string, string>, string]>) {
    const { headers: { location } } = await authorize(registeredId, changes)
    const { error_description: _, ...others } = returned(location)
    is(JSON.stringify(changes), others, { error, state: 'xyz', iss: issuer })
  }

  // A flow has what is on, and nothing else.
  const answer = (json: Record<string, unknown> | null) => {
    const { access_token: accessToken, refresh_token: refreshToken, ...others } = json ?? {}
    return [typeof accessToken, typeof refreshToken, others]
  }
  const expiry = lifetimes.accessTokenLifetime === undefined ? {} : { expires_in: lifetimes.accessTokenLifetime }
  const expected = ['string', isOn.refresh ? 'string' : 'undefined', { token_type: 'Bearer', scope: 'read write', ...expiry }]
  let tokens: Record<string, unknown> | null = null
  for (const clientId of isOn.hosted ? [HOSTED, registeredId] : [registeredId]) {
    const method = all[clientId]!.methods[0]!
    const { fields } = await credentials(clientId, method, issuer)
    const consent = await authorize(clientId)
    is(`the consent page for ${method}`, consent.status, 200)
    const approved = await post(at('authorization_endpoint'), { ticket: fieldOf(consent.body, 'ticket'), decision: 'approve', scope: 'write' }, user)
    const { code = '', ...others } = returned(approved.headers.location)
    is(`the response for ${method}`, others, { state: 'xyz', iss: issuer })
    tokens = (await post(at('token_endpoint'), { ...fields, grant_type: 'authorization_code', code, redirect_uri: CALLBACK, code_verifier: codeVerifier })).json
    is(`the token response for ${method}`, answer(tokens), expected)
    if (!isOn.refresh) continue
    tokens = (await post(at('token_endpoint'), { ...fields, grant_type: 'refresh_token', refresh_token: String(tokens?.refresh_token) })).json
    is(`the refreshed token response for ${method}`, answer(tokens), expected)
  }
  const token = String(tokens?.access_token)
  for (const path of paths) {
    const { status } = await ask({ method: 'POST', url: path, headers: bearer(token) })
    is(`a call of ${path}`, status, resource === new URL(issuer).origin + path ? 200 : 401)
  }
  if (isOn.introspect) {
    const { headers, fields } = await credentials('files', 'private_key_jwt', issuer)
    const { json } = await post(at('introspection_endpoint'), { ...fields, token }, headers)
    is('introspection', [json?.active, json?.aud, json?.iss, typeof json?.exp], [true, resource, issuer, 'expires_in' in expiry ? 'number' : 'undefined'])
  }
  if (isOn.userinfo) is('userinfo', (await ask({ url: at('userinfo_endpoint'), headers: bearer(token) })).json, { sub: 'alice', name: 'Alice' })

  // What a client gets for itself always expires, and is never refreshed.
  for (const clientId of clients) {
    const { scopes, methods } = all[clientId]!
    const { headers, fields } = await credentials(clientId, methods[0]!, issuer)
    const { json } = await post(at('token_endpoint'), { ...fields, grant_type: 'client_credentials' }, headers)
    if (scopes !== undefined) is(`${clientId} for itself`, answer(json), ['string', 'undefined', { token_type: 'Bearer', scope: 'read', expires_in: HOUR }])
    else is(`${clientId} for itself`, json?.error, (server.grant_types_supported as string[]).includes('client_credentials') ? 'unauthorized_client' : 'unsupported_grant_type')
  }

  await app.close()
  return problems
}

t.test('the documents say what is on, and what they say is so, whatever the options are (RFC 8414, RFC 9728)', async (t) => {
  const network = await Network.start(t)
  network.catchAll(t)
  network.publish(HOSTED, { client_id: HOSTED, client_name: 'Hosted client', redirect_uris: [CALLBACK], token_endpoint_auth_method: HOSTED_METHOD, jwks: { keys: [jwk] } })
  for (const combination of combinations()) t.strictSame(await disagreements(combination, network), [], JSON.stringify(combination))
})

t.test('options that would leave something half on are refused at boot', async (t) => {
  for (const [changes, message] of [
    [{ refreshTokenLifetime: HOUR }, /^Option refreshTokenLifetime: expected accessTokenLifetime/],
    [{ refreshTokenLifetime: HOUR, accessTokenLifetime: null }, /^Option refreshTokenLifetime: expected accessTokenLifetime/],
    [{ userinfo: async () => ({}) }, /^Option userinfo: expected findUser/]
  ] as Array<[Partial<McpOAuthOptions>, RegExp]>) {
    const app = Fastify()
    app.register(mcpOAuth, testOptions({ store: sqliteStore({ path: ':memory:' }), ...changes }))
    await t.rejects(async () => await app.ready(), { code: 'FST_MCP_OAUTH_INVALID_OPTION', message })
    await app.close()
  }
})

t.test('each advertised algorithm of client assertions works, and no other (RFC 8414 §2)', async (t) => {
  const curves: Record<string, string> = { EdDSA: 'Ed25519' }
  const pairs = await Promise.all([...ALGORITHMS, 'RS384', 'RS512', 'PS384', 'PS512'].map(async (alg) => ({ alg, ...await generateKeyPair(curves[alg] ?? alg) })))
  const jwks = { keys: await Promise.all(pairs.map(async ({ alg, publicKey }) => ({ ...await exportJWK(publicKey), kid: alg }))) }
  const app = Fastify()
  t.teardown(() => app.close())
  const options = testOptions({ clients: [{ clientId: 'bank', clientName: 'Bank', redirectUris: [CALLBACK], jwks }], store: sqliteStore({ path: ':memory:' }) })
  await app.register(mcpOAuth, options)
  for (const { alg, privateKey } of pairs) {
    const { fields } = await credentials('bank', 'private_key_jwt', options.issuer, privateKey, { alg, kid: alg })
    const { statusCode } = await app.inject({ method: 'POST', url: '/oauth/revoke', headers: FORM, payload: form({ ...fields, token: 'oat_unknown' }) })
    t.equal(statusCode, ALGORITHMS.includes(alg) ? 200 : 401, alg)
  }
  const unsigned = [{ alg: 'none' }, { iss: 'bank', sub: 'bank', aud: options.issuer, exp: Math.floor(Date.now() / 1000) + 60 }].map((part) => Buffer.from(JSON.stringify(part)).toString('base64url'))
  const { statusCode } = await app.inject({
    method: 'POST', url: '/oauth/revoke', headers: FORM, payload: form({ token: 'oat_unknown', client_assertion_type: 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer', client_assertion: `${unsigned.join('.')}.` })
  })
  t.equal(statusCode, 401, 'none')
})
