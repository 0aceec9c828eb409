import { hash } from 'node:crypto'
import { isSafeUrl } from '../expect.js'
import { OAuthError } from '../protocol/errors.js'
import type { Parameters } from '../protocol/parameters.js'
import { createGrantId, deriveKey } from '../protocol/secret.js'
import type { Expiring, Sealer } from '../protocol/sealed.js'
import { scopesOf } from './provider.js'
import { refusalOf, type ClientInformation, type ClientMetadata, type DiscoveryState } from './sdk.js'
import { configuredClient, fetchFor, tokenRequest, type Discovery, type ServerOptions } from './servers.js'
import type { Vault } from './vault.js'

/** What goes to the authorization server and comes back, sealed, as `state`: all that the callback has to know. */
export interface PendingConnection extends Expiring {
  userId: string
  server: string
  url: string
  nonce: string
  discovery: Discovery
  client: ClientInformation
  returnTo: string
  issuedAt: number
}

/** How this app introduces itself to a server: to each as another client, so that what is meant for one is of no use at another. */
export interface Self {
  redirectUrl: string
  clientMetadata: ClientMetadata
  /** Undefined on plain http, where no authorization server could ask for it. */
  clientMetadataUrl: string | undefined
}

/** Milliseconds that a user has to come back. */
const PENDING_LIFETIME = 10 * 60 * 1000

/** Where to send the browser. @throws OAuthError */
export async function beginConnection (vault: Vault, self: Self, states: Sealer<PendingConnection>, what: { userId: string, server: string, options: ServerOptions, returnTo: string }): Promise<string> {
  const { options, ...rest } = what
  const { sdk } = await vault.open()
  const nonce = createGrantId()
  const configured = configuredClient(options)
  let client = configured
  let discovery: Discovery
  let location: URL | undefined
  try {
    await sdk.auth({
      ...self,
      tokens: () => undefined,
      clientInformation: () => client,
      saveClientInformation: configured === undefined ? (information) => { client = remembered(information) } : undefined,
      saveDiscoveryState: (state) => { discovery = discovered(state) },
      async state () {
        const issuedAt = Date.now()
        return await states.seal({ ...rest, url: options.url, nonce, discovery, client: client!, issuedAt, expiresAt: issuedAt + PENDING_LIFETIME })
      },
      saveCodeVerifier: () => {},
      redirectToAuthorization (authorizationUrl) {
        // The SDK has made a code verifier of its own, which would have to be kept until the user is back.
        authorizationUrl.searchParams.set('code_challenge', hash('sha256', codeVerifierOf(vault, nonce), 'base64url'))
        location = authorizationUrl
      }
    }, { serverUrl: options.url, scope: options.scopes?.join(' '), fetchFn: fetchFor(options) })
  } catch (error) {
    // Nothing secret was sent yet, so what it says may be logged.
    throw refused(error, (error as Error).message)
  }
  if (location === undefined || !isSafeUrl(location)) throw unreachable('its authorization endpoint is not https')
  return location.href
}

/** Makes the connection that a callback brings. @throws OAuthError, and then nothing is stored */
export async function finishConnection (vault: Vault, { redirectUrl }: Self, pending: PendingConnection, parameters: Parameters): Promise<void> {
  const { userId, server, nonce, discovery, client, issuedAt } = pending
  const [code, iss] = [parameters.get('code'), parameters.get('iss')]
  // Before anything else of the answer is believed: it may be that of another server. RFC 9207 §2.4.
  if (iss === undefined ? discovery.issRequired === true : iss !== discovery.issuer) {
    throw new OAuthError('invalid_request', 'This answer came from another server than the one that was asked.', { reason: 'connection_issuer' })
  }
  if (code === undefined) throw refused({ code: parameters.get('error') ?? 'no_code' })
  const options = await vault.server(userId, server)
  if (options?.url !== pending.url) throw new OAuthError('not_found', 'There is no such server any more.', { reason: 'connection_server_unknown' })

  const { sdk } = await vault.open()
  const request = await tokenRequest(sdk, options, pending).catch((error: unknown) => { throw refused(error) })
  const until = await vault.lock(userId, server)
  try {
    // A code that is presented twice ends the connection that it made: so a callback that is reloaded must not get there.
    const current = await vault.read(userId, server)
    if (current !== undefined && current.connectedAt >= issuedAt) throw new OAuthError('invalid_request', 'This connection has been made already.', { reason: 'connection_replayed', statusCode: 409 })
    const tokens = await sdk.exchangeAuthorization(discovery.authorizationServerUrl, {
      ...request, authorizationCode: code, codeVerifier: codeVerifierOf(vault, nonce), redirectUri: redirectUrl, iss
    }).catch((error: unknown) => { throw refused(error) })
    await vault.save({
      userId,
      server,
      url: options.url,
      discovery,
      client,
      // As the SDK marks them, so that it gives them to no other.
      tokens: { ...tokens, issuer: discovery.issuer ?? discovery.authorizationServerUrl },
      scopes: scopesOf(tokens, options.scopes ?? []),
      lost: false,
      connectedAt: Date.now(),
      refreshedAt: null
    }, until)
  } finally {
    await vault.unlock(userId, server, until)
  }
  vault.emit('connection.made', pending)
}

/** What is kept of it. @throws OAuthError for metadata of another issuer than the one that was asked (RFC 8414 §3.3) */
function discovered ({ authorizationServerUrl, resourceMetadata, authorizationServerMetadata: metadata }: DiscoveryState): Discovery {
  const withoutSlash = (url: string): string => url.replace(/\/$/, '')
  if (metadata !== undefined && withoutSlash(metadata.issuer) !== withoutSlash(authorizationServerUrl)) throw unreachable('its metadata name another issuer')
  return {
    authorizationServerUrl,
    ...(resourceMetadata && { resourceMetadata: { resource: resourceMetadata.resource } }),
    ...(metadata && { issuer: metadata.issuer, issRequired: metadata.authorization_response_iss_parameter_supported === true })
  }
}

/** Of a registration, what is needed later: the rest would only make the state longer. */
function remembered (information: ClientInformation): ClientInformation {
  const names = ['client_id', 'client_secret', 'token_endpoint_auth_method', 'issuer'] as const
  return Object.fromEntries(names.map((name) => [name, information[name]])) as unknown as ClientInformation
}

/** A code verifier that is kept nowhere: who sees the state has neither the nonce nor the key. RFC 7636 §4.1. */
function codeVerifierOf ({ keys }: Vault, nonce: string): string {
  return deriveKey(keys[0]!, `code verifier ${nonce}`, 32).toString('base64url')
}

/** Not with its cause, for the log: servers repeat what they were sent, which is secret. */
function refused (error: unknown, message = ''): OAuthError {
  if (error instanceof OAuthError) return error
  const code = refusalOf(error)
  // Any other code says that this app, as it is configured, cannot be connected, which no user can help.
  if (code === 'access_denied' || code === 'invalid_grant') return new OAuthError('access_denied', 'That server did not allow the connection.', { reason: 'connection_refused', detail: code })
  const { name = '', cause } = error as { name?: string, cause?: { code?: string } }
  return unreachable([name, code, cause?.code, message].filter(Boolean).join(' '))
}

function unreachable (detail: string): OAuthError {
  return new OAuthError('temporarily_unavailable', 'That server cannot be connected at present.', { reason: 'connection_unreachable', detail: detail.replace(/[^ -~]+/g, ' ').slice(0, 300) })
}
