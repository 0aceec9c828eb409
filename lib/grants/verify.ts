import type { Settings } from '../options.js'
import type { Reason } from '../protocol/errors.js'
import { refreshTokenGrant } from '../protocol/refresh-token.js'
import { hashToken, isToken } from '../protocol/secret.js'
import { refusal } from '../store/grant.js'
import type { GrantRow } from '../store/store.js'

/** Milliseconds: at most this often is the use of a token noted. */
const TOUCH_INTERVAL = 60_000

type Verdict = { row: GrantRow, reason: undefined } | { row: GrantRow | null, reason: Reason }

/** The row of an access or refresh token, also of one that is no longer good. */
export async function findRow ({ store, refreshKeys }: Settings, token: string): Promise<GrantRow | null> {
  const grantId = refreshTokenGrant(refreshKeys, token)
  if (grantId !== undefined) return await store.find(grantId)
  return isToken(token) ? await store.findByTokenHash(hashToken(token)) : null
}

/** The row of an access token, and why it may not be used now, at any of `resources` if given. A use is noted. */
export async function verifyToken ({ store, idleLifetime }: Settings, token: string, resources: readonly string[] | undefined, now: number): Promise<Verdict> {
  const row = isToken(token) ? await store.findByTokenHash(hashToken(token)) : null
  if (row === null) return { row, reason: 'token_unknown' }
  const reason = refusal(row, resources, now, idleLifetime)
  if (reason !== undefined) return { row, reason }
  if (now - (row.lastUsedAt ?? 0) >= TOUCH_INTERVAL) store.touch(row.id, now)
  return { row, reason }
}

/** Whether the app says that this user may have no tokens any more. Not asked for a client that acts for itself. */
export async function isRefusedUser ({ findUser }: Settings, userId: string | null): Promise<boolean> {
  return findUser !== undefined && userId !== null && await findUser(userId) == null
}
