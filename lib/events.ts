import type { FastifyBaseLogger, FastifyRequest } from 'fastify'
import type { Reason } from './protocol/errors.js'
import type { RevokedReason } from './store/store.js'

/** What happened. Never holds a token, code, verifier or key. */
type Happening =
  | { type: 'client.registered', clientName: string, redirectUris: string[] }
  | { type: 'registration.rejected', reason: Reason }
  | { type: 'client.rejected', reason: Reason }
  | { type: 'consent.shown', scopes: string[] }
  | { type: 'consent.approved', grantId: string, scopes: string[] }
  | { type: 'consent.denied', reason: Reason }
  | { type: 'code.rejected', reason: Reason, grantId: string | null }
  | { type: 'token.issued', grantId: string, scopes: string[] }
  | { type: 'token.refreshed', grantId: string }
  | { type: 'token.revoked', grantId: string | null, grants: number, reason: RevokedReason }
  | { type: 'token.rejected', reason: Reason, grantId: string | null }

type Context = {
  /** Epoch milliseconds. */
  at: number
  /** Null where no request was the cause, as with `app.oauth.tokens`. */
  requestId: string | null
  userId: string | null
  /** Null for personal access tokens, and where it is not known. A client that was rejected has only claimed it. */
  clientId: string | null
}

type In<T, C> = T extends unknown ? T & C : never

/** What `onEvent` gets; `type` tells the variants apart. */
export type AuditEvent = In<Happening, Context>

/** What an event's maker knows of it. */
export type Emitted = In<Happening, { userId?: string | null, clientId?: string | null }>

export type Emit = (request: FastifyRequest | null, event: Emitted) => void

/** Logs each event, then hands it to the app. Whatever the app's handler does, the request goes on. */
export function createEmit (onEvent: ((event: AuditEvent) => unknown) | undefined, log: FastifyBaseLogger): Emit {
  return async function emit (request, event) {
    const { type, ...details } = event
    const logger = request?.log ?? log
    logger.info(details, `oauth: ${type}`)
    try {
      await onEvent?.({ userId: null, clientId: null, ...event, at: Date.now(), requestId: request?.id ?? null } as AuditEvent)
    } catch (err) {
      log.error({ err }, 'oauth: onEvent failed')
    }
  }
}
