// What every measurement here shares: servers on one core, whatever asks them (and PostgreSQL) on the other.
import { execFileSync, fork } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { startServer as startPostgresServer } from '../test/scripts/postgres-server.js'

const SERVER_CORE = '0'
const LOAD_CORE = '1'

export const work = mkdtempSync(join(tmpdir(), 'mcp-oauth-bench-'))
process.once('exit', () => rmSync(work, { recursive: true, force: true }))
// For those that it does not end by itself.
for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => process.exit(1))

/** Pinning is Linux' own; elsewhere the system decides, and figures differ more from run to run. */
export const pinned = process.platform === 'linux' && availableParallelism() > 1 && has('taskset')

function has (command) {
  try {
    execFileSync(command, ['--version'], { stdio: 'ignore' })
    return true
  } catch {
    return false
  }
}

function onCore (core) {
  return pinned ? ['taskset', '-c', core] : []
}

function start (core, file, args, execArgv = []) {
  const [command = process.execPath, ...rest] = onCore(core)
  const path = fileURLToPath(new URL(file, import.meta.url))
  const child = fork(path, args, {
    execPath: command,
    execArgv: pinned ? [...rest, process.execPath, ...execArgv] : execArgv,
    env: { ...process.env, NODE_ENV: 'production', NODE_OPTIONS: '' }
  })
  child.once('exit', (code) => { if (code !== 0 && child.connected) throw new Error(`${file} ${args.join(' ')} ended with ${code}`) })
  const ask = async (message) => {
    const answer = once(child, 'message')
    child.send(message)
    return (await answer)[0]
  }
  return { child, ask }
}

/** A server of `targets/`, ready. */
export async function startTarget ({ id, file, options = {}, execArgv }) {
  const { child, ask } = start(SERVER_CORE, 'server.js', [file, JSON.stringify({ folder: mkdtempSync(join(work, `${id}-`)), ...options })], execArgv)
  const ready = await Promise.race([once(child, 'message'), once(child, 'exit')])
  if (typeof ready[0]?.port !== 'number') throw new Error(`${id} does not start`)
  return {
    ...ready[0],
    // PostgreSQL needs the core that it shares with the load.
    busy: options.postgres === undefined,
    ask,
    async prepare (what, count) {
      const path = join(work, `${id}-${what}.json`)
      const { prepared } = await ask({ prepare: what, count, file: path })
      return { file: path, count: prepared }
    },
    async stop () {
      const ended = once(child, 'exit')
      child.disconnect()
      await ended
    }
  }
}

const load = start(LOAD_CORE, 'load.js', [])
load.child.unref()
load.child.channel.unref()

/** Sends requests to a server; what came back, and what the server spent on it. Throws where an answer is wrong. */
export async function measure (target, order) {
  const before = await target.ask({ usage: true })
  load.child.channel.ref()
  const seen = await load.ask({ port: target.port, busy: target.busy, connections: 64, ...order })
  load.child.channel.unref()
  const { cpu, rss } = await target.ask({ usage: true })
  if (seen.wrong !== undefined) throw new Error(seen.wrong)
  return { ...seen, cpu: cpu.user + cpu.system - before.cpu.user - before.cpu.system, rss }
}

/** A PostgreSQL beside the load; `BENCH_POSTGRES_URL` uses another one. */
export async function startPostgres () {
  if (process.env.BENCH_POSTGRES_URL !== undefined) return process.env.BENCH_POSTGRES_URL
  return (await startPostgresServer(['-c', 'shared_buffers=1GB', '-c', 'max_wal_size=8GB'], onCore(LOAD_CORE))).url
}

export function median (values) {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = Math.floor(sorted.length / 2)
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
}
