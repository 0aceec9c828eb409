import { expectNames } from '../expect.js'
import { Provider } from './provider.js'
import { Vault, type ConnectionsOptions, type Credentials } from './vault.js'

/** A connection, or that there is none, as its user sees it. Times are epoch milliseconds. */
export interface Connection {
  server: string
  name: string
  url: string
  /** `reconnect_required`: it was there, and the server does not accept it any more. */
  state: 'connected' | 'not_connected' | 'reconnect_required'
  scopes: readonly string[]
  connectedAt: number | null
  refreshedAt: number | null
  /** When the access token ends; it is refreshed before. Null where the server did not say. */
  expiresAt: number | null
}

export interface Connections {
  /**
   * What an MCP client takes as `authProvider`. Where the user has to do something, calls reject with NotConnectedError or
   * ReconnectRequiredError; whatever else they reject with may pass.
   */
  provider: (userId: string, server: string) => Provider
  isConnected: (userId: string, server: string) => Promise<boolean>
  /** Every server that the user may connect, connected or not. */
  list: (userId: string) => Promise<Connection[]>
  /** Forgets the connection, and tells the server so where it can. False where there was none. */
  disconnect: (userId: string, server: string) => Promise<boolean>
  /** Closes the store. */
  close: () => Promise<void>
}

/**
 * For anything that runs without Fastify: a worker, a job, a script.
 *
 * @throws FST_MCP_OAUTH_INVALID_OPTION
 */
export function createConnections (options: ConnectionsOptions): Connections {
  expectNames(options, '', ['keys', 'store', 'servers', 'onEvent'])
  return connectionsIn(new Vault(options))
}

export function connectionsIn (vault: Vault): Connections {
  return {
    provider: (userId, server) => new Provider(vault, userId, server),

    async isConnected (userId, server) {
      return (await vault.read(userId, server))?.lost === false
    },

    async list (userId) {
      return await Promise.all(Object.entries(await vault.servers(userId)).map(async ([server, { url, name = new URL(url).host }]) => {
        const credentials = await vault.read(userId, server)
        const state = credentials === undefined ? 'not_connected' : credentials.lost ? 'reconnect_required' : 'connected'
        const { scopes = [], connectedAt = null, refreshedAt = null, tokensExpireAt: expiresAt = null } = credentials ?? {}
        return { server, name, url, state, scopes, connectedAt, refreshedAt, expiresAt }
      }))
    },

    async disconnect (userId, server) {
      const credentials = await vault.remove(userId, server)
      if (credentials === undefined) return false
      vault.emit('connection.ended', credentials)
      // The connection is over here in any case; there, its tokens end by themselves.
      await revoke(vault, credentials).catch(() => {})
      return true
    },

    close: async () => await vault.close()
  }
}

/** RFC 7009. The refresh token where there is one: the access tokens of its grant end with it. */
async function revoke (vault: Vault, credentials: Credentials): Promise<void> {
  const { discovery, client, tokens } = credentials
  const { sdk } = await vault.open()
  const fetchFn = await vault.fetchFor(credentials)
  const metadata = await sdk.discoverAuthorizationServerMetadata(discovery.authorizationServerUrl, { fetchFn })
  if (metadata?.revocation_endpoint === undefined) return
  const body = new URLSearchParams({ token: tokens.refresh_token ?? tokens.access_token, client_id: client.client_id })
  if (client.client_secret !== undefined) body.set('client_secret', client.client_secret)
  await fetchFn(metadata.revocation_endpoint, { method: 'POST', body })
}
