//! The engine in this process as a backend.

mod claim;
mod damage;
mod ends;
mod errors;
mod queue;

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use foldhash::quality::RandomState;
use logmill::{Durability, QueueSet, Queues, SetConsumer};
use parking_lot::{Mutex, ReentrantMutex};

use self::claim::Borrowed;
use self::ends::Ends;
use self::errors::{on_open, on_storage, on_transaction};
use self::queue::{EmbeddedQueue, options_of};
use super::{
    Backend, BackendError, Capabilities, Changes, Choice, Consumer, Damaged, Keep, KeyChange,
    KeyValue, Next, OnEnd, Queue, Served,
};
use crate::clock::Clock;
use crate::error::OpenError;
use crate::locks::Having;

/// The engine in this process: a directory of queues, which one process has open at a time.
///
/// [`Mill::open`](crate::Mill::open) makes one; [`Mill::with_backend`](crate::Mill::with_backend) takes
/// one that was opened otherwise.
pub struct Embedded(Arc<Shared>);

/// The engine's own backoff, at most.
const BACKOFF: Duration = Duration::from_secs(30);

/// What the backend and its consumers share.
struct Shared {
    queues: Queues,
    durability: Durability,
    clock: Clock,
    /// The size of segments, and one stripe, in tests.
    #[cfg(feature = "testing")]
    segment_size: Option<u64>,
    on_end: OnceLock<OnEnd>,
    damaged: Mutex<Vec<Damaged>>,
    /// How many jobs of each queue are held.
    held: Mutex<HashMap<String, Arc<AtomicU64>, RandomState>>,
    /// Those that are open; None once the backend is closed.
    open: Mutex<Option<HashMap<String, logmill::Queue, RandomState>>>,
    /// Those that a thread is about to open. Held meanwhile, and reentrant: what the engine raises then
    /// goes to subscribers, which may enqueue.
    opening: ReentrantMutex<RefCell<Vec<String>>>,
}

/// A queue that is noted as about to open.
struct Noted<'a>(&'a RefCell<Vec<String>>);

impl Drop for Noted<'_> {
    fn drop(&mut self) {
        self.0.borrow_mut().pop();
    }
}

impl std::fmt::Debug for Embedded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Embedded")
            .field("durability", &self.0.durability)
            .finish_non_exhaustive()
    }
}

impl Embedded {
    /// A backend on this directory of queues. With [`Durability::Sync`], an enqueue and a completion
    /// with results return once they survive a power cut. [Flush](Queues::flush) the directory before, so
    /// that this holds for what an earlier process was about to flush when it died.
    pub fn new(queues: Queues, durability: Durability) -> Self {
        Self::on_clock(queues, durability, Clock::default())
    }

    /// A backend on a directory of queues with this clock.
    pub(crate) fn on_clock(queues: Queues, durability: Durability, clock: Clock) -> Self {
        let shared = Arc::new(Shared {
            queues,
            durability,
            clock,
            #[cfg(feature = "testing")]
            segment_size: None,
            on_end: OnceLock::new(),
            damaged: Mutex::default(),
            held: Mutex::default(),
            open: Mutex::new(Some(HashMap::default())),
            opening: ReentrantMutex::default(),
        });
        shared.note_damage(None, shared.queues.recovery());
        Self(shared)
    }

    /// Makes the keys durable that were found, before they are told, if what is told is to survive a power
    /// cut: a process that was killed may not have flushed them.
    pub(crate) fn keep_what_was_found(&self) -> Result<(), OpenError> {
        match self.0.durability {
            Durability::Sync => {
                let flushed = self.0.queues.flush();
                flushed.map_err(|error| OpenError(Box::new(error)))
            }
            _ => Ok(()),
        }
    }

    /// A backend whose jobs come in their order, and which takes little space.
    #[cfg(feature = "testing")]
    pub(crate) fn for_tests(
        queues: Queues,
        durability: Durability,
        clock: Clock,
        segment_size: u64,
    ) -> Self {
        Self(Arc::new(Shared {
            queues,
            durability,
            clock,
            segment_size: Some(segment_size),
            on_end: OnceLock::new(),
            damaged: Mutex::default(),
            held: Mutex::default(),
            open: Mutex::new(Some(HashMap::default())),
            opening: ReentrantMutex::default(),
        }))
    }
}

#[cfg(feature = "testing")]
impl Embedded {
    /// Does what the engine's own threads have to do of what has happened, so that a simulation finds
    /// the same files each time.
    pub(crate) fn rest(&self) {
        let mut open: Vec<_> = match &*self.0.open.lock() {
            Some(open) => open.values().cloned().collect(),
            None => return,
        };
        open.sort_by(|one, other| one.name().cmp(other.name()));
        open.iter().for_each(logmill::Queue::rest);
        self.0.queues.rest();
    }
}

impl Shared {
    /// A handle of the queue of this name, which is opened or created if it is not open.
    fn open(self: &Arc<Self>, name: &str) -> Result<logmill::Queue, BackendError> {
        if let Some(queue) = self.opened(name)? {
            return Ok(queue);
        }
        let opening = self.opening.lock();
        let _having = Having::one_more();
        if let Some(queue) = self.opened(name)? {
            return Ok(queue);
        }
        if opening.borrow().iter().any(|one| one == name) {
            let why = "a subscriber cannot use it before it is open";
            return Err(BackendError::Invalid(format!(
                "the queue {name:?} is about to open: {why}"
            )));
        }
        opening.borrow_mut().push(name.to_owned());
        let noted = Noted(&opening);
        let opened = self.open_anew(name);
        drop(noted);
        drop(opening);
        let (queue, report) = opened?;
        self.note_damage(Some(name), &report);
        Ok(queue)
    }

    /// How many jobs of a queue are held.
    fn held_of(&self, name: &str) -> Arc<AtomicU64> {
        let mut held = self.held.lock();
        match held.get(name) {
            Some(count) => Arc::clone(count),
            None => Arc::clone(held.entry(name.to_owned()).or_default()),
        }
    }

    /// A queue that is open.
    #[inline]
    fn opened(&self, name: &str) -> Result<Option<logmill::Queue>, BackendError> {
        let open = self.open.lock();
        let open = open.as_ref().ok_or(BackendError::Closed)?;
        Ok(open.get(name).cloned())
    }

    fn open_anew(
        self: &Arc<Self>,
        name: &str,
    ) -> Result<(logmill::Queue, logmill::RecoveryReport), BackendError> {
        // Attempts are counted, limited and put off by the kinds. The engine's own backoff is left for jobs
        // that have failed before a restart, whose kinds it does not know, and for ends that could
        // not be stored: short for the former, and not too short for a full disk.
        let retry = logmill::RetryPolicy::exponential(Duration::from_secs(1), BACKOFF);
        let retry = retry.unlimited_attempts();
        let builder = self.queues.builder(name).durability(self.durability);
        #[cfg(feature = "testing")]
        let builder = match self.segment_size {
            None => builder,
            Some(bytes) => builder.stripes(1).segment_size(bytes),
        };
        let ends = Ends {
            shared: Arc::downgrade(self),
            queue: name.to_owned(),
        };
        let opened = builder.retry(retry).observer(ends).open();
        let (queue, report) = opened.map_err(on_open)?;
        match &mut *self.open.lock() {
            Some(open) => _ = open.insert(name.to_owned(), queue.clone()),
            None => return Err(BackendError::Closed),
        }
        Ok((queue, report))
    }

    /// Keeps what recovery found damaged in a queue, or in the keys.
    fn note_damage(&self, queue: Option<&str>, report: &logmill::RecoveryReport) {
        if report.is_clean() {
            return;
        }
        let found = damage::lines_of(report);
        let damaged = Damaged::new(queue.map(str::to_owned), found.clone());
        self.damaged.lock().push(damaged);
        // After it is noted: a subscriber may panic.
        tracing::error!(queue, ?found, "recovery found damage");
    }

    fn transaction(
        self: &Arc<Self>,
        changes: &Changes<'_>,
    ) -> Result<logmill::Transaction, BackendError> {
        let mut transaction = self.queues.transaction();
        let mut sync = changes.sync || self.durability == Durability::Sync;
        for (queue, job) in &changes.jobs {
            let queue = self.open(queue)?;
            transaction.enqueue_with(&queue, job.payload, options_of(job));
            sync |= job.sync;
        }
        for change in &changes.keys {
            match *change {
                KeyChange::Put(key, value, keep) => transaction.put(key, value, keep_of(keep)),
                KeyChange::Insert(key, value, keep) => {
                    transaction.insert_new(key, value, keep_of(keep))
                }
                KeyChange::Remove(key) => transaction.remove(key),
                KeyChange::Expect(key, version) => transaction.expect(key, version),
            };
        }
        if sync {
            // Under the id of a job, more is stored than the job.
            transaction.durability(Durability::Sync).durable_ids();
        }
        Ok(transaction)
    }
}

fn keep_of(keep: Keep) -> logmill::Keep {
    match keep {
        Keep::Forever => logmill::Keep::Forever,
        Keep::For(time) => logmill::Keep::For(time),
    }
}

fn value_of(value: logmill::Value) -> KeyValue {
    KeyValue {
        version: value.version(),
        value: value.into_bytes(),
    }
}

impl Backend for Embedded {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(true, false)
    }

    fn on_end(&self, tell: OnEnd) {
        // Called once; a second caller is told nothing.
        let _ = self.0.on_end.set(tell);
    }

    fn queue(&self, name: &str) -> Result<Box<dyn Queue>, BackendError> {
        let queue = self.0.open(name)?;
        let (clock, held) = (self.0.clock.clone(), self.0.held_of(name));
        Ok(Box::new(EmbeddedQueue::new(queue, clock, held)))
    }

    fn queue_names(&self) -> Result<Vec<String>, BackendError> {
        self.0.queues.names().map_err(on_storage)
    }

    fn consumer(
        &self,
        queues: &[Served<'_>],
        choice: Choice,
    ) -> Result<Box<dyn Consumer>, BackendError> {
        let open = queues.iter().map(|served| self.0.open(served.queue));
        let open: Vec<_> = open.collect::<Result<_, _>>()?;
        // A consumer of one queue takes the shortest way to its jobs.
        if let [queue] = &open[..] {
            return Ok(Box::new(Of::One(queue.consumer(), Arc::clone(&self.0))));
        }
        let set = match choice {
            Choice::Priority => QueueSet::by_priority(&open.iter().collect::<Vec<_>>()),
            Choice::Weight => {
                let weights = queues.iter().map(|served| served.weight);
                QueueSet::by_weight(&open.iter().zip(weights).collect::<Vec<_>>())
            }
        };
        Ok(Box::new(Of::Several(set.consumer(), Arc::clone(&self.0))))
    }

    fn wake_consumers(&self, queues: &[&str]) {
        let open = self.0.open.lock();
        for queue in queues {
            if let Some(queue) = open.as_ref().and_then(|open| open.get(*queue)) {
                queue.wake_consumers();
            }
        }
    }

    fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, BackendError> {
        Ok(self.0.queues.keys().get(key).map(value_of))
    }

    fn keys(&self, prefix: &[u8]) -> Result<Vec<(Vec<u8>, KeyValue)>, BackendError> {
        let keys = self.0.queues.keys().with_prefix(prefix);
        Ok(keys.map(|(key, value)| (key, value_of(value))).collect())
    }

    fn each_key(
        &self,
        prefix: &[u8],
        see: &mut dyn FnMut(Vec<u8>, KeyValue) -> bool,
    ) -> Result<(), BackendError> {
        for (key, value) in self.0.queues.keys().with_prefix(prefix) {
            if !see(key, value_of(value)) {
                break;
            }
        }
        Ok(())
    }

    fn commit(&self, changes: &Changes<'_>) -> Result<Vec<Option<u64>>, BackendError> {
        let transaction = self.0.transaction(changes)?;
        let committed = transaction.commit().map_err(on_transaction)?;
        let numbers = committed.jobs.into_iter();
        Ok(numbers.map(|id| id.map(logmill::JobId::get)).collect())
    }

    fn damage(&self) -> Vec<Damaged> {
        self.0.damaged.lock().clone()
    }

    fn flush(&self) -> Result<(), BackendError> {
        let open: Vec<_> = match &*self.0.open.lock() {
            Some(open) => open.values().cloned().collect(),
            None => return Err(BackendError::Closed),
        };
        self.0.queues.flush().map_err(on_storage)?;
        open.iter()
            .try_for_each(logmill::Queue::flush)
            .map_err(on_storage)
    }

    fn close(&self) -> Result<(), BackendError> {
        let open = self.0.open.lock().take().unwrap_or_default();
        let mut closed = Ok(());
        for queue in open.into_values() {
            if let Err(error) = queue.close() {
                closed = closed.and(Err(on_storage(error)));
            }
        }
        closed
    }
}

/// A consumer of one queue, or of several.
enum Of {
    One(logmill::Consumer, Arc<Shared>),
    Several(SetConsumer, Arc<Shared>),
}

impl Consumer for Of {
    #[inline]
    fn next(
        &mut self,
        until: Option<Instant>,
        stopped: &dyn Fn() -> bool,
        take: &mut dyn FnMut(&mut dyn super::Claim),
    ) -> Next {
        let (job, shared) = match self {
            Self::One(consumer, shared) => (consumer.next_until(until, stopped), shared),
            Self::Several(consumer, shared) => (consumer.next_until(until, stopped), shared),
        };
        match job {
            Some(job) => {
                take(&mut Borrowed::new(job, shared));
                Next::Taken
            }
            None if stopped() || until.is_some_and(|until| until <= Instant::now()) => {
                Next::Nothing
            }
            None => Next::Closed,
        }
    }
}
