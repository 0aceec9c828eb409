// @ts-check
import { localhostAllowedHostnames, validateHostHeader, validateOriginHeader } from '@modelcontextprotocol/server'

/**
 * A web page must not reach this server through the user's browser by pointing its own name at it (DNS rebinding).
 *
 * @param {import('fastify').FastifyInstance} app
 * @param {string} publicUrl
 */
export function refuseForeignHosts (app, publicUrl) {
  const hosts = [...localhostAllowedHostnames(), new URL(publicUrl).hostname]
  app.addHook('onRequest', (request, reply, done) => {
    const checks = [validateHostHeader(request.headers.host, hosts), validateOriginHeader(request.headers.origin, hosts)]
    if (checks.every(({ ok }) => ok)) done()
    else reply.code(403).send({ error: 'forbidden host or origin' })
  })
}
