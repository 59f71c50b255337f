//! What a job of a flow takes from those that it waits for: the shape of its inputs, as its type
//! says it, the jobs that give them, and the outputs that its handler gets.

use super::stored::{Input, OnFailure, Outcome, Phase, node_key, state_key};
use super::{FlowId, JobNode};
use crate::context::Attempt;
use crate::enqueue::header;
use crate::failure::{Failure, discard};
use crate::handler::FromAttempt;
use crate::keys::Record;
use crate::mill::Mill;
use crate::{Job, JobResult};

/// What a job takes from others of its flow, as [`Job::Inputs`] says it: a kind of job, several of
/// one kind, or tuples of these.
///
/// | `inputs =` | joined with | the handler gets |
/// |---|---|---|
/// | `Charge` | `&node` | `Charge::Output` |
/// | `Vec<Resize>` | `&[node, ..]`, any number | `Vec<Resize::Output>`, in that order |
/// | `Option<Charge>` | `&node` | `Result<Charge::Output, String>`: its failure is told, and fails nothing |
/// | `Vec<Option<Resize>>` | `&[node, ..]` | `Vec<Result<Resize::Output, String>>` |
/// | `(A, B, ..)` | `(.., ..)` | a tuple |
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not the shape of inputs of a job",
    note = "inputs are kinds of jobs, as in `inputs = (Charge, Vec<Resize>, Option<Mail>)`"
)]
pub trait InputShape: Sized + 'static {
    /// The jobs that give the inputs.
    type Nodes<'a>: 'a;
    /// What the handler gets.
    type Values;

    /// Notes the jobs.
    #[doc(hidden)]
    fn note(nodes: Self::Nodes<'_>, noted: &mut Noted);

    /// Reads the outputs.
    ///
    /// # Errors
    /// An output is missing or cannot be decoded.
    #[doc(hidden)]
    fn read(stored: &mut StoredInputs<'_>) -> Result<Self::Values, Failure>;
}

/// The inputs of a job that is about to be joined.
#[derive(Debug, Default)]
pub struct Noted {
    pub(super) inputs: Vec<Input>,
    /// Each input's job with the flow that it is of, and what becomes of its failure.
    pub(super) edges: Vec<(FlowId, u32, OnFailure)>,
}

impl Noted {
    fn one<J>(&mut self, node: &JobNode<J>, on_failure: OnFailure) {
        self.edges.push((node.flow, node.node, on_failure));
        self.inputs.push(Input::One(node.node));
    }

    fn many<J>(&mut self, nodes: &[JobNode<J>], on_failure: OnFailure) {
        let edges = nodes.iter().map(|node| (node.flow, node.node, on_failure));
        self.edges.extend(edges);
        self.inputs
            .push(Input::Many(nodes.iter().map(|node| node.node).collect()));
    }
}

/// The inputs of a job that runs.
pub struct StoredInputs<'a> {
    mill: &'a Mill,
    flow: FlowId,
    rest: std::vec::IntoIter<Input>,
}

impl std::fmt::Debug for StoredInputs<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StoredInputs({})", self.flow)
    }
}

impl StoredInputs<'_> {
    fn one(&mut self) -> Result<u32, Failure> {
        match self.rest.next() {
            Some(Input::One(node)) => Ok(node),
            _ => Err(other_shape()),
        }
    }

    fn many(&mut self) -> Result<Vec<u32>, Failure> {
        match self.rest.next() {
            Some(Input::Many(nodes)) => Ok(nodes),
            _ => Err(other_shape()),
        }
    }

    fn output<J: Job>(&self, node: u32) -> Result<J::Output, Failure> {
        let output = self.outcome::<J>(node)?;
        output.map_err(|reason| discard(format!("an input is missing: {reason}")))
    }

    /// The output of a job, or why there is none.
    fn outcome<J: Job>(&self, node: u32) -> Result<Result<J::Output, String>, Failure> {
        let inner = &self.mill.inner;
        let stored = inner.backend.get(&state_key(self.flow, node))?;
        let state = stored.and_then(|stored| super::stored::NodeState::parse(&stored.value));
        let Some(state) = state else {
            return Err(discard("an input of the job is not kept any more"));
        };
        Ok(match state.phase {
            Phase::Ended(Outcome::Record(Record::Done { tag, output })) => {
                let decoded = inner.codec.decode(tag.as_deref(), &output);
                let undecodable =
                    |error| Failure::retry(format!("an input cannot be decoded: {error}"));
                Ok(decoded.map_err(undecodable)?)
            }
            Phase::Ended(Outcome::Record(
                Record::Dead { reason, .. } | Record::Cancelled { reason },
            )) => Err(reason),
            Phase::Ended(Outcome::Record(Record::Expired)) => Err("it expired".to_owned()),
            Phase::Ended(Outcome::NotNeeded) => Err("it was not needed".to_owned()),
            Phase::Waiting | Phase::Enqueued => Err("it has not ended".to_owned()),
        })
    }
}

fn other_shape() -> Failure {
    discard("the job was enqueued with other inputs than its type takes")
}

impl<J: Job> InputShape for J {
    type Nodes<'a> = &'a JobNode<J>;
    type Values = J::Output;

    fn note(nodes: &JobNode<J>, noted: &mut Noted) {
        noted.one(nodes, OnFailure::Fail);
    }

    fn read(stored: &mut StoredInputs<'_>) -> Result<Self::Values, Failure> {
        let node = stored.one()?;
        stored.output::<J>(node)
    }
}

impl<J: Job> InputShape for Option<J> {
    type Nodes<'a> = &'a JobNode<J>;
    type Values = Result<J::Output, String>;

    fn note(nodes: &JobNode<J>, noted: &mut Noted) {
        noted.one(nodes, OnFailure::Ignore);
    }

    fn read(stored: &mut StoredInputs<'_>) -> Result<Self::Values, Failure> {
        let node = stored.one()?;
        stored.outcome::<J>(node)
    }
}

impl<J: Job> InputShape for Vec<J> {
    type Nodes<'a> = &'a [JobNode<J>];
    type Values = Vec<J::Output>;

    fn note(nodes: &[JobNode<J>], noted: &mut Noted) {
        noted.many(nodes, OnFailure::Fail);
    }

    fn read(stored: &mut StoredInputs<'_>) -> Result<Self::Values, Failure> {
        let nodes = stored.many()?.into_iter();
        nodes.map(|node| stored.output::<J>(node)).collect()
    }
}

impl<J: Job> InputShape for Vec<Option<J>> {
    type Nodes<'a> = &'a [JobNode<J>];
    type Values = Vec<Result<J::Output, String>>;

    fn note(nodes: &[JobNode<J>], noted: &mut Noted) {
        noted.many(nodes, OnFailure::Ignore);
    }

    fn read(stored: &mut StoredInputs<'_>) -> Result<Self::Values, Failure> {
        let nodes = stored.many()?.into_iter();
        nodes.map(|node| stored.outcome::<J>(node)).collect()
    }
}

macro_rules! tuples {
    ($(($($shape:ident $node:ident),*);)*) => {$(
        impl<$($shape: InputShape),*> InputShape for ($($shape,)*) {
            type Nodes<'a> = ($($shape::Nodes<'a>,)*);
            type Values = ($($shape::Values,)*);

            #[allow(unused_variables, clippy::unused_unit)]
            fn note(nodes: Self::Nodes<'_>, noted: &mut Noted) {
                let ($($node,)*) = nodes;
                $($shape::note($node, noted);)*
            }

            #[allow(unused_variables, clippy::unused_unit)]
            fn read(stored: &mut StoredInputs<'_>) -> Result<Self::Values, Failure> {
                Ok(($($shape::read(stored)?,)*))
            }
        }
    )*};
}

tuples! {
    ();
    (A a);
    (A a, B b);
    (A a, B b, C c);
    (A a, B b, C c, D d);
    (A a, B b, C c, D d, E e);
    (A a, B b, C c, D d, E e, F f);
}

/// The outputs of the jobs that a job of a flow has waited for, as an argument of its handler; see
/// [`Flow::join`](super::Flow::join).
///
/// Fails the attempt for good if the job was not enqueued as a part of a flow, or with inputs of
/// another shape.
pub struct Inputs<J: Job>(pub <J::Inputs as InputShape>::Values);

impl<S, J: Job> FromAttempt<S> for Inputs<J> {
    fn from_attempt(attempt: &Attempt<'_>, _: &S) -> JobResult<Self> {
        let header = attempt.claim.header(header::FLOW);
        let Some(id) = header.and_then(super::NodeId::parse) else {
            return Err(discard("a job with inputs has to be enqueued by a flow"));
        };
        let stored = attempt
            .mill
            .inner
            .backend
            .get(&node_key(id.flow, id.node))?;
        let node = stored.and_then(|stored| super::stored::Node::parse(&stored.value));
        let Some(node) = node else {
            return Err(discard("the flow of the job is not kept any more"));
        };
        let mut stored = StoredInputs {
            mill: attempt.mill,
            flow: id.flow,
            rest: node.inputs.into_iter(),
        };
        let values = J::Inputs::read(&mut stored)?;
        match stored.rest.next() {
            None => Ok(Self(values)),
            Some(_) => Err(other_shape()),
        }
    }
}

impl<J: Job> std::fmt::Debug for Inputs<J>
where
    <J::Inputs as InputShape>::Values: std::fmt::Debug,
{
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Inputs").field(&self.0).finish()
    }
}
