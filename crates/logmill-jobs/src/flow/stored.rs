//! What is stored of a flow: one value for the whole, and two for each of its jobs, of which one
//! seldom changes and the other one says how far the job is.

use std::fmt;
use std::str::FromStr;

use crate::fields::{add, take, take_u32};
use crate::keys::Record;
use crate::prepared::PreparedJob;

/// The id of a flow. It can be stored and parsed again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId(pub(super) u64);

/// A text that is not the id of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the id of a flow: it has 16 hexadecimal digits")]
pub struct ParseFlowIdError(());

impl fmt::Display for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for FlowId {
    type Err = ParseFlowIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // A sign would be taken as well.
        let is_hex = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let parsed = is_hex.then(|| u64::from_str_radix(text, 16).ok());
        parsed.flatten().map(Self).ok_or(ParseFlowIdError(()))
    }
}

/// A job of a flow, as its header names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct NodeId {
    pub(crate) flow: FlowId,
    pub(crate) node: u32,
}

impl NodeId {
    pub(crate) fn to_header(self) -> Vec<u8> {
        format!("{} {}", self.flow, self.node).into_bytes()
    }

    pub(crate) fn parse(header: &[u8]) -> Option<Self> {
        let (flow, node) = std::str::from_utf8(header).ok()?.split_once(' ')?;
        Some(Self {
            flow: flow.parse().ok()?,
            node: node.parse().ok()?,
        })
    }
}

/// All keys of flows begin with this.
pub(super) const FLOWS: &[u8] = b"flow/";

pub(super) fn flow_key(flow: FlowId) -> Vec<u8> {
    format!("flow/{flow}").into_bytes()
}

pub(super) fn node_key(flow: FlowId, node: u32) -> Vec<u8> {
    format!("node/{flow}/{node}").into_bytes()
}

pub(super) fn state_key(flow: FlowId, node: u32) -> Vec<u8> {
    format!("state/{flow}/{node}").into_bytes()
}

/// There is a value if a dead job of a flow was replayed.
pub(super) fn replayed_key(id: NodeId) -> Vec<u8> {
    format!("replayed/{}/{}", id.flow, id.node).into_bytes()
}

/// A flow as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FlowRecord {
    pub(super) name: String,
    /// Its jobs so far.
    pub(super) nodes: u32,
    /// Those that have not ended.
    pub(super) open: u32,
    /// Those that have ended otherwise than by being done or not needed.
    pub(super) failed: u32,
    /// Whether its values are only kept for a while any more.
    pub(super) is_settled: bool,
}

impl FlowRecord {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION, u8::from(self.is_settled)];
        for number in [self.nodes, self.open, self.failed] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(self.name.as_bytes());
        bytes
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes.strip_prefix(&[VERSION])?;
        let (&is_settled, after) = rest.split_first()?;
        rest = after;
        Some(Self {
            nodes: take_u32(&mut rest)?,
            open: take_u32(&mut rest)?,
            failed: take_u32(&mut rest)?,
            is_settled: is_settled != 0,
            name: String::from_utf8(rest.to_vec()).ok()?,
        })
    }
}

/// What becomes of a job that waits for another one of its flow if that one fails: dies, expires or
/// is cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnFailure {
    /// It is cancelled, and so are jobs that nothing else needs.
    Fail,
    /// It is cancelled. The other jobs that it waits for go on.
    FailAlone,
    /// It goes on waiting for the others, and runs when they have ended.
    Ignore,
    /// It runs at once.
    Continue,
}

impl OnFailure {
    const ALL: [Self; 4] = [Self::Fail, Self::FailAlone, Self::Ignore, Self::Continue];

    fn to_byte(self) -> u8 {
        self as u8
    }
}

/// When a job of a flow runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Runs {
    /// When those that it waits for have ended.
    AfterAll,
    /// When the first of them fails; never if none does.
    AtFirstFailure,
}

/// Outputs that a job takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Input {
    One(u32),
    Many(Vec<u32>),
}

/// A job of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) runs: Runs,
    /// Those that wait for it.
    pub(super) dependents: Vec<(u32, OnFailure)>,
    /// Those that it waits for, each once.
    pub(super) dependencies: Vec<u32>,
    pub(super) inputs: Vec<Input>,
    pub(super) job: PreparedJob,
}

impl Node {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION, u8::from(self.runs == Runs::AtFirstFailure)];
        let dependents = self.dependents.iter().flat_map(|(node, on_failure)| {
            let [a, b, c, d] = node.to_le_bytes();
            [a, b, c, d, on_failure.to_byte()]
        });
        add(&mut bytes, &dependents.collect::<Vec<_>>());
        add(&mut bytes, &numbers(&self.dependencies));
        let mut inputs = Vec::new();
        for input in &self.inputs {
            let (tag, nodes) = match input {
                Input::One(node) => (0, std::slice::from_ref(node)),
                Input::Many(nodes) => (1, &nodes[..]),
            };
            inputs.push(tag);
            add(&mut inputs, &numbers(nodes));
        }
        add(&mut bytes, &inputs);
        add(&mut bytes, &self.job.to_bytes());
        bytes
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(&[VERSION])?;
        let (&runs, mut rest) = rest.split_first()?;
        let mut dependents = Vec::new();
        let mut stored = take(&mut rest)?;
        while !stored.is_empty() {
            let node = take_u32(&mut stored)?;
            let (&policy, after) = stored.split_first()?;
            stored = after;
            dependents.push((node, *OnFailure::ALL.get(usize::from(policy))?));
        }
        let dependencies = parse_numbers(take(&mut rest)?)?;
        let mut inputs = Vec::new();
        let mut stored = take(&mut rest)?;
        while let Some((&tag, after)) = stored.split_first() {
            stored = after;
            let nodes = parse_numbers(take(&mut stored)?)?;
            inputs.push(match (tag, &nodes[..]) {
                (0, [node]) => Input::One(*node),
                (1, _) => Input::Many(nodes),
                _ => return None,
            });
        }
        Some(Self {
            runs: match runs {
                0 => Runs::AfterAll,
                _ => Runs::AtFirstFailure,
            },
            dependents,
            dependencies,
            inputs,
            job: PreparedJob::parse(take(&mut rest)?)?,
        })
    }
}

/// How far a job of a flow is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodeState {
    /// How many of those that it waits for have not ended.
    pub(super) pending: u32,
    pub(super) phase: Phase,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It is not in its queue yet.
    Waiting,
    /// It is in its queue, or runs.
    Enqueued,
    Ended(Outcome),
}

/// How a job of a flow has ended. The first outcome that is stored is final.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Record(Record),
    /// It was to run if another one failed, and none did.
    NotNeeded,
}

impl Outcome {
    pub(super) fn is_failure(&self) -> bool {
        !matches!(self, Self::NotNeeded | Self::Record(Record::Done { .. }))
    }
}

impl NodeState {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.pending.to_le_bytes().to_vec();
        match &self.phase {
            Phase::Waiting => bytes.push(b'W'),
            Phase::Enqueued => bytes.push(b'Q'),
            Phase::Ended(Outcome::NotNeeded) => bytes.push(b'N'),
            Phase::Ended(Outcome::Record(record)) => {
                bytes.push(b'E');
                bytes.extend_from_slice(&record.to_bytes());
            }
        }
        bytes
    }

    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let pending = take_u32(&mut rest)?;
        let phase = match rest.split_first()? {
            (b'W', []) => Phase::Waiting,
            (b'Q', []) => Phase::Enqueued,
            (b'N', []) => Phase::Ended(Outcome::NotNeeded),
            (b'E', record) => Phase::Ended(Outcome::Record(Record::parse(record)?)),
            _ => return None,
        };
        Some(Self { pending, phase })
    }
}

const VERSION: u8 = 1;

fn numbers(numbers: &[u32]) -> Vec<u8> {
    numbers
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect()
}

fn parse_numbers(bytes: &[u8]) -> Option<Vec<u32>> {
    let (numbers, rest) = bytes.as_chunks::<4>();
    rest.is_empty()
        .then(|| numbers.iter().copied().map(u32::from_le_bytes).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Due;

    fn node() -> Node {
        Node {
            runs: Runs::AtFirstFailure,
            dependents: OnFailure::ALL
                .into_iter()
                .zip(0..)
                .map(|(one, at)| (at, one))
                .collect(),
            dependencies: vec![7, 8],
            inputs: vec![
                Input::One(7),
                Input::Many(vec![8, 7]),
                Input::Many(Vec::new()),
            ],
            job: PreparedJob {
                place: "mail".to_owned(),
                kind: "welcome".to_owned(),
                payload: b"{}".to_vec(),
                headers: Vec::new(),
                due: Due::Now,
                expires_after: None,
            },
        }
    }

    #[test]
    fn what_is_stored_is_parsed_as_it_was_made() {
        let node = node();
        assert_eq!(Node::parse(&node.to_bytes()), Some(node));
        let record = FlowRecord {
            name: "order 7".to_owned(),
            nodes: 3,
            open: 2,
            failed: 1,
            is_settled: true,
        };
        assert_eq!(FlowRecord::parse(&record.to_bytes()), Some(record));
        let reason = "late".to_owned();
        let phases = [
            Phase::Waiting,
            Phase::Enqueued,
            Phase::Ended(Outcome::NotNeeded),
            Phase::Ended(Outcome::Record(Record::Dead {
                reason,
                told_by: None,
            })),
        ];
        for phase in phases {
            let state = NodeState { pending: 5, phase };
            assert_eq!(NodeState::parse(&state.to_bytes()), Some(state));
        }
        let id = NodeId {
            flow: FlowId(0xa),
            node: 12,
        };
        assert_eq!(NodeId::parse(&id.to_header()), Some(id));
    }

    #[test]
    fn what_is_cut_off_or_changed_never_panics() {
        let bytes = node().to_bytes();
        for len in 0..bytes.len() {
            assert_eq!(Node::parse(&bytes[..len]), None, "{len}");
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x81;
            let _ = (
                Node::parse(&changed),
                NodeState::parse(&changed),
                FlowRecord::parse(&changed),
            );
        }
        for text in ["", "0", "000000000000000g", "+00000000000000a"] {
            assert!(text.parse::<FlowId>().is_err(), "{text}");
        }
    }
}
