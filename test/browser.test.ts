import Fastify from 'fastify'
import { once } from 'node:events'
import { mkdirSync, readFileSync } from 'node:fs'
import { createServer, type IncomingMessage, type RequestListener, type Server } from 'node:http'
import { createServer as createTlsServer } from 'node:https'
import type { AddressInfo } from 'node:net'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import mcpConnections, { sqliteConnectionStore } from '../dist/connections/index.js'
import type { McpOAuthOptions } from '../dist/index.js'
import { KEY, pkce, replace, testApp } from './app.js'
import { axe, startChromium } from './chromium.js'
import { job } from './connections.js'
import { Browser, MCP_HEADERS, callMcp, callTool, startExample } from './example.js'
import { Network, PUBLIC } from './network.js'
import type { BrowserContextOptions, CDPSession, Page } from './programs/node_modules/playwright-core/index.js'
import { freePort } from './scripts/free-port.js'
import { SDKS } from './sdk.js'

// What only a real browser shows. Nothing here is a stand-in: the example runs as its users start it, the clients are
// programs that listen, and all that passes between them is HTTP.

const [chromium, example] = await Promise.all([startChromium(t), startExample(t, { env: { RATE_LIMIT: 'off' } })])
const APPS = `${example.url}/my/connected_apps`
const MCP = `${example.url}/mcp`
/** A name that fits nowhere, and is not HTML. */
const LONG = `<b>${'M'.repeat(60)}</b> مرحبا 😀`
const SCREENSHOTS = process.env.UPDATE_SCREENSHOTS === '1'
/** Milliseconds. Far more than a step takes: others use this machine too. */
const PATIENCE = 30_000

/** Whatever a browser complained about and no test expected. */
const troubles: string[] = []

interface Person {
  page: Page
  /** What the browser is meant to complain about from here on: it must, at least once, and it is no trouble. */
  expect: (...complaints: RegExp[]) => void
  /** What it may complain about from here on. */
  tolerate: (...complaints: RegExp[]) => void
}

/** Somebody at a browser of their own. */
async function person (t: Test, options: BrowserContextOptions = {}): Promise<Person> {
  const context = await chromium.newContext({ locale: 'en-GB', viewport: { width: 1280, height: 900 }, ...options })
  context.setDefaultTimeout(PATIENCE)
  const expected = new Map<RegExp, number>()
  const complain = (text: string): void => {
    const complaint = [...expected.keys()].find((pattern) => pattern.test(text))
    if (complaint === undefined) troubles.push(`${t.name}: ${text}`)
    else expected.set(complaint, expected.get(complaint)! + 1)
  }
  context.on('console', (message) => { if (['error', 'warning'].includes(message.type())) complain(`console: ${message.text()}`) })
  context.on('weberror', (error) => complain(`error: ${error.error().message}`))
  context.on('dialog', (dialog) => { complain(`dialog: ${dialog.message()}`); dialog.dismiss().catch(() => {}) })
  context.on('requestfailed', (request) => complain(`failed: ${request.method()} ${request.url()} ${request.failure()?.errorText}`))
  t.teardown(async () => {
    await context.close()
    for (const [pattern, times] of expected) if (times === 0) troubles.push(`${t.name}: no complaint ${pattern}`)
  })
  return {
    page: await context.newPage(),
    expect: (...complaints) => complaints.forEach((pattern) => expected.set(pattern, 0)),
    tolerate: (...complaints) => complaints.forEach((pattern) => expected.set(pattern, 1))
  }
}

interface Listening { url: string, requests: IncomingMessage[] }

/** A program of the user's that waits for its callback, or any other server; closed with the test. */
async function listen (t: Test, { host = '127.0.0.1', name = host, answer, tls = false }: { host?: string, name?: string, answer?: RequestListener, tls?: boolean } = {}): Promise<Listening> {
  const requests: IncomingMessage[] = []
  const listener: RequestListener = (request, response) => {
    requests.push(request)
    if (answer !== undefined) return answer(request, response)
    sendHtml(response, '<h1>You can close this window</h1>')
  }
  const pem = tls ? readFileSync(new URL('self-signed.pem', import.meta.url)) : ''
  const server: Server = tls ? createTlsServer({ key: pem, cert: pem }, listener) : createServer(listener)
  server.listen(0, host)
  await once(server, 'listening')
  t.teardown(() => {
    server.close()
    server.closeAllConnections()
  })
  return { url: `${tls ? 'https' : 'http'}://${name}:${(server.address() as AddressInfo).port}`, requests }
}

function sendHtml (response: Parameters<RequestListener>[1], body: string): void {
  response.setHeader('content-type', 'text/html; charset=utf-8').end(`<!doctype html><html lang="en"><link rel="icon" href="data:,"><title>A program</title>${body}</html>`)
}

interface Client {
  id: string
  /** A new request each time, with a state of its own. */
  authorizationUrl: (changes?: Record<string, string>) => string
  redeem: (code: string | null) => Promise<Response>
  /** Redeems and keeps the token. */
  token: (callback: string) => Promise<{ token: string, scope: string }>
}

/** A client of the server at `origin`; registers there unless it has an id. */
async function client (redirectUri: string, { name = 'Claude Code (notes)', origin = example.url, id }: { name?: string, origin?: string, id?: string } = {}): Promise<Client> {
  const { codeVerifier, codeChallenge } = pkce()
  if (id === undefined) {
    const registered = await fetch(`${origin}/oauth/register`, {
      method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ client_name: name, redirect_uris: [redirectUri] })
    })
    if (registered.status !== 201) throw new Error(`Not registered: ${await registered.text()}`)
    id = (await registered.json() as { client_id: string }).client_id
  }
  const redeem: Client['redeem'] = async (code) => await fetch(`${origin}/oauth/token`, {
    method: 'POST',
    body: new URLSearchParams({ grant_type: 'authorization_code', client_id: id, code: code ?? '', redirect_uri: redirectUri, code_verifier: codeVerifier })
  })
  let requests = 0
  return {
    id,
    authorizationUrl: (changes = {}) => `${origin}/oauth/authorize?${new URLSearchParams({
      response_type: 'code', client_id: id, redirect_uri: redirectUri, code_challenge: codeChallenge, code_challenge_method: 'S256', state: `state ${++requests}`, ...changes
    })}`,
    redeem,
    async token (callback) {
      const response = await redeem(new URL(callback).searchParams.get('code'))
      if (response.status !== 200) throw new Error(`No token: ${await response.text()}`)
      const { access_token: token, scope } = await response.json() as { access_token: string, scope: string }
      return { token, scope }
    }
  }
}

/** The real plugin in an app of the test, in which somebody of that name is always signed in. */
async function site (t: Test, options: Partial<McpOAuthOptions> & { userName?: string } = {}): Promise<string> {
  const { userName = 'Alice', ...overrides } = options
  const port = await freePort()
  const issuer = `http://localhost:${port}`
  const app = await testApp(t, { issuer, currentUser: () => ({ id: 'alice', name: userName }), ...overrides }, { forceCloseConnections: true })
  await app.listen({ port, host: 'localhost' })
  return issuer
}

/** A page of the example's, through its sign-in where that comes up. */
async function open (page: Page, url: string, user = 'Alice'): Promise<void> {
  await page.goto(url)
  if (new URL(page.url()).pathname === '/login') await page.getByRole('button', { name: user }).click()
  await page.locator('main h1').waitFor()
}

const allow = (page: Page) => page.getByRole('button', { name: 'Allow' })

/** Presses a button that leads away, and waits until the browser has arrived there. */
async function leave (page: Page, button: string, to: string): Promise<string> {
  await Promise.all([page.waitForURL((url) => url.href.startsWith(to), { timeout: PATIENCE }), page.getByRole('button', { name: button }).click()])
  return page.url()
}

/** Goes the whole way for a client and answers its token; `consider` is what is done on the consent page before. */
async function connect (page: Page, program: Listening, name: string, consider = async (): Promise<void> => {}): Promise<{ id: string, token: string }> {
  const callback = `${program.url}/callback`
  const { id, authorizationUrl, token } = await client(callback, { name })
  await open(page, authorizationUrl())
  await consider()
  return { id, ...await token(await leave(page, 'Allow', callback)) }
}

async function listNotes (token: string): Promise<number> {
  const { status, body } = await callMcp(MCP, token, 'tools/call', { name: 'list_notes', arguments: {} })
  await body?.cancel()
  return status
}

// --- How pages look and read

const SIZES = [{ width: 1280, height: 900 }, { width: 390, height: 844 }]
let axeSource: string | undefined

/** axe-core finds nothing on what is shown now, nor in its colors when it is dark, wide and narrow; nor is anything wider than the window. */
async function inspect (t: Test, page: Page, name: string): Promise<void> {
  axeSource ??= readFileSync(axe(), 'utf8')
  const cdp = await page.context().newCDPSession(page)
  // As a debugger: the page's own policy lets nothing run, and that is to stay so while it is inspected.
  await evaluate(cdp, axeSource)
  const before = page.viewportSize()!
  for (const size of SIZES) {
    await page.setViewportSize(size)
    for (const colorScheme of ['light', 'dark'] as const) {
      await page.emulateMedia({ colorScheme })
      // The dark changes nothing but colors (views/styles.css), which are what these two look at.
      const rules = colorScheme === 'dark' ? ", runOnly: ['color-contrast', 'link-in-text-block']" : ''
      const findings = await evaluate<string[]>(cdp, `axe.run({ resultTypes: ['violations']${rules} }).then(({ passes, violations }) => [
        // Nothing found says something only where it was looked for. Contrast is what light and dark change.
        ...passes.some(({ id }) => id === 'color-contrast') ? [] : ['passed only: ' + passes.map(({ id }) => id)],
        ...violations.flatMap(({ id, nodes }) => nodes.map(({ html, failureSummary }) => id + ': ' + html + ' ' + failureSummary))
      ])`)
      t.strictSame(findings, [], `${name}, ${colorScheme}, ${size.width} px`)
    }
    t.strictSame(await outOfBounds(cdp), [], `${name}, ${size.width} px`)
  }
  await page.setViewportSize(before)
  await page.emulateMedia({ colorScheme: null })
  await cdp.detach()
}

async function evaluate<T> (cdp: CDPSession, expression: string): Promise<T> {
  const { result, exceptionDetails } = await cdp.send('Runtime.evaluate', { expression, awaitPromise: true, returnByValue: true })
  if (exceptionDetails !== undefined) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text)
  return result.value as T
}

/** What reaches beyond the box that it is in, is cut off there, or makes the page scroll sideways. */
async function outOfBounds (cdp: CDPSession): Promise<string[]> {
  return await evaluate(cdp, `(() => {
    const found = []
    const root = document.documentElement
    if (root.scrollWidth > root.clientWidth) found.push('the page: ' + root.scrollWidth + ' > ' + root.clientWidth)
    for (const box of document.querySelectorAll('body, main, li, .card, .note, dl, .choice, button')) {
      const outer = box.getBoundingClientRect()
      for (const element of box.querySelectorAll('*')) {
        for (const inner of element.getClientRects()) {
          if (inner.left < outer.left - 0.5 || inner.right > outer.right + 0.5) found.push(element.outerHTML.slice(0, 80) + ' in ' + box.tagName)
        }
        if (element.scrollWidth > element.clientWidth && element.clientWidth > 0 && getComputedStyle(element).display !== 'inline' && element.tagName !== 'SELECT') found.push(element.outerHTML.slice(0, 80) + ' scrolls: ' + element.scrollWidth + ' > ' + element.clientWidth)
        // A letter may be a little higher than its line.
        if (element.scrollHeight > element.clientHeight + 8 && element.clientHeight > 0 && getComputedStyle(element).display !== 'inline' && element.tagName !== 'SELECT') found.push(element.outerHTML.slice(0, 80) + ' is too low: ' + element.scrollHeight + ' > ' + element.clientHeight)
      }
      const text = document.createRange()
      text.selectNodeContents(box)
      for (const inner of text.getClientRects()) {
        if (inner.left < outer.left - 0.5 || inner.right > outer.right + 0.5) found.push('text in ' + box.outerHTML.slice(0, 80))
      }
    }
    return [...new Set(found)]
  })()`)
}

/** Nothing reaches beyond its box, in a wide window and on the smallest phones, also with large and with wide text. */
async function fits (t: Test, page: Page, name: string): Promise<void> {
  const cdp = await page.context().newCDPSession(page)
  for (const width of [1280, 320, 390]) {
    await page.setViewportSize({ width, height: 640 })
    t.strictSame(await outOfBounds(cdp), [], `${name}, ${width} px`)
  }
  // Text at twice its size (WCAG 1.4.4), or set wide (1.4.12).
  for (const [changes, style] of [['large', 'html { font-size: 200% }'], ['wide', '* { letter-spacing: 0.12em !important; word-spacing: 0.16em !important; line-height: 1.5 !important }']] as const) {
    await evaluate(cdp, `document.adoptedStyleSheets = [new CSSStyleSheet()]; document.adoptedStyleSheets[0].replaceSync(${JSON.stringify(style)})`)
    for (const width of [390, 320]) {
      await page.setViewportSize({ width, height: 640 })
      t.strictSame(await outOfBounds(cdp), [], `${name}, ${changes}, ${width} px`)
    }
  }
  await evaluate(cdp, 'document.adoptedStyleSheets = []')
  await cdp.detach()
}

/** For the README, where asked for. */
async function screenshot (page: Page, name: string): Promise<void> {
  if (!SCREENSHOTS) return
  const folder = fileURLToPath(new URL('../docs', import.meta.url))
  mkdirSync(folder, { recursive: true })
  const before = page.viewportSize()!
  for (const [suffix, size] of [['', { width: 640, height: 760 }], ['-phone', { width: 390, height: 844 }]] as const) {
    await page.setViewportSize(size)
    for (const colorScheme of ['light', 'dark'] as const) {
      await page.emulateMedia({ colorScheme })
      await page.screenshot({ path: `${folder}/${name}${suffix}-${colorScheme}.png` })
    }
  }
  await page.setViewportSize(before)
  await page.emulateMedia({ colorScheme: null })
}

// --- Consent

t.test('who allows is asked to sign in first, and the client gets what is still ticked and no more', async (t) => {
  const { page } = await person(t)
  const program = await listen(t)
  const { authorizationUrl, token } = await client(`${program.url}/callback`)
  await page.goto(authorizationUrl({ state: 'a b&c=d#é' }))
  t.equal(new URL(page.url()).pathname, '/login')
  await inspect(t, page, 'sign-in')
  await page.getByRole('button', { name: 'Alice' }).click()
  await page.getByRole('heading', { name: 'Allow Claude Code (notes) to use Demo Notes?' }).waitFor()
  t.match(await page.locator('main').innerText(), /Not verified\.[^]*Signed in as\s+Alice\s+Access goes to\s+a program on this computer/)
  await inspect(t, page, 'consent')

  await page.getByLabel('Add notes').uncheck()
  const callback = new URL(await leave(page, 'Allow', `${program.url}/callback`))
  t.strictSame(program.requests.map(({ url }) => url), [callback.pathname + callback.search])
  t.strictSame([callback.searchParams.get('state'), callback.searchParams.get('iss')], ['a b&c=d#é', example.url])
  t.equal(program.requests[0]!.headers.referer, undefined, 'nothing of the request travels along')
  t.equal(program.requests[0]!.method, 'GET')

  const granted = await token(callback.href)
  t.equal(granted.scope, 'read')
  t.match(await callTool(MCP, granted.token, 'list_notes'), 'There are no notes yet.')
  t.equal((await callMcp(MCP, granted.token, 'tools/call', { name: 'add_note', arguments: { text: 'x' } })).status, 403)
})

t.test('who denies sends the client an error and nothing else', async (t) => {
  const { page } = await person(t)
  const program = await listen(t)
  const { authorizationUrl } = await client(`${program.url}/callback`)
  await open(page, authorizationUrl({ state: 'xyz' }))
  const callback = new URL(await leave(page, 'Deny', program.url))
  t.strictSame([...callback.searchParams].filter(([name]) => name !== 'error_description'), [['error', 'access_denied'], ['state', 'xyz'], ['iss', example.url]])
  await open(page, authorizationUrl())
  for (const scope of ['Read your notes', 'Add notes']) await page.getByLabel(scope).uncheck()
  t.match(await leave(page, 'Allow', program.url), /error=access_denied/, 'as does who leaves nothing ticked')
})

t.test('no policy of the consent page stops the way to an app, wherever that leads on', async (t) => {
  const { page, expect } = await person(t, { ignoreHTTPSErrors: true })
  const done = await listen(t, { host: 'localhost' })
  const answer: RequestListener = (request, response) => request.url?.startsWith('/onward') === true
    ? response.writeHead(302, { location: `${done.url}/done` }).end()
    : sendHtml(response, 'Done')
  const local = await listen(t, { answer })
  const named = await listen(t, { host: 'localhost', answer })
  const web = await listen(t, { name: 'app.localhost', tls: true, answer })
  const six = await listen(t, { host: '::1', name: '[::1]', answer }).catch(() => null)
  const redirectUris = [local, named, web, ...six === null ? [] : [six]].flatMap(({ url }) => [`${url}/callback`, `${url}/onward`])
  const schemes = ['notesapp://callback', 'com.example.notes:/callback']
  const origin = await site(t, { clients: [{ clientId: 'known', clientName: 'Known app', redirectUris: [...redirectUris, ...schemes] }] })

  for (const redirectUri of redirectUris) {
    const { authorizationUrl } = await client(redirectUri, { origin, id: 'known' })
    for (const button of ['Allow', 'Deny']) {
      await page.goto(authorizationUrl())
      const arrived = await leave(page, button, redirectUri.endsWith('/onward') ? `${done.url}/done` : `${redirectUri}?`)
      t.ok(arrived, `${button}: ${redirectUri}`)
    }
  }
  // No such app is here: what is to be seen is that the browser goes to it, and that nothing but its absence ends that.
  expect(/^failed: GET (notesapp|com\.example\.notes):.* net::ERR_(ABORTED|UNKNOWN_URL_SCHEME)$/)
  for (const redirectUri of schemes) {
    const { authorizationUrl, token } = await client(redirectUri, { origin, id: 'known' })
    await page.goto(authorizationUrl())
    const [request] = await Promise.all([page.waitForEvent('requestfailed'), allow(page).click()])
    t.ok(request.url().startsWith(redirectUri), redirectUri)
    t.match(await token(request.url()), { scope: 'read write' })
  }
})

t.test('consent tells whom the site knows, where the data is and what a permission includes', async (t) => {
  const { page } = await person(t)
  const [web, scheme, elsewhere] = ['https://app.example/callback', 'notesapp://callback', 'https://files.example/mcp']
  const origin = await site(t, {
    clients: [{ clientId: 'known', clientName: 'Known app', redirectUris: [web, scheme] }],
    resources: [{ path: '/mcp', name: 'Notes' }, { url: elsewhere, name: 'Files' }],
    scopes: { read: 'Read your notes', write: { description: 'Change your notes', implies: ['read'] } }
  })
  for (const [redirectUri, resource, says] of [
    [web, elsewhere, /knows this app\.[^]*Your data is at\s+files\.example\s+Access goes to\s+app\.example\s[^]*Includes: Read your notes/],
    [scheme, `${origin}/mcp`, /Not verified\.[^]*Access goes to\s+the app on this device that opens notesapp: links/]
  ] as const) {
    const { authorizationUrl, token } = await client(redirectUri, { origin, id: 'known' })
    await page.goto(authorizationUrl({ resource }))
    t.match(await page.locator('main').innerText(), says)
    await inspect(t, page, `consent, to ${redirectUri}`)
    await token((await new Browser({ url: origin }, 'alice').authorize(authorizationUrl({ resource }))).href)
  }
  await page.goto(`${origin}/my/connected_apps`)
  t.match(await page.locator('main').innerText(), /2 connections\s+Can use (Notes, Files|Files, Notes):/)
  await inspect(t, page, 'connected apps of several resources')
})

t.test('going back, reloading and pressing twice end in one grant at most for one consent', async (t) => {
  const { page, tolerate } = await person(t)
  const program = await listen(t)
  const callback = `${program.url}/callback`
  const { id, authorizationUrl, redeem, token } = await client(callback, { name: 'Impatient' })
  const codes = (): string[] => program.requests.map(({ url }) => new URL(url!, callback).searchParams.get('code')!)
  const connections = async (): Promise<number> => (await user.connectedApps()).apps.find(({ clientId }) => clientId === id)?.connections ?? 0
  const user = new Browser(example, 'alice')

  await t.test('back', async (t) => {
    await open(page, authorizationUrl())
    const ticket = await page.locator('input[name=ticket]').inputValue()
    const granted = await token(await leave(page, 'Allow', callback))
    await page.goBack()
    await allow(page).waitFor()
    t.not(await page.locator('input[name=ticket]').inputValue(), ticket, 'the page is not kept, so this asks anew')
    await page.reload()
    await allow(page).waitFor()
    t.equal(await connections(), 1)
    const again = await token(await leave(page, 'Allow', callback))
    t.equal(await connections(), 2, 'and who allows anew has allowed twice')
    t.strictSame([await listNotes(granted.token), await listNotes(again.token)], [200, 200])
    await page.reload()
    t.equal(codes().at(-1), codes().at(-2), 'a reloaded callback brings the code once more')
    t.match(await (await redeem(codes().at(-1)!)).json(), { error: 'invalid_grant' })
    t.strictSame([await listNotes(granted.token), await listNotes(again.token)], [200, 401], 'a code that comes twice ends its own grant')
  })

  await t.test('twice', async (t) => {
    // The second press ends the first request, unless that is through already.
    tolerate(/^failed: (POST|GET) .* net::ERR_ABORTED$/)
    const before = await connections()
    program.requests.length = 0
    await open(page, authorizationUrl())
    await allow(page).dblclick()
    await page.getByRole('heading', { name: 'You can close this window' }).waitFor()
    t.ok(codes().length > 0)
    const { token: first } = await token(page.url())
    t.equal(await connections(), before + 1)
    t.equal(await listNotes(first), 200)
    // A post may be ended by the next, and its code get lost. Should both arrive, then for one grant.
    await Promise.all(codes().map(redeem))
    t.ok(await connections() <= before + 1)
  })

  await t.test('one ticket, posted again', async (t) => {
    const { page } = await person(t)
    const before = await connections()
    await open(page, authorizationUrl())
    const [request] = await Promise.all([page.waitForRequest((request) => request.method() === 'POST'), leave(page, 'Allow', callback)])
    const { token: first } = await token(page.url())
    const cookie = (await page.context().cookies()).map(({ name, value }) => `${name}=${value}`).join('; ')
    const again = await fetch(request.url(), { method: 'POST', headers: { cookie, 'content-type': 'application/x-www-form-urlencoded' }, body: request.postData()!, redirect: 'manual' })
    t.equal(again.status, 303)
    t.equal(await connections(), before + 1)
    t.match(await (await redeem(new URL(again.headers.get('location')!).searchParams.get('code'))).json(), { error: 'invalid_grant' })
    t.equal(await listNotes(first), 401)
    t.equal(await connections(), before)
  })

  await t.test('two tabs', async (t) => {
    const before = await connections()
    const [tab, other] = [page, await page.context().newPage()]
    const [one, two] = [await client(callback, { id }), await client(callback, { id })]
    await open(tab, one.authorizationUrl({ state: 'one' }))
    await open(other, two.authorizationUrl({ state: 'two', scope: 'read' }))
    const [second, first] = [await leave(other, 'Allow', callback), await leave(tab, 'Allow', callback)]
    t.strictSame([first, second].map((url) => new URL(url).searchParams.get('state')), ['one', 'two'])
    t.equal((await one.redeem(new URL(second).searchParams.get('code'))).status, 400, 'one request’s code is worth nothing to the other')
    t.strictSame([(await one.token(first)).scope, (await two.token(second)).scope], ['read write', 'read'])
    t.equal(await connections(), before + 2)
    await other.close()
  })
})

t.test('who is told elsewhere to click twice, and led to the consent page by the first click, allows nothing with the second', async (t) => {
  const { page } = await person(t)
  const program = await listen(t)
  const { authorizationUrl } = await client(`${program.url}/callback`, { name: 'Click twice' })
  await open(page, authorizationUrl())
  // The first second, begun anew and held, for as long as a slow machine needs.
  t.equal(await allow(page).evaluate((button) => {
    button.classList.remove('primary')
    button.getAnimations()
    button.classList.add('primary')
    const [animation] = button.getAnimations()
    animation.pause()
    animation.currentTime = 900
    return animation.effect.getTiming().duration as number
  }), 1000)
  const { x, y, width, height } = (await allow(page).boundingBox())!
  await page.mouse.dblclick(x + width / 2, y + height / 2)
  await page.waitForTimeout(200)
  t.strictSame(program.requests, [])
  t.equal(await allow(page).count(), 1, 'the page is still there')
  await allow(page).evaluate((button) => button.getAnimations()[0].play())
  await leave(page, 'Allow', program.url)
  t.equal(program.requests.length, 1, 'and allows, a second after it came')
})

// --- Connected apps

t.test('an app that is disconnected on the page fails at its next call', async (t) => {
  const { page } = await person(t)
  const program = await listen(t)
  const { token } = await connect(page, program, 'Forgotten app')
  const other = await connect(page, program, 'Kept app')
  t.equal(await listNotes(token), 200)
  await open(page, APPS)
  const entry = page.getByRole('listitem').filter({ has: page.getByRole('heading', { name: 'Forgotten app' }) })
  t.match(await entry.innerText(), /Forgotten app\s+A program on your computer\s+Read your notes\s+Add notes\s+Connected \d{4}-\d\d-\d\d/)
  const button = entry.getByRole('button', { name: 'Disconnect Forgotten app' })
  // Two apps may have one name.
  t.match(await page.locator(`#${await button.getAttribute('aria-describedby')}`).innerText(), /^Connected \d{4}/)
  await button.click()
  await page.getByRole('status').waitFor()
  t.match(await page.title(), /^Disconnected – /)
  await inspect(t, page, 'disconnected')
  t.equal(await entry.count(), 0)
  t.strictSame([await listNotes(token), await listNotes(other.token)], [401, 200])
  await page.reload()
  t.equal(await listNotes(other.token), 200, 'and a reload disconnects nothing else')
})

t.test('a personal token is copied once from the page, works, and is revoked; a reload makes no second one', async (t) => {
  const { page, tolerate } = await person(t, { deviceScaleFactor: 2, permissions: ['clipboard-read'] })
  // A user of its own, who has nothing yet.
  await open(page, APPS, 'Bob')
  t.match(await page.locator('main').innerText(), /No app is connected\./)
  await inspect(t, page, 'nothing connected')

  const program = await listen(t)
  const claude = await connect(page, program, 'Claude Code (notes)', async () => await screenshot(page, 'consent'))
  const codex = await connect(page, program, 'Codex', async () => await page.getByLabel('Add notes').uncheck())
  t.strictSame([await listNotes(claude.token), await listNotes(codex.token)], [200, 200])
  await page.goto(APPS)
  await page.getByLabel('Name').fill('Backup script')
  await page.getByLabel('Expires').selectOption('in 30 days')
  await page.getByRole('button', { name: 'Create token' }).click()
  const field = page.getByLabel('Your new token')
  await field.waitFor()
  t.match(await page.title(), /^Token created – /)
  t.ok(await field.evaluate((element) => element.getBoundingClientRect().top < 900 && element.getBoundingClientRect().top > 0), 'the page opens at it')
  await inspect(t, page, 'token created')

  await field.click()
  await page.keyboard.press('Control+A')
  await page.keyboard.press('Control+C')
  const token = await page.evaluate<string>('navigator.clipboard.readText()')
  t.match(token, /^pat_[\w-]{43}$/, 'nothing else is copied')
  t.equal(await listNotes(token), 200)
  const entry = page.getByRole('listitem').filter({ has: page.getByRole('heading', { name: 'Backup script' }) })
  const in30Days = new Date(Date.now() + 30 * 24 * 60 * 60 * 1000).toISOString().slice(0, 10)
  t.match(await entry.innerText(), new RegExp(`expires (${in30Days}|${new Date(Date.now() + 30 * 24 * 60 * 60 * 1000 - 60_000).toISOString().slice(0, 10)})`))

  for (const time of ['first', 'second']) {
    await page.reload()
    await page.getByRole('status').waitFor()
    t.match(await page.locator('main').innerText(), /made its token already/, time)
    t.equal(await field.count(), 0)
    t.equal(await entry.count(), 1, 'one token')
  }
  t.equal(await listNotes(token), 200, 'which goes on working')
  await inspect(t, page, 'token shown already')

  await page.goto(APPS)
  await inspect(t, page, 'apps and tokens')
  await screenshot(page, 'connected-apps')

  await t.test('nor does pressing twice', async (t) => {
    tolerate(/^failed: (POST|GET) .* net::ERR_ABORTED$/)
    await page.getByLabel('Name').fill('Pressed twice')
    await page.getByRole('button', { name: 'Create token' }).dblclick()
    await page.getByRole('status').or(field).waitFor()
    await page.goto(APPS)
    t.equal(await page.getByRole('heading', { name: 'Pressed twice' }).count(), 1)
  })

  await entry.getByRole('button', { name: 'Revoke Backup script' }).click()
  await page.getByRole('status').waitFor()
  t.match(await page.title(), /^Token revoked – /)
  await inspect(t, page, 'token revoked')
  t.equal(await entry.count(), 0)
  t.equal(await listNotes(token), 401)
  await page.goBack()
  await page.goto(APPS)
  t.equal(await entry.count(), 0)
})

// --- Clients whose id is the URL at which their host says what they are

/** What the host of such a client says of it. */
function publish (network: Network, id: string, name: string, ...redirectUris: string[]): string {
  return network.publish(id, { client_id: id, client_name: name, redirect_uris: redirectUris })
}

t.test('a web site that is a client is named by its host, and gets the code or what it did wrong only where the user goes there', async (t) => {
  const { page, expect } = await person(t, { ignoreHTTPSErrors: true })
  const network = await Network.start(t)
  const web = await listen(t, { name: 'app.localhost', tls: true })
  const { host } = new URL(web.url)
  const callback = `${web.url}/callback`
  const id = publish(network, `${web.url}/client.json`, 'Hosted <b>notes</b>', callback)
  const origin = await site(t, { clientIdMetadata: { agent: network } })
  const { authorizationUrl, token } = await client(callback, { origin, id })

  await page.goto(authorizationUrl())
  t.equal(await page.locator('h1').innerText(), 'Allow Hosted <b>notes</b> to use Notes?')
  t.strictSame(await page.locator('#caution strong').allInnerTexts(), [host], 'what is certain stands out from what is claimed')
  t.match(await page.locator('main').innerText(), /calls itself Hosted <b>notes<\/b>\.[^]*Signed in as\s+Alice\s+Access goes to\s+app\.localhost:\d+\n/)
  t.equal(await allow(page).getAttribute('aria-describedby'), 'caution')
  await inspect(t, page, 'consent for a web site')
  t.match(await token(await leave(page, 'Allow', callback)), { scope: 'read write' })
  await page.goto(authorizationUrl())
  t.match(await leave(page, 'Deny', callback), /error=access_denied/)

  expect(/status of 400/)
  web.requests.length = 0
  await page.goto(authorizationUrl({ code_challenge_method: 'plain' }))
  await inspect(t, page, 'a mistake of a web site')
  t.equal(web.requests.length, 0)
  const link = page.getByRole('link', { name: 'Go back to app.localhost' })
  await page.keyboard.press('Tab')
  t.ok(await link.evaluate((element) => element.matches(':focus-visible')), 'there is nothing else to press')
  await Promise.all([page.waitForURL(`${callback}?**`), page.keyboard.press('Enter')])
  t.match(Object.fromEntries(new URL(page.url()).searchParams), { error: 'invalid_request', state: /^state /, iss: origin })
  t.match([web.requests.length, web.requests[0]!.headers.referer], [1, undefined])
})

t.test('a program that gives the URL of a web site for its id is not taken for what is there', async (t) => {
  const { page } = await person(t)
  const network = await Network.start(t)
  const id = publish(network, 'https://claude.ai/oauth/claude-code-client-metadata', 'Claude Code', 'http://localhost/callback', 'http://127.0.0.1/callback')
  const origin = await site(t, { clientIdMetadata: { agent: network } })
  const program = await listen(t, { host: 'localhost' })
  const { authorizationUrl, token } = await client(`${program.url}/callback`, { origin, id })
  await page.goto(authorizationUrl())
  t.equal(await page.locator('h1').innerText(), 'Allow Claude Code to use Notes?')
  t.match(await page.locator('main').innerText(), /This app says that it is Claude Code from claude\.ai\. Any app can say that\.[^]*Access goes to\s+a program on this computer/)
  t.strictSame(await page.locator('#caution strong').allInnerTexts(), ['Not verified.'])
  await inspect(t, page, 'consent for a program with a URL')
  t.match(await token(await leave(page, 'Allow', program.url)), { scope: 'read write' })
})

t.test('what keeps a client from being looked up is told on a page, with what its user can do', async (t) => {
  const { page, expect } = await person(t)
  const network = await Network.start(t)
  network.names.set('gone.client.example', ['ENOTFOUND'])
  network.names.set('client.example', [[PUBLIC]])
  const [origin, picky] = [await site(t, { clientIdMetadata: { agent: network } }), await site(t, { clientIdMetadata: { agent: network, allowHosts: ['claude.ai'] } })]
  const go = async (at: string, id: string): Promise<string> => {
    await page.goto((await client('https://client.example/callback', { origin: at, id })).authorizationUrl())
    t.equal(await page.getByRole('heading').innerText(), 'That did not work')
    t.equal(await page.locator('form, a').count(), 0, 'there is nothing to press')
    return await page.locator('main').innerText()
  }
  expect(/status of 503/)
  t.match(await go(origin, 'https://gone.client.example/client.json'), /could not ask gone\.client\.example[^]*Try again in a minute/)
  await inspect(t, page, 'a host that could not be asked')
  expect(/status of 400/)
  t.match(await go(origin, 'https://client.example/none.json'), /What client\.example says about this app cannot be used\.[^]*the makers of the app/)
  await inspect(t, page, 'a document that cannot be used')
  t.match(await go(picky, 'https://client.example/none.json'), /Apps of client\.example may not connect here\./)
  await inspect(t, page, 'a host that is not allowed')
  expect(/status of 429/)
  for (let count = 2; count < 10; count++) await go(origin, `https://client.example/${count}.json`)
  t.match(await go(origin, 'https://client.example/11.json'), /looked up[^]*Wait a minute/)
  await inspect(t, page, 'too many apps looked up')
})

t.test('connected apps of one host stand together, and each is disconnected by itself', async (t) => {
  const { page } = await person(t)
  const network = await Network.start(t)
  const origin = await site(t, { clientIdMetadata: { agent: network } })
  const user = new Browser({ url: origin }, 'alice')
  const redirectUris = ['http://localhost:8123/callback', 'https://claude.ai/api/mcp/auth_callback'] as const
  const token = async (redirectUri: string, options: { id?: string, name?: string }): Promise<string> => {
    const { authorizationUrl, token } = await client(redirectUri, { origin, ...options })
    return (await token((await user.authorize(authorizationUrl())).href)).token
  }
  const tokens = [
    await token(redirectUris[0], { id: publish(network, 'https://claude.ai/oauth/claude-code-client-metadata', 'Claude Code', 'http://localhost/callback') }),
    await token(redirectUris[0], { name: 'Notes for Emacs' }),
    await token(redirectUris[1], { id: publish(network, 'https://claude.ai/oauth/mcp-oauth-client-metadata', 'Claude', redirectUris[1]) })
  ]
  const statuses = async (): Promise<number[]> => await Promise.all(tokens.map(async (token) => (await callMcp(`${origin}/mcp`, token, 'ping')).status))
  t.strictSame(await statuses(), [200, 200, 200])

  await page.goto(`${origin}/my/connected_apps`)
  const cards = page.locator('main > .cards > li')
  const names = async (): Promise<string[][]> => await Promise.all((await cards.all()).map(async (card) => await card.getByRole('heading').allInnerTexts()))
  t.strictSame(await names(), [['Claude Code', 'Claude'], ['Notes for Emacs']])
  t.match(await cards.first().innerText(), /^From claude\.ai\s+Claude Code\s+A program on your computer\s[^]*Disconnect\s+Claude\s+An app on the web\s/)
  t.equal((await cards.first().innerText()).split('claude.ai').length, 2, 'the host is named once')
  await inspect(t, page, 'connected apps of one host')

  await page.getByRole('button', { name: 'Disconnect Claude', exact: true }).click()
  await page.getByRole('status').waitFor()
  t.strictSame(await names(), [['Claude Code'], ['Notes for Emacs']])
  t.strictSame(await statuses(), [200, 200, 401])
  await page.getByRole('button', { name: 'Disconnect Claude Code' }).click()
  await page.getByRole('heading', { name: 'Claude Code' }).waitFor({ state: 'detached' })
  t.strictSame(await names(), [['Notes for Emacs']])
  t.strictSame(await statuses(), [401, 200, 401])
})

// --- Connections

t.test('servers are connected, reconnected and disconnected on the page of connections', async (t) => {
  const { page, expect } = await person(t)
  const origin = `http://localhost:${await freePort()}`
  const app = Fastify({ forceCloseConnections: true })
  t.teardown(async () => await app.close())
  await app.register(mcpConnections, {
    baseUrl: origin,
    name: 'Demo Digest',
    keys: [KEY],
    store: sqliteConnectionStore({ path: ':memory:' }),
    servers: { notes: { url: MCP, name: 'Demo Notes', scopes: ['read', 'write'] }, long: { url: `https://${'a'.repeat(63)}.example/mcp`, name: LONG } },
    currentUser: () => ({ id: 'alice', name: 'Alice' }),
    loginUrl: '/login'
  })
  await app.listen({ port: Number(new URL(origin).port), host: 'localhost' })
  const home = `${origin}/my/connections`
  const state = async (): Promise<string> => await page.locator('main li').first().locator('strong').innerText()

  await page.goto(home)
  t.equal(await state(), 'Not connected')
  await inspect(t, page, 'connections')
  await fits(t, page, 'connections')

  await page.getByRole('button', { name: 'Connect Demo Notes' }).click()
  await page.getByRole('button', { name: 'Alice' }).click()
  t.equal(await page.locator('main h1').innerText(), 'Allow Demo Digest to use Demo Notes?')
  expect(/status of 403/)
  await page.getByRole('button', { name: 'Deny' }).click()
  await page.getByRole('heading', { name: 'That did not work' }).waitFor()
  await inspect(t, page, 'a connection that was not allowed')

  await page.getByRole('link', { name: 'your connections' }).click()
  await page.getByRole('button', { name: 'Connect Demo Notes' }).click()
  await allow(page).click()
  await page.getByRole('status').waitFor()
  t.equal(page.url(), `${home}?done=connected`)
  t.equal(await state(), 'Connected')
  t.match(await page.locator('main li').first().innerText(), /Allowed: read, write\s+Connected \d{4}-/)
  await inspect(t, page, 'connections, one connected')

  const there = new Browser(example, 'alice')
  const { apps } = await there.connectedApps()
  await there.disconnect(apps.find(({ name }) => name === 'Demo Digest')!.clientId)
  await t.rejects(job(SDKS[1]!, app.connections, MCP, 'alice', 'list_notes'), { name: 'ReconnectRequiredError' })
  await page.goto(home)
  t.equal(await state(), 'Needs reconnecting')
  await inspect(t, page, 'connections, one to be made again')
  await page.getByRole('button', { name: 'Reconnect Demo Notes' }).click()
  await allow(page).click()
  await page.getByRole('status').waitFor()
  t.equal(await job(SDKS[1]!, app.connections, MCP, 'alice', 'list_notes'), 'There are no notes yet.')

  await page.getByRole('button', { name: 'Disconnect Demo Notes' }).click()
  await page.getByText('has no access there any more').waitFor()
  t.equal(await state(), 'Not connected')
  await inspect(t, page, 'connections, one disconnected')
})

// --- Ways in

t.test('the keyboard is enough, shows where it is, and Enter on a checkbox allows nothing', async (t) => {
  const { page } = await person(t)
  const program = await listen(t)
  const { authorizationUrl, token } = await client(`${program.url}/callback`, { name: 'By keyboard' })
  const posts: string[] = []
  page.on('request', (request) => { if (request.method() === 'POST') posts.push(request.url()) })
  /** Presses Tab until the focus is there, and sees it. */
  const tabTo = async (name: string): Promise<void> => {
    const focused = page.locator(':focus')
    for (let presses = 0; presses < 40; presses++) {
      await page.keyboard.press('Tab')
      if (await focused.count() === 0) continue
      const { label, outline } = await focused.evaluate((element) => ({
        label: element.getAttribute('aria-label') ?? [...element.labels ?? []].map((label) => label.textContent.trim()).join() + (element.tagName === 'BUTTON' ? element.textContent : ''),
        outline: (element.ownerDocument.defaultView.getComputedStyle(element).outlineStyle !== 'none')
      })) as { label: string, outline: boolean }
      t.ok(outline, `the focus shows on ${label}`)
      if (label.startsWith(name)) return
    }
    t.fail(`Tab never comes to ${name}`)
  }
  await page.goto(authorizationUrl())
  await tabTo('Alice')
  await page.keyboard.press('Enter')
  await allow(page).waitFor()
  await tabTo('Read your notes')
  posts.length = 0
  await page.keyboard.press('Enter')
  await tabTo('Add notes')
  await page.keyboard.press('Enter')
  await page.keyboard.press('Space')
  await page.waitForTimeout(300)
  t.strictSame(posts, [], 'nothing was sent')
  t.equal(program.requests.length, 0)
  t.notOk(await page.getByLabel('Add notes').isChecked())
  await tabTo('Allow')
  await Promise.all([page.waitForURL(`${program.url}/**`), page.keyboard.press('Space')])
  const granted = await token(page.url())
  t.equal(granted.scope, 'read')

  await page.goto(APPS)
  await tabTo('Disconnect By keyboard')
  await Promise.all([page.waitForURL('**?done=disconnected'), page.keyboard.press('Enter')])
  t.equal(await listNotes(granted.token), 401)
  await tabTo('Name')
  await page.keyboard.type('Typed')
  await tabTo('Add notes')
  await page.keyboard.press('Space')
  await tabTo('Expires')
  await page.keyboard.press('ArrowDown')
  await tabTo('Create token')
  await page.keyboard.press('Enter')
  const field = page.getByLabel('Your new token')
  await field.waitFor()
  t.match((await new Browser(example, 'alice').connectedApps()).personalTokens, [{ name: 'Typed', scopes: ['read', 'write'] }])
  const made = await field.inputValue()
  // The fragment of the page is where Tab starts from, so the token is close.
  await tabTo('Revoke Typed')
  await Promise.all([page.waitForURL('**?done=revoked**'), page.keyboard.press('Enter')])
  t.equal(await listNotes(made), 401)
})

t.test('nothing needs JavaScript', async (t) => {
  const { page } = await person(t, { javaScriptEnabled: false })
  const program = await listen(t)
  const { token } = await connect(page, program, 'Without scripts')
  t.equal(await listNotes(token), 200)
  await page.goto(APPS)
  await page.getByRole('button', { name: 'Disconnect Without scripts' }).click()
  await page.getByRole('status').waitFor()
  t.equal(await listNotes(token), 401)
  await page.getByLabel('Name').fill('No script')
  await page.getByRole('button', { name: 'Create token' }).click()
  const made = await page.getByLabel('Your new token').inputValue()
  t.equal(await listNotes(made), 200)
  await page.getByRole('button', { name: 'Revoke No script' }).click()
  await page.getByRole('status').waitFor()
  t.equal(await listNotes(made), 401)
})

// --- What others wrote

t.test('names stay in their boxes, in a wide window and on the smallest phone, and stay text', async (t) => {
  const { page } = await person(t, { viewport: { width: 320, height: 640 } })
  const program = await listen(t)
  const html = '<img src=x onerror=alert(1)><h1>&amp;"\'</h1>'
  const names = ['تطبيق الملاحظات '.repeat(6).trim(), '📝🚀'.repeat(25), 'W'.repeat(100), html]
  for (const name of names) {
    const resource = name === html ? 'Notes' : name
    const origin = await site(t, { userName: name, resources: [{ path: '/mcp', name: resource }], scopes: { read: `Read ${name}`, write: `Change ${name}` } })
    const { authorizationUrl, token } = await client(`${program.url}/callback`, { origin, name })
    const look = async (what: string, times: number): Promise<void> => {
      await fits(t, page, `${what}: ${name}`)
      t.ok((await page.locator('body').innerText()).split(name).length > times, `${what}: ${name}`)
      t.equal(await page.locator('img, h1 h1').count(), 0)
    }
    await page.goto(authorizationUrl())
    if (name === html) await inspect(t, page, `consent: ${name}`)
    await look('consent', 5)
    await token(await leave(page, 'Allow', program.url))
    await page.goto(`${origin}/my/connected_apps`)
    await page.getByLabel('Name').fill(name)
    await page.getByRole('button', { name: 'Create token' }).click()
    await page.getByLabel('Your new token').waitFor()
    await look('connected apps', 7)
  }
})

t.test('a host and a client id as long as they come stay in their boxes', async (t) => {
  const { page, expect } = await person(t)
  const network = await Network.start(t)
  const host = [...[63, 63, 57].map((length) => 'w'.repeat(length)), 'client.example'].join('.')
  t.equal(host.length, 200)
  const ids = ['a', 'b'].map((letter) => `https://${host}/${letter.repeat(2048 - `https://${host}/`.length)}`)
  const redirectUris = [`https://${host}/callback`, 'http://localhost/callback']
  for (const id of ids) publish(network, id, 'W'.repeat(100), ...redirectUris)
  const [origin, picky] = [await site(t, { clientIdMetadata: { agent: network } }), await site(t, { clientIdMetadata: { agent: network, allowHosts: ['claude.ai'] } })]
  const see = async (what: string, url: string): Promise<void> => {
    await page.goto(url)
    t.match((await page.locator('main').innerText()).replace(/\s/g, ''), host, what)
    await fits(t, page, what)
  }
  for (const id of ids) {
    for (const redirectUri of redirectUris) {
      const { authorizationUrl, token } = await client(redirectUri, { origin, id })
      await see(`consent, to ${redirectUri}`, authorizationUrl())
      await token((await new Browser({ url: origin }, 'alice').authorize(authorizationUrl())).href)
    }
  }
  await see('connected apps', `${origin}/my/connected_apps`)
  expect(/status of 400/, /status of 503/)
  const { authorizationUrl } = await client(redirectUris[0]!, { origin, id: ids[0]! })
  await see('a mistake of a web site', authorizationUrl({ code_challenge_method: 'plain' }))
  await see('a document that cannot be used', authorizationUrl({ client_id: `https://${host}/none.json` }))
  network.names.set(host, ['ENOTFOUND'])
  await see('a host that could not be asked', authorizationUrl({ client_id: `https://${host}/other.json` }))
  await see('a host that is not allowed', authorizationUrl().replace(origin, picky))
})

t.test('an error is a page that says what to do', async (t) => {
  const { page, expect } = await person(t)
  expect(/status of 400/)
  await page.goto(`${example.url}/oauth/authorize?client_id=nobody`)
  t.match(await page.locator('main').innerText(), /That did not work[^]*Remove this server from your app/)
  await inspect(t, page, 'error')

  const [origin, busy] = [await site(t), await site(t, { rateLimit: { authorize: { max: 1 } } })]
  const press = async (button: string, says: RegExp): Promise<void> => {
    await page.getByRole('button', { name: button }).click()
    await page.getByRole('heading', { name: 'That did not work' }).waitFor()
    t.match(await page.locator('main').innerText(), says)
    await inspect(t, page, `error: ${button}`)
  }
  await page.goto(`${origin}/my/connected_apps`)
  await page.getByLabel('Name').fill('May do nothing')
  await page.getByLabel('Read your notes').uncheck()
  await press('Create token', /A token needs at least one permission\.\s+Go back, and fill in the form again/)

  expect(/status of 404/, /status of 403/, /status of 429/)
  const program = await listen(t)
  const { authorizationUrl, token } = await client(`${program.url}/callback`, { origin, name: 'Gone' })
  const user = new Browser({ url: origin }, 'alice')
  await token((await user.authorize(authorizationUrl())).href)
  await page.goto(`${origin}/my/connected_apps`)
  await user.disconnect((await user.connectedApps()).apps[0]!.clientId)
  await press('Disconnect Gone', /may have been disconnected already/)

  await page.goto(authorizationUrl())
  const later = Date.now() + 10 * 60 * 1000
  const clock = replace(t, Date, 'now', () => later)
  await press('Allow', /This form has expired\.\s+Nothing was changed/)
  clock.restore()

  await page.goto(`${busy}/my/connected_apps`)
  await page.reload()
  t.match(await page.locator('main').innerText(), /Too many requests\.\s+Wait a minute/)
  await inspect(t, page, 'error: too many requests')
})

// --- Other sites

t.test('a web page of another origin can be a client, from the first 401 to a call that lacks a scope', async (t) => {
  const { page, expect } = await person(t)
  const { url: elsewhere } = await listen(t, { host: 'localhost' })
  const { codeVerifier, codeChallenge } = pkce()
  expect(/status of 401/, /status of 403/)
  await page.goto(elsewhere)
  const found = await page.evaluate(async ({ mcp, redirectUri, headers }) => {
    const refused = await fetch(mcp, { method: 'POST', headers, body: '{}' })
    await refused.text()
    const challenge = refused.headers.get('www-authenticate') ?? ''
    const json = async (url: string): Promise<any> => await (await fetch(url)).json()
    const { authorization_servers: [issuer], resource } = await json(challenge.match(/resource_metadata="([^"]+)"/)![1]!)
    const server = await json(`${issuer}/.well-known/oauth-authorization-server`)
    const registered = await fetch(server.registration_endpoint, {
      method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify({ client_name: 'Web page', redirect_uris: [redirectUri] })
    })
    return { status: refused.status, challenge, resource, server, clientId: (await registered.json() as { client_id: string }).client_id }
  }, { mcp: MCP, redirectUri: `${elsewhere}/callback`, headers: MCP_HEADERS })
  t.match(found, { status: 401, challenge: /^Bearer .*scope="read"/, resource: MCP, server: { issuer: example.url } })

  await open(page, `${found.server.authorization_endpoint}?${new URLSearchParams({
    response_type: 'code', client_id: found.clientId, redirect_uri: `${elsewhere}/callback`, code_challenge: codeChallenge, code_challenge_method: 'S256', scope: 'read', resource: MCP
  })}`)
  const code = new URL(await leave(page, 'Allow', elsewhere)).searchParams.get('code')!
  const used = await page.evaluate(async ({ mcp, endpoint, form, headers }) => {
    const { access_token: token } = await (await fetch(endpoint, { method: 'POST', body: new URLSearchParams(form) })).json() as { access_token: string }
    const call = async (name: string, args: object) => await fetch(mcp, {
      method: 'POST',
      headers: { ...headers, authorization: `Bearer ${token}` },
      body: JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'tools/call', params: { name, arguments: args } })
    })
    const [list, add] = [await call('list_notes', {}), await call('add_note', { text: 'x' })]
    await add.clone().text()
    return { listed: await list.text(), status: add.status, challenge: add.headers.get('www-authenticate') }
  }, {
    mcp: MCP,
    endpoint: found.server.token_endpoint as string,
    form: { grant_type: 'authorization_code', client_id: found.clientId, code, code_verifier: codeVerifier, redirect_uri: `${elsewhere}/callback`, resource: MCP },
    headers: MCP_HEADERS
  })
  t.match(used, { listed: /There are no notes yet/, status: 403, challenge: /^Bearer error="insufficient_scope".*scope="[^"]*write/ })
})

t.test('a web page of another origin reads and changes nothing on the pages of a signed-in user, nor frames them', async (t) => {
  const { page, expect } = await person(t)
  const program = await listen(t)
  const { id, token } = await connect(page, program, 'Target')
  const { authorizationUrl } = await client(`${program.url}/callback`, { id })
  const user = new Browser(example, 'alice')
  const before = JSON.stringify((await user.connectedApps()).apps.map(({ clientId, connections }) => [clientId, connections]))

  // The strongest attacker: another port of the same host, to whom SameSite cookies go along.
  const { url: elsewhere } = await listen(t, { host: 'localhost' })
  await page.goto(elsewhere)
  expect(/blocked by CORS policy/, /^failed: (GET|POST) .* net::ERR_(FAILED|ABORTED)$/, /status of 403/, /^console: Failed to load resource: net::ERR_FAILED$/)
  const [consent, apps] = [authorizationUrl(), APPS]
  const requests = [
    { url: consent },
    { url: apps },
    { url: apps, headers: { accept: 'application/json' } },
    ...['', 'guessed'].flatMap((ticket) => [
      { url: `${example.url}/oauth/authorize`, body: { ticket, decision: 'approve', scope: 'read' } },
      { url: apps, body: { ticket, client: id } },
      { url: apps, body: { ticket, name: 'Planted', scope: 'read' } }
    ])
  ]
  const seen = new Set<string>()
  page.on('response', (response) => { if (response.url().startsWith(example.url)) seen.add(`${response.request().method()} ${new URL(response.url()).pathname} ${response.status()}`) })
  for (const request of requests) {
    for (const mode of ['cors', 'no-cors'] as const) {
      const read = await page.evaluate(async ({ url, body, headers, mode }) => {
        const init = { credentials: 'include' as const, mode, ...(headers && { headers }), ...(body && { method: 'POST', body: new URLSearchParams(body) }) }
        return await fetch(url, init).then(async (response) => `${response.status}${await response.text()}${[...response.headers].join()}`, () => 'refused')
      }, { body: undefined, headers: undefined, ...request, mode })
      t.equal(read, mode === 'cors' ? 'refused' : '0', `${mode} ${JSON.stringify(request)}`)
    }
  }
  t.strictSame([...seen].sort(), ['GET /my/connected_apps 200', 'GET /oauth/authorize 200', 'POST /my/connected_apps 403', 'POST /oauth/authorize 403'],
    'the cookie went along: who is signed out is sent to sign in')

  // A form needs nobody's leave to post.
  for (const fields of [{ client: id }, { name: 'Planted', scope: 'read' }]) {
    await page.goto(elsewhere)
    await page.setContent(`<form method="post" action="${apps}">${Object.entries(fields).map(([name, value]) => `<input name="${name}" value="${value}">`).join('')}<button>Win a prize</button></form>`)
    await page.getByRole('button').click()
    await page.getByRole('heading', { name: 'That did not work' }).waitFor()
  }
  t.equal(JSON.stringify((await user.connectedApps()).apps.map(({ clientId, connections }) => [clientId, connections])), before)
  t.notOk((await user.connectedApps()).personalTokens.some((entry) => (entry as { name: string }).name === 'Planted'))
  t.equal(await listNotes(token), 200)

  expect(/frame-ancestors/, /^failed: GET .* net::ERR_BLOCKED_BY_RESPONSE$/)
  await page.goto(elsewhere)
  await page.setContent(`<iframe src="${consent.replaceAll('&', '&amp;')}"></iframe><iframe src="${apps}"></iframe>`)
  await page.waitForTimeout(500)
  for (const frame of page.frames().slice(1)) t.equal(await frame.locator('form').count(), 0, 'no frame shows a form')
  t.equal(page.frames().length, 3)
})

t.test('no browser complained of anything else', async (t) => {
  t.strictSame(troubles, [])
})
