#!/usr/bin/env node
import { randomBytes } from 'node:crypto'
import { postgresStore } from './store/postgres.js'
import { sqliteStore } from './store/sqlite.js'

const USAGE = `Usage: fastify-mcp-oauth <command>

  key                  prints a new key for the option keys
  migrate <database>   creates or upgrades the table

<database> is a PostgreSQL URL (postgres://…) or the path of a SQLite file.`

const [command, ...args] = process.argv.slice(2)

if (command === 'key' && args.length === 0) {
  console.log(randomBytes(32).toString('base64url'))
} else if (command === 'migrate' && args.length === 1) {
  const [database] = args as [string]
  const store = /^postgres(ql)?:/.test(database) ? postgresStore({ connectionString: database }) : sqliteStore({ path: database })
  try {
    await store.open()
    console.log('The table access_tokens is up to date.')
  } catch (error) {
    const { message, cause } = error as Error
    console.error(cause instanceof Error ? `${message} ${cause.message}` : message)
    process.exitCode = 1
  } finally {
    await store.close()
  }
} else {
  console.error(USAGE)
  process.exitCode = 2
}
