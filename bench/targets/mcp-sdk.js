// The authorization server of the MCP SDK on Express. It brings the endpoints and leaves the storing to its user: here a
// provider like the SDK's own demo, over Maps, or over SQLite with hashed tokens (`sqlite`).
import { InvalidGrantError, InvalidTargetError, InvalidTokenError } from '@modelcontextprotocol/sdk/server/auth/errors.js'
import { requireBearerAuth } from '@modelcontextprotocol/sdk/server/auth/middleware/bearerAuth.js'
import { getOAuthProtectedResourceMetadataUrl, mcpAuthRouter } from '@modelcontextprotocol/sdk/server/auth/router.js'
import express from 'express'
import { createHash, randomBytes, randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { join } from 'node:path'
import { CALLBACK, METADATA, SCOPES, answer, codeChallenge, codeVerifier, get, postForm, registrations, withToken } from './common.js'

const ISSUER = new URL('http://localhost:3000')
const RESOURCE = new URL('http://localhost:3000/mcp')
const LIFETIME = 3600
const REFRESH_LIFETIME = 30 * 24 * 3600

export async function start ({ folder, sqlite = false }) {
  const store = sqlite ? await sqliteStore(join(folder, 'sdk.db')) : memoryStore()
  const provider = new Provider(store)
  const app = express()
  const unlimited = { rateLimit: false }
  app.use(mcpAuthRouter({
    provider,
    issuerUrl: ISSUER,
    resourceServerUrl: RESOURCE,
    scopesSupported: SCOPES,
    resourceName: 'Notes',
    authorizationOptions: unlimited,
    tokenOptions: unlimited,
    clientRegistrationOptions: unlimited,
    revocationOptions: unlimited
  }))
  const guard = requireBearerAuth({ verifier: provider, requiredScopes: ['read'], resourceMetadataUrl: getOAuthProtectedResourceMetadataUrl(RESOURCE), expectedResource: RESOURCE })
  app.get('/mcp', guard, ({ auth }, response) => { response.json(answer(auth.extra.userId, auth.scopes)) })
  const server = app.listen(0, '127.0.0.1')
  await once(server, 'listening')

  const clientId = randomUUID()
  store.addClient({ ...METADATA, client_id: clientId, client_id_issued_at: seconds() })
  // In one transaction each: with a wait for the disk for every row, preparing would take minutes.
  const prepared = (count, make) => store.together(() => Array.from({ length: count }, (_, index) => make(index)))
  const grant = (index) => ({ clientId, userId: `user ${index}`, scopes: SCOPES, resource: RESOURCE })

  return {
    port: server.address().port,
    // No `consent`: the SDK has no consent page.
    prepare: {
      guard: async () => prepared(10_000, (index) => {
        const tokens = newTokens()
        store.issue(grant(index), tokens)
        return withToken('/mcp', tokens.access)
      }),
      unknown: async () => Array.from({ length: 10_000 }, () => withToken('/mcp', newToken(), 401)),
      token: async (count) => prepared(count, (index) => {
        const code = newToken()
        store.addCode(code, { ...grant(index), redirectUri: CALLBACK, codeChallenge, expiresAt: seconds() + 600 })
        return postForm('/token', { grant_type: 'authorization_code', client_id: clientId, code, redirect_uri: CALLBACK, code_verifier: codeVerifier })
      }),
      refresh: async (count) => prepared(count, (index) => {
        const tokens = newTokens()
        store.issue(grant(index), tokens)
        return postForm('/token', { grant_type: 'refresh_token', client_id: clientId, refresh_token: tokens.refresh })
      }),
      register: async () => registrations('/register'),
      discovery: async () => [get('/.well-known/oauth-authorization-server')]
    }
  }
}

class Provider {
  #store

  constructor (store) {
    this.#store = store
    this.clientsStore = {
      getClient: async (clientId) => store.client(clientId),
      registerClient: async (client) => {
        store.addClient(client)
        return client
      }
    }
  }

  /** Like the demo's, without asking anybody. */
  async authorize (client, { state, scopes = [], redirectUri, codeChallenge, resource = RESOURCE }, response) {
    if (resource.href !== RESOURCE.href) throw new InvalidTargetError('Unknown resource')
    const code = newToken()
    this.#store.addCode(code, { clientId: client.client_id, userId: response.req.get('x-user') ?? 'alice', scopes: scopes.filter((scope) => SCOPES.includes(scope)), resource, redirectUri, codeChallenge, expiresAt: seconds() + 600 })
    const url = new URL(redirectUri)
    url.searchParams.set('code', code)
    if (state !== undefined) url.searchParams.set('state', state)
    response.redirect(url.href)
  }

  async challengeForAuthorizationCode (client, code) {
    const challenge = this.#store.codeChallenge(code, client.client_id)
    if (challenge === undefined) throw new InvalidGrantError('Invalid authorization code')
    return challenge
  }

  async exchangeAuthorizationCode (client, code, codeVerifier, redirectUri) {
    const tokens = newTokens()
    const grant = this.#store.together(() => {
      const taken = this.#store.takeCode(code, client.client_id, redirectUri)
      if (taken !== undefined) this.#store.issue(taken, tokens)
      return taken
    })
    if (grant === undefined) throw new InvalidGrantError('Invalid authorization code')
    return asResponse(tokens, grant)
  }

  async exchangeRefreshToken (client, refreshToken) {
    const tokens = newTokens()
    const grant = this.#store.rotate(refreshToken, client.client_id, tokens)
    if (grant === undefined) throw new InvalidGrantError('Invalid refresh token')
    return asResponse(tokens, grant)
  }

  async verifyAccessToken (token) {
    const grant = this.#store.findByAccess(token)
    if (grant === undefined) throw new InvalidTokenError('Invalid or expired token')
    const { clientId, scopes, expiresAt, resource, userId } = grant
    return { token, clientId, scopes, expiresAt, resource, extra: { userId } }
  }

  async revokeToken (client, { token }) {
    this.#store.revoke(token, client.client_id)
  }
}

function memoryStore () {
  const clients = new Map()
  const codes = new Map()
  const byAccess = new Map()
  const byRefresh = new Map()
  const issue = (grant, tokens) => {
    const issued = { ...grant, ...tokens }
    byAccess.set(tokens.access, issued)
    byRefresh.set(tokens.refresh, issued)
  }
  const remove = ({ access, refresh }) => {
    byAccess.delete(access)
    byRefresh.delete(refresh)
  }
  return {
    together: (work) => work(),
    client: (clientId) => clients.get(clientId),
    addClient: (client) => { clients.set(client.client_id, client) },
    addCode: (code, data) => { codes.set(code, data) },
    codeChallenge (code, clientId) {
      const data = codes.get(code)
      return data?.clientId === clientId ? data.codeChallenge : undefined
    },
    takeCode (code, clientId, redirectUri) {
      const data = codes.get(code)
      if (data === undefined || data.clientId !== clientId || data.redirectUri !== redirectUri || data.expiresAt < seconds()) return undefined
      codes.delete(code)
      const { userId, scopes, resource } = data
      return { clientId, userId, scopes, resource }
    },
    issue,
    rotate (refresh, clientId, tokens) {
      const grant = byRefresh.get(refresh)
      if (grant === undefined || grant.clientId !== clientId || grant.refreshExpiresAt < seconds()) return undefined
      remove(grant)
      issue(grant, tokens)
      return grant
    },
    findByAccess: (access) => byAccess.get(access),
    revoke (token, clientId) {
      const grant = byAccess.get(token) ?? byRefresh.get(token)
      if (grant?.clientId === clientId) remove(grant)
    }
  }
}

async function sqliteStore (path) {
  const { DatabaseSync } = await import('@photostructure/sqlite')
  const database = new DatabaseSync(path)
  database.exec(`
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    CREATE TABLE IF NOT EXISTS clients (id TEXT PRIMARY KEY, metadata TEXT NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS codes (
      hash BLOB PRIMARY KEY, client_id TEXT NOT NULL, user_id TEXT NOT NULL, scopes TEXT NOT NULL, resource TEXT NOT NULL,
      redirect_uri TEXT NOT NULL, code_challenge TEXT NOT NULL, expires_at INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS grants (
      id INTEGER PRIMARY KEY, access_hash BLOB NOT NULL UNIQUE, refresh_hash BLOB NOT NULL UNIQUE, client_id TEXT NOT NULL,
      user_id TEXT NOT NULL, scopes TEXT NOT NULL, resource TEXT NOT NULL, expires_at INTEGER NOT NULL, refresh_expires_at INTEGER NOT NULL
    ) STRICT;
  `)
  const findClient = database.prepare('SELECT metadata FROM clients WHERE id = ?')
  const insertClient = database.prepare('INSERT INTO clients (id, metadata) VALUES (?, ?)')
  const insertCode = database.prepare('INSERT INTO codes (hash, client_id, user_id, scopes, resource, redirect_uri, code_challenge, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)')
  const findCode = database.prepare('SELECT code_challenge FROM codes WHERE hash = ? AND client_id = ?')
  const deleteCode = database.prepare('DELETE FROM codes WHERE hash = ? AND client_id = ? AND redirect_uri = ? AND expires_at >= ? RETURNING client_id, user_id, scopes, resource')
  const insertGrant = database.prepare('INSERT INTO grants (client_id, user_id, scopes, resource, access_hash, refresh_hash, expires_at, refresh_expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)')
  const rotateGrant = database.prepare(`
    UPDATE grants SET access_hash = ?, refresh_hash = ?, expires_at = ?, refresh_expires_at = ?
    WHERE refresh_hash = ? AND client_id = ? AND refresh_expires_at >= ? RETURNING client_id, user_id, scopes, resource
  `)
  const findGrant = database.prepare('SELECT client_id, user_id, scopes, resource, expires_at FROM grants WHERE access_hash = ?')
  const deleteGrant = database.prepare('DELETE FROM grants WHERE (access_hash = ?1 OR refresh_hash = ?1) AND client_id = ?2')

  const asGrant = (row) => row && { clientId: row.client_id, userId: row.user_id, scopes: row.scopes.split(' '), resource: new URL(row.resource), expiresAt: row.expires_at }
  return {
    together (work) {
      database.exec('BEGIN IMMEDIATE')
      try {
        const result = work()
        database.exec('COMMIT')
        return result
      } catch (error) {
        database.exec('ROLLBACK')
        throw error
      }
    },
    client (clientId) {
      const row = findClient.get(clientId)
      return row && JSON.parse(row.metadata)
    },
    addClient: (client) => { insertClient.run(client.client_id, JSON.stringify(client)) },
    addCode: (code, { clientId, userId, scopes, resource, redirectUri, codeChallenge, expiresAt }) => {
      insertCode.run(hash(code), clientId, userId, scopes.join(' '), resource.href, redirectUri, codeChallenge, expiresAt)
    },
    codeChallenge: (code, clientId) => findCode.get(hash(code), clientId)?.code_challenge,
    takeCode: (code, clientId, redirectUri) => asGrant(deleteCode.get(hash(code), clientId, redirectUri ?? null, seconds())),
    issue: ({ clientId, userId, scopes, resource }, { access, refresh, expiresAt, refreshExpiresAt }) => {
      insertGrant.run(clientId, userId, scopes.join(' '), resource.href, hash(access), hash(refresh), expiresAt, refreshExpiresAt)
    },
    rotate: (token, clientId, { access, refresh, expiresAt, refreshExpiresAt }) =>
      asGrant(rotateGrant.get(hash(access), hash(refresh), expiresAt, refreshExpiresAt, hash(token), clientId, seconds())),
    findByAccess: (access) => asGrant(findGrant.get(hash(access))),
    revoke: (token, clientId) => { deleteGrant.run(hash(token), clientId) }
  }
}

function newTokens () {
  const now = seconds()
  return { access: newToken(), refresh: newToken(), expiresAt: now + LIFETIME, refreshExpiresAt: now + REFRESH_LIFETIME }
}

const asResponse = ({ access, refresh }, { scopes }) => ({ access_token: access, token_type: 'bearer', expires_in: LIFETIME, refresh_token: refresh, scope: scopes.join(' ') })
const newToken = () => randomBytes(32).toString('base64url')
const hash = (token) => createHash('sha256').update(token).digest()
const seconds = () => Math.floor(Date.now() / 1000)
