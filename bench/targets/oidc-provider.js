import Keygrip from 'keygrip'
import { generateKeyPairSync, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import Provider from 'oidc-provider'
import MemoryAdapter from 'oidc-provider/lib/adapters/memory_adapter.js'
import LRU from 'oidc-provider/lib/helpers/lru.js'
import { CALLBACK, METADATA, SCOPES, answer, codeChallenge, codeVerifier, get, many, postForm, registrations, withToken } from './common.js'

const ISSUER = 'http://localhost:3000'
const RESOURCE = `${ISSUER}/mcp`
const DAYS = 24 * 3600

export async function start () {
  // Its own adapter, only larger: by default it keeps 1000 entries, and a code is five with its grant and tokens.
  const storage = new LRU({ maxSize: 1_000_000 })
  const resourceServer = { scope: SCOPES.join(' '), audience: RESOURCE, accessTokenFormat: 'opaque' }
  const cookieKeys = ['k'.repeat(43)]
  const provider = new Provider(ISSUER, {
    adapter: (model) => new MemoryAdapter(model, storage),
    cookies: { keys: cookieKeys },
    jwks: { keys: [generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey.export({ format: 'jwk' })] },
    features: {
      devInteractions: { enabled: false },
      registration: { enabled: true, issueRegistrationAccessToken: false },
      revocation: { enabled: true },
      introspection: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => RESOURCE,
        getResourceServerInfo: () => resourceServer
      }
    },
    findAccount: (ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
    interactions: { url: (ctx, { uid }) => `/interaction/${uid}` },
    // By default both ask for the scope offline_access, and the others have none.
    issueRefreshToken: (ctx, client) => client.grantTypeAllowed('refresh_token'),
    expiresWithSession: () => false,
    ttl: { AccessToken: 3600, AuthorizationCode: 600, RefreshToken: 30 * DAYS, Grant: 30 * DAYS, Session: 14 * DAYS, Interaction: 3600 }
  })
  provider.use(async (ctx, next) => {
    if (ctx.path !== '/mcp') return await next()
    const token = await provider.AccessToken.find(/^Bearer (.+)$/i.exec(ctx.get('authorization'))?.[1])
    if (token === undefined || token.aud !== RESOURCE || !token.scopes.has('read')) {
      ctx.status = 401
      ctx.set('www-authenticate', 'Bearer error="invalid_token"')
      ctx.body = { error: 'invalid_token' }
      return
    }
    ctx.body = answer(token.accountId, [...token.scopes])
  })
  const server = provider.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address()

  const { client_id: clientId } = await (await fetch(`http://127.0.0.1:${port}/reg`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(METADATA) })).json()
  const client = await provider.Client.find(clientId)
  const session = new provider.Session({ accountId: 'alice', loginTs: Math.floor(Date.now() / 1000) })
  const cookie = `${provider.cookieName('session')}=${await session.save(14 * DAYS)}`
  const cookies = `${cookie}; ${provider.cookieName('session')}.sig=${new Keygrip(cookieKeys).sign(cookie)}`

  const granted = async (index) => {
    const accountId = `user ${index}`
    const grant = new provider.Grant({ accountId, clientId })
    grant.addResourceScope(RESOURCE, SCOPES.join(' '))
    return { accountId, client, grantId: await grant.save(), scope: SCOPES.join(' ') }
  }
  const consented = async (index) => ({ ...await granted(index), authTime: session.authTime(), resource: RESOURCE, sessionUid: session.uid })
  const authorize = `/auth?${new URLSearchParams({ response_type: 'code', client_id: clientId, redirect_uri: CALLBACK, code_challenge: codeChallenge, code_challenge_method: 'S256', state: 'xyz', scope: 'read write' })}`

  return {
    port,
    prepare: {
      guard: async () => await many(10_000, async (index) => {
        const token = new provider.AccessToken({ ...await granted(index), gty: 'authorization_code', sessionUid: session.uid, resourceServer: new provider.ResourceServer(RESOURCE, resourceServer) })
        return withToken('/mcp', await token.save())
      }),
      unknown: async () => await many(10_000, async () => withToken('/mcp', randomBytes(32).toString('base64url'), 401)),
      token: async (count) => await many(count, async (index) => {
        const code = new provider.AuthorizationCode({ ...await consented(index), codeChallenge, codeChallengeMethod: 'S256', redirectUri: CALLBACK })
        return postForm('/token', { grant_type: 'authorization_code', client_id: clientId, code: await code.save(), redirect_uri: CALLBACK, code_verifier: codeVerifier })
      }),
      refresh: async (count) => await many(count, async (index) => {
        const token = new provider.RefreshToken({ ...await consented(index), gty: 'authorization_code', rotations: 0 })
        return postForm('/token', { grant_type: 'refresh_token', client_id: clientId, refresh_token: await token.save() })
      }),
      register: async () => registrations('/reg'),
      discovery: async () => [get('/.well-known/oauth-authorization-server')],
      // The redirect to the page: the page itself would be ours.
      consent: async () => [get(authorize, { cookie: cookies }, 303)]
    }
  }
}
