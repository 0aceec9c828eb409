import createError from '@fastify/error'
import type { Fetch } from '../clients/bounded-fetch.js'

// The MCP client's own OAuth code, of whichever version the app has: what versions 1 and 2 have in common, as far as it
// is used here, so that neither is needed to read these types.

/** What a server gave for a code or a refresh token (RFC 6749 §5.1), and from whom it is. */
export interface Tokens {
  access_token: string
  token_type: string
  /** Seconds. */
  expires_in?: number
  scope?: string
  refresh_token?: string
  issuer?: string
}

/** How this app is known to an authorization server. RFC 7591 §3.2.1. */
export interface ClientInformation {
  client_id: string
  client_secret?: string
  token_endpoint_auth_method?: string
  issuer?: string
}

/** What this app says of itself. RFC 7591 §2. */
export interface ClientMetadata {
  redirect_uris: string[]
  client_name?: string
  client_uri?: string
  grant_types?: string[]
  response_types?: string[]
  token_endpoint_auth_method?: string
}

/** RFC 8414 §2. */
export type ServerMetadata = {
  issuer: string
  authorization_endpoint: string
  token_endpoint: string
  response_types_supported: string[]
  revocation_endpoint?: string | undefined
  revocation_endpoint_auth_methods_supported?: string[] | undefined
  token_endpoint_auth_methods_supported?: string[] | undefined
  authorization_response_iss_parameter_supported?: boolean | undefined
}

/** What was discovered. RFC 9728, RFC 8414. */
export interface DiscoveryState {
  authorizationServerUrl: string
  resourceMetadata?: { resource: string }
  authorizationServerMetadata?: ServerMetadata
}

/** What both versions call `OAuthClientProvider`. */
export interface ClientProvider {
  redirectUrl: string
  clientMetadataUrl?: string | undefined
  clientMetadata: ClientMetadata
  state: () => Promise<string>
  clientInformation: () => ClientInformation | undefined
  saveClientInformation: ((information: ClientInformation) => void) | undefined
  tokens: () => undefined
  saveCodeVerifier: () => void
  redirectToAuthorization: (url: URL) => void
  saveDiscoveryState: (state: DiscoveryState) => void
}

/** Where a token is asked for, by whom, and for what. */
export interface TokenRequest {
  metadata: ServerMetadata | undefined
  clientInformation: ClientInformation
  resource: string | undefined
  fetchFn: Fetch
}

export interface Sdk {
  auth: (provider: Partial<ClientProvider>, options: { serverUrl: string, scope: string | undefined, fetchFn: Fetch }) => Promise<unknown>
  discoverAuthorizationServerMetadata: (url: string, options: { fetchFn: Fetch }) => Promise<ServerMetadata | undefined>
  exchangeAuthorization: (url: string, options: TokenRequest & { authorizationCode: string, codeVerifier: string, redirectUri: string, iss: string | undefined }) => Promise<Tokens>
  selectClientAuthMethod: (client: ClientInformation, supported: string[]) => string
  refreshAuthorization: (url: string, options: TokenRequest & { refreshToken: string }) => Promise<Tokens>
}

const SdkMissingError = createError('FST_MCP_OAUTH_SDK_MISSING', 'connections need the MCP client. Run: npm install @modelcontextprotocol/client')

/** @throws FST_MCP_OAUTH_SDK_MISSING */
export async function loadSdk (): Promise<Sdk> {
  for (const name of ['@modelcontextprotocol/client', '@modelcontextprotocol/sdk/client/auth.js']) {
    try {
      return await import(name)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ERR_MODULE_NOT_FOUND') throw error
    }
  }
  throw new SdkMissingError()
}

/** The OAuth error code with which a server refused (RFC 6749 §5.2); undefined for whatever else went wrong. */
export function refusalOf (error: unknown): string | undefined {
  const { errorCode, code = errorCode } = error as { errorCode?: unknown, code?: unknown }
  return typeof code === 'string' && /^[a-z_]{1,50}$/.test(code) && code !== 'server_error' ? code : undefined
}
