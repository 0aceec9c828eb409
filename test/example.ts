import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { performance } from 'node:perf_hooks'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import type { Test } from 'tap'
import { freePort } from './scripts/free-port.js'

const START_TIMEOUT = 20_000
const STOP_TIMEOUT = 8_000

export interface ExampleOptions {
  /** Below `examples/`. Default `mcp-server/main.js`. */
  program?: string
  /** What it answers with 200 once it is there. Default `/.well-known/oauth-protected-resource`. */
  ready?: string
  /** The last it prints on its start, which may come after its first answer. Default what `main.js` ends with. */
  prints?: string
  env?: Record<string, string>
  /** To start again on what an earlier run left. Default: a new folder, removed with the test. */
  dataDir?: string
  /** To start again under the same URL. Default: a free one. */
  port?: number
  /** Where to ask for it. Default `localhost`. */
  host?: string
}

export interface Exit {
  /** Null where it had to be killed. */
  code: number | null
  /** Milliseconds from the signal to the end of the process. */
  took: number
}

export interface Example {
  /** Its origin; also its issuer, unless `ISSUER` says otherwise. */
  url: string
  port: number
  dataDir: string
  process: ChildProcess
  /** Milliseconds from spawn to the first answer. */
  startedIn: number
  /** Everything printed so far. */
  output: () => string
  /** Sends a signal and waits for the end; kills what does not end. */
  stop: (signal?: NodeJS.Signals) => Promise<Exit>
}

/** `node examples/…`, answering; stopped with the test. */
export async function startExample (t: Test, options: ExampleOptions = {}): Promise<Example> {
  const dataDir = options.dataDir ?? temporaryFolder(t)
  for (let attempt = 1; ; attempt++) {
    const startedAt = performance.now()
    const example = launch(t, dataDir, options.port ?? await freePort(), options)
    if (await answers(example, options)) return Object.assign(example, { startedIn: performance.now() - startedAt })
    // Somebody else may have taken the port in between.
    if (options.port === undefined && attempt < 5 && example.output().includes('EADDRINUSE')) continue
    throw new Error(`The example does not answer. It printed:\n${example.output()}`)
  }
}

/** The example where it should refuse to start: its exit code, and what it printed. */
export async function startInVain (t: Test, env: Record<string, string>): Promise<{ code: number | null, output: string }> {
  const example = launch(t, temporaryFolder(t), await freePort(), { env })
  await Promise.race([once(example.process, 'close'), sleep(START_TIMEOUT, undefined, { ref: false })])
  return { code: example.process.exitCode, output: example.output() }
}

function launch (t: Test, dataDir: string, port: number, { env = {}, host = 'localhost', program = 'mcp-server/main.js' }: ExampleOptions): Example {
  // tap puts a loader into the NODE_OPTIONS of every child, which the example's users do not have and which takes a
  // third of a second: `env -u` takes it out, and becomes node itself.
  const child = spawn('env', ['-u', 'NODE_OPTIONS', process.execPath, fileURLToPath(new URL(`../examples/${program}`, import.meta.url))], {
    env: { PATH: process.env.PATH, PORT: String(port), DATA_DIR: dataDir, ...env },
    stdio: ['ignore', 'pipe', 'pipe']
  })
  let output = ''
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (text: string) => { output += text })

  const ended = once(child, 'close')
  const kill = (): boolean => child.kill('SIGKILL')
  process.once('exit', kill)
  child.once('close', () => process.off('exit', kill))

  const stop = async (signal: NodeJS.Signals = 'SIGTERM'): Promise<Exit> => {
    const signalledAt = performance.now()
    child.kill(signal)
    const timer = setTimeout(kill, STOP_TIMEOUT)
    await ended
    clearTimeout(timer)
    return { code: child.exitCode, took: performance.now() - signalledAt }
  }
  t.teardown(stop.bind(null, 'SIGTERM'))
  return { url: `http://${host}:${port}`, port, dataDir, process: child, startedIn: Infinity, output: () => output, stop }
}

/** Whether it answers a request, and has said so, before it ends. */
async function answers (example: Example, { ready = '/.well-known/oauth-protected-resource', prints = '/my/connected_apps\n' }: ExampleOptions): Promise<boolean> {
  const deadline = performance.now() + START_TIMEOUT
  while (example.process.exitCode === null && example.process.signalCode === null && performance.now() < deadline) {
    const response = await fetch(example.url + ready).catch(() => null)
    await response?.body?.cancel()
    if (response?.ok === true && example.output().includes(prints)) return true
    await sleep(20)
  }
  return false
}

export function temporaryFolder (t: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'mcp-example-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

export interface Decision {
  /** What to leave ticked. Default: whatever the page offers. */
  scopes?: readonly string[]
  decision?: 'approve' | 'deny'
}

/** What `Accept: application/json` gets at /my/connected_apps. */
export interface ConnectedApps {
  ticket: string
  apps: Array<{ clientId: string, name: string, host: string, scopes: string[], connections: number, lastUsedAt: number | null }>
  personalTokens: unknown[]
}

interface Form {
  action: string
  /** What is sent without anybody's doing. */
  hidden: Array<[string, string]>
  checkboxes: Array<{ name: string, value: string, checked: boolean }>
  buttons: Array<{ name: string, value: string }>
}

/** A person at a browser: keeps cookies, follows redirects within the site, fills in the forms that it is shown. */
export class Browser {
  readonly #origin: string
  readonly #username: string
  readonly cookies = new Map<string, string>()

  constructor ({ url }: { url: string }, username: string) {
    this.#origin = url
    this.#username = username
  }

  /** One request, with this browser's cookies, and no redirect followed. */
  async fetch (path: string, init: RequestInit = {}): Promise<Response> {
    const headers = new Headers(init.headers)
    if (this.cookies.size > 0) headers.set('cookie', [...this.cookies].map(([name, value]) => `${name}=${value}`).join('; '))
    const response = await fetch(new URL(path, this.#origin), { ...init, headers, redirect: 'manual' })
    for (const cookie of response.headers.getSetCookie()) {
      const [, name, value] = cookie.match(/^([^=;]+)=([^;]*)/) ?? []
      if (name !== undefined && value !== undefined) this.cookies.set(name, value)
    }
    return response
  }

  async post (path: string, fields: Array<[string, string]>, headers: Record<string, string> = {}): Promise<Response> {
    return await this.fetch(path, { method: 'POST', headers, body: new URLSearchParams(fields) })
  }

  /** Goes where a link or a form leads, through the sign-in page if it comes up, and stays on the site. */
  async follow (response: Response): Promise<{ response: Response, html: string }> {
    for (let step = 0; step < 10; step++) {
      const location = response.headers.get('location')
      if (location === null) {
        const html = await response.text()
        if (new URL(response.url).pathname !== '/login' || !response.ok) return { response, html }
        const form = formWith(html, 'username', this.#username)
        response = await this.post(form.action, [...form.hidden, ['username', this.#username]])
        continue
      }
      const target = new URL(location, response.url)
      if (target.origin !== this.#origin) throw new Error(`The site sends its user away, to ${location}`)
      response = await this.fetch(target.href)
    }
    throw new Error('The site redirects in circles')
  }

  async signIn (): Promise<void> {
    await this.follow(await this.fetch('/login'))
  }

  /** Opens what a client opened, signs in where needed, and reads the consent page. */
  async openConsent (authorizationUrl: URL | string): Promise<{ html: string, scopes: string[], submit: (decision?: Decision) => Promise<URL> }> {
    const { response, html } = await this.follow(await this.fetch(String(authorizationUrl)))
    if (response.status !== 200) throw new Error(`No consent page but ${response.status}: ${html}`)
    const form = formWith(html, 'decision')
    const scopes = form.checkboxes.filter(({ name, checked }) => name === 'scope' && checked).map(({ value }) => value)
    const submit = async ({ scopes: ticked = scopes, decision = 'approve' }: Decision = {}): Promise<URL> => {
      const missing = ticked.filter((scope) => !form.checkboxes.some(({ name, value }) => name === 'scope' && value === scope))
      if (missing.length > 0) throw new Error(`The consent page does not offer ${missing.join(', ')}`)
      if (!form.buttons.some(({ name, value }) => name === 'decision' && value === decision)) throw new Error(`The consent page has no button to ${decision}`)
      const answer = await this.post(form.action, [
        ...form.hidden, ...ticked.map((scope): [string, string] => ['scope', scope]), ['decision', decision]
      ])
      const location = answer.headers.get('location')
      if (answer.status !== 303 || location === null) throw new Error(`No redirect to the client but ${answer.status}: ${await answer.text()}`)
      return new URL(location)
    }
    return { html, scopes, submit }
  }

  /** From the authorization URL to the URL that the client receives. */
  async authorize (authorizationUrl: URL | string, decision?: Decision): Promise<URL> {
    const { submit } = await this.openConsent(authorizationUrl)
    return await submit(decision)
  }

  /** The connected-apps page, as data. */
  async connectedApps (): Promise<ConnectedApps> {
    if (this.cookies.size === 0) await this.signIn()
    const response = await this.fetch('/my/connected_apps', { headers: { accept: 'application/json' } })
    if (response.status !== 200) throw new Error(`/my/connected_apps answered ${response.status}: ${await response.text()}`)
    return await response.json() as ConnectedApps
  }

  /** Presses Connect on the page of connections, allows it in the browser of the other server, and answers what this one shows then. */
  async connect (server: string, there: Browser): Promise<string> {
    const { html } = await this.follow(await this.fetch('/my/connections'))
    const form = formWith(html, 'connect', server)
    const asked = (await this.post(form.action, [...form.hidden, ['connect', server]])).headers.get('location') ?? ''
    return (await this.follow(await this.fetch((await there.authorize(asked)).href))).html
  }

  /** Presses Disconnect on the connected-apps page, and answers what it shows then. */
  async disconnect (clientId: string): Promise<string> {
    const { html } = await this.follow(await this.fetch('/my/connected_apps'))
    const form = formWith(html, 'client', clientId)
    const { response, html: after } = await this.follow(await this.post(form.action, [...form.hidden, ['client', clientId]]))
    if (response.status !== 200) throw new Error(`Disconnecting answered ${response.status}: ${after}`)
    return after
  }
}

/** The first form of a page with such a button. */
function formWith (html: string, name: string, value?: string): Form {
  const form = [...html.matchAll(/<form\b([^>]*)>(.*?)<\/form>/gs)].map(([, tag, inner]) => readForm(tag!, inner!))
    .find(({ buttons }) => buttons.some((button) => button.name === name && (value === undefined || button.value === value)))
  if (form === undefined) throw new Error(`No form with a button ${name}=${value ?? '…'} in:\n${html}`)
  return form
}

function readForm (tag: string, inner: string): Form {
  const inputs = [...inner.matchAll(/<(input|button)\b([^>]*)>/g)].map(([, element, attributes]) => ({
    element,
    type: attribute(attributes!, 'type'),
    name: attribute(attributes!, 'name'),
    value: attribute(attributes!, 'value'),
    checked: /\schecked\b/.test(attributes!)
  }))
  return {
    action: attribute(tag, 'action'),
    hidden: inputs.filter(({ type }) => type === 'hidden').map(({ name, value }) => [name, value]),
    checkboxes: inputs.filter(({ type }) => type === 'checkbox'),
    buttons: inputs.filter(({ element }) => element === 'button')
  }
}

function attribute (attributes: string, name: string): string {
  return unescapeHtml(attributes.match(new RegExp(`\\b${name}="([^"]*)"`))?.[1] ?? '')
}

const ENTITIES: Record<string, string> = { amp: '&', lt: '<', gt: '>', quot: '"', apos: "'" }

function unescapeHtml (text: string): string {
  return text.replace(/&(?:#(\d+)|(\w+));/g, (whole, code: string | undefined, name: string) =>
    code === undefined ? ENTITIES[name] ?? whole : String.fromCodePoint(Number(code)))
}

/** One JSON-RPC request to an MCP server, as a client of 2025-06-18 without a session sends it. */
export async function callMcp (url: string, token: string | undefined, method: string, params: object = {}, headers: Record<string, string> = {}): Promise<Response> {
  return await fetch(url, {
    method: 'POST',
    headers: { ...MCP_HEADERS, ...(token !== undefined && { authorization: `Bearer ${token}` }), ...headers },
    body: JSON.stringify({ jsonrpc: '2.0', id: 1, method, params })
  })
}

export const MCP_HEADERS = {
  'content-type': 'application/json',
  accept: 'application/json, text/event-stream',
  'mcp-protocol-version': '2025-06-18'
}

/** The result in an answer of `callMcp`, whether it came as JSON or as an event stream. */
export async function mcpResult<T> (response: Response): Promise<T> {
  const text = await response.text()
  if (response.status !== 200) throw new Error(`The MCP server answered ${response.status}: ${text}`)
  const json = response.headers.get('content-type')?.startsWith('text/event-stream') === true
    ? text.match(/^data: ?(\{.*)$/m)?.[1] ?? ''
    : text
  const { result, error } = JSON.parse(json) as { result?: T, error?: unknown }
  if (result === undefined) throw new Error(`The MCP server refused: ${JSON.stringify(error)}`)
  return result
}

/** What a tool says. */
export async function callTool (url: string, token: string, name: string, args: object = {}): Promise<string> {
  const { content } = await mcpResult<{ content: Array<{ text: string }> }>(await callMcp(url, token, 'tools/call', { name, arguments: args }))
  return content.map(({ text }) => text).join('\n')
}
