//! Jobs that were cancelled and are not done yet, because somebody has their lease: a deque, a run,
//! another place where they wait, or a handler.
//!
//! An entry is made before the caller looks where the job is, and each place that takes a job in
//! looks for an entry under the lock under which the caller looks for the job. So a job is either
//! found there, or its entry is. A job in a deque is found when it is delivered.
//!
//! An entry is dropped when its job is met. So there are as many as there are cancelled jobs that
//! consumers have not come to yet, or that handlers have.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::PoisonError;

use super::gate::Gate;
use crate::Sequence;
use crate::log::lease::{Acked, Lease};
use crate::log::pinned::Pinned;
use crate::log::segment::Unsettled;
use crate::sequence::SequenceMap;
use crate::sync::{Mutex, MutexGuard};

/// The jobs that were cancelled and are not done: their leases, the segments in which handlers have
/// some, and what their cancellations owe.
pub(crate) struct Cancels<L = Lease, P = Pinned, O = Unsettled> {
    state: Mutex<State<L, P, O>>,
}

struct State<L, P, O> {
    /// By the sequences of their records.
    jobs: SequenceMap<Stage<L, P, O>>,
    /// How many of them wait.
    waiting: u64,
    /// Those of them that a handler has, in time or late.
    at_work: HashSet<Sequence>,
}

/// How far the cancellation of a job has come.
enum Stage<L, P, O> {
    /// It is being found out where the job is, and the cancellation is being written. Who meets
    /// the job leaves its lease here.
    Deciding { met: Option<L>, is_running: bool },
    /// It is cancelled and gone for its users. Who meets it marks it done.
    Waiting(O),
    /// A handler has it. Who ends the delivery other than by an ack marks it done.
    Running(Box<(P, O)>),
    /// It is done, and a handler whose delivery has timed out is still to be told.
    Late,
}

// The documented memory cost of a cancelled job.
const _: () = assert!(size_of::<(Sequence, Stage<Lease, Pinned, Unsettled>)>() <= 40);

/// A cancelled job that was met, and is marked done.
pub(crate) struct Met<A = Acked, O = Unsettled> {
    pub(crate) acked: A,
    pub(crate) owed: O,
    /// Whether it was counted, and gave back its room, when it was cancelled.
    pub(crate) was_waiting: bool,
}

/// The result of looking for a job among those that were cancelled.
pub(crate) enum Meeting<L = Lease, A = Acked, O = Unsettled> {
    NotCancelled(L),
    /// The thread that cancels the job has the lease from here on.
    Left,
    Ended(Met<A, O>),
}

/// What became of a job while it was being cancelled.
pub(crate) enum Decided<A = Acked, O = Unsettled> {
    /// It waits, and who meets it marks it done.
    Waits,
    /// It was met, and is marked done.
    Met(Met<A, O>),
    Running,
    /// It is done.
    Done(O),
}

/// Why a job cannot be cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Already {
    /// It is cancelled, or about to be, and waits.
    Waiting,
    /// It is cancelled, or about to be, and a handler has it.
    Running,
}

impl<L, P, O> Cancels<L, P, O> {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                jobs: HashMap::default(),
                waiting: 0,
                at_work: HashSet::new(),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<L, P, O>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes an entry for a job. Until it is [decided](Self::decide) or
    /// [given up](Self::give_up), nobody begins to deliver the job.
    pub(crate) fn begin(&self, gate: &Gate, record: Sequence) -> Result<(), Already> {
        let mut state = self.lock();
        match state.jobs.entry(record) {
            Entry::Vacant(entry) => {
                entry.insert(Stage::Deciding {
                    met: None,
                    is_running: false,
                });
                gate.set(Gate::CANCELS);
                Ok(())
            }
            Entry::Occupied(entry) => Err(match entry.get() {
                Stage::Waiting(_)
                | Stage::Deciding {
                    is_running: false, ..
                } => Already::Waiting,
                _ => Already::Running,
            }),
        }
    }

    /// Notes that a handler has the job.
    pub(crate) fn note_running(&self, record: Sequence) {
        if let Some(Stage::Deciding { is_running, .. }) = self.lock().jobs.get_mut(&record) {
            *is_running = true;
        }
    }

    /// Leaves a lease with an entry that is not decided.
    pub(crate) fn leave(&self, record: Sequence, lease: L) {
        if let Some(Stage::Deciding { met, .. }) = self.lock().jobs.get_mut(&record) {
            *met = Some(lease);
        }
    }

    /// Drops the entry of a job that is not cancelled after all. Returns its lease if it was met.
    pub(crate) fn give_up(&self, gate: &Gate, record: Sequence) -> Option<L> {
        let mut state = self.lock();
        let stage = state.remove(gate, record)?;
        match stage {
            Stage::Deciding { met, .. } => met,
            _ => None,
        }
    }

    /// Cancels a job whose cancellation is written, and that is in the segment `job`. `stays_late`
    /// and `ack` are as in [`meet`](Self::meet).
    #[expect(clippy::too_many_arguments)]
    pub(crate) fn decide<A>(
        &self,
        gate: &Gate,
        record: Sequence,
        job: P,
        is_done: impl FnOnce(&P) -> bool,
        owed: O,
        stays_late: bool,
        ack: impl FnOnce(L) -> A,
    ) -> Decided<A, O> {
        let mut state = self.lock();
        let met = match state.jobs.get_mut(&record) {
            Some(Stage::Deciding { met, is_running }) => match met.take() {
                Some(lease) => Some(lease),
                None if is_done(&job) => None,
                // The entry stays where it is, so that the gate is not open in between.
                None if *is_running => {
                    state.at_work.insert(record);
                    let at_work = Stage::Running(Box::new((job, owed)));
                    state.jobs.insert(record, at_work);
                    return Decided::Running;
                }
                None => {
                    state.waiting += 1;
                    state.jobs.insert(record, Stage::Waiting(owed));
                    return Decided::Waits;
                }
            },
            // Only this thread decides.
            _ => None,
        };
        match met {
            Some(lease) => {
                let acked = ack(lease);
                state.end(gate, record, stays_late);
                Decided::Met(Met {
                    acked,
                    owed,
                    was_waiting: false,
                })
            }
            // Acked in the meantime.
            None => {
                state.end(gate, record, false);
                Decided::Done(owed)
            }
        }
    }

    /// Looks for a job that was met in one of the places where it may wait, or whose delivery
    /// ends. `stays_late`: another handler may still have it.
    ///
    /// `ack` marks it done. It is called before the entry is dropped, under the lock: whoever finds
    /// no entry finds the job done.
    pub(crate) fn meet<A>(
        &self,
        gate: &Gate,
        record: Sequence,
        lease: L,
        stays_late: bool,
        ack: impl FnOnce(L) -> A,
    ) -> Meeting<L, A, O> {
        let mut state = self.lock();
        match state.jobs.get_mut(&record) {
            None | Some(Stage::Late) => return Meeting::NotCancelled(lease),
            Some(Stage::Deciding { met, .. }) => {
                *met = Some(lease);
                return Meeting::Left;
            }
            Some(Stage::Waiting(_) | Stage::Running(_)) => {}
        }
        let acked = ack(lease);
        let (owed, was_waiting) = match state.end(gate, record, stays_late) {
            Some(Stage::Waiting(owed)) => (owed, true),
            Some(Stage::Running(at_work)) => (at_work.1, false),
            // Seen above, under the same lock.
            _ => return Meeting::Left,
        };
        Meeting::Ended(Met {
            acked,
            owed,
            was_waiting,
        })
    }

    /// Whether a job was cancelled, or is about to be. For a caller that takes the job in under a
    /// lock under which the thread that cancels looks for it.
    #[inline]
    pub(crate) fn has(&self, gate: &Gate, record: Sequence) -> bool {
        gate.has(Gate::CANCELS) && self.lock().jobs.contains_key(&record)
    }

    /// Whether a job is cancelled and waits to be marked done.
    pub(crate) fn is_gone(&self, gate: &Gate, record: Sequence) -> bool {
        let state = || self.lock();
        gate.has(Gate::CANCELS) && matches!(state().jobs.get(&record), Some(Stage::Waiting(_)))
    }

    /// Whether a handler that has a job is to be told that it was cancelled.
    pub(crate) fn is_decided(&self, gate: &Gate, record: Sequence) -> bool {
        let state = || self.lock();
        gate.has(Gate::CANCELS)
            && matches!(
                state().jobs.get(&record),
                Some(Stage::Waiting(_) | Stage::Running(_) | Stage::Late)
            )
    }

    /// Ends a job other than by a delivery, unless it was cancelled, or is about to be.
    pub(crate) fn end_otherwise<T>(
        &self,
        record: Sequence,
        lease: L,
        end: impl FnOnce(L) -> T,
    ) -> Result<T, L> {
        let state = self.lock();
        match state.jobs.contains_key(&record) {
            true => Err(lease),
            false => Ok(end(lease)),
        }
    }

    /// Acks a job whose delivery had timed out. Returns the cancellation if the job waits and was
    /// cancelled: it has been counted, and has given back its room.
    pub(crate) fn ack_late(&self, gate: &Gate, record: Sequence, ack: impl FnOnce()) -> Option<O> {
        let mut state = self.lock();
        ack();
        match state.jobs.get(&record) {
            Some(Stage::Waiting(_)) => match state.remove(gate, record) {
                Some(Stage::Waiting(owed)) => Some(owed),
                _ => None,
            },
            _ => None,
        }
    }

    /// How many cancelled jobs wait to be met.
    pub(crate) fn waiting(&self) -> u64 {
        self.lock().waiting
    }

    /// Whether there is something to [sweep](Self::sweep).
    pub(crate) fn has_running(&self) -> bool {
        !self.lock().at_work.is_empty()
    }

    /// Drops the entries of jobs that their handlers have acked, which pass here by, or that no
    /// handler has any more. Returns what they owe.
    pub(crate) fn sweep(
        &self,
        gate: &Gate,
        is_done: impl Fn(&P, Sequence) -> bool,
        has_handler: impl Fn(Sequence) -> bool,
    ) -> Vec<O> {
        let mut over = Vec::new();
        let mut late = Vec::new();
        {
            let state = self.lock();
            for &record in &state.at_work {
                match state.jobs.get(&record) {
                    Some(Stage::Running(one)) if is_done(&one.0, record) => over.push(record),
                    Some(Stage::Late) => late.push(record),
                    _ => {}
                }
            }
        }
        // Not under the lock: the deliveries have one under which this one is taken.
        over.extend(late.into_iter().filter(|record| !has_handler(*record)));
        let stages: Vec<_> = {
            let mut state = self.lock();
            let removed = over.into_iter().map(|record| state.remove(gate, record));
            removed.collect()
        };
        let owed = stages
            .into_iter()
            .flatten()
            .filter_map(|stage| match stage {
                Stage::Running(at_work) => Some(at_work.1),
                _ => None,
            });
        owed.collect()
    }
}

impl<L, P, O> State<L, P, O> {
    /// Removes the entry of a job that is done; if a late handler is still to be told,
    /// leaves one for it.
    fn end(&mut self, gate: &Gate, record: Sequence, stays_late: bool) -> Option<Stage<L, P, O>> {
        let stage = self.remove(gate, record);
        if stays_late {
            self.at_work.insert(record);
            self.jobs.insert(record, Stage::Late);
            gate.set(Gate::CANCELS);
        }
        stage
    }

    fn remove(&mut self, gate: &Gate, record: Sequence) -> Option<Stage<L, P, O>> {
        let stage = self.jobs.remove(&record)?;
        match stage {
            Stage::Deciding { .. } => {}
            Stage::Waiting(_) => self.waiting -= 1,
            Stage::Running(_) | Stage::Late => _ = self.at_work.remove(&record),
        }
        self.note_removed(gate);
        Some(stage)
    }

    fn note_removed(&mut self, gate: &Gate) {
        if self.jobs.is_empty() {
            // Under the lock, like the setting.
            gate.clear(Gate::CANCELS);
            if self.jobs.capacity() > KEPT_ENTRIES {
                self.jobs = SequenceMap::default();
            }
        }
    }
}

/// The most entries for which memory is kept while there are none.
const KEPT_ENTRIES: usize = 1024;
