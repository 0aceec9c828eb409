// @ts-check
import { FILES, ISSUER } from './addresses.js'
import { app as authorizationServer } from './authorization-server.js'
import { app as filesServer } from './files-server.js'

console.log(`
Demo Files is running at ${FILES}, its authorization server at ${ISSUER}.
Give your MCP client this URL, and nothing else:

  ${FILES}/mcp

  Claude Code     claude mcp add --transport http files ${FILES}/mcp     then /mcp, files, Authenticate
  VS Code         code --add-mcp '{"name":"files","type":"http","url":"${FILES}/mcp"}'
  MCP Inspector   npx @modelcontextprotocol/inspector     Transport: Streamable HTTP

Sign in as alice or bob. Connected apps: ${ISSUER}/my/connected_apps
`)

for (const signal of ['SIGTERM', 'SIGINT']) {
  process.on(signal, async () => {
    setTimeout(() => process.exit(0), 2000)
    await Promise.all([authorizationServer.close(), filesServer.close()])
    process.exit(0)
  })
}
