import { OAuthError } from './errors.js'
import { isObject, isStrings } from './json.js'
import { isLoopbackRedirectUri, withoutLoopbackPort } from './redirect-uri.js'

const MAX_REDIRECT_URIS = 10
export const MAX_NAME_CHARACTERS = 100

export const UNNAMED_CLIENT = 'Unnamed app'

/** What a registration request asks for, narrowed to what this server does. RFC 7591 §2. */
export interface ClientMetadata {
  clientName: string
  /** As sent, without those that may not register. */
  redirectUris: string[]
  grantTypes: string[]
  scope: string | undefined
}

/** What this server lets dynamic clients have. */
export interface RegistrationPolicy {
  /** Exact URIs beyond loopback ones. */
  redirectUris: readonly string[]
  grantTypes: readonly string[]
}

/**
 * Reads the body of a registration request. RFC 7591 §2 lets a server narrow what it is asked for, and real clients
 * send mixed lists, so what cannot be had is dropped, and only a request with nothing left is refused.
 *
 * @throws OAuthError `invalid_redirect_uri` or `invalid_client_metadata`
 */
export function parseClientMetadata (body: unknown, policy: RegistrationPolicy): ClientMetadata {
  if (!isObject(body)) throw invalid('The body must be a JSON object.')
  const redirectUris = parseRedirectUris(body.redirect_uris, policy)
  const grantTypes = stringsOr(body.grant_types, 'grant_types', policy.grantTypes)
    .filter((type) => policy.grantTypes.includes(type))
  if (!grantTypes.includes('authorization_code')) {
    throw invalid('grant_types must include authorization_code.')
  }
  if (!stringsOr(body.response_types, 'response_types', ['code']).includes('code')) {
    throw invalid('response_types must include code.')
  }
  return {
    clientName: parseClientName(body.client_name),
    redirectUris,
    grantTypes: [...new Set(grantTypes)],
    scope: stringOr(body.scope, 'scope')
  }
}

/** Whether a client that registers itself may be answered there: on the user's computer, or where the app says so. */
export function mayRegister (redirectUri: string, listed: readonly string[]): boolean {
  return isLoopbackRedirectUri(redirectUri) || listed.includes(redirectUri)
}

/** The form that is signed into a client id: the same for every port and every order of the same URIs. */
export function canonicalRedirectUris (redirectUris: readonly string[]): string[] {
  return [...new Set(redirectUris.map(withoutLoopbackPort))].sort()
}

/**
 * A name made safe to show: no control, direction-changing or invisible characters, no piles of combining marks.
 * Still only a claim.
 *
 * @throws OAuthError `invalid_client_metadata` for one that is no string or has over 100 characters
 */
export function parseClientName (value: unknown): string {
  const sent = stringOr(value, 'client_name') ?? ''
  const name = printable(sent)
  if ([...name].length > MAX_NAME_CHARACTERS) throw invalid(`client_name must have at most ${MAX_NAME_CHARACTERS} characters.`)
  return name === '' ? UNNAMED_CLIENT : name
}

/** Strips what can hide or reorder text: categories C and Zl/Zp; keeps at most two combining marks in a row. */
export function printable (text: string): string {
  return text
    .replace(/[\p{C}\p{DI}\p{Zl}\p{Zp}\u2800]+/gu, (run) => /[\t\n\r\p{Zl}\p{Zp}]/u.test(run) ? ' ' : '')
    .normalize('NFC')
    .replace(/(\p{M}{2})\p{M}+/gu, '$1')
    .replace(/\s+/gu, ' ')
    .trim()
}

function parseRedirectUris (value: unknown, policy: RegistrationPolicy): string[] {
  if (!isStrings(value) || value.length === 0) {
    throw new OAuthError('invalid_redirect_uri', 'redirect_uris must be a list of strings.', { reason: 'redirect_uri_missing' })
  }
  const allowed = value.filter((uri) => mayRegister(uri, policy.redirectUris))
  if (allowed.length === 0) {
    throw new OAuthError('invalid_redirect_uri', 'Only loopback redirect URIs (http://localhost, http://127.0.0.1, http://[::1]) can be registered here.', { reason: 'redirect_uri_not_allowed' })
  }
  if (allowed.length > MAX_REDIRECT_URIS) {
    throw new OAuthError('invalid_redirect_uri', `redirect_uris must have at most ${MAX_REDIRECT_URIS} entries.`, { reason: 'redirect_uri_not_allowed' })
  }
  return [...new Set(allowed)]
}

function stringOr (value: unknown, name: string): string | undefined {
  if (value === undefined || value === null) return undefined
  if (typeof value !== 'string') throw invalid(`${name} must be a string.`)
  return value
}

function stringsOr (value: unknown, name: string, fallback: readonly string[]): readonly string[] {
  if (value === undefined || value === null) return fallback
  if (!isStrings(value)) throw invalid(`${name} must be a list of strings.`)
  return value
}

function invalid (description: string): OAuthError {
  return new OAuthError('invalid_client_metadata', description, { reason: 'client_metadata_invalid' })
}
