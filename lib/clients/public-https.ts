import ipaddr from 'ipaddr.js'
import { constants } from 'node:crypto'
import type { LookupAddress } from 'node:dns'
import dns from 'node:dns/promises'
import { once } from 'node:events'
import type { ClientRequest, IncomingHttpHeaders, IncomingMessage, OutgoingHttpHeaders } from 'node:http'
import https from 'node:https'
import { isIP, isIPv6, type LookupFunction } from 'node:net'
import { Readable } from 'node:stream'
import { isObject, parseJson } from '../protocol/json.js'
import type { Fetch } from './bounded-fetch.js'

// How this server asks others on behalf of a user who may mean it harm: only hosts that everybody can reach, and no more
// than a small document. Nothing here may reveal what is near this server.

/** Milliseconds for all of it, the look-up of the name included. */
const TIMEOUT = 5000
/** Milliseconds until an answer begins that may then go on. */
const PATIENCE = 30_000
/** How many addresses of each family count. Node tries them all, and thousands that fail at once exhaust its stack. */
const MAX_ADDRESSES = 16
/** How many answers may announce that the answer is yet to come. */
const MAX_INFORMATION = 10

const IPV6_UNICAST = ipaddr.parseCIDR('2000::/3')
const NAT64 = ipaddr.parseCIDR('64:ff9b::/96')
/** Azure's own services for a virtual machine, at an address that is public elsewhere. */
const AZURE = '168.63.129.16'

/** Neither the environment's proxies and leniency nor connections of other requests, and no handshake after handshake. */
const direct = new https.Agent({ keepAlive: false, maxCachedSessions: 0, rejectUnauthorized: true, secureOptions: constants.SSL_OP_NO_RENEGOTIATION })

/** What a host answered, and no document. Anything else that is thrown means that it could not be asked. */
export class AnswerError extends Error {}

/**
 * GETs a JSON object. With an agent of the app's own, for a proxy or a certificate authority, names are still looked up
 * here unless the agent does so itself.
 *
 * @throws AnswerError for an answer that is no JSON object, or over `maxBytes`
 * @throws Error for whatever kept it from coming within 5 seconds, a host that is not public included
 */
export async function getPublicJson (url: string, maxBytes: number, agent: https.Agent = direct): Promise<{ body: Record<string, unknown>, headers: IncomingHttpHeaders }> {
  const request = requestPublic(url, { agent, headers: { accept: 'application/json' } })
  request.end()
  let timer: NodeJS.Timeout | undefined
  // Not by ending the request alone: an answer that has begun does not always say that it was cut off.
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`${url} gave no whole answer within ${TIMEOUT} ms`)), TIMEOUT)
  })
  try {
    return await Promise.race([readJson(url, request, maxBytes), late])
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    if (code === undefined) throw error
    // It is kept and logged, so without what Node attaches: all that came, certificates, an error for each address.
    throw new Error(`${url} could not be asked: ${code}: ${message.slice(0, 200)}`)
  } finally {
    clearTimeout(timer)
    request.destroy()
  }
}

/**
 * fetch(), where the address came from a user: https, public hosts and no redirects. An answer begins within 30 seconds, and
 * may go on for as long as whoever asked wants it.
 *
 * @throws Error for a host that is not public or does not answer
 */
export const fetchPublic: Fetch = async (url, init) => {
  const asked = new Request(url, init)
  const body = Buffer.from(await asked.arrayBuffer())
  const request = requestPublic(asked.url, { method: asked.method, headers: Object.fromEntries(asked.headers), signal: asked.signal })
  const late = setTimeout(() => request.destroy(new Error(`${asked.url} gave no answer within ${PATIENCE} ms`)), PATIENCE)
  try {
    request.end(body)
    // Where a server switches protocols unasked, Node closes the request without an error.
    const closed = once(request, 'close').then(() => { throw new Error(`${asked.url} ended without an answer`) })
    const [response] = await Promise.race([once(request, 'response'), closed]) as [IncomingMessage]
    const { statusCode: status = 0, headersDistinct } = response
    const headers = Object.entries(headersDistinct).flatMap(([name, values = []]) => values.map((value): [string, string] => [name, value]))
    // These have no body, and a Response insists on it. One that comes all the same need not end.
    const isEmpty = [204, 205, 304].includes(status)
    if (isEmpty) request.destroy()
    return new Response(isEmpty ? null : Readable.toWeb(response) as ReadableStream, { status, headers })
  } catch (error) {
    request.destroy()
    throw error
  } finally {
    clearTimeout(late)
  }
}

function requestPublic (url: string, options: https.RequestOptions): ClientRequest {
  const { protocol, hostname } = new URL(url)
  if (protocol !== 'https:') throw new Error(`${url} is not https`)
  // A name is looked up, and what it stands for checked; an address would be connected to as it is.
  if (isIP(hostname.replace(/^\[|\]$/g, '')) !== 0) throw new Error(`${url} has an address instead of a name`)

  const request = https.request(url, {
    agent: direct, ...options, lookup: lookUpPublic, headers: { 'user-agent': 'fastify-mcp-oauth', ...options.headers as OutgoingHttpHeaders, 'accept-encoding': 'identity' }
  })
  // Whoever waits for the answer or reads it gets the error.
  request.on('error', () => {})
  let informed = 0
  request.on('information', () => {
    if (++informed > MAX_INFORMATION) request.destroy(new Error(`${url} gave over ${MAX_INFORMATION} answers of 1xx`))
  })
  return request
}

async function readJson (url: string, request: ClientRequest, maxBytes: number): Promise<{ body: Record<string, unknown>, headers: IncomingHttpHeaders }> {
  const [response] = await once(request, 'response') as [IncomingMessage]
  const { statusCode = 0, headers } = response
  if (statusCode >= 500 || statusCode === 429) throw new Error(`${url} answered ${statusCode}`)
  // Redirects are not followed: they could lead anywhere.
  if (statusCode !== 200) throw new AnswerError(`${url} answered ${statusCode}`)
  if (!/^application\/([\w.-]+\+)?json *(;|$)/i.test(headers['content-type'] ?? '')) throw new AnswerError(`${url} answered with no JSON by its content type`)
  if (headers['content-encoding'] !== undefined) throw new AnswerError(`${url} answered in an encoding that was not asked for`)

  const chunks: Buffer[] = []
  let size = 0
  for await (const chunk of response as AsyncIterable<Buffer>) {
    size += chunk.length
    if (size > maxBytes) throw new AnswerError(`${url} answered with over ${maxBytes} bytes`)
    chunks.push(chunk)
  }
  const body = parseJson(Buffer.concat(chunks).toString())
  if (!isObject(body)) throw new AnswerError(`${url} answered with no JSON object`)
  return { body, headers }
}

/** The one look-up of a request: the addresses that are checked are those that are connected to. */
const lookUpPublic: LookupFunction = (hostname, { family, all }, callback) => {
  resolve(hostname).then((addresses) => {
    const refused = addresses.find(({ address }) => !isPublicAddress(address))
    if (refused !== undefined) throw new Error(`${hostname} is at ${refused.address}, which is not a public address`)
    const found = addresses.filter((address) => ![4, 6].includes(Number(family)) || address.family === family)
    if (found.length === 0) throw new Error(`${hostname} has no address to connect to`)
    if (all === true) callback(null, found)
    else callback(null, found[0]!.address, found[0]!.family)
  }).catch((error) => callback(error, []))
}

/**
 * Asks DNS alone. The system's own look-up would hold one of few threads, which all of Node shares, for as long as a name
 * server keeps silent; and it would try the name below this network's domains.
 */
async function resolve (hostname: string): Promise<LookupAddress[]> {
  const [four, six] = await Promise.allSettled([dns.resolve4(hostname), dns.resolve6(hostname)])
  if (four.status === 'rejected' && six.status === 'rejected') throw four.reason
  const addressesOf = (answer: PromiseSettledResult<string[]>, family: 4 | 6): LookupAddress[] =>
    answer.status === 'rejected' ? [] : answer.value.slice(0, MAX_ADDRESSES).map((address) => ({ address, family }))
  return [...addressesOf(four, 4), ...addressesOf(six, 6)]
}

/** Whether everybody reaches the same host there. RFC 6890. */
export function isPublicAddress (address: string): boolean {
  // One with a zone means a link of this machine.
  if (isIP(address) === 0 || address.includes('%')) return false
  // In hexadecimal: ipaddr.js takes the deprecated `::1.2.3.4`, as resolvers write it, for `::ffff:1.2.3.4`.
  const ip = ipaddr.process(isIPv6(address) ? new URL(`http://[${address}]`).hostname.slice(1, -1) : address)
  if (ip instanceof ipaddr.IPv4) return ip.range() === 'unicast' && ip.toString() !== AZURE
  // How a network without IPv4 reaches it. RFC 6052 §2.1.
  if (ip.match(NAT64)) return isPublicAddress(ip.toByteArray().slice(12).join('.'))
  return ip.range() === 'unicast' && ip.match(IPV6_UNICAST)
}
