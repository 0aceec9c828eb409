import type { FastifyInstance, FastifyRequest } from 'fastify'
import { registeredClientId } from '../clients/registered.js'
import { allowAnyOrigin } from '../http/cors.js'
import { jsonErrorHandler, sendJson } from '../http/errors.js'
import { BODY_LIMIT } from '../http/parameters-from-request.js'
import { limited } from '../http/rate-limits.js'
import type { Settings } from '../options.js'
import { parseClientMetadata } from '../protocol/client-metadata.js'
import { parseJson } from '../protocol/json.js'
import { formatScope, parseScope } from '../protocol/scope.js'

/** POST: dynamic client registration. RFC 7591 §3. Stores nothing: the client id is the signed metadata. */
export async function registrationEndpoint (app: FastifyInstance, settings: Settings): Promise<void> {
  const { scopes, clientIds, emit } = settings
  const policy = { redirectUris: settings.registration.redirectUris, grantTypes: settings.userGrantTypes }

  allowAnyOrigin(app)
  app.removeAllContentTypeParsers()
  app.addContentTypeParser('application/json', { parseAs: 'string', bodyLimit: BODY_LIMIT }, async (_request: FastifyRequest, body: string) => parseJson(body))

  app.post('', limited(settings, 'register'), async (request, reply) => {
    const metadata = parseClientMetadata(request.body, policy)
    const clientId = await registeredClientId(clientIds, metadata)

    const { clientName, redirectUris, grantTypes } = metadata
    emit(request, { type: 'client.registered', clientId, clientName, redirectUris })
    // What the client asked for, as far as it exists here. Not a limit: see registeredClientId.
    const asked = scopes.expand(parseScope(metadata.scope))
    return sendJson(reply.code(201), {
      client_id: clientId,
      client_id_issued_at: Math.floor(Date.now() / 1000),
      client_name: clientName,
      redirect_uris: redirectUris,
      grant_types: grantTypes,
      response_types: ['code'],
      token_endpoint_auth_method: 'none',
      scope: formatScope(asked.length === 0 ? scopes.names : asked)
    })
  })

  app.setErrorHandler(jsonErrorHandler(emit, ({ reason }) => ({ type: 'registration.rejected', reason })))
}
