// @ts-check

/** @type {Map<string, string>} */
const USERS = new Map([['alice', 'Alice'], ['bob', 'Bob']])

/**
 * Who the signed cookie says is signed in. This is what the plugin asks: `currentUser`.
 *
 * @param {import('fastify').FastifyRequest} request
 */
export function signedInUser (request) {
  const { valid, value } = request.unsignCookie(request.cookies.session ?? '')
  return valid && value !== null && USERS.has(value) ? { id: value, name: String(USERS.get(value)) } : null
}

/**
 * GET and POST /login: a sign-in without passwords. Demo only.
 *
 * @param {import('fastify').FastifyInstance} app
 * @param {{ name?: string }} options what the app is called
 */
export async function signIn (app, { name = 'Demo Notes' }) {
  app.get('/login', async (request, reply) => {
    const { return_to: returnTo } = /** @type {{ return_to?: unknown }} */ (request.query)
    return reply.type('text/html; charset=utf-8').send(page(name, pathOfThisApp(returnTo)))
  })

  app.post('/login', async (request, reply) => {
    const { username, return_to: returnTo } = /** @type {Record<string, unknown>} */ (request.body ?? {})
    if (typeof username !== 'string' || !USERS.has(username)) {
      return reply.code(400).type('text/html; charset=utf-8').send(page(name, pathOfThisApp(returnTo), 'There is no such user.'))
    }
    return reply
      .setCookie('session', username, { signed: true, httpOnly: true, secure: 'auto', sameSite: 'lax', path: '/' })
      .redirect(pathOfThisApp(returnTo), 303)
  })
}

/**
 * Where to go after signing in: never to another site. Browsers read `//` and `/\` as the start of a host.
 *
 * @param {unknown} returnTo
 */
function pathOfThisApp (returnTo) {
  return typeof returnTo === 'string' && /^\/(?![/\\])[!-~]*$/.test(returnTo) ? returnTo : '/'
}

/** @param {string} text */
export function escapeHtml (text) {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`)
}

/**
 * @param {string} name
 * @param {string} returnTo
 * @param {string} [problem]
 */
function page (name, returnTo, problem) {
  return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sign in – ${name}</title>
<style>
  :root { color-scheme: light dark }
  body { font: 1rem/1.5 system-ui, sans-serif; max-width: 22rem; margin: 10vh auto; padding: 0 1rem }
  button { display: block; width: 100%; margin: 0.75rem 0; padding: 0.75rem; font: inherit; cursor: pointer }
</style>
<main>
  <h1>Sign in</h1>
  <p>${name} has two users and no passwords.</p>
  ${problem === undefined ? '' : `<p role="alert">${problem}</p>`}
  <form method="post" action="/login">
    <input type="hidden" name="return_to" value="${escapeHtml(returnTo)}">
    ${[...USERS].map(([id, name]) => `<button name="username" value="${id}">${name}</button>`).join('\n    ')}
  </form>
</main>
</html>`
}
