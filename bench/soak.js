// Whether memory grows: five minutes of everything at once on SQLite, `node bench/soak.js [seconds]`.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { measure, startTarget, work } from './harness.js'

const SECONDS = Number(process.argv[2] ?? 300)
const target = await startTarget({ id: 'soak', file: 'plugin.js' })
// Another server with the same keys makes the codes, so that the memory this takes is not that of the one looked at.
const minter = await startTarget({ id: 'minter', file: 'plugin.js' })
const read = async (from, what, count) => JSON.parse(readFileSync((await from.prepare(what, count)).file, 'utf8'))
const [guard, unknown, discovery, consent, register] = [
  await read(target, 'guard', 10_000), await read(target, 'unknown', 10_000), await read(target, 'discovery'), await read(target, 'consent'), await read(target, 'register')
]

const file = join(work, 'mix.json')
const samples = []
const startedAt = performance.now()
for (let round = 0; performance.now() - startedAt < SECONDS * 1000; round++) {
  const codes = await read(minter, 'token', 2000)
  const mix = Array.from({ length: 20_000 }, (_, index) => {
    switch (index % 10) {
      case 0: return codes[index / 10]
      case 1: return index % 20 === 1 ? register[index % register.length] : consent[0]
      case 2: return unknown[(round * 2000 + index / 10 | 0) % unknown.length]
      case 3: return discovery[0]
      default: return guard[(round * 7919 + index) % guard.length]
    }
  })
  writeFileSync(file, JSON.stringify(mix))
  const { rate, rss, p99 } = await measure(target, { file, once: true })
  samples.push({ seconds: (performance.now() - startedAt) / 1000, rss, rate, p99 })
  process.stderr.write(`${samples.at(-1).seconds.toFixed(0)} s: ${(rss / 1e6).toFixed(0)} MB, ${Math.round(rate)}/s    \r`)
}
// One sample is before or after a collection by chance: the highest of ten seconds is what the process needs.
const around = (seconds) => Math.max(...samples.filter((sample) => Math.abs(sample.seconds - seconds) <= 10).map(({ rss }) => rss))
const [early, late] = [around(SECONDS / 5), around(SECONDS)]
const requests = samples.length * 20_000
console.log(`\n${requests} requests; RSS ${(early / 1e6).toFixed(0)} MB after ${SECONDS / 5} s, ${(late / 1e6).toFixed(0)} MB after ${SECONDS} s: ${((late / early - 1) * 100).toFixed(1)} %`)
mkdirSync(new URL('results/', import.meta.url), { recursive: true })
writeFileSync(new URL('results/soak.json', import.meta.url), JSON.stringify({ at: new Date().toISOString(), node: process.version, requests, early, late, samples }, null, 1))
process.exit()
