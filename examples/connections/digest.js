// @ts-check
import cookie from '@fastify/cookie'
import formbody from '@fastify/formbody'
import Fastify from 'fastify'
import mcpConnections from 'fastify-mcp-oauth/connections'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { secret } from '../mcp-server/secret.js'
import { escapeHtml, signIn, signedInUser } from '../mcp-server/sign-in.js'
import { openQueue } from './queue.js'
import { DATA_DIR, DIGEST, connectionOptions } from './settings.js'

// An app that reads its users' notes for them, in the background.
const app = Fastify({ logger: { level: 'warn' } })
await app.register(cookie, { secret: secret(DATA_DIR, 'session-secret') })
await app.register(formbody)
await app.register(signIn, { name: 'Demo Digest' })

await app.register(mcpConnections, {
  ...connectionOptions(),
  baseUrl: DIGEST,
  name: 'Demo Digest',
  currentUser: signedInUser,
  loginUrl: '/login'
})

const queue = await openQueue()
app.addHook('onClose', async () => await queue.stop())

app.get('/', async (request, reply) => {
  const user = signedInUser(request)
  if (user === null) return reply.redirect('/login')
  const file = join(DATA_DIR, `digest of ${user.id}.txt`)
  const digest = existsSync(file) ? readFileSync(file, 'utf8') : 'There is no digest yet.'
  return reply.type('text/html; charset=utf-8').send(`<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Demo Digest</title>
<style>
  :root { color-scheme: light dark }
  body { font: 1rem/1.5 system-ui, sans-serif; max-width: 34rem; margin: 10vh auto; padding: 0 1rem }
</style>
<main>
  <h1>Your digest</h1>
  <pre>${escapeHtml(digest)}</pre>
  ${request.url === '/?asked' ? '<p role="status">A new one is being made. Reload this page in a moment.</p>' : ''}
  <form method="post" action="/digest"><button>Make a new one</button></form>
  <p><a href="/my/connections?return_to=/">Connections</a></p>
</main>
</html>`)
})

app.post('/digest', async (request, reply) => {
  const user = signedInUser(request)
  if (user === null) return reply.redirect('/login', 303)
  await queue.send('digest', { userId: user.id })
  return reply.redirect('/?asked', 303)
})

await app.listen({ port: Number(new URL(DIGEST).port) })
process.on('SIGTERM', async () => {
  await app.close()
  process.exit(0)
})
