// One server of the comparison in a process of its own: `node server.js <file> <options as JSON>`. Its parent asks it to
// write down requests ({ prepare, count, file }) and for what it has used so far ({ usage: true }).
import { writeFileSync } from 'node:fs'

const [file, options] = process.argv.slice(2)
const { port, prepare } = await (await import(`./targets/${file}`)).start(JSON.parse(options))

process.on('message', async ({ prepare: what, count, file }) => {
  if (what === undefined) return process.send({ cpu: process.cpuUsage(), rss: process.memoryUsage.rss() })
  const requests = await prepare[what](count)
  writeFileSync(file, JSON.stringify(requests))
  process.send({ prepared: requests.length })
})
process.on('disconnect', () => process.exit())
process.send({ port, scenarios: Object.keys(prepare) })
