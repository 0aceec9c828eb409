import { createHash, randomBytes } from 'node:crypto'
import type { Test } from 'tap'
import { summarize } from '../../dist/grants/tokens.js'
import { newRow } from '../../dist/store/schema.js'
import type { Selector, TokenRow, TokenStore } from '../../dist/store/store.js'

const NOW = 1_800_000_000_000

export function sha256 (text: string): Buffer {
  return createHash('sha256').update(text).digest()
}

/** A row of alice's for the client `app`, with its token's hash made from its id. */
export function row (fields: Partial<TokenRow> = {}): TokenRow {
  const id = fields.id ?? randomBytes(16).toString('base64url')
  return newRow({
    id,
    tokenHash: sha256(id),
    userId: 'alice',
    tenantId: 'acme',
    clientId: 'app',
    clientName: 'App',
    clientHost: 'localhost',
    scopes: 'read write',
    resource: 'https://notes.example.com/mcp',
    createdAt: NOW,
    ...fields
  })
}

/**
 * What every store promises: this is the definition of `TokenStore`.
 *
 * @param open a store on an empty database, opened
 * @param reopen a second store on the same database, opened
 */
export function storeContract (t: Test, name: string, { open, reopen }: { open: (t: Test) => Promise<TokenStore>, reopen: (t: Test) => Promise<TokenStore> }): void {
  t.test(`${name} keeps the store contract`, async (t) => {
    const test = (title: string, body: (t: Test, store: TokenStore) => Promise<void>) =>
      t.test(title, async (t) => await body(t, await open(t)))

    await test('every field of a row comes back as it was given', async (t, store) => {
      const full: TokenRow = {
        ...row(),
        refreshHash: sha256('refresh'),
        previousRefreshHash: sha256('previous'),
        refreshedAt: NOW + 1,
        refreshExpiresAt: NOW + 2,
        name: 'имя 名 "\'; DROP TABLE access_tokens; --',
        expiresAt: 9_007_199_254_740_991,
        lastUsedAt: NOW + 3,
        revokedAt: NOW + 4,
        revokedReason: 'client_revoked'
      }
      t.equal(await store.issue(full), 'issued')
      t.strictSame(plain(await store.find(full.id)), plain(full))
      const { tokenHash, refreshHash, previousRefreshHash, ...grant } = full
      t.hasStrict(await store.findByTokenHash(tokenHash), grant)
      const live = row({ ...grant, id: 'live', tokenHash: sha256('live'), revokedAt: null, revokedReason: null })
      await store.issue(live)
      t.hasStrict(await store.list({ userId: live.userId! }, NOW), [{ ...grant, id: 'live', revokedAt: null, revokedReason: null }])
      const bare = row({ userId: null, tenantId: null, clientId: null, clientName: null, clientHost: null, resource: null })
      await store.issue(bare)
      t.strictSame(plain(await store.find(bare.id)), plain(bare))
    })

    await test('what does not exist is null', async (t, store) => {
      t.equal(await store.find('nothing'), null)
      t.equal(await store.findByTokenHash(sha256('nothing')), null)
    })

    await test('issuing an id again revokes the grant and adds nothing (RFC 6749 §4.1.2)', async (t, store) => {
      const first = row()
      t.equal(await store.issue(first), 'issued')
      t.equal(await store.issue({ ...first, tokenHash: sha256('second'), createdAt: NOW + 5 }), 'replayed')
      t.equal(await store.findByTokenHash(sha256('second')), null)
      t.match(await store.find(first.id), { revokedAt: NOW + 5, revokedReason: 'code_replayed' })
      t.equal(await store.issue({ ...first, tokenHash: sha256('third'), createdAt: NOW + 9 }), 'replayed', 'and so does a third time')
      t.match(await store.find(first.id), { revokedAt: NOW + 5 }, 'which leaves the first revocation as it was')
    })

    await test('of many issues of one id at once exactly one wins, and its grant ends revoked', async (t, store) => {
      const first = row()
      const results = await Promise.all(Array.from({ length: 32 }, async (_, index) =>
        await store.issue({ ...first, tokenHash: sha256(`${index}`) })))
      t.equal(results.filter((result) => result === 'issued').length, 1)
      t.equal(results.filter((result) => result === 'replayed').length, 31)
      t.match(await store.find(first.id), { revokedReason: 'code_replayed' })
    })

    await test('a code from before a disconnect is refused, one from after it is not', async (t, store) => {
      await store.issue(row())
      t.equal(await store.revoke({ userId: 'alice', clientId: 'app' }, 'disconnected', NOW + 10), 1)
      t.equal(await store.issue(row(), { codeIssuedAt: NOW + 9 }), 'disconnected')
      t.equal(await store.issue(row(), { codeIssuedAt: NOW + 10 }), 'disconnected', 'in the same millisecond the disconnect wins')
      t.equal(await store.issue(row({ userId: 'bob' }), { codeIssuedAt: NOW + 9 }), 'issued', 'another user')
      t.equal(await store.issue(row({ clientId: 'other' }), { codeIssuedAt: NOW + 9 }), 'issued', 'another client')
      t.equal(await store.issue(row()), 'issued', 'no code')
      t.equal(await store.issue(row(), { codeIssuedAt: NOW + 11 }), 'issued')
    })

    await test('a refused issue leaves nothing behind', async (t, store) => {
      await store.issue(row())
      await store.revoke({ userId: 'alice', clientId: 'app' }, 'disconnected', NOW + 10)
      const refused = row()
      await store.issue(refused, { codeIssuedAt: NOW })
      t.equal(await store.find(refused.id), null)
    })

    await test('a revocation by the client or by a replay stops no code that is on its way', async (t, store) => {
      for (const reason of ['client_revoked', 'code_replayed', 'refresh_reused'] as const) {
        const old = row()
        await store.issue(old)
        await store.revoke({ grantId: old.id }, reason, NOW + 10)
        t.equal(await store.issue(row(), { codeIssuedAt: NOW }), 'issued', reason)
      }
    })

    await test('a disconnect stops codes of whom it names, where there is no grant yet', async (t, store) => {
      const issue = async (fields: Partial<TokenRow>) => await store.issue(row(fields), { codeIssuedAt: NOW })
      t.equal(await store.revoke({ userId: 'carol' }, 'disconnected', NOW), 0)
      t.equal(await store.revoke({ clientId: 'closed' }, 'disconnected', NOW), 0)
      t.equal(await store.revoke({ userId: 'dave', clientId: 'one' }, 'disconnected', NOW), 0)
      t.equal(await store.revoke({ grantId: 'pending' }, 'disconnected', NOW), 0)
      t.equal(await issue({ userId: 'carol' }), 'disconnected')
      t.equal(await issue({ clientId: 'closed' }), 'disconnected')
      t.equal(await issue({ userId: 'dave', clientId: 'one' }), 'disconnected')
      t.equal(await issue({ id: 'pending' }), 'replayed')
      t.equal(await issue({ userId: 'dave' }), 'issued')
      t.equal(await issue({}), 'issued')
      t.equal(await store.issue(row({ userId: 'carol' }), { codeIssuedAt: NOW + 1 }), 'issued', 'a later code')
      t.equal(summarize(await store.stats(NOW)).total, 3, 'and counts as no grant')
    })

    await test('a personal token that was revoked stops no code', async (t, store) => {
      const personal = row({ clientId: null, name: 'script' })
      await store.issue(personal)
      await store.revoke({ grantId: personal.id }, 'disconnected', NOW)
      t.equal(await store.issue(row(), { codeIssuedAt: NOW }), 'issued')
    })

    await test('a disconnect also counts when the grant had ended before it', async (t, store) => {
      const old = row()
      await store.issue(old)
      await store.revoke({ grantId: old.id }, 'client_revoked', NOW + 1)
      t.equal(await store.revoke({ userId: 'alice', clientId: 'app' }, 'disconnected', NOW + 20), 0, 'nothing was live')
      t.equal(await store.issue(row(), { codeIssuedAt: NOW + 10 }), 'disconnected')
    })

    await test('revoke ends what it names, says how many were live, and touches nothing else', async (t, store) => {
      const rows = {
        one: row(),
        two: row(),
        other: row({ clientId: 'other' }),
        bob: row({ userId: 'bob' }),
        personal: row({ clientId: null, name: 'script' })
      }
      const live = async (): Promise<string[]> => {
        const names: string[] = []
        for (const [name, { tokenHash }] of Object.entries(rows)) if ((await store.findByTokenHash(tokenHash))?.revokedAt === null) names.push(name)
        return names
      }
      for (const each of Object.values(rows)) await store.issue(each)
      t.equal(await store.revoke({ grantId: rows.one.id }, 'disconnected', NOW), 1)
      t.equal(await store.revoke({ grantId: rows.one.id }, 'client_revoked', NOW + 1), 0, 'once')
      t.match(await store.find(rows.one.id), { revokedAt: NOW, revokedReason: 'disconnected' })
      t.equal(await store.revoke({ grantId: 'nothing' }, 'disconnected', NOW), 0)
      t.strictSame(await live(), ['two', 'other', 'bob', 'personal'])
      t.equal(await store.revoke({ userId: 'alice', clientId: 'app' }, 'disconnected', NOW), 1)
      t.strictSame(await live(), ['other', 'bob', 'personal'])
      t.equal(await store.revoke({ clientId: 'app' }, 'disconnected', NOW), 1)
      t.strictSame(await live(), ['other', 'personal'])
      t.equal(await store.revoke({ userId: 'alice' }, 'disconnected', NOW), 2)
      t.strictSame(await live(), [])
    })

    await test('list shows a user’s live grants, oldest first', async (t, store) => {
      const rows = [row({ createdAt: NOW + 2 }), row({ createdAt: NOW + 1, expiresAt: NOW + 50 }), row({ clientId: null, createdAt: NOW + 3 })]
      for (const each of rows) await store.issue(each)
      await store.issue(row({ userId: 'bob' }))
      await store.issue(row({ expiresAt: NOW + 10 }))
      const revoked = row()
      await store.issue(revoked)
      await store.revoke({ grantId: revoked.id }, 'disconnected', NOW)
      t.strictSame((await store.list({ userId: 'alice' }, NOW + 10)).map(({ id }) => id), [rows[1]!.id, rows[0]!.id, rows[2]!.id])
      t.strictSame(await store.list({ userId: 'nobody' }, NOW), [])
    })

    await test('of many rotations at once exactly one changes the row', async (t, store) => {
      const old = row({ refreshHash: sha256('refresh 1') })
      await store.issue(old)
      const to = (generation: string) => ({
        tokenHash: sha256(`token ${generation}`), refreshHash: sha256(`refresh ${generation}`), expiresAt: NOW + 100, refreshExpiresAt: NOW + 200, refreshedAt: NOW + 1
      })
      const results = await Promise.all(Array.from({ length: 20 }, async (_, index) => await store.rotate(old.id, sha256('refresh 1'), to(`2.${index}`))))
      const winner = results.indexOf(true)
      t.equal(results.filter(Boolean).length, 1)
      t.match(plain(await store.find(old.id)), plain({ ...old, ...to(`2.${winner}`), previousRefreshHash: sha256('refresh 1') }))
      t.equal(await store.findByTokenHash(old.tokenHash), null, 'the old access token is gone')
      t.equal(await store.rotate(old.id, sha256('refresh 1'), to('3')), false, 'an older generation rotates nothing')
      await store.revoke({ grantId: old.id }, 'refresh_reused', NOW)
      t.equal(await store.rotate(old.id, sha256(`refresh 2.${winner}`), to('3')), false, 'nor does a revoked grant')
    })

    await test('the last use is written behind, and close() writes what is left', async (t, store) => {
      const used = row()
      await store.issue(used)
      for (let use = 1; use <= 100; use++) store.touch(used.id, NOW + use)
      // More than are written at once: the last of them is no less written.
      for (let index = 0; index < 1100; index++) store.touch(`nothing ${index}`, NOW)
      const last = row()
      await store.issue(last)
      store.touch(last.id, NOW + 1)
      await store.close()
      t.match(await (await reopen(t)).find(last.id), { lastUsedAt: NOW + 1 })
      t.match(await (await reopen(t)).find(used.id), { lastUsedAt: NOW + 100 })
    })

    await test('what was issued or revoked is seen by another store on the same database at once', async (t, store) => {
      const other = await reopen(t)
      const shared = row()
      await store.issue(shared)
      t.match(await other.findByTokenHash(shared.tokenHash), { id: shared.id, revokedAt: null })
      await other.revoke({ grantId: shared.id }, 'disconnected', NOW)
      t.match(await store.findByTokenHash(shared.tokenHash), { revokedAt: NOW })
      t.equal(await other.issue(shared), 'replayed')
    })

    await test('look-ups at once are each answered with their own row, as it is when they come', async (t, store) => {
      const rows = Array.from({ length: 50 }, () => row())
      for (const each of rows) await store.issue(each)
      await store.revoke({ grantId: rows[7]!.id }, 'disconnected', NOW)
      const hashes = [...rows, row(), row(), rows[0]!].map(({ tokenHash }) => tokenHash)
      const found = await Promise.all(hashes.map(async (hash) => await store.findByTokenHash(hash)))
      t.strictSame(found.map((each) => each?.id ?? null), [...rows.map(({ id }) => id), null, null, rows[0]!.id])
      t.strictSame(found.map((each) => each?.revokedAt != null), hashes.map((_, index) => index === 7))
    })

    await test('stats are one entry a client, the most active first, with each grant in exactly one state', async (t, store) => {
      t.strictSame(await store.stats(NOW), [])
      const revoked = [row(), row({ expiresAt: NOW }), row({ clientId: null })]
      for (const each of [
        row(),
        row({ expiresAt: NOW + 1 }),
        row({ expiresAt: NOW - 1, refreshExpiresAt: NOW + 1 }),
        row({ expiresAt: NOW }),
        row({ expiresAt: NOW - 1, refreshExpiresAt: NOW }),
        // What can be used longer than it can be refreshed.
        row({ expiresAt: NOW + 1, refreshExpiresAt: NOW - 1 }),
        row({ clientId: 'other', clientName: 'Other', expiresAt: NOW }),
        row({ clientId: 'nameless', clientName: null }),
        row({ clientId: 'nameless', clientName: null }),
        row({ clientId: null, clientName: null, name: 'script' }),
        ...revoked
      ]) await store.issue(each)
      for (const { id } of revoked) await store.revoke({ grantId: id }, 'client_revoked', NOW)
      t.strictSame((await store.stats(NOW)).map((each) => ({ ...each })), [
        { clientId: 'app', clientName: 'App', active: 4, revoked: 2, expired: 2 },
        { clientId: 'nameless', clientName: null, active: 2, revoked: 0, expired: 0 },
        { clientId: null, clientName: 'App', active: 1, revoked: 1, expired: 0 },
        { clientId: 'other', clientName: 'Other', active: 0, revoked: 0, expired: 1 }
      ])
    })

    await test('what a disconnect leaves behind is no grant in the stats', async (t, store) => {
      for (const selector of [{ userId: 'carol' }, { clientId: 'app' }, { grantId: 'pending' }]) await store.revoke(selector, 'disconnected', NOW)
      t.strictSame(await store.stats(NOW), [])
    })

    await test('count says how many grants revoke would end, and changes nothing', async (t, store) => {
      const one = row()
      for (const each of [one, row(), row({ expiresAt: NOW - 1 }), row({ clientId: 'other' }), row({ userId: 'bob' }), row({ clientId: null })]) await store.issue(each)
      const ended = row()
      await store.issue(ended)
      await store.revoke({ grantId: ended.id }, 'client_revoked', NOW)
      const selectors: Array<[Selector, number]> = [
        [{ grantId: ended.id }, 0], [{ grantId: 'nothing' }, 0], [{ userId: 'nobody' }, 0],
        [{ grantId: one.id }, 1], [{ userId: 'alice', clientId: 'app' }, 2], [{ clientId: 'app' }, 1], [{ userId: 'alice' }, 2]
      ]
      for (const [selector, expected] of selectors) {
        t.equal(await store.count(selector), expected, JSON.stringify(selector))
        t.equal(await store.count(selector), expected, 'and again')
        t.equal(await store.revoke(selector, 'disconnected', NOW), expected)
        t.equal(await store.count(selector), 0)
      }
    })

    await test('purge deletes what ended before a time, in bounded batches, and nothing that lives', async (t, store) => {
      const live = [row(), row({ expiresAt: NOW + 1000 }), row({ expiresAt: NOW - 1, refreshExpiresAt: NOW }), row({ expiresAt: NOW, refreshExpiresAt: NOW - 1 })]
      const ended = Array.from({ length: 7 }, (_, index) => row(index % 2 === 0 ? { expiresAt: NOW - 1 } : { revokedAt: NOW - 1, revokedReason: 'disconnected' }))
      const recent = row({ revokedAt: NOW, revokedReason: 'disconnected' })
      for (const each of [...live, ...ended, recent]) await store.issue(each)
      t.equal(await store.count({ endedBefore: NOW }), 7, 'count says how many there are in all')
      t.strictSame([await store.purge(NOW, 5), await store.purge(NOW, 5), await store.purge(NOW, 5)], [5, 2, 0])
      t.equal(await store.count({ endedBefore: NOW }), 0)
      await store.revoke({ userId: 'carol' }, 'disconnected', NOW)
      t.equal(await store.count({ endedBefore: NOW + 1 }), 4, 'what a disconnect left behind included')
      for (const each of [...live, recent]) t.not(await store.find(each.id), null)
    })

    await test('close() can be called twice', async (t, store) => {
      await store.close()
      await t.resolves(async () => await store.close())
    })
  })
}

/** Stores may answer with objects and byte arrays of their driver's kinds. */
function plain (row: TokenRow | null): object | null {
  return row && Object.fromEntries(Object.entries(row).map(([name, value]) => [name, value instanceof Uint8Array ? Buffer.from(value).toString('hex') : value]))
}
