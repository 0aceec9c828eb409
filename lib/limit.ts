import { LRUCache } from 'lru-cache'

/** How often something may be done, for each key: so many times in a stretch of milliseconds, which begins with the first. */
export class Limit {
  readonly #times: LRUCache<string, number>

  constructor (milliseconds: number) {
    this.#times = new LRUCache({ max: 10_000, ttl: milliseconds })
  }

  /** Counts it, unless it is once too often. */
  allows (key: string, max: number): boolean {
    const times = (this.#times.get(key) ?? 0) + 1
    if (times > max) return false
    this.#times.set(key, times, { noUpdateTTL: true })
    return true
  }
}
