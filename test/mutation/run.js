// Takes out one defence after the other, and sees that a test goes red: npm run test:mutation. Works in copies in the
// temporary folder; the checkout stays as it is.
//
//   --only <text>   those whose file, reason or tests contain it
//   --jobs <count>  so many at once; default 1
import { spawn } from 'node:child_process'
import { cpSync, mkdtempSync, readFileSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { performance } from 'node:perf_hooks'
import process from 'node:process'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import ts from 'typescript'
import MUTATIONS from './mutations.js'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const TSC = join(ROOT, 'node_modules/typescript-7/bin/tsc')

/** Milliseconds. What takes longer hangs, and a test that hangs is not green. */
const TIMEOUT = 90_000

const { values: { only = '', jobs } } = parseArgs({ options: { only: { type: 'string' }, jobs: { type: 'string', default: '1' } } })

const COMPILER_OPTIONS = { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext, verbatimModuleSyntax: true }

/** `file: beginning of a test's name`, or a whole file. */
function parseTest (test) {
  const [, file, name] = /^(.*?\.test\.ts)(?:: (.+))?$/.exec(test) ?? []
  return { file, name }
}

/** What is wrong with an entry, so that the list cannot fall behind the sources. */
function problemsOf ({ file, search, replace, tests, why }) {
  const source = readFileSync(join(ROOT, file), 'utf8')
  const problems = []
  const times = source.split(search).length - 1
  if (times !== 1) problems.push(`its search is ${times} times in the file`)
  const { diagnostics = [] } = file.endsWith('.ts') ? ts.transpileModule(source.replace(search, () => replace), { reportDiagnostics: true, compilerOptions: COMPILER_OPTIONS }) : {}
  if (search === replace || diagnostics.length > 0) problems.push('what it makes is no other program')
  if (tests.length === 0 || why === '') problems.push('it has no tests or no reason')
  for (const test of tests) {
    const { file, name = '' } = parseTest(test)
    const names = [...sourceOf(file).matchAll(/\btest\((['`])((?:\\.|(?!\1)[^\\])*)\1/g)].map(([,, name]) => name)
    // Of a name that is made in a loop, what comes before.
    const isNamed = (one) => one.startsWith(name) || (/^[^$].*\$\{/.test(one) && name.startsWith(one.split('${')[0]))
    if (name !== '' && names.filter(isNamed).length !== 1) problems.push(`${test} is not the beginning of one test`)
  }
  return problems.map((problem) => `${file}, ${why}: ${problem}`)
}

/** A test file, with those that it takes its tests from. */
function sourceOf (file) {
  const source = readFileSync(join(ROOT, file), 'utf8')
  return source + [...source.matchAll(/from '\.\/([\w-]+-suite)\.js'/g)].map(([, name]) => readFileSync(join(ROOT, `test/${name}.ts`), 'utf8')).join('')
}

/** Writes a file of a copy; TypeScript as what is built of it, one file at a time. */
function write (copy, file, source) {
  if (file.endsWith('.ts')) writeFileSync(join(copy, file.replace(/^lib/, 'dist').replace(/\.ts$/, '.js')), ts.transpileModule(source, { compilerOptions: COMPILER_OPTIONS }).outputText)
  else writeFileSync(join(copy, file), source)
}

/** A tree in which files may be changed, with all that is built of it. */
async function makeCopy () {
  const copy = mkdtempSync(join(tmpdir(), 'mcp-oauth-mutation-'))
  process.once('exit', () => rmSync(copy, { recursive: true, force: true }))
  for (const name of readdirSync(ROOT)) {
    if (['node_modules', 'dist', '.git', '.tap'].includes(name)) continue
    cpSync(join(ROOT, name), join(copy, name), { recursive: true, filter: (path) => basename(path) !== 'node_modules' })
  }
  symlinkSync(join(ROOT, 'node_modules'), join(copy, 'node_modules'), 'junction')
  for (const name of readdirSync(join(copy, 'test'), { recursive: true })) {
    const file = join('test', name)
    if (file.endsWith('.ts')) write(copy, file, readFileSync(join(copy, file), 'utf8'))
  }
  const { status, output } = await run(copy, [TSC, '-p', 'tsconfig.build.json'])
  if (status !== 0) throw new Error(`The build fails:\n${output}`)
  return copy
}

const running = new Set()

async function run (copy, args, env = {}) {
  return await new Promise((resolve) => {
    // A group of its own, so that what a test has started ends with it.
    const child = spawn(process.execPath, args, { cwd: copy, env: { ...process.env, ...env }, stdio: ['ignore', 'pipe', 'pipe'], detached: true })
    running.add(child)
    let output = ''
    for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (chunk) => { output += chunk })
    let late = false
    const timer = setTimeout(() => {
      late = true
      end(child)
    }, TIMEOUT)
    child.once('close', (code) => {
      clearTimeout(timer)
      running.delete(child)
      resolve({ status: late ? 'timeout' : code, output })
    })
  })
}

function end (child) {
  try {
    process.kill(-child.pid, 'SIGKILL')
  } catch {}
}

for (const signal of ['SIGINT', 'SIGTERM']) {
  process.once(signal, () => {
    running.forEach(end)
    process.exit(130)
  })
}

/** Runs tests of one file, those of the given names or all, until the first that fails. */
async function runTests (copy, file, names) {
  const literal = (text) => text.replace(/[.*+?^${}()|[\]\\/]/g, '\\$&')
  const grep = names.includes(undefined) ? {} : { TAP_GREP: `/^(${names.map(literal).join('|')})/` }
  return await run(copy, [file.replace(/\.ts$/, '.js')], { TAP_BAIL: '1', TAP_TIMEOUT: String(TIMEOUT / 1000), ...grep })
}

/** Whether any of the tests notices, and which assertion did. */
async function outcomeOf (copy, { file, search, replace, tests }) {
  const source = readFileSync(join(ROOT, file), 'utf8')
  write(copy, file, source.replace(search, () => replace))
  try {
    for (const { file, name } of tests.map(parseTest)) {
      const { status, output } = await runTests(copy, file, [name])
      const [, noticed = ''] = /^Bail out! (.*)$/m.exec(output) ?? []
      if (status === 'timeout') return { outcome: 'timeout', noticed }
      // A program that does not even load has killed nothing.
      if (status !== 0) return { outcome: /^# Subtest: /m.test(output) ? 'killed' : 'BROKEN', noticed }
    }
    return { outcome: 'SURVIVED', noticed: '' }
  } finally {
    write(copy, file, source)
  }
}

const startedAt = performance.now()
const seconds = (since) => `${((performance.now() - since) / 1000).toFixed(1)} s`

const problems = MUTATIONS.flatMap(problemsOf)
if (problems.length > 0) {
  console.error(problems.join('\n'))
  process.exit(1)
}
const chosen = MUTATIONS.filter(({ file, why, tests }) => [file, why, ...tests].some((text) => text.includes(only)))
if (chosen.length === 0) {
  console.error(`No mutation has “${only}” in its file, reason or tests.`)
  process.exit(1)
}
const copies = await Promise.all(Array.from({ length: Math.max(1, Math.min(Number(jobs) || 1, chosen.length)) }, makeCopy))

// What is red anyway would kill everything.
const used = chosen.flatMap(({ tests }) => tests.map(parseTest))
for (const file of new Set(used.map(({ file }) => file))) {
  const { status, output } = await runTests(copies[0], file, [...new Set(used.filter((test) => test.file === file).map(({ name }) => name))])
  if (status !== 0) {
    console.error(`${file} fails as it is:\n${output.slice(-5000)}`)
    process.exit(1)
  }
}

const outcomes = []
const waiting = [...chosen]
await Promise.all(copies.map(async (copy) => {
  for (let mutation = waiting.shift(); mutation !== undefined; mutation = waiting.shift()) {
    const since = performance.now()
    const { file, tests, why, explained } = mutation
    const { outcome, noticed } = await outcomeOf(copy, mutation)
    const isExpected = (outcome === 'SURVIVED') === (explained !== undefined) && outcome !== 'BROKEN'
    outcomes.push({ outcome, isExpected, isExplained: explained !== undefined })
    console.log(`${outcome.padEnd(8)} ${file}: ${why} (${tests.join(', ')}${noticed && ` “${noticed.slice(0, 100)}”`}, ${seconds(since)})`)
    if (explained !== undefined) console.log(`         ${outcome === 'SURVIVED' ? 'because' : 'though it was to survive because'} ${explained}`)
  }
}))

const count = (is) => outcomes.filter(is).length
console.log(`\n${outcomes.length} mutations: ${count(({ outcome }) => outcome === 'killed' || outcome === 'timeout')} killed, ${count(({ outcome }) => outcome === 'SURVIVED')} survived, ${count(({ outcome, isExplained }) => outcome === 'SURVIVED' && isExplained)} of them explained; ${seconds(startedAt)}`)
process.exitCode = outcomes.every(({ isExpected }) => isExpected) ? 0 : 1
