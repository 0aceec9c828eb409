import Fastify, { type FastifyInstance, type FastifyServerOptions } from 'fastify'
import { createHash, randomBytes } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Test } from 'tap'
import mcpOAuth, { type McpOAuthOptions } from '../dist/index.js'
import { sqliteStore } from '../dist/store/sqlite.js'

export const KEY = 'k'.repeat(43)
export const ISSUER = 'http://localhost:3000'
export const CALLBACK = 'http://127.0.0.1:33418/callback'

/** A folder that is gone when the process is. */
export function folder (): string {
  return mkdtempSync(join(folders, 'data-'))
}

const folders = mkdtempSync(join(tmpdir(), 'mcp-oauth-'))
process.once('exit', () => rmSync(folders, { recursive: true, force: true }))

/**
 * Puts a function in the place of another until the test ends, or until `restore`. `t.capture` and `t.intercept` note each
 * call with its stack, and what every request calls is called ten thousand times.
 */
export function replace<T extends object, K extends keyof T> (t: Test, object: T, name: K, replacement: T[K]): { restore: () => void } {
  const original = object[name]
  const restore = (): void => { object[name] = original }
  object[name] = replacement
  t.teardown(restore)
  return { restore }
}

/** Complete options for an app in which `x-user: alice` is signed in as alice. */
export function testOptions (overrides: Partial<McpOAuthOptions> = {}): McpOAuthOptions {
  return {
    issuer: ISSUER,
    keys: [KEY],
    store: sqliteStore({ path: join(folder(), 'tokens.db') }),
    scopes: { read: 'Read your notes', write: 'Change your notes' },
    resources: [{ path: '/mcp', name: 'Notes' }],
    currentUser: ({ headers }) => typeof headers['x-user'] === 'string' && headers['x-user'] !== '' ? { id: headers['x-user'] } : null,
    loginUrl: '/login',
    rateLimit: false,
    ...overrides
  }
}

/** A host app with the plugin and a guarded POST /mcp, closed with the test. */
export async function testApp (t: Test, overrides: Partial<McpOAuthOptions> = {}, server: FastifyServerOptions = {}, { resource }: { resource?: string } = {}): Promise<FastifyInstance> {
  const app = Fastify(server)
  t.teardown(() => app.close())
  await app.register(mcpOAuth, testOptions(overrides))
  app.post('/mcp', { onRequest: app.oauth.protect({ scopes: ['read'], ...(resource !== undefined && { resource }) }) }, async ({ oauth }) => ({ userId: oauth!.userId, scopes: oauth!.scopes }))
  app.post('/write', { onRequest: app.oauth.protect(resource === undefined ? {} : { resource }) }, async ({ oauth }) => {
    oauth!.require('write')
    return { written: true }
  })
  await app.ready()
  return app
}

export function pkce (): { codeVerifier: string, codeChallenge: string } {
  const codeVerifier = randomBytes(32).toString('base64url')
  return { codeVerifier, codeChallenge: createHash('sha256').update(codeVerifier).digest('base64url') }
}

export const FORM = { 'content-type': 'application/x-www-form-urlencoded' }

export function form (values: Record<string, string | string[]>): string {
  return new URLSearchParams(Object.entries(values).flatMap(([name, value]) => [value].flat().map((one): [string, string] => [name, one]))).toString()
}

/** The steps of the flow over `app.inject`, each to be taken apart by a test. */
export function dance (app: FastifyInstance, user = 'alice') {
  const { codeVerifier, codeChallenge } = pkce()
  const paths = { register: '/oauth/register', authorize: '/oauth/authorize', token: '/oauth/token' }

  const register = async (metadata: object = {}) => await app.inject({
    method: 'POST', url: paths.register, payload: { client_name: 'Test client', redirect_uris: [CALLBACK], ...metadata }
  })
  const clientId = async (metadata: object = {}): Promise<string> => (await register(metadata)).json<{ client_id: string }>().client_id
  const query = (client: string, changes: Record<string, string> = {}): Record<string, string> => ({
    response_type: 'code', client_id: client, redirect_uri: CALLBACK, code_challenge: codeChallenge, code_challenge_method: 'S256', state: 'xyz', ...changes
  })
  const authorize = async (client: string, changes: Record<string, string> = {}, headers: Record<string, string> = { 'x-user': user }) =>
    await app.inject({ url: `${paths.authorize}?${form(query(client, changes))}`, headers })
  const ticket = async (client: string, changes: Record<string, string> = {}): Promise<string> => fieldOf((await authorize(client, changes)).body, 'ticket')
  const consent = async (fields: Record<string, string | string[]>, headers: Record<string, string> = { 'x-user': user }) =>
    await app.inject({ method: 'POST', url: paths.authorize, headers: { ...FORM, ...headers }, payload: form(fields) })
  const code = async (client: string, changes: Record<string, string> = {}, scope: string[] = ['read', 'write']): Promise<string> => {
    const { headers } = await consent({ ticket: await ticket(client, changes), decision: 'approve', scope })
    return new URL(String(headers.location)).searchParams.get('code') ?? ''
  }
  const redeem = async (client: string, code: string, changes: Record<string, string> = {}) => await app.inject({
    method: 'POST',
    url: paths.token,
    headers: FORM,
    payload: form({ grant_type: 'authorization_code', client_id: client, code, redirect_uri: CALLBACK, code_verifier: codeVerifier, ...changes })
  })
  const connect = async (metadata: object = {}) => {
    const client = await clientId(metadata)
    const { access_token: token, scope } = (await redeem(client, await code(client))).json<{ access_token: string, scope: string }>()
    return { clientId: client, token, scope }
  }
  return { codeVerifier, codeChallenge, register, clientId, query, authorize, ticket, consent, code, redeem, connect }
}

/** The value of the first form field of that name. */
export function fieldOf (html: string, name: string): string {
  return html.match(new RegExp(`name="${name}" value="([^"]*)"`))?.[1] ?? ''
}

export function bearer (token: string): { authorization: string } {
  return { authorization: `Bearer ${token}` }
}
