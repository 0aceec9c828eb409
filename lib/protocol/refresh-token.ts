import { createHmac, hkdfSync, randomBytes, timingSafeEqual } from 'node:crypto'

/** The tokens that a grant has at a time. */
export interface TokenPair {
  accessToken: string
  refreshToken: string
}

/** `ort_`, the grantId, 32 secret bytes, and a tag of 16 bytes that says that this server made it. */
const REFRESH_TOKEN = /^ort_([A-Za-z0-9_-]{22})[A-Za-z0-9_-]{65}$/

/** The first refresh token of a grant. */
export function createRefreshToken (refreshKey: Uint8Array, grantId: string): string {
  return tagged(refreshKey, `ort_${grantId}${randomBytes(32).toString('base64url')}`)
}

/**
 * The grant of a refresh token that this server made at any time, or undefined. The tag is why a made-up token, even one
 * with somebody's grantId, is not taken for an old one of theirs.
 */
export function refreshTokenGrant (refreshKeys: readonly Uint8Array[], refreshToken: string): string | undefined {
  const grantId = REFRESH_TOKEN.exec(refreshToken)?.[1]
  if (grantId === undefined) return undefined
  const body = refreshToken.slice(0, -22)
  const isGenuine = refreshKeys.some((key) => timingSafeEqual(Buffer.from(tagged(key, body)), Buffer.from(refreshToken)))
  return isGenuine ? grantId : undefined
}

/**
 * What follows a refresh token. Derived, so that a retry after a lost answer, or five processes refreshing at once, get
 * the same pair though only hashes are stored. RFC 5869.
 */
export function successorPair (refreshKey: Uint8Array, refreshToken: string): TokenPair {
  const bytes = Buffer.from(hkdfSync('sha256', refreshKey, '', refreshToken, 64))
  return {
    accessToken: `oat_${bytes.toString('base64url', 0, 32)}`,
    refreshToken: tagged(refreshKey, refreshToken.slice(0, 26) + bytes.toString('base64url', 32))
  }
}

function tagged (refreshKey: Uint8Array, body: string): string {
  return body + createHmac('sha256', refreshKey).update(body).digest().toString('base64url', 0, 16)
}
