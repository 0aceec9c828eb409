import type { JSONWebKeySet } from 'jose'
import { parseClientMetadata, type RegistrationPolicy } from './client-metadata.js'
import { OAuthError, type Reason } from './errors.js'
import { isObject, isStrings } from './json.js'
import { isRedirectUri } from './redirect-uri.js'

// Client ID Metadata Documents: a client's id is the URL of what it says of itself.
// draft-ietf-oauth-client-id-metadata-document-01.

/** What a client says of itself, as far as this server has use for it. */
export interface MetadataDocument {
  clientName: string
  redirectUris: string[]
  /** For `private_key_jwt`: its keys, or where they are. Neither for a public client. */
  jwks?: JSONWebKeySet
  jwksUri?: string
}

/** Whether a client id is an https URL with a path, written as a URL parser writes it: no dot segments, no userinfo, no fragment. §3. */
export function isClientIdUrl (clientId: string): boolean {
  if (!clientId.startsWith('https://') || clientId.includes('#') || !URL.canParse(clientId)) return false
  const { href, username, password, port, pathname } = new URL(clientId)
  return href === clientId && username === '' && password === '' && port !== '0' && pathname !== '/'
}

/** The host, with its port if it has one, that vouches for a client: the one at which its id is. */
export function vouchingHost (clientId: string): string | null {
  return isClientIdUrl(clientId) ? new URL(clientId).host : null
}

/**
 * Checks the document that was found at a client's id. §4.1.
 *
 * @throws OAuthError `invalid_client_metadata` or `invalid_redirect_uri`
 */
export function parseMetadataDocument (document: Record<string, unknown>, clientId: string, { redirectUris, grantTypes }: RegistrationPolicy): MetadataDocument {
  if (document.client_id !== clientId) throw refuse('client_metadata_mismatch')
  if ('client_secret' in document || 'client_secret_expires_at' in document) throw refuse('client_metadata_secret')
  if (typeof document.client_name !== 'string') throw refuse('client_metadata_invalid', 'client_name must be a string.')
  const metadata = parseClientMetadata(document, { redirectUris: [...redirectUris, ...ownRedirectUris(document.redirect_uris, clientId)], grantTypes })
  return { clientName: metadata.clientName, redirectUris: metadata.redirectUris, ...parseKeys(document) }
}

/** Those of the host that vouches. Another host's would let anyone send its visitors there under a name of their own. §6.1. */
function ownRedirectUris (redirectUris: unknown, clientId: string): string[] {
  if (!isStrings(redirectUris)) return []
  return redirectUris.filter((uri) => uri.startsWith('https://') && isRedirectUri(uri) && new URL(uri).host === vouchingHost(clientId))
}

/** §6.2: what is declared is what is asked for at the token endpoint, and no secret can have been agreed on. */
function parseKeys ({ token_endpoint_auth_method: method = 'none', jwks, jwks_uri: jwksUri }: Record<string, unknown>): { jwks?: JSONWebKeySet, jwksUri?: string } {
  if (method === 'none') return {}
  if (method !== 'private_key_jwt') throw refuse('client_metadata_method')
  if (jwks === undefined && typeof jwksUri === 'string' && jwksUri.startsWith('https://') && URL.canParse(jwksUri)) return { jwksUri }
  if (jwksUri !== undefined || !isObject(jwks) || !Array.isArray(jwks.keys) || !jwks.keys.every(isObject)) throw refuse('client_metadata_method')
  if (jwks.keys.some((key) => 'd' in key || 'k' in key)) throw refuse('client_metadata_secret')
  return { jwks: jwks as unknown as JSONWebKeySet }
}

function refuse (reason: Reason, description = 'The client metadata document cannot be used.'): OAuthError {
  return new OAuthError('invalid_client_metadata', description, { reason })
}
