import { DatabaseSync } from '@photostructure/sqlite'
import { execFile, execFileSync, spawn } from 'node:child_process'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import pg from 'pg'
import t, { type Test } from 'tap'
import { hashToken, parseKey } from '../dist/protocol/secret.js'
import { postgresStore } from '../dist/store/postgres.js'
import { sqliteStore } from '../dist/store/sqlite.js'
import type { TokenRow, TokenStore } from '../dist/store/store.js'
import { bearer, dance, folder, testApp } from './app.js'
import { startPostgres } from './postgres.js'
import { row } from './store/contract.js'

const cli = fileURLToPath(new URL('../dist/cli.js', import.meta.url))
const server = await startPostgres(t)
const ENV = { PATH: process.env.PATH }
// Without the loader that tap gives to whatever is spawned. Newer versions of Node say that their SQLite is experimental.
const [command, ...before] = ['env', '-u', 'NODE_OPTIONS', process.execPath, '--disable-warning=ExperimentalWarning'] as const

interface Run {
  code: number
  stdout: string
  stderr: string
}

async function run (args: string[], env: NodeJS.ProcessEnv = {}, imported = ''): Promise<Run> {
  return await new Promise((resolve) => {
    execFile(command, [...before, ...imported === '' ? [] : ['--import', `data:text/javascript,${encodeURIComponent(imported)}`], cli, ...args], { env: { ...ENV, ...env } }, (error, stdout, stderr) => {
      resolve({ code: typeof error?.code === 'number' ? error.code : 0, stdout, stderr })
    })
  })
}

async function runJson (args: string[]): Promise<unknown> {
  const { code, stdout, stderr } = await run([...args, '--json'])
  if (code !== 0) throw new Error(stderr)
  return JSON.parse(stdout)
}

/** A database with the table, of either kind. */
interface Database {
  /** What the command line takes. */
  url: string
  store: TokenStore
  open: () => TokenStore
  /** Everything in the table. */
  dump: () => Promise<object[]>
  /** Runs SQL of a test's own. */
  query: (sql: string) => Promise<unknown>
}

async function openPostgres (t: Test): Promise<Database> {
  const url = await server.database()
  const pool = new pg.Pool({ connectionString: url })
  t.teardown(() => pool.end())
  const open = (): TokenStore => postgresStore({ connectionString: url })
  const store = await opened(t, open())
  return { url, store, open, dump: async () => (await pool.query('SELECT * FROM access_tokens ORDER BY id')).rows, query: async (sql) => await pool.query(sql) }
}

async function openSqlite (t: Test): Promise<Database> {
  const url = join(folder(), 'tokens.db')
  const open = (): TokenStore => sqliteStore({ path: url })
  const store = await opened(t, open())
  const database = new DatabaseSync(url)
  t.teardown(() => database.close())
  return { url, store, open, dump: async () => database.prepare('SELECT * FROM access_tokens ORDER BY id').all().map((row) => ({ ...row as object })), query: async (sql) => database.exec(sql) }
}

async function opened (t: Test, store: TokenStore): Promise<TokenStore> {
  await store.open()
  t.teardown(() => store.close())
  return store
}

const onBoth = (title: string, body: (t: Test, database: Database) => Promise<void>): void => {
  t.test(`${title} (SQLite)`, async (t) => await body(t, await openSqlite(t)))
  t.test(`${title} (PostgreSQL)`, async (t) => await body(t, await openPostgres(t)))
}

const DAY = 24 * 60 * 60 * 1000
const endedLongAgo = (): TokenRow => row({ revokedAt: Date.now() - 31 * DAY, revokedReason: 'disconnected' })

async function issue (store: TokenStore, rows: TokenRow[]): Promise<void> {
  // Not all at once: on a busy machine the last would have to wait for longer than a query may take.
  for (let start = 0; start < rows.length; start += 500) {
    await Promise.all(rows.slice(start, start + 500).map(async (row) => await store.issue(row)))
  }
}

t.test('key prints a key that the plugin takes, another one each time', async (t) => {
  const [one, other] = [await run(['key']), await run(['key'])]
  t.equal(parseKey(one.stdout.trim())?.length, 32)
  t.not(one.stdout, other.stdout)
  t.equal(parseKey((await runJson(['key']) as { key: string }).key)?.length, 32)
})

t.test('secret prints a client secret and the hash that the server keeps of it, others each time', async (t) => {
  const [one, other] = [await runJson(['secret']), await runJson(['secret'])] as Array<{ clientSecret: string, clientSecretHash: string }>
  t.match(one!.clientSecret, /^ocs_[A-Za-z0-9_-]{43}$/)
  t.equal(one!.clientSecretHash, hashToken(one!.clientSecret).toString('base64url'))
  t.not(one!.clientSecret, other!.clientSecret)
  const [secret, hash] = (await run(['secret'])).stdout.match(/(?<=: )\S+/g)!
  t.equal(hashToken(secret!).toString('base64url'), hash)
})

t.test('migrate makes the table that a store with migrate: false needs', async (t) => {
  const connectionString = await server.database()
  const store = await opened(t, postgresStore({ connectionString, migrate: false }))
  await t.rejects(async () => await store.issue(row()), { code: '42P01' }, 'not before')
  t.strictSame(await run(['migrate', connectionString]), { code: 0, stdout: 'The table access_tokens is up to date.\n', stderr: '' })
  t.equal(await store.issue(row()), 'issued')
  t.strictSame(await runJson(['migrate', connectionString]), { migrated: true }, 'and again')
  t.equal(await store.count({ userId: 'alice' }), 1)

  const path = join(folder(), 'tokens.db')
  t.equal((await run(['migrate', path])).code, 0)
  t.equal(await (await opened(t, sqliteStore({ path, migrate: false }))).issue(row()), 'issued')
})

t.test('the database is the argument, else that of the environment', async (t) => {
  const [one, other] = [await openSqlite(t), await openSqlite(t)]
  await issue(one.store, [row()])
  t.match(JSON.parse((await run(['stats', '--json'], { DATABASE_URL: one.url })).stdout), { total: 1 })
  t.match(JSON.parse((await run(['stats', '--json', other.url], { DATABASE_URL: one.url })).stdout), { total: 0 })
  t.equal((await run(['purge', ''], { DATABASE_URL: one.url })).code, 2, 'an empty argument is a variable that is not set, not a wish for another database')
  t.equal((await run(['stats'], { DATABASE_URL: '' })).code, 2)
})

onBoth('stats are the totals and a line a client, which a person can read', async (t, { url, store }) => {
  const clientId = `${'e'.repeat(200)}the-very-end`
  const bob = row({ userId: 'bob' })
  await issue(store, [
    row(), bob, row({ expiresAt: 1 }),
    row({ clientId, clientName: 'Claude Code' }), row({ clientId, clientName: 'Claude Code' }), row({ clientId, clientName: 'Claude Code' }),
    row({ clientId: 'odd\u001b[2J', clientName: 'Odd\u0007\r\n\u202e\u2028name', expiresAt: 1 }),
    row({ clientId: null, clientName: null, name: 'script' }), row({ clientId: null, clientName: null, expiresAt: 1 })
  ])
  await store.revoke({ grantId: bob.id }, 'client_revoked', Date.now())
  await store.revoke({ clientId: 'nobody' }, 'disconnected', Date.now())
  t.same(await runJson(['stats', url]), {
    total: 9,
    active: 5,
    revoked: 1,
    expired: 3,
    personal: 1,
    clients: [
      { clientId, clientName: 'Claude Code', active: 3, revoked: 0, expired: 0 },
      { clientId: 'app', clientName: 'App', active: 1, revoked: 1, expired: 1 },
      { clientId: 'odd\u001b[2J', clientName: 'Odd\u0007\r\n\u202e\u2028name', active: 0, revoked: 0, expired: 1 }
    ]
  })
  const { stdout, stderr } = await run(['stats', url])
  t.equal(stderr, '')
  const lines = stdout.split('\n')
  t.strictSame([...lines.slice(0, 3), ...lines.slice(3, 5).sort(), ...lines.slice(5)], [
    '   active  revoked  expired',
    '        5        1        3  in all',
    '        3        0        0  Claude Code (…the-very-end)',
    '        1        0        1  personal access tokens',
    '        1        1        1  App (app)',
    '        0        0        1  Odd name (odd [2J)',
    ''
  ])
})

onBoth('revoke ends what it names, says how many, and touches nothing else', async (t, { url, store }) => {
  const rows = { one: row(), two: row(), other: row({ clientId: 'other' }), bob: row({ userId: 'bob' }), personal: row({ clientId: null, name: 'script' }) }
  await issue(store, Object.values(rows))
  const live = async (): Promise<string[]> => {
    const found = await Promise.all(Object.entries(rows).map(async ([name, { id }]) => (await store.find(id))?.revokedAt === null ? name : ''))
    return found.filter((name) => name !== '')
  }
  t.strictSame(await run(['revoke', url, `--grant=${rows.one.id}`]), { code: 0, stdout: 'Ended 1 grant.\n', stderr: '' })
  t.match(await store.find(rows.one.id), { revokedReason: 'disconnected' })
  t.strictSame(await live(), ['two', 'other', 'bob', 'personal'])
  t.strictSame(await runJson(['revoke', url, `--grant=${rows.one.id}`]), { dryRun: false, grants: 0 }, 'once')
  t.strictSame(await runJson(['revoke', '--client', 'app', '--user', 'alice', url]), { dryRun: false, grants: 1 })
  t.strictSame(await live(), ['other', 'bob', 'personal'])
  t.strictSame(await runJson(['revoke', url, '--client', 'app']), { dryRun: false, grants: 1 })
  t.strictSame(await live(), ['other', 'personal'])
  t.strictSame(await run(['revoke', url, '--user', 'alice']), { code: 0, stdout: 'Ended 2 grants.\n', stderr: '' })
  t.strictSame(await live(), [])
})

onBoth('an app that is running refuses at its next request what the command line revoked, and codes on their way', async (t, { url, open }) => {
  const app = await testApp(t, { store: open() })
  const { clientId, code, redeem } = dance(app)
  const client = await clientId()
  const { access_token: token } = (await redeem(client, await code(client))).json<{ access_token: string }>()
  const onItsWay = await code(client)
  const guard = async (): Promise<number> => (await app.inject({ method: 'POST', url: '/mcp', headers: bearer(token) })).statusCode
  t.equal(await guard(), 200)
  t.strictSame(await runJson(['revoke', url, '--user', 'alice', '--client', client]), { dryRun: false, grants: 1 })
  t.equal(await guard(), 401)
  const refused = await redeem(client, onItsWay)
  t.equal(refused.statusCode, 400)
  t.match(refused.json(), { error: 'invalid_grant' })
})

onBoth('a dry run and stats change nothing, and a dry run says what the command then does', async (t, { url, store, dump }) => {
  const one = row()
  await issue(store, [one, row(), row({ userId: 'bob' }), row({ clientId: 'other' }), row({ expiresAt: 1 }), row({ expiresAt: Date.now() - 29 * DAY }), endedLongAgo()])
  const before = await dump()
  const calls: Array<[args: string[], number: number]> = [
    [['purge'], 2],
    [['revoke', `--grant=${one.id}`], 1],
    [['revoke', '--user', 'alice', '--client', 'app'], 2],
    [['revoke', '--client', 'app'], 1],
    [['revoke', '--user', 'alice'], 1]
  ]
  for (const [args] of calls) {
    const { code, stdout } = await run([...args, url, '--dry-run'])
    t.equal(code, 0)
    t.match(stdout, /^Would (delete \d rows?|end \d grants?)\.\n$/)
  }
  await run(['stats', url])
  t.strictSame(await dump(), before)
  for (const [args, number] of calls) {
    const { dryRun, ...told } = await runJson([...args, url, '--dry-run']) as { dryRun: boolean }
    t.equal(dryRun, true)
    t.strictSame(await runJson([...args, url]), { dryRun: false, ...told }, args.join(' '))
    t.strictSame(Object.values(told), [number])
  }
})

onBoth('purge deletes what ended over 30 days ago, and nothing else; without a terminal it shows no progress', async (t, { url, store, dump }) => {
  const kept = [row(), row({ expiresAt: Date.now() - 29 * DAY }), row({ expiresAt: 1, refreshExpiresAt: Date.now() + DAY })]
  await issue(store, [...kept, ...Array.from({ length: 1200 }, endedLongAgo), row({ expiresAt: Date.now() - 31 * DAY })])
  t.strictSame(await run(['purge', url]), { code: 0, stdout: 'Deleted 1201 rows.\n', stderr: '' })
  t.strictSame((await dump()).map((row) => (row as { id: string }).id).sort(), kept.map(({ id }) => id).sort())
  t.strictSame(await runJson(['purge', url]), { dryRun: false, rows: 0 })
})

/** What a person sees who runs it in a terminal. */
async function runInTerminal (t: Test, args: string[], onOutput: (write: (text: string) => void, output: string) => void = () => {}): Promise<{ code: number | null, output: string }> {
  const child = spawn('script', ['-qec', [command, ...before, cli, ...args].map((part) => `'${part}'`).join(' '), '/dev/null'], { env: ENV, stdio: ['pipe', 'pipe', 'inherit'] })
  t.teardown(() => child.kill('SIGKILL'))
  let output = ''
  child.stdout.on('data', (chunk) => {
    output += String(chunk)
    onOutput((text) => child.stdin.write(text), output)
  })
  const code = await new Promise<number | null>((resolve) => child.once('close', resolve))
  return { code, output }
}

const isScriptThere = (() => {
  try {
    return execFileSync('script', ['--version'], { encoding: 'utf8' }).includes('util-linux')
  } catch {
    return false
  }
})()
const terminal = isScriptThere ? {} : { skip: 'needs the program script of util-linux' }

t.test('in a terminal a purge shows after each batch how far it is, in one line that is gone at its end', terminal, async (t) => {
  for (const { url, store } of [await openSqlite(t), await openPostgres(t)]) {
    await issue(store, [row(), ...Array.from({ length: 2200 }, endedLongAgo)])
    const { code, output } = await runInTerminal(t, ['purge', url])
    t.equal(code, 0)
    t.equal(output, [500, 1000, 1500, 2000, 2200].map((deleted) => `\rDeleted ${deleted} of 2200 rows`).join('') + '\r\u001b[KDeleted 2200 rows.\r\n')
  }
})

t.test('Ctrl-C ends a purge after a whole batch, and the next one goes on', terminal, async (t) => {
  // Batches take half a second each, so that whoever presses is in time. SQLite cannot sleep.
  for (const [{ url, store, dump, query }, slow, drop] of [
    [await openSqlite(t), 'CREATE TRIGGER slow BEFORE DELETE ON access_tokens BEGIN SELECT hex(randomblob(300000)); END', 'DROP TRIGGER slow'],
    [await openPostgres(t), `
      CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END';
      CREATE TRIGGER slow BEFORE DELETE ON access_tokens EXECUTE FUNCTION slow()`, 'DROP TRIGGER slow ON access_tokens']
  ] as const) {
    await issue(store, [row(), ...Array.from({ length: 2000 }, endedLongAgo)])
    await query(slow)
    let isPressed = false
    const { code, output } = await runInTerminal(t, ['purge', url], (write, output) => {
      if (isPressed || !output.includes('Deleted 500 ')) return
      isPressed = true
      write('\u0003')
    })
    t.not(code, 0)
    t.notMatch(output, /Deleted \d+ rows\./)
    // PostgreSQL may still be at a batch that nobody waits for any more; this comes after it.
    await query(drop)
    const left = (await dump()).length
    t.comment(`${left - 1} of 2000 rows left`)
    t.ok(left > 1)
    t.equal((left - 1) % 500, 0)
    t.strictSame(await runJson(['purge', url]), { dryRun: false, rows: left - 1 })
    t.equal((await dump()).length, 1)
  }
})

const WITH_DATABASE = [['stats'], ['purge'], ['purge', '--dry-run'], ['revoke', '--user', 'alice'], ['revoke', '--user', 'alice', '--dry-run']]

async function failsWith (t: Test, args: string[], reason: RegExp): Promise<void> {
  const { code, stdout, stderr } = await run(args)
  t.equal(code, 1, args.join(' '))
  t.equal(stdout, '')
  t.match(stderr, reason)
  t.match(stderr, /^[^\n]+\n$/, 'one line')
}

t.test('only migrate makes a file, a table or a change to a file of others', async (t) => {
  const missing = join(folder(), 'none.db')
  const others = join(folder(), 'others.db')
  const database = new DatabaseSync(others)
  database.exec('CREATE TABLE notes (text TEXT)')
  database.close()
  const bytes = readFileSync(others)
  const connectionString = await server.database()
  for (const args of WITH_DATABASE) {
    await failsWith(t, [...args, missing], new RegExp(`^There is no file ${missing}$`, 'm'))
    t.notOk(existsSync(missing))
    for (const url of [others, connectionString]) await failsWith(t, [...args, url], /^The table access_tokens is missing or not up to date. Run: npx fastify-mcp-oauth migrate$/m)
    t.strictSame(readFileSync(others), bytes)
  }
})

t.test('what is no database, or out of reach, or of an older version is one line and exit code 1', async (t) => {
  const garbage = join(folder(), 'garbage.db')
  writeFileSync(garbage, 'this is no database, but it is long enough to be read as one'.repeat(50))
  for (const args of [['migrate'], ['stats'], ['purge', '--dry-run']]) {
    await failsWith(t, [...args, garbage], /^The token store is unavailable\. file is not a database$/m)
    await failsWith(t, [...args, folder()], /^The token store is unavailable\. .*unable to open/)
    await failsWith(t, [...args, 'postgres://secret:hunter2@127.0.0.1:1/none'], /^The token store is unavailable\. connect ECONNREFUSED 127\.0\.0\.1:1$/m)
  }
  // A host with two addresses fails with an error for each, and a message for none.
  const twoAddresses = "import dns from 'node:dns'; dns.lookup = (host, options, done) => done(null, [{ address: '127.0.0.1', family: 4 }, { address: '127.0.0.2', family: 4 }])"
  const { stderr } = await run(['stats', 'postgres://two.example:1/none'], {}, twoAddresses)
  t.equal(stderr, 'The token store is unavailable. connect ECONNREFUSED 127.0.0.1:1\n')
  await failsWith(t, ['migrate', join(folder(), 'no', 'such', 'folder.db')], /no such file or directory/)
  await failsWith(t, ['stats', Object.assign(new URL(server.url), { pathname: '/none' }).href], /database "none" does not exist/)

  // The package pg is the app's to install.
  const hook = "export const resolve = async (name, context, next) => { if (name === 'pg') throw new Error('Cannot find package pg'); return await next(name, context) }"
  const withoutPg = `import { register } from 'node:module'; register(${JSON.stringify(`data:text/javascript,${encodeURIComponent(hook)}`)})`
  t.strictSame(await run(['stats', server.url], {}, withoutPg), {
    code: 1, stdout: '', stderr: 'A store on PostgreSQL needs the package pg. Run: npm install pg. Cannot find package pg\n'
  })

  const older = await openPostgres(t)
  const client = new pg.Client(older.url)
  await client.connect()
  await client.query('ALTER TABLE access_tokens DROP COLUMN refresh_expires_at')
  await client.end()
  await failsWith(t, ['stats', older.url], /not up to date/)
})

t.test('a wrong call is exit code 2, with the reason and where to read on, and does nothing', async (t) => {
  const { url, store, dump } = await openSqlite(t)
  await issue(store, [row(), endedLongAgo()])
  const before = await dump()
  const cases: Array<[args: string[], reason: RegExp]> = [
    [['nonsense'], /no command nonsense/],
    [['postgres://secret:hunter2@localhost/app'], /no command …localhost\/app/],
    [['constructor', url], /no command/],
    [['migrate'], /Which database/],
    [['stats', url, url], /once/],
    [['key', url], /does not take database/],
    [['secret', '--client', 'app'], /does not take --client/],
    [['stats', url, '--dry-run'], /does not take --dry-run/],
    [['migrate', url, '--dry-run'], /does not take --dry-run/],
    [['purge', url, '--dryrun'], /^Unknown option '--dryrun'\.$/m],
    [['purge', url, '--user', 'alice'], /does not take --user/],
    [['purge', url, '--json=no'], /does not take an argument/],
    [['stats', 'mysql://localhost/app'], /PostgreSQL URL/],
    [['revoke', url], /Whose grants/],
    [['revoke', url, '--dry-run'], /Whose grants/],
    [['revoke', url, '--user', ''], /Whose grants/],
    [['revoke', url, '--user', 'alice', '--client', ''], /Whose grants/],
    [['revoke', url, '--user', 'x'.repeat(2049)], /Whose grants/],
    [['revoke', url, '--user', 'alice', '--grant', 'x'], /Whose grants/],
    [['revoke', url, '--client', 'app', '--grant', 'x'], /Whose grants/],
    [['revoke', url, '--user', 'alice', '--user', 'bob'], /--user can be given once/],
    [['revoke', url, '--user'], /argument missing/],
    [['revoke', url, '--grant', '-x'], /starting with a dash use '--grant=-XYZ'/],
    [['revoke', '--user', url], /Which database/],
    [['revoke', url, '--client', '…the-very-end'], /^…the-very-end is a shortened id: take the full id from stats --json\.$/m],
    [['revoke', url, '--client', '…the-very-end', '--user', 'alice', '--dry-run'], /take the full id from stats --json/],
    [['revoke', url, '--grant', '…the-very-end'], /take the full id from stats --json/]
  ]
  for (const [args, reason] of cases) {
    const { code, stdout, stderr } = await run(args)
    t.equal(code, 2, args.join(' '))
    t.equal(stdout, '')
    t.match(stderr, /^[^\n]+\nnpx fastify-mcp-oauth --help says what is right\.\n$/, 'two lines')
    t.match(stderr, reason)
  }
  t.strictSame(await dump(), before)
})

t.test('an empty call is a wrong one, and shows all that there is', async (t) => {
  const { code, stdout, stderr } = await run([])
  t.equal(code, 2)
  t.equal(stdout, '')
  t.match(stderr, /^Which command\?\n\nUsage: fastify-mcp-oauth <command>\n[^]*Exit codes/)
})

t.test('with --json there is one document on stdout, whatever happens', async (t) => {
  const { url } = await openSqlite(t)
  for (const args of [['key'], ['secret'], ['migrate', url], ['stats', url], ['purge', url], ['purge', url, '--dry-run'], ['revoke', url, '--user', 'alice'], ['--help'], ['--version']]) {
    const { code, stdout, stderr } = await run([...args, '--json'])
    t.strictSame({ code, stderr }, { code: 0, stderr: '' }, args.join(' '))
    t.match(stdout, /^\{.*\}\n$/)
    t.type(JSON.parse(stdout), 'object')
  }
  for (const [args, expected] of [[['stats', 'none.db'], 1], [['stats', url, '--nonsense'], 2]] as const) {
    const { code, stdout, stderr } = await run([...args, '--json'])
    t.equal(code, expected)
    t.equal(stderr.split('\n')[0], (JSON.parse(stdout) as { error: string }).error)
  }
})

t.test('no password is in any output', async (t) => {
  const urls = [
    'postgres://secret:hunter2@127.0.0.1:1/none',
    'POSTGRES://secret:hunter2@127.0.0.1:1/none',
    'postgres://secret:hunter2@127.0.0.1:port/none',
    'postgres://secret:hunter2%@127.0.0.1:1/none',
    'postgres://secret:hunter2#@127.0.0.1:1/none',
    'postgres://secret:hunter2/@127.0.0.1:1/none',
    'postgres://secret:hunter2@@127.0.0.1:1/none',
    'postgres://127.0.0.1:1/none?user=secret&password=hunter2',
    'postgres:secret:hunter2@127.0.0.1:1',
    'postgress://secret:hunter2@127.0.0.1:1/none',
    'postgress:/secret:hunter2@127.0.0.1:1/none',
    'secret:hunter2@127.0.0.1:1/none',
    'host=127.0.0.1 port=1 password=hunter2',
    '--postgres://secret:hunter2@127.0.0.1:1/none'
  ]
  for (const url of urls) {
    for (const { code, stdout, stderr } of await Promise.all([run(['stats', url]), run(['purge', '--json'], { DATABASE_URL: url })])) {
      t.not(code, 0, url)
      t.notMatch(stdout + stderr, /hunter2/, url)
    }
  }
})

t.test('help and version go to stdout, and are no wrong call', async (t) => {
  for (const args of [['--help'], ['-h'], ['help'], ['revoke', '--help']]) {
    const { code, stdout, stderr } = await run(args)
    t.strictSame({ code, stderr }, { code: 0, stderr: '' })
    t.match(stdout, /^Usage: fastify-mcp-oauth/)
  }
  const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')) as { version: string }
  t.strictSame(await run(['--version']), { code: 0, stdout: `${version}\n`, stderr: '' })
})
