import { CompactEncrypt, CompactSign, compactDecrypt, compactVerify, type CryptoKey } from 'jose'
import { OAuthError } from './errors.js'
import { deriveKey } from './secret.js'

/** Nothing longer is even parsed. */
const MAX_LENGTH = 8192

export type Unreadable = 'expired' | 'unreadable'

/** What is sealed says itself until when it holds, in epoch milliseconds. */
export interface Expiring {
  expiresAt: number
}

interface PurposeKey {
  kid: string
  key: CryptoKey
}

/**
 * Values that leave the server and come back unread and unchanged: codes and tickets. A JWE (`dir`, A256GCM) under a
 * key of its own for each purpose; `typ` names the purpose a second time. The first key seals, all of them open.
 */
export class Sealer<T extends Expiring> {
  readonly #typ: string
  readonly #keys: readonly PurposeKey[]

  private constructor (typ: string, keys: readonly PurposeKey[]) {
    this.#typ = typ
    this.#keys = keys
  }

  static async create<T extends Expiring> (keys: readonly Uint8Array[], purpose: string): Promise<Sealer<T>> {
    return new Sealer(`mcp-oauth-${purpose}`, await importKeys(keys, purpose, { name: 'AES-GCM' }, ['encrypt', 'decrypt']))
  }

  /** @throws OAuthError `invalid_request` for what would be too long to open again: a client's huge `state`, say */
  async seal (payload: T): Promise<string> {
    const { kid, key } = this.#keys[0]!
    const value = await new CompactEncrypt(encode(payload))
      .setProtectedHeader({ alg: 'dir', enc: 'A256GCM', typ: this.#typ, kid })
      .encrypt(key)
    if (value.length > MAX_LENGTH) {
      throw new OAuthError('invalid_request', 'The request is too long.', { reason: 'request_too_long' })
    }
    return value
  }

  /** The payload, or why there is none. `now` is in epoch milliseconds. */
  async open (value: string, now: number): Promise<T | Unreadable> {
    if (!isCanonical(value, 5)) return 'unreadable'
    let payload: T
    try {
      const { plaintext } = await compactDecrypt(value, (header) => keyFor(this.#keys, this.#typ, header), {
        keyManagementAlgorithms: ['dir'],
        contentEncryptionAlgorithms: ['A256GCM'],
        maxDecompressedLength: 0
      })
      payload = decode(plaintext) as T
    } catch {
      return 'unreadable'
    }
    return payload.expiresAt > now ? payload : 'expired'
  }
}

/**
 * Values that everyone may read, but only this server can make: client ids. A JWS (HS256), and deterministic, so that
 * the same payload is the same string for as long as the first key stays.
 */
export class Signer<T> {
  readonly #typ: string
  readonly #keys: readonly PurposeKey[]

  private constructor (typ: string, keys: readonly PurposeKey[]) {
    this.#typ = typ
    this.#keys = keys
  }

  static async create<T> (keys: readonly Uint8Array[], purpose: string): Promise<Signer<T>> {
    return new Signer(`mcp-oauth-${purpose}`,
      await importKeys(keys, purpose, { name: 'HMAC', hash: 'SHA-256' }, ['sign', 'verify']))
  }

  async sign (payload: T): Promise<string> {
    const { kid, key } = this.#keys[0]!
    return await new CompactSign(encode(payload))
      .setProtectedHeader({ alg: 'HS256', typ: this.#typ, kid })
      .sign(key)
  }

  async verify (value: string): Promise<T | undefined> {
    if (!isCanonical(value, 3)) return undefined
    try {
      const { payload } = await compactVerify(value, (header) => keyFor(this.#keys, this.#typ, header),
        { algorithms: ['HS256'] })
      return decode(payload) as T
    } catch {
      return undefined
    }
  }
}

/** Imported once: jose is nearly twice as fast with a CryptoKey as with raw bytes. */
async function importKeys (keys: readonly Uint8Array[], purpose: string, algorithm: { name: string, hash?: string }, usages: Array<'encrypt' | 'decrypt' | 'sign' | 'verify'>): Promise<PurposeKey[]> {
  return await Promise.all(keys.map(async (key) => ({
    kid: deriveKey(key, `${purpose} kid`, 6).toString('base64url'),
    key: await crypto.subtle.importKey('raw', new Uint8Array(deriveKey(key, purpose, 32)), algorithm, false, usages)
  })))
}

function keyFor (keys: readonly PurposeKey[], typ: string, header: { typ?: string, kid?: string } | undefined): CryptoKey {
  const found = header?.typ === typ ? keys.find(({ kid }) => kid === header.kid) : undefined
  if (found === undefined) throw new Error('no key')
  return found.key
}

/** Base64url has spare bits in its last character: without this check several strings would be one value. */
function isCanonical (value: string, segments: number): boolean {
  if (value.length > MAX_LENGTH) return false
  const parts = value.split('.')
  return parts.length === segments && parts.every((part) => Buffer.from(part, 'base64url').toString('base64url') === part)
}

function encode (payload: unknown): Uint8Array {
  return new TextEncoder().encode(JSON.stringify(payload))
}

function decode (bytes: Uint8Array): unknown {
  return JSON.parse(new TextDecoder().decode(bytes))
}
