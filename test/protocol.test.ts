import { CompactEncrypt, CompactSign, UnsecuredJWT } from 'jose'
import { createHash, randomBytes } from 'node:crypto'
import t, { type Test } from 'tap'
import { createClientFinder, MAX_CLIENT_ID_LENGTH } from '../dist/clients/client.js'
import { configuredClients } from '../dist/clients/configured.js'
import { registeredClientId, registeredClients, type ClientIdPayload } from '../dist/clients/registered.js'
import { checkPossession, type AuthorizationCode } from '../dist/protocol/authorization-code.js'
import { parseAuthorizationRequest, parseRedirectUri } from '../dist/protocol/authorization-request.js'
import { formatChallenge } from '../dist/protocol/challenge.js'
import { canonicalRedirectUris, parseClientMetadata, parseClientName, printable, UNNAMED_CLIENT, type RegistrationPolicy } from '../dist/protocol/client-metadata.js'
import { AuthorizationError, OAuthError, type ErrorCode, type Reason } from '../dist/protocol/errors.js'
import { parseParameters } from '../dist/protocol/parameters.js'
import { codeVerifierMatches, isCodeChallenge, isCodeVerifier } from '../dist/protocol/pkce.js'
import { authorizationResponse, isLoopbackHost, isLoopbackRedirectUri, isRedirectUri, redirectHost, redirectUriMatches, withoutLoopbackPort } from '../dist/protocol/redirect-uri.js'
import { findResource, type Resource } from '../dist/protocol/resource.js'
import { formatScope, isScopeToken, parseScope, ScopeCatalogue, type ScopeDefinition } from '../dist/protocol/scope.js'
import { createSealer as createAnySealer, createSigner, type Expiring, type Sealer, type Signer } from '../dist/protocol/sealed.js'
import { createGrantId, createToken, deriveKey, hashToken, isToken, parseKey } from '../dist/protocol/secret.js'
import { checkTicket } from '../dist/protocol/tickets.js'

/** Asserts that `run` refuses with that code and that reason, and hands back the error. */
function refuses (t: Test, run: () => unknown, code: ErrorCode, reason: Reason, about: string): unknown {
  try {
    run()
    t.fail(`${about}: not refused`)
  } catch (error) {
    if (!(error instanceof OAuthError)) throw error
    t.strictSame({ code: error.code, reason: error.reason }, { code, reason }, about)
    t.match(error.description, /^[ !#-[\]-~]+$/, 'the description stays within the characters of RFC 6749 §5.2')
    return error
  }
}

/** A value as the name of an assertion: short, and in plain ASCII, because a TAP line ends at more than a line feed. */
function shown (value: unknown): string {
  return (JSON.stringify(value) ?? 'undefined').slice(0, 80).replace(/[^ -~]/g, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`)
}

// Redirect URIs

const LOOPBACK = [
  'http://localhost',
  'http://localhost/',
  'http://localhost:8787/callback',
  'http://127.0.0.1/',
  'http://127.0.0.1:1/callback',
  'http://127.0.0.1:65535/callback',
  'http://[::1]/callback',
  'http://[::1]:33418/callback',
  'http://localhost?x=1',
  'http://localhost:3000/oauth/callback?server=notes&x=%20'
]

const LOOKALIKES = [
  // userinfo
  'http://127.0.0.1@evil.example/', 'http://localhost@evil.example/', 'http://localhost:80@evil.example/', 'http://user@localhost/',
  'http://user:password@127.0.0.1/', 'http://@localhost/', 'http://:@localhost/', 'http://localhost:@evil.example/',
  'http://[::1]@evil.example/',
  // other hosts
  'http://127.0.0.1.evil.example/', 'http://localhost.evil.example/', 'http://localhost./', 'http://localhost.localdomain/',
  'http://notlocalhost/', 'http://evil.example/', 'http://evil.example/?http://localhost/', 'http://evil.example/localhost',
  'http://127.0.0.1%2eevil.example/', 'http://localhost%00.evil.example/', 'http://localhost%2f@evil.example/',
  // other spellings of this computer, and other computers
  'http://0.0.0.0/', 'http://0.0.0.0:8080/callback', 'http://127.0.0.2/', 'http://127.1/', 'http://2130706433/', 'http://0x7f000001/', 'http://0177.0.0.1/',
  'http://[::]/', 'http://[0:0:0:0:0:0:0:1]/', 'http://[::ffff:127.0.0.1]/', 'http://::1/', 'http://[::1%25lo]/', 'http://[::1]evil.example/',
  'http://10.0.0.1/', 'http://169.254.169.254/',
  // scheme
  'https://localhost/callback', 'https://127.0.0.1:33418/callback', 'https://[::1]/', 'ws://localhost/', 'ftp://localhost/',
  'HTTP://localhost/', 'Http://127.0.0.1/', 'http://LOCALHOST/', 'http://Localhost:1/', 'http:localhost/', 'http:/localhost/', 'http:///localhost/',
  '//localhost/', 'localhost:8787/callback', 'localhost', '/callback', '',
  // fragment
  'http://localhost/#', 'http://localhost/callback#fragment', 'http://localhost#@evil.example/',
  // backslash
  'http://localhost\\@evil.example/', 'http:\\\\localhost\\', 'http://evil.example\\@localhost/', 'http://localhost/\\evil',
  // spaces and control characters
  ' http://localhost/', 'http://localhost/ ', 'http://local host/', '\thttp://localhost/', '\nhttp://localhost/', 'http://localhost/\n',
  'http://localhost/\r\nSet-Cookie:a=b', 'http://localhost/\u0000', 'http://local\thost/', 'ht\ntp://localhost/', '\u0001http://localhost/',
  // ports
  'http://localhost:65536/', 'http://localhost:99999/', 'http://localhost:123456/', 'http://localhost:/callback', 'http://localhost:-1/',
  'http://localhost:80a/', 'http://localhost:1:2/', 'http://localhost:+80/', 'http://localhost:٣/',
  // what a URL never holds bare
  'http://localhost/"', 'http://localhost/<script>', 'http://localhost/é', 'http://locаlhost/', 'http://ｌocalhost/', 'http://127。0。0。1/'
]

const RUNNABLE = ['javascript:alert(1)', 'javascript://localhost/%0aalert(1)', 'data:text/html,x', 'data:text/html;base64,eA==', 'vbscript:msgbox(1)',
  'file:///etc/passwd', 'blob:https://x.example/1', 'about:blank', 'view-source:https://x.example/', 'filesystem:https://x.example/a']

t.test('a loopback redirect URI is http to exactly localhost, 127.0.0.1 or [::1], with any port (RFC 8252 §7.3)', async (t) => {
  for (const uri of LOOPBACK) t.ok(isLoopbackRedirectUri(uri), shown(uri))
})

t.test('nothing that only looks like a loopback redirect URI is one', async (t) => {
  for (const uri of [...LOOKALIKES, ...RUNNABLE]) t.notOk(isLoopbackRedirectUri(uri), shown(uri))
})

t.test('a developer may allow https, loopback http and private-use schemes (RFC 8252 §7.1)', async (t) => {
  for (const uri of [...LOOPBACK, 'https://vscode.dev/redirect', 'https://x.example:8443/cb?a=b', 'https://localhost/callback',
    'cursor://anysphere.cursor-mcp/oauth/callback', 'com.example.app:/callback', 'com.example.app://callback', 'https://x.example?mail=a@b', 'cursor://callback?mail=a@b', 'https://x.example/a//b@c']) {
    t.ok(isRedirectUri(uri), shown(uri))
  }
})

t.test('no redirect URI is one that a browser would run, read as a file, or send in the clear to another host', async (t) => {
  const disguised = RUNNABLE.flatMap((uri) => [uri, uri.toUpperCase(), uri[0]!.toUpperCase() + uri.slice(1), ` ${uri}`, `\t${uri}`, `\u0000${uri}`, `\u0001${uri}`,
    uri.replace(':', '\n:'), uri.slice(0, 2) + '\t' + uri.slice(2), uri.slice(0, 2) + '\n' + uri.slice(2)])
  for (const uri of disguised) t.notOk(isRedirectUri(uri), shown(uri))
  for (const uri of ['http://evil.example/', 'http://0.0.0.0/', 'http://127.0.0.1.evil.example/', 'http://127.0.0.1@evil.example/', 'HTTPS://x.example/',
    'Cursor://x', ' https://x.example/', 'https://x.example/ ', 'https://x.example/#', 'https://x.example/#a', 'https://user@x.example/',
    'https://user:password@x.example/', 'https:///user@x.example/', 'https:/user:password@x.example/', 'https:user@x.example/', 'https:///x.example/', 'https:/x.example/', 'https:x.example/', 'https://x.example\\@evil.example/', 'https:\\\\x.example', 'https://x.example/\r\nLocation:y', 'https://x.example/\u202e',
    'https://éxample.org/', 'https://', 'https', '', '/callback', '//x.example/', 'wss://x.example/', 'ftp://x.example/', 'mailto:a@b', 'intent://x#Intent;end']) {
    t.notOk(isRedirectUri(uri), shown(uri))
  }
})

t.test('the port of a loopback redirect URI may differ, and nothing else (RFC 8252 §7.3, RFC 9700 §2.1)', async (t) => {
  const same: Array<[string, string]> = [
    ['http://127.0.0.1:33418/callback', 'http://127.0.0.1:33418/callback'],
    ['http://127.0.0.1:33418/callback', 'http://127.0.0.1:1/callback'],
    ['http://127.0.0.1/callback', 'http://127.0.0.1:50000/callback'],
    ['http://127.0.0.1:50000/callback', 'http://127.0.0.1/callback'],
    ['http://localhost/callback?a=b', 'http://localhost:50000/callback?a=b'],
    ['http://localhost', 'http://localhost:50000'],
    ['http://[::1]/', 'http://[::1]:50000/'],
    ['https://x.example/callback', 'https://x.example/callback'],
    ['cursor://anysphere.cursor-mcp/oauth/callback', 'cursor://anysphere.cursor-mcp/oauth/callback']
  ]
  const different: Array<[string, string]> = [
    ['http://localhost/callback', 'http://127.0.0.1/callback'],
    ['http://127.0.0.1/callback', 'http://localhost:50000/callback'],
    ['http://127.0.0.1/callback', 'http://[::1]/callback'],
    ['http://localhost/callback', 'https://localhost/callback'],
    ['http://localhost/callback', 'http://localhost/other'],
    ['http://localhost/callback', 'http://localhost/callback/'],
    ['http://localhost/callback', 'http://localhost/Callback'],
    ['http://localhost/callback', 'http://localhost/callback/../callback'],
    ['http://localhost/callback', 'http://localhost/%63allback'],
    ['http://localhost/callback', 'http://localhost/callback?'],
    ['http://localhost/callback', 'http://localhost/callback?a=b'],
    ['http://localhost/callback?a=b', 'http://localhost/callback'],
    ['http://localhost/callback?a=b', 'http://localhost/callback?a=c'],
    ['http://localhost/callback?a=b', 'http://localhost/callback?a=b&c=d'],
    ['http://localhost/callback', 'http://localhost/callback#'],
    ['http://localhost', 'http://localhost/'],
    ['http://localhost', 'http://localhost:1/callback'],
    ['http://localhost/callback', 'http://localhost'],
    ['http://localhost/callback', 'http://localhost:99999/callback'],
    ['http://localhost/callback', 'http://localhost:/callback'],
    ['http://localhost/callback', 'http://user@localhost/callback'],
    ['http://localhost/callback', 'http://localhost:80@evil.example/callback'],
    ['http://localhost/callback', 'HTTP://localhost/callback'],
    ['http://localhost/callback', 'http://LOCALHOST/callback'],
    ['http://localhost/callback', ' http://localhost/callback'],
    ['http://localhost/callback', 'http://localhost/callback\n'],
    ['https://x.example/callback', 'https://x.example:8443/callback'],
    ['https://x.example:8443/callback', 'https://x.example/callback'],
    ['https://x.example/callback', 'https://X.example/callback'],
    ['https://x.example/callback', 'https://x.example/callback/evil'],
    ['https://localhost/callback', 'https://localhost:8443/callback'],
    ['cursor://callback', 'cursor://callback/']
  ]
  for (const [registered, presented] of same) t.ok(redirectUriMatches(registered, presented), `${registered} and ${presented}`)
  for (const [registered, presented] of different) t.notOk(redirectUriMatches(registered, presented), `${registered} and ${shown(presented)}`)
})

t.test('only loopback redirect URIs lose their port', async (t) => {
  for (const [uri, expected] of [
    ['http://localhost:8787/a?b=:1/', 'http://localhost/a?b=:1/'],
    ['http://[::1]:8787/', 'http://[::1]/'],
    ['http://127.0.0.1', 'http://127.0.0.1'],
    ['https://localhost:8787/', 'https://localhost:8787/'],
    ['http://localhost.evil.example:8787/', 'http://localhost.evil.example:8787/']
  ] as const) t.equal(withoutLoopbackPort(uri), expected, uri)
})

t.test('redirect URIs are signed in one order, each once, without loopback ports', async (t) => {
  const one = canonicalRedirectUris(['http://localhost:2/b', 'https://x.example/', 'http://localhost:1/b', 'http://127.0.0.1:3/a'])
  t.strictSame(one, ['http://127.0.0.1/a', 'http://localhost/b', 'https://x.example/'])
  t.strictSame(canonicalRedirectUris(['http://127.0.0.1/a', 'http://localhost:9/b', 'https://x.example/']), one, 'the same app, from other ports')
  t.strictSame(canonicalRedirectUris(one), one)
  const sent = ['http://localhost:2/b', 'http://localhost:1/a']
  canonicalRedirectUris(sent)
  t.strictSame(sent, ['http://localhost:2/b', 'http://localhost:1/a'], 'what was sent is left as it is')
})

t.test('a page names the host that receives the code, or the private-use scheme', async (t) => {
  for (const [uri, host, isLoopback] of [
    ['http://localhost:8787/callback', 'localhost', true],
    ['http://127.0.0.1/', '127.0.0.1', true],
    ['http://[::1]:1/', '[::1]', true],
    ['https://www.cursor.com/agents', 'www.cursor.com', false],
    ['https://localhost.evil.example/', 'localhost.evil.example', false],
    ['cursor://anysphere.cursor-mcp/oauth/callback', 'cursor:', false]
  ] as const) {
    t.equal(redirectHost(uri), host)
    t.equal(isLoopbackHost(host), isLoopback, uri)
  }
})

t.test('the response is added to whatever query the redirect URI has (RFC 6749 §4.1.2)', async (t) => {
  for (const [uri, expected] of [
    ['http://localhost/cb', 'http://localhost/cb?code=a&state=b'],
    ['http://localhost', 'http://localhost?code=a&state=b'],
    ['http://localhost/cb?x=%20+%C3%A9&x=2', 'http://localhost/cb?x=%20+%C3%A9&x=2&code=a&state=b'],
    ['cursor://callback', 'cursor://callback?code=a&state=b']
  ] as const) t.equal(authorizationResponse(uri, { code: 'a', state: 'b', iss: undefined }), expected)
})

t.test('state comes back as it was sent, whatever is in it (RFC 6749 §4.1.2)', async (t) => {
  for (const state of ['a b', 'a+b', 'a&code=evil', 'a=b', '#fragment', '%20', 'é ü 🙂', '\r\nSet-Cookie: a=b', '"<script>']) {
    const uri = authorizationResponse('http://localhost/cb?a=b', { code: 'right', state })
    t.match(uri, /^[!-~]+$/, 'nothing ends the header')
    const { searchParams, hash } = new URL(uri)
    t.strictSame([...searchParams], [['a', 'b'], ['code', 'right'], ['state', state]], shown(state))
    t.equal(hash, '')
  }
})

// PKCE

t.test('PKCE: the example of RFC 7636 appendix B', async (t) => {
  const codeVerifier = 'dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk'
  const codeChallenge = 'E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM'
  t.ok(codeVerifierMatches(codeVerifier, codeChallenge))
  t.notOk(codeVerifierMatches(codeVerifier, codeVerifier), 'the verifier itself, as in plain')
  t.notOk(codeVerifierMatches(codeVerifier.toLowerCase(), codeChallenge))
  t.notOk(codeVerifierMatches(codeVerifier + 'a', codeChallenge))
  t.notOk(codeVerifierMatches(codeVerifier, codeChallenge.slice(0, -1)))
  t.notOk(codeVerifierMatches(codeVerifier, codeChallenge + '='))
  t.notOk(codeVerifierMatches(codeVerifier, ''))
})

t.test('PKCE: a code verifier is 43 to 128 unreserved characters (RFC 7636 §4.1)', async (t) => {
  for (const verifier of ['a'.repeat(43), 'a'.repeat(128), '-._~'.repeat(11), 'Az09'.repeat(20)]) t.ok(isCodeVerifier(verifier), shown(verifier))
  for (const verifier of ['', 'a'.repeat(42), 'a'.repeat(129), 'a'.repeat(1_000_000), `${'a'.repeat(43)}\n`, ` ${'a'.repeat(43)}`, `${'a'.repeat(43)}+`,
    `${'a'.repeat(43)}=`, `${'a'.repeat(43)}é`, `${'a'.repeat(43)}\u0000`, '🙂'.repeat(30)]) t.notOk(isCodeVerifier(verifier), shown(verifier))
})

t.test('PKCE: an S256 code challenge is 43 characters of base64url (RFC 7636 §4.2)', async (t) => {
  for (const challenge of ['a'.repeat(43), createHash('sha256').update('x').digest('base64url')]) t.ok(isCodeChallenge(challenge), challenge)
  for (const challenge of ['', 'a'.repeat(42), 'a'.repeat(44), 'a'.repeat(128), `${'a'.repeat(42)}=`, `${'a'.repeat(42)}+`, `${'a'.repeat(42)}~`, `${'a'.repeat(43)}\n`]) {
    t.notOk(isCodeChallenge(challenge), shown(challenge))
  }
})

// Scopes

function catalogue (definitions: Record<string, readonly string[] | undefined>): ScopeCatalogue {
  return new ScopeCatalogue(new Map(Object.entries(definitions).map(([name, implies]): [string, ScopeDefinition] =>
    [name, { description: `May ${name}`, ...(implies !== undefined && { implies }) }])))
}

t.test('a scope brings along all that it implies, however far, in catalogue order', async (t) => {
  const scopes = catalogue({ read: undefined, write: ['read'], share: undefined, admin: ['write'] })
  for (const [names, expected] of [
    [[], []],
    [['read'], ['read']],
    [['write'], ['read', 'write']],
    [['admin'], ['read', 'write', 'admin']],
    [['admin', 'share', 'read', 'read'], ['read', 'write', 'share', 'admin']],
    [['unknown', 'write', '', '__proto__', 'constructor'], ['read', 'write']],
    [['READ', 'read '], []]
  ] as const) t.strictSame(scopes.expand(names), expected, shown(names))
  t.strictSame(scopes.names, ['read', 'write', 'share', 'admin'])
  t.equal(scopes.describe('write'), 'May write')
  t.equal(scopes.describe('unknown'), 'unknown')
})

t.test('scopes that imply one another end', async (t) => {
  const scopes = catalogue({ a: ['b'], b: ['c'], c: ['a'], self: ['self'] })
  t.strictSame(scopes.expand(['b']), ['a', 'b', 'c'])
  t.strictSame(scopes.expand(['self']), ['self'])
})

t.test('no scope reaches beyond those it is held within', async (t) => {
  const scopes = catalogue({ read: undefined, write: ['read'], admin: ['write'] })
  t.strictSame(scopes.expand(['admin'], ['read', 'write']), [], 'what is outside implies nothing inside')
  t.strictSame(scopes.expand(['write'], ['write']), ['write'])
  t.strictSame(scopes.expand(['read', 'admin'], ['read']), ['read'])
  t.strictSame(scopes.expand(['read', 'unknown'], ['read', 'unknown']), ['read'], 'what is not in the catalogue does not exist')
  t.strictSame(scopes.expand(['read'], []), [])
})

t.test('the order and number of the scopes held within do not show: catalogue order, each once', async (t) => {
  const scopes = catalogue({ read: undefined, write: ['read'] })
  t.strictSame(scopes.expand(['write'], ['write', 'read']), ['read', 'write'])
  t.strictSame(scopes.expand(['read'], ['read', 'read']), ['read'])
})

t.test('a wire scope is names divided by spaces (RFC 6749 §3.3)', async (t) => {
  for (const [scope, expected] of [[undefined, []], ['', []], ['  ', []], ['read', ['read']], [' read  write ', ['read', 'write']], ['read,write', ['read,write']]] as const) {
    t.strictSame(parseScope(scope), expected)
  }
  t.equal(formatScope(['read', 'write']), 'read write')
  t.equal(formatScope([]), '')
  for (const name of ['read', 'notes:read', 'https://x.example/a', '!', '~', 'a[b]']) t.ok(isScopeToken(name), name)
  for (const name of ['', 'a b', 'a"b', 'a\\b', 'é', 'a\n', '\u007f', '\u0000']) t.notOk(isScopeToken(name), shown(name))
})

// Resources

function resource (uri: string, scopes: readonly string[] = ['read']): Resource {
  return { uri, scopes, path: new URL(uri).pathname, metadataUrl: `${new URL(uri).origin}/.well-known/oauth-protected-resource` }
}

t.test('a resource is known by its whole URL; only host case and one trailing slash are tolerated (RFC 8707 §2)', async (t) => {
  const resources = [resource('https://notes.example.com/mcp'), resource('https://notes.example.com/mcp/admin'), resource('https://notes.example.com')]
  for (const [value, uri] of [
    ['https://notes.example.com/mcp', 'https://notes.example.com/mcp'],
    ['https://notes.example.com/mcp/', 'https://notes.example.com/mcp'],
    ['https://NOTES.Example.com/mcp', 'https://notes.example.com/mcp'],
    ['HTTPS://notes.example.com/mcp/', 'https://notes.example.com/mcp'],
    ['https://notes.example.com/mcp/admin', 'https://notes.example.com/mcp/admin'],
    ['https://notes.example.com', 'https://notes.example.com'],
    ['https://notes.example.com/', 'https://notes.example.com']
  ] as const) t.equal(findResource(value, resources)?.uri, uri, value)

  for (const value of ['', 'mcp', '/mcp', 'notes.example.com/mcp', '//notes.example.com/mcp', 'http://notes.example.com/mcp', 'https://other.example.com/mcp',
    'https://notes.example.com:8443/mcp', 'https://notes.example.com.evil.example/mcp', 'https://evil.example/https://notes.example.com/mcp',
    // prefixes and paths
    'https://notes.example.com/mc', 'https://notes.example.com/mcp2', 'https://notes.example.com/mcp/other', 'https://notes.example.com/MCP',
    'https://notes.example.com/mcp//', 'https://notes.example.com//mcp', 'https://notes.example.com//', 'https://notes.example.com/%6dcp', 'https://notes.example.com/mcp%2f',
    // dot segments
    'https://notes.example.com/./mcp', 'https://notes.example.com/mcp/.', 'https://notes.example.com/x/../mcp', 'https://notes.example.com/mcp/..',
    'https://notes.example.com/%2e/mcp', 'https://notes.example.com/x/%2e%2e/mcp', 'https://notes.example.com/..', 'https://notes.example.com/mcp/admin/..',
    // query, fragment, userinfo
    'https://notes.example.com/mcp?', 'https://notes.example.com/mcp?a=b', 'https://notes.example.com?a=b', 'https://notes.example.com?', 'https://notes.example.com/mcp#', 'https://notes.example.com/mcp#a',
    'https://notes.example.com#', 'https://user@notes.example.com/mcp', 'https://user:password@notes.example.com/mcp', 'https://notes.example.com@evil.example/mcp',
    // slashes and spaces
    'https://notes.example.com\\mcp', 'https:\\\\notes.example.com\\mcp', 'https:/notes.example.com/mcp', 'https:notes.example.com/mcp', 'https:///notes.example.com/mcp',
    'https://notes.example.com/mcp ', 'https://notes.example.com/mcp\n', 'https://notes.example.com/m\tcp']) {
    t.equal(findResource(value, resources), undefined, shown(value))
  }
})

t.test('a resource spelled so that only a URL parser would recognise it is unknown', async (t) => {
  const resources = [resource('https://notes.example.com/mcp'), resource('https://notes.example.com')]
  for (const value of [' https://notes.example.com/mcp', '\thttps://notes.example.com/mcp', 'https://@notes.example.com/mcp', 'https://:@notes.example.com/mcp',
    'https://notes.exa\nmple.com/mcp', 'https://notes%2Eexample.com/mcp', 'https://notes。example。com/mcp', 'https://notes.example.com\\', 'https://notes.example.com/\\']) {
    t.equal(findResource(value, resources), undefined, shown(value))
  }
})

// Parameters

t.test('a parameter without a value counts as absent (RFC 6749 §3.1)', async (t) => {
  t.strictSame([...parseParameters('')], [])
  t.strictSame([...parseParameters('a=&b&c=1&=')], [['c', '1']])
  t.strictSame([...parseParameters('a=1+2&b=%3D%26&c=%F0%9F%99%82&d=x=y&__proto__=z&A=2')],
    [['a', '1 2'], ['b', '=&'], ['c', '🙂'], ['d', 'x=y'], ['__proto__', 'z'], ['A', '2']])
})

t.test('a repeated parameter is refused, also where one of them is empty (RFC 6749 §3.1)', async (t) => {
  for (const raw of ['client_id=a&client_id=b', 'client_id=a&client_id=a', 'client_id=a&x=1&client_id=', 'client_id=&client_id=a', 'client_id&client_id',
    'client_id=a&client%5Fid=b', '__proto__=a&__proto__=b', 'unknown=1&unknown=2']) {
    refuses(t, () => parseParameters(raw), 'invalid_request', 'parameter_repeated', raw)
  }
})

t.test('array notation is refused', async (t) => {
  for (const raw of ['scope[]=a', 'scope%5B%5D=a', 'scope[0]=a', 'a=1&scope[x]=a', 'scope[]=', 'scope[][]=a']) {
    refuses(t, () => parseParameters(raw), 'invalid_request', 'parameter_array', raw)
  }
})

t.test('sequences that are no UTF-8 or no percent-encoding are read, not thrown at', async (t) => {
  t.equal(parseParameters('a=%ff').get('a'), '\ufffd')
  t.equal(parseParameters('a=%').get('a'), '%')
  t.equal(parseParameters('a=%zz').get('a'), '%zz')
})

// Authorization request

const CHALLENGE = 'E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM'
const VERIFIER = 'dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk'

t.test('a redirect URI that is missing or not registered never becomes an error that may redirect (RFC 6749 §4.1.2.1)', async (t) => {
  const registered = ['http://127.0.0.1/callback']
  t.equal(parseRedirectUri(parseParameters('redirect_uri=http://127.0.0.1:5/callback'), registered), 'http://127.0.0.1:5/callback')
  for (const [raw, reason] of [
    ['', 'redirect_uri_missing'], ['redirect_uri=', 'redirect_uri_missing'],
    ['redirect_uri=https://evil.example/', 'redirect_uri_unregistered'], ['redirect_uri=http://localhost:5/callback', 'redirect_uri_unregistered']
  ] as const) {
    const error = refuses(t, () => parseRedirectUri(parseParameters(raw), registered), 'invalid_request', reason, raw)
    t.notOk(error instanceof AuthorizationError)
  }
  refuses(t, () => parseRedirectUri(parseParameters('redirect_uri=http://127.0.0.1/'), []), 'invalid_request', 'redirect_uri_unregistered', 'a client without any')
})

t.test('an authorization request is checked in order: response type, PKCE, resource, scope (RFC 6749 §4.1.1, RFC 7636 §4.3, RFC 8707 §2)', async (t) => {
  const known = {
    scopes: catalogue({ read: undefined, write: ['read'], admin: undefined }),
    resources: [resource('https://notes.example.com/mcp', ['read', 'write']), resource('https://notes.example.com/admin', ['admin'])]
  }
  const valid = { response_type: 'code', code_challenge: CHALLENGE, code_challenge_method: 'S256', state: 'xyz' }
  const parse = (changes: Record<string, string> = {}) => parseAuthorizationRequest(
    parseParameters(new URLSearchParams({ ...valid, ...changes }).toString()), { clientId: 'c', clientName: 'C' }, 'http://localhost/cb', known)

  t.strictSame(parse(), {
    clientId: 'c', clientName: 'C', redirectUri: 'http://localhost/cb', codeChallenge: CHALLENGE, scopes: ['read', 'write'], resource: 'https://notes.example.com/mcp', state: 'xyz'
  }, 'no scope means all scopes of the first resource')
  t.notOk('state' in parse({ state: '' }))
  t.strictSame(parse({ scope: 'write unknown' }).scopes, ['read', 'write'])
  t.strictSame(parse({ scope: 'read admin' }).scopes, ['read'], 'no scope of another resource')
  t.strictSame(parse({ resource: 'https://NOTES.example.com/admin/' }), { ...parse(), scopes: ['admin'], resource: 'https://notes.example.com/admin' })
  t.equal(parse({ prompt: 'consent', unknown: 'x', nonce: 'y' }).resource, 'https://notes.example.com/mcp', 'unknown parameters are ignored')

  for (const [changes, code, reason] of [
    [{ response_type: '' }, 'invalid_request', 'response_type_unsupported'],
    [{ response_type: 'token' }, 'unsupported_response_type', 'response_type_unsupported'],
    [{ response_type: 'code token' }, 'unsupported_response_type', 'response_type_unsupported'],
    [{ code_challenge: '' }, 'invalid_request', 'pkce_challenge_missing'],
    [{ code_challenge_method: '' }, 'invalid_request', 'pkce_method_unsupported'],
    [{ code_challenge_method: 'plain' }, 'invalid_request', 'pkce_method_unsupported'],
    [{ code_challenge_method: 's256' }, 'invalid_request', 'pkce_method_unsupported'],
    [{ code_challenge: CHALLENGE + '=' }, 'invalid_request', 'pkce_challenge_malformed'],
    [{ code_challenge: 'short' }, 'invalid_request', 'pkce_challenge_malformed'],
    [{ resource: 'https://notes.example.com/other' }, 'invalid_target', 'resource_unknown'],
    [{ scope: 'unknown' }, 'invalid_scope', 'no_scope_left'],
    [{ scope: 'admin' }, 'invalid_scope', 'no_scope_left'],
    [{ resource: 'https://evil.example/', scope: 'unknown' }, 'invalid_target', 'resource_unknown'],
    [{ response_type: 'token', code_challenge: '', resource: 'x' }, 'unsupported_response_type', 'response_type_unsupported']
  ] as Array<[Record<string, string>, ErrorCode, Reason]>) {
    const error = refuses(t, () => parse(changes), code, reason, shown(changes))
    t.ok(error instanceof AuthorizationError && error.redirectUri === 'http://localhost/cb' && error.state === 'xyz', 'it may redirect')
  }
})

// Challenge

t.test('a challenge is one Bearer with a parameter, and leaves empty ones out (RFC 6750 §3, RFC 9728 §5.1)', async (t) => {
  const url = 'https://notes.example.com/.well-known/oauth-protected-resource/mcp'
  t.equal(formatChallenge({ resource_metadata: url, scope: 'read write' }), `Bearer resource_metadata="${url}", scope="read write"`)
  t.equal(formatChallenge({ resource_metadata: url, scope: '' }), `Bearer resource_metadata="${url}"`)
  t.equal(formatChallenge({ error: 'invalid_token', error_description: 'No.', resource_metadata: url }), `Bearer error="invalid_token", error_description="No.", resource_metadata="${url}"`)
})

t.test('no value can end its quotes, add a parameter or end the header (RFC 9110 §5.5 and §11.2)', async (t) => {
  for (const [value, expected] of [
    ['a"b', '"a\\"b"'],
    ['a\\b', '"a\\\\b"'],
    ['a\\"b', '"a\\\\\\"b"'],
    ['", realm="evil', '"\\", realm=\\"evil"'],
    ['a\r\nSet-Cookie: a=b', '"aSet-Cookie: a=b"'],
    ['a\nb\rc\u0000d\te\u007ff', '"abcdef"'],
    ['é🙂\u2028\u010a', '""']
  ] as const) {
    const challenge = formatChallenge({ error_description: value, resource_metadata: 'x' })
    t.equal(challenge, `Bearer error_description=${expected}, resource_metadata="x"`, shown(value))
    t.match(challenge, /^Bearer [a-z_]+="(?:[ !#-[\]-~]|\\["\\])*", resource_metadata="x"$/)
    t.doesNotThrow(() => new Headers({ 'www-authenticate': challenge }))
  }
})

// Client metadata

const POLICY: RegistrationPolicy = { redirectUris: [], grantTypes: ['authorization_code'] }

t.test('the registration bodies of real clients work unchanged', async (t) => {
  const common = { grant_types: ['authorization_code', 'refresh_token'], response_types: ['code'], token_endpoint_auth_method: 'none' }
  for (const [body, expected] of [
    [{ client_name: 'Claude Code (notes)', redirect_uris: ['http://localhost:54213/callback'], ...common, scope: 'read write', application_type: 'native' },
      { clientName: 'Claude Code (notes)', redirectUris: ['http://localhost:54213/callback'], scope: 'read write' }],
    [{ client_name: 'Codex', redirect_uris: ['http://127.0.0.1:40123/callback'], ...common, scope: 'read', application_type: 'native' },
      { clientName: 'Codex', redirectUris: ['http://127.0.0.1:40123/callback'], scope: 'read' }],
    [{ client_name: 'Visual Studio Code', redirect_uris: ['https://insiders.vscode.dev/redirect', 'https://vscode.dev/redirect', 'http://127.0.0.1/', 'http://127.0.0.1:33418/'], ...common, application_type: 'native' },
      { clientName: 'Visual Studio Code', redirectUris: ['http://127.0.0.1/', 'http://127.0.0.1:33418/'], scope: undefined }],
    [{ client_name: 'Cursor', redirect_uris: ['cursor://anysphere.cursor-mcp/oauth/callback', 'https://www.cursor.com/agents/mcp/oauth/callback', 'http://localhost:8787/callback'], ...common },
      { clientName: 'Cursor', redirectUris: ['http://localhost:8787/callback'], scope: undefined }],
    [{ client_name: 'Gemini CLI MCP Client', redirect_uris: ['http://localhost:7777/oauth/callback'], ...common, scope: '' },
      { clientName: 'Gemini CLI MCP Client', redirectUris: ['http://localhost:7777/oauth/callback'], scope: '' }],
    [{ client_name: 'Claude', redirect_uris: ['http://localhost/callback'], grant_types: ['authorization_code', 'refresh_token', 'urn:ietf:params:oauth:grant-type:jwt-bearer'] },
      { clientName: 'Claude', redirectUris: ['http://localhost/callback'], scope: undefined }]
  ] as const) t.strictSame(parseClientMetadata(body, POLICY), { ...expected, grantTypes: ['authorization_code'] }, body.client_name)
})

t.test('a registration is narrowed to what may be had and says what that is (RFC 7591 §2)', async (t) => {
  const parse = (changes: object, policy: Partial<RegistrationPolicy> = {}) => parseClientMetadata({ redirect_uris: ['http://localhost/'], ...changes }, { ...POLICY, ...policy })
  t.strictSame(parse({}), { clientName: UNNAMED_CLIENT, redirectUris: ['http://localhost/'], grantTypes: ['authorization_code'], scope: undefined }, 'all but redirect_uris may be missing')
  t.strictSame(parse({ client_name: null, grant_types: null, response_types: null, scope: null }), parse({}), 'null is missing')
  t.strictSame(parse({ client_id: 'mine', client_secret: 'mine', client_uri: 'javascript:alert(1)', logo_uri: 5, jwks: [], unknown: {} }), parse({}), 'unknown fields are ignored')
  t.strictSame(parse({ redirect_uris: ['http://localhost:1/', 'http://localhost:2/', 'http://localhost:1/'] }).redirectUris, ['http://localhost:1/', 'http://localhost:2/'])
  t.strictSame(parse({ response_types: ['token', 'code'] }), parse({}))
  t.strictSame(parse({ grant_types: ['refresh_token', 'authorization_code', 'implicit', 'authorization_code', 'refresh_token'] }, { grantTypes: ['authorization_code', 'refresh_token'] }).grantTypes,
    ['refresh_token', 'authorization_code'])

  const listed = 'https://vscode.dev/redirect'
  const redirectUris = [listed, 'cursor://anysphere.cursor-mcp/oauth/callback']
  t.strictSame(parse({ redirect_uris: [listed, 'https://vscode.dev/redirect/', 'https://VSCODE.dev/redirect', `${listed}?a`, 'https://evil.example/', 'cursor://other'] }, { redirectUris }).redirectUris,
    [listed], 'further URIs are exact')
  t.strictSame(parse({ redirect_uris: redirectUris }, { redirectUris }).redirectUris, redirectUris)
})

t.test('a registration with no redirect URI left is refused: invalid_redirect_uri (RFC 7591 §3.2.2)', async (t) => {
  for (const uri of [...LOOKALIKES, ...RUNNABLE, 'https://evil.example/', 'cursor://x']) {
    refuses(t, () => parseClientMetadata({ redirect_uris: [uri] }, POLICY), 'invalid_redirect_uri', 'redirect_uri_not_allowed', shown(uri))
  }
  for (const uris of [undefined, null, [], 'http://localhost/', { 0: 'http://localhost/' }, [['http://localhost/']], ['http://localhost/', 5], ['http://localhost/', null], 5]) {
    refuses(t, () => parseClientMetadata({ redirect_uris: uris }, POLICY), 'invalid_redirect_uri', 'redirect_uri_missing', shown(uris))
  }
  const some = (count: number): string[] => Array.from({ length: count }, (_, index) => `http://localhost/${index}`)
  t.equal(parseClientMetadata({ redirect_uris: some(10) }, POLICY).redirectUris.length, 10)
  for (const count of [11, 1000]) refuses(t, () => parseClientMetadata({ redirect_uris: some(count) }, POLICY), 'invalid_redirect_uri', 'redirect_uri_not_allowed', `${count} URIs`)
})

t.test('a registration of the wrong shape is refused: invalid_client_metadata (RFC 7591 §3.2.2)', async (t) => {
  for (const body of [undefined, null, '', 'x', 5, true, [], [{ redirect_uris: ['http://localhost/'] }]]) {
    refuses(t, () => parseClientMetadata(body, POLICY), 'invalid_client_metadata', 'client_metadata_invalid', shown(body))
  }
  for (const changes of [
    { client_name: 5 }, { client_name: ['x'] }, { client_name: {} }, { client_name: false }, { client_name: 'x'.repeat(101) }, { client_name: 'x'.repeat(100_000) },
    { scope: 5 }, { scope: ['read'] }, { scope: {} },
    { grant_types: 'authorization_code' }, { grant_types: [5] }, { grant_types: [null] }, { grant_types: {} }, { grant_types: [] }, { grant_types: ['refresh_token'] }, { grant_types: ['implicit'] },
    { response_types: 'code' }, { response_types: [5] }, { response_types: {} }, { response_types: [] }, { response_types: ['token'] }, { response_types: ['code token'] }
  ]) {
    refuses(t, () => parseClientMetadata({ redirect_uris: ['http://localhost/'], ...changes }, POLICY), 'invalid_client_metadata', 'client_metadata_invalid', shown(changes))
  }
})

// Names

const hidden = (codePoint: number): string => `a${String.fromCodePoint(codePoint)}b`
const label = (codePoint: number): string => `U+${codePoint.toString(16).toUpperCase().padStart(4, '0')}`

t.test('a name holds no control, bidi or zero-width character', async (t) => {
  for (const codePoint of [
    0x00, 0x01, 0x08, 0x1b, 0x7f, 0x80, 0x9f, // C0, C1
    0xad, 0x61c, // soft hyphen, Arabic letter mark
    0x200b, 0x200c, 0x200d, 0x200e, 0x200f, 0x2060, 0x2061, 0x2064, 0xfeff, // zero width, marks, invisible operators
    0x202a, 0x202b, 0x202c, 0x202d, 0x202e, 0x2066, 0x2067, 0x2068, 0x2069, // bidi embeddings, overrides, isolates
    0xe000, 0xfff9, 0xe0001, 0xe0041, 0xe007f, 0x10fffe, 0xd800, 0xdfff // private use, annotation, tags, noncharacter, lone surrogates
  ]) t.equal(printable(hidden(codePoint)), 'ab', label(codePoint))
  for (const codePoint of [0x09, 0x0a, 0x0d, 0x20, 0xa0, 0x2028, 0x2029, 0x3000]) t.equal(printable(hidden(codePoint)), 'a b', label(codePoint))
})

t.test('a name holds no other character that nobody sees', async (t) => {
  // Combining grapheme joiner, Hangul and Khmer fillers, Mongolian and other variation selectors, blank Braille.
  for (const codePoint of [0x34f, 0x115f, 0x1160, 0x17b4, 0x17b5, 0x180b, 0x180e, 0x3164, 0xffa0, 0xfe00, 0xfe0f, 0xe0100, 0xe01ef]) {
    t.equal(printable(hidden(codePoint)), 'ab', label(codePoint))
  }
  for (const blank of ['\u3164', '\u115f\u1160', '\uffa0', '\u2800', '\u034f', '\u2800 \u3164']) t.equal(parseClientName(blank), UNNAMED_CLIENT, shown(blank))
})

t.test('a name is in NFC, also where what kept it apart was stripped, and naming it again changes nothing', async (t) => {
  t.equal(printable('Cafe\u0301'), 'Café')
  for (const text of ['Cafe\u0301', 'Cafe\u200d\u0301', 'a\u202e\u0300\u0301\u0302\u0303', ' a \u200b b ', '\u1100\u200b\u1161', 'I\u0307\u0323']) {
    const name = printable(text)
    t.equal(name, name.normalize('NFC'), shown(text))
    t.equal(printable(name), name, shown(text))
  }
})

t.test('a name holds at most two combining marks in a row', async (t) => {
  t.equal(printable(`x${'\u0336'.repeat(50)}y`), 'x\u0336\u0336y')
  t.equal(printable(`x${'\u0336\u200b'.repeat(50)}y`), 'x\u0336\u0336y', 'what is stripped between them does not count')
  t.equal(printable('नमस्ते'), 'नमस्ते')
  t.equal(printable('ทั้งที่'), 'ทั้งที่')
})

t.test('a name is trimmed, its white space is one space, and its own script stays', async (t) => {
  t.equal(printable('  Claude \t\r\n  Code  '), 'Claude Code')
  t.equal(printable('<b>"Claude" & Code\'s</b>'), '<b>"Claude" & Code\'s</b>', 'escaping is for the page')
  for (const name of ['Zażółć gęślą jaźń', 'ノート', 'Заметки', 'הערות', 'ملاحظات', 'Notes 🙂']) t.equal(printable(name), name)
  t.equal(printable(''), '')
})

t.test('a client without a name that can be shown is called so', async (t) => {
  for (const value of [undefined, null, '', '   ', '\u0000\u200b\u202e', '\r\n']) t.equal(parseClientName(value), UNNAMED_CLIENT, shown(value))
})

t.test('a name has at most 100 characters: code points, counted as they are shown', async (t) => {
  for (const name of ['x'.repeat(100), '🙂'.repeat(100), '漢'.repeat(100)]) t.equal(parseClientName(name), name)
  t.equal(parseClientName('e\u0301'.repeat(100)), 'é'.repeat(100), 'composed first')
  t.equal(parseClientName(`${'x'.repeat(100)}${'\u200b'.repeat(100)}   `), 'x'.repeat(100))
  for (const name of ['x'.repeat(101), '🙂'.repeat(101), 'x'.repeat(1_000_000)]) {
    refuses(t, () => parseClientName(name), 'invalid_client_metadata', 'client_metadata_invalid', shown(name))
  }
})

// Sealed values

interface Payload extends Expiring { text: string }

const NOW = 1_800_000_000_000
const keyA = randomBytes(32)
const keyB = randomBytes(32)
const payload: Payload = { text: 'naïve 漢字 🙂 "\\\u0000', expiresAt: NOW + 60_000 }
const createSealer = async (keys: Uint8Array[] = [keyA], purpose = 'code'): Promise<Sealer<Payload>> => await createAnySealer<Payload>(keys, purpose)

const base64url = (value: string | object): string => Buffer.from(typeof value === 'string' ? value : JSON.stringify(value)).toString('base64url')
const headerOf = (value: string): Record<string, unknown> => JSON.parse(Buffer.from(value.split('.')[0]!, 'base64url').toString())
const withHeader = (value: string, changes: object): string => [base64url({ ...headerOf(value), ...changes }), ...value.split('.').slice(1)].join('.')

/** Every value that differs from this one in one character. Dots too. */
function * oneCharacterChanged (value: string): Generator<string> {
  for (let index = 0; index < value.length; index++) {
    for (const other of new Set(['A', 'Q', '_', '.', String.fromCharCode(value.charCodeAt(index) ^ 1), value[index]!.toUpperCase(), value[index]!.toLowerCase()])) {
      if (other !== value[index]) yield value.slice(0, index) + other + value.slice(index + 1)
    }
  }
}

/** The same bytes in other base64url: the spare bits of the last character of a segment. */
function * otherSpellings (value: string): Generator<string> {
  const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'
  const parts = value.split('.')
  for (const [index, part] of parts.entries()) {
    const bytes = Buffer.from(part, 'base64url')
    for (const last of alphabet) {
      const other = part.slice(0, -1) + last
      if (part !== '' && other !== part && Buffer.from(other, 'base64url').equals(bytes)) yield parts.with(index, other).join('.')
    }
    yield parts.with(index, part + '=').join('.')
    yield parts.with(index, part + '\n').join('.')
    yield parts.with(index, ' ' + part).join('.')
  }
}

t.test('a sealed value opens as what was sealed, is never the same twice, and shows nothing', async (t) => {
  const sealer = await createSealer()
  const value = await sealer.seal(payload)
  t.strictSame(await sealer.open(value, NOW), payload)
  t.not(await sealer.seal(payload), value)
  t.match(value, /^[A-Za-z0-9_-]+\.\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$/, 'a JWE with a direct key, fit for a query')
  t.strictSame({ ...headerOf(value), kid: '' }, { alg: 'dir', enc: 'A256GCM', typ: 'mcp-oauth-code', kid: '' })
  t.notMatch(value, base64url('漢字'))
})

t.test('a sealed value holds until its expiry, and no longer at that very millisecond (RFC 7519 §4.1.4)', async (t) => {
  const sealer = await createSealer()
  const value = await sealer.seal(payload)
  t.strictSame(await sealer.open(value, payload.expiresAt - 1), payload)
  t.equal(await sealer.open(value, payload.expiresAt), 'expired')
  t.equal(await sealer.open(value, payload.expiresAt + 1), 'expired')
  t.equal(await sealer.open(value, Infinity), 'expired')
  t.equal(await sealer.open(await sealer.seal({ text: 'without' } as Payload), 0), 'expired', 'without an expiry nothing holds')
})

t.test('keys rotate: the first seals, all open, and what a removed key sealed is unreadable', async (t) => {
  const [before, both, after] = await Promise.all([createSealer([keyA]), createSealer([keyB, keyA]), createSealer([keyB])])
  const old = await before.seal(payload)
  const fresh = await both.seal(payload)
  t.strictSame(await both.open(old, NOW), payload)
  t.strictSame(await after.open(fresh, NOW), payload, 'sealed by the first')
  t.equal(await before.open(fresh, NOW), 'unreadable')
  t.equal(await after.open(old, NOW), 'unreadable', 'its key is gone')
  t.equal(await (await createSealer([randomBytes(32)])).open(old, NOW), 'unreadable')
})

t.test('a value sealed for one purpose is unreadable for another, whatever it says of itself', async (t) => {
  const [codes, tickets] = await Promise.all([createSealer([keyA], 'code'), createSealer([keyA], 'consent')])
  const ticket = await tickets.seal(payload)
  const { kid } = headerOf(await codes.seal(payload))
  t.equal(await codes.open(ticket, NOW), 'unreadable')
  t.equal(await codes.open(withHeader(ticket, { typ: 'mcp-oauth-code' }), NOW), 'unreadable')
  t.equal(await codes.open(withHeader(ticket, { typ: 'mcp-oauth-code', kid }), NOW), 'unreadable')
  t.not(headerOf(ticket).kid, kid, 'not even the key ids are the same')
})

t.test('a sealed value changed in any one character is unreadable', async (t) => {
  const sealer = await createSealer()
  const value = await sealer.seal(payload)
  const opened = await Promise.all([...oneCharacterChanged(value)].map(async (changed) => ({ changed, result: await sealer.open(changed, NOW) })))
  t.ok(opened.length > value.length)
  t.strictSame(opened.filter(({ result }) => result !== 'unreadable'), [])
})

t.test('a sealed value cut, grown or spelled in other base64url is unreadable', async (t) => {
  const sealer = await createSealer()
  const value = await sealer.seal({ ...payload, text: 'four' })
  const spellings = [...otherSpellings(value)]
  t.ok(spellings.length > 15)
  for (const other of [...spellings, value.slice(1), value.slice(0, -1), value + 'A', value + '.', '.' + value, value + '.A', ` ${value}`, `${value}\n`, `${value} `,
    value.split('.').slice(0, 4).join('.'), value.split('.').reverse().join('.'), '', '.', '....', 'a.b.c.d.e', '🙂', 'null']) {
    t.equal(await sealer.open(other, NOW), 'unreadable', shown(other))
  }
})

t.test('alg and enc are pinned, and zip is refused, even under the right key', async (t) => {
  const sealer = await createSealer()
  const value = await sealer.seal(payload)
  const { typ, kid } = headerOf(value) as { typ: string, kid: string }
  const key = deriveKey(keyA, 'code', 32)
  const plaintext = new TextEncoder().encode(JSON.stringify(payload))
  const make = async (header: { alg?: string, enc?: string, typ?: string, kid?: string, zip?: string, crit?: string[] }, bytes: Uint8Array = key): Promise<string> =>
    await new CompactEncrypt(plaintext).setProtectedHeader({ alg: 'dir', enc: 'A256GCM', typ, kid, ...header }).encrypt(bytes)

  t.strictSame(await sealer.open(await make({}), NOW), payload, 'made by hand as it should be, it opens')
  const forged: Record<string, string> = {
    'alg A256KW': await make({ alg: 'A256KW' }),
    'alg A256GCMKW': await make({ alg: 'A256GCMKW' }),
    'alg PBES2': await make({ alg: 'PBES2-HS512+A256KW' }),
    'enc A128CBC-HS256': await make({ enc: 'A128CBC-HS256' }),
    'enc A128GCM': await make({ enc: 'A128GCM' }, key.subarray(0, 16)),
    'enc A256CBC-HS512': await make({ enc: 'A256CBC-HS512' }, Buffer.concat([key, key])),
    'another key': await make({}, randomBytes(32)),
    'no typ': await new CompactEncrypt(plaintext).setProtectedHeader({ alg: 'dir', enc: 'A256GCM', kid }).encrypt(key),
    'no kid': await new CompactEncrypt(plaintext).setProtectedHeader({ alg: 'dir', enc: 'A256GCM', typ }).encrypt(key),
    'zip DEF': await make({ zip: 'DEF' }),
    'alg none': withHeader(value, { alg: 'none' }),
    'zip said afterwards': withHeader(value, { zip: 'DEF' }),
    'unknown crit': withHeader(value, { crit: ['x'], x: 1 }),
    'empty kid': withHeader(value, { kid: '' }),
    'a list for kid': withHeader(value, { kid: [kid] }),
    'no JSON in the header': [base64url('x'), ...value.split('.').slice(1)].join('.'),
    'a list for a header': [base64url('[]'), ...value.split('.').slice(1)].join('.'),
    'null for a header': [base64url('null'), ...value.split('.').slice(1)].join('.')
  }
  for (const [what, other] of Object.entries(forged)) t.equal(await sealer.open(other, NOW), 'unreadable', what)
})

t.test('PBES2 with a huge count costs nothing, and neither does a huge value', async (t) => {
  const sealer = await createSealer()
  const signer = await createSigner<object>([keyA], 'client')
  const [header, , ...rest] = withHeader(await sealer.seal(payload), { alg: 'PBES2-HS512+A256KW', p2c: 2 ** 31 - 1, p2s: base64url('salt salt') }).split('.')
  const start = performance.now()
  t.equal(await sealer.open([header, base64url('k'.repeat(40)), ...rest].join('.'), NOW), 'unreadable')
  for (const huge of ['a'.repeat(10_000_000), '.'.repeat(10_000_000), `${'a.'.repeat(4)}${'a'.repeat(10_000_000)}`]) {
    t.equal(await sealer.open(huge, NOW), 'unreadable')
    t.equal(await signer.verify(huge), undefined)
  }
  t.ok(performance.now() - start < 2000)
})

t.test('nothing over 8 KiB is sealed, nor parsed', async (t) => {
  const sealer = await createSealer()
  const sealed = async (length: number): Promise<string> => await sealer.seal({ text: 'x'.repeat(length), expiresAt: NOW + 1 })
  t.type(await sealer.open(await sealed(5900), NOW), 'object')
  await t.rejects(async () => await sealed(6200), { code: 'invalid_request', reason: 'request_too_long' })
  const value = await sealed(10)
  t.equal(await sealer.open(value + 'A'.repeat(8192), NOW), 'unreadable')
})

t.test('a signed value reads as what was signed, and is the same string each time', async (t) => {
  const create = async (): Promise<Signer<object>> => await createSigner<object>([keyA, keyB], 'client')
  const [signer, another] = await Promise.all([create(), create()])
  const content = { client_name: 'Zażółć 漢字 🙂 "\\', redirect_uris: ['http://localhost/cb'] }
  const value = await signer.sign(content)
  t.strictSame(await signer.verify(value), content)
  t.equal(await signer.sign(content), value)
  t.equal(await another.sign({ ...content }), value, 'on another node too')
  t.strictSame({ ...headerOf(value), kid: '' }, { alg: 'HS256', typ: 'mcp-oauth-client', kid: '' })
})

t.test('of more signed values than are remembered, each reads as itself, again and again', async (t) => {
  const signer = await createSigner<object>([keyA], 'client')
  const contents = Array.from({ length: 1100 }, (_, index) => ({ client_name: `App ${index} ${'x'.repeat(index % 100 === 0 ? 3000 : 1500)}` }))
  const values = await Promise.all(contents.map(signer.sign))
  t.equal(new Set(values).size, contents.length)
  for (const time of ['first', 'again']) {
    t.strictSame(await Promise.all(values.map(signer.verify)), contents, time)
    t.strictSame(await Promise.all(contents.map(signer.sign)), values, time)
    t.equal(await signer.verify(`${values[0]!.slice(0, -1)}_`), undefined, `${time}, a changed one is not taken for one of them`)
  }
})

t.test('signing keys rotate: the first signs, all verify, and what a removed key signed is nothing', async (t) => {
  const create = async (keys: Uint8Array[]): Promise<Signer<object>> => await createSigner<object>(keys, 'client')
  const [before, both, after] = await Promise.all([create([keyA]), create([keyB, keyA]), create([keyB])])
  const old = await before.sign({ a: 1 })
  const fresh = await both.sign({ a: 1 })
  t.strictSame(await both.verify(old), { a: 1 })
  t.equal(await after.sign({ a: 1 }), fresh)
  t.equal(await after.verify(old), undefined)
  t.equal(await before.verify(fresh), undefined)
})

t.test('a signed value changed in any one character, cut short or spelled in other base64url is nothing', async (t) => {
  const signer = await createSigner<object>([keyA], 'client')
  const value = await signer.sign({ client_name: 'Notes' })
  const spellings = [...otherSpellings(value)]
  t.ok(spellings.length > 9)
  const changed = [...oneCharacterChanged(value), ...spellings, value.slice(0, -1), value.slice(1), value + 'A', value + '.', `${value}.a`, ` ${value}`, `${value}\n`,
    value.split('.').slice(0, 2).join('.'), `${value.split('.').slice(0, 2).join('.')}.`, '', '..', 'a.b.c']
  const verified = await Promise.all(changed.map(async (value) => ({ value, result: await signer.verify(value) })))
  t.strictSame(verified.filter(({ result }) => result !== undefined), [])
})

t.test('no other alg, key or purpose signs: none, HS512, HS256 under a foreign key (RFC 8725 §3.1)', async (t) => {
  const signer = await createSigner<object>([keyA], 'client')
  const value = await signer.sign({ a: 1 })
  const { typ, kid } = headerOf(value) as { typ: string, kid: string }
  const key = deriveKey(keyA, 'client', 32)
  const bytes = new TextEncoder().encode('{"a":1}')
  const make = async (header: { alg?: string, typ?: string, kid?: string }, secret: Uint8Array = key): Promise<string> =>
    await new CompactSign(bytes).setProtectedHeader({ alg: 'HS256', typ, kid, ...header }).sign(secret)

  t.equal(await make({}), value, 'made by hand as it should be, it is the same')
  const forged: Record<string, string> = {
    'alg none': new UnsecuredJWT({ a: 1 }).encode(),
    'alg none with our typ and kid': `${base64url({ alg: 'none', typ, kid })}.${base64url({ a: 1 })}.`,
    'alg none said afterwards': withHeader(value, { alg: 'none' }),
    'HS512 with our key': await make({ alg: 'HS512' }, Buffer.concat([key, key])),
    'HS384 with our key': await make({ alg: 'HS384' }, Buffer.concat([key, key])),
    'a foreign key': await make({}, randomBytes(32)),
    'the configured key itself': await make({}, keyA),
    'another typ': await make({ typ: 'mcp-oauth-code' }),
    'no typ': await new CompactSign(bytes).setProtectedHeader({ alg: 'HS256', kid }).sign(key),
    'no kid': await new CompactSign(bytes).setProtectedHeader({ alg: 'HS256', typ }).sign(key),
    'another kid': await make({ kid: 'other' }),
    'no JSON inside': await new CompactSign(new TextEncoder().encode('x')).setProtectedHeader({ alg: 'HS256', typ, kid }).sign(key),
    'another purpose': await (await createSigner<object>([keyA], 'other')).sign({ a: 1 }),
    'a sealed value': await (await createSealer()).seal(payload)
  }
  for (const [what, other] of Object.entries(forged)) t.equal(await signer.verify(other), undefined, what)
})

// Clients

const nobody = async (): Promise<undefined> => undefined

t.test('the same app has the same client id from every port and in every order of its redirect URIs, and another app another', async (t) => {
  const signer = await createSigner<ClientIdPayload>([keyA], 'client')
  const register = async (name: string, ...uris: string[]): Promise<string> =>
    await registeredClientId(signer, parseClientMetadata({ client_name: name, redirect_uris: uris }, POLICY))
  const clientId = await register('Codex', 'http://127.0.0.1:1/callback', 'http://localhost:2/callback')
  t.equal(await register('Codex', 'http://localhost:40000/callback', 'http://127.0.0.1:50000/callback', 'http://localhost:3/callback'), clientId)
  t.not(await register('Codex', 'http://127.0.0.1:1/callback'), clientId)
  t.not(await register('Codex 2', 'http://127.0.0.1:1/callback', 'http://localhost:2/callback'), clientId)

  const find = createClientFinder([registeredClients(signer, [])])
  t.strictSame(await find(clientId, nobody), { clientId, clientName: 'Codex', redirectUris: ['http://127.0.0.1/callback', 'http://localhost/callback'], configured: false })
  t.equal(await find(clientId.slice(0, -1), nobody), undefined)
  t.equal(await find('', nobody), undefined)
})

t.test('a client id has at most 2 KiB: longer metadata is refused, and a longer id is nobody\'s', async (t) => {
  t.equal(MAX_CLIENT_ID_LENGTH, 2048)
  const signer = await createSigner<ClientIdPayload>([keyA], 'client')
  const long = Array.from({ length: 10 }, (_, index) => `http://localhost/${index}/${'x'.repeat(200)}`)
  await t.rejects(registeredClientId(signer, parseClientMetadata({ redirect_uris: long }, POLICY)), { code: 'invalid_client_metadata', reason: 'client_metadata_invalid' })
  t.type(await registeredClientId(signer, parseClientMetadata({ client_name: '🙂'.repeat(100), redirect_uris: long.slice(0, 2) }, POLICY)), 'string')

  const asked: string[] = []
  const find = createClientFinder([async (clientId) => { asked.push(clientId); return undefined }])
  t.equal(await find('x'.repeat(MAX_CLIENT_ID_LENGTH), nobody), undefined)
  t.equal(await find('x'.repeat(MAX_CLIENT_ID_LENGTH + 1), nobody), undefined)
  t.equal(asked.length, 1, 'nobody was asked about the longer one')
})

t.test('clients come from the list or the look-up of the app, and the first source that knows one answers', async (t) => {
  const client = { clientId: 'chat', clientName: 'Chat', redirectUris: ['https://chat.example/cb'] }
  const expected = { ...client, configured: true }
  const known = { scopes: new ScopeCatalogue(new Map([['read', { description: 'Read' }]])), resources: [] }
  for (const clients of [[client], (id: string) => id === 'chat' ? client : null, async (id: string) => id === 'chat' ? client : undefined]) {
    const find = createClientFinder([configuredClients(clients, known).find, async () => undefined])
    t.strictSame(await find('chat', nobody), expected)
    t.equal(await find('other', nobody), undefined)
    t.equal(await find('__proto__', nobody), undefined)
  }
  const find = createClientFinder([configuredClients([client], known).find, async (clientId) => ({ ...expected, clientId, configured: false })])
  t.equal((await find('chat', nobody))?.configured, true)
  t.equal((await find('other', nobody))?.configured, false)
})

// Secrets

t.test('a key is at least 32 bytes of hexadecimal or base64url', async (t) => {
  const bytes = randomBytes(32)
  bytes[0] = 0xfb // an underscore or hyphen in base64url
  for (const [text, expected] of [
    [bytes.toString('hex'), bytes], [bytes.toString('hex').toUpperCase(), bytes],
    [bytes.toString('base64url'), bytes], [`${bytes.toString('base64url')}=`, bytes],
    [randomBytes(64).toString('base64url'), 64], ['0'.repeat(64), 32], ['k'.repeat(43), 32]
  ] as const) {
    const key = parseKey(text)
    if (typeof expected === 'number') t.equal(key?.length, expected)
    else t.ok(key?.equals(expected), text)
  }
  for (const text of ['', 'secret', randomBytes(31).toString('hex'), randomBytes(31).toString('base64url'), 'a'.repeat(32), 'k'.repeat(42), '0'.repeat(62),
    `${'k'.repeat(43)}\n`, ` ${'k'.repeat(43)}`, `${'k'.repeat(43)}+`, `${'k'.repeat(43)}/`, `${'k'.repeat(20)} ${'k'.repeat(23)}`, `${'k'.repeat(43)}===`,
    `${'k'.repeat(20)}=${'k'.repeat(23)}`, 'é'.repeat(50), '='.repeat(50), 'correct horse battery staple and more of it']) {
    t.equal(parseKey(text), undefined, shown(text))
  }
})

t.test('a token is its prefix and 32 random bytes in base64url', async (t) => {
  for (const prefix of ['oat_', 'pat_'] as const) {
    const token = createToken(prefix)
    t.match(token, new RegExp(`^${prefix}[A-Za-z0-9_-]{43}$`))
    t.ok(isToken(token))
  }
  const tokens = new Set(Array.from({ length: 1000 }, () => createToken('oat_')))
  t.equal(tokens.size, 1000)
  const body = 'a'.repeat(43)
  for (const value of ['', 'oat_', body, `oat_${body}a`, `oat_${body.slice(1)}`, `OAT_${body}`, `ort_${body}`, `xat_${body}`, `oat_${body}\n`, ` oat_${body}`,
    `oat_${body.slice(1)}=`, `oat_${body.slice(1)}+`, `oat_${'a'.repeat(1_000_000)}`]) t.notOk(isToken(value), shown(value))
})

t.test('only the SHA-256 of a token is stored, 32 bytes', async (t) => {
  t.equal(hashToken('abc').toString('hex'), 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad', 'FIPS 180-4')
  t.equal(hashToken(createToken('pat_')).length, 32)
})

t.test('a grant id is 128 random bits in base64url', async (t) => {
  t.match(createGrantId(), /^[A-Za-z0-9_-]{22}$/)
  t.equal(new Set(Array.from({ length: 1000 }, createGrantId)).size, 1000)
})

t.test('each purpose has a key of its own, the same each time (RFC 5869)', async (t) => {
  const purposes = ['code', 'consent', 'page', 'client', 'code kid', '']
  t.equal(new Set(purposes.map((purpose) => deriveKey(keyA, purpose, 32).toString('hex'))).size, purposes.length)
  t.ok(deriveKey(keyA, 'code', 32).equals(deriveKey(keyA, 'code', 32)))
  t.notOk(deriveKey(keyA, 'code', 32).equals(deriveKey(keyB, 'code', 32)))
  t.notOk(deriveKey(keyA, 'code', 32).equals(keyA))
  t.equal(deriveKey(keyA, 'code', 6).length, 6)
})

// Possession of a code, and tickets

t.test('a code is redeemed by the client, redirect URI, resource and verifier it was made for, checked in this order (RFC 6749 §4.1.3, RFC 7636 §4.6)', async (t) => {
  const code: AuthorizationCode = {
    grantId: 'g',
    userId: 'alice',
    tenantId: null,
    clientId: 'mine',
    clientName: 'Mine',
    redirectUri: 'http://localhost:5/cb',
    codeChallenge: CHALLENGE,
    scopes: ['read'],
    resource: 'https://notes.example.com/mcp',
    issuedAt: NOW,
    expiresAt: NOW + 60_000
  }
  const valid = { code_verifier: VERIFIER, redirect_uri: code.redirectUri, resource: code.resource }
  const check = (changes: Record<string, string> = {}, clientId = 'mine'): void => {
    const parameters = parseParameters(new URLSearchParams({ ...valid, ...changes }).toString())
    const resources = [resource(code.resource), resource('https://notes.example.com/admin')]
    checkPossession(code, clientId, findResource(parameters.get('resource') ?? '', resources)?.uri, parameters)
  }
  check()
  check({ redirect_uri: '' })
  check({ resource: '' })
  check({ resource: 'https://NOTES.example.com/mcp/' })
  t.pass('redirect_uri and resource may be absent')

  for (const [changes, errorCode, reason] of [
    [{ redirect_uri: 'http://localhost:6/cb' }, 'invalid_grant', 'redirect_uri_mismatch'],
    [{ redirect_uri: 'http://localhost:5/cb/' }, 'invalid_grant', 'redirect_uri_mismatch'],
    [{ redirect_uri: 'https://evil.example/' }, 'invalid_grant', 'redirect_uri_mismatch'],
    [{ resource: 'https://notes.example.com/admin' }, 'invalid_target', 'resource_mismatch'],
    [{ resource: 'https://evil.example/' }, 'invalid_target', 'resource_mismatch'],
    [{ resource: 'nonsense' }, 'invalid_target', 'resource_mismatch'],
    [{ code_verifier: '' }, 'invalid_request', 'pkce_verifier_malformed'],
    [{ code_verifier: 'a'.repeat(42) }, 'invalid_request', 'pkce_verifier_malformed'],
    [{ code_verifier: 'a'.repeat(129) }, 'invalid_request', 'pkce_verifier_malformed'],
    [{ code_verifier: 'a'.repeat(43) }, 'invalid_grant', 'pkce_mismatch'],
    [{ code_verifier: 'a'.repeat(128) }, 'invalid_grant', 'pkce_mismatch'],
    [{ code_verifier: CHALLENGE }, 'invalid_grant', 'pkce_mismatch'],
    [{ redirect_uri: 'x', resource: 'x', code_verifier: 'x' }, 'invalid_grant', 'redirect_uri_mismatch'],
    [{ resource: 'x', code_verifier: 'x' }, 'invalid_target', 'resource_mismatch']
  ] as Array<[Record<string, string>, ErrorCode, Reason]>) refuses(t, () => check(changes), errorCode, reason, shown(changes))

  refuses(t, () => check({ redirect_uri: 'x', resource: 'x', code_verifier: 'x' }, 'other'), 'invalid_grant', 'client_mismatch', 'another client with nothing right')
  const error = refuses(t, () => check({}, 'other'), 'invalid_grant', 'client_mismatch', 'another client')
  t.match(error, { about: { userId: 'alice', clientId: 'other', grantId: 'g' } }, 'for the audit event')
})

t.test('a ticket is worth something only to the user, and the tenant, it was made for', async (t) => {
  const ticket = { userId: 'alice', tenantId: null, expiresAt: NOW }
  const inTenant = { ...ticket, tenantId: 'acme' }
  t.equal(checkTicket(ticket, { id: 'alice' }), ticket)
  t.equal(checkTicket(inTenant, { id: 'alice', tenantId: 'acme' }), inTenant)
  for (const [given, user, reason] of [
    ['unreadable', { id: 'alice' }, 'ticket_unreadable'],
    ['expired', { id: 'alice' }, 'ticket_expired'],
    ['unreadable', null, 'ticket_unreadable'],
    ['expired', null, 'ticket_expired'],
    [ticket, null, 'signed_out'],
    [ticket, { id: 'bob' }, 'ticket_for_another_user'],
    [ticket, { id: 'Alice' }, 'ticket_for_another_user'],
    [ticket, { id: '' }, 'ticket_for_another_user'],
    [ticket, { id: 'alice', tenantId: 'acme' }, 'ticket_for_another_user'],
    [inTenant, { id: 'alice' }, 'ticket_for_another_user'],
    [inTenant, { id: 'alice', tenantId: 'other' }, 'ticket_for_another_user']
  ] as Array<[Parameters<typeof checkTicket>[0], Parameters<typeof checkTicket>[1], Reason]>) {
    const error = refuses(t, () => checkTicket(given, user), 'access_denied', reason, `${shown(given)} for ${shown(user)}`)
    t.match(error, { statusCode: 403 })
  }
})
