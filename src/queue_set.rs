//! Several queues that are served together.

use std::cell::LazyCell;
use std::time::{Duration, Instant};

use crate::several::{Choice, MAX_WEIGHT, Several, Sources};
use crate::{Job, Queue, WorkersBuilder};

/// Several queues that are served together: by priority or by weight.
///
/// A consumer or a worker of the set takes jobs from all of its queues, and sleeps when none of
/// them has one. The queues may be of one [`Queues`](crate::Queues) or each in a directory of its
/// own, and may have other consumers. A queue that is paused or closed has no jobs; the others are
/// served on. Each look for a job takes time in proportion to the number of queues without one.
///
/// ```
/// use logmill::{Failure, Job, QueueSet, Queues};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let queues = Queues::open(dir.path())?;
/// let (mails, images) = (queues.queue("mails")?, queues.queue("images")?);
/// mails.enqueue(b"welcome Ada")?;
/// images.enqueue(b"resize cat.jpg")?;
///
/// // As long as both have jobs, three mails for each image.
/// let set = QueueSet::by_weight(&[(&mails, 3), (&images, 1)]);
/// let workers = set.workers(2).run(|job: &Job<'_>| {
///     println!("{} of {}", job.id(), job.queue_name());
///     Ok::<(), Failure>(())
/// })?;
/// # while mails.stats().depth() + images.stats().depth() > 0 { std::thread::yield_now(); }
/// # workers.shutdown(std::time::Duration::from_secs(5));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct QueueSet {
    several: Several,
}

impl QueueSet {
    /// Serves the first queue that has a job.
    ///
    /// A queue is served only while those before it have no jobs, or are paused, so a steady load
    /// on the first one can keep the others waiting for ever.
    pub fn by_priority(queues: &[&Queue]) -> Self {
        Self::new(Choice::Priority, queues.iter().map(|&queue| (queue, 1)))
    }

    /// Serves each queue in proportion to its weight, 1 to 1,000.
    ///
    /// While all of them have jobs, a queue with the weight 3 gets three times as many deliveries
    /// by each consumer as one with the weight 1, evenly spread. A queue that had no jobs for a
    /// while does not catch up on its share. Other weights count as the nearest one in the range.
    pub fn by_weight(queues: &[(&Queue, u32)]) -> Self {
        Self::new(Choice::Weight, queues.iter().copied())
    }

    fn new<'q>(choice: Choice, queues: impl Iterator<Item = (&'q Queue, u32)>) -> Self {
        let queues = queues.map(|(queue, weight)| (queue.running(), weight.clamp(1, MAX_WEIGHT)));
        Self {
            several: Several {
                choice,
                queues: queues.collect(),
            },
        }
    }

    /// Returns a handle for taking jobs on a thread of your own.
    pub fn consumer(&self) -> SetConsumer {
        SetConsumer {
            sources: Sources::new(&self.several),
        }
    }

    /// Returns the options of a worker pool with this many threads; 0 means one for each core.
    ///
    /// The handler learns the queue of a job from [`Job::queue_name`]. The pool ends when it is
    /// stopped or all queues are closed.
    pub fn workers(&self, threads: usize) -> WorkersBuilder {
        WorkersBuilder::of_several(self.several.clone(), threads)
    }
}

impl std::fmt::Debug for QueueSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let queues = self.several.queues.iter();
        let paths: Vec<_> = queues
            .map(|(queue, weight)| (queue.path(), weight))
            .collect();
        f.debug_struct("QueueSet")
            .field("choice", &self.several.choice)
            .field("queues", &paths)
            .finish()
    }
}

/// Takes jobs from several queues on a thread of your own, from [`QueueSet::consumer`].
///
/// It is a [`Consumer`](crate::Consumer) of each of the queues. Jobs that it has claimed and not
/// delivered are taken by other consumers of their queues.
///
/// ```
/// use logmill::{QueueSet, Queues};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let queues = Queues::open(dir.path())?;
/// let (urgent, rest) = (queues.queue("urgent")?, queues.queue("rest")?);
/// rest.enqueue(b"clean up")?;
/// urgent.enqueue(b"alarm")?;
///
/// let consumer = QueueSet::by_priority(&[&urgent, &rest]).consumer();
/// let job = consumer.next().expect("two jobs were enqueued");
/// assert_eq!((job.queue_name(), job.payload()), ("urgent", &b"alarm"[..]));
/// job.ack();
/// # Ok(())
/// # }
/// ```
pub struct SetConsumer {
    sources: Sources,
}

impl SetConsumer {
    /// Returns the next job if one is available, without waiting for one, see
    /// [`Consumer::try_next`](crate::Consumer::try_next).
    pub fn try_next(&self) -> Option<Job<'_>> {
        loop {
            let (at, lease) = self.sources.try_next()?;
            if let Some(job) = Job::begin(self.sources.running(at), lease) {
                return Some(job);
            }
        }
    }

    /// Waits for the next job; None once all queues are closed, or if there are none.
    ///
    /// Polls for a few tens of microseconds, then sleeps until one of the queues has a job.
    pub fn next(&self) -> Option<Job<'_>> {
        self.wait(|| None, || false)
    }

    /// Waits for the next job for at most this long; None after that, or once all queues are
    /// closed.
    pub fn next_timeout(&self, timeout: Duration) -> Option<Job<'_>> {
        // A deadline that overflows means no deadline.
        let deadline = LazyCell::new(|| Instant::now().checked_add(timeout));
        self.wait(|| *deadline, || false)
    }

    /// Waits for the next job until the deadline, or until `stopped` returns true, see
    /// [`Consumer::next_until`](crate::Consumer::next_until).
    ///
    /// Whoever makes `stopped` true wakes the consumers of each of the queues.
    pub fn next_until(
        &self,
        deadline: Option<Instant>,
        stopped: impl Fn() -> bool,
    ) -> Option<Job<'_>> {
        self.wait(|| deadline, stopped)
    }

    /// Returns up to `max` jobs, see [`Consumer::next_batch`](crate::Consumer::next_batch).
    pub fn next_batch(&self, max: usize, timeout: Duration) -> Vec<Job<'_>> {
        let mut jobs = Vec::new();
        if max > 0 {
            jobs.extend(self.next_timeout(timeout));
        }
        while !jobs.is_empty() && jobs.len() < max {
            match self.try_next() {
                Some(job) => jobs.push(job),
                None => break,
            }
        }
        jobs
    }

    fn wait(
        &self,
        deadline: impl Fn() -> Option<Instant>,
        stopped: impl Fn() -> bool,
    ) -> Option<Job<'_>> {
        loop {
            let (at, lease) = self.sources.next(&deadline, &stopped)?;
            if let Some(job) = Job::begin(self.sources.running(at), lease) {
                return Some(job);
            }
        }
    }
}

impl std::fmt::Debug for SetConsumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SetConsumer").finish_non_exhaustive()
    }
}
