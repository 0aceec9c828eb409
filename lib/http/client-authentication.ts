import type { FastifyRequest } from 'fastify'
import { MAX_CLIENT_ID_LENGTH, type Client } from '../clients/client.js'
import type { Emitted } from '../events.js'
import type { Settings } from '../options.js'
import { checkClientCredentials, parseClientCredentials } from '../protocol/client-authentication.js'
import { OAuthError } from '../protocol/errors.js'
import type { Parameters } from '../protocol/parameters.js'

/**
 * The client of a request to the token, revocation or introspection endpoint. RFC 6749 §2.3 and §3.2.1.
 *
 * @throws OAuthError `invalid_client`, 401: clients then forget their registration and register again
 */
export async function authenticateClient ({ findClient, issuer }: Settings, request: FastifyRequest, parameters: Parameters, now: number): Promise<Client> {
  const credentials = parseClientCredentials(request.headers.authorization, parameters)
  const { clientId } = credentials
  const client = await findClient(clientId)
  if (client === undefined) {
    throw new OAuthError('invalid_client', 'The client is unknown. Register again.', { reason: 'client_unknown', about: { clientId: clientId.slice(0, MAX_CLIENT_ID_LENGTH) } })
  }
  await checkClientCredentials(credentials, client, issuer, now)
  return client
}

/** For `jsonErrorHandler`: a client that failed to authenticate. */
export function rejectedClient ({ code, reason, about }: OAuthError): Emitted | undefined {
  return code === 'invalid_client' ? { type: 'client.rejected', reason, ...about } : undefined
}
