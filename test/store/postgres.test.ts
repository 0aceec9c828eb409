import pg from 'pg'
import t, { type Test } from 'tap'
import { postgresStore, type PostgresStoreOptions } from '../../dist/store/postgres.js'
import type { TokenStore } from '../../dist/store/store.js'
import { startPostgres } from '../postgres.js'
import { storeContract } from './contract.js'

const server = await startPostgres(t)

async function openAt (t: Test, options: PostgresStoreOptions): Promise<TokenStore> {
  const store = postgresStore(options)
  await store.open()
  t.teardown(() => store.close())
  return store
}

let connectionString = ''

storeContract(t, 'postgresStore', {
  open: async (t) => {
    connectionString = await server.database()
    return await openAt(t, { connectionString })
  },
  reopen: async (t) => await openAt(t, { connectionString })
})

storeContract(t, 'postgresStore with a pool of the app’s and without prepared statements', {
  open: async (t) => {
    connectionString = await server.database()
    const pool = new pg.Pool({ connectionString })
    t.teardown(() => pool.end())
    return await openAt(t, { pool, preparedStatements: false })
  },
  reopen: async (t) => await openAt(t, { connectionString })
})
