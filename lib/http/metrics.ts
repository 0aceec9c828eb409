import type { FastifyInstance } from 'fastify'
import { channel } from 'node:diagnostics_channel'

/** Published on the channel `fastify-mcp-oauth:request` of node:diagnostics_channel, for metrics. */
export interface Measurement {
  endpoint: 'guard' | 'metadata' | 'register' | 'authorize' | 'token' | 'revoke' | 'introspect' | 'userinfo' | 'connected_apps'
  /** The guard's own answer; 200 where it let the request pass. */
  statusCode: number
  /** Milliseconds. */
  duration: number
}

/**
 * Where nobody listens, its `hasSubscribers` is all that a request pays. What a subscriber throws becomes an uncaught
 * exception on the next tick: nothing that could be caught here.
 */
export const measurements = channel('fastify-mcp-oauth:request')

/** Measures every answer of the routes in this scope. Not by an `onResponse` hook, for which Fastify prepares each request. */
export function measureRoutes (app: FastifyInstance, endpoint: Measurement['endpoint']): void {
  app.addHook('onRequest', (_request, reply, done) => {
    if (measurements.hasSubscribers) {
      const startedAt = performance.now()
      reply.raw.once('finish', () => measurements.publish({ endpoint, statusCode: reply.statusCode, duration: performance.now() - startedAt } satisfies Measurement))
    }
    done()
  })
}
