import type { FastifyRequest } from 'fastify'
import { MAX_CLIENT_ID_LENGTH, type Client } from '../clients/client.js'
import type { Emitted } from '../events.js'
import { findRow } from '../grants/verify.js'
import type { Settings } from '../options.js'
import { checkClientCredentials, parseClientCredentials } from '../protocol/client-authentication.js'
import { OAuthError } from '../protocol/errors.js'
import type { Parameters } from '../protocol/parameters.js'
import { authorizationHeader } from './authorization.js'

/**
 * The client of a request to the token, revocation or introspection endpoint. RFC 6749 §2.3 and §3.2.1.
 *
 * @throws OAuthError `invalid_client`, 401: clients then forget their registration and register again;
 *   `unauthorized_client` or `temporarily_unavailable` for a client known by a URL that may not or cannot be looked up
 */
export async function authenticateClient (settings: Settings, request: FastifyRequest, parameters: Parameters, now: number): Promise<Client> {
  const credentials = parseClientCredentials(authorizationHeader(request), parameters)
  const { clientId } = credentials
  const client = await settings.findClient(clientId, async () => await userBehind(settings, clientId, parameters, now))
  if (client === undefined) {
    throw new OAuthError('invalid_client', 'The client is unknown. Register again.', { reason: 'client_unknown', about: { clientId: clientId.slice(0, MAX_CLIENT_ID_LENGTH) } })
  }
  // ChatGPT addresses the token endpoint, as RFC 7523 has it. A client of the app's own, which may have more than what a
  // user's code gives it, is held to the issuer: some other server may name our endpoint as its own.
  await checkClientCredentials(credentials, client, client.configured ? [settings.issuer] : [settings.issuer, settings.url(settings.paths.token)], now)
  return client
}

/**
 * The user who gave this client what it presents, and the client: on behalf of nobody else is a client's host asked. The
 * client beside the user, so that it cannot use up what is for the user, not even once it is disconnected.
 */
async function userBehind (settings: Settings, clientId: string, parameters: Parameters, now: number): Promise<string | undefined> {
  const sealed = parameters.get('code')
  const token = parameters.get('refresh_token') ?? parameters.get('token')
  const given = sealed !== undefined ? await settings.codes.open(sealed, now) : token !== undefined ? await findRow(settings, token) : null
  if (given === null || typeof given === 'string' || given.clientId !== clientId) return undefined
  return given.userId === null ? undefined : `${given.userId} ${clientId}`
}

/** For `jsonErrorHandler`: a client that failed to authenticate. */
export function rejectedClient ({ code, reason, about }: OAuthError): Emitted | undefined {
  return code === 'invalid_client' ? { type: 'client.rejected', reason, ...about } : undefined
}
