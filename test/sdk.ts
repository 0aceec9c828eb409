import { Client as ClientV2, StreamableHTTPClientTransport as TransportV2, UnauthorizedError as UnauthorizedErrorV2, type OAuthClientProvider as ProviderV2, type OAuthDiscoveryState, type StoredOAuthClientInformation, type StoredOAuthTokens } from '@modelcontextprotocol/client'
import { UnauthorizedError as UnauthorizedErrorV1, type OAuthClientProvider as ProviderV1 } from '@modelcontextprotocol/sdk/client/auth.js'
import { Client as ClientV1 } from '@modelcontextprotocol/sdk/client/index.js'
import { StreamableHTTPClientTransport as TransportV1, StreamableHTTPError } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import type { OAuthClientInformationMixed, OAuthTokens } from '@modelcontextprotocol/sdk/shared/auth.js'
import { randomBytes } from 'node:crypto'
import type { Browser, Decision } from './example.js'

/** What a client keeps between two starts. Serves both SDKs, whose interfaces differ in types only. */
export class Memory<Information, Tokens, Discovery> {
  readonly redirectUrl = 'http://localhost:8090/callback'
  readonly clientMetadata: { client_name: string, redirect_uris: string[], grant_types: string[], response_types: string[], token_endpoint_auth_method: string }
  #information: Information | undefined
  #tokens: Tokens | undefined
  #codeVerifier = ''
  #discovery: Discovery | undefined
  #state = ''
  /** Where the user was last sent. */
  authorizationUrl: URL | undefined
  registrations = 0
  /** Where its host says what it is, if it has one. */
  readonly clientMetadataUrl: string | undefined

  constructor (name: string, clientMetadataUrl?: string) {
    this.clientMetadataUrl = clientMetadataUrl
    this.clientMetadata = {
      client_name: name,
      redirect_uris: [this.redirectUrl],
      grant_types: ['authorization_code', 'refresh_token'],
      response_types: ['code'],
      token_endpoint_auth_method: 'none'
    }
  }

  state (): string {
    this.#state = randomBytes(16).toString('hex')
    return this.#state
  }

  clientInformation (): Information | undefined { return this.#information }
  saveClientInformation (information: Information): void {
    this.#information = information
    this.registrations += 1
  }

  tokens (): Tokens | undefined { return this.#tokens }
  saveTokens (tokens: Tokens): void { this.#tokens = tokens }
  codeVerifier (): string { return this.#codeVerifier }
  saveCodeVerifier (codeVerifier: string): void { this.#codeVerifier = codeVerifier }
  discoveryState (): Discovery | undefined { return this.#discovery }
  saveDiscoveryState (discovery: Discovery): void { this.#discovery = discovery }
  redirectToAuthorization (url: URL): void { this.authorizationUrl = url }
  invalidateCredentials (scope: 'all' | 'client' | 'tokens' | 'verifier' | 'discovery'): void {
    if (scope === 'all' || scope === 'client') this.#information = undefined
    if (scope === 'all' || scope === 'tokens') this.#tokens = undefined
  }

  /** The user's part: where the client sent them, and back to its callback. */
  async askUser (browser: Browser, decision?: Decision): Promise<{ asked: string[], callback: URL }> {
    if (this.authorizationUrl === undefined) throw new Error('The client sent its user nowhere')
    const { scopes, submit } = await browser.openConsent(this.authorizationUrl)
    this.authorizationUrl = undefined
    const callback = await submit(decision)
    if (callback.searchParams.get('state') !== this.#state) throw new Error('The state came back changed')
    return { asked: scopes, callback }
  }
}

/** One connection attempt of an SDK. */
export interface Session {
  connect: () => Promise<void>
  finishAuth: (callback: URL) => Promise<void>
  listTools: () => Promise<string[]>
  call: (name: string, args?: Record<string, unknown>) => Promise<string>
  close: () => Promise<void>
}

export type ProviderMemory = Memory<unknown, { access_token: string, scope?: string }, unknown>

/** One of the official SDKs, as far as the tests need it. */
export interface Sdk {
  name: string
  /** A new installation: one that registers itself, unless it is known by a URL. */
  provider: (clientMetadataUrl?: string) => ProviderMemory
  session: (url: string, provider: ProviderMemory) => Session
  /** What a call rejects with once the user was sent to the authorization server. */
  Unauthorized: new () => Error
  /** What a call rejects with when the user had the choice and left the scope out. */
  afterRefusedStepUp: { again: boolean, error: new (...args: never[]) => Error, message: RegExp }
}

const text = (result: unknown): string => (result as { content: Array<{ text: string }> }).content.map(({ text }) => text).join('\n')

const v1: Sdk = {
  name: 'MCP SDK v1',
  provider: (clientMetadataUrl) => new Memory<OAuthClientInformationMixed, OAuthTokens, never>('SDK v1', clientMetadataUrl) as unknown as ProviderMemory,
  session: (url, provider) => {
    const client = new ClientV1({ name: 'test', version: '1.0.0' })
    const transport = new TransportV1(new URL(url), { authProvider: provider as unknown as ProviderV1 })
    return {
      connect: async () => await client.connect(transport as Parameters<typeof client.connect>[0]),
      finishAuth: async (callback) => await transport.finishAuth(callback.searchParams.get('code') ?? ''),
      listTools: async () => (await client.listTools()).tools.map(({ name }) => name),
      call: async (name, args = {}) => text(await client.callTool({ name, arguments: args })),
      close: async () => await client.close()
    }
  },
  Unauthorized: UnauthorizedErrorV1,
  // It remembers the challenge that it has answered, and does not ask a second time for the same.
  afterRefusedStepUp: { again: false, error: StreamableHTTPError, message: /403 after trying upscoping/ }
}

const v2 = (name: string, mode: 'legacy' | 'auto'): Sdk => ({
  name,
  provider: (clientMetadataUrl) => new Memory<StoredOAuthClientInformation, StoredOAuthTokens, OAuthDiscoveryState>(name, clientMetadataUrl) as unknown as ProviderMemory,
  session: (url, provider) => {
    const client = new ClientV2({ name: 'test', version: '1.0.0' }, { versionNegotiation: { mode } })
    const transport = new TransportV2(new URL(url), { authProvider: provider as unknown as ProviderV2 })
    return {
      connect: async () => await client.connect(transport),
      finishAuth: async (callback) => await transport.finishAuth(callback.searchParams),
      listTools: async () => (await client.listTools()).tools.map(({ name }) => name),
      call: async (name, args = {}) => text(await client.callTool({ name, arguments: args })),
      close: async () => await client.close()
    }
  },
  Unauthorized: UnauthorizedErrorV2,
  // It asks the user once for every call that is refused.
  afterRefusedStepUp: { again: true, error: UnauthorizedErrorV2, message: /Unauthorized/ }
})

export const SDKS: readonly Sdk[] = [v1, v2('MCP SDK v2', 'legacy'), v2('MCP SDK v2 on revision 2026-07-28', 'auto')]
