// @ts-check
import { McpServer, createMcpHandler } from '@modelcontextprotocol/server'
import { toWebRequest } from '@modelcontextprotocol/node'
import * as z from 'zod'
import { refuseForeignHosts } from './hosts.js'

/** The scope that each tool needs beyond `read`. */
const TOOL_SCOPES = new Map([['add_note', 'write']])

/**
 * POST /mcp: the MCP server, for whoever holds a token.
 *
 * @param {import('fastify').FastifyInstance} app
 * @param {{ issuer: string, notes: import('./notes.js').Notes }} options
 */
export async function mcpEndpoint (app, { issuer, notes }) {
  const mcp = createMcpHandler(({ authInfo }) => notesServer(notes, String(authInfo?.extra?.userId)))
  refuseForeignHosts(app, issuer)

  app.route({
    method: ['GET', 'POST', 'DELETE'],
    url: '/mcp',
    onRequest: app.oauth.protect({ scopes: ['read'] }),
    handler: async (request) => {
      const grant = /** @type {import('fastify-mcp-oauth').RequestGrant} */ (request.oauth)
      // Which scope a call needs is in its body, so it is asked for here: a grant without it gets the 403 challenge.
      grant.require(...scopesOf(request.body))
      return await mcp.fetch(await toWebRequest(request.raw, request.body), { authInfo: grant.authInfo(), parsedBody: request.body })
    }
  })
}

/** @param {unknown} body one JSON-RPC message, or a batch of them */
function scopesOf (body) {
  return [body].flat().flatMap((message) => {
    const { method, params } = /** @type {{ method?: string, params?: { name?: string } }} */ (message ?? {})
    return method === 'tools/call' ? TOOL_SCOPES.get(params?.name ?? '') ?? [] : []
  })
}

/**
 * @param {import('./notes.js').Notes} notes
 * @param {string} userId
 */
function notesServer (notes, userId) {
  const server = new McpServer({ name: 'demo-notes', version: '1.0.0' })
  server.registerTool('list_notes', { description: 'Lists your notes, oldest first.' }, async () => ({
    content: [{ type: 'text', text: notes.list(userId).map((note) => `- ${note}`).join('\n') || 'There are no notes yet.' }]
  }))
  server.registerTool('add_note', {
    description: 'Adds a note.',
    inputSchema: z.object({ text: z.string().min(1).max(1000).describe('What to write down') })
  }, async ({ text }) => {
    notes.add(userId, text)
    return { content: [{ type: 'text', text: 'Added.' }] }
  })
  return server
}
