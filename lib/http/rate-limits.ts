import rateLimit, { normalizeIP, type RateLimitOptions } from '@fastify/rate-limit'
import type { FastifyContextConfig, FastifyInstance, FastifyRequest } from 'fastify'
import type { EndpointLimit, Settings } from '../options.js'

const DEFAULT_MAX = { register: 10, token: 120, authorize: 60 }

/** The limiter of this plugin, apart from any that the host has. Routes opt in with `limited()`. */
export async function addRateLimits (app: FastifyInstance, settings: Settings): Promise<void> {
  if (settings.rateLimit === false) return
  const { register: _, token: __, authorize: ___, ...options } = settings.rateLimit
  await app.register(rateLimit, { ...options, global: false })
}

/** Route config with the limit of an endpoint. */
export function limited (settings: Settings, endpoint: keyof typeof DEFAULT_MAX): { config: FastifyContextConfig } {
  if (settings.rateLimit === false) return { config: {} }
  const limit: EndpointLimit | undefined = settings.rateLimit[endpoint]
  if (limit === false) return { config: {} }
  const { keyGenerator, ipv6Subnet } = { ...settings.rateLimit, ...limit }
  const rateLimit: RateLimitOptions = { max: DEFAULT_MAX[endpoint], timeWindow: '1 minute', ...limit, keyGenerator: keyGenerator ?? clientAddress(ipv6Subnet) }
  return { config: { rateLimit } as FastifyContextConfig }
}

/** The limiter's own throws where there is no address: on a Unix socket, and once a client has hung up. */
function clientAddress (ipv6Subnet: number | undefined) {
  return ({ ip }: FastifyRequest): string => normalizeIP(ip ?? '', ipv6Subnet)
}
