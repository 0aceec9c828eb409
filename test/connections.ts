import type { OAuthClientProvider as ProviderV2 } from '@modelcontextprotocol/client'
import { toWebRequest } from '@modelcontextprotocol/node'
import { McpServer, createMcpHandler } from '@modelcontextprotocol/server'
import type { OAuthClientProvider as ProviderV1 } from '@modelcontextprotocol/sdk/client/auth.js'
import { DatabaseSync } from '@photostructure/sqlite'
import Fastify, { type FastifyInstance } from 'fastify'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Test } from 'tap'
import * as z from 'zod'
import mcpConnections, { sqliteConnectionStore, type ConnectionEvent, type ConnectionStore, type Connections, type McpConnectionsOptions } from '../dist/connections/index.js'
import type { Credentials } from '../dist/connections/vault.js'
import mcpOAuth, { type AuditEvent, type McpOAuthOptions } from '../dist/index.js'
import { createSealer, type Expiring } from '../dist/protocol/sealed.js'
import { parseKey } from '../dist/protocol/secret.js'
import { sqliteStore } from '../dist/store/sqlite.js'
import { KEY, fieldOf, folder, form, testOptions } from './app.js'
import { freePort } from './scripts/free-port.js'
import { SDKS, type ProviderMemory, type Sdk } from './sdk.js'

const HOUR = 3600
const WORKER = fileURLToPath(new URL('scripts/connections-worker.js', import.meta.url))
const headersOf = (user: string): Record<string, string> => user === '' ? {} : { 'x-user': user }

/** The server that is connected to: the first plugin, with short access tokens and rotating refresh tokens. */
export interface Remote {
  url: string
  origin: string
  events: AuditEvent[]
  app: FastifyInstance
  stop: () => Promise<void>
  start: (changes?: Partial<McpOAuthOptions>) => Promise<void>
}

export async function startRemote (t: Test, changes: Partial<McpOAuthOptions> = {}): Promise<Remote> {
  const origin = `http://localhost:${await freePort()}`
  const path = join(folder(), 'tokens.db')
  const notes = new Map<string, string>()
  const mcp = createMcpHandler(({ authInfo }) => {
    const user = String(authInfo?.extra?.userId)
    const server = new McpServer({ name: 'notes', version: '1.0.0' })
    const says = (text: string) => ({ content: [{ type: 'text' as const, text }] })
    server.registerTool('list_notes', {}, async () => says(notes.get(user) ?? 'There are no notes yet.'))
    server.registerTool('add_note', { inputSchema: z.object({ text: z.string() }) }, async ({ text }) => {
      notes.set(user, `- ${text}`)
      return says('Added.')
    })
    return server
  })
  const events: AuditEvent[] = []
  const remote: Remote = {
    url: `${origin}/mcp`,
    origin,
    events,
    app: undefined as never,
    stop: async () => await remote.app.close(),
    async start (more = {}) {
      const app = Fastify({ forceCloseConnections: true })
      await app.register(mcpOAuth, testOptions({
        issuer: origin, store: sqliteStore({ path }), accessTokenLifetime: HOUR, refreshTokenLifetime: 30 * 24 * HOUR, refreshGrace: 0, onEvent: (event) => events.push(event), ...changes, ...more
      }))
      app.route({
        method: ['GET', 'POST', 'DELETE'],
        url: '/mcp',
        onRequest: app.oauth.protect({ scopes: ['read'] }),
        handler: async ({ raw, body, oauth }) => {
          if (JSON.stringify(body).includes('add_note')) oauth!.require('write')
          return await mcp.fetch(await toWebRequest(raw as never, body), { authInfo: oauth!.authInfo(), parsedBody: body })
        }
      })
      await app.listen({ port: Number(new URL(origin).port) })
      remote.app = app
    }
  }
  await remote.start()
  t.teardown(async () => await remote.stop())
  return remote
}

/** The app whose users connect. */
export interface Local {
  origin: string
  path: string
  app: FastifyInstance
  events: ConnectionEvent[]
  lines: string[]
  connections: Connections
  /** The database, as it lies there. */
  dump: () => string
  rows: () => number
  /** Changes what is sealed in a row. */
  edit: (user: string, server: string, changes: (credentials: Credentials) => Partial<Credentials>) => Promise<Credentials>
  visit: (path: string, user: string, init?: RequestInit) => Promise<{ status: number, location: string, html: string }>
  ticket: (user: string) => Promise<string>
  /** Presses a button on the page. */
  press: (user: string, button: Record<string, string>) => Promise<{ status: number, location: string, html: string }>
  /** The callback URL that the user's consent at the server leads to. */
  consent: (location: string, user: string, decision?: 'approve' | 'deny', scope?: string[]) => Promise<string>
  connect: (user: string, server?: string, scope?: string[]) => Promise<{ status: number, location: string, html: string }>
}

export async function startLocal (t: Test, servers: McpConnectionsOptions['servers'], changes: Partial<McpConnectionsOptions> = {}, openStore?: () => ConnectionStore): Promise<Local> {
  const origin = `http://localhost:${await freePort()}`
  const path = join(folder(), 'connections.db')
  const store = openStore ?? (() => sqliteConnectionStore({ path }))
  const events: ConnectionEvent[] = []
  const lines: string[] = []
  const app = Fastify({ logger: { level: 'trace', stream: { write: (line: string) => { lines.push(line) } } } })
  await app.register(mcpConnections, {
    baseUrl: origin,
    name: 'Digest',
    keys: [KEY],
    store: store(),
    servers,
    currentUser: testOptions().currentUser,
    loginUrl: '/login',
    onEvent: (event) => events.push(event),
    ...changes
  })
  await app.listen({ port: Number(new URL(origin).port) })
  t.teardown(async () => await app.close())
  const sealer = await createSealer<Credentials & Expiring>([parseKey(KEY)!], 'connection', 65536)
  const beside = store()
  await beside.open()
  t.teardown(async () => await beside.close())

  const local: Local = {
    origin,
    path,
    app,
    events,
    lines,
    connections: app.connections,
    dump: () => readdirSync(dirname(path)).map((name) => readFileSync(join(dirname(path), name), 'latin1')).join(''),
    rows () {
      const database = new DatabaseSync(path)
      const { count } = database.prepare('SELECT count(*) AS count FROM connections').get() as { count: number }
      database.close()
      return count
    },
    async edit (user, server, changes) {
      const credentials = await sealer.open((await beside.find(user, server))!, 0) as Credentials & Expiring
      const changed = { ...credentials, ...changes(credentials) }
      if (!await beside.lock(user, server, 1, 0) || !await beside.save(user, server, await sealer.seal(changed), 1)) throw new Error('Somebody changes it')
      return changed
    },
    async visit (path, user, init = {}) {
      const response = await fetch(new URL(path, origin), { ...init, redirect: 'manual', headers: { ...headersOf(user), ...init.headers as Record<string, string> } })
      return { status: response.status, location: response.headers.get('location') ?? '', html: await response.text() }
    },
    ticket: async (user) => fieldOf((await local.visit('/my/connections', user)).html, 'ticket'),
    press: async (user, button) => await local.visit('/my/connections', user, { method: 'POST', body: new URLSearchParams({ ticket: await local.ticket(user), ...button }) }),
    async consent (location, user, decision = 'approve', scope = ['read', 'write']) {
      const page = await (await fetch(location, { headers: headersOf(user) })).text()
      const answer = await fetch(new URL('/oauth/authorize', location), {
        method: 'POST',
        redirect: 'manual',
        headers: { ...headersOf(user), 'content-type': 'application/x-www-form-urlencoded' },
        body: form({ ticket: fieldOf(page, 'ticket'), decision, scope })
      })
      const callback = answer.headers.get('location')
      if (callback === null) throw new Error(`No way back from ${location} but ${answer.status}: ${page}`)
      return callback
    },
    async connect (user, server = 'notes', scope) {
      const { status, location, html } = await local.press(user, { connect: server })
      if (status !== 303) throw new Error(`No way to ${server} but ${status}: ${html}`)
      return await local.visit(await local.consent(location, user, 'approve', scope), user)
    }
  }
  return local
}

/** A job in this process: an MCP client of the SDK, as the user. */
export async function job (sdk: Sdk, connections: Connections, url: string, user: string, tool: string, args: Record<string, unknown> = {}): Promise<string> {
  const session = sdk.session(url, connections.provider(user, 'notes') as unknown as ProviderMemory)
  try {
    await session.connect()
    return await session.call(tool, args)
  } finally {
    await session.close()
  }
}

/** The same in a process of its own. */
export async function worker (sdk: Sdk, options: { without?: string | undefined, url: string, user: string, store: { sqlite: string } | { postgres: object } }): Promise<string> {
  const child = spawn('env', ['-u', 'NODE_OPTIONS', process.execPath, WORKER], {
    env: { ...process.env, WORKER: JSON.stringify({ sdk: SDKS.indexOf(sdk), server: 'notes', keys: [KEY], ...options }) }, stdio: ['ignore', 'pipe', 'inherit']
  })
  let output = ''
  child.stdout.on('data', (chunk) => { output += String(chunk) })
  await once(child, 'close')
  return output
}

/** What both versions of the SDK take as it is. */
export const providers = ({ provider }: Connections): [ProviderV1, ProviderV2] => [provider('alice', 'notes'), provider('alice', 'notes')]
