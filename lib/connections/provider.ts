import { parseScope } from '../protocol/scope.js'
import type { ClientInformation, ClientMetadata, ClientProvider, DiscoveryState, Tokens } from './sdk.js'
import { ReconnectRequiredError, type Credentials, type Vault } from './vault.js'

/** Milliseconds before its end at which a token is refreshed; less for one that lives shortly. */
const EARLY = 60_000

/** What a refresh is done with, by whoever has the row's lock. */
interface Refresh {
  credentials: Credentials
  discovery: DiscoveryState
  until: number
}

/** For jobs: gives the SDK the user's token, lets it refresh that, and never opens a browser. */
export class Provider implements ClientProvider {
  // A client without a redirect URL would be taken for one that acts for itself. Nothing is ever sent there.
  readonly redirectUrl = 'http://localhost/'
  readonly clientMetadata: ClientMetadata = { redirect_uris: [this.redirectUrl] }
  readonly #vault: Vault
  readonly #userId: string
  readonly #server: string
  /** Begun before the SDK was told of it. */
  #begun: Refresh | undefined
  #refresh: Refresh | undefined
  /** The access token that was given out last. */
  #given: string | undefined

  constructor (vault: Vault, userId: string, server: string, begun?: Refresh) {
    this.#vault = vault
    this.#userId = userId
    this.#server = server
    this.#begun = begun
  }

  /** What the SDK asks for before each request, and once more when it refreshes. @throws NotConnectedError, ReconnectRequiredError */
  async tokens (): Promise<Tokens> {
    if (this.#refresh !== undefined && Date.now() < this.#refresh.until) return this.#refresh.credentials.tokens
    const tokens = await freshTokens(this.#vault, this.#userId, this.#server)
    this.#given = tokens.access_token
    return tokens
  }

  /** What it asks for first when it refreshes: from here on, until it has, nobody else does. @throws as above */
  async discoveryState (): Promise<DiscoveryState> {
    const refresh = this.#begun ?? await beginRefresh(this.#vault, this.#userId, this.#server)
    this.#begun = undefined
    this.#refresh = refresh
    const { refresh_token: refreshToken, access_token: accessToken } = refresh.credentials.tokens
    if (refreshToken === undefined && accessToken === this.#given) await this.invalidateCredentials()
    return refresh.discovery
  }

  clientInformation (): ClientInformation | undefined {
    return this.#refresh?.credentials.client
  }

  async saveTokens (tokens: Tokens): Promise<void> {
    const { credentials, until } = this.#take()
    await this.#vault.save({ ...credentials, ...validityOf(tokens, credentials.scopes), refreshedAt: Date.now() }, until)
    this.#vault.emit('connection.refreshed', credentials)
  }

  /** The server refuses the refresh token, or knows this app no more. */
  async invalidateCredentials (): Promise<never> {
    const { credentials, until } = this.#take()
    return await lose(this.#vault, credentials, until)
  }

  /** Asked for where a browser would be opened: a refresh failed that may work later, or the job needs more than its user allowed. */
  async state (): Promise<never> {
    await this.release()
    throw new Error(`The connection to ${this.#server} cannot be refreshed at present, or does not allow what was asked of it.`)
  }

  /** Lets others refresh. */
  async release (): Promise<void> {
    if (this.#refresh !== undefined) await this.#vault.unlock(this.#userId, this.#server, this.#take().until)
  }

  #take (): Refresh {
    const refresh = this.#refresh!
    this.#refresh = undefined
    return refresh
  }

  saveCodeVerifier (): void {}

  codeVerifier (): never {
    throw new Error('There is no browser here.')
  }

  redirectToAuthorization (): void {}
}

/** Tokens that are good for a while yet. Of any number of callers in any number of processes, one refreshes them. */
async function freshTokens (vault: Vault, userId: string, server: string): Promise<Tokens> {
  const known = await vault.use(userId, server)
  if (!isDue(known)) return known.tokens
  const refresh = await beginRefresh(vault, userId, server)
  const { credentials, until } = refresh
  if (isDue(credentials) && credentials.tokens.refresh_token === undefined) return await lose(vault, credentials, until)
  if (!isDue(credentials)) {
    await vault.unlock(userId, server, until)
    return credentials.tokens
  }
  const { sdk } = await vault.open()
  const provider = new Provider(vault, userId, server, refresh)
  try {
    await sdk.auth(provider, { serverUrl: credentials.url, fetchFn: await vault.fetchFor(credentials) })
  } finally {
    await provider.release()
  }
  return (await vault.use(userId, server)).tokens
}

/** Takes the lock, and reads what is then there. What can take long, or fail, is before: refreshing is one request. */
async function beginRefresh (vault: Vault, userId: string, server: string): Promise<Refresh> {
  const known = await vault.use(userId, server)
  const { sdk } = await vault.open()
  const metadata = await sdk.discoverAuthorizationServerMetadata(known.discovery.authorizationServerUrl, { fetchFn: await vault.fetchFor(known) })
  if (metadata === undefined && known.discovery.issuer !== undefined) throw new Error(`The authorization server of ${server} cannot be asked at present.`)
  const until = await vault.lock(userId, server)
  try {
    const credentials = await vault.use(userId, server)
    const { authorizationServerUrl, resourceMetadata } = credentials.discovery
    return { credentials, until, discovery: { authorizationServerUrl, ...(resourceMetadata && { resourceMetadata }), ...(metadata && { authorizationServerMetadata: metadata }) } }
  } catch (error) {
    await vault.unlock(userId, server, until)
    throw error
  }
}

/** @throws ReconnectRequiredError, which is all that is left to do */
async function lose (vault: Vault, credentials: Credentials, until: number): Promise<never> {
  const { userId, server } = credentials
  await vault.save({ ...credentials, lost: true }, until)
  vault.emit('connection.lost', credentials)
  throw new ReconnectRequiredError(userId, server)
}

function isDue ({ refreshAt }: Credentials): boolean {
  return refreshAt !== null && Date.now() >= refreshAt
}

/** What was given, and until when it is good. Scopes that a server does not name are those that it was asked for (RFC 6749 §5.1). */
export function validityOf (tokens: Tokens, scopes: readonly string[], now = Date.now()): Pick<Credentials, 'tokens' | 'scopes' | 'lost' | 'refreshAt' | 'tokensExpireAt'> {
  const { expires_in: seconds, scope, refresh_token: refreshToken } = tokens
  const lifetime = (seconds ?? Infinity) * 1000
  // What cannot be refreshed is used to its end.
  const early = refreshToken === undefined ? 0 : Math.min(EARLY, lifetime / 5)
  const at = (time: number): number | null => Number.isFinite(time) ? time : null
  return {
    tokens, scopes: scope === undefined ? scopes : parseScope(scope), lost: false, refreshAt: at(now + lifetime - early), tokensExpireAt: at(now + lifetime)
  }
}
