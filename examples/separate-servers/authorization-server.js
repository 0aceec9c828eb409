// @ts-check
import cookie from '@fastify/cookie'
import formbody from '@fastify/formbody'
import Fastify from 'fastify'
import mcpOAuth from 'fastify-mcp-oauth'
import { sqliteStore } from 'fastify-mcp-oauth/sqlite'
import { createHash } from 'node:crypto'
import { join } from 'node:path'
import { secret } from '../mcp-server/secret.js'
import { signIn, signedInUser } from '../mcp-server/sign-in.js'
import { DATA_DIR, FILES, ISSUER } from './addresses.js'

// Users sign in and connect their MCP clients here. What they connect them to is elsewhere.
export const app = Fastify({ logger: { level: 'warn' } })

await app.register(cookie, { secret: secret(DATA_DIR, 'session-secret') })
await app.register(formbody)
await app.register(signIn)

await app.register(mcpOAuth, {
  issuer: ISSUER,
  keys: [secret(DATA_DIR, 'oauth-key')],
  store: sqliteStore({ path: join(DATA_DIR, 'tokens.db') }),
  scopes: { read: 'Read your files', write: 'Write files' },
  resources: [{ url: `${FILES}/mcp`, name: 'Demo Files' }],
  clients: [{
    clientId: 'files-server',
    clientName: 'Demo Files',
    // In real life the hash stands here, and only the files server has the secret.
    clientSecretHashes: [createHash('sha256').update(secret(DATA_DIR, 'files-server-secret')).digest('base64url')],
    introspects: [`${FILES}/mcp`]
  }],
  currentUser: signedInUser,
  loginUrl: '/login'
})

app.get('/', async (request, reply) => reply.redirect(signedInUser(request) === null ? '/login' : '/my/connected_apps'))

await app.listen({ port: Number(new URL(ISSUER).port) })
