"""Enqueues jobs with RQ, and prints when it began and when the last call had returned.

python produce.py N FIRST [bulk | RATE]: N jobs from the number FIRST on; one by one, in batches of a
thousand, or so many a second.
"""

import json
import os
import sys
import time

from redis import Redis
from rq import Queue

BATCH = 1000

count, first = int(sys.argv[1]), int(sys.argv[2])
how = sys.argv[3] if len(sys.argv) > 3 else None
now = time.monotonic_ns
bare = {"number": 1_000_000, "at": now(), "text": ""}
text = "x" * (64 - len(json.dumps(bare, separators=(",", ":"))))


def data(number):
    return {"number": number, "at": now(), "text": text}


queue = Queue("jobs", connection=Redis(port=int(os.environ["REDIS_PORT"])))
queue.connection.ping()

started = now()
if how == "bulk":
    for sent in range(0, count, BATCH):
        numbers = range(first + sent, first + min(sent + BATCH, count))
        queue.enqueue_many(
            [Queue.prepare_data("tasks.touch", (data(number),)) for number in numbers]
        )
else:
    between = 1e9 / int(how) if how else 0
    for sent in range(count):
        early = started + sent * between - now()
        if early > 0:
            time.sleep(early / 1e9)
        queue.enqueue("tasks.touch", data(first + sent))
ended = now()
print(json.dumps({"started": started, "ended": ended, "waiting": queue.count}))
