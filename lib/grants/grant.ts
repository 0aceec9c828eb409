import type { Reason } from '../protocol/errors.js'
import { parseScope } from '../protocol/scope.js'
import type { TokenRow } from '../store/store.js'

/** What a token stands for. */
export interface Grant {
  grantId: string
  /** Null where a client acts for itself. */
  userId: string | null
  tenantId: string | null
  /** Null for a personal access token. */
  clientId: string | null
  clientName: string | null
  scopes: readonly string[]
  /** Canonical URL of what it is for; null for any resource of this app. */
  resource: string | null
  /** Epoch milliseconds; null where it lives until it is revoked. */
  expiresAt: number | null
}

export function grantOf (row: TokenRow): Grant {
  const { id, userId, tenantId, clientId, clientName, scopes, resource, expiresAt } = row
  return { grantId: id, userId, tenantId, clientId, clientName, scopes: parseScope(scopes), resource, expiresAt }
}

/** Why a stored or foreign grant may not be used at `resource` now; undefined if it may. */
export function refusal (grant: { revokedAt?: number | null, expiresAt: number | null, resource: string | null }, resource: string | undefined, now: number): Reason | undefined {
  if (grant.revokedAt != null) return 'token_revoked'
  if (grant.expiresAt !== null && grant.expiresAt <= now) return 'token_expired'
  if (grant.resource !== null && resource !== undefined && grant.resource !== resource) return 'token_for_another_resource'
  return undefined
}
