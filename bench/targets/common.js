import { createHash, randomBytes } from 'node:crypto'

export const CALLBACK = 'http://127.0.0.1:33418/callback'
export const SCOPES = ['read', 'write']

export const codeVerifier = randomBytes(32).toString('base64url')
export const codeChallenge = createHash('sha256').update(codeVerifier).digest('base64url')

/** What every client of the comparison registers with. */
export const METADATA = { client_name: 'Bench', redirect_uris: [CALLBACK], token_endpoint_auth_method: 'none', grant_types: ['authorization_code', 'refresh_token'], response_types: ['code'] }

/** What every guarded route answers. */
export const answer = (userId, scopes) => ({ userId, scopes })

export const get = (path, headers = {}, status = 200) => ({ path, headers, status })
export const withToken = (path, token, status = 200) => get(path, { authorization: `Bearer ${token}` }, status)
export const postJson = (path, body, status = 200) => ({ method: 'POST', path, headers: { 'content-type': 'application/json' }, body: JSON.stringify(body), status })
export const postForm = (path, fields, status = 200) => ({ method: 'POST', path, headers: { 'content-type': 'application/x-www-form-urlencoded' }, body: String(new URLSearchParams(fields)), status })

/** A hundred apps, which register again and again. */
export const registrations = (path) => Array.from({ length: 100 }, (_, index) => postJson(path, { ...METADATA, client_name: `Bench ${index}` }, 201))

/** As many as asked for, a hundred at once. */
export async function many (count, make) {
  const made = []
  while (made.length < count) made.push(...await Promise.all(Array.from({ length: Math.min(100, count - made.length) }, (_, index) => make(made.length + index))))
  return made
}
