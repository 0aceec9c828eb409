import type { StatementSyncInstance } from '@photostructure/sqlite'
import { LastUsed } from './last-used.js'
import { COLUMNS, COLUMN_LIST, GRANT_COLUMN_LIST, INDEXES, columnDefinitions, countQuery, disconnectMark, ended, findMark, grantRowOf, live, missingParts, rowOf, selected, statsQuery, valuesOf } from './schema.js'
import { inWalMode, named, openDatabase, type Database } from './sqlite-database.js'
import type { ClientStats, GrantRow, IssueResult, RevokedReason, Rotation, Selector, TokenRow, TokenStore } from './store.js'

export interface SqliteStoreOptions {
  /** File of the database, made if missing; its folder must exist. */
  path: string
  /** Make the file, and create or upgrade the table, at start. Default true; false where another job does it. */
  migrate?: boolean
}

const TABLE = columnDefinitions({ bytes: 'blob', time: 'integer' })
const SELECT_GRANT = `SELECT ${GRANT_COLUMN_LIST} FROM access_tokens WHERE`
const FIND = `SELECT ${COLUMN_LIST} FROM access_tokens WHERE id = ?`
const FIND_BY_TOKEN_HASH = `${SELECT_GRANT} token_hash = ?`
const LIST = `${SELECT_GRANT} user_id = ? AND ${live('?')} ORDER BY created_at, id`

/**
 * One file, one machine; several processes may share it. WAL and `synchronous=FULL`: what was answered survives a
 * crash and a power cut. Uses Node's own SQLite from 22.16 on, else `@photostructure/sqlite`.
 */
export function sqliteStore ({ path, migrate = true }: SqliteStoreOptions): TokenStore {
  return new SqliteStore(path, migrate)
}

interface Issue {
  row: TokenRow
  codeIssuedAt: number | undefined
}

interface Rotate {
  grantId: string
  from: Uint8Array
  to: Rotation
}

class SqliteStore implements TokenStore {
  readonly #path: string
  readonly #migrate: boolean
  readonly #lastUsed = new LastUsed((uses) => this.#writeLastUsed(uses))
  readonly #statements = new Map<string, StatementSyncInstance>()
  // What arrives together shares one transaction: its wait for the disk, or its locks of the file, take longer than the rest.
  readonly #issues = new Batch((issues: Issue[]) => this.#use(() => this.#transaction('IMMEDIATE', () => issues.map((issue) => this.#issueOne(issue)))))
  readonly #rotations = new Batch((rotations: Rotate[]) => this.#use(() => this.#transaction('IMMEDIATE', () => rotations.map((rotation) => this.#rotateOne(rotation)))))
  readonly #lookups = new Batch((hashes: Uint8Array[]) => this.#use(() => this.#transaction('DEFERRED', () => hashes.map((hash) => this.#get(FIND_BY_TOKEN_HASH, hash, grantRowOf)))))
  #database: Database | undefined

  constructor (path: string, migrate: boolean) {
    this.#path = path
    this.#migrate = migrate
  }

  async open (): Promise<void> {
    try {
      this.#database = await openDatabase(this.#path, this.#migrate)
      if (this.#migrate) await inWalMode(this.#database, (database) => this.#upgrade(database))
    } catch (error) {
      throw named(error)
    }
  }

  /** Writes only where something is missing, so that a read-only file still serves the guard. */
  #upgrade (database: Database): void {
    const present = (): Set<string> => new Set(database.prepare(`
      SELECT name FROM pragma_table_info('access_tokens') UNION ALL SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = 'access_tokens'
    `).all().map((row) => (row as { name: string }).name))
    if (missingParts(present()).length === 0) return
    this.#transaction('IMMEDIATE', () => {
      const now = present()
      const columns = TABLE.filter((_, index) => !now.has(COLUMNS[index]![1]))
      if (columns.length === TABLE.length) database.exec(`CREATE TABLE access_tokens (${TABLE.join(', ')}) STRICT`)
      else columns.forEach((column) => database.exec(`ALTER TABLE access_tokens ADD COLUMN ${column}`))
      database.exec(INDEXES)
    })
  }

  async issue (row: TokenRow, code?: { codeIssuedAt: number }): Promise<IssueResult> {
    return await this.#issues.add({ row, codeIssuedAt: code?.codeIssuedAt })
  }

  #issueOne ({ row, codeIssuedAt }: Issue): IssueResult {
    if (this.find(row.id) !== null) {
      this.#revoke({ grantId: row.id }, 'code_replayed', row.createdAt)
      return 'replayed'
    }
    if (codeIssuedAt !== undefined && this.#prepare(findMark('?')).get(row.userId, row.clientId, codeIssuedAt) !== undefined) return 'disconnected'
    this.#insert(row)
    return 'issued'
  }

  #insert (row: TokenRow): void {
    const values = valuesOf(row)
    this.#prepare(`INSERT INTO access_tokens (${COLUMN_LIST}) VALUES (${values.map(() => '?').join(', ')}) ON CONFLICT (id) DO NOTHING`).run(...values)
  }

  async findByTokenHash (tokenHash: Uint8Array): Promise<GrantRow | null> {
    return await this.#lookups.add(tokenHash)
  }

  find (grantId: string): TokenRow | null {
    return this.#use(() => this.#get(FIND, grantId, rowOf))
  }

  list ({ userId }: { userId: string }, now: number): GrantRow[] {
    return this.#use(() => (this.#prepare(LIST).all(userId, now) as unknown as unknown[][]).map(grantRowOf))
  }

  async rotate (grantId: string, from: Uint8Array, to: Rotation): Promise<boolean> {
    return await this.#rotations.add({ grantId, from, to })
  }

  #rotateOne ({ grantId, from, to }: Rotate): boolean {
    return this.#prepare(`
      UPDATE access_tokens SET token_hash = ?, refresh_hash = ?, previous_refresh_hash = refresh_hash,
        expires_at = ?, refresh_expires_at = ?, refreshed_at = ?
      WHERE id = ? AND refresh_hash = ? AND revoked_at IS NULL
    `).run(to.tokenHash, to.refreshHash, to.expiresAt, to.refreshExpiresAt, to.refreshedAt, grantId, from).changes === 1
  }

  revoke (selector: Selector, reason: RevokedReason, now: number): number {
    return this.#use(() => this.#transaction('IMMEDIATE', () => {
      if (reason === 'disconnected') this.#insert(disconnectMark(selector, now))
      return this.#revoke(selector, reason, now)
    }))
  }

  #revoke (selector: Selector, reason: RevokedReason, now: number): number {
    const columns = selected(selector)
    return Number(this.#prepare(`
      UPDATE access_tokens SET revoked_at = ?, revoked_reason = ? WHERE ${columns.map(([column]) => `${column} = ?`).join(' AND ')} AND revoked_at IS NULL
    `).run(now, reason, ...columns.map(([, value]) => value)).changes)
  }

  touch (grantId: string, now: number): void {
    this.#lastUsed.touch(grantId, now)
  }

  #writeLastUsed (uses: ReadonlyMap<string, number>): void {
    this.#use(() => this.#transaction('IMMEDIATE', () => {
      const write = this.#prepare('UPDATE access_tokens SET last_used_at = ? WHERE id = ?')
      for (const [grantId, usedAt] of uses) write.run(usedAt, grantId)
    }))
  }

  stats (now: number): ClientStats[] {
    const rows = this.#use(() => this.#prepare(statsQuery('?')).all(now) as unknown as Array<[string | null, string | null, number, number, number]>)
    return rows.map(([clientId, clientName, active, revoked, expired]) => ({ clientId, clientName, active, revoked, expired }))
  }

  count (what: Selector | { endedBefore: number }): number {
    const [text, values] = countQuery(what, '?')
    return this.#use(() => (this.#prepare(text).get(...values) as unknown as [number])[0])
  }

  purge (before: number, limit: number): number {
    return this.#use(() => Number(this.#prepare(`
      DELETE FROM access_tokens WHERE id IN (SELECT id FROM access_tokens WHERE ${ended('?1')} LIMIT ?2)
    `).run(before, limit).changes))
  }

  async close (): Promise<void> {
    await this.#lastUsed.flush()
    this.#statements.clear()
    try {
      // The package lets go of the file only when its statements are collected: leave nothing in the journal.
      this.#database?.exec('PRAGMA busy_timeout = 0; PRAGMA wal_checkpoint(TRUNCATE)')
    } catch {}
    try {
      this.#database?.close()
    } catch {}
  }

  #prepare (sql: string): StatementSyncInstance {
    let statement = this.#statements.get(sql)
    if (statement === undefined) {
      statement = this.#database!.prepare(sql)
      statement.setReturnArrays(true)
      this.#statements.set(sql, statement)
    }
    return statement
  }

  #get<T> (select: string, value: string | Uint8Array, make: (values: readonly unknown[]) => T): T | null {
    const values = this.#prepare(select).get(value)
    return values === undefined ? null : make(values as unknown[])
  }

  /** IMMEDIATE: reads inside see what no other process can change before the commit. */
  #transaction<T> (kind: 'IMMEDIATE' | 'DEFERRED', work: () => T): T {
    const database = this.#database!
    database.exec(`BEGIN ${kind}`)
    try {
      const result = work()
      database.exec('COMMIT')
      return result
    } catch (error) {
      // A full disk has already rolled back by itself; then this has nothing to do.
      try {
        database.exec('ROLLBACK')
      } catch {}
      throw error
    }
  }

  /** Every use of the database goes through here, so that its troubles have one name. */
  #use<T> (work: () => T): T {
    try {
      return work()
    } catch (error) {
      throw named(error)
    }
  }
}

/** What is added in one turn of the event loop is done together after it: nothing is answered from before it came. */
class Batch<Input, Output> {
  readonly #run: (inputs: Input[]) => Output[]
  #waiting: Array<{ input: Input, resolve: (output: Output) => void, reject: (error: unknown) => void }> = []

  constructor (run: (inputs: Input[]) => Output[]) {
    this.#run = run
  }

  add (input: Input): Promise<Output> {
    return new Promise((resolve, reject) => {
      if (this.#waiting.push({ input, resolve, reject }) === 1) setImmediate(() => this.#answer())
    })
  }

  #answer (): void {
    const waiting = this.#waiting
    this.#waiting = []
    try {
      const outputs = this.#run(waiting.map(({ input }) => input))
      waiting.forEach(({ resolve }, index) => resolve(outputs[index]!))
    } catch (error) {
      for (const { reject } of waiting) reject(error)
    }
  }
}
