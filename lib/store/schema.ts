import { randomBytes } from 'node:crypto'
import { createGrantId } from '../protocol/secret.js'
import type { GrantRow, Selector, TokenRow } from './store.js'

/** Each field of a row, its column and the column's type, in the order of the table. `time` is epoch milliseconds. */
export const COLUMNS: ReadonlyArray<readonly [field: keyof TokenRow, column: string, type: `${'text' | 'bytes' | 'time'}${string}`]> = [
  ['id', 'id', 'text PRIMARY KEY NOT NULL'],
  ['tokenHash', 'token_hash', 'bytes NOT NULL UNIQUE'],
  ['refreshHash', 'refresh_hash', 'bytes'],
  ['previousRefreshHash', 'previous_refresh_hash', 'bytes'],
  ['refreshedAt', 'refreshed_at', 'time'],
  ['refreshExpiresAt', 'refresh_expires_at', 'time'],
  ['userId', 'user_id', 'text'],
  ['tenantId', 'tenant_id', 'text'],
  ['clientId', 'client_id', 'text'],
  ['clientName', 'client_name', 'text'],
  ['clientHost', 'client_host', 'text'],
  ['name', 'name', 'text'],
  ['scopes', 'scopes', 'text NOT NULL'],
  ['resource', 'resource', 'text'],
  ['createdAt', 'created_at', 'time NOT NULL'],
  ['expiresAt', 'expires_at', 'time'],
  ['lastUsedAt', 'last_used_at', 'time'],
  ['revokedAt', 'revoked_at', 'time'],
  ['revokedReason', 'revoked_reason', 'text']
]

/** What a complete table has: its columns and the indexes of INDEXES. */
export function missingParts (present: ReadonlySet<string>): string[] {
  return [...COLUMNS.map(([, column]) => column), ...INDEXES.match(/(?<=EXISTS )\w+/g)!].filter((name) => !present.has(name))
}

/** What `CREATE TABLE` and `ADD COLUMN` take, in a database's own types. */
export function columnDefinitions (types: { bytes: string, time: string }): string[] {
  return COLUMNS.map(([, column, type]) => `${column} ${type.replace(/^(bytes|time)/, (kind) => types[kind as 'bytes' | 'time'])}`)
}

/** The indexes beside those of the keys: a user's grants, a client's, and what is to be purged. */
export const INDEXES = `
  CREATE INDEX IF NOT EXISTS access_tokens_user ON access_tokens (user_id, client_id);
  CREATE INDEX IF NOT EXISTS access_tokens_client ON access_tokens (client_id);
  CREATE INDEX IF NOT EXISTS access_tokens_revoked ON access_tokens (revoked_at) WHERE revoked_at IS NOT NULL;
  CREATE INDEX IF NOT EXISTS access_tokens_expired ON access_tokens (expires_at) WHERE expires_at IS NOT NULL;
`

/** Those of a `GrantRow`. */
export const GRANT_COLUMNS = COLUMNS.filter(([, , type]) => !type.startsWith('bytes'))

export const [COLUMN_LIST, GRANT_COLUMN_LIST] = [COLUMNS, GRANT_COLUMNS].map((columns) => columns.map(([, column]) => column).join(', ')) as [string, string]

/** The row's values in the order of COLUMN_LIST. */
export function valuesOf (row: TokenRow): Array<TokenRow[keyof TokenRow]> {
  return COLUMNS.map(([field]) => row[field])
}

/** The row of such values. Drivers are asked for lists, because to make objects takes them longer than the look-up. */
export function rowOf (values: readonly unknown[]): TokenRow {
  return objectOf(COLUMNS, values) as TokenRow
}

export function grantRowOf (values: readonly unknown[]): GrantRow {
  return objectOf(GRANT_COLUMNS, values) as GrantRow
}

function objectOf (columns: typeof COLUMNS, values: readonly unknown[]): unknown {
  const object: Record<string, unknown> = {}
  for (let index = 0; index < columns.length; index++) object[columns[index]![0]] = values[index]
  return object
}

const EMPTY_ROW = Object.fromEntries(COLUMNS.map(([field]) => [field, null])) as unknown as TokenRow

/** A new row: what is not given is null. */
export function newRow (fields: Pick<TokenRow, 'id' | 'tokenHash' | 'scopes' | 'createdAt'> & Partial<TokenRow>): TokenRow {
  return { ...EMPTY_ROW, ...fields }
}

/**
 * What a disconnect leaves behind for codes that are still on their way: a revoked row without scopes for whom it named,
 * whether or not they had a grant yet. For a grant by its id, the row that its code would have become.
 */
export function disconnectMark (selector: Selector, now: number): TokenRow {
  const { grantId, userId, clientId }: AnySelector = selector
  return newRow({
    id: grantId ?? createGrantId(),
    tokenHash: randomBytes(32),
    userId: userId ?? null,
    clientId: clientId ?? null,
    scopes: '',
    createdAt: now,
    revokedAt: now,
    revokedReason: 'disconnected'
  })
}

/** Finds a mark for the first parameter, the user, and the second, the client, that is not older than the third. */
export const findMark = (parameter: '$' | '?'): string => `
  SELECT 1 FROM access_tokens WHERE scopes = '' AND revoked_at >= ${parameter}3 AND (
    (user_id = ${parameter}1 AND client_id = ${parameter}2) OR
    (user_id = ${parameter}1 AND client_id IS NULL) OR
    (user_id IS NULL AND client_id = ${parameter}2)
  ) LIMIT 1
`

/** Neither revoked nor expired at the parameter. A grant lives while it can be used or refreshed, whichever is longer. */
export const live = (now: string): string =>
  `revoked_at IS NULL AND (expires_at IS NULL OR ${now} < CASE WHEN refresh_expires_at > expires_at THEN refresh_expires_at ELSE expires_at END)`

/** Revoked or expired before the parameter. */
export const ended = (before: string): string =>
  `revoked_at < ${before} OR (expires_at < ${before} AND (refresh_expires_at IS NULL OR refresh_expires_at < ${before}))`

/** Rows that come out as `ClientStats`, at the time in the first parameter. Drivers turn doubles into numbers. */
export const statsQuery = (parameter: '$' | '?'): string => `
  SELECT client_id AS "clientId", max(client_name) AS "clientName",
    CAST(count(*) FILTER (WHERE ${live(`${parameter}1`)}) AS float8) AS active,
    CAST(count(revoked_at) AS float8) AS revoked,
    CAST(count(*) FILTER (WHERE revoked_at IS NULL AND NOT (${live(`${parameter}1`)})) AS float8) AS expired
  FROM access_tokens WHERE scopes <> '' GROUP BY client_id ORDER BY active DESC, client_id
`

/** Counts what a revocation would end or a purge delete. */
export function countQuery (what: Selector | { endedBefore: number }, parameter: '$' | '?'): [text: string, values: Array<string | number>] {
  const count = (condition: string): string => `SELECT CAST(count(*) AS float8) AS count FROM access_tokens WHERE ${condition}`
  if ('endedBefore' in what) return [count(ended(`${parameter}1`)), [what.endedBefore]]
  const columns = selected(what)
  const conditions = columns.map(([column], index) => `${column} = ${parameter}${index + 1}`)
  return [count(`${conditions.join(' AND ')} AND revoked_at IS NULL`), columns.map(([, value]) => value)]
}

/** The columns and values that a selector compares. */
export function selected (selector: Selector): Array<[column: string, value: string]> {
  const { grantId, userId, clientId }: AnySelector = selector
  return Object.entries({ id: grantId, user_id: userId, client_id: clientId })
    .filter((entry): entry is [string, string] => entry[1] !== undefined)
}

type AnySelector = { grantId?: string, userId?: string, clientId?: string }
