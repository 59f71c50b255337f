//! The end of a job of a flow, as a part of the step in which that is stored.

use std::collections::HashMap;

use super::advance::{Advance, Lookup};
use super::stored::{
    FlowId, FlowRecord, Node, NodeId, NodeState, Outcome, Phase, flow_key, node_key, state_key,
};
use crate::JobId;
use crate::backend::{BackendError, Changes, Keep, KeyChange};
use crate::enqueue::header;
use crate::keys::Record;
use crate::locks;
use crate::mill::Mill;
use crate::prepared::PreparedJob;
use crate::unique::Release;
use crate::waiters::Ended;

/// Reads from the backend, and notes the versions of what it has read.
pub(super) struct Stored<'a> {
    mill: &'a Mill,
    flow: FlowId,
    versions: HashMap<Vec<u8>, u64>,
}

impl Stored<'_> {
    fn get(&mut self, key: Vec<u8>) -> Result<Vec<u8>, BackendError> {
        let Some(stored) = self.mill.inner.backend.get(&key)? else {
            let what = key.escape_ascii();
            return Err(BackendError::Storage(
                format!("a part of a flow is missing: {what}").into(),
            ));
        };
        self.versions.insert(key, stored.version);
        Ok(stored.value)
    }
}

fn damaged(flow: FlowId) -> BackendError {
    BackendError::Storage(format!("what is stored of the flow {flow} cannot be read").into())
}

impl Lookup for Stored<'_> {
    type Error = BackendError;

    fn node(&mut self, node: u32) -> Result<Node, BackendError> {
        let bytes = self.get(node_key(self.flow, node))?;
        Node::parse(&bytes).ok_or_else(|| damaged(self.flow))
    }

    fn state(&mut self, node: u32) -> Result<NodeState, BackendError> {
        let bytes = self.get(state_key(self.flow, node))?;
        NodeState::parse(&bytes).ok_or_else(|| damaged(self.flow))
    }
}

/// What the end of jobs of a flow changes. The flow is locked until it is dropped.
pub(crate) struct Ending<'a> {
    flow: FlowId,
    keys: Vec<(Vec<u8>, Vec<u8>)>,
    versions: HashMap<Vec<u8>, u64>,
    /// Jobs that can begin now.
    pub(crate) jobs: Vec<PreparedJob>,
    ended: Vec<(u32, Outcome)>,
    has_ended: bool,
    nodes: u32,
    _lock: locks::Locked<'a>,
}

/// A flow that is locked.
pub(super) struct Locked<'a> {
    pub(super) advance: Advance<Stored<'a>>,
    flow: FlowId,
    lock: locks::Locked<'a>,
}

impl<'a> Locked<'a> {
    /// None if the flow is not kept any more, as it has ended. The call has taken so many
    /// [locks](locks) before.
    pub(super) fn open(
        mill: &'a Mill,
        flow: FlowId,
        own_locks: u32,
    ) -> Result<Option<Self>, BackendError> {
        let key = flow_key(flow);
        let lock = mill.inner.flows.locks.lock_after(own_locks, &key)?;
        let Some(stored) = mill.inner.backend.get(&key)? else {
            return Ok(None);
        };
        let record = FlowRecord::parse(&stored.value).ok_or_else(|| damaged(flow))?;
        let versions = HashMap::from([(key, stored.version)]);
        let lookup = Stored {
            mill,
            flow,
            versions,
        };
        Ok(Some(Self {
            advance: Advance::new(lookup, record),
            flow,
            lock,
        }))
    }

    /// What has changed, to be stored.
    pub(super) fn into_ending(mut self) -> Result<Ending<'a>, BackendError> {
        let (flow, advance) = (self.flow, &mut self.advance);
        let nodes = advance.changed_nodes();
        let nodes = nodes.map(|(node, value)| (node_key(flow, node), value.to_bytes()));
        let mut keys: Vec<_> = nodes.collect();
        let states = advance.changed_states();
        keys.extend(states.map(|(node, value)| (state_key(flow, node), value.to_bytes())));
        keys.push((flow_key(flow), advance.record.to_bytes()));
        let mut jobs = Vec::new();
        for node in std::mem::take(&mut advance.published) {
            let mut job = advance.node(node)?.job.clone();
            add_header(&mut job, NodeId { flow, node });
            job.stamp(advance.lookup_mut().mill);
            jobs.push(job);
        }
        let mut ended = Vec::new();
        for node in std::mem::take(&mut advance.ended) {
            if let Phase::Ended(outcome) = &advance.state(node)?.phase {
                ended.push((node, outcome.clone()));
            }
        }
        Ok(Ending {
            flow,
            keys,
            versions: std::mem::take(&mut advance.lookup_mut().versions),
            jobs,
            has_ended: advance.record.open == 0 && !ended.is_empty(),
            nodes: advance.record.nodes,
            ended,
            _lock: self.lock,
        })
    }
}

/// Has a job know its place in a flow.
pub(super) fn add_header(job: &mut PreparedJob, id: NodeId) {
    job.headers.push((header::FLOW.to_owned(), id.to_header()));
}

impl<'a> Ending<'a> {
    /// What the end of the job with this header changes, with the jobs that it has added beside
    /// itself. None if it is of no flow, of one that is gone, or has ended before. If it is a unique job,
    /// its `key` is locked by then.
    pub(crate) fn of(
        mill: &'a Mill,
        header: Option<&[u8]>,
        outcome: impl FnOnce() -> Outcome,
        beside: Vec<PreparedJob>,
        key: Option<&Release<'_>>,
    ) -> Result<Option<Self>, BackendError> {
        let Some(id) = header.and_then(NodeId::parse) else {
            return Ok(None);
        };
        let Some(mut locked) = Locked::open(mill, id.flow, u32::from(key.is_some()))? else {
            return Ok(None);
        };
        // Of a flow that has ended, a part may be gone before the rest.
        if locked.advance.record.open == 0 {
            return Ok(None);
        }
        if let Phase::Ended(_) = locked.advance.state(id.node)?.phase {
            return Ok(None);
        }
        for job in beside {
            locked.advance.add_beside(id.node, job)?;
        }
        locked.advance.end(id.node, outcome())?;
        locked.into_ending().map(Some)
    }

    /// Adds the keys to what is stored together.
    pub(crate) fn add_to<'c>(&'c self, changes: &mut Changes<'c>) {
        for (key, version) in &self.versions {
            changes.keys.push(KeyChange::Expect(key, Some(*version)));
        }
        for (key, value) in &self.keys {
            if !self.versions.contains_key(key) {
                changes.keys.push(KeyChange::Expect(key, None));
            }
            changes.keys.push(KeyChange::Put(key, value, Keep::Forever));
        }
    }

    /// Stores it by itself, and tells of it.
    pub(crate) fn commit(self, mill: &Mill) -> Result<(), BackendError> {
        let mut changes = Changes::default();
        self.add_to(&mut changes);
        let headers: Vec<_> = self.jobs.iter().map(PreparedJob::headers).collect();
        for (job, headers) in self.jobs.iter().zip(&headers) {
            changes.jobs.push((&job.place, job.new_job(headers)));
        }
        let stored = mill.inner.commit(&changes).map(|_| ());
        self.told_if(mill, &stored);
        stored
    }

    /// Whether it changes anything.
    pub(super) fn is_empty(&self) -> bool {
        self.ended.is_empty()
    }

    /// Tells of it, if it is stored.
    pub(crate) fn told_if(self, mill: &Mill, stored: &Result<(), BackendError>) {
        if matches!(stored, Ok(()) | Err(BackendError::NotDurable(_))) {
            self.told(mill);
        }
    }

    /// Tells of what was stored: those who wait, and handlers of jobs that were cancelled.
    fn told(self, mill: &Mill) {
        for job in &self.jobs {
            // Workers learn of a level of a queue that is new.
            if let Err(error) = mill.inner.backend_queue(&job.place) {
                tracing::error!(queue = job.place, %error, "a queue could not be opened");
            }
        }
        let Self {
            flow,
            ended,
            has_ended,
            nodes,
            _lock: lock,
            ..
        } = self;
        drop(lock);
        for (node, outcome) in ended {
            if outcome.is_failure() {
                mill.inner.running.cancel_node(NodeId { flow, node });
            }
            let told = match outcome {
                Outcome::Record(Record::Dead { reason, .. }) => Ended::Dead(reason),
                Outcome::Record(Record::Cancelled { reason }) => Ended::Cancelled(reason),
                Outcome::Record(Record::Expired) => Ended::Expired,
                Outcome::Record(Record::Done { .. }) | Outcome::NotNeeded => Ended::Done,
            };
            mill.inner.waiters.end(&waited_for(flow, Some(node)), told);
        }
        if has_ended {
            if let Err(error) = keep_for_a_while(mill, flow, nodes) {
                tracing::warn!(%flow, %error, "a flow that has ended is kept until the next start");
            }
            mill.inner.waiters.end(&waited_for(flow, None), Ended::Done);
        }
    }
}

/// What threads wait for: a job of a flow, or the whole. No queue has such a name.
pub(super) fn waited_for(flow: FlowId, node: Option<u32>) -> JobId {
    let number = node.map_or(u64::MAX, u64::from);
    JobId::new(format!("flow/{flow}"), number)
}

/// Values of so many bytes are changed together. One that is larger is changed alone, as it was when
/// it was stored.
const TOGETHER: usize = 256 * 1024;

/// Has what is stored of a flow that has ended expire as results do. If the process dies meanwhile,
/// the next start of workers does it again.
pub(super) fn keep_for_a_while(mill: &Mill, flow: FlowId, nodes: u32) -> Result<(), BackendError> {
    let keep = Keep::For(mill.inner.keep_results);
    let (backend, flow_key) = (&mill.inner.backend, flow_key(flow));
    let _lock = mill.inner.flows.locks.lock(&flow_key)?;
    let (mut values, mut bytes) = (Vec::new(), 0);
    for node in 0..nodes {
        let keys = [node_key(flow, node), state_key(flow, node)];
        let mut is_missing = true;
        for key in keys {
            let Some(stored) = backend.get(&key)? else {
                continue;
            };
            is_missing = false;
            let len = key.len() + stored.value.len() + 100;
            if bytes + len > TOGETHER {
                put(mill, &std::mem::take(&mut values), keep)?;
                bytes = 0;
            }
            bytes += len;
            values.push((key, stored.value));
        }
        if is_missing {
            // There are not so many.
            break;
        }
    }
    put(mill, &values, keep)?;
    let stored = backend.get(&flow_key)?;
    if let Some(record) = stored.and_then(|stored| FlowRecord::parse(&stored.value)) {
        let record = FlowRecord {
            is_settled: true,
            ..record
        };
        put(mill, &[(flow_key, record.to_bytes())], keep)?;
    }
    Ok(())
}

fn put(mill: &Mill, values: &[(Vec<u8>, Vec<u8>)], keep: Keep) -> Result<(), BackendError> {
    let puts = values.iter();
    let changes = Changes {
        keys: puts
            .map(|(key, value)| KeyChange::Put(key, value, keep))
            .collect(),
        ..Changes::default()
    };
    mill.inner.backend.commit(&changes).map(|_| ())
}
