//! The queue: what a user opens, and from where everything else is reached.

use std::path::Path;
use std::sync::Arc;

use crate::engine::Running;
use crate::error::{BatchError, EnqueueError, FlushError};
use crate::log::recovery::Quarantined;
use crate::options::{Builder, EnqueueOptions};
use crate::producer::Place;
use crate::{
    Consumer, DeadLetters, OpenError, Producer, RecoveryReport, Sequence, Stats, StorageError,
    WorkersBuilder,
};

/// A durable job queue in a directory. Cloning it gives another handle on the same queue.
///
/// The queue is closed when the last handle is dropped, producers, consumers and worker threads
/// included; [`close`](Self::close) does it in a way that can report an error.
#[derive(Clone)]
pub struct Queue {
    running: Arc<Running>,
}

impl Queue {
    /// Starts the options of a queue in this directory.
    pub fn builder(path: impl AsRef<Path>) -> Builder {
        Builder::new(path.as_ref())
    }

    pub(crate) fn open(builder: &Builder) -> Result<(Self, RecoveryReport), OpenError> {
        let (running, report) = Running::open(builder)?;
        let running = Arc::new(running);
        Ok((Self { running }, report))
    }

    /// The queue directory.
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
    /// Does not wait for room: that is [`EnqueueOptions::wait`]. With `Process` durability it waits for no
    /// other thread, but for the step to another segment, which takes a lock and may wait for the disk; and
    /// it wakes a consumer that sleeps, with a system call. The calling thread stays on one stripe, so
    /// its jobs are claimed in their order.
    ///
    /// # Errors
    /// See [`EnqueueError`]. The payload is only borrowed, so it is still there to try again.
    #[inline]
    pub fn enqueue(&self, payload: &[u8]) -> Result<Sequence, EnqueueError> {
        let engine = &*self.running;
        engine.enqueue(Place::of_this_thread(engine), payload)
    }

    /// As [`enqueue`](Self::enqueue), with options for this job.
    ///
    /// # Errors
    /// See [`EnqueueError`].
    pub fn enqueue_with(
        &self,
        payload: &[u8],
        options: EnqueueOptions,
    ) -> Result<Sequence, EnqueueError> {
        let engine = &*self.running;
        engine.enqueue_with(Place::of_this_thread(engine), payload, &options)
    }

    /// Enqueues jobs in order, with one reservation for as many as fit, and one flush for all.
    ///
    /// A batch is no transaction: a crash may keep the first jobs of it and lose the rest.
    ///
    /// # Errors
    /// The jobs before the one that could not be enqueued are, and the error names them. With a
    /// payload that is too large among them, none is.
    pub fn enqueue_batch<P: AsRef<[u8]>>(
        &self,
        payloads: &[P],
    ) -> Result<Vec<Sequence>, BatchError> {
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
    ) -> Result<Vec<Sequence>, BatchError> {
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

    /// A pool of this many threads that run a handler; 0 is one a core.
    pub fn workers(&self, threads: usize) -> WorkersBuilder {
        WorkersBuilder::new(Arc::clone(&self.running), threads)
    }

    /// The jobs that failed too often.
    pub fn dead_letters(&self) -> DeadLetters {
        DeadLetters::new(Arc::clone(&self.running))
    }

    /// What is in the queue and has gone through it. Cheap enough for every second: it looks at
    /// the ack words of the segments that consumers have reached (1/4 byte for each record in
    /// them), and of the backlog behind only for its oldest job. It checks nothing, mends nothing
    /// and writes nothing.
    pub fn stats(&self) -> Stats {
        Stats::of(&self.running)
    }

    /// Makes everything enqueued, acked and dead so far durable, whatever the durability.
    ///
    /// # Errors
    /// The flush failed, or an earlier one has.
    pub fn flush(&self) -> Result<(), FlushError> {
        Ok(self.running.flush()?)
    }

    /// Reads every record of the queue and checks it, while the queue goes on.
    ///
    /// # Errors
    /// Damaged bytes could not be set aside.
    pub fn verify(&self) -> Result<VerifyReport, StorageError> {
        let mut report = VerifyReport::default();
        let stripes = self.running.dispatch().stripes();
        for log in stripes.iter().chain([self.running.dead().log()]) {
            let one = log.verify()?;
            report.segments += one.segments;
            report.records += one.records;
            report.bytes += one.bytes;
            report.damaged.extend(one.damaged);
        }
        Ok(report)
    }

    /// Closes the queue for all handles: enqueueing gets [`EnqueueError::Closed`], consumers get no
    /// more jobs, and everything is flushed and sealed, so that the next open has nothing to scan.
    ///
    /// Shut down the workers first. Jobs that are still running can be settled all the same, until
    /// the last handle is gone; only then can the directory be opened again. If the process ends
    /// before they are, they are delivered again, and neither a failed attempt nor a
    /// [crash](crate::Job::crashes) is counted.
    ///
    /// # Errors
    /// The flush failed. All is in the files, and survives the death of the process, but may not
    /// survive a power cut.
    pub fn close(self) -> Result<(), FlushError> {
        Ok(self.running.close()?)
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

/// What a check of every record found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Segments read, the dead letter log's included.
    pub segments: u64,
    /// Valid records, done or not.
    pub records: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Damage found since the queue was opened: what was set aside when a segment was first
    /// claimed from, and records that were valid then and are not any more.
    pub damaged: Vec<Quarantined>,
}
