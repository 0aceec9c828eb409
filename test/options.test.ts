import Fastify, { type FastifyInstance } from 'fastify'
import { generateKeyPairSync, hash, randomBytes, type KeyObject } from 'node:crypto'
import http from 'node:http'
import https from 'node:https'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import mcpOAuth, { type McpOAuthOptions, type ProtectOptions } from '../dist/index.js'
import { sqliteStore } from '../dist/store/sqlite.js'
import { folder, KEY, testOptions } from './app.js'

/** Never opened where the options are refused. */
const OPTIONS = testOptions()

/** Options as a caller without types may give them. */
type Loose = Record<string, unknown>

/** An app whose options may be wrong, closed with the test. */
function appWith (t: Test, changes: Loose = {}): FastifyInstance {
  const app = Fastify()
  t.teardown(() => app.close())
  app.register(mcpOAuth, { ...OPTIONS, ...changes } as McpOAuthOptions)
  return app
}

/** What boot fails with. */
async function bootError (app: FastifyInstance): Promise<{ code?: string, message: string }> {
  try {
    await app.ready()
    return { message: 'it boots' }
  } catch (error) {
    return error as Error
  }
}

async function refusesOption (t: Test, changes: Loose, name: string, ...said: string[]): Promise<void> {
  const { code, message } = await bootError(appWith(t, changes))
  if (!t.equal(code, 'FST_MCP_OAUTH_INVALID_OPTION', `${name}: ${message}`)) return
  for (const text of [`Option ${name}: expected `, ...said]) t.ok(message.includes(text), `${message} – has: ${text}`)
}

/** What is given, the option that the message names, and what else the message says. */
type Refused = [changes: Loose, name: string, ...said: string[]]

/** Those of npm are made so. */
class ProxyAgent extends http.Agent {}

const circular: { self?: unknown } = {}
circular.self = circular

const resourcesWith = (changes: Loose): Loose => ({ resources: [{ path: '/mcp', ...changes }] })
const clientsWith = (changes: Loose): Loose => ({ clients: [{ clientId: 'chat', clientName: 'Chat', redirectUris: ['https://chat.example/cb'], ...changes }] })
const HASH = hash('sha256', 'a secret', 'base64url')
const confidentialWith = (changes: Loose): Loose => clientsWith({ clientSecretHashes: [HASH], ...changes })
const jwk = (key: KeyObject, changes: object = {}) => ({ ...key.export({ format: 'jwk' }), ...changes })
const ec = generateKeyPairSync('ec', { namedCurve: 'P-256' })
const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 })
const keysOf = (...keys: unknown[]): Loose => clientsWith({ jwks: { keys } })
const registrationOf = (uri: unknown): Loose => ({ registration: { redirectUris: [uri] } })
const hostsOf = (...allowHosts: unknown[]): Loose => ({ clientIdMetadata: { allowHosts } })
const hostedRedirectOf = (uri: unknown): Loose => ({ clientIdMetadata: { redirectUris: [uri] } })

const REFUSED: Record<string, Refused[]> = {
  issuer: [
    [{ issuer: undefined }, 'issuer', 'https://notes.example.com', 'got nothing'],
    [{ issuer: '' }, 'issuer', 'got an empty string'],
    [{ issuer: 5 }, 'issuer', 'got 5'],
    [{ issuer: 'notes.example.com' }, 'issuer', 'got notes.example.com'],
    [{ issuer: 'http://notes.example.com' }, 'issuer', 'http only for localhost', 'got http://notes.example.com'],
    [{ issuer: 'http://0.0.0.0:3000' }, 'issuer'],
    [{ issuer: 'http://localhost.evil.example' }, 'issuer'],
    [{ issuer: 'ftp://notes.example.com' }, 'issuer'],
    [{ issuer: 'javascript:alert(1)' }, 'issuer'],
    [{ issuer: 'https://notes.example.com/' }, 'issuer', 'without a trailing slash'],
    [{ issuer: 'https://notes.example.com/notes/' }, 'issuer'],
    [{ issuer: 'https://NOTES.example.com' }, 'issuer'],
    [{ issuer: 'HTTPS://notes.example.com' }, 'issuer'],
    [{ issuer: 'https://notes.example.com:443' }, 'issuer'],
    [{ issuer: 'https://notes.example.com?a=b' }, 'issuer'],
    [{ issuer: 'https://notes.example.com#a' }, 'issuer'],
    [{ issuer: 'https://user@notes.example.com' }, 'issuer'],
    [{ issuer: 'https://notes.example.com/a/../b' }, 'issuer'],
    [{ issuer: ' https://notes.example.com' }, 'issuer']
  ],
  // The router reads patterns and decodes; a browser reads two slashes as another host.
  'issuer, where its path would mean something else in a route or a link': [
    [{ issuer: 'https://notes.example.com/:tenant' }, 'issuer'],
    [{ issuer: 'https://notes.example.com/a*b' }, 'issuer'],
    [{ issuer: 'https://notes.example.com/*' }, 'issuer'],
    [{ issuer: 'https://notes.example.com/a%20b' }, 'issuer'],
    [{ issuer: 'https://notes.example.com//a' }, 'issuer']
  ],
  keys: [
    [{ keys: undefined }, 'keys', 'at least 32 bytes', 'got undefined'],
    [{ keys: [] }, 'keys', 'got an empty list'],
    [{ keys: KEY }, 'keys', 'a list', 'got string'],
    [{ keys: { 0: KEY } }, 'keys', 'got object'],
    [{ keys: [undefined] }, 'keys[0]', 'got nothing: is the environment variable set?'],
    [{ keys: [''] }, 'keys[0]', 'a string with characters'],
    [{ keys: ['k'.repeat(42)] }, 'keys[0]', 'base64url or hexadecimal', 'only 42 characters'],
    [{ keys: ['0'.repeat(62)] }, 'keys[0]'],
    [{ keys: [`${KEY}\n`] }, 'keys[0]', 'white space'],
    [{ keys: ['+/'.repeat(30)] }, 'keys[0]', 'characters that neither of them has'],
    [{ keys: [KEY, 'short'] }, 'keys[1]', 'only 5 characters'],
    [{ keys: [randomBytes(32)] }, 'keys[0]', 'got object']
  ],
  scopes: [
    [{ scopes: undefined }, 'scopes', "{ read: 'Read your notes' }", 'got nothing'],
    [{ scopes: {} }, 'scopes', 'got {}'],
    [{ scopes: ['read'] }, 'scopes'],
    [{ scopes: 'read' }, 'scopes', 'got read'],
    [{ scopes: { 'a b': 'x' } }, 'scopes.a b', 'printable ASCII'],
    [{ scopes: { 'a"b': 'x' } }, 'scopes.a"b'],
    [{ scopes: { 'a\\b': 'x' } }, 'scopes.a\\b'],
    [{ scopes: { é: 'x' } }, 'scopes.é'],
    [{ scopes: { '': 'x' } }, 'scopes.'],
    [{ scopes: { read: '' } }, 'scopes.read', 'a description'],
    [{ scopes: { read: null } }, 'scopes.read', 'got null'],
    [{ scopes: { read: true } }, 'scopes.read', 'got true'],
    [{ scopes: { read: {} } }, 'scopes.read', '{ description, implies }'],
    [{ scopes: { read: { description: 5 } } }, 'scopes.read'],
    [{ scopes: { read: { description: 'x', implies: 'write' } } }, 'scopes.read.implies', 'a list of scope names', 'got write'],
    [{ scopes: { read: { description: 'x', implies: [5] } } }, 'scopes.read.implies'],
    [{ scopes: { read: 'x', write: { description: 'x', implies: ['red'] } } }, 'scopes.write.implies', 'among read, write', 'got red'],
    [{ scopes: { read: { description: 'x', implies: ['toString'] } } }, 'scopes.read.implies', 'among read', 'got toString']
  ],
  currentUser: [
    [{ currentUser: undefined }, 'currentUser', 'a function (request) => user or null', 'got nothing'],
    [{ currentUser: null }, 'currentUser', 'got null'],
    [{ currentUser: { id: 'alice' } }, 'currentUser', 'alice']
  ],
  loginUrl: [
    [{ loginUrl: undefined }, 'loginUrl', "'/login'", 'got nothing'],
    [{ loginUrl: '' }, 'loginUrl', 'got an empty string'],
    [{ loginUrl: 'login' }, 'loginUrl', 'got login'],
    [{ loginUrl: '//evil.example/' }, 'loginUrl'],
    [{ loginUrl: '/\\evil.example/' }, 'loginUrl'],
    [{ loginUrl: 'javascript:alert(1)' }, 'loginUrl'],
    [{ loginUrl: ' /login' }, 'loginUrl'],
    [{ loginUrl: ['/login'] }, 'loginUrl']
  ],
  store: [
    [{ store: null }, 'store', 'sqliteStore({ path })'],
    [{ store: 'tokens.db' }, 'store'],
    [{ store: {} }, 'store', 'open, issue'],
    [{ store: sqliteStore }, 'store'],
    [{ store: { ...Object.fromEntries(['open', 'issue', 'findByTokenHash', 'find', 'list', 'rotate', 'revoke', 'touch', 'stats', 'count', 'close'].map((name) => [name, () => {}])) } }, 'store', 'without purge']
  ],
  resources: [
    [{ resources: [] }, 'resources', "[{ path: '/mcp' }]", 'got []'],
    [{ resources: null }, 'resources', 'got null'],
    [{ resources: { path: '/mcp' } }, 'resources'],
    [{ resources: ['/mcp'] }, 'resources[0]', "{ path: '/mcp' }", 'got /mcp'],
    [{ resources: [null] }, 'resources[0]'],
    [resourcesWith({ path: undefined }), 'resources[0].path', 'got nothing'],
    [resourcesWith({ path: 'mcp' }), 'resources[0].path', 'got mcp'],
    [resourcesWith({ path: '/mcp/' }), 'resources[0].path', 'without a trailing slash'],
    [resourcesWith({ path: '//evil.example/mcp' }), 'resources[0].path'],
    [resourcesWith({ path: 'https://notes.example.com/mcp' }), 'resources[0].path'],
    [resourcesWith({ path: '/mcp?a=b' }), 'resources[0].path'],
    [resourcesWith({ path: '/mcp#a' }), 'resources[0].path'],
    [resourcesWith({ path: '/:tenant/mcp' }), 'resources[0].path', 'parameters'],
    [resourcesWith({ path: '/mcp/*' }), 'resources[0].path'],
    [resourcesWith({ path: '/a b' }), 'resources[0].path'],
    [resourcesWith({ name: '' }), 'resources[0].name', 'got an empty string'],
    [resourcesWith({ name: 5 }), 'resources[0].name'],
    [resourcesWith({ documentation: '/docs' }), 'resources[0].documentation', 'an http(s) URL', 'got /docs'],
    [resourcesWith({ documentation: 'javascript:alert(1)' }), 'resources[0].documentation'],
    [resourcesWith({ scopes: 'read' }), 'resources[0].scopes', 'a list of names among read, write'],
    [resourcesWith({ scopes: ['read', 'red'] }), 'resources[0].scopes', 'among read, write', 'got red'],
    [resourcesWith({ scopes: ['toString'] }), 'resources[0].scopes'],
    [{ resources: [{ path: '/mcp' }, { path: '/notes' }, { path: '/mcp' }] }, 'resources[2].path', 'a path of its own', 'got /mcp']
  ],
  'resources, where no client could name the path (RFC 3986 §6.2.2.3)': [
    [resourcesWith({ path: '/a/../mcp' }), 'resources[0].path'],
    [resourcesWith({ path: '/./mcp' }), 'resources[0].path'],
    [resourcesWith({ path: '/mcp/..' }), 'resources[0].path']
  ],
  'resources, where no scope could ever be granted': [
    [resourcesWith({ scopes: [] }), 'resources[0].scopes']
  ],
  codeLifetime: [0, -1, 601, 1.5, '60', null, true].map((codeLifetime): Refused =>
    [{ codeLifetime }, 'codeLifetime', 'whole seconds from 1 to 600', `got ${codeLifetime}`]),
  registration: [
    [{ registration: false }, 'registration', '{ enabled, redirectUris }', 'got false'],
    [{ registration: [] }, 'registration'],
    [{ registration: null }, 'registration'],
    [{ registration: { enabled: 'no' } }, 'registration.enabled', 'true or false', 'got no'],
    [{ registration: { redirectUris: 'https://vscode.dev/redirect' } }, 'registration.redirectUris', 'a list of redirect URIs'],
    [{ registration: { redirectUris: ['https://vscode.dev/redirect', 'vscode.dev'] } }, 'registration.redirectUris[1]', 'got vscode.dev'],
    [registrationOf(5), 'registration.redirectUris'],
    [registrationOf('http://evil.example/'), 'registration.redirectUris[0]', 'an https URL, a loopback http URL or a private-use scheme'],
    [registrationOf('https://x.example/#a'), 'registration.redirectUris[0]', 'without fragment'],
    [registrationOf('JavaScript:alert(1)'), 'registration.redirectUris[0]'],
    [registrationOf('data:text/html,x'), 'registration.redirectUris[0]']
  ],
  clientIdMetadata: [
    [{ clientIdMetadata: 'claude.ai' }, 'clientIdMetadata', 'true, false or an object { allowHosts, redirectUris, agent }', 'got claude.ai'],
    [{ clientIdMetadata: null }, 'clientIdMetadata', 'got null'],
    [{ clientIdMetadata: ['claude.ai'] }, 'clientIdMetadata'],
    [{ clientIdMetadata: 1 }, 'clientIdMetadata', 'got 1'],
    [{ clientIdMetadata: { allowHosts: 'claude.ai' } }, 'clientIdMetadata.allowHosts', "a list of hosts such as ['claude.ai']", 'got claude.ai'],
    [{ clientIdMetadata: { allowHosts: null } }, 'clientIdMetadata.allowHosts', 'got null'],
    [hostsOf(), 'clientIdMetadata.allowHosts', 'got []'],
    [hostsOf('claude.ai', 5), 'clientIdMetadata.allowHosts'],
    [hostsOf('https://claude.ai'), 'clientIdMetadata.allowHosts[0]', "a host such as 'claude.ai'", 'got https://claude.ai'],
    [hostsOf('Claude.ai'), 'clientIdMetadata.allowHosts[0]', 'got Claude.ai'],
    [hostsOf('claude.ai:443'), 'clientIdMetadata.allowHosts[0]', 'a port only if it is not 443', 'got claude.ai:443'],
    [hostsOf('claude.ai', 'claude.ai/x'), 'clientIdMetadata.allowHosts[1]', 'got claude.ai/x'],
    ...['', ' claude.ai', 'claude.ai ', 'user@claude.ai', 'claude.ai?x', 'claude.ai#x', 'claude.ai\\x', 'claude ai', '*.claude.ai', 'bücher.example', 'claude.ai:99999', '127.1'].map((host): Refused => [hostsOf(host), 'clientIdMetadata.allowHosts[0]']),
    [{ clientIdMetadata: { redirectUris: 'https://chat.example/cb' } }, 'clientIdMetadata.redirectUris', 'a list of redirect URIs'],
    [{ clientIdMetadata: { redirectUris: null } }, 'clientIdMetadata.redirectUris'],
    [hostedRedirectOf(5), 'clientIdMetadata.redirectUris'],
    [hostedRedirectOf('https://chat.example/*'), 'clientIdMetadata.redirectUris[0]', 'without fragment or wildcard', 'got https://chat.example/*'],
    [hostedRedirectOf('https://chat.example/cb#a'), 'clientIdMetadata.redirectUris[0]'],
    [hostedRedirectOf('http://chat.example/cb'), 'clientIdMetadata.redirectUris[0]', 'a loopback http URL'],
    [hostedRedirectOf('javascript:alert(1)'), 'clientIdMetadata.redirectUris[0]', 'got javascript:alert(1)'],
    [{ clientIdMetadata: { agent: {} } }, 'clientIdMetadata.agent', 'an Agent of node:https', 'got {}'],
    [{ clientIdMetadata: { agent: null } }, 'clientIdMetadata.agent', 'got null'],
    [{ clientIdMetadata: { agent: https.Agent } }, 'clientIdMetadata.agent', 'got a function']
  ],
  clients: [
    [{ clients: 'chat' }, 'clients', '{ clientId, clientName, redirectUris }', 'got chat'],
    [{ clients: {} }, 'clients', 'or a function'],
    [{ clients: [null] }, 'clients[0]'],
    [clientsWith({ clientId: '' }), 'clients[0].clientId', 'got an empty string'],
    [clientsWith({ clientId: undefined }), 'clients[0].clientId', 'got nothing'],
    [clientsWith({ clientName: 5 }), 'clients[0].clientName', 'got 5'],
    [clientsWith({ redirectUris: undefined }), 'clients[0].redirectUris'],
    [clientsWith({ redirectUris: [] }), 'clients[0].redirectUris', 'at least one redirect URI'],
    [clientsWith({ redirectUris: ['javascript:alert(1)'] }), 'clients[0].redirectUris[0]', 'got javascript:alert(1)'],
    [clientsWith({ redirectUris: ['http://chat.example/cb'] }), 'clients[0].redirectUris[0]']
  ],
  'clients, where one could never be found': [
    [clientsWith({ clientId: 'x'.repeat(2049) }), 'clients[0].clientId'],
    [clientsWith({ clientId: 'x\0' }), 'clients[0].clientId'],
    [{ clients: [...(clientsWith({}).clients as object[]), ...(clientsWith({ clientName: 'Other' }).clients as object[])] }, 'clients[1].clientId', 'got chat']
  ],
  'clients, where a secret is wrong': [
    [clientsWith({ clientSecretHashes: ['a secret'] }), 'clients[0].clientSecretHashes[0]', 'a SHA-256 in base64url or hexadecimal', 'npx fastify-mcp-oauth secret', 'got a string of 8 characters'],
    [clientsWith({ clientSecretHashes: [HASH, HASH.slice(1)] }), 'clients[0].clientSecretHashes[1]', 'got a string of 42 characters'],
    [clientsWith({ clientSecretHashes: [`${HASH}=`] }), 'clients[0].clientSecretHashes[0]'],
    [clientsWith({ clientSecretHashes: [hash('sha512', 'a secret', 'hex')] }), 'clients[0].clientSecretHashes[0]'],
    [clientsWith({ clientSecretHashes: [''] }), 'clients[0].clientSecretHashes[0]'],
    [clientsWith({ clientSecretHashes: [] }), 'clients[0].clientSecretHashes', 'one or more', 'got an empty list'],
    [clientsWith({ clientSecretHashes: [undefined] }), 'clients[0].clientSecretHashes[0]', 'nothing: is the environment variable set?'],
    [clientsWith({ clientSecretHashes: ['ocs_' + 'x'.repeat(43)] }), 'clients[0].clientSecretHashes[0]', 'a secret itself, not its hash'],
    [clientsWith({ clientSecretHashes: HASH }), 'clients[0].clientSecretHashes', 'a list', 'got string'],
    [clientsWith({ clientSecretHashes: [hash('sha256', 'a secret', 'buffer')] }), 'clients[0].clientSecretHashes[0]', 'got object'],
    [clientsWith({ clientSecretHashes: null }), 'clients[0].clientSecretHashes'],
    [clientsWith({ clientSecret: 'a secret' }), 'clients[0].clientSecret', 'clientSecretHashes']
  ],
  'clients, where a key is wrong': [
    [keysOf(jwk(ec.privateKey)), 'clients[0].jwks.keys[0]', 'a public key', 'got a private'],
    [keysOf(jwk(rsa.privateKey)), 'clients[0].jwks.keys[0]'],
    [keysOf({ kty: 'oct', k: randomBytes(32).toString('base64url') }), 'clients[0].jwks.keys[0]'],
    [keysOf({ ...jwk(ec.publicKey), k: 'x' }), 'clients[0].jwks.keys[0]'],
    [keysOf({}), 'clients[0].jwks.keys[0]'],
    [keysOf('key'), 'clients[0].jwks.keys[0]'],
    [keysOf(null), 'clients[0].jwks.keys[0]'],
    [keysOf(jwk(ec.publicKey, { x: 'x' })), 'clients[0].jwks.keys[0]'],
    [keysOf(jwk(ec.publicKey), jwk(rsa.publicKey)), 'clients[0].jwks.keys[0].kid', 'since there are several', 'got nothing'],
    [keysOf(jwk(ec.publicKey, { kid: 'a' }), jwk(rsa.publicKey)), 'clients[0].jwks.keys[1].kid'],
    [keysOf(jwk(ec.publicKey, { kid: 'a' }), jwk(rsa.publicKey, { kid: 5 })), 'clients[0].jwks.keys[1].kid', 'got 5'],
    [keysOf(), 'clients[0].jwks', '{ keys: [public key, …] }'],
    [clientsWith({ jwks: [jwk(ec.publicKey)] }), 'clients[0].jwks'],
    [clientsWith({ jwks: jwk(ec.publicKey) }), 'clients[0].jwks'],
    [clientsWith({ jwks: 'https://chat.example/jwks' }), 'clients[0].jwks', 'got string'],
    [confidentialWith({ jwks: { keys: [jwk(ec.publicKey)] } }), 'clients[0].jwks', 'one way to authenticate', 'got both']
  ],
  'clients, where no assertion could ever be checked with a key': [
    [keysOf(jwk(generateKeyPairSync('rsa', { modulusLength: 1024 }).publicKey)), 'clients[0].jwks.keys[0]', 'ES256, ES384, PS256, RS256, EdDSA'],
    [keysOf(jwk(generateKeyPairSync('x25519').publicKey)), 'clients[0].jwks.keys[0]'],
    [keysOf(jwk(generateKeyPairSync('ec', { namedCurve: 'secp256k1' }).publicKey)), 'clients[0].jwks.keys[0]'],
    [keysOf(jwk(generateKeyPairSync('ec', { namedCurve: 'P-521' }).publicKey)), 'clients[0].jwks.keys[0]'],
    [keysOf(jwk(ec.publicKey, { use: 'enc' })), 'clients[0].jwks.keys[0]'],
    [keysOf(jwk(rsa.publicKey, { alg: 'RSA-OAEP' })), 'clients[0].jwks.keys[0]'],
    [keysOf(jwk(rsa.publicKey, { alg: 'HS256' })), 'clients[0].jwks.keys[0]'],
    [keysOf(jwk(ec.publicKey, { kid: 'a' }), jwk(generateKeyPairSync('ec', { namedCurve: 'P-256' }).publicKey, { kid: 'a' })), 'clients[0].jwks.keys[1].kid', 'a name of its own', 'got a']
  ],
  'clients, where what they may do is wrong': [
    [clientsWith({ scopes: ['read'] }), 'clients[0].scopes', 'a public client has nothing for itself'],
    [clientsWith({ introspects: ['http://localhost:3000/mcp'] }), 'clients[0].introspects', 'clientSecretHashes or jwks beside it'],
    [confidentialWith({ scopes: ['read', 'red'] }), 'clients[0].scopes', 'among read, write', 'got red'],
    [confidentialWith({ scopes: ['toString'] }), 'clients[0].scopes'],
    [confidentialWith({ scopes: [] }), 'clients[0].scopes', 'got []'],
    [confidentialWith({ scopes: 'read' }), 'clients[0].scopes', 'got read'],
    [confidentialWith({ introspects: ['/mcp'] }), 'clients[0].introspects', 'among http://localhost:3000/mcp', 'got /mcp'],
    [confidentialWith({ introspects: ['http://localhost:3000/mcp', 'https://files.example.com/mcp'] }), 'clients[0].introspects', 'got https://files.example.com/mcp'],
    [confidentialWith({ introspects: [] }), 'clients[0].introspects'],
    [confidentialWith({ introspects: true }), 'clients[0].introspects', 'got true'],
    [confidentialWith({ redirectUris: undefined }), 'clients[0].redirectUris', 'for a client without scopes and introspects']
  ],
  'resources that another server serves': [
    [resourcesWith({ url: 'https://files.example.com/mcp' }), 'resources[0].url', 'either a path or a url', 'got https://files.example.com/mcp'],
    ...[5, '', null, '/mcp', 'files.example.com/mcp', 'http://files.example.com/mcp', 'https://files.example.com/mcp/', 'https://files.example.com/mcp?a=b', 'https://files.example.com/mcp#a', 'https://user@files.example.com/mcp', 'https://FILES.example.com/mcp', 'https://files.example.com/a/../mcp', 'javascript:alert(1)']
      .map((url): Refused => [resourcesWith({ path: undefined, url }), 'resources[0].url', 'such as https://files.example.com/mcp']),
    [{ resources: [{ url: 'https://files.example.com/mcp' }, { path: '/mcp' }, { url: 'https://files.example.com/mcp' }] }, 'resources[2].url', 'a url of its own'],
    [{ resources: [{ path: '/mcp' }, { url: 'http://localhost:3000/mcp' }] }, 'resources[1].url', 'a url of its own', 'got http://localhost:3000/mcp']
  ],
  findUser: [true, 'alice', null].map((findUser): Refused => [{ findUser }, 'findUser', 'a function (userId)', `got ${findUser}`]),
  userinfo: [
    [{ userinfo: true, findUser: () => null }, 'userinfo', 'a function (user, grant)', 'got true'],
    [{ userinfo: () => ({}) }, 'userinfo', 'findUser beside it', 'got a function']
  ],
  connectedApps: [
    [{ connectedApps: true }, 'connectedApps', "false or an object such as { path: '/my/connected_apps' }", 'got true'],
    [{ connectedApps: '/apps' }, 'connectedApps', 'got /apps'],
    [{ connectedApps: null }, 'connectedApps'],
    [{ connectedApps: { path: 'apps' } }, 'connectedApps.path', 'got apps'],
    [{ connectedApps: { path: '//evil.example' } }, 'connectedApps.path'],
    [{ connectedApps: { path: '/:user/apps' } }, 'connectedApps.path'],
    [{ connectedApps: { path: false } }, 'connectedApps.path', 'got false']
  ],
  rateLimit: [
    [{ rateLimit: true }, 'rateLimit', 'false or an object', 'got true'],
    [{ rateLimit: 10 }, 'rateLimit', 'got 10'],
    [{ rateLimit: null }, 'rateLimit', 'got null'],
    [{ rateLimit: [] }, 'rateLimit'],
    [{ rateLimit: { max: 5 } }, 'rateLimit.max', 'inside register, token or authorize']
  ],
  'rateLimit of one endpoint': [
    [{ rateLimit: { register: 10 } }, 'rateLimit.register', 'got 10'],
    [{ rateLimit: { token: true } }, 'rateLimit.token', 'got true'],
    [{ rateLimit: { authorize: '60' } }, 'rateLimit.authorize', 'got 60']
  ],
  views: [
    [{ views: 5 }, 'views', 'an existing folder', 'got 5'],
    [{ views: '' }, 'views'],
    [{ views: join(folder(), 'missing') }, 'views', 'missing'],
    [{ views: 'test' }, 'views', 'absolute']
  ],
  'views, where it is a file': [
    [{ views: fileURLToPath(import.meta.url) }, 'views', 'folder', 'options.test.js']
  ],
  rootAliases: ['yes', 1, null].map((rootAliases): Refused => [{ rootAliases }, 'rootAliases', 'true or false', `got ${rootAliases}`]),
  fallbackToken: [true, 'key', null].map((fallbackToken): Refused => [{ fallbackToken }, 'fallbackToken', 'a function (token, request)', `got ${fallbackToken}`]),
  onEvent: [true, 'log', null].map((onEvent): Refused => [{ onEvent }, 'onEvent', 'a function (event)', `got ${onEvent}`])
}

for (const [option, table] of Object.entries(REFUSED)) {
  t.test(`a wrong option is refused at boot by name, with what it got and what is expected: ${option}`, async (t) => {
    for (const [changes, name, ...said] of table) await refusesOption(t, changes, name, ...said)
  })
}

t.test('an option that does not exist is refused at boot with the names of those that do', async (t) => {
  for (const name of ['scope', 'key', 'Issuer', 'issuer ', 'rateLimits', 'codelifetime', 'toString']) {
    await refusesOption(t, { [name]: 'x' }, name, 'issuer, keys, scopes, currentUser, loginUrl, store')
  }
  await refusesOption(t, { scope: undefined }, 'scope')
})

t.test('a name that does not exist inside an option is refused too: a limit that was misspelt must not be missing in silence', async (t) => {
  for (const [changes, name] of [
    [resourcesWith({ scope: ['read'] }), 'resources[0].scope'],
    [{ registration: { enable: false } }, 'registration.enable'],
    [{ registration: { redirectURIs: [] } }, 'registration.redirectURIs'],
    [{ clientIdMetadata: { unknown: 1 } }, 'clientIdMetadata.unknown'],
    [{ clientIdMetadata: { allowedHosts: ['claude.ai'] } }, 'clientIdMetadata.allowedHosts'],
    [{ connectedApps: { url: '/apps' } }, 'connectedApps.url'],
    [{ scopes: { read: 'x', write: { description: 'x', implied: ['read'] } } }, 'scopes.write.implied'],
    [clientsWith({ redirectUri: 'https://chat.example/cb' }), 'clients[0].redirectUri']
  ] as Array<[Loose, string]>) await refusesOption(t, changes, name)
})

t.test('what an option got is told whatever it is: no number as null, no failure of its own', async (t) => {
  await refusesOption(t, { codeLifetime: NaN }, 'codeLifetime', 'got NaN')
  await refusesOption(t, { codeLifetime: Infinity }, 'codeLifetime', 'got Infinity')
  await refusesOption(t, { codeLifetime: 60n }, 'codeLifetime', 'got 60')
  await refusesOption(t, { issuer: Symbol('x') }, 'issuer', 'got Symbol(x)')
  await refusesOption(t, { loginUrl: circular }, 'loginUrl', 'got ')
  await refusesOption(t, { currentUser: Fastify() }, 'currentUser', 'got ')
  await refusesOption(t, { rateLimit: () => {} }, 'rateLimit', 'got a function')
})

t.test('no message ever holds a key', async (t) => {
  const secret = `${randomBytes(20).toString('base64url')}!`
  for (const changes of [
    { keys: secret }, { keys: [secret] }, { keys: [KEY, secret] }, { keys: { current: secret } }, { keys: [[secret]] }, { keys: [{ secret }] }, { keys: [Buffer.from(secret)] },
    clientsWith({ clientSecretHashes: [secret] }), clientsWith({ clientSecretHashes: secret }), clientsWith({ clientSecretHashes: [[secret]] }), clientsWith({ clientSecretHashes: { current: secret } }),
    clientsWith({ clientSecret: secret }), clientsWith({ client_secret: secret }), clientsWith({ clientSecretHashes: [HASH, secret], scopes: ['red'] }), clientsWith({ jwks: secret }), keysOf(secret), keysOf({ kty: 'oct', k: secret }), keysOf(jwk(ec.privateKey, { d: secret })),
    { clients: { clientId: 'chat', clientSecretHashes: [secret] } }, { clients: { chat: { clientSecret: secret } } }, { clients: [[secret]] }, { clients: [[{ clientSecretHashes: [secret] }]] },
    { key: secret }, { secret: [secret] }, { keys: [KEY, randomBytes(32).toString('base64url')], issuer: '' }
  ] as Loose[]) {
    const { code, message } = await bootError(appWith(t, changes))
    t.equal(code, 'FST_MCP_OAUTH_INVALID_OPTION', message)
    for (const given of [secret, secret.slice(0, 8), KEY, Buffer.from(secret).toString('hex')]) t.notOk(message.includes(given), message)
  }
})

t.test('the plugin registers once: several MCP servers are several resources', async (t) => {
  const app = appWith(t, { store: testOptions().store })
  app.register(mcpOAuth, testOptions())
  const { code, message } = await bootError(app)
  t.equal(code, 'FST_MCP_OAUTH_ALREADY_REGISTERED')
  t.match(message, /resources/)
})

t.test('a second registration inside a plugin of the app is refused as well', async (t) => {
  const app = appWith(t, { store: testOptions().store })
  app.register(async (child) => { await child.register(mcpOAuth, testOptions()) })
  t.equal((await bootError(app)).code, 'FST_MCP_OAUTH_ALREADY_REGISTERED')
})

t.test('the plugin takes no prefix: discovery happens at /.well-known (RFC 8414 §3.1)', async (t) => {
  const app = Fastify()
  t.teardown(() => app.close())
  app.register(async (child) => { await child.register(mcpOAuth, testOptions()) }, { prefix: '/api' })
  const { code, message } = await bootError(app)
  t.equal(code, 'FST_MCP_OAUTH_PREFIX')
  t.match(message, /without a prefix, got \/api\b.*`issuer`/)
})

t.test('a prefix given to the registration itself is refused in the same words', async (t) => {
  const { code, message } = await bootError(appWith(t, { prefix: '/api' }))
  t.equal(code, 'FST_MCP_OAUTH_PREFIX', message)
})

t.test('a guard that could not work is refused when it is made, not when a request comes', async (t) => {
  const app = appWith(t, { store: testOptions().store, resources: [{ path: '/mcp' }, { path: '/admin' }] })
  await app.ready()
  const { protect } = app.oauth
  const made = (options?: unknown): { code?: string, message: string } => {
    try {
      protect(options as ProtectOptions)
      return { message: 'it is made' }
    } catch (error) {
      return error as Error
    }
  }
  for (const [options, ...said] of [
    [{ scopes: ['red'], resource: '/mcp' }, 'unknown scope red', 'read, write'],
    [{ scopes: ['read', 'red', 'wrote'], resource: '/mcp' }, 'unknown scope red, wrote'],
    [{ scopes: ['toString'], resource: '/mcp' }, 'unknown scope toString'],
    [{ scopes: ['read'], resource: '/other' }, 'unknown resource /other', '/mcp, /admin'],
    [{ scopes: ['read'], resource: '/mcp/' }, 'unknown resource /mcp/'],
    [{ scopes: ['read'], resource: 'http://localhost:3000/mcp' }, 'unknown resource http://localhost:3000/mcp'],
    [{ scopes: ['read'], resource: '' }, 'unknown resource'],
    [{ scopes: ['read'] }, 'resource is needed where there are several', '/mcp, /admin'],
    [undefined, 'resource is needed where there are several']
  ] as Array<[unknown, ...string[]]>) {
    const { code, message } = made(options)
    t.equal(code, 'FST_MCP_OAUTH_INVALID_PROTECT', message)
    for (const text of said) t.ok(message.includes(text), `${message} – has: ${text}`)
  }
  t.type(protect({ scopes: ['read'], resource: '/admin' }), 'function')
  t.type(protect({ resource: '/mcp' }), 'function')
})

t.test('a guard with a misspelt or mistyped option is refused: it must not let through what it was to stop', async (t) => {
  const app = appWith(t, { store: testOptions().store })
  await app.ready()
  for (const options of [{ scope: ['write'] }, { Scopes: ['write'] }, { scopes: 'write' }, { scopes: [undefined] }]) {
    t.throws(() => app.oauth.protect(options as unknown as ProtectOptions), { code: 'FST_MCP_OAUTH_INVALID_PROTECT' }, JSON.stringify(options))
  }
})

t.test('one resource needs no naming by the guard', async (t) => {
  const app = appWith(t, { store: testOptions().store })
  await app.ready()
  for (const options of [undefined, {}, { scopes: [] }, { scopes: ['read', 'write'] }, { resource: '/mcp' }]) t.type(app.oauth.protect(options), 'function')
})

t.test('the required options alone boot an app, with the documented defaults', async (t) => {
  const before = process.cwd()
  // The default store is a file in the folder that the process was started in.
  process.chdir(folder())
  t.teardown(() => process.chdir(before))
  const app = Fastify()
  await app.register(mcpOAuth, {
    issuer: 'https://notes.example.com',
    keys: [randomBytes(32).toString('base64url')],
    scopes: { read: 'Read your notes', write: 'Create, change and delete your notes' },
    currentUser: () => null,
    loginUrl: '/login'
  })
  t.teardown(() => app.close())
  app.post('/mcp', { onRequest: app.oauth.protect({ scopes: ['read'] }) }, async () => 'ok')
  await app.ready()
  const server = (await app.inject('/.well-known/oauth-authorization-server')).json()
  t.match(server, {
    issuer: 'https://notes.example.com',
    authorization_endpoint: 'https://notes.example.com/oauth/authorize',
    token_endpoint: 'https://notes.example.com/oauth/token',
    registration_endpoint: 'https://notes.example.com/oauth/register',
    revocation_endpoint: 'https://notes.example.com/oauth/revoke',
    client_id_metadata_document_supported: true,
    scopes_supported: ['read', 'write']
  })
  t.match((await app.inject('/.well-known/oauth-protected-resource/mcp')).json(), { resource: 'https://notes.example.com/mcp', authorization_servers: ['https://notes.example.com'] })
  t.equal((await app.inject({ method: 'POST', url: '/mcp' })).statusCode, 401)
  t.equal((await app.inject('/my/connected_apps')).headers.location, '/login?return_to=%2Fmy%2Fconnected_apps')
})

t.test('every option boots in each of its documented forms', async (t) => {
  for (const changes of [
    { issuer: 'http://localhost:3000' }, { issuer: 'http://127.0.0.1:8080' }, { issuer: 'http://[::1]:8080' }, { issuer: 'https://notes.example.com:8443' }, { issuer: 'https://notes.example.com/a/b' },
    { keys: [randomBytes(32).toString('hex')] }, { keys: [randomBytes(32).toString('base64url'), randomBytes(64).toString('base64url')] },
    { scopes: { write: { description: 'Write', implies: ['read'] }, read: 'Read' } }, { scopes: { 'notes:read': { description: 'Read' } } },
    { loginUrl: () => '/login' }, { loginUrl: 'https://login.example.com/?app=notes' }, { currentUser: async () => null },
    { resources: [{ path: '/' }] }, { resources: [{ path: '/mcp', name: 'Notes', scopes: ['read'], documentation: 'https://notes.example.com/docs' }, { path: '/admin/mcp' }] }, { resources: undefined },
    { codeLifetime: 1 }, { codeLifetime: 600 },
    { registration: { enabled: false } }, { registration: { redirectUris: ['https://vscode.dev/redirect', 'cursor://anysphere.cursor-mcp/oauth/callback'] } }, { registration: {} },
    ...[true, false, undefined, {}, { allowHosts: undefined, redirectUris: undefined, agent: undefined }, { redirectUris: [] }, { redirectUris: ['https://vscode.dev/redirect', 'cursor://anysphere.cursor-mcp/oauth/callback'] }, { agent: new https.Agent() }, { agent: new ProxyAgent() }].map((clientIdMetadata) => ({ clientIdMetadata })),
    hostsOf('claude.ai', 'localhost', 'client.example:8443', 'xn--bcher-kva.example'),
    clientsWith({}), clientsWith({ redirectUris: ['com.example.app:/callback', 'http://localhost/cb'] }), { clients: [] }, { clients: async () => null },
    confidentialWith({}), confidentialWith({ clientSecretHashes: [HASH, hash('sha256', 'another', 'hex')] }), confidentialWith({ redirectUris: undefined, scopes: ['read'] }), confidentialWith({ redirectUris: [], introspects: ['http://localhost:3000/mcp/'] }),
    keysOf(jwk(ec.publicKey)), keysOf(jwk(ec.publicKey, { kid: 'a', use: 'sig', alg: 'ES256' }), jwk(rsa.publicKey, { kid: 'b', alg: 'PS256' })), keysOf(jwk(generateKeyPairSync('ed25519').publicKey)), keysOf(jwk(generateKeyPairSync('ec', { namedCurve: 'P-384' }).publicKey)),
    { resources: [{ path: '/mcp' }, { url: 'https://files.example.com/mcp', name: 'Files' }] }, { resources: [{ url: 'https://files.example.com' }] }, { findUser: () => null }, { findUser: async () => null, userinfo: async () => ({}) },
    { connectedApps: false }, { connectedApps: {} }, { connectedApps: { path: '/settings/apps' } },
    { rateLimit: false }, { rateLimit: {} }, { rateLimit: { register: false, token: { max: 5, timeWindow: 1000 }, keyGenerator: () => 'x' } },
    { views: folder() }, { rootAliases: true }, { fallbackToken: async () => null }, { onEvent: () => {} }
  ] as Loose[]) {
    const app = Fastify()
    app.register(mcpOAuth, { ...testOptions(), ...changes } as McpOAuthOptions)
    await t.resolves(async () => await app.ready(), Object.entries(changes).map(([name, value]) => `${name} ${JSON.stringify(value)}`).join())
    await app.close()
  }
})
