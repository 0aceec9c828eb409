import type { Reason } from '../protocol/errors.js'
import { parseScope } from '../protocol/scope.js'
import type { GrantRow } from './store.js'

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

export function grantOf (row: GrantRow): Grant {
  const { id, userId, tenantId, clientId, clientName, scopes, resource, expiresAt } = row
  return { grantId: id, userId, tenantId, clientId, clientName, scopes: parseScope(scopes), resource, expiresAt }
}

/** What a grant has in any case, and what only one with a row has. */
type Life = Pick<GrantRow, 'expiresAt' | 'resource'> & Partial<Pick<GrantRow, 'revokedAt' | 'createdAt' | 'lastUsedAt' | 'refreshedAt'>>

/** Why a grant may not be used now, at any of `resources` if given; undefined if it may. `idleLifetime` is in seconds. */
export function refusal (grant: Life, resources: readonly string[] | undefined, now: number, idleLifetime: number | null): Reason | undefined {
  if (grant.revokedAt != null) return 'token_revoked'
  if (grant.expiresAt !== null && grant.expiresAt <= now) return 'token_expired'
  if (idleLifetime !== null && grant.createdAt !== undefined && lastSign(grant) + idleLifetime * 1000 <= now) return 'token_idle'
  if (grant.resource !== null && resources !== undefined && !resources.includes(grant.resource)) return 'token_for_another_resource'
  return undefined
}

/** When the grant was last heard of. */
function lastSign ({ createdAt = 0, lastUsedAt, refreshedAt }: Life): number {
  return Math.max(createdAt, lastUsedAt ?? 0, refreshedAt ?? 0)
}
