//! Accounts for every job from its enqueue to its end: no job is lost, none ends twice, and each is
//! delivered with the payload with which it was enqueued.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

use logmill::JobId;
use parking_lot::Mutex;

/// A hash that identifies a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Digest(u64);

impl Digest {
    pub(crate) fn of(payload: &[u8]) -> Self {
        let mut hasher = DefaultHasher::new();
        payload.hash(&mut hasher);
        Self(hasher.finish())
    }

    /// A number below `parts`, always the same for the same payload.
    pub(crate) fn part(self, parts: u64) -> u64 {
        self.0 % parts
    }
}

/// A job of which only one of the two sides is known: a worker can be done with a job before its
/// producer knows the id.
enum Entry {
    Enqueued(Digest),
    Ended(Digest),
}

/// The jobs of a queue that are not settled. A job is settled once it was enqueued and has ended:
/// by an ack, or by the purge or replay of its letter.
pub(crate) struct Ledger {
    open: Mutex<HashMap<JobId, Entry>>,
    /// Jobs that have ended, if lease timeouts permit a job to end twice.
    ended: Option<Mutex<HashMap<JobId, Digest>>>,
    violations: Mutex<Vec<String>>,
    pub counts: Counts,
}

/// How often things happened.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Jobs, including replayed ones.
    pub enqueued: AtomicU64,
    pub acked: AtomicU64,
    /// Failed attempts of any kind.
    pub failed: AtomicU64,
    /// Letters that were replayed or purged.
    pub buried: AtomicU64,
}

impl Counts {
    /// Adds the counts of another ledger.
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

    /// Records a violation. A panic would not do: in a handler it is just a failed attempt.
    pub(crate) fn complain(&self, violation: String) {
        self.violations.lock().push(violation);
    }

    /// The number of jobs that are not settled.
    pub(crate) fn len(&self) -> usize {
        self.open.lock().len()
    }

    /// The violations: a few of each kind.
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
