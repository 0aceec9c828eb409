import { CompactEncrypt, CompactSign, compactDecrypt, compactVerify, type CryptoKey } from 'jose'
import { LRUCache } from 'lru-cache'
import { OAuthError } from './errors.js'
import { deriveKey } from './secret.js'

/** Characters. Nothing longer is even parsed. */
const MAX_LENGTH = 8192

/** Characters of what was signed, and as many of what was verified; what has more than a usual app's is not worth them. */
const REMEMBERED = 1_000_000
const LONGEST_REMEMBERED = 2000

export type Unreadable = 'expired' | 'unreadable'

/** What is sealed says itself until when it holds, in epoch milliseconds. */
export interface Expiring {
  expiresAt: number
}

type Usages = Array<'encrypt' | 'decrypt' | 'sign' | 'verify'>

/**
 * Values that leave the server and come back unread and unchanged: codes and tickets. A JWE (`dir`, A256GCM) under a
 * key of its own for each purpose; `typ` names the purpose a second time. The first key seals, all of them open.
 */
export interface Sealer<T extends Expiring> {
  /** @throws OAuthError `invalid_request` for what would be too long to open again: a client's huge `state`, say */
  seal: (payload: T) => Promise<string>
  /** The payload, or why there is none. `now` is in epoch milliseconds. */
  open: (value: string, now: number) => Promise<T | Unreadable>
}

export async function createSealer<T extends Expiring> (keys: readonly Uint8Array[], purpose: string, maxLength = MAX_LENGTH): Promise<Sealer<T>> {
  const keyring = await createKeyring(keys, purpose, { name: 'AES-GCM' }, ['encrypt', 'decrypt'])
  return {
    async seal (payload) {
      const value = await new CompactEncrypt(Buffer.from(JSON.stringify(payload)))
        .setProtectedHeader({ alg: 'dir', enc: 'A256GCM', ...keyring.header })
        .encrypt(keyring.first)
      if (value.length > maxLength) {
        throw new OAuthError('invalid_request', 'The request is too long.', { reason: 'request_too_long' })
      }
      return value
    },

    async open (value, now) {
      if (!isCanonical(value, 5, maxLength)) return 'unreadable'
      try {
        const { plaintext } = await compactDecrypt(value, keyring.find, {
          keyManagementAlgorithms: ['dir'],
          contentEncryptionAlgorithms: ['A256GCM'],
          maxDecompressedLength: 0
        })
        const payload: T = JSON.parse(Buffer.from(plaintext).toString())
        return payload.expiresAt > now ? payload : 'expired'
      } catch {
        return 'unreadable'
      }
    }
  }
}

/**
 * Values that everyone may read, but only this server can make: client ids. A JWS (HS256), and deterministic, so that
 * the same payload is the same string for as long as the first key stays.
 */
export interface Signer<T> {
  sign: (payload: T) => Promise<string>
  verify: (value: string) => Promise<T | undefined>
}

export async function createSigner<T> (keys: readonly Uint8Array[], purpose: string): Promise<Signer<T>> {
  const keyring = await createKeyring(keys, purpose, { name: 'HMAC', hash: 'SHA-256' }, ['sign', 'verify'])
  const sign = remembering(async (payload) =>
    await new CompactSign(Buffer.from(payload)).setProtectedHeader({ alg: 'HS256', ...keyring.header }).sign(keyring.first))

  const verify = remembering(async (value): Promise<T | undefined> => {
    if (!isCanonical(value, 3)) return undefined
    try {
      const { payload } = await compactVerify(value, keyring.find, { algorithms: ['HS256'] })
      return JSON.parse(Buffer.from(payload).toString())
    } catch {
      return undefined
    }
  })

  return { sign: async (payload) => await sign(JSON.stringify(payload)), verify }
}

/**
 * The same few apps register and come back again and again, and signing takes longer than all else that they ask for.
 * What comes to nothing is not remembered: anyone can send any amount of it.
 */
function remembering<T> (work: (text: string) => Promise<T>): (text: string) => Promise<T> {
  const results = new LRUCache<string, NonNullable<T>>({ maxSize: REMEMBERED, maxEntrySize: LONGEST_REMEMBERED, sizeCalculation: (_result, text) => text.length })
  return async (text) => {
    const known = results.get(text)
    if (known !== undefined) return known
    const result = await work(text)
    if (result != null) results.set(text, result)
    return result
  }
}

/** Each key of the app turned into one for this purpose, and imported once: jose is nearly twice as fast that way. */
async function createKeyring (keys: readonly Uint8Array[], purpose: string, algorithm: { name: string, hash?: string }, usages: Usages) {
  const typ = `mcp-oauth-${purpose}`
  const imported = await Promise.all(keys.map(async (key) => ({
    kid: deriveKey(key, `${purpose} kid`, 6).toString('base64url'),
    key: await crypto.subtle.importKey('raw', new Uint8Array(deriveKey(key, purpose, 32)), algorithm, false, usages)
  })))
  const [first] = imported as [typeof imported[0] & object]
  return {
    first: first.key,
    header: { typ, kid: first.kid },
    find (header: { typ?: string, kid?: string } | undefined): CryptoKey {
      const found = header?.typ === typ ? imported.find(({ kid }) => kid === header.kid) : undefined
      if (found === undefined) throw new Error('no key')
      return found.key
    }
  }
}

/** Base64url has spare bits in its last character: without this check several strings would be one value. */
function isCanonical (value: string, segments: number, maxLength = MAX_LENGTH): boolean {
  if (value.length > maxLength) return false
  const parts = value.split('.')
  return parts.length === segments && parts.every((part) => Buffer.from(part, 'base64url').toString('base64url') === part)
}
