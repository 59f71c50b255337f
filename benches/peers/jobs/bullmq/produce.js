// Enqueues jobs with BullMQ, and prints when it began and when the last call had returned.
//
// node produce.js N FIRST [bulk | RATE]: N jobs from the number FIRST on; one by one, in batches of
// a thousand, or so many a second.

import { Queue } from 'bullmq';

const BATCH = 1000;
const [count, first] = process.argv.slice(2, 4).map(Number);
const how = process.argv[4];
const now = () => Number(process.hrtime.bigint());
const text = 'x'.repeat(64 - JSON.stringify({ number: 1000000, at: now(), text: '' }).length);
const data = number => ({ number, at: now(), text });

const queue = new Queue('jobs', {
  connection: { host: '127.0.0.1', port: Number(process.env.REDIS_PORT) },
});
await queue.waitUntilReady();

const started = now();
if (how === 'bulk') {
  for (let sent = 0; sent < count; sent += BATCH) {
    const length = Math.min(BATCH, count - sent);
    await queue.addBulk(
      Array.from({ length }, (_, at) => ({ name: 'touch', data: data(first + sent + at) })),
    );
  }
} else {
  const between = how ? 1e9 / Number(how) : 0;
  for (let sent = 0; sent < count; sent++) {
    const early = started + sent * between - now();
    if (early > 0) await new Promise(resolve => setTimeout(resolve, early / 1e6));
    await queue.add('touch', data(first + sent));
  }
}
const ended = now();
const waiting = await queue.getWaitingCount();
console.log(JSON.stringify({ started, ended, waiting }));
await queue.close();
