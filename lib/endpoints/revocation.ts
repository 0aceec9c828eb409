import type { FastifyInstance } from 'fastify'
import { findRow } from '../grants/verify.js'
import { authenticateClient, rejectedClient } from '../http/client-authentication.js'
import { allowAnyOrigin } from '../http/cors.js'
import { jsonErrorHandler } from '../http/errors.js'
import { acceptForms, formParameters } from '../http/parameters-from-request.js'
import { limited } from '../http/rate-limits.js'
import type { Settings } from '../options.js'
import { OAuthError } from '../protocol/errors.js'

/**
 * POST: a client gives a token back. RFC 7009 §2. The answer is 200 whether or not there was such a token, and only the
 * client's own is revoked; a personal access token belongs to no client.
 */
export async function revocationEndpoint (app: FastifyInstance, settings: Settings): Promise<void> {
  const { store, emit } = settings
  allowAnyOrigin(app)
  await acceptForms(app)

  app.post('', limited(settings, 'token'), async (request, reply) => {
    const now = Date.now()
    const parameters = formParameters(request)
    const { clientId } = await authenticateClient(settings, request, parameters, now)
    const token = parameters.get('token')
    if (token === undefined) {
      throw new OAuthError('invalid_request', 'The token is missing.', { reason: 'token_missing', about: { clientId } })
    }
    const row = await findRow(settings, token)
    if (row !== null && row.clientId === clientId) {
      const grants = await store.revoke({ grantId: row.id }, 'client_revoked', now)
      if (grants > 0) emit(request, { type: 'token.revoked', userId: row.userId, clientId, grantId: row.id, grants, reason: 'client_revoked' })
    }
    return reply.header('cache-control', 'no-store').send()
  })

  app.setErrorHandler(jsonErrorHandler(emit, rejectedClient))
}
