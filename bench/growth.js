// What the plugin's own cost does as its table grows: `node bench/growth.js`. Ten million rows take a few minutes to make.
import { mkdirSync, writeFileSync } from 'node:fs'
import pg from 'pg'
import { measure, median, startPostgres, startTarget } from './harness.js'

const ROWS = process.argv.includes('--quick') ? [1_000, 100_000] : [1_000, 100_000, 10_000_000]
const ROUNDS = 7
const url = await startPostgres()

const results = []
for (const store of ['sqlite', 'postgres']) {
  const targets = []
  for (const rows of ROWS) {
    const startedAt = Date.now()
    targets.push({ rows, target: await startTarget({ id: `${store}-${rows}`, file: 'plugin.js', options: { rows, ...(store === 'postgres' && { postgres: await database(rows) }) } }) })
    process.stderr.write(`${store}, ${rows} rows, after ${Math.round((Date.now() - startedAt) / 1000)} s\n`)
  }
  for (const scenario of ['guard', 'token']) {
    const seen = new Map(ROWS.map((rows) => [rows, []]))
    const orders = new Map()
    for (const { rows, target } of targets) {
      // Each token is on a page of its own, and there are more of them than fit into SQLite's cache.
      if (scenario === 'guard') orders.set(rows, { ...await target.prepare('guard', 20_000), warmUp: 200, duration: 3000 })
      await measure(target, orders.get(rows) ?? { ...await target.prepare('token', 2000), once: true })
    }
    for (let round = 0; round < ROUNDS; round++) {
      for (const { rows, target } of targets) {
        const { rate, p50, p99, cpu, count } = await measure(target, orders.get(rows) ?? { ...await target.prepare('token', 10_000), once: true })
        seen.get(rows).push({ rate, p50, p99, cpu: cpu / count })
      }
    }
    for (const rows of ROWS) {
      const of = (what) => median(seen.get(rows).map((round) => round[what]))
      const result = { store, scenario, rows, rate: of('rate'), p50: of('p50'), p99: of('p99'), cpu: of('cpu'), rounds: seen.get(rows) }
      results.push(result)
      const first = results.find((other) => other.store === store && other.scenario === scenario)
      console.log(`${store.padEnd(9)} ${scenario.padEnd(6)} ${String(rows).padStart(9)} rows  ${Math.round(result.rate)}/s  p50 ${result.p50.toFixed(2)} p99 ${result.p99.toFixed(2)} ms  ${result.cpu.toFixed(1)} µs of CPU  ${(first.rate / result.rate).toFixed(2)} × the time of ${ROWS[0]} rows`)
    }
  }
  for (const { target } of targets) await target.stop()
}
mkdirSync(new URL('results/', import.meta.url), { recursive: true })
writeFileSync(new URL('results/growth.json', import.meta.url), JSON.stringify({ at: new Date().toISOString(), node: process.version, results }, null, 1))
process.exit()

async function database (rows) {
  const client = new pg.Client({ connectionString: url })
  await client.connect()
  await client.query(`DROP DATABASE IF EXISTS bench_${rows}`)
  await client.query(`CREATE DATABASE bench_${rows}`)
  await client.end()
  return Object.assign(new URL(url), { pathname: `/bench_${rows}` }).href
}
