import { once } from 'node:events'
import { createServer } from 'node:net'
import process from 'node:process'

// Below what systems hand out by themselves, to connections and to servers that do not care: a port of those may be gone
// before it is used, and while a server that comes back to it is down.
const [FIRST, LAST] = [10_000, 32_000]

let next = FIRST + process.pid * 97 % (LAST - FIRST)

/** A port that nobody has, and nobody gets who does not ask for it. Another one each time. */
export async function freePort () {
  for (;;) {
    const port = next++
    if (next > LAST) next = FIRST
    const server = createServer().listen(port)
    try {
      await once(server, 'listening')
    } catch {
      continue
    }
    server.close()
    await once(server, 'close')
    return port
  }
}
