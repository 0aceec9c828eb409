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

/** Measures every answer of the routes in this scope. */
export function measureRoutes (app: FastifyInstance, endpoint: Measurement['endpoint']): void {
  app.addHook('onResponse', (_request, reply, done) => {
    // `elapsedTime` reads the clock, so not before.
    if (measurements.hasSubscribers) measurements.publish({ endpoint, statusCode: reply.statusCode, duration: reply.elapsedTime } satisfies Measurement)
    done()
  })
}
