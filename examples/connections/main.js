// @ts-check
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'
import { DATA_DIR, DIGEST, NOTES, connectionOptions } from './settings.js'

// Makes the key that the app and its worker share, before either of them starts.
connectionOptions()

// The queue's database: yours, or for a try the one that comes with the tests, empty each time.
const { startServer } = await import('../../test/scripts/postgres-server.js')
const own = process.env.DATABASE_URL === undefined ? await startServer() : undefined
const env = { ...process.env, NOTES, DIGEST, DATA_DIR, DATABASE_URL: process.env.DATABASE_URL ?? own?.url }

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
for (const address of [NOTES, DIGEST]) {
  while (!await fetch(address).then(() => true, () => false)) await new Promise((resolve) => setTimeout(resolve, 100))
}

console.log(`
Demo Digest is running at ${DIGEST}, and Demo Notes, which it reads from, at ${NOTES}.
Sign in to Demo Digest as alice or bob, connect Demo Notes there, and make a digest.

Each app has its own sign-in. Notes come from an MCP client (${NOTES}/mcp).
`)

for (const signal of ['SIGTERM', 'SIGINT']) {
  process.on(signal, async () => {
    setTimeout(() => process.exit(1), 5000).unref()
    await Promise.all(programs.map(async (program) => {
      program.kill('SIGTERM')
      if (program.exitCode === null && program.signalCode === null) await once(program, 'exit')
    }))
    await own?.remove()
    process.exit(0)
  })
}
