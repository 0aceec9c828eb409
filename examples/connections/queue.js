// @ts-check
import PgBoss from 'pg-boss'

/** The job queue, in PostgreSQL. */
export async function openQueue () {
  const queue = new PgBoss(String(process.env.DATABASE_URL))
  queue.on('error', (error) => console.error(error))
  await queue.start()
  await queue.createQueue('digest')
  return queue
}
