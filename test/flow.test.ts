import t from 'tap'
import { bearer, dance, testApp } from './app.js'

t.test('the whole dance', async (t) => {
  const app = await testApp(t)
  const { connect } = dance(app)
  const { token, scope } = await connect()
  t.equal(scope, 'read write')
  const response = await app.inject({ method: 'POST', url: '/mcp', headers: bearer(token) })
  t.equal(response.statusCode, 200)
  t.strictSame(response.json(), { userId: 'alice', scopes: ['read', 'write'] })
})
