import { fetchBounded, type Fetch } from '../clients/bounded-fetch.js'
import { fetchPublic } from '../clients/public-https.js'
import { expect, expectNames, isSafeUrl } from '../expect.js'
import { isObject, isStrings } from '../protocol/json.js'
import { refusalOf, type ClientInformation, type DiscoveryState, type Sdk, type ServerMetadata, type TokenRequest } from './sdk.js'

/** A remote MCP server. */
export interface ServerOptions {
  /** https; http only on loopback. */
  url: string
  /** What users see. Default its host. */
  name?: string
  /** What to ask for. Default what the server says. */
  scopes?: readonly string[]
  /** Where this app is registered by hand: with the authorization server `issuer`, and with no other. */
  client?: { issuer: string, clientId: string, clientSecret?: string }
  /** The address came from a user: only public hosts are asked, whatever it names. Default false. */
  userSupplied?: boolean
}

/** By the names under which connections are stored: letters, digits, `-` and `_`. */
export type Servers = Readonly<Record<string, ServerOptions>>

/** What is kept of a discovery. The rest may change, and is asked for again. */
export type Discovery = Pick<DiscoveryState, 'authorizationServerUrl' | 'resourceMetadata'> & {
  issuer?: string
  /** Whether answers name their issuer. RFC 9207 §3. */
  issRequired?: boolean
}

/** Milliseconds for each request. */
export const TIMEOUT = 10_000
/** Bytes of an answer. */
const MAX_ANSWER = 256 * 1024

/** @throws FST_MCP_OAUTH_INVALID_OPTION */
export function parseServers (servers: unknown): Servers {
  expect(isObject(servers), 'servers', "an object such as { github: { url: 'https://mcp.github.example/mcp' } }, or a function (userId) => servers", servers)
  for (const [name, server] of Object.entries(servers)) {
    const at = `servers.${name}`
    expect(/^[\w-]{1,64}$/.test(name), at, 'a name of at most 64 letters, digits, - and _', name)
    expect(isObject(server), at, 'an object { url, name, scopes, client, userSupplied }', server)
    expectNames(server, `${at}.`, ['url', 'name', 'scopes', 'client', 'userSupplied'])
    const { url, scopes, client } = server
    expect(typeof url === 'string' && URL.canParse(url) && isSafeUrl(new URL(url)) && !/[@#]/.test(url), `${at}.url`, 'an https URL without user or fragment; http only on loopback', url)
    expect(scopes === undefined || isStrings(scopes), `${at}.scopes`, 'a list of scopes', scopes)
    // What was given may be a secret, so only its form is told.
    expect(client === undefined || (isObject(client) && typeof client.issuer === 'string' && typeof client.clientId === 'string'), `${at}.client`, '{ issuer, clientId, clientSecret }', typeof client)
  }
  return servers as Servers
}

/** What asks the server, and whoever it names: never longer than it should, and only where it may. */
export function fetchFor ({ url: own, userSupplied = false }: Pick<ServerOptions, 'url' | 'userSupplied'>): Fetch {
  return async (url, init) => {
    const { protocol } = new URL(url)
    // In the open, and into this computer, only where the server itself is there.
    if (!isSafeUrl(new URL(url)) || (protocol === 'http:' && !own.startsWith('http:'))) throw new Error(`${String(url)} is not https`)
    const isPost = init?.method === 'POST'
    const response = await fetchBounded(url, {
      ...init,
      // What is posted here is secret, and for this address alone. Others the SDK follows by itself, through here and no further than to the same origin.
      redirect: isPost ? 'error' : 'manual'
    }, { timeout: TIMEOUT, maxLength: MAX_ANSWER, ...(userSupplied && { fetch: fetchPublic }) })
    if (!isPost || response.ok) return response
    // Servers may repeat what they were sent, and the SDK may log that.
    const { error } = await response.json().catch(() => ({})) as { error?: unknown }
    return Response.json({ error: refusalOf({ code: error }) ?? 'server_error' }, { status: response.status })
  }
}

/** With what a token is asked for. @throws Error where the authorization server cannot be asked, or is another now */
export async function tokenRequest (sdk: Sdk, options: ServerOptions, { discovery, client }: { discovery: Discovery, client: ClientInformation }): Promise<TokenRequest> {
  const fetchFn = fetchFor(options)
  const metadata: ServerMetadata | undefined = await sdk.discoverAuthorizationServerMetadata(discovery.authorizationServerUrl, { fetchFn })
  if (metadata?.issuer !== discovery.issuer) throw new Error(`${discovery.authorizationServerUrl} cannot be asked at present.`)
  return { metadata, clientInformation: clientOf(options, client), resource: discovery.resourceMetadata?.resource, fetchFn }
}

/** As which the app is known there. A secret that was configured is read anew each time, since it may have changed. */
export function clientOf (options: ServerOptions, client: ClientInformation): ClientInformation {
  const now = configuredClient(options)
  return now !== undefined && now.client_id === client.client_id && now.issuer === client.issuer ? now : client
}

export function configuredClient ({ client }: ServerOptions): ClientInformation | undefined {
  return client && { issuer: client.issuer, client_id: client.clientId, ...(client.clientSecret !== undefined && { client_secret: client.clientSecret }) }
}
