// Redirect URIs are compared as strings (RFC 9700 §2.1); only a loopback port may differ (RFC 8252 §7.3). Nothing here
// normalizes: what was registered is what the browser is sent to.

const LOOPBACK = /^(http:\/\/(?:localhost|127\.0\.0\.1|\[::1\]))(:\d{1,5})?(?=[/?]|$)/
// RFC 3986 characters less the fragment: no spaces, no controls, no backslash that a browser would read as a slash.
const URI_CHARACTERS = /^[A-Za-z0-9\-._~:/?[\]@!$&'()*+,;=%]+$/
const NEVER = new Set(['javascript:', 'data:', 'vbscript:', 'file:', 'blob:', 'about:', 'filesystem:', 'view-source:',
  'ws:', 'wss:', 'ftp:', 'mailto:', 'tel:', 'intent:'])

/** `http` to exactly `localhost`, `127.0.0.1` or `[::1]`, any port, no fragment, no userinfo. */
export function isLoopbackRedirectUri (uri: string): boolean {
  return LOOPBACK.test(uri) && URI_CHARACTERS.test(uri) && URL.canParse(uri)
}

/**
 * A URI that an app's developer may allow: https, loopback http, or a private-use scheme (RFC 8252 §7.1) such as
 * `cursor://…`. Never one that a browser would run or open as a file.
 */
export function isRedirectUri (uri: string): boolean {
  if (isLoopbackRedirectUri(uri)) return true
  if (!URI_CHARACTERS.test(uri) || !URL.canParse(uri)) return false
  const { protocol } = new URL(uri)
  // Two slashes, no more and no less: a parser makes up for it, but a browser takes `https:host` for a path of this site.
  const isWhole = protocol !== 'https:' || /^https:\/\/[^/]/.test(uri)
  return uri.startsWith(protocol) && isWhole && protocol !== 'http:' && !NEVER.has(protocol) && !/^[^:]*:\/\/[^/?]*@/.test(uri)
}

/** A loopback URI without its port, any other URI as it is: the form in which two registrations are the same. */
export function withoutLoopbackPort (uri: string): string {
  return isLoopbackRedirectUri(uri) ? uri.replace(LOOPBACK, '$1') : uri
}

/** Exact, but for the port of a loopback URI. `localhost` and `127.0.0.1` stay different. */
export function redirectUriMatches (registered: string, presented: string): boolean {
  return registered === presented ||
    (isLoopbackRedirectUri(presented) && withoutLoopbackPort(registered) === withoutLoopbackPort(presented))
}

/** The host that receives the code, without the port of a program on this computer; for a private-use scheme the scheme itself, `cursor:`. */
export function redirectHost (uri: string): string {
  const { protocol, hostname, host } = new URL(uri)
  return protocol === 'https:' ? host : protocol === 'http:' ? hostname : protocol
}

/** Whether `redirectHost` named this computer. */
export function isLoopbackHost (host: string): boolean {
  return host === 'localhost' || host === '127.0.0.1' || host === '[::1]'
}

/**
 * The redirect URI with the response parameters added to whatever query it has.
 * RFC 6749 §4.1.2: the registered query is kept as it is.
 */
export function authorizationResponse (redirectUri: string, parameters: Record<string, string | undefined>): string {
  const query = Object.entries(parameters).flatMap(([name, value]) =>
    value === undefined ? [] : [`${name}=${encodeURIComponent(value)}`])
  return redirectUri + (redirectUri.includes('?') ? '&' : '?') + query.join('&')
}
