import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { hash } from 'node:crypto'
import { allowAnyOrigin } from '../http/cors.js'
import { jsonErrorHandler, sendJson } from '../http/errors.js'
import type { Settings } from '../options.js'
import { ASSERTION_ALGORITHMS } from '../protocol/client-authentication.js'
import type { Resource } from '../protocol/resource.js'

/**
 * The discovery documents: RFC 8414 for the issuer, RFC 9728 for every resource that is served here. Built once: every
 * URL in them comes from `issuer`, never from a request.
 */
export async function metadataEndpoints (app: FastifyInstance, settings: Settings): Promise<void> {
  const { paths, resources } = settings

  await app.register(async (wellKnown) => {
    await resourceMetadataEndpoints(wellKnown, settings)
    wellKnown.get(`/oauth-authorization-server${paths.issuer}`, prepared(authorizationServerMetadata(settings)))
  }, { prefix: '/.well-known' })

  const below = new Set([paths.issuer, ...resources.map(({ path }) => path?.replace(/\/$/, '') ?? '')])
  below.delete('')
  const openIdConfigurations = [...below].map((path) => `${path}/.well-known/openid-configuration`)
  await app.register(async (appended) => {
    allowAnyOrigin(appended, openIdConfigurations)
    for (const path of openIdConfigurations) appended.get(path, notFound)
  })
}

/** The documents of each resource, at the root for the first and at its inserted path. RFC 9728 §3. */
export async function resourceMetadataEndpoints (wellKnown: FastifyInstance, { resources, issuer }: Pick<Settings, 'resources' | 'issuer'>): Promise<void> {
  allowAnyOrigin(wellKnown, ['/oauth*', '/openid-configuration*'])
  wellKnown.setErrorHandler(jsonErrorHandler())
  const documents = new Map<string, Resource>()
  for (const resource of resources.filter(({ path }) => path !== null)) {
    if (documents.size === 0) documents.set('/oauth-protected-resource', resource)
    documents.set(new URL(resource.metadataUrl).pathname.replace('/.well-known', ''), resource)
  }
  for (const [path, resource] of documents) wellKnown.get(path, prepared(resourceMetadata(resource, issuer)))

  // A page of the host's single-page app here would be read as broken metadata: clients must see a 404 in JSON.
  wellKnown.get('/oauth*', notFound)
  wellKnown.get('/openid-configuration*', notFound)
}

/** RFC 8414 §2, RFC 9207 §3. JSON leaves out what is undefined. */
function authorizationServerMetadata ({ issuer, paths, url, scopes, grantTypes, registration, clientIdMetadata, clientAuthenticationMethods, configuredMethods }: Settings): object {
  const algorithms = (methods: readonly string[]): string[] | undefined => methods.includes('private_key_jwt') ? ASSERTION_ALGORITHMS : undefined
  const introspection = paths.introspection === null
    ? {}
    : {
        introspection_endpoint: url(paths.introspection),
        introspection_endpoint_auth_methods_supported: configuredMethods,
        introspection_endpoint_auth_signing_alg_values_supported: algorithms(configuredMethods)
      }
  return {
    issuer,
    authorization_endpoint: url(paths.authorization),
    token_endpoint: url(paths.token),
    registration_endpoint: registration.enabled ? url(paths.registration) : undefined,
    client_id_metadata_document_supported: clientIdMetadata || undefined,
    revocation_endpoint: url(paths.revocation),
    userinfo_endpoint: paths.userinfo === null ? undefined : url(paths.userinfo),
    scopes_supported: scopes.names,
    response_types_supported: ['code'],
    response_modes_supported: ['query'],
    grant_types_supported: grantTypes,
    token_endpoint_auth_methods_supported: clientAuthenticationMethods,
    revocation_endpoint_auth_methods_supported: clientAuthenticationMethods,
    // RFC 8414 §2 wants these wherever a method signs.
    token_endpoint_auth_signing_alg_values_supported: algorithms(clientAuthenticationMethods),
    revocation_endpoint_auth_signing_alg_values_supported: algorithms(clientAuthenticationMethods),
    ...introspection,
    code_challenge_methods_supported: ['S256'],
    authorization_response_iss_parameter_supported: true
  }
}

/** RFC 9728 §2. JSON leaves out what is undefined. */
function resourceMetadata (resource: Resource, issuer: string): object {
  return {
    resource: resource.uri,
    authorization_servers: [issuer],
    bearer_methods_supported: ['header'],
    scopes_supported: resource.scopes,
    resource_name: resource.name,
    resource_documentation: resource.documentation
  }
}

function prepared (document: object) {
  const body = JSON.stringify(document)
  const etag = `"${hash('sha256', body, 'base64url').slice(0, 22)}"`
  return function (request: FastifyRequest, reply: FastifyReply): void {
    reply.header('cache-control', 'public, max-age=3600').header('etag', etag)
    if (request.headers['if-none-match'] === etag) reply.code(304).send()
    else reply.header('content-type', 'application/json; charset=utf-8').send(body)
  }
}

async function notFound (_request: FastifyRequest, reply: FastifyReply): Promise<FastifyReply> {
  return sendJson(reply.code(404), { error: 'not_found', error_description: 'There is no such metadata document here.' })
}
