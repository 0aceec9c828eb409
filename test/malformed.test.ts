import cookie from '@fastify/cookie'
import Fastify, { type FastifyInstance } from 'fastify'
import { hash } from 'node:crypto'
import { METHODS } from 'node:http'
import { connect, type AddressInfo } from 'node:net'
import { homedir, hostname } from 'node:os'
import { performance } from 'node:perf_hooks'
import process from 'node:process'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import mcpOAuth from '../dist/index.js'
import { mintToken } from '../dist/testing.js'
import { CALLBACK, FORM, ISSUER, bearer, dance, fieldOf, form, testOptions } from './app.js'
import { Network } from './network.js'

// What no client sends and any socket can carry. One seed makes one list of requests: FC_SEED makes another.

const SEED = Number(process.env.FC_SEED ?? 20260728)
/** Milliseconds in which each socket is answered or closed. */
const HANGING = 3000
const AT_ONCE = 128
/** How many of each kind of change are sent, each to an endpoint by lot, and how many that are changed by bytes. */
const [EACH, BY_BYTES] = [4, 900]

t.setTimeout(120_000)

interface Message { method: string, target: string, version: string, headers: Array<[name: string, value: string]>, body: Buffer }

/** How the client goes on: waits, says that nothing more will come, hangs up after a while, or at once. */
type Ending = 'waits' | 'ends' | 'resets' | 'leaves'

/** Where a client's id is a URL, its host may be one that cannot be asked, which is a 503. */
interface Request { about: string, bytes: Buffer, ending: Ending, maySay503: boolean }

interface Answer { status: number, headers: Map<string, string>, body: string }

/** Mulberry32: the same numbers for the same seed. */
function lots (seed: number): (below: number) => number {
  let state = seed >>> 0
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return Math.floor(((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32 * below)
  }
}

const latin1 = (text: string): Buffer => Buffer.from(text, 'latin1')
const head = ({ method, target, version, headers }: Message): string => `${method} ${target} ${version}\r\n${headers.map((header) => `${header.join(': ')}\r\n`).join('')}\r\n`
const written = (message: Message): Buffer => Buffer.concat([latin1(head(message)), message.body])
const withHeaders = (message: Message, ...headers: Array<[string, string]>): Message => ({ ...message, headers: [...message.headers, ...headers] })
const without = (message: Message, ...names: string[]): Message => ({ ...message, headers: message.headers.filter(([name]) => !names.includes(name)) })
const withBody = (message: Message, body: Buffer): Message => withHeaders({ ...without(message, 'content-length'), body }, ['content-length', String(body.length)])
const chunked = (message: Message, chunks: string): Message => withHeaders({ ...without(message, 'content-length'), body: latin1(chunks) }, ['transfer-encoding', 'chunked'])

/** The requests of a good client, to every endpoint. */
async function goodRequests (app: FastifyInstance, hosted: string[]): Promise<Message[]> {
  const { query, ticket, code, codeVerifier, connect } = dance(app)
  const signedIn: [string, string] = ['cookie', 'sid=of-alice']
  const make = (method: string, target: string, headers: Array<[string, string]> = [], body = ''): Message => ({
    method, target, version: 'HTTP/1.1', headers: [['host', 'localhost:3000'], ...headers, ...(method === 'POST' ? [['content-length', String(Buffer.byteLength(body))] as [string, string]] : [])], body: Buffer.from(body)
  })
  const post = (target: string, fields: Record<string, string | string[]>, ...headers: Array<[string, string]>): Message => make('POST', target, [['content-type', FORM['content-type']], ...headers], form(fields))
  const { clientId, token } = await connect()
  const basic: [string, string] = ['authorization', `Basic ${Buffer.from('web:secret').toString('base64')}`]
  const page = await app.inject({ url: '/my/connected_apps', headers: { cookie: 'sid=of-alice' } })
  const redemption = { grant_type: 'authorization_code', client_id: clientId, code: await code(clientId), code_verifier: codeVerifier, redirect_uri: CALLBACK }
  const metadata = JSON.stringify({ client_name: 'Naïve 🙂', redirect_uris: [CALLBACK] })
  return [
    ...['/.well-known/oauth-protected-resource', '/.well-known/oauth-protected-resource/mcp', '/.well-known/oauth-authorization-server', '/.well-known/openid-configuration', '/oauth/styles.css'].map((target) => make('GET', target)),
    ...['/oauth/register', '/register'].map((target) => make('POST', target, [['content-type', 'application/json']], metadata)),
    ...['/oauth/authorize', '/authorize'].map((target) => make('GET', `${target}?${form(query(clientId))}`, [signedIn])),
    make('GET', `/oauth/authorize?${form(query(clientId))}`),
    ...hosted.map((id) => make('GET', `/oauth/authorize?${form(query(id))}`, [signedIn])),
    post('/oauth/authorize', { ticket: await ticket(clientId), decision: 'approve', scope: ['read', 'write'] }, signedIn),
    ...['/oauth/token', '/token'].map((target) => post(target, redemption)),
    post('/oauth/token', { grant_type: 'client_credentials' }, basic),
    post('/oauth/token', { grant_type: 'refresh_token', client_id: clientId, refresh_token: `ort_${'x'.repeat(87)}` }),
    post('/oauth/revoke', { client_id: clientId, token: `oat_${'x'.repeat(43)}` }),
    post('/oauth/introspect', { token }, basic),
    make('GET', '/oauth/userinfo', [['authorization', bearer(token).authorization]]),
    make('GET', '/my/connected_apps', [signedIn, ['accept', 'application/json']]),
    make('GET', '/my/connected_apps', [signedIn]),
    post('/my/connected_apps', { ticket: fieldOf(page.body, 'ticket'), client: 'nobody' }, signedIn),
    make('POST', '/mcp', [['authorization', bearer(token).authorization], ['content-type', 'application/json']], '{"jsonrpc":"2.0"}'),
    make('POST', '/mcp', [['content-type', 'application/json']], '{"jsonrpc":"2.0"}'),
    ...['/oauth/token', '/mcp'].map((target) => make('OPTIONS', target, [['origin', 'https://inspector.example'], ['access-control-request-method', 'POST']])),
    make('GET', '/nowhere')
  ]
}

const LONG = 'x'.repeat(20_000)
/** Text that is no UTF-8, no percent-encoding, no base64, or nothing that belongs where it stands. */
const TEXTS = ['%', '%2', '%zz', '%ff', '%c0%ae', '%ed%a0%80', '%00', '%0d%0aSet-Cookie:a=b', '%u0041', '\xff\xfe', '\xc3\x28', '\xed\xa0\x80', '\xf0\x9f', '\xef\xbb\xbf', '&&&===', 'a[]=b', 'a[b]=c', '__proto__=x', 'constructor.prototype=x', '=', '&', '+', ';', "'\"<>", 'client_id=x&client_id=y', 'a='.repeat(3000), LONG]
const JSONS = ['', ' ', 'null', '[]', '"', '{', '}', '{"redirect_uris":', '{"redirect_uris":["http://localhost/"],}', '{"redirect_uris":[NaN]}', "{'a':1}", '\xef\xbb\xbf{}', '{"a":"\xff"}', '{"client_name":"\xed\xa0\x80","redirect_uris":["http://localhost/"]}', '{"client_name":"\\ud800","redirect_uris":["http://localhost/"]}', '{"a":"\0"}', '{"__proto__":{"redirect_uris":["http://localhost/"]}}', '{"constructor":{"prototype":{}}}', '{"redirect_uris":1e999}', '['.repeat(8000), `${'{"a":'.repeat(2000)}1${'}'.repeat(2000)}`, `{"client_name":"${LONG}"}`, '{"redirect_uris":["http://localhost/"]}{"redirect_uris":[]}', '\0', 'true', '-', '1e']
const TYPES = ['', '/', ';', 'x', 'text/plain', 'application/json', 'application/x-www-form-urlencoded', 'APPLICATION/JSON', 'application/json; charset=utf-16', 'application/x-www-form-urlencoded; charset=utf-7', 'application/x-www-form-urlencoded;charset=\xff', 'application/json;charset="', 'application/json;;;', 'application/json, text/plain', 'multipart/form-data', 'multipart/form-data; boundary=', 'application/json\tx', '*/*', 'application/x-www-form-urlencoded;a=b;a=c', `application/json;a=${'b'.repeat(5000)}`]
const PATHS: Array<(path: string) => string> = [(path) => `/${path}`, (path) => `//evil.example${path}`, (path) => `/.${path}`, (path) => `/x/..${path}`, (path) => `/%2e${path}`, (path) => `/%2e%2e${path}`, (path) => `${path}/`, (path) => `${path}//`, (path) => `${path}/..`, (path) => `${path}/%2e%2e/`, (path) => `${path}%00`, (path) => `${path}%2f`, (path) => `${path}%5c`, (path) => `${path};a=b`,
  (path) => `${path}%`, (path) => `${path}%zz`, (path) => `${path}%c0%ae`, (path) => `${path}%ff`, (path) => `${path}#x`, (path) => `${path}.json`, (path) => `${path}%20`, (path) => path.toUpperCase(), (path) => path.replaceAll('/', '\\'), (path) => path.replaceAll('/', '%2f'), (path) => path.replace('o', '%6f'), (path) => path.slice(1), (path) => `http://evil.example${path}`, (path) => `https://localhost:3000${path}`, (path) => `ftp://x${path}`, (path) => `${path}${'/a'.repeat(4000)}`, (path) => `${path}${'%2e'.repeat(3000)}`, () => '*', () => '', () => 'localhost:443', () => '/', () => '/*', (path) => `${path}/*`, (path) => `/:a${path}`]
const LINES: Array<(message: Message) => string> = [({ method, target }) => `${method} ${target}`, ({ method, target }) => `${method} ${target} `, ({ method, target }) => `${method}  ${target}  HTTP/1.1`, ({ method, target }) => `${method}\t${target}\tHTTP/1.1`, ({ method, target }) => ` ${method} ${target} HTTP/1.1`, ({ target }) => `${target} HTTP/1.1`, ({ method }) => `${method} HTTP/1.1`, ({ method, target }) => `\r\n\r\n\n${method} ${target} HTTP/1.1`, ({ method, target }) => `${method} ${target} HTTP/1.1 HTTP/1.1`,
  ({ method, target }) => `${method} ${target}\0 HTTP/1.1`, ({ method, target }) => `${method}\0 ${target} HTTP/1.1`, ({ method, target }) => `${method} ${target} x HTTP/1.1`, ({ method, target }) => `${method} ${target}\xff HTTP/1.1`, ({ method, target }) => `${method} ${target}\r HTTP/1.1`, () => '', () => '\0'.repeat(50), () => 'HTTP/1.1 200 OK', ({ target }) => `${'G'.repeat(10_000)} ${target} HTTP/1.1`,
  ...['HTTP/1.0', 'HTTP/0.9', 'HTTP/1.2', 'HTTP/2.0', 'HTTP/3', 'HTTP/9.9', 'http/1.1', 'HTTP/11', 'HTTP/1.1.1', 'HTTP/-1.1', 'HTTP/1,1', 'ICY/1.0', 'HTTPS/1.1', 'HTTP/\xb9.1', 'RTSP/1.0'].map((version) => ({ method, target }: Message) => `${method} ${target} ${version}`)]
const HEADERS = ['host: evil.example', 'host: localhost:3000', 'host', ': x', ' x: y', 'x : y', 'x\t: y', 'x', 'x:', 'x\0: y', 'x: \0', 'x: a\0b', 'x: a\rb', 'x: a\nb', 'x: a\r b', 'x: a\r\n b', 'x: a\r\n\tb', 'x: a\n b', '(x): y', 'x"y: z', 'ü: x', 'x: \xff', 'x: \x7f', 'x: \x01', `x: ${'y'.repeat(8000)}`, `x: ${LONG}`, `${LONG}: x`, `${'x: y\r\n'.repeat(500)}x: y`, `${'x: y\r\n'.repeat(3000)}x: y`, '__proto__: x', 'constructor: x',
  'content-type: text/html', 'content-type: application/json\r\ncontent-type: application/x-www-form-urlencoded', 'content-encoding: gzip', 'content-encoding: br, gzip', 'authorization: Bearer x\r\nauthorization: Basic x', 'authorization: Basic', 'authorization: Basic %', 'authorization: Basic /w==', 'authorization: Basic AAA=', 'authorization: Basic d2ViOiU=', 'authorization: Basic JWZmOng=', 'authorization: Basic Ojo=', 'authorization: Bearer', 'authorization: Bearer \xff', 'authorization: Digest a="b', `authorization: Bearer ${'x'.repeat(8000)}`, `authorization: Basic ${'QUFB'.repeat(2000)}`, 'authorization:', 'authorization: \xff\xfe',
  'cookie: sid', 'cookie: =', 'cookie: sid=%', 'cookie: sid=%ff', 'cookie: sid=%00', 'cookie: sid="', 'cookie: ;;;=;', 'cookie: sid=\xff\xfe', 'cookie: __proto__=x; constructor=y', 'cookie: sid=of-alice; sid=of-bob', `cookie: ${'a=b; '.repeat(1000)}`, `cookie: sid=${'x'.repeat(8000)}`, 'cookie: sid=of-alice\r\ncookie: sid=of-bob',
  'accept: application/json', 'accept: \xff', `accept: ${'*/*;q=0.1,'.repeat(500)}`, 'accept: text/html;q=x, application/json;q=-1', 'origin: null', 'origin: \xff', 'if-none-match: "', 'if-none-match: *', 'range: bytes=0-', 'range: bytes=-', 'range: x', 'connection: close, keep-alive, x', 'connection: host, content-length', 'keep-alive: timeout=-1', 'te: trailers', 'trailer: content-length', 'forwarded: for="', 'x-forwarded-for: %, \xff', 'x-forwarded-proto: javascript', 'x-forwarded-host: evil.example/a?b', 'x-http-method-override: DELETE', 'mcp-protocol-version: %', 'accept-version: x', 'date: x', 'max-forwards: -1']
const LENGTHS = ['-1', '+5', '5, 5', '5, 6', '0x5', ' 5', '5 ', '5x', '1e3', '1.0', '', ' ', '00005', '99999999999999999999', '9007199254740993', '18446744073709551616', '4294967296', '\xb2', '5\0', 'x', 'NaN', 'Infinity', '0', '1', '100000']
const ENCODINGS = ['chunked', 'Chunked', 'chunked, chunked', 'gzip, chunked', 'chunked, gzip', 'gzip', 'identity', 'identity, chunked', 'chunked;x=y', 'xchunked', ' chunked', 'chunked ', '\tchunked', '"chunked"', 'chunked\0', 'chunked\r\n , identity', '', ',', 'deflate, gzip, br']
const CHUNKS = ['', '0', '0\r\n', '0\r\n\r\n', '00000000000000000000\r\n\r\n', 'zz\r\nx\r\n0\r\n\r\n', '-1\r\nx\r\n0\r\n\r\n', '0x1\r\nx\r\n0\r\n\r\n', '+1\r\nx\r\n0\r\n\r\n', ' 1\r\nx\r\n0\r\n\r\n', '1 \r\nx\r\n0\r\n\r\n', '1\nx\n0\n\n', '1\r\nxy\r\n0\r\n\r\n', '2\r\nx\r\n0\r\n\r\n', '1\r\nx0\r\n\r\n', '1;a=b\r\nx\r\n0\r\n\r\n', `1;${'a'.repeat(20_000)}\r\nx\r\n0\r\n\r\n`, '1;a="\r\nx\r\n0\r\n\r\n', 'FFFFFFFFFFFFFFFF\r\nx', '10000000000000000\r\nx', 'FFFFFFFFFFFFFFFFFFFFFFFF\r\nx', '7fffffff\r\nx', '5\r\na=b&c\r\n0\r\nx: y\r\n\r\n', '1\r\nx\r\n0\r\ncontent-length: 5\r\n\r\n', '1\r\nx\r\n0\r\nx\r\n\r\n', '1\r\nx\r\n0\r\n\0: y\r\n\r\n', `1\r\nx\r\n0\r\nx: ${LONG}\r\n\r\n`, '1\r\nx\r\n', '\r\n', '\0', '1\r\n\xff\r\n0\r\n\r\n', `4e20\r\n${LONG}\r\n0\r\n\r\n`, '1\r\nx\r\n0\r\n\r\nGET / HTTP/1.1\r\nhost: x\r\n\r\n', '1\r\na\r\n'.repeat(2000) + '0\r\n\r\n']
const EXPECTS = ['100-continue', '100-Continue', '100-continue, x', 'x', '', '200-ok']
const UPGRADES = ['upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13', 'upgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: AAMAAABkAAQAAP__', 'upgrade: x\r\nconnection: upgrade', 'upgrade: websocket', 'connection: upgrade', 'upgrade: \xff\r\nconnection: upgrade']
const NO_HTTP = [Buffer.alloc(0), latin1('\r\n'.repeat(100)), latin1('PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0'), Buffer.from('16030100c8010000c40303', 'hex'), Buffer.alloc(1000), latin1('\xff'.repeat(1000)), latin1('SSH-2.0-x\r\n'), latin1('GET'), latin1('G'), latin1('PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nGET / HTTP/1.1\r\nhost: x\r\n\r\n'), latin1('\n'), latin1(LONG)]

const inserted = (message: Message, header: string): Buffer => Buffer.concat([latin1(head(message).slice(0, -2)), latin1(`${header}\r\n\r\n`), message.body])
const replaced = (message: Message, header: string): Buffer => inserted(without(message, header.split(/[: ]/)[0]!.toLowerCase()), header)
const onPath = (target: string, change: (path: string) => string): string => [change(target.split('?')[0]!), ...target.split('?').slice(1)].join('?')

/** Every change by its kind. */
const CHANGES: Array<readonly [kind: string, change: (message: Message) => Buffer]> = [
  ['as it is', written] as const,
  ...LINES.map((line) => ['request line', (message: Message) => Buffer.concat([latin1(line(message)), written(message).subarray(head(message).indexOf('\r\n'))])] as const),
  ...[...METHODS, 'get', 'post', 'Get', 'FOO', 'PO ST', 'POST:', '', '\xff', 'OPTIONS\0', 'TRACK'].map((method) => ['method', (message: Message) => written({ ...message, method })] as const),
  ...PATHS.map((change) => ['path', (message: Message) => written({ ...message, target: onPath(message.target, change) })] as const),
  ...TEXTS.map((text) => ['query', (message: Message) => written({ ...message, target: `${message.target}${message.target.includes('?') ? '&' : '?'}${text}` })] as const),
  ...TEXTS.map((text) => ['query alone', (message: Message) => written({ ...message, target: `${message.target.split('?')[0]!}?client_id=${text}` })] as const),
  ...TEXTS.map((text) => ['form', (message: Message) => written(withBody(message, Buffer.concat([message.body, latin1(`&${text}`)])))] as const),
  ...TEXTS.map((text) => ['form alone', (message: Message) => written(withBody(message, latin1(text)))] as const),
  ...JSONS.map((json) => ['JSON', (message: Message) => written(withBody(message, latin1(json)))] as const),
  ...TYPES.map((type) => ['content type', (message: Message) => written(withHeaders(without(message, 'content-type'), ['content-type', type]))] as const),
  ['UTF-16', (message) => written(withBody(message, Buffer.from(message.body.toString(), 'utf16le')))],
  ...HEADERS.map((header) => ['header', (message: Message) => inserted(message, header)] as const),
  ...HEADERS.map((header) => ['header in its place', (message: Message) => replaced(message, header)] as const),
  ['header', (message) => written(without(message, 'host'))],
  ['bare line feeds', (message) => Buffer.concat([latin1(head(message).replaceAll('\r\n', '\n')), message.body])],
  ['bare carriage returns', (message) => Buffer.concat([latin1(head(message).replaceAll('\r\n', '\r')), message.body])],
  ...LENGTHS.map((length) => ['content length', (message: Message) => written(withHeaders(without(message, 'content-length'), ['content-length', length]))] as const),
  ...LENGTHS.map((length) => ['content length twice', (message: Message) => written(withHeaders(message, ['content-length', length]))] as const),
  ...ENCODINGS.map((encoding) => ['transfer encoding', (message: Message) => written(withHeaders(without(message, 'content-length'), ['transfer-encoding', encoding]))] as const),
  ...ENCODINGS.map((encoding) => ['transfer encoding beside a length', (message: Message) => written(withHeaders(message, ['transfer-encoding', encoding]))] as const),
  ...CHUNKS.map((chunks) => ['chunks', (message: Message) => written(chunked(message, chunks))] as const),
  ['chunks', (message) => written(chunked(message, [...message.body].map((byte) => `1\r\n${String.fromCharCode(byte)}\r\n`).join('') + '0\r\n\r\n'))],
  ...EXPECTS.flatMap((expected) => [
    ['expect', (message: Message) => written(withHeaders(message, ['expect', expected]))] as const,
    ['expect without a body', (message: Message) => latin1(head(withHeaders(message, ['expect', expected])))] as const
  ]),
  ...UPGRADES.map((upgrade) => ['upgrade', (message: Message) => Buffer.concat([inserted(message, upgrade), latin1('\x81\x85\0\0\0\0hello')])] as const),
  ...[2, 20, 20].map((times) => ['pipelining', (message: Message) => Buffer.concat(Array<Buffer>(times).fill(written(message)))] as const),
  ['pipelining', (message) => Buffer.concat([written(message), latin1('GET / HTTP/1.1\r\n\0\r\n\r\n'), written(message)])],
  ['pipelining', (message) => Buffer.concat([written({ ...message, version: 'HTTP/1.0' }), written(message)])],
  ['pipelining', (message) => Buffer.concat([written(withHeaders(message, ['connection', 'close'])), written(message)])],
  ['no body where one was announced', (message) => latin1(head(message))],
  ...NO_HTTP.map((bytes) => ['no HTTP', () => bytes] as const)
]

/** A request with a few of its bytes changed, taken out, put in, put twice, or its end cut off. */
function changedByBytes (bytes: Buffer, lot: (below: number) => number): Buffer {
  let changed = Buffer.from(bytes)
  for (let times = 1 + lot(3); times > 0; times--) {
    const at = lot(changed.length + 1)
    const to = Math.min(changed.length, at + 1 + lot(8))
    const [before, some, after] = [changed.subarray(0, at), changed.subarray(at, to), changed.subarray(to)]
    const random = Buffer.from(Array.from({ length: 1 + lot(4) }, () => lot(256)))
    const special = latin1(['\r\n', '\r\n\r\n', '\0', '\n', '\r', ' ', ':', '%', '\t', '\xff'][lot(10)]!)
    changed = Buffer.concat([[before, after], [before, random, after], [before, random, some, after], [before, special, some, after], [before, some, some, after], [before]][lot(6)]!)
  }
  return changed
}

/** Takes apart what came over a connection. Throws for what is no sequence of whole HTTP answers. */
function * answersIn (bytes: Buffer, mayLackBodies: boolean): Generator<Answer> {
  let rest = bytes
  while (rest.length > 0) {
    const end = rest.indexOf('\r\n\r\n')
    const [line = '', ...lines] = rest.toString('latin1', 0, end).split('\r\n')
    const status = Number(/^HTTP\/1\.1 ([1-5]\d\d) [ -~]*$/.exec(line)?.[1])
    if (end === -1 || Number.isNaN(status)) throw new Error(`no answer: ${JSON.stringify(rest.toString('latin1', 0, 200))}`)
    const headers = new Map<string, string>()
    for (const header of lines) {
      const [, name, value] = /^([!#$%&'*+\-.^_`|~\w]+): ?([\t -~\x80-\xff]*)$/.exec(header) ?? []
      if (name === undefined) throw new Error(`no header: ${JSON.stringify(header)}`)
      headers.set(name.toLowerCase(), value!)
    }
    rest = rest.subarray(end + 4)
    const isEmpty = status < 200 || status === 204 || status === 304 || (mayLackBodies && (rest.length === 0 || rest.indexOf('HTTP/1.1 ') === 0))
    if (!isEmpty && headers.get('transfer-encoding') === 'chunked') {
      // Node itself answers so, and without a body.
      if (rest.indexOf('0\r\n\r\n') !== 0) throw new Error(`chunks: ${JSON.stringify(rest.toString('latin1', 0, 200))}`)
      rest = rest.subarray(5)
      yield { status, headers, body: '' }
      continue
    }
    const length = isEmpty ? 0 : Number(headers.get('content-length') ?? rest.length)
    if (!(length <= rest.length)) throw new Error(`a body of ${rest.length} bytes for ${line} with ${JSON.stringify([...headers])}`)
    yield { status, headers, body: rest.toString('utf8', 0, length) }
    rest = rest.subarray(length)
  }
}

/** Sends it, in one or in several parts, and hears the server out. */
async function ask (port: number, { bytes, ending }: Request, parts: number): Promise<{ bytes: Buffer, isHanging: boolean }> {
  const chunks: Buffer[] = []
  const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true })
  const closed = new Promise<void>((resolve) => { socket.once('close', () => resolve()) })
  // Whoever is reset has been answered, if only so.
  socket.on('error', () => {})
  // A socket that is ending can no longer be reset.
  const end = (): void => { if (ending !== 'resets') socket.end() }
  socket.once('end', end)
  let quiet: NodeJS.Timeout | undefined
  socket.on('data', (chunk: Buffer) => {
    chunks.push(chunk)
    clearTimeout(quiet)
    quiet = setTimeout(end, 150)
  })
  for (let part = 0; part < parts; part++) {
    socket.write(bytes.subarray(Math.floor(bytes.length * part / parts), Math.floor(bytes.length * (part + 1) / parts)))
    if (parts > 1) await sleep(2)
  }
  if (ending === 'leaves') socket.destroySoon()
  else if (ending !== 'waits') {
    await Promise.race([closed, sleep(250)])
    if (ending === 'resets') socket.resetAndDestroy()
    else end()
  }
  const isHanging = await Promise.race([closed.then(() => false), sleep(HANGING, true, { ref: false })])
  clearTimeout(quiet)
  socket.destroy()
  return { bytes: Buffer.concat(chunks), isHanging }
}

/** What no answer may hold: where this server is, or where in its code it was. */
const REVEALING = [process.cwd(), homedir(), hostname(), 'node_modules', 'file://', '.ts:', '.js:', 'node:internal', 'SQLITE', 'Error:'].filter((text) => text.length > 4)

t.test('whatever comes over a socket is answered or closed at once, never with a 5xx or with anything of this machine, and the server goes on', async (t) => {
  const complaints: unknown[] = []
  const network = await Network.start(t)
  const hosted = ['https://client.example/client.json', 'https://client.example/nonsense', 'https://silent.example/client.json']
  network.publish(hosted[0]!, { client_id: hosted[0], client_name: 'Hosted', redirect_uris: [CALLBACK] })
  network.publish(hosted[1]!, (_request, response) => { response.writeHead(200, { 'content-type': 'application/json' }).end('\xff{') })
  network.names.set('silent.example', ['ESERVFAIL'])

  const logged: Array<{ level: number, reason?: string }> = []
  const app = Fastify({
    logger: { level: 'info', stream: { write: (line: string) => { logged.push(JSON.parse(line) as typeof logged[number]) } } },
    // So that whoever does not go on is told so within the test.
    requestTimeout: 1000,
    keepAliveTimeout: 500,
    http: { headersTimeout: 1000, connectionsCheckingInterval: 100 }
  })
  t.teardown(() => app.close())
  await app.register(cookie)
  await app.register(mcpOAuth, testOptions({
    currentUser: ({ cookies, headers }) => cookies.sid === 'of-alice' || headers['x-user'] === 'alice' ? { id: 'alice', name: 'Alice' } : null,
    accessTokenLifetime: 3600,
    refreshTokenLifetime: 3600,
    idleLifetime: 3600,
    rootAliases: true,
    clients: [{ clientId: 'web', clientName: 'Web', redirectUris: [CALLBACK], clientSecretHashes: [hash('sha256', 'secret', 'hex')], scopes: ['read'], introspects: [`${ISSUER}/mcp`] }],
    clientIdMetadata: { agent: network },
    findUser: (id) => ({ id }),
    userinfo: ({ id }) => ({ name: id }),
    fallbackToken: () => null,
    onEvent: () => {},
    // On, and never reached.
    rateLimit: { register: { max: 1_000_000 }, token: { max: 1_000_000 }, authorize: { max: 1_000_000 } }
  }))
  app.post('/mcp', { onRequest: app.oauth.protect({ scopes: ['read'] }) }, async ({ oauth }) => ({ userId: oauth!.userId }))
  await app.listen({ port: 0, host: '127.0.0.1' })
  const { port } = app.server.address() as AddressInfo
  const good = await goodRequests(app, hosted)
  const complain = (complaint: unknown): void => { complaints.push(complaint) }
  for (const event of ['unhandledRejection', 'uncaughtExceptionMonitor', 'warning'] as const) {
    process.on(event, complain)
    t.teardown(() => process.off(event, complain))
  }

  const lot = lots(SEED)
  const pick = <T>(list: readonly T[]): T => list[lot(list.length)]!
  const endings: Ending[] = ['waits', 'waits', 'ends', 'ends', 'ends', 'resets', 'leaves']
  const request = (kind: string, message: Message, bytes: Buffer): Request => ({
    about: `${kind}: ${JSON.stringify(bytes.toString('latin1', 0, 300)).replace(/[^ -~]/g, '?')}`, bytes, ending: pick(endings), maySay503: message.target.includes('client_id=https')
  })
  const requests = [
    ...good.map((message): Request => ({ ...request('as it is', message, written(message)), ending: 'waits' })),
    ...CHANGES.flatMap(([kind, change]) => Array.from({ length: EACH }, () => {
      // What changes a body goes to those that have one.
      const message = pick(/form|JSON|content|chunks|transfer|announced|UTF/.test(kind) ? good.filter(({ method }) => method === 'POST') : good)
      return request(kind, message, change(message))
    })),
    ...Array.from({ length: BY_BYTES }, () => {
      const message = pick(good)
      return request('bytes', message, changedByBytes(written(message), lot))
    })
  ].map((request) => ({ ...request, parts: pick([1, 1, 1, 2, 5]) }))

  const startedAt = performance.now()
  const problems: string[] = []
  const statuses = new Map<number, number>()
  const waiting = requests.entries()
  await Promise.all(Array.from({ length: AT_ONCE }, async () => {
    for (const [, request] of waiting) {
      const { bytes, isHanging } = await ask(port, request, request.parts)
      const problem = (what: string): void => { problems.push(`${what}, for ${request.about}`) }
      if (isHanging) problem('a socket that hangs')
      try {
        for (const { status, headers, body } of answersIn(bytes, request.bytes.includes('HEAD'))) {
          statuses.set(status, (statuses.get(status) ?? 0) + 1)
          if (status >= 500 && !(status === 503 && request.maySay503 && headers.get('retry-after') === '5')) problem(`${status} ${body}`)
          const location = headers.get('location')
          if (location !== undefined && !['/login?return_to=%2F', '/my/connected_apps?done=', CALLBACK].some((start) => location.startsWith(start))) problem(`a redirect to ${location}`)
          for (const text of REVEALING) if (body.includes(text) || [...headers.values()].some((value) => value.includes(text))) problem(`${text} in ${body}`)
        }
      } catch (error) {
        if (request.ending === 'waits') problem((error as Error).message)
      }
    }
  }))
  t.comment(`seed ${SEED}: ${requests.length} requests in ${((performance.now() - startedAt) / 1000).toFixed(1)} s, answered ${JSON.stringify(Object.fromEntries([...statuses].sort(([one], [other]) => one - other)))}`)
  t.strictSame(problems, [])
  t.strictSame([200, 201, 204, 303, 400, 401, 403, 404, 408, 413, 415, 417, 431, 503].filter((status) => !statuses.has(status)), [], 'every kind of answer was among them')
  t.strictSame(logged.filter(({ level, reason }) => level >= 50 && reason !== 'client_metadata_unreachable'), [], 'and the log knows of no failure')

  const connections = async (): Promise<number> => await new Promise((resolve, reject) => app.server.getConnections((error, count) => error === null ? resolve(count) : reject(error)))
  for (const deadline = Date.now() + 5000; Date.now() < deadline && await connections() > 0;) await sleep(50)
  t.equal(await connections(), 0, 'no connection is left')
  const { connect } = dance(app)
  const { token } = await connect()
  const call = await fetch(`http://127.0.0.1:${port}/mcp`, { method: 'POST', headers: { ...bearer(token), 'content-type': 'application/json', connection: 'close' }, body: '{}' })
  t.strictSame([call.status, await call.json()], [200, { userId: 'alice' }], 'a good client still connects')
  t.match(await mintToken(app, { userId: 'alice', scopes: ['read'] }), /^pat_[\w-]{43}$/, 'and the app still makes tokens')
  t.strictSame(complaints, [])
})
