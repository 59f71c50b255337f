//! The queue handle, from which everything else is reached.

#[cfg(feature = "async")]
mod asynchronous;
mod looking;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use crate::engine::Running;
use crate::engine::enqueue::Place;
use crate::error::{EnqueueError, FlushError};
use crate::log::recovery::VerifyReport;
use crate::options::{Builder, EnqueueOptions};
use crate::tree::{InTree, Seat};
use crate::{
    CancelError, Cancelled, Consumer, DeadLetters, JobId, OpenError, Producer, RecoveryReport,
    Stats, StorageError, Transaction, WorkersBuilder,
};

/// A durable job queue in a directory.
///
/// A `Queue` is a handle: clone it to share the queue between threads. All clones are the same
/// queue.
///
/// The queue is closed when its last handle is dropped. Handles are the queues, producers,
/// consumers, dead letters and worker pools, and the threads of the pools; with the feature `async`
/// also the consumers of tasks, and owned jobs. That drop waits for flushes and for what the
/// background threads are doing for the queue; if it fails, it only emits an event.
/// [`close`](Self::close) returns the error instead.
///
/// ```
/// use logmill::Queue;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let (queue, report) = Queue::builder(dir.path()).open()?;
/// println!("{} jobs left from an earlier run", report.jobs);
///
/// let id = queue.enqueue(b"resize cat.jpg")?;
///
/// let consumer = queue.consumer();
/// let job = consumer.next().expect("a job was enqueued");
/// assert_eq!((job.id(), job.payload()), (id, &b"resize cat.jpg"[..]));
/// job.ack();
///
/// assert_eq!(queue.stats().depth(), 0);
/// queue.close()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Queue {
    running: Arc<Running>,
}

impl Transaction {
    /// Adds a job for a queue of the same directory of queues.
    ///
    /// What is wrong with it is told by the commit.
    pub fn enqueue(&mut self, queue: &Queue, payload: &[u8]) -> &mut Self {
        self.enqueue_with(queue, payload, EnqueueOptions::new())
    }

    /// Adds a job with options for a queue of the same directory of queues.
    ///
    /// The options' durability and wait do not count: the transaction has a
    /// [durability](Self::durability) of its own, and does not wait for room.
    pub fn enqueue_with(
        &mut self,
        queue: &Queue,
        payload: &[u8],
        options: EnqueueOptions<'_>,
    ) -> &mut Self {
        self.add(&queue.running, payload, &options);
        self
    }
}

impl Queue {
    /// Returns the options for opening or creating a queue in this directory.
    pub fn builder(path: impl AsRef<Path>) -> Builder {
        Builder::new(path.as_ref())
    }

    pub(crate) fn running(&self) -> Arc<Running> {
        Arc::clone(&self.running)
    }

    /// The name of the queue's directory: in a [`Queues`](crate::Queues), the name of the queue.
    pub fn name(&self) -> &str {
        self.running.name()
    }

    /// The queue directory, as an absolute path resolved when the queue was opened.
    pub fn path(&self) -> &Path {
        self.running.path()
    }

    /// Longest payload, in bytes: about a quarter of the segment size, at most about 16 MiB.
    ///
    /// A job's name and headers take room of its payload: their bytes, and 4 more for each header.
    pub fn max_payload(&self) -> usize {
        self.running.max_payload()
    }

    /// Enqueues a job and returns its id.
    ///
    /// Returns once the job is as durable as the queue's [`Durability`](crate::Durability)
    /// requires. If the queue is full it returns an error at once; [`EnqueueOptions::wait`] waits
    /// for room.
    ///
    /// With `Process` durability this is a copy into mapped memory that waits for no other thread,
    /// except that it may wait
    /// - for the kernel, at a page fault of the copy;
    /// - for a lock and a system call, to wake a sleeping consumer;
    /// - for a lock and the disk, where it moves on to another segment.
    ///
    /// The calling thread stays on one stripe, so its jobs are claimed in the order in which it
    /// enqueued them.
    ///
    /// # Errors
    /// See [`EnqueueError`]. The payload is only borrowed, so the caller still has it and can try
    /// again. After [`NotDurable`](EnqueueError::NotDurable) the job is in the queue, and trying
    /// again enqueues it twice.
    #[inline]
    pub fn enqueue(&self, payload: &[u8]) -> Result<JobId, EnqueueError> {
        let engine = &*self.running;
        engine.enqueue(Place::of_this_thread(engine), payload)
    }

    /// Enqueues a job with options, such as a delay or a wait for room.
    ///
    /// Otherwise like [`enqueue`](Self::enqueue). [`EnqueueOptions::wait`] waits for room.
    ///
    /// # Errors
    /// Those of [`enqueue`](Self::enqueue), and [`EnqueueError::InvalidOption`] for an option that
    /// is out of its range.
    #[inline]
    pub fn enqueue_with(
        &self,
        payload: &[u8],
        options: EnqueueOptions<'_>,
    ) -> Result<JobId, EnqueueError> {
        let engine = &*self.running;
        engine.enqueue_with(Place::of_this_thread(engine), payload, &options)
    }

    /// Enqueues several jobs, all or none, and returns their ids in the same order.
    ///
    /// After the death of the process during the call, all of them are in the queue, or none is.
    /// The same is true after a power cut, as long as the jobs were not flushed yet; if the call
    /// returned after a flush (with `Sync`), all of them are there. No consumer gets one before all
    /// of them are in the queue.
    ///
    /// The batch takes one reservation in the log and at most one flush. It must fit a quarter of a
    /// segment, at most 16 MiB: each job takes 32 bytes, its payload, name and headers (4 bytes more
    /// for each), and 4 to 11 bytes for each other option that is stored with it, rounded up to 8
    /// bytes.
    ///
    /// # Errors
    /// Those of [`enqueue`](Self::enqueue), and [`EnqueueError::BatchTooLarge`]. No job of the batch
    /// is enqueued then, except after [`NotDurable`](EnqueueError::NotDurable).
    pub fn enqueue_batch<P: AsRef<[u8]>>(
        &self,
        payloads: &[P],
    ) -> Result<Vec<JobId>, EnqueueError> {
        let engine = &*self.running;
        engine.enqueue_batch(Place::of_this_thread(engine), payloads)
    }

    /// Enqueues several jobs, all or none, each with its own options.
    ///
    /// The batch is as durable as the strongest [`durability`](EnqueueOptions::durability) among
    /// the options asks, and waits for room for as long as the longest
    /// [`wait`](EnqueueOptions::wait). It waits until there is room for all of its jobs; meanwhile,
    /// others may take the room that there is. Otherwise like
    /// [`enqueue_batch`](Self::enqueue_batch).
    ///
    /// ```
    /// # use logmill::{EnqueueOptions, Queue};
    /// # use std::time::Duration;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let (queue, _) = Queue::builder(dir.path()).open()?;
    /// let reminder = EnqueueOptions::new().name("remind").delay(Duration::from_secs(3600));
    /// let jobs = queue.enqueue_batch_with(&[
    ///     (b"order 7", EnqueueOptions::new().name("pack")),
    ///     (b"order 7", reminder),
    /// ])?;
    /// assert_eq!(jobs.len(), 2);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`enqueue_batch`](Self::enqueue_batch), and [`EnqueueError::InvalidOption`].
    pub fn enqueue_batch_with<P: AsRef<[u8]>>(
        &self,
        jobs: &[(P, EnqueueOptions<'_>)],
    ) -> Result<Vec<JobId>, EnqueueError> {
        let engine = &*self.running;
        engine.enqueue_batch_with(Place::of_this_thread(engine), jobs)
    }

    /// Returns a handle for a thread that enqueues many jobs.
    pub fn producer(&self) -> Producer {
        Producer::new(Arc::clone(&self.running))
    }

    /// Returns a handle for taking jobs on a thread of your own.
    pub fn consumer(&self) -> Consumer {
        Consumer::new(Arc::clone(&self.running))
    }

    /// Wakes all threads that wait for a job of this queue, so that those in
    /// [`Consumer::next_until`] look whether they are to stop.
    ///
    /// Those in other calls go on waiting.
    pub fn wake_consumers(&self) {
        self.running.wake_consumers();
    }

    /// Returns the options of a worker pool with this many threads; 0 means one for each core.
    ///
    /// No thread starts before [`run`](WorkersBuilder::run).
    pub fn workers(&self, threads: usize) -> WorkersBuilder {
        WorkersBuilder::new(Arc::clone(&self.running), threads)
    }

    /// Pauses the queue: consumers and workers get no more jobs until it is
    /// [resumed](Self::resume), also after a restart.
    ///
    /// Jobs that handlers have are not affected, and neither are producers. When the call returns,
    /// the pause survives a power cut. Pausing a paused queue does nothing more.
    ///
    /// A job that a consumer is just taking may still be delivered after the call has returned.
    ///
    /// ```
    /// # use logmill::Queue;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let (queue, _) = Queue::builder(dir.path()).open()?;
    /// queue.pause()?; // the API that the jobs call is down
    /// queue.enqueue(b"call the API")?;
    /// let consumer = queue.consumer();
    /// assert!(consumer.try_next().is_none());
    /// queue.resume()?;
    /// assert!(consumer.try_next().is_some());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The file that says so could not be made or flushed. The queue is then not paused, but may
    /// be after a restart.
    pub fn pause(&self) -> Result<(), StorageError> {
        self.running.pause()
    }

    /// Ends a pause.
    ///
    /// # Errors
    /// The file that says that the queue is paused could not be removed, or that could not be
    /// flushed. The queue stays paused, and may not be after a restart.
    pub fn resume(&self) -> Result<(), StorageError> {
        self.running.resume()
    }

    /// Whether the queue is [paused](Self::pause).
    pub fn is_paused(&self) -> bool {
        self.running.is_paused()
    }

    /// Cancels a job by its id: a job that waits is not delivered any more, also not after a
    /// restart, and a job that a handler has is not delivered again.
    ///
    /// The result tells which of the two it was, or that there is no such job. A handler is told by
    /// [`Job::is_cancelled`](crate::Job::is_cancelled). When it acks the job, the job is completed;
    /// when it ends in any other way (a failure, a snooze, a lease timeout, the death of the
    /// process), the job ends as cancelled: it does not come back, and there is no dead letter.
    ///
    /// A job keeps its id while it is retried, snoozed and moved, so the id that its enqueue
    /// returned always works. A replayed job is a new one with another id.
    ///
    /// When the call returns, the cancellation survives a power cut. A waiting job gives its room
    /// back at once. Its record stays in the log until a consumer comes to it, and until then the
    /// queue keeps an entry of up to 100 bytes for it in memory.
    ///
    /// The call waits for a flush, and walks over the records of the job's segment. A job in the
    /// timer is looked for there. A job that was moved, and one that is gone, are looked for in
    /// those later segments of their stripe that may hold moved jobs: all that were found when the
    /// queue was opened, and those that jobs have been moved to since.
    ///
    /// ```
    /// # use logmill::{Cancelled, EnqueueOptions, Queue};
    /// # use std::time::Duration;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let (queue, _) = Queue::builder(dir.path()).open()?;
    /// let hour = Duration::from_secs(3600);
    /// let reminder = queue.enqueue_with(b"order 7", EnqueueOptions::new().delay(hour))?;
    /// // The customer has paid.
    /// assert_eq!(queue.cancel(reminder)?, Cancelled::Waiting);
    /// assert_eq!(queue.cancel(reminder)?, Cancelled::Gone);
    /// assert_eq!(queue.stats().cancelled, 1);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// See [`CancelError`]. After [`NotDurable`](CancelError::NotDurable) the job is cancelled, but
    /// that may not survive a power cut; after any other error it is not.
    pub fn cancel(&self, job: JobId) -> Result<Cancelled, CancelError> {
        self.running.cancel(job.sequence())
    }

    /// Returns a handle for the jobs that failed for good.
    pub fn dead_letters(&self) -> DeadLetters {
        DeadLetters::new(Arc::clone(&self.running))
    }

    /// Counts what is in the queue and what has gone through it.
    ///
    /// Cheap enough to call every second: it reads the ack words of the segments that consumers
    /// have reached (1/4 byte for each record in them) and the deques of all consumers.
    ///
    /// To find the oldest jobs it reads further segments, if those that consumers have reached hold
    /// none: at most 1,024 segments and, for [`Stats::oldest_ready`], 4,096 jobs of each stripe. A
    /// segment that is not mapped is mapped for this and may have to be read from the disk. It
    /// repairs nothing and writes nothing.
    pub fn stats(&self) -> Stats {
        self.running.stats()
    }

    /// Makes everything enqueued and acked so far durable, whatever the durability.
    ///
    /// Also writes the letters of jobs that have died. (The letter of a job that compaction is
    /// moving at that moment is written once the job has moved.)
    ///
    /// # Errors
    /// The flush failed, or an earlier one did: then nothing more is made durable until the queue
    /// is reopened. Or letters could not be written, for example on a full disk: then everything
    /// else is durable, and writing the letters is tried again.
    pub fn flush(&self) -> Result<(), FlushError> {
        Ok(self.running.flush()?)
    }

    /// Does at once what the queue's own threads have to do of what has happened: letters are written,
    /// and delays stored. For simulations that have to find the same files each time.
    #[cfg(feature = "manual-clock")]
    #[doc(hidden)]
    pub fn rest(&self) {
        self.running.rest();
    }

    /// Reads and checks every record of the queue and of the dead letter log, done or not.
    ///
    /// The queue stays in use meanwhile. The call takes as long as reading all segments from the
    /// disk; each segment is mapped while it is read.
    ///
    /// After a record whose length is damaged, the rest of its segment is not checked.
    ///
    /// # Errors
    /// A segment could not be read or mapped, or damaged bytes could not be quarantined. The
    /// segments after it are not checked.
    pub fn verify(&self) -> Result<VerifyReport, StorageError> {
        self.running.verify()
    }

    /// Closes the queue for all handles.
    ///
    /// From then on enqueueing returns [`EnqueueError::Closed`] and consumers get no more jobs.
    /// Everything is flushed and sealed, so that the next open has little or nothing to scan.
    ///
    /// Shut down the workers first. Jobs that are still running can be settled until the last
    /// handle is dropped, and only then can the directory be opened again. If the process ends
    /// before they are settled, they are delivered again, without counting a failed attempt or a
    /// [crash](crate::Job::crashes).
    ///
    /// # Errors
    /// A flush failed, in this call or earlier, or something could not be written or removed. All
    /// data is in the files and survives the death of the process, but may not survive a power cut.
    pub fn close(self) -> Result<(), FlushError> {
        Ok(self.running.close()?)
    }
}

impl Builder {
    /// Opens the queue and recovers what an earlier process left.
    ///
    /// Creates the queue if the directory is empty or does not exist. The open reads the header and
    /// the acks of each segment, and scans the segments that are not sealed: after a crash, usually
    /// one or two in each stripe. It starts two threads, or
    /// uses those of the queue's [`Queues`](crate::Queues).
    ///
    /// # Errors
    /// See [`OpenError`]. Damage to segments or ack files is not an error; it is in the report. A
    /// full disk is an error only if the open itself has to write something. Otherwise the queue
    /// opens, and enqueues return [`EnqueueError::StorageFull`] until there is room.
    pub fn open(self) -> Result<(Queue, RecoveryReport), OpenError> {
        let seat = match &self.in_tree {
            None => None,
            Some(InTree { tree, name }) => {
                self.validate()?;
                let deadline = Instant::now().checked_add(self.lock_wait);
                match tree.take_seat(name, deadline) {
                    None => return Err(self.is_open()),
                    taken => taken,
                }
            }
        };
        self.open_in(seat)
    }

    /// Returns another handle of the queue if it is open in its tree, or opens it.
    pub(crate) fn open_or_find(self) -> Result<Queue, OpenError> {
        let Some(InTree { tree, name }) = &self.in_tree else {
            return Ok(self.open()?.0);
        };
        self.validate()?;
        match tree.find::<Running>(name) {
            Some(Ok(running)) if running.is_closed() => Err(self.is_open()),
            Some(Ok(running)) => Ok(Queue { running }),
            Some(Err(seat)) => Ok(self.open_in(Some(seat))?.0),
            None => Err(self.is_open()),
        }
    }

    fn open_in(&self, seat: Option<Seat>) -> Result<(Queue, RecoveryReport), OpenError> {
        let (running, report) = Running::open(self, seat)?;
        let running = running.share();
        running.show();
        Ok((Queue { running }, report))
    }

    fn is_open(&self) -> OpenError {
        OpenError::Locked {
            path: self.path.clone(),
            pid: Some(std::process::id()),
        }
    }
}

#[cfg(all(test, not(loom)))]
impl Queue {
    pub(crate) fn of(running: Running) -> Self {
        Self {
            running: running.share(),
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
