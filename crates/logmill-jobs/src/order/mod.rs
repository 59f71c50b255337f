//! Strict order per key: jobs of a key run one at a time, in the order of their enqueue, and one that
//! has failed blocks those behind it.
//!
//! ```text
//!  publish ─▶ the line of the key ─▶ queue ─▶ worker: first of its line? ── yes ─▶ run
//!             (with a number, which                        │ no                     │
//!              a header keeps)                             ▼                        ▼ it has ended
//!                                              held in the line ◀── put back: the next one
//! ```
//!
//! Orders stand between the layer and its backend, and see all that is published, taken and ended
//! there, whatever part of the layer does it. A mill without orders has nothing in between.
//!
//! Lines are in memory. When a mill is opened, they are built from the jobs and dead letters of the
//! queues that have an order, before any worker takes a job.

mod backend;
mod claim;
mod line;
mod queue;
#[cfg(all(test, feature = "embedded"))]
mod tests;

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use foldhash::quality::RandomState;

pub(crate) use self::backend::Ordered;
use self::line::{Lines, Position};
use crate::backend::{Backend, BackendError, Changes, Keep, KeyChange, Seen};
use crate::clock::Clock;
use crate::enqueue::header;
use crate::limits::Limits;
use crate::locks::{Lock, Once};
use crate::mill::Mill;
use crate::{JobId, keys};

/// Strict order within each key: of the jobs with a key, only the oldest runs, and one that has failed
/// holds the others back until it is done.
///
/// The order is that of the enqueues. It includes all priorities of the queue, and delayed jobs: one
/// that is not due yet holds back those behind it. An enqueue that returned before another one was
/// called comes first, from whatever thread. Jobs without a key have no order. A job is in one order
/// at most, the first one that concerns it.
///
/// While a job backs off, is snoozed or waits for a limit, the others of its key wait. A *dead* job
/// keeps blocking its key until it is [replayed](crate::JobQueue::replay), and then comes first; is
/// [purged](crate::JobQueue::purge); or is skipped by [`Mill::unblock`]. A job that is cancelled or
/// expires blocks nothing. All of this holds across crashes.
///
/// ```
/// use logmill_jobs::{Job, JobResult, Mill, MillOptions, Order, Workers, secs};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, Job)]
/// #[job(kind = "apply", queue = "ledger", key = "account")]
/// struct Apply {
///     account: u64,
///     cents: i64,
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let options = MillOptions::new().order(Order::on_queue("ledger"));
/// let mill = Mill::builder(dir.path().join("jobs")).options(options).open()?;
/// let workers = Workers::new(())
///     .on(|job: Apply| -> JobResult { println!("{} {}", job.account, job.cents); Ok(()) })
///     .start(&mill)?;
/// mill.enqueue(Apply { account: 1, cents: 100 })?;
/// mill.enqueue(Apply { account: 1, cents: -70 })?.wait()?; // after the first
/// for blocked in mill.blocked_keys() {
///     println!("{}: {} failed, {} wait", blocked.key, blocked.head, blocked.behind);
///     mill.unblock(&blocked)?;
/// }
/// # workers.shutdown(secs(30));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Order {
    scope: Scope,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Scope {
    Queue(String),
    Kind(String),
}

impl Order {
    /// Orders the jobs of a queue, of all kinds and priorities.
    pub fn on_queue(queue: impl Into<String>) -> Self {
        Self {
            scope: Scope::Queue(queue.into()),
        }
    }

    /// Orders the jobs of a kind, in all queues.
    pub fn on_kind(kind: impl Into<String>) -> Self {
        Self {
            scope: Scope::Kind(kind.into()),
        }
    }

    fn concerns(&self, place: &str, kind: &str) -> bool {
        match &self.scope {
            Scope::Queue(_) => self.may_concern(place),
            Scope::Kind(one) => one == kind,
        }
    }

    /// Whether it may concern jobs of a queue of the backend.
    fn may_concern(&self, place: &str) -> bool {
        match &self.scope {
            Scope::Queue(queue) => place.split('.').next() == Some(queue),
            Scope::Kind(_) => true,
        }
    }
}

/// What the order is called where it is the reason for which a job waits.
impl std::fmt::Display for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.scope {
            Scope::Queue(queue) => write!(f, "the order of the queue {queue:?}"),
            Scope::Kind(kind) => write!(f, "the order of the kind {kind:?}"),
        }
    }
}

/// A key that a failed job blocks, from [`Mill::blocked_keys`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockedKey {
    /// The key.
    pub key: String,
    /// The job that blocks it.
    pub head: JobId,
    /// Whether that job is dead; otherwise it comes back by itself.
    pub is_dead: bool,
    /// What went wrong last.
    pub reason: String,
    /// How many jobs wait behind it.
    pub behind: usize,
    spot: Spot,
}

/// The place of a job in its line.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Spot {
    order: usize,
    key: Box<[u8]>,
    position: Position,
}

/// The orders of a mill.
pub(crate) struct Orders {
    orders: Vec<(Order, Lines)>,
    /// The last number that was given.
    last: AtomicU64,
    clock: Clock,
    hasher: RandomState,
    limits: Arc<Limits>,
    /// Held while it is decided of a dead job: it is replayed, purged or skipped.
    deciding: Lock,
    /// Whether the lines have all jobs that the backend had when it was opened.
    are_built: Once,
}

impl Orders {
    pub(crate) fn new(orders: Vec<Order>, clock: Clock, limits: &Arc<Limits>) -> Arc<Self> {
        let orders = orders.into_iter();
        Arc::new(Self {
            orders: orders.map(|order| (order, Lines::default())).collect(),
            last: AtomicU64::new(0),
            clock,
            hasher: RandomState::default(),
            limits: Arc::clone(limits),
            deciding: Lock::default(),
            are_built: Once::default(),
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.orders.is_empty()
    }

    fn lines(&self, spot: &Spot) -> Option<&Lines> {
        self.orders.get(spot.order).map(|(_, lines)| lines)
    }

    /// The order that concerns a job.
    fn order_of(&self, place: &str, kind: &str) -> Option<usize> {
        let mut orders = self.orders.iter();
        orders.position(|(order, _)| order.concerns(place, kind))
    }

    /// A number that is higher than all before, also those of former processes.
    fn next_number(&self) -> u64 {
        let now = nanos(self.clock.wall());
        let next = |last: u64| Some(now.max(last.saturating_add(1)));
        // Relaxed: a number is taken under the lock of the line that it is for.
        let last = self
            .last
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        next(last.unwrap_or_else(|last| last)).unwrap_or(now)
    }

    /// The place of a job that the backend knows, if there is an order for it.
    fn spot_of(
        &self,
        (place, number, kind): (&str, u64, &str),
        key: Option<&[u8]>,
        header: Option<&[u8]>,
        enqueued_at: SystemTime,
    ) -> Option<Spot> {
        let key = key?;
        let order = self.order_of(place, kind)?;
        let position = position_in(header).unwrap_or(Position {
            number: nanos(enqueued_at),
            // Queues number their jobs each by itself.
            tie: number.wrapping_add(self.hasher.hash_one(place) >> 1),
        });
        Some(Spot {
            order,
            key: key.into(),
            position,
        })
    }

    fn spot_of_seen(&self, place: &str, seen: &Seen) -> Option<Spot> {
        let header = |name| find(&seen.headers, name);
        self.spot_of(
            (place, seen.number, &seen.kind),
            header(header::KEY),
            header(header::ORDER),
            seen.enqueued_at,
        )
    }

    /// The reason for which a job waits, if it is held in its line.
    fn reason_of(&self, place: &str, seen: &Seen) -> Option<String> {
        let spot = self.spot_of_seen(place, seen)?;
        let (order, lines) = self.orders.get(spot.order)?;
        let first = lines.awaited_by(&spot.key, spot.position)?;
        Some(match first {
            Some(first) => format!("{order}, behind {first}"),
            None => order.to_string(),
        })
    }

    /// Keys and jobs that are in lines.
    #[cfg(any(all(test, feature = "embedded"), feature = "testing"))]
    pub(crate) fn counts(&self) -> (usize, usize) {
        let counts = self.orders.iter().map(|(_, lines)| lines.counts());
        counts.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    /// Puts back all jobs that are held.
    pub(crate) fn close(&self) {
        for (_, lines) in &self.orders {
            drop(lines.take_all());
        }
    }
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

/// The position that a header says.
fn position_in(header: Option<&[u8]>) -> Option<Position> {
    let number = u64::from_be_bytes(header?.try_into().ok()?);
    Some(Position { number, tie: 0 })
}

fn find<'a>(headers: &'a [(String, Vec<u8>)], name: &str) -> Option<&'a [u8]> {
    let found = headers.iter().find(|(key, _)| key == name);
    found.map(|(_, value)| value.as_slice())
}

impl Mill {
    /// The keys of orders whose first job has failed: it is dead, or backs off. The others of the key
    /// wait for it.
    ///
    /// Looks through all keys that have jobs in an order.
    pub fn blocked_keys(&self) -> Vec<BlockedKey> {
        let orders = self.inner.orders.orders.iter().enumerate();
        let blocked = orders.flat_map(|(order, (_, lines))| {
            lines.blocked().into_iter().map(move |one| BlockedKey {
                key: String::from_utf8_lossy(&one.key).into_owned(),
                head: one.head,
                is_dead: one.is_dead,
                reason: one.reason,
                behind: one.behind,
                spot: Spot {
                    order,
                    key: one.key,
                    position: one.position,
                },
            })
        });
        blocked.collect()
    }

    /// Skips the job that blocks a key, so that those behind it go on. Returns false if that job does
    /// not block it any more, or has begun a new attempt.
    ///
    /// A dead job stays among the dead jobs, and blocks nothing any more, also after a restart; if it
    /// is replayed, it comes first. One that backs off runs beside the others when it comes back; after
    /// a restart it has its place again.
    ///
    /// # Errors
    /// The storage failed.
    pub fn unblock(&self, blocked: &BlockedKey) -> Result<bool, BackendError> {
        let (inner, spot) = (&self.inner, &blocked.spot);
        let Some(lines) = inner.orders.lines(spot) else {
            return Ok(false);
        };
        // A replay or a purge meanwhile would leave the key that is stored here behind.
        let _deciding = inner.orders.deciding.lock()?;
        let is_dead = match lines.at(&spot.key, spot.position) {
            // It may have died since it was found, or been replayed.
            Some((head, is_dead)) if head == blocked.head => is_dead,
            _ => return Ok(false),
        };
        if is_dead {
            // Stored first: what has passed it is not to be behind it after a crash.
            let skipped = keys::of_skipped(&blocked.head);
            inner.backend.commit(&skip(&skipped, true))?;
        }
        Ok(lines.skip(&spot.key, spot.position, is_dead))
    }

    /// The order that a job waits for.
    pub(crate) fn order_awaited_by(&self, id: &JobId) -> Option<String> {
        if self.inner.orders.is_empty() {
            return None;
        }
        let queue = self.inner.existing_queue(id.place()).ok()??;
        let seen = queue.queue.look(id.number()).ok()??;
        self.inner.orders.reason_of(id.place(), &seen)
    }
}

/// Notes that a dead job is skipped, or that it is not.
fn skip(key: &[u8], is_skipped: bool) -> Changes<'_> {
    let change = match is_skipped {
        true => KeyChange::Put(key, b"", Keep::Forever),
        false => KeyChange::Remove(key),
    };
    Changes {
        keys: vec![change],
        ..Changes::default()
    }
}

/// What tells the lines of ends that the backend tells of.
struct Told {
    orders: Arc<Orders>,
    backend: Weak<dyn Backend>,
}
