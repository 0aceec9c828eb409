import { setImmediate } from 'node:timers/promises'

/** Milliseconds. */
const DELAY = 1000
/** So many are written at once: some milliseconds' work, after which requests have their turn. */
const PART = 500

/**
 * Collects "this grant was used just now" and writes it a second later, once for a grant however often it was used.
 * What cannot be written is dropped: the next use brings it back.
 */
export class LastUsed {
  readonly #write: (uses: ReadonlyMap<string, number>) => void | Promise<void>
  #uses = new Map<string, number>()
  #timer: NodeJS.Timeout | undefined
  #writing: Promise<void> = Promise.resolve()

  constructor (write: (uses: ReadonlyMap<string, number>) => void | Promise<void>) {
    this.#write = write
  }

  touch (grantId: string, now: number): void {
    this.#uses.set(grantId, now)
    this.#timer ??= setTimeout(() => this.flush(), DELAY).unref()
  }

  /** Returns when all is written that was noted before, also what an earlier call is still at. */
  async flush (): Promise<void> {
    clearTimeout(this.#timer)
    this.#timer = undefined
    const uses = [...this.#uses]
    this.#uses = new Map()
    this.#writing = this.#writing.then(async () => await this.#writeParts(uses))
    await this.#writing
  }

  async #writeParts (uses: Array<[grantId: string, usedAt: number]>): Promise<void> {
    try {
      while (uses.length > 0) {
        await this.#write(new Map(uses.splice(0, PART)))
        await setImmediate()
      }
    } catch {}
  }
}
