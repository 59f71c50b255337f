//! What transactions, queues and keys have promised, and the check of what a crash left against it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::truth::Crash;
use crate::time::stopped;

/// How many keys there are.
pub(super) const KEYS: u8 = 16;

/// A job of either queue, by the number in its payload.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) queue: usize,
    /// Whether it survives a power cut.
    is_durable: bool,
    end: Option<End>,
    /// What has happened to it.
    history: Vec<&'static str>,
}

/// How sure it is that a job has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// A power cut may bring it back.
    Acked,
    Durable,
}

/// A transaction.
#[derive(Clone, Debug)]
pub(super) struct Transaction {
    pub(super) source: Option<u64>,
    /// The new jobs, each with its queue.
    pub(super) jobs: Vec<(u64, usize)>,
    pub(super) changes: BTreeMap<u8, Option<u64>>,
    pub(super) is_sync: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Truth {
    jobs: BTreeMap<u64, Job>,
    /// The values that a key had since the last one that survives a power cut, which comes first;
    /// each with the number of its transaction.
    keys: BTreeMap<u8, Vec<(u64, Option<u64>)>>,
    /// When values expire, since the epoch of the stopped clock.
    expiries: BTreeMap<u64, Duration>,
    /// Transactions that are not durable, by number: the keys that each changes.
    unflushed: BTreeMap<u64, BTreeMap<u8, Option<u64>>>,
    next: u64,
    /// What has happened to jobs that had ended before the last crash.
    ended: BTreeMap<u64, Vec<&'static str>>,
    /// The transaction that is being committed, or whose flush has failed.
    uncertain: Option<Transaction>,
    /// A job that is being enqueued or acked.
    in_doubt: Option<u64>,
    /// The job of each queue that is enqueued, and may be there or not.
    enqueuing: Option<(u64, usize)>,
}

/// What is in the queues and the keyed store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// The jobs of each queue, each time they are found, in order.
    pub(super) jobs: Vec<(u64, usize)>,
    pub(super) keys: BTreeMap<u8, u64>,
    /// Whether an ack word was torn, which brings jobs back.
    pub(super) has_torn_acks: bool,
}

impl Found {
    /// Whether a torn ack word has brought back the entry of a job that had arrived in its queue.
    pub(super) fn has_a_job_twice(&self) -> bool {
        self.jobs.windows(2).any(|two| two[0] == two[1])
    }
}

impl Truth {
    pub(super) fn new_number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn value_of(&self, key: u8) -> Option<u64> {
        let values = self.keys.get(&key)?;
        values.last().and_then(|(_, value)| self.seen(*value))
    }

    pub(super) fn note_expiry(&mut self, value: u64, at: Duration) {
        self.expiries.insert(value, at);
    }

    /// What is seen of a value: nothing once it has expired.
    fn seen(&self, value: Option<u64>) -> Option<u64> {
        let now = stopped::now().unwrap_or_default();
        value.filter(|value| self.expiries.get(value).is_none_or(|&at| at > now))
    }

    /// Whether a key has a value.
    pub(super) fn has(&self, key: u8) -> bool {
        self.value_of(key).is_some()
    }

    pub(super) fn begin_enqueue(&mut self, job: u64, queue: usize) {
        self.enqueuing = Some((job, queue));
    }

    pub(super) fn end_enqueue(&mut self, is_there: bool, is_durable: bool) {
        if let Some((job, queue)) = self.enqueuing.take()
            && is_there
        {
            let end = None;
            let is_new = self.jobs.insert(
                job,
                Job {
                    queue,
                    is_durable,
                    end,
                    history: vec!["new"],
                },
            );
            assert!(is_new.is_none());
        }
    }

    pub(super) fn begin_ack(&mut self, job: u64) {
        self.in_doubt = Some(job);
    }

    pub(super) fn end_ack(&mut self) {
        if let Some(job) = self.in_doubt.take() {
            self.acked(job, End::Acked);
        }
    }

    fn acked(&mut self, job: u64, end: End) {
        let job = self.jobs.get_mut(&job).expect("a known job");
        // Of two handlers that have it, one is late.
        job.end = match job.end {
            Some(End::Durable) => Some(End::Durable),
            Some(End::Acked) | None => Some(end),
        };
        job.history.push(match end {
            End::Acked => "ended",
            End::Durable => "ended durably",
        });
    }

    /// Notes what has happened to a job, to be told when it is found where it should not be.
    pub(super) fn note(&mut self, job: u64, what: &'static str) {
        if let Some(job) = self.jobs.get_mut(&job) {
            job.history.push(what);
        }
    }

    pub(super) fn has_ended(&self, job: u64) -> bool {
        self.jobs.get(&job).is_none_or(|job| job.end.is_some())
    }

    /// Checks that a job may be delivered.
    pub(super) fn check_delivery(&self, job: u64, queue: usize) {
        let known = self.jobs.get(&job).expect("an unknown job is delivered");
        assert_eq!((known.queue, known.end), (queue, None), "job {job}");
    }

    pub(super) fn begin(&mut self, transaction: Transaction) {
        assert!(self.uncertain.is_none());
        self.uncertain = Some(transaction);
    }

    /// The transaction is committed.
    pub(super) fn commit(&mut self) {
        let Some(transaction) = self.uncertain.take() else {
            return;
        };
        let is_durable = transaction.is_sync;
        if let Some(source) = transaction.source {
            let end = if is_durable { End::Durable } else { End::Acked };
            let before = self.jobs[&source].end;
            assert_eq!(
                before, None,
                "job {source} had ended before its transaction"
            );
            self.acked(source, end);
        }
        for (job, queue) in transaction.jobs {
            let end = None;
            let job = self.jobs.insert(
                job,
                Job {
                    queue,
                    is_durable,
                    end,
                    history: vec!["new"],
                },
            );
            assert!(job.is_none());
        }
        let number = self.new_number();
        for (&key, &value) in &transaction.changes {
            let values = self.keys.entry(key).or_insert_with(|| vec![(0, None)]);
            values.push((number, value));
        }
        match is_durable {
            // The flush covers all transactions before it, too.
            true => self.flush_keys(),
            false => drop(self.unflushed.insert(number, transaction.changes)),
        }
    }

    /// The transaction was refused.
    pub(super) fn refuse(&mut self) {
        self.uncertain = None;
    }

    pub(super) fn flush_keys(&mut self) {
        self.unflushed.clear();
        for values in self.keys.values_mut() {
            values.drain(..values.len() - 1);
        }
    }

    /// All that has happened in a queue is durable.
    pub(super) fn flush(&mut self, queue: usize) {
        for job in self.jobs.values_mut().filter(|job| job.queue == queue) {
            job.is_durable = true;
            job.history.push("flushed");
            if job.end.is_some() {
                job.end = Some(End::Durable);
            }
        }
    }

    /// Checks what a crash left.
    pub(super) fn check(&self, found: &Found, crash: Crash) {
        let mut times = BTreeMap::new();
        for &(job, queue) in &found.jobs {
            let (count, found_in) = times.entry(job).or_insert((0, queue));
            *count += 1;
            assert_eq!(*found_in, queue, "job {job} is in both queues");
            // Of jobs that a torn ack word of the state log brings back, the queue may have one.
            assert!(
                *count == 1 || found.has_torn_acks,
                "job {job} is there twice after a {crash:?}: {:?}",
                self.jobs.get(&job)
            );
        }
        let is_there = |job: u64| times.contains_key(&job);
        let mut unknown: BTreeMap<_, _> = found.jobs.iter().copied().collect();
        for (number, job) in &self.jobs {
            unknown.remove(number);
            if let Some((_, queue)) = times.get(number) {
                assert_eq!(*queue, job.queue, "job {number} is in the other queue");
            }
            let is_uncertain = self.in_doubt == Some(*number)
                || self
                    .uncertain
                    .as_ref()
                    .is_some_and(|one| one.source == Some(*number));
            if is_uncertain {
                continue;
            }
            let must_be_there = job.end.is_none() && (job.is_durable || crash == Crash::Kill);
            let must_be_gone = match job.end {
                None => false,
                Some(End::Durable) => !found.has_torn_acks,
                Some(End::Acked) => crash == Crash::Kill,
            };
            assert!(
                is_there(*number) || !must_be_there,
                "job {number} is lost by a {crash:?}: {job:?}"
            );
            assert!(
                !is_there(*number) || !must_be_gone,
                "job {number} is back after a {crash:?}: {job:?}"
            );
        }
        if let Some((job, queue)) = self.enqueuing
            && let Some(found) = unknown.remove(&job)
        {
            assert_eq!(found, queue);
        }
        if let Some(transaction) = &self.uncertain {
            self.check_uncertain(transaction, found, crash);
            for (job, queue) in &transaction.jobs {
                if let Some(found) = unknown.remove(job) {
                    assert_eq!(found, *queue);
                }
            }
        }
        // Those that ended before an earlier crash are forgotten.
        let histories = unknown.keys().map(|job| (job, self.ended.get(job)));
        assert!(
            unknown.is_empty() || found.has_torn_acks,
            "jobs that never were, or had ended: {:?}",
            histories.collect::<Vec<_>>()
        );
        // A torn ack word may bring back a value that was replaced, and nothing hides it if the later
        // one has been removed.
        if !found.has_torn_acks {
            self.check_keys(found, crash);
        }
    }

    /// Checks that all of a transaction is there or nothing.
    fn check_uncertain(&self, transaction: &Transaction, found: &Found, crash: Crash) {
        if crash == Crash::PowerCut && !transaction.is_sync {
            return;
        }
        let is_there = |number: u64| found.jobs.iter().any(|&(job, _)| job == number);
        let jobs: Vec<_> = transaction
            .jobs
            .iter()
            .map(|&(job, _)| is_there(job))
            .collect();
        let is_source_there = transaction.source.map(is_there);
        // A source that was not durable may be gone without the transaction.
        let may_be_lost = |source: u64| crash == Crash::PowerCut && !self.jobs[&source].is_durable;
        let is_done = jobs.first().copied();
        assert!(
            jobs.iter().all(|&one| Some(one) == is_done),
            "a part of {transaction:?} is there: {jobs:?}"
        );
        if let (Some(is_done), Some(is_source_there), Some(source)) =
            (is_done, is_source_there, transaction.source)
        {
            assert!(
                is_done != is_source_there
                    || !is_done && may_be_lost(source)
                    || is_done && found.has_torn_acks,
                "{transaction:?} is done: {is_done}, its job is there: {is_source_there}"
            );
        }
        let new = |key: u8| self.seen(transaction.changes[&key]);
        let is_new = |key: u8| found.keys.get(&key).copied() == new(key);
        let is_old = |key: u8| found.keys.get(&key).copied() == self.value_of(key);
        let keys = || transaction.changes.keys().copied();
        if crash == Crash::Kill {
            let is_all_new = keys().all(is_new);
            assert!(is_all_new || keys().all(is_old), "{transaction:?}");
            if let Some(is_done) = is_done
                && keys().any(|key| new(key) != self.value_of(key))
            {
                assert_eq!(is_all_new, is_done, "{transaction:?}");
            }
        }
    }

    fn check_keys(&self, found: &Found, crash: Crash) {
        let being_changed = |key: u8| {
            let uncertain = self.uncertain.as_ref();
            let change = uncertain.and_then(|one| one.changes.get(&key).copied());
            change.map(|value| self.seen(value))
        };
        for key in 0..KEYS {
            let now = found.keys.get(&key).copied();
            let values = self.keys.get(&key);
            let may_be = |value: Option<u64>| match values {
                None => value.is_none(),
                Some(values) if crash == Crash::Kill => values
                    .last()
                    .is_some_and(|(_, last)| self.seen(*last) == value),
                Some(values) => values.iter().any(|(_, one)| self.seen(*one) == value),
            };
            assert!(
                may_be(now) || being_changed(key) == Some(now),
                "key {key} is {now:?} after a {crash:?}, it was {values:?}"
            );
        }
        // Of a transaction that a power cut may have undone, all keys are new or none, as far as no
        // later transaction has changed them.
        for (number, changes) in &self.unflushed {
            let is_last = |key: &u8| {
                let last = self.keys[key].last();
                last.is_some_and(|(last, _)| last == number) && being_changed(*key).is_none()
            };
            // Where the new value is no other one than before, it tells nothing.
            let tells = |key: &u8| {
                let values = &self.keys[key];
                let earlier = &values[..values.len() - 1];
                let new = self.seen(changes[key]);
                earlier.iter().all(|(_, value)| self.seen(*value) != new)
            };
            let keys = changes.keys().filter(|key| is_last(key) && tells(key));
            let new: Vec<_> = keys
                .map(|key| found.keys.get(key).copied() == self.seen(changes[key]))
                .collect();
            assert!(
                new.iter().all(|one| *one == new[0]),
                "some keys of a transaction are new: {changes:?}, found {:?}",
                found.keys
            );
        }
    }

    /// Goes on from what a crash left.
    pub(super) fn go_on(&mut self, found: &Found) {
        self.uncertain = None;
        self.in_doubt = None;
        self.enqueuing = None;
        self.unflushed.clear();
        self.keys = found
            .keys
            .iter()
            .map(|(&key, &value)| (key, vec![(0, Some(value))]))
            .collect();
        for job in self.jobs.values_mut() {
            job.end = Some(End::Durable);
        }
        for &(number, queue) in &found.jobs {
            // What was found was read, so it is durable only after a power cut.
            let job = self.jobs.entry(number).or_insert(Job {
                queue,
                is_durable: false,
                end: None,
                history: Vec::new(),
            });
            job.history.push("found");
            job.end = None;
        }
        let ended = &mut self.ended;
        self.jobs.retain(|&number, job| {
            if job.end.is_some() {
                ended.insert(number, std::mem::take(&mut job.history));
            }
            job.end.is_none()
        });
    }

    /// What was found is on the disk.
    pub(super) fn note_restart(&mut self) {
        for job in self.jobs.values_mut() {
            job.is_durable = true;
        }
    }
}
