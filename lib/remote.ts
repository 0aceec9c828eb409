import createError from '@fastify/error'
import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import { fetchBounded } from './clients/bounded-fetch.js'
import { resourceMetadataEndpoints } from './endpoints/metadata.js'
import { createEmit, type AuditEvent } from './events.js'
import { expect, expectFunctions, expectNames, expectPlace, expectUrl, isSafeUrl } from './expect.js'
import './fastify.js'
import { refuseHostPolicy } from './http/cors.js'
import { addGuard, type Verify } from './http/guard.js'
import { measureRoutes } from './http/metrics.js'
import { BODY_LIMIT } from './http/parameters-from-request.js'
import { parseResources, type ResourceOptions } from './options.js'
import { OAuthError } from './protocol/errors.js'
import { isObject, isStrings, parseJson } from './protocol/json.js'
import { ScopeCatalogue, isScopeToken, parseScope } from './protocol/scope.js'
import { hashToken } from './protocol/secret.js'
import { refusal, type Grant } from './store/grant.js'

export interface RemoteGuardOptions {
  /** The authorization server, as its metadata names it: `https://login.example.com`. */
  issuer: string
  /** The public address of this server: `https://files.example.com`. No path; http only on loopback. */
  origin: string
  /** With what this server introspects tokens: `client_secret_basic`. */
  clientId: string
  clientSecret: string
  /** The scopes that the authorization server has for this one. */
  scopes: readonly string[]
  /** What tokens are for, by their paths here. Default `[{ path: '/mcp' }]`. */
  resources?: ReadonlyArray<Omit<ResourceOptions, 'url'>>
  /**
   * Seconds for which an answer about a good token is believed, at most 300. Default 0: every request is asked about,
   * and a revoked token is refused at once. Up to 10,000 answers are kept.
   */
  cacheLifetime?: number
  /** Gets every `token.rejected`. What it throws is logged and changes nothing. */
  onEvent?: (event: AuditEvent) => unknown
}

/** What the authorization server says of a token that is active. RFC 7662 §2.2. */
type Introspection = { [name in typeof TEXTS[number]]?: string } & { aud?: unknown, exp?: number }

const TEXTS = ['scope', 'client_id', 'client_name', 'token_type', 'tenant_id', 'sub', 'jti'] as const

/** Undefined for a token that is not active. */
type Introspect = (token: string) => Promise<Introspection | undefined>

const CACHE_SIZE = 10_000
/** Bytes. */
const MAX_ANSWER = 64 * 1024
/** Milliseconds to wait for the authorization server. */
const TIMEOUT = 5000

const NoTokensError = createError('FST_MCP_OAUTH_NO_TOKENS', 'app.oauth.tokens: this app only guards. Its tokens are with the authorization server')

/** Guards routes for an authorization server elsewhere, by introspection (RFC 7662): `app.oauth.protect` and `request.oauth`. */
async function remoteGuard (app: FastifyInstance, options: RemoteGuardOptions): Promise<void> {
  expectPlace(app, options, 'remoteGuard', 'resources')
  expectNames(options, '', ['issuer', 'origin', 'clientId', 'clientSecret', 'scopes', 'resources', 'cacheLifetime', 'onEvent'])
  const { issuer, origin, clientId, clientSecret, cacheLifetime = 0, onEvent } = options
  expectUrl(issuer, 'issuer', 'https://login.example.com')
  expect(expectUrl(origin, 'origin', 'https://files.example.com').pathname === '/', 'origin', 'an address without a path', origin)
  for (const [name, value] of Object.entries({ clientId, clientSecret })) {
    // What was given may be a secret, so only its form is told.
    expect(typeof value === 'string' && value !== '', name, 'a string', value === undefined || value === '' ? 'nothing: is the environment variable set?' : typeof value)
  }
  expect(isStrings(options.scopes) && options.scopes.length > 0 && options.scopes.every(isScopeToken), 'scopes', "a list of scope names such as ['read']", options.scopes)
  expect(Number.isInteger(cacheLifetime) && cacheLifetime >= 0 && cacheLifetime <= 300, 'cacheLifetime', 'whole seconds from 0 to 300', cacheLifetime)
  expectFunctions(options, { onEvent: '(event) => void' })

  const scopes = new ScopeCatalogue(new Map(options.scopes.map((name) => [name, { description: name }])))
  const resources = parseResources(options.resources, origin, scopes)
  expect(resources.every(({ path }) => path !== null), 'resources', 'paths, since they are served here', options.resources)
  const introspect = createIntrospection(options)
  const verify = verifyThere(cacheLifetime === 0 ? introspect : cached(introspect, cacheLifetime))
  const protect = addGuard(app, { resources, scopes, emit: createEmit(onEvent, app.log), verify })
  app.decorate('oauth', { protect, get tokens (): never { throw new NoTokensError() } })

  await app.register(async (wellKnown) => {
    wellKnown.addHook('onRoute', refuseHostPolicy)
    measureRoutes(wellKnown, 'metadata')
    await resourceMetadataEndpoints(wellKnown, { resources, issuer })
  }, { prefix: '/.well-known' })
}

function verifyThere (introspect: Introspect): Verify {
  return async (token, [resource], _request, now) => {
    const answer = await introspect(token)
    if (answer === undefined) return { grant: undefined, reason: 'token_unknown' }
    const grant = grantOf(answer)
    // Some servers answer for refresh tokens too, and for tokens that need a proof beside them.
    if (answer.token_type !== undefined && answer.token_type.toLowerCase() !== 'bearer') return { grant, reason: 'token_type_unsupported' }
    // A token that names no audience may be meant for anyone, so it is for nobody here.
    return { grant, reason: audienceOf(answer).includes(resource) ? refusal(grant, undefined, now, null) : 'token_for_another_resource' }
  }
}

/** Believes what was said of a good token for so many seconds. */
function cached (introspect: Introspect, lifetime: number): Introspect {
  const answers = new Map<string, { answer: Introspection, until: number }>()
  return async (token) => {
    const key = hashToken(token).toString('base64')
    const known = answers.get(key)
    if (known !== undefined && Date.now() < known.until) return known.answer
    const askedAt = Date.now()
    const answer = await introspect(token)
    answers.delete(key)
    if (answer === undefined) return undefined
    // A Map keeps the order in which its entries came: the first is the oldest.
    if (answers.size >= CACHE_SIZE) answers.delete(answers.keys().next().value!)
    answers.set(key, { answer, until: askedAt + lifetime * 1000 })
    return answer
  }
}

/** Whatever goes wrong here says nothing about the token, so it is 503 and no 401, with which clients drop their tokens. */
function createIntrospection ({ issuer, clientId, clientSecret }: RemoteGuardOptions): Introspect {
  const authorization = `Basic ${Buffer.from([clientId, clientSecret].map(formEncode).join(':')).toString('base64')}`
  let endpoint: string | undefined

  return async (token) => {
    const body = `token=${encodeURIComponent(token)}&token_type_hint=access_token`
    // More than an authorization server reads: its 413 would look like an outage.
    if (body.length > BODY_LIMIT) return undefined
    try {
      endpoint ??= await discover(issuer)
      const answer = await ask(endpoint, {
        method: 'POST',
        headers: { authorization, accept: 'application/json', 'content-type': 'application/x-www-form-urlencoded' },
        body
      })
      if (answer.active === false) return undefined
      if (!isIntrospection(answer)) throw new Error(`${endpoint} answered something else than RFC 7662 says`)
      return answer
    } catch (cause) {
      // It may have moved.
      endpoint = undefined
      throw new OAuthError('temporarily_unavailable', 'The authorization server does not confirm tokens at present.', { reason: 'introspection_failed', cause })
    }
  }
}

/** Where to introspect; and that whoever answers is the one we mean. RFC 8414 §3. */
async function discover (issuer: string): Promise<string> {
  const { origin, pathname } = new URL(issuer)
  const metadata = await ask(`${origin}/.well-known/oauth-authorization-server${pathname === '/' ? '' : pathname}`)
  if (metadata.issuer !== issuer) throw new Error(`the metadata is of ${String(metadata.issuer)}, not of ${issuer}`)
  const endpoint = metadata.introspection_endpoint
  if (typeof endpoint !== 'string') throw new Error('the metadata names no introspection_endpoint: no client there has `introspects`')
  if (!isSafeUrl(new URL(endpoint))) throw new Error(`the introspection_endpoint ${endpoint} is not https`)
  return endpoint
}

/** A JSON object. What else came is not quoted, for the log: it may repeat the token or the secret. */
async function ask (url: string, init?: RequestInit): Promise<Record<string, unknown>> {
  const response = await fetchBounded(url, { ...init, redirect: 'error' }, { timeout: TIMEOUT, maxLength: MAX_ANSWER })
  if (!response.ok) throw new Error(`${url} answered ${response.status}${response.status === 401 ? ': are clientId and clientSecret right?' : ''}`)
  const body = parseJson(await response.text())
  if (!isObject(body)) throw new Error(`${url} answered something else than a JSON object`)
  return body
}

/** An `exp` that is no number would never come. */
function isIntrospection (answer: Record<string, unknown>): answer is { active: true } & Introspection {
  return answer.active === true && TEXTS.every((name) => ['undefined', 'string'].includes(typeof answer[name])) && (answer.exp === undefined || Number.isFinite(answer.exp))
}

function audienceOf ({ aud }: Introspection): readonly unknown[] {
  return [aud ?? []].flat()
}

function grantOf (answer: Introspection): Grant {
  const [resource, ...others] = audienceOf(answer)
  return {
    grantId: answer.jti ?? '',
    userId: answer.sub ?? null,
    tenantId: answer.tenant_id ?? null,
    clientId: answer.client_id ?? null,
    clientName: answer.client_name ?? null,
    scopes: parseScope(answer.scope),
    resource: others.length === 0 ? String(resource) : null,
    expiresAt: answer.exp === undefined ? null : answer.exp * 1000
  }
}

/** RFC 6749 §2.3.1. */
function formEncode (text: string): string {
  return new URLSearchParams([['', text]]).toString().slice(1)
}

/**
 * The plugin: `await app.register(remoteGuard, { … })`. See RemoteGuardOptions.
 *
 * @throws FST_MCP_OAUTH_INVALID_OPTION, FST_MCP_OAUTH_PREFIX, FST_MCP_OAUTH_ALREADY_REGISTERED
 */
export default fp(remoteGuard, { fastify: '5.x', name: 'fastify-mcp-oauth-remote' })
