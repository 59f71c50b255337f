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

use super::gate::Gate;
use crate::Sequence;
use crate::events::Mutex;
use crate::log::lease::Lease;
use crate::log::lookup::FoundJob;
use crate::log::pinned::Pinned;
use crate::log::segment::Unsettled;
use crate::sequence::SequenceMap;

/// The jobs that were cancelled and are not done.
#[derive(Default)]
pub(crate) struct Cancels {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By the sequences of their records.
    jobs: SequenceMap<Stage>,
    /// How many of them wait.
    waiting: u64,
    /// How many of them a handler has, in time or late.
    running: u64,
}

/// How far the cancellation of a job has come.
enum Stage {
    /// It is being found out where the job is, and the cancellation is being written. Who meets
    /// the job leaves its lease here.
    Deciding {
        met: Option<Lease>,
        is_running: bool,
    },
    /// It is cancelled and gone for its users. Who meets it marks it done.
    Waiting(Unsettled),
    /// A handler has it. Who ends the delivery other than by an ack marks it done.
    Running { job: Pinned, owed: Unsettled },
    /// It is done, and a handler whose delivery has timed out is still to be told.
    Late,
}

/// A cancelled job that was met, and is to be marked done by the caller.
pub(crate) struct Met {
    pub(crate) lease: Lease,
    pub(crate) owed: Unsettled,
    /// Whether it was counted, and gave back its room, when it was cancelled.
    pub(crate) was_waiting: bool,
}

/// The result of looking for a job among those that were cancelled.
pub(crate) enum Meeting {
    NotCancelled(Lease),
    /// The thread that cancels the job has the lease from here on.
    Left,
    Ends(Met),
}

/// What became of a job while it was being cancelled.
pub(crate) enum Decided {
    /// It waits, and who meets it marks it done.
    Waits,
    /// It was met, and the caller marks it done.
    Met(Met),
    Running,
    /// It is done.
    Done(Unsettled),
}

/// Why a job cannot be cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Already {
    /// It is cancelled, or about to be, and waits.
    Waiting,
    /// It is cancelled, or about to be, and a handler has it.
    Running,
}

impl Cancels {
    /// Makes an entry for a job. Until it is [decided](Self::decide) or
    /// [given up](Self::give_up), nobody begins to deliver the job.
    pub(crate) fn begin(&self, gate: &Gate, record: Sequence) -> Result<(), Already> {
        let mut state = self.state.lock();
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
        if let Some(Stage::Deciding { is_running, .. }) = self.state.lock().jobs.get_mut(&record) {
            *is_running = true;
        }
    }

    /// Leaves a lease with an entry that is not decided.
    pub(crate) fn leave(&self, lease: Lease) {
        if let Some(Stage::Deciding { met, .. }) = self.state.lock().jobs.get_mut(&lease.sequence())
        {
            *met = Some(lease);
        }
    }

    /// Drops the entry of a job that is not cancelled after all. Returns its lease if it was met.
    pub(crate) fn give_up(&self, gate: &Gate, record: Sequence) -> Option<Lease> {
        let mut state = self.state.lock();
        let stage = state.remove(gate, record)?;
        match stage {
            Stage::Deciding { met, .. } => met,
            _ => None,
        }
    }

    /// Cancels a job whose cancellation is written. `stays_late` is as in [`meet`](Self::meet).
    pub(crate) fn decide(
        &self,
        gate: &Gate,
        found: FoundJob,
        owed: Unsettled,
        stays_late: bool,
    ) -> Decided {
        let record = found.sequence();
        let mut state = self.state.lock();
        let met = match state.jobs.get_mut(&record) {
            Some(Stage::Deciding { met, is_running }) => match met.take() {
                Some(lease) => Some(lease),
                None if found.is_done() => None,
                // The entry stays where it is, so that the gate is not open in between.
                None if *is_running => {
                    state.running += 1;
                    let job = found.pinned;
                    state.jobs.insert(record, Stage::Running { job, owed });
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
                state.end(gate, record, stays_late);
                Decided::Met(Met {
                    lease,
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
    pub(crate) fn meet(&self, gate: &Gate, lease: Lease, stays_late: bool) -> Meeting {
        let record = lease.sequence();
        let mut state = self.state.lock();
        match state.jobs.get_mut(&record) {
            None | Some(Stage::Late) => return Meeting::NotCancelled(lease),
            Some(Stage::Deciding { met, .. }) => {
                *met = Some(lease);
                return Meeting::Left;
            }
            Some(Stage::Waiting(_) | Stage::Running { .. }) => {}
        }
        let (owed, was_waiting) = match state.end(gate, record, stays_late) {
            Some(Stage::Waiting(owed)) => (owed, true),
            Some(Stage::Running { owed, .. }) => (owed, false),
            _ => return Meeting::NotCancelled(lease),
        };
        Meeting::Ends(Met {
            lease,
            owed,
            was_waiting,
        })
    }

    /// Whether a job was cancelled, or is about to be. For a caller that takes the job in under a
    /// lock under which the thread that cancels looks for it.
    #[inline]
    pub(crate) fn has(&self, gate: &Gate, record: Sequence) -> bool {
        gate.has(Gate::CANCELS) && self.state.lock().jobs.contains_key(&record)
    }

    /// Whether a job is cancelled and waits to be marked done.
    pub(crate) fn is_gone(&self, gate: &Gate, record: Sequence) -> bool {
        let state = || self.state.lock();
        gate.has(Gate::CANCELS) && matches!(state().jobs.get(&record), Some(Stage::Waiting(_)))
    }

    /// Whether a handler that has a job is to be told that it was cancelled.
    pub(crate) fn is_decided(&self, gate: &Gate, record: Sequence) -> bool {
        let state = || self.state.lock();
        gate.has(Gate::CANCELS)
            && matches!(
                state().jobs.get(&record),
                Some(Stage::Waiting(_) | Stage::Running { .. } | Stage::Late)
            )
    }

    /// Ends a job other than by a delivery, unless it was cancelled, or is about to be.
    pub(crate) fn end_otherwise<T>(
        &self,
        lease: Lease,
        end: impl FnOnce(Lease) -> T,
    ) -> Result<T, Lease> {
        let state = self.state.lock();
        match state.jobs.contains_key(&lease.sequence()) {
            true => Err(lease),
            false => Ok(end(lease)),
        }
    }

    /// Acks a job whose delivery had timed out. Returns the cancellation if the job waits and was
    /// cancelled: it has been counted, and has given back its room.
    pub(crate) fn ack_late(
        &self,
        gate: &Gate,
        record: Sequence,
        ack: impl FnOnce(),
    ) -> Option<Unsettled> {
        let mut state = self.state.lock();
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
        self.state.lock().waiting
    }

    /// Whether there is something to [sweep](Self::sweep).
    pub(crate) fn has_running(&self) -> bool {
        self.state.lock().running > 0
    }

    /// Drops the entries of jobs that their handlers have acked, which pass here by, or that no
    /// handler has any more. Returns what they owe.
    pub(crate) fn sweep(
        &self,
        gate: &Gate,
        has_handler: impl Fn(Sequence) -> bool,
    ) -> Vec<Unsettled> {
        let late: Vec<_> = {
            let state = self.state.lock();
            if state.running == 0 {
                return Vec::new();
            }
            let late = state.jobs.iter();
            let late = late.filter(|(_, stage)| matches!(stage, Stage::Late));
            late.map(|(record, _)| *record).collect()
        };
        // Not under the lock: the deliveries have one under which this one is taken.
        let left: Vec<_> = late.into_iter().filter(|one| !has_handler(*one)).collect();
        let mut state = self.state.lock();
        let is_over = |record: &Sequence, stage: &mut Stage| match stage {
            Stage::Running { job, .. } => job.is_done(record.offset_from(job.segment().base())),
            Stage::Late => left.contains(record),
            Stage::Deciding { .. } | Stage::Waiting(_) => false,
        };
        let over: Vec<_> = state.jobs.extract_if(is_over).collect();
        state.running -= over.len() as u64;
        state.note_removed(gate);
        let owed = over.into_iter().filter_map(|(_, stage)| match stage {
            Stage::Running { owed, .. } => Some(owed),
            _ => None,
        });
        owed.collect()
    }
}

impl State {
    /// Removes the entry of a job that is about to be done; if a late handler is still to be told,
    /// leaves one for it.
    fn end(&mut self, gate: &Gate, record: Sequence, stays_late: bool) -> Option<Stage> {
        let stage = self.remove(gate, record);
        if stays_late {
            self.running += 1;
            self.jobs.insert(record, Stage::Late);
            gate.set(Gate::CANCELS);
        }
        stage
    }

    fn remove(&mut self, gate: &Gate, record: Sequence) -> Option<Stage> {
        let stage = self.jobs.remove(&record)?;
        match stage {
            Stage::Deciding { .. } => {}
            Stage::Waiting(_) => self.waiting -= 1,
            Stage::Running { .. } | Stage::Late => self.running -= 1,
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
