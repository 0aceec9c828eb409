import type { Test } from 'tap'
import { KEY } from './app.js'
import { job, startLocal, startRemote, worker, type Local } from './connections.js'
import { NotConnectedError, ReconnectRequiredError, createConnections, sqliteConnectionStore } from '../dist/connections/index.js'
import { SDKS, type Sdk } from './sdk.js'

const OTHER_KEY = 'cd'.repeat(32)
const HOUR = 3600 * 1000

/** What jobs go through, in clients of these SDKs; `without` names a package that is not there for what they rest on. */
export function jobs (t: Test, sdks: readonly Sdk[], without?: string): void {
  for (const sdk of sdks) {
    t.test(`${sdk.name}: alice and bob connect in the browser, and jobs act as each of them`, async (t) => {
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
      t.match(connection, { server: 'notes', name: 'Notes', url: remote.url, state: 'connected', scopes: ['read', 'write'], connectedAt: Number, refreshedAt: null, expiresAt: Number })
      t.strictSame(local.events.map(({ type, userId, server }) => [type, userId, server]), [['connection.made', 'alice', 'notes'], ['connection.made', 'bob', 'notes']])
    })

    t.test(`${sdk.name}: an expired token is refreshed without a browser, ahead of its end and after it`, async (t) => {
      const remote = await startRemote(t)
      const local = await startLocal(t, { notes: { url: remote.url } })
      await local.connect('alice')
      let now = Date.now()
      t.capture(Date, 'now', () => now)
      now += HOUR - 61_000
      await job(sdk, local.connections, remote.url, 'alice', 'list_notes')
      t.equal(refreshes(remote), 0, 'not while it is good')
      now += 1000
      await job(sdk, local.connections, remote.url, 'alice', 'list_notes')
      t.equal(refreshes(remote), 1, 'a minute before its end')
      now += HOUR * 2
      await job(sdk, local.connections, remote.url, 'alice', 'list_notes')
      t.equal(refreshes(remote), 2)
      // A server that does not say how long: the SDK is told by a 401.
      await local.edit('alice', 'notes', () => ({ refreshAt: null, tokensExpireAt: null }))
      now += HOUR * 2
      await job(sdk, local.connections, remote.url, 'alice', 'list_notes')
      t.equal(refreshes(remote), 3)
      t.match(await local.connections.list('alice'), [{ state: 'connected', refreshedAt: now, expiresAt: now + HOUR }])
      t.equal(local.events.filter(({ type }) => type === 'connection.refreshed').length, 3)
    })

    t.test(`${sdk.name}: eight workers at once refresh once`, async (t) => {
      const remote = await startRemote(t)
      const local = await startLocal(t, { notes: { url: remote.url } })
      await local.connect('alice')
      await local.edit('alice', 'notes', () => ({ refreshAt: Date.now() - 1 }))
      const processes = sdk === SDKS[0] && without === undefined ? 8 : 1
      const outcomes = await Promise.all(Array.from({ length: 8 }, async (_, index) => index < processes
        ? await worker(sdk, { without, url: remote.url, user: 'alice', store: { sqlite: local.path } })
        : await job(sdk, local.connections, remote.url, 'alice', 'list_notes')))
      t.strictSame(outcomes, Array.from({ length: 8 }, () => 'There are no notes yet.'), 'in processes of their own, and in this one')
      t.equal(refreshes(remote), 1)
      t.strictSame(remote.events.filter(({ type }) => type === 'token.revoked'), [], 'no refresh token came twice')
    })

    t.test(`${sdk.name}: many that are refused at once refresh in turns, and no refresh token is used twice`, async (t) => {
      const remote = await startRemote(t)
      const local = await startLocal(t, { notes: { url: remote.url } })
      await local.connect('alice')
      await local.edit('alice', 'notes', ({ tokens }) => ({ tokens: { ...tokens, access_token: 'oat_refused' }, refreshAt: null }))
      const outcomes = await Promise.allSettled(Array.from({ length: 4 }, async () => await job(sdk, local.connections, remote.url, 'alice', 'list_notes')))
      t.ok(outcomes.some(({ status }) => status === 'fulfilled'))
      t.ok(refreshes(remote) >= 1)
      t.strictSame(remote.events.filter(({ type }) => type === 'token.revoked'), [])
      t.equal(await job(sdk, local.connections, remote.url, 'alice', 'list_notes'), 'There are no notes yet.')
    })

    t.test(`${sdk.name}: the remote grant is revoked: reconnecting is asked for, and works`, async (t) => {
      const remote = await startRemote(t)
      const local = await startLocal(t, { notes: { url: remote.url } })
      for (const due of [false, true]) {
        await local.connect('alice')
        await remote.app.oauth.tokens.revoke({ userId: 'alice' })
        if (due) await local.edit('alice', 'notes', () => ({ refreshAt: 0 }))
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

    t.test(`${sdk.name}: a server that is down, restarts, or changes its key in between loses no connection`, async (t) => {
      const remote = await startRemote(t)
      const local = await startLocal(t, { notes: { url: remote.url } })
      await local.connect('alice')
      for (const due of [false, true]) {
        if (due) await local.edit('alice', 'notes', () => ({ refreshAt: 0 }))
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
    t.match(Object.fromEntries(asked.searchParams), { response_type: 'code', code_challenge_method: 'S256', redirect_uri: `${local.origin}/my/connections/callback`, resource: remote.url })
    t.equal(local.rows(), 0, 'nothing is stored yet')
    const state = asked.searchParams.get('state')!
    const again = new URL((await local.press('alice', { connect: 'notes' })).location)
    t.not(again.searchParams.get('state'), state)
    t.not(again.searchParams.get('code_challenge'), asked.searchParams.get('code_challenge'), 'each has a verifier of its own')
  })

  t.test('a callback that is wrong in any way is a clear page, and stores nothing', async (t) => {
    const remote = await startRemote(t)
    const local = await startLocal(t, { notes: { url: remote.url, name: 'Notes' } })
    const fresh = async (user: string, decision?: 'approve' | 'deny'): Promise<URL> => new URL(await local.consent((await local.press(user, { connect: 'notes' })).location, user, decision))
    let users = 0
    const changed = async (change: (query: URLSearchParams) => void, who?: string, decision?: 'deny') => {
      const user = `user ${++users}`
      const callback = await fresh(user, decision)
      change(callback.searchParams)
      return await local.visit(callback.href, who ?? user)
    }
    for (const [title, ask, status, reason, text] of [
      ['no state', () => changed((query) => query.delete('state')), 400, 'connection_state', /not, or no longer, an answer/],
      ['a changed state', () => changed((query) => query.set('state', query.get('state')!.slice(0, -2) + 'AA')), 400, 'connection_state', /not, or no longer/],
      ['another user', () => changed(() => {}, 'bob'), 403, 'connection_for_another_user', /begun by another user/],
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

    const expired = await fresh('alice')
    const real = Date.now()
    t.capture(Date, 'now', () => real + 600_001)
    t.match(await local.visit(expired.href, 'alice'), { status: 400, html: /no longer/ }, 'a state is good for ten minutes')
    t.equal(local.rows(), 0)
  })

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
    t.equal(await local.connections.disconnect('alice', 'notes'), false, 'there is none any more')
    t.equal(local.rows(), 0)
    await t.rejects(job(sdk, local.connections, remote.url, 'alice', 'list_notes'), NotConnectedError)
    await local.connect('alice')
    await remote.stop()
    t.equal(await local.connections.disconnect('alice', 'notes'), true)
    t.equal(local.rows(), 0)
    await remote.start()
    t.strictSame(local.events.map(({ type }) => type), ['connection.made', 'connection.ended', 'connection.made', 'connection.ended'])
  })

  t.test('neither the database nor the log holds a token, and a copied row does not open', async (t) => {
    const remote = await startRemote(t)
    const local = await startLocal(t, { notes: { url: remote.url }, other: { url: remote.url } })
    await local.connect('alice')
    await local.edit('alice', 'notes', () => ({ refreshAt: 0 }))
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
    await local.edit('alice', 'notes', () => ({ refreshAt: 0 }))
    const other = (keys: string[]) => createConnections({ keys, store: sqliteConnectionStore({ path: local.path }), servers: { notes: { url: remote.url } } })
    const rotated = other([OTHER_KEY, KEY])
    const without = other([OTHER_KEY])
    t.teardown(async () => { await rotated.close(); await without.close() })
    t.equal(await without.isConnected('alice', 'notes'), false)
    await job(sdk, rotated, remote.url, 'alice', 'list_notes')
    t.equal(await without.isConnected('alice', 'notes'), true, 'refreshed, it needs the older key no more')
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

  t.test('a user may begin five times a minute and twenty times a day', async (t) => {
    const remote = await startRemote(t)
    const local = await startLocal(t, { notes: { url: remote.url } })
    const begin = async (local: Local, user = 'alice'): Promise<number> => (await local.press(user, { connect: 'notes' })).status
    for (let time = 0; time < 5; time++) t.equal(await begin(local), 303)
    t.equal(await begin(local), 429)
    t.equal(await begin(local, 'bob'), 303, 'each for themselves')
  })
}

function refreshes ({ events }: { events: Array<{ type: string }> }): number {
  return events.filter(({ type }) => type === 'token.refreshed').length
}
