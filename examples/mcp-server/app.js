// @ts-check
import cookie from '@fastify/cookie'
import formbody from '@fastify/formbody'
import Fastify from 'fastify'
import mcpOAuth from 'fastify-mcp-oauth'
import { sqliteStore } from 'fastify-mcp-oauth/sqlite'
import { join } from 'node:path'
import { mcpEndpoint } from './mcp.js'
import { openNotes } from './notes.js'
import { secret } from './secret.js'
import { signIn, signedInUser } from './sign-in.js'

/**
 * A notes app whose users can connect their MCP clients.
 *
 * @param {{ issuer: string, dataDir: string, rateLimit?: false, logger?: import('fastify').FastifyServerOptions['logger'] }} options
 */
export async function buildApp ({ issuer, dataDir, rateLimit, logger = false }) {
  const app = Fastify({ logger })

  // What the app had before: sessions, forms, a sign-in page.
  await app.register(cookie, { secret: secret(dataDir, 'session-secret') })
  await app.register(formbody)
  await app.register(signIn)

  // What MCP clients need.
  await app.register(mcpOAuth, {
    issuer,
    keys: [secret(dataDir, 'oauth-key')],
    store: sqliteStore({ path: join(dataDir, 'tokens.db') }),
    scopes: { read: 'Read your notes', write: 'Add notes' },
    resources: [{ path: '/mcp', name: 'Demo Notes' }],
    currentUser: signedInUser,
    loginUrl: '/login',
    ...(rateLimit === false && { rateLimit })
  })

  await app.register(mcpEndpoint, { issuer, notes: openNotes(dataDir) })

  app.get('/', async (request, reply) => reply.redirect(signedInUser(request) === null ? '/login' : '/my/connected_apps'))
  return app
}
