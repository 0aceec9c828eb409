import { hash, timingSafeEqual } from 'node:crypto'

const CHALLENGE = /^[A-Za-z0-9_-]{43}$/
const VERIFIER = /^[A-Za-z0-9._~-]{43,128}$/

/** An S256 challenge: base64url of 32 bytes. RFC 7636 §4.2. */
export function isCodeChallenge (value: string): boolean {
  return CHALLENGE.test(value)
}

/** 43 to 128 unreserved characters. RFC 7636 §4.1. */
export function isCodeVerifier (value: string): boolean {
  return VERIFIER.test(value)
}

/** RFC 7636 §4.6, S256 only. */
export function codeVerifierMatches (codeVerifier: string, codeChallenge: string): boolean {
  const expected = Buffer.from(codeChallenge)
  const presented = Buffer.from(hash('sha256', codeVerifier, 'base64url'))
  return presented.length === expected.length && timingSafeEqual(presented, expected)
}
