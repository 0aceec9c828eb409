// @ts-check
import { Client, StreamableHTTPClientTransport } from '@modelcontextprotocol/client'
import { NotConnectedError, ReconnectRequiredError, createConnections } from 'fastify-mcp-oauth/connections'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { openQueue } from './queue.js'
import { DATA_DIR, connectionOptions } from './settings.js'

// A process without a web server, and without a browser: it does what users have asked for, as each of them.
const options = connectionOptions()
const connections = createConnections(options)
const queue = await openQueue()

await queue.work('digest', { pollingIntervalSeconds: 0.5 }, async (jobs) => {
  for (const { data } of jobs) {
    const { userId } = /** @type {{ userId: string }} */ (data)
    writeFileSync(join(DATA_DIR, `digest of ${userId}.txt`), await digestOf(userId))
  }
})

/** @param {string} userId */
async function digestOf (userId) {
  const client = new Client({ name: 'demo-digest', version: '1.0.0' })
  try {
    await client.connect(new StreamableHTTPClientTransport(new URL(options.servers.notes.url), { authProvider: connections.provider(userId, 'notes') }))
    const { content } = await client.callTool({ name: 'list_notes' })
    return /** @type {Array<{ text: string }>} */ (content).map(({ text }) => text).join('\n')
  } catch (error) {
    // Only the user can help, and waits for word. Whatever else it is may pass: the queue tries again.
    if (error instanceof NotConnectedError) return 'Connect Demo Notes first.'
    if (error instanceof ReconnectRequiredError) return 'Demo Notes ended the connection. Connect it again.'
    throw error
  } finally {
    await client.close()
  }
}

process.on('SIGTERM', async () => {
  await queue.stop()
  await connections.close()
  process.exit(0)
})
