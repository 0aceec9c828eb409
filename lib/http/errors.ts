import type { FastifyError, FastifyReply, FastifyRequest } from 'fastify'
import type { Emit, Emitted } from '../events.js'
import { OAuthError, type ErrorCode, type Reason } from '../protocol/errors.js'
import { StoreUnavailableError } from '../store/store.js'

/** Seconds after which a client may try again after a 503. */
const RETRY_AFTER = 5

/** What Fastify and the rate limiter refuse before an endpoint sees it. */
const REFUSED_BY_FASTIFY = new Map<number, [ErrorCode, string, Reason]>([
  [400, ['invalid_request', 'The request cannot be accepted.', 'body_malformed']],
  [413, ['invalid_request', 'The request is too large.', 'body_too_large']],
  [415, ['invalid_request', 'The content type is not supported here.', 'content_type_unsupported']],
  [429, ['temporarily_unavailable', 'Too many requests.', 'rate_limited']]
])

/** Whatever was thrown, in the words of the RFCs. Unexpected errors are 500, never a 400. */
export function toOAuthError (error: unknown): OAuthError {
  if (error instanceof OAuthError) return error
  if (error instanceof StoreUnavailableError) {
    return new OAuthError('temporarily_unavailable', 'The server cannot answer right now.', { reason: 'store_unavailable', cause: error })
  }
  const { statusCode = 500 } = (error ?? {}) as FastifyError
  if (statusCode >= 400 && statusCode < 500) {
    const [code, description, reason] = REFUSED_BY_FASTIFY.get(statusCode) ?? ['invalid_request', 'The request cannot be accepted.', 'refused_by_app']
    return new OAuthError(code, description, { reason, statusCode, cause: error })
  }
  return new OAuthError('server_error', 'Something went wrong.', { reason: 'unexpected', cause: error })
}

/** The precise reason, for the log. A refusal is news; a failure of ours is an error with its cause. */
export function logRefusal (request: FastifyRequest, error: OAuthError): void {
  const { reason, statusCode, about, detail } = error
  if (statusCode >= 500) request.log.error({ err: error.cause ?? error, reason, ...about }, `oauth: ${error.code}`)
  else request.log.info({ reason, detail, ...about }, `oauth: ${error.code}`)
}

/** Seconds after which to try again, where that may help. */
export function retryAfter ({ statusCode, reason }: OAuthError): number | undefined {
  if (reason === 'client_lookups_limited') return 60
  return statusCode === 503 ? RETRY_AFTER : undefined
}

/** An error handler for endpoints that answer in JSON. `eventOf` names the audit event, which is its own line in the log. */
export function jsonErrorHandler (emit?: Emit, eventOf?: (error: OAuthError, request: FastifyRequest) => Emitted | undefined) {
  return function (thrown: unknown, request: FastifyRequest, reply: FastifyReply): FastifyReply {
    const error = toOAuthError(thrown)
    const event = eventOf?.(error, request)
    if (event !== undefined) emit?.(request, event)
    if (event === undefined || error.statusCode >= 500 || error.detail !== undefined) logRefusal(request, error)
    return sendJsonError(reply, error)
  }
}

/** RFC 6749 §5.2. */
export function sendJsonError (reply: FastifyReply, error: OAuthError): FastifyReply {
  const seconds = retryAfter(error)
  if (seconds !== undefined) reply.header('retry-after', seconds)
  // A client that tried the Authorization header is told of the scheme that belongs there.
  if (error.code === 'invalid_client' && reply.request.headers.authorization !== undefined) reply.header('www-authenticate', 'Basic realm="oauth"')
  return sendJson(reply.code(error.statusCode), { error: error.code, error_description: error.description })
}

/** Serialized here, whatever serializer the host has set. Nothing that OAuth answers with may be stored by a cache. */
export function sendJson (reply: FastifyReply, body: object): FastifyReply {
  return reply
    .header('cache-control', 'no-store')
    .header('pragma', 'no-cache')
    .type('application/json; charset=utf-8')
    .serializer(String)
    .send(JSON.stringify(body))
}
