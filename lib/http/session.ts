import createError from '@fastify/error'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { Settings, User } from '../options.js'
import { OAuthError } from '../protocol/errors.js'
import { isLoopbackHost } from '../protocol/redirect-uri.js'
import { isIdentifier } from '../protocol/secret.js'

const CurrentUserError = createError('FST_MCP_OAUTH_INVALID_USER', 'currentUser must answer null or { id, name?, tenantId? } with strings that are not empty and hold no NUL, got %s')

/** Who is signed in to the host app. Only its own session is asked, never a token. */
export async function signedInUser (settings: Pick<Settings, 'currentUser' | 'issuer'>, request: FastifyRequest): Promise<User | null> {
  expectOwnHost(settings.issuer, request)
  const user = await settings.currentUser(request) ?? null
  if (user === null) return null
  const { id, name, tenantId } = user
  const isUser = isIdentifier(id) && (name == null || typeof name === 'string') && (tenantId == null || isIdentifier(tenantId))
  if (!isUser) throw new CurrentUserError(`an object with id: ${id === '' ? 'an empty string' : typeof id}, name: ${typeof name}, tenantId: ${typeof tenantId}`)
  return user
}

/** Sends the browser to the host's sign-in; `returnTo` is a path of this app. */
export function sendToLogin (settings: Pick<Settings, 'loginUrl'>, request: FastifyRequest, reply: FastifyReply, returnTo: string): FastifyReply {
  return reply.header('cache-control', 'no-store').redirect(settings.loginUrl(request, returnTo), 303)
}

/**
 * Without TLS nothing else binds the name: a web site that points its own at this computer (DNS rebinding) would be of one
 * origin with the pages, read the ticket and post it. Never X-Forwarded-Host, which a script can set. RFC 9110 §15.5.20.
 */
function expectOwnHost (issuer: string, { headers }: FastifyRequest): void {
  if (issuer.startsWith('https:')) return
  const host = String(headers.host ?? headers[':authority'] ?? '')
  if (isLoopbackHost(host.replace(/:\d+$/, ''))) return
  throw new OAuthError('invalid_request', `Open this site at ${issuer}.`, { reason: 'host_not_loopback', statusCode: 421, detail: host })
}
