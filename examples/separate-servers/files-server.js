// @ts-check
import { toWebRequest } from '@modelcontextprotocol/node'
import { McpServer, createMcpHandler } from '@modelcontextprotocol/server'
import Fastify from 'fastify'
import remoteGuard from 'fastify-mcp-oauth/remote'
import * as z from 'zod'
import { refuseForeignHosts } from '../mcp-server/hosts.js'
import { secret } from '../mcp-server/secret.js'
import { DATA_DIR, FILES, ISSUER } from './addresses.js'

// An MCP server that signs nobody in: it asks the authorization server whose each token is.
export const app = Fastify({ logger: { level: 'warn' } })

await app.register(remoteGuard, {
  issuer: ISSUER,
  origin: FILES,
  clientId: 'files-server',
  clientSecret: secret(DATA_DIR, 'files-server-secret'),
  scopes: ['read', 'write']
})

refuseForeignHosts(app, FILES)

app.route({
  method: ['GET', 'POST', 'DELETE'],
  url: '/mcp',
  onRequest: app.oauth.protect({ scopes: ['read'] }),
  handler: async (request) => {
    const grant = /** @type {import('fastify-mcp-oauth').RequestGrant} */ (request.oauth)
    // Which tool is called is in the body, so what it needs beyond `read` is asked for here.
    if (calls(request.body).includes('write_file')) grant.require('write')
    return await mcp.fetch(await toWebRequest(request.raw, request.body), { authInfo: grant.authInfo(), parsedBody: request.body })
  }
})

/**
 * The tools that a JSON-RPC message, or a batch of them, calls.
 *
 * @param {unknown} body
 */
function calls (body) {
  return [body].flat().map((message) => /** @type {{ params?: { name?: string } } | null} */ (message)?.params?.name)
}

/** @type {Map<string, Map<string, string>>} each user's files, as long as the server runs */
const everyone = new Map()

const mcp = createMcpHandler(({ authInfo }) => {
  const userId = String(authInfo?.extra?.userId)
  const files = everyone.get(userId) ?? new Map()
  const server = new McpServer({ name: 'demo-files', version: '1.0.0' })
  server.registerTool('list_files', { description: 'Lists your files.' }, async () => ({
    content: [{ type: 'text', text: [...files.keys()].join('\n') || 'There are no files yet.' }]
  }))
  server.registerTool('write_file', {
    description: 'Writes a file.',
    inputSchema: z.object({ name: z.string().min(1).max(100), text: z.string().max(1000) })
  }, async ({ name, text }) => {
    everyone.set(userId, files.set(name, text))
    return { content: [{ type: 'text', text: 'Written.' }] }
  })
  return server
})

await app.listen({ port: Number(new URL(FILES).port) })
