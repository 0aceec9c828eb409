import type { FastifyInstance } from 'fastify'
import { verifyToken } from '../grants/verify.js'
import { authenticateClient, rejectedClient } from '../http/client-authentication.js'
import { jsonErrorHandler, sendJson } from '../http/errors.js'
import { acceptForms, formParameters } from '../http/parameters-from-request.js'
import type { Settings } from '../options.js'
import { OAuthError } from '../protocol/errors.js'

/**
 * POST: a resource server asks what a token is worth. RFC 7662 §2. Whatever it may not look into is not active for it:
 * tokens for other resources, refresh tokens, and what is no token at all. Asking counts as a use of the token.
 */
export async function introspectionEndpoint (app: FastifyInstance, settings: Settings): Promise<void> {
  await acceptForms(app)

  app.post('', async (request, reply) => {
    const now = Date.now()
    const parameters = formParameters(request)
    const { clientId, introspects } = await authenticateClient(settings, request, parameters, now)
    if (introspects === undefined) {
      throw new OAuthError('unauthorized_client', 'This client may not introspect tokens.', { reason: 'client_not_allowed', about: { clientId } })
    }
    const token = parameters.get('token')
    if (token === undefined) {
      throw new OAuthError('invalid_request', 'The token is missing.', { reason: 'token_missing', about: { clientId } })
    }
    const { row, reason } = await verifyToken(settings, token, introspects, now)
    if (reason !== undefined) return sendJson(reply, { active: false })
    return sendJson(reply, {
      active: true,
      iss: settings.issuer,
      token_type: 'Bearer',
      scope: row.scopes,
      // A token for any resource of this app is for those of the one who asks.
      aud: row.resource ?? introspects,
      iat: Math.floor((row.refreshedAt ?? row.createdAt) / 1000),
      jti: row.id,
      ...(row.expiresAt !== null && { exp: Math.floor(row.expiresAt / 1000) }),
      ...(row.userId !== null && { sub: row.userId }),
      ...(row.tenantId !== null && { tenant_id: row.tenantId }),
      ...(row.clientId !== null && { client_id: row.clientId, client_name: row.clientName })
    })
  })

  app.setErrorHandler(jsonErrorHandler(settings.emit, rejectedClient))
}
