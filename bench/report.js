import { writeFileSync } from 'node:fs'

/** Those of the README. */
const SUMMARY = { guard: 'Guarded request', token: 'Code exchange', refresh: 'Refresh', register: 'Registration' }
const SCENARIOS = {
  guard: 'Guarded `GET`, a good token',
  unknown: 'Guarded `GET`, an unknown token',
  token: 'Code exchange',
  refresh: 'Refresh',
  register: 'Registration',
  discovery: 'Discovery',
  consent: 'Consent page'
}
const CHART = { guard: 'Guarded request', token: 'Code exchange', register: 'Registration' }
const OURS = new Set(['sqlite', 'postgres', 'one-query'])

/** Writes the tables and the chart of a run beside its figures. */
export function report (run, folder) {
  writeFileSync(new URL('run.md', folder), tables(run))
  writeFileSync(new URL('run.svg', folder), chart(run))
  process.stdout.write(tables(run))
}

export function tables ({ at, node, cpu, cores, pinned, rounds, seconds, results }) {
  const lines = [
    `${at.slice(0, 10)}, Node ${node.slice(1)}, ${cores} cores (${cpu.trim()})${pinned ? ', server on one, load and PostgreSQL on the other' : ''}.`,
    `64 connections, median of ${rounds} rounds of ${seconds} s, in turns.`
  ]
  for (const [scenario, title] of Object.entries(SCENARIOS)) {
    const rows = results.filter((result) => result.scenario === scenario)
    if (rows.length === 0) continue
    const bare = rows.find(({ id }) => id === 'fastify')
    lines.push('', `### ${title}`, '', '| | keeps in | × bare Fastify | requests/s (lowest–highest) | p50 ms | p99 ms | CPU µs | RSS MB |', '|---|---|--:|--:|--:|--:|--:|--:|')
    for (const row of rows.toSorted((a, b) => b.rate - a.rate)) {
      const title = OURS.has(row.id) ? `**${row.title}**` : row.title
      const ratio = bare === undefined ? '' : (row.rate / bare.rate).toFixed(2)
      lines.push(`| ${title} | ${row.keeps} | ${ratio} | ${number(row.rate)} (${number(row.lowest)}–${number(row.highest)}) | ${row.p50.toFixed(1)} | ${row.p99.toFixed(1)} | ${row.cpu.toFixed(0)} | ${(row.rss / 1e6).toFixed(0)} |`)
    }
  }
  return lines.join('\n') + '\n'
}

/** The table of the README: × bare Fastify, and requests a second. */
export function summary ({ results }) {
  const find = (scenario, id) => results.find((result) => result.scenario === scenario && result.id === id)
  const ids = [...new Set(results.map(({ id }) => id))].filter((id) => id !== 'one-query')
  const lines = [`| | ${Object.values(SUMMARY).join(' | ')} |`, `|---|${'--:|'.repeat(Object.keys(SUMMARY).length)}`]
  for (const id of ids) {
    const { title, keeps } = results.find((result) => result.id === id)
    const cells = Object.keys(SUMMARY).map((scenario) => {
      const [row, bare] = [find(scenario, id), find(scenario, 'fastify')]
      return row === undefined ? '–' : `${(row.rate / bare.rate).toFixed(2)} (${number(row.rate)})`
    })
    const name = id === 'fastify' ? title : `${title}, ${keeps}`
    lines.push(`| ${OURS.has(id) ? `**${name}**` : name} | ${cells.join(' | ')} |`)
  }
  return lines.join('\n')
}

/** What the README says of large tables. */
export function growth ({ results }) {
  const times = (scenario) => ['sqlite', 'postgres'].map((store) => {
    const rows = results.filter((result) => result.scenario === scenario && result.store === store)
    return (rows[0].rate / rows.at(-1).rate).toFixed(2)
  })
  const [[guardSqlite, guardPostgres], [tokenSqlite, tokenPostgres]] = [times('guard'), times('token')]
  const [least, most] = [results[0].rows, Math.max(...results.map(({ rows }) => rows))].map(number)
  return `With ${most} grants in place of ${least}, a guarded request takes ${guardSqlite} times as long on SQLite and ${guardPostgres} times on PostgreSQL, a code exchange ${tokenSqlite} and ${tokenPostgres} times.`
}

/** What the README says of memory. */
export function soak ({ samples, requests, early, late }) {
  const megabytes = (bytes) => (bytes / 1e6).toFixed(0)
  return `${number(samples.at(-1).seconds / 60)} minutes of everything at once, ${number(requests)} requests: ${megabytes(early)} MB after the first minute, ${megabytes(late)} MB at the end.`
}

export function number (value) {
  return Math.round(value).toLocaleString('en-US')
}

const BAR = 18
const LEFT = 250
const WIDTH = 380

/** Bars of requests a second, each panel to its own scale. */
export function chart ({ results }) {
  const parts = []
  let y = 10
  for (const [scenario, title] of Object.entries(CHART)) {
    const rows = results.filter((result) => result.scenario === scenario && result.id !== 'one-query').sort((a, b) => b.rate - a.rate)
    if (rows.length === 0) continue
    parts.push(`<text class="title" x="${LEFT}" y="${y + 16}">${title}, requests a second</text>`)
    y += 26
    for (const { id, title, keeps, rate } of rows) {
      const width = Math.max(1, rate / rows[0].rate * WIDTH)
      const kind = OURS.has(id) ? 'ours' : id === 'fastify' ? 'limit' : 'other'
      parts.push(`<text class="name" x="${LEFT - 8}" y="${y + 13}">${id === 'fastify' ? title : `${title} (${keeps})`}</text><rect class="${kind}" x="${LEFT}" y="${y}" width="${width.toFixed(1)}" height="${BAR - 4}" rx="2"/><text class="value" x="${(LEFT + width + 6).toFixed(1)}" y="${y + 12}">${number(rate)}</text>`)
      y += BAR
    }
    y += 14
  }
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${LEFT + WIDTH + 80} ${y}" role="img" aria-label="Requests a second of fastify-mcp-oauth and of others">
<style>
  text { font: 12px system-ui, sans-serif; fill: #1f2328 } .title { font-weight: 600; font-size: 13px } .name { text-anchor: end } .value { fill: #59636e }
  .ours { fill: #0969da } .limit { fill: #c8d1da } .other { fill: #8c959f }
  @media (prefers-color-scheme: dark) { text { fill: #f0f6fc } .value { fill: #9198a1 } .ours { fill: #4493f8 } .limit { fill: #3d444d } .other { fill: #6e7681 } }
</style>
${parts.join('\n')}
</svg>
`
}
