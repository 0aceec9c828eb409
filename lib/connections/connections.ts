import { expectNames } from '../expect.js'
import { isIdentifier } from '../protocol/secret.js'
import { Provider } from './provider.js'
import { tokenRequest } from './servers.js'
import { UserNeededError, Vault, endOf, isOver, type ConnectionsOptions, type Credentials } from './vault.js'

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
  /** When the access token ends. Null where the server did not say. */
  expiresAt: number | null
  /** Whether it is refreshed before. */
  refreshes: boolean
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
  /** Forgets the connection, or all of the user's, and tells the servers so where it can. Answers how many there were. */
  disconnect: (userId: string, server?: string) => Promise<number>
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
    provider (userId, server) {
      vault.expectServer(server)
      return new Provider(vault, userId, server)
    },
    async isConnected (userId, server) {
      try {
        await vault.use(userId, server)
        return true
      } catch (error) {
        if (error instanceof UserNeededError) return false
        throw error
      }
    },
    list: async (userId) => await Promise.all(Object.entries(await vault.servers(userId)).map(async ([server, { url, name = new URL(url).host }]) => {
      const found = await vault.read(userId, server)
      if (found?.url !== url) return { server, name, url, state: 'not_connected', scopes: [], connectedAt: null, refreshedAt: null, expiresAt: null, refreshes: false }
      const { scopes, connectedAt, refreshedAt, tokens } = found
      return { server, name, url, state: isOver(found) ? 'reconnect_required' : 'connected', scopes, connectedAt, refreshedAt, expiresAt: endOf(found), refreshes: tokens.refresh_token !== undefined }
    })),
    async disconnect (userId, server) {
      await vault.open()
      const servers = server === undefined ? await vault.store.servers(userId) : [server].filter((name) => isIdentifier(name))
      const ended = await Promise.all(servers.map(async (server) => await end(vault, userId, server)))
      return ended.filter(Boolean).length
    },
    close: async () => { await vault.store.close() }
  }
}

async function end (vault: Vault, userId: string, server: string): Promise<boolean> {
  const until = await vault.lock(userId, server)
  let credentials: Credentials | undefined
  try {
    credentials = await vault.read(userId, server)
    await vault.store.delete(userId, server)
  } catch (error) {
    await vault.unlock(userId, server, until)
    throw error
  }
  if (credentials === undefined) return false
  vault.emit('connection.ended', credentials)
  // The connection is over here in any case; there, its tokens end by themselves.
  await revoke(vault, credentials).catch(() => {})
  return true
}

/** RFC 7009. The refresh token where there is one: the access tokens of its grant end with it. */
async function revoke (vault: Vault, credentials: Credentials): Promise<void> {
  const { userId, server, url, tokens } = credentials
  const { sdk } = await vault.open()
  // A server that is not in the list any more is asked with the greatest care.
  const known = await vault.server(userId, server)
  const options = known?.url === url ? known : { url, userSupplied: true }
  const { metadata, clientInformation, fetchFn } = await tokenRequest(sdk, options, credentials)
  if (metadata?.revocation_endpoint === undefined) return
  const { client_id: id, client_secret: secret = '' } = clientInformation
  const method = sdk.selectClientAuthMethod(clientInformation, metadata.revocation_endpoint_auth_methods_supported ?? metadata.token_endpoint_auth_methods_supported ?? [])
  const isBasic = method === 'client_secret_basic'
  const body = { token: tokens.refresh_token ?? tokens.access_token, ...(!isBasic && { client_id: id }), ...(method === 'client_secret_post' && { client_secret: secret }) }
  const headers = isBasic ? { authorization: `Basic ${Buffer.from(`${encodeURIComponent(id)}:${encodeURIComponent(secret)}`).toString('base64')}` } : {}
  await fetchFn(metadata.revocation_endpoint, { method: 'POST', headers, body: new URLSearchParams(body) })
}
