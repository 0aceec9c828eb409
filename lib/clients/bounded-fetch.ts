export type Fetch = (url: string | URL, init?: RequestInit) => Promise<Response>

export interface Bounds {
  /** Milliseconds. */
  timeout: number
  /** Bytes. */
  maxLength: number
  /** Default the one of Node. */
  fetch?: Fetch
}

/**
 * fetch(), for an answer that is not trusted to end: all of it has come before this answers.
 *
 * @throws Error for an answer that is not there in time, or too long
 */
export async function fetchBounded (url: string | URL, init: RequestInit | undefined, { timeout, maxLength, fetch = globalThis.fetch }: Bounds): Promise<Response> {
  const aborted = new AbortController()
  let reader: ReadableStreamDefaultReader<Uint8Array> | undefined
  let timer: NodeJS.Timeout | undefined
  // Not the signal alone: once the answer has begun, garbage collection may take away what links it to the fetch.
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => {
      reject(new Error(`timeout: no whole answer from ${String(url)} within ${timeout} ms`))
      reader?.cancel().catch(() => {})
    }, timeout)
  })
  const answer = async (): Promise<Response> => {
    const response = await fetch(url, { ...init, signal: aborted.signal })
    const chunks: Uint8Array[] = []
    let length = 0
    reader = response.body?.getReader()
    for (let part = await reader?.read(); part?.done === false; part = await reader!.read()) {
      chunks.push(part.value)
      // Counted once unpacked: two megabytes of gzip can be two gigabytes.
      length += part.value.length
      if (length > maxLength) throw new Error(`${String(url)} answered with over ${maxLength} bytes`)
    }
    return new Response(length === 0 ? null : Buffer.concat(chunks), response)
  }
  try {
    return await Promise.race([answer(), late])
  } finally {
    clearTimeout(timer)
    aborted.abort()
  }
}
