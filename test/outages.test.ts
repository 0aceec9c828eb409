import { chmodSync, existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { performance } from 'node:perf_hooks'
import process from 'node:process'
import { setTimeout as sleep } from 'node:timers/promises'
import { DatabaseSync } from '@photostructure/sqlite'
import pg from 'pg'
import t, { type Test } from 'tap'
import { summarize } from '../dist/grants/tokens.js'
import { postgresStore } from '../dist/store/postgres.js'
import { sqliteStore } from '../dist/store/sqlite.js'
import { bearer, folder, form } from './app.js'
import { count, mintCode, redemption, startNode, startWire, tokenOf, type Answer, type AppNode } from './node.js'
import { startPostgres } from './postgres.js'

// A loaded machine may need several times what these tests take alone.
t.setTimeout(300_000)

/** Milliseconds after which the stores of these tests give up, and after which a request counts as hanging. */
const TIMEOUT = 1000
const HANGING = 6000

const server = await startPostgres(t)
/** A server that the tests did not start they cannot stop. */
const needsOwnServer = process.env.TEST_POSTGRES_URL === undefined ? {} : { skip: 'needs a server of its own, without TEST_POSTGRES_URL' }

function seconds (since: number): string {
  return `${((performance.now() - since) / 1000).toFixed(1)} s`
}

interface Load {
  guard: Answer[]
  redeemed: Answer[]
  hanging: string[]
  end: () => Promise<void>
}

/** Calls and redemptions on the node, of which each must be answered. */
function startLoad (node: AppNode, token: string): Load {
  const load: Load = { guard: [], redeemed: [], hanging: [], end: async () => {} }
  const over = new AbortController()
  const repeat = async (answers: Answer[], work: () => Promise<Answer>): Promise<void> => {
    while (!over.signal.aborted) {
      try {
        answers.push(await work())
      } catch (error) {
        load.hanging.push((error as Error).message)
      }
      await sleep(2)
    }
  }
  const workers = [
    ...Array.from({ length: 6 }, async () => await repeat(load.guard, async () => await node.request('/mcp', { headers: bearer(token), timeout: HANGING }))),
    ...Array.from({ length: 4 }, async () => await repeat(load.redeemed, async () => await node.request('/oauth/token', {
      headers: { 'content-type': 'application/x-www-form-urlencoded' }, body: form(redemption(await mintCode('alice'))), timeout: HANGING
    })))
  ]
  load.end = async () => {
    over.abort()
    await Promise.all(workers)
  }
  return load
}

/** Waits for something to come true, as long as a loaded machine may need. */
async function until (what: () => boolean | Promise<boolean>, longest = 30_000): Promise<boolean> {
  for (const startedAt = performance.now(); performance.now() - startedAt < longest; await sleep(10)) if (await what()) return true
  return false
}

/** What every outage must look like from outside: 503 with Retry-After, soon, and nothing worse. */
function checkLoad (t: Test, name: string, load: Load): void {
  for (const kind of ['guard', 'redeemed'] as const) {
    const answers = load[kind]
    const refused = answers.filter(({ status }) => status === 503)
    const slowest = Math.round(Math.max(...refused.map(({ took }) => took)))
    t.comment(`${name}, ${kind}: ${JSON.stringify(count(answers.map(({ status }) => status)))}, slowest 503 after ${slowest} ms`)
    t.strictSame(Object.keys(count(answers.map(({ status }) => status))), ['200', '503'], `${name}, ${kind}`)
    t.strictSame(count(refused.map(({ headers, body }) => `${headers['retry-after']} ${JSON.parse(body).error}`)), { '5 temporarily_unavailable': refused.length })
  }
  t.strictSame(load.hanging, [], `${name}: no request hangs`)
}

t.test('while PostgreSQL is away everything is 503 and nothing hangs, and it works again by itself', needsOwnServer, async (t) => {
  const startedAt = performance.now()
  const connectionString = await server.database()
  const nodes = await Promise.all([
    startNode(t, { store: { postgres: { connectionString, timeout: TIMEOUT } } }),
    startNode(t, { store: { postgres: { timeout: TIMEOUT }, pool: { connectionString } } })
  ])
  const token = tokenOf(await nodes[0]!.redeem(await mintCode('alice')))
  const loads = nodes.map((node) => startLoad(node, token))
  const has = async (status: number, kind: 'guard' | 'redeemed', from: number[]): Promise<boolean> =>
    await until(() => loads.every((load, index) => load[kind].slice(from[index]).some((answer) => answer.status === status)))
  const mark = (kind: 'guard' | 'redeemed'): number[] => loads.map((load) => load[kind].length)

  for (let outage = 1; outage <= 2; outage++) {
    t.ok(await has(200, 'guard', mark('guard')) && await has(200, 'redeemed', mark('redeemed')), `it works before outage ${outage}`)
    await server.stop()
    t.ok(await has(503, 'guard', mark('guard')) && await has(503, 'redeemed', mark('redeemed')), 'it is away')
    await sleep(300)
    await server.start()
    const backAt = performance.now()
    t.ok(await has(200, 'guard', mark('guard')) && await has(200, 'redeemed', mark('redeemed')), 'it works again')
    t.comment(`works again ${Math.round(performance.now() - backAt)} ms after the server`)
  }
  // Nothing happens while it goes away: only idle connections break.
  await Promise.all(loads.map(async (load) => await load.end()))
  await sleep(100)
  await server.stop()
  await sleep(200)
  await server.start()
  for (const node of nodes) {
    t.equal(node.process.exitCode, null, node.output().slice(-500))
    t.ok(await until(async () => await node.guard(token) === 200))
  }
  loads.forEach((load, index) => checkLoad(t, ['own pool', 'pool of the app'][index]!, load))
  t.match(nodes[0]!.output(), /"reason":"store_unavailable"/, 'and the log says why')
  t.comment(seconds(startedAt))
})

t.test('while PostgreSQL is silent everything is 503 within the timeout, and it works again by itself', async (t) => {
  const startedAt = performance.now()
  const wire = await startWire(t, await server.database())
  const nodes = await Promise.all([
    startNode(t, { store: { postgres: { connectionString: wire.url, timeout: TIMEOUT } } }),
    startNode(t, { store: { postgres: { timeout: TIMEOUT }, pool: { connectionString: wire.url } } })
  ])
  const token = tokenOf(await nodes[0]!.redeem(await mintCode('alice')))
  const loads = nodes.map((node) => startLoad(node, token))
  t.ok(await until(() => loads.every(({ guard, redeemed }) => guard.length > 20 && redeemed.length > 20)), 'it works before')
  wire.freeze()
  await sleep(4 * TIMEOUT)
  wire.thaw()
  const backAt = performance.now()
  const marks = loads.map(({ guard }) => guard.length)
  t.ok(await until(() => loads.every(({ guard }, index) => guard.slice(marks[index]).some(({ status }) => status === 200))), 'it works again')
  t.comment(`works again after ${Math.round(performance.now() - backAt)} ms`)
  await Promise.all(loads.map(async (load) => await load.end()))
  loads.forEach((load, index) => checkLoad(t, ['own pool', 'pool of the app'][index]!, load))
  for (const node of nodes) t.equal(node.process.exitCode, null, node.output().slice(-500))
  t.comment(seconds(startedAt))
})

t.test('a look-up takes no longer than the timeout, also one that waits for others', async (t) => {
  // Long beside the time that a loaded machine loses: one that waited for others first would take nearly twice as long.
  const timeout = 2 * TIMEOUT
  const wire = await startWire(t, await server.database())
  const store = postgresStore({ connectionString: wire.url, timeout })
  await store.open()
  t.teardown(() => store.close())
  wire.freeze()
  const took: number[] = []
  await Promise.all(Array.from({ length: 8 }, async (_, index) => {
    await sleep(index * 40)
    const startedAt = performance.now()
    await t.rejects(async () => await store.findByTokenHash(Buffer.alloc(32)), { name: 'StoreUnavailableError' })
    took.push(Math.round(performance.now() - startedAt))
  }))
  wire.thaw()
  t.comment(`with a timeout of ${timeout} ms: ${took.join(', ')} ms`)
  t.ok(Math.max(...took) < 1.5 * timeout)
})

t.test('PostgreSQL dying while a node makes its table is an error of that start, not a crash', needsOwnServer, async (t) => {
  const connectionString = await server.database()
  const holder = new pg.Client(connectionString)
  holder.on('error', () => {})
  await holder.connect()
  // The table that the node wants to make is being made by another, who takes their time.
  await holder.query('BEGIN; CREATE TABLE access_tokens (id int)')
  const starting = startNode(t, { store: { postgres: { connectionString, timeout: 20_000 } } }).then(() => 'started', (error: Error) => error.message)
  const admin = new pg.Client(connectionString)
  admin.on('error', () => {})
  await admin.connect()
  t.ok(await until(async () => (await admin.query("SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")).rowCount === 1, 8000))
  await server.stop()
  const said = await starting
  await server.start()
  t.match(said, /StoreUnavailableError/)
  t.notMatch(said, /Unhandled 'error' event/)
})

t.test('a server that ends its connections while a node closes crashes nothing', async (t) => {
  const url = await server.database()
  const wire = await startWire(t, url)
  const node = await startNode(t, { store: { postgres: { connectionString: wire.url, timeout: TIMEOUT } } })
  await Promise.all(Array.from({ length: 10 }, async () => await node.redeem(await mintCode('alice'))))
  const admin = new pg.Client(url)
  await admin.connect()
  // The server's last words and the node's good-bye pass each other on the wire.
  wire.freeze('answers')
  const sent = wire.sent()
  const { rowCount } = await admin.query('SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND state IS NOT NULL')
  await admin.end()
  const stopped = node.stop()
  await until(() => wire.sent() > sent, 5000)
  wire.thaw()
  t.equal(await stopped, 0, node.output().slice(-600))
  t.comment(`${rowCount} connections`)
})

const onLinux = process.platform === 'linux' ? {} : { skip: 'needs Linux' }

t.test('a full disk under SQLite refuses what it cannot keep with 503, and works again when there is room', onLinux, async (t) => {
  const startedAt = performance.now()
  const path = join(folder(), 'tokens.db')
  // No file may become larger than 256 KiB: what the journal cannot hold fails, as on a full disk.
  const node = await startNode(t, { store: { sqlite: path }, under: ['bash', '-c', 'trap "" XFSZ; ulimit -S -f 256; exec "$@"', '-'] })
  const tokens = [tokenOf(await node.redeem(await mintCode('alice')))]
  const refused: Answer[] = []
  for (let attempt = 0; attempt < 400 && refused.length < 20; attempt++) {
    const answer = await node.redeem(await mintCode('alice'))
    if (answer.status === 200) tokens.push(tokenOf(answer))
    else refused.push(answer)
  }
  t.strictSame(count(refused.map(({ status, headers, body }) => `${status} ${headers['retry-after']} ${JSON.parse(body).error}`)), { '503 5 temporarily_unavailable': 20 })
  const statuses: number[] = []
  for (const token of tokens) statuses.push(await node.guard(token))
  t.strictSame(count(statuses), { 200: tokens.length }, 'what was issued before works, and nothing is 401')
  t.equal((await node.giveBack(tokens[0]!)).status, 503, 'a revocation that cannot be kept is not confirmed')
  t.equal(await node.guard(tokens[0]!), 200)
  t.match(node.output(), /"reason":"store_unavailable"/, 'logged')
  t.match(node.output(), /disk I\/O error|full/, 'with its cause')

  // Room: the journal is emptied into the file, which is still small.
  const database = new DatabaseSync(path)
  database.exec('PRAGMA wal_checkpoint(TRUNCATE)')
  database.close()
  const later = await node.redeem(await mintCode('alice'))
  t.equal(later.status, 200)
  t.equal(await node.guard(tokenOf(later)), 200)
  t.equal((await node.giveBack(tokens[0]!)).status, 200)
  t.equal(await node.guard(tokens[0]!), 401)
  t.equal(await node.stop(), 0)
  const store = sqliteStore({ path })
  await store.open()
  t.equal(summarize(await store.stats(Date.now())).active, tokens.length, 'the file has what was answered, and no more')
  await store.close()
  t.comment(`${tokens.length} issued, ${refused.length} refused, ${seconds(startedAt)}`)
})

const NOBODY = 65534

for (const [state, isOpen, mode] of [['in use by another process', true, 0o555], ['alone in a folder that takes files', false, 0o777]] as const) {
  t.test(`with a read-only SQLite file, ${state}, tokens work and writes are 503`, onLinux, async (t) => {
    const startedAt = performance.now()
    const home = mkdtempSync(join(tmpdir(), 'mcp-oauth-read-only-'))
    t.teardown(() => rmSync(home, { recursive: true, force: true }))
    const path = join(home, 'tokens.db')
    const owner = await startNode(t, { store: { sqlite: path } })
    const token = tokenOf(await owner.redeem(await mintCode('alice')))
    if (!isOpen) t.equal(await owner.stop(), 0)
    for (const file of ['', '-wal', '-shm']) if (existsSync(path + file)) chmodSync(path + file, 0o444)
    chmodSync(home, mode)
    t.teardown(() => chmodSync(home, 0o755))
    // To root nothing is read-only.
    const node = await startNode(t, { store: { sqlite: path }, ...(process.getuid?.() === 0 && { user: NOBODY }) })
    const answers = await Promise.all(Array.from({ length: 10 }, async () => await node.redeem(await mintCode('alice'))))
    t.strictSame(count(answers.map(({ status, headers }) => `${status} ${headers['retry-after']}`)), { '503 5': 10 })
    t.equal((await node.giveBack(token)).status, 503)
    t.equal(await node.guard(token), 200)
    t.match(node.output(), /readonly database/, 'logged with its cause')
    if (isOpen) {
      t.equal((await owner.giveBack(token)).status, 200)
      t.equal(await node.guard(token), 401, 'and what the other process revokes is refused')
    }
    // A second after its first use a token's use is noted, which fails without a sound.
    await sleep(1100)
    t.equal(node.process.exitCode, null)
    t.equal(await node.stop(), 0)
    t.comment(seconds(startedAt))
  })
}

t.test('where SQLite may not even read, a node says so and does not start', onLinux, async (t) => {
  const home = mkdtempSync(join(tmpdir(), 'mcp-oauth-read-only-'))
  t.teardown(() => {
    chmodSync(home, 0o755)
    rmSync(home, { recursive: true, force: true })
  })
  const path = join(home, 'tokens.db')
  t.equal(await (await startNode(t, { store: { sqlite: path } })).stop(), 0)
  chmodSync(path, 0o444)
  // The journal's own files can neither be found nor made.
  chmodSync(home, 0o555)
  await t.rejects(startNode(t, { store: { sqlite: path }, ...(process.getuid?.() === 0 && { user: NOBODY }) }), { message: /StoreUnavailableError[^]*readonly database/ })
})

t.test('a node that closes notes the last uses and ends by itself, whatever its store', async (t) => {
  const startedAt = performance.now()
  const path = join(folder(), 'tokens.db')
  const connectionString = await server.database()
  for (const [name, options, reopen] of [
    ['SQLite', { sqlite: path }, () => sqliteStore({ path })],
    ['PostgreSQL', { postgres: { connectionString } }, () => postgresStore({ connectionString })],
    ['PostgreSQL through a pool of the app', { postgres: {}, pool: { connectionString } }, () => postgresStore({ connectionString })]
  ] as const) {
    const user = `user of ${name}`
    const node = await startNode(t, { store: options })
    const tokens = await Promise.all(Array.from({ length: 5 }, async () => tokenOf(await node.redeem(await mintCode(user)))))
    t.strictSame(await Promise.all(tokens.map(async (token) => await node.guard(token))), [200, 200, 200, 200, 200])
    const stopAt = performance.now()
    t.equal(await node.stop(), 0, `${name}: ends by itself`)
    t.comment(`${name}: ended ${Math.round(performance.now() - stopAt)} ms after the signal`)
    t.match(node.output(), /{"closed":true}/)
    if ('pool' in options) t.match(node.output(), /{"poolStillAnswers":10}/, 'the pool of the app is open after the app has closed')
    const store = reopen()
    await store.open()
    t.strictSame((await store.list({ userId: user }, Date.now())).map(({ lastUsedAt }) => lastUsedAt !== null && lastUsedAt > Date.now() - 60_000), [true, true, true, true, true], name)
    await store.close()
  }
  const idle = await startNode(t, { store: { postgres: { connectionString } } })
  t.equal(await idle.stop(), 0, 'also when nobody asked it anything')
  t.comment(seconds(startedAt))
})
