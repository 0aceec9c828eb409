import createError from '@fastify/error'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { verifyToken } from '../grants/verify.js'
import type { FallbackGrant, Settings } from '../options.js'
import { formatChallenge } from '../protocol/challenge.js'
import { OAuthError, type Reason } from '../protocol/errors.js'
import type { Resource } from '../protocol/resource.js'
import { formatScope, type ScopeCatalogue } from '../protocol/scope.js'
import { grantOf, refusal, type Grant } from '../store/grant.js'
import { bearerToken } from './authorization.js'
import { allowAnyOriginOnReply, answerPreflights, sendPreflight } from './cors.js'
import { logRefusal, sendJsonError, toOAuthError } from './errors.js'
import { measurements, type Measurement } from './metrics.js'

export interface ProtectOptions {
  /** Scopes that every request to the route needs. Default none. */
  scopes?: readonly string[]
  /** Path of the resource that the token must be for. Needed where `resources` has several; default the only one. */
  resource?: string
}

/** An `onRequest` hook. For a request that it refuses, and so has answered, its promise never settles. */
export type Guard = (request: FastifyRequest, reply: FastifyReply) => Promise<void>

/** What the MCP TypeScript SDK hands to tools as `authInfo`. */
export interface AuthInfo {
  token: string
  clientId: string
  scopes: string[]
  /** Epoch seconds. */
  expiresAt?: number
  resource?: URL
  extra: { userId: string | null, tenantId: string | null, grantId: string, clientName: string | null }
}

const ProtectError = createError('FST_MCP_OAUTH_INVALID_PROTECT', 'protect(): %s', 500, TypeError)
const RequireError = createError('FST_MCP_OAUTH_INVALID_REQUIRE', 'require(): unknown scope %s, expected %s', 500, TypeError)
const FallbackError = createError('FST_MCP_OAUTH_INVALID_FALLBACK', 'fallbackToken must answer null or { userId: string, scopes: string[], expiresAt?: number }', 500, TypeError)

const GUARDS = new WeakSet<object>()

/** Whether a hook was made by `protect()`. */
export function isGuard (hook: unknown): boolean {
  return typeof hook === 'function' && GUARDS.has(hook)
}

/** Whose a token is, or why it may not be used. `resources` are those that it may be for. */
export type Verify = (token: string, resources: readonly string[], request: FastifyRequest, now: number) => Promise<{ grant: Grant | undefined, reason: Reason | undefined }>

/** What a guard needs to know; who knows the tokens may be another server. */
export type GuardSettings = Pick<Settings, 'resources' | 'scopes' | 'emit'> & { verify: Verify }

/** The grant on whose behalf a request is made: `request.oauth`. */
export interface RequestGrant extends Grant {
  /**
   * For scopes that only the body tells, such as those of an MCP tool. Call it before anything is sent.
   *
   * @throws OAuthError `insufficient_scope`, 403, with the challenge already on the reply. RFC 6750 §3.1
   */
  require: (...scopes: string[]) => void
  /** For the MCP TypeScript SDK. It holds the token: hand it on, do not log it. */
  authInfo: () => AuthInfo
}

/** Adds `request.oauth`, and preflights beside the guarded routes. Answers what becomes `app.oauth.protect`. */
export function addGuard (app: FastifyInstance, settings: GuardSettings): (options?: ProtectOptions) => Guard {
  app.decorateRequest('oauth', null)
  const paths = settings.resources.map(({ path }) => path).filter((path) => path !== null)
  const served = answerPreflights(app, ({ url, onRequest }) => paths.includes(url) || [onRequest].flat().some(isGuard))
  app.addHook('onReady', async () => {
    const missing = paths.filter((path) => !served.has(path))
    if (missing.length > 0) app.log.warn(`oauth: no route is served at ${missing.join(', ')}, but \`resources\` says that clients connect there. Guarded routes: ${[...served].join(', ') || 'none'}`)
  })
  return createProtect(settings)
}

/**
 * `app.oauth.protect()`. Reads the Authorization header only: tokens in a query or a form end up in logs and histories.
 *
 * @throws FST_MCP_OAUTH_INVALID_PROTECT when the hook is made, for unknown scopes or an ambiguous resource
 */
function createProtect (settings: GuardSettings): (options?: ProtectOptions) => Guard {
  const { verify, emit } = settings

  return function protect (options = {}) {
    const { scopes: needed = [], resource: path, ...others } = options
    if (typeof options !== 'object' || Object.keys(others).length > 0 || !Array.isArray(needed)) {
      throw new ProtectError('expected { scopes?: string[], resource?: string }. The hook is what it answers: write onRequest: app.oauth.protect()')
    }
    const resource = resolveResource(settings, path)
    const resources = [resource.uri]
    const unknown = needed.filter((scope) => !settings.scopes.names.includes(scope))
    if (unknown.length > 0) throw new ProtectError(`unknown scope ${unknown.join(', ')}, expected ${settings.scopes.names.join(', ')}`)

    const scope = formatScope(needed)
    const challenge = { resource_metadata: resource.metadataUrl, scope }
    const missing = formatChallenge(challenge)
    const invalidToken = new OAuthError('invalid_token', 'A valid access token is needed.', { reason: 'token_unknown' })
    const invalid = formatChallenge({ error: 'invalid_token', error_description: 'The access token is invalid.', ...challenge })

    const refuseToken = (request: FastifyRequest, reply: FastifyReply, reason: Reason, { userId, clientId, grantId }: Partial<Grant> = {}): false => {
      emit(request, { type: 'token.rejected', reason, userId: userId ?? null, clientId: clientId ?? null, grantId: grantId ?? null })
      reply.header('www-authenticate', reason === 'token_missing' ? missing : invalid)
      sendJsonError(reply, invalidToken)
      return false
    }

    const refuseScope = (reply: FastifyReply, grant: Grant, scopes: readonly string[]): OAuthError => {
      const unknown = scopes.filter((scope) => !settings.scopes.names.includes(scope))
      if (unknown.length > 0) throw new RequireError(unknown.join(', '), settings.scopes.names.join(', '))
      const { userId, clientId, grantId } = grant
      const about = { userId, clientId, grantId }
      emit(reply.request, { type: 'token.rejected', reason: 'token_scope_insufficient', ...about })
      // What the token has is asked for again, or the client would trade one scope for the other, back and forth.
      const all = [...new Set([...grant.scopes, ...needed, ...scopes])]
      const error = new OAuthError('insufficient_scope', 'The access token lacks a scope.', { reason: 'token_scope_insufficient', about })
      reply.header('www-authenticate', formatChallenge({
        error: 'insufficient_scope', error_description: error.description, ...challenge, scope: formatScope(all)
      }))
      return error
    }

    /** Whether the request may go on; if not, it is answered. */
    const check = async (request: FastifyRequest, reply: FastifyReply): Promise<boolean> => {
      // Preflights carry no token. They are answered here, so that no OPTIONS request reaches a handler without a grant.
      if (request.method === 'OPTIONS') {
        sendPreflight(reply)
        return false
      }
      allowAnyOriginOnReply(reply)
      // Of several guards each has to accept the token for itself.
      request.oauth = null

      const token = bearerToken(request)
      try {
        if (token === '') return refuseToken(request, reply, 'token_missing')
        const { grant, reason } = await verify(token, resources, request, Date.now())
        if (grant === undefined || reason !== undefined) return refuseToken(request, reply, reason ?? 'token_unknown', grant)
        if (!hasScopes(grant, needed)) {
          sendJsonError(reply, refuseScope(reply, grant, needed))
          return false
        }

        // Field by field: after a spread, each of these objects would get a shape of its own, and all that reads it be slow.
        const { grantId, userId, tenantId, clientId, clientName, scopes, resource, expiresAt } = grant
        request.oauth = {
          grantId,
          userId,
          tenantId,
          clientId,
          clientName,
          scopes,
          resource,
          expiresAt,
          require (...scopes) {
            if (!hasScopes(grant, scopes)) throw refuseScope(reply, grant, scopes)
          },
          authInfo: () => authInfo(grant, token)
        }
        return true
      } catch (thrown) {
        const error = toOAuthError(thrown)
        logRefusal(request, error)
        // The app's own check of a token may throw it. Without a challenge clients would not know how to sign in.
        if (error.statusCode === 401) return refuseToken(request, reply, 'token_unknown')
        sendJsonError(reply, error)
        return false
      }
    }

    const guard: Guard = async (request, reply) => {
      const startedAt = measurements.hasSubscribers ? performance.now() : undefined
      const passed = await check(request, reply)
      if (startedAt !== undefined) measurements.publish({ endpoint: 'guard', statusCode: passed ? 200 : reply.statusCode, duration: performance.now() - startedAt } satisfies Measurement)
      // For a refused request this never ends. Fastify goes on to the handler when a hook ends before its answer is out,
      // and that can be so where the client has hung up and the host's onSend hooks take their time.
      if (!passed) await new Promise<never>(() => {})
    }
    GUARDS.add(guard)
    return guard
  }
}

/** Asks the store, and then the app for what is not in it. */
export function verifyHere (settings: Settings): Verify {
  const { fallbackToken, scopes, idleLifetime } = settings
  return async (token, resources, request, now) => {
    const { row, reason } = await verifyToken(settings, token, resources, now)
    if (row !== null) return { grant: grantOf(row), reason }
    const grant = fallbackToken && fallbackGrant(scopes, await fallbackToken(token, request))
    return grant === undefined ? { grant, reason } : { grant, reason: refusal(grant, resources, now, idleLifetime) }
  }
}

function authInfo ({ grantId, userId, tenantId, clientId, clientName, scopes, resource, expiresAt }: Grant, token: string): AuthInfo {
  return {
    token,
    clientId: clientId ?? grantId,
    scopes: [...scopes],
    ...(expiresAt !== null && { expiresAt: Math.floor(expiresAt / 1000) }),
    ...(resource !== null && { resource: new URL(resource) }),
    extra: { userId, tenantId, grantId, clientName }
  }
}

function hasScopes (grant: Grant, needed: readonly string[]): boolean {
  return needed.every((scope) => grant.scopes.includes(scope))
}

function fallbackGrant (catalogue: ScopeCatalogue, grant: FallbackGrant | null | undefined): Grant | undefined {
  if (grant == null) return undefined
  const { userId, tenantId = null, clientId = null, clientName = null, resource = null, expiresAt = null } = grant
  // A string of scopes would pass for a list of all its substrings, and a date as a string for one that never comes.
  if (typeof userId !== 'string' || userId === '' || !Array.isArray(grant.scopes) || !(expiresAt === null || Number.isFinite(expiresAt))) throw new FallbackError()
  return { grantId: '', userId, tenantId, clientId, clientName, scopes: catalogue.expand(grant.scopes), resource, expiresAt }
}

function resolveResource ({ resources }: GuardSettings, path: string | undefined): Resource {
  const served = resources.filter((resource) => resource.path !== null)
  const paths = served.map((resource) => resource.path).join(', ')
  if (served.length === 0) throw new ProtectError('no resource has a path: those with a url are guarded by the servers that serve them')
  if (path === undefined && served.length > 1) throw new ProtectError(`resource is needed where there are several, one of ${paths}`)
  const resource = path === undefined ? served[0] : served.find((candidate) => candidate.path === path)
  if (resource === undefined) throw new ProtectError(`unknown resource ${path}, expected one of ${paths}`)
  return resource
}
