import neostandard from 'neostandard'

// Imports run one way, lowest first. A folder may import from what stands before it, never from what stands after.
const ORDER = ['protocol', 'expect', 'limit', 'store', 'clients', 'events', 'options', 'grants', 'http', 'endpoints', 'fastify', 'plugin', 'remote', 'connections', 'index', 'testing', 'cli']

export default [
  ...neostandard({ ts: true, ignores: ['dist', '.tap', '**/node_modules', 'test/*.js', 'test/store/*.js'] }),
  ...ORDER.map((layer, index) => ({
    files: [`lib/${layer}/**`, `lib/${layer}.ts`],
    rules: {
      'no-restricted-imports': ['error', {
        patterns: [{
          regex: `^\\.\\.?/(${ORDER.slice(index + 1).join('|') || '(?!)'})(/|\\.js$)`,
          message: `Imports run one way: ${ORDER.join(' ← ')}.`
        }]
      }]
    }
  }))
]
