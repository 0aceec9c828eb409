import { once } from 'node:events'
import t, { type Test } from 'tap'
import { fetchPublic } from '../dist/connections/index.js'
import { fetchFor } from '../dist/connections/servers.js'
import { startLocal, startRemote, type Local } from './connections.js'
import { Network, PUBLIC } from './network.js'

// Servers whose addresses users have typed in: what they name is asked for, and nothing that is not public.

const URL_OF_ALICE = 'https://mcp.client.example/mcp'
const RESOURCE_METADATA = 'https://mcp.client.example/.well-known/oauth-protected-resource/mcp'
const LOGIN = 'https://login.client.example'
const METADATA = `${LOGIN}/.well-known/oauth-authorization-server`

/** A server of alice's, with an authorization server of its own, on a network where both have public addresses. */
async function typedIn (t: Test, url = URL_OF_ALICE): Promise<{ network: Network, local: Local, begin: () => Promise<{ status: number, location: string, html: string }> }> {
  const network = await Network.start(t)
  network.catchAll(t)
  network.publish(RESOURCE_METADATA, { resource: URL_OF_ALICE, authorization_servers: [LOGIN] })
  network.publish(METADATA, {
    issuer: LOGIN, authorization_endpoint: `${LOGIN}/authorize`, token_endpoint: `${LOGIN}/token`, registration_endpoint: `${LOGIN}/register`, response_types_supported: ['code'], code_challenge_methods_supported: ['S256']
  })
  network.publish(`${LOGIN}/register`, (_request, response) => response.writeHead(201, { 'content-type': 'application/json' }).end(JSON.stringify({ client_id: 'digest', redirect_uris: ['http://localhost/'] })))
  network.publish(`${LOGIN}/token`, (_request, response) => response.setHeader('content-type', 'application/json').end(JSON.stringify({ access_token: 'secret of alice', token_type: 'bearer' })))
  const local = await startLocal(t, { mine: { url, userSupplied: true } })
  return { network, local, begin: async () => await local.press('alice', { connect: 'mine' }) }
}

t.test('a server that a user typed in is connected', async (t) => {
  const { network, local, begin } = await typedIn(t)
  const { location } = await begin()
  t.match(location, /^https:\/\/login\.client\.example\/authorize\?/)
  const state = new URL(location).searchParams.get('state')!
  t.equal((await local.visit(`/my/connections/callback/mine?${new URLSearchParams({ state, code: 'xyz' }).toString()}`, 'alice')).status, 303)
  t.match(await local.connections.list('alice'), [{ server: 'mine', state: 'connected', expiresAt: null }])
  t.equal((await local.connections.provider('alice', 'mine').tokens()).access_token, 'secret of alice')
  t.strictSame([...new Set(network.connections)], [PUBLIC])
  t.strictSame([...new Set(network.asked)].sort(), [METADATA, `${LOGIN}/register`, `${LOGIN}/token`, RESOURCE_METADATA].sort())
})

for (const address of ['127.0.0.1', '10.0.0.1', '169.254.169.254', '192.168.1.1', '::1', 'fd00::1', '::ffff:127.0.0.1', '0.0.0.0']) {
  for (const [whose, name] of [['it', 'mcp.client.example'], ['its authorization server', 'login.client.example']] as const) {
    t.test(`${whose} is at ${address}: nothing is asked there`, async (t) => {
      const { network, local, begin } = await typedIn(t)
      network.names.set(name, [[address]])
      t.match(await begin(), { status: 503, html: /cannot be connected at present/ })
      t.strictSame(network.connections.filter((connected) => connected !== PUBLIC), [])
      t.equal(local.rows(), 0)
    })
  }
}

t.test('nor is anything asked without TLS, or by an address in place of a name', async (t) => {
  const remote = await startRemote(t)
  let asked = 0
  remote.app.server.on('connection', () => { asked += 1 })
  for (const url of [remote.url, remote.url.replace('localhost', '127.0.0.1'), 'https://10.0.0.1/mcp', 'https://[::1]/mcp', 'https://localhost/mcp']) {
    const { network, begin } = await typedIn(t, url)
    t.equal((await begin()).status, 503, url)
    t.strictSame(network.connections, [], url)
  }
  t.equal(asked, 0)
})

t.test('redirects lead to no other host, and what is too long is not read', async (t) => {
  for (const [title, page] of [
    ['a redirect', (_request, response) => response.writeHead(302, { location: 'https://other.client.example/elsewhere' }).end()],
    ['a megabyte', (_request, response) => response.setHeader('content-type', 'application/json').end(JSON.stringify({ resource: URL_OF_ALICE, authorization_servers: [LOGIN], padding: 'x'.repeat(1_000_000) }))]
  ] as Array<[string, Parameters<Network['publish']>[1]]>) {
    const { network, begin } = await typedIn(t)
    network.publish(RESOURCE_METADATA, page)
    network.publish('https://other.client.example/elsewhere', { resource: URL_OF_ALICE, authorization_servers: [LOGIN] })
    await begin()
    t.ok(network.asked.includes(RESOURCE_METADATA), title)
    t.notOk(network.asked.includes('https://other.client.example/elsewhere'), title)
    t.notOk(network.asked.includes(METADATA), `${title}: what it named is not believed`)
  }
})

t.test('a server that is on https leads nobody into this computer, or into the open', async (t) => {
  const remote = await startRemote(t)
  let asked = 0
  remote.app.server.on('connection', () => { asked += 1 })
  for (const url of [remote.origin, 'http://notes.example/token', 'file:///etc/passwd', 'data:,x']) {
    await t.rejects(fetchFor({ url: 'https://notes.example/mcp' })(url), { message: /is not https/ }, url)
    if (url !== remote.origin) await t.rejects(fetchFor({ url: remote.url })(url), { message: /is not https/ }, url)
  }
  t.equal(asked, 0)
  t.equal((await fetchFor({ url: remote.url })(remote.origin)).status, 404, 'where the server is there itself, it may')
})

t.test('fetchPublic is fetch behind the same fence, for transports', async (t) => {
  const network = await Network.start(t)
  network.catchAll(t)
  const seen: unknown[] = []
  network.publish('https://mcp.client.example/echo', (request, response) => {
    let body = ''
    request.on('data', (chunk) => { body += String(chunk) }).on('end', () => {
      seen.push([request.method, request.headers['x-test'], body])
      response.writeHead(202, { 'content-type': 'text/plain', 'set-cookie': ['a=1', 'b=2'] }).end('echo')
    })
  })
  const response = await fetchPublic('https://mcp.client.example/echo', { method: 'POST', headers: { 'x-test': 'yes' }, body: new URLSearchParams({ a: 'b' }) })
  t.strictSame([response.status, response.headers.getSetCookie(), await response.text(), seen], [202, ['a=1', 'b=2'], 'echo', [['POST', 'yes', 'a=b']]])
  network.publish('https://mcp.client.example/none', (_request, response) => response.writeHead(204).end())
  t.strictSame([(await fetchPublic('https://mcp.client.example/none')).status, seen.length], [204, 1])
  network.publish('https://mcp.client.example/away', (_request, response) => response.writeHead(307, { location: 'https://mcp.client.example/echo' }).end())
  t.equal((await fetchPublic('https://mcp.client.example/away')).status, 307)

  // One that goes on: read as it comes, and ended by whoever reads.
  network.publish('https://mcp.client.example/stream', (_request, response) => { response.writeHead(200, { 'content-type': 'text/event-stream' }).write('data: 1\n\n') })
  const ending = new AbortController()
  const stream = await fetchPublic('https://mcp.client.example/stream', { signal: ending.signal })
  const reader = stream.body!.getReader()
  t.equal(Buffer.from((await reader.read()).value!).toString(), 'data: 1\n\n')
  ending.abort()
  await t.rejects(reader.read())
  for (const url of ['http://mcp.client.example/echo', 'https://127.0.0.1/echo', 'https://nowhere.example/']) await t.rejects(fetchPublic(url), url)
})

t.test('fetchPublic is done with a server that switches protocols', { timeout: 10_000 }, async (t) => {
  const network = await Network.start(t)
  network.catchAll(t)
  const url = network.publish('https://mcp.client.example/mcp', ({ socket }) => { socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n') })
  await t.rejects(fetchPublic(url, { method: 'POST', body: '{}' }), { message: `${url} ended without an answer` })
})

t.test('and reads nothing where there is no body, though one comes', { timeout: 10_000 }, async (t) => {
  const network = await Network.start(t)
  network.catchAll(t)
  let closed: Promise<unknown> | undefined
  const url = network.publish('https://mcp.client.example/mcp', (_request, response) => {
    // To be cut off may be an error here.
    response.socket!.on('error', () => {})
    closed = once(response, 'close')
    response.writeHead(205).write('and so on')
  })
  const response = await fetchPublic(url)
  t.strictSame([response.status, await response.text()], [205, ''])
  await closed
})
