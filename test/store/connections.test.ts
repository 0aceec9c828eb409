import { join } from 'node:path'
import t, { type Test } from 'tap'
import { sqliteConnectionStore, type ConnectionStore } from '../../dist/connections/index.js'
import { postgresConnectionStore } from '../../dist/connections/postgres.js'
import { StoreUnavailableError } from '../../dist/index.js'
import { folder } from '../app.js'
import { startLocal, startRemote, worker } from '../connections.js'
import { startPostgres } from '../postgres.js'
import { SDKS } from '../sdk.js'

/** What every store promises. `database` answers what opens stores on one empty database. */
function contract (t: Test, database: () => Promise<() => ConnectionStore>): void {
  const test = (title: string, body: (t: Test, store: ConnectionStore, other: ConnectionStore) => Promise<void>) => t.test(title, async (t) => {
    const open = await database()
    const stores = [open(), open(), open(), open()] as const
    // All at once, on a database without the table.
    await Promise.all(stores.map(async (store) => { await store.open() }))
    t.teardown(async () => { for (const store of stores) await store.close() })
    await body(t, stores[0], stores[1])
  })

  test('a lock is held until it ends, is given back, or what it was for is written', async (t, store, other) => {
    t.equal(await store.lock('alice', 'notes', 200, 100), true)
    t.equal(await other.lock('alice', 'notes', 201, 101), false)
    t.equal(await store.lock('alice', 'notes', 201, 199), false)
    t.equal(await store.lock('alice', 'other', 200, 100), true, 'each row has its own')
    t.equal(await store.lock('bob', 'notes', 200, 100), true)
    t.equal(await other.lock('alice', 'notes', 300, 200), true, 'it has ended')
    t.equal(await store.save('alice', 'notes', 'late', 200), false)
    await store.unlock('alice', 'notes', 200)
    t.equal(await store.find('alice', 'notes'), null, 'who had it before changes nothing')
    t.equal(await store.lock('alice', 'notes', 400, 250), false)
    t.equal(await other.save('alice', 'notes', 'first', 300), true)
    t.equal(await store.find('alice', 'notes'), 'first')
    t.equal(await store.lock('alice', 'notes', 400, 250), true)
    await store.unlock('alice', 'notes', 400)
    t.equal(await store.find('alice', 'notes'), 'first', 'unlocked, it stays')
    t.equal(await store.lock('alice', 'notes', 500, 250), true)
  })

  test('a row that was locked and never written is gone with its lock', async (t, store) => {
    await store.lock('alice', 'notes', 200, 100)
    await store.unlock('alice', 'notes', 200)
    t.equal(await store.find('alice', 'notes'), null)
    await store.unlock('alice', 'notes', 200)
    t.equal(await store.save('alice', 'notes', 'x', 200), false, 'there is nothing to write to')
    t.equal(await store.find('alice', 'notes'), null)
  })

  test('of any number, one gets the lock', async (t, store, other) => {
    for (let round = 1; round < 20; round++) {
      const got = await Promise.all(Array.from({ length: 20 }, async (_, index) => await [store, other][index % 2]!.lock('alice', 'notes', 1000 * round + index, 1000 * round - 1)))
      t.equal(got.filter(Boolean).length, 1)
      await store.delete('alice', 'notes')
    }
  })

  test('a user has the servers that something was written for', async (t, store) => {
    t.strictSame(await store.servers('alice'), [])
    for (const [user, server] of [['alice', 'notes'], ['alice', 'files'], ['bob', 'other'], ['alice', 'begun']] as const) {
      await store.lock(user, server, 200, 100)
      if (server !== 'begun') await store.save(user, server, 'sealed', 200)
    }
    t.strictSame([...await store.servers('alice')].sort(), ['files', 'notes'])
  })

  test('a row is deleted, whoever holds it', async (t, store, other) => {
    await store.lock('alice', 'notes', 200, 100)
    await store.save('alice', 'notes', 'sealed', 200)
    await store.lock('alice', 'notes', 300, 200)
    await other.delete('alice', 'notes')
    t.equal(await store.find('alice', 'notes'), null)
    t.equal(await store.save('alice', 'notes', 'again', 300), false)
    await store.delete('alice', 'notes')
  })

  test('names and values come back as they were given', async (t, store) => {
    for (const name of ['имя 名 😀', "'; DROP TABLE connections; --", 'a'.repeat(500), '$1 ?1']) {
      await store.lock(name, name, 200, 100)
      t.equal(await store.save(name, name, name.repeat(100), 200), true)
      t.equal(await store.find(name, name), name.repeat(100))
      t.strictSame(await store.servers(name), [name])
    }
  })
}

t.test('SQLite', async (t) => {
  contract(t, async () => {
    const path = join(folder(), 'connections.db')
    return () => sqliteConnectionStore({ path })
  })
  t.test('a file that cannot be opened is named', async (t) => {
    await t.rejects(Promise.resolve(sqliteConnectionStore({ path: '/nowhere/connections.db' }).open()), StoreUnavailableError)
  })
})

t.test('PostgreSQL', async (t) => {
  const server = await startPostgres(t)
  contract(t, async () => {
    const connectionString = await server.database()
    return () => postgresConnectionStore({ connectionString })
  })

  t.test('eight workers of several processes refresh once', async (t) => {
    const connectionString = await server.database()
    const remote = await startRemote(t)
    const local = await startLocal(t, { notes: { url: remote.url } }, {}, () => postgresConnectionStore({ connectionString }))
    await local.connect('alice')
    await local.edit('alice', 'notes', () => ({ refreshedAt: 1 }))
    const outcomes = await Promise.all(Array.from({ length: 8 }, async () => await worker(SDKS[1]!, { url: remote.url, user: 'alice', store: { postgres: { connectionString } } })))
    t.strictSame(outcomes, Array.from({ length: 8 }, () => 'There are no notes yet.'))
    t.equal(remote.events.filter(({ type }) => type === 'token.refreshed').length, 1)
    t.strictSame(remote.events.filter(({ type }) => type === 'token.revoked'), [])
  })
})
