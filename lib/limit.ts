import { LRUCache } from 'lru-cache'

/** So many times in so many milliseconds, which begin with the first; for each key, of which the last 10,000 are known. */
export class Limit {
  readonly #max: number
  readonly #times: LRUCache<string, number>

  constructor (max: number, milliseconds: number) {
    this.#max = max
    this.#times = new LRUCache({ max: 10_000, ttl: milliseconds })
  }

  /** Counts it, unless it is once too often. */
  allows (key: string): boolean {
    const times = (this.#times.get(key) ?? 0) + 1
    if (times > this.#max) return false
    this.#times.set(key, times, { noUpdateTTL: true })
    return true
  }
}
