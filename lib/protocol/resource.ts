/** Something that tokens are for: one protected resource. RFC 9728, RFC 8707. */
export interface Resource {
  /** Path as the client sees it, `/mcp`; null where another server serves it. */
  path: string | null
  /** The canonical URL, byte for byte what the user gives to a client: never with a trailing slash. */
  uri: string
  name?: string | undefined
  scopes: readonly string[]
  documentation?: string | undefined
  /** Absolute URL of its RFC 9728 document. */
  metadataUrl: string
}

/**
 * The resource that a `resource` parameter names, or undefined. Tolerant of the case of scheme and host and of one
 * trailing slash, since clients differ there; of nothing else.
 */
export function findResource (value: string, resources: readonly Resource[]): Resource | undefined {
  // Compared as sent: URL would resolve dot segments and drop spaces, and two spellings of one path are not one resource.
  const [, origin, path = ''] = /^([^/]+:\/\/[^/]+)(\/.*)?$/.exec(value) ?? []
  return origin === undefined ? undefined : resources.find(({ uri }) => uri === origin.toLowerCase() + path.replace(/\/$/, ''))
}
