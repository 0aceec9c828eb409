import type { TokenRow } from './store.js'

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

/** A select list whose rows come out as `TokenRow`. */
export const SELECT_LIST = COLUMNS.map(([field, column]) => `${column} AS "${field}"`).join(', ')
export const INSERT_LIST = COLUMNS.map(([, column]) => column).join(', ')

/** The row's values in the order of INSERT_LIST. */
export function insertValues (row: TokenRow): Array<TokenRow[keyof TokenRow]> {
  return COLUMNS.map(([field]) => row[field])
}

const EMPTY_ROW = Object.fromEntries(COLUMNS.map(([field]) => [field, null])) as unknown as TokenRow

/** A new row: what is not given is null. */
export function newRow (fields: Pick<TokenRow, 'id' | 'tokenHash' | 'scopes' | 'createdAt'> & Partial<TokenRow>): TokenRow {
  return { ...EMPTY_ROW, ...fields }
}
