import type { AuthorizationRequest } from './authorization-request.js'
import { OAuthError } from './errors.js'
import type { Expiring, Unreadable } from './sealed.js'

/** Whom a form was shown to. A ticket for one user is worth nothing to another, which is what stops forged posts. */
export interface Ticket extends Expiring {
  userId: string
  tenantId: string | null
}

/** In the consent form: the validated request, and the id that its grant will have. */
export interface ConsentTicket extends Ticket {
  grantId: string
  request: AuthorizationRequest
}

/** In the forms of the connected-apps page: the id that the personal token made with it will have, so that one form makes one. */
export interface PageTicket extends Ticket {
  grantId: string
}

/** Milliseconds. */
export const CONSENT_TICKET_LIFETIME = 10 * 60 * 1000
/** Milliseconds. */
export const PAGE_TICKET_LIFETIME = 60 * 60 * 1000

/**
 * The ticket, if it was made for this very user.
 *
 * @throws OAuthError `access_denied`, 403
 */
export function checkTicket<T extends Ticket> (ticket: T | Unreadable, user: { id: string, tenantId?: string | null | undefined } | null): T {
  if (ticket === 'unreadable') {
    throw new OAuthError('access_denied', 'This form was not made by this site.', { reason: 'ticket_unreadable' })
  }
  if (ticket === 'expired') {
    throw new OAuthError('access_denied', 'This form has expired.', { reason: 'ticket_expired' })
  }
  if (user === null) {
    throw new OAuthError('access_denied', 'You are signed out.', { reason: 'signed_out' })
  }
  if (ticket.userId !== user.id || ticket.tenantId !== (user.tenantId ?? null)) {
    throw new OAuthError('access_denied', 'This form was made for another user.', { reason: 'ticket_for_another_user' })
  }
  return ticket
}
