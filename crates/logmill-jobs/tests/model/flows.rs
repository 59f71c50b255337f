//! The flows of the model: which job waits for which, and what the end of one means for the others.

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

/// The edges of a flow of so many jobs: who waits for whom.
pub(crate) fn edges(shape: Shape, jobs: usize) -> Vec<(usize, usize)> {
    let last = jobs - 1;
    match shape {
        Shape::Chain => (1..jobs).map(|job| (job, job - 1)).collect(),
        Shape::Diamond => {
            let first = (1..last.max(2)).map(|job| (job, 0));
            let then = (1..last).map(|job| (last, job));
            first.chain(then).collect()
        }
    }
}

impl Flow {
    /// A flow of jobs with these numbers, and a policy for each edge.
    pub(crate) fn new(shape: Shape, jobs: &[usize], policies: &[Policy]) -> Self {
        let nodes = jobs.iter().map(|&job| Node {
            job,
            waits_for: Vec::new(),
            waited_for_by: Vec::new(),
            state: State::Enqueued,
        });
        let mut nodes: Vec<_> = nodes.collect();
        for ((later, earlier), policy) in edges(shape, jobs.len()).into_iter().zip(policies) {
            nodes[later].waits_for.push(earlier);
            nodes[later].state = State::Waits;
            nodes[earlier].waited_for_by.push((later, *policy));
        }
        Self { nodes }
    }

    fn has_ended(&self, node: usize) -> bool {
        matches!(self.nodes[node].state, State::Ended(_))
    }

    /// Ends a job, unless it has ended. Returns the jobs that are enqueued by that.
    pub(crate) fn end(&mut self, node: usize, end: End) -> Vec<usize> {
        let mut enqueued = Vec::new();
        self.end_one(node, end, &mut enqueued);
        enqueued
    }

    fn end_one(&mut self, node: usize, end: End, enqueued: &mut Vec<usize>) {
        if self.has_ended(node) {
            return;
        }
        self.nodes[node].state = State::Ended(end);
        for (later, policy) in self.nodes[node].waited_for_by.clone() {
            if self.nodes[later].state != State::Waits {
                continue;
            }
            let waits_for = self.nodes[later].waits_for.clone();
            match (end, policy) {
                (End::Done, _) | (_, Policy::Ignore) => {
                    if !waits_for.iter().all(|&one| self.has_ended(one)) {
                        continue;
                    }
                }
                (_, Policy::Continue) => {}
                (_, Policy::Fail | Policy::FailAlone) => {
                    self.end_one(later, End::Cancelled, enqueued);
                    for one in waits_for {
                        if policy == Policy::Fail && !self.is_needed(one) {
                            self.end_one(one, End::Cancelled, enqueued);
                        }
                    }
                    continue;
                }
            }
            self.nodes[later].state = State::Enqueued;
            enqueued.push(self.nodes[later].job);
        }
    }

    fn is_needed(&self, node: usize) -> bool {
        let mut later = self.nodes[node].waited_for_by.iter();
        later.any(|(later, _)| self.nodes[*later].state == State::Waits)
    }
}
