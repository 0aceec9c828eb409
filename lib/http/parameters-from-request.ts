import formbody from '@fastify/formbody'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { parseParameters, type Parameters } from '../protocol/parameters.js'

/** Bytes. A code, a ticket and a client id together fit well inside. */
export const BODY_LIMIT = 16 * 1024

/**
 * Leaves only forms to be read in this scope, and hands them over as they came: the host's parsers, and what it does
 * with a repeated name, stay outside.
 */
export async function acceptForms (app: FastifyInstance): Promise<void> {
  app.removeAllContentTypeParsers()
  await app.register(formbody, { bodyLimit: BODY_LIMIT, parser: (body: string) => body as unknown as Record<string, unknown> })
}

/** The parameters of the query, whatever query parser the host has set. */
export function queryParameters (request: FastifyRequest): Parameters {
  return parseParameters(queryString(request))
}

/** The raw query, without its question mark. */
export function queryString (request: FastifyRequest): string {
  const url = request.raw.url ?? ''
  const start = url.indexOf('?')
  return start === -1 ? '' : url.slice(start + 1)
}

/** The parameters of a form. */
export function formParameters (request: FastifyRequest): Parameters {
  return parseParameters(formBody(request))
}

/** The form as it came; empty where there was no body. */
export function formBody (request: FastifyRequest): string {
  return typeof request.body === 'string' ? request.body : ''
}
