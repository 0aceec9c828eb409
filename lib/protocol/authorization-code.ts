import type { AuthorizationRequest } from './authorization-request.js'
import { OAuthError } from './errors.js'
import type { Parameters } from './parameters.js'
import { codeVerifierMatches, isCodeVerifier } from './pkce.js'
import type { Expiring } from './sealed.js'

/** What a sealed authorization code carries: the whole pending grant, with the scopes that the user ticked. */
export interface AuthorizationCode extends Omit<AuthorizationRequest, 'state'>, Expiring {
  grantId: string
  userId: string
  tenantId: string | null
  /** Epoch milliseconds. */
  issuedAt: number
}

/**
 * Whether whoever presents the code is the one it was made for: client, redirect URI, resource, then PKCE.
 * RFC 6749 §4.1.3, RFC 7636 §4.6, RFC 8707 §2.2. OAuth 2.1 dropped redirect_uri here, so it may be absent, but not differ.
 *
 * @throws OAuthError `invalid_grant`, `invalid_target` or `invalid_request`
 */
export function checkPossession (code: AuthorizationCode, clientId: string, resource: string | undefined, parameters: Parameters): void {
  const about = { userId: code.userId, clientId, grantId: code.grantId }
  if (code.clientId !== clientId) {
    throw new OAuthError('invalid_grant', 'The code was issued to another client.', { reason: 'client_mismatch', about })
  }
  const redirectUri = parameters.get('redirect_uri')
  if (redirectUri !== undefined && redirectUri !== code.redirectUri) {
    throw new OAuthError('invalid_grant', 'The redirect_uri differs from the one of the authorization request.', { reason: 'redirect_uri_mismatch', about })
  }
  if (parameters.has('resource') && resource !== code.resource) {
    throw new OAuthError('invalid_target', 'The resource differs from the one of the authorization request.', { reason: 'resource_mismatch', about })
  }
  const codeVerifier = parameters.get('code_verifier')
  if (codeVerifier === undefined || !isCodeVerifier(codeVerifier)) {
    throw new OAuthError('invalid_request', 'The code_verifier must have 43 to 128 characters.', { reason: 'pkce_verifier_malformed', about })
  }
  if (!codeVerifierMatches(codeVerifier, code.codeChallenge)) {
    throw new OAuthError('invalid_grant', 'The code_verifier does not match.', { reason: 'pkce_mismatch', about })
  }
}
