import { Transform } from 'node:stream'

/** Shows each test file and whatever failed, and ends with one line of totals. */
export default class Reporter extends Transform {
  #rest = ''
  #totals = { pass: 0, fail: 0, skip: 0, todo: 0 }

  _transform (chunk, _encoding, done) {
    const lines = (this.#rest + chunk).split('\n')
    this.#rest = lines.pop()
    for (const line of lines) this.#line(line)
    done()
  }

  _flush (done) {
    if (this.#rest !== '') this.#line(this.#rest)
    const { pass, fail, skip, todo } = this.#totals
    const skipped = skip + todo
    this.push(`\n${pass} passed, ${fail} failed${skipped > 0 ? `, ${skipped} skipped` : ''}\n`)
    done()
  }

  #line (line) {
    const totals = line.match(/^# \{(.*)\}$/)
    if (totals !== null) {
      for (const [, name, count] of totals[1].matchAll(/(\w+): (\d+)/g)) this.#totals[name] = Number(count)
    } else if (!/^\s+ok |^\s*# Subtest|^\s*\d+\.\.\d+|^\s*$|^TAP version|^\s*# time|^# No coverage/.test(line) || / # [A-Z]{4}\b/.test(line)) {
      this.push(line + '\n')
    }
  }
}
