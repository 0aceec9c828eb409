import { NodeSqliteDialect } from '@better-auth/kysely-adapter/node-sqlite-dialect'
import { getOAuthProviderApi, oauthProvider } from '@better-auth/oauth-provider'
import { DatabaseSync } from '@photostructure/sqlite'
import { betterAuth } from 'better-auth'
import { generateRandomString } from 'better-auth/crypto'
import { getMigrations } from 'better-auth/db/migration'
import { toNodeHandler } from 'better-auth/node'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { join } from 'node:path'
import { CALLBACK, METADATA, SCOPES, answer, codeChallenge, codeVerifier, get, many, postForm, postJson, withToken } from './common.js'

const ISSUER = 'http://localhost:3000'
const RESOURCE = `${ISSUER}/mcp`
// It issues refresh tokens for this scope only.
const GRANTED = [...SCOPES, 'offline_access']
// Without a type a client is one of the web, and those must redirect to https.
const CLIENT = { ...METADATA, application_type: 'native' }

const random = () => generateRandomString(32, 'a-z', 'A-Z')

export async function start ({ folder }) {
  const database = new DatabaseSync(join(folder, 'better-auth.db'))
  database.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL')
  const auth = betterAuth({
    baseURL: ISSUER,
    secret: 's'.repeat(43),
    // What it makes of a DatabaseSync of node:sqlite, the only one it knows.
    database: { dialect: new NodeSqliteDialect({ database }), type: 'sqlite', transaction: true },
    emailAndPassword: { enabled: true },
    rateLimit: { enabled: false },
    telemetry: { enabled: false },
    logger: { disabled: true },
    plugins: [oauthProvider({
      loginPage: '/sign-in',
      consentPage: '/consent',
      scopes: GRANTED,
      resources: [RESOURCE],
      cachedResources: new Set([RESOURCE]),
      clientRegistrationDefaultResources: [RESOURCE],
      allowDynamicClientRegistration: true,
      allowUnauthenticatedClientRegistration: true,
      disableJwtPlugin: true,
      accessTokenExpiresIn: 3600,
      refreshTokenExpiresIn: 30 * 24 * 3600
    })]
  })
  await (await getMigrations(auth.options)).runMigrations()
  const context = await auth.$context
  const oauth = getOAuthProviderApi({ context }, context.getPlugin('oauth-provider').options)

  const guarded = async (request, response) => {
    const reply = (status, value, headers = {}) => {
      const body = JSON.stringify(value)
      response.writeHead(status, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body), ...headers }).end(body)
    }
    let claims
    try {
      claims = await oauth.requireActiveAccessToken(/^Bearer (.+)$/i.exec(request.headers.authorization ?? '')?.[1] ?? '')
    } catch (error) {
      if (error.status !== 'UNAUTHORIZED') return reply(500, { error: 'server_error' })
    }
    const scopes = claims?.scope?.split(' ') ?? []
    if (claims?.aud !== RESOURCE || !scopes.includes('read')) return reply(401, { error: 'invalid_token' }, { 'www-authenticate': 'Bearer error="invalid_token"' })
    reply(200, answer(claims.sub, scopes))
  }
  const handle = toNodeHandler(auth)
  const server = createServer((request, response) => request.url === '/mcp' ? guarded(request, response) : handle(request, response)).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address()

  const signUp = async (name) => {
    const { headers, response } = await auth.api.signUpEmail({ body: { name, email: `${name}@example.com`, password: 'correct horse battery' }, returnHeaders: true })
    return { cookie: headers.getSetCookie().map((line) => line.split(';')[0]).join('; '), userId: response.user.id }
  }
  const { client_id: clientId } = await auth.api.registerOAuthClient({ body: CLIENT })
  const authorize = `/api/auth/oauth2/authorize?${new URLSearchParams({ response_type: 'code', client_id: clientId, redirect_uri: CALLBACK, code_challenge: codeChallenge, code_challenge_method: 'S256', state: 'xyz', scope: GRANTED.join(' '), resource: RESOURCE })}`
  const redemption = (code) => postForm('/api/auth/oauth2/token', { grant_type: 'authorization_code', client_id: clientId, code, redirect_uri: CALLBACK, code_verifier: codeVerifier })

  // All that is prepared are copies of the rows that one real flow leaves: through its adapter they would take minutes.
  const ask = async ({ method, path, headers, body }) => await (await fetch(`http://127.0.0.1:${port}${path}`, { method, headers, body })).json()
  const alice = await signUp('alice')
  const { cookie, userId } = await signUp('flow')
  const { url } = await ask(get(authorize, { cookie, accept: 'application/json' }))
  const consent = postJson('/api/auth/oauth2/consent', { accept: true, oauth_query: url.slice(url.indexOf('?') + 1) })
  const code = new URL((await ask({ ...consent, headers: { ...consent.headers, cookie, origin: ISSUER } })).url).searchParams.get('code')
  const row = (table, column, value) => database.prepare(`SELECT * FROM "${table}" WHERE "${column}" = ?`).get(value)
  const codeRow = row('verification', 'identifier', await oauth.hashToken(code, 'authorization_code'))
  const tokens = await ask(redemption(code))
  const rows = {
    user: row('user', 'id', userId),
    session: row('session', 'userId', userId),
    verification: codeRow,
    oauthAccessToken: { ...row('oauthAccessToken', 'token', await oauth.hashToken(tokens.access_token, 'access_token')), refreshId: null },
    oauthRefreshToken: row('oauthRefreshToken', 'token', await oauth.hashToken(tokens.refresh_token, 'refresh_token'))
  }
  const copy = (table, changes) => {
    const like = rows[table]
    const columns = Object.keys(like)
    const insert = database.prepare(`INSERT INTO "${table}" (${columns.map((name) => `"${name}"`)}) VALUES (${columns.map(() => '?')})`)
    const later = like.expiresAt && { expiresAt: new Date(Date.now() + Date.parse(like.expiresAt) - Date.parse(like.createdAt)).toISOString() }
    database.exec('BEGIN')
    for (const change of changes) {
      const made = { ...like, id: random(), ...later, ...change }
      insert.run(...columns.map((name) => made[name]))
    }
    database.exec('COMMIT')
  }
  let sessions
  const issued = async (count, type) => {
    if (sessions === undefined) {
      sessions = Array.from({ length: 10_000 }, () => ({ userId: random(), sessionId: random() }))
      copy('user', sessions.map(({ userId: id }) => ({ id, email: `${id}@example.com` })))
      copy('session', sessions.map(({ userId, sessionId: id }) => ({ id, userId, token: random() })))
    }
    return await many(count, async (index) => {
      const secret = random()
      return { secret, hash: await oauth.hashToken(secret, type), ...sessions[index % sessions.length] }
    })
  }

  return {
    port,
    prepare: {
      guard: async () => {
        const made = await issued(10_000, 'access_token')
        copy('oauthAccessToken', made.map(({ hash: token, userId, sessionId }) => ({ token, userId, sessionId, authorizationCodeId: token })))
        return made.map(({ secret }) => withToken('/mcp', secret))
      },
      unknown: async () => await many(10_000, async () => withToken('/mcp', random(), 401)),
      token: async (count) => {
        const value = JSON.parse(codeRow.value)
        const made = await issued(count, 'authorization_code')
        copy('verification', made.map(({ hash: identifier, userId, sessionId }) => ({ identifier, value: JSON.stringify({ ...value, userId, sessionId }) })))
        return made.map(({ secret }) => redemption(secret))
      },
      refresh: async (count) => {
        const made = await issued(count, 'refresh_token')
        copy('oauthRefreshToken', made.map(({ hash: token, userId, sessionId }) => ({ token, userId, sessionId, authorizationCodeId: token })))
        return made.map(({ secret }) => postForm('/api/auth/oauth2/token', { grant_type: 'refresh_token', client_id: clientId, refresh_token: secret }))
      },
      register: async () => [postJson('/api/auth/oauth2/register', CLIENT, 201)],
      discovery: async () => [get('/.well-known/oauth-authorization-server/api/auth')],
      // The redirect to the page: the page itself would be ours.
      consent: async () => [get(authorize, { cookie: alice.cookie }, 302)]
    }
  }
}
