// Cloudflare's provider for Workers, outside of them: over a Map in place of KV, served by node:http.
import { getRequestListener } from '@hono/node-server'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { register } from 'node:module'
import { CALLBACK, METADATA, SCOPES, answer, codeChallenge, codeVerifier, get, many, postForm, postJson, registrations, withToken } from './common.js'

const HOST = 'localhost:3000'
const ORIGIN = `http://${HOST}`

export async function start () {
  const { OAuthProvider, insufficientScope } = await load()
  const env = { OAUTH_KV: memoryKv() }
  const provider = new OAuthProvider({
    apiRoute: '/mcp',
    apiHandler: {
      fetch: async (request, env, { auth, props }) => auth.scope.includes('read') ? Response.json(answer(props.userId, auth.scope)) : insufficientScope(auth, ['read'])
    },
    defaultHandler: { fetch: authorize },
    authorizeEndpoint: '/authorize',
    tokenEndpoint: '/oauth/token',
    clientRegistrationEndpoint: '/oauth/register',
    scopesSupported: SCOPES,
    requiredScopes: ['read'],
    resourceMetadata: { resource: `${ORIGIN}/mcp`, authorization_servers: [ORIGIN] },
    accessTokenTTL: 3600,
    refreshTokenTTL: 30 * 24 * 3600,
    // Else each refusal is logged.
    onError: () => {}
  })
  const answerTo = (request) => provider.fetch(request, env, { waitUntil () {}, passThroughOnException () {} })

  // The conversion is part of what is measured: hono's listener keeps Request and Response from being made where it can.
  // A body is read whole first, which costs less than a web stream over Node's.
  const listener = getRequestListener(async (request) => await answerTo(request.method === 'POST'
    ? new Request(request.url, { method: 'POST', headers: request.headers, body: await request.text() })
    : request))
  const server = createServer((incoming, outgoing) => {
    // Tokens are bound to the resource's origin, so the requests must be for it, whatever the port.
    incoming.headers.host = HOST
    listener(incoming, outgoing)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')

  const internally = async ({ method = 'GET', path, headers, body }) => await answerTo(new Request(`${ORIGIN}${path}`, { method, headers, body, redirect: 'manual' }))
  const { client_id: clientId } = await (await internally(postJson('/oauth/register', METADATA))).json()
  const query = new URLSearchParams({ response_type: 'code', client_id: clientId, redirect_uri: CALLBACK, code_challenge: codeChallenge, code_challenge_method: 'S256', state: 'xyz', scope: 'read write' })
  const redemption = async (index) => {
    const response = await internally(get(`/authorize?${query}`, { 'x-user': `user-${index}` }))
    const code = new URL(response.headers.get('location')).searchParams.get('code')
    return postForm('/oauth/token', { grant_type: 'authorization_code', client_id: clientId, code, redirect_uri: CALLBACK, code_verifier: codeVerifier })
  }
  const tokens = async (index) => await (await internally(await redemption(index))).json()

  return {
    port: server.address().port,
    // No `consent`: the page is the app's own.
    prepare: {
      guard: async () => await many(10_000, async (index) => withToken('/mcp', (await tokens(index)).access_token)),
      unknown: async () => await many(10_000, async (index) => withToken('/mcp', `user-${index}:${random(12)}:${random(24)}`, 401)),
      token: async (count) => await many(count, redemption),
      refresh: async (count) => await many(count, async (index) => postForm('/oauth/token', { grant_type: 'refresh_token', client_id: clientId, refresh_token: (await tokens(index)).refresh_token })),
      register: async () => registrations('/oauth/register'),
      discovery: async () => [get('/.well-known/oauth-authorization-server')]
    }
  }
}

/** The app's own part, without asking anybody. */
async function authorize (request, env) {
  if (new URL(request.url).pathname !== '/authorize') return new Response(null, { status: 404 })
  const asked = await env.OAUTH_PROVIDER.parseAuthRequest(request)
  const userId = request.headers.get('x-user')
  const { redirectTo } = await env.OAUTH_PROVIDER.completeAuthorization({
    request: asked,
    userId,
    scope: asked.scope.filter((scope) => SCOPES.includes(scope)),
    metadata: {},
    props: { userId },
    // It would look for older grants of the user in a list of all keys, which the Map is slow at; none has any.
    revokeExistingGrants: false
  })
  return Response.redirect(redirectTo, 302)
}

/** What the library uses of a KV namespace. KV keeps text, so JSON is parsed at each look-up here too. */
function memoryKv () {
  const entries = new Map()
  const live = (key) => {
    const entry = entries.get(key)
    if (entry === undefined || entry.expiration > Date.now() / 1000) return entry
    entries.delete(key)
  }
  return {
    async get (key, options) {
      const entry = live(key)
      if (entry === undefined) return null
      return (options?.type ?? options) === 'json' ? JSON.parse(entry.value) : entry.value
    },
    async put (key, value, { expirationTtl, expiration = expirationTtl === undefined ? Infinity : Date.now() / 1000 + expirationTtl, metadata } = {}) {
      entries.set(key, { value, expiration, metadata })
    },
    async delete (key) {
      entries.delete(key)
    },
    async list ({ prefix = '', limit = 1000, cursor = '' } = {}) {
      const names = [...entries.keys()].filter((name) => name.startsWith(prefix) && name > cursor && live(name) !== undefined).sort()
      const keys = names.slice(0, limit).map((name) => ({ name, expiration: live(name).expiration, metadata: live(name).metadata }))
      return names.length > limit ? { keys, list_complete: false, cursor: keys.at(-1).name } : { keys, list_complete: true }
    }
  }
}

/** The library imports a class that only Workers have, and writes a line to the log where it finds itself elsewhere. */
async function load () {
  const stub = 'data:text/javascript,export class WorkerEntrypoint {}'
  register(`data:text/javascript,${encodeURIComponent(`
    export const resolve = async (specifier, context, next) => specifier === 'cloudflare:workers' ? { url: '${stub}', shortCircuit: true } : await next(specifier, context)
  `)}`)
  globalThis.Cloudflare = { compatibilityFlags: { global_fetch_strictly_public: true } }
  return await import('@cloudflare/workers-oauth-provider')
}

const random = (bytes) => randomBytes(bytes).toString('base64url')
