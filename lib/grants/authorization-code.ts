import type { FastifyRequest } from 'fastify'
import type { Client } from '../clients/client.js'
import type { Settings } from '../options.js'
import { checkPossession } from '../protocol/authorization-code.js'
import { OAuthError, type About, type Reason } from '../protocol/errors.js'
import type { Parameters } from '../protocol/parameters.js'
import { redirectHost } from '../protocol/redirect-uri.js'
import { createRefreshToken } from '../protocol/refresh-token.js'
import { findResource } from '../protocol/resource.js'
import { formatScope } from '../protocol/scope.js'
import { createToken, hashToken } from '../protocol/secret.js'
import { newRow } from '../store/schema.js'
import { tokenResponse, type TokenResponse } from './token-response.js'
import { isRefusedUser } from './verify.js'

/**
 * Redeems an authorization code. RFC 6749 §4.1.3.
 *
 * The one INSERT that stores the token also spends the code, since the code's id is the row's key. It comes last: who
 * cannot prove possession must be able neither to burn a code nor to end its owner's grant.
 *
 * @throws OAuthError `invalid_grant`, `invalid_request`, `invalid_target`
 * @throws StoreUnavailableError
 */
export async function redeemAuthorizationCode (settings: Settings, request: FastifyRequest, client: Client, parameters: Parameters, now: number): Promise<TokenResponse> {
  const sealed = parameters.get('code')
  if (sealed === undefined) {
    throw new OAuthError('invalid_request', 'The code is missing.', { reason: 'code_missing' })
  }
  const code = await settings.codes.open(sealed, now)
  if (code === 'unreadable' || code === 'expired') {
    throw refuse(`code_${code}`, { clientId: client.clientId })
  }
  const resource = findResource(parameters.get('resource') ?? '', settings.resources)
  checkPossession(code, client.clientId, resource?.uri, parameters)

  const { grantId, userId, tenantId, clientId, clientName, scopes } = code
  const about = { userId, clientId, grantId }
  if (await isRefusedUser(settings, userId)) throw refuse('user_unknown', about)
  const { accessTokenLifetime, refreshTokenLifetime } = settings
  const accessToken = createToken('oat_')
  const refreshToken = refreshTokenLifetime === null ? undefined : createRefreshToken(settings.refreshKeys[0]!, grantId)
  const expiresAt = accessTokenLifetime === null ? null : now + accessTokenLifetime * 1000
  const result = await settings.store.issue(newRow({
    id: grantId,
    tokenHash: hashToken(accessToken),
    refreshHash: refreshToken === undefined ? null : hashToken(refreshToken),
    refreshExpiresAt: refreshTokenLifetime === null ? null : now + refreshTokenLifetime * 1000,
    userId,
    tenantId,
    clientId,
    clientName,
    clientHost: redirectHost(code.redirectUri),
    scopes: formatScope(scopes),
    resource: code.resource,
    createdAt: now,
    expiresAt
  }), { codeIssuedAt: code.issuedAt })

  if (result === 'replayed') settings.emit(request, { type: 'token.revoked', ...about, grants: 1, reason: 'code_replayed' })
  if (result !== 'issued') throw refuse(result === 'replayed' ? 'code_replayed' : 'client_disconnected', about)
  settings.emit(request, { type: 'token.issued', ...about, scopes })
  return tokenResponse({ accessToken, refreshToken }, formatScope(scopes), expiresAt, now)
}

function refuse (reason: Reason, about: About): OAuthError {
  return new OAuthError('invalid_grant', 'The code is invalid or has expired.', { reason, about })
}
