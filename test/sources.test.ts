import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import t from 'tap'

const root = fileURLToPath(new URL('..', import.meta.url))

async function complaints (program: string, args: string[]): Promise<string> {
  const { stdout = '', stderr = '' } = await promisify(execFile)('env', ['-u', 'NODE_OPTIONS', process.execPath, `node_modules/${program}`, ...args], { cwd: root, env: { PATH: process.env.PATH } }).catch((error) => error)
  return stdout + stderr
}

t.test('ESLint has nothing against any file', async (t) => {
  t.equal(await complaints('eslint/bin/eslint.js', ['.']), '')
})

t.test('the types of the examples hold', async (t) => {
  t.equal(await complaints('typescript/bin/tsc', ['-p', 'examples']), '')
})
