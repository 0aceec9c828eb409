/** A client that this server knows, however it came to know it. All are public: PKCE is their proof. */
export interface Client {
  clientId: string
  clientName: string
  redirectUris: readonly string[]
  /** Whether the app's developer named this client. Otherwise its name is its own claim, and pages say so. */
  configured: boolean
}

/** One way to answer "who is this client_id?"; undefined passes the question on. */
export type ClientSource = (clientId: string) => Promise<Client | undefined>

/** Longer ids are nobody's. */
export const MAX_CLIENT_ID_LENGTH = 2048

/** Asks each source in turn. */
export function createClientFinder (sources: readonly ClientSource[]): ClientSource {
  return async function findClient (clientId) {
    if (clientId.length > MAX_CLIENT_ID_LENGTH) return undefined
    for (const source of sources) {
      const client = await source(clientId)
      if (client !== undefined) return client
    }
    return undefined
  }
}
