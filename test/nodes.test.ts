import { DatabaseSync } from '@photostructure/sqlite'
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { performance } from 'node:perf_hooks'
import process from 'node:process'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import t, { type Test } from 'tap'
import { summarize } from '../dist/grants/tokens.js'
import { createToken, hashToken } from '../dist/protocol/secret.js'
import { postgresStore, type PostgresStoreOptions } from '../dist/store/postgres.js'
import { newRow } from '../dist/store/schema.js'
import { sqliteStore } from '../dist/store/sqlite.js'
import type { TokenRow, TokenStore } from '../dist/store/store.js'
import { CALLBACK, folder } from './app.js'
import { count, forEach, mintCode, startNodes, startProcess, tokenOf, type Answer, type AppNode, type AppOptions } from './node.js'
import { startPostgres } from './postgres.js'
import { row } from './store/contract.js'
import { freePort } from './scripts/free-port.js'

/** Waits for something to come true. */
async function until (what: () => boolean): Promise<void> {
  while (!what()) await sleep(1)
}

// A loaded machine may need several times what these tests take alone.
t.setTimeout(400_000)

const server = await startPostgres(t)

const onSqlite = (): AppOptions => ({ store: { sqlite: join(folder(), 'tokens.db') } })
const onPostgres = async (): Promise<AppOptions> => ({ store: { postgres: { connectionString: await server.database() } } })

/** The nth node, round and round. */
function nth<T> (list: readonly T[], index: number): T {
  return list[index % list.length]!
}

function seconds (since: number): string {
  return `${((performance.now() - since) / 1000).toFixed(1)} s`
}

/** To start a process takes longer than most of what they are for. */
const DEPLOYMENTS = [
  ['three processes on one SQLite file', await startNodes(t, 3, onSqlite())],
  ['four processes on PostgreSQL', await startNodes(t, 4, await onPostgres())]
] as const

t.test('of 32 redemptions of one code at once exactly one succeeds, and its grant is then revoked', async (t) => {
  const CODES = 300
  for (const [where, nodes] of [['one process on SQLite', await startNodes(t, 1, onSqlite())] as const, ...DEPLOYMENTS]) {
    await t.test(where, async (t) => {
      const codes = await Promise.all(Array.from({ length: CODES }, async (_, index) => await mintCode(`user ${index}`)))
      const startedAt = performance.now()
      const answers: Answer[] = []
      const winners: number[] = []
      const guarded: number[] = []
      await forEach(codes, 3, async (code) => {
        const round = await Promise.all(Array.from({ length: 32 }, async (_, index) => await nth(nodes, index).redeem(code)))
        answers.push(...round)
        const successes = round.filter(({ status }) => status === 200)
        winners.push(successes.length)
        for (const success of successes) {
          guarded.push(...await Promise.all(nodes.map(async (node) => await node.guard(tokenOf(success)))))
        }
      })
      t.comment(`${CODES} codes × 32: ${JSON.stringify(count(answers.map(({ status }) => status)))}, guard afterwards ${JSON.stringify(count(guarded))}, ${seconds(startedAt)}`)
      t.strictSame(count(winners), { 1: CODES })
      t.strictSame(count(answers.map(({ status }) => status)), { 200: CODES, 400: CODES * 31 })
      t.strictSame(count(answers.filter(({ status }) => status === 400).map(({ body }) => JSON.parse(body).error)), { invalid_grant: CODES * 31 })
      t.strictSame(count(guarded), { 401: CODES * nodes.length })
    })
  }
})

for (const [where, nodes] of DEPLOYMENTS) {
  t.test(`what was revoked on one node is refused by all others at the very next request: ${where}`, async (t) => {
    const ROUNDS = 30
    const startedAt = performance.now()
    const before: number[] = []
    const after: number[] = []

    // Other requests all the while, so that look-ups travel together.
    const over = new AbortController()
    const other = tokenOf(await nodes[0]!.redeem(await mintCode('other')))
    const background = Promise.all(nodes.map(async (node) => {
      const statuses: number[] = []
      while (!over.signal.aborted) statuses.push(...await Promise.all(Array.from({ length: 4 }, async () => await node.guard(other))), await sleep(2).then(() => 200))
      return statuses
    }))

    for (let round = 0; round < ROUNDS; round++) {
      const user = `user ${round}`
      const on = nth(nodes, round)
      const token = tokenOf(await nth(nodes, round + 1).redeem(await mintCode(user)))
      before.push(...await Promise.all(nodes.map(async (node) => await node.guard(token))))
      // Each node does either.
      if (Math.floor(round / nodes.length) % 2 === 0) t.equal((await on.giveBack(token)).status, 200)
      else t.equal((await on.disconnect(user, (await on.connectedApps(user)).ticket)).status, 200)
      after.push(...await Promise.all(nodes.map(async (node) => await node.guard(token))))
    }
    over.abort()
    const others = (await background).flat()
    t.comment(`${ROUNDS} revocations: before ${JSON.stringify(count(before))}, after ${JSON.stringify(count(after))}, meanwhile ${JSON.stringify(count(others))}, ${seconds(startedAt)}`)
    t.strictSame(count(before), { 200: ROUNDS * nodes.length })
    t.strictSame(count(after), { 401: ROUNDS * nodes.length })
    t.strictSame(count(others), { 200: others.length })
  })

  t.test(`a disconnect on one node while others redeem codes from before it leaves no live grant: ${where}`, async (t) => {
    const ROUNDS = 50
    const CODES = 6
    const startedAt = performance.now()
    const redeemed: Answer[] = []
    const disconnected: number[] = []
    const guarded: number[] = []
    let left = 0
    await forEach(Array.from({ length: ROUNDS }, (_, round) => round), 3, async (round) => {
      const user = `user ${round}`
      const on = nth(nodes, round)
      const issuedAt = Date.now()
      const codes = await Promise.all(Array.from({ length: CODES }, async () => await mintCode(user, issuedAt)))
      const tokens = [tokenOf(await on.redeem(await mintCode(user, issuedAt)))]
      const { ticket } = await on.connectedApps(user)
      const race = codes.map(async (code, index) => {
        await sleep(index % 3)
        return await nth(nodes, round + 1 + index).redeem(code)
      })
      if (Math.floor(round / nodes.length) % 2 === 0) await sleep(1)
      disconnected.push((await on.disconnect(user, ticket)).status)
      const answers = await Promise.all(race)
      redeemed.push(...answers)
      tokens.push(...answers.filter(({ status }) => status === 200).map(tokenOf))
      guarded.push(...await Promise.all(tokens.map(async (token, index) => await nth(nodes, index).guard(token))))
      left += (await nth(nodes, round + 1).connectedApps(user)).apps.length
    })
    t.comment(`${ROUNDS} rounds of ${CODES} codes: redeemed ${JSON.stringify(count(redeemed.map(({ status }) => status)))}, disconnected ${JSON.stringify(count(disconnected))}, guard afterwards ${JSON.stringify(count(guarded))}, ${seconds(startedAt)}`)
    t.strictSame(count(disconnected), { 200: ROUNDS })
    t.strictSame(Object.keys(count(redeemed.map(({ status }) => status))), ['200', '400'], 'some came before and some after, and nothing else happened')
    t.strictSame(count(guarded), { 401: guarded.length })
    t.equal(left, 0)
  })
}

async function openStore (t: Test, store: TokenStore): Promise<TokenStore> {
  await store.open()
  t.teardown(() => store.close())
  return store
}

for (const [name, open] of [
  ['sqliteStore', async (t: Test, count: number) => {
    const path = join(folder(), 'tokens.db')
    return await Promise.all(Array.from({ length: count }, async () => await openStore(t, sqliteStore({ path }))))
  }],
  ['postgresStore', async (t: Test, count: number) => {
    const connectionString = await server.database()
    return await Promise.all(Array.from({ length: count }, async () => await openStore(t, postgresStore({ connectionString, timeout: 30_000 }))))
  }]
] as const) {
  t.test(`issues race revocations, uses and each other on several stores and leave no live grant: ${name}`, async (t) => {
    const NOW = 1_800_000_000_000
    const startedAt = performance.now()
    const stores = await open(t, 4)
    const outcomes: string[] = []
    const failures: string[] = []
    const unavailable: unknown[] = []
    let rounds = 0
    // An outage is no answer: whoever asked asks again.
    const revoke = async (store: TokenStore, ...args: Parameters<TokenStore['revoke']>): Promise<void> => {
      // A SQLite store answers at once: let some issues come first.
      for (let turn = 0; turn < rounds % 8; turn++) await new Promise((resolve) => setImmediate(resolve))
      try {
        await store.revoke(...args)
      } catch (error) {
        unavailable.push((error as Error).cause)
        await revoke(store, ...args)
      }
    }
    const worker = async (first: number): Promise<void> => {
      for (let round = first; performance.now() - startedAt < 1500 && rounds < 3000; round += 8) {
        rounds++
        const userId = `user ${round}`
        const clientId = `client ${round}`
        const old = row({ userId, clientId })
        await nth(stores, round).issue(old)
        if (round % 3 === 0) await nth(stores, round).revoke({ grantId: old.id }, 'client_revoked', NOW + 1)
        const twice = row({ userId, clientId })
        const fresh = [row({ userId, clientId }), row({ userId, clientId }), twice, { ...twice, tokenHash: hashToken(`again ${round}`) }]
        const selector = ([{ userId, clientId }, { userId }, { clientId }] as const)[round % 3]!
        const late = round % 5
        const [results] = await Promise.all([
          Promise.all(fresh.map(async (each, index) => {
            for (let turn = 0; turn < (index * late) % 7; turn++) await new Promise((resolve) => setImmediate(resolve))
            return await nth(stores, index).issue(each, { codeIssuedAt: NOW + 10 })
          })),
          revoke(nth(stores, round + 1), selector, 'disconnected', NOW + 10),
          ...(round % 2 === 0 ? [revoke(nth(stores, round + 2), selector, 'disconnected', NOW + 10)] : []),
          (async () => { for (const { id } of [...fresh, old]) nth(stores, round + 3).touch(id, NOW) })()
        ])
        outcomes.push(...results)
        const live = await nth(stores, round + 2).list({ userId }, NOW)
        if (live.length > 0) failures.push(`round ${round}: ${live.length} live after ${results.join(', ')}`)
        for (const [index, result] of results.entries()) {
          const found = await nth(stores, round + index).findByTokenHash(fresh[index]!.tokenHash)
          if (result === 'issued' && found?.revokedAt == null) failures.push(`round ${round}: an issued grant is ${found === null ? 'gone' : 'live'}`)
        }
      }
    }
    await Promise.all(Array.from({ length: 8 }, async (_, index) => await worker(index)))
    t.comment(`${rounds} rounds: ${JSON.stringify(count(outcomes))}, asked again after ${JSON.stringify(count(unavailable))}, ${seconds(startedAt)}`)
    t.strictSame(failures, [])
    t.ok(rounds > 20)
  })

  t.test(`a later disconnect by a node whose clock is behind takes nothing back: ${name}`, async (t) => {
    const NOW = 1_800_000_000_000
    const [one, two] = await open(t, 2) as [TokenStore, TokenStore]
    for (const [selector, fields] of [
      [{ userId: 'alice', clientId: 'app' }, {}],
      [{ userId: 'bob' }, { userId: 'bob' }],
      [{ clientId: 'desk' }, { userId: 'carol', clientId: 'desk' }]
    ] as const) {
      await one.issue(row(fields))
      await one.revoke(selector, 'disconnected', NOW + 10)
      await two.revoke(selector, 'disconnected', NOW + 5)
      t.equal(await one.issue(row(fields), { codeIssuedAt: NOW + 7 }), 'disconnected', JSON.stringify(selector))
    }
  })
}

t.test('a statement of postgresStore that loses a deadlock is tried again', async (t) => {
  const NOW = 1_800_000_000_000
  const connectionString = await server.database()
  const store = await openStore(t, postgresStore({ connectionString: `${connectionString}?options=-c%20deadlock_timeout%3D2s`, timeout: 30_000 }))
  const [first, second] = [row(), row()]
  await store.issue(first)
  await store.issue(second)
  const [other, admin] = [new pg.Client(connectionString), new pg.Client(connectionString)]
  for (const client of [other, admin]) {
    await client.connect()
    t.teardown(() => client.end())
  }
  // PostgreSQL ends the statement of whoever looks first whether there is a deadlock: so this one never looks.
  await other.query("SET deadlock_timeout = '1h'")
  // Another node notes uses, or revokes by another column, and so meets the same rows in another order.
  const use = async (id: string): Promise<unknown> => await other.query('UPDATE access_tokens SET last_used_at = 1 WHERE id = $1', [id])
  await other.query('BEGIN')
  await use(second.id)
  const revoked = Promise.resolve(store.revoke({ userId: 'alice' }, 'disconnected', NOW)).catch((error: Error) => String(error.cause))
  const isWaiting = async (): Promise<boolean> => (await admin.query("SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")).rowCount === 1
  while (!await isWaiting()) await sleep(5)
  await use(first.id)
  await other.query('COMMIT')
  t.equal(await revoked, 2)
})

/** A pool whose statements wait for their turn, one by one. */
class TurnBasedPool {
  readonly #pool: pg.Pool
  #waiting: (() => Promise<unknown>) | undefined
  #arrived: (() => void) | undefined
  isDone = false

  constructor (pool: pg.Pool) {
    this.#pool = pool
  }

  on (): this { return this }
  off (): this { return this }

  async query (config: pg.QueryConfig): Promise<unknown> {
    return await new Promise((resolve, reject) => {
      this.#waiting = async () => await this.#pool.query(config).then(resolve, reject)
      this.#arrived?.()
    })
  }

  /** Lets the work run, one statement at a step. */
  async begin<T> (work: Promise<T>): Promise<T> {
    return await work.finally(() => {
      this.isDone = true
      this.#arrived?.()
    })
  }

  /** Runs the next statement to its end, if there is one. */
  async step (): Promise<void> {
    if (this.#waiting === undefined && !this.isDone) await new Promise<void>((resolve) => { this.#arrived = resolve })
    const run = this.#waiting
    this.#waiting = undefined
    await run?.()
    // What follows a statement happens before the next turn.
    await new Promise((resolve) => setImmediate(resolve))
  }
}

/** Every order in which so many steps of several actors can follow each other. */
function * schedules (steps: number[]): Generator<number[]> {
  if (steps.every((left) => left === 0)) yield []
  for (const [actor, left] of steps.entries()) {
    if (left === 0) continue
    for (const rest of schedules(steps.with(actor, left - 1))) yield [actor, ...rest]
  }
}

t.test('postgresStore: in whatever order the statements of issues and disconnects fall, no live grant and no open code is left', async (t) => {
  const NOW = 1_800_000_000_000
  const startedAt = performance.now()
  const connectionString = await server.database()
  const plain = await openStore(t, postgresStore({ connectionString }))
  const pool = new pg.Pool({ connectionString })
  t.teardown(() => pool.end())
  const selectors = (userId: string, clientId: string) => [{ userId, clientId }, { userId }, { clientId }] as const
  const failures: string[] = []
  const outcomes: string[] = []
  let orders = 0

  const play = async (schedule: number[], works: Array<(store: TokenStore) => Promise<unknown>>): Promise<unknown[]> => {
    orders++
    const actors = await Promise.all(works.map(async (work) => {
      const turns = new TurnBasedPool(pool)
      const store = postgresStore({ pool: turns as unknown as pg.Pool, migrate: false, preparedStatements: false, timeout: 30_000 })
      await store.open()
      return { turns, result: turns.begin(work(store)) }
    }))
    for (const actor of schedule) await actors[actor]!.turns.step()
    for (const { turns } of actors) while (!turns.isDone) await turns.step()
    return await Promise.all(actors.map(async ({ result }) => await result))
  }

  for (const before of ['a live grant', 'a grant that its client gave back', 'an earlier disconnect', 'nothing'] as const) {
    for (const kind of [0, 1, 2] as const) {
      for (const schedule of schedules([3, 2])) {
        const user = `user ${orders}`
        const client = `client ${orders}`
        const selector = selectors(user, client)[kind]
        const of = (): TokenRow => row({ userId: user, clientId: client })
        if (before !== 'nothing') {
          const old = of()
          await plain.issue(old)
          if (before === 'a grant that its client gave back') await plain.revoke({ grantId: old.id }, 'client_revoked', NOW)
          if (before === 'an earlier disconnect') await plain.revoke(selector, 'disconnected', NOW)
        }
        const [issued, revoked] = await play(schedule, [
          async (store) => await store.issue(of(), { codeIssuedAt: NOW + 10 }),
          async (store) => await store.revoke(selector, 'disconnected', NOW + 20)
        ]) as [string, number]
        const what = `${before}, ${Object.keys(selector)}, ${schedule.join('')}: ${issued}, ${revoked} revoked`
        outcomes.push(`${issued}, ${revoked} revoked`)
        if ((await plain.list({ userId: user }, NOW)).length > 0) failures.push(`${what}, and is live`)
        const later = await plain.issue(of(), { codeIssuedAt: NOW + 15 })
        if (later !== 'disconnected') failures.push(`${what}, and another code from before is ${later}`)
      }
    }
  }

  // Two codes and a disconnect.
  for (const schedule of schedules([2, 2, 2])) {
    const userId = `user ${orders}`
    const of = (): TokenRow => row({ userId })
    await plain.issue(of())
    const results = await play(schedule, [
      async (store) => await store.issue(of(), { codeIssuedAt: NOW + 10 }),
      async (store) => await store.issue(of(), { codeIssuedAt: NOW + 10 }),
      async (store) => await store.revoke({ userId, clientId: 'app' }, 'disconnected', NOW + 20)
    ])
    if ((await plain.list({ userId }, NOW)).length > 0) failures.push(`two codes, ${schedule.join('')}: ${results.join(', ')}, and one is live`)
  }
  t.comment(`${orders} orders: ${JSON.stringify(count(outcomes))}, ${failures.length} failures, ${seconds(startedAt)}`)
  t.strictSame(failures, [])
})

t.test('a node that is killed while it issues loses no token and no revocation that it answered', async (t) => {
  const KILLS = 20
  const startedAt = performance.now()
  // Each process has an app on either store, since most of this is waiting for processes to start.
  const runs = [['SQLite', onSqlite()] as const, ['PostgreSQL', await onPostgres()] as const].map(([where, app]) => ({
    where, app, issued: [] as string[], revoked: [] as string[], odd: [] as unknown[], wrong: [] as string[], unanswered: [] as number[]
  }))
  for (let kill = 0; kill <= KILLS; kill++) {
    const nodes = await startProcess(t, runs.map(({ app }) => app))
    await Promise.all(runs.map(async ({ issued, revoked, wrong }, index) => {
      const verify = async (tokens: string[], expected: number): Promise<void> => {
        // The last ones after each start, all of them after the last.
        await forEach(kill === KILLS ? tokens : tokens.slice(-50), 16, async (token) => {
          const status = await nodes[index]!.guard(token)
          if (status !== expected) wrong.push(`${status} instead of ${expected} after kill ${kill}`)
        })
      }
      await verify(issued, 200)
      await verify(revoked, 401)
    }))
    if (kill === KILLS) break

    const answers = runs.map(() => 0)
    let isKilled = false
    const load = runs.flatMap((run, index) => Array.from({ length: 12 }, async () => {
      const node = nodes[index]!
      for (;;) {
        const code = await mintCode(`user ${kill} ${answers[index]! % 5}`)
        if (isKilled) return
        try {
          const answer = await node.redeem(code)
          answers[index]!++
          if (answer.status !== 200) {
            run.odd.push(answer.status)
            continue
          }
          const token = tokenOf(answer)
          if (answers[index]! % 3 !== 0) {
            run.issued.push(token)
            continue
          }
          // Without an answer it may be revoked or not.
          const { status } = await node.giveBack(token)
          if (status === 200) run.revoked.push(token)
          else run.odd.push(status)
        } catch (error) {
          if (isKilled) run.unanswered.push(kill)
          else run.odd.push((error as Error).message)
          return
        }
      }
    }))
    const { process } = nodes[0]!
    await until(() => answers.every((count) => count >= 10 + kill * 5) || process.exitCode !== null || process.signalCode !== null)
    isKilled = true
    await nodes[0]!.stop('SIGKILL')
    await Promise.all(load)
  }
  for (const { where, issued, revoked, odd, wrong, unanswered } of runs) {
    t.comment(`${where}, ${KILLS} kills: ${issued.length} issued, ${revoked.length} revoked, ${unanswered.length} without an answer, ${wrong.length} wrong afterwards, ${seconds(startedAt)}`)
    t.strictSame(count(odd), {})
    t.ok(issued.length > KILLS && revoked.length > KILLS)
    // Now and then all that was asked has just been answered.
    t.ok(new Set(unanswered).size >= KILLS * 0.75, 'the kills came in the middle')
    t.strictSame(count(wrong), {})
  }
})

t.test('ten nodes that start at once on an empty database make one table, without an error', async (t) => {
  const startedAt = performance.now()
  const connectionString = await server.database()
  // Four processes, and ten stores more from this one.
  const [nodes] = await Promise.all([
    startNodes(t, 4, { store: { postgres: { connectionString } } }),
    Promise.all(Array.from({ length: 10 }, async () => await openStore(t, postgresStore({ connectionString }))))
  ])
  const client = new pg.Client(connectionString)
  await client.connect()
  const { rows } = await client.query("SELECT table_schema FROM information_schema.tables WHERE table_name = 'access_tokens'")
  const { rows: indexes } = await client.query("SELECT indexname FROM pg_indexes WHERE tablename = 'access_tokens'")
  await client.end()
  t.equal(rows.length, 1)
  t.equal(indexes.length, 6)
  const code = await mintCode('alice')
  const token = tokenOf(await nodes[0]!.redeem(code))
  t.strictSame(await Promise.all(nodes.map(async (node) => await node.guard(token))), [200, 200, 200, 200])
  t.strictSame(nodes.map((node) => node.output().replace(/{"ports":.*}\n/, '')), ['', '', '', ''])

  // The same again and again, with stores alone.
  for (let round = 0; round < 5; round++) {
    const connectionString = await server.database()
    const stores = await Promise.all(Array.from({ length: 10 }, async () => await openStore(t, postgresStore({ connectionString }))))
    t.same(await Promise.all(stores.map(async (store) => (await store.stats(0)).length)), Array(10).fill(0))
  }
  t.comment(`4 processes with 10 more stores, then 5 × 10 stores, ${seconds(startedAt)}`)
})

t.test('processes that start at once on a new SQLite file make one table, without an error', async (t) => {
  const startedAt = performance.now()
  const nodes = await startNodes(t, 5, onSqlite())
  const token = tokenOf(await nodes[0]!.redeem(await mintCode('alice')))
  t.strictSame(await Promise.all(nodes.map(async (node) => await node.guard(token))), [200, 200, 200, 200, 200])
  t.strictSame(nodes.map((node) => node.output().replace(/{"ports":.*}\n/, '')), ['', '', '', '', ''])

  // Closer together than processes start: each opens the file when the line comes.
  const opener = `
    import { createInterface } from 'node:readline'
    import { sqliteStore } from 'fastify-mcp-oauth/sqlite'
    console.log('ready')
    for await (const path of createInterface({ input: process.stdin })) {
      const store = sqliteStore({ path })
      try {
        await store.open()
        console.log(store.stats(0).length === 0 ? 'opened' : 'odd')
      } catch (error) {
        console.log(String(error.cause ?? error).replaceAll('\\n', ' '))
      }
      await store.close()
    }`
  const openers = await Promise.all(Array.from({ length: 5 }, async () => {
    const child = spawn('env', ['-u', 'NODE_OPTIONS', process.execPath, '--input-type=module', '-e', opener], { stdio: ['pipe', 'pipe', 'inherit'] })
    t.teardown(() => child.kill('SIGKILL'))
    const lines = child.stdout.setEncoding('utf8')
    await once(lines, 'data')
    return { child, lines }
  }))
  const said: string[] = []
  for (let round = 0; round < 30; round++) {
    const path = join(folder(), 'new.db')
    said.push(...await Promise.all(openers.map(async ({ child, lines }) => {
      const answer = once(lines, 'data') as Promise<[string]>
      child.stdin.write(`${path}\n`)
      return (await answer)[0].trim()
    })))
  }
  t.comment(`5 processes, then 30 × 5 openings of a new file: ${JSON.stringify(count(said))}, ${seconds(startedAt)}`)
  t.strictSame(count(said), { opened: 150 })
  await Promise.all(openers.map(async ({ child }) => {
    const ended = once(child, 'exit')
    child.stdin.end()
    await ended
  }))
})

/** What an older release may have made: fewer columns, no indexes. */
const OLD_TABLE = (bytes: string, time: string): string => `
  CREATE TABLE access_tokens (
    id text PRIMARY KEY NOT NULL, token_hash ${bytes} NOT NULL UNIQUE, user_id text, client_id text, client_name text, name text,
    scopes text NOT NULL, resource text, created_at ${time} NOT NULL, expires_at ${time}, last_used_at ${time}, revoked_at ${time}, revoked_reason text
  )`
const INDEXES = ['access_tokens_client', 'access_tokens_expired', 'access_tokens_revoked', 'access_tokens_user']

t.test('a table of an older release is upgraded, with every token in it still valid', async (t) => {
  const tokens = Array.from({ length: 500 }, () => createToken('oat_'))
  const old = tokens.map((token, index) => [`grant ${index}`, hashToken(token), `user ${index % 50}`, 'client', 'Client', 'read write', 1000 + index] as const)
  const columns = '(id, token_hash, user_id, client_id, client_name, scopes, created_at)'
  const check = async (t: Test, store: TokenStore, nodes: AppNode[], indexes: string[]): Promise<void> => {
    const statuses: number[] = []
    await forEach(tokens.keys(), 16, async (index) => { statuses.push(await nth(nodes, index).guard(tokens[index]!)) })
    t.comment(`${tokens.length} tokens: ${JSON.stringify(count(statuses))}`)
    t.strictSame(count(statuses), { 200: tokens.length })
    t.match(await store.findByTokenHash(hashToken(tokens[7]!)), { id: 'grant 7' })
    t.strictSame({ ...await store.find('grant 7'), tokenHash: null, lastUsedAt: null }, {
      ...newRow({ id: 'grant 7', tokenHash: null as unknown as Uint8Array, userId: 'user 7', clientId: 'client', clientName: 'Client', scopes: 'read write', createdAt: 1007 })
    })
    t.strictSame(indexes.filter((name) => INDEXES.includes(name)).sort(), INDEXES)
    t.equal(await store.issue(row(), { codeIssuedAt: 1 }), 'issued')
  }

  await t.test('SQLite', async (t) => {
    const path = join(folder(), 'tokens.db')
    const database = new DatabaseSync(path)
    t.teardown(() => database.close())
    database.exec(OLD_TABLE('blob', 'integer'))
    const insert = database.prepare(`INSERT INTO access_tokens ${columns} VALUES (?, ?, ?, ?, ?, ?, ?)`)
    database.exec('BEGIN')
    for (const values of old) insert.run(...values)
    database.exec('COMMIT')
    const nodes = await startNodes(t, 2, { store: { sqlite: path } })
    const store = await openStore(t, sqliteStore({ path }))
    await check(t, store, nodes, database.prepare("SELECT name FROM sqlite_master WHERE type = 'index'").all().map((index) => (index as { name: string }).name))
  })

  await t.test('PostgreSQL', async (t) => {
    const connectionString = await server.database()
    const client = new pg.Client(connectionString)
    await client.connect()
    t.teardown(() => client.end())
    await client.query(OLD_TABLE('bytea', 'bigint'))
    for (const values of old) await client.query(`INSERT INTO access_tokens ${columns} VALUES ($1, $2, $3, $4, $5, $6, $7)`, [...values])
    const nodes = await startNodes(t, 2, { store: { postgres: { connectionString } } })
    const store = await openStore(t, postgresStore({ connectionString }))
    await check(t, store, nodes, (await client.query("SELECT indexname AS name FROM pg_indexes WHERE tablename = 'access_tokens'")).rows.map(({ name }) => name))
  })
})

t.test('a table that lacks nothing but an index gets it', async (t) => {
  await t.test('SQLite', async (t) => {
    const path = join(folder(), 'tokens.db')
    await (await openStore(t, sqliteStore({ path }))).close()
    const database = new DatabaseSync(path)
    t.teardown(() => database.close())
    database.exec('DROP INDEX access_tokens_expired')
    await openStore(t, sqliteStore({ path }))
    t.equal(database.prepare("SELECT name FROM sqlite_master WHERE name = 'access_tokens_expired'").all().length, 1)
  })
  await t.test('PostgreSQL', async (t) => {
    const connectionString = await server.database()
    await openStore(t, postgresStore({ connectionString }))
    const client = new pg.Client(connectionString)
    await client.connect()
    t.teardown(() => client.end())
    await client.query('DROP INDEX access_tokens_expired')
    await openStore(t, postgresStore({ connectionString }))
    t.equal((await client.query("SELECT 1 FROM pg_indexes WHERE indexname = 'access_tokens_expired'")).rowCount, 1)
  })
})

const redisServer = ((): string | undefined => {
  try {
    execFileSync('redis-server', ['--version'], { stdio: 'ignore' })
    return 'redis-server'
  } catch {
    return undefined
  }
})()

t.test('nodes that share a Redis share their limits', {
  skip: redisServer === undefined && process.env.TEST_REDIS_URL === undefined ? 'needs redis-server or TEST_REDIS_URL' : false
}, async (t) => {
  const startedAt = performance.now()
  let redis = process.env.TEST_REDIS_URL
  if (redis === undefined) {
    const port = await freePort()
    const child = spawn('redis-server', ['--port', String(port), '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no', '--dir', folder()], { stdio: ['ignore', 'pipe', 'inherit'] })
    const ended = once(child, 'exit')
    t.teardown(async () => {
      child.kill('SIGKILL')
      await ended
    })
    await new Promise<void>((resolve) => child.stdout.on('data', (chunk) => { if (String(chunk).includes('Ready to accept')) resolve() }))
    redis = `redis://127.0.0.1:${port}`
  }
  const nodes = await startNodes(t, 2, { ...await onPostgres(), redis, rateLimit: { nameSpace: `mcp-oauth-test-${process.pid}-`, register: { max: 5, timeWindow: 600_000 } } })
  const statuses: number[] = []
  for (let turn = 0; turn < 12; turn++) {
    const answer = await nth(nodes, turn).request('/oauth/register', { headers: { 'content-type': 'application/json' }, body: JSON.stringify({ redirect_uris: [CALLBACK] }) })
    statuses.push(answer.status)
    if (answer.status === 429) t.ok(Number(answer.headers['retry-after']) > 0)
  }
  t.comment(`12 registrations on two nodes, 5 allowed: ${JSON.stringify(count(statuses))}, ${seconds(startedAt)}`)
  t.strictSame(statuses, [201, 201, 201, 201, 201, 429, 429, 429, 429, 429, 429, 429])
})

t.test('every statement of postgresStore uses an index, with a million rows', async (t) => {
  const ROWS = 1_000_000
  const NOW = 1_800_000_000_000
  const startedAt = performance.now()
  const connectionString = await server.database()
  const pool = new pg.Pool({ connectionString, max: 1 })
  t.teardown(() => pool.end())
  const statements = new Map<string, { text: string, values: unknown[] }>()
  const recording = new Proxy(pool, {
    get (target, property) {
      if (property !== 'query') return Reflect.get(target, property, target)
      return async (config: pg.QueryConfig | string) => {
        if (typeof config === 'string') return await target.query(config)
        statements.set(config.name?.replace('mcp_oauth_', '') ?? config.text.trim().slice(0, 25), { text: config.text, values: config.values ?? [] })
        return await target.query(config)
      }
    }
  })
  const store = postgresStore({ pool: recording, timeout: 60_000 } as PostgresStoreOptions)
  await store.open()
  statements.clear()

  // 200,000 users, 1,000 clients, of which one has a third of all grants; some were revoked, some have expired.
  const hash = (prefix: string, id: string): string => `sha256(convert_to('${prefix}' || ${id}, 'UTF8'))`
  await pool.query('SET synchronous_commit = off; SET maintenance_work_mem = \'256MB\'')
  // Indexes are made after the rows, which takes half as long.
  const { rows: indexes } = await pool.query<{ name: string, definition: string }>("SELECT indexname AS name, indexdef AS definition FROM pg_indexes WHERE tablename = 'access_tokens'")
  for (const { name } of indexes) await pool.query(`ALTER TABLE access_tokens DROP CONSTRAINT IF EXISTS ${name}; DROP INDEX IF EXISTS ${name}`)
  await pool.query(`
    INSERT INTO access_tokens (id, token_hash, user_id, client_id, scopes, created_at, expires_at, revoked_at, revoked_reason)
    SELECT 'grant ' || n, ${hash('token ', 'n')}, 'user ' || n % 200000, 'client ' || CASE WHEN n % 100 = 7 THEN NULL WHEN n % 10 < 3 THEN 0 WHEN n % 50 = 9 THEN 1 ELSE 2 + n % 1000 END, 'read', ${NOW} + n,
      CASE WHEN n % 10 = 1 THEN ${NOW} + 1000 * n END,
      CASE WHEN n % 10 = 2 THEN ${NOW} + 1000 * n END, CASE WHEN n % 10 = 2 THEN 'disconnected' END
    FROM generate_series(1, ${ROWS}) AS n`)
  for (const { definition } of indexes) await pool.query(definition)
  await pool.query('VACUUM ANALYZE access_tokens')
  t.comment(`${ROWS} rows after ${seconds(startedAt)}`)

  const fresh = row({ userId: 'user 5', clientId: 'client 5', refreshHash: hashToken('refresh') })
  t.equal(await store.issue(fresh, { codeIssuedAt: NOW }), 'issued')
  t.equal(await store.issue(fresh), 'replayed')
  await store.issue(row({ userId: 'user 6', clientId: 'client 6' }))
  await store.revoke({ userId: 'user 6', clientId: 'client 6' }, 'disconnected', NOW + 10)
  t.equal(await store.issue(row({ userId: 'user 6', clientId: 'client 6' }), { codeIssuedAt: NOW }), 'disconnected')
  await store.revoke({ userId: 'user 6' }, 'disconnected', NOW + 10)
  await store.revoke({ clientId: 'client 6' }, 'disconnected', NOW + 10)
  await Promise.all(Array.from({ length: 100 }, async (_, index) => await store.findByTokenHash(hashToken(`token ${index + 1}`))))
  t.match(await store.findByTokenHash(hashToken('token 5')), { id: 'grant 5' })
  t.match(await store.find('grant 5'), { userId: 'user 5' })
  t.ok((await store.list({ userId: 'user 5' }, NOW)).length > 0)
  t.equal(await store.rotate(fresh.id, hashToken('refresh'), { tokenHash: hashToken('a'), refreshHash: hashToken('b'), expiresAt: null, refreshExpiresAt: null, refreshedAt: NOW }), false)
  t.equal(await store.purge(NOW + 100_000, 500) > 0, true)
  t.equal(summarize(await store.stats(NOW)).total > ROWS - 1000, true)
  t.equal(await store.count({ clientId: 'client 1' }) > 0, true)
  t.equal(await store.count({ endedBefore: NOW + 100_000 }) > 0, true)
  for (let use = 1; use <= 1000; use++) store.touch(`grant ${use * 7}`, NOW)
  await store.close()

  // Hard cases: the client of nearly a third of all users, and one with 20,000 grants to end.
  const many = [...statements].find(([, { text, values }]) => /^\s*UPDATE/.test(text) && values.at(-1) === 'client 6' && !values.includes('user 6'))![1]
  statements.set('revoke a client with many grants', { ...many, values: many.values.with(-1, 'client 1') })
  for (const [name, { text, values }] of [...statements]) {
    if (values.includes('client 6') && values.includes('user 6') && /^\s*SELECT/.test(text)) statements.set(`${name} of a popular client`, { text, values: values.map((value) => value === 'client 6' ? 'client 0' : value) })
  }

  const used = new Set<string>()
  for (const [name, { text, values }] of statements) {
    const plans = new Map<string, PlanNode>()
    const explain = async (): Promise<PlanNode> => (await pool.query(`EXPLAIN (FORMAT JSON) EXECUTE planned (${values.map(literal).join(', ')})`)).rows[0]['QUERY PLAN'][0].Plan
    await pool.query(`PREPARE planned AS ${text}`)
    plans.set('first', await explain())
    // From the sixth time on PostgreSQL may take one plan for all values, where it finds that no worse.
    for (let time = 2; time <= 7; time++) plans.set('seventh', await explain())
    await pool.query('SET plan_cache_mode = force_generic_plan')
    plans.set('generic', await explain())
    await pool.query('RESET plan_cache_mode; DEALLOCATE planned')
    const told = [...plans].map(([kind, plan]) => {
      const nodes = planNodes(plan)
      const scans = nodes.flatMap((node) => [node['Index Name'], ...node['Conflict Arbiter Indexes'] ?? []]).filter((index) => index !== undefined)
      for (const index of scans) used.add(index)
      const sequential = nodes.some((node) => node['Node Type'] === 'Seq Scan' && node['Relation Name'] === 'access_tokens')
      if (!text.includes('count(*)') && kind !== 'generic') {
        t.notOk(sequential, `${name}, ${kind} plan: reads not the whole table`)
        t.not(scans.length, 0, `${name}, ${kind} plan: uses an index`)
      }
      return `${kind} plan ${[...new Set(scans)].join(' + ').replaceAll('access_tokens_', '')}${sequential ? ' Seq Scan' : ''} (cost ${Math.round(plan['Total Cost'])})`
    })
    t.comment(`${name}: ${told.filter((plan, index) => told.findIndex((other) => other.split(' plan ')[1] === plan.split(' plan ')[1]) === index).join(', ')}`)
  }
  const { rows: all } = await pool.query<{ name: string }>("SELECT indexname AS name FROM pg_indexes WHERE tablename = 'access_tokens'")
  t.strictSame(all.map(({ name }) => name).filter((name) => !used.has(name)), [], 'and every index is used by one')
  t.comment(`${statements.size} statements, ${all.length} indexes, ${seconds(startedAt)}`)
})

interface PlanNode {
  'Node Type': string
  'Total Cost': number
  'Relation Name'?: string
  'Index Name'?: string
  'Conflict Arbiter Indexes'?: string[]
  Plans?: PlanNode[]
}

function planNodes (node: PlanNode): PlanNode[] {
  return [node, ...(node.Plans ?? []).flatMap(planNodes)]
}

function literal (value: unknown): string {
  if (value === null || value === undefined) return 'NULL'
  if (Array.isArray(value)) return `ARRAY[${value.map(literal).join(', ')}]`
  if (Buffer.isBuffer(value)) return `'\\x${value.toString('hex')}'::bytea`
  return typeof value === 'number' ? String(value) : pg.escapeLiteral(String(value))
}
