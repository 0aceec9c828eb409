// One node of a deployment, as test/node.ts starts it: an app with the plugin, from what was built, or several, each with a
// store of its own. Settings come in NODE_APP as JSON, ports leave on standard output. SIGTERM closes the apps; the process
// then ends by itself.
import Fastify from 'fastify'
import mcpOAuth from 'fastify-mcp-oauth'

const { key, issuer, apps, user } = JSON.parse(process.env.NODE_APP)

// Whoever started this is gone: so is this.
process.stdin.on('end', () => process.exit(9)).resume()
process.stdin.unref?.()

// Only what these need, since tests wait for it.
const parts = await Promise.all(apps.map(async ({ store, redis, rateLimit }) => {
  const { sqliteStore, postgresStore } = await import(store.sqlite !== undefined ? 'fastify-mcp-oauth/sqlite' : 'fastify-mcp-oauth/postgres')
  const pool = store.pool === undefined ? undefined : new (await import('pg')).default.Pool(store.pool)
  return {
    pool,
    redis: redis === undefined ? undefined : new (await import('ioredis')).Redis(redis),
    rateLimit,
    store: store.sqlite !== undefined
      ? sqliteStore({ path: store.sqlite })
      : postgresStore({ ...store.postgres, ...(pool !== undefined && { pool }) })
  }
}))

// Drivers are loaded while everything can be read; from here on the files are those of another user.
if (user !== undefined) {
  await Promise.allSettled([import('node:sqlite'), import('@photostructure/sqlite')])
  process.setgroups([])
  process.setgid(user)
  process.setuid(user)
}

const ports = await Promise.all(parts.map(async ({ pool, redis, rateLimit, store }) => {
  const app = Fastify({ logger: { level: 'error', stream: process.stderr }, forceCloseConnections: true })
  await app.register(mcpOAuth, {
    issuer,
    keys: [key],
    store,
    scopes: { read: 'Read your notes', write: 'Change your notes' },
    resources: [{ path: '/mcp', name: 'Notes' }],
    currentUser: ({ headers }) => headers['x-user'] ? { id: headers['x-user'] } : null,
    loginUrl: '/login',
    rateLimit: redis === undefined ? false : { redis, ...rateLimit }
  })
  app.post('/mcp', { onRequest: app.oauth.protect({ scopes: ['read'] }) }, async ({ oauth }) => ({ userId: oauth.userId }))
  await app.listen({ port: 0, host: '127.0.0.1' })

  process.once('SIGTERM', async () => {
    await app.close()
    console.log(JSON.stringify({ closed: true }))
    if (pool !== undefined) {
      const { rows: [row] } = await pool.query('SELECT count(last_used_at)::int AS used FROM access_tokens')
      console.log(JSON.stringify({ poolStillAnswers: row.used }))
      await pool.end()
    }
    redis?.disconnect()
  })
  return app.server.address().port
}))
console.log(JSON.stringify({ ports }))
