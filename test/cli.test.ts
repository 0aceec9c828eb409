import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { summarize } from '../lib/grants/tokens.js'
import { parseKey } from '../lib/protocol/secret.js'
import { postgresStore } from '../lib/store/postgres.js'
import { sqliteStore } from '../lib/store/sqlite.js'
import { folder } from './app.js'
import { startPostgres } from './postgres.js'
import { row } from './store/contract.js'

const cli = fileURLToPath(new URL('../dist/cli.js', import.meta.url))

async function run (...args: string[]): Promise<{ code: number, stdout: string, stderr: string }> {
  return await new Promise((resolve) => {
    execFile(process.execPath, [cli, ...args], { env: { PATH: process.env.PATH } }, (error, stdout, stderr) => {
      resolve({ code: typeof error?.code === 'number' ? error.code : 0, stdout, stderr })
    })
  })
}

t.test('key prints a key that the plugin takes, another one each time', async (t) => {
  const [one, other] = [await run('key'), await run('key')]
  t.equal(parseKey(one.stdout.trim())?.length, 32)
  t.not(one.stdout, other.stdout)
})

t.test('migrate makes the table that a store with migrate: false needs', async (t) => {
  const server = await startPostgres(t)
  const connectionString = await server.database()
  const store = postgresStore({ connectionString, migrate: false })
  await store.open()
  t.teardown(() => store.close())
  await t.rejects(async () => await store.issue(row()), { code: '42P01' }, 'not before')
  t.strictSame(await run('migrate', connectionString), { code: 0, stdout: 'The table access_tokens is up to date.\n', stderr: '' })
  t.equal(await store.issue(row()), 'issued')
  t.equal((await run('migrate', connectionString)).code, 0, 'and again')
  t.equal(summarize(await store.stats(0)).total, 1)

  const path = join(folder(), 'tokens.db')
  t.equal((await run('migrate', path)).code, 0)
  const file = sqliteStore({ path })
  await file.open()
  t.teardown(() => file.close())
  t.equal(await file.issue(row()), 'issued')
})

t.test('a database out of reach is exit code 1 and one line; a wrong call is 2 and the usage', async (t) => {
  const unreachable = await run('migrate', 'postgres://secret:hunter2@127.0.0.1:1/none')
  t.equal(unreachable.code, 1)
  t.match(unreachable.stderr, /^The token store is unavailable\. .*\n$/)
  t.notMatch(unreachable.stderr, /hunter2/)
  for (const args of [[], ['nonsense'], ['migrate'], ['migrate', 'a', 'b'], ['key', 'x']]) {
    const { code, stderr } = await run(...args)
    t.equal(code, 2, args.join(' '))
    t.match(stderr, /^Usage: fastify-mcp-oauth/)
  }
})
