import type { FastifyInstance, FastifyReply } from 'fastify'
import { verifyToken } from '../grants/verify.js'
import { bearerToken } from '../http/authorization.js'
import { allowAnyOrigin } from '../http/cors.js'
import { jsonErrorHandler, sendJson } from '../http/errors.js'
import type { Settings } from '../options.js'
import { formatChallenge } from '../protocol/challenge.js'
import { OAuthError, type About, type Reason } from '../protocol/errors.js'
import { grantOf } from '../store/grant.js'

/** GET: what the app tells the bearer of a token, whatever resource it is for, about the token's user. */
export async function userinfoEndpoint (app: FastifyInstance, settings: Settings): Promise<void> {
  const { findUser, userinfo, emit } = settings
  allowAnyOrigin(app)

  app.get('', async (request, reply) => {
    const token = bearerToken(request)
    const { row, reason } = await verifyToken(settings, token, undefined, Date.now())
    if (row === null) throw refuse(reply, token === '' ? 'token_missing' : 'token_unknown')
    const about = { userId: row.userId, clientId: row.clientId, grantId: row.id }
    if (reason !== undefined) throw refuse(reply, reason, about)
    if (row.userId === null) throw refuse(reply, 'token_without_user', about)
    const user = await findUser!(row.userId)
    if (user == null) throw refuse(reply, 'user_unknown', about)
    return sendJson(reply, { ...await userinfo!(user, grantOf(row)), sub: row.userId })
  })

  app.setErrorHandler(jsonErrorHandler(emit, ({ code, reason, about }) =>
    code === 'invalid_token' ? { type: 'token.rejected', reason, grantId: null, ...about } : undefined))
}

/** RFC 6750 §3: with the challenge already on the reply. Who showed no token made no error. */
function refuse (reply: FastifyReply, reason: Reason, about?: About): OAuthError {
  const error = new OAuthError('invalid_token', 'A valid access token of a user is needed.', { reason, about })
  reply.header('www-authenticate', formatChallenge(reason === 'token_missing' ? { realm: 'oauth' } : { error: 'invalid_token', error_description: error.description }))
  return error
}
