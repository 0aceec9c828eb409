// @ts-check

// Module hooks with which a package seems not to be installed, for what this project imports on demand.

let missing = ''

/** @param {string} name */
export function initialize (name) {
  missing = name
}

/**
 * @param {string} specifier
 * @param {{ parentURL?: string }} context
 * @param {(specifier: string, context: object) => unknown} next
 */
export async function resolve (specifier, context, next) {
  if (specifier === missing && context.parentURL?.endsWith('/dist/connections/sdk.js')) {
    throw Object.assign(new Error(`${missing} is not installed`), { code: 'ERR_MODULE_NOT_FOUND' })
  }
  return await next(specifier, context)
}
