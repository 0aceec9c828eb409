import type { FastifyInstance } from 'fastify'
import { redeemAuthorizationCode } from '../grants/authorization-code.js'
import { issueToClient } from '../grants/client-credentials.js'
import { refreshGrant } from '../grants/refresh-token.js'
import { authenticateClient, rejectedClient } from '../http/client-authentication.js'
import { allowAnyOrigin } from '../http/cors.js'
import { jsonErrorHandler, sendJson } from '../http/errors.js'
import { acceptForms, formBody, formParameters } from '../http/parameters-from-request.js'
import { limited } from '../http/rate-limits.js'
import type { Settings } from '../options.js'
import { OAuthError } from '../protocol/errors.js'

const GRANTS = new Map(Object.entries({
  authorization_code: redeemAuthorizationCode,
  refresh_token: refreshGrant,
  client_credentials: issueToClient
}))

/** POST: tokens for a code, a refresh token or the client itself. RFC 6749 §3.2. */
export async function tokenEndpoint (app: FastifyInstance, settings: Settings): Promise<void> {
  allowAnyOrigin(app)
  await acceptForms(app)

  app.post('', limited(settings, 'token'), async (request, reply) => {
    const now = Date.now()
    const parameters = formParameters(request)
    const client = await authenticateClient(settings, request, parameters, now)
    const grantType = parameters.get('grant_type')
    if (grantType === undefined) {
      throw new OAuthError('invalid_request', 'The grant_type is missing.', { reason: 'grant_type_missing' })
    }
    const exchange = settings.grantTypes.includes(grantType) ? GRANTS.get(grantType) : undefined
    if (exchange === undefined) {
      throw new OAuthError('unsupported_grant_type', 'The grant_type is not supported.', { reason: 'grant_type_unsupported' })
    }
    return sendJson(reply, await exchange(settings, request, client, parameters, now))
  })

  app.setErrorHandler(jsonErrorHandler(settings.emit, (error, request) => {
    const { reason, about } = error
    // An attempt with a code or a refresh token is an event; what fails before is in the log.
    if (about?.grantId === undefined && !/^(code|refresh)_/.test(reason)) return rejectedClient(error)
    const isRefresh = new URLSearchParams(formBody(request)).get('grant_type') === 'refresh_token'
    const refused = { reason, grantId: null, ...about }
    return isRefresh ? { type: 'token.rejected', ...refused } : { type: 'code.rejected', ...refused }
  }))
}
