import { Client as ClientV2, InsufficientScopeError, StreamableHTTPClientTransport as TransportV2 } from '@modelcontextprotocol/client'
import cookie from '@fastify/cookie'
import formbody from '@fastify/formbody'
import Fastify, { type FastifyPluginAsync } from 'fastify'
import * as oauth from 'oauth4webapi'
import * as openidClient from 'openid-client'
import { createHash, randomBytes } from 'node:crypto'
import { rmSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import mcpOAuth, { type AuditEvent, type McpOAuthOptions } from '../dist/index.js'
import { folder, testOptions } from './app.js'
import { Browser, callMcp, callTool, mcpResult, startExample, type Decision } from './example.js'
import { Network } from './network.js'
import { SDKS } from './sdk.js'
import { freePort } from './scripts/free-port.js'

// Real clients against the real example, over HTTP. Rate limits are off: what a minute of tests does, no user does.
const UNLIMITED = { env: { RATE_LIMIT: 'off' } }
const CALLBACK = 'http://127.0.0.1:33418/callback'

/** What a promise rejects with, which must be of that class. */
async function refusal<T extends Error> (t: Test, promise: Promise<unknown>, type: abstract new (...args: never[]) => T): Promise<T> {
  const error = await promise.then(() => undefined, (error: unknown) => error)
  if (!(error instanceof type)) {
    t.error(error)
    throw new Error(`expected ${type.name}, got ${String(error)}`)
  }
  t.pass(`refused with ${type.name}`)
  return error
}

t.test('oauth4webapi finds its way from the URL of the MCP server to a guarded call, and checks iss', async (t) => {
  const example = await startExample(t, UNLIMITED)
  const insecure = { [oauth.allowInsecureRequests]: true }
  const resource = new URL(`${example.url}/mcp`)

  const refused = await callMcp(resource.href, undefined, 'tools/list')
  t.equal(refused.status, 401)
  const challenged = await refusal(t, oauth.protectedResourceRequest('none', 'POST', resource, undefined, '{}', insecure), oauth.WWWAuthenticateChallengeError)
  t.match(challenged.cause[0], { scheme: 'bearer', parameters: { error: 'invalid_token', resource_metadata: `${example.url}/.well-known/oauth-protected-resource/mcp` } })

  const { authorization_servers: [issuer] = [], resource: named } = await oauth.processResourceDiscoveryResponse(resource,
    await oauth.resourceDiscoveryRequest(resource, insecure))
  t.equal(named, resource.href, 'byte for byte what the user gave the client')
  t.equal(issuer, example.url)

  const issuerUrl = new URL(issuer!)
  const as = await oauth.processDiscoveryResponse(issuerUrl,
    await oauth.discoveryRequest(issuerUrl, { ...insecure, algorithm: 'oauth2' }))
  t.equal(as.authorization_response_iss_parameter_supported, true)

  const client: oauth.Client = await oauth.processDynamicClientRegistrationResponse(
    await oauth.dynamicClientRegistrationRequest(as, { client_name: 'oauth4webapi', redirect_uris: [CALLBACK], token_endpoint_auth_method: 'none' }, insecure))

  const codeVerifier = oauth.generateRandomCodeVerifier()
  const state = oauth.generateRandomState()
  const authorizationUrl = new URL(as.authorization_endpoint!)
  authorizationUrl.search = new URLSearchParams({
    client_id: client.client_id,
    redirect_uri: CALLBACK,
    response_type: 'code',
    scope: 'read write',
    code_challenge: await oauth.calculatePKCECodeChallenge(codeVerifier),
    code_challenge_method: 'S256',
    state,
    resource: resource.href
  }).toString()

  const alice = new Browser(example, 'alice')
  const callback = await alice.authorize(authorizationUrl)
  t.equal(callback.origin + callback.pathname, CALLBACK)
  t.equal(callback.searchParams.get('iss'), issuer)
  const parameters = oauth.validateAuthResponse(as, client, callback, state)

  const elsewhere = new URL(callback)
  elsewhere.searchParams.set('iss', 'https://evil.example')
  t.throws(() => oauth.validateAuthResponse(as, client, elsewhere, state), { message: /"iss"/ }, 'the answer of another server is refused')
  elsewhere.searchParams.delete('iss')
  t.throws(() => oauth.validateAuthResponse(as, client, elsewhere, state), { message: /"iss"/ }, 'and so is one without iss')

  const redeem = async (): Promise<oauth.TokenEndpointResponse> => await oauth.processAuthorizationCodeResponse(as, client,
    await oauth.authorizationCodeGrantRequest(as, client, oauth.None(), parameters, CALLBACK, codeVerifier, {
      ...insecure, additionalParameters: { resource: resource.href }
    }))
  const token = await redeem()
  t.match(token, { token_type: 'bearer', scope: 'read write' })
  t.notOk('refresh_token' in token, 'refresh is off')
  t.notOk('expires_in' in token, 'it lives until it is revoked')

  const guarded = await oauth.protectedResourceRequest(token.access_token, 'POST', resource, new Headers({
    'content-type': 'application/json', accept: 'application/json, text/event-stream'
  }), JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'tools/list' }), insecure)
  const { tools } = await mcpResult<{ tools: Array<{ name: string }> }>(guarded)
  t.strictSame(tools.map(({ name }) => name).sort(), ['add_note', 'list_notes'])
  t.equal(await callTool(resource.href, token.access_token, 'add_note', { text: 'by oauth4webapi' }), 'Added.')
  t.equal(await callTool(resource.href, token.access_token, 'list_notes'), '- by oauth4webapi')

  await t.test('a code that is presented twice is refused, and ends what it was redeemed for', async (t) => {
    t.match(await refusal(t, redeem(), oauth.ResponseBodyError), { error: 'invalid_grant', status: 400 })
    const after = await callMcp(resource.href, token.access_token, 'tools/list')
    t.equal(after.status, 401)
    t.match(after.headers.get('www-authenticate'), /^Bearer .*error="invalid_token"/)
    t.strictSame((await alice.connectedApps()).apps, [])
    t.match(await refusal(t, redeem(), oauth.ResponseBodyError), { error: 'invalid_grant' }, 'a third time changes nothing')
  })

  await t.test('a refusal reaches the client as access_denied, with state and iss', async (t) => {
    const denied = await alice.authorize(authorizationUrl, { decision: 'deny' })
    t.match(await refusal(t, (async () => oauth.validateAuthResponse(as, client, denied, state))(), oauth.AuthorizationResponseError), { error: 'access_denied' })
    t.equal(denied.searchParams.get('iss'), issuer)
    t.equal(denied.searchParams.get('state'), state)
    t.notOk(denied.searchParams.has('code'))
  })
})

for (const sdk of SDKS) {
  t.test(`${sdk.name} connects with nothing but the URL, steps up, and connects again after a disconnect`, async (t) => {
    const example = await startExample(t, UNLIMITED)
    const url = `${example.url}/mcp`
    const alice = new Browser(example, 'alice')
    const provider = sdk.provider()

    const first = sdk.session(url, provider)
    await refusal(t, first.connect(), sdk.Unauthorized)
    const { asked, callback } = await provider.askUser(alice)
    t.strictSame(asked, ['read'], 'for what the first challenge names, and no more')
    await first.finishAuth(callback)
    await first.close()
    t.equal(provider.tokens()?.scope, 'read')

    const session = sdk.session(url, provider)
    t.teardown(async () => await session.close())
    await session.connect()
    t.strictSame((await session.listTools()).sort(), ['add_note', 'list_notes'])
    t.equal(await session.call('list_notes'), 'There are no notes yet.')
    const readOnly = provider.tokens()!.access_token

    await t.test('a tool that needs more gets a challenge which names all that is needed', async (t) => {
      const refused = await callMcp(url, readOnly, 'tools/call', { name: 'add_note', arguments: { text: 'no' } })
      t.equal(refused.status, 403)
      const challenge = refused.headers.get('www-authenticate') ?? ''
      t.match(challenge, /^Bearer error="insufficient_scope"/)
      t.match(challenge, /scope="read write"/)
      t.ok(challenge.includes(`resource_metadata="${example.url}/.well-known/oauth-protected-resource/mcp"`))
    })

    await t.test('a step-up that the user refuses leaves the tool refused and the connection as it was', async (t) => {
      await refusal(t, session.call('add_note', { text: 'no' }), sdk.Unauthorized)
      const { asked, callback } = await provider.askUser(alice, { scopes: ['read'] })
      t.strictSame(asked, ['read', 'write'])
      await session.finishAuth(callback)
      t.equal(provider.tokens()?.scope, 'read')
      t.match(await refusal(t, session.call('add_note', { text: 'no' }), sdk.afterRefusedStepUp.error), { message: sdk.afterRefusedStepUp.message })
      t.equal(provider.authorizationUrl !== undefined, sdk.afterRefusedStepUp.again)
      provider.authorizationUrl = undefined
      t.equal(await session.call('list_notes'), 'There are no notes yet.')
    })

    await t.test('a step-up that the user allows makes both tools work', async (t) => {
      await refusal(t, session.call('add_note', { text: 'no' }), sdk.Unauthorized)
      const { asked, callback } = await provider.askUser(alice)
      t.strictSame(asked, ['read', 'write'], 'what it had is asked for again')
      await session.finishAuth(callback)
      t.equal(provider.tokens()?.scope, 'read write')
      t.equal(await session.call('add_note', { text: `by ${sdk.name}` }), 'Added.')
      t.equal(await session.call('list_notes'), `- by ${sdk.name}`)
    })

    await t.test('a disconnect ends every token at once, and a new consent brings the app back', async (t) => {
      const { apps } = await alice.connectedApps()
      t.equal(apps.length, 1)
      t.match(apps[0], { name: provider.clientMetadata.client_name, connections: 3 })
      const { access_token: latest } = provider.tokens()!
      t.match(await alice.disconnect(apps[0]!.clientId), /Disconnected/)
      t.strictSame((await alice.connectedApps()).apps, [])

      for (const token of [readOnly, latest]) t.equal((await callMcp(url, token, 'tools/list')).status, 401)
      await refusal(t, session.call('list_notes'), sdk.Unauthorized)
      const { callback } = await provider.askUser(alice)
      await session.finishAuth(callback)
      t.equal(await session.call('list_notes'), `- by ${sdk.name}`)
      t.equal(provider.registrations, 1, 'under the client id that it had')
      t.not(provider.tokens()!.access_token, latest)
    })

    await t.test('a consent that the user denies is reported as such', async (t) => {
      const denied = sdk.session(url, provider)
      t.teardown(async () => await denied.close())
      provider.invalidateCredentials('tokens')
      await refusal(t, denied.connect(), sdk.Unauthorized)
      const { callback } = await provider.askUser(alice, { decision: 'deny' })
      t.equal(callback.searchParams.get('error'), 'access_denied')
      await t.rejects(denied.finishAuth(callback))
      t.equal(provider.tokens(), undefined)
    })

    await t.test('a client id that the server knows no more is forgotten, and the next connection registers again', async (t) => {
      const forgotten = sdk.session(url, provider)
      t.teardown(async () => await forgotten.close())
      await refusal(t, forgotten.connect(), sdk.Unauthorized)
      const { callback } = await provider.askUser(alice)
      await example.stop()
      rmSync(join(example.dataDir, 'oauth-key'))
      await startExample(t, { ...UNLIMITED, dataDir: example.dataDir, port: example.port })
      await t.rejects(forgotten.finishAuth(callback))
      t.strictSame([provider.clientInformation(), provider.tokens(), provider.registrations], [undefined, undefined, 1])

      const next = sdk.session(url, provider)
      t.teardown(async () => await next.close())
      await refusal(t, next.connect(), sdk.Unauthorized)
      await next.finishAuth((await provider.askUser(alice)).callback)
      const again = sdk.session(url, provider)
      t.teardown(async () => await again.close())
      await again.connect()
      t.equal(await again.call('list_notes'), `- by ${sdk.name}`)
      t.equal(provider.registrations, 2)
    })
  })
}

/** The example again, put together here: the same sign-in and the same tools, and in a network in which clients have hosts. */
async function startInNetwork (t: Test, network: Network): Promise<{ url: string, events: AuditEvent[] }> {
  const example = async <T>(file: string): Promise<T> => await import(new URL(`../examples/mcp-server/${file}`, import.meta.url).href) as T
  const { signIn, signedInUser } = await example<{ signIn: FastifyPluginAsync, signedInUser: McpOAuthOptions['currentUser'] }>('sign-in.js')
  const { mcpEndpoint } = await example<{ mcpEndpoint: FastifyPluginAsync<{ issuer: string, notes: object }> }>('mcp.js')
  const { openNotes } = await example<{ openNotes: (dataDir: string) => object }>('notes.js')

  const port = await freePort()
  const issuer = `http://localhost:${port}`
  const events: AuditEvent[] = []
  const app = Fastify({ forceCloseConnections: true })
  t.teardown(async () => await app.close())
  await app.register(cookie, { secret: 'a secret of the tests' })
  await app.register(formbody)
  await app.register(signIn)
  await app.register(mcpOAuth, testOptions({ issuer, currentUser: signedInUser, clientIdMetadata: { agent: network }, onEvent: (event) => events.push(event) }))
  await app.register(mcpEndpoint, { issuer, notes: openNotes(folder()) })
  await app.listen({ port, host: 'localhost' })
  return { url: issuer, events }
}

for (const sdk of SDKS) {
  t.test(`${sdk.name} that is known by the URL of its metadata does not register: it connects, steps up, comes back after a disconnect, and is one entry`, async (t) => {
    const network = await Network.start(t)
    const id = network.publish('https://client.example/oauth/client.json', {
      client_id: 'https://client.example/oauth/client.json', client_name: sdk.name, redirect_uris: ['http://localhost/callback'], token_endpoint_auth_method: 'none'
    })
    const server = await startInNetwork(t, network)
    const url = `${server.url}/mcp`
    const alice = new Browser(server, 'alice')

    /** Lets a session that was refused send its user to the consent page, and answers what it asked for there. */
    const consent = async (t: Test, session: ReturnType<typeof sdk.session>, provider: ReturnType<typeof sdk.provider>): Promise<string[]> => {
      const sent = provider.authorizationUrl!.searchParams
      t.strictSame([sent.get('client_id'), sent.get('redirect_uri')], [id, 'http://localhost:8090/callback'], 'the document has no port')
      const { asked, callback } = await provider.askUser(alice)
      await session.finishAuth(callback)
      return asked
    }
    /** A new installation, connected. */
    const logIn = async (t: Test) => {
      const provider = sdk.provider(id)
      const first = sdk.session(url, provider)
      await refusal(t, first.connect(), sdk.Unauthorized)
      t.strictSame(await consent(t, first, provider), ['read'])
      await first.close()
      const session = sdk.session(url, provider)
      t.teardown(async () => await session.close())
      await session.connect()
      return { provider, session }
    }

    const { provider, session } = await logIn(t)
    t.equal(await session.call('list_notes'), 'There are no notes yet.')
    const { access_token: readOnly } = provider.tokens()!
    t.equal((await callMcp(url, readOnly, 'tools/call', { name: 'add_note', arguments: { text: 'no' } })).status, 403)
    await refusal(t, session.call('add_note', { text: 'no' }), sdk.Unauthorized)
    t.strictSame(await consent(t, session, provider), ['read', 'write'])
    t.equal(await session.call('add_note', { text: `by ${sdk.name}` }), 'Added.')

    t.match(await alice.disconnect(id), /Disconnected/)
    t.strictSame((await alice.connectedApps()).apps, [])
    t.equal((await callMcp(url, readOnly, 'tools/list')).status, 401)
    await refusal(t, session.call('list_notes'), sdk.Unauthorized)
    t.strictSame(await consent(t, session, provider), ['read'])
    t.equal(await session.call('list_notes'), `- by ${sdk.name}`)

    const again = await logIn(t)
    for (const either of [session, again.session]) t.strictSame((await either.listTools()).sort(), ['add_note', 'list_notes'])
    t.match((await alice.connectedApps()).apps, [{ clientId: id, name: sdk.name, vouchedForBy: 'client.example', connections: 2 }])
    t.equal((await alice.connectedApps()).apps.length, 1)
    t.strictSame(server.events.filter(({ type }) => type === 'client.registered'), [])
    t.strictSame(network.asked, [id], 'and its host was asked once')
  })
}

const INSECURE = { [oauth.allowInsecureRequests]: true }
const LIST_TOOLS = [new Headers({ 'content-type': 'application/json', accept: 'application/json, text/event-stream' }), JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'tools/list' })] as const

async function toolNames (response: Response): Promise<string[]> {
  return (await mcpResult<{ tools: Array<{ name: string }> }>(response)).tools.map(({ name }) => name)
}

/** What logs in as a new installation would, and answers how it lists the tools with what it keeps then. */
interface Installation { name: string, clientName: string, logIn: (t: Test, url: string, browser: Browser) => Promise<() => Promise<string[]>> }

const INSTALLATIONS: Installation[] = [
  ...SDKS.map((sdk) => ({
    name: sdk.name,
    clientName: sdk.provider().clientMetadata.client_name,
    async logIn (t: Test, url: string, browser: Browser) {
      const provider = sdk.provider()
      const session = sdk.session(url, provider)
      await refusal(t, session.connect(), sdk.Unauthorized)
      const { callback } = await provider.askUser(browser)
      await session.finishAuth(callback)
      await session.close()
      return async () => {
        const session = sdk.session(url, provider)
        await session.connect()
        const names = await session.listTools()
        await session.close()
        return names
      }
    }
  })),
  {
    name: 'oauth4webapi',
    clientName: 'a client of oauth4webapi',
    async logIn (_t, url, browser) {
      const issuer = new URL(new URL(url).origin)
      const as = await oauth.processDiscoveryResponse(issuer, await oauth.discoveryRequest(issuer, { ...INSECURE, algorithm: 'oauth2' }))
      const client: oauth.Client = await oauth.processDynamicClientRegistrationResponse(await oauth.dynamicClientRegistrationRequest(as,
        { client_name: this.clientName, redirect_uris: [CALLBACK], token_endpoint_auth_method: 'none' }, INSECURE))
      const [verifier, state] = [oauth.generateRandomCodeVerifier(), oauth.generateRandomState()]
      const callback = await browser.authorize(`${as.authorization_endpoint}?${new URLSearchParams({
        client_id: client.client_id, redirect_uri: CALLBACK, response_type: 'code', code_challenge: await oauth.calculatePKCECodeChallenge(verifier), code_challenge_method: 'S256', state, resource: url
      })}`)
      const { access_token: token } = await oauth.processAuthorizationCodeResponse(as, client, await oauth.authorizationCodeGrantRequest(as, client, oauth.None(),
        oauth.validateAuthResponse(as, client, callback, state), CALLBACK, verifier, INSECURE))
      return async () => await toolNames(await oauth.protectedResourceRequest(token, 'POST', new URL(url), ...LIST_TOOLS, INSECURE))
    }
  },
  {
    name: 'openid-client',
    clientName: 'a client of openid-client',
    async logIn (_t, url, browser) {
      const config = await openidClient.dynamicClientRegistration(new URL(new URL(url).origin), { client_name: this.clientName, redirect_uris: [CALLBACK], token_endpoint_auth_method: 'none' },
        openidClient.None(), { algorithm: 'oauth2', execute: [openidClient.allowInsecureRequests] })
      const [pkceCodeVerifier, expectedState] = [openidClient.randomPKCECodeVerifier(), openidClient.randomState()]
      const callback = await browser.authorize(openidClient.buildAuthorizationUrl(config, {
        redirect_uri: CALLBACK, code_challenge: await openidClient.calculatePKCECodeChallenge(pkceCodeVerifier), code_challenge_method: 'S256', state: expectedState, resource: url
      }))
      const { access_token: token } = await openidClient.authorizationCodeGrant(config, callback, { pkceCodeVerifier, expectedState })
      const [headers, body] = LIST_TOOLS
      return async () => await toolNames(await openidClient.fetchProtectedResource(config, token, new URL(url), 'POST', body, headers))
    }
  }
]

t.test('clients log in twice, keep their logins over a restart of the server, log in once more, and are one entry each', async (t) => {
  const example = await startExample(t, UNLIMITED)
  const alice = new Browser(example, 'alice')
  const logins = new Map<Installation, Array<() => Promise<string[]>>>(INSTALLATIONS.map((installation) => [installation, []]))
  const logIn = async (t: Test, installation: Installation): Promise<void> => {
    logins.get(installation)!.push(await installation.logIn(t, `${example.url}/mcp`, alice))
  }
  const checks = async (t: Test, installation: Installation): Promise<void> => {
    for (const listTools of logins.get(installation)!) t.strictSame((await listTools()).sort(), ['add_note', 'list_notes'])
    const entries = (await alice.connectedApps()).apps.filter(({ name }) => name === installation.clientName)
    t.equal(entries.length, 1)
    t.equal(entries[0]!.connections, logins.get(installation)!.length)
  }
  for (const installation of INSTALLATIONS) {
    await t.test(`${installation.name} logs in twice`, async (t) => {
      await logIn(t, installation)
      await logIn(t, installation)
      await checks(t, installation)
    })
  }

  await example.stop()
  await startExample(t, { ...UNLIMITED, dataDir: example.dataDir, port: example.port })
  for (const installation of INSTALLATIONS) {
    await t.test(`${installation.name} goes on after a restart, and logs in once more`, async (t) => {
      await checks(t, installation)
      await logIn(t, installation)
      await checks(t, installation)
    })
  }
  t.equal((await alice.connectedApps()).apps.length, INSTALLATIONS.length)
})

t.test('MCP SDK v2 refuses a code that comes with the iss of another server', async (t) => {
  const example = await startExample(t, UNLIMITED)
  const sdk = SDKS[1]!
  const provider = sdk.provider()
  const session = sdk.session(`${example.url}/mcp`, provider)
  t.teardown(async () => await session.close())
  await refusal(t, session.connect(), sdk.Unauthorized)
  const { callback } = await provider.askUser(new Browser(example, 'alice'))
  const mixedUp = new URL(callback)
  mixedUp.searchParams.set('iss', 'https://evil.example')
  await t.rejects(session.finishAuth(mixedUp), { name: 'IssuerMismatchError' })
  await session.finishAuth(callback)
  t.ok(provider.tokens(), 'the code was not sent anywhere, and is still good')
})

t.test('MCP SDK v2 can be told to throw instead of asking, and is told what is missing', async (t) => {
  const example = await startExample(t, UNLIMITED)
  const { token } = await connect(example.url, new Browser(example, 'alice'), bodies(1234)['Claude Code'], 'http://localhost:1234/callback', { scopes: ['read'] })
  const client = new ClientV2({ name: 'test', version: '1.0.0' })
  const transport = new TransportV2(new URL(`${example.url}/mcp`), { authProvider: { token: async () => token } })
  t.teardown(async () => await client.close())
  await client.connect(transport)
  const { requiredScope, resourceMetadataUrl } = await refusal(t, client.callTool({ name: 'add_note', arguments: { text: 'no' } }), InsufficientScopeError)
  t.equal(requiredScope, 'read write')
  t.equal(resourceMetadataUrl?.href, `${example.url}/.well-known/oauth-protected-resource/mcp`)
})

/** What these clients send, but for names and ports. */
function bodies (port: number) {
  const common = { grant_types: ['authorization_code', 'refresh_token'], response_types: ['code'], token_endpoint_auth_method: 'none' }
  return {
    'Claude Code': { client_name: 'Claude Code (notes)', redirect_uris: [`http://localhost:${port}/callback`], ...common, scope: 'read', application_type: 'native' },
    Codex: { client_name: 'Codex', redirect_uris: [`http://127.0.0.1:${port}/callback`], ...common, scope: 'read', application_type: 'native' },
    'VS Code': {
      client_name: 'Visual Studio Code',
      redirect_uris: ['https://insiders.vscode.dev/redirect', 'https://vscode.dev/redirect', 'http://127.0.0.1/', `http://127.0.0.1:${port}/`],
      ...common,
      grant_types: ['authorization_code', 'refresh_token', 'urn:ietf:params:oauth:grant-type:device_code']
    },
    Cursor: {
      client_name: 'Cursor',
      redirect_uris: ['cursor://anysphere.cursor-mcp/oauth/callback', 'https://www.cursor.com/agents/mcp/oauth/callback', `http://localhost:${port}/callback`],
      ...common
    },
    'Gemini CLI': { client_name: 'Gemini CLI MCP Client', redirect_uris: [`http://localhost:${port}/oauth/callback`], ...common, scope: '' }
  }
}

interface Registered { client_id: string, redirect_uris: string[], [name: string]: unknown }

async function register (url: string, body: object): Promise<Response> {
  return await fetch(`${url}/oauth/register`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) })
}

/** Registers, asks, and redeems, as the client would. */
async function connect (url: string, browser: Browser, body: object, redirectUri: string, decision?: Decision): Promise<{ clientId: string, token: string, scope: string }> {
  const { client_id: clientId } = await (await register(url, body)).json() as Registered
  const codeVerifier = randomBytes(32).toString('base64url')
  const query = new URLSearchParams({
    response_type: 'code',
    client_id: clientId,
    redirect_uri: redirectUri,
    code_challenge: createHash('sha256').update(codeVerifier).digest('base64url'),
    code_challenge_method: 'S256',
    state: 'a state',
    scope: 'read write',
    resource: `${url}/mcp`
  })
  const callback = await browser.authorize(`${url}/oauth/authorize?${query}`, decision)
  if (!callback.href.startsWith(`${redirectUri}?`)) throw new Error(`The code went to ${callback}`)
  const response = await fetch(`${url}/oauth/token`, {
    method: 'POST',
    body: new URLSearchParams({
      grant_type: 'authorization_code',
      client_id: clientId,
      code: callback.searchParams.get('code') ?? '',
      code_verifier: codeVerifier,
      redirect_uri: redirectUri,
      resource: `${url}/mcp`
    })
  })
  const { access_token: token, scope, error } = await response.json() as { access_token: string, scope: string, error?: string }
  if (response.status !== 200) throw new Error(`The token endpoint answered ${response.status} ${error}`)
  return { clientId, token, scope }
}

t.test('the registrations of real clients are taken as they are sent', async (t) => {
  const example = await startExample(t, UNLIMITED)
  const names = Object.keys(bodies(0)) as Array<keyof ReturnType<typeof bodies>>
  for (const name of names) {
    await t.test(`${name} registers, connects, and is one entry however often and from whichever port it does`, async (t) => {
      const alice = new Browser(example, 'alice')
      const others = (await alice.connectedApps()).apps.length

      const body = bodies(33418)[name]
      const response = await register(example.url, body)
      t.equal(response.status, 201)
      t.equal(response.headers.get('cache-control'), 'no-store')
      t.match(response.headers.get('content-type'), /^application\/json/)
      const registered = await response.json() as Registered
      const loopback = body.redirect_uris.filter((uri) => uri.startsWith('http://'))
      t.strictSame(registered.redirect_uris, loopback, 'what was really registered, with the ports as sent')
      t.match(registered, { client_name: body.client_name, grant_types: ['authorization_code'], response_types: ['code'], token_endpoint_auth_method: 'none' })
      t.strictSame(Object.entries(registered).filter(([, value]) => value === null || value === ''), [], 'no key without a value')
      t.notOk('client_secret' in registered)
      t.notOk('client_secret_expires_at' in registered)

      const redirectUri = loopback.at(-1)!
      const { clientId, token, scope } = await connect(example.url, alice, body, redirectUri)
      t.equal(clientId, registered.client_id, 'registering is the same each time')
      t.equal(scope, 'read write')
      t.equal(await callTool(`${example.url}/mcp`, token, 'add_note', { text: name }), 'Added.')
      t.match(await callTool(`${example.url}/mcp`, token, 'list_notes'), `- ${name}`)

      const again = await connect(example.url, alice, bodies(50123)[name], redirectUri.replace('33418', '50123'))
      t.equal(again.clientId, clientId, 'a port is no difference')
      t.not(again.token, token)
      const elsewhere = await connect(example.url, alice, body, redirectUri.replace('33418', '50124'))
      t.equal(elsewhere.clientId, clientId, 'neither where it listens on another port than it registered')

      const { apps } = await alice.connectedApps()
      t.equal(apps.length, others + 1)
      t.match(apps.find((app) => app.clientId === clientId), { name: body.client_name, connections: 3, scopes: ['read', 'write'] })
      for (const { token } of [again, elsewhere]) t.equal((await callMcp(`${example.url}/mcp`, token, 'tools/list')).status, 200)
    })
  }

  await t.test('nobody else is the same client: another name, host or path is another id', async (t) => {
    const [original, ...different] = await Promise.all([
      bodies(1)['Claude Code'],
      { ...bodies(1)['Claude Code'], client_name: 'Claude Code (other)' },
      { ...bodies(1)['Claude Code'], redirect_uris: ['http://127.0.0.1:1/callback'] },
      { ...bodies(1)['Claude Code'], redirect_uris: ['http://localhost:1/other'] }
    ].map(async (body) => (await (await register(example.url, body)).json() as Registered).client_id))
    t.equal(new Set([original, ...different]).size, 4)
  })
})

t.test('a user sees neither the notes nor the apps of another', async (t) => {
  const example = await startExample(t, UNLIMITED)
  const url = `${example.url}/mcp`
  const [alice, bob] = [new Browser(example, 'alice'), new Browser(example, 'bob')]
  const body = bodies(7777)['Claude Code']
  const hers = await connect(example.url, alice, body, body.redirect_uris[0]!)
  t.equal(await callTool(url, hers.token, 'add_note', { text: 'a secret of alice' }), 'Added.')
  t.strictSame((await bob.connectedApps()).apps, [])

  const his = await connect(example.url, bob, body, body.redirect_uris[0]!)
  t.equal(his.clientId, hers.clientId, 'they use the same app')
  t.equal(await callTool(url, his.token, 'list_notes'), 'There are no notes yet.')
  t.equal(await callTool(url, his.token, 'add_note', { text: 'of bob' }), 'Added.')
  t.equal(await callTool(url, hers.token, 'list_notes'), '- a secret of alice')
  t.equal(await callTool(url, his.token, 'list_notes'), '- of bob')

  await bob.disconnect(his.clientId)
  t.equal((await callMcp(url, his.token, 'tools/list')).status, 401)
  t.equal((await callMcp(url, hers.token, 'tools/list')).status, 200, 'his disconnect is his alone')

  const consent = await alice.openConsent(`${example.url}/oauth/authorize?${new URLSearchParams({
    response_type: 'code', client_id: hers.clientId, redirect_uri: body.redirect_uris[0]!, code_challenge: 'x'.repeat(43), code_challenge_method: 'S256'
  })}`)
  alice.cookies.clear()
  await new Browser(example, 'bob').signIn()
  await t.rejects(consent.submit(), /403/, 'a consent page is worth nothing once its user is signed out')
})
