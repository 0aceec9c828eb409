/** A successful answer of the token endpoint. RFC 6749 §5.1. */
export interface TokenResponse {
  access_token: string
  token_type: 'Bearer'
  /** Seconds; only where the access token expires. */
  expires_in?: number
  /** Only where refresh is on. */
  refresh_token?: string
  /** Always there: some clients start over without it. */
  scope: string
}

/** `expiresAt` and `now` are epoch milliseconds. */
export function tokenResponse ({ accessToken, refreshToken }: { accessToken: string, refreshToken?: string | undefined }, scope: string, expiresAt: number | null, now: number): TokenResponse {
  return {
    access_token: accessToken,
    token_type: 'Bearer',
    ...(expiresAt !== null && { expires_in: Math.max(0, Math.floor((expiresAt - now) / 1000)) }),
    ...(refreshToken !== undefined && { refresh_token: refreshToken }),
    scope
  }
}
