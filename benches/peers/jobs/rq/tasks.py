"""The job of RQ's workers: appends a record to the file DONE: its number, when it was enqueued and
when it was begun."""

import os
import struct
import time

done = os.open(os.environ["DONE"], os.O_WRONLY | os.O_APPEND)


def touch(job):
    os.write(done, struct.pack("<QQQ", job["number"], job["at"], time.monotonic_ns()))
