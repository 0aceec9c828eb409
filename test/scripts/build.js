// Compiles the tests, each beside its source, and leaves nothing there of a test that is no more.
import { spawnSync } from 'node:child_process'
import { readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import process from 'node:process'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('../..', import.meta.url))
for (const folder of ['test', 'test/store']) {
  for (const file of readdirSync(join(root, folder))) if (file.endsWith('.js')) rmSync(join(root, folder, file))
}
process.exit(spawnSync(process.execPath, [join(root, 'node_modules/typescript-7/bin/tsc'), '-p', join(root, 'test')], { stdio: 'inherit' }).status ?? 1)
