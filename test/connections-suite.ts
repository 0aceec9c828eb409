import Fastify from 'fastify'
import { createHash } from 'node:crypto'
import { mkdirSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { performance } from 'node:perf_hooks'
import type { Test } from 'tap'
import { KEY, folder, replace } from './app.js'
import { job, startLocal, startRemote, worker, type Local } from './connections.js'
import { NotConnectedError, ReconnectRequiredError, createConnections, sqliteConnectionStore } from '../dist/connections/index.js'
import type { Credentials } from '../dist/connections/vault.js'
import { StoreUnavailableError } from '../dist/index.js'
import { parseMetadataDocument } from '../dist/protocol/metadata-document.js'
import { freePort } from './scripts/free-port.js'
import { SDKS, type Sdk } from './sdk.js'

const OTHER_KEY = 'cd'.repeat(32)
const HOUR = 3600 * 1000

/** What jobs go through, in clients of these SDKs; `without` names a package that is not there for what they rest on. */
export function jobs (t: Test, sdks: readonly Sdk[], without?: string): void {
  for (const sdk of sdks) {
    t.test(`alice and bob connect in the browser, and jobs act as each of them, with ${sdk.name}`, async (t) => {
      const remote = await startRemote(t)
      const local = await startLocal(t, { notes: { url: remote.url, name: 'Notes', scopes: ['read', 'write'] } })
      t.equal(await local.connections.isConnected('alice', 'notes'), false)
      await t.rejects(job(sdk, local.connections, remote.url, 'alice', 'list_notes'), { name: 'NotConnectedError', userId: 'alice', server: 'notes' })
      for (const user of ['alice', 'bob']) {
        t.match(await local.connect(user), { status: 303, location: '/my/connections?done=connected' })
        t.equal(await local.connections.isConnected(user, 'notes'), true)
        t.equal(await job(sdk, local.connections, remote.url, user, 'add_note', { text: `by ${user}` }), 'Added.')
      }
      t.equal(await job(sdk, local.connections, remote.url, 'alice', 'list_notes'), '- by alice')
      t.equal(await job(sdk, local.connections, remote.url, 'bob', 'list_notes'), '- by bob')
      t.equal(await worker(sdk, { without, url: remote.url, user: 'bob', store: { sqlite: local.path } }), '- by bob', 'also in a process without Fastify')
      t.equal(remote.events.filter(({ type }) => type === 'token.refreshed').length, 0)
      const [connection] = await local.connections.list('alice')
      t.match(connection, { server: 'notes', name: 'Notes', url: remote.url, state: 'connected', scopes: ['read', 'write'], connectedAt: Number, refreshedAt: null, expiresAt: Number, refreshes: true })
      t.strictSame(local.events.map(({ type, userId, server }) => [type, userId, server]), [['connection.made', 'alice', 'notes'], ['connection.made', 'bob', 'notes']])
    })

    t.test(`an expired token is refreshed without a browser, ahead of its end and after it, with ${sdk.name}`, async (t) => {
      const remote = await startRemote(t)
      const local = await startLocal(t, { notes: { url: remote.url } })
      await local.connect('alice')
      let now = Date.now()
      replace(t, Date, 'now', () => now)
      now += HOUR - 90_000
      await job(sdk, local.connections, remote.url, 'alice', 'list_notes')
      t.equal(refreshes(remote), 0, 'not while it is good')
      now += 30_000
      await job(sdk, local.connections, remote.url, 'alice', 'list_notes')
      t.equal(refreshes(remote), 1, 'a minute before its end')
      now += HOUR * 2
      await job(sdk, local.connections, remote.url, 'alice', 'list_notes')
      t.equal(refreshes(remote), 2)
      // A server that does not say how long: the SDK is told by a 401.
      await local.edit('alice', 'notes', endless)
      now += HOUR * 2
      await job(sdk, local.connections, remote.url, 'alice', 'list_notes')
      t.equal(refreshes(remote), 3)
      t.match(await local.connections.list('alice'), [{ state: 'connected', refreshedAt: now, expiresAt: now + HOUR }])
      t.equal(local.events.filter(({ type }) => type === 'connection.refreshed').length, 3)
    })

    t.test(`eight workers at once refresh once, with ${sdk.name}`, async (t) => {
      const remote = await startRemote(t)
      const local = await startLocal(t, { notes: { url: remote.url } })
      await local.connect('alice')
      await local.edit('alice', 'notes', expired)
      const processes = sdk === SDKS[0] && without === undefined ? 4 : 1
      const outcomes = await Promise.all(Array.from({ length: 8 }, async (_, index) => index < processes
        ? await worker(sdk, { without, url: remote.url, user: 'alice', store: { sqlite: local.path } })
        : await job(sdk, local.connections, remote.url, 'alice', 'list_notes')))
      t.strictSame(outcomes, Array.from({ length: 8 }, () => 'There are no notes yet.'), 'in processes of their own, and in this one')
      t.equal(refreshes(remote), 1)
      t.strictSame(remote.events.filter(({ type }) => type === 'token.revoked'), [], 'no refresh token came twice')
    })

    t.test(`many that are refused at once refresh in turns, and no refresh token is used twice, with ${sdk.name}`, async (t) => {
      const remote = await startRemote(t)
      const local = await startLocal(t, { notes: { url: remote.url } })
      await local.connect('alice')
      await local.edit('alice', 'notes', (credentials) => ({ tokens: { ...endless(credentials).tokens!, access_token: 'oat_refused' } }))
      const outcomes = await Promise.allSettled(Array.from({ length: 4 }, async () => await job(sdk, local.connections, remote.url, 'alice', 'list_notes')))
      for (const outcome of outcomes) {
        // Whoever was overtaken once more is told by the SDK, and may try again.
        if (outcome.status === 'rejected') t.match(String(outcome.reason), /401|Unauthorized/)
      }
      t.ok(outcomes.some(({ status }) => status === 'fulfilled'))
      t.strictSame(remote.events.filter(({ type }) => type === 'token.revoked'), [])
      t.equal(await job(sdk, local.connections, remote.url, 'alice', 'list_notes'), 'There are no notes yet.')
    })

    t.test(`the remote grant is revoked: reconnecting is asked for, and works, with ${sdk.name}`, async (t) => {
      const remote = await startRemote(t)
      const local = await startLocal(t, { notes: { url: remote.url } })
      for (const due of [false, true]) {
        await local.connect('alice')
        await remote.app.oauth.tokens.revoke({ userId: 'alice' })
        if (due) await local.edit('alice', 'notes', expired)
        await t.rejects(job(sdk, local.connections, remote.url, 'alice', 'list_notes'), { name: 'ReconnectRequiredError', userId: 'alice', server: 'notes' })
        await t.rejects(job(sdk, local.connections, remote.url, 'alice', 'list_notes'), ReconnectRequiredError, 'and it stays so')
        t.match(await local.connections.list('alice'), [{ state: 'reconnect_required' }])
        const page = await local.visit('/my/connections', 'alice')
        t.match(page.html, /Needs reconnecting[^]*<button name="connect" value="notes"[^>]*>Reconnect</)
      }
      await local.connect('alice')
      t.equal(await job(sdk, local.connections, remote.url, 'alice', 'list_notes'), 'There are no notes yet.')
      t.equal(local.events.filter(({ type }) => type === 'connection.lost').length, 2)
      const calls = refreshes(remote)
      t.equal(calls, 0)
    })

    t.test(`without refresh tokens, a job that lacks a scope loses nothing, one that is refused does, with ${sdk.name}`, async (t) => {
      const remote = await startRemote(t, { refreshTokenLifetime: null })
      const local = await startLocal(t, { notes: { url: remote.url, scopes: ['read'] } })
      await local.connect('alice', 'notes', ['read'])
      const error = await job(sdk, local.connections, remote.url, 'alice', 'add_note', { text: 'x' }).then(() => t.fail('it may not'), (error: Error) => error) as Error
      t.notMatch(error.name, /ReconnectRequired|NotConnected/)
      t.equal(await job(sdk, local.connections, remote.url, 'alice', 'list_notes'), 'There are no notes yet.')
      t.match(await local.connections.list('alice'), [{ state: 'connected', refreshes: false }])
      await remote.app.oauth.tokens.revoke({ userId: 'alice' })
      await t.rejects(job(sdk, local.connections, remote.url, 'alice', 'list_notes'), ReconnectRequiredError)
      t.match(await local.connections.list('alice'), [{ state: 'reconnect_required' }])
      t.equal(local.events.at(-1)!.type, 'connection.lost')

      await local.connect('alice', 'notes', ['read'])
      await local.edit('alice', 'notes', () => ({ connectedAt: 1 }))
      t.match(await local.connections.list('alice'), [{ state: 'reconnect_required' }], 'nor can one that has ended be used')
      await t.rejects(job(sdk, local.connections, remote.url, 'alice', 'list_notes'), ReconnectRequiredError)
    })

    t.test(`a server that is down, restarts, or changes its key in between loses no connection, with ${sdk.name}`, async (t) => {
      const remote = await startRemote(t)
      const local = await startLocal(t, { notes: { url: remote.url } })
      await local.connect('alice')
      for (const due of [false, true]) {
        if (due) await local.edit('alice', 'notes', expired)
        await remote.stop()
        const error = await job(sdk, local.connections, remote.url, 'alice', 'list_notes').then(() => t.fail('it is down'), (error: Error) => error) as Error
        t.notMatch(error.name, /ReconnectRequired|NotConnected/)
        t.match(await local.connections.list('alice'), [{ state: 'connected' }])
        await remote.start({ keys: [OTHER_KEY, KEY] })
        t.equal(await job(sdk, local.connections, remote.url, 'alice', 'list_notes'), 'There are no notes yet.')
      }
      t.equal(refreshes(remote), 1)
    })
  }
}

/** Answers that are not what was asked for, or not from whom. */
export function mixUp (t: Test): void {
  t.test('a callback that is wrong in any way is a clear page, and stores nothing', async (t) => {
    const remote = await startRemote(t)
    const local = await startLocal(t, { notes: { url: remote.url, name: 'Notes' } })
    const fresh = async (user: string, decision?: 'approve' | 'deny'): Promise<URL> => new URL(await local.consent((await local.press(user, { connect: 'notes' })).location, user, decision))
    let users = 0
    const changed = async (change: (query: URLSearchParams) => void, who?: string, decision?: 'deny', server = 'notes') => {
      const user = `user ${++users}`
      const callback = await fresh(user, decision)
      change(callback.searchParams)
      callback.pathname = callback.pathname.replace('notes', server)
      return await local.visit(callback.href, who ?? user)
    }
    for (const [title, ask, status, reason, text] of [
      ['no state', () => changed((query) => query.delete('state')), 400, 'connection_state', /not, or no longer, an answer/],
      ['a changed state', () => changed((query) => query.set('state', query.get('state')!.replace(/(..)$/, (last) => last === 'AA' ? 'BB' : 'AA'))), 400, 'connection_state', /not, or no longer/],
      ['another user', () => changed(() => {}, 'bob'), 403, 'connection_for_another_user', /begun by another user/],
      ['the callback of another server', () => changed(() => {}, undefined, undefined, 'other'), 400, 'connection_state', /not, or no longer/],
      ['a foreign iss', () => changed((query) => query.set('iss', 'https://evil.example')), 400, 'connection_issuer', /another server/],
      ['no iss, from a server that says it sends one', () => changed((query) => query.delete('iss')), 400, 'connection_issuer', /another server/],
      ['an error with a foreign iss', () => changed((query) => { query.delete('code'); query.set('error', 'x'); query.set('iss', 'https://evil.example') }), 400, 'connection_issuer', /another server/],
      ['an error', () => changed(() => {}, undefined, 'deny'), 403, 'connection_refused', /did not allow/],
      ['a code that is none', () => changed((query) => query.set('code', 'xyz')), 403, 'connection_refused', /did not allow/],
      ['a parameter twice', () => changed((query) => query.append('code', 'xyz')), 400, 'parameter_repeated', /more than once/]
    ] as const) {
      const answer = await ask()
      t.equal(answer.status, status, title)
      t.match(answer.html, text, title)
      t.match(answer.html, /<a href="\/my\/connections">your connections<\/a>/, title)
      t.notMatch(answer.html, /evil/, title)
      t.equal(local.rows(), 0, `${title}: nothing is stored`)
      t.ok(local.lines.some((line) => line.includes(`"reason":"${reason}"`)), `${title}: the log says why`)
      local.lines.length = 0
    }

    const late = await fresh('alice')
    const real = Date.now()
    replace(t, Date, 'now', () => real + 600_001)
    t.match(await local.visit(late.href, 'alice'), { status: 400, html: /no longer/ }, 'a state is good for ten minutes')
    t.equal(local.rows(), 0)
  })

  t.test('metadata that name another issuer are refused, since answers could not be told from that one\'s', async (t) => {
    const liar = Fastify()
    const origin = `http://localhost:${await freePort()}`
    t.teardown(async () => await liar.close())
    let issuer = 'https://honest.example'
    liar.get('/.well-known/oauth-protected-resource/mcp', async () => ({ resource: `${origin}/mcp`, authorization_servers: [origin] }))
    liar.get('/.well-known/oauth-authorization-server', async () => ({
      issuer, authorization_endpoint: 'https://honest.example/authorize', token_endpoint: `${origin}/token`, registration_endpoint: `${origin}/register`, response_types_supported: ['code'], code_challenge_methods_supported: ['S256']
    }))
    liar.post('/register', async (request, reply) => await reply.code(201).send({ ...request.body as object, client_id: 'x' }))
    await liar.listen({ port: Number(new URL(origin).port), host: 'localhost' })
    const local = await startLocal(t, { notes: { url: `${origin}/mcp` } })
    t.match(await local.press('alice', { connect: 'notes' }), { status: 503, html: /cannot be connected at present/ })
    issuer = origin
    t.equal((await local.press('alice', { connect: 'notes' })).status, 303, 'which is all that was wrong')
  })
}

/** What users go through, in the browser. */
export function pages (t: Test): void {
  const [sdk] = SDKS as [Sdk]

  t.test('while it is being connected, a user waits for the server, and nothing else happens', async (t) => {
    const remote = await startRemote(t)
    const local = await startLocal(t, { notes: { url: remote.url, name: 'Notes' } })
    const begun = await local.press('alice', { connect: 'notes' })
    t.equal(begun.status, 303)
    const asked = new URL(begun.location)
    t.equal(asked.origin, remote.origin)
    t.match(Object.fromEntries(asked.searchParams), { response_type: 'code', code_challenge_method: 'S256', redirect_uri: `${local.origin}/my/connections/callback/notes`, resource: remote.url })
    t.equal(local.rows(), 0, 'nothing is stored yet')
    const state = asked.searchParams.get('state')!
    const again = new URL((await local.press('alice', { connect: 'notes' })).location)
    t.not(again.searchParams.get('state'), state)
    t.not(again.searchParams.get('code_challenge'), asked.searchParams.get('code_challenge'), 'each has a verifier of its own')
  })

  mixUp(t)

  t.test('a callback that comes again changes nothing, and ends nothing', async (t) => {
    const remote = await startRemote(t)
    const local = await startLocal(t, { notes: { url: remote.url, name: 'Notes' } })
    const callback = await local.consent((await local.press('alice', { connect: 'notes' })).location, 'alice')
    t.equal((await local.visit(callback, 'alice')).status, 303)
    const before = await local.edit('alice', 'notes', () => ({}))
    t.match(await local.visit(callback, 'alice'), { status: 409, html: /has been made already/ })
    t.strictSame(await local.edit('alice', 'notes', () => ({})), before)
    t.equal(await job(sdk, local.connections, remote.url, 'alice', 'list_notes'), 'There are no notes yet.')

    await local.connections.disconnect('alice', 'notes')
    t.equal((await local.visit(callback, 'alice')).status, 403, 'nor does it bring back what was disconnected')
    t.equal(local.rows(), 0)
  })

  t.test('signed out, a user signs in first, and goes on from there', async (t) => {
    const remote = await startRemote(t)
    const local = await startLocal(t, { notes: { url: remote.url } })
    t.equal((await local.visit('/my/connections?return_to=/x', '')).location, `/login?return_to=${encodeURIComponent('/my/connections?return_to=/x')}`)
    const callback = new URL(await local.consent((await local.press('alice', { connect: 'notes' })).location, 'alice'))
    const { location } = await local.visit(callback.href, '')
    const back = new URLSearchParams(location.split('?')[1]).get('return_to')!
    t.equal(back, callback.pathname + callback.search)
    t.equal((await local.visit(back, 'alice')).status, 303)
    t.equal(await local.connections.isConnected('alice', 'notes'), true)
  })

  t.test('after connecting, the user is back on the page or at return_to, which is a path of this app', async (t) => {
    const remote = await startRemote(t)
    const local = await startLocal(t, { notes: { url: remote.url } })
    const page = await local.visit('/my/connections?return_to=/settings%3Ftab=2', 'alice')
    t.match(page.html, /name="return_to" value="\/settings\?tab=2"/)
    for (const [returnTo, expected] of [['/settings?tab=2', '/settings?tab=2'], ['//evil.example', '/my/connections?done=connected'], ['/\\evil.example', '/my/connections?done=connected'], ['https://evil.example', '/my/connections?done=connected']]) {
      const { location } = await local.press('alice', { connect: 'notes', return_to: returnTo! })
      t.equal((await local.visit(await local.consent(location, 'alice'), 'alice')).location, expected)
    }
  })

  t.test('disconnecting ends the grant there too; and without the server, here at least', async (t) => {
    const remote = await startRemote(t)
    const local = await startLocal(t, { notes: { url: remote.url, name: 'Notes' } })
    await local.connect('alice')
    t.match(await local.press('alice', { disconnect: 'notes' }), { status: 303, location: '/my/connections?done=disconnected' })
    t.strictSame(await remote.app.oauth.tokens.list({ userId: 'alice' }), [])
    t.equal(local.rows(), 0)
    t.equal(await local.connections.disconnect('alice', 'notes'), 0, 'there is none any more')
    t.equal(local.rows(), 0)
    await t.rejects(job(sdk, local.connections, remote.url, 'alice', 'list_notes'), NotConnectedError)
    await local.connect('alice')
    await remote.stop()
    t.equal(await local.connections.disconnect('alice', 'notes'), 1)
    t.equal(local.rows(), 0)
    await remote.start()
    t.strictSame(local.events.map(({ type }) => type), ['connection.made', 'connection.ended', 'connection.made', 'connection.ended'])
  })

  t.test('neither the database nor the log holds a token, and a copied row does not open', async (t) => {
    const remote = await startRemote(t)
    const local = await startLocal(t, { notes: { url: remote.url }, other: { url: remote.url } })
    await local.connect('alice')
    await local.edit('alice', 'notes', expired)
    await job(sdk, local.connections, remote.url, 'alice', 'list_notes')
    const { tokens } = await local.edit('alice', 'notes', () => ({}))
    for (const secret of [tokens.access_token, tokens.refresh_token!]) {
      t.match(secret, /^o[ar]t_/)
      for (const spelled of [secret, Buffer.from(secret).toString('base64url'), Buffer.from(secret).toString('hex')]) {
        t.notOk(local.dump().includes(spelled), 'the database')
        t.notOk(local.lines.join('').includes(spelled), 'the log')
      }
    }
    const { DatabaseSync } = await import('@photostructure/sqlite')
    const database = new DatabaseSync(local.path)
    database.exec("INSERT INTO connections SELECT 'mallory', server, sealed, 0 FROM connections WHERE user_id = 'alice'; INSERT INTO connections SELECT user_id, 'other', sealed, 0 FROM connections WHERE user_id = 'alice'")
    database.close()
    t.equal(await local.connections.isConnected('alice', 'notes'), true)
    t.equal(await local.connections.isConnected('alice', 'other'), false)
    t.equal(await local.connections.isConnected('mallory', 'notes'), false)
    await t.rejects(job(sdk, local.connections, remote.url, 'mallory', 'list_notes'), NotConnectedError)
  })

  t.test('a new key opens what an older one sealed, and seals it anew when it is next written', async (t) => {
    const remote = await startRemote(t)
    const local = await startLocal(t, { notes: { url: remote.url } })
    await local.connect('alice')
    await local.edit('alice', 'notes', expired)
    const other = (keys: string[]) => createConnections({ keys, store: sqliteConnectionStore({ path: local.path }), servers: { notes: { url: remote.url } } })
    const rotated = other([OTHER_KEY, KEY])
    const without = other([OTHER_KEY])
    t.teardown(async () => { await rotated.close(); await without.close() })
    t.equal(await without.isConnected('alice', 'notes'), false)
    await job(sdk, rotated, remote.url, 'alice', 'list_notes')
    t.equal(await without.isConnected('alice', 'notes'), true, 'refreshed, it needs the older key no more')
  })

  t.test('what the app has configured wrong is not blamed on its user, and the log says what it is', async (t) => {
    const remote = await startRemote(t)
    for (const [server, detail] of [
      [{ url: remote.url, scopes: ['elsewhere'] }, /invalid_scope/],
      [{ url: remote.url.replace('/mcp', '/nope') }, /does not match expected/],
      [{ url: remote.url.replace('localhost', '127.0.0.1') }, /does not match expected/]
    ] as const) {
      const local = await startLocal(t, { notes: server })
      let answer = await local.press('alice', { connect: 'notes' })
      if (answer.status === 303) answer = await local.visit(answer.location, 'alice').then(async ({ location }) => await local.visit(location, 'alice'))
      t.match(answer, { status: 503, html: /cannot be connected at present/ }, server.url)
      const refusals = local.lines.filter((line) => line.includes('connection_unreachable'))
      t.equal(refusals.length, 1)
      t.match(refusals[0], detail)
      t.match(JSON.parse(refusals[0]!), { level: 50 })
    }
  })

  t.test('a server whose address has changed has to be connected anew', async (t) => {
    const remote = await startRemote(t)
    let url = remote.url
    const local = await startLocal(t, () => ({ notes: { url } }))
    await local.connect('alice')
    t.equal(await local.connections.isConnected('alice', 'notes'), true)
    url = 'https://elsewhere.example/mcp'
    t.equal(await local.connections.isConnected('alice', 'notes'), false)
  })

  t.test('all that a user has is ended at once, also what is not in the list any more', async (t) => {
    const remote = await startRemote(t)
    const another = await startRemote(t)
    let servers: Record<string, { url: string }> = { notes: { url: remote.url }, more: { url: another.url } }
    const local = await startLocal(t, () => servers)
    for (const server of ['notes', 'more']) await local.connect('alice', server)
    await local.connect('bob', 'notes')
    servers = { more: { url: another.url } }
    t.equal(await local.connections.disconnect('alice'), 2)
    t.strictSame(await another.app.oauth.tokens.list({ userId: 'alice' }), [])
    t.equal(local.rows(), 1, 'those of others stay')
    t.equal(await local.connections.disconnect('alice'), 0)
    t.equal(await local.connections.disconnect('bob', '\0'), 0)
  })

  t.test('what a server says of times cannot break the page', async (t) => {
    const remote = await startRemote(t)
    const local = await startLocal(t, { notes: { url: remote.url } })
    await local.connect('alice')
    for (const seconds of [1e13, Number.MAX_VALUE, 0, -1, null]) {
      await local.edit('alice', 'notes', ({ tokens }) => ({ tokens: { ...tokens, expires_in: seconds as number } }))
      t.match(await local.visit('/my/connections', 'alice'), { status: 200, html: /Connected/ })
      t.match(await local.connections.list('alice'), [{ state: 'connected', expiresAt: null }])
    }
    t.equal(await job(sdk, local.connections, remote.url, 'alice', 'list_notes'), 'There are no notes yet.')
    t.equal(refreshes(remote), 0)
  })

  t.test('a database that is away at first is asked again', async (t) => {
    const path = join(folder(), 'not there yet', 'connections.db')
    const connections = createConnections({ keys: [KEY], store: sqliteConnectionStore({ path }), servers: { notes: { url: 'https://notes.example/mcp' } } })
    t.teardown(async () => { await connections.close() })
    await t.rejects(connections.list('alice'), StoreUnavailableError)
    mkdirSync(dirname(path))
    t.match(await connections.list('alice'), [{ server: 'notes', state: 'not_connected' }])
  })

  t.test('each user has the servers that the app gives them, and no others', async (t) => {
    const remote = await startRemote(t)
    const local = await startLocal(t, async (userId) => userId === 'alice' ? { notes: { url: remote.url, name: 'Notes' } } : userId === 'bob' ? { files: { url: 'https://files.example/mcp' } } : {})
    t.match((await local.visit('/my/connections', 'alice')).html, /<bdi>Notes<\/bdi>/)
    t.notMatch((await local.visit('/my/connections', 'bob')).html, /Notes/)
    t.match((await local.visit('/my/connections', 'eve')).html, /There is nothing to connect/)
    t.match(await local.press('bob', { connect: 'notes' }), { status: 404, html: /no such server/ })
    for (const name of ['__proto__', 'toString', '']) t.equal((await local.press('alice', { connect: name })).status, 404, name)
  })

  t.test('a form that was not made for this user begins and ends nothing', async (t) => {
    const remote = await startRemote(t)
    const local = await startLocal(t, { notes: { url: remote.url } })
    await local.connect('alice')
    for (const [user, ticket] of [['alice', ''], ['alice', await local.ticket('bob')], ['', await local.ticket('alice')]] as const) {
      for (const button of ['connect', 'disconnect']) {
        t.equal((await local.visit('/my/connections', user, { method: 'POST', body: new URLSearchParams({ ticket, [button]: 'notes' }) })).status, 403)
      }
    }
    t.equal(await local.connections.isConnected('alice', 'notes'), true)
  })

  t.test('on https the app is known by its own document, and registers nowhere', async (t) => {
    const remote = await startRemote(t)
    const local = await startLocal(t, { notes: { url: remote.url } }, { baseUrl: 'https://digest.example' })
    const { location } = await local.press('alice', { connect: 'notes' })
    const clientId = 'https://digest.example/my/connections/client/notes'
    t.match(Object.fromEntries(new URL(location).searchParams), { client_id: clientId, redirect_uri: 'https://digest.example/my/connections/callback/notes' })
    t.strictSame(remote.events.filter(({ type }) => type === 'client.registered'), [])
    const { html } = await local.visit('/my/connections/client/notes', '')
    t.strictSame(JSON.parse(html), {
      client_id: clientId,
      client_name: 'Digest',
      client_uri: 'https://digest.example',
      redirect_uris: ['https://digest.example/my/connections/callback/notes'],
      grant_types: ['authorization_code', 'refresh_token'],
      response_types: ['code'],
      token_endpoint_auth_method: 'none'
    })
    t.ok(parseMetadataDocument(JSON.parse(html), clientId, { redirectUris: [], grantTypes: ['authorization_code', 'refresh_token'] }), 'the first plugin reads it')
  })

  t.test('an app that was registered by hand proves who it is, to that authorization server alone', async (t) => {
    let secret = 's'.repeat(43)
    let known = secret
    let redirectUris: string[] = []
    const remote = await startRemote(t, {
      clients: (clientId) => clientId === 'digest' ? { clientId, clientName: 'Digest', redirectUris, clientSecretHashes: [createHash('sha256').update(known).digest('base64url')] } : null
    })
    let issuer = remote.origin
    const local = await startLocal(t, () => ({ notes: { url: remote.url, client: { issuer, clientId: 'digest', clientSecret: secret } } }))
    redirectUris = [`${local.origin}/my/connections/callback/notes`]
    t.equal((await local.connect('alice')).status, 303)
    await local.edit('alice', 'notes', expired)
    t.equal(await job(sdk, local.connections, remote.url, 'alice', 'list_notes'), 'There are no notes yet.')
    t.equal(refreshes(remote), 1)
    t.strictSame((await remote.app.oauth.tokens.list({ userId: 'alice' })).map(({ clientId }) => clientId), ['digest'])
    const right = secret
    secret = 'w'.repeat(43)
    for (const change of [expired, (credentials: Credentials) => ({ tokens: { ...endless(credentials).tokens!, access_token: 'oat_refused' } })]) {
      await local.edit('alice', 'notes', change)
      await t.rejects(job(sdk, local.connections, remote.url, 'alice', 'list_notes'), { message: /refuses this app/ })
      t.match(await local.connections.list('alice'), [{ state: 'connected' }], 'a mistake of the app costs its users nothing')
    }
    secret = right
    t.equal(await job(sdk, local.connections, remote.url, 'alice', 'list_notes'), 'There are no notes yet.')
    t.notOk(local.dump().includes(secret), 'nor is the secret in the database')
    secret = known = 't'.repeat(43)
    await local.edit('alice', 'notes', expired)
    t.equal(await job(sdk, local.connections, remote.url, 'alice', 'list_notes'), 'There are no notes yet.', 'with the secret that it has now')
    t.equal(await local.connections.disconnect('alice'), 1)
    t.strictSame(await remote.app.oauth.tokens.list({ userId: 'alice' }), [])
    issuer = 'https://elsewhere.example'
    t.equal((await local.press('bob', { connect: 'notes' })).status, 503)
  })

  t.test('options are checked, and no secret is repeated', async (t) => {
    const store = sqliteConnectionStore({ path: ':memory:' })
    const servers = { notes: { url: 'https://notes.example/mcp' } }
    for (const [options, message] of [
      [{ keys: ['too short'], store, servers }, /Option keys\[0\]/],
      [{ keys: [KEY], store: {}, servers }, /Option store: expected a store such as sqliteConnectionStore/],
      [{ keys: [KEY], store, servers: [] }, /Option servers: expected an object/],
      [{ keys: [KEY], store, servers: { notes: { url: 'http://notes.example/mcp' } } }, /Option servers\.notes\.url: expected an https URL/],
      [{ keys: [KEY], store, servers: { notes: { url: 'https://user:hunter2@notes.example/mcp' } } }, /Option servers\.notes\.url/],
      [{ keys: [KEY], store, servers: { notes: { url: 'https://notes.example/mcp', scope: 'read' } } }, /Option servers\.notes\.scope: .*does not exist/],
      [{ keys: [KEY], store, servers: { notes: { url: 'https://notes.example/mcp', client: { clientSecret: 'hunter2' } } } }, /Option servers\.notes\.client/],
      [{ keys: [KEY], store, servers, onEvent: 'x' }, /Option onEvent/],
      [{ keys: [KEY], store, servers, path: '/' }, /Option path: .*does not exist/]
    ] as const) {
      t.throws(() => createConnections(options as never), { code: 'FST_MCP_OAUTH_INVALID_OPTION', message })
    }
    const connections = createConnections({ keys: [KEY], store, servers })
    t.throws(() => connections.provider('alice', 'nots'), { message: /Option server: expected one of notes, got nots/ })
    for (const [changes, message] of [
      [{ baseUrl: 'https://digest.example/app' }, /Option baseUrl: expected an address without a path/],
      [{ path: '/x/' }, /Option path/],
      [{ views: 'views' }, /Option views/],
      [{ loginUrl: '//x' }, /Option loginUrl/]
    ] as const) await t.rejects(startLocal(t, servers, changes as never), { message })
  })

  t.test('what is posted follows no redirect', async (t) => {
    const remote = await startRemote(t)
    const local = await startLocal(t, { notes: { url: remote.url } })
    await local.connect('alice')
    await local.edit('alice', 'notes', expired)
    await remote.stop()

    const posted: string[] = []
    let asked = 0
    const [thief, moved] = [Fastify(), Fastify()]
    for (const app of [thief, moved]) {
      t.teardown(async () => await app.close())
      app.addContentTypeParser('*', { parseAs: 'string' }, (_request, body, done) => done(null, body))
    }
    thief.post('/', async ({ body }) => { posted.push(String(body)) })
    const stolen = `${await thief.listen({ port: await freePort(), host: 'localhost' })}/`
    moved.get('/.well-known/oauth-authorization-server', async () => ({ issuer: remote.origin, authorization_endpoint: `${remote.origin}/a`, token_endpoint: `${remote.origin}/token`, response_types_supported: ['code'] }))
    moved.post('/token', async (_request, reply) => {
      asked += 1
      return await reply.redirect(stolen, 307)
    })
    await moved.listen({ port: Number(new URL(remote.origin).port), host: 'localhost' })

    await t.rejects(local.connections.provider('alice', 'notes').tokens())
    t.equal(asked, 1)
    t.strictSame(posted, [])
    t.match(await local.connections.list('alice'), [{ state: 'connected' }])
  })

  t.test('a user may begin five times a minute and twenty times a day', async (t) => {
    const remote = await startRemote(t)
    const local = await startLocal(t, { notes: { url: remote.url } })
    const begin = async (local: Local, user = 'alice'): Promise<number> => (await local.press(user, { connect: 'notes' })).status
    for (let time = 0; time < 5; time++) t.equal(await begin(local), 303)
    t.equal(await begin(local), 429)
    t.equal(await begin(local, 'bob'), 303, 'each for themselves')
    const real = performance.now()
    let minutes = 0
    replace(t, performance, 'now', () => real + minutes * 60_001)
    for (let begun = 5; begun < 20; begun++) {
      if (begun % 5 === 0) minutes += 1
      t.equal(await begin(local), 303, `${begun + 1}`)
    }
    minutes += 10
    t.match(await local.press('alice', { connect: 'notes' }), { status: 429, html: /until tomorrow/ })
    minutes = 24 * 60
    t.equal(await begin(local), 303, 'the next day')
  })
}

/** A row whose access token has ended. */
const expired = (): Partial<Credentials> => ({ refreshedAt: 1 })

/** One whose server did not say when it ends. */
function endless ({ tokens: { expires_in: _, ...tokens } }: Credentials): Partial<Credentials> {
  return { tokens }
}

function refreshes ({ events }: { events: Array<{ type: string }> }): number {
  return events.filter(({ type }) => type === 'token.refreshed').length
}
