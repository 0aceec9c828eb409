import type { TokenRow } from './store.js'

/** Each field of a row and its column, in the order of the table. */
export const COLUMNS: ReadonlyArray<readonly [field: keyof TokenRow, column: string]> = [
  ['id', 'id'],
  ['tokenHash', 'token_hash'],
  ['refreshHash', 'refresh_hash'],
  ['previousRefreshHash', 'previous_refresh_hash'],
  ['refreshedAt', 'refreshed_at'],
  ['refreshExpiresAt', 'refresh_expires_at'],
  ['userId', 'user_id'],
  ['tenantId', 'tenant_id'],
  ['clientId', 'client_id'],
  ['clientName', 'client_name'],
  ['clientHost', 'client_host'],
  ['name', 'name'],
  ['scopes', 'scopes'],
  ['resource', 'resource'],
  ['createdAt', 'created_at'],
  ['expiresAt', 'expires_at'],
  ['lastUsedAt', 'last_used_at'],
  ['revokedAt', 'revoked_at'],
  ['revokedReason', 'revoked_reason']
]

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
