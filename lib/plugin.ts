import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import { authorizationEndpoint } from './endpoints/authorization.js'
import { connectedAppsEndpoint } from './endpoints/connected-apps.js'
import { introspectionEndpoint } from './endpoints/introspection.js'
import { metadataEndpoints } from './endpoints/metadata.js'
import { registrationEndpoint } from './endpoints/registration.js'
import { revocationEndpoint } from './endpoints/revocation.js'
import { tokenEndpoint } from './endpoints/token.js'
import { userinfoEndpoint } from './endpoints/userinfo.js'
import { expectPlace } from './expect.js'
import './fastify.js'
import { createTokens } from './grants/tokens.js'
import { refuseHostPolicy } from './http/cors.js'
import { addGuard, verifyHere } from './http/guard.js'
import { measureRoutes, type Measurement } from './http/metrics.js'
import { addPages } from './http/pages.js'
import { addRateLimits } from './http/rate-limits.js'
import { resolveOptions, type McpOAuthOptions, type Settings } from './options.js'

/** Milliseconds. */
const PURGE_INTERVAL = 60 * 60 * 1000

async function mcpOAuth (app: FastifyInstance, options: McpOAuthOptions): Promise<void> {
  expectPlace(app, options, 'fastify-mcp-oauth', 'issuer')
  const settings = await resolveOptions(options, app.log)
  // Before it is opened, since a store that could only half be opened must be closed too.
  app.addHook('onClose', async () => await settings.store.close())
  await settings.store.open()
  const tokens = createTokens(settings)

  app.decorate('oauth', { protect: addGuard(app, { ...settings, verify: verifyHere(settings) }), tokens })

  // What a client does, in its order. All of it in a scope of its own: the host's parsers, views and handlers stay.
  await app.register(async function mcpOAuthEndpoints (scope) {
    const { paths, registration, rootAliases, resources, issuer, views } = settings
    scope.addHook('onRoute', refuseHostPolicy)
    await addRateLimits(scope, settings)
    const siteName = resources.find(({ path }) => path !== null)?.name ?? new URL(issuer).host
    await addPages(scope, { views, stylesPath: paths.styles, siteName })

    const serve = async (name: Measurement['endpoint'], path: string | null, endpoint: (app: FastifyInstance, settings: Settings) => Promise<void>, alias?: string): Promise<void> => {
      for (const prefix of [path, rootAliases ? alias : undefined]) {
        if (prefix == null) continue
        await scope.register(async (app) => {
          measureRoutes(app, name)
          await endpoint(app, settings)
        }, { prefix })
      }
    }
    await serve('metadata', '', metadataEndpoints)
    if (registration.enabled) await serve('register', paths.registration, registrationEndpoint, '/register')
    await serve('authorize', paths.authorization, authorizationEndpoint, '/authorize')
    await serve('token', paths.token, tokenEndpoint, '/token')
    await serve('revoke', paths.revocation, revocationEndpoint)
    await serve('introspect', paths.introspection, introspectionEndpoint)
    await serve('userinfo', paths.userinfo, userinfoEndpoint)
    await serve('connected_apps', paths.connectedApps, async (app) => await connectedAppsEndpoint(app, settings, tokens))
  })

  // The first time within minutes, since some apps are started anew more often than hourly; not all nodes at once.
  const purge = (): void => {
    tokens.purge().catch((err) => app.log.error({ err }, 'oauth: purge failed'))
    timer = setTimeout(purge, PURGE_INTERVAL).unref()
  }
  let timer = setTimeout(purge, Math.random() * PURGE_INTERVAL / 6).unref()
  app.addHook('onClose', async () => clearTimeout(timer))
}

/**
 * The plugin: `await app.register(mcpOAuth, { … })`. See McpOAuthOptions.
 *
 * @throws FST_MCP_OAUTH_INVALID_OPTION, FST_MCP_OAUTH_PREFIX, FST_MCP_OAUTH_ALREADY_REGISTERED
 * @throws StoreUnavailableError when the store cannot be opened
 */
export default fp(mcpOAuth, { fastify: '5.x', name: 'fastify-mcp-oauth' })
