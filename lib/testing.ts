import type { FastifyInstance, InjectOptions } from 'fastify'
import { hash, randomBytes } from 'node:crypto'
import './fastify.js'
import type { CreateTokenOptions } from './grants/tokens.js'

/** Those of `tokens.create()`; the name is `test` by default. */
export type MintTokenOptions = Omit<CreateTokenOptions, 'name'> & Partial<Pick<CreateTokenOptions, 'name'>>

export interface ConnectClientOptions {
  /** What makes a request your signed-in user's: usually `{ cookie: '…' }`. */
  headers: Record<string, string>
  /** Scopes to ask for, and to tick. Default: all. */
  scopes?: readonly string[]
  /** Default 'Test client'. */
  clientName?: string
  /** URL of the resource. Default: the first one of the app. */
  resource?: string
}

export interface ConnectedClient {
  clientId: string
  accessToken: string
  /** What was granted. */
  scopes: string[]
  /** `{ authorization: 'Bearer …' }`, for `app.inject`. */
  headers: { authorization: string }
}

/** A token for a user, without any dance. */
export async function mintToken (app: FastifyInstance, options: MintTokenOptions): Promise<string> {
  await app.ready()
  const { token } = await app.oauth.tokens.create({ name: 'test', ...options })
  return token
}

/**
 * Connects a client as a real one does, consent included, over `app.inject`.
 *
 * @throws Error that names the step and holds its answer
 */
export async function connectClient (app: FastifyInstance, { headers, scopes, clientName = 'Test client', resource }: ConnectClientOptions): Promise<ConnectedClient> {
  const redirectUri = 'http://127.0.0.1:1/callback'
  const codeVerifier = randomBytes(32).toString('base64url')
  const ask = async (step: string, expected: number, options: InjectOptions) => {
    const response = await app.inject(options)
    if (response.statusCode !== expected) throw new Error(`connectClient: ${step} answered ${response.statusCode}, not ${expected}: ${String(response.headers.location ?? '')} ${response.body.slice(0, 500)}`)
    return response
  }
  const form = (values: Array<[string, string]>): Pick<InjectOptions, 'headers' | 'payload'> => ({
    headers: { ...headers, 'content-type': 'application/x-www-form-urlencoded' }, payload: new URLSearchParams(values).toString()
  })

  // Discovery, as far as a test needs it: the issuer may have a path, and the endpoints follow it.
  // Where all resources are elsewhere there is no such document, and the issuer is taken to have no path.
  const protectedResource = await app.inject('/.well-known/oauth-protected-resource')
  const issuer = protectedResource.statusCode === 200 ? protectedResource.json<{ authorization_servers: [string] }>().authorization_servers[0] : 'http://localhost'
  const issuerPath = new URL(issuer).pathname.replace(/\/$/, '')
  const server = (await ask('the server metadata', 200, { url: `/.well-known/oauth-authorization-server${issuerPath}` })).json<Record<string, string>>()
  const path = (endpoint: string): string => new URL(server[endpoint]!).pathname

  const registered = await ask('registration', 201, { method: 'POST', url: path('registration_endpoint'), payload: { client_name: clientName, redirect_uris: [redirectUri] } })
  const { client_id: clientId } = registered.json<{ client_id: string }>()

  const query = new URLSearchParams({
    response_type: 'code',
    client_id: clientId,
    redirect_uri: redirectUri,
    code_challenge: hash('sha256', codeVerifier, 'base64url'),
    code_challenge_method: 'S256',
    ...(scopes !== undefined && { scope: scopes.join(' ') }),
    ...(resource !== undefined && { resource })
  })
  const consent = await ask('the consent page', 200, { url: `${path('authorization_endpoint')}?${query}`, headers })
  const fields = [...consent.body.matchAll(/name="(ticket|scope)" value="([^"]*)"/g)].map(([, name, value]): [string, string] => [name!, value!])
  const approved = await ask('consent', 303, { method: 'POST', url: path('authorization_endpoint'), ...form([...fields, ['decision', 'approve']]) })

  const code = new URL(String(approved.headers.location)).searchParams.get('code') ?? ''
  const issued = await ask('the token endpoint', 200, {
    method: 'POST',
    url: path('token_endpoint'),
    ...form([['grant_type', 'authorization_code'], ['client_id', clientId], ['code', code], ['redirect_uri', redirectUri], ['code_verifier', codeVerifier]])
  })
  const { access_token: accessToken, scope } = issued.json<{ access_token: string, scope: string }>()
  return { clientId, accessToken, scopes: scope.split(' '), headers: { authorization: `Bearer ${accessToken}` } }
}
