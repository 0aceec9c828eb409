#!/usr/bin/env node
import { randomBytes } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { RETENTION, isSelector, purge, summarize } from './grants/tokens.js'
import { createClientSecret, hashToken } from './protocol/secret.js'
import { postgresStore } from './store/postgres.js'
import { sqliteStore } from './store/sqlite.js'
import type { ClientStats, Selector, TokenStore } from './store/store.js'

const USAGE = `Usage: fastify-mcp-oauth <command>

  key                 makes a key for the option keys
  secret              makes a client secret, and its hash for clientSecretHashes
  migrate [database]  creates or upgrades the table
  stats [database]    counts grants, in all and by client
  purge [database]    deletes rows that ended over 30 days ago
  revoke [database]   ends grants at once: --client ID, --user ID or both, or --grant ID

  --dry-run           for purge and revoke: says what would happen, and changes nothing
  --json              one JSON document instead of words
  -h, --help          prints this
  --version           prints the version

[database] is a PostgreSQL URL (postgres://…) or the path of a SQLite file. Default: the environment variable
DATABASE_URL, which keeps a password out of the list of processes.

Exit codes: 0 done, 1 failed, 2 wrong call.`

/** What each command takes, beside --json. */
const COMMANDS = new Map([
  ['key', []],
  ['secret', []],
  ['migrate', ['database']],
  ['stats', ['database']],
  ['purge', ['database', '--dry-run']],
  ['revoke', ['database', '--dry-run', '--client', '--user', '--grant']]
])

const [flag, text] = [{ type: 'boolean' }, { type: 'string' }] as const
const OPTIONS = { help: { ...flag, short: 'h' }, version: flag, json: flag, 'dry-run': flag, client: text, user: text, grant: text } as const

/** Milliseconds: counting a large table takes its time, and nobody waits for this as for an answer of the app. */
const TIMEOUT = 10 * 60 * 1000

const HINT = 'npx fastify-mcp-oauth --help says what is right.'

class WrongCall extends Error {}

/** A call without a command: who does not know what there is sees it all. */
class EmptyCall extends WrongCall {}

/** What to print: with --json, and without. */
async function run (): Promise<[document: object, words: string]> {
  const { values, positionals: [command = '', ...rest], tokens } = parseArgs({ options: OPTIONS, allowPositionals: true, tokens: true })
  if (values.help === true || command === 'help') return [{ usage: USAGE }, USAGE]
  if (values.version === true) {
    const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')) as { version: string }
    return [{ version }, version]
  }
  const takes = COMMANDS.get(command)
  if (command === '') throw new EmptyCall('Which command?')
  if (takes === undefined) throw new WrongCall(`There is no command ${command}.`)
  const given = [...rest.map(() => 'database'), ...tokens.flatMap((token) => token.kind === 'option' ? `--${token.name}` : [])]
  for (const [index, one] of given.entries()) {
    if (!takes.includes(one) && one !== '--json') throw new WrongCall(`${command} does not take ${one}.`)
    // Or the last would win, and who named two users would believe that both are gone.
    if (given.indexOf(one) !== index) throw new WrongCall(`${one} can be given once.`)
  }

  if (command === 'key') {
    const key = randomBytes(32).toString('base64url')
    return [{ key }, key]
  }
  if (command === 'secret') {
    const clientSecret = createClientSecret()
    const clientSecretHash = hashToken(clientSecret).toString('base64url')
    return [{ clientSecret, clientSecretHash }, `Secret, for the client: ${clientSecret}\nHash, for clientSecretHashes: ${clientSecretHash}`]
  }

  const database = rest[0] ?? process.env.DATABASE_URL
  if (database === undefined || database === '') throw new WrongCall('Which database? Name it, or set DATABASE_URL.')
  const selector = Object.fromEntries(Object.entries({ clientId: values.client, userId: values.user, grantId: values.grant }).filter(([, id]) => id !== undefined))
  if (command === 'revoke' && !isSelector(selector)) throw new WrongCall('Whose grants? --client ID, --user ID or both, or --grant ID.')
  // As stats shows it, and no id at all: it would end nothing, and be taken for done.
  const shortened = [values.client, values.grant].find((id) => id?.startsWith('…'))
  if (shortened !== undefined) throw new WrongCall(`${shortened} is a shortened id: take the full id from stats --json.`)
  const store = storeAt(database, command === 'migrate')
  const dryRun = values['dry-run'] === true
  try {
    await store.open()
    if (command === 'stats') {
      const stats = await store.stats(Date.now())
      return [summarize(stats), table(stats)]
    }
    if (command === 'purge') {
      const before = Date.now() - RETENTION
      const rows = dryRun ? await store.count({ endedBefore: before }) : await purgeAndTell(store, before)
      return [{ dryRun, rows }, `${dryRun ? 'Would delete' : 'Deleted'} ${rows} ${rows === 1 ? 'row' : 'rows'}.`]
    }
    if (command === 'revoke') {
      const grants = dryRun ? await store.count(selector as Selector) : await store.revoke(selector as Selector, 'disconnected', Date.now())
      return [{ dryRun, grants }, `${dryRun ? 'Would end' : 'Ended'} ${grants} ${grants === 1 ? 'grant' : 'grants'}.`]
    }
    return [{ migrated: true }, 'The table access_tokens is up to date.']
  } finally {
    await store.close()
  }
}

function storeAt (database: string, migrate: boolean): TokenStore {
  if (/^postgres(ql)?:/i.test(database)) return postgresStore({ connectionString: database, migrate, timeout: TIMEOUT, connectionTimeoutMillis: 5000 })
  if (database.includes('://')) throw new WrongCall('The database must be a PostgreSQL URL (postgres://…) or the path of a SQLite file.')
  if (!migrate && !existsSync(database)) throw new Error(`There is no file ${database}`)
  return sqliteStore({ path: database, migrate })
}

async function purgeAndTell (store: TokenStore, before: number): Promise<number> {
  if (!process.stderr.isTTY) return await purge(store, before)
  const rows = await store.count({ endedBefore: before })
  try {
    return await purge(store, before, (deleted) => process.stderr.write(`\rDeleted ${deleted} of ${rows} rows`))
  } finally {
    process.stderr.write('\r\x1b[K')
  }
}

/** Labels stand last: nobody knows how wide a terminal shows them. */
function table (stats: readonly ClientStats[]): string {
  const line = (active: unknown, revoked: unknown, expired: unknown, label: string): string =>
    [active, revoked, expired].map((number) => String(number).padStart(9)).join('') + `  ${label.replace(/[\p{C}\p{Z}]+/gu, ' ')}`.trimEnd()
  const { active, revoked, expired } = summarize(stats)
  return [
    line('active', 'revoked', 'expired', ''),
    line(active, revoked, expired, 'in all'),
    ...stats.map(({ active, revoked, expired, clientId, clientName }) => line(active, revoked, expired, clientId === null
      ? 'personal access tokens'
      // Ids of registered clients are long, and differ at their end.
      : `${clientName ?? ''} (${clientId.length > 40 ? `…${clientId.slice(-12)}` : clientId})`.trim()))
  ].join('\n')
}

/** One line, in which no password can be, whatever was meant to be a database. */
function explain (error: unknown): string {
  const { message, code, cause } = error as Error & { code?: string }
  if (code === '42P01' || code === '42703' || /^no such (table|column)/.test(message)) return 'The table access_tokens is missing or not up to date. Run: npx fastify-mcp-oauth migrate'
  const reason: unknown = cause instanceof AggregateError ? cause.errors[0] : cause
  const words = reason instanceof Error ? `${message.replace(/\.?$/, '.')} ${reason.message}` : message
  const line = words.replace(/\s+/g, ' ').replace(/\S+@|password=\S+/gi, '…')
  // Node goes on about arguments that start with a dash; there are none here.
  return code === 'ERR_PARSE_ARGS_UNKNOWN_OPTION' ? line.replace(/'\. .*/, "'.") : line
}

const json = process.argv.includes('--json')
try {
  const [document, words] = await run()
  console.log(json ? JSON.stringify(document) : words)
} catch (error) {
  const isWrongCall = error instanceof WrongCall || String((error as { code?: unknown }).code).startsWith('ERR_PARSE_ARGS_')
  process.exitCode = isWrongCall ? 2 : 1
  if (json) console.log(JSON.stringify({ error: explain(error) }))
  const more = error instanceof EmptyCall ? `\n\n${USAGE}` : isWrongCall ? `\n${HINT}` : ''
  console.error(explain(error) + more)
}
