/**
 * Every error code that leaves this plugin, with its HTTP status.
 * RFC 6749 §4.1.2.1 and §5.2, RFC 6750 §3.1, RFC 7591 §3.2.2, RFC 8707 §2.
 */
const STATUS = {
  access_denied: 403,
  insufficient_scope: 403,
  invalid_client: 401,
  invalid_client_metadata: 400,
  invalid_grant: 400,
  invalid_redirect_uri: 400,
  invalid_request: 400,
  invalid_scope: 400,
  invalid_target: 400,
  invalid_token: 401,
  not_found: 404,
  server_error: 500,
  temporarily_unavailable: 503,
  unauthorized_client: 400,
  unsupported_grant_type: 400,
  unsupported_response_type: 400
} as const

export type ErrorCode = keyof typeof STATUS

/** Why a request was refused. Precise, so it goes to the log and to `onEvent`, never to the client. One page shows it: the one about a client's own document, for its makers. */
export type Reason =
  | 'body_malformed' | 'body_too_large' | 'client_assertion_audience' | 'client_assertion_invalid'
  | 'client_assertion_lifetime' | 'client_authentication_ambiguous' | 'client_authentication_malformed'
  | 'client_authentication_method' | 'client_disconnected' | 'client_host_not_allowed' | 'client_id_missing'
  | 'client_keys_unreachable' | 'client_lookups_limited' | 'client_metadata_invalid' | 'client_metadata_method'
  | 'client_metadata_mismatch' | 'client_metadata_secret' | 'client_metadata_unreachable'
  | 'client_metadata_unreadable' | 'client_mismatch' | 'client_not_allowed' | 'client_secret_mismatch'
  | 'client_unknown' | 'code_expired' | 'code_missing' | 'code_replayed' | 'code_unreadable'
  | 'connection_for_another_user' | 'connection_issuer' | 'connection_limited' | 'connection_refused'
  | 'connection_replayed' | 'connection_server_unknown' | 'connection_state' | 'connection_unreachable'
  | 'content_type_unsupported' | 'decision_missing' | 'denied_by_user' | 'grant_type_missing'
  | 'grant_type_unsupported' | 'grant_unknown' | 'host_not_loopback' | 'introspection_failed' | 'no_scope_left' | 'parameter_array'
  | 'parameter_repeated' | 'pkce_challenge_malformed' | 'pkce_challenge_missing' | 'pkce_method_unsupported'
  | 'pkce_mismatch' | 'pkce_verifier_malformed' | 'rate_limited' | 'redirect_uri_mismatch' | 'redirect_uri_missing'
  | 'redirect_uri_not_allowed' | 'redirect_uri_unregistered' | 'refresh_reused' | 'refresh_token_expired'
  | 'refresh_token_missing' | 'refresh_token_unknown' | 'refused_by_app' | 'request_too_long' | 'resource_mismatch'
  | 'resource_unknown' | 'response_type_unsupported' | 'scope_exceeds_grant' | 'signed_out' | 'store_unavailable'
  | 'ticket_expired' | 'ticket_for_another_user' | 'ticket_spent' | 'ticket_unreadable' | 'token_expired'
  | 'token_expiry_invalid' | 'token_for_another_resource' | 'token_idle' | 'token_missing' | 'token_name_invalid'
  | 'token_revoked' | 'token_scope_insufficient' | 'token_scope_missing' | 'token_type_unsupported' | 'token_unknown' | 'token_without_user'
  | 'unexpected' | 'user_unknown'

/** Whom a refused request was about, for the audit event. */
export interface About {
  userId?: string | null
  clientId?: string | null
  grantId?: string
}

export interface OAuthErrorOptions {
  reason: Reason
  /** Where the code's usual status does not fit, such as 409; 413, 415 and 429 pass through with their own. */
  statusCode?: number
  cause?: unknown
  /** More of the reason, for the log. Holds nothing secret. */
  detail?: string | undefined
  about?: About | undefined
}

/**
 * A refusal in the words of the RFCs. `description` is shown to clients and so is generic, and stays within the
 * characters that RFC 6749 §5.2 allows; `reason` says what really happened.
 */
export class OAuthError extends Error {
  readonly code: ErrorCode
  readonly description: string
  readonly reason: Reason
  readonly statusCode: number
  readonly about: About | undefined
  readonly detail: string | undefined

  constructor (code: ErrorCode, description: string, { reason, statusCode, cause, about, detail }: OAuthErrorOptions) {
    super(description, cause === undefined ? undefined : { cause })
    this.name = 'OAuthError'
    this.code = code
    this.description = description
    this.reason = reason
    this.statusCode = statusCode ?? STATUS[code]
    this.about = about
    this.detail = detail
  }
}

/** A refusal that concerns the client, because client and redirect URI were verified before it arose. */
export abstract class ErrorForClient extends OAuthError {
  readonly redirectUri: string
  readonly state: string | undefined

  constructor (code: ErrorCode, description: string, to: { redirectUri: string, state: string | undefined, reason: Reason }) {
    super(code, description, { reason: to.reason })
    this.name = new.target.name
    this.redirectUri = to.redirectUri
    this.state = to.state
  }
}

/** One that travels to the client's redirect URI. That an error may redirect is its type, so that no other error ever does. */
export class AuthorizationError extends ErrorForClient {}

/**
 * One that the user may carry to the client, by a link on a page. Who named the redirect URI is a stranger, and following
 * it unasked would make this site an open redirector. RFC 9700 §4.11.2.
 */
export class LinkedAuthorizationError extends ErrorForClient {}
