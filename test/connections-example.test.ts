import { setTimeout } from 'node:timers/promises'
import t from 'tap'
import { Browser, callTool, startExample } from './example.js'
import { freePort } from './scripts/free-port.js'
import { SDKS } from './sdk.js'

// examples/connections, as its users start it: a notes server, an app that its users connect there, and a worker.

t.test('alice and bob connect their notes, and the worker reads them for each', async (t) => {
  const [notes, digest] = [`http://localhost:${await freePort()}`, `http://127.0.0.1:${await freePort()}`]
  const example = await startExample(t, {
    program: 'connections/main.js', port: Number(new URL(digest).port), host: '127.0.0.1', ready: '/login', prints: 'let it add some', env: { NOTES: notes, DIGEST: digest }
  })

  for (const user of ['alice', 'bob']) {
    const [there, here] = [new Browser({ url: notes }, user), new Browser({ url: digest }, user)]
    // A note, from an MCP client of the user's own.
    const [sdk] = SDKS
    const provider = sdk!.provider()
    const first = sdk!.session(`${notes}/mcp`, provider)
    await t.rejects(first.connect())
    await first.finishAuth((await provider.askUser(there)).callback)
    await first.close()
    const { access_token: token } = provider.tokens()!
    await callTool(`${notes}/mcp`, token, 'list_notes')

    const digestOf = async (expected: RegExp): Promise<void> => {
      await here.signIn()
      await here.post('/digest', [])
      let html = ''
      for (let attempt = 0; attempt < 200 && !expected.test(html); attempt++) {
        html = (await here.follow(await here.fetch('/'))).html
        await setTimeout(50)
      }
      t.match(html, expected)
    }
    await digestOf(/Connect Demo Notes first/)
    t.match(await here.connect('notes', there), /Connected\./)
    await digestOf(/There are no notes yet/)
    const { apps } = await there.connectedApps()
    const app = apps.find(({ name }) => name === 'Demo Digest')!
    t.ok(app)
    await there.disconnect(app.clientId)
    await digestOf(/ended the connection/)
  }
  const { code } = await example.stop()
  t.equal(code, 0)
})
