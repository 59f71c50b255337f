//! A job that borrows nothing.

use super::Job;
use crate::engine::handle::Handle;

/// A [`Job`] that borrows nothing, so that it can move to another task or thread.
///
/// An [`AsyncConsumer`](crate::AsyncConsumer) gives out such jobs, and [`Job::into_owned`] makes one
/// of a borrowed job. It has the methods of a `Job`, settles like one, and fails its attempt when it
/// is dropped. A function that takes a `&Job<'_>` takes a reference to it, too.
///
/// An owned job is a handle of the queue: as long as it lives, the queue stays open, and its
/// directory locked. After [`Queue::close`](crate::Queue::close) it can still be settled. If it is
/// the last handle, settling or dropping it closes the queue, which waits for the disk; so close the
/// queue before, from a thread that may wait.
///
/// ```
/// use logmill::{OwnedJob, Queue};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let (queue, _) = Queue::builder(dir.path()).open()?;
/// # queue.enqueue(b"resize cat.jpg")?;
/// let consumer = queue.consumer();
/// let job: OwnedJob = consumer.next().expect("a job was enqueued").into_owned();
/// drop(consumer);
/// let worker = std::thread::spawn(move || {
///     println!("resizing {}", String::from_utf8_lossy(job.payload()));
///     job.ack();
/// });
/// worker.join().expect("no panic");
/// assert_eq!(queue.stats().acked, 1);
/// # Ok(())
/// # }
/// ```
pub type OwnedJob = Job<'static>;

impl Job<'_> {
    /// Lets go of what the job borrows, such as its consumer, and keeps the queue open instead.
    pub fn into_owned(mut self) -> OwnedJob {
        let handle = self.engine.to_owned();
        self.owned_by(handle)
    }

    /// The same delivery, with another handle of the same engine.
    pub(crate) fn owned_by(&mut self, handle: Handle<'static>) -> OwnedJob {
        Job {
            engine: handle,
            // What is left of the borrowed job has nothing to settle.
            lease: self.lease.take(),
            attempt: self.attempt,
            delivery: self.delivery,
        }
    }
}
