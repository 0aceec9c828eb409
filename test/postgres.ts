import pg from 'pg'
import type { Test } from 'tap'
import { startServer } from './scripts/postgres-server.js'

/** A PostgreSQL server for a test. */
export interface PostgresServer {
  url: string
  /** Ends it at once, as a crash would, and returns when it is down. */
  stop: () => Promise<void>
  start: () => Promise<void>
  /** The connection string of a new, empty database. */
  database: () => Promise<string>
}

/** Starts the server that npm brought, or uses TEST_POSTGRES_URL, which then must be a superuser's. */
export async function startPostgres (t: Test, flags: readonly string[] = []): Promise<PostgresServer> {
  const given = process.env.TEST_POSTGRES_URL
  if (given !== undefined) return withDatabases(given, async () => {}, async () => {})
  // Nobody cuts the power: what a process has written stays, whoever is killed.
  const { url, start, stop, remove } = await startServer(['-c', 'fsync=off', ...flags])
  t.teardown(remove)
  return withDatabases(url, start, stop)
}

function withDatabases (url: string, start: () => Promise<void>, stop: () => Promise<void>): PostgresServer {
  let count = 0
  return {
    url,
    start,
    stop,
    database: async () => {
      const name = `mcp_oauth_test_${process.pid}_${++count}`
      const client = new pg.Client(url)
      await client.connect()
      await client.query(`CREATE DATABASE ${name}`)
      await client.end()
      return Object.assign(new URL(url), { pathname: `/${name}` }).href
    }
  }
}
