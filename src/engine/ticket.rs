//! Tickets: what tells a caller later that its jobs are on stable storage.

use std::fmt;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use super::flusher::Flusher;
use crate::StorageError;
use crate::error::FlushError;
use crate::log::rounds::{Rounds, Waiter};

/// Tells when a job, or a batch, is on stable storage: ask it, block on it, or await it.
///
/// Returned by [`Queue::enqueue_ticketed`](crate::Queue::enqueue_ticketed) and its relatives. The
/// job is enqueued, with or without its ticket: dropping a ticket takes nothing back.
///
/// A ticket is no handle of the queue. When the last handle is dropped, the queue flushes
/// everything as it closes, and its tickets tell how that went.
///
/// ```
/// use logmill::{Durability, EnqueueOptions, Queue};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let (queue, _) = Queue::builder(dir.path()).open()?;
/// let sync = EnqueueOptions::new().durability(Durability::Sync);
/// let (order, order_ticket) = queue.enqueue_ticketed(b"order 7", sync)?;
/// let (mail, mail_ticket) = queue.enqueue_ticketed(b"mail to Ada", sync)?;
///
/// // Both jobs are in the queue, and are flushed in the background, together.
/// order_ticket.wait()?;
/// mail_ticket.wait()?;
/// assert!(order_ticket.is_durable() && mail_ticket.is_durable());
/// # Ok(())
/// # }
/// ```
#[must_use = "a ticket that is not looked at tells nothing"]
pub struct Ticket {
    rounds: Arc<Rounds>,
    flusher: Arc<Flusher>,
    stripe: u8,
    round: u64,
    /// Whether this ticket has asked for its flush.
    has_asked: bool,
    waiter: Waiter,
}

impl Ticket {
    /// A ticket for what the caller has appended to a stripe.
    pub(super) fn new(rounds: &Arc<Rounds>, flusher: &Arc<Flusher>, stripe: u8) -> Self {
        Self {
            round: rounds.next(),
            rounds: Arc::clone(rounds),
            flusher: Arc::clone(flusher),
            stripe,
            has_asked: false,
            waiter: Waiter::default(),
        }
    }

    /// Whether the jobs are on stable storage.
    ///
    /// Stays false if the flush has failed; [`result`](Self::result) tells the two apart.
    pub fn is_durable(&self) -> bool {
        matches!(self.result(), Some(Ok(())))
    }

    /// How the flush of the jobs has ended; None if it has not yet.
    ///
    /// After an error the jobs are in the queue, and may not survive a power cut. It is the error of
    /// the flush itself, or of closing the queue.
    pub fn result(&self) -> Option<Result<(), FlushError>> {
        let result = self.rounds.result(self.round);
        if result.is_none() && self.flusher.is_poisoned() {
            // Nothing is flushed at intervals any more, so the interval tells nothing.
            self.flusher.request(self.stripe);
        }
        result.map(in_public)
    }

    /// Blocks until the jobs are on stable storage.
    ///
    /// Not to be called by a `tracing` subscriber or a waker, which may run on the thread that
    /// flushes.
    ///
    /// # Errors
    /// Those of [`result`](Self::result).
    pub fn wait(&self) -> Result<(), FlushError> {
        struct Unpark(Thread);
        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let context = Context::from_waker(&waker);
        let mut ticket = pin!(self.another());
        loop {
            if let Poll::Ready(result) = ticket.as_mut().poll_round(&context) {
                return in_public(result);
            }
            thread::park();
        }
    }

    /// Asks for the flush now.
    pub(super) fn ask(&mut self) {
        self.has_asked = true;
        self.flusher.request(self.stripe);
    }

    fn another(&self) -> Self {
        Self {
            rounds: Arc::clone(&self.rounds),
            flusher: Arc::clone(&self.flusher),
            waiter: Waiter::default(),
            ..*self
        }
    }

    /// How the flush has ended. If it has not, the task is woken when it does.
    pub(super) fn poll_round(
        &mut self,
        context: &Context<'_>,
    ) -> Poll<Result<(), Arc<StorageError>>> {
        let polled = self.rounds.poll(self.round, &mut self.waiter, context);
        if polled.is_pending() && !self.has_asked {
            self.ask();
        }
        polled
    }
}

fn in_public(result: Result<(), Arc<StorageError>>) -> Result<(), FlushError> {
    Ok(result?)
}

/// Resolves when the jobs are on stable storage, or with the error of the flush that failed.
impl Future for Ticket {
    type Output = Result<(), FlushError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.get_mut().poll_round(context).map(in_public)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.rounds.forget(&mut self.waiter);
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("is_durable", &self.is_durable())
            .finish_non_exhaustive()
    }
}
