import { parseScope } from '../protocol/scope.js'
import { refusalOf, type ClientInformation, type ClientMetadata, type DiscoveryState, type Tokens } from './sdk.js'
import { clientOf, fetchFor, tokenRequest, type ServerOptions } from './servers.js'
import { UserNeededError, endOf, type Credentials, type Vault } from './vault.js'

/** Milliseconds before its end at which a token is refreshed; less for one that lives shortly. */
const EARLY = 60_000

/** Answers of a token endpoint after which there is no use in asking again. */
const FINAL = ['invalid_grant', 'invalid_client', 'unauthorized_client']

/** A connection that nobody else changes until then. */
interface InUse {
  credentials: Credentials
  options: ServerOptions
  until: number
  /** Whether the SDK has been given what it refreshes with. */
  given?: boolean
}

/** For jobs: gives the SDK the user's token, lets it refresh that, and never opens a browser. */
export class Provider {
  // A client without a redirect URL would be taken for one that acts for itself. Nothing is ever sent there.
  readonly redirectUrl = 'http://localhost/'
  readonly clientMetadata: ClientMetadata = { redirect_uris: [this.redirectUrl] }
  readonly #vault: Vault
  readonly #userId: string
  readonly #server: string
  /** While the SDK refreshes: what with, and until when nobody else does. */
  #refresh: InUse | undefined

  constructor (vault: Vault, userId: string, server: string) {
    this.#vault = vault
    this.#userId = userId
    this.#server = server
  }

  /** What the SDK asks for before each request, and once more when it refreshes. @throws NotConnectedError, ReconnectRequiredError */
  async tokens (): Promise<Tokens> {
    const refresh = this.#refresh
    if (refresh === undefined || refresh.given === true) return await freshTokens(this.#vault, this.#userId, this.#server)
    refresh.given = true
    return refresh.credentials.tokens
  }

  /** What it asks for first once a server has refused a token. @throws as above */
  async discoveryState (): Promise<DiscoveryState> {
    const { credentials: { discovery: { authorizationServerUrl, resourceMetadata } } } = await this.#vault.use(this.#userId, this.#server)
    return { authorizationServerUrl, ...(resourceMetadata && { resourceMetadata }) }
  }

  /** And last before it refreshes: from here on, until it has, nobody else does. @throws as above */
  async clientInformation (): Promise<ClientInformation> {
    this.#refresh = await lockToUse(this.#vault, this.#userId, this.#server)
    return clientOf(this.#refresh.options, this.#refresh.credentials.client)
  }

  async saveTokens (tokens: Tokens): Promise<void> {
    const { credentials, until } = this.#take()
    await saveRefreshed(this.#vault, credentials, tokens, until)
  }

  /** The server refuses the refresh token, or knows this app no more. */
  async invalidateCredentials (scope: string): Promise<never> {
    const { credentials, options, until } = this.#take()
    return await refused(this.#vault, credentials, options, until, scope === 'tokens' ? 'invalid_grant' : 'invalid_client')
  }

  /** Asked for where a browser would be opened. */
  async state (): Promise<never> {
    const { credentials, options, until } = this.#take()
    // Without a refresh token the SDK comes here for a token that is refused, and for one that does not allow enough.
    if (credentials.tokens.refresh_token === undefined && await isRefused(credentials, options)) return await this.#vault.lose(credentials, until)
    await this.#vault.unlock(this.#userId, this.#server, until)
    throw new Error(`The connection to ${this.#server} cannot be refreshed at present, or does not allow what was asked of it.`)
  }

  #take (): InUse {
    const refresh = this.#refresh
    this.#refresh = undefined
    if (refresh === undefined) throw new Error(`Refreshing the connection to ${this.#server} took too long.`)
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
  const { credentials } = known
  if (!isDue(credentials)) return credentials.tokens
  try {
    return await refresh(vault, known)
  } catch (error) {
    // This was ahead of time, so there may be some left to try again.
    if (error instanceof UserNeededError || Date.now() >= endOf(credentials)!) throw error
    return credentials.tokens
  }
}

async function refresh (vault: Vault, { credentials: known, options }: { credentials: Credentials, options: ServerOptions }): Promise<Tokens> {
  const { userId, server } = known
  const { sdk } = await vault.open()
  // Before the lock, since it may take long: under it there is one request.
  const request = await tokenRequest(sdk, options, known)
  const { credentials, until } = await lockToUse(vault, userId, server)
  try {
    const { tokens, discovery } = credentials
    if (!isDue(credentials) || credentials.connectedAt !== known.connectedAt) return tokens
    const refreshed = await sdk.refreshAuthorization(discovery.authorizationServerUrl, { ...request, refreshToken: tokens.refresh_token! })
    return await saveRefreshed(vault, credentials, { ...refreshed, ...(tokens.issuer !== undefined && { issuer: tokens.issuer }) }, until)
  } catch (error) {
    const code = refusalOf(error)
    if (code !== undefined && FINAL.includes(code)) await refused(vault, credentials, options, until, code)
    throw error
  } finally {
    await vault.unlock(userId, server, until)
  }
}

/** After a refusal for good. @throws ReconnectRequiredError; or Error where it is the app that is wrong, and no user could help */
async function refused (vault: Vault, credentials: Credentials, { client }: ServerOptions, until: number, code: string): Promise<never> {
  if (code === 'invalid_grant' || client === undefined) return await vault.lose(credentials, until)
  await vault.unlock(credentials.userId, credentials.server, until)
  throw new Error(`${credentials.server} refuses this app: ${code}. Are the clientId and the clientSecret of its client right?`)
}

async function lockToUse (vault: Vault, userId: string, server: string): Promise<InUse> {
  const until = await vault.lock(userId, server)
  try {
    return { ...await vault.use(userId, server), until }
  } catch (error) {
    await vault.unlock(userId, server, until)
    throw error
  }
}

async function saveRefreshed (vault: Vault, credentials: Credentials, tokens: Tokens, until: number): Promise<Tokens> {
  await vault.save({ ...credentials, tokens, scopes: scopesOf(tokens, credentials.scopes), refreshedAt: Date.now() }, until)
  vault.emit('connection.refreshed', credentials)
  return tokens
}

/** Those that a server does not name are those that it was asked for. RFC 6749 §5.1. */
export function scopesOf ({ scope }: Tokens, asked: readonly string[]): readonly string[] {
  return scope === undefined ? asked : parseScope(scope)
}

function isDue (credentials: Credentials): boolean {
  const { tokens: { expires_in: seconds = 0, refresh_token: refreshToken } } = credentials
  const end = endOf(credentials)
  // What cannot be refreshed is used to its end.
  return end !== null && refreshToken !== undefined && Date.now() >= end - Math.min(EARLY, seconds * 1000 / 5)
}

/** Whether the server does not take the token at all. */
async function isRefused ({ url, tokens }: Credentials, options: ServerOptions): Promise<boolean> {
  const headers = { authorization: `Bearer ${tokens.access_token}`, 'content-type': 'application/json', accept: 'application/json, text/event-stream' }
  const { status } = await fetchFor(options)(url, { method: 'POST', headers, body: '{"jsonrpc":"2.0","id":1,"method":"ping"}' }).catch(() => ({ status: 0 }))
  return status === 401
}
