//! What is owed between the state log and the queues: jobs that are still to go to their queues,
//! and records that are to be marked done once what replaces them is durable.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::State;
use super::index::Place;
use crate::Sequence;
use crate::events::event;
use crate::log::meta::Elsewhere;
use crate::log::segment::Unsettled;
use crate::storage::StorageError;

/// So many records wait to be marked done before a flush is due for their sake.
const MOST_WAITING: usize = 64 * 1024;

/// What is to be settled.
#[derive(Default)]
pub(super) struct Debts {
    queues: HashMap<u64, OfQueue>,
    keys: OfKeys,
    /// Queues with a job of which only the next open of this log finds out whether a transaction
    /// has completed it, as the flush of that has failed.
    uncertain: HashMap<u64, Arc<StorageError>>,
}

/// What is to be settled between the state log and one queue.
#[derive(Default)]
struct OfQueue {
    /// Jobs in the state log that are not in the queue's log yet, oldest first.
    waiting: Vec<Sequence>,
    /// Jobs that are in both, to be marked done in the state log.
    forwarded: Vec<Sequence>,
    /// The records of the queue that name those.
    jobs: Vec<Unsettled>,
    /// Jobs of the queue that transactions found at open complete.
    completed: Vec<Sequence>,
    /// Records of the state log that name completed jobs of the queue.
    completions: Vec<Unsettled>,
}

/// What is to be settled within the state log.
#[derive(Default)]
struct OfKeys {
    /// Records of keys that later ones replace.
    replaced: Vec<Sequence>,
    /// The records that name those.
    by: Vec<Unsettled>,
    /// Records that remove keys: they are done once what they remove is.
    removals: Vec<Sequence>,
    /// Whether an open found values that later ones do not name, so that nothing keeps those.
    is_urgent: bool,
}

impl OfQueue {
    /// Whether to settle what the queue owes, as a full segment of the log waits for it, or it owes
    /// much. `open` is where the segment starts that is appended to.
    fn is_due(&self, open: Sequence) -> bool {
        self.forwarded.len() >= MOST_WAITING
            || self.completions.iter().any(Unsettled::is_in_full)
            || self.forwarded.iter().any(|&entry| entry < open)
    }
}

fn add(list: &mut Vec<Unsettled>, new: Unsettled) {
    // Consecutive ones are usually in the same segment.
    let rest = match list.last_mut() {
        Some(last) => last.merge(new),
        None => Some(new),
    };
    list.extend(rest);
}

impl Debts {
    pub(super) fn note_completed(&mut self, job: Elsewhere, completion: Unsettled) {
        let queue = self.queues.entry(job.home).or_default();
        queue.completed.push(job.record);
        add(&mut queue.completions, completion);
    }

    /// Whether jobs are to go to their queues.
    pub(super) fn has_jobs(&self) -> bool {
        self.queues.values().any(|queue| !queue.waiting.is_empty())
    }

    pub(super) fn take_waiting(&mut self, queue: u64) -> Vec<Sequence> {
        let queue = self.queues.get_mut(&queue);
        queue.map_or_else(Vec::new, |queue| std::mem::take(&mut queue.waiting))
    }

    pub(super) fn wait_again(&mut self, queue: u64, entry: Sequence) {
        self.queues.entry(queue).or_default().waiting.push(entry);
    }

    /// Notes the record of a key: what it replaces, and whether it removes the key.
    pub(super) fn note_key(&mut self, old: Option<Place>, removes: bool, record: Sequence) {
        self.keys.replaced.extend(old.map(|old| old.record));
        if removes {
            self.keys.removals.push(record);
        }
    }

    /// Notes that keys are to be settled before any value may expire or be moved.
    pub(super) fn note_urgent(&mut self) {
        self.keys.is_urgent = true;
    }

    pub(super) fn note_replaced(&mut self, by: Unsettled) {
        add(&mut self.keys.by, by);
    }

    /// Leaves what queues owe to the next open.
    #[cfg(test)]
    pub(super) fn forget_queues(&mut self) {
        self.queues.clear();
    }
}

impl State {
    /// Notes that a job is in its queue, in a record that names this entry.
    pub(crate) fn note_forwarded(&self, queue: u64, entry: Sequence, job: Unsettled) {
        let mut debts = self.debts.lock();
        let queue = debts.queues.entry(queue).or_default();
        queue.forwarded.push(entry);
        add(&mut queue.jobs, job);
    }

    /// Notes that a job could not be appended to its queue yet.
    pub(crate) fn note_waiting(&self, queue: u64, entry: Sequence) {
        self.debts.lock().wait_again(queue, entry);
    }

    /// Notes that a job of a queue is marked done that a record of this log names.
    pub(crate) fn note_completion(&self, queue: u64, completion: Unsettled) {
        let mut debts = self.debts.lock();
        add(
            &mut debts.queues.entry(queue).or_default().completions,
            completion,
        );
    }

    /// Notes that only the next open of this log finds out whether a job of a queue is completed.
    pub(crate) fn note_uncertain(&self, queue: u64, error: &Arc<StorageError>) {
        let mut debts = self.debts.lock();
        debts.uncertain.insert(queue, Arc::clone(error));
    }

    /// Why a queue must not be opened: it would deliver a job again that may be completed.
    pub(crate) fn uncertain(&self, queue: u64) -> Option<Arc<StorageError>> {
        self.debts.lock().uncertain.get(&queue).cloned()
    }

    /// Whether jobs wait to be appended to a queue.
    pub(crate) fn has_waiting(&self, queue: u64) -> bool {
        let debts = self.debts.lock();
        debts
            .queues
            .get(&queue)
            .is_some_and(|queue| !queue.waiting.is_empty())
    }

    /// The jobs of a queue that are to be marked done when it opens: transactions name them.
    /// [`settle`](Self::settle) is to follow, and forgets them.
    pub(crate) fn completed(&self, queue: u64) -> Vec<Sequence> {
        let debts = self.debts.lock();
        let queue = debts.queues.get(&queue);
        queue.map_or_else(Vec::new, |queue| queue.completed.clone())
    }

    /// Marks jobs done, durably, that records of a queue name which was opened. Those records are
    /// durable. Returns how many were not done before.
    pub(crate) fn settle_named(
        &self,
        names: impl Iterator<Item = Elsewhere>,
    ) -> Result<u64, Arc<StorageError>> {
        let own: Vec<_> = names
            .filter(|name| name.home == self.id)
            .map(|name| name.record)
            .collect();
        match own.is_empty() {
            true => Ok(0),
            false => self.log.settle(&own),
        }
    }

    /// Lets go of the completions that were found for queues that do not exist any more, as their
    /// jobs are gone, too. Jobs for such queues stay, in case that the queues come back. `existing`
    /// is only asked if something was found; None: some ids are not known.
    pub(crate) fn pass_over_missing<E>(
        &self,
        existing: impl FnOnce() -> Result<Option<HashSet<u64>>, E>,
    ) -> Result<(), E> {
        if self.debts.lock().queues.is_empty() {
            return Ok(());
        }
        let Some(existing) = existing()? else {
            return Ok(());
        };
        let mut debts = self.debts.lock();
        let queues = debts.queues.iter_mut();
        for (&id, queue) in queues.filter(|(id, _)| !existing.contains(id)) {
            let completions = std::mem::take(&mut queue.completions);
            completions.into_iter().for_each(Unsettled::settle);
            let (jobs, completed) = (queue.waiting.len(), queue.completed.len());
            queue.completed = Vec::new();
            event!(
                warn,
                queue = id,
                jobs,
                completed,
                "transactions are about a queue that is gone"
            );
        }
        Ok(())
    }

    /// The queues that are to settle what they owe.
    pub(super) fn debtors(&self) -> Vec<u64> {
        let debts = self.debts.lock();
        let open = self.log.open_from();
        let queues = debts.queues.iter();
        let due = queues.filter(|(_, queue)| queue.is_due(open));
        due.map(|(&queue, _)| queue).collect()
    }

    /// Whether a full segment of this log waits for what a queue owes it, or the queue owes much.
    pub(crate) fn is_due(&self, queue: u64) -> bool {
        let debts = self.debts.lock();
        let Some(queue) = debts.queues.get(&queue) else {
            return false;
        };
        queue.is_due(self.log.open_from())
    }

    /// Settles what has gone between this log and a queue. `flush` makes the queue's records and
    /// acks durable.
    ///
    /// If that fails, all stays as it is, for the next call or the next open.
    pub(crate) fn settle(
        &self,
        queue: u64,
        flush: impl FnOnce() -> Result<(), Arc<StorageError>>,
    ) -> Result<(), Arc<StorageError>> {
        let mut taken = OfQueue::default();
        {
            let mut debts = self.debts.lock();
            let Some(queue) = debts.queues.get_mut(&queue) else {
                return Ok(());
            };
            std::mem::swap(&mut taken.forwarded, &mut queue.forwarded);
            std::mem::swap(&mut taken.jobs, &mut queue.jobs);
            std::mem::swap(&mut taken.completions, &mut queue.completions);
        }
        if taken.forwarded.is_empty() && taken.completions.is_empty() {
            return Ok(());
        }
        let settled = flush().and_then(|()| self.mark_done(&taken.forwarded));
        match settled {
            Ok(()) => {
                let owed = taken.jobs.into_iter().chain(taken.completions);
                owed.for_each(Unsettled::settle);
                if let Some(queue) = self.debts.lock().queues.get_mut(&queue) {
                    // Those were marked before the queue was open.
                    queue.completed = Vec::new();
                }
                self.task.wake();
                Ok(())
            }
            Err(error) => {
                let mut debts = self.debts.lock();
                let queue = debts.queues.entry(queue).or_default();
                queue.forwarded.append(&mut taken.forwarded);
                queue.jobs.append(&mut taken.jobs);
                queue.completions.append(&mut taken.completions);
                Err(error)
            }
        }
    }

    /// Marks entries done whose replacements are durable, and flushes that.
    fn mark_done(&self, entries: &[Sequence]) -> Result<(), Arc<StorageError>> {
        for &entry in entries {
            self.log.mark_done(entry)?;
        }
        self.log.flush(true)
    }

    /// Whether a full segment waits for what is owed to keys, or that is much.
    pub(super) fn are_keys_due(&self) -> bool {
        let debts = self.debts.lock();
        let keys = &debts.keys;
        let open = self.log.open_from();
        keys.is_urgent
            || keys.replaced.len() >= MOST_WAITING
            || keys.by.iter().any(Unsettled::is_in_full)
            || keys.removals.iter().any(|&removal| removal < open)
    }

    /// Marks replaced and removed values of keys done, once what replaces them is durable.
    pub(crate) fn settle_keys(&self) -> Result<(), Arc<StorageError>> {
        let mut taken = std::mem::take(&mut self.debts.lock().keys);
        if taken.replaced.is_empty() && taken.removals.is_empty() && taken.by.is_empty() {
            return Ok(());
        }
        let settled = self
            .log
            .flush(false)
            .and_then(|()| self.mark_done(&taken.replaced));
        match settled {
            Ok(()) => {
                taken.by.into_iter().for_each(Unsettled::settle);
                let mut result = Ok(());
                for removal in taken.removals {
                    // Not flushed: an open would do the same.
                    if let Err(error) = self.log.mark_done(removal) {
                        self.debts.lock().keys.removals.push(removal);
                        result = Err(error);
                    }
                }
                result
            }
            Err(error) => {
                let mut debts = self.debts.lock();
                debts.keys.replaced.append(&mut taken.replaced);
                debts.keys.by.append(&mut taken.by);
                debts.keys.removals.append(&mut taken.removals);
                debts.keys.is_urgent |= taken.is_urgent;
                Err(error)
            }
        }
    }
}
