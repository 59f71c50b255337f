//! Jobs of flows on their way to a handler, and what the next start makes up for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::ending::{Ending, keep_for_a_while};
use super::stored::{
    FLOWS, FlowRecord, NodeId, NodeState, Outcome, Phase, replayed_key, state_key,
};
use crate::JobId;
use crate::again::again;
use crate::backend::{BackendError, Changes, Claim, DeadJob, Keep, KeyChange, Settlement};
use crate::enqueue::header;
use crate::keys::Record;
use crate::locks::Locks;
use crate::mill::Mill;

/// What a mill has for its flows.
#[derive(Default)]
pub(crate) struct Flows {
    /// A lock for each flow.
    pub(super) locks: Locks,
    has_any: AtomicBool,
}

impl Flows {
    /// What a transaction with the first flow of this process stores, so that later ones know that
    /// there are flows.
    pub(super) fn mark(&self) -> Option<KeyChange<'static>> {
        // Relaxed, here and below: it says so for ever once it is set.
        let is_marked = self.has_any.load(Ordering::Relaxed);
        (!is_marked).then_some(KeyChange::Put(ANY, b"", Keep::Forever))
    }

    /// Notes that the mark is stored.
    pub(super) fn note_mark(&self) {
        self.has_any.store(true, Ordering::Relaxed);
    }

    /// Whether there was ever a flow.
    fn has_any(&self, mill: &Mill) -> Result<bool, BackendError> {
        if !self.has_any.load(Ordering::Relaxed) {
            if mill.inner.backend.get(ANY)?.is_none() {
                return Ok(false);
            }
            self.note_mark();
        }
        Ok(true)
    }

    /// Whether a job may run: not if it is of a flow and how it ends is stored already. Such a job is
    /// ended here.
    #[inline]
    pub(crate) fn admit(&self, mill: &Mill, id: &JobId, claim: &mut dyn Claim) -> bool {
        match claim.header(header::FLOW).and_then(NodeId::parse) {
            None => true,
            Some(node) => admit(mill, id, node, claim),
        }
    }
}

/// There is a value if there was ever a flow.
const ANY: &[u8] = b"flows";

/// How far a job of a flow is, as far as its way to a handler goes.
enum Found {
    Open,
    Ended(Outcome),
    /// Its flow has ended, and is not kept any more.
    Gone,
    Damaged,
}

fn find(mill: &Mill, id: NodeId) -> Result<Found, BackendError> {
    let Some(stored) = mill.inner.backend.get(&state_key(id.flow, id.node))? else {
        return Ok(Found::Gone);
    };
    Ok(
        match NodeState::parse(&stored.value).map(|state| state.phase) {
            Some(Phase::Ended(outcome)) => Found::Ended(outcome),
            Some(Phase::Waiting | Phase::Enqueued) => Found::Open,
            None => Found::Damaged,
        },
    )
}

fn admit(mill: &Mill, id: &JobId, node: NodeId, claim: &mut dyn Claim) -> bool {
    let found = find(mill, node).and_then(|found| match found {
        Found::Open => Ok((found, false)),
        // A dead job that was replayed runs as a job of its own.
        _ => {
            let replayed = mill.inner.backend.get(&replayed_key(node))?;
            Ok((found, replayed.is_some()))
        }
    });
    let record = match found {
        Ok((Found::Open, _) | (_, true)) => return true,
        Ok((Found::Ended(Outcome::Record(Record::Dead { reason, .. })), _)) => {
            // The process died before the job did.
            let _ = claim.settle(Settlement::Dead { reason: &reason });
            return false;
        }
        Ok((Found::Ended(Outcome::Record(record)), _)) => record,
        Ok((Found::Ended(Outcome::NotNeeded) | Found::Gone, _)) => {
            let reason = "its flow has ended".to_owned();
            Record::Cancelled { reason }
        }
        Ok((Found::Damaged, _)) => {
            tracing::error!(%id, "what is stored of the flow of a job cannot be read");
            let reason = "what is stored of its flow cannot be read";
            let _ = claim.settle(Settlement::Dead { reason });
            return false;
        }
        Err(error) => {
            tracing::warn!(%id, %error, "a job of a flow could not be looked up");
            // It comes back, and is looked up again.
            let after = Duration::from_secs(1);
            let _ = claim.settle(Settlement::Snooze { after });
            return false;
        }
    };
    crate::settle::end_unbegun(mill, claim, id, record);
    false
}

/// Whether a job of a flow has ended, for its handler.
pub(crate) fn has_ended(mill: &Mill, node: NodeId) -> bool {
    let has_ended = matches!(find(mill, node), Ok(Found::Ended(_) | Found::Gone));
    has_ended && !matches!(mill.inner.backend.get(&replayed_key(node)), Ok(Some(_)))
}

/// A replayed job of a flow that has not run by then is taken for one that its flow has left behind.
const KEEP_REPLAYED: Duration = Duration::from_secs(30 * 86_400);

/// Whether a job of a flow can still add to it.
pub(super) fn is_open(mill: &Mill, node: NodeId) -> bool {
    matches!(find(mill, node), Ok(Found::Open))
}

/// Has a dead job run, if it is of a flow, as it is about to be replayed: as a job of its own.
pub(crate) fn note_replay(mill: &Mill, header: Option<&[u8]>) -> Result<(), BackendError> {
    let Some(node) = header.and_then(NodeId::parse) else {
        return Ok(());
    };
    let key = replayed_key(node);
    let changes = Changes {
        keys: vec![KeyChange::Put(&key, b"", Keep::For(KEEP_REPLAYED))],
        ..Changes::default()
    };
    mill.inner.backend.commit(&changes).map(|_| ())
}

/// Makes up for what a process that died has left of flows: jobs that the backend ended by itself,
/// and flows that have ended. What cannot be made up for is told, and left as it is.
pub(crate) fn resume(mill: &Mill) -> Result<(), BackendError> {
    if !mill.inner.flows.has_any(mill)? {
        return Ok(());
    }
    let mut has_open = false;
    for (key, stored) in mill.inner.backend.keys(FLOWS)? {
        let id = key.strip_prefix(FLOWS);
        let id = id.and_then(|id| std::str::from_utf8(id).ok()?.parse().ok());
        let (Some(id), Some(record)) = (id, FlowRecord::parse(&stored.value)) else {
            tracing::error!(key = %key.escape_ascii(), "what is stored of a flow cannot be read");
            continue;
        };
        match record.open {
            0 if !record.is_settled => {
                if let Err(error) = keep_for_a_while(mill, id, record.nodes) {
                    tracing::error!(%id, %error, "a flow that has ended could not be cleaned up");
                }
            }
            0 => {}
            _ => has_open = true,
        }
    }
    if has_open {
        for name in mill.inner.backend.queue_names()? {
            let queue = mill.inner.backend_queue(&name)?;
            let mut of_flows = Vec::new();
            queue.queue.each_dead_letter(None, &mut |letter| {
                of_flows.extend(letter.flow.is_some().then_some(letter));
                true
            })?;
            for letter in of_flows {
                if let Err(error) = note_letter(mill, &letter) {
                    let job = letter.number;
                    tracing::error!(queue = name, job, %error, "a flow could not be told of a dead job");
                }
            }
        }
    }
    Ok(())
}

/// Has a flow know of a job of it that is dead.
fn note_letter(mill: &Mill, letter: &DeadJob) -> Result<(), BackendError> {
    let reason = letter.reasons.last().cloned().unwrap_or_default();
    again(mill, || {
        let reason = reason.clone();
        let outcome = || {
            Outcome::Record(Record::Dead {
                reason,
                told_by: None,
            })
        };
        match Ending::of(mill, letter.flow.as_deref(), outcome, Vec::new(), None)? {
            Some(ending) => ending.commit(mill),
            None => Ok(()),
        }
    })
}

impl Mill {
    /// Notes in its flow that a job is cancelled, before it is: so it does not run, whatever happens
    /// in between. Returns whether it is of a flow and had not ended.
    pub(crate) fn note_cancelled(&self, id: &JobId, reason: &str) -> Result<bool, BackendError> {
        if !self.inner.flows.has_any(self)? {
            return Ok(false);
        }
        let Some(queue) = self.inner.existing_queue(id.place())? else {
            return Ok(false);
        };
        let Some(seen) = queue.queue.look(id.number())? else {
            return Ok(false);
        };
        let mut headers = seen.headers.iter();
        let header = headers.find(|(key, _)| key == header::FLOW);
        let header = header.map(|(_, value)| &value[..]);
        again(self, || {
            let reason = reason.to_owned();
            let outcome = || Outcome::Record(Record::Cancelled { reason });
            match Ending::of(self, header, outcome, Vec::new(), None)? {
                Some(ending) => ending.commit(self).map(|()| true),
                None => Ok(false),
            }
        })
    }
}
