import type { RequestGrant, Guard, ProtectOptions } from './http/guard.js'
import type { Tokens } from './grants/tokens.js'

/** `app.oauth`. */
export interface McpOAuth {
  /**
   * Makes an `onRequest` hook that lets only valid tokens pass. `onRequest`, because Fastify answers 415, 400 and 413
   * before later hooks run, and the client would never see its 401 challenge.
   */
  protect: (options?: ProtectOptions) => Guard
  tokens: Tokens
}

declare module 'fastify' {
  interface FastifyInstance {
    oauth: McpOAuth
  }
  interface FastifyRequest {
    /** The grant of the request's token; null until a guard accepted one. */
    oauth: RequestGrant | null
  }
  interface FastifyReply {
    /** @internal What every page shows. */
    oauthPage: { stylesUrl: string, siteName: string }
    /** @internal */
    oauthViewAsync (page: string, data: object): Promise<string>
  }
}
