import { once } from 'node:events'
import { createServer } from 'node:net'
import process from 'node:process'

// Below what systems hand out by themselves, to connections and to servers that do not care: a port of those may be gone
// before it is used, and while a server that comes back to it is down. And above 10080, which fetch() refuses to ask.
const [FIRST, LAST] = [10_100, 32_000]
const BLOCK = 50

let block = FIRST + process.pid * 7 * BLOCK % (LAST - FIRST)
let left = 0

/** A port that nobody has, and nobody gets who does not ask for it. Another one each time. */
export async function freePort () {
  for (;;) {
    if (left === 0) await claimBlock()
    const port = block + left--
    const server = await listen(port)
    if (server === undefined) continue
    server.close()
    await once(server, 'close')
    return port
  }
}

/** Ports that are this process's alone, by the first of them: it stays taken until the end. */
async function claimBlock () {
  do {
    block = block + BLOCK >= LAST ? FIRST : block + BLOCK
  } while (await listen(block) === undefined)
  left = BLOCK - 1
}

/** @param {number} port */
async function listen (port) {
  const server = createServer().listen(port).unref()
  try {
    await once(server, 'listening')
    return server
  } catch {
    return undefined
  }
}
