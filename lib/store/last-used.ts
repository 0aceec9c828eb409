const FLUSH_INTERVAL = 10_000

/**
 * Collects "this grant was used just now" and writes it later, once for a grant however often it was used.
 * A failed flush is dropped: it is a hint for people, and the next use brings it back.
 */
export class LastUsed {
  readonly #flush: (uses: ReadonlyMap<string, number>) => void | Promise<void>
  readonly #timer: NodeJS.Timeout
  #uses = new Map<string, number>()

  constructor (flush: (uses: ReadonlyMap<string, number>) => void | Promise<void>) {
    this.#flush = flush
    this.#timer = setInterval(() => this.flush(), FLUSH_INTERVAL).unref()
  }

  touch (grantId: string, now: number): void {
    this.#uses.set(grantId, now)
  }

  async flush (): Promise<void> {
    if (this.#uses.size === 0) return
    const uses = this.#uses
    this.#uses = new Map()
    try {
      await this.#flush(uses)
    } catch {}
  }

  async close (): Promise<void> {
    clearInterval(this.#timer)
    await this.flush()
  }
}
