import { setTimeout } from 'node:timers/promises'
import { fetchBounded, type Fetch } from '../clients/bounded-fetch.js'
import { fetchPublic } from '../clients/public-https.js'
import { expect, expectFunctions, expectNames, isSafeUrl } from '../expect.js'
import { parseKeys } from '../options.js'
import { isObject, isStrings } from '../protocol/json.js'
import { createSealer, type Expiring, type Sealer } from '../protocol/sealed.js'
import { isIdentifier } from '../protocol/secret.js'
import { loadSdk, type ClientInformation, type DiscoveryState, type Sdk, type Tokens } from './sdk.js'
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
  /** The address came from a user: only https and public hosts are asked, and redirects are not followed. Default false. */
  userSupplied?: boolean
}

export type Servers = Readonly<Record<string, ServerOptions>>

export interface ConnectionsOptions {
  /** As for the other plugin: at least 32 bytes each, in hexadecimal or base64url. The first seals, all of them open. */
  keys: ReadonlyArray<string | undefined>
  store: ConnectionStore
  /** By the names under which they are stored; or what a user may have, for lists that differ. */
  servers: Servers | ((userId: string) => Servers | Promise<Servers>)
  /** Gets every event. What it throws is ignored. */
  onEvent?: (event: ConnectionEvent) => unknown
}

/** What happened to a connection. Never holds a token. */
export interface ConnectionEvent {
  type: 'connection.made' | 'connection.refreshed' | 'connection.lost' | 'connection.ended'
  userId: string
  server: string
  /** Epoch milliseconds. */
  at: number
}

/** What is sealed into a row. The user and the server bind it: copied into another row it does not open. */
export interface Credentials extends Expiring {
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
  // Epoch milliseconds.
  connectedAt: number
  refreshedAt: number | null
  refreshAt: number | null
  tokensExpireAt: number | null
}

/** What is kept of a discovery. The rest may change, and is asked for again. */
export type Discovery = Pick<DiscoveryState, 'authorizationServerUrl' | 'resourceMetadata'> & {
  /** RFC 9207 §2.4. */
  issuer?: string
  issRequired?: boolean
}

/** One that only the user can end, in the browser. */
abstract class UserNeededError extends Error {
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

/** Milliseconds that whoever changes a row has for it. */
const LEASE = 30_000
/** Milliseconds for each request that is made here. */
const TIMEOUT = 10_000
/** Bytes of an answer. */
const MAX_ANSWER = 256 * 1024
/** Characters: an access token may be a JWT with all that a company knows of somebody. */
const MAX_SEALED = 64 * 1024

/** Sealed rows, their locks, and the servers that they are for. */
export class Vault {
  readonly keys: readonly Uint8Array[]
  readonly #options: ConnectionsOptions
  #opened: Promise<{ sdk: Sdk, sealer: Sealer<Credentials> }> | undefined

  /** @throws FST_MCP_OAUTH_INVALID_OPTION */
  constructor (options: ConnectionsOptions) {
    this.#options = options
    this.keys = parseKeys(options.keys)
    expect(typeof (options.store as Partial<ConnectionStore> | undefined)?.lock === 'function', 'store', 'a store such as sqliteConnectionStore({ path })', options.store)
    expectFunctions(options, { onEvent: '(event) => void' })
    if (typeof options.servers !== 'function') parseServers(options.servers)
  }

  /** Opens the store, the first time. */
  async open (): Promise<{ sdk: Sdk, sealer: Sealer<Credentials> }> {
    this.#opened ??= (async () => {
      const [sdk, sealer] = await Promise.all([loadSdk(), createSealer<Credentials>(this.keys, 'connection', MAX_SEALED), this.#options.store.open()])
      return { sdk, sealer }
    })()
    return await this.#opened
  }

  async close (): Promise<void> {
    await this.#options.store.close()
  }

  async servers (userId: string): Promise<Servers> {
    const { servers } = this.#options
    return typeof servers === 'function' ? parseServers(await servers(userId)) : servers
  }

  async server (userId: string, server: string): Promise<ServerOptions | undefined> {
    const servers = await this.servers(userId)
    return Object.hasOwn(servers, server) ? servers[server] : undefined
  }

  /** Undefined where nothing is stored, or what is does not open, or is not for the address that the server has now. */
  async read (userId: string, server: string): Promise<Credentials | undefined> {
    const { sealer } = await this.open()
    const row = await this.#options.store.find(userId, server)
    if (row?.sealed == null) return undefined
    const opened = await sealer.open(row.sealed, Date.now())
    if (typeof opened === 'string' || opened.userId !== userId || opened.server !== server) return undefined
    return opened.url === (await this.server(userId, server))?.url ? opened : undefined
  }

  /** @throws NotConnectedError, ReconnectRequiredError */
  async use (userId: string, server: string): Promise<Credentials> {
    const credentials = await this.read(userId, server)
    if (credentials === undefined) throw new NotConnectedError(userId, server)
    if (credentials.lost) throw new ReconnectRequiredError(userId, server)
    return credentials
  }

  /** Waits until nobody else changes the row. Answers the time until which nobody else will. */
  async lock (userId: string, server: string): Promise<number> {
    await this.open()
    const deadline = Date.now() + 2 * LEASE
    for (;;) {
      const now = Date.now()
      if (await this.#options.store.lock(userId, server, now + LEASE, now)) return now + LEASE
      if (now > deadline) throw new Error(`The connection to ${server} is being changed for too long.`)
      await setTimeout(25 + Math.random() * 50)
    }
  }

  async unlock (userId: string, server: string, until: number): Promise<void> {
    await this.#options.store.unlock(userId, server, until)
  }

  /** Writes and unlocks. @throws Error where the lock is over, and then somebody else may have changed the row */
  async save (credentials: Credentials, until: number): Promise<void> {
    const { sealer } = await this.open()
    const { userId, server } = credentials
    const saved = await this.#options.store.save(userId, server, await sealer.seal(credentials), until)
    if (!saved) throw new Error(`The connection to ${server} was changed meanwhile.`)
  }

  /** Deletes the row, once nobody changes it; answers what was in it. */
  async remove (userId: string, server: string): Promise<Credentials | undefined> {
    await this.lock(userId, server)
    const credentials = await this.read(userId, server)
    await this.#options.store.delete(userId, server)
    return credentials
  }

  /** What asks the server, and whoever it names: never longer than it should, and only where it may. */
  async fetchFor ({ userId, server }: { userId: string, server: string }): Promise<Fetch> {
    const { userSupplied = false } = await this.server(userId, server) ?? { userSupplied: true }
    return async (url, init) => {
      // What is posted here is secret, and for this address alone.
      const redirect = init?.method === 'POST' ? 'error' : 'follow'
      return await fetchBounded(url, { redirect, ...init }, { timeout: TIMEOUT, maxLength: MAX_ANSWER, ...(userSupplied && { fetch: fetchPublic }) })
    }
  }

  emit (type: ConnectionEvent['type'], { userId, server }: { userId: string, server: string }): void {
    const event: ConnectionEvent = { type, userId, server, at: Date.now() }
    Promise.resolve(event).then(this.#options.onEvent).catch(() => {})
  }
}

/** @throws FST_MCP_OAUTH_INVALID_OPTION */
function parseServers (servers: unknown): Servers {
  expect(isObject(servers), 'servers', "an object such as { github: { url: 'https://mcp.github.example/mcp' } }, or a function (userId) => servers", servers)
  for (const [name, server] of Object.entries(servers)) {
    const at = `servers.${name}`
    expect(isIdentifier(name, 100), at, 'a name of at most 100 characters', name)
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
