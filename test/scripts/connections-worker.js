// @ts-check
import { register } from 'node:module'
import process from 'node:process'

// A background job in a process of its own: calls a tool as a user, and prints what came of it.

const { sdk, without, url, user, server, keys, store } = JSON.parse(String(process.env.WORKER))
if (without) register(new URL('without-package.js', import.meta.url), { data: without })

const { createConnections, sqliteConnectionStore } = await import('../../dist/connections/index.js')
const { postgresConnectionStore } = await import('../../dist/connections/postgres.js')
const { SDKS } = await import('../sdk.js')

const connections = createConnections({
  keys,
  store: store.sqlite ? sqliteConnectionStore({ path: store.sqlite }) : postgresConnectionStore(store.postgres),
  servers: { [server]: { url } }
})
try {
  const session = SDKS[sdk].session(url, /** @type {any} */ (connections.provider(user, server)))
  await session.connect()
  process.stdout.write(await session.call('list_notes'))
  await session.close()
} catch (error) {
  process.stdout.write(String(error))
} finally {
  await connections.close()
}
