/* eslint no-template-curly-in-string: off -- what is searched for and put in its place is source */

// Defences, each with what it looks like without it and the cheapest tests that must notice: a number is that of a test in
// test/attacks.test.ts, a text `file: beginning of the test's name` or a file. `explained` says why nothing can notice.

/** @typedef {{ file: string, search: string, replace: string, tests: string[], why: string, explained?: string }} Mutation */

const attack = (number) => `test/attacks.test.ts: ${number}.`
const confidential = (name) => `test/confidential.test.ts: ${name}`
const document = (name) => `test/metadata-document.test.ts: ${name}`
const flow = (name) => `test/flow.test.ts: ${name}`
const guard = (name) => `test/guard.test.ts: ${name}`
const option = (name) => `test/options.test.ts: a wrong option is refused at boot by name, with what it got and what is expected: ${name}`
const protocol = (name) => `test/protocol.test.ts: ${name}`
const refresh = (name) => `test/refresh.test.ts: ${name}`

/** @type {Mutation[]} */
export default [
  // Whose a code is

  {
    file: 'lib/protocol/authorization-code.ts',
    search: 'code.clientId !== clientId',
    replace: 'false',
    tests: [attack(8)],
    why: 'a code is for its client'
  },
  {
    file: 'lib/protocol/authorization-code.ts',
    search: 'redirectUri !== undefined && redirectUri !== code.redirectUri',
    replace: 'false',
    tests: [attack(8)],
    why: 'a code is for its redirect URI'
  },
  {
    file: 'lib/protocol/authorization-code.ts',
    search: "parameters.has('resource') && resource !== code.resource",
    replace: 'false',
    tests: [attack(25)],
    why: 'a code is for its resource'
  },
  {
    file: 'lib/protocol/authorization-code.ts',
    search: 'codeVerifier === undefined || !isCodeVerifier(codeVerifier)',
    replace: 'codeVerifier === undefined',
    tests: [attack(7)],
    why: 'a verifier has the form of one'
  },
  {
    file: 'lib/protocol/authorization-code.ts',
    search: "const codeVerifier = parameters.get('code_verifier')",
    replace: "const codeVerifier = parameters.get('code_verifier')\n  if (codeVerifier === undefined) return",
    tests: [attack(7)],
    why: 'a verifier is there'
  },
  {
    file: 'lib/protocol/authorization-code.ts',
    search: '!codeVerifierMatches(codeVerifier, code.codeChallenge)',
    replace: 'false',
    tests: [attack(6)],
    why: 'a verifier matches its challenge'
  },
  {
    file: 'lib/protocol/pkce.ts',
    search: '{43,128}',
    replace: '{42,128}',
    tests: [attack(7)],
    why: 'a verifier is not too short'
  },
  {
    file: 'lib/protocol/pkce.ts',
    search: '{43,128}',
    replace: '{43,}',
    tests: [attack(7)],
    why: 'a verifier is not too long'
  },
  {
    file: 'lib/protocol/pkce.ts',
    search: '{43}$',
    replace: '{42,}$',
    tests: [attack(7)],
    why: 'a challenge is 43 characters'
  },
  {
    file: 'lib/protocol/pkce.ts',
    search: 'presented.length === expected.length && timingSafeEqual(presented, expected)',
    replace: 'presented.subarray(0, 1).equals(expected.subarray(0, 1)) || presented.length === expected.length',
    tests: [attack(6)],
    why: 'a verifier is compared to its last byte'
  },

  // Authorization requests

  {
    file: 'lib/protocol/authorization-request.ts',
    search: '!registered.some((uri) => redirectUriMatches(uri, presented))',
    replace: 'false',
    tests: [attack(11)],
    why: 'a redirect URI is registered'
  },
  {
    file: 'lib/protocol/authorization-request.ts',
    search: "throw new OAuthError('invalid_request', 'The redirect_uri is missing.', { reason: 'redirect_uri_missing' })",
    replace: 'return registered[0]',
    tests: [attack(11)],
    why: 'a redirect URI is named'
  },
  {
    file: 'lib/protocol/authorization-request.ts',
    search: "throw new OAuthError('invalid_request', 'The redirect_uri is not registered for this client.', { reason: 'redirect_uri_unregistered' })",
    replace: "throw new AuthorizationError('invalid_request', 'The redirect_uri is not registered for this client.', { redirectUri: presented, state: undefined, reason: 'redirect_uri_unregistered' })",
    tests: [attack(11)],
    why: 'an error about a redirect URI does not go there'
  },
  {
    file: 'lib/protocol/authorization-request.ts',
    search: "client.vouchedForBy !== undefined && redirectUri.startsWith('https:') ? LinkedAuthorizationError : AuthorizationError",
    replace: 'AuthorizationError',
    tests: [attack(36)],
    why: 'an error leads to no stranger’s https redirect URI by itself'
  },
  {
    file: 'lib/protocol/authorization-request.ts',
    search: "responseType !== 'code'",
    replace: 'false',
    tests: [flow('other errors go back')],
    why: 'the response type is code'
  },
  {
    file: 'lib/protocol/authorization-request.ts',
    search: "const codeChallenge = parameters.get('code_challenge')",
    replace: "const codeChallenge = parameters.get('code_challenge') ?? 'A'.repeat(43)",
    tests: [attack(7)],
    why: 'PKCE is required'
  },
  {
    file: 'lib/protocol/authorization-request.ts',
    search: "parameters.get('code_challenge_method') !== 'S256'",
    replace: "!['S256', 'plain', undefined].includes(parameters.get('code_challenge_method'))",
    tests: [attack(7)],
    why: 'PKCE is S256, and not plain'
  },
  {
    file: 'lib/protocol/authorization-request.ts',
    search: '!isCodeChallenge(codeChallenge)',
    replace: 'false',
    tests: [attack(7)],
    why: 'a challenge has the form of one'
  },
  {
    file: 'lib/protocol/authorization-request.ts',
    search: 'findResource(named, known.resources)',
    replace: 'findResource(named, known.resources) ?? known.resources[0]',
    tests: [attack(12)],
    why: 'an unknown resource is not taken for another'
  },
  {
    file: 'lib/protocol/authorization-request.ts',
    search: 'resource.scopes : asked, resource.scopes)',
    replace: 'resource.scopes : asked)',
    tests: [attack(21)],
    why: 'a resource has its own scopes only'
  },
  {
    file: 'lib/protocol/authorization-request.ts',
    search: 'scopes.length === 0',
    replace: 'false',
    tests: [attack(15)],
    why: 'a request has a scope that exists'
  },
  {
    file: 'lib/endpoints/authorization.ts',
    search: 'if (user === null && settings.clientIdMetadata && isClientIdUrl(clientId)) return toLogin()',
    replace: 'if (user === null) return toLogin()',
    tests: [attack(11)],
    why: 'nobody signs in for a request that cannot succeed'
  },

  // Redirect URIs

  {
    file: 'lib/protocol/redirect-uri.ts',
    search: '(?=[/?]|$)/',
    replace: '/',
    tests: [attack(13)],
    why: 'a loopback host ends where it ends'
  },
  {
    file: 'lib/protocol/redirect-uri.ts',
    search: '/^(http:',
    replace: '/^(https?:',
    tests: [attack(13)],
    why: 'a loopback redirect URI is http'
  },
  {
    file: 'lib/protocol/redirect-uri.ts',
    search: '127\\.0\\.0\\.1|',
    replace: '(?:127|0)\\.0\\.0\\.[01]|',
    tests: [attack(13)],
    why: '0.0.0.0 is no loopback host'
  },
  {
    file: 'lib/protocol/redirect-uri.ts',
    search: 'LOOPBACK.test(uri) && URI_CHARACTERS.test(uri) && URL.canParse(uri)',
    replace: 'LOOPBACK.test(uri) && URL.canParse(uri)',
    tests: [attack(13)],
    why: 'a loopback redirect URI has no fragment, space or control character'
  },
  {
    file: 'lib/protocol/redirect-uri.ts',
    search: 'LOOPBACK.test(uri) && URI_CHARACTERS.test(uri) && URL.canParse(uri)',
    replace: 'LOOPBACK.test(uri) && URI_CHARACTERS.test(uri)',
    tests: [attack(13)],
    why: 'a loopback redirect URI is a URL'
  },
  {
    file: 'lib/protocol/redirect-uri.ts',
    search: ' && !NEVER.has(protocol)',
    replace: '',
    tests: [attack(12)],
    why: 'no redirect URI is one that a browser would run'
  },
  {
    file: 'lib/protocol/redirect-uri.ts',
    search: '!URI_CHARACTERS.test(uri) || ',
    replace: '',
    tests: [attack(12), protocol('no redirect URI is one that a browser')],
    why: 'a redirect URI has no fragment, space or control character'
  },
  {
    file: 'lib/protocol/redirect-uri.ts',
    search: 'uri.startsWith(protocol) && ',
    replace: '',
    tests: [protocol('no redirect URI is one that a browser')],
    why: 'a redirect URI is spelled as a browser reads it'
  },
  {
    file: 'lib/protocol/redirect-uri.ts',
    search: "protocol !== 'http:' && ",
    replace: '',
    tests: [protocol('no redirect URI is one that a browser')],
    why: 'nothing goes to another host in the clear'
  },
  {
    file: 'lib/protocol/redirect-uri.ts',
    search: ' && !/^[^:]*:\\/\\/[^/?]*@/.test(uri)',
    replace: '',
    tests: [protocol('no redirect URI is one that a browser')],
    why: 'a redirect URI has no userinfo'
  },
  {
    file: 'lib/protocol/redirect-uri.ts',
    search: 'registered === presented ||',
    replace: 'presented.startsWith(registered) ||',
    tests: [attack(14)],
    why: 'a redirect URI is compared as a whole'
  },
  {
    file: 'lib/protocol/redirect-uri.ts',
    search: 'registered === presented ||',
    replace: 'registered.toLowerCase() === presented.toLowerCase() ||',
    tests: [attack(14)],
    why: 'a redirect URI is compared to the letter'
  },
  {
    file: 'lib/protocol/redirect-uri.ts',
    search: 'withoutLoopbackPort(registered) === withoutLoopbackPort(presented))',
    replace: "withoutLoopbackPort(registered).split('?')[0] === withoutLoopbackPort(presented).split('?')[0])",
    tests: [attack(14)],
    why: 'a loopback redirect URI is compared with its query'
  },
  {
    file: 'lib/protocol/redirect-uri.ts',
    search: 'encodeURIComponent(value)',
    replace: 'value',
    tests: [attack(15)],
    why: 'what comes back to a client is encoded'
  },
  {
    file: 'lib/protocol/redirect-uri.ts',
    search: "redirectUri.includes('?') ? '&' : '?'",
    replace: "'?'",
    tests: [attack(15)],
    why: 'a redirect URI keeps its own query'
  },
  {
    file: 'lib/endpoints/authorization.ts',
    search: '{ code, state, iss: issuer }',
    replace: '{ code, state }',
    tests: [attack(15)],
    why: 'an answer says who gives it'
  },

  // Registration

  {
    file: 'lib/protocol/client-metadata.ts',
    search: 'isLoopbackRedirectUri(redirectUri) || listed.includes(redirectUri)',
    replace: "isLoopbackRedirectUri(redirectUri) || redirectUri.startsWith('http')",
    tests: [attack(13)],
    why: 'only this computer registers by itself'
  },
  {
    file: 'lib/protocol/client-metadata.ts',
    search: 'isLoopbackRedirectUri(redirectUri) || listed.includes(redirectUri)',
    replace: 'true',
    tests: [attack(12)],
    why: 'nothing that a browser would run registers'
  },
  {
    file: 'lib/protocol/client-metadata.ts',
    search: 'allowed.length > MAX_REDIRECT_URIS',
    replace: 'false',
    tests: [attack(17)],
    why: 'a client has ten redirect URIs'
  },
  {
    file: 'lib/protocol/client-metadata.ts',
    search: '[...name].length > MAX_NAME_CHARACTERS',
    replace: 'false',
    tests: [attack(17)],
    why: 'a name has a hundred characters'
  },
  {
    file: 'lib/protocol/client-metadata.ts',
    search: 'if (!isObject(body)) throw invalid',
    replace: 'if (false) throw invalid',
    tests: [attack(17)],
    why: 'a registration is an object'
  },
  {
    file: 'lib/protocol/client-metadata.ts',
    search: '!isStrings(value) || value.length === 0',
    replace: 'value === undefined',
    tests: [attack(17)],
    why: 'redirect URIs are a list of strings'
  },
  {
    file: 'lib/protocol/client-metadata.ts',
    search: '.replace(/[\\p{C}\\p{DI}\\p{Zl}\\p{Zp}\\u2800]+/gu, (run) => /[\\t\\n\\r\\p{Zl}\\p{Zp}]/u.test(run) ? \' \' : \'\')',
    replace: '',
    tests: [attack(19)],
    why: 'a name hides and turns round nothing'
  },
  {
    file: 'lib/protocol/client-metadata.ts',
    search: ".replace(/(\\p{M}{2})\\p{M}+/gu, '$1')",
    replace: '',
    tests: [protocol('a name holds at most two combining marks')],
    why: 'a name holds no pile of accents'
  },
  {
    file: 'lib/protocol/client-metadata.ts',
    search: '\n    .filter((type) => policy.grantTypes.includes(type))',
    replace: '',
    tests: [confidential('registration never brings client_credentials')],
    why: 'a client registers for no other grant'
  },
  {
    file: 'lib/clients/registered.ts',
    search: 'clientId.length > MAX_CLIENT_ID_LENGTH',
    replace: 'false',
    tests: [attack(17)],
    why: 'a client id has 2 kB'
  },
  {
    file: 'lib/clients/registered.ts',
    search: 'await signer.verify(clientId)',
    replace: "await signer.verify(clientId) ?? (clientId.endsWith('.') ? JSON.parse(Buffer.from(clientId.split('.')[1] ?? '', 'base64url').toString()) : undefined)",
    tests: [attack(18)],
    why: 'a client id is signed'
  },
  {
    file: 'lib/clients/registered.ts',
    search: 'mayRegister(redirectUri, listed)',
    replace: 'true',
    tests: [flow('a redirect URI that the app lists no more gets no code and no error, whoever registered it before')],
    why: 'a redirect URI can be withdrawn'
  },
  {
    file: 'lib/clients/client.ts',
    search: 'if (!isIdentifier(clientId, MAX_CLIENT_ID_LENGTH)) return undefined',
    replace: '',
    tests: [protocol('a client id has at most 2 KiB')],
    why: 'no source is asked for an id that cannot be one'
  },
  {
    file: 'lib/endpoints/registration.ts',
    search: 'bodyLimit: BODY_LIMIT',
    replace: 'bodyLimit: 2 ** 24',
    tests: [attack(17)],
    why: 'a registration has 16 kB'
  },
  {
    file: 'lib/endpoints/registration.ts',
    search: 'body: string) => parseJson(body)',
    replace: 'body: string) => JSON.parse(body)',
    tests: [attack(17)],
    why: 'what is no JSON is the client’s fault'
  },
  {
    file: 'lib/endpoints/registration.ts',
    search: 'app.removeAllContentTypeParsers()',
    replace: '',
    tests: [attack(17)],
    why: 'a registration is JSON'
  },
  ...[['register', 10], ['token', 120], ['authorize', 60]].map(([endpoint, max]) => ({
    file: 'lib/http/rate-limits.ts',
    search: `${endpoint}: ${max}`,
    replace: `${endpoint}: ${max * 100}`,
    tests: [attack(17)],
    why: `a flood of requests to ${endpoint} is stopped`
  })),
  {
    file: 'lib/http/rate-limits.ts',
    search: 'return { config: { rateLimit } as FastifyContextConfig }',
    replace: 'return { config: { rateLimit: { ...rateLimit, keyGenerator: (request) => request.headers[\'x-forwarded-for\'] ?? request.ip } } as FastifyContextConfig }',
    tests: [attack(17)],
    why: 'an address is not what a request says it is'
  },

  // Parameters

  {
    file: 'lib/protocol/parameters.ts',
    search: "name.endsWith(']')",
    replace: 'false',
    tests: [attack(16)],
    why: 'an array is refused'
  },
  {
    file: 'lib/protocol/parameters.ts',
    search: 'parameters.has(name)',
    replace: 'false',
    tests: [attack(16)],
    why: 'a repeated parameter is refused'
  },
  {
    file: 'lib/protocol/parameters.ts',
    search: 'parameters.has(name)',
    replace: "parameters.has(name) && value !== '' && parameters.get(name) !== ''",
    tests: [attack(16)],
    why: 'a repeated parameter is refused where one is empty'
  },
  {
    file: 'lib/http/parameters-from-request.ts',
    search: 'app.removeAllContentTypeParsers()',
    replace: '',
    tests: [attack(20)],
    why: 'a form is a form, and not what any site may post as text'
  },
  {
    file: 'lib/http/parameters-from-request.ts',
    search: 'bodyLimit: BODY_LIMIT, ',
    replace: '',
    tests: [attack(9)],
    why: 'a form has 16 kB'
  },
  {
    file: 'lib/http/parameters-from-request.ts',
    search: 'return parseParameters(formBody(request))',
    replace: 'return parseParameters(formBody(request) || queryString(request))',
    tests: [attack(16)],
    why: 'a form is not read from the address'
  },

  // What is sealed and signed

  {
    file: 'lib/protocol/sealed.ts',
    search: "if (!isCanonical(value, 5, maxLength)) return 'unreadable'",
    replace: '',
    tests: [attack(9)],
    why: 'one code is one string'
  },
  {
    file: 'lib/protocol/sealed.ts',
    search: 'if (!isCanonical(value, 3)) return undefined',
    replace: '',
    tests: [attack(18)],
    why: 'one client id is one string'
  },
  {
    file: 'lib/protocol/sealed.ts',
    search: "keyManagementAlgorithms: ['dir'],",
    replace: '',
    tests: [attack(9)],
    why: 'alg is pinned'
  },
  {
    file: 'lib/protocol/sealed.ts',
    search: "contentEncryptionAlgorithms: ['A256GCM'],",
    replace: '',
    tests: [attack(9), protocol('alg and enc are pinned')],
    why: 'enc is pinned',
    explained: 'the imported key is one for AES-GCM of 256 bits, and WebCrypto uses it for nothing else'
  },
  {
    file: 'lib/protocol/sealed.ts',
    search: 'maxDecompressedLength: 0',
    replace: '',
    tests: [attack(9)],
    why: 'zip is refused'
  },
  {
    file: 'lib/protocol/sealed.ts',
    search: "algorithms: ['HS256'] }",
    replace: '}',
    tests: [attack(18), protocol('no other alg, key or purpose signs')],
    why: 'the alg of signatures is pinned',
    explained: 'the imported key is one for HMAC with SHA-256, and jose takes it for no other'
  },
  {
    file: 'lib/protocol/sealed.ts',
    search: 'header?.typ === typ ?',
    replace: 'true ?',
    tests: [attack(9)],
    why: 'what is sealed says for what'
  },
  {
    file: 'lib/protocol/sealed.ts',
    search: 'deriveKey(key, purpose, 32)',
    replace: "deriveKey(key, '', 32)",
    tests: [attack(20), protocol('a value sealed for one purpose')],
    why: 'each purpose has its own key',
    explained: 'typ and kid name the purpose too, and whoever has no key can change neither'
  },
  {
    file: 'lib/protocol/sealed.ts',
    search: "payload.expiresAt > now ? payload : 'expired'",
    replace: 'payload',
    tests: [attack(10)],
    why: 'a code expires'
  },
  {
    file: 'lib/protocol/sealed.ts',
    search: 'payload.expiresAt > now',
    replace: 'payload.expiresAt + 1000 > now',
    tests: [attack(10)],
    why: 'a code expires to the millisecond'
  },
  {
    file: 'lib/protocol/sealed.ts',
    search: 'if (value.length > maxLength) {',
    replace: 'if (false) {',
    tests: [flow('a state of any length')],
    why: 'nothing is sealed that would not open'
  },
  {
    file: 'lib/protocol/secret.ts',
    search: '`fastify-mcp-oauth ${purpose}`',
    replace: "'fastify-mcp-oauth'",
    tests: [protocol('each purpose has a key of its own')],
    why: 'a key of one purpose is none of another'
  },
  {
    file: 'lib/options.ts',
    search: "createSealer<PageTicket>(keys, 'page')",
    replace: "createSealer<PageTicket>(keys, 'consent')",
    tests: [attack(20)],
    why: 'the form of one page is none of the other'
  },

  // Consent

  {
    file: 'lib/protocol/tickets.ts',
    search: 'ticket.userId !== user.id || ',
    replace: '',
    tests: [attack(23)],
    why: 'a ticket is for its user'
  },
  {
    file: 'lib/protocol/tickets.ts',
    search: ' || ticket.tenantId !== (user.tenantId ?? null)',
    replace: '',
    tests: [attack(23)],
    why: 'a ticket is for its tenant'
  },
  {
    file: 'lib/protocol/tickets.ts',
    search: "throw new OAuthError('access_denied', 'You are signed out.', { reason: 'signed_out' })",
    replace: 'return ticket',
    tests: [attack(34)],
    why: 'a ticket is no session'
  },
  {
    file: 'lib/protocol/tickets.ts',
    search: 'CONSENT_TICKET_LIFETIME = 10 * 60 * 1000',
    replace: 'CONSENT_TICKET_LIFETIME = 11 * 60 * 1000',
    tests: [attack(20)],
    why: 'a consent waits for ten minutes'
  },
  {
    file: 'lib/protocol/tickets.ts',
    search: 'PAGE_TICKET_LIFETIME = 60 * 60 * 1000',
    replace: 'PAGE_TICKET_LIFETIME = 90 * 60 * 1000',
    tests: [attack(20)],
    why: 'a page waits for an hour'
  },
  {
    file: 'lib/endpoints/authorization.ts',
    search: "scopes.expand(form.getAll('scope'), authorization.scopes)",
    replace: "scopes.expand(form.getAll('scope'))",
    tests: [attack(21)],
    why: 'only what was offered is granted'
  },
  {
    file: 'lib/endpoints/authorization.ts',
    search: "scopes.expand(form.getAll('scope'), authorization.scopes)",
    replace: 'authorization.scopes',
    tests: [attack(21)],
    why: 'only what was ticked is granted'
  },
  {
    file: 'lib/endpoints/authorization.ts',
    search: "decision === 'deny' || granted.length === 0",
    replace: "decision === 'deny'",
    tests: [attack(21)],
    why: 'nothing ticked is a no'
  },
  {
    file: 'lib/endpoints/authorization.ts',
    search: "decision === 'deny' || granted.length === 0",
    replace: 'granted.length === 0',
    tests: [attack(24)],
    why: 'no is no'
  },
  {
    file: 'lib/endpoints/authorization.ts',
    search: 'scopes: granted, grantId, userId, tenantId, issuedAt',
    replace: 'scopes: granted, grantId: createGrantId(), userId, tenantId, issuedAt',
    tests: [attack(22)],
    why: 'one ticket is one grant'
  },
  {
    file: 'lib/endpoints/authorization.ts',
    search: 'redirectToClient(reply, redirectUri,',
    replace: "redirectToClient(reply, form.get('redirect_uri') ?? redirectUri,",
    tests: [attack(20)],
    why: 'a code goes where the ticket says'
  },
  {
    file: 'lib/protocol/scope.ts',
    search: 'names.filter((name) => within.includes(name)).forEach(visit)',
    replace: 'names.forEach(visit)',
    tests: [attack(21)],
    why: 'a scope that was not offered brings nothing along'
  },
  {
    file: 'lib/protocol/scope.ts',
    search: 'reached.has(name) && within.includes(name)',
    replace: 'reached.has(name)',
    tests: [attack(21)],
    why: 'a scope brings along only what was offered'
  },

  // Pages

  ...[
    ['"frame-ancestors \'none\'"', '"frame-ancestors *"', 20, 'no page is framed, by its policy'],
    [".header('x-frame-options', 'DENY')", '', 20, 'no page is framed, by its header'],
    ['["default-src \'none\'"', '["default-src *"', 19, 'nothing runs in a page'],
    [".code(statusCode)\n    .header('content-security-policy'", ".code(statusCode)\n    .header('x-policy'", 19, 'a page has a policy'],
    [".header('referrer-policy', 'no-referrer')", '', 24, 'a page says nothing of itself to the next'],
    ["reply.header('cache-control', 'no-store').header('referrer-policy'", "reply.header('referrer-policy'", 24, 'no page is stored'],
    ['redirect(location, 303)', 'redirect(location, 307)', 24, 'a redirect repeats no form'],
    ['if (error instanceof AuthorizationError) return', "if ('redirectUri' in error) return", 36, 'an error that may be linked does not redirect']
  ].map(([search, replace, number, why]) => ({ file: 'lib/http/pages.ts', search, replace, tests: [attack(number)], why })),
  {
    file: 'lib/http/pages.ts',
    search: ".header('x-content-type-options', 'nosniff')\n    .type('text/html",
    replace: ".type('text/html",
    tests: [attack(19)],
    why: 'a page is what it says it is'
  },
  {
    file: 'views/consent.eta',
    search: '<h1>Allow <bdi class="name"><%= it.client.name %>',
    replace: '<h1>Allow <bdi class="name"><%~ it.client.name %>',
    tests: [attack(19)],
    why: 'the name of a client is text'
  },
  {
    file: 'views/connected-apps.eta',
    search: '<h2><bdi><%= app.name %>',
    replace: '<h2><bdi><%~ app.name %>',
    tests: [attack(19)],
    why: 'the name of a connected app is text'
  },
  {
    file: 'views/connected-apps.eta',
    search: 'aria-label="Disconnect <%= app.name %>"',
    replace: 'aria-label="Disconnect <%~ app.name %>"',
    tests: [attack(19)],
    why: 'the name of a connected app is text in an attribute'
  },
  {
    file: 'views/connected-apps.eta',
    search: '<h3><bdi><%= token.name %>',
    replace: '<h3><bdi><%~ token.name %>',
    tests: [attack(19)],
    why: 'the name of a token is text'
  },
  {
    file: 'lib/http/session.ts',
    search: "if (isLoopbackHost(host.replace(/:\\d+$/, ''))) return",
    replace: 'return',
    tests: [attack(37)],
    why: 'a page on loopback is not for a name that was pointed there'
  },
  {
    file: 'lib/http/session.ts',
    search: 'String(headers.host ??',
    replace: "String(headers['x-forwarded-host'] ?? headers.host ??",
    tests: [attack(37)],
    why: 'what name a page is asked by does not come from a header that a script can set'
  },
  {
    file: 'lib/http/session.ts',
    search: "if (issuer.startsWith('https:')) return",
    replace: '',
    tests: [attack(33)],
    why: 'with https any Host will do, as a proxy may name another'
  },
  {
    file: 'lib/http/session.ts',
    search: 'if (!isUser) throw',
    replace: 'if (false) throw',
    tests: ['test/connected-apps.test.ts: currentUser that breaks its contract', flow('user ids that a database could mistake')],
    why: 'a user has an id'
  },
  {
    file: 'lib/protocol/secret.ts',
    search: ' && !/[\\0\\p{Cs}]/u.test(value)',
    replace: '',
    tests: [flow('user ids that a database could mistake')],
    why: 'no id is one that a database could mistake for another'
  },

  // Connected apps

  {
    file: 'lib/endpoints/connected-apps.ts',
    search: 'owned.userId !== userId',
    replace: 'false',
    tests: [attack(32)],
    why: 'a user ends their own grants'
  },
  {
    file: 'lib/endpoints/connected-apps.ts',
    search: 'if (!(await tokens.list({ userId })).some(({ clientId }) => clientId === client)) throw unknownGrant()',
    replace: '',
    tests: [attack(32)],
    why: 'it takes something to disconnect'
  },
  {
    file: 'lib/endpoints/connected-apps.ts',
    search: 'store.revoke({ userId, clientId: client }',
    replace: 'store.revoke({ clientId: client }',
    tests: [attack(5)],
    why: 'a user disconnects themselves alone'
  },
  {
    file: 'lib/endpoints/connected-apps.ts',
    search: "store.revoke({ userId, clientId: client }, 'disconnected'",
    replace: "store.revoke({ userId, clientId: client }, 'client_revoked'",
    tests: [attack(5)],
    why: 'a disconnect stops codes on their way'
  },
  {
    file: 'lib/endpoints/connected-apps.ts',
    search: "!['', ...LIFETIMES].includes(days)",
    replace: 'false',
    tests: ['test/connected-apps.test.ts: a personal token lives as long as its user chose'],
    why: 'a token lives no longer than the page offers'
  },
  {
    file: 'lib/grants/tokens.ts',
    search: 'if (await store.find(grantId) !== null) return null',
    replace: '',
    tests: ['test/connected-apps.test.ts: one form makes one token'],
    why: 'a form that is sent again ends nothing'
  },
  {
    file: 'lib/grants/tokens.ts',
    search: 'RETENTION = 30 * 24 * 60 * 60 * 1000',
    replace: 'RETENTION = 0',
    tests: [attack(3)],
    why: 'a row outlives its code'
  },
  {
    file: 'lib/grants/tokens.ts',
    search: "return ['grantId', 'userId', 'clientId', 'clientId,userId'].includes(Object.keys(value).sort().join()) &&\n    Object.values(value)",
    replace: 'return Object.values(value)',
    tests: [guard('mistakes in protect()')],
    why: 'an undefined id revokes nothing'
  },
  {
    file: 'lib/protocol/secret.ts',
    search: "return Buffer.from(hash('sha256', token, 'binary'), 'binary')",
    replace: "return /^(oat|ort|pat)_/.test(token) ? Buffer.from(token) : Buffer.from(hash('sha256', token, 'binary'), 'binary')",
    tests: [attack(30)],
    why: 'a token is stored as its hash'
  },

  // Codes are redeemed once

  {
    file: 'lib/grants/authorization-code.ts',
    search: 'checkPossession(code, client.clientId, resource?.uri, parameters)',
    replace: '',
    tests: [attack(6)],
    why: 'who redeems a code proves that it is theirs'
  },
  {
    file: 'lib/grants/authorization-code.ts',
    search: '    id: grantId,',
    replace: '    id: grantId + accessToken,',
    tests: [attack(1)],
    why: 'a code works once'
  },
  {
    file: 'lib/grants/authorization-code.ts',
    search: ', { codeIssuedAt: code.issuedAt })',
    replace: ')',
    tests: [attack(5)],
    why: 'a code from before a disconnect is refused'
  },
  {
    file: 'lib/grants/authorization-code.ts',
    search: "if (result !== 'issued') throw",
    replace: "if (result === 'disconnected') throw",
    tests: [attack(1)],
    why: 'a replay is refused'
  },
  {
    file: 'lib/grants/authorization-code.ts',
    search: 'if (await isRefusedUser(settings, userId)) throw',
    replace: 'if (false) throw',
    tests: [confidential('a user who is gone gets no tokens')],
    why: 'a user who is gone gets no token for a code'
  },
  {
    file: 'lib/store/sqlite.ts',
    search: "this.#revoke({ grantId: row.id }, 'code_replayed', row.createdAt)",
    replace: '',
    tests: [attack(2)],
    why: 'a replay ends the grant'
  },
  {
    file: 'lib/store/schema.ts',
    search: 'revoked_at >= ',
    replace: 'revoked_at > ',
    tests: [attack(5)],
    why: 'a disconnect counts for all of its millisecond'
  },
  {
    file: 'lib/store/sqlite.ts',
    search: "if (reason === 'disconnected') this.#insert(disconnectMark(selector, now))",
    replace: '',
    tests: [attack(5)],
    why: 'a disconnect leaves its mark'
  },

  // Tokens and guard

  {
    file: 'lib/store/grant.ts',
    search: "if (grant.revokedAt != null) return 'token_revoked'",
    replace: '',
    tests: [attack(4)],
    why: 'a revoked token is refused'
  },
  {
    file: 'lib/store/grant.ts',
    search: "if (grant.expiresAt !== null && grant.expiresAt <= now) return 'token_expired'",
    replace: '',
    tests: [refresh('an access token expires')],
    why: 'an expired token is refused'
  },
  {
    file: 'lib/store/grant.ts',
    search: 'resources !== undefined && !resources.includes(grant.resource)',
    replace: 'false',
    tests: [attack(25)],
    why: 'a token is for its resource'
  },
  {
    file: 'lib/grants/verify.ts',
    search: 'refusal(row, resources, now, idleLifetime)',
    replace: 'refusal(row, undefined, now, idleLifetime)',
    tests: [attack(25)],
    why: 'a token is checked against the resource of the guard'
  },
  {
    file: 'lib/grants/verify.ts',
    search: 'const row = isToken(token) ?',
    replace: 'const row = token.length > 0 ?',
    tests: [attack(35)],
    why: 'what is no token of ours costs the database nothing'
  },
  {
    file: 'lib/grants/verify.ts',
    search: 'await findUser(userId) == null',
    replace: 'await findUser(userId) === null',
    tests: [confidential('a user who is gone gets no tokens')],
    why: 'a user who is not found is gone'
  },
  {
    file: 'lib/http/guard.ts',
    search: 'if (grant === undefined || reason !== undefined) return',
    replace: 'if (grant === undefined) return',
    tests: [attack(31)],
    why: 'the guard heeds what is wrong with a token'
  },
  {
    file: 'lib/http/guard.ts',
    search: 'if (!hasScopes(grant, needed)) {',
    replace: 'if (false) {',
    tests: [attack(25)],
    why: 'a route gets the scopes that it needs'
  },
  {
    file: 'lib/http/guard.ts',
    search: 'if (!hasScopes(grant, scopes)) throw refuseScope(reply, grant, scopes)',
    replace: '',
    tests: [attack(25)],
    why: 'a handler gets the scopes that it needs'
  },
  {
    file: 'lib/http/guard.ts',
    search: 'needed.every(',
    replace: 'needed.some(',
    tests: [guard('too little scope')],
    why: 'a route gets every scope that it needs'
  },
  {
    file: 'lib/http/guard.ts',
    search: 'const resources = [resource.uri]',
    replace: 'const resources = settings.resources.map(({ uri }) => uri)',
    tests: [attack(25)],
    why: 'a guard is for one resource'
  },
  {
    file: 'lib/http/authorization.ts',
    search: 'return times > 1 ? ',
    replace: 'return times > 9 ? ',
    tests: [attack(29), 'test/guard.test.ts: two Authorization headers'],
    why: 'of two Authorization headers none is chosen'
  },
  {
    file: 'lib/http/guard.ts',
    search: 'const token = bearerToken(request)',
    replace: "const token = bearerToken(request) || String((request.query as Record<string, string>).access_token ?? '')",
    tests: [attack(26)],
    why: 'no token is read from an address'
  },
  {
    file: 'lib/http/guard.ts',
    search: "if (error.statusCode === 401) return refuseToken(request, reply, 'token_unknown')\n        sendJsonError(reply, error)\n        return false",
    replace: 'return true',
    tests: [guard('the store out of reach')],
    why: 'a guard that cannot ask lets nobody pass'
  },
  {
    file: 'lib/http/guard.ts',
    search: 'if (!passed) await new Promise<never>(() => {})',
    replace: '',
    tests: [guard('no handler runs for a refused request')],
    why: 'no handler runs for a refused request whose client hangs up'
  },
  {
    file: 'lib/http/guard.ts',
    search: "if (request.method === 'OPTIONS') {\n        sendPreflight(reply)\n        return false",
    replace: "if (request.method === 'OPTIONS') {\n        return true",
    tests: [guard('preflights need no token')],
    why: 'no preflight reaches a handler'
  },
  {
    file: 'lib/http/guard.ts',
    search: 'request.oauth = null\n\n',
    replace: '\n',
    tests: [attack(25)],
    why: 'of several guards each accepts for itself'
  },
  {
    file: 'lib/http/guard.ts',
    search: 'if (row !== null) return { grant: grantOf(row), reason }',
    replace: 'if (row !== null && reason === undefined) return { grant: grantOf(row), reason }',
    tests: [guard('fallbackToken is asked')],
    why: 'a revoked token is not offered to the app'
  },
  {
    file: 'lib/http/guard.ts',
    search: '{ grant, reason: refusal(grant, resources, now, idleLifetime) }',
    replace: '{ grant, reason: undefined }',
    tests: [guard('fallbackToken is asked')],
    why: 'a token of the app’s own expires too'
  },
  {
    file: 'lib/http/guard.ts',
    search: ') throw new FallbackError()',
    replace: ') return undefined',
    tests: [guard('what fallbackToken answers is checked')],
    why: 'what the app says of a token is checked'
  },
  {
    file: 'lib/http/guard.ts',
    search: "reply.header('www-authenticate', reason === 'token_missing' ? missing : invalid)",
    replace: "reply.header('www-authenticate', (reason === 'token_missing' ? missing : invalid).replace('localhost:3000', request.host))",
    tests: [attack(33)],
    why: 'a challenge does not come from the Host of a request'
  },

  // Refresh

  {
    file: 'lib/grants/refresh-token.ts',
    search: 'row === null || row.clientId !== client.clientId',
    replace: 'row === null',
    tests: [attack(26)],
    why: 'a refresh token is for its client'
  },
  {
    file: 'lib/grants/refresh-token.ts',
    search: 'if (ended !== undefined) throw refuse(ended, about)',
    replace: '',
    tests: [refresh('the refresh token slides')],
    why: 'a refresh token expires'
  },
  {
    file: 'lib/grants/refresh-token.ts',
    search: 'checkNarrowing(settings, row, parameters, about)\n    if',
    replace: 'if',
    tests: [attack(21)],
    why: 'a refresh widens nothing'
  },
  {
    file: 'lib/grants/refresh-token.ts',
    search: 'named !== undefined && findResource(named, resources)?.uri !== row.resource',
    replace: 'false',
    tests: [attack(25)],
    why: 'a refresh is for the same resource'
  },
  {
    file: 'lib/grants/refresh-token.ts',
    search: "const grants = await store.revoke({ grantId }, 'refresh_reused', now)",
    replace: 'const grants = 1',
    tests: [attack(27)],
    why: 'reuse ends the grant'
  },
  {
    file: 'lib/grants/refresh-token.ts',
    search: 'now - row.refreshedAt! <= refreshGrace * 1000',
    replace: 'true',
    tests: [attack(27)],
    why: 'a used refresh token is good for half a minute'
  },
  {
    file: 'lib/grants/refresh-token.ts',
    search: 'equal(row.previousRefreshHash, presentedHash) && ',
    replace: '',
    tests: [attack(27), refresh('any older generation')],
    why: 'only the previous refresh token may be used again',
    explained: 'whatever is older leads to no pair that the row still has: currentPair() finds none'
  },
  {
    file: 'lib/grants/refresh-token.ts',
    search: "if (await isRefusedUser(settings, row.userId)) throw refuse('user_unknown', about)",
    replace: '',
    tests: [confidential('a user who is gone gets no tokens')],
    why: 'a user who is gone refreshes nothing'
  },
  {
    file: 'lib/protocol/refresh-token.ts',
    search: 'return isGenuine ? grantId : undefined',
    replace: 'return isGenuine || true ? grantId : undefined',
    tests: [attack(26)],
    why: 'a made-up refresh token ends nobody’s grant'
  },
  {
    file: 'lib/protocol/refresh-token.ts',
    search: "hkdfSync('sha256', refreshKey, '', refreshToken, 64)",
    replace: "hkdfSync('sha256', refreshKey, '', refreshToken.slice(0, 26), 64)",
    tests: [attack(27)],
    why: 'each generation is another'
  },
  {
    file: 'lib/store/sqlite.ts',
    search: 'WHERE id = ? AND refresh_hash = ? AND revoked_at IS NULL',
    replace: 'WHERE id = ? AND ? IS NOT NULL AND revoked_at IS NULL',
    tests: ['test/store/sqlite.test.ts'],
    why: 'of many rotations one counts'
  },

  // Clients that prove who they are

  {
    file: 'lib/protocol/client-authentication.ts',
    search: '.filter(Boolean).length > 1',
    replace: '.filter(Boolean).length > 3',
    tests: [attack(29)],
    why: 'a client authenticates in one way'
  },
  {
    file: 'lib/protocol/client-authentication.ts',
    search: 'named !== undefined && named !== credentials.clientId',
    replace: 'false',
    tests: [attack(29)],
    why: 'a client has one id'
  },
  {
    file: 'lib/protocol/client-authentication.ts',
    search: '[clientSecret, assertion, secretHashes, publicKey].every(',
    replace: '[clientSecret, assertion].every(',
    tests: [attack(29)],
    why: 'a client that has a proof gives it'
  },
  {
    file: 'lib/protocol/client-authentication.ts',
    search: 'secretHashes.some((hash) => timingSafeEqual(hash, presented))',
    replace: "secretHashes.some((hash) => timingSafeEqual(hash, presented) || Buffer.from(hash).toString('base64url') === clientSecret)",
    tests: [attack(29)],
    why: 'the hash of a secret is no secret'
  },
  {
    file: 'lib/protocol/client-authentication.ts',
    search: "throw refuse('The client authenticates in another way.', 'client_authentication_method', about)",
    replace: '',
    tests: [attack(29)],
    why: 'a client proves itself in its own way'
  },
  {
    file: 'lib/protocol/client-authentication.ts',
    search: 'algorithms: ASSERTION_ALGORITHMS,',
    replace: '',
    tests: [confidential('who does not authenticate as the client')],
    why: 'the algorithms of assertions are pinned'
  },
  {
    file: 'lib/protocol/client-authentication.ts',
    search: 'issuer: clientId,',
    replace: '',
    tests: [confidential('who does not authenticate as the client')],
    why: 'an assertion is by its client'
  },
  {
    file: 'lib/protocol/client-authentication.ts',
    search: 'subject: clientId,',
    replace: '',
    tests: [confidential('who does not authenticate as the client')],
    why: 'an assertion is about its client',
    explained: 'whose client it is was read from the same sub of the same assertion'
  },
  {
    file: 'lib/protocol/client-authentication.ts',
    search: 'audience: [...audiences],',
    replace: '',
    tests: [confidential('who does not authenticate as the client')],
    why: 'an assertion is for this server'
  },
  {
    file: 'lib/protocol/client-authentication.ts',
    search: "if (typeof aud !== 'string') return 'client_assertion_audience'",
    replace: '',
    tests: [confidential('who does not authenticate as the client')],
    why: 'an assertion is for this server alone'
  },
  {
    file: 'lib/protocol/client-authentication.ts',
    search: "requiredClaims: ['exp'],",
    replace: '',
    tests: [confidential('who does not authenticate as the client')],
    why: 'an assertion expires'
  },
  {
    file: 'lib/protocol/client-authentication.ts',
    search: 'MAX_ASSERTION_LIFETIME = 300',
    replace: 'MAX_ASSERTION_LIFETIME = 3600',
    tests: [confidential('an assertion works for five minutes')],
    why: 'an assertion expires soon'
  },
  {
    file: 'lib/protocol/client-authentication.ts',
    search: 'type === ASSERTION_TYPE ?',
    replace: 'true ?',
    tests: [confidential('who does not authenticate as the client')],
    why: 'an assertion says what it is'
  },
  {
    file: 'lib/http/client-authentication.ts',
    search: 'client.configured ? [settings.issuer] : ',
    replace: '',
    tests: [confidential('who does not authenticate as the client')],
    why: 'a client of the app addresses the issuer'
  },
  {
    file: 'lib/http/client-authentication.ts',
    search: "typeof given === 'string' || given.clientId !== clientId",
    replace: "typeof given === 'string'",
    tests: [attack(36)],
    why: 'a host is asked for its own client’s code only'
  },
  {
    file: 'lib/clients/configured.ts',
    search: 'client?.clientId === clientId ?',
    replace: 'client != null ?',
    tests: [flow('a look-up of clients that answers with another client')],
    why: 'a look-up of clients answers for one id'
  },
  {
    file: 'lib/clients/configured.ts',
    search: 'isRedirectUri(uri) && ',
    replace: '',
    tests: [attack(12)],
    why: 'the app allows no redirect URI that a browser would run'
  },
  {
    file: 'lib/clients/configured.ts',
    search: " && !uri.includes('*')",
    replace: '',
    tests: [attack(13)],
    why: 'the app allows no pattern'
  },
  ...[
    [" && !('d' in key) && !('k' in key)", 'clients, where a key is wrong', 'the app keeps no private key of a client'],
    [' && modulusLength >= 2048', 'clients, where no assertion', 'a key of a client is long enough'],
    [" && use === 'sig'", 'clients, where no assertion', 'a key of a client is for signatures']
  ].map(([search, name, why]) => ({ file: 'lib/clients/configured.ts', search, replace: '', tests: [option(name)], why })),
  {
    file: 'lib/clients/configured.ts',
    search: 'bytes?.length === 32',
    replace: 'bytes !== undefined',
    tests: [option('clients, where a secret is wrong')],
    why: 'a hash is a SHA-256'
  },
  {
    file: 'lib/clients/configured.ts',
    search: 'value === undefined || clientSecretHashes !== undefined || jwks !== undefined',
    replace: 'true',
    tests: [option('clients, where what they may do is wrong')],
    why: 'a public client has nothing for itself'
  },
  {
    file: 'lib/grants/client-credentials.ts',
    search: 'if (client.scopes === undefined) {',
    replace: 'client = { scopes: settings.scopes.names, ...client }\n  if (false) {',
    tests: [confidential('a client has for itself what the app gave it')],
    why: 'a client has for itself what it was given'
  },
  {
    file: 'lib/grants/client-credentials.ts',
    search: ': asked, allowed)',
    replace: ': asked)',
    tests: [confidential('a client has for itself what the app gave it')],
    why: 'a client has for itself no more than it was given'
  },
  {
    file: 'lib/grants/client-credentials.ts',
    search: 'client.scopes.filter((scope) => resource.scopes.includes(scope))',
    replace: '[...client.scopes]',
    tests: [confidential('a client has for itself what the app gave it')],
    why: 'a client has for itself what the resource has'
  },
  {
    file: 'lib/grants/client-credentials.ts',
    search: 'DEFAULT_LIFETIME = 3600',
    replace: 'DEFAULT_LIFETIME = 10 ** 9',
    tests: [confidential('a token that a client has for itself always expires')],
    why: 'what a client has for itself expires'
  },
  {
    file: 'lib/endpoints/token.ts',
    search: 'settings.grantTypes.includes(grantType) ? GRANTS.get(grantType) : undefined',
    replace: 'GRANTS.get(grantType)',
    tests: [refresh('metadata, registration and answers say exactly')],
    why: 'a grant type that is off is off'
  },
  {
    file: 'lib/endpoints/revocation.ts',
    search: 'row !== null && row.clientId === clientId',
    replace: 'row !== null',
    tests: [attack(28)],
    why: 'a client revokes its own tokens'
  },
  {
    file: 'lib/endpoints/introspection.ts',
    search: 'if (introspects === undefined) {',
    replace: 'if (false) {',
    tests: [confidential('introspection is for the confidential clients')],
    why: 'introspection is for those whom the app names'
  },
  {
    file: 'lib/endpoints/introspection.ts',
    search: 'verifyToken(settings, token, introspects, now)',
    replace: 'verifyToken(settings, token, undefined, now)',
    tests: [attack(25)],
    why: 'a server looks into its own tokens'
  },
  {
    file: 'lib/endpoints/userinfo.ts',
    search: 'if (reason !== undefined) throw',
    replace: 'if (false) throw',
    tests: [confidential('userinfo refuses whoever')],
    why: 'userinfo is for live tokens'
  },
  {
    file: 'lib/endpoints/userinfo.ts',
    search: "if (user == null) throw refuse(reply, 'user_unknown', about)",
    replace: '',
    tests: [confidential('userinfo refuses whoever')],
    why: 'userinfo is for users that exist'
  },
  {
    file: 'lib/endpoints/userinfo.ts',
    search: '...await userinfo!(user, grantOf(row)), sub: row.userId',
    replace: 'sub: row.userId, ...await userinfo!(user, grantOf(row))',
    tests: [confidential('userinfo tells the bearer')],
    why: 'whose a token is, is ours to say'
  },

  // Errors

  {
    file: 'lib/http/errors.ts',
    search: 'error instanceof StoreUnavailableError',
    replace: 'false',
    tests: [attack(35)],
    why: 'without its database the server is 503'
  },
  {
    file: 'lib/http/errors.ts',
    search: 'return statusCode === 503 ? RETRY_AFTER : undefined',
    replace: 'return undefined',
    tests: [attack(35)],
    why: '503 says when to come back'
  },
  {
    file: 'lib/http/errors.ts',
    search: "new OAuthError('server_error', 'Something went wrong.',",
    replace: "new OAuthError('server_error', String(error),",
    tests: [confidential('a look-up of users that fails is a 500')],
    why: 'a failure tells nothing outside'
  },
  {
    file: 'lib/http/errors.ts',
    search: ".header('cache-control', 'no-store')",
    replace: '',
    tests: [flow('who cannot prove possession')],
    why: 'no answer is stored'
  },
  {
    file: 'lib/http/cors.ts',
    search: "if (reply.hasHeader('access-control-allow-credentials')) reply.removeHeader('access-control-allow-credentials')",
    replace: '',
    tests: [attack(20)],
    why: 'no other origin gets credentials'
  },
  {
    file: 'lib/protocol/challenge.ts',
    search: ".replace(/[^ -~]/g, '')",
    replace: '',
    tests: [protocol('no value can end its quotes')],
    why: 'no value ends a header'
  },
  {
    file: 'lib/protocol/challenge.ts',
    search: ".replace(/[\"\\\\]/g, '\\\\$&')",
    replace: '',
    tests: [protocol('no value can end its quotes')],
    why: 'no value ends its quotes'
  },
  {
    file: 'lib/protocol/resource.ts',
    search: "uri === origin.toLowerCase() + path.replace(/\\/$/, '')",
    replace: '(origin.toLowerCase() + path).startsWith(uri)',
    tests: [attack(8)],
    why: 'a resource is known by its whole URL'
  },

  // What a request says of this server

  {
    file: 'lib/endpoints/metadata.ts',
    search: "'application/json; charset=utf-8').send(body)",
    replace: "'application/json; charset=utf-8').send(String(body).replaceAll('localhost:3000', request.host))",
    tests: [attack(33)],
    why: 'a document does not come from the Host of a request'
  },
  {
    file: 'lib/endpoints/authorization.ts',
    search: '{ code, state, iss: issuer }',
    replace: '{ code, state, iss: `${request.protocol}://${request.host}` }',
    tests: [attack(33)],
    why: 'who answers does not come from the Host of a request'
  },
  {
    file: 'lib/http/session.ts',
    search: 'redirect(settings.loginUrl(request, returnTo), 303)',
    replace: 'redirect(`http://${request.host}${settings.loginUrl(request, returnTo)}`, 303)',
    tests: [attack(33)],
    why: 'the way to sign in does not come from the Host of a request'
  },

  // Client ID Metadata Documents

  ...[
    ['href === clientId && ', 'a client id is written in one way'],
    ["username === '' && password === '' && ", 'a client id has no userinfo'],
    [" && pathname !== '/'", 'a client id has a path'],
    [" || clientId.includes('#')", 'a client id has no fragment'],
    ["if (document.client_id !== clientId) throw refuse('client_metadata_mismatch')", 'a document is about its own URL'],
    ["if ('client_secret' in document || 'client_secret_expires_at' in document) throw refuse('client_metadata_secret')", 'a document holds no secret'],
    ["if (typeof document.client_name !== 'string') throw refuse('client_metadata_invalid', 'client_name must be a string.')", 'a document has a name'],
    [' && new URL(uri).host === vouchingHost(clientId)', 'a document redirects to its own host'],
    ["if (jwks.keys.some((key) => 'd' in key || 'k' in key)) throw refuse('client_metadata_secret')", 'a document holds no private key']
  ].map(([search, why]) => ({ file: 'lib/protocol/metadata-document.ts', search, replace: '', tests: [attack(36)], why })),
  {
    file: 'lib/protocol/metadata-document.ts',
    search: ' && isRedirectUri(uri)',
    replace: '',
    tests: [document('§4.1')],
    why: 'a document redirects only to what is a redirect URI'
  },
  {
    file: 'lib/protocol/metadata-document.ts',
    search: " && jwksUri.startsWith('https://')",
    replace: '',
    tests: [document('§4.1')],
    why: 'keys are fetched by https'
  },
  {
    file: 'lib/endpoints/authorization.ts',
    search: 'if (user === null && settings.clientIdMetadata && isClientIdUrl(clientId)) return toLogin()',
    replace: '',
    tests: [attack(36)],
    why: 'who names a URL signs in first'
  },
  {
    file: 'lib/clients/metadata-document.ts',
    search: 'if (user === undefined) return undefined',
    replace: '',
    tests: [attack(36)],
    why: 'a host is asked on behalf of a user'
  },
  {
    file: 'lib/clients/metadata-document.ts',
    search: 'count(users, `user ${user}`)',
    replace: '',
    tests: [attack(36)],
    why: 'a user looks up so many apps'
  },
  {
    file: 'lib/clients/metadata-document.ts',
    search: 'if (kind !== undefined) count(hosts, `${kind} ${new URL(url).host}`)',
    replace: '',
    tests: [document('a spray of URLs')],
    why: 'a host is asked so often'
  },
  {
    file: 'lib/clients/metadata-document.ts',
    search: 'allowHosts?.includes(host) === false',
    replace: 'false',
    tests: [document('the app chooses')],
    why: 'only hosts that the app allows are asked'
  },
  ...[
    ['if (refused !== undefined) throw', 'if (false) throw', 'no address of this network is asked'],
    ['addresses.find(({ address }) => !isPublicAddress(address))', 'addresses.length > 1 ? undefined : addresses.find(({ address }) => !isPublicAddress(address))', 'not even beside a public one'],
    ["if (isIP(hostname.replace(/^\\[|\\]$/g, '')) !== 0) throw", 'if (false) throw', 'a host has a name'],
    ['if (statusCode !== 200) throw', 'if (statusCode >= 400) throw', 'only 200 is an answer'],
    ["if (!/^application\\/([\\w.-]+\\+)?json *(;|$)/i.test(headers['content-type'] ?? '')) throw", 'if (false) throw', 'a document says that it is one'],
    ["if (headers['content-encoding'] !== undefined) throw", 'if (false) throw', 'nothing is unpacked'],
    ['if (size > maxBytes) throw', 'if (false) throw', 'a document is small'],
    ['const TIMEOUT = 5000', 'const TIMEOUT = 15_000', 'a host is not waited for'],
    ["ip.range() === 'unicast' && ip.toString() !== AZURE", "ip.range() === 'unicast'", 'the services of Azure are no public address'],
    ["if (ip instanceof ipaddr.IPv4) return ip.range() === 'unicast'", "if (ip instanceof ipaddr.IPv4) return ip.range() !== 'private'", 'only unicast addresses are public'],
    ["if (ip.match(NAT64)) return isPublicAddress(ip.toByteArray().slice(12).join('.'))", 'if (ip.match(NAT64)) return true', 'what NAT64 leads to is checked'],
    ['lookup: lookUpPublic, ', '', 'what is checked is what is connected to']
  ].map(([search, replace, why]) => ({ file: 'lib/clients/public-https.ts', search, replace, tests: [attack(36)], why })),
  {
    file: 'lib/clients/public-https.ts',
    search: ' && ip.match(IPV6_UNICAST)',
    replace: '',
    tests: [document('addresses that are special anywhere')],
    why: 'only what is assigned is public'
  },
  {
    file: 'lib/clients/public-https.ts',
    search: 'if (!isObject(body)) throw',
    replace: 'if (false) throw',
    tests: [document('redirects, other statuses')],
    why: 'a document is an object'
  },
  {
    file: 'lib/clients/public-https.ts',
    search: "if (protocol !== 'https:') throw",
    replace: 'if (false) throw',
    tests: [attack(36)],
    why: 'a host is asked by https',
    explained: 'whoever calls it has checked that already, and Node’s https takes no other URL'
  },
  {
    file: 'lib/http/guard.ts',
    search: "if (error.statusCode === 401) return refuseToken(request, reply, 'token_unknown')",
    replace: '',
    tests: [guard('fallbackToken is asked')],
    why: 'whoever refuses a token, clients learn how to sign in'
  },
  {
    file: 'lib/store/schema.ts',
    search: 'CASE WHEN refresh_expires_at > expires_at THEN refresh_expires_at ELSE expires_at END',
    replace: 'coalesce(refresh_expires_at, expires_at)',
    tests: ['test/store/sqlite.test.ts'],
    why: 'what can be used is listed'
  },
  // Connections

  {
    file: 'lib/limit.ts',
    search: ', { noUpdateTTL: true }',
    replace: '',
    tests: ['test/connections.test.ts: a user may begin five times'],
    why: 'a stretch begins with the first, and not anew each time'
  },
  ...[
    ['connect.ts', 'iss === undefined ? discovery.issRequired === true : iss !== discovery.issuer', 'false', 'pages: a callback that is wrong', 'an answer is from the server that was asked'],
    ['connect.ts', 'discovery.issRequired === true', 'false', 'pages: a callback that is wrong', 'a server that says that it names itself does so'],
    ['connect.ts', 'current !== undefined && current.connectedAt >= issuedAt', 'false', 'pages: a callback that comes again', 'a callback counts once'],
    ['connect.ts', 'metadata !== undefined && withoutSlash(metadata.issuer) !== withoutSlash(authorizationServerUrl)', 'false', 'v1: metadata that name another issuer', 'metadata are of the issuer that was asked'],
    ['connect.ts', "authorizationUrl.searchParams.set('code_challenge', hash('sha256', codeVerifierOf(vault, nonce), 'base64url'))", '', 'pages: a callback that comes again', 'the verifier is derived, and kept nowhere'],
    ['connect.ts', '`code verifier ${nonce}`', "'code verifier'", 'pages: while it is being connected', 'each connection has a verifier of its own'],
    ['plugin.ts', ' || pending.server !== server', '', 'pages: a callback that is wrong', 'each server has a redirect URI of its own'],
    ['plugin.ts', 'if (user.id !== pending.userId) throw', 'if (false) throw', 'pages: a callback that is wrong', 'a callback is for whoever began'],
    ['plugin.ts', "checkTicket(await tickets.open(form.get('ticket') ?? '', Date.now()), user)", '{ userId: user!.id }', 'pages: a form that was not made for this user', 'forms are of this site, for this user'],
    ['plugin.ts', '/^\\/(?![/\\\\])[!-~]*$/.test(value)', 'true', 'pages: after connecting', 'nobody is sent to another site'],
    ['plugin.ts', 'if (limits.every((limit) => limit.allows(what))) return', 'return', 'pages: a user may begin five times', 'beginning is limited'],
    ['vault.ts', 'opened.userId !== userId', 'false', 'pages: neither the database', 'a row is for its user'],
    ['vault.ts', 'opened.server !== server', 'false', 'pages: neither the database', 'a row is for its server'],
    ['vault.ts', ' || credentials.url !== options.url', '', 'pages: a server whose address has changed', 'tokens are for the address that they were given for'],
    ['vault.ts', 'return Object.hasOwn(servers, server) ? servers[server] : undefined', 'return servers[server]', 'pages: each user has the servers', 'only what the app has named is a server'],
    ['servers.ts', '(userSupplied && { fetch: fetchPublic })', '(false && { fetch: fetchPublic })', 'fence: nor is anything asked without TLS', 'what users typed in is asked behind the fence'],
    ['servers.ts', "redirect: isPost ? 'error' : 'manual'", "redirect: 'follow'", 'pages: what is posted follows no redirect', 'secrets go to the address that was named'],
    ['servers.ts', "(protocol === 'http:' && !own.startsWith('http:'))", 'false', 'fence: a server that is on https', 'a server leads nobody into this computer'],
    ['servers.ts', '/[@#]/.test(url)', '/[#]/.test(url)', 'pages: options are checked', 'no password is in an address'],
    ['provider.ts', 'const until = await vault.lock(userId, server)\n  try {', 'const until = Date.now() + 30_000\n  try {', 'jobs: eight workers', 'one refreshes at a time'],
    ['store.ts', ' WHERE connections.locked_until <= $4', '', 'test/store/connections.test.ts', 'a lock is one'],
    ['store.ts', 'WHERE ${ROW} AND locked_until = $4', 'WHERE ${ROW} AND $4 = $4', 'test/store/connections.test.ts', 'who has lost the lock writes nothing']
  ].map(([file, search, replace, test, why]) => ({
    file: `lib/connections/${file}`,
    search,
    replace,
    tests: [test.replace(/^(?:pages|jobs): /, 'test/connections.test.ts: ').replace(/^fence: /, 'test/connections-fence.test.ts: ').replace(/^v1: /, 'test/connections-v1.test.ts: ')],
    why
  })),

  ...[
    ["await this.revoke({ grantId: row.id }, 'code_replayed', row.createdAt)", '', 'a replay ends the grant'],
    ["if (reason === 'disconnected') await this.#insert(disconnectMark(selector, now))", '', 'a disconnect leaves its mark'],
    ['AND refresh_hash = $7', 'AND $7::bytea IS NOT NULL', 'a refresh token is rotated once']
  ].map(([search, replace, why]) => ({ file: 'lib/store/postgres.ts', search, replace, tests: ['test/store/postgres.test.ts'], why: `${why}, on PostgreSQL` }))
]
