import view from '@fastify/view'
import { Eta } from 'eta'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { hash } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { AuthorizationError, LinkedAuthorizationError, type ErrorForClient } from '../protocol/errors.js'
import { authorizationResponse, redirectHost } from '../protocol/redirect-uri.js'
import { logRefusal, retryAfter, toOAuthError } from './errors.js'

const BUILT_IN = fileURLToPath(new URL('../../views/', import.meta.url))

type Page = 'consent' | 'connected-apps' | 'connections' | 'error'

export interface PageOptions {
  /** Folder whose files replace the built-in ones. */
  views: string | undefined
  stylesPath: string
  /** What this site calls itself. */
  siteName: string
}

/** The view engine and the stylesheet, under names of their own: the host may use @fastify/view too. */
export async function addPages (app: FastifyInstance, { views, stylesPath, siteName }: PageOptions): Promise<void> {
  const file = (name: string): string => {
    const own = views === undefined ? undefined : join(views, name)
    return own !== undefined && existsSync(own) ? own : join(BUILT_IN, name)
  }
  const eta = new Eta({ views: BUILT_IN })
  eta.resolvePath = (template) => file(`${template.replace(/^\.?\//, '').replace(/\.eta$/, '')}.eta`)

  const styles = readFileSync(file('styles.css'))
  const version = hash('sha256', styles, 'base64url').slice(0, 12)
  await app.register(view, {
    engine: { eta },
    templates: BUILT_IN,
    propertyName: 'oauthView',
    // The built-in files never change while we run; an app's own do while it is being written.
    production: views === undefined || process.env.NODE_ENV === 'production'
  })
  // Not as the engine's default context: what the host keeps in reply.locals would come before it.
  const common = { stylesUrl: `${stylesPath}?v=${version}`, siteName }
  app.decorateReply('oauthPage', { getter: () => common })
  app.get(stylesPath, (_request, reply) => reply
    .header('cache-control', 'public, max-age=31536000, immutable')
    .header('x-content-type-options', 'nosniff')
    .type('text/css; charset=utf-8')
    .send(styles))
}

/**
 * Sends a page that cannot be framed, stored or made to run anything. `formAction` lists where its forms may lead, all
 * redirects that follow included; undefined leaves that open.
 */
export async function sendPage (reply: FastifyReply, statusCode: number, page: Page, data: object, formAction: string | undefined): Promise<FastifyReply> {
  const policy = ["default-src 'none'", "style-src 'self'", 'img-src data:', "base-uri 'none'", "frame-ancestors 'none'"]
  if (formAction !== undefined) policy.push(`form-action ${formAction}`)
  const html = await reply.oauthViewAsync(`${page}.eta`, { ...reply.oauthPage, ...data })
  return keepPrivate(reply)
    .code(statusCode)
    .header('content-security-policy', policy.join('; '))
    .header('x-frame-options', 'DENY')
    .header('x-content-type-options', 'nosniff')
    .type('text/html; charset=utf-8')
    .serializer(String)
    .send(html)
}

/** 303: the browser follows with GET, whatever it came with, and repeats no form. RFC 9700 §4.12. */
export function seeOther (reply: FastifyReply, location: string): FastifyReply {
  return keepPrivate(reply).redirect(location, 303)
}

/** Back to the client, with an answer to its authorization request. RFC 6749 §4.1.2. */
export function redirectToClient (reply: FastifyReply, redirectUri: string, parameters: Record<string, string | undefined>): FastifyReply {
  return seeOther(reply, authorizationResponse(redirectUri, parameters))
}

/** Errors of pages: back to the client where their type says that they may travel, otherwise a page. `home` is where its user goes on. */
export function pageErrorHandler ({ issuer, home }: { issuer: string, home?: string }) {
  const forClient = ({ code, description, state }: ErrorForClient) => ({ error: code, error_description: description, state, iss: issuer })
  return async function (thrown: unknown, request: FastifyRequest, reply: FastifyReply): Promise<FastifyReply> {
    const error = toOAuthError(thrown)
    logRefusal(request, error)
    if (error instanceof AuthorizationError) return redirectToClient(reply, error.redirectUri, forClient(error))
    const back = error instanceof LinkedAuthorizationError
      ? { url: authorizationResponse(error.redirectUri, forClient(error)), host: redirectHost(error.redirectUri) }
      : null
    const seconds = retryAfter(error)
    if (seconds !== undefined) reply.header('retry-after', seconds)
    // A browser that is told 401 would be told how to authenticate, and there is no way.
    const statusCode = error.code === 'invalid_client' ? 400 : error.statusCode
    return await sendPage(reply, statusCode, 'error', { error, back, home }, "'none'")
  }
}

function keepPrivate (reply: FastifyReply): FastifyReply {
  return reply.header('cache-control', 'no-store').header('referrer-policy', 'no-referrer')
}
