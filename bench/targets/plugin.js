import Fastify from 'fastify'
import { join } from 'node:path'
import mcpOAuth from '../../dist/index.js'
import { createSealer, createSigner } from '../../dist/protocol/sealed.js'
import { createGrantId, createToken, hashToken, parseKey } from '../../dist/protocol/secret.js'
import { postgresStore } from '../../dist/store/postgres.js'
import { newRow } from '../../dist/store/schema.js'
import { sqliteStore } from '../../dist/store/sqlite.js'
import { CALLBACK, METADATA, SCOPES, answer, codeChallenge, codeVerifier, get, many, postForm, registrations, withToken } from './common.js'

const KEY = 'k'.repeat(43)
const ISSUER = 'http://localhost:3000'

/** `one`: a query for each look-up, as most would write it. `rows`: how many others there are already. */
export async function start ({ folder, postgres, one = false, rows = 0 }) {
  const store = postgres === undefined ? sqliteStore({ path: join(folder, 'tokens.db') }) : one ? await oneQueryEach(postgres) : postgresStore({ connectionString: postgres })
  const app = Fastify()
  await app.register(mcpOAuth, {
    issuer: ISSUER,
    keys: [KEY],
    store,
    scopes: { read: 'Read your notes', write: 'Change your notes' },
    resources: [{ path: '/mcp', name: 'Notes' }],
    currentUser: ({ headers }) => headers['x-user'] === undefined ? null : { id: headers['x-user'] },
    loginUrl: '/login',
    accessTokenLifetime: 3600,
    refreshTokenLifetime: 30 * 24 * 3600,
    rateLimit: false
  })
  app.get('/mcp', { onRequest: app.oauth.protect({ scopes: ['read'] }) }, async ({ oauth }) => answer(oauth.userId, oauth.scopes))
  await app.ready()
  if (rows > 0) await (postgres === undefined ? fillSqlite(join(folder, 'tokens.db'), rows) : fillPostgres(postgres, rows))
  await app.listen({ port: 0, host: '127.0.0.1' })

  const keys = [parseKey(KEY)]
  const codes = await createSealer(keys, 'code')
  const clientId = await (await createSigner(keys, 'client')).sign({ client_name: METADATA.client_name, redirect_uris: ['http://127.0.0.1/callback'] })
  const redemption = async (index) => {
    const code = await codes.seal({
      grantId: createGrantId(),
      userId: `user ${index}`,
      tenantId: null,
      clientId,
      clientName: METADATA.client_name,
      redirectUri: CALLBACK,
      codeChallenge,
      scopes: SCOPES,
      resource: `${ISSUER}/mcp`,
      issuedAt: Date.now(),
      expiresAt: Date.now() + 600_000
    })
    return postForm('/oauth/token', { grant_type: 'authorization_code', client_id: clientId, code, redirect_uri: CALLBACK, code_verifier: codeVerifier })
  }
  const authorize = `/oauth/authorize?${new URLSearchParams({ response_type: 'code', client_id: clientId, redirect_uri: CALLBACK, code_challenge: codeChallenge, code_challenge_method: 'S256', state: 'xyz', scope: 'read write' })}`

  return {
    port: app.server.address().port,
    prepare: {
      guard: async (count) => await many(count, async (index) => {
        const token = createToken('oat_')
        await store.issue(newRow({ id: createGrantId(), tokenHash: hashToken(token), userId: `user ${index}`, clientId, clientName: METADATA.client_name, scopes: 'read write', resource: `${ISSUER}/mcp`, createdAt: Date.now(), expiresAt: Date.now() + 3_600_000 }))
        return withToken('/mcp', token)
      }),
      unknown: async (count) => await many(count, async () => withToken('/mcp', createToken('oat_'), 401)),
      token: async (count) => await many(count, redemption),
      refresh: async (count) => await many(count, async (index) => {
        const { method, path: url, headers, body: payload } = await redemption(index)
        const { refresh_token: token } = (await app.inject({ method, url, headers, payload })).json()
        return postForm('/oauth/token', { grant_type: 'refresh_token', client_id: clientId, refresh_token: token })
      }),
      register: async () => registrations('/oauth/register'),
      discovery: async () => [get('/.well-known/oauth-authorization-server')],
      consent: async () => [get(authorize, { 'x-user': 'alice' })]
    }
  }
}

async function oneQueryEach (connectionString) {
  const { default: pg } = await import('pg')
  const pool = new pg.Pool({ connectionString })
  const store = postgresStore({ pool })
  const { GRANT_COLUMNS, grantRowOf } = await import('../../dist/store/schema.js')
  const columns = GRANT_COLUMNS.map(([, column, type]) => type.startsWith('time') ? `${column}::float8` : column).join(', ')
  store.findByTokenHash = async (tokenHash) => {
    const { rows: [values] } = await pool.query({ name: 'one', text: `SELECT ${columns} FROM access_tokens WHERE token_hash = $1`, values: [tokenHash], rowMode: 'array' })
    return values === undefined ? null : grantRowOf(values)
  }
  return store
}

// Rows of other users, made by the database itself. Their hashes are in order, so that it takes minutes and not hours, and
// as far apart as real ones, so that each look-up is for another page of the index.
const OTHERS = '(id, token_hash, user_id, client_id, client_name, scopes, resource, created_at, expires_at)'

/** Of 63 bits, which is what both databases count with. */
const step = (rows) => 2n ** 63n / BigInt(rows + 1)

async function fillSqlite (path, rows) {
  const { DatabaseSync } = await import('@photostructure/sqlite')
  const database = new DatabaseSync(path)
  database.exec(`
    PRAGMA synchronous = OFF;
    WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ${rows})
    INSERT INTO access_tokens ${OTHERS}
    SELECT printf('%016x%06d', n * ${step(rows)}, 0), unhex(printf('%016x%048d', n * ${step(rows)}, 0)), printf('user %09d', n / 4), 'client ' || n % 20, 'Bench', 'read write', '${ISSUER}/mcp', 1800000000000 + n, 1900000000000 FROM numbers;
    PRAGMA wal_checkpoint(TRUNCATE);
  `)
  database.close()
}

async function fillPostgres (connectionString, rows) {
  const { default: pg } = await import('pg')
  const client = new pg.Client({ connectionString })
  await client.connect()
  const { rows: indexes } = await client.query("SELECT indexname AS name, indexdef AS definition FROM pg_indexes WHERE tablename = 'access_tokens' AND indexname LIKE 'access_tokens\\_%' AND indexname NOT LIKE '%\\_key' AND indexname NOT LIKE '%\\_pkey'")
  await client.query("SET synchronous_commit = off; SET maintenance_work_mem = '1GB'")
  for (const { name } of indexes) await client.query(`DROP INDEX ${name}`)
  await client.query(`
    INSERT INTO access_tokens ${OTHERS}
    SELECT lpad(to_hex(n * ${step(rows)}), 16, '0') || '000000', decode(lpad(to_hex(n * ${step(rows)}), 16, '0') || repeat('0', 48), 'hex'), 'user ' || n / 4, 'client ' || n % 20, 'Bench', 'read write', '${ISSUER}/mcp', 1800000000000 + n, 1900000000000
    FROM generate_series(1, ${rows}::bigint) AS n`)
  for (const { definition } of indexes) await client.query(definition)
  await client.query('VACUUM ANALYZE access_tokens; ')
  await client.end()
}
