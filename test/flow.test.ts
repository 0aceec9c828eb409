import { DatabaseSync } from '@photostructure/sqlite'
import Fastify from 'fastify'
import { join } from 'node:path'
import t from 'tap'
import mcpOAuth, { type AuditEvent, type McpOAuthOptions } from '../dist/index.js'
import { createSealer } from '../dist/protocol/sealed.js'
import { parseKey } from '../dist/protocol/secret.js'
import { sqliteStore } from '../dist/store/sqlite.js'
import { connectClient, mintToken } from '../dist/testing.js'
import { CALLBACK, FORM, ISSUER, KEY, bearer, dance, fieldOf, folder, form, replace, testApp, testOptions } from './app.js'

const OTHER_KEY = 'ab'.repeat(32)

t.test('register, authorize, consent, redeem, call: a client connects', async (t) => {
  const app = await testApp(t)
  const { clientId, authorize, consent, redeem } = dance(app)
  const client = await clientId()

  const page = await authorize(client)
  t.equal(page.statusCode, 200)
  const ticket = fieldOf(page.body, 'ticket')
  const approved = await consent({ ticket, decision: 'approve', scope: ['read', 'write'] })
  t.equal(approved.statusCode, 303)
  const location = new URL(String(approved.headers.location))
  t.equal(location.origin + location.pathname, CALLBACK)
  t.strictSame([...location.searchParams.keys()].sort(), ['code', 'iss', 'state'])
  t.equal(location.searchParams.get('state'), 'xyz')
  t.equal(location.searchParams.get('iss'), ISSUER, 'RFC 9207')

  const response = await redeem(client, location.searchParams.get('code')!)
  t.equal(response.statusCode, 200)
  t.equal(response.headers['cache-control'], 'no-store')
  t.match(response.json(), { access_token: /^oat_[\w-]{43}$/, token_type: 'Bearer', scope: 'read write' })
  t.strictSame(Object.keys(response.json()).sort(), ['access_token', 'scope', 'token_type'], 'no expires_in for a token that does not expire')

  const call = await app.inject({ method: 'POST', url: '/mcp', headers: bearer(response.json().access_token) })
  t.strictSame(call.json(), { userId: 'alice', scopes: ['read', 'write'] })
})

t.test('registering, authorizing and consenting write nothing; redeeming is one INSERT', async (t) => {
  const path = join(folder(), 'tokens.db')
  const calls: string[] = []
  const real = sqliteStore({ path })
  const counting = new Proxy(real, {
    get (target, name) {
      const value = Reflect.get(target, name) as unknown
      return typeof value === 'function' ? (...args: unknown[]) => { calls.push(String(name)); return value.apply(target, args) } : value
    }
  })
  const app = await testApp(t, { store: counting })
  const spectator = new DatabaseSync(path)
  t.teardown(() => spectator.close())
  const commits = () => (spectator.prepare('PRAGMA data_version').get() as { data_version: number }).data_version
  const rows = () => (spectator.prepare('SELECT count(*) AS count FROM access_tokens').get() as { count: number }).count

  const { clientId, code, redeem } = dance(app)
  calls.length = 0
  const before = commits()
  for (let index = 0; index < 20; index++) await clientId({ client_name: `Client ${index}` })
  const client = await clientId()
  const issued = await code(client)
  t.not(issued, '')
  t.strictSame(calls, [], 'the store was not even asked')
  t.equal(commits(), before)

  t.equal((await redeem(client, issued)).statusCode, 200)
  t.strictSame(calls, ['issue'])
  t.equal(commits() - before, 1)
  t.equal(rows(), 1)
})

t.test('replaying a code is refused, and ends the grant (RFC 6749 §4.1.2, RFC 9700 §4.5)', async (t) => {
  const path = join(folder(), 'tokens.db')
  const events: AuditEvent[] = []
  const app = await testApp(t, { store: sqliteStore({ path }), onEvent: (event) => events.push(event) })
  const { clientId, code, redeem } = dance(app)
  const client = await clientId()
  const issued = await code(client)
  const token = (await redeem(client, issued)).json().access_token
  t.equal((await app.inject({ method: 'POST', url: '/mcp', headers: bearer(token) })).statusCode, 200)

  const replay = await redeem(client, issued)
  t.equal(replay.statusCode, 400)
  t.equal(replay.json().error, 'invalid_grant')
  t.equal((await app.inject({ method: 'POST', url: '/mcp', headers: bearer(token) })).statusCode, 401)
  t.match(events.find(({ type }) => type === 'code.rejected'), { reason: 'code_replayed', userId: 'alice', clientId: client })
  t.match(events.find(({ type }) => type === 'token.revoked'), { reason: 'code_replayed' })

  await app.close()
  const again = await testApp(t, { store: sqliteStore({ path }) })
  const { statusCode } = await again.inject({ method: 'POST', url: '/oauth/token', headers: FORM, payload: form({ grant_type: 'authorization_code', client_id: client, code: issued, code_verifier: 'v'.repeat(43) }) })
  t.equal(statusCode, 400, 'after a restart too')
})

t.test('of many parallel redemptions of one code one is answered with a token', async (t) => {
  const app = await testApp(t)
  const { clientId, code, redeem } = dance(app)
  const client = await clientId()
  for (let round = 0; round < 10; round++) {
    const issued = await code(client)
    const responses = await Promise.all(Array.from({ length: 32 }, async () => await redeem(client, issued)))
    t.equal(responses.filter(({ statusCode }) => statusCode === 200).length, 1)
    t.ok(responses.every(({ statusCode, json }) => statusCode === 200 || json().error === 'invalid_grant'))
    const token = responses.find(({ statusCode }) => statusCode === 200)!.json().access_token
    t.equal(await app.oauth.tokens.verify(token), null, 'and afterwards that grant is revoked')
  }
})

t.test('who cannot prove possession can neither redeem nor burn a code', async (t) => {
  const app = await testApp(t)
  const { clientId, code, redeem } = dance(app)
  const client = await clientId()
  const thief = await clientId({ client_name: 'Thief' })
  const issued = await code(client)
  const attempts: Array<[title: string, changes: Record<string, string>, error: string]> = [
    ['another verifier', { code_verifier: 'w'.repeat(43) }, 'invalid_grant'],
    ['no verifier', { code_verifier: '' }, 'invalid_request'],
    ['a verifier of 42 characters', { code_verifier: 'v'.repeat(42) }, 'invalid_request'],
    ['a verifier of 129 characters', { code_verifier: 'v'.repeat(129) }, 'invalid_request'],
    ['another client', { client_id: thief }, 'invalid_grant'],
    ['another redirect URI', { redirect_uri: 'http://127.0.0.1:33418/other' }, 'invalid_grant'],
    ['another port', { redirect_uri: 'http://127.0.0.1:1/callback' }, 'invalid_grant'],
    ['another resource', { resource: `${ISSUER}/other` }, 'invalid_target'],
    ['an unknown client', { client_id: 'nobody' }, 'invalid_client'],
    ['no client', { client_id: '' }, 'invalid_client'],
    ['no code', { code: '' }, 'invalid_request'],
    ['a client secret', { client_secret: 'x' }, 'invalid_client'],
    ['another grant type', { grant_type: 'password' }, 'unsupported_grant_type'],
    ['no grant type', { grant_type: '' }, 'invalid_request']
  ]
  for (const [title, changes, error] of attempts) {
    const response = await redeem(client, issued, changes)
    t.equal(response.json().error, error, title)
    t.equal(response.statusCode, error === 'invalid_client' ? 401 : 400, title)
    t.equal(response.headers['cache-control'], 'no-store', title)
  }
  const response = await redeem(client, issued, { resource: `${ISSUER}/mcp/` })
  t.equal(response.statusCode, 200, 'its owner still redeems it')
  t.not(await app.oauth.tokens.verify(response.json().access_token), null)
})

t.test('redirect_uri may be absent at the token endpoint (OAuth 2.1)', async (t) => {
  const { clientId, code, redeem } = dance(await testApp(t))
  const client = await clientId()
  t.equal((await redeem(client, await code(client), { redirect_uri: '' })).statusCode, 200)
})

t.test('a code lives for codeLifetime and not a moment longer', async (t) => {
  for (const [options, seconds] of [[{}, 60], [{ codeLifetime: 90 }, 90]] as const) {
    const app = await testApp(t, options)
    const { clientId, code, redeem } = dance(app)
    const client = await clientId()
    const [early, late] = [await code(client), await code(client)]
    const now = Date.now()
    let clock = replace(t, Date, 'now', () => now + (seconds - 1) * 1000)
    t.equal((await redeem(client, early)).statusCode, 200)
    clock.restore()
    clock = replace(t, Date, 'now', () => now + (seconds + 1) * 1000)
    const response = await redeem(client, late)
    clock.restore()
    t.equal(response.statusCode, 400)
    t.equal(response.json().error, 'invalid_grant')
  }
})

t.test('a disconnect refuses every code from before it', async (t) => {
  const app = await testApp(t)
  const { clientId, code, redeem, connect } = dance(app)
  const { clientId: client, token } = await connect()
  const inFlight = await code(client)
  t.equal(await app.oauth.tokens.revoke({ userId: 'alice', clientId: client }), 1)
  t.equal((await redeem(client, inFlight)).json().error, 'invalid_grant')
  t.equal(await app.oauth.tokens.verify(token), null)
  await new Promise((resolve) => setTimeout(resolve, 2))
  t.equal((await redeem(client, await code(client))).statusCode, 200, 'a new consent works')
  t.equal(await clientId(), client)
})

t.test('client ids are deterministic, whatever the port and the order', async (t) => {
  const app = await testApp(t)
  const { clientId, code, redeem } = dance(app)
  const client = await clientId({ redirect_uris: ['http://127.0.0.1:1/callback', 'http://localhost:1/cb'] })
  t.equal(await clientId({ redirect_uris: ['http://localhost:65535/cb', 'http://127.0.0.1/callback', 'http://127.0.0.1:7/callback'] }), client)
  t.not(await clientId({ redirect_uris: ['http://127.0.0.1:1/callback'] }), client)
  t.not(await clientId({ redirect_uris: ['http://127.0.0.1:1/callback', 'http://localhost:1/cb'], client_name: 'Other' }), client)
  t.equal((await redeem(client, await code(client))).statusCode, 200, 'and serve a port that was never registered')
})

t.test('keys rotate: what the old one sealed still opens, until it is removed', async (t) => {
  const path = join(folder(), 'tokens.db')
  const withKeys = async (keys: string[]) => await testApp(t, { keys, store: sqliteStore({ path }) })
  const old = await withKeys([KEY])
  const { clientId, query, ticket, code, redeem, codeVerifier } = dance(old)
  const client = await clientId()
  const [issued, form1, form2] = [await code(client), await ticket(client), await ticket(client)]
  const kept = (await redeem(client, await code(client))).json().access_token
  const send = async (app: typeof old, url: string, fields: Record<string, string | string[]>) => await app.inject({ method: 'POST', url, headers: { ...FORM, 'x-user': 'alice' }, payload: form(fields) })
  const redemption = { grant_type: 'authorization_code', client_id: client, code: issued, code_verifier: codeVerifier }

  const removed = await withKeys([OTHER_KEY])
  const unknown = await send(removed, '/oauth/token', redemption)
  t.equal(unknown.statusCode, 401, 'clients register again on this')
  t.equal(unknown.json().error, 'invalid_client')
  const newClient = await dance(removed).clientId()
  t.not(newClient, client)
  t.equal((await send(removed, '/oauth/token', { ...redemption, client_id: newClient })).json().error, 'invalid_grant', 'the code alone')
  const page = await removed.inject({ url: `/oauth/authorize?${form(query(client))}`, headers: { 'x-user': 'alice' } })
  t.equal(page.statusCode, 400)
  t.match(page.body, /Remove this server from your app and add it again/)
  t.equal((await send(removed, '/oauth/authorize', { ticket: form1, decision: 'approve', scope: 'read' })).statusCode, 403)

  const both = await withKeys([OTHER_KEY, KEY])
  t.equal((await send(both, '/oauth/token', redemption)).statusCode, 200)
  t.equal((await send(both, '/oauth/authorize', { ticket: form2, decision: 'approve', scope: 'read' })).statusCode, 303)
  t.equal((await both.inject({ url: `/oauth/authorize?${form(query(client))}`, headers: { 'x-user': 'alice' } })).statusCode, 200)
  t.equal(await dance(both).clientId(), newClient, 'the first key signs')
  t.not(await removed.oauth.tokens.verify(kept), null, 'access tokens depend on no key')
})

t.test('a page, never a redirect, until client and redirect URI are known', async (t) => {
  const { clientId, authorize } = dance(await testApp(t))
  const client = await clientId()
  const cases: Array<[title: string, changes: Record<string, string>]> = [
    ['no client', { client_id: '' }],
    ['unknown client', { client_id: 'nobody' }],
    ['a client_id with a flipped character', { client_id: client.replace(/.$/, (last) => last === 'A' ? 'B' : 'A') }],
    ['a client_id cut short', { client_id: client.slice(0, -4) }],
    ['a client_id of 3 kB', { client_id: client + 'A'.repeat(3000) }],
    ['no redirect URI', { redirect_uri: '' }],
    ['another path', { redirect_uri: 'http://127.0.0.1:33418/other' }],
    ['another loopback name', { redirect_uri: 'http://localhost:33418/callback' }],
    ['a host that begins alike', { redirect_uri: 'http://127.0.0.1.evil.example/callback' }],
    ['userinfo', { redirect_uri: 'http://127.0.0.1@evil.example/callback' }],
    ['another query', { redirect_uri: `${CALLBACK}?x=1` }],
    ['a fragment', { redirect_uri: `${CALLBACK}#x` }],
    ['a wrong redirect URI beside another error', { redirect_uri: 'https://evil.example/', response_type: 'token' }]
  ]
  for (const [title, changes] of cases) {
    const response = await authorize(client, changes)
    t.equal(response.statusCode, 400, title)
    t.equal(response.headers.location, undefined, title)
    t.match(response.headers['content-type'], /^text\/html/, title)
    t.notMatch(response.body, /evil/, title)
    if (!title.startsWith('no ')) t.match(response.body, /Remove this server from your app and add it again/, title)
  }
})

t.test('repeated parameters and arrays are refused, on a page (RFC 6749 §3.1)', async (t) => {
  const app = await testApp(t)
  const { clientId, query } = dance(app)
  const client = await clientId()
  for (const extra of ['&client_id=other', '&scope=read&scope=write', '&scope[]=read', '&state=a']) {
    const { statusCode, headers } = await app.inject({ url: `/oauth/authorize?${form(query(client))}${extra}`, headers: { 'x-user': 'alice' } })
    t.equal(statusCode, 400, extra)
    t.equal(headers.location, undefined, extra)
    const token = await app.inject({ method: 'POST', url: '/oauth/token', headers: FORM, payload: `grant_type=authorization_code&client_id=${client}${extra}&client_id=x` })
    t.equal(token.statusCode, 400, extra)
    t.equal(token.json().error, 'invalid_request', extra)
  }
})

t.test('a redirect URI that the app lists no more gets no code and no error, whoever registered it before', async (t) => {
  const [kept, withdrawn] = ['https://kept.example/cb', 'https://withdrawn.example/cb']
  const before = dance(await testApp(t, { registration: { redirectUris: [kept, withdrawn] } }))
  const client = await before.clientId({ redirect_uris: [CALLBACK, kept, withdrawn] })
  const alone = await before.clientId({ redirect_uris: [withdrawn] })
  for (const redirectUris of [[kept], []]) {
    const { authorize } = dance(await testApp(t, { registration: { redirectUris } }))
    for (const clientId of [client, alone]) {
      const refused = await authorize(clientId, { redirect_uri: withdrawn })
      t.strictSame([refused.statusCode, refused.headers.location], [400, undefined])
      t.equal((await authorize(clientId, { redirect_uri: withdrawn, response_type: 'token' })).headers.location, undefined)
    }
    t.equal((await authorize(client, { redirect_uri: CALLBACK })).statusCode, 200, 'the others of the same client are as before')
    t.equal((await authorize(client, { redirect_uri: kept })).statusCode, redirectUris.length > 0 ? 200 : 400)
  }
})

t.test('other errors go back to the client with error, state and iss', async (t) => {
  const { clientId, authorize } = dance(await testApp(t, { registration: { redirectUris: ['https://client.example/cb?tenant=1'] } }))
  const client = await clientId({ redirect_uris: [CALLBACK, 'https://client.example/cb?tenant=1'] })
  const cases: Array<[changes: Record<string, string>, error: string]> = [
    [{ response_type: 'token' }, 'unsupported_response_type'],
    [{ response_type: '' }, 'invalid_request'],
    [{ code_challenge: '' }, 'invalid_request'],
    [{ code_challenge: 'short' }, 'invalid_request'],
    [{ code_challenge_method: 'plain' }, 'invalid_request'],
    [{ code_challenge_method: '' }, 'invalid_request'],
    [{ resource: 'https://elsewhere.example/mcp' }, 'invalid_target'],
    [{ resource: `${ISSUER}/mcp/deeper` }, 'invalid_target'],
    [{ scope: 'admin' }, 'invalid_scope']
  ]
  for (const [changes, error] of cases) {
    for (const headers of [{ 'x-user': 'alice' }, {}] as Array<Record<string, string>>) {
      const response = await authorize(client, changes, headers)
      t.equal(response.statusCode, 303, error)
      const { searchParams } = new URL(String(response.headers.location))
      t.match(Object.fromEntries(searchParams), { error, state: 'xyz', iss: ISSUER, error_description: /./ })
    }
  }
  const { headers } = await authorize(client, { scope: 'admin', redirect_uri: 'https://client.example/cb?tenant=1', state: '' })
  t.match(headers.location, /^https:\/\/client\.example\/cb\?tenant=1&error=invalid_scope&error_description=[^&]+&iss=http%3A%2F%2Flocalhost%3A3000$/, 'its own query is kept, an absent state stays absent')
})

t.test('who is not signed in goes to loginUrl and comes back', async (t) => {
  const app = await testApp(t)
  const { clientId, authorize, query } = dance(app)
  const client = await clientId()
  const { statusCode, headers } = await authorize(client, {}, {})
  t.equal(statusCode, 303)
  const login = new URL(String(headers.location), ISSUER)
  t.equal(login.pathname, '/login')
  const returnTo = login.searchParams.get('return_to')!
  t.equal(returnTo, `/oauth/authorize?${form(query(client))}`)
  t.equal((await app.inject({ url: returnTo, headers: { 'x-user': 'alice' } })).statusCode, 200)

  const own = await testApp(t, { loginUrl: (request, returnTo) => `https://id.example/?next=${encodeURIComponent(returnTo)}&host=${request.host}` })
  t.match((await dance(own).authorize(client, {}, {})).headers.location, /^https:\/\/id\.example\/\?next=%2Foauth%2Fauthorize/)
})

t.test('consent answers only the user and the form it was shown to', async (t) => {
  const events: AuditEvent[] = []
  const app = await testApp(t, { onEvent: (event) => events.push(event) })
  const { clientId, ticket, consent, code } = dance(app)
  const client = await clientId()
  const good = await ticket(client)
  const pageTicket = fieldOf((await app.inject({ url: '/my/connected_apps', headers: { 'x-user': 'alice' } })).body, 'ticket')
  const forbidden: Array<[title: string, fields: Record<string, string>, headers: Record<string, string>]> = [
    ['no ticket', {}, { 'x-user': 'alice' }],
    ['a made-up ticket', { ticket: 'x.y.z' }, { 'x-user': 'alice' }],
    ['a changed ticket', { ticket: good.replace(/.$/, (last) => last === 'A' ? 'B' : 'A') }, { 'x-user': 'alice' }],
    ['the ticket of the connected-apps page', { ticket: pageTicket }, { 'x-user': 'alice' }],
    ['a code as ticket', { ticket: await code(client) }, { 'x-user': 'alice' }],
    ['another user', { ticket: good }, { 'x-user': 'mallory' }],
    ['signed out', { ticket: good }, {}],
    ['a bearer token instead of a session', { ticket: good }, bearer(await mintToken(app, { userId: 'alice', scopes: ['read', 'write'] }))]
  ]
  for (const [title, fields, headers] of forbidden) {
    const response = await consent({ ...fields, decision: 'approve', scope: 'read' }, headers)
    t.equal(response.statusCode, 403, title)
    t.equal(response.headers.location, undefined, title)
  }
  t.equal(events.filter(({ type }) => type === 'consent.approved').length, 1, 'only the one that made the code')

  const neither = await consent({ ticket: good, decision: 'maybe', scope: 'read' })
  t.equal(neither.statusCode, 400)
  const now = Date.now()
  const clock = replace(t, Date, 'now', () => now + 10 * 60 * 1000 + 1)
  const expired = await consent({ ticket: good, decision: 'approve', scope: 'read' })
  clock.restore()
  t.equal(expired.statusCode, 403)
  t.match(expired.body, /expired/)
  t.equal((await consent({ ticket: good, decision: 'approve', scope: 'read' })).statusCode, 303, 'none of which used it up')
})

t.test('a tenant is fixed at consent: acting in another one is another user', async (t) => {
  const app = await testApp(t, { currentUser: ({ headers }) => ({ id: 'alice', tenantId: String(headers['x-tenant']) }) })
  const { clientId, query } = dance(app)
  const page = await app.inject({ url: `/oauth/authorize?${form(query(await clientId()))}`, headers: { 'x-tenant': 'acme' } })
  const post = async (tenant: string) => await app.inject({ method: 'POST', url: '/oauth/authorize', headers: { ...FORM, 'x-tenant': tenant }, payload: form({ ticket: fieldOf(page.body, 'ticket'), decision: 'approve', scope: 'read' }) })
  t.equal((await post('globex')).statusCode, 403)
  t.equal((await post('acme')).statusCode, 303)
})

t.test('only offered and ticked scopes are granted', async (t) => {
  const app = await testApp(t, { scopes: { read: 'Read', write: { description: 'Write', implies: ['read'] }, admin: 'Administer' } })
  const { clientId, ticket, consent, redeem } = dance(app)
  const client = await clientId()
  const granted = async (asked: Record<string, string>, ticked: string[]) => {
    const { headers } = await consent({ ticket: await ticket(client, asked), decision: 'approve', scope: ticked })
    const { searchParams } = new URL(String(headers.location))
    return searchParams.has('error') ? searchParams.get('error') : (await redeem(client, searchParams.get('code')!)).json().scope
  }
  t.equal(await granted({ scope: 'read write' }, ['read']), 'read')
  t.equal(await granted({ scope: 'read' }, ['read', 'write', 'admin']), 'read', 'a forged tick is nothing')
  t.equal(await granted({ scope: 'read nonsense' }, ['read']), 'read', 'an unknown scope is dropped')
  t.equal(await granted({}, ['read', 'admin']), 'read admin', 'no scope asks for all')
  t.equal(await granted({ scope: 'write' }, ['write']), 'read write', 'with what it implies')
  t.equal(await granted({ scope: 'read' }, []), 'access_denied', 'nothing ticked is a no')
})

t.test('the page says what a scope brings along', async (t) => {
  const { clientId, authorize } = dance(await testApp(t, { scopes: { read: 'Read your notes', write: { description: 'Write', implies: ['read'] } } }))
  const { body } = await authorize(await clientId())
  t.match(body, /value="write"[^]*Includes: Read your notes/)
  t.equal(body.match(/Includes:/g)?.length, 1)
})

t.test('the consent page says who asks, where access goes, who is signed in and what for, and is shown every time', async (t) => {
  const app = await testApp(t, { registration: { redirectUris: ['https://chat.example/cb', 'cursor://anysphere.cursor-mcp/oauth/callback'] }, currentUser: () => ({ id: 'alice', name: 'Alice of Accounts' }) })
  const { clientId, authorize, code, redeem, query } = dance(app)
  const client = await clientId({ client_name: 'Claude Code (notes)', redirect_uris: [CALLBACK, 'https://chat.example/cb', 'cursor://anysphere.cursor-mcp/oauth/callback'] })
  for (const attempt of ['the first time', 'once connected']) {
    const { statusCode, body } = await authorize(client)
    t.equal(statusCode, 200, attempt)
    t.match(body, /Allow <bdi class="name">Claude Code \(notes\)<\/bdi> to use <bdi>Notes<\/bdi>\?/, attempt)
    t.match(body, /Not verified\./, attempt)
    t.match(body, /<dt>Signed in as<\/dt>\s*<dd><bdi>Alice of Accounts<\/bdi>/, attempt)
    t.match(body, /<dt>Access goes to<\/dt>\s*<dd>a program on this computer</, attempt)
    for (const [scope, description] of [['read', 'Read your notes'], ['write', 'Change your notes']]) {
      t.match(body, new RegExp(`type="checkbox" name="scope" value="${scope}"[^]*?${description}`), attempt)
    }
    t.strictSame([...body.matchAll(/name="decision" value="(\w+)"/g)].map(([, decision]) => decision), ['approve', 'deny'], attempt)
    t.equal((await redeem(client, await code(client))).statusCode, 200)
  }
  for (const prompt of ['consent', 'login', 'none']) {
    t.match((await app.inject({ url: `/oauth/authorize?${form({ ...query(client), prompt })}` })).body, 'name="decision" value="deny"', `prompt=${prompt} changes nothing`)
  }
  t.match((await authorize(client, { redirect_uri: 'https://chat.example/cb' })).body, /<dd><code>chat\.example<\/code>/)
  t.match((await authorize(client, { redirect_uri: 'cursor://anysphere.cursor-mcp/oauth/callback' })).body, /opens <code>cursor:<\/code> links/)
})

t.test('deny sends access_denied', async (t) => {
  const { clientId, ticket, consent } = dance(await testApp(t))
  const { statusCode, headers } = await consent({ ticket: await ticket(await clientId()), decision: 'deny', scope: 'read' })
  t.equal(statusCode, 303)
  t.match(Object.fromEntries(new URL(String(headers.location)).searchParams), { error: 'access_denied', state: 'xyz', iss: ISSUER })
})

t.test('one form sent twice is one grant at most', async (t) => {
  const app = await testApp(t)
  const { clientId, ticket, consent, redeem } = dance(app)
  const client = await clientId()
  const once = await ticket(client)
  const codes = await Promise.all([1, 2].map(async () => new URL(String((await consent({ ticket: once, decision: 'approve', scope: 'read' })).headers.location)).searchParams.get('code')!))
  t.equal((await redeem(client, codes[0]!)).statusCode, 200)
  t.equal((await redeem(client, codes[1]!)).statusCode, 400)
  t.equal((await app.oauth.tokens.stats()).total, 1)
})

t.test('a state of any length that a URL can carry is answered: it comes back, or the page says that it is too long', async (t) => {
  const { clientId, authorize, ticket, consent } = dance(await testApp(t))
  const client = await clientId()
  const state = 's'.repeat(4000)
  const { headers } = await consent({ ticket: await ticket(client, { state }), decision: 'approve', scope: 'read' })
  t.equal(new URL(String(headers.location)).searchParams.get('state'), state)
  const without = await consent({ ticket: await ticket(client, { state: '' }), decision: 'approve', scope: 'read' })
  t.strictSame([...new URL(String(without.headers.location)).searchParams.keys()], ['code', 'iss'], 'none comes back as none')
  const refused = await authorize(client, { state: 's'.repeat(8000) })
  t.equal(refused.statusCode, 400)
  t.match(refused.body, /too long/)
})

t.test('a code is no ticket and a ticket no code, and neither can be altered', async (t) => {
  const app = await testApp(t)
  const { clientId, ticket, code, redeem } = dance(app)
  const client = await clientId()
  const issued = await code(client)
  const [header, key, iv, body, tag] = issued.split('.') as [string, string, string, string, string]
  const swapped = (change: object) => [Buffer.from(JSON.stringify({ ...JSON.parse(Buffer.from(header, 'base64url').toString()), ...change })).toString('base64url'), key, iv, body, tag].join('.')
  const sealer = await createSealer([parseKey(OTHER_KEY)!], 'code')
  const cases: Array<[title: string, code: string]> = [
    ['a consent ticket', await ticket(client)],
    ['another alg', swapped({ alg: 'A256KW' })],
    ['PBES2 with a huge count', swapped({ alg: 'PBES2-HS256+A128KW', p2c: 2 ** 31 - 1, p2s: 'AAAA' })],
    ['another enc', swapped({ enc: 'A128GCM' })],
    ['zip', swapped({ zip: 'DEF' })],
    ['no kid', swapped({ kid: undefined })],
    ['another typ', swapped({ typ: 'mcp-oauth-consent' })],
    ['a changed ciphertext', [header, key, iv, body.replace(/.$/, (last) => last === 'A' ? 'B' : 'A'), tag].join('.')],
    ['a foreign key', await sealer.seal({ expiresAt: Date.now() + 60_000 })],
    ['10 kB', 'A'.repeat(10_000)],
    ['nothing like it', 'abc']
  ]
  for (const [title, changed] of cases) {
    const response = await redeem(client, changed)
    t.equal(response.statusCode, 400, title)
    t.equal(response.json().error, 'invalid_grant', title)
  }
  const huge = await redeem(client, 'A'.repeat(1_000_000))
  t.equal(huge.statusCode, 413)
  t.equal(huge.json().error, 'invalid_request')
  t.equal((await redeem(client, issued)).statusCode, 200)
})

t.test('the token endpoint reads forms only, and answers in JSON whatever it gets', async (t) => {
  const app = await testApp(t)
  const { clientId, code, codeVerifier } = dance(app)
  const client = await clientId()
  const post = async (headers: Record<string, string>, payload?: string) => await app.inject({ method: 'POST', url: '/oauth/token', headers, ...(payload !== undefined && { payload }) })
  for (const [headers, payload, status] of [
    [{ 'content-type': 'application/json' }, '{"grant_type":"authorization_code"}', 415],
    [{ 'content-type': 'text/plain' }, 'x', 415],
    [{ 'content-type': 'multipart/form-data; boundary=x' }, '--x--', 415],
    [FORM, '%%%=%zz', 401],
    [FORM, '', 401],
    [{}, undefined, 401],
    [{ ...FORM, authorization: 'Basic YTpi' }, form({ grant_type: 'authorization_code', client_id: client }), 401]
  ] as Array<[Record<string, string>, string | undefined, number]>) {
    const response = await post(headers, payload)
    t.equal(response.statusCode, status, `${JSON.stringify(headers)} ${payload}`)
    t.match(response.json(), { error: String, error_description: String })
    t.equal(response.headers['cache-control'], 'no-store')
  }
  t.match((await post({ ...FORM, authorization: 'Basic YTpi' }, 'a=b')).headers['www-authenticate'], /^Basic /, 'RFC 6749 §5.2')
  const charset = await post({ 'content-type': 'application/x-www-form-urlencoded; charset=UTF-8' }, form({ grant_type: 'authorization_code', client_id: client, code: await code(client), code_verifier: codeVerifier }))
  t.equal(charset.statusCode, 200, 'a stray charset is fine')
})

t.test('registration answers 201 with what it registered, and says no in JSON', async (t) => {
  const app = await testApp(t, { registration: { redirectUris: ['cursor://anysphere.cursor-mcp/oauth/callback'] } })
  const { register } = dance(app)
  const ok = await register({ client_name: 'A', scope: 'read nonsense', redirect_uris: ['https://evil.example/cb', CALLBACK, 'cursor://anysphere.cursor-mcp/oauth/callback'], grant_types: ['authorization_code', 'refresh_token', 'urn:ietf:params:oauth:grant-type:jwt-bearer'], token_endpoint_auth_method: 'client_secret_post', logo_uri: 'javascript:alert(1)' })
  t.equal(ok.statusCode, 201)
  t.equal(ok.headers['cache-control'], 'no-store')
  const { client_id: clientId, client_id_issued_at: issuedAt, ...rest } = ok.json()
  t.type(clientId, 'string')
  t.ok(Math.abs(issuedAt - Date.now() / 1000) < 5)
  t.strictSame(rest, {
    client_name: 'A',
    redirect_uris: [CALLBACK, 'cursor://anysphere.cursor-mcp/oauth/callback'],
    grant_types: ['authorization_code'],
    response_types: ['code'],
    token_endpoint_auth_method: 'none',
    scope: 'read'
  })
  t.equal((await register({ scope: '' })).json().scope, 'read write')

  for (const [metadata, error] of [
    [{ redirect_uris: ['https://evil.example/cb'] }, 'invalid_redirect_uri'],
    [{ redirect_uris: [] }, 'invalid_redirect_uri'],
    [{ redirect_uris: 'http://localhost/' }, 'invalid_redirect_uri'],
    [{ redirect_uris: [['http://localhost/']] }, 'invalid_redirect_uri'],
    [{ redirect_uris: Array.from({ length: 11 }, (_, index) => `http://localhost/${index}`) }, 'invalid_redirect_uri'],
    [{ redirect_uris: [`http://localhost/${'a'.repeat(3000)}`] }, 'invalid_client_metadata'],
    [{ client_name: 'x'.repeat(101) }, 'invalid_client_metadata'],
    [{ client_name: ['x'] }, 'invalid_client_metadata'],
    [{ grant_types: ['client_credentials'] }, 'invalid_client_metadata'],
    [{ response_types: ['token'] }, 'invalid_client_metadata'],
    [{ scope: ['read'] }, 'invalid_client_metadata']
  ] as Array<[object, string]>) {
    const response = await register(metadata)
    t.equal(response.statusCode, 400, JSON.stringify(metadata).slice(0, 80))
    t.equal(response.json().error, error, JSON.stringify(metadata).slice(0, 80))
  }
  for (const [payload, headers, status, error] of [
    ['{"redirect_uris":', { 'content-type': 'application/json' }, 400, 'invalid_client_metadata'],
    ['', { 'content-type': 'application/json' }, 400, 'invalid_client_metadata'],
    ['[]', { 'content-type': 'application/json' }, 400, 'invalid_client_metadata'],
    ['null', { 'content-type': 'application/json' }, 400, 'invalid_client_metadata'],
    ['a=b', FORM, 415, 'invalid_request'],
    [JSON.stringify({ client_name: 'x'.repeat(100_000) }), { 'content-type': 'application/json' }, 413, 'invalid_request']
  ] as Array<[string, Record<string, string>, number, string]>) {
    const response = await app.inject({ method: 'POST', url: '/oauth/register', payload, headers })
    t.equal(response.statusCode, status, payload.slice(0, 40))
    t.equal(response.json().error, error, payload.slice(0, 40))
  }

  const off = await testApp(t, { registration: { enabled: false } })
  t.equal((await dance(off).register()).statusCode, 404)
  t.notOk('registration_endpoint' in (await off.inject('/.well-known/oauth-authorization-server')).json())
})

t.test('a registration may leave out all but its redirect URIs: it is a public client of all scopes (RFC 7591 §2)', async (t) => {
  const app = await testApp(t)
  const response = await app.inject({ method: 'POST', url: '/oauth/register', payload: { redirect_uris: [CALLBACK], application_type: 'native', unheard_of: { of: 'by anybody' } } })
  t.equal(response.statusCode, 201)
  const { client_id: client, client_id_issued_at: issuedAt, client_name: name, ...others } = response.json()
  t.type(issuedAt, 'number')
  t.strictSame(others, { redirect_uris: [CALLBACK], grant_types: ['authorization_code'], response_types: ['code'], token_endpoint_auth_method: 'none', scope: 'read write' }, `${name}, without a secret`)
  const { code, redeem } = dance(app)
  t.equal((await redeem(client, await code(client))).json().scope, 'read write')
})

t.test('clients named in the options connect by their own id, and are shown as known', async (t) => {
  const clients: McpOAuthOptions['clients'] = [{ clientId: 'desk', clientName: 'Desk', redirectUris: ['https://desk.example/cb', 'desk://cb'] }]
  for (const option of [clients, (clientId: string) => clients.find((client) => client.clientId === clientId) ?? null, async (clientId: string) => clients.find((client) => client.clientId === clientId)]) {
    const app = await testApp(t, { clients: option as McpOAuthOptions['clients'] & object })
    const { authorize, code, redeem, clientId } = dance(app)
    const changes = { redirect_uri: 'https://desk.example/cb' }
    const page = await authorize('desk', changes)
    t.match(page.body, /knows this app/)
    t.notMatch(page.body, /Not verified/)
    t.match(page.body, /<code>desk\.example<\/code>/)
    t.notMatch(page.headers['content-security-policy'], /form-action/, 'a web redirect may lead on')
    t.equal((await redeem('desk', await code('desk', changes), changes)).statusCode, 200)
    t.equal((await authorize('desk')).statusCode, 400, 'only its own redirect URIs')
    t.equal((await authorize(await clientId())).statusCode, 200, 'dynamic ones still connect')
  }
})

t.test('a client gives back its own token, and no other (RFC 7009)', async (t) => {
  const app = await testApp(t)
  const alice = dance(app)
  const { clientId, token } = await alice.connect()
  const other = await alice.connect({ client_name: 'Other' })
  const personal = await mintToken(app, { userId: 'alice', scopes: ['read'] })
  const revoke = async (fields: Record<string, string>) => await app.inject({ method: 'POST', url: '/oauth/revoke', headers: FORM, payload: form(fields) })
  const works = async (token: string) => (await app.inject({ method: 'POST', url: '/mcp', headers: bearer(token) })).statusCode === 200

  for (const foreign of [other.token, personal, 'oat_unknown', 'x']) {
    const response = await revoke({ client_id: clientId, token: foreign })
    t.equal(response.statusCode, 200)
    t.equal(response.body, '')
  }
  t.ok(await works(other.token))
  t.ok(await works(personal))
  t.equal((await revoke({ client_id: clientId })).json().error, 'invalid_request')
  t.equal((await revoke({ client_id: 'nobody', token })).statusCode, 401)
  t.ok(await works(token))
  t.equal((await revoke({ client_id: clientId, token, token_type_hint: 'refresh_token' })).statusCode, 200)
  t.notOk(await works(token))
  t.equal((await revoke({ client_id: clientId, token })).statusCode, 200, 'twice')

  const inFlight = await alice.code(clientId)
  t.equal((await alice.redeem(clientId, inFlight)).statusCode, 200, 'which is no disconnect')
})

t.test('metadata documents stand at every path that clients ask for', async (t) => {
  const app = await testApp(t, { resources: [{ path: '/mcp', name: 'Notes', documentation: 'https://docs.example/' }, { path: '/deep/er', scopes: ['read'] }] } as Partial<McpOAuthOptions>).catch(() => null)
  t.equal(app, null, 'protect() without a resource is refused where there are several')

  const host = Fastify()
  t.teardown(() => host.close())
  await host.register(mcpOAuth, testOptions({ resources: [{ path: '/mcp', name: 'Notes', documentation: 'https://docs.example/' }, { path: '/deep/er', scopes: ['read'] }] }))
  const get = async (url: string, headers = {}) => await host.inject({ url, headers: { host: 'evil.example', 'x-forwarded-host': 'evil.example', ...headers } })
  const first = { resource: `${ISSUER}/mcp`, authorization_servers: [ISSUER], bearer_methods_supported: ['header'], scopes_supported: ['read', 'write'], resource_name: 'Notes', resource_documentation: 'https://docs.example/' }
  t.strictSame((await get('/.well-known/oauth-protected-resource')).json(), first)
  t.strictSame((await get('/.well-known/oauth-protected-resource/mcp')).json(), first)
  t.strictSame((await get('/.well-known/oauth-protected-resource/deep/er')).json(), { resource: `${ISSUER}/deep/er`, authorization_servers: [ISSUER], bearer_methods_supported: ['header'], scopes_supported: ['read'] })
  const server = await get('/.well-known/oauth-authorization-server')
  t.match(server.json(), { issuer: ISSUER, code_challenge_methods_supported: ['S256'], grant_types_supported: ['authorization_code'], token_endpoint_auth_methods_supported: ['none'], authorization_response_iss_parameter_supported: true })
  t.notMatch(server.body, /evil/, 'no URL comes from a request')
  t.match(server.headers['cache-control'], /^public, max-age=\d+$/)
  t.equal((await get('/.well-known/oauth-authorization-server', { 'if-none-match': server.headers.etag })).statusCode, 304)
  for (const url of ['/.well-known/openid-configuration', '/.well-known/openid-configuration/mcp', '/mcp/.well-known/openid-configuration', '/.well-known/oauth-authorization-server/mcp', '/.well-known/oauth-protected-resource/other', '/.well-known/oauth-nonsense', '/.well-known/oauth', '/.well-known/oauth-%00', `/.well-known/oauth-${'x'.repeat(300)}`]) {
    const response = await get(url)
    t.equal(response.statusCode, 404, url)
    t.match(response.headers['content-type'], /^application\/json/, url)
    t.match(response.json(), { error: 'not_found' }, url)
  }
})

t.test('every discovery document may be kept, and is 304 while it is the same (RFC 9110 §13.1.2)', async (t) => {
  const app = await testApp(t)
  for (const url of ['/.well-known/oauth-protected-resource', '/.well-known/oauth-protected-resource/mcp', '/.well-known/oauth-authorization-server']) {
    const { statusCode, headers, rawPayload } = await app.inject(url)
    t.equal(statusCode, 200, url)
    t.match(headers['content-type'], /^application\/json/, url)
    t.match(headers['cache-control'], /^public, max-age=[1-9]\d*$/, url)
    t.match(headers.etag, /^"[\w-]+"$/, url)
    const stringify = t.capture(JSON, 'stringify', JSON.stringify)
    const again = await app.inject(url)
    stringify.restore()
    t.strictSame(again.rawPayload, rawPayload, `${url}: the same bytes`)
    t.strictSame(stringify(), [], `${url}: made at boot, not for this request`)
    const kept = await app.inject({ url, headers: { 'if-none-match': String(headers.etag) } })
    t.equal(kept.statusCode, 304, url)
    t.equal(kept.body, '', url)
    t.equal((await app.inject({ url, headers: { 'if-none-match': '"another"' } })).statusCode, 200, url)
  }
})

t.test('a resource of several gets tokens of its own', async (t) => {
  const host = Fastify()
  t.teardown(() => host.close())
  await host.register(mcpOAuth, testOptions({ resources: [{ path: '/a' }, { path: '/ab', scopes: ['read'] }] }))
  for (const resource of ['/a', '/ab']) host.get(resource, { onRequest: host.oauth.protect({ resource }) }, async () => 'ok')
  const status = async (url: string, token: string) => (await host.inject({ url, headers: bearer(token) })).statusCode
  const connected = async (resource?: string) => await connectClient(host, { headers: { 'x-user': 'alice' }, ...(resource !== undefined && { resource }) })

  const first = await connected()
  t.strictSame([await status('/a', first.accessToken), await status('/ab', first.accessToken)], [200, 401])
  const second = await connected('HTTP://LOCALHOST:3000/ab/')
  t.strictSame([await status('/a', second.accessToken), await status('/ab', second.accessToken)], [401, 200])
  t.strictSame(second.scopes, ['read'], 'a resource offers its own scopes')
  const personal = await mintToken(host, { userId: 'alice', scopes: ['read'] })
  t.strictSame([await status('/a', personal), await status('/ab', personal)], [200, 200], 'a personal token is for all')
})

t.test('a revocation by the app stops codes of users and clients that have no grant yet', async (t) => {
  const app = await testApp(t)
  const { clientId, code, redeem } = dance(app)
  const client = await clientId()
  for (const selector of [{ userId: 'alice' }, { clientId: client }, { userId: 'alice', clientId: client }]) {
    const inFlight = await code(client)
    t.equal(await app.oauth.tokens.revoke(selector), 0)
    t.equal((await redeem(client, inFlight)).json().error, 'invalid_grant', JSON.stringify(Object.keys(selector)))
    await new Promise((resolve) => setTimeout(resolve, 2))
  }
  t.equal((await redeem(client, await code(client))).statusCode, 200)
})

t.test('user ids that a database could mistake for others are nobody', async (t) => {
  const app = await testApp(t, { currentUser: ({ headers }) => ({ id: JSON.parse(String(headers['x-id'])) as string }) })
  for (const id of ['alice\0evil', '\ud800', '']) {
    t.equal((await app.inject({ url: '/my/connected_apps', headers: { 'x-id': JSON.stringify(id) } })).statusCode, 500, JSON.stringify(id))
    await t.rejects(app.oauth.tokens.create({ userId: id, name: 'x', scopes: ['read'] }), { code: 'FST_MCP_OAUTH_INVALID_TOKEN_OPTION' })
  }
  t.equal((await app.inject({ url: '/my/connected_apps', headers: { 'x-id': '"alíce"' } })).statusCode, 200)
})

t.test('a look-up of clients that answers with another client, or with what every object has, knows nobody', async (t) => {
  const clients: Record<string, { clientId: string, clientName: string, redirectUris: string[] }> = { acme: { clientId: 'acme', clientName: 'Acme', redirectUris: [CALLBACK] } }
  const app = await testApp(t, { clients: (clientId) => clients[clientId.startsWith('_') ? clientId : clientId.toLowerCase()] })
  const { authorize } = dance(app)
  for (const clientId of ['ACME', '__proto__', 'constructor', 'toString']) t.equal((await authorize(clientId)).statusCode, 400, clientId)
  const page = await authorize('acme')
  t.equal(page.statusCode, 200)
  t.match(page.body, /Not verified/, 'any program on this computer can have a loopback redirect')
})

t.test('events tell the story, and no secret', async (t) => {
  const events: AuditEvent[] = []
  const logged: string[] = []
  const app = await testApp(t, { onEvent: (event) => { events.push(event); throw new Error('handler broke') } }, { logger: { level: 'trace', stream: { write: (line: string) => { logged.push(line) } } } })
  const { clientId, code, redeem, codeVerifier } = dance(app)
  const client = await clientId()
  const issued = await code(client)
  const token = (await redeem(client, issued)).json().access_token
  await redeem(client, issued, { code_verifier: 'w'.repeat(43) })
  await app.inject({ method: 'POST', url: '/mcp', headers: bearer('oat_' + 'x'.repeat(43)) })
  await app.oauth.tokens.revoke({ userId: 'alice' })
  t.strictSame(events.map(({ type }) => type), ['client.registered', 'consent.shown', 'consent.approved', 'token.issued', 'code.rejected', 'token.rejected', 'token.revoked'])
  for (const event of events) t.match(event, { at: Number, type: String })
  t.match(events[3], { userId: 'alice', clientId: client, scopes: ['read', 'write'], grantId: String, requestId: String })
  t.match(events[4], { reason: 'pkce_mismatch', userId: 'alice', clientId: client })
  t.match(logged.join(''), /onEvent failed/)
  t.equal(logged.filter((line) => line.includes('pkce_mismatch')).length, 1, 'a refusal is one line of the log')
  const all = JSON.stringify(events) + logged.join('')
  for (const secret of [issued, token, codeVerifier, KEY]) t.notOk(all.includes(secret))
})
