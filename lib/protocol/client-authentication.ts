import { timingSafeEqual } from 'node:crypto'
import { decodeJwt, jwtVerify, type JWTVerifyGetKey } from 'jose'
import { OAuthError, type About, type Reason } from './errors.js'
import type { Parameters } from './parameters.js'
import { hashToken } from './secret.js'

/** By what a request says whose it is, not yet checked. RFC 6749 §2.3, RFC 7523 §2.2. */
export interface ClientCredentials {
  clientId: string
  /** By `client_secret_basic` or `client_secret_post`. */
  clientSecret?: string | undefined
  /** By `private_key_jwt`. */
  assertion?: string | undefined
}

/** With what a client proves who it is. Without either it is a public one: PKCE is all its proof. */
export interface ClientProof {
  /** SHA-256 of each secret that it may use. */
  secretHashes?: readonly Uint8Array[]
  /** Finds the public key for an assertion. */
  publicKey?: JWTVerifyGetKey
}

/** Asymmetric ones only: with a shared key, whoever can check an assertion could make one. */
export const ASSERTION_ALGORITHMS = ['ES256', 'ES384', 'PS256', 'RS256', 'EdDSA', 'Ed25519']

const ASSERTION_TYPE = 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer'
/** Seconds. Assertions are not remembered, so one works until it expires: it must do so soon. */
const MAX_ASSERTION_LIFETIME = 300
/** Seconds by which a client's clock may be ahead. */
const CLOCK_TOLERANCE = 10

/**
 * The one way in which a request authenticates its client. RFC 6749 §2.3: not more than one.
 *
 * @throws OAuthError `invalid_client`
 */
export function parseClientCredentials (authorization: string | undefined, parameters: Parameters): ClientCredentials {
  const named = parameters.get('client_id')
  const clientSecret = parameters.get('client_secret')
  const assertion = parameters.get('client_assertion')
  const isAssertion = assertion !== undefined || parameters.has('client_assertion_type')
  if ([authorization !== undefined, clientSecret !== undefined, isAssertion].filter(Boolean).length > 1) {
    throw refuse('Authenticate in one way, not in several.', 'client_authentication_ambiguous')
  }

  let credentials: ClientCredentials | undefined
  if (authorization !== undefined) credentials = parseBasic(authorization)
  else if (isAssertion) credentials = parseAssertion(assertion, parameters.get('client_assertion_type'))
  else if (named !== undefined) credentials = { clientId: named, clientSecret }
  else throw refuse('The client_id is missing.', 'client_id_missing')

  if (credentials === undefined) throw refuse('The client authentication cannot be read.', 'client_authentication_malformed')
  if (named !== undefined && named !== credentials.clientId) throw refuse('The client_id is not the one that is authenticated.', 'client_authentication_ambiguous')
  return credentials
}

/**
 * Checks the credentials against what the client is known by. A client that has a proof must give it, and one that has
 * none must not give any: whoever sends a secret takes this for another server.
 *
 * @param audiences what an assertion may be addressed to: this issuer, and what else is this server's alone
 * @throws OAuthError `invalid_client`, or what the look-up of its keys throws
 */
export async function checkClientCredentials (credentials: ClientCredentials, { secretHashes, publicKey }: ClientProof, audiences: readonly string[], now: number): Promise<void> {
  const { clientId, clientSecret, assertion } = credentials
  const about = { clientId }
  if ([clientSecret, assertion, secretHashes, publicKey].every((proof) => proof === undefined)) return
  if (clientSecret !== undefined && secretHashes !== undefined) {
    const presented = hashToken(clientSecret)
    if (secretHashes.some((hash) => timingSafeEqual(hash, presented))) return
    throw refuse('The client authentication failed.', 'client_secret_mismatch', about)
  }
  if (assertion !== undefined && publicKey !== undefined) {
    const reason = await whatIsWrong(assertion, clientId, publicKey, audiences, now)
    if (reason === undefined) return
    throw refuse('The client authentication failed.', reason, about)
  }
  throw refuse('The client authenticates in another way.', 'client_authentication_method', about)
}

/** RFC 7523 §3. The audience is this server and nothing else, or another server could use the assertion here. */
async function whatIsWrong (assertion: string, clientId: string, publicKey: JWTVerifyGetKey, audiences: readonly string[], now: number): Promise<Reason | undefined> {
  try {
    const { payload: { aud, exp } } = await jwtVerify(assertion, publicKey, {
      algorithms: ASSERTION_ALGORITHMS,
      issuer: clientId,
      subject: clientId,
      audience: [...audiences],
      requiredClaims: ['exp'],
      clockTolerance: CLOCK_TOLERANCE,
      currentDate: new Date(now)
    })
    if (typeof aud !== 'string') return 'client_assertion_audience'
    return exp! * 1000 - now > (MAX_ASSERTION_LIFETIME + CLOCK_TOLERANCE) * 1000 ? 'client_assertion_lifetime' : undefined
  } catch (error) {
    if (error instanceof OAuthError) throw error
    const { claim } = error as { claim?: string }
    return claim === 'aud' ? 'client_assertion_audience' : claim === 'exp' || claim === 'nbf' ? 'client_assertion_lifetime' : 'client_assertion_invalid'
  }
}

/** RFC 6749 §2.3.1: both halves are form-encoded before they are joined. */
function parseBasic (authorization: string): ClientCredentials | undefined {
  const [, encoded] = /^basic +([A-Za-z0-9+/]+={0,2})$/i.exec(authorization) ?? []
  const [, id, secret] = /^([^:]+):(.+)$/s.exec(Buffer.from(encoded ?? '', 'base64').toString()) ?? []
  try {
    return id === undefined || secret === undefined ? undefined : { clientId: formDecode(id), clientSecret: formDecode(secret) }
  } catch {
    return undefined
  }
}

/** Whose the assertion claims to be. RFC 7521 §4.2: client_id may be left out beside it. */
function parseAssertion (assertion: string | undefined, type: string | undefined): ClientCredentials | undefined {
  try {
    const { sub } = type === ASSERTION_TYPE ? decodeJwt(assertion ?? '') : {}
    return typeof sub === 'string' ? { clientId: sub, assertion } : undefined
  } catch {
    return undefined
  }
}

function formDecode (text: string): string {
  return decodeURIComponent(text.replaceAll('+', ' '))
}

function refuse (description: string, reason: Reason, about?: About): OAuthError {
  return new OAuthError('invalid_client', description, { reason, about })
}
