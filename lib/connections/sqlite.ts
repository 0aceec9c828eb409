import { inWalMode, named, openDatabase } from '../store/sqlite.js'
import { TABLE, storeOn, type ConnectionRow, type ConnectionStore } from './store.js'

/** One file, which several processes may share, and `sqliteStore()` too. */
export function sqliteConnectionStore ({ path }: { path: string }): ConnectionStore {
  let database: Awaited<ReturnType<typeof openDatabase>> | undefined
  return {
    async open () {
      try {
        database = await openDatabase(path)
        await inWalMode(database, (database) => database.exec(TABLE))
      } catch (error) {
        throw named(error)
      }
    },
    ...storeOn((statement, values) => {
      const prepared = database!.prepare(statement.replaceAll('$', '?'))
      return statement.startsWith('SELECT')
        ? { rows: prepared.all(...values) as unknown as ConnectionRow[], changes: 0 }
        : { rows: [], changes: Number(prepared.run(...values).changes) }
    }),
    close () {
      database?.close()
      database = undefined
    }
  }
}
