// @ts-check
import { fileURLToPath } from 'node:url'

/** Where users sign in. */
export const ISSUER = process.env.ISSUER ?? 'http://localhost:3000'
/** Where their MCP clients connect. */
export const FILES = process.env.FILES ?? 'http://localhost:3001'
export const DATA_DIR = process.env.DATA_DIR ?? fileURLToPath(new URL('../../.data/separate-servers', import.meta.url))
