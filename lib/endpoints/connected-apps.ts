import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { MAX_CLIENT_ID_LENGTH } from '../clients/client.js'
import { createPersonalToken, type ListedGrant, type Tokens } from '../grants/tokens.js'
import { jsonErrorHandler, sendJson } from '../http/errors.js'
import { pageErrorHandler, sendPage } from '../http/pages.js'
import { acceptForms, formBody, queryString } from '../http/parameters-from-request.js'
import { limited } from '../http/rate-limits.js'
import { sendToLogin, signedInUser } from '../http/session.js'
import type { Settings, User } from '../options.js'
import { MAX_NAME_CHARACTERS, printable } from '../protocol/client-metadata.js'
import { OAuthError } from '../protocol/errors.js'
import { vouchingHost } from '../protocol/metadata-document.js'
import { isLoopbackHost } from '../protocol/redirect-uri.js'
import type { Resource } from '../protocol/resource.js'
import { createGrantId, isIdentifier } from '../protocol/secret.js'
import { PAGE_TICKET_LIFETIME, checkTicket } from '../protocol/tickets.js'

const DAY = 24 * 60 * 60 * 1000
/** Days for which a personal token may live; the page offers "until revoked" too. */
const LIFETIMES = ['30', '90', '365']

/** One entry of the page: all of a user's grants for one client. */
interface ConnectedApp {
  clientId: string
  name: string
  host: string
  isLoopback: boolean
  /** The host that publishes what the app is, where that is how it is known. */
  vouchedForBy: string | null
  /** What it is connected to, by name. */
  resources: string[]
  scopes: string[]
  connectedAt: number
  lastUsedAt: number | null
  connections: number
}

/**
 * GET lists what the signed-in user has connected; POST disconnects, and makes and revokes personal access tokens.
 * Answers in JSON where the request prefers it, for apps that bring a page of their own.
 */
export async function connectedAppsEndpoint (app: FastifyInstance, settings: Settings, tokens: Tokens): Promise<void> {
  const { scopes, resources, store, emit } = settings
  const path = settings.paths.connectedApps!
  await acceptForms(app)

  app.get('', limited(settings, 'authorize'), async (request, reply): Promise<FastifyReply> => {
    const user = await signedInUser(settings, request)
    if (user === null) {
      if (wantsJson(request)) throw new OAuthError('access_denied', 'Nobody is signed in.', { reason: 'signed_out', statusCode: 401 })
      return sendToLogin(settings, request, reply, path)
    }
    return await show(request, reply, user)
  })

  app.post('', limited(settings, 'authorize'), async (request, reply): Promise<FastifyReply> => {
    const form = new URLSearchParams(formBody(request))
    const user = await signedInUser(settings, request)
    const { userId, tenantId, grantId } = checkTicket(await settings.pageTickets.open(form.get('ticket') ?? '', Date.now()), user)
    const client = form.get('client')
    const grant = form.get('grant')
    if ([client, grant].some((id) => id !== null && !isIdentifier(id, MAX_CLIENT_ID_LENGTH))) throw unknownGrant()

    if (client !== null) {
      // A disconnect leaves a row behind, so it takes something to disconnect.
      if (!(await tokens.list({ userId })).some(({ clientId }) => clientId === client)) throw unknownGrant()
      const grants = await store.revoke({ userId, clientId: client }, 'disconnected', Date.now())
      emit(request, { type: 'token.revoked', userId, clientId: client, grantId: null, grants, reason: 'disconnected' })
      return done(request, reply, 'disconnected')
    }
    if (grant !== null) {
      // Another user's grant is answered like one that does not exist.
      const owned = await store.find(grant)
      if (owned === null || owned.userId !== userId || await store.revoke({ grantId: grant }, 'disconnected', Date.now()) === 0) throw unknownGrant()
      emit(request, { type: 'token.revoked', userId, clientId: owned.clientId, grantId: grant, grants: 1, reason: 'disconnected' })
      return done(request, reply, 'revoked')
    }
    const name = printable(form.get('name') ?? '')
    const ticked = scopes.expand(form.getAll('scope'))
    if (name === '' || [...name].length > MAX_NAME_CHARACTERS) {
      throw new OAuthError('invalid_request', `A token needs a name of at most ${MAX_NAME_CHARACTERS} characters.`, { reason: 'token_name_invalid' })
    }
    if (ticked.length === 0) {
      throw new OAuthError('invalid_request', 'A token needs at least one permission.', { reason: 'token_scope_missing' })
    }
    const days = form.get('days') ?? ''
    if (!['', ...LIFETIMES].includes(days)) {
      throw new OAuthError('invalid_request', 'The form names no lifetime of the list.', { reason: 'token_expiry_invalid' })
    }
    const expiresAt = days === '' ? null : Date.now() + Number(days) * DAY
    // The token is in the answer itself and kept nowhere. Who reloads that, or pressed twice, posts the same form again.
    const created = await createPersonalToken(settings, { userId, name, scopes: ticked, ...(tenantId !== null && { tenantId }), ...(expiresAt !== null && { expiresAt }) }, grantId)
    if (created === null) {
      if (wantsJson(request)) throw new OAuthError('invalid_request', 'This ticket has made a token already.', { reason: 'ticket_spent', statusCode: 409 })
      return done(request, reply, 'spent')
    }
    return wantsJson(request)
      ? sendJson(reply.code(201), created)
      : await show(request, reply, user!, { ...created, name })
  })

  const asPage = pageErrorHandler(settings)
  const asJson = jsonErrorHandler()
  app.setErrorHandler((error, request, reply) => wantsJson(request) ? asJson(error, request, reply) : asPage(error, request, reply))

  async function show (request: FastifyRequest, reply: FastifyReply, user: User, created?: { token: string, grantId: string, name: string }): Promise<FastifyReply> {
    const grants = await tokens.list({ userId: user.id })
    const ticket = await settings.pageTickets.seal({
      grantId: createGrantId(), userId: user.id, tenantId: user.tenantId ?? null, expiresAt: Date.now() + PAGE_TICKET_LIFETIME
    })
    const groups = byHost(connectedApps(grants, resources))
    const personalTokens = grants.filter(({ clientId }) => clientId === null)
      .map(({ grantId, name, scopes, createdAt, lastUsedAt, expiresAt }) => ({ grantId, name, scopes, createdAt, lastUsedAt, expiresAt }))
    if (wantsJson(request)) return sendJson(reply, { ticket, apps: groups.flat(), personalTokens })
    return await sendPage(reply, 200, 'connected-apps', {
      action: path,
      ticket,
      user,
      groups,
      // Where there is but one, and here, the page says so once.
      namesResources: resources.length > 1 || resources[0].path === null,
      personalTokens,
      created,
      done: new URLSearchParams(queryString(request)).get('done'),
      scopes: scopes.choices(),
      lifetimes: LIFETIMES,
      describeScope: (name: string) => scopes.describe(name)
    }, "'self'")
  }

  function done (request: FastifyRequest, reply: FastifyReply, what: 'disconnected' | 'revoked' | 'spent'): FastifyReply {
    return wantsJson(request)
      ? sendJson(reply, { [what]: true })
      : reply.header('cache-control', 'no-store').redirect(`${path}?done=${what}`, 303)
  }
}

function connectedApps (grants: readonly ListedGrant[], resources: readonly Resource[]): ConnectedApp[] {
  const nameOf = (uri: string | null): string => resources.find((resource) => resource.uri === uri)?.name ?? (uri === null ? '' : new URL(uri).host)
  const apps = new Map<string, ConnectedApp>()
  for (const { clientId, clientName, clientHost, scopes, resource, createdAt, lastUsedAt } of grants) {
    if (clientId === null) continue
    const host = clientHost ?? ''
    const app = apps.get(clientId) ?? {
      clientId, name: clientName ?? '', host, isLoopback: isLoopbackHost(host), vouchedForBy: vouchingHost(clientId), resources: [], scopes: [], connectedAt: createdAt, lastUsedAt: null, connections: 0
    }
    app.resources = [...new Set([...app.resources, nameOf(resource)])].filter((name) => name !== '')
    app.scopes = [...new Set([...app.scopes, ...scopes])]
    app.lastUsedAt = Math.max(app.lastUsedAt ?? 0, lastUsedAt ?? 0) || null
    app.connections += 1
    apps.set(clientId, app)
  }
  return [...apps.values()]
}

/** Those that one host vouches for belong together: whoever trusts one trusts it. Every other app stands for itself. */
function byHost (apps: readonly ConnectedApp[]): ConnectedApp[][] {
  const groups = new Map<string, ConnectedApp[]>()
  for (const app of apps) {
    const key = app.vouchedForBy ?? app.clientId
    groups.set(key, [...groups.get(key) ?? [], app])
  }
  return [...groups.values()]
}

function wantsJson (request: FastifyRequest): boolean {
  const accept = request.headers.accept ?? ''
  return accept.includes('application/json') && !accept.includes('text/html')
}

function unknownGrant (): OAuthError {
  return new OAuthError('not_found', 'There is no such connection.', { reason: 'grant_unknown' })
}
