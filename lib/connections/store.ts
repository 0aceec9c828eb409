import { StoreUnavailableError } from '../store/store.js'

type Answer<T> = T | Promise<T>

/**
 * Where connections live: a row of sealed text for each user and server. It is changed by whoever holds its lock, which is
 * a time in epoch milliseconds: until then nobody else gets it, and once another has it whoever held it changes nothing.
 */
export interface ConnectionStore {
  /** Connects, and creates the table. Called once, before anything else. */
  open (): Answer<void>
  /** Null also for a row in which nothing was written yet. */
  find (userId: string, server: string): Answer<string | null>
  /** The servers of the user's rows. */
  servers (userId: string): Answer<string[]>
  /** Takes the lock until then, unless it is held at `now`. Makes a row where there is none. */
  lock (userId: string, server: string, until: number, now: number): Answer<boolean>
  /** Writes and unlocks; false, and nothing is written, where the lock is not this one any more. */
  save (userId: string, server: string, sealed: string, lockedUntil: number): Answer<boolean>
  /** Gives the lock back, and the row with it if nothing is in it. */
  unlock (userId: string, server: string, lockedUntil: number): Answer<void>
  delete (userId: string, server: string): Answer<void>
  close (): Answer<void>
}

export const TABLE = `
  CREATE TABLE IF NOT EXISTS connections (
    user_id text NOT NULL,
    server text NOT NULL,
    sealed text,
    locked_until bigint NOT NULL,
    PRIMARY KEY (user_id, server)
  )
`
const ROW = 'user_id = $1 AND server = $2'
const STATEMENTS = {
  find: `SELECT sealed AS value FROM connections WHERE ${ROW}`,
  servers: 'SELECT server AS value FROM connections WHERE user_id = $1 AND sealed IS NOT NULL',
  lock: `
    INSERT INTO connections (user_id, server, locked_until) VALUES ($1, $2, $3)
    ON CONFLICT (user_id, server) DO UPDATE SET locked_until = excluded.locked_until WHERE connections.locked_until <= $4
  `,
  save: `UPDATE connections SET sealed = $3, locked_until = 0 WHERE ${ROW} AND locked_until = $4`,
  unlock: `UPDATE connections SET locked_until = 0 WHERE ${ROW} AND locked_until = $3`,
  sweep: `DELETE FROM connections WHERE ${ROW} AND sealed IS NULL AND locked_until = 0`,
  delete: `DELETE FROM connections WHERE ${ROW}`
}

/** Runs a statement with its numbered parameters; answers its rows, and how many it changed. */
export type Query = (statement: string, values: Array<string | number>) => Answer<{ rows: Array<{ value: string | null }>, changes: number }>

/** All that a store does, on a database that answers these statements. */
export function storeOn (database: Query): Omit<ConnectionStore, 'open' | 'close'> {
  const query = async (statement: keyof typeof STATEMENTS, ...values: Array<string | number>) => {
    try {
      return await database(STATEMENTS[statement], values)
    } catch (error) {
      throw new StoreUnavailableError(error)
    }
  }
  return {
    find: async (userId, server) => (await query('find', userId, server)).rows[0]?.value ?? null,
    servers: async (userId) => (await query('servers', userId)).rows.map(({ value }) => value!),
    lock: async (userId, server, until, now) => (await query('lock', userId, server, until, now)).changes === 1,
    save: async (userId, server, sealed, lockedUntil) => (await query('save', userId, server, sealed, lockedUntil)).changes === 1,
    async unlock (userId, server, lockedUntil) {
      await query('unlock', userId, server, lockedUntil)
      await query('sweep', userId, server)
    },
    async delete (userId, server) {
      await query('delete', userId, server)
    }
  }
}
