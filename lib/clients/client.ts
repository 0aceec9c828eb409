import type { ClientProof } from '../protocol/client-authentication.js'
import { isIdentifier } from '../protocol/secret.js'

/** A client that this server knows, however it came to know it. */
export interface Client extends ClientProof {
  clientId: string
  clientName: string
  redirectUris: readonly string[]
  /** Whether the app's developer named this client. Otherwise its name is its own claim, and pages say so. */
  configured: boolean
  /** The host that publishes its metadata, where that is how it is known: the one thing about it that is no claim. */
  vouchedForBy?: string
  /** What it may have for itself, without a user. RFC 6749 §4.4. */
  scopes?: readonly string[]
  /** Canonical URLs of the resources whose tokens it may look into. RFC 7662. */
  introspects?: readonly string[]
}

/** For whom a client is looked up, which is what look-ups are counted by; undefined where nobody is known. Asked only where it matters. */
export type OnBehalfOf = () => Promise<string | undefined>

/** One way to answer "who is this client_id?"; undefined passes the question on. */
export type ClientSource = (clientId: string, onBehalfOf: OnBehalfOf) => Promise<Client | undefined>

/** Longer ids are nobody's. */
export const MAX_CLIENT_ID_LENGTH = 2048

/** Asks each source in turn. */
export function createClientFinder (sources: readonly ClientSource[]): ClientSource {
  return async function findClient (clientId, onBehalfOf) {
    if (!isIdentifier(clientId, MAX_CLIENT_ID_LENGTH)) return undefined
    for (const source of sources) {
      const client = await source(clientId, onBehalfOf)
      if (client !== undefined) return client
    }
    return undefined
  }
}
