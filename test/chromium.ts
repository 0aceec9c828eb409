import { execFileSync, spawnSync } from 'node:child_process'
import { createReadStream, createWriteStream, existsSync, mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { fileURLToPath } from 'node:url'
import { createBrotliDecompress } from 'node:zlib'
import type { Test } from 'tap'
import type * as playwright from './programs/node_modules/playwright-core/index.js'

const programs = createRequire(new URL('programs/package.json', import.meta.url))
const PACKED = new URL('programs/node_modules/@sparticuz/chromium/bin/', import.meta.url)
/** Where it is unpacked, once for all runs; `npm ci` there takes it away again. */
const UNPACKED = fileURLToPath(new URL('programs/node_modules/.chromium', import.meta.url))
const START_TIMEOUT = 60_000

/** The source of axe-core, to be run in a page. */
export const axe = (): string => programs.resolve('axe-core/axe.min.js')

/** A browser, closed with the test: the one that npm brought, or the executable that TEST_CHROMIUM names. */
export async function startChromium (t: Test): Promise<playwright.Browser> {
  const { chromium } = programs('playwright-core') as typeof playwright
  const { executablePath, env } = process.env.TEST_CHROMIUM === undefined
    ? await unpacked()
    : { executablePath: process.env.TEST_CHROMIUM, env: {} }
  const browser = await chromium.launch({
    executablePath,
    // Without a sandbox it runs as root and in containers. The package's own arguments would switch off what is tested here.
    args: ['--no-sandbox', '--disable-dev-shm-usage', '--headless=shell', '--disable-gpu'],
    env: { ...process.env, NODE_OPTIONS: '', ...env },
    timeout: START_TIMEOUT
  })
  t.teardown(() => browser.close())
  return browser
}

async function unpacked (): Promise<{ executablePath: string, env: Record<string, string> }> {
  if (!existsSync(UNPACKED)) {
    // Aside first: another run may be doing the same.
    const aside = mkdtempSync(`${UNPACKED}-`)
    await unpack('chromium.br', createWriteStream(join(aside, 'chromium'), { mode: 0o755 }))
    for (const archive of ['al2023', 'fonts']) {
      const tar = join(aside, `${archive}.tar`)
      await unpack(`${archive}.tar.br`, createWriteStream(tar))
      execFileSync('tar', ['-xf', tar, '-C', aside, '--no-same-owner'])
      rmSync(tar)
    }
    // Theirs names folders of the cloud that the package is made for.
    writeFileSync(join(aside, 'fonts.conf'), `<fontconfig><dir>${UNPACKED}/fonts</dir><cachedir>${UNPACKED}/fonts-cache</cachedir></fontconfig>\n`)
    try {
      renameSync(aside, UNPACKED)
    } catch {
      rmSync(aside, { recursive: true })
    }
  }
  const executablePath = join(UNPACKED, 'chromium')
  const starts = spawnSync(executablePath, ['--version'], { timeout: START_TIMEOUT }).status === 0
  return {
    executablePath,
    env: {
      // Where libnss3 is missing, mostly.
      ...(!starts && { LD_LIBRARY_PATH: join(UNPACKED, 'lib') }),
      ...(!existsSync('/usr/share/fonts') && { FONTCONFIG_PATH: UNPACKED })
    }
  }
}

async function unpack (name: string, target: NodeJS.WritableStream): Promise<void> {
  await pipeline(createReadStream(new URL(name, PACKED)), createBrotliDecompress(), target)
}
