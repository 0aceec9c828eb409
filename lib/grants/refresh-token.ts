import type { FastifyRequest } from 'fastify'
import type { Client } from '../clients/client.js'
import type { Settings } from '../options.js'
import { OAuthError, type About, type Reason } from '../protocol/errors.js'
import type { Parameters } from '../protocol/parameters.js'
import { refreshTokenGrant, successorPair, type TokenPair } from '../protocol/refresh-token.js'
import { findResource } from '../protocol/resource.js'
import { parseScope } from '../protocol/scope.js'
import { hashToken } from '../protocol/secret.js'
import { refusal } from '../store/grant.js'
import type { TokenRow } from '../store/store.js'
import { tokenResponse, type TokenResponse } from './token-response.js'
import { isRefusedUser } from './verify.js'

/**
 * Exchanges a refresh token for its successor pair. RFC 6749 §6, RFC 9700 §4.14.
 *
 * Rotation is idempotent for `refreshGrace`: whoever presents the same token again gets the same pair. After that, or
 * with a still older token, somebody holds a copy: the grant ends, and with it every token of it.
 *
 * @throws OAuthError `invalid_grant`, `invalid_request`, `invalid_scope`, `invalid_target`
 * @throws StoreUnavailableError
 */
export async function refreshGrant (settings: Settings, request: FastifyRequest, client: Client, parameters: Parameters, now: number): Promise<TokenResponse> {
  const { store, refreshKeys, refreshGrace, accessTokenLifetime, refreshTokenLifetime } = settings
  const presented = parameters.get('refresh_token')
  if (presented === undefined) {
    throw new OAuthError('invalid_request', 'The refresh_token is missing.', { reason: 'refresh_token_missing' })
  }
  const grantId = refreshTokenGrant(refreshKeys, presented)
  if (grantId === undefined) throw refuse('refresh_token_unknown', { clientId: client.clientId })
  const presentedHash = hashToken(presented)

  // Whoever loses the race for the rotation reads what the winner wrote, and answers with the same.
  for (let attempt = 0; attempt < 2; attempt++) {
    const row = await store.find(grantId)
    const about = { userId: row?.userId ?? null, clientId: client.clientId, grantId }
    // Another client must not learn of the grant, let alone end it.
    if (row === null || row.clientId !== client.clientId) throw refuse(row === null ? 'grant_unknown' : 'client_mismatch', about)
    const ended = refreshRefusal(settings, row, now)
    if (ended !== undefined) throw refuse(ended, about)
    checkNarrowing(settings, row, parameters, about)
    if (await isRefusedUser(settings, row.userId)) throw refuse('user_unknown', about)

    if (equal(row.refreshHash, presentedHash)) {
      const pair = successorPair(refreshKeys[0]!, presented)
      const expiresAt = accessTokenLifetime === null ? null : now + accessTokenLifetime * 1000
      const rotated = await store.rotate(grantId, presentedHash, {
        tokenHash: hashToken(pair.accessToken),
        refreshHash: hashToken(pair.refreshToken),
        expiresAt,
        refreshExpiresAt: now + refreshTokenLifetime! * 1000,
        refreshedAt: now
      })
      if (!rotated) continue
      settings.emit(request, { type: 'token.refreshed', ...about })
      return tokenResponse(pair, row.scopes, expiresAt, now)
    }
    const repeated = equal(row.previousRefreshHash, presentedHash) && now - row.refreshedAt! <= refreshGrace * 1000
      ? currentPair(settings, row, presented)
      : undefined
    if (repeated !== undefined) return tokenResponse(repeated, row.scopes, row.expiresAt, now)

    const grants = await store.revoke({ grantId }, 'refresh_reused', now)
    settings.emit(request, { type: 'token.revoked', ...about, grants, reason: 'refresh_reused' })
    throw refuse('refresh_reused', about)
  }
  throw refuse('refresh_reused', { clientId: client.clientId, grantId })
}

/** The pair that the presented token led to, under whichever key was the first one then. */
function currentPair ({ refreshKeys }: Settings, row: TokenRow, presented: string): TokenPair | undefined {
  return refreshKeys.map((key) => successorPair(key, presented)).find((pair) => equal(row.refreshHash, hashToken(pair.refreshToken)))
}

/** An expired access token is what refreshing is for; anything else that ends a grant ends this too. */
function refreshRefusal (settings: Settings, row: TokenRow, now: number): Reason | undefined {
  if (row.refreshExpiresAt === null || row.refreshExpiresAt <= now) return 'refresh_token_expired'
  return refusal({ ...row, expiresAt: null }, undefined, now, settings.idleLifetime)
}

/** RFC 6749 §6, RFC 8707 §2.2: a refresh may name less than was granted, never more. It gets what was granted. */
function checkNarrowing ({ resources }: Settings, row: TokenRow, parameters: Parameters, about: About): void {
  const granted = parseScope(row.scopes)
  if (!parseScope(parameters.get('scope')).every((scope) => granted.includes(scope))) {
    throw new OAuthError('invalid_scope', 'The scope is more than was granted.', { reason: 'scope_exceeds_grant', about })
  }
  const named = parameters.get('resource')
  if (named !== undefined && findResource(named, resources)?.uri !== row.resource) {
    throw new OAuthError('invalid_target', 'The resource differs from the one of the grant.', { reason: 'resource_mismatch', about })
  }
}

function refuse (reason: Reason, about: About): OAuthError {
  return new OAuthError('invalid_grant', 'The refresh token is invalid or has expired.', { reason, about })
}

function equal (one: Uint8Array | null, other: Uint8Array): boolean {
  return one !== null && Buffer.compare(one, other) === 0
}
