import { existsSync, mkdirSync, readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import t from 'tap'
import { Browser, startExample, temporaryFolder } from './example.js'
import { consent, installed, nodeOf, runProgram } from './program.js'
import { freePort } from './scripts/free-port.js'

t.setTimeout(240_000)

const RUNNER = '@modelcontextprotocol/conformance/dist/index.js'
const NODE = nodeOf(22)
/** Here the installation brings one, and its absence is a fault. */
const canSkip = process.platform !== 'linux' || process.arch !== 'x64'

/** One of the runner's findings. */
interface Check { id: string, status: 'SUCCESS' | 'FAILURE' | 'WARNING' | 'SKIPPED' | 'INFO', errorMessage?: string }

t.test('the official runner finds nothing wrong in any scenario for authorization servers', { skip: canSkip && NODE === undefined && 'the runner needs Node 22 or later' }, async (t) => {
  const example = await startExample(t, { env: { RATE_LIMIT: 'off' } })
  const results = join(temporaryFolder(t), 'results')
  mkdirSync(results)
  const port = await freePort()
  const registration = await fetch(`${example.url}/oauth/register`, {
    method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ client_name: 'Conformance', redirect_uris: [`http://127.0.0.1:${port}/callback`] })
  })
  const { client_id: clientId } = await registration.json() as { client_id: string }

  const list = runProgram(t, RUNNER, ['list', '--authorization'], { node: NODE! })
  t.equal(await list.ends(), 0, list.stderr())
  const scenarios = [...list.stdout().matchAll(/^ +- (\S+)/gm)].map(([, name]) => name!).sort()
  t.ok(scenarios.includes('authorization-code-grant'), list.stdout())

  const runner = runProgram(t, RUNNER, [
    'authorization', '--url', example.url, '--client-id', clientId, '--port', String(port), '--resource', `${example.url}/mcp`, '--output-dir', results
  ], { node: NODE! })
  await runner.prints(/Callback server started/)
  await consent(runner, new Browser(example, 'alice'))
  t.equal(await runner.ends(), 0, runner.stdout() + runner.stderr())

  const ran = new Map(readdirSync(results).map((folder): [string, Check[]] => [
    folder.replace(/^authorization-server-(.*)-\d{4}-\d\d-\d\dT.*$/, '$1'),
    JSON.parse(readFileSync(join(results, folder, 'checks.json'), 'utf8')) as Check[]
  ]))
  t.strictSame([...ran.keys()].sort(), scenarios, 'every scenario ran')
  for (const [scenario, checks] of ran) {
    t.comment(`${scenario}: ${checks.map(({ id, status }) => `${id} ${status}`).join(', ')}`)
    t.ok(checks.some(({ status }) => status === 'SUCCESS'), scenario)
    t.strictSame(checks.filter(({ status }) => status !== 'SUCCESS'), [], scenario)
  }
})

// The table of requirements

const ROOT = fileURLToPath(new URL('../', import.meta.url))
const TABLE = readFileSync(join(ROOT, 'docs/conformance.md'), 'utf8')

interface Row { requirement: string, sources: string[], file: string, test: string }

const ROWS: Row[] = TABLE.split('\n').filter((line) => /^\| (?!requirement |---)/.test(line)).map((line) => {
  const [, requirement = '', source = '', file = '', test = '', ...others] = line.split('|').map((cell) => cell.trim())
  if (others.length !== 1) throw new Error(`Not four cells: ${line}`)
  return { requirement, sources: source.split('; '), file: file.match(/^\[([\w.-]+)\]\(\.\.\/(test\/[\w./-]+)\)$/)?.[2] ?? '', test }
})

/** Sections of the MCP specification, 2026-07-28, that ask something of a server. */
const MCP_SECTIONS = [
  'Overview', 'Authorization Server Discovery', 'Client ID Metadata Documents', 'Pre-registration', 'Dynamic Client Registration', 'Scope Selection Strategy', 'Authorization Response Validation',
  'Canonical Server URI', 'Token Requirements', 'Token Handling', 'Refresh Tokens', 'Error Handling', 'Scope Challenge Handling', 'Step-Up Authorization Flow',
  'Token Audience Binding and Validation', 'Token Theft', 'Communication Security', 'Authorization Code Protection', 'Mix-Up Attacks', 'Open Redirection',
  'Client ID Metadata Document Security', 'Confused Deputy Problem', 'Access Token Privilege Restriction', 'Streamable HTTP'
]

/** What it builds on, and what clients besides expect of an authorization server. */
const STANDARDS = ['OAuth 2.1', 'CIMD', ...[6749, 6750, 6890, 7009, 7523, 7591, 7636, 7662, 8252, 8414, 8707, 9110, 9111, 9207, 9700, 9728].map((number) => `RFC ${number}`), 'CSP', 'Fetch']

t.test('each row of the table names a source and a test that exists', async (t) => {
  t.ok(ROWS.length > 50, `${ROWS.length} rows`)
  const titles = new Map<string, Array<(test: string) => boolean>>()
  const read = (file: string): string => existsSync(join(ROOT, file)) ? readFileSync(join(ROOT, file), 'utf8') : ''
  const titlesIn = (file: string): Array<(test: string) => boolean> => {
    const source = read(file)
    const imported = [...source.matchAll(/ from '\.\/([\w-]+)\.js'/g)].map(([, name]) => read(`test/${name}.ts`))
    const words = new Set([source, ...imported].flatMap((text) => text.match(/[\w.-]+/g) ?? []))
    // Neither one that is commented out nor one that is always skipped.
    return [...source.matchAll(/^(?! *\/).*\btest\((['`])((?:\\.|(?!\1)[^\\])*)\1(?!, \{ (?:skip|todo): (?:true|'))/gm)].map(([, quote, title]) => {
      const parts = quote === '`' ? title!.split(/\$\{[^}]*\}/) : [title!]
      const pattern = new RegExp(`^${parts.map((part) => part.replace(/\\(.)/g, '$1').replace(/[.*+?^${}()|[\]\\]/g, '\\$&')).join('(.+)')}$`)
      // What stands for a value in a title is made of words of the test and of what it imports.
      return (test) => pattern.exec(test)?.slice(1).every((value) => value.split(' ').every((word) => words.has(word))) === true
    })
  }
  for (const { requirement, sources, file, test } of ROWS) {
    t.ok(requirement !== '' && test !== '' && file !== '', `${requirement}: no cell is empty`)
    for (const source of sources) {
      const known = source.startsWith('MCP ') ? MCP_SECTIONS.includes(source.slice(4)) : STANDARDS.some((standard) => source === standard || source.startsWith(`${standard} §`)) || source.startsWith('clients: ')
      t.ok(known, `${requirement}: ${source}`)
    }
    if (!titles.has(file)) titles.set(file, titlesIn(file))
    t.ok(titles.get(file)!.some((isTitle) => isTitle(test)), `${file} has a test "${test}"`)
  }
  t.strictSame(ROWS.map(({ requirement }) => requirement).filter((requirement, index, all) => all.indexOf(requirement) !== index), [], 'no row twice')
})

t.test('each section and each standard has rows in the table', async (t) => {
  const named = ROWS.flatMap(({ sources }) => sources)
  t.strictSame(MCP_SECTIONS.filter((section) => !named.includes(`MCP ${section}`)), [])
  t.strictSame(STANDARDS.filter((standard) => !named.some((source) => source === standard || source.startsWith(`${standard} §`))), [])
  const sections = TABLE.split(/^## /m).slice(1)
  t.strictSame(sections.filter((section) => !/^\| (?!requirement |---)/m.test(section)).map((section) => section.split('\n')[0]), [], 'and no heading is without')
})

t.test('the versions in the table are those that were run', async (t) => {
  const packages: Record<string, string> = {
    'mcp-remote': installed('mcp-remote'),
    'MCP Inspector': installed('@modelcontextprotocol/inspector'),
    'conformance runner': installed('@modelcontextprotocol/conformance'),
    ...Object.fromEntries(['@modelcontextprotocol/sdk', '@modelcontextprotocol/client', 'oauth4webapi', 'openid-client'].map((name) => [name, join(ROOT, 'node_modules', name)]))
  }
  for (const [name, folder] of Object.entries(packages)) {
    const { version } = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')) as { version: string }
    t.ok(TABLE.includes(`${name} ${version}`), `${name} ${version}`)
  }
})
