import { AuthorizationError, LinkedAuthorizationError, OAuthError, type ErrorCode, type ErrorForClient, type Reason } from './errors.js'
import type { Parameters } from './parameters.js'
import { isCodeChallenge } from './pkce.js'
import { redirectUriMatches } from './redirect-uri.js'
import { findResource, type Resource } from './resource.js'
import { parseScope, type ScopeCatalogue } from './scope.js'

/** An authorization request that has passed every check. RFC 6749 §4.1.1, RFC 7636 §4.3, RFC 8707 §2. */
export interface AuthorizationRequest {
  clientId: string
  clientName: string
  redirectUri: string
  codeChallenge: string
  scopes: string[]
  /** Canonical URI of the resource. */
  resource: string
  state?: string
}

/**
 * The first half of the checks: a redirect URI of this client. Whatever fails here must not redirect.
 *
 * @throws OAuthError `invalid_request`
 */
export function parseRedirectUri (parameters: Parameters, registered: readonly string[]): string {
  const presented = parameters.get('redirect_uri')
  if (presented === undefined) {
    throw new OAuthError('invalid_request', 'The redirect_uri is missing.', { reason: 'redirect_uri_missing' })
  }
  if (!registered.some((uri) => redirectUriMatches(uri, presented))) {
    throw new OAuthError('invalid_request', 'The redirect_uri is not registered for this client.', { reason: 'redirect_uri_unregistered' })
  }
  return presented
}

/**
 * The second half, once client and redirect URI are known.
 *
 * @throws AuthorizationError, or LinkedAuthorizationError for an https redirect URI of a client known by a URL:
 *   `unsupported_response_type`, `invalid_request`, `invalid_target` or `invalid_scope`
 */
export function parseAuthorizationRequest (
  parameters: Parameters,
  client: { clientId: string, clientName: string, vouchedForBy?: string },
  redirectUri: string,
  known: { scopes: ScopeCatalogue, resources: readonly Resource[] }
): AuthorizationRequest {
  const state = parameters.get('state')
  const Refusal = client.vouchedForBy !== undefined && redirectUri.startsWith('https:') ? LinkedAuthorizationError : AuthorizationError
  const refuse = (code: ErrorCode, description: string, reason: Reason): ErrorForClient =>
    new Refusal(code, description, { redirectUri, state, reason })

  const responseType = parameters.get('response_type')
  if (responseType !== 'code') {
    throw refuse(responseType === undefined ? 'invalid_request' : 'unsupported_response_type', 'The response_type must be code.', 'response_type_unsupported')
  }

  const codeChallenge = parameters.get('code_challenge')
  if (codeChallenge === undefined) {
    throw refuse('invalid_request', 'PKCE is required: the code_challenge is missing.', 'pkce_challenge_missing')
  }
  // An absent method means plain (RFC 7636 §4.3), which would send the verifier itself through the browser.
  if (parameters.get('code_challenge_method') !== 'S256') {
    throw refuse('invalid_request', 'The code_challenge_method must be S256.', 'pkce_method_unsupported')
  }
  if (!isCodeChallenge(codeChallenge)) {
    throw refuse('invalid_request', 'The code_challenge must be 43 characters of base64url.', 'pkce_challenge_malformed')
  }

  const named = parameters.get('resource')
  const resource = named === undefined ? known.resources[0] : findResource(named, known.resources)
  if (resource === undefined) {
    throw refuse('invalid_target', 'The resource is not one of this server.', 'resource_unknown')
  }

  const asked = parseScope(parameters.get('scope'))
  const scopes = known.scopes.expand(asked.length === 0 ? resource.scopes : asked, resource.scopes)
  if (scopes.length === 0) {
    throw refuse('invalid_scope', 'None of the requested scopes exists here.', 'no_scope_left')
  }

  const { clientId, clientName } = client
  return { clientId, clientName, redirectUri, codeChallenge, scopes, resource: resource.uri, ...(state !== undefined && { state }) }
}
