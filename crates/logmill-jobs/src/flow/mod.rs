//! Flows: jobs that wait for others, and take their outputs. Which jobs may begin is decided in the
//! step in which another one ends, so that no crash leaves a job waiting or runs it twice.
//!
//! ```text
//!  charge ─┐                 the end of `charge`, in one step: its ack and its output are stored,
//!          ├─▶ report        `report` waits for one less, or goes to its queue
//!  ship ───┘
//! ```

mod admission;
mod advance;
mod batch;
mod ending;
mod handle;
mod inputs;
mod stored;

use std::collections::{BTreeMap, HashSet};
use std::marker::PhantomData;

pub(crate) use self::admission::{Flows, has_ended, note_replay, resume};
pub use self::batch::Batch;
pub(crate) use self::ending::Ending;
pub use self::handle::{FlowHandle, FlowTree, NodeStatus, TreeJob};
pub use self::inputs::{InputShape, Inputs};
#[doc(hidden)]
pub use self::inputs::{Noted, StoredInputs};
pub use self::stored::{FlowId, OnFailure, ParseFlowIdError};
use self::stored::{FlowRecord, Input, Node, NodeState, Phase, Runs};
pub(crate) use self::stored::{NodeId, Outcome};
use crate::Job;
use crate::backend::{BackendError, Changes, Keep, KeyChange};
use crate::enqueue::Enqueue;
use crate::error::EnqueueError;
use crate::mill::Mill;
use crate::prepared::PreparedJob;

/// Jobs of which some wait for others, from [`Mill::flow`].
///
/// ```
/// use logmill_jobs::{Inputs, Job, JobResult, Mill, Workers, secs};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, Job)]
/// #[job(kind = "resize", output = u32)]
/// struct Resize {
///     width: u32,
/// }
///
/// #[derive(Serialize, Deserialize, Job)]
/// #[job(kind = "gallery", inputs = Vec<Resize>, output = String)]
/// struct Gallery;
///
/// fn gallery(_: Gallery, Inputs(widths): Inputs<Gallery>) -> JobResult<String> {
///     Ok(format!("{widths:?}"))
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let mill = Mill::open(dir.path().join("jobs"))?;
/// let workers = Workers::new(())
///     .on(|job: Resize| JobResult::Ok(job.width))
///     .on(gallery)
///     .start(&mill)?;
///
/// let mut flow = mill.flow("cat.jpg");
/// let sizes = [100, 200, 400].map(|width| flow.add(Resize { width }));
/// let page = flow.join(Gallery, &sizes);
/// let flow = flow.enqueue()?;
/// assert_eq!(flow.result(&page)?, "[100, 200, 400]");
/// # workers.shutdown(secs(30));
/// # Ok(())
/// # }
/// ```
///
/// Each job has the retries of its kind. One that dies, expires or is cancelled has failed: by
/// default, the jobs that wait for it are cancelled, and so are those which nothing else needs. Other
/// policies are an input of `Option`, and [`after`](Self::after) with an [`OnFailure`].
///
/// What is stored of a flow stays as long as one of its jobs has not ended, and then for as long as
/// results are kept. A flow is stored in one step, which limits it to some 6,900 jobs of a few bytes; it has
/// at most 8,000 with those that are [added](crate::Context::add_beside) while it runs.
#[must_use = "a flow is enqueued by `enqueue`"]
pub struct Flow {
    mill: Mill,
    id: FlowId,
    name: String,
    nodes: Vec<Node>,
    /// The first mistake.
    invalid: Option<EnqueueError>,
}

/// A job of a flow.
pub struct JobNode<J> {
    flow: FlowId,
    node: u32,
    job: PhantomData<fn() -> J>,
}

impl<J> JobNode<J> {
    fn new(flow: FlowId, node: usize) -> Self {
        Self {
            flow,
            // A flow of so many jobs cannot be stored.
            node: u32::try_from(node).unwrap_or(u32::MAX),
            job: PhantomData,
        }
    }
}

impl<J> Clone for JobNode<J> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<J> Copy for JobNode<J> {}

impl<J> std::fmt::Debug for JobNode<J> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JobNode({}, {})", self.flow, self.node)
    }
}

impl Mill {
    /// A flow: jobs of which some wait for others. The name is for operators.
    pub fn flow(&self, name: impl Into<String>) -> Flow {
        Flow {
            mill: self.clone(),
            id: FlowId(crate::identity::new()),
            name: name.into(),
            nodes: Vec::new(),
            invalid: None,
        }
    }
}

impl Flow {
    /// The flow's id, under which it can be looked at later, see [`Mill::flow_handle`].
    pub fn id(&self) -> FlowId {
        self.id
    }

    /// Adds a job that waits for none.
    pub fn add<J: Job<Inputs = ()>>(&mut self, job: J) -> JobNode<J> {
        self.add_with(|mill| mill.job(job))
    }

    /// Adds a job with options, such as a delay or a priority: `|mill| mill.job(..).priority(..)`.
    pub fn add_with<J: Job<Inputs = ()>>(
        &mut self,
        job: impl FnOnce(&Mill) -> Enqueue<'_, J>,
    ) -> JobNode<J> {
        let prepared = job(&self.mill).prepare();
        self.push(prepared, Runs::AfterAll)
    }

    /// Adds a job that takes the outputs of others, as the `inputs` of its type say; see
    /// [`InputShape`].
    pub fn join<J: Job>(
        &mut self,
        job: J,
        inputs: <J::Inputs as InputShape>::Nodes<'_>,
    ) -> JobNode<J> {
        self.join_with::<J>(|mill| mill.job(job), inputs)
    }

    /// Like [`join`](Self::join), with options.
    pub fn join_with<J: Job>(
        &mut self,
        job: impl FnOnce(&Mill) -> Enqueue<'_, J>,
        inputs: <J::Inputs as InputShape>::Nodes<'_>,
    ) -> JobNode<J> {
        let mut noted = Noted::default();
        J::Inputs::note(inputs, &mut noted);
        let prepared = job(&self.mill).prepare();
        let new = self.push(prepared, Runs::AfterAll);
        for (flow, node, on_failure) in noted.edges {
            self.connect((flow, node), (new.flow, new.node), on_failure);
        }
        if let Some(node) = self.nodes.get_mut(new.node as usize) {
            node.inputs = noted.inputs;
        }
        new
    }

    /// Has a job wait for another one, whose output it does not take.
    pub fn after<J, K>(&mut self, job: &JobNode<J>, other: &JobNode<K>, on_failure: OnFailure) {
        self.connect((other.flow, other.node), (job.flow, job.node), on_failure);
    }

    fn push<J>(&mut self, prepared: Result<PreparedJob, EnqueueError>, runs: Runs) -> JobNode<J> {
        let node = JobNode::new(self.id, self.nodes.len());
        match prepared {
            Ok(job) => self.nodes.push(Node {
                runs,
                dependents: Vec::new(),
                dependencies: Vec::new(),
                inputs: Vec::new(),
                job,
            }),
            Err(error) => self.refuse(error),
        }
        node
    }

    fn refuse(&mut self, error: EnqueueError) {
        self.invalid.get_or_insert(error);
    }

    /// Has `later` wait for `earlier`.
    fn connect(&mut self, earlier: (FlowId, u32), later: (FlowId, u32), on_failure: OnFailure) {
        if earlier.0 != self.id || later.0 != self.id {
            let why = "a job of another flow cannot be waited for";
            return self.refuse(EnqueueError::Invalid(why.to_owned()));
        }
        let ((_, earlier), (_, later)) = (earlier, later);
        // Only after a mistake, one of them is missing.
        let Some(node) = self.nodes.get_mut(later as usize) else {
            return;
        };
        if !node.dependencies.contains(&earlier) {
            node.dependencies.push(earlier);
        }
        let Some(node) = self.nodes.get_mut(earlier as usize) else {
            return;
        };
        match node.dependents.iter_mut().find(|(node, _)| *node == later) {
            Some((_, policy)) => *policy = on_failure,
            None => node.dependents.push((later, on_failure)),
        }
    }

    /// Enqueues the flow: all of it or nothing. The jobs that wait for none go to their queues.
    ///
    /// Returns once it survives the death of the process.
    ///
    /// # Errors
    /// A job was refused, jobs wait for each other in a circle, or the flow is too large to be
    /// stored in one step; see [`EnqueueError`].
    pub fn enqueue(self) -> Result<FlowHandle, EnqueueError> {
        let Self {
            mill,
            id,
            name,
            mut nodes,
            invalid,
        } = self;
        if let Some(error) = invalid {
            return Err(error);
        }
        check_count(nodes.len())?;
        check_order(&nodes)?;
        let states: Vec<_> = nodes.iter().map(first_state).collect();
        let count = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
        let has_ended = |state: &&NodeState| matches!(state.phase, Phase::Ended(_));
        let ended = states.iter().filter(has_ended).count();
        let record = FlowRecord {
            name,
            nodes: count,
            open: count - u32::try_from(ended).unwrap_or(count),
            failed: 0,
            is_settled: false,
        };
        let keep = match record.open {
            0 => Keep::For(mill.inner.keep_results),
            _ => Keep::Forever,
        };
        let mut values = vec![(stored::flow_key(id), record.to_bytes())];
        for ((node, state), at) in nodes.iter_mut().zip(&states).zip(0..) {
            values.push((stored::node_key(id, at), node.to_bytes()));
            values.push((stored::state_key(id, at), state.to_bytes()));
            ending::add_header(&mut node.job, NodeId { flow: id, node: at });
            node.job.stamp(&mill);
        }
        let mut changes = Changes::default();
        for (key, value) in &values {
            changes.keys.push(KeyChange::Insert(key, value, keep));
        }
        let begins = nodes.iter().zip(&states);
        let begins = begins.filter(|(_, state)| state.phase == Phase::Enqueued);
        let begins: Vec<_> = begins
            .map(|(node, _)| (&node.job, node.job.headers()))
            .collect();
        for (job, headers) in &begins {
            changes.jobs.push((&job.place, job.new_job(headers)));
        }
        changes.keys.extend(mill.inner.flows.mark());
        mill.inner.commit(&changes)?;
        mill.inner.flows.note_mark();
        Ok(FlowHandle::new(mill, id))
    }
}

/// How far a job is when its flow is enqueued.
fn first_state(node: &Node) -> NodeState {
    let phase = match (node.dependencies.len(), node.runs) {
        (0, Runs::AfterAll) => Phase::Enqueued,
        (0, Runs::AtFirstFailure) => Phase::Ended(Outcome::NotNeeded),
        _ => Phase::Waiting,
    };
    NodeState {
        pending: u32::try_from(node.dependencies.len()).unwrap_or(u32::MAX),
        phase,
    }
}

/// The most jobs of a flow: the failure of one may end all others in one step, see
/// [`advance`].
const MOST_JOBS: usize = 8000;

fn check_count(jobs: usize) -> Result<(), EnqueueError> {
    match jobs > MOST_JOBS {
        false => Ok(()),
        true => Err(EnqueueError::Invalid(format!(
            "a flow has at most {MOST_JOBS} jobs"
        ))),
    }
}

/// Checks that no jobs wait for each other in a circle, by taking out those that wait for none
/// until nothing is left (Kahn, "Topological sorting of large networks", 1962).
fn check_order(nodes: &[Node]) -> Result<(), EnqueueError> {
    let mut waits: BTreeMap<usize, HashSet<u32>> = BTreeMap::new();
    let mut free = Vec::new();
    for (at, node) in nodes.iter().enumerate() {
        match node.dependencies.is_empty() {
            true => free.push(at),
            false => drop(waits.insert(at, node.dependencies.iter().copied().collect())),
        }
    }
    while let Some(at) = free.pop() {
        for (dependent, _) in &nodes[at].dependents {
            let dependent = *dependent as usize;
            let Some(left) = waits.get_mut(&dependent) else {
                continue;
            };
            left.remove(&u32::try_from(at).unwrap_or(u32::MAX));
            if left.is_empty() {
                waits.remove(&dependent);
                free.push(dependent);
            }
        }
    }
    match waits.keys().next() {
        None => Ok(()),
        Some(&at) => Err(EnqueueError::Invalid(format!(
            "jobs of the flow wait for each other in a circle, among them one of kind {:?}",
            nodes[at].job.kind
        ))),
    }
}

/// Checks that a job of this kind can be added beside a job of a flow: whatever takes the output of
/// that one takes several, of jobs of its kind.
pub(crate) fn check_beside(
    mill: &Mill,
    beside: NodeId,
    is_same_kind: bool,
) -> Result<(), EnqueueError> {
    let NodeId { flow, node } = beside;
    let read = |node: u32| -> Result<Option<Node>, BackendError> {
        let stored = mill.inner.backend.get(&stored::node_key(flow, node))?;
        Ok(stored.and_then(|stored| Node::parse(&stored.value)))
    };
    if !admission::is_open(mill, beside) {
        let why = "the job, or its flow, has ended: nothing can be added to it";
        return Err(EnqueueError::Invalid(why.to_owned()));
    }
    let record = mill.inner.backend.get(&stored::flow_key(flow))?;
    let record = record.and_then(|stored| FlowRecord::parse(&stored.value));
    check_count(record.map_or(0, |record| record.nodes as usize + 1))?;
    let dependents = read(node)?.map(|node| node.dependents).unwrap_or_default();
    for (dependent, _) in dependents {
        let inputs = read(dependent)?.map(|node| node.inputs).unwrap_or_default();
        let is_refused = inputs.iter().any(|input| match input {
            Input::One(one) => *one == node,
            Input::Many(many) => many.contains(&node) && !is_same_kind,
        });
        if is_refused {
            let why = "a job that waits for this one takes no output of another";
            return Err(EnqueueError::Invalid(why.to_owned()));
        }
    }
    Ok(())
}

impl std::fmt::Debug for Flow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flow")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("jobs", &self.nodes.len())
            .finish_non_exhaustive()
    }
}
