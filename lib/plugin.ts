import createError from '@fastify/error'
import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import { authorizationEndpoint } from './endpoints/authorization.js'
import { connectedAppsEndpoint } from './endpoints/connected-apps.js'
import { metadataEndpoints } from './endpoints/metadata.js'
import { registrationEndpoint } from './endpoints/registration.js'
import { revocationEndpoint } from './endpoints/revocation.js'
import { tokenEndpoint } from './endpoints/token.js'
import './fastify.js'
import { createTokens } from './grants/tokens.js'
import { answerPreflights, refuseHostPolicy } from './http/cors.js'
import { createProtect, isGuard } from './http/guard.js'
import { addPages } from './http/pages.js'
import { addRateLimits } from './http/rate-limits.js'
import { resolveOptions, type McpOAuthOptions } from './options.js'

const AlreadyRegisteredError = createError('FST_MCP_OAUTH_ALREADY_REGISTERED', 'fastify-mcp-oauth is registered already. One registration serves several MCP servers: list them in `resources`')
const PrefixError = createError('FST_MCP_OAUTH_PREFIX', 'fastify-mcp-oauth must be registered without a prefix, got %s. Discovery happens at /.well-known; put a path into `issuer` instead')

const PURGE_INTERVAL = 60 * 60 * 1000

async function mcpOAuth (app: FastifyInstance, options: McpOAuthOptions): Promise<void> {
  if (app.hasDecorator('oauth')) throw new AlreadyRegisteredError()
  const prefix = (options as { prefix?: string }).prefix ?? app.prefix
  if (prefix !== '') throw new PrefixError(prefix)

  const settings = await resolveOptions(options, app.log)
  // Before it is opened, since a store that could only half be opened must be closed too.
  app.addHook('onClose', async () => await settings.store.close())
  await settings.store.open()
  const tokens = createTokens(settings)

  app.decorate('oauth', { protect: createProtect(settings), tokens })
  app.decorateRequest('oauth', null)
  const resourcePaths = settings.resources.map(({ path }) => path)
  const served = answerPreflights(app, ({ url, onRequest }) => resourcePaths.includes(url) || [onRequest].flat().some(isGuard))

  // What a client does, in its order. All of it in a scope of its own: the host's parsers, views and handlers stay.
  await app.register(async function mcpOAuthEndpoints (scope) {
    const { paths, registration, rootAliases } = settings
    scope.addHook('onRoute', refuseHostPolicy)
    await addRateLimits(scope, settings)
    await addPages(scope, settings)

    const serve = async (path: string, endpoint: (app: FastifyInstance) => Promise<void>, alias?: string): Promise<void> => {
      await scope.register(endpoint, { prefix: path })
      if (rootAliases && alias !== undefined) await scope.register(endpoint, { prefix: alias })
    }
    await metadataEndpoints(scope, settings)
    if (registration.enabled) await serve(paths.registration, (app) => registrationEndpoint(app, settings), '/register')
    await serve(paths.authorization, (app) => authorizationEndpoint(app, settings), '/authorize')
    await serve(paths.token, (app) => tokenEndpoint(app, settings), '/token')
    await serve(paths.revocation, (app) => revocationEndpoint(app, settings))
    if (paths.connectedApps !== null) {
      const path = paths.connectedApps
      await serve(path, (app) => connectedAppsEndpoint(app, settings, path, tokens))
    }
  })

  app.addHook('onReady', async () => {
    const missing = resourcePaths.filter((path) => !served.has(path))
    if (missing.length > 0) app.log.warn(`oauth: no route is served at ${missing.join(', ')}, but \`resources\` says that clients connect there. Guarded routes: ${[...served].join(', ') || 'none'}`)
  })

  // The first time within minutes, since some apps are started anew more often than hourly; not all nodes at once.
  const purge = (): void => {
    tokens.purge().catch((err) => app.log.error({ err }, 'oauth: purge failed'))
    timer = setTimeout(purge, PURGE_INTERVAL).unref()
  }
  let timer = setTimeout(purge, Math.random() * PURGE_INTERVAL / 6).unref()
  app.addHook('onClose', async () => clearTimeout(timer))
}

/** The plugin: `await app.register(mcpOAuth, { … })`. See McpOAuthOptions. */
export default fp(mcpOAuth, { fastify: '5.x', name: 'fastify-mcp-oauth' })
