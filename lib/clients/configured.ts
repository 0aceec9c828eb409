import { isRedirectUri } from '../protocol/redirect-uri.js'
import type { ClientSource } from './client.js'

/** A client that the app's developer registers by hand. */
export interface ConfiguredClient {
  clientId: string
  /** What the consent page calls it. */
  clientName: string
  /** Exact URIs; for loopback ones the port may differ. https, loopback http or a private-use scheme. */
  redirectUris: readonly string[]
}

/** A list, or a look-up of your own. */
export type ConfiguredClients =
  | readonly ConfiguredClient[]
  | ((clientId: string) => ConfiguredClient | null | undefined | Promise<ConfiguredClient | null | undefined>)

export function configuredClients (clients: ConfiguredClients): ClientSource {
  const find = typeof clients === 'function'
    ? clients
    : (clientId: string) => clients.find((client) => client.clientId === clientId)
  return async (clientId) => {
    const client = await find(clientId)
    // A look-up may be less exact than we are, or find what every object has: one client is filed under one id.
    return client?.clientId !== clientId || !Array.isArray(client.redirectUris)
      ? undefined
      : { clientId, clientName: client.clientName, redirectUris: client.redirectUris.filter(isRedirectUri), configured: true }
  }
}
