import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { Browser, callMcp, startExample, temporaryFolder } from './example.js'
import { consent, runProgram, type Program } from './program.js'
import { freePort } from './scripts/free-port.js'

// Whole programs of other people against the running example, as their users run them. Only the user is a script.
const UNLIMITED = { env: { RATE_LIMIT: 'off' } }
t.setTimeout(240_000)

/** A program that lists the tools of an MCP server. */
interface Client {
  name: string
  /** What the connected-apps page calls it. */
  clientName: string
  /** Runs it on what an earlier run left in a folder. */
  listTools: (t: Test, url: string, folder: string, ...args: string[]) => Promise<Program>
  /** What it says it found, once it has ended. */
  tools: (program: Program) => string[]
}

const names = ({ tools }: { tools: Array<{ name: string }> }): string[] => tools.map(({ name }) => name).sort()

const CLIENTS: Client[] = [
  {
    name: 'mcp-remote',
    clientName: 'MCP CLI Client',
    listTools: async (t, url, folder, ...args) => runProgram(t, 'mcp-remote/dist/client.js', [url, String(await freePort()), ...args], {
      env: { MCP_REMOTE_CONFIG_DIR: folder }
    }),
    tools: (program) => names(JSON.parse(program.stderr().match(/Tools: (\{.*?^\})/ms)?.[1] ?? '{"tools":[]}'))
  },
  {
    name: 'MCP Inspector',
    clientName: 'MCP Inspector',
    listTools: async (t, url, folder, ...args) => runProgram(t, '@modelcontextprotocol/inspector/clients/launcher/build/index.js', [
      '--cli', url, '--method', 'tools/list', '--format', 'json', '--callback-url', `http://127.0.0.1:${await freePort()}/oauth/callback`, ...args
    ], {
      env: { MCP_STORAGE_DIR: folder, MCP_INSPECTOR_SECRET_STORE: 'file', MCP_AUTO_OPEN_ENABLED: 'true' }
    }),
    tools: (program) => names(JSON.parse(program.stdout() || '{"result":{"tools":[]}}').result)
  }
]

for (const { name, clientName, listTools, tools } of CLIENTS) {
  t.test(`${name} logs in twice, keeps its logins over a restart of the server, logs in once more, and is one entry`, async (t) => {
    const example = await startExample(t, UNLIMITED)
    const url = `${example.url}/mcp`
    const alice = new Browser(example, 'alice')
    const [folder, fresh, last] = [temporaryFolder(t), temporaryFolder(t), temporaryFolder(t)]

    const logIn = async (configuration: string, connections: number): Promise<void> => {
      const program = await listTools(t, url, configuration)
      await consent(program, alice)
      t.equal(await program.ends(), 0, program.stderr())
      t.strictSame(tools(program), ['add_note', 'list_notes'])
      const { apps } = await alice.connectedApps()
      t.match(apps, [{ name: clientName, connections }])
      t.equal(apps.length, 1)
    }

    await logIn(folder, 1)
    await logIn(fresh, 2)
    await example.stop()
    await startExample(t, { ...UNLIMITED, dataDir: example.dataDir, port: example.port })
    for (const configuration of [folder, fresh]) {
      const program = await listTools(t, url, configuration)
      t.equal(await program.ends(), 0, program.stderr())
      t.strictSame(tools(program), ['add_note', 'list_notes'])
      t.notMatch(program.stderr(), '/oauth/authorize', 'without asking its user')
    }
    await logIn(last, 3)
  })
}

t.test('the revocation request of MCP Inspector ends the connection that it logs in anew for (RFC 7009)', async (t) => {
  const { listTools, tools } = CLIENTS[1]!
  const example = await startExample(t, UNLIMITED)
  const url = `${example.url}/mcp`
  const alice = new Browser(example, 'alice')
  const folder = temporaryFolder(t)
  const logIn = async (...args: string[]): Promise<void> => {
    const program = await listTools(t, url, folder, ...args)
    await consent(program, alice)
    t.equal(await program.ends(), 0, program.stderr())
    t.notMatch(program.stderr(), 'could not revoke')
    t.strictSame(tools(program), ['add_note', 'list_notes'])
  }
  const connections = async (): Promise<number | undefined> => (await alice.connectedApps()).apps[0]?.connections
  const accessToken = (): string => readFileSync(join(folder, 'secrets.json'), 'utf8').match(/oat_[\w-]{43}/)![0]

  await logIn()
  const first = accessToken()

  // 2.12.0 revokes at the endpoint that its state names as `serverMetadata`, but a login writes that nowhere: alone it
  // sends no request. What it found out is put there for it; the request is then its own.
  const file = join(folder, 'oauth.json')
  const state = JSON.parse(readFileSync(file, 'utf8')) as { servers: Record<string, { discoveryState: { authorizationServerMetadata: unknown }, serverMetadata?: unknown }> }
  t.equal(state.servers[url]!.serverMetadata, undefined, 'if it does by now, the next line can go')
  state.servers[url]!.serverMetadata = state.servers[url]!.discoveryState.authorizationServerMetadata
  writeFileSync(file, JSON.stringify(state))

  await logIn('--relogin')
  t.not(accessToken(), first)
  t.equal((await callMcp(url, first, 'tools/list')).status, 401, 'the old token is worth nothing')
  t.equal(await connections(), 1)

  await logIn('--relogin', '--no-revoke')
  t.equal(await connections(), 2, 'while a login that only forgets leaves it')
})
