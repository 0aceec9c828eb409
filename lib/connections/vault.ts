import { setTimeout } from 'node:timers/promises'
import { fetchBounded, type Fetch } from '../clients/bounded-fetch.js'
import { fetchPublic } from '../clients/public-https.js'
import { expect, expectFunctions, expectNames, isSafeUrl } from '../expect.js'
import { parseKeys } from '../options.js'
import { isObject, isStrings } from '../protocol/json.js'
import { createSealer, type Expiring, type Sealer } from '../protocol/sealed.js'
import { StoreUnavailableError } from '../store/store.js'
import { loadSdk, refusalOf, type ClientInformation, type DiscoveryState, type Sdk, type ServerMetadata, type TokenRequest, type Tokens } from './sdk.js'
import type { ConnectionStore } from './store.js'

/** A remote MCP server. */
export interface ServerOptions {
  /** https; http only on loopback. */
  url: string
  /** What users see. Default its host. */
  name?: string
  /** What to ask for. Default what the server says. */
  scopes?: readonly string[]
  /** Where this app is registered by hand: with the authorization server `issuer`, and with no other. */
  client?: { issuer: string, clientId: string, clientSecret?: string }
  /** The address came from a user: only public hosts are asked, whatever it names. Default false. */
  userSupplied?: boolean
}

/** By the names under which connections are stored: letters, digits, `-` and `_`. */
export type Servers = Readonly<Record<string, ServerOptions>>

export interface ConnectionsOptions {
  /** As for the other plugin: at least 32 bytes each, in hexadecimal or base64url. The first seals, all of them open. */
  keys: ReadonlyArray<string | undefined>
  store: ConnectionStore
  /** The same for all users; or what a user may have, for lists that differ. */
  servers: Servers | ((userId: string) => Servers | Promise<Servers>)
  /** Gets every event. What it throws is ignored. */
  onEvent?: (event: ConnectionEvent) => unknown
}

/** What happened to a connection. Never holds a token. */
export interface ConnectionEvent {
  /** `lost`: the server does not accept it any more. */
  type: 'connection.made' | 'connection.refreshed' | 'connection.lost' | 'connection.ended'
  userId: string
  server: string
  /** Epoch milliseconds. */
  at: number
}

/** What is sealed into a row. The user and the server bind it: copied into another row it does not open. */
export interface Credentials {
  userId: string
  server: string
  /** The tokens are for it, so a server whose address was changed has to be connected anew. */
  url: string
  discovery: Discovery
  client: ClientInformation
  tokens: Tokens
  scopes: readonly string[]
  /** The server does not accept it any more. */
  lost: boolean
  /** Epoch milliseconds. */
  connectedAt: number
  refreshedAt: number | null
}

/** What is kept of a discovery. The rest may change, and is asked for again. */
export type Discovery = Pick<DiscoveryState, 'authorizationServerUrl' | 'resourceMetadata'> & {
  issuer?: string
  /** Whether answers name their issuer. RFC 9207 §3. */
  issRequired?: boolean
}

/** What only the user can end, in the browser. */
export abstract class UserNeededError extends Error {
  readonly userId: string
  readonly server: string

  constructor (message: string, userId: string, server: string) {
    super(message)
    this.name = new.target.name
    this.userId = userId
    this.server = server
  }
}

/** The user has not connected this server, or not yet, or not any more. */
export class NotConnectedError extends UserNeededError {
  constructor (userId: string, server: string) {
    super(`The user is not connected to ${server}.`, userId, server)
  }
}

/** The server does not accept the connection any more. */
export class ReconnectRequiredError extends UserNeededError {
  constructor (userId: string, server: string) {
    super(`The user has to connect ${server} again.`, userId, server)
  }
}

/** Milliseconds that whoever changes a row has for it: more than a request takes that is made here. */
const LEASE = 15_000
/** Milliseconds for each request that is made here. */
const TIMEOUT = 10_000
/** Bytes of an answer. */
const MAX_ANSWER = 256 * 1024
/** Characters: an access token may be a JWT with all that a company knows of somebody. */
const MAX_SEALED = 64 * 1024

/** Sealed rows, their locks, and the servers that they are for. */
export class Vault {
  readonly keys: readonly Uint8Array[]
  readonly store: ConnectionStore
  readonly #options: ConnectionsOptions
  #opened: Promise<{ sdk: Sdk, sealer: Sealer<Credentials & Expiring> }> | undefined

  /** @throws FST_MCP_OAUTH_INVALID_OPTION */
  constructor (options: ConnectionsOptions) {
    this.#options = options
    this.keys = parseKeys(options.keys)
    this.store = options.store
    expect(typeof (options.store as Partial<ConnectionStore> | undefined)?.lock === 'function', 'store', 'a store such as sqliteConnectionStore({ path })', options.store)
    expectFunctions(options, { onEvent: '(event) => void' })
    if (typeof options.servers !== 'function') parseServers(options.servers)
  }

  /** Opens the store, the first time; again where that failed. */
  async open (): Promise<{ sdk: Sdk, sealer: Sealer<Credentials & Expiring> }> {
    this.#opened ??= (async () => {
      try {
        const opened = { sdk: await loadSdk(), sealer: await createSealer<Credentials & Expiring>(this.keys, 'connection', MAX_SEALED) }
        await this.store.open()
        return opened
      } catch (error) {
        this.#opened = undefined
        throw error
      }
    })()
    return await this.#opened
  }

  async servers (userId: string): Promise<Servers> {
    const { servers } = this.#options
    return typeof servers === 'function' ? parseServers(await servers(userId)) : servers
  }

  /** Whoever works with names that are all known writes them right. @throws FST_MCP_OAUTH_INVALID_OPTION */
  expectServer (server: string): void {
    const { servers } = this.#options
    if (typeof servers !== 'function') expect(Object.hasOwn(servers, server), 'server', `one of ${Object.keys(servers).join(', ')}`, server)
  }

  async server (userId: string, server: string): Promise<ServerOptions | undefined> {
    const servers = await this.servers(userId)
    return Object.hasOwn(servers, server) ? servers[server] : undefined
  }

  /** What is stored; undefined where that is nothing, or does not open. */
  async read (userId: string, server: string): Promise<Credentials | undefined> {
    const { sealer } = await this.open()
    const sealed = await this.store.find(userId, server)
    const opened = sealed === null ? 'unreadable' : await sealer.open(sealed, Date.now())
    return typeof opened === 'string' || opened.userId !== userId || opened.server !== server ? undefined : opened
  }

  /** What a job can work with. @throws NotConnectedError, ReconnectRequiredError */
  async use (userId: string, server: string): Promise<{ credentials: Credentials, options: ServerOptions }> {
    const options = await this.server(userId, server)
    const credentials = await this.read(userId, server)
    if (options === undefined || credentials === undefined || credentials.url !== options.url) throw new NotConnectedError(userId, server)
    if (isOver(credentials)) throw new ReconnectRequiredError(userId, server)
    return { credentials, options }
  }

  /** Waits until nobody else changes the row. Answers the time until which nobody else will. */
  async lock (userId: string, server: string): Promise<number> {
    await this.open()
    const deadline = Date.now() + 2 * LEASE
    for (;;) {
      const now = Date.now()
      if (await this.store.lock(userId, server, now + LEASE, now)) return now + LEASE
      if (now > deadline) throw new Error(`The connection to ${server} is being changed for too long.`)
      await setTimeout(25 + Math.random() * 50)
    }
  }

  /** Writes and unlocks. @throws Error where the lock is over, and then somebody else may have changed the row */
  async save (credentials: Credentials, until: number): Promise<void> {
    const { sealer } = await this.open()
    const { userId, server } = credentials
    const sealed = await sealer.seal({ ...credentials, expiresAt: Number.MAX_SAFE_INTEGER })
    for (;;) {
      try {
        if (await this.store.save(userId, server, sealed, until) || await this.store.find(userId, server) === sealed) return
        throw new Error(`The connection to ${server} was changed meanwhile.`)
      } catch (error) {
        // A server may have given these tokens only once, so a database that is away for a moment must not lose them.
        if (!(error instanceof StoreUnavailableError) || Date.now() > until) throw error
        await setTimeout(500)
      }
    }
  }

  /** Without this it would end by itself, so that it fails is no failure of what was done. */
  async unlock (userId: string, server: string, until: number): Promise<void> {
    try {
      await this.store.unlock(userId, server, until)
    } catch {}
  }

  /** @throws ReconnectRequiredError, which is all that is left to do */
  async lose (credentials: Credentials, until: number): Promise<never> {
    await this.save({ ...credentials, lost: true }, until)
    this.emit('connection.lost', credentials)
    throw new ReconnectRequiredError(credentials.userId, credentials.server)
  }

  emit (type: ConnectionEvent['type'], { userId, server }: { userId: string, server: string }): void {
    const event: ConnectionEvent = { type, userId, server, at: Date.now() }
    Promise.resolve(event).then(this.#options.onEvent).catch(() => {})
  }
}

/** What asks the server, and whoever it names: never longer than it should, and only where it may. */
export function fetchFor ({ url: own, userSupplied = false }: Pick<ServerOptions, 'url' | 'userSupplied'>): Fetch {
  return async (url, init) => {
    const { protocol } = new URL(url)
    // In the open, and into this computer, only where the server itself is there.
    if (!isSafeUrl(new URL(url)) || (protocol === 'http:' && !own.startsWith('http:'))) throw new Error(`${String(url)} is not https`)
    const isPost = init?.method === 'POST'
    const response = await fetchBounded(url, {
      ...init,
      // What is posted here is secret, and for this address alone. Others the SDK follows by itself, through here and no further than to the same origin.
      redirect: isPost ? 'error' : 'manual'
    }, { timeout: TIMEOUT, maxLength: MAX_ANSWER, ...(userSupplied && { fetch: fetchPublic }) })
    if (!isPost || response.ok) return response
    // Servers may repeat what they were sent, and the SDK may log that.
    const { error } = await response.json().catch(() => ({})) as { error?: unknown }
    return Response.json({ error: refusalOf({ code: error }) ?? 'server_error' }, { status: response.status })
  }
}

/** With what a token is asked for. @throws Error where the authorization server cannot be asked, or is another now */
export async function tokenRequest (sdk: Sdk, options: ServerOptions, { discovery, client }: Pick<Credentials, 'discovery' | 'client'>): Promise<TokenRequest> {
  const fetchFn = fetchFor(options)
  const metadata: ServerMetadata | undefined = await sdk.discoverAuthorizationServerMetadata(discovery.authorizationServerUrl, { fetchFn })
  if (metadata?.issuer !== discovery.issuer) throw new Error(`${discovery.authorizationServerUrl} cannot be asked at present.`)
  return { metadata, clientInformation: clientOf(options, client), resource: discovery.resourceMetadata?.resource, fetchFn }
}

/** As which the app is known there. A secret that was configured is read anew each time, since it may have changed. */
export function clientOf (options: ServerOptions, client: ClientInformation): ClientInformation {
  const now = configuredClient(options)
  return now !== undefined && now.client_id === client.client_id && now.issuer === client.issuer ? now : client
}

export function configuredClient ({ client }: ServerOptions): ClientInformation | undefined {
  return client && { issuer: client.issuer, client_id: client.clientId, ...(client.clientSecret !== undefined && { client_secret: client.clientSecret }) }
}

/** When the access token ends; null where the server does not say, or says what cannot be. Epoch milliseconds. */
export function endOf ({ tokens: { expires_in: seconds }, connectedAt, refreshedAt }: Credentials): number | null {
  return seconds !== undefined && seconds > 0 && seconds < 1e10 ? (refreshedAt ?? connectedAt) + seconds * 1000 : null
}

/** Whether nothing but its user can help. */
export function isOver (credentials: Credentials): boolean {
  return credentials.lost || (credentials.tokens.refresh_token === undefined && Date.now() >= (endOf(credentials) ?? Infinity))
}

/** @throws FST_MCP_OAUTH_INVALID_OPTION */
function parseServers (servers: unknown): Servers {
  expect(isObject(servers), 'servers', "an object such as { github: { url: 'https://mcp.github.example/mcp' } }, or a function (userId) => servers", servers)
  for (const [name, server] of Object.entries(servers)) {
    const at = `servers.${name}`
    expect(/^[\w-]{1,64}$/.test(name), at, 'a name of at most 64 letters, digits, - and _', name)
    expect(isObject(server), at, 'an object { url, name, scopes, client, userSupplied }', server)
    expectNames(server, `${at}.`, ['url', 'name', 'scopes', 'client', 'userSupplied'])
    const { url, scopes, client } = server
    expect(typeof url === 'string' && URL.canParse(url) && isSafeUrl(new URL(url)) && !/[@#]/.test(url), `${at}.url`, 'an https URL without user or fragment; http only on loopback', url)
    expect(scopes === undefined || isStrings(scopes), `${at}.scopes`, 'a list of scopes', scopes)
    // What was given may be a secret, so only its form is told.
    expect(client === undefined || (isObject(client) && typeof client.issuer === 'string' && typeof client.clientId === 'string'), `${at}.client`, '{ issuer, clientId, clientSecret }', typeof client)
  }
  return servers as Servers
}
