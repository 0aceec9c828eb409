/** Why a row was revoked. Only `disconnected` also stops codes that are still on their way. */
export type RevokedReason =
  /** The user, or the app in the user's name, ended the connection. */
  | 'disconnected'
  /** The client itself asked for it. RFC 7009. */
  | 'client_revoked'
  /** The code was presented a second time. RFC 6749 §4.1.2. */
  | 'code_replayed'
  /** A refresh token was presented after its successor was used. RFC 9700 §4.14.2. */
  | 'refresh_reused'

/** One row of `access_tokens`, which is one grant. Times are epoch milliseconds. */
export interface TokenRow {
  /** 128 random bits in base64url: the grantId, and the id of the code it was redeemed from. */
  id: string
  /** SHA-256 of the access token. Perhaps a view of a larger buffer. */
  tokenHash: Uint8Array
  /** SHA-256 of the refresh token; null where refresh is off. */
  refreshHash: Uint8Array | null
  previousRefreshHash: Uint8Array | null
  refreshedAt: number | null
  refreshExpiresAt: number | null
  /** Null where a client acts for itself. */
  userId: string | null
  tenantId: string | null
  /** Null for a personal access token. */
  clientId: string | null
  /** The name that the user saw at consent. */
  clientName: string | null
  /** The redirect host that the user saw. */
  clientHost: string | null
  /** A personal access token's label. */
  name: string | null
  /** Divided by spaces. */
  scopes: string
  /** Canonical URL; null for any resource of this app. */
  resource: string | null
  createdAt: number
  expiresAt: number | null
  lastUsedAt: number | null
  revokedAt: number | null
  revokedReason: RevokedReason | null
}

/** A row without its hashes, which only a refresh needs. A store may leave them in. */
export type GrantRow = Omit<TokenRow, 'tokenHash' | 'refreshHash' | 'previousRefreshHash'>

/** `replayed`: the id existed. `disconnected`: the user ended the connection after the code was issued. */
export type IssueResult = 'issued' | 'replayed' | 'disconnected'

/** What to revoke: one grant, all of a user, a user's grants for one client, or a client's for every user. */
export type Selector =
  | { grantId: string }
  | { userId: string, clientId?: string }
  | { clientId: string }

/** A client's grants by state. Each is in exactly one. */
export interface ClientStats {
  /** Null for personal access tokens. */
  clientId: string | null
  clientName: string | null
  /** Neither revoked nor expired. */
  active: number
  revoked: number
  expired: number
}

/** The successor of a row's token pair. */
export interface Rotation {
  tokenHash: Uint8Array
  refreshHash: Uint8Array
  expiresAt: number | null
  refreshExpiresAt: number | null
  refreshedAt: number
}

/** A synchronous store may answer with the value itself. */
type Answer<T> = T | Promise<T>

/**
 * Where grants live. `test/store/contract.ts` is the definition: a store is one if it passes.
 * Every method throws or rejects with `StoreUnavailableError` when the database cannot be used.
 */
export interface TokenStore {
  /** Connects, and creates or upgrades the table. Called once, before anything else. */
  open (): Answer<void>

  /**
   * Adds a row, atomically and durably. If the id exists, that grant is revoked in the same step. With `codeIssuedAt`,
   * nothing is added if a revocation as `disconnected` named this user, this client or both at or after that time.
   */
  issue (row: TokenRow, code?: { codeIssuedAt: number }): Answer<IssueResult>

  /** The row as it is now: it sees every revocation that has returned, wherever it was made. */
  findByTokenHash (tokenHash: Uint8Array): Answer<GrantRow | null>
  find (grantId: string): Answer<TokenRow | null>

  /** The user's grants that are neither revoked nor expired at `now`, oldest first. A grant lives while it can be refreshed. */
  list (selector: { userId: string }, now: number): Answer<GrantRow[]>

  /**
   * Replaces the token pair if the refresh token is still `from` and the grant is not revoked; `from` becomes the
   * previous one. Of any number of calls at once, exactly one answers true.
   */
  rotate (grantId: string, from: Uint8Array, to: Rotation): Answer<boolean>

  /**
   * Ends grants and answers how many were live. Once it has returned, none of them is found live again. As `disconnected`
   * it also stops codes issued before, for those that it names, even where no grant exists yet.
   */
  revoke (selector: Selector, reason: RevokedReason, now: number): Answer<number>

  /** Notes that a token was used. Written behind, coalesced, flushed by `close()`. Never throws. */
  touch (grantId: string, now: number): void

  /** Counts grants by client and state at `now`, the client with the most active ones first. */
  stats (now: number): Answer<ClientStats[]>

  /** How many grants `revoke()` would end, or how many rows `purge()` would delete in all. */
  count (what: Selector | { endedBefore: number }): Answer<number>

  /** Deletes at most `limit` rows that were revoked or expired before `before`; answers how many. */
  purge (before: number, limit: number): Answer<number>

  close (): Answer<void>
}

/** The database cannot be reached or used. Leaves the server as 503 with Retry-After. */
export class StoreUnavailableError extends Error {
  constructor (cause: unknown) {
    super('The token store is unavailable.', { cause })
    this.name = 'StoreUnavailableError'
  }
}
