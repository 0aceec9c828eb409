// @ts-check
import { randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

/**
 * A secret of this installation, made on first use. A real app takes it from its environment.
 *
 * @param {string} dataDir
 * @param {string} name
 */
export function secret (dataDir, name) {
  mkdirSync(dataDir, { recursive: true })
  const file = join(dataDir, name)
  if (!existsSync(file)) writeFileSync(file, randomBytes(32).toString('base64url'), { mode: 0o600 })
  return readFileSync(file, 'utf8')
}
