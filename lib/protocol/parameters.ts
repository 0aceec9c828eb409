import { OAuthError } from './errors.js'

/** Request parameters by their wire names. A parameter without a value counts as absent (RFC 6749 §3.1). */
export type Parameters = ReadonlyMap<string, string>

/**
 * Parses a query string or a form body.
 *
 * @throws OAuthError `invalid_request` for a repeated parameter (RFC 6749 §3.1) and for array notation (`scope[]=a`),
 * which some frameworks read as a list: two readers must never see two different requests.
 */
export function parseParameters (raw: string): Parameters {
  const parameters = new Map<string, string>()
  for (const [name, value] of new URLSearchParams(raw)) {
    if (name.endsWith(']')) {
      throw new OAuthError('invalid_request', 'A parameter is sent as an array.', { reason: 'parameter_array' })
    }
    if (parameters.has(name)) {
      throw new OAuthError('invalid_request', 'A parameter is sent more than once.', { reason: 'parameter_repeated' })
    }
    parameters.set(name, value)
  }
  for (const [name, value] of parameters) if (value === '') parameters.delete(name)
  return parameters
}
