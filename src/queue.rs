//! The queue: what a user opens, and from where everything else is reached.

use std::path::Path;
use std::sync::Arc;

use crate::engine::Running;
use crate::engine::enqueue::Place;
use crate::error::{BatchError, EnqueueError, FlushError};
use crate::log::recovery::VerifyReport;
use crate::options::{Builder, EnqueueOptions};
use crate::{
    Consumer, DeadLetters, JobId, OpenError, Producer, RecoveryReport, Stats, StorageError,
    WorkersBuilder,
};

/// A durable job queue in a directory. Cloning it gives another handle on the same queue.
///
/// The queue is closed when the last handle is dropped: queues, producers, consumers, dead letters, pools and
/// their threads. That drop waits for flushes and for the queue's own threads, and only raises an event if it
/// fails; [`close`](Self::close) returns the error.
#[derive(Clone)]
pub struct Queue {
    running: Arc<Running>,
}

impl Queue {
    /// Starts the options of a queue in this directory.
    pub fn builder(path: impl AsRef<Path>) -> Builder {
        Builder::new(path.as_ref())
    }

    /// The queue directory, as an absolute path: where it was when the queue was opened.
    pub fn path(&self) -> &Path {
        self.running.path()
    }

    /// Longest payload, in bytes: about a quarter of the segment size, at most about 16 MiB.
    pub fn max_payload(&self) -> usize {
        self.running.max_payload()
    }

    /// Enqueues a job and returns its id, once the job is as durable as the queue's
    /// [`Durability`](crate::Durability) says.
    ///
    /// Does not wait for room: that is [`EnqueueOptions::wait`]. With `Process` durability it is a copy into
    /// mapped memory that waits for no other thread, but may wait
    /// - for the kernel, at a page fault of the copy;
    /// - for a lock and a system call, to wake a consumer that sleeps;
    /// - for a lock and the disk, where it steps to another segment.
    ///
    /// The calling thread stays on one stripe, so its jobs are claimed in their order.
    ///
    /// # Errors
    /// See [`EnqueueError`]. The payload is only borrowed, so it is still there to try again; after
    /// [`NotDurable`](EnqueueError::NotDurable) the job is in the queue, and trying again doubles it.
    #[inline]
    pub fn enqueue(&self, payload: &[u8]) -> Result<JobId, EnqueueError> {
        let engine = &*self.running;
        engine.enqueue(Place::of_this_thread(engine), payload)
    }

    /// As [`enqueue`](Self::enqueue), with options for this job. [`EnqueueOptions::wait`] waits for room.
    ///
    /// # Errors
    /// As there, and for an option that is out of its range.
    pub fn enqueue_with(
        &self,
        payload: &[u8],
        options: EnqueueOptions,
    ) -> Result<JobId, EnqueueError> {
        let engine = &*self.running;
        engine.enqueue_with(Place::of_this_thread(engine), payload, &options)
    }

    /// Enqueues jobs in order, with one reservation for as many as fit a quarter of a segment (or 16 MiB), and
    /// one flush for all; returns their ids in the same order.
    ///
    /// A batch is no transaction: a process that dies during the call leaves the first jobs of it, and a power
    /// cut may take any that were not flushed.
    ///
    /// # Errors
    /// The error names the jobs that were enqueued: those before the one that found no room, say, and all where
    /// only the flush failed. With an option that is out of its range or a payload that is too large, none is.
    pub fn enqueue_batch<P: AsRef<[u8]>>(&self, payloads: &[P]) -> Result<Vec<JobId>, BatchError> {
        self.enqueue_batch_with(payloads, EnqueueOptions::new())
    }

    /// As [`enqueue_batch`](Self::enqueue_batch), with options that hold for each of the jobs.
    ///
    /// # Errors
    /// As there.
    pub fn enqueue_batch_with<P: AsRef<[u8]>>(
        &self,
        payloads: &[P],
        options: EnqueueOptions,
    ) -> Result<Vec<JobId>, BatchError> {
        let engine = &*self.running;
        engine.enqueue_batch(Place::of_this_thread(engine), payloads, &options)
    }

    /// A handle for a thread that enqueues a lot.
    pub fn producer(&self) -> Producer {
        Producer::new(Arc::clone(&self.running))
    }

    /// A handle to take jobs with, by hand.
    pub fn consumer(&self) -> Consumer {
        Consumer::new(Arc::clone(&self.running))
    }

    /// A pool of this many threads that run a handler; 0 is one a core. Nothing starts before
    /// [`run`](WorkersBuilder::run).
    pub fn workers(&self, threads: usize) -> WorkersBuilder {
        WorkersBuilder::new(Arc::clone(&self.running), threads)
    }

    /// The jobs that failed too often.
    pub fn dead_letters(&self) -> DeadLetters {
        DeadLetters::new(Arc::clone(&self.running))
    }

    /// What is in the queue and has gone through it. Cheap enough for every second: it looks at the ack words
    /// of the segments that consumers have reached (1/4 byte for each record in them) and at the deques of
    /// all consumers.
    ///
    /// For the oldest jobs it looks into further segments where those that consumers have reached hold none: at
    /// no more than 1,024 segments and, for [`Stats::oldest_ready`], 4,096 jobs of each stripe. One that is not
    /// mapped is mapped for that, and may have to be read from the disk. It mends nothing and writes nothing.
    pub fn stats(&self) -> Stats {
        self.running.stats()
    }

    /// Makes everything enqueued and acked so far durable, whatever the durability, and writes the letters of
    /// jobs that have died. (The letter of a job that is just being moved by compaction is written once it has moved.)
    ///
    /// # Errors
    /// The flush failed, or an earlier one has: then nothing more is made durable until the queue is reopened.
    /// Or letters could not be written, on a full disk for one: all else is durable then, and they are tried
    /// again.
    pub fn flush(&self) -> Result<(), FlushError> {
        Ok(self.running.flush()?)
    }

    /// Reads every record of the queue and of the dead letter log, done or not, and checks it, while the queue
    /// goes on. Takes as long as reading all segments from the disk does; each is mapped while it is read.
    ///
    /// Behind a record whose length is damaged, the rest of its segment is not looked at.
    ///
    /// # Errors
    /// A segment could not be read or mapped, or damaged bytes could not be set aside. The segments behind it
    /// are not looked at.
    pub fn verify(&self) -> Result<VerifyReport, StorageError> {
        self.running.verify()
    }

    /// Closes the queue for all handles: enqueueing gets [`EnqueueError::Closed`], consumers get no
    /// more jobs, and everything is flushed and sealed, so that the next open has little or nothing to scan.
    ///
    /// Shut down the workers first. Jobs that are still running can be settled all the same, until
    /// the last handle is gone; only then can the directory be opened again. If the process ends
    /// before they are, they are delivered again, and neither a failed attempt nor a
    /// [crash](crate::Job::crashes) is counted.
    ///
    /// # Errors
    /// A flush failed, now or earlier, or something could not be written or removed. All is in the files, and
    /// survives the death of the process, but may not survive a power cut.
    pub fn close(self) -> Result<(), FlushError> {
        Ok(self.running.close()?)
    }
}

impl Builder {
    /// Opens the queue, creating it if the directory is empty or does not exist, and recovers
    /// what an earlier process left.
    ///
    /// Reads the header and the acks of each segment, and scans those that are not sealed: after a crash, mostly
    /// one or two of each stripe. Starts two threads.
    ///
    /// # Errors
    /// See [`OpenError`]. Damage to segments or ack files is no error: it is in the report. Neither is a full
    /// disk, unless something must be written for the open itself: then enqueues get
    /// [`EnqueueError::StorageFull`] until there is room.
    pub fn open(self) -> Result<(Queue, RecoveryReport), OpenError> {
        let (running, report) = Running::open(&self)?;
        let running = Arc::new(running);
        Ok((Queue { running }, report))
    }
}

#[cfg(all(test, not(loom)))]
impl Queue {
    pub(crate) fn of(running: Running) -> Self {
        Self {
            running: Arc::new(running),
        }
    }

    pub(crate) fn engine(&self) -> &crate::engine::Engine {
        &self.running
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("path", &self.path())
            .finish_non_exhaustive()
    }
}
