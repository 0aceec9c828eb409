/** The auth-params of a Bearer challenge, in the order in which they are sent. RFC 6750 §3, RFC 9728 §5.1. */
export interface Challenge {
  realm?: string
  error?: 'invalid_token' | 'insufficient_scope'
  error_description?: string
  scope?: string
  resource_metadata?: string
}

/**
 * A `WWW-Authenticate` value. Bearer comes first and always with a parameter, because some clients read only the first
 * scheme. Quotes and backslashes are escaped, and anything that could end the header is dropped.
 */
export function formatChallenge (challenge: Challenge): string {
  const parameters = Object.entries(challenge)
    .filter(([, value]) => value !== '')
    .map(([name, value]) => `${name}="${value.replace(/[^ -~]/g, '').replace(/["\\]/g, '\\$&')}"`)
  return `Bearer ${parameters.join(', ')}`
}
