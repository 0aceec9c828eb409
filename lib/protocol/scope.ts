/** A scope's description for the consent page, with the scopes that it brings along. */
export interface ScopeDefinition {
  description: string
  implies?: readonly string[]
}

/** One or more of RFC 6749 §3.3's scope-token characters. */
const SCOPE_TOKEN = /^[!#-[\]-~]+$/

export function isScopeToken (value: string): boolean {
  return SCOPE_TOKEN.test(value)
}

/** `scope` as it travels: names divided by single spaces. */
export function formatScope (scopes: readonly string[]): string {
  return scopes.join(' ')
}

/** The names in a wire `scope`; an absent or empty one holds none. */
export function parseScope (scope: string | undefined): string[] {
  return scope === undefined ? [] : scope.split(' ').filter((name) => name !== '')
}

/** The scopes of an app, in the order of its option. */
export class ScopeCatalogue {
  readonly names: readonly string[]
  readonly #definitions: ReadonlyMap<string, ScopeDefinition>

  constructor (definitions: ReadonlyMap<string, ScopeDefinition>) {
    this.#definitions = definitions
    this.names = [...definitions.keys()]
  }

  describe (name: string): string {
    return this.#definitions.get(name)?.description ?? name
  }

  /** What a form offers: each scope with its description and those of the scopes that it brings along. */
  choices (within: readonly string[] = this.names): Array<{ name: string, description: string, includes: string[] }> {
    return within.map((name) => ({
      name,
      description: this.describe(name),
      includes: this.expand([name], within).filter((other) => other !== name).map((other) => this.describe(other))
    }))
  }

  /**
   * The known ones among `names` and all that they imply, in catalogue order, no further than `within`.
   * Done when a grant is made, so that a token's scopes say all that it may do and checks need no closure.
   */
  expand (names: readonly string[], within: readonly string[] = this.names): string[] {
    const reached = new Set<string>()
    const visit = (name: string): void => {
      if (reached.has(name) || !this.#definitions.has(name)) return
      reached.add(name)
      this.#definitions.get(name)?.implies?.forEach(visit)
    }
    names.filter((name) => within.includes(name)).forEach(visit)
    return this.names.filter((name) => reached.has(name) && within.includes(name))
  }
}
