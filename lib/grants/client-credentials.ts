import type { FastifyRequest } from 'fastify'
import type { Client } from '../clients/client.js'
import type { Settings } from '../options.js'
import { OAuthError } from '../protocol/errors.js'
import type { Parameters } from '../protocol/parameters.js'
import { findResource } from '../protocol/resource.js'
import { formatScope, parseScope } from '../protocol/scope.js'
import { createGrantId, createToken, hashToken } from '../protocol/secret.js'
import { newRow } from '../store/schema.js'
import { tokenResponse, type TokenResponse } from './token-response.js'

/** Seconds. Such a client simply asks again, and each answer is a row: none may stay for ever. */
const DEFAULT_LIFETIME = 3600

/**
 * A token for the client itself, without a user and without a refresh token. RFC 6749 §4.4.
 *
 * @throws OAuthError `unauthorized_client`, `invalid_target`, `invalid_scope`
 * @throws StoreUnavailableError
 */
export async function issueToClient (settings: Settings, request: FastifyRequest, client: Client, parameters: Parameters, now: number): Promise<TokenResponse> {
  const { clientId, clientName } = client
  const about = { clientId }
  if (client.scopes === undefined) {
    throw new OAuthError('unauthorized_client', 'This client has nothing for itself.', { reason: 'client_not_allowed', about })
  }
  const named = parameters.get('resource')
  const resource = named === undefined ? settings.resources[0] : findResource(named, settings.resources)
  if (resource === undefined) {
    throw new OAuthError('invalid_target', 'The resource is not one of this server.', { reason: 'resource_unknown', about })
  }
  const allowed = client.scopes.filter((scope) => resource.scopes.includes(scope))
  const asked = parseScope(parameters.get('scope'))
  const scopes = settings.scopes.expand(asked.length === 0 ? allowed : asked, allowed)
  if (scopes.length === 0) {
    throw new OAuthError('invalid_scope', 'The client may have none of these scopes.', { reason: 'no_scope_left', about })
  }

  const accessToken = createToken('oat_')
  const expiresAt = now + (settings.accessTokenLifetime ?? DEFAULT_LIFETIME) * 1000
  const grantId = createGrantId()
  await settings.store.issue(newRow({
    id: grantId, tokenHash: hashToken(accessToken), clientId, clientName, scopes: formatScope(scopes), resource: resource.uri, createdAt: now, expiresAt
  }))
  settings.emit(request, { type: 'token.issued', clientId, grantId, scopes })
  return tokenResponse({ accessToken }, formatScope(scopes), expiresAt, now)
}
