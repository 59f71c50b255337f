//! Jobs of flows on their way to a handler, and what the next start makes up for.

use std::sync::atomic::{AtomicBool, Ordering};

use super::ending::{Ending, keep_for_a_while};
use super::stored::{FLOWS, FlowRecord, NodeId, NodeState, Outcome, Phase, state_key};
use crate::JobId;
use crate::backend::{BackendError, Claim, Settlement};
use crate::enqueue::header;
use crate::keys::Record;
use crate::mill::Mill;
use crate::unique::Locks;

/// What a mill has for its flows.
#[derive(Default)]
pub(crate) struct Flows {
    /// A lock for each flow.
    pub(super) locks: Locks,
    has_any: AtomicBool,
}

impl Flows {
    /// Notes that there are flows.
    pub(super) fn note_one(&self) {
        self.has_any.store(true, Ordering::Relaxed);
    }

    /// Whether there are flows, as far as this process has enqueued them or workers were started.
    pub(crate) fn has_any(&self) -> bool {
        // Relaxed: a job of a flow was published after this was set.
        self.has_any.load(Ordering::Relaxed)
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

fn admit(mill: &Mill, id: &JobId, node: NodeId, claim: &mut dyn Claim) -> bool {
    let ended = match outcome_of(mill, node) {
        Ok(Some(outcome)) => end_as(id, claim, &outcome),
        Ok(None) => return true,
        Err(error) => Err(error),
    };
    match ended {
        Ok(has_ended) => !has_ended,
        Err(error) => {
            tracing::warn!(%id, %error, "a job of a flow could not be looked up");
            // It comes back, and is looked up again.
            let after = std::time::Duration::from_secs(1);
            let _ = claim.settle(Settlement::Snooze { after });
            false
        }
    }
}

/// How a job of a flow has ended, if it has.
pub(super) fn outcome_of(mill: &Mill, id: NodeId) -> Result<Option<Outcome>, BackendError> {
    let stored = mill.inner.backend.get(&state_key(id.flow, id.node))?;
    let state = stored.and_then(|stored| NodeState::parse(&stored.value));
    Ok(state.and_then(|state| match state.phase {
        Phase::Ended(outcome) => Some(outcome),
        Phase::Waiting | Phase::Enqueued => None,
    }))
}

/// Ends a job whose outcome is stored: it was cancelled with its flow, or the process died before
/// the job itself had ended. Returns false for a dead job that was replayed, which runs.
fn end_as(id: &JobId, claim: &mut dyn Claim, outcome: &Outcome) -> Result<bool, BackendError> {
    tracing::debug!(%id, ?outcome, "a job of a flow has ended already");
    match outcome {
        Outcome::Record(Record::Dead { .. }) if claim.crashes() == 0 => Ok(false),
        Outcome::Record(Record::Dead { reason }) => {
            claim.settle(Settlement::Dead { reason }).map(|()| true)
        }
        _ => claim.settle(Settlement::Done(None)).map(|()| true),
    }
}

/// Makes up for what a process that died has left of flows: jobs that the backend ended by itself,
/// and flows that have ended. Costs nothing if there are no flows.
pub(crate) fn resume(mill: &Mill) -> Result<(), BackendError> {
    let mut has_open = false;
    for (key, stored) in mill.inner.backend.keys(FLOWS)? {
        mill.inner.flows.note_one();
        let id = key.strip_prefix(FLOWS);
        let id = id.and_then(|id| std::str::from_utf8(id).ok()?.parse().ok());
        let (Some(id), Some(record)) = (id, FlowRecord::parse(&stored.value)) else {
            tracing::error!(key = %key.escape_ascii(), "what is stored of a flow cannot be read");
            continue;
        };
        match record.open {
            0 if !record.is_settled => keep_for_a_while(mill, id, record.nodes)?,
            0 => {}
            _ => has_open = true,
        }
    }
    if has_open {
        for name in mill.inner.backend.queue_names()? {
            let queue = mill.inner.backend_queue(&name)?;
            for letter in queue.queue.dead_letters()? {
                let reason = letter.reasons.last().cloned().unwrap_or_default();
                let outcome = || Outcome::Record(Record::Dead { reason });
                let header = letter.flow.as_deref();
                if let Some(ending) = Ending::of(mill, header, outcome, Vec::new())? {
                    ending.commit(mill)?;
                    ending.told(mill);
                }
            }
        }
    }
    Ok(())
}

impl Mill {
    /// Notes in its flow that a job is cancelled, before it is: so it does not run, whatever happens
    /// in between. Returns whether it is of a flow and had not ended.
    pub(crate) fn note_cancelled(&self, id: &JobId, reason: &str) -> Result<bool, BackendError> {
        if !self.inner.flows.has_any() {
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
        let reason = reason.to_owned();
        let outcome = || Outcome::Record(Record::Cancelled { reason });
        let Some(ending) = Ending::of(self, header, outcome, Vec::new())? else {
            return Ok(false);
        };
        ending.commit(self)?;
        ending.told(self);
        Ok(true)
    }
}
