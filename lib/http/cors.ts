import type { FastifyContextConfig, FastifyInstance, FastifyReply, RouteOptions } from 'fastify'

// Browser-based clients of any origin may use whatever rests on tokens alone; never with credentials. Done by hand:
// @fastify/cors can be in a host once, and its OPTIONS route would answer for the host's own paths too.

const METHODS = 'GET, POST, DELETE'
const ALLOWED = 'Authorization, Content-Type, Accept, MCP-Protocol-Version, Mcp-Session-Id, Last-Event-ID, Mcp-Method, Mcp-Name'
const EXPOSED = 'WWW-Authenticate, Mcp-Session-Id'
/** Seconds. */
const MAX_AGE = 3600

/** For this scope's routes, with preflights at the given paths below its prefix. */
export function allowAnyOrigin (app: FastifyInstance, preflights: readonly string[] = ['']): void {
  app.addHook('onRequest', (_request, reply, done) => {
    allowAnyOriginOnReply(reply)
    done()
  })
  for (const path of preflights) app.options(path, async (_request, reply) => sendPreflight(reply))
}

/** For the host's routes that `isOurs` names: each brings an OPTIONS route along, unless it has one. Answers their paths. */
export function answerPreflights (app: FastifyInstance, isOurs: (route: RouteOptions) => boolean): ReadonlySet<string> {
  const paths = new Set<string>()
  app.addHook('onRoute', function (route) {
    if (!isOurs(route)) return
    paths.add(route.url)
    refuseHostPolicy(route)
    const options = { method: 'OPTIONS', url: route.url, constraints: route.constraints ?? {} } as const
    if ([route.method].flat().includes('OPTIONS') || this.hasRoute(options)) return
    // Of a '/' below a prefix Fastify makes two routes; this is for the one that is asked about.
    this.route({ ...options, url: route.routePath, prefixTrailingSlash: route.url.endsWith('/') ? 'slash' : 'no-slash', handler: async (_request, reply) => sendPreflight(reply) })
  })
  return paths
}

export function allowAnyOriginOnReply (reply: FastifyReply): void {
  if (reply.hasHeader('access-control-allow-credentials')) reply.removeHeader('access-control-allow-credentials')
  reply.header('access-control-allow-origin', '*').header('access-control-expose-headers', EXPOSED)
}

export function sendPreflight (reply: FastifyReply): FastifyReply {
  allowAnyOriginOnReply(reply)
  return reply.code(204)
    .header('access-control-allow-methods', METHODS)
    .header('access-control-allow-headers', ALLOWED)
    .header('access-control-max-age', MAX_AGE)
    .send()
}

/** @fastify/cors in the host, registered before or after, leaves such a route alone. */
export function refuseHostPolicy (route: RouteOptions): void {
  route.config = { ...route.config, cors: false } as FastifyContextConfig
}
