//! Who owes what: every job from its enqueue to its end, so that none is lost, none ends twice, and
//! each is delivered with the payload that it was enqueued with.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

use logmill::JobId;
use parking_lot::Mutex;

/// What two payloads are told apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Digest(u64);

impl Digest {
    pub(crate) fn of(payload: &[u8]) -> Self {
        let mut hasher = DefaultHasher::new();
        payload.hash(&mut hasher);
        Self(hasher.finish())
    }

    /// One of `parts`, always the same for the same payload.
    pub(crate) fn part(self, parts: u64) -> u64 {
        self.0 % parts
    }
}

/// What one side said of a job of which the other has not spoken yet: a worker can be done with it
/// before its producer knows its sequence.
enum Entry {
    Enqueued(Digest),
    Ended(Digest),
}

/// The jobs of a queue that are not settled. A job is when it was enqueued and has ended: it was
/// acked, or its letter was purged, or replayed as another job.
pub(crate) struct Ledger {
    open: Mutex<HashMap<JobId, Entry>>,
    /// With lease timeouts a job may end twice: those that have.
    ended: Option<Mutex<HashMap<JobId, Digest>>>,
    violations: Mutex<Vec<String>>,
    pub counts: Counts,
}

/// How often things happened.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Jobs, replays among them.
    pub enqueued: AtomicU64,
    pub acked: AtomicU64,
    /// Attempts, in whatever way.
    pub failed: AtomicU64,
    /// Letters, replayed or purged.
    pub buried: AtomicU64,
}

impl Counts {
    /// Adds those of another.
    pub(crate) fn add(&self, other: &Self) {
        let sums = [
            (&self.enqueued, &other.enqueued),
            (&self.acked, &other.acked),
            (&self.failed, &other.failed),
            (&self.buried, &other.buried),
        ];
        for (sum, count) in sums {
            sum.fetch_add(count.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

impl Ledger {
    pub(crate) fn new(may_end_twice: bool) -> Self {
        Self {
            open: Mutex::default(),
            ended: may_end_twice.then(Mutex::default),
            violations: Mutex::default(),
            counts: Counts::default(),
        }
    }

    pub(crate) fn enqueued(&self, job: JobId, payload: Digest) {
        self.counts.enqueued.fetch_add(1, Ordering::Relaxed);
        let mut open = self.open.lock();
        match open.remove(&job) {
            None => {
                open.insert(job, Entry::Enqueued(payload));
            }
            Some(Entry::Ended(delivered)) => self.settle(job, payload, delivered),
            Some(Entry::Enqueued(_)) => self.complain(format!("{job} was given out twice")),
        }
    }

    pub(crate) fn acked(&self, job: JobId, payload: Digest) {
        self.counts.acked.fetch_add(1, Ordering::Relaxed);
        self.ended(job, payload);
    }

    pub(crate) fn failed(&self) {
        self.counts.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// The letter of a job was replayed or purged.
    pub(crate) fn buried(&self, job: JobId, payload: Digest) {
        self.counts.buried.fetch_add(1, Ordering::Relaxed);
        self.ended(job, payload);
    }

    fn ended(&self, job: JobId, payload: Digest) {
        let mut open = self.open.lock();
        match open.remove(&job) {
            None => {
                let before = self
                    .ended
                    .as_ref()
                    .and_then(|ended| ended.lock().get(&job).copied());
                match before {
                    Some(before) if before == payload => {}
                    Some(_) => self.complain(format!("{job} has another payload than before")),
                    None => {
                        open.insert(job, Entry::Ended(payload));
                    }
                }
            }
            Some(Entry::Enqueued(enqueued)) => self.settle(job, enqueued, payload),
            Some(Entry::Ended(before)) if self.may_end_twice() && before == payload => {
                open.insert(job, Entry::Ended(payload));
            }
            Some(Entry::Ended(_)) => self.complain(format!("{job} ended twice")),
        }
    }

    fn settle(&self, job: JobId, enqueued: Digest, delivered: Digest) {
        if enqueued != delivered {
            self.complain(format!("{job} has another payload than was enqueued"));
        }
        if let Some(ended) = &self.ended {
            ended.lock().insert(job, enqueued);
        }
    }

    pub(crate) fn may_end_twice(&self) -> bool {
        self.ended.is_some()
    }

    /// Notes what must not be; a panic in a handler would pass for a failed attempt.
    pub(crate) fn complain(&self, violation: String) {
        self.violations.lock().push(violation);
    }

    /// Jobs that are not settled.
    pub(crate) fn len(&self) -> usize {
        self.open.lock().len()
    }

    /// What must not be, and was: a few of each kind.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.violations.lock().iter().take(10).cloned().collect()
    }

    /// A few of the jobs that are not settled.
    pub(crate) fn unsettled(&self) -> Vec<String> {
        let open = self.open.lock();
        let describe = |(job, entry): (&JobId, &Entry)| match entry {
            Entry::Enqueued(_) => format!("{job} did not end"),
            Entry::Ended(_) => format!("{job} ended, and was not enqueued or had ended before"),
        };
        open.iter().take(10).map(describe).collect()
    }
}
