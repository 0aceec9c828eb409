import { hash, hkdfSync, randomBytes } from 'node:crypto'

/** `oat_`: from an OAuth grant. `pat_`: a personal access token. */
export type TokenPrefix = 'oat_' | 'pat_'

const TOKEN = /^(?:oat_|pat_)[A-Za-z0-9_-]{43}$/

/** A new token: its prefix and 32 random bytes. Shown once; only its hash is stored. */
export function createToken (prefix: TokenPrefix): string {
  return prefix + randomBytes(32).toString('base64url')
}

/** A new client secret. Like a token it is shown once, and only its hash is kept. */
export function createClientSecret (): string {
  return `ocs_${randomBytes(32).toString('base64url')}`
}

/** Whether this plugin could have made the token: anything else needs no look into the store. */
export function isToken (value: string): boolean {
  return TOKEN.test(value)
}

/** Whether every database keeps and indexes the text as it is: some cut it at NUL, and half a surrogate pair is no character. */
export function isIdentifier (value: unknown, maxLength = 512): value is string {
  return typeof value === 'string' && value !== '' && value.length <= maxLength && !/[\0\p{Cs}]/u.test(value)
}

/** SHA-256, 32 bytes. A token has 256 random bits, so it needs neither salt nor stretching. */
export function hashToken (token: string): Buffer {
  // Twice as fast as the bytes themselves: what comes as a string goes into memory that Node has at hand.
  return Buffer.from(hash('sha256', token, 'binary'), 'binary')
}

/** 128 random bits in base64url: the id of a grant, of its row and of its code. */
export function createGrantId (): string {
  return randomBytes(16).toString('base64url')
}

/**
 * A configured key as bytes: hexadecimal or base64url, at least 32 bytes.
 * Undefined for anything else. What is all hexadecimal digits is read as hexadecimal.
 */
export function parseKey (text: string): Buffer | undefined {
  const bytes = /^(?:[0-9a-fA-F]{2})+$/.test(text)
    ? Buffer.from(text, 'hex')
    : /^[A-Za-z0-9_-]+={0,2}$/.test(text) ? Buffer.from(text, 'base64url') : undefined
  return bytes !== undefined && bytes.length >= 32 ? bytes : undefined
}

/** A key for one purpose, so that nothing made for one can be used for another. RFC 5869. */
export function deriveKey (key: Uint8Array, purpose: string, length: number): Buffer {
  return Buffer.from(hkdfSync('sha256', key, '', `fastify-mcp-oauth ${purpose}`, length))
}
