import CachePolicy from 'http-cache-semantics'
import { createLocalJWKSet, createRemoteJWKSet, customFetch, type JWTVerifyGetKey } from 'jose'
import { LRUCache } from 'lru-cache'
import { Agent as HttpAgent } from 'node:http'
import type { Agent } from 'node:https'
import { expect, expectNames } from '../expect.js'
import { Limit } from '../limit.js'
import type { RegistrationPolicy } from '../protocol/client-metadata.js'
import { OAuthError, type Reason } from '../protocol/errors.js'
import { isObject, isStrings } from '../protocol/json.js'
import { parseMetadataDocument, vouchingHost, type MetadataDocument } from '../protocol/metadata-document.js'
import type { Client, ClientSource } from './client.js'
import { expectRedirectUris } from './configured.js'
import { AnswerError, getPublicJson } from './public-https.js'

/** How https client ids are accepted. */
export interface ClientIdMetadata {
  /** The only hosts whose clients may connect: `claude.ai`. Default all that are public. */
  allowHosts?: readonly string[]
  /** Exact redirect URIs that documents may list beside loopback ones and those of their own host. Default none. */
  redirectUris?: readonly string[]
  /** What connects to those hosts, where a proxy or a certificate authority of your own is on the way. Default: directly. */
  agent?: Agent
}

/** Bytes. */
const MAX_DOCUMENT = 5 * 1024
/** Bytes. */
const MAX_KEYS = 16 * 1024

/** How many documents are kept. */
const CACHE_SIZE = 1000
/** Milliseconds for which a document is believed, whatever its headers say. */
const MIN_LIFETIME = 5 * 60 * 1000
const MAX_LIFETIME = 24 * 60 * 60 * 1000
/** Milliseconds for which a failure is: enough for those who press twice. */
const FAILURE_LIFETIME = 5 * 1000

/** How often hosts are asked within a minute. */
const MAX_FOR_USER = 10
const MAX_FOR_HOST = 60
const MINUTE = 60 * 1000

/**
 * The option, checked; null where no URL may be a client's id.
 *
 * @throws FST_MCP_OAUTH_INVALID_OPTION
 */
export function parseClientIdMetadata (clientIdMetadata: unknown = true): ClientIdMetadata & { redirectUris: readonly string[] } | null {
  if (typeof clientIdMetadata === 'boolean') return clientIdMetadata ? { redirectUris: [] } : null
  expect(isObject(clientIdMetadata), 'clientIdMetadata', 'true, false or an object { allowHosts, redirectUris, agent }', clientIdMetadata)
  expectNames(clientIdMetadata, 'clientIdMetadata.', ['allowHosts', 'redirectUris', 'agent'])
  const { allowHosts, redirectUris = [], agent } = clientIdMetadata
  if (allowHosts !== undefined) {
    expect(isStrings(allowHosts) && allowHosts.length > 0, 'clientIdMetadata.allowHosts', "a list of hosts such as ['claude.ai']", allowHosts)
    allowHosts.forEach((host, index) => expect(URL.canParse(`https://${host}`) && new URL(`https://${host}`).host === host && !host.includes('*'), `clientIdMetadata.allowHosts[${index}]`, "a host such as 'claude.ai', without wildcard, with a port only if it is not 443", host))
  }
  expectRedirectUris(redirectUris, 'clientIdMetadata.redirectUris')
  // Agents for proxies are made from the one of node:http.
  expect(agent === undefined || agent instanceof HttpAgent, 'clientIdMetadata.agent', 'an Agent of node:https, or one made from it', agent)
  return { ...clientIdMetadata as ClientIdMetadata, redirectUris }
}

/**
 * Clients whose id is the URL of their metadata. A host is asked only on behalf of a user, and what it said is kept.
 *
 * @throws OAuthError `invalid_client`, `unauthorized_client`, or `temporarily_unavailable` where the host cannot be asked
 */
export function metadataClients ({ allowHosts, agent, ...policy }: ClientIdMetadata & RegistrationPolicy): ClientSource {
  const users = new Limit(MAX_FOR_USER, MINUTE)
  const hosts = new Limit(MAX_FOR_HOST, MINUTE)
  const keysElsewhere = new WeakSet<Client>()
  // Of any number that want the same document at once, one asks.
  const known = new LRUCache<string, Client | OAuthError>({
    max: CACHE_SIZE,
    // One that makes way for others meanwhile still answers those who wait for it.
    ignoreFetchAbort: true,
    fetchMethod: async (clientId, stale, { options }) => {
      // What was of use is asked for again in any case: whoever asks for what is not there must not keep its users out.
      const wasOfUse = stale !== undefined && !(stale instanceof OAuthError)
      try {
        const { body, headers } = await ask(clientId, MAX_DOCUMENT, wasOfUse ? undefined : 'document')
        const client = clientOf(clientId, parseMetadataDocument(body, clientId, policy))
        options.ttl = Math.min(Math.max(lifetime(headers), MIN_LIFETIME), MAX_LIFETIME)
        return client
      } catch (error) {
        options.ttl = FAILURE_LIFETIME
        return toRefusal(error, clientId)
      }
    }
  })

  function count (limit: Limit, key: string): void {
    if (!limit.allows(key)) throw new OAuthError('temporarily_unavailable', 'Too many apps were looked up.', { reason: 'client_lookups_limited', statusCode: 429, detail: key })
  }

  /** Each kind is counted by itself: any document may name any host as that of its keys, and must not use up what is for others. */
  async function ask (url: string, maxBytes: number, kind: 'document' | 'own keys' | 'keys' | undefined) {
    if (kind !== undefined) count(hosts, `${kind} ${new URL(url).host}`)
    return await getPublicJson(url, maxBytes, agent)
  }

  function clientOf (clientId: string, { clientName, redirectUris, jwks, jwksUri }: MetadataDocument): Client {
    const publicKey = jwks !== undefined ? createLocalJWKSet(jwks) : jwksUri !== undefined ? remoteKeys(clientId, jwksUri) : undefined
    const client = { clientId, clientName, redirectUris, configured: false, vouchedForBy: new URL(clientId).host, ...(publicKey !== undefined && { publicKey }) }
    if (jwksUri !== undefined) keysElsewhere.add(client)
    return client
  }

  /** Asked for when an assertion comes, and again when it names a key that is not among them, twice a minute at most. */
  function remoteKeys (clientId: string, jwksUri: string): JWTVerifyGetKey {
    const kind = new URL(jwksUri).host === new URL(clientId).host ? 'own keys' : 'keys'
    // jose waits after keys alone. After a failure, or JSON that is no keys, it would ask again for every assertion.
    let last: { at: number, answer: Promise<string> } | undefined
    const keys = async (): Promise<string> => {
      try {
        return JSON.stringify((await ask(jwksUri, MAX_KEYS, kind)).body)
      } catch (error) {
        throw toRefusal(error, clientId, 'client_keys_unreachable')
      }
    }
    return createRemoteJWKSet(new URL(jwksUri), {
      [customFetch]: async () => {
        if (last === undefined || Date.now() - last.at >= FAILURE_LIFETIME) last = { at: Date.now(), answer: keys() }
        return new Response(await last.answer)
      }
    })
  }

  return async function findMetadataClient (clientId, onBehalfOf) {
    const host = vouchingHost(clientId)
    if (host === null) return undefined
    if (allowHosts?.includes(host) === false) {
      throw new OAuthError('unauthorized_client', `Apps of ${host} may not connect here.`, { reason: 'client_host_not_allowed', about: { clientId } })
    }
    if (!known.has(clientId)) {
      const user = await onBehalfOf()
      if (user === undefined) return undefined
      count(users, `user ${user}`)
    }
    const found = await known.fetch(clientId)
    if (found instanceof OAuthError) throw found
    // To check what such a client proves itself with, its keys may have to be asked for.
    return found !== undefined && keysElsewhere.has(found) && await onBehalfOf() === undefined ? undefined : found
  }
}

/** What the host said that is no use is its client's fault; that it said nothing may be ours, and may pass. */
function toRefusal (error: unknown, clientId: string, unreachable: Reason = 'client_metadata_unreachable'): OAuthError {
  const { host } = new URL(clientId)
  const about = { clientId }
  if (error instanceof OAuthError && error.code === 'temporarily_unavailable') return error
  if (error instanceof OAuthError || error instanceof AnswerError) {
    const reason = error instanceof OAuthError ? error.reason : 'client_metadata_unreadable'
    return new OAuthError('invalid_client', `What ${host} says about this app cannot be used.`, { reason, about, detail: error.message })
  }
  return new OAuthError('temporarily_unavailable', `This site could not ask ${host} about the app.`, { reason: unreachable, about, cause: error })
}

/** Milliseconds for which the answer may be kept by its headers. RFC 9111 §4.2. */
function lifetime (headers: CachePolicy.Headers): number {
  const policy = new CachePolicy({ headers: {} }, { status: 200, headers }, { cacheHeuristic: 0 })
  return (policy.maxAge() - policy.age()) * 1000
}
