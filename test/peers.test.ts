import Fastify, { type FastifyInstance } from 'fastify'
import { hash } from 'node:crypto'
import * as oauth4webapi from 'oauth4webapi'
import * as openidClient from 'openid-client'
import t, { type Test } from 'tap'
import mcpOAuth from '../dist/index.js'
import { CALLBACK, FORM, bearer, fieldOf, form, testOptions } from './app.js'
import { freePort } from './scripts/free-port.js'

// What other people's clients make of this server, over HTTP.

const HOUR = 3600
const SECRET = 'a secret: 100% +/=&é'
const ALGORITHMS = ['ES256', 'PS256', 'RS256', 'Ed25519']
const KEYS = new Map(await Promise.all(ALGORITHMS.map(async (alg) => [alg, await oauth4webapi.generateKeyPair(alg, { extractable: true })] as const)))
const jwks = {
  keys: await Promise.all([...KEYS].map(async ([alg, { publicKey }]) => ({ ...await crypto.subtle.exportKey('jwk', publicKey) as Record<string, unknown>, kid: alg, alg })))
}

type Library = typeof oauth4webapi | typeof openidClient
type Proof = (library: Library) => oauth4webapi.ClientAuth & openidClient.ClientAuth

/** Each method with a client of its own. */
const METHODS: Record<string, { clientId: string, proof: Proof, wrong: Proof }> = {
  client_secret_basic: { clientId: 'a web client', proof: (library) => library.ClientSecretBasic(SECRET), wrong: (library) => library.ClientSecretBasic('x') },
  client_secret_post: { clientId: 'a web client', proof: (library) => library.ClientSecretPost(SECRET), wrong: (library) => library.ClientSecretPost('x') },
  ...Object.fromEntries([...KEYS].map(([alg, { privateKey }]) => [`private_key_jwt of ${alg}`, {
    clientId: 'service',
    proof: (library: Library) => library.PrivateKeyJwt({ key: privateKey, kid: alg }),
    wrong: (library: Library) => library.PrivateKeyJwt({ key: privateKey, kid: 'x' })
  }]))
}

async function listening (t: Test): Promise<{ app: FastifyInstance, issuer: URL }> {
  const port = await freePort()
  const issuer = new URL(`http://localhost:${port}`)
  const resource = `${issuer.origin}/mcp`
  const rights = { redirectUris: [CALLBACK], scopes: ['read'], introspects: [resource] }
  const app = Fastify()
  t.teardown(() => app.close())
  await app.register(mcpOAuth, testOptions({
    issuer: issuer.origin,
    accessTokenLifetime: HOUR,
    refreshTokenLifetime: 24 * HOUR,
    clients: [
      { clientId: 'a web client', clientName: 'Web', clientSecretHashes: [hash('sha256', SECRET, 'base64url')], ...rights },
      { clientId: 'service', clientName: 'Service', jwks, ...rights }
    ],
    findUser: (id) => ({ id, name: 'Alice' }),
    userinfo: ({ name }) => ({ name })
  }))
  app.post('/mcp', { onRequest: app.oauth.protect({ scopes: ['read'] }) }, async ({ oauth }) => ({ userId: oauth!.userId }))
  await app.listen({ port, host: 'localhost' })
  return { app, issuer }
}

interface Tokens { access_token: string, refresh_token?: string, expires_in?: number, scope?: string }

/** One client of one library, found by discovery. */
interface Session {
  authorizationUrl: (parameters: Record<string, string>) => Promise<URL>
  redeem: (callback: URL) => Promise<Tokens>
  refresh: (token: string) => Promise<Tokens>
  forItself: (parameters: Record<string, string>) => Promise<Tokens>
  introspect: (token: string) => Promise<{ active: boolean, [claim: string]: unknown }>
  userinfo: (token: string, subject: string) => Promise<Record<string, unknown>>
  revoke: (token: string) => Promise<void>
}

interface Peer {
  name: string
  /** What both throw where an answer is a refusal: with a challenge, and without. */
  Challenged: abstract new (...args: never[]) => Error
  Refused: abstract new (...args: never[]) => Error
  connect: (issuer: URL, clientId: string, proof: Proof) => Promise<Session>
}

const PEERS: Peer[] = [
  {
    name: 'oauth4webapi',
    Challenged: oauth4webapi.WWWAuthenticateChallengeError,
    Refused: oauth4webapi.ResponseBodyError,
    async connect (issuer, clientId, prove) {
      const insecure = { [oauth4webapi.allowInsecureRequests]: true }
      const as = await oauth4webapi.processDiscoveryResponse(issuer, await oauth4webapi.discoveryRequest(issuer, { ...insecure, algorithm: 'oauth2' }))
      const client = { client_id: clientId }
      const proof = prove(oauth4webapi)
      const codeVerifier = oauth4webapi.generateRandomCodeVerifier()
      const state = oauth4webapi.generateRandomState()
      return {
        async authorizationUrl (parameters) {
          const url = new URL(as.authorization_endpoint!)
          url.search = form({ client_id: clientId, response_type: 'code', redirect_uri: CALLBACK, state, code_challenge: await oauth4webapi.calculatePKCECodeChallenge(codeVerifier), code_challenge_method: 'S256', ...parameters })
          return url
        },
        redeem: async (callback) => await oauth4webapi.processAuthorizationCodeResponse(as, client,
          await oauth4webapi.authorizationCodeGrantRequest(as, client, proof, oauth4webapi.validateAuthResponse(as, client, callback, state), CALLBACK, codeVerifier, insecure)),
        refresh: async (token) => await oauth4webapi.processRefreshTokenResponse(as, client, await oauth4webapi.refreshTokenGrantRequest(as, client, proof, token, insecure)),
        forItself: async (parameters) => await oauth4webapi.processClientCredentialsResponse(as, client, await oauth4webapi.clientCredentialsGrantRequest(as, client, proof, parameters, insecure)),
        introspect: async (token) => await oauth4webapi.processIntrospectionResponse(as, client, await oauth4webapi.introspectionRequest(as, client, proof, token, insecure)),
        userinfo: async (token, subject) => await oauth4webapi.processUserInfoResponse(as, client, subject, await oauth4webapi.userInfoRequest(as, client, token, insecure)),
        revoke: async (token) => { await oauth4webapi.processRevocationResponse(await oauth4webapi.revocationRequest(as, client, proof, token, insecure)) }
      }
    }
  },
  {
    name: 'openid-client',
    Challenged: openidClient.WWWAuthenticateChallengeError,
    Refused: openidClient.ResponseBodyError,
    async connect (issuer, clientId, prove) {
      const config = await openidClient.discovery(issuer, clientId, undefined, prove(openidClient), { algorithm: 'oauth2', execute: [openidClient.allowInsecureRequests] })
      const pkceCodeVerifier = openidClient.randomPKCECodeVerifier()
      const expectedState = openidClient.randomState()
      return {
        authorizationUrl: async (parameters) => openidClient.buildAuthorizationUrl(config, {
          redirect_uri: CALLBACK, state: expectedState, code_challenge: await openidClient.calculatePKCECodeChallenge(pkceCodeVerifier), code_challenge_method: 'S256', ...parameters
        }),
        redeem: async (callback) => await openidClient.authorizationCodeGrant(config, callback, { pkceCodeVerifier, expectedState }),
        refresh: async (token) => await openidClient.refreshTokenGrant(config, token),
        forItself: async (parameters) => await openidClient.clientCredentialsGrant(config, parameters),
        introspect: async (token) => await openidClient.tokenIntrospection(config, token),
        userinfo: async (token, subject) => await openidClient.fetchUserInfo(config, token, subject),
        revoke: async (token) => await openidClient.tokenRevocation(config, token)
      }
    }
  }
]

/** What a promise rejects with. */
async function refusal (promise: Promise<unknown>): Promise<unknown> {
  return await promise.then(() => undefined, (error: unknown) => error)
}

/** The user's part: signed in as alice, ticking all that is asked for. */
async function approve (app: FastifyInstance, { pathname, search }: URL): Promise<URL> {
  const alice = { 'x-user': 'alice' }
  const page = await app.inject({ url: pathname + search, headers: alice })
  const approved = await app.inject({ method: 'POST', url: pathname, headers: { ...FORM, ...alice }, payload: form({ ticket: fieldOf(page.body, 'ticket'), decision: 'approve', scope: ['read', 'write'] }) })
  return new URL(String(approved.headers.location))
}

for (const { name, Challenged, Refused, connect } of PEERS) {
  for (const [method, { clientId, proof, wrong }] of Object.entries(METHODS)) {
    t.test(`${name} with ${method} redeems, refreshes, asks for itself, introspects, asks who the user is, and revokes (RFC 8414, RFC 6749, RFC 7523, RFC 7662, RFC 7009)`, async (t) => {
      const { app, issuer } = await listening(t)
      const resource = `${issuer.origin}/mcp`
      const call = async (token: string): Promise<unknown> => {
        const answer = await fetch(resource, { method: 'POST', headers: bearer(token) })
        return answer.ok ? await answer.json() : answer.status
      }
      const session = await connect(issuer, clientId, proof)

      const callback = await approve(app, await session.authorizationUrl({ scope: 'read write', resource }))
      t.equal(callback.origin + callback.pathname, CALLBACK)
      const first = await session.redeem(callback)
      t.match(first, { token_type: 'bearer', expires_in: HOUR, scope: 'read write', refresh_token: /^ort_/ })
      const second = await session.refresh(first.refresh_token!)
      t.not(second.access_token, first.access_token)
      t.strictSame(await call(second.access_token), { userId: 'alice' })

      const own = await session.forItself({ scope: 'read', resource })
      t.match(own, { token_type: 'bearer', expires_in: HOUR, scope: 'read' })
      t.equal(own.refresh_token, undefined)
      t.strictSame(await call(own.access_token), { userId: null })

      t.match(await session.introspect(second.access_token), { active: true, iss: issuer.origin, aud: resource, sub: 'alice', client_id: clientId, scope: 'read write' })
      t.match(await session.introspect(own.access_token), { active: true, client_id: clientId, scope: 'read', sub: undefined })
      t.strictSame(await session.introspect('x'), { active: false })
      t.strictSame(await session.userinfo(second.access_token, 'alice'), { sub: 'alice', name: 'Alice' })
      await t.rejects(session.userinfo(second.access_token, 'bob'), 'it checks whose answer it is')
      t.ok(await refusal(session.userinfo(own.access_token, 'alice')) instanceof Challenged)

      await session.revoke(second.refresh_token!)
      await session.revoke(own.access_token)
      for (const { access_token: token } of [second, own]) {
        t.equal(await call(token), 401)
        t.strictSame(await session.introspect(token), { active: false })
      }
      t.match(await refusal(session.refresh(second.refresh_token!)), { error: 'invalid_grant', status: 400 })
      t.match(await refusal(session.forItself({ scope: 'write' })), { error: 'invalid_scope', status: 400 })
      t.match(await refusal(session.forItself({ resource: 'https://elsewhere.example.com/mcp' })), { error: 'invalid_target', status: 400 })

      const stranger = await connect(issuer, clientId, wrong)
      const Expected = method === 'client_secret_basic' ? Challenged : Refused
      for (const attempt of [async () => await stranger.forItself({}), async () => await stranger.introspect('x'), async () => await stranger.revoke('x'), async () => await stranger.refresh('x')]) {
        const error = await refusal(attempt())
        t.ok(error instanceof Expected, String(error))
        t.match(error, Expected === Refused ? { error: 'invalid_client', status: 401 } : { cause: [{ scheme: 'basic' }], status: 401 })
      }
    })
  }
}
