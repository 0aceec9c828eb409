import { hash } from 'node:crypto'
import { isSafeUrl } from '../expect.js'
import { OAuthError } from '../protocol/errors.js'
import { createGrantId, deriveKey } from '../protocol/secret.js'
import type { Expiring, Sealer } from '../protocol/sealed.js'
import { validityOf } from './provider.js'
import type { ClientInformation, ClientMetadata, ClientProvider, DiscoveryState, Tokens } from './sdk.js'
import type { Discovery, ServerOptions, Vault } from './vault.js'

/** What goes to the authorization server and comes back, sealed, as `state`: all that the callback has to know. */
export interface PendingConnection extends Expiring {
  userId: string
  server: string
  nonce: string
  /** Which of the keys the code verifier comes from. */
  keyId: string
  discovery: Discovery
  client: ClientInformation
  returnTo: string
  issuedAt: number
}

/** How this app introduces itself. */
export interface Self {
  pending: Sealer<PendingConnection>
  callbackUrl: string
  clientMetadata: ClientMetadata
  /** Undefined on plain http, where no authorization server could ask for it. */
  clientMetadataUrl: string | undefined
}

/** Milliseconds that a user has to come back. */
const PENDING_LIFETIME = 10 * 60 * 1000

/** Where to send the browser. @throws OAuthError */
export async function beginConnection (vault: Vault, self: Self, userId: string, server: string, options: ServerOptions, returnTo: string): Promise<string> {
  const { sdk } = await vault.open()
  const [key] = vault.keys as [Uint8Array]
  const nonce = createGrantId()
  let discovery: Discovery
  let client = options.client && informationOf(options.client)
  let location: URL | undefined
  try {
    await sdk.auth({
      ...asked(self),
      clientInformation: () => client,
      ...(client === undefined && { saveClientInformation: (information: ClientInformation) => { client = remembered(information) } }),
      saveDiscoveryState: (state) => { discovery = discovered(state) },
      async state () {
        const issuedAt = Date.now()
        return await self.pending.seal({ userId, server, nonce, keyId: idOf(key), discovery, client: client!, returnTo, issuedAt, expiresAt: issuedAt + PENDING_LIFETIME })
      },
      redirectToAuthorization (authorizationUrl) {
        // The SDK has made a code verifier of its own, which would have to be kept until the user is back.
        authorizationUrl.searchParams.set('code_challenge', hash('sha256', codeVerifierOf(key, nonce), 'base64url'))
        location = authorizationUrl
      }
    }, { serverUrl: options.url, fetchFn: await vault.fetchFor({ userId, server }), ...(options.scopes !== undefined && { scope: options.scopes.join(' ') }) })
    if (location === undefined || !isSafeUrl(location)) throw new Error('it has no authorization endpoint that is https')
    return location.href
  } catch (error) {
    throw refused('connection_unreachable', error)
  }
}

/** Makes the connection that a callback brings. @throws OAuthError, and then nothing is stored */
export async function finishConnection (vault: Vault, self: Self, pending: PendingConnection, answer: { code?: string | undefined, iss?: string | undefined, error?: string | undefined }): Promise<void> {
  const { userId, server, nonce, keyId, discovery, client, issuedAt } = pending
  const { code, iss, error } = answer
  // Before anything else of the answer is believed: it may be that of another server. RFC 9207 §2.4.
  if (iss === undefined ? discovery.issRequired === true : iss !== discovery.issuer) {
    throw new OAuthError('invalid_request', 'This answer came from another server than the one that was asked.', { reason: 'connection_issuer' })
  }
  if (code === undefined) throw refused('connection_refused', { name: error ?? 'neither code nor error' })
  const options = await vault.server(userId, server)
  const key = vault.keys.find((each) => idOf(each) === keyId)
  if (options === undefined || key === undefined) throw new OAuthError('not_found', 'There is no such server any more.', { reason: 'connection_server_unknown' })

  const { sdk } = await vault.open()
  const until = await vault.lock(userId, server)
  try {
    // A code that is presented twice ends the connection that it made: so a callback that is reloaded must not get there.
    const current = await vault.read(userId, server)
    if (current !== undefined && current.connectedAt >= issuedAt) throw new OAuthError('invalid_request', 'This connection has been made already.', { reason: 'connection_replayed', statusCode: 409 })
    let tokens: Tokens
    try {
      await sdk.auth({
        ...asked(self),
        discoveryState: async () => discovery,
        clientInformation: () => client,
        codeVerifier: () => codeVerifierOf(key, nonce),
        saveTokens: async (saved) => { tokens = saved }
      }, { serverUrl: options.url, authorizationCode: code, fetchFn: await vault.fetchFor(pending), ...(iss !== undefined && { iss }) })
    } catch (error) {
      throw refused('connection_refused', error)
    }
    await vault.save({
      userId, server, url: options.url, discovery, client, ...validityOf(tokens!, options.scopes ?? []), connectedAt: Date.now(), refreshedAt: null, expiresAt: Number.MAX_SAFE_INTEGER
    }, until)
  } finally {
    await vault.unlock(userId, server, until)
  }
  vault.emit('connection.made', pending)
}

/** What the SDK is answered on both ways; what is left open here it does not ask for. */
function asked ({ callbackUrl, clientMetadata, clientMetadataUrl }: Self): ClientProvider {
  const never = (): never => { throw new Error('not asked for on this way') }
  return {
    redirectUrl: callbackUrl,
    clientMetadata,
    ...(clientMetadataUrl !== undefined && { clientMetadataUrl }),
    tokens: async () => undefined,
    saveCodeVerifier: () => {},
    state: never,
    clientInformation: never,
    saveTokens: never,
    codeVerifier: never,
    redirectToAuthorization: never
  }
}

/** What is kept of it. @throws Error for metadata that name another issuer than the one that was asked (RFC 8414 §3.3) */
function discovered ({ authorizationServerUrl, resourceMetadata, authorizationServerMetadata: metadata }: DiscoveryState): Discovery {
  const withoutSlash = (url: string): string => url.replace(/\/$/, '')
  // A server that names no authorization server is asked at its origin: what answers there says itself who it is.
  if (metadata !== undefined && withoutSlash(metadata.issuer) !== withoutSlash(authorizationServerUrl)) throw new Error(`the metadata of ${authorizationServerUrl} name another issuer`)
  return {
    authorizationServerUrl,
    ...(resourceMetadata && { resourceMetadata: { resource: resourceMetadata.resource } }),
    ...(metadata && { issuer: metadata.issuer, issRequired: metadata.authorization_response_iss_parameter_supported === true })
  }
}

function informationOf ({ issuer, clientId, clientSecret }: NonNullable<ServerOptions['client']>): ClientInformation {
  return { issuer, client_id: clientId, ...(clientSecret !== undefined && { client_secret: clientSecret }) }
}

/** Of a registration, what is needed later: the rest would only make the state longer. */
function remembered (information: ClientInformation): ClientInformation {
  const names = ['client_id', 'client_secret', 'token_endpoint_auth_method', 'issuer'] as const
  return Object.fromEntries(names.filter((name) => information[name] !== undefined).map((name) => [name, information[name]])) as unknown as ClientInformation
}

/** A code verifier that is kept nowhere: who sees the state has neither the nonce nor the key. RFC 7636 §4.1. */
function codeVerifierOf (key: Uint8Array, nonce: string): string {
  return deriveKey(key, `code verifier ${nonce}`, 32).toString('base64url')
}

function idOf (key: Uint8Array): string {
  return deriveKey(key, 'code verifier', 6).toString('base64url')
}

/** Not with its cause, for the log: servers repeat what they were sent, which is secret. */
function refused (reason: 'connection_unreachable' | 'connection_refused', error: unknown): OAuthError {
  const { name, code, errorCode, cause } = error as { name?: string, code?: string, errorCode?: string, cause?: { code?: string } }
  const detail = [name, errorCode ?? code, cause?.code].filter(Boolean).join(' ').replace(/[^ -~]/g, '').slice(0, 100)
  return reason === 'connection_unreachable'
    ? new OAuthError('temporarily_unavailable', 'That server cannot be asked at present.', { reason, detail })
    : new OAuthError('access_denied', 'That server did not allow the connection.', { reason, detail })
}
