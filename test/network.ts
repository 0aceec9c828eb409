import { createSocket } from 'node:dgram'
import dns, { type LookupOptions } from 'node:dns'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import type { RequestListener } from 'node:http'
import https from 'node:https'
import { isIP, isIPv6, type AddressInfo, type LookupFunction } from 'node:net'
import tls from 'node:tls'
import type { Test } from 'tap'

const PEM = readFileSync(new URL('network.pem', import.meta.url))
const { connect } = tls

/** An address that everybody could reach. In these tests, connections to it end at the server below. */
export const PUBLIC = '93.184.216.34'

/** What a name server answers in place of addresses. */
const RCODES: Record<string, number> = { ESERVFAIL: 2, ENOTFOUND: 3, EREFUSED: 5 }

type Connection = tls.ConnectionOptions & { lookup?: LookupFunction }

/**
 * The internet as these tests need it: a name server that they control, and a TLS server with a certificate for every name
 * in use. Names are looked up by whoever connects, and where an address was found, the connection ends at that server.
 */
export class Network extends https.Agent {
  /** The addresses of each name: one list after the other and the last for ever. A code of RCODES for none, another for silence. */
  readonly names = new Map<string, Array<string[] | string>>()
  /** Names that were looked up, addresses that were connected to, and URLs that were asked for. */
  readonly lookups: string[] = []
  readonly connections: string[] = []
  readonly asked: string[] = []
  readonly pages = new Map<string, RequestListener | object>()
  #port = 0

  static async start (t: Test, options: https.AgentOptions = {}): Promise<Network> {
    const network = new Network({ ca: PEM, keepAlive: false, ...options })
    const server = https.createServer({ key: PEM, cert: PEM }, (request, response) => {
      const url = `https://${request.headers.host ?? ''}${request.url ?? ''}`
      network.asked.push(url)
      const page = network.pages.get(url)
      if (page === undefined) return response.writeHead(404).end()
      if (typeof page === 'function') return (page as RequestListener)(request, response)
      response.setHeader('content-type', 'application/json').end(JSON.stringify(page))
    })
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    network.#port = (server.address() as AddressInfo).port
    await (nameServer ??= startNameServer())
    networks.add(network)
    t.teardown(() => {
      networks.delete(network)
      server.close()
      server.closeAllConnections()
    })
    return network
  }

  /** Publishes a document, or whatever else there is to be found, at a name with a public address. */
  publish (url: string, page: RequestListener | object): string {
    const { hostname } = new URL(url)
    if (!this.names.has(hostname)) this.names.set(hostname, [[PUBLIC]])
    this.pages.set(url, page)
    return url
  }

  /** Leads here too what other agents connect to, such as the one that this server has by default. */
  catchAll (t: Test): void {
    t.intercept(tls, 'connect', { value: (options: Connection) => this.createConnection({ ...options, ca: PEM }) })
  }

  override createConnection (options: Connection): tls.TLSSocket {
    const lookup = (hostname: string, asked: LookupOptions, callback: (error: Error | null, addresses: unknown, family?: number) => void): void => {
      const resolve = (options.lookup ?? dns.lookup) as (...all: unknown[]) => void
      resolve(hostname, asked, (error: Error | null, found: string | Array<{ address: string }>, family?: number) => {
        if (error !== null) return callback(error, [])
        this.connections.push(...(asked.all === true ? found as Array<{ address: string }> : [{ address: found as string }]).map(({ address }) => address))
        if (asked.all === true) callback(null, [{ address: '127.0.0.1', family: 4 }])
        else if (family !== isIP(found as string)) callback(new Error(`${found as string} is not of family ${family}`), [])
        else callback(null, '127.0.0.1', 4)
      })
    }
    return connect({ ...options, port: this.#port, lookup: lookup as LookupFunction, servername: options.servername ?? '' })
  }
}

// One name server for all networks of a process, since a process has one resolver.
const networks = new Set<Network>()
let nameServer: Promise<void> | undefined

/** Speaks just enough of RFC 1035 for questions of type A and AAAA. */
async function startNameServer (): Promise<void> {
  const socket = createSocket('udp4')
  const current = new Map<string, string[] | string>()
  socket.on('message', (query, { port, address }) => {
    let [name, end] = ['', 12]
    for (let length = query[end]!; length > 0; length = query[end]!) {
      name += `${name === '' ? '' : '.'}${query.toString('latin1', end + 1, end + 1 + length).toLowerCase()}`
      end += 1 + length
    }
    const type = query.readUInt16BE(end + 1)
    const network = [...networks].reverse().find(({ names }) => names.has(name))
    const answers = network?.names.get(name)
    // Both types are asked for at once, A first: what that one gets, the other gets.
    if (type === 1 && network !== undefined && answers !== undefined) {
      network.lookups.push(name)
      current.set(name, answers.length > 1 ? answers.shift()! : answers[0]!)
    }
    const answer = current.get(name) ?? 'ENOTFOUND'
    if (typeof answer === 'string' && RCODES[answer] === undefined) return
    const records = typeof answer === 'string' ? [] : answer.filter((one) => isIPv6(one) === (type === 28)).map((one) => Buffer.concat([Buffer.from([0xc0, 12, 0, type, 0, 1, 0, 0, 0, 0, 0, type === 1 ? 4 : 16]), bytesOf(one)]))
    const header = Buffer.alloc(12)
    query.copy(header, 0, 0, 2)
    header.writeUInt16BE(0x8180 | (typeof answer === 'string' ? RCODES[answer]! : 0), 2)
    header.writeUInt16BE(1, 4)
    header.writeUInt16BE(records.length, 6)
    socket.send(Buffer.concat([header, query.subarray(12, end + 5), ...records]), port, address)
  })
  socket.bind(0, '127.0.0.1')
  await once(socket, 'listening')
  socket.unref()
  dns.setServers([`127.0.0.1:${socket.address().port}`])
}

function bytesOf (address: string): Buffer {
  if (isIP(address) === 4) return Buffer.from(address.split('.').map(Number))
  const [head = '', tail = ''] = address.replace(/(\d+)\.(\d+)\.(\d+)\.(\d+)$/, (_all, ...parts: string[]) => parts.slice(0, 4).map((part) => Number(part).toString(16).padStart(2, '0')).join('').replace(/^(.{4})/, '$1:')).split('::')
  const groups = (part: string): number[] => part === '' ? [] : part.split(':').map((group) => parseInt(group, 16))
  const [first, last] = [groups(head), groups(tail)]
  const bytes = Buffer.alloc(16);
  [...first, ...Array<number>(8 - first.length - last.length).fill(0), ...last].forEach((group, index) => bytes.writeUInt16BE(group, index * 2))
  return bytes
}
