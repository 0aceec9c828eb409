import { createLocalJWKSet, type JSONWebKeySet } from 'jose'
import { createPublicKey, type JsonWebKeyInput } from 'node:crypto'
import { expect, expectNames, namesAmong } from '../expect.js'
import { ASSERTION_ALGORITHMS } from '../protocol/client-authentication.js'
import { isObject, isStrings } from '../protocol/json.js'
import { isRedirectUri } from '../protocol/redirect-uri.js'
import { findResource, type Resource } from '../protocol/resource.js'
import type { ScopeCatalogue } from '../protocol/scope.js'
import { isIdentifier } from '../protocol/secret.js'
import { MAX_CLIENT_ID_LENGTH, type Client, type ClientSource } from './client.js'

/** A client that the app's developer registers by hand: public, unless it has secrets or keys. */
export interface ConfiguredClient {
  clientId: string
  /** What the consent page calls it. */
  clientName: string
  /** Exact URIs; for loopback ones the port may differ. https, loopback http or a private-use scheme. Default none. */
  redirectUris?: readonly string[]
  /** SHA-256 of each secret that it may use, base64url or hexadecimal: `client_secret_basic` and `client_secret_post`. */
  clientSecretHashes?: readonly string[]
  /** Its public keys: `private_key_jwt`. RFC 7523. */
  jwks?: JSONWebKeySet
  /** What it may have for itself by `client_credentials`, without a user. Default nothing. */
  scopes?: readonly string[]
  /** URLs of the resources that it serves: it may introspect their tokens. Default none. */
  introspects?: readonly string[]
}

/** A list, or a look-up of your own. */
export type ConfiguredClients =
  | readonly ConfiguredClient[]
  | ((clientId: string) => ConfiguredClient | null | undefined | Promise<ConfiguredClient | null | undefined>)

/** What clients may name. */
interface Known { scopes: ScopeCatalogue, resources: readonly Resource[] }

/**
 * Checks a list at once, and what a function answers each time.
 *
 * @throws FST_MCP_OAUTH_INVALID_OPTION
 */
export function configuredClients (clients: ConfiguredClients = [], known: Known): { find: ClientSource, clients: readonly Client[] | undefined } {
  if (typeof clients === 'function') {
    const find: ClientSource = async (clientId) => {
      const client = await clients(clientId)
      // A look-up may be less exact than we are: one client is filed under one id.
      return client?.clientId === clientId ? parseClient(client, `clients('${clientId}')`, known) : undefined
    }
    return { find, clients: undefined }
  }
  expect(Array.isArray(clients), 'clients', 'a list of { clientId, clientName, redirectUris }, or a function', isObject(clients) ? 'an object' : clients)
  const parsed = clients.map((client, index) => parseClient(client, `clients[${index}]`, known))
  const find = (clientId: string): Client | undefined => parsed.find((client) => client.clientId === clientId)
  parsed.forEach((client, index) => expect(find(client.clientId) === client, `clients[${index}].clientId`, 'an id of its own', client.clientId))
  return { find: async (clientId) => find(clientId), clients: parsed }
}

function parseClient (client: unknown, at: string, known: Known): Client {
  expect(isObject(client), at, 'an object { clientId, clientName, redirectUris }', Array.isArray(client) ? 'a list' : client)
  expectNames(client, `${at}.`, ['clientId', 'clientName', 'redirectUris', 'clientSecretHashes', 'jwks', 'scopes', 'introspects'])
  const { clientId, clientName, redirectUris = [], clientSecretHashes, jwks, scopes, introspects } = client
  expect(isIdentifier(clientId, MAX_CLIENT_ID_LENGTH), `${at}.clientId`, `a string of at most ${MAX_CLIENT_ID_LENGTH} characters`, clientId)
  expect(typeof clientName === 'string' && clientName !== '', `${at}.clientName`, 'a string', clientName)
  expectRedirectUris(redirectUris, `${at}.redirectUris`)
  expect(redirectUris.length > 0 || scopes !== undefined || introspects !== undefined, `${at}.redirectUris`, 'at least one redirect URI, for a client without scopes and introspects', 'an empty list')
  expect(clientSecretHashes === undefined || jwks === undefined, `${at}.jwks`, 'no clientSecretHashes beside it: a client has one way to authenticate', 'both')
  for (const [name, value] of Object.entries({ scopes, introspects })) {
    expect(value === undefined || clientSecretHashes !== undefined || jwks !== undefined, `${at}.${name}`, 'clientSecretHashes or jwks beside it: a public client has nothing for itself', value)
  }
  return {
    clientId,
    clientName,
    redirectUris,
    configured: true,
    ...(clientSecretHashes !== undefined && { secretHashes: parseSecretHashes(clientSecretHashes, `${at}.clientSecretHashes`) }),
    ...(jwks !== undefined && { publicKey: createLocalJWKSet(parseJwks(jwks, `${at}.jwks`)) }),
    ...(scopes !== undefined && { scopes: known.scopes.expand(namesAmong(scopes, `${at}.scopes`, known.scopes.names)) }),
    ...(introspects !== undefined && { introspects: namesAmong(introspects, `${at}.introspects`, known.resources.map(({ uri }) => uri), (url) => findResource(url, known.resources)?.uri) })
  }
}

export function expectRedirectUris (uris: unknown, at: string): asserts uris is string[] {
  expect(isStrings(uris), at, 'a list of redirect URIs', uris)
  uris.forEach((uri, index) => expect(isRedirectUri(uri) && !uri.includes('*'), `${at}[${index}]`, 'an https URL, a loopback http URL or a private-use scheme, without fragment or wildcard', uri))
}

function parseSecretHashes (hashes: unknown, at: string): Buffer[] {
  expect(Array.isArray(hashes) && hashes.length > 0, at, 'a list of one or more SHA-256 hashes', Array.isArray(hashes) ? 'an empty list' : typeof hashes)
  return hashes.map((hash: unknown, index) => {
    const bytes = typeof hash === 'string' && /^[\w-]+$/.test(hash) ? Buffer.from(hash, /^[0-9a-f]{64}$/i.test(hash) ? 'hex' : 'base64url') : undefined
    expect(bytes?.length === 32, `${at}[${index}]`, 'a SHA-256 in base64url or hexadecimal, such as `npx fastify-mcp-oauth secret` prints', whatIsWrongWithHash(hash))
    return bytes!
  })
}

/** What was given may be the secret itself, so only its form is told. */
function whatIsWrongWithHash (hash: unknown): string {
  if (hash === undefined) return 'nothing: is the environment variable set?'
  if (typeof hash !== 'string') return typeof hash
  return hash.startsWith('ocs_') ? 'a secret itself, not its hash' : `a string of ${hash.length} characters`
}

function parseJwks (jwks: unknown, at: string): JSONWebKeySet {
  expect(isObject(jwks) && Array.isArray(jwks.keys) && jwks.keys.length > 0, at, 'an object { keys: [public key, …] }', typeof jwks)
  const { keys } = jwks
  keys.forEach((key: unknown, index) => {
    expect(isObject(key) && !('d' in key) && !('k' in key) && isVerificationKey(key), `${at}.keys[${index}]`, `a public key as a JWK, for one of ${ASSERTION_ALGORITHMS.join(', ')}`, 'a private or unreadable one, or one for something else')
    const isNamed = typeof key.kid === 'string' && keys.findIndex((other: { kid?: unknown }) => other.kid === key.kid) === index
    expect(keys.length === 1 || isNamed, `${at}.keys[${index}].kid`, 'a name of its own, since there are several', key.kid)
  })
  return jwks as unknown as JSONWebKeySet
}

/** Whether assertions can be checked with it: one that no algorithm takes would refuse its client for ever. */
function isVerificationKey (jwk: Record<string, unknown>): boolean {
  const { use = 'sig', alg = ASSERTION_ALGORITHMS[0] } = jwk
  try {
    const { asymmetricKeyType: type, asymmetricKeyDetails: { modulusLength = 0, namedCurve = '' } = {} } = createPublicKey({ key: jwk as JsonWebKeyInput['key'], format: 'jwk' })
    const isTaken = type === 'ed25519' || (type === 'rsa' && modulusLength >= 2048) || ['prime256v1', 'secp384r1'].includes(namedCurve)
    return isTaken && use === 'sig' && ASSERTION_ALGORITHMS.includes(alg as string)
  } catch {
    return false
  }
}
