// Asks a server as fast as it answers, over plain sockets: what this costs a request must stay below what the server does.
// Told what to do by its parent: { port, connections, file, once, busy, warmUp, duration }; answers with what it saw.
import { readFileSync } from 'node:fs'
import { connect } from 'node:net'
import { performance } from 'node:perf_hooks'

process.on('message', async (order) => process.send(await run(order)))

/**
 * `once`: each request of the file is sent once, and the time is that of all. Otherwise they are sent round and round,
 * for `warmUp` milliseconds that do not count and `duration` ones that do. `busy`: it never sleeps. Else each answer would
 * have to wake it, at the cost of the server: in a virtual machine more than a slow server's own work, and nothing for a
 * fast one, which leaves it no time to sleep.
 */
async function run ({ port, connections, file, once, busy, warmUp = 0, duration }) {
  const requests = JSON.parse(readFileSync(file, 'utf8')).map((request) => ({ bytes: encode(request), status: request.status ?? 200 }))
  const times = new Float64Array(4_000_000)
  let next = 0
  let done = 0
  let wrong = null
  let ending = false
  let ended = false
  const stayAwake = () => { if (!ended) setImmediate(stayAwake) }
  if (busy) stayAwake()
  const countFrom = performance.now() + warmUp

  const startedAt = performance.now()
  await Promise.all(Array.from({ length: once ? Math.min(connections, requests.length) : connections }, () => new Promise((resolve, reject) => {
    const socket = connect({ port, host: '127.0.0.1', noDelay: true })
    let rest = null
    let current
    let sentAt
    const send = () => {
      if (ending || (once && next === requests.length)) return socket.end(resolve)
      current = requests[next++ % requests.length]
      sentAt = performance.now()
      socket.write(current.bytes)
    }
    socket.on('connect', send)
    socket.on('error', reject)
    socket.on('close', () => resolve())
    socket.on('data', (chunk) => {
      rest = rest === null ? chunk : Buffer.concat([rest, chunk])
      if (!isWhole(rest)) return
      const now = performance.now()
      if (wrong === null && Number(rest.latin1Slice(9, 12)) !== current.status) wrong = `${current.bytes}\n\nanswered, not with ${current.status}:\n\n${rest}`
      rest = null
      if (now >= countFrom) {
        if (done < times.length) times[done] = now - sentAt
        done++
      }
      if (!once && now - countFrom >= duration) ending = true
      send()
    })
  })))
  ended = true
  if (wrong !== null) return { wrong: wrong.slice(0, 3000) }
  const seconds = (performance.now() - (once ? startedAt : countFrom)) / 1000
  const sorted = times.subarray(0, Math.min(done, times.length)).sort()
  return { count: done, seconds, rate: done / seconds, p50: sorted[Math.floor(sorted.length * 0.5)], p99: sorted[Math.floor(sorted.length * 0.99)], cpu: process.cpuUsage() }
}

function encode ({ method = 'GET', path, headers = {}, body = '' }) {
  const all = { host: 'localhost', ...headers, ...(method === 'POST' && { 'content-length': Buffer.byteLength(body) }) }
  return Buffer.from(`${method} ${path} HTTP/1.1\r\n${Object.entries(all).map(([name, value]) => `${name}: ${value}\r\n`).join('')}\r\n${body}`)
}

/** Whether the bytes of one answer are all there. */
function isWhole (bytes) {
  const end = bytes.indexOf('\r\n\r\n')
  if (end === -1) return false
  const length = /\r\ncontent-length: (\d+)/i.exec(bytes.latin1Slice(0, end))
  if (length !== null) return bytes.length >= end + 4 + Number(length[1])
  return bytes.latin1Slice(9, 12) === '304' || bytes.latin1Slice(bytes.length - 5) === '0\r\n\r\n'
}
