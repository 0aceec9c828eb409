import { channel } from 'node:diagnostics_channel'

/** Published on the channel `fastify-mcp-oauth:request` of node:diagnostics_channel, for metrics. */
export interface Measurement {
  endpoint: 'guard' | 'metadata' | 'register' | 'authorize' | 'token' | 'revoke' | 'introspect' | 'userinfo' | 'connected_apps'
  /** The guard's own answer; 200 where it let the request pass. */
  statusCode: number
  /** Milliseconds. */
  duration: number
}

/** Where nobody listens, its `hasSubscribers` is all that a request pays. */
export const measurements = channel('fastify-mcp-oauth:request')

export function publishMeasurement (measurement: Measurement): void {
  measurements.publish(measurement)
}
