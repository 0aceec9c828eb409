import { setTimeout } from 'node:timers/promises'
import { expect, expectFunctions } from '../expect.js'
import { parseKeys } from '../options.js'
import { createSealer, type Expiring, type Sealer } from '../protocol/sealed.js'
import { StoreUnavailableError } from '../store/store.js'
import { loadSdk, type ClientInformation, type Sdk, type Tokens } from './sdk.js'
import { TIMEOUT, parseServers, type Discovery, type ServerOptions, type Servers } from './servers.js'
import type { ConnectionStore } from './store.js'

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

/** Milliseconds that whoever changes a row has for it: for one request, and what comes before and after. */
const LEASE = TIMEOUT + 5000
/** Characters: an access token may be a JWT with all that a company knows of somebody. */
const MAX_SEALED = 64 * 1024

/** Sealed rows, their locks, and which servers they are for. */
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

/** When the access token ends; null where the server does not say, or says what cannot be. Epoch milliseconds. */
export function endOf ({ tokens: { expires_in: seconds }, connectedAt, refreshedAt }: Credentials): number | null {
  return seconds !== undefined && seconds > 0 && seconds < 1e10 ? (refreshedAt ?? connectedAt) + seconds * 1000 : null
}

/** Whether nothing but its user can help. */
export function isOver (credentials: Credentials): boolean {
  return credentials.lost || (credentials.tokens.refresh_token === undefined && Date.now() >= (endOf(credentials) ?? Infinity))
}
