"""Enqueues jobs with Celery, and prints when it began and when the last call had returned.

python produce.py N FIRST [RATE]: N jobs from the number FIRST on; one by one, or so many a second.
"""

import json
import os
import sys
import time

from redis import Redis
from tasks import touch

count, first = int(sys.argv[1]), int(sys.argv[2])
rate = int(sys.argv[3]) if len(sys.argv) > 3 else None
now = time.monotonic_ns
bare = {"number": 1_000_000, "at": now(), "text": ""}
text = "x" * (64 - len(json.dumps(bare, separators=(",", ":"))))


def data(number):
    return {"number": number, "at": now(), "text": text}


touch.app.connection_for_write().ensure_connection(max_retries=3)

started = now()
between = 1e9 / rate if rate else 0
for sent in range(count):
    early = started + sent * between - now()
    if early > 0:
        time.sleep(early / 1e9)
    touch.delay(data(first + sent))
ended = now()
waiting = Redis(port=int(os.environ["REDIS_PORT"])).llen("celery")
print(json.dumps({"started": started, "ended": ended, "waiting": waiting}))
