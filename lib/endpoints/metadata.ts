import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { hash } from 'node:crypto'
import { allowAnyOrigin } from '../http/cors.js'
import { jsonErrorHandler, sendJson } from '../http/errors.js'
import type { Settings } from '../options.js'
import type { Resource } from '../protocol/resource.js'

/**
 * The discovery documents. RFC 9728 for every resource, at the root and at its inserted path; RFC 8414 for the issuer.
 * Built once: every URL in them comes from `issuer`, never from a request.
 */
export async function metadataEndpoints (app: FastifyInstance, settings: Settings): Promise<void> {
  const { paths, resources } = settings

  await app.register(async (wellKnown) => {
    allowAnyOrigin(wellKnown, ['/oauth*', '/openid-configuration*'])
    wellKnown.setErrorHandler(jsonErrorHandler())
    wellKnown.get(`/oauth-authorization-server${paths.issuer}`, prepared(authorizationServerMetadata(settings)))

    const documents = new Map<string, Resource>([['/oauth-protected-resource', resources[0]]])
    for (const resource of resources) documents.set(new URL(resource.metadataUrl).pathname.replace('/.well-known', ''), resource)
    for (const [path, resource] of documents) wellKnown.get(path, prepared(resourceMetadata(resource, settings)))

    // A page of the host's single-page app here would be read as broken metadata: clients must see a 404 in JSON.
    wellKnown.get('/oauth*', notFound)
    wellKnown.get('/openid-configuration*', notFound)
  }, { prefix: '/.well-known' })

  for (const path of new Set([paths.issuer, ...resources.map(({ path }) => path.replace(/\/$/, ''))])) {
    if (path !== '') app.get(`${path}/.well-known/openid-configuration`, notFound)
  }
}

/** RFC 8414 §2, RFC 9207 §3. */
function authorizationServerMetadata ({ issuer, paths, url, scopes, grantTypes, registration }: Settings): object {
  return {
    issuer,
    authorization_endpoint: url(paths.authorization),
    token_endpoint: url(paths.token),
    ...(registration.enabled && { registration_endpoint: url(paths.registration) }),
    revocation_endpoint: url(paths.revocation),
    scopes_supported: scopes.names,
    response_types_supported: ['code'],
    response_modes_supported: ['query'],
    grant_types_supported: grantTypes,
    token_endpoint_auth_methods_supported: ['none'],
    revocation_endpoint_auth_methods_supported: ['none'],
    code_challenge_methods_supported: ['S256'],
    authorization_response_iss_parameter_supported: true
  }
}

/** RFC 9728 §2. */
function resourceMetadata (resource: Resource, { issuer }: Settings): object {
  return {
    resource: resource.uri,
    authorization_servers: [issuer],
    bearer_methods_supported: ['header'],
    scopes_supported: resource.scopes,
    ...(resource.name !== undefined && { resource_name: resource.name }),
    ...(resource.documentation !== undefined && { resource_documentation: resource.documentation })
  }
}

function prepared (document: object) {
  const body = Buffer.from(JSON.stringify(document))
  const etag = `"${hash('sha256', body, 'base64url').slice(0, 22)}"`
  return async function (request: FastifyRequest, reply: FastifyReply): Promise<FastifyReply> {
    reply.header('cache-control', 'public, max-age=3600').header('etag', etag)
    if (request.headers['if-none-match'] === etag) return reply.code(304).send()
    return reply.header('content-type', 'application/json; charset=utf-8').send(body)
  }
}

async function notFound (_request: FastifyRequest, reply: FastifyReply): Promise<FastifyReply> {
  return sendJson(reply.code(404), { error: 'not_found', error_description: 'There is no such metadata document here.' })
}
