import type { FastifyReply, FastifyRequest } from 'fastify'
import type { Client } from '../clients/client.js'
import type { Settings } from '../options.js'
import { OAuthError } from '../protocol/errors.js'
import type { Parameters } from '../protocol/parameters.js'

/**
 * The client of a token or revocation request. All clients here are public: they name themselves by `client_id`
 * (RFC 6749 §3.2.1) and have no secret, so one that sends a secret takes this server for another.
 *
 * @throws OAuthError `invalid_client`, 401: clients then forget their registration and register again
 */
export async function authenticateClient ({ findClient }: Settings, request: FastifyRequest, reply: FastifyReply, parameters: Parameters): Promise<Client> {
  if (request.headers.authorization !== undefined || parameters.has('client_secret')) {
    // RFC 6749 §5.2: a client that used the Authorization header gets a challenge.
    if (request.headers.authorization !== undefined) reply.header('www-authenticate', 'Basic realm="oauth"')
    throw new OAuthError('invalid_client', 'Clients of this server have no secret.', { reason: 'client_secret_not_expected' })
  }
  const clientId = parameters.get('client_id')
  if (clientId === undefined) {
    throw new OAuthError('invalid_client', 'The client_id is missing.', { reason: 'client_id_missing' })
  }
  const client = await findClient(clientId)
  if (client === undefined) {
    throw new OAuthError('invalid_client', 'The client is unknown. Register again.', { reason: 'client_unknown', about: { clientId } })
  }
  return client
}
