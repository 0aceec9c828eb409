import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import t from 'tap'

const root = fileURLToPath(new URL('..', import.meta.url))

/** How a program ends, and all that it says. */
async function run (program: string, args: string[]): Promise<{ code: unknown, output: string }> {
  return await new Promise((resolve) => {
    execFile('env', ['-u', 'NODE_OPTIONS', process.execPath, `node_modules/${program}`, ...args], { cwd: root, env: { PATH: process.env.PATH } }, (error, stdout, stderr) => {
      resolve({ code: error === null ? 0 : error.code ?? error.signal, output: stdout + stderr })
    })
  })
}

t.test('ESLint has nothing against any file', async (t) => {
  t.strictSame(await run('eslint/bin/eslint.js', ['.']), { code: 0, output: '' })
})

t.test('the types of the examples hold', async (t) => {
  t.strictSame(await run('typescript-7/bin/tsc', ['-p', 'examples']), { code: 0, output: '' })
})
