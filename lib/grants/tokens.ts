import createError from '@fastify/error'
import { MAX_CLIENT_ID_LENGTH } from '../clients/client.js'
import type { Settings } from '../options.js'
import { findResource } from '../protocol/resource.js'
import { formatScope } from '../protocol/scope.js'
import { createGrantId, createToken, hashToken, isIdentifier } from '../protocol/secret.js'
import { grantOf, refusal, type Grant } from '../store/grant.js'
import { newRow } from '../store/schema.js'
import type { ClientStats, Selector, TokenStore } from '../store/store.js'
import { verifyToken } from './verify.js'

export interface CreateTokenOptions {
  userId: string
  tenantId?: string
  /** Its label on the connected-apps page. */
  name: string
  scopes: readonly string[]
  /** URL of the only resource it is for. Default: any of this app. */
  resource?: string
  /** Epoch milliseconds. Default: never. */
  expiresAt?: number
}

/** A grant as its user sees it. Times are epoch milliseconds. */
export interface ListedGrant extends Grant {
  /** The label of a personal access token. */
  name: string | null
  /** The host that received the code. */
  clientHost: string | null
  createdAt: number
  lastUsedAt: number | null
}

export interface TokenStats {
  total: number
  /** Neither revoked nor expired. */
  active: number
  revoked: number
  expired: number
  /** Active personal access tokens. */
  personal: number
  /** The most active first. */
  clients: ClientStats[]
}

/** `app.oauth.tokens`. Every method may reject with `StoreUnavailableError`. */
export interface Tokens {
  /** Makes a personal access token. `token` is told this once and stored nowhere. Throws FST_MCP_OAUTH_INVALID_TOKEN_OPTION. */
  create: (options: CreateTokenOptions) => Promise<{ token: string, grantId: string }>
  /** The grant of a live token, of any resource or of the given one (its URL); null for anything else. */
  verify: (token: string, options?: { resource?: string }) => Promise<Grant | null>
  /** A user's live grants, oldest first. Throws FST_MCP_OAUTH_INVALID_SELECTOR. */
  list: (selector: { userId: string }) => Promise<ListedGrant[]>
  /** Ends grants at once, codes on their way included; answers how many were live. Throws FST_MCP_OAUTH_INVALID_SELECTOR. */
  revoke: (selector: Selector) => Promise<number>
  /** Counts grants by state, in all and by client. Reads the whole table. */
  stats: () => Promise<TokenStats>
  /** Deletes rows that were revoked or expired over 30 days ago; answers how many. Also runs hourly by itself. */
  purge: () => Promise<number>
}

/** Revoked rows outlive every code, or a code could be replayed after its row is gone; the rest of the time is for people. */
export const RETENTION = 30 * 24 * 60 * 60 * 1000
/** Later times are no dates in JavaScript. */
const LAST_DATE = 8.64e15
const PURGE_BATCH = 500

const TokenOptionError = createError('FST_MCP_OAUTH_INVALID_TOKEN_OPTION', 'tokens.create(): %s', 500, TypeError)
const SelectorError = createError('FST_MCP_OAUTH_INVALID_SELECTOR', 'tokens.%s(): expected %s, with strings that are not empty', 500, TypeError)

export function createTokens (settings: Settings): Tokens {
  const { store, resources, idleLifetime, emit } = settings
  return {
    create: async (options) => (await createPersonalToken(settings, options, createGrantId()))!,

    async verify (token, { resource } = {}) {
      const wanted = resource === undefined ? undefined : findResource(resource, resources)
      if (resource !== undefined && wanted === undefined) return null
      const { row, reason } = await verifyToken(settings, token, wanted && [wanted.uri], Date.now())
      return reason === undefined ? grantOf(row) : null
    },

    async list ({ userId }) {
      if (!isIdentifier(userId)) throw new SelectorError('list', '{ userId }')
      const now = Date.now()
      const rows = await store.list({ userId }, now)
      return rows.filter((row) => refusal({ ...row, expiresAt: null }, undefined, now, idleLifetime) === undefined).map((row) => {
        const { name, clientHost, createdAt, lastUsedAt } = row
        return { ...grantOf(row), name, clientHost, createdAt, lastUsedAt }
      })
    },

    async revoke (selector) {
      if (!isSelector(selector)) throw new SelectorError('revoke', '{ grantId }, { userId }, { userId, clientId } or { clientId }')
      const grants = await store.revoke(selector, 'disconnected', Date.now())
      emit(null, { type: 'token.revoked', grantId: null, ...selector, grants, reason: 'disconnected' })
      return grants
    },

    async stats () {
      return summarize(await store.stats(Date.now()))
    },

    async purge () {
      return await purge(store, Date.now() - RETENTION)
    }
  }
}

/**
 * Makes a personal access token, unless there has been one of that id: then null.
 *
 * @throws FST_MCP_OAUTH_INVALID_TOKEN_OPTION
 */
export async function createPersonalToken (settings: Settings, options: CreateTokenOptions, grantId: string): Promise<{ token: string, grantId: string } | null> {
  const { store, scopes, resources, emit } = settings
  const { userId, tenantId, name, scopes: asked, resource, expiresAt, ...others } = options
  if (Object.keys(others).length > 0) throw new TokenOptionError(`unknown option ${Object.keys(others).join(', ')}`)
  if (!Array.isArray(asked) || asked.length === 0) throw new TokenOptionError('scopes must be a list with at least one entry')
  for (const [key, value] of Object.entries({ userId, name, ...(tenantId != null && { tenantId }) })) {
    if (!isIdentifier(value)) throw new TokenOptionError(`${key} must be a string that is not empty and holds no NUL`)
  }
  const unknown = asked.filter((scope) => !scopes.names.includes(scope))
  if (unknown.length > 0) throw new TokenOptionError(`unknown scope ${unknown.join(', ')}`)
  const now = Date.now()
  const bound = resource === undefined ? undefined : findResource(resource, resources)
  if (resource !== undefined && bound === undefined) throw new TokenOptionError(`unknown resource ${resource}, expected one of ${resources.map(({ uri }) => uri).join(', ')}`)
  if (expiresAt !== undefined && !(Number.isInteger(expiresAt) && expiresAt > now && expiresAt <= LAST_DATE)) throw new TokenOptionError('expiresAt must be epoch milliseconds in the future; leave it out for never')

  const token = createToken('pat_')
  const row = newRow({
    id: grantId,
    tokenHash: hashToken(token),
    userId,
    tenantId: tenantId ?? null,
    name,
    scopes: formatScope(scopes.expand(asked)),
    resource: bound?.uri ?? null,
    createdAt: now,
    expiresAt: expiresAt ?? null
  })
  // Looked up first, because a repeated id ends the grant that has it: that is left for two that come at the same moment.
  if (await store.find(grantId) !== null) return null
  if (await store.issue(row) !== 'issued') {
    emit(null, { type: 'token.revoked', userId, grantId, grants: 1, reason: 'code_replayed' })
    return null
  }
  emit(null, { type: 'token.issued', userId, grantId, scopes: [...grantOf(row).scopes] })
  return { token, grantId }
}

/** An undefined id must not widen what is revoked: { userId, clientId: undefined } is a bug, not "all". */
export function isSelector (value: object): value is Selector {
  return ['grantId', 'userId', 'clientId', 'clientId,userId'].includes(Object.keys(value).sort().join()) &&
    Object.values(value).every((id) => isIdentifier(id, MAX_CLIENT_ID_LENGTH))
}

export function summarize (stats: readonly ClientStats[]): TokenStats {
  const sum = (state: 'active' | 'revoked' | 'expired'): number => stats.reduce((sum, each) => sum + each[state], 0)
  const [active, revoked, expired] = [sum('active'), sum('revoked'), sum('expired')]
  return {
    total: active + revoked + expired,
    active,
    revoked,
    expired,
    personal: stats.find(({ clientId }) => clientId === null)?.active ?? 0,
    clients: stats.filter(({ clientId }) => clientId !== null)
  }
}

/** In batches, so that no request waits long for a lock, and what is done stays done wherever this ends. */
export async function purge (store: TokenStore, before: number, onProgress?: (deleted: number) => void): Promise<number> {
  let deleted = 0
  for (let batch = PURGE_BATCH; batch === PURGE_BATCH;) {
    batch = await store.purge(before, PURGE_BATCH)
    deleted += batch
    onProgress?.(deleted)
    await new Promise((resolve) => setImmediate(resolve))
  }
  return deleted
}
