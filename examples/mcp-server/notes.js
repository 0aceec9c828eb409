// @ts-check
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

/** @typedef {ReturnType<typeof openNotes>} Notes */

/**
 * Everyone's notes, in one JSON file.
 *
 * @param {string} dataDir
 */
export function openNotes (dataDir) {
  const file = join(dataDir, 'notes.json')
  /** @type {Map<string, string[]>} */
  const notes = new Map(existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : [])
  return {
    /** @param {string} userId */
    list: (userId) => notes.get(userId) ?? [],
    /**
     * @param {string} userId
     * @param {string} text
     */
    add: (userId, text) => {
      notes.set(userId, [...notes.get(userId) ?? [], text])
      writeFileSync(file, JSON.stringify([...notes]))
    }
  }
}
