import { register } from 'node:module'
import t from 'tap'
import { jobs, mixUp } from './connections-suite.js'
import { loadSdk } from '../dist/connections/sdk.js'
import { SDKS } from './sdk.js'

// With version 1 of the SDK inside, as in an app that has no other.
const missing = '@modelcontextprotocol/client'
register(new URL('scripts/without-package.js', import.meta.url), { data: missing })
t.notOk('Client' in await loadSdk(), 'which is without the client itself')
jobs(t, SDKS.slice(0, 1), missing)
mixUp(t)
