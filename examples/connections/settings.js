// @ts-check
import { sqliteConnectionStore } from 'fastify-mcp-oauth/connections'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { secret } from '../mcp-server/secret.js'

/** Where users have their notes. */
export const NOTES = process.env.NOTES ?? 'http://localhost:3000'
/** The app that reads them on its users' behalf. Another name of this computer, or the two would share their cookies. */
export const DIGEST = process.env.DIGEST ?? 'http://127.0.0.1:3001'
export const DATA_DIR = process.env.DATA_DIR ?? fileURLToPath(new URL('../../.data/connections', import.meta.url))

/** What the app and its worker have in common. */
export const connectionOptions = () => ({
  keys: [secret(DATA_DIR, 'connections-key')],
  store: sqliteConnectionStore({ path: join(DATA_DIR, 'connections.db') }),
  servers: { notes: { url: `${NOTES}/mcp`, name: 'Demo Notes', scopes: ['read'] } }
})
