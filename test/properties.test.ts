import fc from 'fast-check'
import { createLocalJWKSet, type JSONWebKeySet } from 'jose'
import assert from 'node:assert/strict'
import { randomBytes, randomInt } from 'node:crypto'
import { Agent, request as httpRequest, validateHeaderValue } from 'node:http'
import { isIP, type AddressInfo } from 'node:net'
import { performance } from 'node:perf_hooks'
import process from 'node:process'
import t, { type Test } from 'tap'
import { isPublicAddress } from '../dist/clients/public-https.js'
import { formatChallenge, type Challenge } from '../dist/protocol/challenge.js'
import { parseClientMetadata, parseClientName, printable, UNNAMED_CLIENT } from '../dist/protocol/client-metadata.js'
import { OAuthError } from '../dist/protocol/errors.js'
import { isClientIdUrl, parseMetadataDocument } from '../dist/protocol/metadata-document.js'
import { parseParameters } from '../dist/protocol/parameters.js'
import { authorizationResponse, isLoopbackRedirectUri, isRedirectUri, redirectUriMatches } from '../dist/protocol/redirect-uri.js'
import { ScopeCatalogue, type ScopeDefinition } from '../dist/protocol/scope.js'
import { createSealer, createSigner, type Expiring } from '../dist/protocol/sealed.js'
import { CALLBACK, FORM, ISSUER, dance, fieldOf, form, testApp } from './app.js'

// Rules with cases that nobody thought of. What they are held against is written anew here, from the standard, or is
// somebody else's: the URL parser, the database of Unicode. Two things are not: names are held against printable(), which
// has rules of its own below, and DANGEROUS repeats the list of lib. FC_SEED runs the same cases again, FC_TIMES so many times more.

const SEED = process.env.FC_SEED === undefined ? randomInt(2 ** 31) : Number(process.env.FC_SEED)
const TIMES = Number(process.env.FC_TIMES ?? 1)

t.setTimeout(TIMES * 300_000)
let cases = 0
t.teardown(() => t.comment(`${cases} generated cases in all`))

/** Checks a property with so many cases. A failure says with which seed, and the smallest case that fails. */
async function holds<T> (t: Test, rule: string, runs: number, property: fc.IRawProperty<T>): Promise<void> {
  const startedAt = performance.now()
  const details = await fc.check(property, { seed: SEED, numRuns: runs * TIMES, includeErrorInReport: true })
  cases += details.numRuns
  t.comment(`seed ${details.seed}, ${details.numRuns} cases, ${((performance.now() - startedAt) / 1000).toFixed(1)} s: ${rule}`)
  t.equal(fc.defaultReportMessage(details), undefined, rule)
}

/** Counts what the cases were like: a generator that never hits shows nothing. */
class Seen {
  readonly #counts = new Map<string, number>()

  note (what: unknown): void {
    this.#counts.set(String(what), (this.#counts.get(String(what)) ?? 0) + 1)
  }

  check (t: Test, least: number, ...whats: unknown[]): void {
    for (const what of whats) t.ok((this.#counts.get(String(what)) ?? 0) >= least, `${this.#counts.get(String(what)) ?? 0} cases were ${String(what)}`)
  }
}

/** What a function answers, or the refusal that it throws; any other error is a failure of the property. */
function answerOf<T> (run: () => T): T | OAuthError {
  try {
    return run()
  } catch (error) {
    if (error instanceof OAuthError) return error
    throw error
  }
}

/** The text as it is in UTF-8, where half a surrogate pair is none. */
const wellFormed = (text: string): string => Buffer.from(text).toString()

const codePoint = fc.nat(0x10ffff).map((code) => String.fromCodePoint(code))

/** A text with one or two characters put in, taken out, or written otherwise. */
function harmed (text: fc.Arbitrary<string>): fc.Arbitrary<string> {
  const inserted = fc.constantFrom('\t', '\n', '\r', '\0', ' ', '\\', '/', '@', '#', '?', ':', '.', '%', '%2e', '%2f', '%00', '%40', '\u3002', '\uff0f', '\u200b', 'é', '\ud800', '[', ']', '"', '<', '|', '\x7f')
  const harm = fc.tuple(fc.constantFrom('insert', 'remove', 'upper', 'lower', 'encode', 'double'), fc.nat(200), inserted)
  return fc.tuple(text, fc.array(harm, { minLength: 1, maxLength: 2 })).map(([text, harms]) => harms.reduce((text, [how, at, inserted]) => {
    const index = at % (text.length + 1)
    const [before, character, after] = [text.slice(0, index), text.slice(index, index + 1), text.slice(index + 1)]
    if (how === 'insert') return before + inserted + character + after
    if (how === 'remove') return before + after
    if (how === 'upper') return before + character.toUpperCase() + after
    if (how === 'lower') return before + character.toLowerCase() + after
    if (how === 'double') return before + character + character + after
    return before + (character === '' ? '' : `%${character.charCodeAt(0).toString(16)}`) + after
  }, text))
}

// Redirect URIs

/** Of each part of a URI what may be there, and what looks like it. */
const PARTS: ReadonlyArray<readonly [good: string[], near: string[]]> = [
  [['http', 'http', 'http', 'https', 'cursor', 'com.example.app'], ['HTTP', 'Http', 'HTTPS', 'Cursor', 'javascript', 'JavaScript', 'data', 'vbscript', 'file', 'blob', 'about', 'filesystem', 'view-source', 'ws', 'wss', 'ftp', 'mailto', 'tel', 'intent', 'h ttp', ' http', '']],
  [['://'], [':', ':/', ':///', ':////', ':\\\\', ':/\\', '//', '%3a//', '']],
  [[''], ['user@', 'user:password@', '@', ':@', '@@', 'localhost@', 'localhost:80@', '127.0.0.1@', '[::1]@', 'x.example@', '%40', 'user%40', 'localhost%2f@', 'localhost\\@']],
  [['localhost', '127.0.0.1', '[::1]', 'x.example'], ['LOCALHOST', 'Localhost', 'localhost.', '.localhost', 'localhost.evil.example', 'notlocalhost', 'localhost.localdomain', 'localhost%2eevil.example', '%6cocalhost', 'localhost%00', 'localhost%00.evil.example', 'l\u043ecalhost', '\uff4cocalhost', 'local\u00adhost',
    '127.0.0.1.evil.example', '127.0.0.1.', '127.0.0.2', '127.1', '127.0.1', '0.0.0.0', '2130706433', '0x7f000001', '0x7f.0.0.1', '0177.0.0.1', '127.0.0.01', '127%2e0.0.1', '127\u30020\u30020\u30021', '169.254.169.254',
    '[::]', '[0:0:0:0:0:0:0:1]', '[::0001]', '[0::1]', '[::0.0.0.1]', '[::ffff:127.0.0.1]', '[::ffff:7f00:1]', '[::1%25lo]', '[::1', '::1]', '::1', '[::1]evil.example', '[v1.x]', 'evil.example', 'X.example', '']],
  [['', '', ':0', ':1', ':80', ':443', ':8787', ':65535', ':00080'], [':', ':65536', ':99999', ':000080', ':123456', ':0x50', ':-1', ':+80', ':80a', ':80:81', ':80@evil.example', ':@evil.example', ':\u0663', ': 80']],
  [['/callback', '/callback', '/', '', '/callback/', '/a/../callback', '/%63allback', '//evil.example', '/@evil.example', '/a@b', '/;x', '/[x]', "/!$&'()*+,=", '/%', '/.'], ['/\\evil.example', '\\evil.example', '/a b', '/é', '/{x}', '/|', '/^', '/`', '/"', '/<script>', '/\0', '/\r\nSet-Cookie:a=b', '/\u202e', '.evil.example', '@evil.example']],
  [['', '', '?a=b', '?a=b&c=d', '?', '?x=%20+%C3%A9&x=2', '?x=a@b', '?next=http://evil.example/'], ['?x=é', '?x=a b', '?x=\\', '?x="', '?x=\n']],
  [[''], ['#', '#a', '#@evil.example/', '#?', '%23']]
]

/** Mostly a URI with at most two parts that only look right; else one with single characters that are wrong. */
const uri: fc.Arbitrary<string> = (() => {
  const misses = PARTS.flatMap(([, near], index) => near.map((part): [number, string] => [index, part]))
  const good = fc.tuple(...PARTS.map(([good]) => fc.constantFrom(...good)))
  const pieced = fc.tuple(good, fc.array(fc.constantFrom(...misses), { maxLength: 2 }))
    .map(([parts, misses]) => misses.reduce((parts, [index, part]) => parts.with(index, part), parts).join(''))
  return fc.oneof({ weight: 3, arbitrary: good.map((parts) => parts.join('')) }, { weight: 5, arbitrary: pieced }, { weight: 3, arbitrary: harmed(pieced) }, { weight: 1, arbitrary: fc.webUrl({ withQueryParameters: true, withFragments: true }) }, { weight: 1, arbitrary: fc.string({ unit: 'binary' }) })
})()

/** RFC 3986 appendix B, to the letter: how the standard takes a URI apart, whatever a browser makes of it. */
function partsOf (uri: string): { scheme: string | undefined, authority: string | undefined, path: string, query: string | undefined, fragment: string | undefined } {
  const [,, scheme,, authority, path = '',, query,, fragment] = /^(([^:/?#]+):)?(\/\/([^/?#]*))?([^?#]*)(\?([^#]*))?(#(.*))?$/s.exec(uri)!
  return { scheme, authority, path, query, fragment }
}

/** RFC 3986 §2.2 and §2.3, and the percent sign; a fragment's # is no part of a redirect URI. */
const URI_CHARACTERS = new Set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~:/?[]@!$&'()*+,;=%")

function isUriText (uri: string): boolean {
  return [...uri].every((character) => URI_CHARACTERS.has(character))
}

/** The rule in words: http, the host exactly one of three, any port, no userinfo, no fragment. As written, and as a browser reads it. */
function loopbackByRule (uri: string): { host: string, rest: string } | undefined {
  const { scheme, authority = '', path, query, fragment } = partsOf(uri)
  const host = ['localhost', '127.0.0.1', '[::1]'].find((host) => authority === host || authority.startsWith(`${host}:`))
  if (scheme !== 'http' || host === undefined || fragment !== undefined || !isUriText(uri)) return undefined
  const port = authority.slice(host.length + 1)
  if (authority !== host && !(/^[0-9]{1,5}$/.test(port) && Number(port) < 2 ** 16)) return undefined
  const url = new URL(uri)
  assert.deepEqual([url.protocol, url.hostname, url.username, url.password, url.hash], ['http:', host, '', '', ''], 'a browser goes elsewhere')
  return { host, rest: path + (query === undefined ? '' : `?${query}`) }
}

/** What a browser runs, reads as a file, sends in the clear or hands to another program with the code in it. */
const DANGEROUS = ['http', 'javascript', 'data', 'vbscript', 'file', 'blob', 'about', 'filesystem', 'view-source', 'ws', 'wss', 'ftp', 'mailto', 'tel', 'intent']

/** https or a private-use scheme, as written and as a browser reads it, without userinfo and fragment; or loopback http. */
function allowableByRule (uri: string): boolean {
  if (loopbackByRule(uri) !== undefined) return true
  if (!isUriText(uri) || !URL.canParse(uri)) return false
  const { scheme = '', authority } = partsOf(uri)
  const { protocol, username, password, host } = new URL(uri)
  return `${scheme}:` === protocol && !DANGEROUS.includes(scheme) && username === '' && password === '' && authority?.includes('@') !== true &&
    (scheme !== 'https' || (host !== '' && authority !== undefined && authority !== ''))
}

t.test('a loopback redirect URI is http to exactly localhost, 127.0.0.1 or [::1], for the standard and for a browser (RFC 8252 §7.3)', async (t) => {
  const seen = new Seen()
  await holds(t, 'isLoopbackRedirectUri is the rule in words', 6000, fc.property(uri, (uri) => {
    const is = isLoopbackRedirectUri(uri)
    seen.note(is)
    assert.equal(is, loopbackByRule(uri) !== undefined)
  }))
  seen.check(t, 50, true, false)
})

t.test('a redirect URI that may be allowed is one that no browser runs, reads as a file or sends in the clear, without userinfo', async (t) => {
  const seen = new Seen()
  await holds(t, 'isRedirectUri is the rule in words', 6000, fc.property(uri, (uri) => {
    const is = isRedirectUri(uri)
    seen.note(is)
    assert.equal(is, allowableByRule(uri))
  }))
  seen.check(t, 50, true, false)
})

t.test('two redirect URIs match where all but a loopback port is equal (RFC 8252 §7.3)', async (t) => {
  const otherPort = fc.tuple(uri, fc.oneof(fc.constantFrom('', ':', ':1', ':65535', ':65536', ':80@evil.example'), fc.nat(70_000).map((port) => `:${port}`)))
    .map(([uri, port]): [string, string] => [uri, uri.replace(/^([a-z]+:\/\/(?:\[[^\]]*\]|[^/:?#]*))(:\d+)?/, `$1${port}`)])
  const pair = fc.oneof(fc.tuple(uri, uri), uri.map((uri): [string, string] => [uri, uri]), otherPort, uri.chain((uri) => harmed(fc.constant(uri)).map((other): [string, string] => [uri, other])))
  const seen = new Seen()
  await holds(t, 'redirectUriMatches is the rule in words, in either order', 6000, fc.property(pair, ([registered, presented]) => {
    const [one, other] = [loopbackByRule(registered), loopbackByRule(presented)]
    const expected = registered === presented || (one !== undefined && other !== undefined && one.host === other.host && one.rest === other.rest)
    seen.note(expected ? registered === presented ? 'the same' : 'the same but for the port' : 'different')
    assert.equal(redirectUriMatches(registered, presented), expected)
    assert.equal(redirectUriMatches(presented, registered), expected)
  }))
  seen.check(t, 50, 'the same', 'the same but for the port', 'different')
})

t.test('an authorization response is the redirect URI as it is and each parameter once (RFC 6749 §4.1.2)', async (t) => {
  const redirectUri = uri.filter(isRedirectUri)
  const value = fc.option(fc.oneof(fc.string({ unit: 'binary' }), fc.constantFrom('a b', 'a+b', 'a&code=evil', '#', '\r\nSet-Cookie: a=b', '%20', "'()*!~", '?')), { nil: undefined })
  const parameters = fc.record({ code: value, error: value, error_description: value, state: value, iss: value })
  await holds(t, 'the query is kept and continued', 4000, fc.property(redirectUri, parameters, (redirectUri, parameters) => {
    const response = authorizationResponse(redirectUri, parameters)
    assert.ok(response.startsWith(redirectUri))
    assert.match(response.slice(redirectUri.length), /^[?&][!-~]*$/, 'nothing ends the header')
    assert.equal(new URL(response).hash, '')
    const sent = Object.entries(parameters).filter((entry): entry is [string, string] => entry[1] !== undefined)
    assert.deepEqual([...new URL(response).searchParams], [...new URL(redirectUri).searchParams, ...sent])
  }))
})

// Registrations and metadata documents

const json = fc.jsonValue({ maxDepth: 3 })
const throughJson = (value: unknown): unknown => JSON.parse(JSON.stringify(value))

/** Mostly what it should be, and any JSON otherwise. */
function mostly (value: fc.Arbitrary<unknown>): fc.Arbitrary<unknown> {
  return fc.oneof({ weight: 8, arbitrary: value }, { weight: 1, arbitrary: json }, { weight: 1, arbitrary: fc.constantFrom(null, '', [], {}, 0, false, [null], [[]], [''], ['__proto__']) })
}

/** Characters that hide, reorder, combine or compose, among others. */
const strangeText = (maxLength: number): fc.Arbitrary<string> => fc.array(fc.oneof(
  { weight: 3, arbitrary: fc.constantFrom(...'aZ09 <>&"\'/`=\t\r\n'.split(''), 'Claude', '&amp;', '</bdi>', '\u0000', '\u001b', '\u0085', '\u00a0', '\u00ad', '\u034f', '\u061c', '\u115f', '\u1160', '\u180e', '\u2000', '\u200b', '\u200d', '\u200e', '\u2028', '\u2029', '\u202e', '\u2066', '\u2069', '\u2800', '\u3000', '\u3164', '\ufe0f', '\ufeff', '\uffa0', '\ufffe', '\ue000', '\ud800', '\udc00', '\u{e0041}', '🙂', '👨\u200d👩\u200d👧') },
  { weight: 2, arbitrary: fc.constantFrom('e', 'A', '\u0300', '\u0301', '\u0327', '\u0338', '\u0345', '\u05b0', '\u093c', '\u09be', '\u09c7', '\u0f71', '\u0f72', '\u1100', '\u1161', '\u11a8', '\uac00', '\u1ab0', '\u20dd', '\u302e', '\u3099', 'か', '\u0344', '\u2126', '\u212b', '\u{1d165}', '\u{1d15e}') },
  { weight: 1, arbitrary: codePoint }
), { maxLength }).map((characters) => characters.join(''))

const name = fc.oneof(strangeText(12), strangeText(12), fc.tuple(fc.constantFrom('x', '🙂', 'e\u0301', 'x\u200b', '\u0301', '漢', '\ud800'), fc.nat(120)).map(([text, count]) => text.repeat(count)))
const redirectUris = fc.array(fc.oneof(uri, fc.constant(CALLBACK)), { minLength: 1, maxLength: 6 })
const many = fc.integer({ min: 8, max: 12 }).map((count) => Array.from({ length: count }, (_, index) => `http://localhost/${index}`))
const long = fc.nat(2500).map((length) => [`http://localhost/${'x'.repeat(length)}`])

/** Fields of a registration, each as it may be. */
const METADATA: Record<string, fc.Arbitrary<unknown>> = {
  client_name: name,
  redirect_uris: fc.oneof(redirectUris, redirectUris, many, long),
  grant_types: fc.array(fc.constantFrom('authorization_code', 'authorization_code', 'refresh_token', 'implicit', '', '__proto__'), { maxLength: 4 }),
  response_types: fc.array(fc.constantFrom('code', 'code', 'token', 'code token', ''), { maxLength: 3 }),
  scope: fc.string(),
  token_endpoint_auth_method: fc.constantFrom('none', 'client_secret_basic')
}
const extras = fc.dictionary(fc.oneof(fc.string(), fc.constantFrom('__proto__', 'constructor', 'toString', 'client_uri', 'logo_uri')), json, { maxKeys: 3 })

/** An object with some of the fields, at most two of them anything at all. */
function documentOf (fields: Record<string, fc.Arbitrary<unknown>>, good: fc.Arbitrary<object>): fc.Arbitrary<unknown> {
  const entry = (value: (field: fc.Arbitrary<unknown>) => fc.Arbitrary<unknown>) => fc.oneof(...Object.entries(fields).map(([name, field]) => value(field).map((value): [string, unknown] => [name, value])))
  return fc.tuple(extras, good, fc.array(entry((field) => field), { maxLength: 3 }), fc.array(entry(mostly), { maxLength: 2 }))
    .map(([extras, good, ...entries]) => throughJson({ ...extras, ...good, ...Object.fromEntries(entries.flat()) }))
}

const POLICY = { redirectUris: ['https://x.example/callback', 'cursor://x.example/callback'], grantTypes: ['authorization_code', 'refresh_token'] }

const isTexts = (value: unknown): value is string[] => Array.isArray(value) && value.every((entry) => typeof entry === 'string')

/** By the words of the README and RFC 7591: what is wrong in a registration for which the given URIs may register. */
function whatIsWrong (body: unknown, mayRegister: (uri: string) => boolean): 'invalid_client_metadata' | 'invalid_redirect_uri' | 'either' | undefined {
  if (typeof body !== 'object' || body === null || Array.isArray(body)) return 'invalid_client_metadata'
  const { client_name: name, redirect_uris: uris, grant_types: grants, response_types: responses, scope } = body as Record<string, unknown>
  const badUris = !isTexts(uris) || uris.filter(mayRegister).length < 1 || uris.filter(mayRegister).length > 10
  const badFields = [name, scope].some((value) => value != null && typeof value !== 'string') || (typeof name === 'string' && [...printable(name)].length > 100) ||
    (grants != null && !(isTexts(grants) && grants.includes('authorization_code'))) || (responses != null && !(isTexts(responses) && responses.includes('code')))
  return badUris ? badFields ? 'either' : 'invalid_redirect_uri' : badFields ? 'invalid_client_metadata' : undefined
}

/** What was read is within bounds, and nothing in it was not sent. */
function checkMetadata (result: { clientName: string, redirectUris: string[] }, body: unknown, mayRegister: (uri: string) => boolean): void {
  const { clientName, redirectUris } = result
  const { client_name: name, redirect_uris: sent } = body as { client_name?: string | null, redirect_uris: string[] }
  assert.ok(clientName !== '' && [...clientName].length <= 100)
  assert.equal(clientName, printable(name ?? '') || UNNAMED_CLIENT)
  assert.deepEqual(redirectUris, [...new Set(sent.filter(mayRegister))])
  assert.ok(redirectUris.length >= 1 && redirectUris.length <= 10)
}

/** A refusal in one of the two codes, in words that may travel. RFC 6749 §5.2. */
function checkRefusal ({ code, description }: OAuthError, expected: ReturnType<typeof whatIsWrong>): void {
  assert.ok(['invalid_client_metadata', 'invalid_redirect_uri'].includes(code) && (expected === 'either' || code === expected), `${code} in place of ${expected}`)
  assert.match(description, /^[ !#-[\]-~]+$/)
}

const registration = documentOf(METADATA, redirectUris.map((uris) => ({ redirect_uris: uris })))
const mayRegister = (uri: string): boolean => loopbackByRule(uri) !== undefined || POLICY.redirectUris.includes(uri)

t.test('a registration of any JSON is narrowed to what may be had, or refused in one of two codes (RFC 7591 §3.2.2)', async (t) => {
  const body = fc.oneof({ weight: 1, arbitrary: json }, { weight: 12, arbitrary: registration })
  const seen = new Seen()
  await holds(t, 'parseClientMetadata returns within bounds, or throws an OAuthError', 3500, fc.property(body, (body) => {
    const expected = whatIsWrong(body, mayRegister)
    const result = answerOf(() => parseClientMetadata(body, POLICY))
    seen.note(expected)
    if (result instanceof OAuthError) return checkRefusal(result, expected)
    assert.equal(expected, undefined, 'not refused')
    checkMetadata(result, body, mayRegister)
    assert.deepEqual(Object.keys(result).sort(), ['clientName', 'grantTypes', 'redirectUris', 'scope'])
    assert.ok(result.grantTypes.includes('authorization_code') && new Set(result.grantTypes).size === result.grantTypes.length && result.grantTypes.every((type) => POLICY.grantTypes.includes(type)))
    assert.equal(result.scope, (body as { scope?: string | null }).scope ?? undefined)
  }))
  seen.check(t, 20, undefined, 'invalid_client_metadata', 'invalid_redirect_uri')
})

t.test('registering any JSON over HTTP is 201 with a client id that works, or 400 in JSON', async (t) => {
  const app = await testApp(t, { registration: { redirectUris: POLICY.redirectUris } })
  const seen = new Seen()
  await holds(t, 'a registration is answered', 120, fc.asyncProperty(registration, async (body) => {
    const response = await app.inject({ method: 'POST', url: '/oauth/register', headers: { 'content-type': 'application/json' }, payload: JSON.stringify(body) })
    seen.note(response.statusCode)
    assert.equal(response.headers['cache-control'], 'no-store')
    const answer = response.json<{ client_id: string, redirect_uris: string[], error: string }>()
    if (response.statusCode !== 201) return assert.ok(response.statusCode === 400 && ['invalid_client_metadata', 'invalid_redirect_uri'].includes(answer.error), response.body)
    assert.ok(answer.client_id.length <= 2048)
    const page = await app.inject({ url: `/oauth/authorize?${form(dance(app).query(answer.client_id, { redirect_uri: answer.redirect_uris[0]! }))}`, headers: { 'x-user': 'alice' } })
    assert.equal(page.statusCode, 200)
  }))
  seen.check(t, 5, 201, 400)
})

const HOSTED = 'https://client.example/client.json'
const ownUri = fc.constantFrom('https://client.example/callback', 'https://client.example:8443/callback', 'https://CLIENT.example/cb', 'https://client.example@evil.example/cb', 'https:///user@client.example/cb', 'https:/client.example/cb', 'https://user@client.example/cb',
  'https://client.example:443/cb', 'https://client.example.evil.example/cb', 'https://client.example\\@evil.example/', 'http://client.example/cb', 'cursor://client.example/cb', 'https://client.example?x=a@b', 'https://client.example#x')

t.test('a metadata document of any JSON is narrowed to what its host may vouch for, or refused in one of two codes', async (t) => {
  const jwk = fc.record({ kty: fc.constantFrom('EC', 'RSA', 'oct', 'OKP'), kid: json, x: json }).chain((key) => fc.constantFrom({}, {}, {}, { d: 'x' }, { k: 'x' }, { d: null }).map((secret) => ({ ...key, ...secret })))
  const [keys, place] = [fc.record({ keys: fc.array(jwk, { maxLength: 2 }) }), fc.constantFrom('https://keys.example/jwks.json', 'https://client.example/keys?x')]
  const keyed = fc.oneof(keys.map((jwks) => ({ jwks })), place.map((uri) => ({ jwks_uri: uri }))).map((keys) => ({ ...keys, token_endpoint_auth_method: 'private_key_jwt' }))
  const own = fc.array(fc.oneof(ownUri, uri), { maxLength: 6 }).map((uris) => ['https://client.example/callback', ...uris])
  const fields = {
    ...METADATA,
    client_id: fc.oneof(fc.constant(HOSTED), harmed(fc.constant(HOSTED))),
    redirect_uris: fc.oneof(own, fc.array(fc.oneof(ownUri, uri), { maxLength: 2 }), fc.constantFrom(['https://evil.example/cb'], [])),
    token_endpoint_auth_method: fc.constantFrom('none', 'private_key_jwt', 'client_secret_basic'),
    jwks: fc.oneof(keys, fc.record({ keys: fc.array(fc.oneof(jwk, json), { maxLength: 2 }) })),
    jwks_uri: fc.oneof(place, fc.constantFrom('http://client.example/keys', 'https://', 'https://[', 'file:///etc/passwd')),
    client_secret: json,
    client_secret_expires_at: json
  }
  const good = fc.tuple(own, fc.oneof(fc.constant({}), keyed)).map(([uris, keys]) => ({ client_id: HOSTED, client_name: 'Hosted client', redirect_uris: uris, ...keys }))
  const itsOwn = (uri: string): boolean => allowableByRule(uri) && uri.startsWith('https://') && new URL(uri).host === 'client.example'
  const mayUse = (uri: string): boolean => mayRegister(uri) || itsOwn(uri)
  const seen = new Seen()
  await holds(t, 'parseMetadataDocument returns what may be used, or throws an OAuthError', 3500, fc.property(documentOf(fields, good), (value) => {
    const document = value as Record<string, unknown>
    const expected = whatIsWrong(document, mayUse)
    const result = answerOf(() => parseMetadataDocument(document, HOSTED, POLICY))
    seen.note(result instanceof OAuthError ? result.reason : 'jwks' in result ? 'good, with keys' : 'jwksUri' in result ? 'good, with the place of its keys' : 'good')
    if (result instanceof OAuthError) {
      const grounds: Record<string, boolean> = {
        client_metadata_mismatch: document.client_id !== HOSTED,
        client_metadata_secret: 'client_secret' in document || 'client_secret_expires_at' in document || /"[dk]":/.test(JSON.stringify(document.jwks ?? null)),
        client_metadata_method: 'token_endpoint_auth_method' in document && document.token_endpoint_auth_method !== 'none'
      }
      assert.ok(grounds[result.reason] ?? true, result.reason)
    }
    if (result instanceof OAuthError) return checkRefusal(result, result.reason === 'redirect_uri_missing' || result.reason === 'redirect_uri_not_allowed' ? expected : 'either')
    assert.equal(expected, undefined, 'not refused')
    assert.ok(document.client_id === HOSTED && typeof document.client_name === 'string' && !('client_secret' in document) && !('client_secret_expires_at' in document))
    checkMetadata(result, document, mayUse)
    const method = 'token_endpoint_auth_method' in document ? document.token_endpoint_auth_method : 'none'
    assert.equal('jwks' in result || 'jwksUri' in result, method === 'private_key_jwt')
    assert.ok(['none', 'private_key_jwt'].includes(String(method)))
    assert.ok(!('jwks' in result && 'jwksUri' in result))
    if (result.jwksUri !== undefined) assert.equal(new URL(result.jwksUri).protocol, 'https:')
    if (result.jwks !== undefined) {
      assert.ok(result.jwks.keys.every((key) => !('d' in key) && !('k' in key)), 'no private key is taken for a public one')
      createLocalJWKSet(result.jwks as JSONWebKeySet)
    }
  }))
  seen.check(t, 5, 'good', 'good, with keys', 'good, with the place of its keys', 'client_metadata_mismatch', 'client_metadata_secret', 'client_metadata_method', 'client_metadata_invalid', 'redirect_uri_missing', 'redirect_uri_not_allowed')
})

t.test('a client id that is a URL is https with a path, without dot segments, userinfo and fragment, in the one way that a browser writes it', async (t) => {
  const good = fc.tuple(fc.constantFrom('client.example', 'client.example:8443', 'xn--bcher-kva.example', '192.0.2.1', '[2001:db8::1]'), fc.constantFrom('/a', '/client.json', '/a/b/', '/a//b', '/%41', '/.a', '/...', '/a;b', '/~', '//'), fc.constantFrom('', '', '?v=1', '?', '?a=https://evil.example/'))
    .map((parts) => `https://${parts.join('')}`)
  const id = fc.oneof({ weight: 2, arbitrary: good }, { weight: 4, arbitrary: harmed(good) }, { weight: 2, arbitrary: uri }, { weight: 1, arbitrary: uri.map((uri) => uri.replace('http:', 'https:')) },
    { weight: 1, arbitrary: fc.tuple(good, fc.constantFrom('/..', '/../b', '/./b', '/%2e%2e/b', '/.%2E', '/%2e', '#', '#a', '\\b')).map((parts) => parts.join('')) })
  const seen = new Seen()
  await holds(t, 'isClientIdUrl is the rule in words', 6000, fc.property(id, (id) => {
    const { scheme, authority = '', path, fragment } = partsOf(id)
    const hasDots = path.split(/[/\\]/).some((segment) => /^(\.|%2e){1,2}$/i.test(segment))
    const expected = scheme === 'https' && authority !== '' && !authority.includes('@') && path.startsWith('/') && path !== '/' && !hasDots && fragment === undefined &&
      !authority.endsWith(':0') && URL.canParse(id) && new URL(id).href === id && new URL(id).host === authority
    seen.note(expected)
    assert.equal(isClientIdUrl(id), expected)
  }))
  seen.check(t, 50, true, false)
})

// Addresses

type Block = readonly [first: bigint, bits: number]
const block4 = (text: string): Block => [number4(text.split('/')[0]!), Number(text.split('/')[1])]
const block6 = (text: string): Block => [number6(text.split('/')[0]!), Number(text.split('/')[1])]

function number4 (address: string): bigint {
  return address.split('.').reduce((number, part) => number * 256n + BigInt(part), 0n)
}

/** By the URL parser, which writes an IPv6 address in hexadecimal groups. */
function number6 (address: string): bigint {
  const [head = '', tail] = new URL(`http://[${address}]/`).hostname.slice(1, -1).split('::')
  const groups = (text: string): string[] => text === '' ? [] : text.split(':')
  const [first, last] = [groups(head), groups(tail ?? '')]
  return [...first, ...Array<string>(8 - first.length - last.length).fill('0'), ...last].reduce((number, group) => number * 65536n + BigInt(`0x${group}`), 0n)
}

/** IANA's registry of special-purpose IPv4 addresses, multicast (RFC 5771), and Azure's own services for a virtual machine. */
const SPECIAL4 = ['0.0.0.0/8', '10.0.0.0/8', '100.64.0.0/10', '127.0.0.0/8', '169.254.0.0/16', '172.16.0.0/12', '192.0.0.0/24', '192.0.2.0/24', '192.31.196.0/24', '192.52.193.0/24', '192.88.99.0/24',
  '192.168.0.0/16', '192.175.48.0/24', '198.18.0.0/15', '198.51.100.0/24', '203.0.113.0/24', '224.0.0.0/4', '240.0.0.0/4', '255.255.255.255/32', '168.63.129.16/32'].map(block4)

/** IANA's registry of special-purpose IPv6 addresses, multicast and the former site-local ones (RFC 4291, RFC 3879). */
const SPECIAL6 = ['::/128', '::1/128', '::/96', '::ffff:0:0/96', '::ffff:0:0:0/96', '64:ff9b::/96', '64:ff9b:1::/48', '100::/64', '100:0:0:1::/64', '2001::/23', '2001::/32', '2001:db8::/32', '2002::/16', '2620:4f:8000::/48', '3fff::/20', '5f00::/16',
  'fc00::/7', 'fe80::/10', 'fec0::/10', 'ff00::/8'].map(block6)
/** All that IANA has given out for unicast. RFC 4291 §2.4. */
const GLOBAL6 = block6('2000::/3')
const MAPPED = block6('::ffff:0:0/96')
const NAT64 = block6('64:ff9b::/96')

const isIn = (number: bigint, [first, bits]: Block, width: bigint): boolean => number >> (width - BigInt(bits)) === first >> (width - BigInt(bits))

function isPublic4 (number: bigint): boolean {
  return !SPECIAL4.some((block) => isIn(number, block, 32n))
}

/** The two forms in which an IPv4 address is reached through IPv6 count as that address; any other is special. RFC 4291 §2.5.5.2, RFC 6052 §2.1. */
function isPublic6 (number: bigint): boolean {
  if ([MAPPED, NAT64].some((block) => isIn(number, block, 128n))) return isPublic4(number & 0xffffffffn)
  return isIn(number, GLOBAL6, 128n) && !SPECIAL6.some((block) => isIn(number, block, 128n))
}

/** Numbers within the blocks, at their ends and next to them. */
function around (blocks: Block[], width: bigint): fc.Arbitrary<bigint> {
  const last = (1n << width) - 1n
  return fc.tuple(fc.constantFrom(...blocks), fc.bigInt({ min: 0n, max: last }), fc.constantFrom('first', 'last', 'before', 'after', 'within')).map(([[first, bits], random, where]) => {
    const size = 1n << (width - BigInt(bits))
    const at = { first, last: first + size - 1n, before: first - 1n, after: first + size, within: first + random % size }[where]!
    return at & last
  })
}

const text4 = (number: bigint): string => [24n, 16n, 8n, 0n].map((shift) => String((number >> shift) & 255n)).join('.')

/** One of the many spellings: `from` and `count` choose which zero groups become `::`. */
function text6 (number: bigint, { from, count, upper, padded, dotted }: { from: number, count: number, upper: boolean, padded: boolean, dotted: boolean }): string {
  const groups = Array.from({ length: 8 }, (_, index) => ((number >> BigInt(112 - 16 * index)) & 0xffffn).toString(16).padStart(padded ? 4 : 1, '0'))
  const written = dotted ? [...groups.slice(0, 6), text4(number & 0xffffffffn)] : groups
  const zeros = written.slice(from, from + count)
  const text = zeros.length > 0 && zeros.every((group) => /^0+$/.test(group)) ? `${written.slice(0, from).join(':')}::${written.slice(from + count).join(':')}` : written.join(':')
  return upper ? text.toUpperCase() : text
}

const any4 = fc.oneof(around(SPECIAL4, 32n), fc.bigInt({ min: 0n, max: 2n ** 32n - 1n }))

/** Every form in which an IPv6 address holds one of IPv4, RFC 4291, 6052, 8215, 3056, 4380, 2765 and 5214. */
const embedded = fc.tuple(any4, fc.constantFrom('compatible', 'mapped', 'translated', 'nat64', 'local nat64', '6to4', 'teredo', 'teredo client', 'isatap'), fc.bigInt({ min: 0n, max: 2n ** 64n - 1n })).map(([number, form, random]) => ({
  compatible: number,
  mapped: MAPPED[0] | number,
  translated: number6('::ffff:0:0:0') | number,
  nat64: NAT64[0] | number,
  'local nat64': number6('64:ff9b:1::') | (random & 0xffffn) << 64n | number,
  '6to4': number6('2002::') | number << 80n | random,
  teredo: number6('2001::') | number << 64n | random,
  'teredo client': number6('2001::') | (random & 0xffffffffn) << 64n | (number ^ 0xffffffffn),
  isatap: number6('fe80::5efe:0:0') | number
})[form]!)
const spelling = fc.record({ from: fc.nat(7), count: fc.nat(8), upper: fc.boolean(), padded: fc.boolean(), dotted: fc.boolean() })
const any6 = fc.oneof({ weight: 3, arbitrary: embedded }, { weight: 3, arbitrary: around([...SPECIAL6, GLOBAL6], 128n) }, { weight: 1, arbitrary: fc.bigInt({ min: 0n, max: 2n ** 128n - 1n }) }, { weight: 2, arbitrary: fc.bigInt({ min: 0n, max: 2n ** 125n - 1n }).map((number) => GLOBAL6[0] | number) })

t.test('a public IPv4 address is one that no registry of IANA calls special', async (t) => {
  const seen = new Seen()
  await holds(t, 'isPublicAddress is the registry, for IPv4', 6000, fc.property(any4, (number) => {
    seen.note(isPublic4(number))
    assert.equal(isPublicAddress(text4(number)), isPublic4(number), text4(number))
  }))
  seen.check(t, 50, true, false)
})

t.test('a public IPv6 address is one that no registry of IANA calls special, whatever IPv4 address it holds and however it is written', async (t) => {
  const seen = new Seen()
  await holds(t, 'isPublicAddress is the registry, for IPv6', 6000, fc.property(any6, spelling, (number, spelling) => {
    const text = text6(number, spelling)
    assert.ok(isIP(text) === 6 && number6(text) === number, `${text} is not what was meant`)
    seen.note(isPublic6(number))
    assert.equal(isPublicAddress(text), isPublic6(number), text)
  }))
  seen.check(t, 50, true, false)
})

t.test('what is no address, or one with something at it, is not public', async (t) => {
  const address = fc.oneof(any4.map(text4), fc.tuple(any6, spelling).map(([number, spelling]) => text6(number, spelling)))
  const zone = fc.oneof(fc.constantFrom('', '%', '%eth0', '%25eth0', '%1', '%a-b', '%a.b', '%::', '/8', ' '), fc.string({ maxLength: 4 }).map((text) => `%${text}`))
  const text = fc.oneof(harmed(address), fc.tuple(address, zone).map((parts) => parts.join('')), fc.string({ unit: 'binary' }), fc.tuple(fc.constantFrom('0x', '0', '+', '['), address).map((parts) => parts.join('')))
  const seen = new Seen()
  await holds(t, 'isPublicAddress is false for what is none', 4000, fc.property(text, (text) => {
    const family = isIP(text)
    const isZoned = family === 6 && text.includes('%')
    seen.note(isZoned ? 'with a zone' : family)
    assert.equal(isPublicAddress(text), family === 4 ? isPublic4(number4(text)) : family === 6 && !isZoned && isPublic6(number6(text)))
  }))
  seen.check(t, 10, 0, 4, 6, 'with a zone')
})

// Scopes

const NAMES = ['read', 'write', 'admin', 'share', 'a', 'b', 'c']
const catalogue = fc.tuple(fc.uniqueArray(fc.constantFrom(...NAMES), { minLength: 1 }), fc.array(fc.tuple(fc.nat(6), fc.nat(6)), { maxLength: 10 })).map(([names, edges]) => {
  const implied = new Map(names.map((name): [string, string[]] => [name, []]))
  for (const [from, to] of edges) implied.get(names[from % names.length]!)!.push(names[to % names.length]!)
  const definitions = new Map(names.map((name): [string, ScopeDefinition] => [name, { description: name, implies: implied.get(name)! }]))
  return { names, implied, scopes: new ScopeCatalogue(definitions) }
})
const asked = fc.array(fc.oneof({ weight: 6, arbitrary: fc.constantFrom(...NAMES) }, { weight: 1, arbitrary: fc.constantFrom('', '__proto__', 'constructor', 'READ', 'read ') }), { maxLength: 8 })

t.test('scopes: expanding is idempotent and monotone, goes no further than the limit, and leaves nothing out that is implied', async (t) => {
  const isWithin = (some: readonly string[], others: readonly string[]): boolean => some.every((name) => others.includes(name))
  const seen = new Seen()
  await holds(t, 'the algebra of expand', 6000, fc.property(catalogue, asked, asked, fc.option(asked, { nil: undefined }), asked, ({ names, implied, scopes }, some, more, within, wider) => {
    const limit = within ?? names
    const expanded = scopes.expand(some, within)

    // What is reached, step by step until nothing is added.
    let reached = names.filter((name) => some.includes(name) && limit.includes(name))
    for (let size = -1; size !== reached.length;) {
      size = reached.length
      reached = [...new Set([...reached, ...reached.flatMap((name) => implied.get(name)!)])]
    }
    assert.deepEqual(expanded, names.filter((name) => reached.includes(name) && limit.includes(name)), 'in the order of the catalogue')
    seen.note(expanded.length > new Set(some).size ? 'grown' : expanded.length === 0 ? 'nothing' : 'some')

    assert.deepEqual(scopes.expand(expanded, within), expanded, 'idempotent')
    assert.ok(isWithin(expanded, scopes.expand([...some, ...more], within)), 'monotone in what is asked for')
    assert.ok(isWithin(expanded, scopes.expand(some, [...limit, ...wider])), 'monotone in the limit')
    assert.ok(isWithin(expanded, limit) && isWithin(expanded, names), 'within the limit')
    assert.ok(expanded.every((name) => isWithin(implied.get(name)!.filter((other) => limit.includes(other)), expanded)), 'closed')
  }))
  seen.check(t, 50, 'grown', 'nothing', 'some')
})

// Sealed values

const NOW = 1_800_000_000_000
const KEYS = [randomBytes(32), randomBytes(32)]
const payload = fc.tuple(fc.oneof(json, fc.string({ unit: 'binary', maxLength: 300 }), fc.nat(7000).map((length) => 'x'.repeat(length))), fc.nat(1_000_000)).map(([content, later]) => throughJson({ content, expiresAt: NOW + 1 + later }) as Expiring)
const sealers = { code: await createSealer(KEYS, 'code'), consent: await createSealer(KEYS, 'consent'), second: await createSealer([KEYS[1]!], 'code'), foreign: await createSealer([randomBytes(32)], 'code') }
const signers = { client: await createSigner<unknown>(KEYS, 'client'), other: await createSigner<unknown>(KEYS, 'other'), second: await createSigner<unknown>([KEYS[1]!], 'client'), foreign: await createSigner<unknown>([randomBytes(32)], 'client') }

const BASE64URL = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_'
const base64url = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString('base64url')
const headerName = fc.constantFrom('alg', 'enc', 'typ', 'kid', 'zip', 'crit', 'p2c', 'p2s', 'epk', 'apu', 'jwk', 'jku', 'x5c', 'b64', 'cty', 'iv', 'tag', '__proto__')
const headerValue = fc.oneof(json, fc.constantFrom('none', 'dir', 'A256GCM', 'HS256', 'HS512', 'RS256', 'A256KW', 'PBES2-HS256+A128KW', 'DEF', 'mcp-oauth-code', 'mcp-oauth-consent', 'mcp-oauth-client', ['b64'], ['x'], false))

/** How a value is changed: a bit of a segment's bytes, a character, an end, or what its header says. */
const change: fc.Arbitrary<(value: string) => string> = fc.oneof(
  fc.tuple(fc.nat(4), fc.nat(8191), fc.nat(7)).map(([segment, at, bit]) => (value: string) => {
    const parts = value.split('.')
    const index = segment % parts.length
    const bytes = Buffer.from(parts[index]!, 'base64url')
    if (bytes.length > 0) bytes[at % bytes.length]! ^= 1 << bit
    return parts.with(index, bytes.toString('base64url')).join('.')
  }),
  fc.tuple(fc.nat(8191), fc.oneof(fc.constantFrom(...BASE64URL, '.', '=', '+', '/', ' ', '\n', '\0'), codePoint)).map(([at, character]) => (value: string) => {
    const index = at % value.length
    return value.slice(0, index) + character + value.slice(index + 1)
  }),
  fc.tuple(fc.nat(8191), fc.nat(8191)).map(([from, length]) => (value: string) => {
    const index = from % value.length
    return value.slice(0, index) + value.slice(index + 1 + length % (value.length - index))
  }),
  fc.tuple(fc.nat(8191), fc.string({ minLength: 1, maxLength: 8 })).map(([at, text]) => (value: string) => value.slice(0, at % (value.length + 1)) + text + value.slice(at % (value.length + 1))),
  fc.tuple(headerName, fc.option(headerValue, { nil: undefined })).map(([name, said]) => (value: string) => {
    const [header = '', ...rest] = value.split('.')
    const named = JSON.parse(Buffer.from(header, 'base64url').toString()) as Record<string, unknown>
    return [base64url({ ...named, [name]: said }), ...rest].join('.')
  }),
  headerValue.map((header) => (value: string) => [base64url(header), ...value.split('.').slice(1)].join('.')),
  fc.shuffledSubarray([0, 1, 2, 3, 4]).map((order) => (value: string) => order.map((index) => value.split('.')[index] ?? '').join('.'))
)

t.test('a sealed value opens as what was sealed, and what would be too long to open is never sealed', async (t) => {
  const seen = new Seen()
  // A JWE is its header, no key, 12 bytes of nonce, the ciphertext, and 16 of tag. RFC 7516 §7.1.
  const overhead = (await sealers.code.seal({ expiresAt: 0 })).length - Math.ceil(Buffer.byteLength('{"expiresAt":0}') * 4 / 3)
  await holds(t, 'a round trip of anything', 800, fc.asyncProperty(payload, async (payload) => {
    const isShort = overhead + Math.ceil(Buffer.byteLength(JSON.stringify(payload)) * 4 / 3) <= 8192
    seen.note(isShort ? 'short' : 'too long')
    const value = await sealers.code.seal(payload).catch((error: unknown) => error)
    if (!isShort) return assert.ok(value instanceof OAuthError && value.reason === 'request_too_long')
    assert.match(String(value), /^[\w-]+\.\.[\w-]+\.[\w-]+\.[\w-]+$/)
    assert.deepEqual(await sealers.code.open(String(value), NOW), payload)
    assert.equal(await sealers.code.open(String(value), payload.expiresAt), 'expired')
    for (const other of ['consent', 'second', 'foreign'] as const) assert.equal(await sealers[other].open(String(value), NOW), 'unreadable', other)
    assert.deepEqual(await sealers.code.open(await sealers.second.seal(payload), NOW), payload, 'an older key opens')
  }))
  seen.check(t, 10, 'short', 'too long')
})

t.test('a sealed value that is changed in any way is unreadable, and never an error', async (t) => {
  const value = await sealers.code.seal({ content: 'naïve 漢字', expiresAt: NOW + 60_000 } as Expiring)
  const [, , nonce, ciphertext, tag] = (await sealers.code.seal({ content: 'another one', expiresAt: NOW + 60_000 } as Expiring)).split('.') as [string, string, string, string, string]
  const mixed = fc.subarray([2, 3, 4], { minLength: 1, maxLength: 2 }).map((which) => (value: string) => value.split('.').map((part, index) => which.includes(index) ? ['', '', nonce, ciphertext, tag][index] : part).join('.'))
  await holds(t, 'a change of any kind', 1200, fc.asyncProperty(fc.oneof({ weight: 9, arbitrary: change }, { weight: 1, arbitrary: mixed }), async (change) => {
    const changed = change(value)
    fc.pre(changed !== value)
    assert.equal(await sealers.code.open(changed, NOW), 'unreadable')
  }))
  await holds(t, 'any text', 600, fc.asyncProperty(fc.oneof(fc.string({ unit: 'binary' }), fc.array(fc.oneof(fc.base64String(), headerValue.map(base64url)), { maxLength: 6 }).map((parts) => parts.join('.'))), async (text) => {
    assert.equal(await sealers.code.open(text, NOW), 'unreadable')
    assert.equal(await signers.client.verify(text), undefined)
  }))
})

t.test('a signed value reads as what was signed, is the same each time, and changed in any way is nothing', async (t) => {
  await holds(t, 'a round trip of anything', 600, fc.asyncProperty(payload.filter((payload) => JSON.stringify(payload).length < 5900), change, async (payload, change) => {
    const value = await signers.client.sign(payload)
    fc.pre(value.length <= 8192)
    assert.deepEqual(await signers.client.verify(value), payload)
    assert.equal(await signers.client.sign(payload), value)
    assert.deepEqual(await signers.client.verify(await signers.second.sign(payload)), payload, 'an older key signs as well')
    for (const other of ['other', 'second', 'foreign'] as const) assert.equal(await signers[other].verify(value), undefined, other)
    const changed = change(value)
    if (changed !== value) assert.equal(await signers.client.verify(changed), undefined)
  }))
})

// Form bodies

const pair = fc.tuple(
  fc.oneof({ weight: 4, arbitrary: fc.constantFrom('grant_type', 'client_id', 'code', 'code_verifier', 'redirect_uri', 'refresh_token', 'scope', 'resource', 'client_secret', 'client_assertion', 'client_assertion_type', 'token', 'scope[]', 'scope[0]', '__proto__', '') }, { weight: 1, arbitrary: fc.string({ unit: 'binary', maxLength: 5 }) }),
  fc.oneof({ weight: 3, arbitrary: fc.constantFrom('', 'authorization_code', 'refresh_token', 'client_credentials', 'read', ISSUER, `oat_${'x'.repeat(43)}`, `ort_${'x'.repeat(87)}`, 'a.b.c', 'a.b.c.d.e', 'v'.repeat(43), 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer') }, { weight: 1, arbitrary: fc.string({ unit: 'binary', maxLength: 20 }) })
)
const pairs = fc.array(pair, { maxLength: 8 })
const bytes = fc.array(fc.oneof(fc.constantFrom('&', '=', '+', '%', '%2', '%zz', '%00', '%ff', '%c3%28', '%ed%a0%80', '%f4%90%80%80', '%E4%BD', '\ufeff', '%EF%BB%BF', ';', '[]', '%5B%5D', 'a', 'b', '\ud800', 'é'), codePoint), { maxLength: 15 }).map((parts) => parts.join(''))
const body = fc.oneof(pairs.map((pairs) => new URLSearchParams(pairs.map(([name, value]): [string, string] => [wellFormed(name), wellFormed(value)])).toString()), pairs.map((pairs) => pairs.map((pair) => pair.join('=')).join('&')), bytes, fc.string({ unit: 'binary' }))

/** The URL standard's application/x-www-form-urlencoded parser, by hand. §5.1. */
function parseForm (text: string): Array<[string, string]> {
  const decoder = new TextDecoder('utf-8', { ignoreBOM: true })
  const decode = (bytes: Buffer): string => {
    const decoded: number[] = []
    for (let index = 0; index < bytes.length; index++) {
      const hex = /^[0-9A-Fa-f]{2}$/.exec(bytes.toString('latin1', index + 1, index + 3))?.[0]
      if (bytes[index] === 0x25 && hex !== undefined) {
        decoded.push(parseInt(hex, 16))
        index += 2
      } else decoded.push(bytes[index] === 0x2b ? 0x20 : bytes[index]!)
    }
    return decoder.decode(Uint8Array.from(decoded))
  }
  return text.split('&').filter((part) => part !== '').map((part) => {
    const at = part.indexOf('=')
    const [name, value] = at === -1 ? [part, ''] : [part.slice(0, at), part.slice(at + 1)]
    return [decode(Buffer.from(name)), decode(Buffer.from(value))]
  })
}

t.test('any text is read as a form, or refused for a name that is repeated or is an array (RFC 6749 §3.1)', async (t) => {
  const seen = new Seen()
  const encoded = body.map((body) => body.replace(/[^\0-\x7f]/gu, (character) => encodeURIComponent(wellFormed(character))))
  await holds(t, 'parseParameters never fails otherwise', 2000, fc.property(body, (body) => {
    const result = answerOf(() => parseParameters(body))
    assert.ok(result instanceof OAuthError ? result.code === 'invalid_request' : [...result.values()].every((value) => value !== ''))
  }))
  // In ASCII: a character that should have been encoded, beside an encoding that is broken, Node reads in a way of its own.
  await holds(t, 'parseParameters is the URL standard less what is empty', 4000, fc.property(encoded, (body) => {
    const expected = parseForm(body)
    const names = expected.map(([name]) => name)
    const isRefused = new Set(names).size < names.length || names.some((name) => name.endsWith(']'))
    seen.note(isRefused ? 'refused' : 'read')
    const result = answerOf(() => parseParameters(body))
    if (isRefused) return assert.ok(result instanceof OAuthError && result.code === 'invalid_request' && /^parameter_(repeated|array)$/.test(result.reason))
    assert.deepEqual([...(result as ReadonlyMap<string, string>)], expected.filter(([, value]) => value !== ''))
  }))
  seen.check(t, 50, 'refused', 'read')
})

t.test('any body at the token, revocation and introspection endpoint is 4xx in JSON that no cache keeps (RFC 6749 §5.2)', async (t) => {
  const app = await testApp(t, { accessTokenLifetime: 60, refreshTokenLifetime: 60, clients: [{ clientId: 'web', clientName: 'Web', clientSecretHashes: ['a'.repeat(64)], introspects: [`${ISSUER}/mcp`], scopes: ['read'] }] })
  const known = `client_id=${await dance(app).clientId()}&`
  const type = fc.oneof({ weight: 8, arbitrary: fc.constant(FORM['content-type']) }, { weight: 1, arbitrary: fc.constantFrom('application/x-www-form-urlencoded; charset=utf-16', 'application/x-www-form-urlencoded;charset="', 'APPLICATION/X-WWW-FORM-URLENCODED', 'application/json', 'text/plain', 'multipart/form-data', 'x', '/', ';', 'application/x-www-form-urlencoded, application/json') }, { weight: 1, arbitrary: fc.string() })
  const authorization = fc.option(fc.oneof(fc.constantFrom('Basic', 'Basic ', 'Basic Og==', 'Bearer x', 'Basic d2ViOiU='), fc.string({ unit: 'binary' }).map((text) => `Basic ${Buffer.from(text).toString('base64')}`), fc.tuple(fc.string(), fc.string()).map((parts) => `Basic ${Buffer.from(parts.join(':')).toString('base64')}`)), { nil: undefined, freq: 2 })
  const path = fc.oneof({ weight: 4, arbitrary: fc.constant('/oauth/token') }, { weight: 1, arbitrary: fc.constantFrom('/oauth/revoke', '/oauth/introspect') })
  const seen = new Seen()
  await holds(t, 'never a 5xx', 400, fc.asyncProperty(path, fc.constantFrom('', known), fc.oneof(body.map((text) => Buffer.from(text)), fc.uint8Array({ maxLength: 60 }).map((bytes) => Buffer.from(bytes))), type, authorization, async (path, known, body, type, authorization) => {
    const payload = Buffer.concat([Buffer.from(known), body])
    const response = await app.inject({ method: 'POST', url: path, headers: { 'content-type': type, ...(authorization !== undefined && { authorization }) }, payload })
    seen.note(response.statusCode)
    // A known client may revoke what is no token. RFC 7009 §2.2.
    if (path === '/oauth/revoke' && response.statusCode === 200) return assert.equal(response.body, '')
    assert.ok(response.statusCode >= 400 && response.statusCode < 500, `${response.statusCode} ${response.body}`)
    assert.equal(response.headers['content-type'], 'application/json; charset=utf-8')
    assert.equal(response.headers['cache-control'], 'no-store')
    const answer = response.json<Record<string, string>>()
    assert.deepEqual(Object.keys(answer), ['error', 'error_description'])
    assert.match(answer.error_description!, /^[ !#-[\]-~]+$/)
  }))
  seen.check(t, 10, 400, 401, 415)
})

// Challenges

/** The one challenge in a WWW-Authenticate value, by the grammar of RFC 9110 §11.2, §11.3 and §5.6.4. */
function parseChallenge (value: string): { scheme: string, parameters: Array<[name: string, value: string]> } {
  const [scheme = ''] = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?= )/.exec(value) ?? []
  const parameters: Array<[string, string]> = []
  let rest = value.slice(scheme.length)
  while (rest !== '') {
    const [all, name, quoted] = /^ *([!#$%&'*+\-.^_`|~0-9A-Za-z]+)="((?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*)"(?:,(?= *[!#$%&'*+\-.^_`|~0-9A-Za-z])|$)/.exec(rest) ?? assert.fail(`no auth-param: ${rest}`)
    parameters.push([name!, quoted!.replace(/\\(.)/gs, '$1')])
    rest = rest.slice(all.length)
  }
  return { scheme, parameters }
}

t.test('a challenge of any values is one Bearer challenge that reads as what was meant, and ends no header (RFC 9110 §11.3)', async (t) => {
  const value = fc.oneof(fc.array(fc.oneof(fc.constantFrom('"', '\\', ',', '=', ' ', '\r\n', '\n', '\t', '\0', '\x7f', 'é', '\u2028', '\u010a', '", realm="evil', '\r\nSet-Cookie: a=b', 'Basic realm="x"', '\ud800'), codePoint), { maxLength: 10 }).map((parts) => parts.join('')), fc.string(), fc.constant(''))
  const challenge = fc.record({ realm: value, error: value, error_description: value, scope: value, resource_metadata: value }, { requiredKeys: [] })
    .filter((challenge) => Object.values(challenge).some((value) => value !== ''))
  await holds(t, 'formatChallenge parses back', 6000, fc.property(challenge, (challenge) => {
    const header = formatChallenge(challenge as Challenge)
    assert.match(header, /^[ -~]+$/)
    validateHeaderValue('www-authenticate', header)
    assert.equal(new Headers({ 'www-authenticate': header }).get('www-authenticate'), header)
    const meant = Object.entries(challenge).filter(([, value]) => value !== '').map(([name, value]): [string, string] => [name, [...value].filter((character) => character >= ' ' && character <= '~').join('')])
    assert.deepEqual(parseChallenge(header), { scheme: 'Bearer', parameters: meant })
  }))
})

// Sign-in

t.test('whatever is asked of the authorization endpoint, who is not signed in is sent to loginUrl with a path of this app, and nowhere else', async (t) => {
  const evil = fc.constantFrom('&', '=', '?', '#', '//', '\\', '/', '@', ':', '..', '%', '%2f', '%5c', '%0d%0a', '%00', '&return_to=https://evil.example/', '&return_to=', 'https://evil.example/', '//evil.example', '/\\evil.example', 'javascript:alert(1)', '&redirect_uri=', '&state=', '"', "'", '<', '%F0%9F%99%82')
  const query = fc.array(fc.oneof(evil, fc.integer({ min: 0x21, max: 0x7e }).map((code) => String.fromCharCode(code))), { maxLength: 12 }).map((parts) => parts.join(''))
  const logins = ['/login', '/login?next=1', 'https://id.example/sign-in', 'https://id.example/sign-in?a=b&c'] as const
  const agent = new Agent({ keepAlive: true })
  t.teardown(() => agent.destroy())
  const ask = async (port: number, path: string, headers: Record<string, string>): Promise<{ status: number, location: string | undefined }> => await new Promise((resolve, reject) => {
    const request = httpRequest({ host: '127.0.0.1', port, agent, path, headers }, (response) => {
      response.resume().once('end', () => resolve({ status: response.statusCode!, location: response.headers.location }))
    })
    request.once('error', reject).end()
  })
  // On loopback another Host would be refused.
  const issuer = 'https://notes.example.com'
  for (const loginUrl of logins) {
    const app = await testApp(t, { issuer, loginUrl })
    await app.listen({ port: 0, host: '127.0.0.1' })
    const { port } = app.server.address() as AddressInfo
    const { clientId, query: complete } = dance(app)
    const starts = [`client_id=${encodeURIComponent(HOSTED)}`, form(complete(await clientId()))]
    const host = fc.constantFrom({}, {}, { host: 'evil.example' }, { 'x-forwarded-host': 'evil.example', 'x-forwarded-proto': 'https' })
    const seen = new Seen()
    await holds(t, `to ${loginUrl}`, 150, fc.asyncProperty(fc.constantFrom(...starts), query, host, async (start, query, headers) => {
      const sent = `${start}${query}`
      const { status, location } = await ask(port, `/oauth/authorize?${sent}`, headers)
      if (location === undefined) {
        seen.note('a page')
        return assert.equal(status, 400)
      }
      assert.equal(status, 303)
      // Where client and redirect URI are known, a mistake goes back to the client.
      if (location.startsWith(`${CALLBACK}?error=`)) {
        seen.note('the client')
        return assert.ok(start === starts[1] && new URL(location).origin === new URL(CALLBACK).origin)
      }
      seen.note('sign-in')
      const url = new URL(location, issuer)
      const expected = new URL(loginUrl, issuer)
      assert.deepEqual([url.origin, url.pathname, url.hash], [expected.origin, expected.pathname, ''])
      assert.deepEqual([...url.searchParams], [...expected.searchParams, ['return_to', `/oauth/authorize?${sent}`]])
      const back = new URL(url.searchParams.get('return_to')!, issuer)
      assert.deepEqual([back.origin, back.pathname], [issuer, '/oauth/authorize'])
    }))
    seen.check(t, 10, 'sign-in', 'a page')
  }
})

// Names

/** What Unicode itself says nobody should see, each property by its own name; and the ones that turn text around, as numbers. */
const UNSEEN = [/\p{Cc}/u, /\p{Cf}/u, /\p{Cn}/u, /\p{Co}/u, /\p{Cs}/u, /\p{Zl}/u, /\p{Zp}/u, /\p{Bidi_Control}/u, /\p{Default_Ignorable_Code_Point}/u, /\p{Noncharacter_Code_Point}/u]
const TURNING = [[0x61c, 0x61c], [0x200e, 0x200f], [0x202a, 0x202e], [0x2066, 0x2069]] as const

function isSeen (character: string): boolean {
  const code = character.codePointAt(0)!
  return !UNSEEN.some((property) => property.test(character)) && !TURNING.some(([first, last]) => code >= first && code <= last) && code !== 0x2800
}

t.test('a name of any characters is shown without those that hide or turn text, in one way, and naming it again changes nothing', async (t) => {
  const seen = new Seen()
  await holds(t, 'printable', 6000, fc.property(strangeText(30), (text) => {
    const shown = printable(text)
    seen.note(shown === text ? 'as it was' : 'changed')
    for (const character of shown) assert.ok(isSeen(character), `U+${character.codePointAt(0)!.toString(16)} is in it`)
    assert.equal(printable(shown), shown, 'idempotent')
    assert.equal(shown.normalize('NFC'), shown)
    assert.doesNotMatch(shown, /^\s|\s$|\s\s|[^\S ]/u)
    assert.doesNotMatch(shown, /\p{M}{3}/u)
    // Nothing that can be seen is lost, but for what is piled up or divides words.
    const letters = (text: string): string => [...text.normalize('NFD')].filter((character) => isSeen(character) && !/[\s\p{M}]/u.test(character)).join('')
    assert.equal(letters(shown), letters(text))
  }))
  seen.check(t, 20, 'as it was', 'changed')
})

t.test('every character of the planes in which some are special, between two letters, is seen or gone', async (t) => {
  const wrong: string[] = []
  for (const plane of [0x0, 0x1, 0xe]) {
    for (let code = plane * 0x10000; code < (plane + 1) * 0x10000; code++) {
      const character = String.fromCodePoint(code)
      const kept = printable(`a${character}b`).normalize('NFD').slice(1, -1)
      if (isSeen(character) ? kept === '' : !['', ' '].includes(kept)) wrong.push(code.toString(16))
    }
  }
  t.strictSame(wrong, [])
})

t.test('a client name is at most 100 characters that can be shown, or refused', async (t) => {
  const seen = new Seen()
  await holds(t, 'parseClientName', 4000, fc.property(mostly(name), (value) => {
    const result = answerOf(() => parseClientName(value))
    const refused = value != null && (typeof value !== 'string' || [...printable(value)].length > 100)
    seen.note(refused ? 'refused' : 'named')
    if (refused) return assert.ok(result instanceof OAuthError && result.code === 'invalid_client_metadata')
    assert.ok(typeof result === 'string' && result !== '' && [...result].length <= 100 && [...result].every(isSeen))
    assert.equal(parseClientName(result), result)
  }))
  seen.check(t, 20, 'refused', 'named')
})

t.test('a page shows any name as text: its markup is the same for every name', async (t) => {
  const app = await testApp(t, { currentUser: ({ headers }) => typeof headers['x-user'] === 'string' ? { id: 'alice', name: Buffer.from(headers['x-user'], 'base64url').toString() } : null })
  const { clientId, query } = dance(app)
  const markup = (html: string): string[] => html.replace(/(name="ticket" value=")[\w.-]+/g, '$1').match(/<[^>]*>/g)!
  const textOf = (html: string, tag: RegExp): string => html.match(tag)![1]!.replace(/&(amp|lt|gt|quot|#39);/g, (_all, name: string) => ({ amp: '&', lt: '<', gt: '>', quot: '"', '#39': "'" })[name]!)
  const asUser = (name: string): Record<string, string> => ({ 'x-user': Buffer.from(name).toString('base64url') })
  const consent = async (clientName: string, userName: string): Promise<string> =>
    (await app.inject({ url: `/oauth/authorize?${form(query(await clientId({ client_name: clientName })))}`, headers: asUser(userName) })).body
  const plain = markup(await consent('Plain', 'Plain'))
  await holds(t, 'the consent page', 80, fc.asyncProperty(fc.oneof(name, fc.string()), fc.oneof(name, fc.string()), async (clientName, userName) => {
    const shown = answerOf(() => parseClientName(clientName))
    fc.pre(typeof shown === 'string')
    const html = await consent(clientName, userName)
    assert.deepEqual(markup(html), plain)
    assert.equal(textOf(html, /<bdi class="name">([^<]*)<\/bdi>/), shown)
    assert.ok(userName === '' || textOf(html, /<dt>Signed in as<\/dt>\s*<dd><bdi>([^<]*)<\/bdi>/) === wellFormed(userName))
  }))

  const page = async (headers: Record<string, string>): Promise<string> => (await app.inject({ url: '/my/connected_apps', headers })).body
  await holds(t, 'the page of connected apps', 40, fc.asyncProperty(fc.oneof(name, fc.string()), async (tokenName) => {
    const shown = printable(tokenName)
    fc.pre(shown !== '' && [...shown].length <= 100)
    const ticket = fieldOf(await page(asUser('x')), 'ticket')
    const created = await app.inject({ method: 'POST', url: '/my/connected_apps', headers: { ...FORM, ...asUser('x') }, payload: form({ ticket, name: wellFormed(tokenName), scope: 'read' }) })
    assert.equal(created.statusCode, 200)
    const [{ name: kept, grantId }] = await app.oauth.tokens.list({ userId: 'alice' }) as unknown as [{ name: string, grantId: string }]
    assert.equal(kept, printable(wellFormed(tokenName)))
    const html = await page(asUser('x'))
    await app.oauth.tokens.revoke({ grantId })
    assert.ok(html.includes(`>${kept.replace(/[&<>"']/g, (character) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' })[character]!)}<`))
  }))
})
