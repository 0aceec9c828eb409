import Fastify from 'fastify'
import { SignJWT, UnsecuredJWT } from 'jose'
import { generateKeyPairSync, hash, randomBytes, type KeyObject } from 'node:crypto'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import mcpOAuth, { type AuditEvent, type ConfiguredClient, type McpOAuthOptions } from '../dist/index.js'
import { sqliteStore } from '../dist/store/sqlite.js'
import { CALLBACK, FORM, ISSUER, bearer, dance, folder, form, replace, testApp, testOptions } from './app.js'

const HOUR = 3600
const DAY = 24 * HOUR
const MCP = `${ISSUER}/mcp`
const FILES = 'https://files.example.com/mcp'

const SECRET = randomBytes(32).toString('base64url')
const NEXT_SECRET = randomBytes(32).toString('base64url')
const sha256 = (secret: string): string => hash('sha256', secret, 'base64url')

const ec = generateKeyPairSync('ec', { namedCurve: 'P-256' })
const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 })
const ed = generateKeyPairSync('ed25519')
const foreign = generateKeyPairSync('ec', { namedCurve: 'P-256' })
const jwk = (key: KeyObject, kid: string) => ({ ...key.export({ format: 'jwk' }), kid })

/** One of each kind, and for each of both kinds of proof one that may have nothing for itself. */
const CLIENTS = [
  { clientId: 'web', clientName: 'Web', redirectUris: [CALLBACK], clientSecretHashes: [sha256(SECRET), hash('sha256', NEXT_SECRET, 'hex')], scopes: ['read'], introspects: [MCP] },
  { clientId: 'service', clientName: 'Service', redirectUris: [CALLBACK], jwks: { keys: [jwk(ec.publicKey, 'ec'), jwk(rsa.publicKey, 'rsa'), jwk(ed.publicKey, 'ed')] }, scopes: ['read'], introspects: [MCP] },
  { clientId: 'plain', clientName: 'Plain', redirectUris: [CALLBACK], clientSecretHashes: [sha256(SECRET)] },
  { clientId: 'other', clientName: 'Other', redirectUris: [CALLBACK], jwks: { keys: [foreign.publicKey.export({ format: 'jwk' })] } },
  { clientId: 'public', clientName: 'Public', redirectUris: [CALLBACK] }
] satisfies ConfiguredClient[]

interface Answer { access_token: string, refresh_token: string, expires_in: number, scope: string, error: string }

/** What a request brings to say whose it is. */
interface Proof { headers?: Record<string, string>, fields?: Record<string, string> }

const formEncode = (text: string): string => new URLSearchParams([['', text]]).toString().slice(1)
const basicHeader = (text: string): Proof => ({ headers: { authorization: `Basic ${Buffer.from(text).toString('base64')}` } })
const basic = (id: string, secret: string): Proof => basicHeader(`${formEncode(id)}:${formEncode(secret)}`)
const inBody = (id: string, secret: string): Proof => ({ fields: { client_id: id, client_secret: secret } })
const withAssertion = (assertion: string): Proof => ({ fields: { client_assertion_type: 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer', client_assertion: assertion } })
const both = (...proofs: Proof[]): Proof => ({ headers: Object.assign({}, ...proofs.map(({ headers }) => headers)), fields: Object.assign({}, ...proofs.map(({ fields }) => fields)) })

interface Changes { claims?: Record<string, unknown>, header?: Record<string, unknown>, key?: KeyObject | Uint8Array }

/** Epoch seconds. */
const at = (seconds: number): number => Math.floor(Date.now() / 1000) + seconds
const claimsOf = (id: string, changes: object = {}) => ({ iss: id, sub: id, aud: ISSUER, iat: at(0), exp: at(60), jti: randomBytes(8).toString('hex'), ...changes })

/** An assertion of the service, with whatever differs. A claim that is undefined is left out. */
async function assertion ({ claims = {}, header = {}, key = ec.privateKey }: Changes = {}): Promise<string> {
  return await new SignJWT(claimsOf('service', claims)).setProtectedHeader({ alg: 'ES256', kid: 'ec', ...header }).sign(key)
}

/** Each method with a client of its own. */
const METHODS: Record<string, { clientId: string, prove: () => Promise<Proof> }> = {
  client_secret_basic: { clientId: 'web', prove: async () => basic('web', SECRET) },
  client_secret_post: { clientId: 'web', prove: async () => inBody('web', SECRET) },
  private_key_jwt: { clientId: 'service', prove: async () => withAssertion(await assertion()) }
}

/** An app with clients of every kind, refresh on, and a clock of its own; `logged` is all that it has logged. */
async function confidential (t: Test, options: Partial<McpOAuthOptions> = {}) {
  const events: AuditEvent[] = []
  const lines: string[] = []
  const app = await testApp(t, {
    accessTokenLifetime: HOUR, refreshTokenLifetime: 30 * DAY, clients: CLIENTS, onEvent: (event) => events.push(event), ...options
  }, { logger: { stream: { write: (line) => { lines.push(line) } } } })
  let now = Date.now()
  replace(t, Date, 'now', () => now)
  const pass = (seconds: number) => { now += seconds * 1000 }
  const post = async (url: string, fields: Record<string, string>, proof: Proof = {}) =>
    await app.inject({ method: 'POST', url, headers: { ...FORM, ...proof.headers }, payload: form({ ...fields, ...proof.fields }) })
  const works = async (token: string) => (await app.inject({ method: 'POST', url: '/mcp', headers: bearer(token) })).statusCode === 200
  const { code: ask, codeVerifier } = dance(app)
  const code = async (clientId: string, changes: Record<string, string> = {}): Promise<string> => await ask(clientId, changes)

  const redeem = async (code: string, proof: Proof, changes: Record<string, string> = {}) =>
    await post('/oauth/token', { grant_type: 'authorization_code', code, redirect_uri: CALLBACK, code_verifier: codeVerifier, ...changes }, proof)
  const refresh = async (token: string, proof: Proof) => await post('/oauth/token', { grant_type: 'refresh_token', refresh_token: token }, proof)
  const forItself = async (proof: Proof, fields: Record<string, string> = {}) => await post('/oauth/token', { grant_type: 'client_credentials', ...fields }, proof)
  const revoke = async (token: string, proof: Proof) => await post('/oauth/revoke', { token }, proof)
  const introspect = async (token: string, proof: Proof = basic('web', SECRET)) => await post('/oauth/introspect', { token }, proof)
  const logged = () => lines.join('')
  return { app, events, logged, pass, post, works, code, redeem, refresh, forItself, revoke, introspect }
}

type Confidential = Awaited<ReturnType<typeof confidential>>

for (const [method, { clientId, prove }] of Object.entries(METHODS)) {
  t.test(`${method} authenticates a client wherever clients ask (RFC 6749 §2.3, RFC 7009 §2.1, RFC 7662 §2.1)`, async (t) => {
    const { code, redeem, refresh, forItself, revoke, introspect, works } = await confidential(t)
    const first = await redeem(await code(clientId), await prove())
    t.equal(first.statusCode, 200)
    t.match(first.json(), { access_token: /^oat_/, refresh_token: /^ort_/, token_type: 'Bearer', expires_in: HOUR, scope: 'read write' })
    const second = (await refresh(first.json<Answer>().refresh_token, await prove())).json<Answer>()
    t.ok(await works(second.access_token))
    const own = (await forItself(await prove())).json<Answer>()
    t.ok(await works(own.access_token))
    t.match((await introspect(second.access_token, await prove())).json(), { active: true, sub: 'alice', client_id: clientId })
    t.equal((await revoke(second.access_token, await prove())).statusCode, 200)
    t.notOk(await works(second.access_token))
    t.strictSame((await introspect(second.access_token, await prove())).json(), { active: false })
    t.ok(await works(own.access_token), 'and nothing else was revoked')
  })
}

t.test('the id may be beside the proof where it is the same (RFC 6749 §3.2.1, RFC 7521 §4.2)', async (t) => {
  const { forItself } = await confidential(t)
  t.equal((await forItself(basic('web', SECRET), { client_id: 'web' })).statusCode, 200)
  t.equal((await forItself(withAssertion(await assertion()), { client_id: 'service' })).statusCode, 200)
  t.equal((await forItself({ headers: { authorization: basic('web', SECRET).headers!.authorization!.replace('Basic', 'bASIC') } })).statusCode, 200, 'RFC 9110 §11.1')
})

t.test('id and secret are form-encoded in Basic, and not twice in a form (RFC 6749 §2.3.1)', async (t) => {
  const clientId = 'https://web.example/a+b:ü %?'
  const secret = 'a secret: 100% +/=&é😀'
  const { forItself } = await confidential(t, { clients: [{ clientId, clientName: 'Odd', clientSecretHashes: [sha256(secret)], scopes: ['read'] }] })
  t.equal((await forItself(basic(clientId, secret))).statusCode, 200, 'a space as +')
  t.equal((await forItself(basicHeader([clientId, secret].map(encodeURIComponent).join(':')))).statusCode, 200, 'a space as %20')
  t.equal((await forItself(inBody(clientId, secret))).statusCode, 200)
  t.equal((await forItself(inBody(formEncode(clientId), formEncode(secret)))).statusCode, 401)
  t.equal((await forItself(basicHeader(`${clientId}:${secret}`))).statusCode, 401)
})

t.test('a client may have several secrets or keys at once, to change them', async (t) => {
  const { forItself } = await confidential(t)
  for (const secret of [SECRET, NEXT_SECRET]) {
    t.equal((await forItself(basic('web', secret))).statusCode, 200)
    t.equal((await forItself(inBody('web', secret))).statusCode, 200)
  }
  t.equal((await forItself(inBody('plain', NEXT_SECRET))).statusCode, 401, 'each client has its own')
  for (const [alg, kid, { privateKey }] of [
    ['ES256', 'ec', ec], ['RS256', 'rsa', rsa], ['PS256', 'rsa', rsa], ['EdDSA', 'ed', ed], ['Ed25519', 'ed', ed]
  ] as Array<[string, string, { privateKey: KeyObject }]>) {
    t.equal((await forItself(withAssertion(await assertion({ header: { alg, kid }, key: privateKey })))).statusCode, 200, alg)
  }
  t.equal((await forItself(withAssertion(await assertion({ header: { kid: undefined } })))).statusCode, 200, 'no kid, where one key alone fits')
})

t.test('an assertion works for five minutes at most, give or take ten seconds of a clock that is wrong (RFC 7523 §3)', async (t) => {
  const { forItself, pass } = await confidential(t)
  pass(DAY)
  for (const [claims, statusCode] of [
    [{ exp: at(300) }, 200], [{ exp: at(310) }, 200], [{ exp: at(312) }, 401], [{ exp: at(-9) }, 200], [{ exp: at(-10) }, 401],
    [{ nbf: at(10) }, 200], [{ nbf: at(11) }, 401], [{ nbf: undefined, iat: undefined, jti: undefined }, 200]
  ] as Array<[object, number]>) {
    t.equal((await forItself(withAssertion(await assertion({ claims: { ...claims } })))).statusCode, statusCode, JSON.stringify(claims))
  }
})

/** What a request shows, whose things it asks for, and why it is refused. */
type Refused = [title: string, clientId: string, proof: Proof, reason: string]

async function wrongProofs (app: Confidential['app']): Promise<Refused[]> {
  const dynamic = await dance(app).clientId()
  const good = await assertion()
  const [header, payload, signature] = good.split('.') as [string, string, string]
  const pem = ec.publicKey.export({ type: 'spki', format: 'pem' })
  const assertions: Array<[title: string, assertion: string, reason: string]> = [
    ['for another server', await assertion({ claims: { aud: 'https://elsewhere.example.com' } }), 'client_assertion_audience'],
    ['for several servers', await assertion({ claims: { aud: [ISSUER, 'https://elsewhere.example.com'] } }), 'client_assertion_audience'],
    ['whose audience is a list', await assertion({ claims: { aud: [ISSUER] } }), 'client_assertion_audience'],
    ['for the token endpoint', await assertion({ claims: { aud: `${ISSUER}/oauth/token` } }), 'client_assertion_audience'],
    ['for the issuer with a slash', await assertion({ claims: { aud: `${ISSUER}/` } }), 'client_assertion_audience'],
    ['for nobody', await assertion({ claims: { aud: undefined } }), 'client_assertion_audience'],
    ['that is expired', await assertion({ claims: { exp: at(-60) } }), 'client_assertion_lifetime'],
    ['that lives for a year', await assertion({ claims: { exp: at(365 * DAY) } }), 'client_assertion_lifetime'],
    ['that lives for ever', await assertion({ claims: { exp: undefined } }), 'client_assertion_lifetime'],
    ['whose end is a string', await assertion({ claims: { exp: String(at(60)) } }), 'client_assertion_lifetime'],
    ['for later', await assertion({ claims: { nbf: at(60) } }), 'client_assertion_lifetime'],
    ['by another issuer', await assertion({ claims: { iss: 'web' } }), 'client_assertion_invalid'],
    ['by nobody', await assertion({ claims: { iss: undefined } }), 'client_assertion_invalid'],
    ['about an unknown client', await assertion({ claims: { sub: 'nobody', iss: 'nobody' } }), 'client_unknown'],
    ['about a secret client', await assertion({ claims: { sub: 'web', iss: 'web' } }), 'client_authentication_method'],
    ['about a public client', await assertion({ claims: { sub: 'public', iss: 'public' } }), 'client_authentication_method'],
    ['about a dynamic client', await assertion({ claims: { sub: dynamic, iss: dynamic } }), 'client_authentication_method'],
    ['about a list of clients', await assertion({ claims: { sub: ['service'] } }), 'client_authentication_malformed'],
    ['about nobody', await assertion({ claims: { sub: undefined } }), 'client_authentication_malformed'],
    ['without a signature', new UnsecuredJWT(claimsOf('service')).encode(), 'client_assertion_invalid'],
    ['with its signature cut off', `${header}.${payload}.`, 'client_assertion_invalid'],
    ['whose header says none', [Buffer.from('{"alg":"none"}').toString('base64url'), payload, signature].join('.'), 'client_assertion_invalid'],
    ['signed by the public key as a shared one', await assertion({ header: { alg: 'HS256' }, key: Buffer.from(pem) }), 'client_assertion_invalid'],
    ['signed by the public JWK as a shared one', await assertion({ header: { alg: 'HS256' }, key: Buffer.from(JSON.stringify(jwk(ec.publicKey, 'ec'))) }), 'client_assertion_invalid'],
    ['signed by a key of somebody else', await assertion({ key: foreign.privateKey }), 'client_assertion_invalid'],
    ['that brings its key along', await assertion({ key: foreign.privateKey, header: { kid: undefined, jwk: foreign.publicKey.export({ format: 'jwk' }), jku: 'https://evil.example/jwks' } }), 'client_assertion_invalid'],
    ['of another client', await new SignJWT(claimsOf('service')).setProtectedHeader({ alg: 'ES256' }).sign(foreign.privateKey), 'client_assertion_invalid'],
    ['with an unknown kid', await assertion({ header: { kid: 'ed25' } }), 'client_assertion_invalid'],
    ['with the kid of another key', await assertion({ header: { kid: 'rsa' } }), 'client_assertion_invalid'],
    ['with an algorithm that is not offered', await assertion({ header: { alg: 'RS512', kid: 'rsa' }, key: rsa.privateKey }), 'client_assertion_invalid'],
    ['that was tampered with', [header, Buffer.from(JSON.stringify(claimsOf('service', { exp: at(61) }))).toString('base64url'), signature].join('.'), 'client_assertion_invalid'],
    ['that is no JWT', 'garbage', 'client_authentication_malformed'],
    ['that is a client id', dynamic, 'client_authentication_malformed'],
    ['that is very long', await assertion({ claims: { padding: 'x'.repeat(11_000), aud: 'https://elsewhere.example.com' } }), 'client_assertion_audience']
  ]
  return [
    ['a wrong secret in Basic', 'web', basic('web', `${SECRET}x`), 'client_secret_mismatch'],
    ['a wrong secret in the form', 'web', inBody('web', SECRET.slice(1)), 'client_secret_mismatch'],
    ['the hash for the secret', 'web', inBody('web', sha256(SECRET)), 'client_secret_mismatch'],
    ['a huge secret', 'web', inBody('web', 'x'.repeat(12_000)), 'client_secret_mismatch'],
    ['no secret', 'web', { fields: { client_id: 'web' } }, 'client_authentication_method'],
    ['an empty secret', 'web', inBody('web', ''), 'client_authentication_method'],
    ['no assertion', 'service', { fields: { client_id: 'service' } }, 'client_authentication_method'],
    ['nothing at all', 'web', {}, 'client_id_missing'],
    ['a secret for a public client', 'public', basic('public', SECRET), 'client_authentication_method'],
    ['a secret for a dynamic client', 'public', inBody(dynamic, SECRET), 'client_authentication_method'],
    ['a secret for a client with keys', 'service', basic('service', SECRET), 'client_authentication_method'],
    ['a secret in the form for a client with keys', 'service', inBody('service', SECRET), 'client_authentication_method'],
    ['an unknown client in Basic', 'web', basic('nobody', SECRET), 'client_unknown'],
    ['an unknown client in the form', 'web', inBody('nobody', SECRET), 'client_unknown'],
    ['an id in another case', 'web', basic('WEB', SECRET), 'client_unknown'],
    ['a huge id', 'web', inBody('web'.repeat(1000), SECRET), 'client_unknown'],
    ['the name of a property', 'web', inBody('__proto__', SECRET), 'client_unknown'],
    ['Basic and a secret in the form', 'web', both(basic('web', SECRET), inBody('web', SECRET)), 'client_authentication_ambiguous'],
    ['Basic and an assertion', 'web', both(basic('web', SECRET), withAssertion(good)), 'client_authentication_ambiguous'],
    ['a secret in the form and an assertion', 'service', both(inBody('service', SECRET), withAssertion(good)), 'client_authentication_ambiguous'],
    ['all of them', 'web', both(basic('web', SECRET), inBody('web', SECRET), withAssertion(good)), 'client_authentication_ambiguous'],
    ['a good secret and a bearer token', 'web', both(inBody('web', SECRET), { headers: bearer('oat_x') }), 'client_authentication_ambiguous'],
    ['Basic and another id in the form', 'web', both(basic('web', SECRET), { fields: { client_id: 'plain' } }), 'client_authentication_ambiguous'],
    ['an assertion and another id in the form', 'service', both(withAssertion(good), { fields: { client_id: 'web' } }), 'client_authentication_ambiguous'],
    ['a bearer header', 'public', both({ headers: bearer('oat_x') }, { fields: { client_id: 'public' } }), 'client_authentication_malformed'],
    ['an assertion as a bearer', 'service', { headers: bearer(good) }, 'client_authentication_malformed'],
    ...['Basic', 'Basic ', 'Basic !', 'Basic ====', `Basic${basic('web', SECRET).headers!.authorization!.slice(6)}`, `${basic('web', SECRET).headers!.authorization} x`, 'Digest username="web"']
      .map((authorization): Refused => [`the header ${authorization.replace(/\w{20,}/, '…')}`, 'web', { headers: { authorization } }, 'client_authentication_malformed']),
    ...['web', ':', `:${SECRET}`, 'web:', `%zz:${SECRET}`, 'web:%', 'web:%E0%A4%A']
      .map((text): Refused => [`Basic with ${text.replace(SECRET, '…')}`, 'web', basicHeader(text), 'client_authentication_malformed']),
    ...assertions.map(([title, text, reason]): Refused => [`an assertion ${title}`, 'service', withAssertion(text), reason]),
    ['an assertion without its type', 'service', { fields: { client_assertion: good } }, 'client_authentication_malformed'],
    ['an assertion of another type', 'service', { fields: { client_assertion: good, client_assertion_type: 'urn:ietf:params:oauth:client-assertion-type:saml2-bearer' } }, 'client_authentication_malformed'],
    ['the type without an assertion', 'service', { fields: { client_assertion_type: withAssertion('').fields!.client_assertion_type!, client_id: 'service' } }, 'client_authentication_malformed']
  ]
}

t.test('who does not authenticate as the client is told invalid_client, and changes nothing (RFC 6749 §5.2)', async (t) => {
  const { app, events, logged, code, redeem, refresh, forItself, revoke, introspect, works } = await confidential(t)
  const right: Record<string, () => Promise<Proof>> = {
    web: METHODS.client_secret_basic!.prove, service: METHODS.private_key_jwt!.prove, public: async () => ({ fields: { client_id: 'public' } })
  }
  const grants: Record<string, { code: string, answer: Answer }> = {}
  for (const [clientId, prove] of Object.entries(right)) {
    grants[clientId] = { code: await code(clientId), answer: (await redeem(await code(clientId), await prove())).json<Answer>() }
  }
  const before = await app.oauth.tokens.stats()

  for (const [title, clientId, proof, reason] of await wrongProofs(app)) {
    const { code, answer } = grants[clientId]!
    const requests = {
      'redeeming a code': async () => await redeem(code, proof),
      refreshing: async () => await refresh(answer.refresh_token, proof),
      'asking for itself': async () => await forItself(proof),
      revoking: async () => await revoke(answer.access_token, proof),
      introspecting: async () => await introspect(answer.access_token, proof)
    }
    for (const [what, request] of Object.entries(requests)) {
      const { statusCode, headers, body } = await request()
      t.equal(statusCode, 401, `${title}, ${what}`)
      t.strictSame(Object.keys(JSON.parse(body)), ['error', 'error_description'])
      t.equal(JSON.parse(body).error, 'invalid_client')
      t.equal(headers['www-authenticate'], proof.headers === undefined || Object.keys(proof.headers).length === 0 ? undefined : 'Basic realm="oauth"', `${title}, ${what}`)
      t.equal(headers['cache-control'], 'no-store')
      t.notMatch(body, reason)
      t.match(events.at(-1), { type: 'client.rejected', reason, clientId: /ambiguous|malformed|missing/.test(reason) ? null : String }, `${title}, ${what}`)
      t.match(logged().trim().split('\n').filter((line) => line.includes('oauth: ')).at(-1), `"reason":"${reason}"`, `${title}, ${what}`)
    }
  }
  t.strictSame(await app.oauth.tokens.stats(), before)
  t.strictSame(events.filter(({ type }) => ['code.rejected', 'token.rejected', 'token.revoked'].includes(type)), [])
  for (const secret of [SECRET, NEXT_SECRET]) t.notOk(logged().includes(secret), 'no secret is logged')
  t.notMatch(logged(), /eyJ[\w-]+\.eyJ[\w-]+\.[\w-]{86}/, 'no assertion is logged')
  for (const [clientId, prove] of Object.entries(right)) {
    const { code, answer } = grants[clientId]!
    t.ok(await works(answer.access_token))
    t.equal((await redeem(code, await prove())).statusCode, 200, 'its owner can still redeem the code')
    t.equal((await refresh(answer.refresh_token, await prove())).statusCode, 200)
  }
})

t.test('an assertion larger than any form is refused before it is read', async (t) => {
  const { forItself } = await confidential(t)
  const { statusCode, body } = await forItself(withAssertion(await assertion({ claims: { padding: 'x'.repeat(100_000) } })))
  t.equal(statusCode, 413)
  t.equal(JSON.parse(body).error, 'invalid_request')
})

t.test('credentials in the query are not read: addresses end up in logs (RFC 6749 §2.3.1)', async (t) => {
  const { post } = await confidential(t)
  const { statusCode, body } = await post(`/oauth/token?${form(inBody('web', SECRET).fields!)}`, { grant_type: 'client_credentials' })
  t.equal(statusCode, 401)
  t.equal(JSON.parse(body).error, 'invalid_client')
})

t.test('a code of a confidential client is for its client alone, which proves itself and its verifier both (RFC 9700 §2.1.1, RFC 7636 §4.5)', async (t) => {
  const { app, code, redeem, works } = await confidential(t)
  const issued = await code('web')
  for (const [title, proof, changes, error] of [
    ['another confidential client', inBody('plain', SECRET), {}, 'invalid_grant'],
    ['a client with keys', withAssertion(await assertion()), {}, 'invalid_grant'],
    ['a public client', { fields: { client_id: 'public' } }, {}, 'invalid_grant'],
    ['no verifier', basic('web', SECRET), { code_verifier: '' }, 'invalid_request'],
    ['another verifier', basic('web', SECRET), { code_verifier: 'v'.repeat(43) }, 'invalid_grant']
  ] as Array<[string, Proof, Record<string, string>, string]>) {
    const answer = await redeem(issued, proof, changes)
    t.equal(answer.statusCode, 400, title)
    t.equal(answer.json<Answer>().error, error, title)
  }
  t.ok(await works((await redeem(issued, basic('web', SECRET))).json<Answer>().access_token))

  const { authorize } = dance(app)
  for (const changes of [{ code_challenge: '' }, { code_challenge_method: 'plain' }, { code_challenge_method: '' }] as Array<Record<string, string>>) {
    t.equal(new URL(String((await authorize('web', changes)).headers.location)).searchParams.get('error'), 'invalid_request', JSON.stringify(changes))
  }
})

t.test('a refresh token of a confidential client is for that client alone (RFC 6749 §10.4)', async (t) => {
  const { code, redeem, refresh, works } = await confidential(t)
  const first = (await redeem(await code('web'), basic('web', SECRET))).json<Answer>()
  for (const proof of [inBody('plain', SECRET), withAssertion(await assertion()), { fields: { client_id: 'public' } }]) {
    t.equal((await refresh(first.refresh_token, proof)).json<Answer>().error, 'invalid_grant')
  }
  t.ok(await works(first.access_token))
  t.equal((await refresh(first.refresh_token, inBody('web', SECRET))).statusCode, 200)
})

t.test('a client revokes only what is its own, whatever it proves (RFC 7009 §2.1)', async (t) => {
  const { app, code, redeem, forItself, revoke, works } = await confidential(t)
  const hers = (await redeem(await code('web'), basic('web', SECRET))).json<Answer>()
  const own = (await forItself(basic('web', SECRET))).json<Answer>()
  const { token: personal } = await app.oauth.tokens.create({ userId: 'alice', name: 'script', scopes: ['read'] })
  for (const token of [hers.access_token, hers.refresh_token, own.access_token, personal]) {
    t.equal((await revoke(token, withAssertion(await assertion()))).statusCode, 200)
  }
  t.equal((await revoke(personal, basic('web', SECRET))).statusCode, 200)
  for (const token of [hers.access_token, own.access_token, personal]) t.ok(await works(token))
  t.equal((await revoke(own.access_token, basic('web', SECRET))).statusCode, 200)
  t.notOk(await works(own.access_token))
  t.ok(await works(hers.access_token))
})

t.test('the metadata name the methods and grants that some client may use, and no others (RFC 8414 §2)', async (t) => {
  const [web, service] = [CLIENTS[0]!, CLIENTS[1]!]
  const secrets = ['client_secret_basic', 'client_secret_post']
  const all = ['none', ...secrets, 'private_key_jwt']
  for (const [title, options, methods, introspection] of [
    ['no clients', { clients: [] }, ['none'], undefined],
    ['public ones', { clients: [CLIENTS[4]!] }, ['none'], undefined],
    ['a secret', { clients: [web] }, ['none', ...secrets], secrets],
    ['keys', { clients: [service] }, ['none', 'private_key_jwt'], ['private_key_jwt']],
    ['a secret, and no registration', { clients: [web], registration: { enabled: false } }, ['none', ...secrets], secrets],
    ['keys without introspects', { clients: [CLIENTS[3]!] }, ['none', 'private_key_jwt'], undefined],
    ['a look-up', { clients: () => null }, all, [...secrets, 'private_key_jwt']],
    ['clients with URLs', { clients: [], clientIdMetadata: undefined }, ['none', 'private_key_jwt'], undefined],
    ['a secret, and clients with URLs', { clients: [web], clientIdMetadata: undefined }, all, secrets],
    ['keys, and clients with URLs', { clients: [service], clientIdMetadata: undefined }, ['none', 'private_key_jwt'], ['private_key_jwt']]
  ] as Array<[string, Partial<McpOAuthOptions>, string[], string[] | undefined]>) {
    const app = await testApp(t, { clientIdMetadata: false, ...options })
    const metadata = (await app.inject('/.well-known/oauth-authorization-server')).json<Record<string, unknown>>()
    const signingOf = (methods: string[] | undefined) => methods?.includes('private_key_jwt') === true ? ['ES256', 'ES384', 'PS256', 'RS256', 'EdDSA', 'Ed25519'] : undefined
    const signing = signingOf(methods)
    t.equal(metadata.client_id_metadata_document_supported, 'clientIdMetadata' in options ? true : undefined, title)
    t.strictSame([metadata.token_endpoint_auth_methods_supported, metadata.revocation_endpoint_auth_methods_supported], [methods, methods], title)
    t.strictSame([metadata.token_endpoint_auth_signing_alg_values_supported, metadata.revocation_endpoint_auth_signing_alg_values_supported], [signing, signing], title)
    t.equal(metadata.introspection_endpoint, introspection && `${ISSUER}/oauth/introspect`, title)
    t.strictSame(metadata.introspection_endpoint_auth_methods_supported, introspection, title)
    t.strictSame(metadata.introspection_endpoint_auth_signing_alg_values_supported, signingOf(introspection), title)
    t.equal((metadata.grant_types_supported as string[]).includes('client_credentials'), introspection !== undefined, title)
    t.equal((await app.inject({ method: 'POST', url: '/oauth/introspect', headers: FORM, payload: 'token=x' })).statusCode, introspection === undefined ? 404 : 401, title)
  }
})

const SCOPED: Partial<McpOAuthOptions> = {
  scopes: { read: 'Read', write: { description: 'Write', implies: ['read'] }, admin: 'Administrate', files: 'Files' },
  resources: [{ path: '/mcp' }, { path: '/files', scopes: ['files', 'read'] }, { url: FILES, scopes: ['files'] }],
  clients: [
    { clientId: 'writer', clientName: 'Writer', clientSecretHashes: [sha256(SECRET)], scopes: ['write'] },
    { clientId: 'filer', clientName: 'Filer', clientSecretHashes: [sha256(SECRET)], scopes: ['files', 'admin'] },
    { clientId: 'nothing', clientName: 'Nothing', clientSecretHashes: [sha256(SECRET)], redirectUris: [CALLBACK] },
    { clientId: 'looker', clientName: 'Looker', clientSecretHashes: [sha256(SECRET)], introspects: [MCP, `${ISSUER}/files`, FILES] },
    { clientId: 'public', clientName: 'Public', redirectUris: [CALLBACK] }
  ]
}

/** An app with a guarded route for each resource that is here. */
async function scoped (t: Test) {
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(mcpOAuth, testOptions(SCOPED))
  for (const path of ['/mcp', '/files']) app.post(path, { onRequest: app.oauth.protect({ resource: path }) }, async ({ oauth }) => oauth)
  await app.ready()
  const ask = async (clientId: string, fields: Record<string, string> = {}) => await app.inject({
    method: 'POST', url: '/oauth/token', headers: FORM, payload: form({ grant_type: 'client_credentials', client_id: clientId, client_secret: SECRET, ...fields })
  })
  return { app, ask }
}

t.test('a client has for itself what the app gave it, as far as the resource has it (RFC 6749 §3.3, RFC 8707 §2.2)', async (t) => {
  const { ask } = await scoped(t)
  for (const [clientId, fields, expected] of [
    ['writer', {}, 'read write'],
    ['writer', { scope: 'write' }, 'read write'],
    ['writer', { scope: 'read' }, 'read'],
    ['writer', { scope: 'read admin unknown' }, 'read'],
    ['writer', { scope: 'admin' }, 'invalid_scope'],
    ['writer', { scope: 'unknown' }, 'invalid_scope'],
    ['writer', { scope: 'toString' }, 'invalid_scope'],
    ['writer', { resource: MCP }, 'read write'],
    ['writer', { resource: `${MCP}/` }, 'read write'],
    ['writer', { resource: `${ISSUER}/files` }, 'read'],
    ['writer', { resource: `${ISSUER}/files`, scope: 'write' }, 'invalid_scope'],
    ['writer', { resource: FILES }, 'invalid_scope'],
    ['writer', { resource: `${ISSUER}/other` }, 'invalid_target'],
    ['writer', { resource: 'https://elsewhere.example.com/mcp' }, 'invalid_target'],
    ['writer', { resource: 'mcp' }, 'invalid_target'],
    ['filer', {}, 'admin files'],
    ['filer', { resource: FILES }, 'files'],
    ['filer', { resource: FILES, scope: 'admin' }, 'invalid_scope'],
    ['nothing', {}, 'unauthorized_client'],
    ['nothing', { scope: 'read' }, 'unauthorized_client'],
    ['looker', {}, 'unauthorized_client'],
    ['public', { client_secret: '' }, 'unauthorized_client']
  ] as Array<[string, Record<string, string>, string]>) {
    const response = await ask(clientId, fields)
    const { scope, error } = response.json<Answer>()
    t.equal(scope ?? error, expected, `${clientId} ${JSON.stringify(fields)}`)
    t.equal(response.statusCode, scope === undefined ? 400 : 200)
    t.equal(response.headers['cache-control'], 'no-store')
  }
})

t.test('a token that a client has for itself is for one resource, and for no user (RFC 6749 §4.4)', async (t) => {
  const { app, ask } = await scoped(t)
  const { access_token: token } = (await ask('writer')).json<Answer>()
  const call = async (path: string) => await app.inject({ method: 'POST', url: path, headers: bearer(token) })
  t.match((await call('/mcp')).json(), { userId: null, tenantId: null, clientId: 'writer', clientName: 'Writer', scopes: ['read', 'write'], resource: MCP })
  t.equal((await call('/files')).statusCode, 401)
  const { access_token: files } = (await ask('filer', { resource: FILES })).json<Answer>()
  for (const path of ['/mcp', '/files']) t.equal((await app.inject({ method: 'POST', url: path, headers: bearer(files) })).statusCode, 401)
  t.equal((await dance(app).authorize('writer')).statusCode, 400, 'nobody can be sent to a client that has no redirect URI')
})

t.test('a token that a client has for itself always expires, and cannot be refreshed (RFC 6749 §4.4.3)', async (t) => {
  for (const [options, lifetime] of [
    [{}, HOUR],
    [{ accessTokenLifetime: null, refreshTokenLifetime: null }, 3600],
    [{ accessTokenLifetime: 600 }, 600]
  ] as Array<[Partial<McpOAuthOptions>, number]>) {
    const { events, forItself, refresh, works, pass } = await confidential(t, options)
    const response = await forItself(basic('web', SECRET))
    t.strictSame(Object.keys(response.json()).sort(), ['access_token', 'expires_in', 'scope', 'token_type'])
    const { access_token: token, expires_in: expiresIn } = response.json<Answer>()
    t.equal(expiresIn, lifetime)
    t.match(events.at(-1), { type: 'token.issued', userId: null, clientId: 'web', scopes: ['read'] })
    t.match((await refresh(token, basic('web', SECRET))).json<Answer>().error, /^invalid_grant$|^unsupported_grant_type$/)
    pass(lifetime - 1)
    t.ok(await works(token))
    pass(1)
    t.notOk(await works(token))
  }
})

t.test('what a client has for itself is on nobody’s page, and the app ends it by the client’s id', async (t) => {
  const { app, forItself, post, works } = await confidential(t)
  const tokens = await Promise.all([forItself(basic('web', SECRET)), forItself(basic('web', SECRET))])
  const other = (await forItself(withAssertion(await assertion()))).json<Answer>()
  for (const user of ['alice', 'null', 'web', 'undefined']) {
    t.strictSame(await app.oauth.tokens.list({ userId: user }), [])
    const page = (await app.inject({ url: '/my/connected_apps', headers: { 'x-user': user, accept: 'application/json' } })).json<{ ticket: string, apps: unknown[], personalTokens: unknown[] }>()
    t.strictSame([page.apps, page.personalTokens], [[], []])
    const { grantId } = (await app.oauth.tokens.verify(tokens[0]!.json<Answer>().access_token))!
    for (const fields of [{ client: 'web' }, { grant: grantId }]) {
      t.equal((await post('/my/connected_apps', { ticket: page.ticket, ...fields } as Record<string, string>, { headers: { 'x-user': user } })).statusCode, 404)
    }
  }
  t.equal(await app.oauth.tokens.revoke({ clientId: 'web' }), 2)
  for (const answer of tokens) t.notOk(await works(answer.json<Answer>().access_token))
  t.ok(await works(other.access_token))
  t.ok(await works((await forItself(basic('web', SECRET))).json<Answer>().access_token), 'a client that the app still names may ask again')
})

t.test('registration never brings client_credentials (RFC 7591 §2)', async (t) => {
  const { app, post, logged } = await confidential(t)
  const { register } = dance(app)
  const alone = await register({ grant_types: ['client_credentials'] })
  t.equal(alone.statusCode, 400)
  t.equal(alone.json<Answer>().error, 'invalid_client_metadata')
  const registered = await register({ grant_types: ['authorization_code', 'client_credentials'], token_endpoint_auth_method: 'client_secret_basic', scope: 'read' })
  t.strictSame(registered.json<{ grant_types: string[] }>().grant_types, ['authorization_code'])
  t.equal(registered.json<{ token_endpoint_auth_method: string }>().token_endpoint_auth_method, 'none')
  t.notOk('client_secret' in registered.json<object>())
  const answer = await post('/oauth/token', { grant_type: 'client_credentials', client_id: registered.json<{ client_id: string }>().client_id, scope: 'read' })
  t.equal(answer.statusCode, 400)
  t.equal(answer.json<Answer>().error, 'unauthorized_client')
  t.match(logged(), /"reason":"client_not_allowed"/)
  const nowhere = await testApp(t, { clients: [CLIENTS[2]!] })
  const unsupported = await nowhere.inject({ method: 'POST', url: '/oauth/token', headers: FORM, payload: form({ grant_type: 'client_credentials', ...inBody('plain', SECRET).fields! }) })
  t.equal(unsupported.json<Answer>().error, 'unsupported_grant_type', 'nor is it there where no client may have it')
})

t.test('introspection tells all of a live token, with times in seconds (RFC 7662 §2.2)', async (t) => {
  const { app, code, redeem, forItself, introspect, refresh, pass } = await confidential(t, { currentUser: () => ({ id: 'alice', tenantId: 'acme' }) })
  const issuedAt = Math.floor(Date.now() / 1000)
  const oauth = (await redeem(await code('public'), { fields: { client_id: 'public' } })).json<Answer>()
  const { token: personal, grantId } = await app.oauth.tokens.create({ userId: 'bob', name: 'script', scopes: ['read'] })
  const { token: ending } = await app.oauth.tokens.create({ userId: 'bob', name: 'script', scopes: ['read'], resource: MCP, expiresAt: Date.now() + 1999 })
  const own = (await forItself(basic('web', SECRET))).json<Answer>()
  const common = { active: true, iss: ISSUER, token_type: 'Bearer', iat: issuedAt }
  const idOf = async (token: string): Promise<string> => (await app.oauth.tokens.verify(token))!.grantId

  const answer = await introspect(oauth.access_token)
  t.equal(answer.statusCode, 200)
  t.match(answer.headers, { 'content-type': /^application\/json/, 'cache-control': 'no-store' })
  t.notOk('access-control-allow-origin' in answer.headers, 'it is for servers')
  t.strictSame(answer.json(), {
    ...common, scope: 'read write', aud: MCP, jti: await idOf(oauth.access_token), exp: issuedAt + HOUR, sub: 'alice', tenant_id: 'acme', client_id: 'public', client_name: 'Public'
  })
  t.strictSame((await introspect(personal)).json(), { ...common, scope: 'read', aud: [MCP], jti: grantId, sub: 'bob' }, 'one for any resource is for those of who asks')
  t.match((await introspect(ending)).json(), { aud: MCP, exp: Math.floor((Date.now() + 1999) / 1000) })
  t.strictSame((await introspect(own.access_token)).json(), { ...common, scope: 'read', aud: MCP, jti: await idOf(own.access_token), exp: issuedAt + HOUR, client_id: 'web', client_name: 'Web' })
  t.match((await introspect(own.access_token, withAssertion(await assertion()))).json(), { active: true }, 'whoever serves the resource may ask, not only who has the token')

  pass(HOUR / 2)
  const next = (await refresh(oauth.refresh_token, { fields: { client_id: 'public' } })).json<Answer>()
  t.match((await introspect(next.access_token)).json(), { iat: issuedAt + HOUR / 2, exp: issuedAt + HOUR / 2 + HOUR }, 'when this token was issued, not the first of its grant')
})

t.test('for introspection whatever is not a live token for its resource is inactive, and nothing more is told (RFC 7662 §2.2)', async (t) => {
  const store = sqliteStore({ path: join(folder(), 'tokens.db') })
  const noted: string[] = []
  const touch = store.touch.bind(store)
  store.touch = (grantId, now) => { noted.push(grantId); touch(grantId, now) }
  const { app, code, redeem, forItself, introspect, revoke, pass } = await confidential(t, { store, idleLifetime: 2 * HOUR, resources: [{ path: '/mcp' }, { url: FILES }] })
  const publicClient = { fields: { client_id: 'public' } }
  const { token: idle } = await app.oauth.tokens.create({ userId: 'alice', name: 'idle', scopes: ['read'] })
  const expired = (await redeem(await code('public'), publicClient)).json<Answer>()
  pass(2 * HOUR)
  const live = (await redeem(await code('public'), publicClient)).json<Answer>()
  const revoked = (await redeem(await code('public'), publicClient)).json<Answer>()
  await revoke(revoked.access_token, publicClient)
  const elsewhere = (await redeem(await code('public', { resource: FILES }), publicClient)).json<Answer>()
  const ownElsewhere = (await forItself(basic('web', SECRET), { resource: FILES })).json<Answer>()
  const { token: personalElsewhere } = await app.oauth.tokens.create({ userId: 'alice', name: 'x', scopes: ['read'], resource: FILES })
  for (const [title, token] of Object.entries({
    expired: expired.access_token,
    revoked: revoked.access_token,
    idle,
    'for another resource': elsewhere.access_token,
    'a client’s for another resource': ownElsewhere.access_token,
    'a personal one for another resource': personalElsewhere,
    'a refresh token': live.refresh_token,
    unknown: `oat_${'x'.repeat(43)}`,
    'cut short': live.access_token.slice(0, -1),
    'in another case': live.access_token.toUpperCase(),
    garbage: '\0 ü {}',
    huge: 'x'.repeat(15_000),
    'an assertion': await assertion(),
    'a client id': await dance(app).clientId(),
    'a code': await code('public')
  })) {
    const answer = await introspect(token)
    t.equal(answer.statusCode, 200, title)
    t.equal(answer.body, '{"active":false}', title)
    t.equal(answer.headers['cache-control'], 'no-store', title)
  }
  t.strictSame(noted, [], 'asking about these was no use of them')
  t.match((await introspect(live.access_token)).json(), { active: true })
  t.strictSame(noted, [(await app.oauth.tokens.list({ userId: 'alice' })).find(({ clientId, resource }) => clientId === 'public' && resource === MCP)?.grantId], 'asking about a live one was')
})

t.test('introspection is for the confidential clients that the app names for it (RFC 7662 §4)', async (t) => {
  const { app, events, logged, code, redeem, introspect, post } = await confidential(t)
  const { access_token: token } = (await redeem(await code('public'), { fields: { client_id: 'public' } })).json<Answer>()
  for (const [title, proof] of [
    ['a public client', { fields: { client_id: 'public' } }],
    ['a dynamic client', { fields: { client_id: await dance(app).clientId() } }],
    ['a confidential client without introspects', basic('plain', SECRET)]
  ] as Array<[string, Proof]>) {
    const { statusCode, body } = await introspect(token, proof)
    t.equal(statusCode, 400, title)
    t.equal(JSON.parse(body).error, 'unauthorized_client', title)
    t.notOk('active' in JSON.parse(body))
  }
  t.match(logged(), /"reason":"client_not_allowed"/)
  t.equal((await introspect(token, { headers: bearer(token) })).statusCode, 401, 'a token is no proof of a client')
  t.match(events.at(-1), { type: 'client.rejected', reason: 'client_authentication_malformed' })
  t.equal((await post('/oauth/introspect', {}, basic('web', SECRET))).json<Answer>().error, 'invalid_request', 'no token')
  t.equal((await app.inject({ method: 'OPTIONS', url: '/oauth/introspect', headers: { origin: 'https://evil.example', 'access-control-request-method': 'POST' } })).statusCode, 404)
})

/** Who exists, what the app was asked, and whether it fails when asked. */
async function withUsers (t: Test, options: Partial<McpOAuthOptions> = {}) {
  const users = new Map([['alice', { id: 'alice', name: 'Alice' }]])
  const asked: string[] = []
  let failure: Error | undefined
  const findUser = async (userId: string) => {
    asked.push(userId)
    if (failure !== undefined) throw failure
    return users.get(userId)
  }
  const fail = (error?: Error) => { failure = error }
  return { ...await confidential(t, { findUser, ...options }), users, asked, fail }
}

t.test('userinfo tells the bearer what the app says of the user, and whose it is (RFC 6750 §2.1)', async (t) => {
  const grants: unknown[] = []
  const { app, code, redeem } = await withUsers(t, {
    userinfo: (user, grant) => {
      grants.push(grant)
      return { name: user.name, sub: 'mallory', ...(grant.scopes.includes('write') && { email: 'alice@example.com' }) }
    }
  })
  const ask = async (token: string) => await app.inject({ url: '/oauth/userinfo', headers: bearer(token) })
  const { access_token: token } = (await redeem(await code('public'), { fields: { client_id: 'public' } })).json<Answer>()
  const answer = await ask(token)
  t.equal(answer.statusCode, 200)
  t.strictSame(answer.json(), { name: 'Alice', email: 'alice@example.com', sub: 'alice' }, 'and sub is ours')
  t.match(answer.headers, { 'content-type': /^application\/json/, 'cache-control': 'no-store', 'access-control-allow-origin': '*' })
  t.match(grants, [{ userId: 'alice', clientId: 'public', scopes: ['read', 'write'], resource: MCP }])
  const { token: personal } = await app.oauth.tokens.create({ userId: 'alice', name: 'script', scopes: ['read'] })
  t.strictSame((await ask(personal)).json(), { name: 'Alice', sub: 'alice' })
  t.equal((await app.inject('/.well-known/oauth-authorization-server')).json<{ userinfo_endpoint: string }>().userinfo_endpoint, `${ISSUER}/oauth/userinfo`)
  t.equal((await app.inject({ method: 'OPTIONS', url: '/oauth/userinfo' })).statusCode, 204)
})

t.test('userinfo refuses whoever shows no live token of a user that exists, with a challenge (RFC 6750 §3)', async (t) => {
  const { app, events, users, fail, pass, code, redeem, forItself, revoke, logged } = await withUsers(t, { userinfo: () => ({ name: 'Alice' }) })
  const publicClient = { fields: { client_id: 'public' } }
  const ask = async (headers: Record<string, string>) => await app.inject({ url: '/oauth/userinfo', headers })
  const expired = (await redeem(await code('public'), publicClient)).json<Answer>()
  pass(HOUR)
  const live = (await redeem(await code('public'), publicClient)).json<Answer>()
  const revoked = (await redeem(await code('public'), publicClient)).json<Answer>()
  await revoke(revoked.access_token, publicClient)
  const own = (await forItself(basic('web', SECRET))).json<Answer>()
  const { token: ghost, grantId } = await app.oauth.tokens.create({ userId: 'ghost', name: 'x', scopes: ['read'] })
  for (const [title, headers, reason, about] of [
    ['an expired token', bearer(expired.access_token), 'token_expired', { userId: 'alice', clientId: 'public' }],
    ['a revoked token', bearer(revoked.access_token), 'token_revoked', { userId: 'alice', clientId: 'public' }],
    ['an unknown token', bearer(`oat_${'x'.repeat(43)}`), 'token_unknown', { userId: null, grantId: null }],
    ['a refresh token', bearer(live.refresh_token), 'token_unknown', {}],
    ['garbage', bearer('x'), 'token_unknown', {}],
    ['a token of a client for itself', bearer(own.access_token), 'token_without_user', { userId: null, clientId: 'web' }],
    ['a token of a user who is gone', bearer(ghost), 'user_unknown', { userId: 'ghost', grantId }]
  ] as Array<[string, Record<string, string>, string, object]>) {
    const answer = await ask(headers)
    t.equal(answer.statusCode, 401, title)
    t.equal(answer.json<Answer>().error, 'invalid_token', title)
    t.match(answer.headers['www-authenticate'], /^Bearer error="invalid_token"/, title)
    t.equal(answer.headers['cache-control'], 'no-store', title)
    t.match(events.at(-1), { type: 'token.rejected', reason, ...about }, title)
  }
  for (const headers of [{}, bearer(''), basic('web', SECRET).headers!, { cookie: 'session=alice', 'x-user': 'alice' }] as Array<Record<string, string>>) {
    const answer = await ask(headers)
    t.equal(answer.statusCode, 401)
    t.match(answer.headers['www-authenticate'], /^Bearer \w+="/, 'with a parameter, since some clients need one')
    t.notMatch(answer.headers['www-authenticate'], /error/, 'RFC 6750 §3.1: nothing was wrong with the token')
    t.match(events.at(-1), { type: 'token.rejected', reason: 'token_missing' })
  }
  t.equal((await app.inject(`/oauth/userinfo?access_token=${live.access_token}`)).statusCode, 401, 'a token in the address is not read')
  fail(new Error('users: password=hunter2'))
  const failed = await ask(bearer(live.access_token))
  t.equal(failed.statusCode, 500)
  t.notMatch(failed.body, /hunter2/)
  t.match(logged(), /hunter2/, 'it is in the log')
  fail()
  t.equal((await ask(bearer(live.access_token))).statusCode, 200)
  users.delete('alice')
  t.equal((await ask(bearer(live.access_token))).statusCode, 401)
})

t.test('without the option there is no userinfo', async (t) => {
  const { app } = await withUsers(t)
  const answer = await app.inject({ url: '/oauth/userinfo', headers: bearer('x') })
  t.equal(answer.statusCode, 404)
  t.match(answer.headers['content-type'], /^application\/json/)
  t.notOk('userinfo_endpoint' in (await app.inject('/.well-known/oauth-authorization-server')).json<object>())
})

t.test('a user who is gone gets no tokens, and has lost nothing if they are back in time', async (t) => {
  const { events, users, code, redeem, refresh, works } = await withUsers(t)
  const publicClient = { fields: { client_id: 'public' } }
  const issued = await code('public')
  const gone = users.get('alice')!
  users.delete('alice')
  t.equal((await redeem(issued, publicClient)).json<Answer>().error, 'invalid_grant')
  t.match(events.at(-1), { type: 'code.rejected', reason: 'user_unknown', userId: 'alice', clientId: 'public' })
  users.set('alice', gone)
  const first = (await redeem(issued, publicClient)).json<Answer>()
  t.ok(await works(first.access_token))
  users.delete('alice')
  for (let attempt = 0; attempt < 2; attempt++) t.equal((await refresh(first.refresh_token, publicClient)).json<Answer>().error, 'invalid_grant')
  t.match(events.at(-1), { type: 'token.rejected', reason: 'user_unknown', userId: 'alice', clientId: 'public' })
  t.ok(await works(first.access_token), 'a token lives out its time: app.oauth.tokens.revoke({ userId }) ends it')
  users.set('alice', gone)
  const second = (await refresh(first.refresh_token, publicClient)).json<Answer>()
  t.ok(await works(second.access_token))
  users.delete('alice')
  t.equal((await refresh(first.refresh_token, publicClient)).json<Answer>().error, 'invalid_grant', 'nor does a retry within the grace tell the pair')
})

t.test('a look-up of users that fails is a 500 that says nothing and changes nothing', async (t) => {
  const { app, events, fail, logged, code, redeem, refresh, works } = await withUsers(t)
  const publicClient = { fields: { client_id: 'public' } }
  const issued = await code('public')
  const first = (await redeem(await code('public'), publicClient)).json<Answer>()
  const before = await app.oauth.tokens.stats()
  fail(new Error('users: password=hunter2'))
  for (const answer of [await redeem(issued, publicClient), await refresh(first.refresh_token, publicClient)]) {
    t.equal(answer.statusCode, 500)
    t.equal(answer.json<Answer>().error, 'server_error')
    t.notMatch(answer.body, /hunter2/)
  }
  t.match(logged(), /hunter2/)
  t.strictSame(await app.oauth.tokens.stats(), before)
  t.strictSame(events.filter(({ type }) => /rejected|revoked|refreshed/.test(type)), [])
  fail()
  t.ok(await works((await redeem(issued, publicClient)).json<Answer>().access_token))
  t.ok(await works((await refresh(first.refresh_token, publicClient)).json<Answer>().access_token))
})

t.test('the app is asked for a user once a code or refresh token is proven, and never for a client that acts for itself', async (t) => {
  const { asked, code, redeem, refresh, forItself, works } = await withUsers(t)
  const publicClient = { fields: { client_id: 'public' } }
  t.ok(await works((await forItself(basic('web', SECRET))).json<Answer>().access_token))
  const issued = await code('public')
  await redeem(issued, publicClient, { code_verifier: 'v'.repeat(43) })
  await redeem(issued, inBody('plain', SECRET))
  t.strictSame(asked, [])
  const first = (await redeem(issued, publicClient)).json<Answer>()
  t.strictSame(asked, ['alice'])
  await refresh(first.refresh_token, inBody('plain', SECRET))
  t.strictSame(asked, ['alice'])
  await refresh(first.refresh_token, publicClient)
  t.strictSame(asked, ['alice', 'alice'])
})

t.test('what a look-up of clients answers is checked like a list: a mistake is a 500, told to the log and to nobody else', async (t) => {
  const { d } = ec.privateKey.export({ format: 'jwk' })
  const wrong: Record<string, [client: object, option: string]> = {
    secret: [{ clientSecretHashes: [SECRET.slice(1)] }, 'clientSecretHashes[0]'],
    text: [{ clientSecretHashes: SECRET }, 'clientSecretHashes'],
    named: [{ clientSecret: SECRET }, 'clientSecret'],
    private: [{ jwks: { keys: [ec.privateKey.export({ format: 'jwk' })] } }, 'jwks.keys[0]'],
    both: [{ clientSecretHashes: [sha256(SECRET)], jwks: { keys: [ec.publicKey.export({ format: 'jwk' })] } }, 'jwks'],
    public: [{ scopes: ['read'] }, 'scopes'],
    scope: [{ clientSecretHashes: [sha256(SECRET)], scopes: ['red'] }, 'scopes'],
    list: [[SECRET], '']
  }
  const { app, post, code, redeem, works, logged } = await confidential(t, {
    clients: async (clientId) => {
      if (clientId === 'throws') throw new Error('clients: password=hunter2')
      if (clientId.toLowerCase() === 'web') return CLIENTS[0]
      const [client] = wrong[clientId] ?? []
      if (Array.isArray(client)) return Object.assign(client, { clientId }) as never
      return client && { clientId, clientName: 'Wrong', redirectUris: [CALLBACK], ...client }
    }
  })
  for (const [clientId, [, option]] of Object.entries(wrong)) {
    for (const url of ['/oauth/token', '/oauth/revoke', '/oauth/introspect']) {
      const { statusCode, body } = await post(url, { grant_type: 'client_credentials', token: 'x' }, inBody(clientId, SECRET))
      t.equal(statusCode, 500, `${clientId} ${url}`)
      t.strictSame(JSON.parse(body), { error: 'server_error', error_description: 'Something went wrong.' })
    }
    t.equal((await dance(app).authorize(clientId)).statusCode, 500, clientId)
    t.ok(logged().includes(`Option clients('${clientId}')${option === '' ? '' : `.${option}`}: expected `), clientId)
  }
  t.equal((await post('/oauth/token', { grant_type: 'client_credentials' }, inBody('throws', SECRET))).statusCode, 500)
  t.match(logged(), /hunter2/)
  for (const secret of [SECRET, SECRET.slice(1), d!]) t.notOk(logged().includes(secret), 'no secret is logged')
  t.ok(await works((await redeem(await code('web'), basic('web', SECRET))).json<Answer>().access_token), 'and the others go on')
  for (const clientId of ['nobody', 'WEB']) t.equal((await post('/oauth/token', { grant_type: 'client_credentials' }, inBody(clientId, SECRET))).statusCode, 401, clientId)
})
