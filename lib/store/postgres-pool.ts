import createError from '@fastify/error'
import type { Pool, PoolConfig } from 'pg'

/** Milliseconds after which a query counts as lost, and until there is a connection. */
export const TIMEOUT = 5000

const PgMissingError = createError('FST_MCP_OAUTH_PG_MISSING', 'A store on PostgreSQL needs the package pg. Run: npm install pg')

/** The app's own pool, or one that is made here. */
export async function openPool (options: { pool: Pool } | PoolConfig, timeout = TIMEOUT): Promise<Pool> {
  if ('pool' in options) return options.pool
  const { default: pg } = await import('pg').catch((cause: unknown) => { throw new PgMissingError({ cause }) })
  return new pg.Pool({ connectionTimeoutMillis: timeout, keepAlive: true, ...options })
}
