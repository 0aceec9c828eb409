import type { RateLimitOptions, RateLimitPluginOptions } from '@fastify/rate-limit'
import type { FastifyBaseLogger, FastifyRequest } from 'fastify'
import { statSync } from 'node:fs'
import { isAbsolute } from 'node:path'
import { createClientFinder, type Client } from './clients/client.js'
import { configuredClients, expectRedirectUris, type ConfiguredClients } from './clients/configured.js'
import { metadataClients, parseClientIdMetadata, type ClientIdMetadata } from './clients/metadata-document.js'
import { registeredClients, type ClientIdPayload } from './clients/registered.js'
import { createEmit, type AuditEvent } from './events.js'
import { expect, expectFunctions, expectNames, expectUrl, isPath, namesAmong } from './expect.js'
import type { AuthorizationCode } from './protocol/authorization-code.js'
import { isObject, isStrings } from './protocol/json.js'
import type { Resource } from './protocol/resource.js'
import { ScopeCatalogue, isScopeToken, type ScopeDefinition } from './protocol/scope.js'
import { createSealer, createSigner } from './protocol/sealed.js'
import { deriveKey, parseKey } from './protocol/secret.js'
import type { ConsentTicket, PageTicket } from './protocol/tickets.js'
import type { Grant } from './store/grant.js'
import { sqliteStore } from './store/sqlite.js'
import type { TokenStore } from './store/store.js'

/** The person in front of the browser, as your app knows them. */
export interface User {
  /** What grants are filed under. Must never be given to another person. */
  id: string
  /** Shown on the pages: "Signed in as …". */
  name?: string | null | undefined
  /** The organisation the user is acting in, where your app has such. Fixed in the grant at consent. */
  tenantId?: string | null | undefined
}

/** What `fallbackToken` answers for a token of your own kind. */
export interface FallbackGrant {
  userId: string
  /** What they imply is added, and what does not exist here dropped. */
  scopes: readonly string[]
  tenantId?: string
  clientId?: string
  clientName?: string
  /** Canonical URL of the only resource it is for. Default: any of this app. */
  resource?: string
  /** Epoch milliseconds. Default: never. */
  expiresAt?: number
}

export interface ResourceOptions {
  /** Path of the route as clients see it: `/mcp`. */
  path?: string
  /** Instead of a path, the whole URL of a resource that another server serves. See `remoteGuard`. */
  url?: string
  /** Shown at consent and in the metadata. Default: its host. */
  name?: string
  /** The scopes that make sense here. Default: all. */
  scopes?: readonly string[]
  /** URL of a page for developers. */
  documentation?: string
}

/** Requests for each window and client address, or whatever @fastify/rate-limit takes for a route. */
export type EndpointLimit = RateLimitOptions | false

/** Introspection, userinfo and metadata have no limit. */
export interface RateLimits extends Omit<RateLimitPluginOptions, 'global' | 'max' | 'timeWindow'> {
  /** Default 10 a minute. */
  register?: EndpointLimit
  /** Token and revocation endpoint. Default 120 a minute. */
  token?: EndpointLimit
  /** Consent and connected apps. Default 60 a minute. */
  authorize?: EndpointLimit
}

export interface McpOAuthOptions {
  /** Your public address: `https://notes.example.com`, a path may follow. No trailing slash; http only on loopback. */
  issuer: string
  /** Secrets of at least 32 bytes, base64url or hexadecimal. The first seals, all of them open. */
  keys: ReadonlyArray<string | undefined>
  /** What tokens may allow: name → description, or `{ description, implies }`. */
  scopes: Readonly<Record<string, string | ScopeDefinition>>
  /** Who is signed in, from your own session; null for nobody. Never from a token. */
  currentUser: (request: FastifyRequest) => User | null | undefined | Promise<User | null | undefined>
  /** Where to sign in. A string gets `?return_to=<path>` added; a function builds the whole URL. */
  loginUrl: string | ((request: FastifyRequest, returnTo: string) => string)
  /** Default `sqliteStore({ path: 'oauth.db' })`. */
  store?: TokenStore
  /** What tokens are for. The first is the default. Default `[{ path: '/mcp' }]`. */
  resources?: readonly ResourceOptions[]
  /** Seconds from consent to redemption, at most 600. Default 60. */
  codeLifetime?: number
  /** Seconds for which an access token works. Default null: until it is revoked, or an hour for one of a client itself. */
  accessTokenLifetime?: number | null
  /** Seconds for which a refresh token works, anew with each refresh. Default null: no refresh tokens. Needs `accessTokenLifetime`. */
  refreshTokenLifetime?: number | null
  /** Seconds for which the answer to a refresh can be asked for again, with the same refresh token. Default 30. */
  refreshGrace?: number
  /** Seconds without use after which a grant ends, at least 600. Default null: never. */
  idleLifetime?: number | null
  /**
   * Dynamic registration. Loopback redirect URIs may register, and the exact ones listed here; one that is taken off the
   * list gets no codes any more. Default enabled.
   */
  registration?: { enabled?: boolean, redirectUris?: readonly string[] }
  /** Clients whose id is the https URL of their metadata: claude.ai, ChatGPT and other hosted ones. Default true: of any public host. */
  clientIdMetadata?: boolean | ClientIdMetadata
  /** Clients you register by hand. Default none. */
  clients?: ConfiguredClients
  /** The page on which users disconnect apps. Default `{ path: '/my/connected_apps' }`; false leaves it out. */
  connectedApps?: { path?: string } | false
  /** Limits for each client address; false turns them off. */
  rateLimit?: RateLimits | false
  /** Absolute path of a folder whose files replace the built-in views, file by file. */
  views?: string
  /** Also serve /authorize, /token and /register, for clients of MCP 2025-03-26. Default false. */
  rootAliases?: boolean
  /** Asked when a code is redeemed, a token refreshed and userinfo told: null refuses, for a user who is deleted or suspended. */
  findUser?: (userId: string) => User | null | undefined | Promise<User | null | undefined>
  /** What `/oauth/userinfo` tells the bearer of a user's token beside `sub`. Needs `findUser`. Default: no such endpoint. */
  userinfo?: (user: User, grant: Grant) => object | Promise<object>
  /** Asked by the guard for a token that is not in the store: your older API keys keep working. */
  fallbackToken?: (token: string, request: FastifyRequest) => FallbackGrant | null | undefined | Promise<FallbackGrant | null | undefined>
  /** Gets every audit event. What it throws is logged and changes nothing. */
  onEvent?: (event: AuditEvent) => unknown
}

/** The options, checked and complete, with what is made from them once. */
export type Settings = Awaited<ReturnType<typeof resolveOptions>>

/** Seconds. */
const YEAR = 365 * 24 * 60 * 60

const NAMES: ReadonlyArray<keyof McpOAuthOptions> = ['issuer', 'keys', 'scopes', 'currentUser', 'loginUrl', 'store', 'resources', 'codeLifetime',
  'accessTokenLifetime', 'refreshTokenLifetime', 'refreshGrace', 'idleLifetime', 'registration', 'clientIdMetadata', 'clients', 'connectedApps', 'rateLimit', 'views',
  'rootAliases', 'findUser', 'userinfo', 'fallbackToken', 'onEvent']

/**
 * Checks every option and builds what endpoints share.
 *
 * @throws FST_MCP_OAUTH_INVALID_OPTION naming the option, what was expected and what was given
 */
export async function resolveOptions (options: McpOAuthOptions, log: FastifyBaseLogger) {
  expectNames(options, '', NAMES)
  const { origin, pathname } = expectUrl(options.issuer, 'issuer', 'https://notes.example.com')
  const base = pathname === '/' ? '' : pathname
  const keys = parseKeys(options.keys)
  const scopes = parseScopes(options.scopes)
  const resources = parseResources(options.resources, origin, scopes)
  const clientIds = await createSigner<ClientIdPayload>(keys, 'client')
  const configured = configuredClients(options.clients, { scopes, resources })
  const registration = parseRegistration(options.registration)
  const clientIdMetadata = parseClientIdMetadata(options.clientIdMetadata)
  const { codeLifetime = 60, rootAliases = false, findUser, userinfo, fallbackToken, onEvent } = options

  expect(Number.isInteger(codeLifetime) && codeLifetime >= 1 && codeLifetime <= 600, 'codeLifetime', 'whole seconds from 1 to 600', codeLifetime)
  expect(typeof rootAliases === 'boolean', 'rootAliases', 'true or false', rootAliases)
  expectFunctions(options, {
    findUser: '(userId) => user or null', userinfo: '(user, grant) => claims', fallbackToken: '(token, request) => grant or null', onEvent: '(event) => void'
  })
  expect(userinfo === undefined || findUser !== undefined, 'userinfo', 'findUser beside it', userinfo)

  // What some client may do. A look-up cannot be asked beforehand, so with one it is all.
  const some = (is: (client: Client) => boolean): boolean => configured.clients?.some(is) ?? true
  const hasClientCredentials = some((client) => client.scopes !== undefined)
  const hasIntrospection = some((client) => client.introspects !== undefined)
  const configuredMethods = [
    ...(some(({ secretHashes }) => secretHashes !== undefined) ? ['client_secret_basic', 'client_secret_post'] : []),
    ...(some(({ publicKey }) => publicKey !== undefined) ? ['private_key_jwt'] : [])
  ]
  const lifetimes = parseLifetimes(options)
  const userGrantTypes = lifetimes.refreshTokenLifetime === null ? ['authorization_code'] : ['authorization_code', 'refresh_token']

  return Object.freeze({
    issuer: options.issuer,
    /** Path of each endpoint as the browser sees it; null for one that is off. */
    paths: Object.freeze({
      issuer: base,
      authorization: `${base}/oauth/authorize`,
      token: `${base}/oauth/token`,
      registration: `${base}/oauth/register`,
      revocation: `${base}/oauth/revoke`,
      introspection: hasIntrospection ? `${base}/oauth/introspect` : null,
      userinfo: userinfo === undefined ? null : `${base}/oauth/userinfo`,
      styles: `${base}/oauth/styles.css`,
      connectedApps: parseConnectedApps(options.connectedApps)
    }),
    /** The absolute URL of a path. Made from `issuer`, never from a request. */
    url: (path: string): string => origin + path,
    scopes,
    resources,
    codeLifetime,
    ...lifetimes,
    grantTypes: hasClientCredentials ? [...userGrantTypes, 'client_credentials'] : userGrantTypes,
    /** Those that dynamic clients may have. */
    userGrantTypes,
    // `none` always: whoever registered before registration was turned off is still known by its id.
    clientAuthenticationMethods: [...new Set(['none', ...configuredMethods, ...(clientIdMetadata === null ? [] : ['private_key_jwt'])])],
    /** Those of clients that the app has named, which are the only ones that may introspect. */
    configuredMethods,
    refreshKeys: keys.map((key): Uint8Array => deriveKey(key, 'refresh', 32)),
    registration,
    /** Whether an https URL may be a client's id. */
    clientIdMetadata: clientIdMetadata !== null,
    rateLimit: parseRateLimit(options.rateLimit),
    rootAliases,
    views: parseViews(options.views),
    ...parseSignIn(options),
    findUser,
    userinfo,
    fallbackToken,
    store: parseStore(options.store),
    findClient: createClientFinder([
      configured.find,
      registeredClients(clientIds, registration.redirectUris),
      ...(clientIdMetadata === null ? [] : [metadataClients({ ...clientIdMetadata, grantTypes: userGrantTypes })])
    ]),
    codes: await createSealer<AuthorizationCode>(keys, 'code'),
    consentTickets: await createSealer<ConsentTicket>(keys, 'consent'),
    pageTickets: await createSealer<PageTicket>(keys, 'page'),
    clientIds,
    emit: createEmit(onEvent, log)
  })
}

/** @throws FST_MCP_OAUTH_INVALID_OPTION that never quotes a secret */
export function parseKeys (keys: unknown): Uint8Array[] {
  const expected = 'a list of one or more secrets, each at least 32 bytes in base64url or hexadecimal'
  expect(Array.isArray(keys) && keys.length > 0, 'keys', expected, Array.isArray(keys) ? 'an empty list' : typeof keys)
  return keys.map((text: unknown, index) => {
    const key = typeof text === 'string' ? parseKey(text) : undefined
    expect(key !== undefined, `keys[${index}]`, 'a secret of at least 32 bytes in base64url or hexadecimal, such as `npx fastify-mcp-oauth key` prints', whatIsWrongWithKey(text))
    return key
  })
}

/** What was given is a secret, so only its form is told. */
function whatIsWrongWithKey (text: unknown): string {
  if (text === undefined) return 'nothing: is the environment variable set?'
  if (typeof text !== 'string') return typeof text
  if (/\s/.test(text)) return 'a string with white space in it'
  if (!/^[A-Za-z0-9_-]+={0,2}$/.test(text)) return 'a string with characters that neither of them has'
  return `a string of only ${text.length} characters`
}

function parseScopes (scopes: unknown): ScopeCatalogue {
  const expected = "an object of name → description, such as { read: 'Read your notes' }"
  expect(isObject(scopes) && Object.keys(scopes).length > 0, 'scopes', expected, scopes)
  const definitions = new Map<string, ScopeDefinition>()
  for (const [name, value] of Object.entries(scopes)) {
    expect(isScopeToken(name), `scopes.${name}`, 'a name of printable ASCII without spaces, quotes and backslashes', name)
    const definition = typeof value === 'string' ? { description: value } : value as ScopeDefinition
    expect(isObject(definition) && typeof definition.description === 'string' && definition.description !== '', `scopes.${name}`, 'a description, or { description, implies }', value)
    expectNames(definition, `scopes.${name}.`, ['description', 'implies'])
    expect(definition.implies === undefined || isStrings(definition.implies), `scopes.${name}.implies`, 'a list of scope names', definition.implies)
    for (const implied of definition.implies ?? []) {
      expect(Object.hasOwn(scopes, implied), `scopes.${name}.implies`, `names among ${Object.keys(scopes).join(', ')}`, implied)
    }
    definitions.set(name, definition)
  }
  return new ScopeCatalogue(definitions)
}

/** `origin` is that of this server: where a resource has a path, it is here. */
export function parseResources (resources: unknown = [{ path: '/mcp' }], origin: string, scopes: ScopeCatalogue): [Resource, ...Resource[]] {
  expect(Array.isArray(resources) && resources.length > 0, 'resources', "a list such as [{ path: '/mcp' }]", resources)
  const parsed = resources.map((resource: ResourceOptions, index): Resource => {
    const at = `resources[${index}]`
    expect(isObject(resource), at, "an object such as { path: '/mcp' }", resource)
    expectNames(resource, `${at}.`, ['path', 'url', 'name', 'scopes', 'documentation'])
    const { path, url, name, documentation } = resource
    expect(url === undefined || path === undefined, `${at}.url`, 'either a path or a url', url)
    expect(url !== undefined || (isPath(path) && (path === '/' || !path.endsWith('/'))), `${at}.path`, "a path such as '/mcp', without a trailing slash, query or parameters", path)
    expect(name === undefined || (typeof name === 'string' && name !== ''), `${at}.name`, 'a name', name)
    expect(documentation === undefined || (typeof documentation === 'string' && /^https?:/.test(documentation) && URL.canParse(documentation)), `${at}.documentation`, 'an http(s) URL', documentation)
    const elsewhere = url === undefined ? undefined : expectUrl(url, `${at}.url`, 'https://files.example.com/mcp')
    const { origin: itsOrigin, pathname } = elsewhere ?? { origin, pathname: path! }
    const suffix = pathname === '/' ? '' : pathname
    return {
      path: url === undefined ? path as string : null,
      uri: itsOrigin + suffix,
      name: name ?? elsewhere?.host,
      scopes: resource.scopes === undefined ? scopes.names : namesAmong(resource.scopes, `${at}.scopes`, scopes.names),
      documentation,
      metadataUrl: `${itsOrigin}/.well-known/oauth-protected-resource${suffix}`
    }
  })
  parsed.forEach(({ uri, path }, index) => {
    const name = path === null ? 'url' : 'path'
    expect(parsed.findIndex((other) => other.uri === uri) === index, `resources[${index}].${name}`, `a ${name} of its own`, path ?? uri)
  })
  return parsed as [Resource, ...Resource[]]
}

function parseLifetimes ({ accessTokenLifetime = null, refreshTokenLifetime = null, refreshGrace = 30, idleLifetime = null }: McpOAuthOptions) {
  // Uses are noted once a minute: a shorter idle time would end grants that are in use.
  for (const [name, value, least] of [['accessTokenLifetime', accessTokenLifetime, 60], ['refreshTokenLifetime', refreshTokenLifetime, 60], ['idleLifetime', idleLifetime, 600]] as const) {
    expect(value === null || (Number.isInteger(value) && value >= least && value <= 10 * YEAR), name, `whole seconds from ${least} to ${10 * YEAR}, or null`, value)
  }
  expect(refreshTokenLifetime === null || accessTokenLifetime !== null, 'refreshTokenLifetime', 'accessTokenLifetime beside it, since a token that never expires is never refreshed', refreshTokenLifetime)
  expect(Number.isInteger(refreshGrace) && refreshGrace >= 0 && refreshGrace <= 300, 'refreshGrace', 'whole seconds from 0 to 300', refreshGrace)
  return { accessTokenLifetime, refreshTokenLifetime, refreshGrace, idleLifetime }
}

function parseRegistration (registration: unknown = {}): { enabled: boolean, redirectUris: readonly string[] } {
  expect(isObject(registration), 'registration', 'an object { enabled, redirectUris }', registration)
  expectNames(registration, 'registration.', ['enabled', 'redirectUris'])
  const { enabled = true, redirectUris = [] } = registration as NonNullable<McpOAuthOptions['registration']>
  expect(typeof enabled === 'boolean', 'registration.enabled', 'true or false', enabled)
  expectRedirectUris(redirectUris, 'registration.redirectUris')
  return { enabled, redirectUris }
}

function parseConnectedApps (connectedApps: unknown = {}): string | null {
  if (connectedApps === false) return null
  expect(isObject(connectedApps), 'connectedApps', "false or an object such as { path: '/my/connected_apps' }", connectedApps)
  expectNames(connectedApps, 'connectedApps.', ['path'])
  const { path = '/my/connected_apps' } = connectedApps
  expect(isPath(path), 'connectedApps.path', "a path such as '/my/connected_apps'", path)
  return path
}

function parseRateLimit (rateLimit: RateLimits | false = {}): RateLimits | false {
  expect(rateLimit === false || isObject(rateLimit), 'rateLimit', 'false or an object', rateLimit)
  for (const name of ['global', 'max', 'timeWindow']) expect(!(name in (rateLimit || {})), `rateLimit.${name}`, 'limits inside register, token or authorize', 'one for all')
  for (const endpoint of ['register', 'token', 'authorize'] as const) {
    const limit: unknown = rateLimit === false ? false : rateLimit[endpoint]
    expect(limit === undefined || limit === false || isObject(limit), `rateLimit.${endpoint}`, 'false or an object such as { max: 10 }', limit)
  }
  return rateLimit
}

function parseStore (store: unknown = sqliteStore({ path: 'oauth.db' })): TokenStore {
  const methods = ['open', 'issue', 'findByTokenHash', 'find', 'list', 'rotate', 'revoke', 'touch', 'stats', 'count', 'purge', 'close']
  const missing = methods.filter((name) => typeof (store as Record<string, unknown> | null)?.[name] !== 'function')
  expect(missing.length === 0, 'store', 'a token store such as sqliteStore({ path })', `one without ${missing.join(', ')}`)
  return store as TokenStore
}

/** How this plugin learns who is there, and where it sends whoever is not. */
export function parseSignIn ({ currentUser, loginUrl }: Pick<McpOAuthOptions, 'currentUser' | 'loginUrl'>) {
  expect(typeof currentUser === 'function', 'currentUser', 'a function (request) => user or null', currentUser)
  expect(typeof loginUrl === 'function' || (typeof loginUrl === 'string' && /^(\/(?![/\\])|https?:\/\/)/.test(loginUrl)), 'loginUrl', "a path such as '/login', an http(s) URL, or a function", loginUrl)
  return { currentUser, loginUrl: typeof loginUrl === 'function' ? loginUrl : (_request: FastifyRequest, returnTo: string) => withReturnTo(loginUrl, returnTo) }
}

export function parseViews (views: unknown): string | undefined {
  expect(views === undefined || (typeof views === 'string' && isAbsolute(views) && statSync(views, { throwIfNoEntry: false })?.isDirectory() === true), 'views', 'the absolute path of an existing folder', views)
  return views as string | undefined
}

function withReturnTo (loginUrl: string, returnTo: string): string {
  return `${loginUrl}${loginUrl.includes('?') ? '&' : '?'}return_to=${encodeURIComponent(returnTo)}`
}
