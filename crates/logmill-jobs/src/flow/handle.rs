//! A flow that was enqueued: its results, its tree, its end.

use std::fmt;
use std::time::{Duration, Instant};

use super::JobNode;
use super::advance::cut;
use super::ending::{Locked, waited_for};
use super::stored::{
    FlowId, FlowRecord, Node, NodeState, Outcome, Phase, flow_key, node_key, state_key,
};
use crate::Job;
use crate::again::again;
use crate::backend::BackendError;
use crate::error::WaitError;
use crate::keys::Record;
use crate::mill::Mill;

/// A flow that was enqueued, from [`Flow::enqueue`](super::Flow::enqueue) or by its id from
/// [`Mill::flow_handle`]. Dropping it changes nothing.
#[derive(Clone, Debug)]
pub struct FlowHandle {
    mill: Mill,
    id: FlowId,
}

/// Where a job of a flow is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NodeStatus {
    /// It waits for so many others.
    Waiting(u32),
    /// It is in its queue, or a handler has it.
    Enqueued,
    /// It is done.
    Done,
    /// It is dead, for this reason.
    Dead(String),
    /// It was cancelled, by a call or because another one failed, for this reason.
    Cancelled(String),
    /// It expired before it began.
    Expired,
    /// It was to run if another one failed, and none did.
    NotNeeded,
}

/// What a flow consists of and where its jobs are. Its `Display` is a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FlowTree {
    /// The flow's name.
    pub name: String,
    /// Its jobs.
    pub jobs: Vec<TreeJob>,
}

/// A job of a [`FlowTree`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TreeJob {
    /// Its kind.
    pub kind: String,
    /// Where it is.
    pub status: NodeStatus,
    /// The jobs that it waits for, as their positions.
    pub after: Vec<usize>,
}

impl Mill {
    /// The handle of a flow that was enqueued before, also by an earlier process.
    pub fn flow_handle(&self, id: FlowId) -> FlowHandle {
        FlowHandle::new(self.clone(), id)
    }
}

impl FlowHandle {
    pub(super) fn new(mill: Mill, id: FlowId) -> Self {
        Self { mill, id }
    }

    /// The flow's id.
    pub fn id(&self) -> FlowId {
        self.id
    }

    /// Waits until a job of the flow has ended, and returns its output.
    ///
    /// # Errors
    /// The job is dead, cancelled or expired; or the flow is not kept, see [`WaitError`].
    pub fn result<J: Job>(&self, node: &JobNode<J>) -> Result<J::Output, WaitError> {
        self.result_until(node, None)
    }

    /// Waits until a job of the flow has ended, for at most this long.
    ///
    /// # Errors
    /// [`WaitError::TimedOut`], or as for [`result`](Self::result).
    pub fn result_timeout<J: Job>(
        &self,
        node: &JobNode<J>,
        timeout: Duration,
    ) -> Result<J::Output, WaitError> {
        self.result_until(node, Instant::now().checked_add(timeout))
    }

    fn result_until<J: Job>(
        &self,
        node: &JobNode<J>,
        until: Option<Instant>,
    ) -> Result<J::Output, WaitError> {
        if node.flow != self.id {
            return Err(WaitError::NotKept);
        }
        let outcome = self.wait_for(Some(node.node), until, || self.outcome(node.node))?;
        match outcome {
            Outcome::Record(Record::Done { tag, output }) => {
                let decoded = self.mill.inner.codec.decode(tag.as_deref(), &output);
                decoded.map_err(WaitError::Decode)
            }
            Outcome::Record(Record::Dead { reason, .. }) => Err(WaitError::Dead(reason)),
            Outcome::Record(Record::Cancelled { reason }) => Err(WaitError::Cancelled(reason)),
            Outcome::Record(Record::Expired) => Err(WaitError::Expired),
            Outcome::NotNeeded => Err(WaitError::Cancelled("it was not needed".to_owned())),
        }
    }

    /// Waits until all jobs of the flow have ended. Returns whether none has failed.
    ///
    /// # Errors
    /// The flow is not kept any more, see [`WaitError`].
    pub fn wait(&self) -> Result<bool, WaitError> {
        self.wait_for(None, None, || self.has_succeeded())
    }

    /// Waits until all jobs of the flow have ended, for at most this long.
    ///
    /// # Errors
    /// [`WaitError::TimedOut`], or as for [`wait`](Self::wait).
    pub fn wait_timeout(&self, timeout: Duration) -> Result<bool, WaitError> {
        let until = Instant::now().checked_add(timeout);
        self.wait_for(None, until, || self.has_succeeded())
    }

    /// Waits until all jobs of the flow have ended, in an async task of any runtime.
    ///
    /// # Errors
    /// As for [`wait`](Self::wait).
    pub async fn wait_async(&self) -> Result<bool, WaitError> {
        let waiter = self.mill.inner.waiters.join(&waited_for(self.id, None));
        loop {
            let since = waiter.changes();
            if let Some(succeeded) = self.has_succeeded()? {
                return Ok(succeeded);
            }
            self.check_open()?;
            waiter.changed(since).await;
        }
    }

    fn check_open(&self) -> Result<(), WaitError> {
        match self.mill.inner.is_closed() {
            true => Err(WaitError::Closed),
            false => Ok(()),
        }
    }

    /// Waits until `look` finds something.
    fn wait_for<T>(
        &self,
        node: Option<u32>,
        until: Option<Instant>,
        look: impl Fn() -> Result<Option<T>, WaitError>,
    ) -> Result<T, WaitError> {
        let waiter = self.mill.inner.waiters.join(&waited_for(self.id, node));
        loop {
            let since = waiter.changes();
            if let Some(found) = look()? {
                return Ok(found);
            }
            self.check_open()?;
            if !waiter.wait(since, until) {
                return look()?.ok_or(WaitError::TimedOut);
            }
        }
    }

    fn record(&self) -> Result<FlowRecord, WaitError> {
        let stored = self.mill.inner.backend.get(&flow_key(self.id))?;
        let record = stored.and_then(|stored| FlowRecord::parse(&stored.value));
        record.ok_or(WaitError::NotKept)
    }

    fn has_succeeded(&self) -> Result<Option<bool>, WaitError> {
        let record = self.record()?;
        Ok((record.open == 0).then_some(record.failed == 0))
    }

    fn state(&self, node: u32) -> Result<NodeState, WaitError> {
        let stored = self.mill.inner.backend.get(&state_key(self.id, node))?;
        let state = stored.and_then(|stored| NodeState::parse(&stored.value));
        state.ok_or(WaitError::NotKept)
    }

    fn outcome(&self, node: u32) -> Result<Option<Outcome>, WaitError> {
        Ok(match self.state(node)?.phase {
            Phase::Ended(outcome) => Some(outcome),
            Phase::Waiting | Phase::Enqueued => None,
        })
    }

    /// Where a job of the flow is.
    ///
    /// # Errors
    /// The flow is not kept any more, or the storage failed.
    pub fn status<J>(&self, node: &JobNode<J>) -> Result<NodeStatus, WaitError> {
        if node.flow != self.id {
            return Err(WaitError::NotKept);
        }
        Ok(status_of(self.state(node.node)?))
    }

    /// What the flow consists of and where its jobs are. Costs two reads of the keyed store for each
    /// job; jobs that end meanwhile may be shown as they were.
    ///
    /// # Errors
    /// The flow is not kept any more, or the storage failed.
    pub fn tree(&self) -> Result<FlowTree, WaitError> {
        let record = self.record()?;
        let mut jobs = Vec::new();
        for node in 0..record.nodes {
            let status = status_of(self.state(node)?);
            let stored = self.mill.inner.backend.get(&node_key(self.id, node))?;
            let node = stored.and_then(|stored| Node::parse(&stored.value));
            let node = node.ok_or(WaitError::NotKept)?;
            jobs.push(TreeJob {
                kind: node.job.kind,
                status,
                after: node.dependencies.iter().map(|one| *one as usize).collect(),
            });
        }
        Ok(FlowTree {
            name: record.name,
            jobs,
        })
    }

    /// Cancels all jobs of the flow that have not ended. Handlers that run are told. Stored before the
    /// call returns. Of the reason, 100 bytes are kept.
    ///
    /// Jobs that wait in their queues stay there until a worker comes to them, and do not run then.
    ///
    /// # Errors
    /// The storage failed.
    pub fn cancel(&self, reason: &str) -> Result<(), BackendError> {
        again(&self.mill, || self.cancel_once(reason))
    }

    fn cancel_once(&self, reason: &str) -> Result<(), BackendError> {
        let Some(mut locked) = Locked::open(&self.mill, self.id, 0)? else {
            return Ok(());
        };
        if locked.advance.record.open == 0 {
            return Ok(());
        }
        let nodes = locked.advance.record.nodes;
        let reason = cut(reason, MOST_REASON);
        for node in 0..nodes {
            let reason = reason.to_owned();
            let outcome = Outcome::Record(Record::Cancelled { reason });
            locked.advance.end(node, outcome)?;
        }
        // What the end of one has let begin was cancelled with the rest.
        locked.advance.published.clear();
        let ending = locked.into_ending()?;
        match ending.is_empty() {
            true => Ok(()),
            false => ending.commit(&self.mill),
        }
    }
}

/// Of a reason for which thousands of jobs may be cancelled, so many bytes are kept.
const MOST_REASON: usize = 100;

fn status_of(state: NodeState) -> NodeStatus {
    match state.phase {
        Phase::Waiting => NodeStatus::Waiting(state.pending),
        Phase::Enqueued => NodeStatus::Enqueued,
        Phase::Ended(Outcome::NotNeeded) => NodeStatus::NotNeeded,
        Phase::Ended(Outcome::Record(record)) => match record {
            Record::Done { .. } => NodeStatus::Done,
            Record::Dead { reason, .. } => NodeStatus::Dead(reason),
            Record::Cancelled { reason } => NodeStatus::Cancelled(reason),
            Record::Expired => NodeStatus::Expired,
        },
    }
}

impl fmt::Display for NodeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting(others) => write!(f, "waits for {others}"),
            Self::Enqueued => f.write_str("enqueued"),
            Self::Done => f.write_str("done"),
            Self::Dead(reason) => write!(f, "dead: {reason}"),
            Self::Cancelled(reason) => write!(f, "cancelled: {reason}"),
            Self::Expired => f.write_str("expired"),
            Self::NotNeeded => f.write_str("not needed"),
        }
    }
}

/// Each job that nothing waits for, with what it waits for below it. A job that several wait for is
/// shown below the first of them, and named below the others.
impl fmt::Display for FlowTree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.name)?;
        let mut is_waited_for = vec![false; self.jobs.len()];
        for job in &self.jobs {
            for &one in &job.after {
                if let Some(is_waited_for) = is_waited_for.get_mut(one) {
                    *is_waited_for = true;
                }
            }
        }
        let mut shown = vec![false; self.jobs.len()];
        let mut stack: Vec<_> = (0..self.jobs.len())
            .rev()
            .filter(|&at| !is_waited_for[at])
            .map(|at| (at, 1))
            .collect();
        while let Some((at, depth)) = stack.pop() {
            let job = &self.jobs[at];
            let indent = "  ".repeat(depth);
            if std::mem::replace(&mut shown[at], true) {
                writeln!(f, "{indent}{} (see above)", job.kind)?;
                continue;
            }
            writeln!(f, "{indent}{}: {}", job.kind, job.status)?;
            let below = job.after.iter().rev().filter(|&&one| one < self.jobs.len());
            stack.extend(below.map(|&one| (one, depth + 1)));
        }
        Ok(())
    }
}
