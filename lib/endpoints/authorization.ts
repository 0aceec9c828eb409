import type { FastifyInstance, FastifyReply } from 'fastify'
import { pageErrorHandler, redirectToClient, sendPage } from '../http/pages.js'
import { acceptForms, formBody, queryParameters, queryString } from '../http/parameters-from-request.js'
import { limited } from '../http/rate-limits.js'
import { sendToLogin, signedInUser } from '../http/session.js'
import type { Settings } from '../options.js'
import { parseAuthorizationRequest, parseRedirectUri } from '../protocol/authorization-request.js'
import { AuthorizationError, OAuthError } from '../protocol/errors.js'
import { isClientIdUrl } from '../protocol/metadata-document.js'
import { isLoopbackHost, redirectHost } from '../protocol/redirect-uri.js'
import { createGrantId } from '../protocol/secret.js'
import { CONSENT_TICKET_LIFETIME, checkTicket } from '../protocol/tickets.js'

/**
 * GET shows the consent page, POST takes its answer. RFC 6749 §3.1 and §4.1.1, RFC 9207.
 *
 * Client and redirect URI are checked first: until both are known, an error must not leave this site. Then the request,
 * and last whether anybody is signed in, so that nobody signs in for a request that cannot succeed.
 */
export async function authorizationEndpoint (app: FastifyInstance, settings: Settings): Promise<void> {
  const { paths, scopes, resources, issuer, emit } = settings
  await acceptForms(app)
  app.setErrorHandler(pageErrorHandler(settings))

  app.get('', limited(settings, 'authorize'), async (request, reply): Promise<FastifyReply> => {
    const parameters = queryParameters(request)
    const clientId = parameters.get('client_id')
    if (clientId === undefined) {
      throw new OAuthError('invalid_request', 'The client_id is missing.', { reason: 'client_id_missing' })
    }
    const user = await signedInUser(settings, request)
    const toLogin = (): FastifyReply => sendToLogin(settings, request, reply, `${paths.authorization}?${queryString(request)}`)
    const client = await settings.findClient(clientId, async () => user?.id)
    if (client === undefined) {
      // Its host may be asked who it is, but on behalf of nobody but a user of this app.
      if (user === null && settings.clientIdMetadata && isClientIdUrl(clientId)) return toLogin()
      throw new OAuthError('invalid_request', 'This app is not registered here.', { reason: 'client_unknown', about: { clientId } })
    }
    const redirectUri = parseRedirectUri(parameters, client.redirectUris)
    const authorization = parseAuthorizationRequest(parameters, client, redirectUri, { scopes, resources })

    if (user === null) return toLogin()

    const ticket = await settings.consentTickets.seal({
      grantId: createGrantId(),
      userId: user.id,
      tenantId: user.tenantId ?? null,
      request: authorization,
      expiresAt: Date.now() + CONSENT_TICKET_LIFETIME
    })
    emit(request, { type: 'consent.shown', userId: user.id, clientId, scopes: authorization.scopes })

    // Any program on the user's computer can receive a loopback redirect or claim a scheme, whatever name it goes by.
    const host = redirectHost(redirectUri)
    return await sendPage(reply, 200, 'consent', {
      action: paths.authorization,
      ticket,
      user,
      client: {
        name: client.clientName,
        vouchedForBy: client.vouchedForBy,
        host,
        isLoopback: isLoopbackHost(host),
        isVerified: client.configured && !isLoopbackHost(host) && !host.endsWith(':')
      },
      resource: resources.find(({ uri }) => uri === authorization.resource),
      canDisconnect: paths.connectedApps !== null,
      scopes: scopes.choices(authorization.scopes)
      // No form-action: Chromium holds every redirect that follows the post to it, and where an app leads the browser is
      // the app's business. Many a program answers its callback with a redirect to a page that says "done", and its user
      // would be left here. It guards against forms put into the page, and none can be: all that is shown is escaped,
      // nothing runs, and no post counts without this page's ticket.
    }, undefined)
  })

  app.post('', limited(settings, 'authorize'), async (request, reply): Promise<FastifyReply> => {
    const now = Date.now()
    const form = new URLSearchParams(formBody(request))
    const user = await signedInUser(settings, request)
    const ticket = checkTicket(await settings.consentTickets.open(form.get('ticket') ?? '', now), user)

    const { grantId, userId, tenantId, request: { state, ...authorization } } = ticket
    const { clientId, redirectUri } = authorization
    const decision = form.get('decision')
    if (decision !== 'approve' && decision !== 'deny') {
      throw new OAuthError('invalid_request', 'The form has no decision.', { reason: 'decision_missing', about: { userId, clientId } })
    }
    // Only what was ticked, and only what the page offered.
    const granted = scopes.expand(form.getAll('scope'), authorization.scopes)
    if (decision === 'deny' || granted.length === 0) {
      const reason = decision === 'deny' ? 'denied_by_user' : 'no_scope_left'
      emit(request, { type: 'consent.denied', userId, clientId, reason })
      throw new AuthorizationError('access_denied', 'The user did not allow access.', { redirectUri, state, reason })
    }
    const code = await settings.codes.seal({
      ...authorization, scopes: granted, grantId, userId, tenantId, issuedAt: now, expiresAt: now + settings.codeLifetime * 1000
    })
    emit(request, { type: 'consent.approved', userId, clientId, grantId, scopes: granted })
    return redirectToClient(reply, redirectUri, { code, state, iss: issuer })
  })
}
