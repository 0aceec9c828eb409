import type { Pool, PoolConfig, QueryResult, QueryResultRow } from 'pg'
import { LastUsed } from './last-used.js'
import { TIMEOUT, openPool } from './postgres-pool.js'
import { COLUMNS, COLUMN_LIST, GRANT_COLUMNS, INDEXES, columnDefinitions, countQuery, disconnectMark, ended, findMark, grantRowOf, live, missingParts, rowOf, selected, statsQuery, valuesOf } from './schema.js'
import { StoreUnavailableError, type ClientStats, type GrantRow, type IssueResult, type RevokedReason, type Rotation, type Selector, type TokenRow, type TokenStore } from './store.js'

/** A pool of yours, which stays open when the app closes, or what `pg` takes to make one. */
export type PostgresStoreOptions = ({ pool: Pool } | PoolConfig) & {
  /** Create or upgrade the table at start. Default true; false where another job does it. */
  migrate?: boolean
  /** Default true; false behind a pooler in transaction mode that cannot keep them. */
  preparedStatements?: boolean
  /** Milliseconds after which a query counts as lost. Default 5000. */
  timeout?: number
}

// Times are bigint, not timestamptz: they are compared with those in sealed codes, to the millisecond and in no zone.
const TABLE = columnDefinitions({ bytes: 'bytea', time: 'bigint' })

/** Times are read as doubles, which the driver turns into numbers, and which hold milliseconds exactly. */
const selectList = (columns: typeof COLUMNS): string => columns.map(([, column, type]) => `${column}${type.startsWith('time') ? '::float8' : ''}`).join(', ')
const SELECT_ROW = `SELECT ${selectList(COLUMNS)} FROM access_tokens WHERE`
const SELECT_GRANT = `SELECT ${selectList(GRANT_COLUMNS)} FROM access_tokens WHERE`
const FIND_BY_TOKEN_HASHES = `SELECT ${selectList(GRANT_COLUMNS)}, token_hash FROM access_tokens WHERE token_hash = ANY($1)`

/** Any number that others are unlikely to lock. */
const MIGRATION_LOCK = 7_426_917_311

/** Milliseconds: an index on a large table takes its time. */
const MIGRATION_TIMEOUT = 30 * 60 * 1000

/** More look-ups on their way would only wait inside the database; fewer would leave it idle in between. */
const MAX_LOOKUPS_IN_FLIGHT = 2

/**
 * Serves any number of processes on any number of machines: no answer comes from memory. On the way of a request every
 * statement touches rows by primary or unique key, or those of one user and client.
 */
export function postgresStore (options: PostgresStoreOptions): TokenStore {
  return new PostgresStore(options)
}

interface Lookup {
  tokenHash: Uint8Array
  resolve: (row: GrantRow | null) => void
  reject: (error: unknown) => void
}

class PostgresStore implements TokenStore {
  readonly #options: PostgresStoreOptions
  readonly #timeout: number
  readonly #lastUsed = new LastUsed((uses) => this.#writeLastUsed(uses))
  #pool: Pool | undefined
  #lookups: Lookup[] = []
  #lookupsInFlight = 0

  constructor (options: PostgresStoreOptions) {
    this.#options = options
    this.#timeout = options.timeout ?? TIMEOUT
  }

  async open (): Promise<void> {
    const { migrate, preparedStatements: _, timeout: __, ...options } = this.#options
    this.#pool = await openPool(options, this.#timeout)
    // The pool drops a broken idle connection by itself; without a listener the event would end the process.
    this.#pool.on('error', ignore)
    if (migrate !== false) await this.#migrate()
  }

  /** Takes no lock where there is nothing to do; where there is, of any number of nodes one does it. */
  async #migrate (): Promise<void> {
    const { rows } = await this.#query<{ name: string }>(null, `
      SELECT column_name::text AS name FROM information_schema.columns WHERE table_schema = current_schema() AND table_name = 'access_tokens'
      UNION ALL SELECT indexname::text FROM pg_indexes WHERE schemaname = current_schema() AND tablename = 'access_tokens'
    `, [])
    if (missingParts(new Set(rows.map(({ name }) => name))).length === 0) return
    // One simple query is one transaction, and its lock ends with it: poolers keep that together.
    await this.#use(async () => await this.#pool!.query(`
      SELECT pg_advisory_xact_lock(${MIGRATION_LOCK});
      CREATE TABLE IF NOT EXISTS access_tokens (${TABLE.join(', ')});
      ${TABLE.map((column) => `ALTER TABLE access_tokens ADD COLUMN IF NOT EXISTS ${column};`).join('\n')}
      ${INDEXES}
    `), MIGRATION_TIMEOUT)
  }

  /**
   * The INSERT alone decides who spends a code. A disconnect may commit beside it, unseen: so this looks for its mark
   * after the row is there, and `revoke()` looks for rows after its mark is there. One of them sees the other.
   */
  async issue (row: TokenRow, code?: { codeIssuedAt: number }): Promise<IssueResult> {
    if (!await this.#insert(row)) {
      await this.revoke({ grantId: row.id }, 'code_replayed', row.createdAt)
      return 'replayed'
    }
    if (code === undefined) return 'issued'
    const { rows } = await this.#query('find_mark', findMark('$'), [row.userId, row.clientId, code.codeIssuedAt])
    if (rows.length === 0) return 'issued'
    await this.#query('withdraw', 'DELETE FROM access_tokens WHERE id = $1', [row.id])
    return 'disconnected'
  }

  async #insert (row: TokenRow): Promise<boolean> {
    const values = valuesOf(row)
    const { rowCount } = await this.#query('insert', `
      INSERT INTO access_tokens (${COLUMN_LIST}) VALUES (${values.map((_, index) => `$${index + 1}`).join(', ')}) ON CONFLICT (id) DO NOTHING
    `, values)
    return rowCount === 1
  }

  /** Look-ups gather while others are on their way, and travel as one query: none is answered from before it came. */
  async findByTokenHash (tokenHash: Uint8Array): Promise<GrantRow | null> {
    return await new Promise((resolve, reject) => {
      this.#lookups.push({ tokenHash, resolve, reject })
      if (this.#lookups.length === 1) setImmediate(() => this.#sendLookups())
    })
  }

  #sendLookups (): void {
    if (this.#lookupsInFlight === MAX_LOOKUPS_IN_FLIGHT || this.#lookups.length === 0) return
    const lookups = this.#lookups
    this.#lookups = []
    this.#lookupsInFlight += 1
    this.#arrays('find_by_token_hash', FIND_BY_TOKEN_HASHES, [lookups.map(({ tokenHash }) => tokenHash)])
      .then((rows) => {
        const found = new Map(rows.map((values) => [keyOf(values.at(-1) as Uint8Array), grantRowOf(values)]))
        for (const { tokenHash, resolve } of lookups) resolve(found.get(keyOf(tokenHash)) ?? null)
      })
      .catch((error: unknown) => {
        // Those that wait behind it fail with it: so nobody waits longer than one query may take, and none needs a timer.
        for (const { reject } of [...lookups, ...this.#lookups.splice(0)]) reject(error)
      })
      .finally(() => {
        this.#lookupsInFlight -= 1
        this.#sendLookups()
      })
  }

  async find (grantId: string): Promise<TokenRow | null> {
    const [values] = await this.#arrays('find', `${SELECT_ROW} id = $1`, [grantId])
    return values === undefined ? null : rowOf(values)
  }

  async list ({ userId }: { userId: string }, now: number): Promise<GrantRow[]> {
    return (await this.#arrays('list', `${SELECT_GRANT} user_id = $1 AND ${live('$2')} ORDER BY created_at, id`, [userId, now])).map(grantRowOf)
  }

  async rotate (grantId: string, from: Uint8Array, to: Rotation): Promise<boolean> {
    const { rowCount } = await this.#query('rotate', `
      UPDATE access_tokens SET token_hash = $1, refresh_hash = $2, previous_refresh_hash = refresh_hash,
        expires_at = $3, refresh_expires_at = $4, refreshed_at = $5
      WHERE id = $6 AND refresh_hash = $7 AND revoked_at IS NULL
    `, [to.tokenHash, to.refreshHash, to.expiresAt, to.refreshExpiresAt, to.refreshedAt, grantId, from])
    return rowCount === 1
  }

  async revoke (selector: Selector, reason: RevokedReason, now: number): Promise<number> {
    if (reason === 'disconnected') await this.#insert(disconnectMark(selector, now))
    const columns = selected(selector)
    const { rowCount } = await this.#query(`revoke_${columns.map(([column]) => column).join('_')}`, `
      UPDATE access_tokens SET revoked_at = $1, revoked_reason = $2
      WHERE ${columns.map(([column], index) => `${column} = $${index + 3}`).join(' AND ')} AND revoked_at IS NULL
    `, [now, reason, ...columns.map(([, value]) => value)])
    return rowCount ?? 0
  }

  touch (grantId: string, now: number): void {
    this.#lastUsed.touch(grantId, now)
  }

  async #writeLastUsed (uses: ReadonlyMap<string, number>): Promise<void> {
    // In one order everywhere, so that two nodes cannot wait for each other.
    const ids = [...uses.keys()].sort()
    await this.#query('touch', `
      UPDATE access_tokens SET last_used_at = used.at FROM unnest($1::text[], $2::bigint[]) AS used (id, at) WHERE access_tokens.id = used.id
    `, [ids, ids.map((id) => uses.get(id))])
  }

  async stats (now: number): Promise<ClientStats[]> {
    return (await this.#query<ClientStats & QueryResultRow>(null, statsQuery('$'), [now])).rows
  }

  async count (what: Selector | { endedBefore: number }): Promise<number> {
    return (await this.#query<{ count: number }>(null, ...countQuery(what, '$'))).rows[0]!.count
  }

  async purge (before: number, limit: number): Promise<number> {
    const { rowCount } = await this.#query(null, `
      DELETE FROM access_tokens WHERE id = ANY(ARRAY(SELECT id FROM access_tokens WHERE ${ended('$1')} LIMIT $2))
    `, [before, limit])
    return rowCount ?? 0
  }

  async close (): Promise<void> {
    const pool = this.#pool
    if (pool === undefined) return
    await this.#lastUsed.flush()
    this.#pool = undefined
    if ('pool' in this.#options) pool.off('error', ignore)
    else await pool.end()
  }

  async #arrays (name: string, text: string, values: unknown[]): Promise<unknown[][]> {
    return (await this.#query<unknown[]>(name, text, values, 'array')).rows
  }

  /** Without a name a statement is planned for its values, which pays off where it is rare and goes over much. */
  async #query<R extends QueryResultRow>(name: string | null, text: string, values: unknown[], rowMode?: 'array'): Promise<QueryResult<R>> {
    const query = {
      ...(name !== null && this.#options.preparedStatements !== false && { name: `mcp_oauth_${name}` }),
      text,
      values,
      ...(rowMode !== undefined && { rowMode }),
      // The pool closes a connection whose query ran into this.
      query_timeout: this.#timeout
    }
    return await this.#use(async () => {
      for (let attempt = 1; ; attempt++) {
        try {
          return await this.#pool!.query<R>(query)
        } catch (error) {
          // Lost against another transaction. Each statement commits by itself, so it can simply be sent again.
          if (attempt === 3 || !/^40(P01|001)$/.test(sqlState(error))) throw error
        }
      }
    })
  }

  /** Every use of the database goes through here, so that its troubles have one name and one longest time. */
  async #use<T> (work: () => Promise<T>, timeout = this.#timeout): Promise<T> {
    let timer: NodeJS.Timeout | undefined
    const late = new Promise<never>((_resolve, reject) => {
      timer = setTimeout(() => reject(new Error(`no answer within ${timeout} ms`)), timeout)
    })
    try {
      return await Promise.race([work(), late])
    } catch (error) {
      throw isOurMistake(error) || error instanceof StoreUnavailableError ? error : new StoreUnavailableError(error)
    } finally {
      clearTimeout(timer)
    }
  }
}

/** SQLSTATE classes 22 (bad data), 23 (constraint) and 42 (bad SQL) are bugs; all else is the database being out of reach. */
function isOurMistake (error: unknown): boolean {
  return /^(22|23|42)/.test(sqlState(error))
}

function sqlState (error: unknown): string {
  return String((error as { code?: unknown }).code)
}

function keyOf (bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('latin1')
}

function ignore (): void {}
