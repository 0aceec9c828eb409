import { inWalMode, named, openDatabase } from '../store/sqlite-database.js'
import { TABLE, storeOn, type ConnectionStore } from './store.js'

/** One file, which several processes may share, and `sqliteStore()` too. */
export function sqliteConnectionStore ({ path }: { path: string }): ConnectionStore {
  let database: Awaited<ReturnType<typeof openDatabase>> | undefined
  const close = (): void => {
    database?.close()
    database = undefined
  }
  return {
    async open () {
      try {
        database = await openDatabase(path)
        await inWalMode(database, (database) => database.exec(TABLE))
      } catch (error) {
        close()
        throw named(error)
      }
    },
    ...storeOn((statement, values) => {
      const prepared = database!.prepare(statement.replaceAll('$', '?'))
      return statement.startsWith('SELECT')
        ? { rows: prepared.all(...values) as Array<{ value: string | null }>, changes: 0 }
        : { rows: [], changes: Number(prepared.run(...values).changes) }
    }),
    close
  }
}
