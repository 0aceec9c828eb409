// @jmondi/oauth2-server on Fastify, with repositories over Maps. Its access tokens, refresh tokens and codes are JWTs.
import formbody from '@fastify/formbody'
import { AuthorizationServer, DateInterval, JwtService, OAuthException, generateRandomToken } from '@jmondi/oauth2-server'
import { handleFastifyError, handleFastifyReply, requestFromFastify } from '@jmondi/oauth2-server/fastify'
import Fastify from 'fastify'
import { CALLBACK, METADATA, SCOPES, answer, codeChallenge, codeVerifier, many, postForm, withToken } from './common.js'

const ISSUER = 'http://localhost:3000'
const AUDIENCE = `${ISSUER}/mcp`
const HOUR = new DateInterval('1h')
const CLIENT = { id: 'bench', name: METADATA.client_name, redirectUris: METADATA.redirect_uris, allowedGrants: METADATA.grant_types, scopes: SCOPES.map((name) => ({ name })) }

export async function start () {
  const tokens = tokenRepository()
  const jwt = new JwtService('k'.repeat(43))
  // It knows no resource indicators: without this, the client would choose the audience.
  jwt.extraTokenFields = () => ({ aud: AUDIENCE })
  const authorizationServer = new AuthorizationServer(clientRepository(), tokens, scopeRepository(), jwt, { issuer: ISSUER })
  authorizationServer.enableGrantTypes(
    [{ grant: 'authorization_code', authCodeRepository: codeRepository(), userRepository: { getUserByCredentials: async (id) => ({ id }) } }, HOUR],
    ['refresh_token', HOUR]
  )

  const app = Fastify()
  await app.register(formbody)
  app.post('/token', async (request, reply) => {
    try {
      handleFastifyReply(reply, await authorizationServer.respondToAccessTokenRequest(requestFromFastify(request)))
    } catch (error) {
      handleFastifyError(error, reply)
    }
    return reply
  })
  app.decorateRequest('accessToken', null)
  app.get('/mcp', { onRequest: requireAuth(jwt, tokens, ['read']) }, async ({ accessToken: { payload, scopes } }) => answer(payload.sub, scopes))
  await app.listen({ port: 0, host: '127.0.0.1' })

  const query = { response_type: 'code', client_id: CLIENT.id, redirect_uri: CALLBACK, code_challenge: codeChallenge, code_challenge_method: 'S256', state: 'xyz', scope: 'read write' }
  const redemption = async (index) => {
    const asked = await authorizationServer.validateAuthorizationRequest(requestFromFastify({ query }))
    asked.user = { id: `user ${index}` }
    asked.isAuthorizationApproved = true
    const { headers } = await authorizationServer.completeAuthorizationRequest(asked)
    const code = new URL(headers.location).searchParams.get('code')
    return postForm('/token', { grant_type: 'authorization_code', client_id: CLIENT.id, code, redirect_uri: CALLBACK, code_verifier: codeVerifier })
  }
  const redeemed = async (index) => {
    const { body } = await redemption(index)
    return (await authorizationServer.respondToAccessTokenRequest(requestFromFastify({ body: Object.fromEntries(new URLSearchParams(body)) }))).body
  }
  const stranger = new JwtService('x'.repeat(43))

  return {
    port: app.server.address().port,
    // It has neither registration nor discovery, and the consent page is the app's own.
    prepare: {
      guard: async () => await many(10_000, async (index) => withToken('/mcp', (await redeemed(index)).access_token)),
      // Signed with another key, as nobody else has this one: they are refused before any look-up.
      unknown: async () => await many(10_000, async (index) => {
        const now = Math.floor(Date.now() / 1000)
        return withToken('/mcp', await stranger.sign({ iss: ISSUER, aud: AUDIENCE, cid: CLIENT.id, scope: 'read write', sub: `user ${index}`, exp: now + 3600, nbf: now, iat: now, jti: generateRandomToken() }), 401)
      }),
      token: async (count) => await many(count, redemption),
      refresh: async (count) => await many(count, async (index) => postForm('/token', { grant_type: 'refresh_token', client_id: CLIENT.id, refresh_token: (await redeemed(index)).refresh_token }))
    }
  }
}

/** The guard of its documentation ("Protect resources"): signature, issuer, audience, then whether the token is still stored. */
function requireAuth (jwt, tokens, requiredScopes) {
  const validate = async (token) => {
    try {
      const payload = await jwt.verify(token)
      if (payload.iss !== ISSUER || payload.aud !== AUDIENCE) return null
      const stored = await tokens.getByAccessToken(payload.jti)
      if (stored.accessTokenExpiresAt < new Date()) return null
      return { payload, scopes: payload.scope?.split(' ').filter(Boolean) ?? [], token: stored }
    } catch {
      return null
    }
  }
  return async (request, reply) => {
    const { authorization } = request.headers
    if (!authorization?.startsWith('Bearer ')) return reply.code(401).header('www-authenticate', 'Bearer realm="api"').send({ error: 'invalid_request' })
    const validated = await validate(authorization.slice(7))
    if (validated === null) return reply.code(401).header('www-authenticate', 'Bearer error="invalid_token"').send({ error: 'invalid_token' })
    if (!requiredScopes.every((scope) => validated.scopes.includes(scope))) return reply.code(403).header('www-authenticate', 'Bearer error="insufficient_scope"').send({ error: 'insufficient_scope' })
    request.accessToken = validated
  }
}

function clientRepository () {
  const clients = new Map([[CLIENT.id, CLIENT]])
  return {
    async getByIdentifier (id) {
      const client = clients.get(id)
      if (client === undefined) throw OAuthException.invalidClient()
      return client
    },
    isClientValid: async (grantType, client) => client.allowedGrants.includes(grantType)
  }
}

function scopeRepository () {
  const scopes = new Map(CLIENT.scopes.map((scope) => [scope.name, scope]))
  return {
    getAllByIdentifiers: async (names) => names.filter((name) => scopes.has(name)).map((name) => scopes.get(name)),
    finalize: async (scopes) => scopes
  }
}

function codeRepository () {
  const codes = new Map()
  return {
    async getByIdentifier (code) {
      const found = codes.get(code)
      if (found === undefined) throw OAuthException.invalidGrant()
      return found
    },
    issueAuthCode: (client, user, scopes) => ({ code: generateRandomToken(), expiresAt: new DateInterval('10m').getEndDate(), client, user, scopes }),
    persist: async (code) => { codes.set(code.code, code) },
    isRevoked: async (code) => !(codes.get(code)?.expiresAt > Date.now()),
    revoke: async (code) => { codes.get(code).expiresAt = new Date(0) }
  }
}

function tokenRepository () {
  const byAccess = new Map()
  const byRefresh = new Map()
  const found = (token, name) => {
    if (token === undefined) throw OAuthException.invalidParameter(name)
    return token
  }
  const revoke = async (token) => { token.accessTokenExpiresAt = token.refreshTokenExpiresAt = new Date(0) }
  return {
    issueToken: async (client, scopes, user) => ({ accessToken: generateRandomToken(), accessTokenExpiresAt: HOUR.getEndDate(), client, user, scopes }),
    persist: async (token) => { byAccess.set(token.accessToken, token) },
    async issueRefreshToken (token) {
      token.refreshToken = generateRandomToken()
      token.refreshTokenExpiresAt = new DateInterval('30d').getEndDate()
      byRefresh.set(token.refreshToken, token)
      return token
    },
    revoke,
    async revokeDescendantsOf (code) {
      for (const token of byAccess.values()) if (token.originatingAuthCodeId === code) await revoke(token)
    },
    isRefreshTokenRevoked: async (token) => Date.now() > token.refreshTokenExpiresAt,
    getByRefreshToken: async (refreshToken) => found(byRefresh.get(refreshToken), 'refresh_token'),
    getByAccessToken: async (accessToken) => found(byAccess.get(accessToken), 'access_token')
  }
}
