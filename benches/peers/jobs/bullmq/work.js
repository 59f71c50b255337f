// Works jobs off with BullMQ, and appends a record for each to the file DONE: its number, when it
// was enqueued and when it was begun. node work.js CONCURRENCY

import { openSync, writeSync } from 'node:fs';
import { Worker } from 'bullmq';

const done = openSync(process.env.DONE, 'a');
const record = Buffer.alloc(24);

const worker = new Worker(
  'jobs',
  async job => {
    record.writeBigUInt64LE(BigInt(job.data.number), 0);
    record.writeBigUInt64LE(BigInt(job.data.at), 8);
    record.writeBigUInt64LE(process.hrtime.bigint(), 16);
    writeSync(done, record);
  },
  {
    connection: { host: '127.0.0.1', port: Number(process.env.REDIS_PORT) },
    concurrency: Number(process.argv[2] ?? 1),
  },
);
process.on('SIGTERM', async () => {
  await worker.close();
  process.exit(0);
});
