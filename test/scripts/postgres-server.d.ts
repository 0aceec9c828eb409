/** A PostgreSQL server of one's own. */
export interface OwnServer {
  url: string
  /** Ends it at once, as a crash would, and returns when it is down. */
  stop: () => Promise<void>
  start: () => Promise<void>
  /** Ends it, and takes its files away. */
  remove: () => Promise<void>
}

export function startServer (flags?: readonly string[], under?: readonly string[]): Promise<OwnServer>
