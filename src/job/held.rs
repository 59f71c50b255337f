//! A job that was taken from its queue and waits for something else.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use super::Job;
use crate::JobId;
use crate::engine::Running;
use crate::log::headers::Headers;
use crate::log::lease::Lease;
use crate::log::records::name_of;

/// A job that was taken from its queue and waits for something that its consumer knows of, such as
/// a limit; from [`Job::hold`]. Dropping it puts it back.
///
/// While it is held, no consumer gets it, and no attempt has begun: if the process ends, the job is
/// delivered again and nothing is counted. A held job is 24 bytes of memory. It keeps its segment
/// file, as each job does that is not done, and it is a handle of the queue as an owned job is. It
/// can be [cancelled](crate::Queue::cancel), which shows once it is put back.
///
/// ```
/// use logmill::Queue;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let (queue, _) = Queue::builder(dir.path()).open()?;
/// queue.enqueue(b"call the API that is busy")?;
/// queue.enqueue(b"resize cat.jpg")?;
///
/// let consumer = queue.consumer();
/// let busy = consumer.next().expect("two jobs wait").hold();
/// let other = consumer.next().expect("one more waits");
/// assert_eq!(other.payload(), b"resize cat.jpg");
/// other.ack();
///
/// drop(busy); // the API can be called again
/// let job = consumer.next().expect("it was put back");
/// assert_eq!((job.payload(), job.attempts()), (&b"call the API that is busy"[..], 1));
/// job.ack();
/// # Ok(())
/// # }
/// ```
#[must_use = "a held job that is dropped goes back to its queue"]
pub struct HeldJob {
    /// None once it is put back, or if the job was done or cancelled when it was to be held.
    lease: Option<Lease>,
    /// Dropped last: it keeps what the lease is of.
    running: Arc<Running>,
}

// As its documentation says.
const _: () = assert!(size_of::<HeldJob>() == 24);

impl Job<'_> {
    /// Takes the job out of the queue's order, as it has to wait for something that the queue does
    /// not know of. The attempt ends without having counted.
    ///
    /// Takes two atomic operations; with a [lease timeout](crate::Builder::lease_timeout) also a
    /// lock. If the delivery has timed out, or the job was cancelled, there is nothing to hold, and
    /// what is returned puts nothing back.
    pub fn hold(mut self) -> HeldJob {
        let running = self.engine.running();
        let lease = self.lease.take();
        let lease = lease.and_then(|lease| self.engine.hold(lease, self.delivery, self.attempt));
        HeldJob { lease, running }
    }
}

impl HeldJob {
    /// The bytes that were enqueued.
    pub fn payload(&self) -> &[u8] {
        self.lease.as_ref().map_or(&[], Lease::payload)
    }

    /// The job's name, see [`Job::name`].
    pub fn name(&self) -> Option<&str> {
        name_of(self.lease.as_ref()?.name())
    }

    /// The job's headers, see [`Job::headers`].
    pub fn headers(&self) -> Headers<'_> {
        Headers::of(self.lease.as_ref().map_or(&[], Lease::headers))
    }

    /// The job's id; None if there was nothing to hold.
    pub fn id(&self) -> Option<JobId> {
        self.lease.as_ref().map(|lease| JobId::of(lease.job()))
    }

    /// When the job was enqueued; None if there was nothing to hold.
    pub fn enqueued_at(&self) -> Option<SystemTime> {
        let lease = self.lease.as_ref();
        lease.map(|lease| lease.record().header().enqueued_at.into())
    }
}

impl Drop for HeldJob {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take() {
            self.running.dispatch().inject(lease);
        }
    }
}

impl fmt::Debug for HeldJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldJob")
            .field("id", &self.id())
            .field("name", &self.name())
            .finish_non_exhaustive()
    }
}
