import { DatabaseSync } from '@photostructure/sqlite'
import { chmodSync, existsSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { summarize } from '../../dist/grants/tokens.js'
import { findMark } from '../../dist/store/schema.js'
import { LastUsed } from '../../dist/store/last-used.js'
import { sqliteStore } from '../../dist/store/sqlite.js'
import { StoreUnavailableError, type TokenStore } from '../../dist/store/store.js'
import { folder } from '../app.js'
import { row, storeContract } from './contract.js'

let path = ''

async function openAt (t: Test, file: string): Promise<TokenStore> {
  const store = sqliteStore({ path: file })
  await store.open()
  t.teardown(() => store.close())
  return store
}

storeContract(t, 'sqliteStore', {
  open: async (t) => {
    path = join(folder(), 'tokens.db')
    return await openAt(t, path)
  },
  reopen: async (t) => await openAt(t, path)
})

t.test('the file is in WAL mode and commits wait for the disk', async (t) => {
  const file = join(folder(), 'tokens.db')
  await openAt(t, file)
  const database = new DatabaseSync(file)
  t.strictSame({ ...database.prepare('PRAGMA journal_mode').get() }, { journal_mode: 'wal' })
  database.close()
})

t.test('issues that arrive together share one transaction', async (t) => {
  const file = join(folder(), 'tokens.db')
  const store = await openAt(t, file)
  const database = new DatabaseSync(file)
  t.teardown(() => database.close())
  const commits = () => (database.prepare('PRAGMA data_version').get() as { data_version: number }).data_version
  const before = commits()
  await Promise.all(Array.from({ length: 50 }, async () => await store.issue(row())))
  t.equal(commits() - before, 1)
  t.equal(summarize(await store.stats(0)).total, 50)
})

t.test('a row that breaks a batch is reported, and the batch can be issued again', async (t) => {
  const store = await openAt(t, join(folder(), 'tokens.db'))
  const good = row()
  const bad = row({ scopes: null as unknown as string })
  const [first, second] = await Promise.allSettled([store.issue(good), store.issue(bad)])
  t.equal(first.status, 'rejected')
  t.equal(second.status, 'rejected')
  t.equal(await store.issue(good), 'issued')
})

t.test('every query uses an index', async (t) => {
  const file = join(folder(), 'tokens.db')
  await openAt(t, file)
  const database = new DatabaseSync(file)
  t.teardown(() => database.close())
  const plan = (sql: string): string => database.prepare(`EXPLAIN QUERY PLAN ${sql}`).all().map((step) => String((step as { detail: string }).detail)).join('; ')
  const cases: Array<[sql: string, index: RegExp]> = [
    ['SELECT * FROM access_tokens WHERE token_hash = ?', /sqlite_autoindex_access_tokens_2 \(token_hash=\?\)/],
    ['SELECT * FROM access_tokens WHERE id = ?', /sqlite_autoindex_access_tokens_1 \(id=\?\)/],
    [findMark('?'), /access_tokens_user \(user_id=\? AND client_id=\?\).*access_tokens_user \(user_id=\? AND client_id=\?\).*access_tokens_user \(user_id=\? AND client_id=\?\)/],
    ['SELECT * FROM access_tokens WHERE user_id = ? AND revoked_at IS NULL ORDER BY created_at, id', /access_tokens_user \(user_id=\?\)/],
    ["UPDATE access_tokens SET revoked_at = 1, revoked_reason = 'x' WHERE client_id = ?", /access_tokens_client \(client_id=\?\)/],
    ['SELECT id FROM access_tokens WHERE revoked_at < ?1 OR expires_at < ?1 LIMIT 5', /access_tokens_revoked.*access_tokens_expired/]
  ]
  for (const [sql, index] of cases) t.match(plan(sql), index, sql)
})

t.test('a database that cannot be used is StoreUnavailableError, and nothing else is', async (t) => {
  await t.rejects(async () => await sqliteStore({ path: join(folder(), 'no', 'such', 'folder', 'tokens.db') }).open(), StoreUnavailableError)

  const store = await openAt(t, join(folder(), 'tokens.db'))
  await store.close()
  await t.rejects(async () => await store.issue(row()), StoreUnavailableError)
  const lookups = await Promise.allSettled([row(), row()].map(async ({ tokenHash }) => await store.findByTokenHash(tokenHash)))
  t.ok(lookups.every((each) => each.status === 'rejected' && each.reason instanceof StoreUnavailableError), 'each of those that came together')
  t.throws(() => store.find('any'), StoreUnavailableError)
  t.doesNotThrow(() => store.touch('any', 1))

  const file = join(folder(), 'tokens.db')
  const locked = await openAt(t, file)
  const bystander = new DatabaseSync(file)
  t.teardown(() => bystander.close())
  bystander.exec('DROP TABLE access_tokens')
  t.throws(() => locked.find('x'), { code: 'ERR_SQLITE_ERROR' }, 'a missing table is our mistake, not an outage')
})

t.test('a garbage file is refused at open', async (t) => {
  const file = join(t.testdir({ 'tokens.db': 'this is no database, but it is long enough to be read as one'.repeat(50) }), 'tokens.db')
  await t.rejects(async () => await sqliteStore({ path: file }).open(), StoreUnavailableError)
  rmSync(file)
})

t.test('with migrate: false no file and no table is made', async (t) => {
  const file = join(folder(), 'tokens.db')
  await t.rejects(async () => await sqliteStore({ path: file, migrate: false }).open(), StoreUnavailableError)
  t.notOk(existsSync(file))
  const database = new DatabaseSync(file)
  t.teardown(() => database.close())
  database.exec('CREATE TABLE notes (text TEXT)')
  const store = sqliteStore({ path: file, migrate: false })
  await store.open()
  t.teardown(() => store.close())
  t.throws(() => store.find('x'), { message: 'no such table: access_tokens' })
  t.strictSame({ ...database.prepare('PRAGMA journal_mode').get() }, { journal_mode: 'delete' })
})

t.test('a file made by others keeps its other tables', async (t) => {
  const file = join(folder(), 'app.db')
  const database = new DatabaseSync(file)
  database.exec('CREATE TABLE notes (text TEXT); INSERT INTO notes VALUES (\'hello\')')
  const store = await openAt(t, file)
  await store.issue(row())
  t.equal((database.prepare('SELECT text FROM notes').get() as { text: string }).text, 'hello')
  database.close()
  chmodSync(file, 0o600)
})

t.test('uses are written in parts, and who flushes waits for those of an earlier flush too', async (t) => {
  const parts: string[][] = []
  let fails = false
  const lastUsed = new LastUsed(async (uses) => {
    await new Promise((resolve) => setTimeout(resolve, 10))
    if (fails) throw new Error('no database')
    parts.push([...uses.keys()])
  })
  const ids = Array.from({ length: 1100 }, (_, index) => `grant ${index}`)
  for (const id of ids) lastUsed.touch(id, 1)
  const first = lastUsed.flush()
  await lastUsed.flush()
  t.strictSame(parts.map(({ length }) => length), [500, 500, 100])
  t.strictSame(parts.flat(), ids)
  await first

  fails = true
  for (const id of ids) lastUsed.touch(id, 2)
  await lastUsed.flush()
  fails = false
  lastUsed.touch('one more', 3)
  await lastUsed.flush()
  t.strictSame(parts.slice(3), [['one more']], 'what could not be written is dropped, and the next is written')
})
