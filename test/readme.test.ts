import { ESLint } from 'eslint'
import { execFile, spawn } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import t, { type Test } from 'tap'
import { COLUMNS } from '../lib/store/schema.js'
import { folder, freePort } from './app.js'
import { startPostgres } from './postgres.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const readme = readFileSync(join(root, 'README.md'), 'utf8')
const programs = [...readme.matchAll(/```js\n([^]*?)```/g)].map(([, code]) => code!)
const table = (heading: string): string[][] => readme.split(`## ${heading}\n`)[1]!.split('\n## ')[0]!.split('\n')
  .filter((line) => line.startsWith('| `')).map((line) => line.split('|').slice(1, -1).map((cell) => cell.trim()))

/** A program of the README in a folder in which the package is installed. */
function install (code: string): string {
  const project = folder()
  mkdirSync(join(project, 'node_modules'))
  symlinkSync(root, join(project, 'node_modules', 'fastify-mcp-oauth'))
  symlinkSync(join(root, 'node_modules', 'fastify'), join(project, 'node_modules', 'fastify'))
  writeFileSync(join(project, 'package.json'), '{ "type": "module" }')
  writeFileSync(join(project, 'server.js'), code)
  return project
}

t.test('the README shows four programs', async (t) => {
  t.equal(programs.length, 4)
})

/** Starts a program of the README on a free port and asks its route without a token. */
async function challenge (t: Test, code: string, env: Record<string, string> = {}): Promise<{ cwd: string, issuer: string, response: Response }> {
  const issuer = `http://localhost:${await freePort()}`
  const cwd = install(code.replaceAll('3000', new URL(issuer).port))
  const child = spawn(process.execPath, ['server.js'], { cwd, env: { PATH: process.env.PATH, OAUTH_KEY: 'k'.repeat(43), ...env }, stdio: ['ignore', 'ignore', 'pipe'] })
  t.teardown(() => child.kill('SIGKILL'))
  let complaints = ''
  child.stderr.on('data', (chunk) => { complaints += String(chunk) })
  for (let attempt = 0; attempt < 200; attempt++) {
    try {
      return { cwd, issuer, response: await fetch(`${issuer}/mcp`, { method: code.includes('app.post') ? 'POST' : 'GET' }) }
    } catch {
      await new Promise((resolve) => setTimeout(resolve, 50))
    }
  }
  throw new Error(`the server did not start: ${complaints}`)
}

t.test('the whole server in the README guards its route', async (t) => {
  const { cwd, issuer, response } = await challenge(t, programs[0]!)
  t.equal(response.status, 401)
  t.equal(response.headers.get('www-authenticate'), `Bearer resource_metadata="${issuer}/.well-known/oauth-protected-resource/mcp", scope="read"`)
  t.ok(existsSync(join(cwd, 'oauth.db')), 'with the default store')
})

t.test('and so does the one for several nodes, on PostgreSQL', async (t) => {
  const server = await startPostgres(t)
  const { response } = await challenge(t, programs[3]!, { DATABASE_URL: await server.database() })
  t.equal(response.status, 401)
})

t.test('the other programs in the README run as they stand', async (t) => {
  const { stdout } = await promisify(execFile)(process.execPath, ['server.js'], { cwd: install(programs[1]!) })
  t.equal(stdout.trim(), 'alice alice')
  await t.resolves(promisify(execFile)(process.execPath, ['server.js'], { cwd: install(programs[2]!) }))
})

t.test('the README names every option, column, event and file there is, and no other', async (t) => {
  const source = (file: string): string => readFileSync(join(root, file), 'utf8')
  const options = [...source('lib/options.ts').matchAll(/^const KNOWN = new Set\(\[([^]*?)\]\)/gm)][0]![1]!.match(/\w+/g)!
  t.strictSame(table('Options').map(([name]) => name!.replaceAll('`', '')).sort(), [...options].sort())

  const columns = table('The table').flatMap(([names]) => names!.match(/\w+/g)!)
  t.strictSame(columns.sort(), COLUMNS.map(([, column]) => column).sort())

  const events = [...source('lib/events.ts').matchAll(/type: '([\w.]+)'/g)].map(([, type]) => type!)
  const named = readme.split('### Events\n')[1]!.split('. Each has')[0]!.match(/[a-z]+\.[a-z]+/g)!
  t.strictSame([...named].sort(), [...events].sort())

  for (const file of ['README.md', 'CONTRIBUTING.md', 'SECURITY.md']) {
    for (const [, target] of source(file).matchAll(/(?:\]\(|src="|srcset=")(?!https?:|#)([^)"]+)/g)) {
      t.ok(existsSync(resolve(root, dirname(file), target!)), `${file}: ${target}`)
    }
  }
})

t.test('the test command of the README is the one that CI runs', async (t) => {
  t.match(readme, /```sh\nnpm ci && npm start\n```/)
  t.match(readme, /```sh\nnpm ci && npm test\n```/)
  t.match(readFileSync(join(root, '.ci/run'), 'utf8'), /^npm ci && npm test$/m)
})

t.test('an import against the direction is a lint error', async (t) => {
  const eslint = new ESLint({ cwd: root })
  const imports = async (file: string, from: string): Promise<string[]> => {
    const [result] = await eslint.lintText(`import '${from}'\n`, { filePath: join(root, file) })
    return result!.messages.map(({ ruleId }) => ruleId ?? '')
  }
  for (const [file, from] of [
    ['lib/protocol/pkce.ts', '../http/guard.js'],
    ['lib/protocol/pkce.ts', '../options.js'],
    ['lib/store/sqlite.ts', '../grants/grant.js'],
    ['lib/clients/client.ts', '../options.js'],
    ['lib/grants/tokens.ts', '../http/errors.js'],
    ['lib/http/guard.ts', '../endpoints/token.js'],
    ['lib/endpoints/token.ts', '../plugin.js'],
    ['lib/options.ts', './plugin.js'],
    ['lib/plugin.ts', './index.js']
  ] as const) t.strictSame(await imports(file, from), ['no-restricted-imports'], `${file} → ${from}`)
  for (const [file, from] of [
    ['lib/http/guard.ts', '../protocol/secret.js'],
    ['lib/endpoints/token.ts', '../http/errors.js'],
    ['lib/plugin.ts', './endpoints/token.js']
  ] as const) t.strictSame(await imports(file, from), [], `${file} → ${from}`)
})
