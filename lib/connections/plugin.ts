import type { FastifyInstance } from 'fastify'
import fp from 'fastify-plugin'
import { expect, expectNames, expectNoPrefix, expectUrl, isPath } from '../expect.js'
import { sendJson } from '../http/errors.js'
import { addPages, pageErrorHandler, seeOther, sendPage } from '../http/pages.js'
import { acceptForms, formParameters, queryParameters, queryString } from '../http/parameters-from-request.js'
import { sendToLogin, signedInUser } from '../http/session.js'
import { Limit } from '../limit.js'
import { parseSignIn, parseViews, type McpOAuthOptions } from '../options.js'
import { OAuthError } from '../protocol/errors.js'
import { createSealer } from '../protocol/sealed.js'
import { PAGE_TICKET_LIFETIME, checkTicket, type Ticket } from '../protocol/tickets.js'
import { beginConnection, finishConnection, type PendingConnection, type Self } from './connect.js'
import { connectionsIn, type Connections } from './connections.js'
import { Vault, type ConnectionsOptions } from './vault.js'

export interface McpConnectionsOptions extends ConnectionsOptions, Pick<McpOAuthOptions, 'currentUser' | 'loginUrl' | 'views'> {
  /** The public address of this app: `https://notes.example.com`. No path; http only on loopback. */
  baseUrl: string
  /** What this app calls itself, to servers and to its users. Default its host. */
  name?: string
  /** Where users see their connections. Default `/my/connections`. */
  path?: string
}

declare module 'fastify' {
  interface FastifyInstance {
    connections: Connections
  }
}

interface Named {
  Params: { server: string }
}

/** How often a user may begin to connect, and come back from there: so many times in so many milliseconds. */
const LIMITS = [[5, 60 * 1000], [20, 24 * 60 * 60 * 1000]] as const

/** The page, the callback and this app's own client metadata document; `app.connections` for all else. */
async function mcpConnections (app: FastifyInstance, options: McpConnectionsOptions): Promise<void> {
  expectNoPrefix(app, options, 'fastify-mcp-oauth/connections', 'path')
  expectNames(options, '', ['baseUrl', 'keys', 'store', 'servers', 'currentUser', 'loginUrl', 'name', 'path', 'views', 'onEvent'])
  const { origin, host, protocol, pathname } = expectUrl(options.baseUrl, 'baseUrl', 'https://notes.example.com')
  expect(pathname === '/', 'baseUrl', 'an address without a path', options.baseUrl)
  const { path = '/my/connections', name = host } = options
  expect(isPath(path) && path.length > 1 && !path.endsWith('/'), 'path', "a path such as '/my/connections'", path)
  const [signIn, views] = [{ ...parseSignIn(options), issuer: origin }, parseViews(options.views)]
  const vault = new Vault(options)
  app.addHook('onClose', async () => await vault.store.close())
  await vault.open()
  const connections = connectionsIn(vault)
  app.decorate('connections', connections)

  const states = await createSealer<PendingConnection>(vault.keys, 'connection state')
  const tickets = await createSealer<Ticket>(vault.keys, 'connections page')
  const limits = LIMITS.map(([max, milliseconds]) => new Limit(max, milliseconds))

  await app.register(async function mcpConnectionsEndpoints (scope) {
    await acceptForms(scope)
    await addPages(scope, { views, stylesPath: `${path}/styles.css`, siteName: name })
    scope.setErrorHandler(pageErrorHandler({ issuer: origin, home: path }))

    scope.get<Named>(`${path}/client/:server`, async ({ params }, reply) => {
      const { clientMetadata, clientMetadataUrl } = selfFor(params.server)
      return sendJson(reply, { client_id: clientMetadataUrl, ...clientMetadata })
    })

    scope.get(path, async (request, reply) => {
      const user = await signedInUser(signIn, request)
      if (user === null) return sendToLogin(signIn, request, reply, path + (queryString(request) && `?${queryString(request)}`))
      const parameters = queryParameters(request)
      const ticket = await tickets.seal({ userId: user.id, tenantId: user.tenantId ?? null, expiresAt: Date.now() + PAGE_TICKET_LIFETIME })
      // Its form leads on to servers that nobody knows beforehand, so the policy leaves open where.
      return await sendPage(reply, 200, 'connections', {
        action: path, ticket, user, connections: await connections.list(user.id), done: parameters.get('done'), returnTo: returnToOf(parameters.get('return_to'))
      }, undefined)
    })

    scope.post(path, async (request, reply) => {
      const form = formParameters(request)
      const user = await signedInUser(signIn, request)
      const { userId } = checkTicket(await tickets.open(form.get('ticket') ?? '', Date.now()), user)
      const returnTo = returnToOf(form.get('return_to'))
      const leaving = form.get('disconnect')
      if (leaving !== undefined) {
        await connections.disconnect(userId, leaving)
        return seeOther(reply, returnTo ?? `${path}?done=disconnected`)
      }
      const server = form.get('connect') ?? ''
      const options = await vault.server(userId, server)
      if (options === undefined) throw new OAuthError('not_found', 'There is no such server.', { reason: 'connection_server_unknown' })
      count(`begin ${userId}`)
      return seeOther(reply, await beginConnection(vault, selfFor(server), states, { userId, server, options, returnTo: returnTo ?? `${path}?done=connected` }))
    })

    scope.get<Named>(`${path}/callback/:server`, async (request, reply) => {
      const parameters = queryParameters(request)
      const { server } = request.params
      const pending = await states.open(parameters.get('state') ?? '', Date.now())
      if (typeof pending === 'string' || pending.server !== server) {
        throw new OAuthError('invalid_request', 'This is not, or no longer, an answer that this site waits for.', { reason: 'connection_state' })
      }
      const user = await signedInUser(signIn, request)
      // Also where a cookie is not sent along from another site: it is once the user comes back from here.
      if (user === null) return sendToLogin(signIn, request, reply, `${path}/callback/${server}?${queryString(request)}`)
      if (user.id !== pending.userId) throw new OAuthError('access_denied', 'This connection was begun by another user.', { reason: 'connection_for_another_user' })
      count(`finish ${user.id}`)
      await finishConnection(vault, selfFor(server), pending, parameters)
      return seeOther(reply, pending.returnTo)
    })
  })

  function selfFor (server: string): Self {
    const redirectUrl = `${origin}${path}/callback/${encodeURIComponent(server)}`
    return {
      redirectUrl,
      clientMetadata: { client_name: name, client_uri: origin, redirect_uris: [redirectUrl], grant_types: ['authorization_code', 'refresh_token'], response_types: ['code'], token_endpoint_auth_method: 'none' },
      clientMetadataUrl: protocol === 'https:' ? `${origin}${path}/client/${encodeURIComponent(server)}` : undefined
    }
  }

  function count (what: string): void {
    if (limits.every((limit) => limit.allows(what))) return
    throw new OAuthError('temporarily_unavailable', 'Too many connections were begun.', { reason: 'connection_limited', statusCode: 429 })
  }
}

/** A path of this app; anything else would make it a signpost to anywhere. */
function returnToOf (value: string | undefined): string | undefined {
  return value !== undefined && /^\/(?![/\\])[!-~]*$/.test(value) ? value : undefined
}

/**
 * The plugin: `await app.register(mcpConnections, { … })`. See McpConnectionsOptions.
 *
 * @throws FST_MCP_OAUTH_INVALID_OPTION, FST_MCP_OAUTH_PREFIX, FST_MCP_OAUTH_SDK_MISSING
 * @throws StoreUnavailableError when the store cannot be opened
 */
export default fp(mcpConnections, { fastify: '5.x', name: 'fastify-mcp-oauth-connections' })
