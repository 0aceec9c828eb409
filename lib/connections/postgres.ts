import type { Pool, PoolConfig, QueryConfig } from 'pg'
import { TIMEOUT, openPool } from '../store/postgres-pool.js'
import { StoreUnavailableError } from '../store/store.js'
import { TABLE, storeOn, type ConnectionStore } from './store.js'

/** Any number that others are unlikely to lock. */
const MIGRATION_LOCK = 7_426_917_312

/** A pool of yours, which stays open, or what `pg` takes to make one; `migrate: false` where another job creates the table. */
export type PostgresConnectionStoreOptions = ({ pool: Pool } | PoolConfig) & { migrate?: boolean }

/** For any number of processes and machines, whose clocks agree within some seconds. */
export function postgresConnectionStore ({ migrate = true, ...options }: PostgresConnectionStoreOptions): ConnectionStore {
  let pool: Pool | undefined
  const close = async (): Promise<void> => {
    if (!('pool' in options)) await pool?.end()
    pool = undefined
  }
  return {
    async open () {
      pool = await openPool(options)
      // The pool drops a broken idle connection by itself; without a listener the event would end the process.
      if (!('pool' in options)) pool.on('error', () => {})
      try {
        // Of any number of processes that start at once, one makes it; the lock ends with the statements.
        if (migrate) await pool.query(`SELECT pg_advisory_xact_lock(${MIGRATION_LOCK}); ${TABLE}`)
      } catch (error) {
        await close()
        throw new StoreUnavailableError(error)
      }
    },
    ...storeOn(async (text, values) => {
      const { rows, rowCount } = await pool!.query({ text, values, query_timeout: TIMEOUT } as QueryConfig)
      return { rows, changes: rowCount ?? 0 }
    }),
    close
  }
}
