// @ts-check
import { fileURLToPath } from 'node:url'
import { buildApp } from './app.js'

const { PORT = '3000', HOST = 'localhost', RATE_LIMIT, LOG_LEVEL = 'warn' } = process.env
const issuer = process.env.ISSUER ?? `http://localhost:${PORT}`
const dataDir = process.env.DATA_DIR ?? fileURLToPath(new URL('../../.data', import.meta.url))

const app = await buildApp({
  issuer,
  dataDir,
  logger: { level: LOG_LEVEL },
  ...(RATE_LIMIT === 'off' && { rateLimit: false })
})
await app.listen({ port: Number(PORT), host: HOST })

console.log(`
Demo Notes is running. Give your MCP client this URL, and nothing else:

  ${issuer}/mcp

  Claude Code     claude mcp add --transport http notes ${issuer}/mcp     then /mcp, notes, Authenticate
  VS Code         code --add-mcp '{"name":"notes","type":"http","url":"${issuer}/mcp"}'
  MCP Inspector   npx @modelcontextprotocol/inspector     Transport: Streamable HTTP

Sign in as alice or bob. Connected apps: ${issuer}/my/connected_apps
`)

for (const signal of ['SIGTERM', 'SIGINT']) {
  // Requests under way are answered; connections that stay open all the same are not waited for.
  process.on(signal, async () => {
    setTimeout(() => process.exit(0), 2000)
    await app.close()
    process.exit(0)
  })
}
