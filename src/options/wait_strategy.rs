//! How an idle consumer waits for jobs.

use std::ops::RangeInclusive;
use std::time::Duration;

const NAPS: RangeInclusive<Duration> = Duration::from_micros(10)..=Duration::from_millis(10);

/// How an idle consumer waits for jobs, see [`Builder::wait_strategy`](crate::Builder::wait_strategy).
///
/// First, any consumer looks for jobs for some tens of microseconds. The strategy says what it does
/// when it has found none:
///
/// | | the next enqueue | a job waits for its handler | an idle process |
/// |---|---|---|---|
/// | [`Sleep`](Self::Sleep) | wakes a consumer, by a system call | until a thread wakes up | uses no CPU |
/// | [`Nap`](Self::Nap) | makes no system call while jobs come often | up to a nap | uses no CPU |
/// | [`Spin`](Self::Spin) | makes no system call | less than a microsecond or two | uses a core for each consumer |
///
/// Async tasks and consumers of several queues ([`QueueSet`](crate::QueueSet)) always sleep.
///
/// ```
/// use logmill::{Queue, WaitStrategy};
/// use std::time::Duration;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let strategy = WaitStrategy::Nap(Duration::from_micros(50));
/// let (queue, _) = Queue::builder(dir.path()).wait_strategy(strategy).open()?;
/// # queue.close()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WaitStrategy {
    /// It sleeps until a producer wakes it.
    ///
    /// To wake a thread is a system call, which takes the producer several microseconds, a hundred
    /// times as long as the rest of the enqueue.
    #[default]
    Sleep,
    /// It sleeps for this long at a time, 10 µs to 10 ms, and looks in between, while jobs come
    /// often; otherwise it sleeps until a producer wakes it.
    ///
    /// One of the idle consumers naps, and producers wake nobody meanwhile. Consumers begin to nap when
    /// jobs come more often than one in four naps on average, and no longer nap when they come half as
    /// often. One that has found nothing for twenty naps in a row sleeps until the next job. While the consumer that naps is in a handler, another one that
    /// sleeps is woken by the next enqueue; if handlers take longer than half a nap, by the consumer
    /// itself.
    ///
    /// The length of a nap is kept by the threads of [`Workers`](crate::Workers). On other threads the
    /// kernel adds their timer slack, 50 µs by default, to a nap that is shorter.
    Nap(Duration),
    /// It looks again and again until there is a job. For those who have a core to spare for each
    /// consumer; see [`WorkersBuilder::pin_to_cores`](crate::WorkersBuilder::pin_to_cores).
    ///
    /// Of more consumers than there are cores, the others sleep, and producers wake them.
    Spin,
}

impl WaitStrategy {
    /// The length of a nap; zero if there are none.
    pub(crate) fn nap(self) -> Duration {
        match self {
            Self::Nap(nap) => nap,
            Self::Sleep | Self::Spin => Duration::ZERO,
        }
    }

    pub(crate) fn is_valid(self) -> bool {
        match self {
            Self::Nap(nap) => NAPS.contains(&nap),
            Self::Sleep | Self::Spin => true,
        }
    }
}
