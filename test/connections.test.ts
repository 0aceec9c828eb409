import t from 'tap'
import { jobs, pages } from './connections-suite.js'
import { SDKS } from './sdk.js'

// With the newer of the two SDKs inside, as it is found first.
// Version 2 in its newer mode: the older one has the same OAuth code.
jobs(t, SDKS.filter(({ name }) => name !== 'MCP SDK v2'))
pages(t)
