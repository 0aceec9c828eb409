import cors from '@fastify/cors'
import type { FastifyContextConfig, FastifyInstance, FastifyReply } from 'fastify'

const EXPOSED = 'WWW-Authenticate, Mcp-Session-Id'

/** Any origin, never with credentials: what these endpoints do rests on tokens, not on cookies. */
const ANY_ORIGIN = {
  origin: '*',
  credentials: false,
  methods: 'GET, POST, DELETE',
  allowedHeaders: 'Authorization, Content-Type, Accept, MCP-Protocol-Version, Mcp-Session-Id, Last-Event-ID, Mcp-Method, Mcp-Name',
  exposedHeaders: EXPOSED,
  maxAge: 3600
}

/** Lets browser-based clients use this scope's routes, and answers their preflights below its prefix. */
export async function allowAnyOrigin (app: FastifyInstance): Promise<void> {
  if (!app.hasRequestDecorator('corsPreflightEnabled')) {
    await app.register(cors, ANY_ORIGIN)
    return
  }
  // The host uses @fastify/cors itself: its hook runs here too and takes its policy from the route.
  app.addHook('onRoute', (route) => { route.config = { ...route.config, cors: ANY_ORIGIN } as FastifyContextConfig })
  app.options('*', (_request, reply) => reply.code(204).send())
}

/** For a guarded route of the host, unless the host has a policy of its own. */
export function allowAnyOriginOnReply (reply: FastifyReply): void {
  if (reply.hasHeader('access-control-allow-origin')) return
  reply.header('access-control-allow-origin', '*').header('access-control-expose-headers', EXPOSED)
}

/** The answer to a preflight for a guarded route that takes OPTIONS too. */
export function sendPreflight (reply: FastifyReply): FastifyReply {
  return reply.code(204)
    .header('access-control-allow-origin', '*')
    .header('access-control-allow-methods', ANY_ORIGIN.methods)
    .header('access-control-allow-headers', ANY_ORIGIN.allowedHeaders)
    .header('access-control-max-age', ANY_ORIGIN.maxAge)
    .send()
}
