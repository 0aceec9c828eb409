import type { DatabaseSyncInstance } from '@photostructure/sqlite'
import createError from '@fastify/error'
import { closeSync, existsSync, openSync } from 'node:fs'
import { setTimeout } from 'node:timers/promises'
import { StoreUnavailableError } from './store.js'

export type Database = DatabaseSyncInstance

/** Milliseconds that one process waits for another's commit. */
const BUSY_TIMEOUT = 5000
const SQLITE_BUSY = 5

const SqliteMissingError = createError('FST_MCP_OAUTH_SQLITE_MISSING',
  'A store on SQLite needs Node 22.16 or newer, or the package @photostructure/sqlite. Run: npm install @photostructure/sqlite')

/** Waits for the commits of others, survives a power cut, and is for its owner's eyes alone. */
export async function openDatabase (path: string, create = true): Promise<Database> {
  const { DatabaseSync } = await loadDriver()
  // Nobody else on the machine needs to know who has connected what; SQLite gives its other files the same mode.
  if (path !== ':memory:' && !existsSync(path)) closeSync(openSync(path, create ? 'a' : 'r', 0o600))
  const database = new DatabaseSync(path)
  try {
    database.exec(`PRAGMA busy_timeout = ${BUSY_TIMEOUT}; PRAGMA synchronous = FULL`)
    return database
  } catch (error) {
    database.close()
    throw error
  }
}

/** SQLite does not wait for other processes that turn a new file to WAL in the same moment, so this does. */
export async function inWalMode (database: Database, upgrade: (database: Database) => void): Promise<void> {
  for (const until = Date.now() + BUSY_TIMEOUT; ; await setTimeout(10)) {
    try {
      database.exec('PRAGMA journal_mode = WAL')
      upgrade(database)
      return
    } catch (error) {
      if (Date.now() > until || (error as { errcode?: number }).errcode !== SQLITE_BUSY) throw error
    }
  }
}

/** The troubles of a database have one name. */
export function named (error: unknown): unknown {
  return isOurMistake(error) || error instanceof StoreUnavailableError || error instanceof SqliteMissingError ? error : new StoreUnavailableError(error)
}

/** SQLITE_ERROR (bad SQL), CONSTRAINT, MISMATCH and MISUSE are bugs; all else is the database being out of reach. */
function isOurMistake (error: unknown): boolean {
  const { errcode } = error as { errcode?: number }
  return errcode !== undefined && [1, 19, 20, 21].includes(errcode & 0xff)
}

/** Node's own driver and the package have one API; the package serves Node 20, and 22 before 22.16. */
async function loadDriver (): Promise<typeof import('@photostructure/sqlite')> {
  for (const name of ['node:sqlite', '@photostructure/sqlite']) {
    try {
      const driver = await import(name)
      if ('setReturnArrays' in driver.StatementSync.prototype) return driver
    } catch {}
  }
  throw new SqliteMissingError()
}
