import createError from '@fastify/error'
import type { FastifyInstance } from 'fastify'
import { inspect } from 'node:util'
import { isStrings } from './protocol/json.js'
import { isLoopbackHost } from './protocol/redirect-uri.js'

// What a registration is checked with. Without another word a function throws FST_MCP_OAUTH_INVALID_OPTION, which names the option.

const AlreadyRegisteredError = createError('FST_MCP_OAUTH_ALREADY_REGISTERED', 'app.oauth is there already, from fastify-mcp-oauth or remoteGuard. One registration serves several MCP servers: list them in `resources`')
const PrefixError = createError('FST_MCP_OAUTH_PREFIX', '%s must be registered without a prefix, got %s. Others are told its addresses; put a path into `%s` instead')
const OptionError = createError('FST_MCP_OAUTH_INVALID_OPTION', 'Option %s: expected %s, got %s', 500, TypeError)

/** Whether this app is the place: both plugins serve well-known documents, and bring `app.oauth`. */
export function expectPlace (app: FastifyInstance, options: object, plugin: string, pathOption: string): void {
  if (app.hasDecorator('oauth')) throw new AlreadyRegisteredError()
  expectNoPrefix(app, options, plugin, pathOption)
}

/** The URLs of a plugin are told to others beforehand, so a prefix would make them wrong. */
export function expectNoPrefix (app: FastifyInstance, options: object, plugin: string, pathOption: string): void {
  const { prefix = app.prefix } = options as { prefix?: string }
  if (prefix !== '') throw new PrefixError(plugin, prefix, pathOption)
}

export function expect (condition: boolean, option: string, expected: string, got: unknown): asserts condition {
  if (!condition) throw new OptionError(option, expected, typeof got === 'string' ? got || 'an empty string' : describe(got))
}

export function expectNames (value: object, at: string, names: readonly string[]): void {
  for (const name of Object.keys(value)) expect(names.includes(name), at + name, `one of ${names.join(', ')}`, 'an option that does not exist')
}

export function expectFunctions (options: object, forms: Readonly<Record<string, string>>): void {
  for (const [name, form] of Object.entries(forms)) {
    const value: unknown = (options as Record<string, unknown>)[name]
    expect(value === undefined || typeof value === 'function', name, `a function ${form}`, value)
  }
}

/** A list that names what there is, as it is called there; `find` for what has several spellings. */
export function namesAmong (values: unknown, at: string, known: readonly string[], find = (value: string) => known.find((name) => name === value)): string[] {
  expect(isStrings(values) && values.length > 0, at, `a list of names among ${known.join(', ')}`, values)
  return values.map((value) => {
    const found = find(value)
    expect(found !== undefined, at, `names among ${known.join(', ')}`, value)
    return found
  })
}

/**
 * An absolute URL in the form in which others are built from it, since clients compare it byte for byte: https, http
 * only on loopback, and with nothing but an origin and perhaps a path.
 */
export function expectUrl (value: unknown, option: string, example: string): URL {
  const expected = `an https origin, perhaps with a path and without a trailing slash, such as ${example}; http only for localhost, 127.0.0.1 and [::1]`
  expect(typeof value === 'string' && URL.canParse(value), option, expected, value)
  const url = new URL(value)
  const isSafe = isSafeUrl(url)
  const canonical = url.origin + (url.pathname === '/' ? '' : url.pathname)
  const hint = isSafe && value !== canonical ? `. Did you mean ${canonical.replace(/\/$/, '')}?` : ''
  expect(isSafe && value === canonical && isPath(url.pathname) && !value.endsWith('/'), option, expected, value + hint)
  return url
}

/** Whether what is sent there can be read by nobody on the way. */
export function isSafeUrl ({ protocol, hostname }: URL): boolean {
  return protocol === 'https:' || (protocol === 'http:' && isLoopbackHost(hostname))
}

export function isPath (value: unknown): value is string {
  return typeof value === 'string' && /^\/(?!\/)[A-Za-z0-9\-._~/]*$/.test(value) && new URL(value, 'http://x').pathname === value
}

function describe (value: unknown): string {
  if (typeof value === 'function') return 'a function'
  return value === undefined ? 'nothing' : inspect(value, { depth: 1, breakLength: Infinity })
}
