//! The flows of the model: which job waits for which, and what the end of one means for the others.

use std::collections::VecDeque;

use crate::model::End;
use crate::operations::{Policy, Shape};

/// A flow; its jobs by their places in it.
pub(crate) struct Flow {
    pub(crate) nodes: Vec<Node>,
}

pub(crate) struct Node {
    /// The number of its job.
    pub(crate) job: usize,
    waits_for: Vec<usize>,
    waited_for_by: Vec<(usize, Policy)>,
    pub(crate) state: State,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum State {
    /// For other jobs.
    Waits,
    /// It was enqueued.
    Enqueued,
    Ended(End),
}

/// The edges of a flow of so many jobs: who waits for whom, and what a failure means.
pub(crate) fn edges(shape: Shape, jobs: usize, policies: &[Policy]) -> Vec<(usize, usize, Policy)> {
    let last = jobs - 1;
    let edges: Vec<_> = match shape {
        Shape::Chain => (1..jobs).map(|job| (job, job - 1)).collect(),
        Shape::Diamond => {
            let first = (1..last.max(2)).map(|job| (job, 0));
            let then = (1..last).map(|job| (last, job));
            first.chain(then).collect()
        }
    };
    let edges = edges.into_iter().zip(policies);
    edges
        .map(|((later, earlier), policy)| (later, earlier, *policy))
        .collect()
}

impl Flow {
    /// A flow of jobs with these numbers. Each edge is from a job to one that it waits for, with a policy.
    pub(crate) fn new(jobs: &[usize], edges: &[(usize, usize, Policy)]) -> Self {
        let nodes = jobs.iter().map(|&job| Node {
            job,
            waits_for: Vec::new(),
            waited_for_by: Vec::new(),
            state: State::Enqueued,
        });
        let mut nodes: Vec<_> = nodes.collect();
        for &(later, earlier, policy) in edges {
            nodes[later].waits_for.push(earlier);
            nodes[later].state = State::Waits;
            nodes[earlier].waited_for_by.push((later, policy));
        }
        Self { nodes }
    }

    /// A batch of jobs with these numbers: its own, and those that follow.
    pub(crate) fn of_batch(jobs: &[usize], followers: &[Policy]) -> Self {
        let own = jobs.len() - followers.len();
        let after = |(at, policy): (usize, &Policy)| {
            let policy = *policy;
            (0..own).map(move |job| (own + at, job, policy))
        };
        let edges: Vec<_> = followers.iter().enumerate().flat_map(after).collect();
        let mut flow = Self::new(jobs, &edges);
        if own == 0 {
            let nodes = flow.nodes.iter_mut().zip(followers);
            let needless = nodes.filter(|(_, policy)| **policy == Policy::AtFailure);
            needless.for_each(|(node, _)| node.state = State::Ended(End::NotNeeded));
        }
        flow
    }

    fn has_ended(&self, node: usize) -> bool {
        matches!(self.nodes[node].state, State::Ended(_))
    }

    /// Ends a job, unless it has ended. Returns the jobs that are enqueued by that.
    ///
    /// Of two things that it means for a job, that it is enqueued and that it ends, the end counts. It may
    /// have been enqueued all the same.
    pub(crate) fn end(&mut self, node: usize, end: End) -> Vec<usize> {
        let mut enqueued = Vec::new();
        let mut ends = VecDeque::from([(node, end, None)]);
        while let Some((node, end, policy)) = ends.pop_front() {
            if self.has_ended(node) {
                continue;
            }
            self.nodes[node].state = State::Ended(end);
            for one in self.nodes[node].waits_for.clone() {
                if policy == Some(Policy::Fail) && !self.is_needed(one) {
                    ends.push_back((one, End::Cancelled, None));
                }
            }
            for (later, policy) in self.nodes[node].waited_for_by.clone() {
                match self.fate(end, later, policy) {
                    Fate::Waits => {}
                    Fate::Enqueued => {
                        self.nodes[later].state = State::Enqueued;
                        enqueued.push(later);
                    }
                    Fate::Ends(end) => ends.push_back((later, end, Some(policy))),
                }
            }
        }
        enqueued.retain(|&node| self.nodes[node].state == State::Enqueued);
        enqueued.iter().map(|&node| self.nodes[node].job).collect()
    }

    /// What the end of a job means for one that waits for it.
    fn fate(&self, end: End, later: usize, policy: Policy) -> Fate {
        if self.nodes[later].state != State::Waits {
            return Fate::Waits;
        }
        let mut waits_for = self.nodes[later].waits_for.iter();
        match (end, policy) {
            (End::Done, _) | (_, Policy::Ignore) => {
                match (waits_for.all(|&one| self.has_ended(one)), policy) {
                    (false, _) => Fate::Waits,
                    (true, Policy::AtFailure) => Fate::Ends(End::NotNeeded),
                    (true, _) => Fate::Enqueued,
                }
            }
            (_, Policy::Continue | Policy::AtFailure) => Fate::Enqueued,
            (_, Policy::Fail | Policy::FailAlone) => Fate::Ends(End::Cancelled),
        }
    }

    fn is_needed(&self, node: usize) -> bool {
        let mut later = self.nodes[node].waited_for_by.iter();
        later.any(|(later, _)| self.nodes[*later].state == State::Waits)
    }
}

/// What becomes of a job that waits.
enum Fate {
    Waits,
    Enqueued,
    Ends(End),
}
