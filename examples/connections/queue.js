// @ts-check
import PgBoss from 'pg-boss'

/** The job queue, in PostgreSQL. */
export async function openQueue (url = String(process.env.DATABASE_URL)) {
  const queue = new PgBoss(url)
  queue.on('error', (error) => console.error(error))
  await queue.start()
  return queue
}
