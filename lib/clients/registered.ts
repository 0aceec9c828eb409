import { canonicalRedirectUris, mayRegister, type ClientMetadata } from '../protocol/client-metadata.js'
import { OAuthError } from '../protocol/errors.js'
import type { Signer } from '../protocol/sealed.js'
import { MAX_CLIENT_ID_LENGTH, type ClientSource } from './client.js'

/** What a dynamic client id says: the metadata itself, so that registration stores nothing. RFC 7591 appendix A.5.2. */
export interface ClientIdPayload {
  client_name: string
  /** Loopback URIs without their port. */
  redirect_uris: readonly string[]
}

/**
 * The client id of a registration: signed and deterministic, so the same app gets the same one each time.
 * Scopes are left out on purpose: clients register with the scopes of the first challenge and later, when told that
 * they need more, ask for those under the same id. The consent page is where scopes are decided.
 *
 * @throws OAuthError `invalid_client_metadata` for metadata that does not fit into an id
 */
export async function registeredClientId (signer: Signer<ClientIdPayload>, metadata: ClientMetadata): Promise<string> {
  const clientId = await signer.sign({
    client_name: metadata.clientName,
    redirect_uris: canonicalRedirectUris(metadata.redirectUris)
  })
  if (clientId.length > MAX_CLIENT_ID_LENGTH) {
    throw new OAuthError('invalid_client_metadata', 'The client metadata is too long.', { reason: 'client_metadata_invalid' })
  }
  return clientId
}

/**
 * Clients whose id is their signed metadata. An id is good for ever, and so are its loopback URIs; the others only while
 * the app lists them, or a domain that somebody else got hold of would go on getting codes.
 *
 * @param listed the exact redirect URIs that may register beside loopback ones
 */
export function registeredClients (signer: Signer<ClientIdPayload>, listed: readonly string[]): ClientSource {
  return async (clientId) => {
    const payload = await signer.verify(clientId)
    return payload && {
      clientId,
      clientName: payload.client_name,
      redirectUris: payload.redirect_uris.filter((redirectUri) => mayRegister(redirectUri, listed)),
      configured: false
    }
  }
}
