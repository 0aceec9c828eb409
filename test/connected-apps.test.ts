import t from 'tap'
import type { AuditEvent } from '../dist/index.js'
import { connectClient, mintToken } from '../dist/testing.js'
import { FORM, bearer, dance, fieldOf, form, replace, testApp } from './app.js'

const PAGE = '/my/connected_apps'
const JSON_ONLY = { accept: 'application/json' }
/** The beginning of a token, not four letters within a ticket. */
const TOKEN = /(?<![\w-])pat_/

async function connectedApps (t: Parameters<typeof testApp>[0]) {
  const events: AuditEvent[] = []
  const app = await testApp(t, { onEvent: (event) => events.push(event) })
  const get = async (user: string, headers: Record<string, string> = {}) => await app.inject({ url: PAGE, headers: { 'x-user': user, ...headers } })
  const list = async (user: string) => (await get(user, JSON_ONLY)).json<{ ticket: string, apps: any[], personalTokens: any[] }>()
  const post = async (user: string, fields: Record<string, string | string[]>, headers: Record<string, string> = {}) => await app.inject({ method: 'POST', url: PAGE, headers: { ...FORM, 'x-user': user, ...headers }, payload: form(fields) })
  const ticket = async (user: string): Promise<string> => (await list(user)).ticket
  const works = async (token: string) => (await app.inject({ method: 'POST', url: '/mcp', headers: bearer(token) })).statusCode === 200
  return { app, events, get, list, post, ticket, works }
}

t.test('a user sees one entry for each client, and disconnects it at once', async (t) => {
  const { app, events, get, list, post, ticket, works } = await connectedApps(t)
  const alice = { headers: { 'x-user': 'alice' } }
  const start = Date.parse('2030-01-02')
  let now = start
  replace(t, Date, 'now', () => now)
  const one = await connectClient(app, { ...alice, clientName: 'Claude Code', scopes: ['read'] })
  now += 24 * 60 * 60 * 1000
  const two = await connectClient(app, { ...alice, clientName: 'Claude Code' })
  const other = await connectClient(app, { ...alice, clientName: 'Codex' })
  const bobs = await connectClient(app, { headers: { 'x-user': 'bob' }, clientName: 'Claude Code' })

  const { apps } = await list('alice')
  t.match(apps, [
    { clientId: one.clientId, name: 'Claude Code', host: '127.0.0.1', isLoopback: true, scopes: ['read', 'write'], connections: 2, connectedAt: start, lastUsedAt: null },
    { clientId: other.clientId, name: 'Codex', connections: 1, connectedAt: now, lastUsedAt: null }
  ])
  const page = await get('alice')
  t.match(page.headers['content-type'], /^text\/html/)
  t.equal(page.body.match(/Claude Code<\/bdi>/g)?.length, 1)
  t.match(page.body, /2 connections/)
  t.match(page.body, /Connected <time datetime="2030-01-02T[^]*not used yet/)

  now += 24 * 60 * 60 * 1000
  t.ok(await works(two.accessToken))
  // Uses are written a second later, by the real clock.
  await new Promise((resolve) => setTimeout(resolve, 1100))
  t.match((await list('alice')).apps[0], { name: 'Claude Code', connectedAt: start, lastUsedAt: now })
  t.match((await get('alice')).body, /last used <time datetime="2030-01-04T/)
  now++
  const done = await post('alice', { ticket: await ticket('alice'), client: one.clientId })
  t.equal(done.statusCode, 303)
  t.equal(done.headers.location, `${PAGE}?done=disconnected`)
  t.match((await app.inject({ url: String(done.headers.location), headers: { 'x-user': 'alice' } })).body, /role="status">Disconnected/)
  t.strictSame([await works(one.accessToken), await works(two.accessToken), await works(other.accessToken), await works(bobs.accessToken)], [false, false, true, true])
  t.match((await list('alice')).apps, [{ name: 'Codex' }])
  t.match(events.at(-1), { type: 'token.rejected', reason: 'token_revoked' })
  t.match(events.find(({ type }) => type === 'token.revoked'), { userId: 'alice', clientId: one.clientId, grants: 2, reason: 'disconnected' })

  now++
  const again = await connectClient(app, { ...alice, clientName: 'Claude Code' })
  t.equal(again.clientId, one.clientId)
  t.ok(await works(again.accessToken), 'and can connect again')
})

t.test('disconnecting also stops codes that are on their way', async (t) => {
  const { app, post, ticket } = await connectedApps(t)
  const { connect, code, redeem } = dance(app)
  const { clientId } = await connect()
  const inFlight = await code(clientId)
  await post('alice', { ticket: await ticket('alice'), client: clientId })
  t.equal((await redeem(clientId, inFlight)).json().error, 'invalid_grant')
})

t.test('another user’s grant is answered like one that does not exist', async (t) => {
  const { app, list, post, ticket, works } = await connectedApps(t)
  const { accessToken, clientId } = await connectClient(app, { headers: { 'x-user': 'alice' } })
  const personal = await mintToken(app, { userId: 'alice', scopes: ['read'] })
  const [{ grantId }] = (await list('alice')).personalTokens as [{ grantId: string }]
  const mine = await ticket('bob')
  const answers = [
    await post('bob', { ticket: mine, grant: grantId }),
    await post('bob', { ticket: mine, grant: 'nothing' }),
    await post('bob', { ticket: mine, client: clientId }),
    await post('bob', { ticket: mine, client: 'nothing' })
  ]
  for (const answer of answers) {
    t.equal(answer.statusCode, 404)
    t.equal(answer.body, answers[0]!.body)
  }
  t.ok(await works(accessToken))
  t.ok(await works(personal))
})

t.test('forms answer only the user they were shown to', async (t) => {
  const { app, post, ticket, works } = await connectedApps(t)
  const { accessToken, clientId } = await connectClient(app, { headers: { 'x-user': 'alice' } })
  const consentTicket = await dance(app).ticket(clientId)
  const ofAlice = await ticket('alice')
  for (const [title, fields, headers] of [
    ['no ticket', {}, {}],
    ['another user’s', { ticket: await ticket('bob') }, {}],
    ['a consent ticket', { ticket: consentTicket }, {}],
    ['signed out', { ticket: ofAlice }, { 'x-user': '' }],
    ['a bearer token for a session', { ticket: ofAlice }, { 'x-user': '', ...bearer(accessToken) }]
  ] as Array<[string, Record<string, string>, Record<string, string>]>) {
    for (const action of [{ client: clientId }, { name: 'x', scope: 'read' }] as Array<Record<string, string>>) {
      t.equal((await post('alice', { ...fields, ...action }, headers)).statusCode, 403, title)
    }
  }
  t.ok(await works(accessToken))
  t.equal((await app.oauth.tokens.list({ userId: 'alice' })).length, 1, 'and no token was made')

  const now = Date.now()
  replace(t, Date, 'now', () => now + 60 * 60 * 1000 + 1)
  t.equal((await post('alice', { ticket: ofAlice, client: clientId })).statusCode, 403, 'an hour later')
})

t.test('a personal token is shown once, works, and is revoked', async (t) => {
  const { app, get, list, post, ticket, works } = await connectedApps(t)
  const created = await post('alice', { ticket: await ticket('alice'), name: '  Backup \u202Escript ', scope: ['read', 'nonsense'] })
  t.equal(created.statusCode, 200)
  const token = created.body.match(/pat_[\w-]{43}/)?.[0] ?? ''
  t.ok(await works(token))
  t.equal(created.headers['cache-control'], 'no-store')
  t.notMatch((await get('alice')).body, TOKEN, 'once')
  const { personalTokens: [entry] } = await list('alice')
  t.match(entry, { name: 'Backup script', scopes: ['read'], lastUsedAt: null, expiresAt: null })
  t.notOk(JSON.stringify(entry).includes('pat_'))
  t.equal((await app.inject({ method: 'POST', url: '/write', headers: bearer(token) })).statusCode, 403)

  t.equal((await post('alice', { ticket: await ticket('alice'), grant: entry.grantId })).headers.location, `${PAGE}?done=revoked`)
  t.notOk(await works(token))
  t.equal((await post('alice', { ticket: await ticket('alice'), grant: entry.grantId })).statusCode, 404, 'once')

  for (const fields of [{ name: '', scope: 'read' }, { name: '\u200B', scope: 'read' }, { name: 'x'.repeat(101), scope: 'read' }, { name: 'x' }, { name: 'x', scope: 'admin' }] as Array<Record<string, string>>) {
    t.equal((await post('alice', { ticket: await ticket('alice'), ...fields })).statusCode, 400, JSON.stringify(fields).slice(0, 40))
  }
  t.equal((await list('alice')).personalTokens.length, 0)
})

t.test('a personal token lives as long as its user chose, and no longer', async (t) => {
  const { app, get, list, post, ticket, works } = await connectedApps(t)
  const day = 24 * 60 * 60 * 1000
  const start = Date.now()
  let now = start
  replace(t, Date, 'now', () => now)
  t.match((await get('alice')).body, /<option value="30">in 30 days<[^]*<option value="90" selected>in 90 days<[^]*<option value="365">in 365 days<[^]*<option value="">never</)

  const tokens = new Map<string, string>()
  for (const days of ['30', '90', '365', '', undefined]) {
    const fields = { name: `for ${days === '' ? 'ever' : days}`, scope: 'read', ...(days !== undefined && { days }) }
    const created = await post('alice', { ticket: await ticket('alice'), ...fields }, JSON_ONLY)
    t.equal(created.statusCode, 201, fields.name)
    tokens.set(fields.name, created.json<{ token: string }>().token)
  }
  const { personalTokens } = await list('alice')
  t.strictSame(new Map(personalTokens.map(({ name, expiresAt }) => [name, expiresAt])), new Map([
    ['for 30', start + 30 * day], ['for 90', start + 90 * day], ['for 365', start + 365 * day], ['for ever', null], ['for undefined', null]
  ]))
  const page = (await get('alice')).body
  for (const days of [30, 90, 365]) {
    const ends = new Date(start + days * day).toISOString()
    t.ok(page.includes(`expires <time datetime="${ends}">${ends.slice(0, 10)}</time>`), String(days))
  }
  t.equal(page.match(/ · <span>expires /g)?.length, 3)
  t.ok(page.includes(' · <span>does not expire</span>'), 'the others say so')
  t.match((await post('alice', { ticket: await ticket('alice'), name: 'as a page', scope: 'read', days: '30' })).body, /as a page<\/bdi><\/h3>[^]*expires <time/)

  for (const days of ['0', '1', '31', '-30', '30.0', '030', ' 30', '3e1', 'Infinity', 'null', '99999999', 'x'.repeat(1000)]) {
    const refused = await post('alice', { ticket: await ticket('alice'), name: 'refused', scope: 'read', days }, JSON_ONLY)
    t.equal(refused.statusCode, 400, days.slice(0, 40))
    t.equal(refused.json().error, 'invalid_request')
  }
  t.equal((await list('alice')).personalTokens.length, 6)

  for (const [name, days] of [['for 30', 30], ['for 90', 90], ['for 365', 365]] as Array<[string, number]>) {
    now = start + days * day - 1
    t.ok(await works(tokens.get(name)!), name)
    now += 1
    t.notOk(await works(tokens.get(name)!), name)
    t.notOk((await list('alice')).personalTokens.some((token) => token.name === name), 'and it is on no list')
  }
  now = start + 100 * 365 * day
  for (const name of ['for ever', 'for undefined']) t.ok(await works(tokens.get(name)!), name)
  t.equal((await app.oauth.tokens.stats()).personal, 2)
})

t.test('one form makes one token, however often it is sent', async (t) => {
  const { app, events, get, list, post, ticket, works } = await connectedApps(t)
  const fields = { ticket: await ticket('alice'), name: 'script', scope: 'read' }
  const token = (await post('alice', fields)).body.match(/pat_[\w-]{43}/)?.[0] ?? ''
  const again = await post('alice', fields)
  t.equal(again.statusCode, 303)
  t.equal(again.headers.location, `${PAGE}?done=spent`)
  t.match((await app.inject({ url: `${PAGE}?done=spent`, headers: { 'x-user': 'alice' } })).body, /role="status">This form has made its token already/)
  const inJson = await post('alice', fields, JSON_ONLY)
  t.equal(inJson.statusCode, 409)
  t.equal(inJson.json().error, 'invalid_request')
  t.match((await list('alice')).personalTokens, [{ name: 'script' }])
  t.ok(await works(token), 'and the first goes on working')

  await post('alice', { ticket: await ticket('alice'), grant: (await list('alice')).personalTokens[0].grantId })
  t.equal((await post('alice', fields)).statusCode, 303, 'nor does it come back once it is revoked')
  t.strictSame((await list('alice')).personalTokens, [])
  t.equal(events.filter(({ type }) => type === 'token.issued').length, 1)

  const twice = { ...fields, ticket: await ticket('alice') }
  await Promise.all([post('alice', twice), post('alice', twice)])
  t.ok((await list('alice')).personalTokens.length <= 1, 'two at the same moment')
  t.notMatch((await get('alice')).body, TOKEN)
})

t.test('the same in JSON', async (t) => {
  const { app, get, list, post, ticket } = await connectedApps(t)
  const { clientId } = await connectClient(app, { headers: { 'x-user': 'alice' } })
  t.match((await get('alice', JSON_ONLY)).headers, { 'content-type': /^application\/json/, 'cache-control': 'no-store' })
  const made = await post('alice', { ticket: await ticket('alice'), name: 'script', scope: 'read' }, JSON_ONLY)
  t.equal(made.statusCode, 201)
  t.match(made.json(), { token: /^pat_/, grantId: (await list('alice')).personalTokens[0].grantId })
  t.strictSame((await post('alice', { ticket: await ticket('alice'), client: clientId }, JSON_ONLY)).json(), { disconnected: true })
  const refused = await post('alice', { ticket: 'x', client: clientId }, JSON_ONLY)
  t.equal(refused.statusCode, 403)
  t.equal(refused.json().error, 'access_denied')
  const signedOut = await app.inject({ url: PAGE, headers: JSON_ONLY })
  t.equal(signedOut.statusCode, 401)
  t.equal((await app.inject(PAGE)).headers.location, '/login?return_to=%2Fmy%2Fconnected_apps')
})

t.test('names cannot break out of a page, nor reorder it', async (t) => {
  const { app, get, ticket, post } = await connectedApps(t)
  const evil = '"><script>alert(1)</script><b>\u202Egnp.exe\u0000 & مرحبا 😀'
  const { authorize, clientId } = dance(app)
  const client = await clientId({ client_name: evil })
  const consent = await authorize(client, { state: evil })
  await connectClient(app, { headers: { 'x-user': 'alice' }, clientName: evil })
  await post('alice', { ticket: await ticket('alice'), name: evil, scope: 'read' })
  const user = evil.replace(/[^\x20-\x7e]/g, '')
  for (const page of [consent, await get('alice'), await app.inject({ url: PAGE, headers: { 'x-user': user } })]) {
    t.equal(page.statusCode, 200)
    t.notMatch(page.body, /<script|<b>|\u202E/)
    t.notOk(page.body.includes('\0'))
  }
  t.match(consent.body, /&lt;script&gt;alert\(1\)&lt;\/script&gt;&lt;b&gt;gnp\.exe &amp; مرحبا 😀/)
})

t.test('pages cannot be framed, stored, scripted or leak their address', async (t) => {
  const { app, get } = await connectedApps(t)
  const { authorize, clientId } = dance(app)
  const pages = { consent: await authorize(await clientId()), apps: await get('alice'), error: await app.inject('/oauth/authorize') }
  for (const [name, { headers, body }] of Object.entries(pages)) {
    t.match(headers['content-security-policy'], /^default-src 'none'; style-src 'self'; .*frame-ancestors 'none'/, name)
    t.match(headers, { 'x-frame-options': 'DENY', 'referrer-policy': 'no-referrer', 'cache-control': 'no-store', 'x-content-type-options': 'nosniff' }, name)
    t.notMatch(body, /<script|style=| on\w+=/, name)
    t.match(body, /<html lang="en">[^]*<title>[^<]+<\/title>[^]*<main>[^]*<h1/, name)
  }
  t.notMatch(pages.consent.headers['content-security-policy'], /form-action/, 'an app may lead the browser on')
  t.match(pages.apps.headers['content-security-policy'], /; form-action 'self'$/)
  t.match(pages.error.headers['content-security-policy'], /; form-action 'none'$/)

  const url = fieldOf(pages.apps.body.replace(/<link rel="stylesheet" href="([^"]*)"/, 'name="styles" value="$1"'), 'styles')
  const styles = await app.inject(url)
  t.equal(styles.statusCode, 200)
  t.match(styles.headers['content-type'], /^text\/css/)
})

t.test('without the page there is no page', async (t) => {
  const app = await testApp(t, { connectedApps: false })
  t.equal((await app.inject({ url: PAGE, headers: { 'x-user': 'alice' } })).statusCode, 404)
  const moved = await testApp(t, { connectedApps: { path: '/settings/apps' } })
  t.equal((await moved.inject({ url: '/settings/apps', headers: { 'x-user': 'alice' } })).statusCode, 200)
})

t.test('currentUser that breaks its contract, or throws, is a 500 that says nothing', async (t) => {
  for (const currentUser of [() => ({ id: 7 }), () => ({ id: '' }), () => ({ id: 'a', name: 1 }), () => { throw new Error('session store: password=hunter2') }]) {
    const app = await testApp(t, { currentUser: currentUser as never })
    const { statusCode, body } = await app.inject(PAGE)
    t.equal(statusCode, 500)
    t.notMatch(body, /hunter2/)
    t.match(body, /Something went wrong/)
  }
})

t.test('an app that is connected to several servers is one entry, which names them', async (t) => {
  const app = await testApp(t, { resources: [{ path: '/mcp', name: 'Notes' }, { url: 'https://files.example.com/mcp', name: 'Files & more' }, { url: 'https://mail.example.com/mcp' }] }, {}, { resource: '/mcp' })
  const { clientId, code, redeem } = dance(app)
  const client = await clientId()
  const page = async () => (await app.inject({ url: '/my/connected_apps', headers: { 'x-user': 'alice' } })).body
  const connect = async (resource: string) => { t.equal((await redeem(client, await code(client, { resource }))).statusCode, 200) }
  await connect('https://files.example.com/mcp')
  t.match(await page(), /act on your behalf[^]*Can use <bdi>Files &amp; more<\/bdi>:/)
  await connect('https://mail.example.com/mcp')
  await connect('https://files.example.com/mcp')
  t.match(await page(), /Can use <bdi>Files &amp; more<\/bdi>, <bdi>mail.example.com<\/bdi>:/)
  const { apps } = (await app.inject({ url: '/my/connected_apps', headers: { 'x-user': 'alice', accept: 'application/json' } })).json<{ apps: unknown[] }>()
  t.match(apps, [{ connections: 3, resources: ['Files & more', 'mail.example.com'] }])
})
