import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { Agent, request as httpRequest, type IncomingHttpHeaders } from 'node:http'
import { createServer, connect as connectTo, type Socket } from 'node:net'
import process from 'node:process'
import { performance } from 'node:perf_hooks'
import { fileURLToPath } from 'node:url'
import type { Test } from 'tap'
import type { ClientIdPayload } from '../dist/clients/registered.js'
import type { AuthorizationCode } from '../dist/protocol/authorization-code.js'
import { createSealer, createSigner } from '../dist/protocol/sealed.js'
import { createGrantId, parseKey } from '../dist/protocol/secret.js'
import { CALLBACK, FORM, ISSUER, KEY, bearer, form, pkce } from './app.js'

const APP = fileURLToPath(new URL('scripts/node-app.js', import.meta.url))
const START_TIMEOUT = 40_000
const STOP_TIMEOUT = 15_000

export interface AppOptions {
  /** Where it keeps grants: a SQLite file; or PostgreSQL, through the store's own pool or one of the app's. */
  store: { sqlite: string } | { postgres: { connectionString?: string, timeout?: number }, pool?: { connectionString: string } }
  /** URL of the Redis that its limiter shares; without it there is no limiter. */
  redis?: string
  rateLimit?: object
}

export interface ProcessOptions {
  /** The user that it becomes before it opens anything. */
  user?: number | undefined
  /** What to run it under: `['bash', '-c', '… exec "$@"', '-']`. */
  under?: string[] | undefined
}

export type NodeOptions = AppOptions & ProcessOptions

export interface Answer {
  status: number
  headers: IncomingHttpHeaders
  body: string
  /** Milliseconds. */
  took: number
}

export interface RequestOptions {
  headers?: Record<string, string>
  body?: string
  method?: string
  /** Milliseconds after which a request counts as hanging. */
  timeout?: number
}

/** One app of a deployment, mostly alone in its process. */
export interface AppNode {
  process: ChildProcess
  /** Everything printed so far. */
  output: () => string
  /** Rejects where no whole answer came. */
  request: (path: string, options?: RequestOptions) => Promise<Answer>
  /** The status of the guarded route. */
  guard: (token: string) => Promise<number>
  redeem: (code: string) => Promise<Answer>
  /** The client gives a token back. */
  giveBack: (token: string) => Promise<Answer>
  /** The user's connected apps: a ticket for the page, and what it lists. */
  connectedApps: (user: string) => Promise<{ ticket: string, apps: unknown[] }>
  /** The user disconnects the client of these tests. */
  disconnect: (user: string, ticket: string) => Promise<Answer>
  /** Sends its process a signal and waits for the end; what does not end is killed, and its code is null. */
  stop: (signal?: NodeJS.Signals) => Promise<number | null>
}

/** Starts a node that answers; it is gone with the test. */
export async function startNode (t: Test, { user, under, ...app }: NodeOptions): Promise<AppNode> {
  const [node] = await startProcess(t, [app], { user, under })
  return node!
}

export async function startNodes (t: Test, count: number, options: NodeOptions): Promise<AppNode[]> {
  return await Promise.all(Array.from({ length: count }, async () => await startNode(t, options)))
}

/** Starts one process with several apps, which end together. */
export async function startProcess (t: Test, apps: AppOptions[], { user, under = [] }: ProcessOptions = {}): Promise<AppNode[]> {
  // tap puts its loader into the environment of whatever is spawned; it is for the tests, not for what they start.
  const child = spawn('env', ['-u', 'NODE_OPTIONS', ...under, process.execPath, APP], { env: { ...process.env, NODE_APP: JSON.stringify({ key: KEY, issuer: ISSUER, apps, user }) }, stdio: 'pipe' })
  const agent = new Agent({ keepAlive: true, maxSockets: 128 })
  const ended = once(child, 'exit') as Promise<[number | null, NodeJS.Signals | null]>
  const forget = (): void => { child.kill('SIGKILL') }
  process.once('exit', forget)
  t.teardown(async () => {
    agent.destroy()
    forget()
    await ended
    process.off('exit', forget)
  })
  child.stdin!.on('error', () => {})
  let printed = ''
  const ports = await new Promise<number[]>((resolve, reject) => {
    const late = setTimeout(() => reject(new Error(`A node does not start. It printed:\n${printed}`)), START_TIMEOUT)
    const hear = (chunk: Buffer): void => {
      printed += String(chunk)
      const started = printed.match(/^{"ports":.*}$/m)?.[0]
      if (started === undefined) return
      clearTimeout(late)
      resolve((JSON.parse(started) as { ports: number[] }).ports)
    }
    child.stdout!.on('data', hear)
    child.stderr!.on('data', hear)
    child.once('exit', (code, signal) => {
      clearTimeout(late)
      // What it last said may still be on its way.
      setTimeout(() => reject(new Error(`A node ended at its start with ${code ?? signal}. It printed:\n${printed}`)), 100)
    })
  })

  return ports.map((port) => {
    const request: AppNode['request'] = async (path, { headers = {}, body = '', method = 'POST', timeout = 30_000 } = {}) => await new Promise((resolve, reject) => {
      const startedAt = performance.now()
      const outgoing = httpRequest({ host: '127.0.0.1', port, agent, path, method, headers: { ...headers, 'content-length': Buffer.byteLength(body) } }, (incoming) => {
        const chunks: Buffer[] = []
        incoming.on('data', (chunk: Buffer) => chunks.push(chunk))
        incoming.once('error', reject)
        incoming.once('aborted', () => reject(new Error('cut off')))
        incoming.once('end', () => {
          clearTimeout(hanging)
          resolve({ status: incoming.statusCode!, headers: incoming.headers, body: String(Buffer.concat(chunks)), took: performance.now() - startedAt })
        })
      })
      const hanging = setTimeout(() => outgoing.destroy(new Error(`no answer within ${timeout} ms`)), timeout)
      outgoing.once('error', (error) => {
        clearTimeout(hanging)
        reject(error)
      })
      outgoing.end(body)
    })
    const post = async (path: string, fields: Record<string, string>, headers: Record<string, string> = {}): Promise<Answer> =>
      await request(path, { headers: { ...FORM, ...headers }, body: form(fields) })

    return {
      process: child,
      output: () => printed,
      request,
      guard: async (token) => (await request('/mcp', { headers: bearer(token) })).status,
      redeem: async (code) => await post('/oauth/token', redemption(code)),
      giveBack: async (token) => await post('/oauth/revoke', { client_id: CLIENT, token }),
      connectedApps: async (user) => JSON.parse((await request('/my/connected_apps', { method: 'GET', headers: { 'x-user': user, accept: 'application/json' } })).body),
      disconnect: async (user, ticket) => await post('/my/connected_apps', { ticket, client: CLIENT }, { 'x-user': user, accept: 'application/json' }),
      async stop (signal = 'SIGTERM') {
        const late = setTimeout(forget, STOP_TIMEOUT)
        child.kill(signal)
        const [code] = await ended
        clearTimeout(late)
        agent.destroy()
        return code
      }
    }
  })
}

const keys = [parseKey(KEY)!]
const codes = await createSealer<AuthorizationCode>(keys, 'code')
const { codeVerifier, codeChallenge } = pkce()

/** What the client of these tests would have been given by the registration endpoint. */
export const CLIENT = await (await createSigner<ClientIdPayload>(keys, 'client')).sign({ client_name: 'Test client', redirect_uris: [CALLBACK.replace(/:\d+/, '')] })

/** A code as a user's consent would have made it a moment ago. */
export async function mintCode (userId: string, issuedAt = Date.now()): Promise<string> {
  return await codes.seal({
    grantId: createGrantId(),
    userId,
    tenantId: null,
    clientId: CLIENT,
    clientName: 'Test client',
    redirectUri: CALLBACK,
    codeChallenge,
    scopes: ['read', 'write'],
    resource: `${ISSUER}/mcp`,
    issuedAt,
    expiresAt: issuedAt + 600_000
  })
}

/** The form that redeems a code. */
export function redemption (code: string): Record<string, string> {
  return { grant_type: 'authorization_code', client_id: CLIENT, code, redirect_uri: CALLBACK, code_verifier: codeVerifier }
}

export function tokenOf ({ body }: Answer): string {
  return (JSON.parse(body) as { access_token: string }).access_token
}

/** How often each value is there. */
export function count (values: Iterable<unknown>): Record<string, number> {
  const counts: Record<string, number> = {}
  for (const value of values) counts[String(value)] = (counts[String(value)] ?? 0) + 1
  return counts
}

/** Does the work with every item, so many at once. */
export async function forEach<T> (items: Iterable<T>, atOnce: number, work: (item: T) => Promise<void>): Promise<void> {
  const rest = items[Symbol.iterator]()
  await Promise.all(Array.from({ length: atOnce }, async () => {
    for (let next = rest.next(); next.done !== true; next = rest.next()) await work(next.value)
  }))
}

/** A stretch of network between a node and its database. */
export interface Wire {
  url: string
  /** Nothing is lost and nothing arrives; new connections are taken and get no answer. */
  freeze: (what?: 'both' | 'answers') => void
  thaw: () => void
  /** Bytes that nodes have sent so far. */
  sent: () => number
}

export async function startWire (t: Test, url: string): Promise<Wire> {
  const to = new URL(url)
  const sockets = new Set<{ near: Socket, far: Socket }>()
  let frozen: 'no' | 'both' | 'answers' = 'no'
  let sent = 0
  const apply = ({ near, far }: { near: Socket, far: Socket }): void => {
    frozen === 'both' ? near.pause() : near.resume()
    frozen === 'no' ? far.resume() : far.pause()
  }
  const server = createServer({ allowHalfOpen: true }, (near) => {
    const far = connectTo({ host: to.hostname, port: Number(to.port), allowHalfOpen: true })
    const pair = { near, far }
    sockets.add(pair)
    for (const [from, into] of [[near, far], [far, near]] as const) {
      from.on('data', (chunk) => {
        if (from === near) sent += chunk.length
        into.write(chunk)
      })
      from.on('end', () => into.end())
      from.on('error', () => into.destroy())
      from.on('close', () => {
        if (from.errored !== null) into.destroy()
        if (near.destroyed && far.destroyed) sockets.delete(pair)
      })
    }
    apply(pair)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(async () => {
    const closed = once(server, 'close')
    server.close()
    for (const { near, far } of sockets) {
      near.destroy()
      far.destroy()
    }
    await closed
  })
  const set = (state: typeof frozen): void => {
    frozen = state
    sockets.forEach(apply)
  }
  return {
    url: Object.assign(new URL(url), { host: `127.0.0.1:${(server.address() as { port: number }).port}` }).href,
    freeze: (what = 'both') => set(what),
    thaw: () => set('no'),
    sent: () => sent
  }
}
