// The limit: routes of the same shape that do nothing.
import formbody from '@fastify/formbody'
import Fastify from 'fastify'
import { METADATA, SCOPES, answer, get, postForm, registrations, withToken } from './common.js'

export async function start () {
  const app = Fastify()
  await app.register(formbody)
  app.get('/mcp', async () => answer('alice', SCOPES))
  app.post('/token', async () => ({ access_token: 'x'.repeat(47), token_type: 'Bearer', expires_in: 3600, refresh_token: 'x'.repeat(150), scope: 'read write' }))
  app.post('/register', async (request, reply) => {
    reply.code(201)
    return { client_id: 'x'.repeat(200), ...request.body }
  })
  app.get('/discovery', async () => DISCOVERY)
  app.get('/consent', async (request, reply) => {
    reply.type('text/html')
    return PAGE
  })
  await app.listen({ port: 0, host: '127.0.0.1' })
  const times = (request) => async () => [request]
  return {
    port: app.server.address().port,
    prepare: {
      guard: times(withToken('/mcp', 'x'.repeat(47))),
      unknown: times(withToken('/mcp', 'x'.repeat(47))),
      token: async (count) => Array.from({ length: count }, () => postForm('/token', { grant_type: 'authorization_code', code: 'x'.repeat(600), code_verifier: 'x'.repeat(43), client_id: 'x'.repeat(200), redirect_uri: METADATA.redirect_uris[0] })),
      refresh: async (count) => Array.from({ length: count }, () => postForm('/token', { grant_type: 'refresh_token', refresh_token: 'x'.repeat(150), client_id: 'x'.repeat(200) })),
      register: async () => registrations('/register'),
      discovery: times(get('/discovery')),
      consent: times(get('/consent'))
    }
  }
}

const DISCOVERY = Object.fromEntries(['issuer', 'authorization_endpoint', 'token_endpoint', 'registration_endpoint', 'revocation_endpoint', 'introspection_endpoint']
  .map((name) => [name, `http://localhost:3000/oauth/${name}`]).concat(['response_types', 'grant_types', 'scopes', 'challenges', 'methods'].map((name) => [name, ['one', 'another']])))
const PAGE = `<!doctype html>${'x'.repeat(6000)}`
