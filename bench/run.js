// How the plugin compares, on this machine and in one run: `npm run bench`. `--quick` for a first look, `--only=guard,token`
// for some of it, which then takes the place of what was measured of that before; `--targets=fastify,sqlite` for some of them.
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { cpus } from 'node:os'
import { measure, median, pinned, startPostgres, startTarget } from './harness.js'
import { report } from './report.js'

const quick = process.argv.includes('--quick')
const list = (name) => process.argv.find((arg) => arg.startsWith(`--${name}=`))?.split('=')[1].split(',')
const only = list('only')
const wanted = list('targets')
const ROUNDS = quick ? 3 : 7
const DURATION = quick ? 1000 : 3000
const WARM_UP = quick ? 1000 : 3000

const SCENARIOS = ['guard', 'unknown', 'token', 'refresh', 'register', 'discovery', 'consent'].filter((scenario) => only === undefined || only.includes(scenario))

const postgres = await startPostgres()
const TARGETS = [
  { id: 'fastify', title: 'Bare Fastify routes', keeps: 'nothing', file: 'fastify.js' },
  { id: 'sqlite', title: 'fastify-mcp-oauth', keeps: 'SQLite', file: 'plugin.js' },
  { id: 'postgres', title: 'fastify-mcp-oauth', keeps: 'PostgreSQL', file: 'plugin.js', options: { postgres } },
  { id: 'one-query', title: 'the same, a query for each look-up', keeps: 'PostgreSQL', file: 'plugin.js', options: { postgres, one: true }, only: ['guard'] },
  { id: 'sdk', title: 'MCP SDK v1 on Express', keeps: 'memory', file: 'mcp-sdk.js' },
  { id: 'sdk-sqlite', title: 'MCP SDK v1 on Express', keeps: 'SQLite', file: 'mcp-sdk.js', options: { sqlite: true } },
  { id: 'oidc-provider', title: 'oidc-provider', keeps: 'memory', file: 'oidc-provider.js' },
  { id: 'better-auth', title: 'better-auth', keeps: 'SQLite', file: 'better-auth.js' },
  { id: 'cloudflare', title: 'workers-oauth-provider', keeps: 'memory', file: 'cloudflare.js' },
  { id: 'jmondi', title: '@jmondi/oauth2-server on Fastify', keeps: 'memory', file: 'jmondi.js' }
]
/** These use up what they are sent: every request is sent once. */
const ONCE = new Set(['token', 'refresh'])

const running = new Map()
for (const target of TARGETS.filter(({ id }) => wanted === undefined || wanted.includes(id))) {
  running.set(target.id, await startTarget(target))
  say(`${target.id} is ready\n`)
}

const results = []
for (const scenario of SCENARIOS) {
  const taking = TARGETS.filter(({ id, only }) => running.has(id) && running.get(id).scenarios.includes(scenario) && (only === undefined || only.includes(scenario)))
  const orders = new Map()
  for (const { id } of taking) {
    const target = running.get(id)
    if (ONCE.has(scenario)) {
      let rate = 0
      // The first hundreds are slow; how many are enough is known after them.
      for (const count of [300, 1000]) ({ rate } = await measure(target, { ...await target.prepare(scenario, count), once: true }))
      orders.set(id, { once: true, count: Math.min(40_000, Math.max(300, Math.round(rate * DURATION / 1000))) })
    } else {
      // No more tokens than can be used once a minute each in these few seconds: that is how often their use is written down.
      const prepared = await target.prepare(scenario, 1000)
      await measure(target, { ...prepared, warmUp: WARM_UP, duration: 100 })
      orders.set(id, { ...prepared, warmUp: 200, duration: DURATION })
    }
  }
  const seen = new Map(taking.map(({ id }) => [id, []]))
  for (let round = 0; round < ROUNDS; round++) {
    // Each round begins with another one, so that none is always the first after a pause.
    for (let turn = 0; turn < taking.length; turn++) {
      const { id } = taking[(round + turn) % taking.length]
      const target = running.get(id)
      const order = orders.get(id)
      const { rate, p50, p99, cpu, count, rss } = await measure(target, order.once ? { ...await target.prepare(scenario, order.count), once: true } : order)
      seen.get(id).push({ rate, p50, p99, cpu: cpu / count, rss })
      say(`${scenario} ${round + 1}/${ROUNDS} ${id}: ${Math.round(rate)}/s            \r`)
    }
  }
  for (const { id, title, keeps } of taking) {
    const of = (what) => seen.get(id).map((round) => round[what])
    results.push({ scenario, id, title, keeps, rate: median(of('rate')), lowest: Math.min(...of('rate')), highest: Math.max(...of('rate')), p50: median(of('p50')), p99: median(of('p99')), cpu: median(of('cpu')), rss: of('rss').at(-1), rounds: seen.get(id) })
    say(`${scenario} ${id}: ${Math.round(results.at(-1).rate)}/s, p99 ${results.at(-1).p99.toFixed(1)} ms, ${results.at(-1).cpu.toFixed(0)} µs                 \n`)
  }
}
for (const target of running.values()) await target.stop()

const folder = new URL('results/', import.meta.url)
const file = new URL('run.json', folder)
if (only !== undefined && !quick && wanted === undefined && existsSync(file)) {
  // Each scenario stands for itself: whatever it is compared with was measured in turns with it.
  const before = JSON.parse(readFileSync(file, 'utf8')).results.filter(({ scenario }) => !only.includes(scenario))
  results.push(...before)
}
const run = { at: new Date().toISOString(), node: process.version, cpu: cpus()[0].model, cores: cpus().length, pinned, rounds: ROUNDS, seconds: DURATION / 1000, results }
mkdirSync(folder, { recursive: true })
writeFileSync(file, JSON.stringify(run, null, 1))
report(run, folder)
process.exit()

function say (text) {
  process.stderr.write(text)
}
