import createError from '@fastify/error'
import type { Fetch } from '../clients/bounded-fetch.js'

// The MCP client's own OAuth code, of whichever version the app has: what versions 1 and 2 have in common, as far as it
// is used here, so that neither is needed to read these types.

/** What a server gave for a code or a refresh token (RFC 6749 §5.1), and from whom it is. */
export interface Tokens {
  access_token: string
  token_type: string
  id_token?: string
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
  authorization_response_iss_parameter_supported?: boolean | undefined
}

/** What was discovered. RFC 9728, RFC 8414. */
export interface DiscoveryState {
  authorizationServerUrl: string
  resourceMetadata?: { resource: string }
  authorizationServerMetadata?: ServerMetadata
}

/** The SDK's `OAuthClientProvider`, as browsers need it. */
export interface ClientProvider {
  readonly redirectUrl: string
  readonly clientMetadataUrl?: string
  readonly clientMetadata: ClientMetadata
  state: () => Promise<string>
  clientInformation: () => ClientInformation | undefined
  saveClientInformation?: (information: ClientInformation) => void
  tokens: () => Promise<Tokens | undefined>
  saveTokens: (tokens: Tokens) => Promise<void>
  saveCodeVerifier: () => void
  codeVerifier: () => string
  redirectToAuthorization: (url: URL) => void
  invalidateCredentials?: () => Promise<void>
  saveDiscoveryState?: (state: DiscoveryState) => void
  discoveryState?: () => Promise<DiscoveryState>
}

export interface Sdk {
  auth: (provider: ClientProvider, options: { serverUrl: string, authorizationCode?: string, iss?: string, scope?: string, fetchFn: Fetch }) => Promise<'AUTHORIZED' | 'REDIRECT'>
  discoverAuthorizationServerMetadata: (url: string, options: { fetchFn: Fetch }) => Promise<ServerMetadata | undefined>
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
