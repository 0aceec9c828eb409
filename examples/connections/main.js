// @ts-check
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { openQueue } from './queue.js'
import { DATA_DIR, DIGEST, NOTES, connectionOptions } from './settings.js'

// The queue's database: yours, or for a try the one that comes with the tests, empty each time.
const { startServer } = await import('../../test/scripts/postgres-server.js')
const own = process.env.DATABASE_URL === undefined ? await startServer() : undefined
const DATABASE_URL = String(process.env.DATABASE_URL ?? own?.url)
const env = { ...process.env, NOTES, DIGEST, DATA_DIR, DATABASE_URL }

// What the app and its worker share is made before either of them starts.
connectionOptions()
const queue = await openQueue(DATABASE_URL)
await queue.createQueue('digest')
await queue.stop()

/**
 * @param {string} file
 * @param {NodeJS.ProcessEnv} [more]
 */
const run = (file, more) => spawn(process.execPath, [fileURLToPath(new URL(file, import.meta.url))], { env: { ...env, ...more }, stdio: ['ignore', 'ignore', 'inherit'] })
const programs = [
  run('../mcp-server/main.js', { PORT: new URL(NOTES).port, ISSUER: NOTES, DATA_DIR: `${DATA_DIR}/notes` }),
  run('digest.js'),
  run('worker.js')
]
for (const program of programs) program.once('exit', () => stop(1))
for (const signal of ['SIGTERM', 'SIGINT']) process.on(signal, () => stop(0))
for (const address of [NOTES, DIGEST]) {
  while (!await fetch(address).then(() => true, () => false)) await new Promise((resolve) => setTimeout(resolve, 100))
}

console.log(`
Demo Digest is running at ${DIGEST}, and Demo Notes, which it reads from, at ${NOTES}.
Sign in to Demo Digest as alice or bob, connect Demo Notes there, and make a digest.

Each app has its own sign-in. To have notes in it, connect an MCP client to ${NOTES}/mcp and let it add some.
`)

/** @param {number} code */
async function stop (code) {
  setTimeout(() => process.exit(1), 5000).unref()
  await Promise.all(programs.map(async (program) => {
    program.removeAllListeners('exit').kill('SIGTERM')
    if (program.exitCode === null && program.signalCode === null) await once(program, 'exit')
  }))
  await own?.remove()
  process.exit(code)
}
