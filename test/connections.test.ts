import t from 'tap'
import { jobs, pages } from './connections-suite.js'
import { SDKS } from './sdk.js'

// With the newer of the two SDKs inside, as it is found first.
jobs(t, SDKS)
pages(t)
