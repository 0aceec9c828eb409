import type { FastifyRequest } from 'fastify'

/**
 * The Authorization header. Where a request has several, all of them in one, which no scheme can read: Node would take
 * the first, and what stands in front of this server perhaps another. RFC 9110 §5.3.
 */
export function authorizationHeader ({ raw: { headers, rawHeaders } }: FastifyRequest): string | undefined {
  let times = 0
  // Names and values alternate. Nothing is made unless the name is as long.
  for (let index = 0; index < rawHeaders.length; index += 2) {
    if (rawHeaders[index]!.length === 13 && rawHeaders[index]!.toLowerCase() === 'authorization') times++
  }
  return times > 1 ? rawHeaders.filter((_, index) => index % 2 === 1 && rawHeaders[index - 1]!.toLowerCase() === 'authorization').join(', ') : headers.authorization
}

/** The token of a Bearer header; empty for none. The scheme's case does not matter. RFC 9110 §11.1, RFC 6750 §2.1. */
export function bearerToken (request: FastifyRequest): string {
  const authorization = authorizationHeader(request)
  if (authorization === undefined || authorization.length < 7) return ''
  return authorization.slice(0, 7).toLowerCase() === 'bearer ' ? authorization.slice(7).trim() : ''
}
