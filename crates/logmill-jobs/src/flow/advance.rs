//! What the end of a job of a flow changes: which jobs it lets begin, which it cancels, and whether
//! the flow has ended. Nothing is stored here: the caller does that in one step.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::stored::{FlowRecord, Input, Node, NodeState, OnFailure, Outcome, Phase, Runs};
use crate::keys::Record;
use crate::prepared::PreparedJob;

/// Reads what is stored of a flow.
pub(super) trait Lookup {
    type Error;
    fn node(&mut self, node: u32) -> Result<Node, Self::Error>;
    fn state(&mut self, node: u32) -> Result<NodeState, Self::Error>;
}

/// A flow with what has been read and changed of it.
pub(super) struct Advance<L> {
    lookup: L,
    pub(super) record: FlowRecord,
    nodes: BTreeMap<u32, Changed<Node>>,
    states: BTreeMap<u32, Changed<NodeState>>,
    /// Jobs that go to their queues.
    pub(super) published: Vec<u32>,
    /// Jobs that have ended.
    pub(super) ended: Vec<u32>,
    /// Why others are cancelled: the first failure.
    why: Option<String>,
}

#[derive(Debug)]
struct Changed<T> {
    value: T,
    is_changed: bool,
}

/// What is to be done.
#[derive(Default)]
struct Tasks {
    ends: VecDeque<(u32, Outcome)>,
    /// Jobs to be cancelled if nothing waits for them any more. Looked at once nothing else is to be
    /// done: thousands that end may have waited for the same job, which has as many dependents.
    spares: BTreeSet<u32>,
}

impl<L: Lookup> Advance<L> {
    pub(super) fn new(lookup: L, record: FlowRecord) -> Self {
        Self {
            lookup,
            record,
            nodes: BTreeMap::new(),
            states: BTreeMap::new(),
            published: Vec::new(),
            ended: Vec::new(),
            why: None,
        }
    }

    pub(super) fn lookup_mut(&mut self) -> &mut L {
        &mut self.lookup
    }

    pub(super) fn node(&mut self, node: u32) -> Result<&mut Node, L::Error> {
        if !self.nodes.contains_key(&node) {
            let value = self.lookup.node(node)?;
            let is_changed = false;
            self.nodes.insert(node, Changed { value, is_changed });
        }
        Ok(&mut self.nodes.get_mut(&node).expect("read above").value)
    }

    pub(super) fn state(&mut self, node: u32) -> Result<&NodeState, L::Error> {
        self.state_entry(node).map(|entry| &entry.value)
    }

    fn state_entry(&mut self, node: u32) -> Result<&mut Changed<NodeState>, L::Error> {
        if !self.states.contains_key(&node) {
            let value = self.lookup.state(node)?;
            let is_changed = false;
            self.states.insert(node, Changed { value, is_changed });
        }
        Ok(self.states.get_mut(&node).expect("read above"))
    }

    fn change(&mut self, node: u32, change: impl FnOnce(&mut NodeState)) -> Result<(), L::Error> {
        let entry = self.state_entry(node)?;
        change(&mut entry.value);
        entry.is_changed = true;
        Ok(())
    }

    /// The jobs whose stored form has changed.
    pub(super) fn changed_nodes(&self) -> impl Iterator<Item = (u32, &Node)> {
        let changed = self.nodes.iter().filter(|(_, entry)| entry.is_changed);
        changed.map(|(node, entry)| (*node, &entry.value))
    }

    /// The jobs that are further than they were.
    pub(super) fn changed_states(&self) -> impl Iterator<Item = (u32, &NodeState)> {
        let changed = self.states.iter().filter(|(_, entry)| entry.is_changed);
        changed.map(|(node, entry)| (*node, &entry.value))
    }

    /// Adds a job beside another one that has not ended: whatever waits for that one waits for the
    /// new one as well.
    pub(super) fn add_beside(&mut self, beside: u32, job: PreparedJob) -> Result<(), L::Error> {
        let new = self.record.nodes;
        let dependents = self.node(beside)?.dependents.clone();
        for (dependent, _) in &dependents {
            let node = self.node(*dependent)?;
            node.dependencies.push(new);
            for input in &mut node.inputs {
                if let Input::Many(nodes) = input
                    && nodes.contains(&beside)
                {
                    nodes.push(new);
                }
            }
            if let Some(entry) = self.nodes.get_mut(dependent) {
                entry.is_changed = true;
            }
            self.change(*dependent, |state| state.pending += 1)?;
        }
        let value = Node {
            runs: Runs::AfterAll,
            dependents,
            dependencies: Vec::new(),
            inputs: Vec::new(),
            job,
        };
        let is_changed = true;
        self.nodes.insert(new, Changed { value, is_changed });
        let value = NodeState {
            pending: 0,
            phase: Phase::Enqueued,
        };
        self.states.insert(new, Changed { value, is_changed });
        self.published.push(new);
        self.record.nodes += 1;
        self.record.open += 1;
        Ok(())
    }

    /// Ends a job, unless it has ended, with all that follows from that.
    pub(super) fn end(&mut self, node: u32, outcome: Outcome) -> Result<(), L::Error> {
        let mut tasks = Tasks::default();
        tasks.ends.push_back((node, outcome));
        loop {
            if let Some((node, outcome)) = tasks.ends.pop_front() {
                self.end_one(node, outcome, &mut tasks)?;
            } else if let Some(node) = tasks.spares.pop_first() {
                if !self.is_needed(node)? {
                    let outcome = self.cancelled();
                    tasks.ends.push_back((node, outcome));
                }
            } else {
                break;
            }
        }
        // One that could begin may not be needed any more, by another failure that follows.
        for node in std::mem::take(&mut self.published) {
            if self.state(node)?.phase == Phase::Enqueued {
                self.published.push(node);
            }
        }
        Ok(())
    }

    fn end_one(&mut self, node: u32, outcome: Outcome, tasks: &mut Tasks) -> Result<(), L::Error> {
        let was_waiting = match self.state(node)?.phase {
            Phase::Waiting => true,
            Phase::Enqueued => false,
            Phase::Ended(_) => return Ok(()),
        };
        let is_failure = outcome.is_failure();
        let why = reason_of(&outcome);
        self.change(node, |state| state.phase = Phase::Ended(outcome))?;
        self.record.open = self.record.open.saturating_sub(1);
        self.record.failed += u32::from(is_failure);
        self.ended.push(node);
        let dependents = self.node(node)?.dependents.clone();
        if is_failure && self.why.is_none() {
            let kind = self.node(node)?.job.kind.clone();
            // Short, as each of thousands may store it.
            let (kind, why) = (cut(&kind, MOST_KIND), cut(&why, MOST_WHY));
            self.why = Some(format!("a job of kind {kind:?} failed: {why}"));
        }
        if was_waiting && is_failure {
            // What it waited for may be for nothing now.
            let dependencies = self.node(node)?.dependencies.clone();
            tasks.spares.extend(dependencies);
        }
        for (dependent, on_failure) in dependents {
            if self.state(dependent)?.phase != Phase::Waiting {
                continue;
            }
            match (self.node(dependent)?.runs, is_failure, on_failure) {
                (Runs::AtFirstFailure, true, _) | (Runs::AfterAll, true, OnFailure::Continue) => {
                    self.publish(dependent)?;
                }
                (Runs::AfterAll, true, OnFailure::Fail | OnFailure::FailAlone) => {
                    let outcome = self.cancelled();
                    if on_failure == OnFailure::FailAlone {
                        self.end_alone(dependent, outcome, tasks)?;
                    } else {
                        tasks.ends.push_back((dependent, outcome));
                    }
                }
                (Runs::AfterAll, true, OnFailure::Ignore) | (_, false, _) => {
                    self.change(dependent, |state| {
                        state.pending = state.pending.saturating_sub(1)
                    })?;
                    if self.state(dependent)?.pending > 0 {
                        continue;
                    }
                    match self.node(dependent)?.runs {
                        Runs::AfterAll => self.publish(dependent)?,
                        Runs::AtFirstFailure => {
                            tasks.ends.push_back((dependent, Outcome::NotNeeded));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Ends a job whose dependencies go on.
    fn end_alone(
        &mut self,
        node: u32,
        outcome: Outcome,
        tasks: &mut Tasks,
    ) -> Result<(), L::Error> {
        let mut follows = Tasks::default();
        self.end_one(node, outcome, &mut follows)?;
        tasks.ends.append(&mut follows.ends);
        Ok(())
    }

    fn cancelled(&self) -> Outcome {
        let reason = self.why.clone().unwrap_or_default();
        Outcome::Record(Record::Cancelled { reason })
    }

    fn publish(&mut self, node: u32) -> Result<(), L::Error> {
        self.change(node, |state| state.phase = Phase::Enqueued)?;
        self.published.push(node);
        Ok(())
    }

    /// Whether something waits for a job; true also of one that has ended, or for which nothing ever
    /// waited.
    fn is_needed(&mut self, node: u32) -> Result<bool, L::Error> {
        if matches!(self.state(node)?.phase, Phase::Ended(_)) {
            return Ok(true);
        }
        let dependents = self.node(node)?.dependents.clone();
        for (dependent, _) in &dependents {
            if self.state(*dependent)?.phase == Phase::Waiting {
                return Ok(true);
            }
        }
        Ok(dependents.is_empty())
    }
}

/// The most bytes of a kind and of a reason that are told to all that a failure cancels.
const MOST_KIND: usize = 40;
const MOST_WHY: usize = 60;

/// The beginning of a text.
pub(super) fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

fn reason_of(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Record(Record::Dead { reason, .. } | Record::Cancelled { reason }) => {
            reason.clone()
        }
        Outcome::Record(Record::Expired) => "it expired".to_owned(),
        Outcome::Record(Record::Done { .. }) | Outcome::NotNeeded => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;
    use crate::backend::Due;

    /// What is stored, in memory.
    #[derive(Clone, Default)]
    struct Memory {
        nodes: HashMap<u32, Node>,
        states: HashMap<u32, NodeState>,
    }

    impl Lookup for Memory {
        type Error = Infallible;

        fn node(&mut self, node: u32) -> Result<Node, Infallible> {
            Ok(self.nodes[&node].clone())
        }

        fn state(&mut self, node: u32) -> Result<NodeState, Infallible> {
            Ok(self.states[&node].clone())
        }
    }

    fn job() -> PreparedJob {
        PreparedJob {
            place: "default".to_owned(),
            kind: "job".to_owned(),
            payload: Vec::new(),
            headers: Vec::new(),
            due: Due::Now,
            expires_after: None,
        }
    }

    const POLICIES: [OnFailure; 4] = [
        OnFailure::Fail,
        OnFailure::FailAlone,
        OnFailure::Ignore,
        OnFailure::Continue,
    ];

    /// A flow: for each job whether it runs at the first failure, and its edges to earlier jobs.
    type Plan = Vec<(bool, Vec<(usize, OnFailure)>)>;

    fn plan() -> impl Strategy<Value = Plan> {
        let edge = (
            any::<prop::sample::Index>(),
            prop::sample::select(&POLICIES[..]),
        );
        let job = (prop::bool::weighted(0.1), prop::collection::vec(edge, 0..4));
        prop::collection::vec(job, 1..12).prop_map(|jobs| {
            // Nothing waits for a job that runs at a failure only.
            let at_failure: Vec<_> = jobs.iter().map(|(at_failure, _)| *at_failure).collect();
            let jobs = jobs.into_iter().enumerate();
            jobs.map(|(at, (runs_at_failure, edges))| {
                let mut seen = HashSet::new();
                let edges = edges.into_iter().filter(|_| at > 0);
                let edges = edges.map(|(index, policy)| (index.index(at), policy));
                let edges = edges.filter(|(one, _)| !at_failure[*one] && seen.insert(*one));
                (runs_at_failure, edges.collect())
            })
            .collect()
        })
    }

    struct World {
        plan: Plan,
        memory: Memory,
        record: FlowRecord,
        enqueued: Vec<u32>,
        published: HashSet<u32>,
    }

    impl World {
        fn new(plan: Plan) -> Self {
            let mut memory = Memory::default();
            let (mut enqueued, mut open) = (Vec::new(), 0);
            for (at, (at_failure, edges)) in plan.iter().enumerate() {
                let runs = match at_failure {
                    true => Runs::AtFirstFailure,
                    false => Runs::AfterAll,
                };
                let node = Node {
                    runs,
                    dependents: Vec::new(),
                    dependencies: edges.iter().map(|(earlier, _)| *earlier as u32).collect(),
                    inputs: Vec::new(),
                    job: job(),
                };
                let state = super::super::first_state(&node);
                match state.phase {
                    Phase::Enqueued => enqueued.push(at as u32),
                    Phase::Waiting | Phase::Ended(_) => {}
                }
                open += u32::from(!matches!(state.phase, Phase::Ended(_)));
                memory.nodes.insert(at as u32, node);
                memory.states.insert(at as u32, state);
                for (earlier, policy) in edges {
                    let earlier = memory.nodes.get_mut(&(*earlier as u32)).unwrap();
                    earlier.dependents.push((at as u32, *policy));
                }
            }
            let record = FlowRecord {
                name: String::new(),
                nodes: plan.len() as u32,
                open,
                failed: 0,
                is_settled: false,
            };
            Self {
                published: enqueued.iter().copied().collect(),
                plan,
                memory,
                record,
                enqueued,
            }
        }

        fn has_ended(&self, node: usize) -> Option<&Outcome> {
            match &self.memory.states[&(node as u32)].phase {
                Phase::Ended(outcome) => Some(outcome),
                Phase::Waiting | Phase::Enqueued => None,
            }
        }

        fn end(&mut self, node: u32, outcome: Outcome) {
            let mut advance = Advance::new(self.memory.clone(), self.record.clone());
            advance.end(node, outcome).unwrap();
            let states: Vec<_> = advance
                .changed_states()
                .map(|(at, one)| (at, one.clone()))
                .collect();
            let published = std::mem::take(&mut advance.published);
            self.record = advance.record.clone();
            self.memory.states.extend(states);
            for node in published {
                assert!(self.published.insert(node), "{node} is enqueued twice");
                let ended = self.has_ended(node as usize);
                assert!(ended.is_none(), "{node} is enqueued, and has ended");
                self.check_published(node as usize);
                self.enqueued.push(node);
            }
            self.check_count();
        }

        /// A job that is enqueued may be, as far as its edges say.
        fn check_published(&self, node: usize) {
            let (at_failure, edges) = &self.plan[node];
            let failed = |one: usize| self.has_ended(one).is_some_and(Outcome::is_failure);
            let has_continue = edges
                .iter()
                .any(|(one, policy)| *policy == OnFailure::Continue && failed(*one));
            if *at_failure {
                assert!(
                    edges.iter().any(|(one, _)| failed(*one)),
                    "nothing has failed"
                );
            } else if !has_continue {
                for (one, policy) in edges {
                    let ended = self.has_ended(*one);
                    assert!(ended.is_some(), "{node} does not wait for {one}");
                    assert!(
                        !failed(*one) || *policy == OnFailure::Ignore,
                        "{node} runs though {one} has failed"
                    );
                }
            }
        }

        fn check_count(&self) {
            let ended = (0..self.plan.len()).filter_map(|node| self.has_ended(node));
            let ended: Vec<_> = ended.collect();
            assert_eq!(self.record.open as usize, self.plan.len() - ended.len());
            let failed = ended.iter().filter(|outcome| outcome.is_failure()).count();
            assert_eq!(self.record.failed as usize, failed);
        }
    }

    proptest! {
        /// Whatever ends in whatever order, nothing waits for ever, and nothing runs too early,
        /// twice, or in spite of a failure.
        #[test]
        fn a_flow_ends_once_its_jobs_have(
            plan in plan(),
            ends in prop::collection::vec((any::<prop::sample::Index>(), 0..4_u8), 50),
        ) {
            let mut world = World::new(plan);
            for (index, how) in ends {
                let enqueued = std::mem::take(&mut world.enqueued);
                // Those that were cancelled meanwhile do not run.
                let runs: Vec<_> = enqueued
                    .into_iter()
                    .filter(|node| world.has_ended(*node as usize).is_none())
                    .collect();
                world.enqueued = runs;
                if world.enqueued.is_empty() {
                    break;
                }
                let at = index.index(world.enqueued.len());
                let node = world.enqueued.swap_remove(at);
                let reason = "failed".to_owned();
                let outcome = match how {
                    0 => Outcome::Record(Record::Dead { reason, told_by: None }),
                    1 => Outcome::Record(Record::Expired),
                    _ => Outcome::Record(Record::Done { tag: None, output: Vec::new() }),
                };
                world.end(node, outcome.clone());
                // A second end of the same job changes nothing.
                let before = world.record.clone();
                world.end(node, outcome);
                prop_assert_eq!(&world.record, &before);
            }
            prop_assert_eq!(world.record.open, 0, "jobs wait for ever");
            for (node, (_, edges)) in world.plan.iter().enumerate() {
                let all_ignored = edges.iter().all(|(_, policy)| *policy == OnFailure::Ignore);
                let is_spared = !world.memory.nodes[&(node as u32)].dependents.is_empty();
                if all_ignored && !is_spared && !world.plan[node].0 {
                    prop_assert!(world.published.contains(&(node as u32)));
                }
            }
        }
    }
}
