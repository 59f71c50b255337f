//! What a case of the model test does: its limits, and operations on jobs, queues and the clock.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

/// The queues. Handlers of jobs of one run those of the queues behind it, so that several run at once.
pub(crate) const QUEUES: [&str; 3] = ["a", "b", "c"];
pub(crate) const KINDS: [&str; 2] = ["task", "chore"];
pub(crate) const KEYS: [&str; 2] = ["x", "y"];

/// A case.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// Whether workers are there whenever time passes, if a limit has a rate.
    pub(crate) is_punctual: bool,
    pub(crate) limits: Vec<LimitOf>,
    pub(crate) operations: Vec<Operation>,
}

/// One line for each limit and each operation.
impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "punctual: {}", self.is_punctual)?;
        for limit in &self.limits {
            writeln!(f, "{limit:?}")?;
        }
        for operation in &self.operations {
            writeln!(f, "{operation:?}")?;
        }
        Ok(())
    }
}

/// Which jobs a limit concerns, and how many it lets through.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LimitOf {
    pub(crate) scope: Scope,
    pub(crate) keys: Keys,
    pub(crate) at_once: Option<u32>,
    /// Seconds for each job, and how many may begin together.
    pub(crate) rate: Option<(u64, u32)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scope {
    Queue(usize),
    Kind(usize),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Keys {
    Same,
    Apart,
    InTurn,
}

/// Times are in seconds, jobs are numbers that are taken modulo how many there are.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Enqueue(New),
    Flow(Shape, Vec<New>, Vec<Policy>),
    /// Runs what is due, with these attempts first; the others are done.
    Run(Vec<Attempt>),
    Advance(u64),
    Pause(What),
    Resume(What),
    Cancel(usize),
    Edit(usize, Change),
    Replay(usize),
    Purge(usize),
    Crash,
}

/// A job to be enqueued.
#[derive(Clone, Copy, Debug)]
pub(crate) struct New {
    pub(crate) queue: usize,
    pub(crate) kind: usize,
    pub(crate) key: Option<usize>,
    pub(crate) is_high: bool,
    pub(crate) delay: u64,
    pub(crate) expires: Option<u64>,
    pub(crate) cost: Option<u32>,
    pub(crate) retries: u32,
}

impl New {
    /// One that follows from another job, with the options of its kind.
    pub(crate) fn following(queue: usize, kind: usize) -> Self {
        Self {
            queue,
            kind,
            key: None,
            is_high: false,
            delay: 0,
            expires: None,
            cost: None,
            retries: 4,
        }
    }
}

/// Which jobs of a flow wait for which.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape {
    /// Each for the one before it.
    Chain,
    /// Those in between for the first, the last for those in between.
    Diamond,
}

/// What the failure of a job means for one that waits for it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Policy {
    Fail,
    FailAlone,
    Ignore,
    Continue,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum What {
    Queue(usize),
    Kind(usize),
    Key(usize),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    Now,
    After(u64),
    Priority(bool),
    Queue(usize),
}

/// An attempt: what happens while its handler runs, and how it ends.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) meanwhile: Vec<Operation>,
    pub(crate) outcome: Outcome,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Outcome {
    Done,
    /// Done, and another job of its kind and queue follows in the same step.
    Follow,
    Error,
    RetryIn(u64),
    Snooze(u64),
    Discard,
    Cancel,
    RateLimited(u64),
    Panic,
}

fn limit() -> impl Strategy<Value = LimitOf> {
    let scope = prop_oneof![
        (0..QUEUES.len()).prop_map(Scope::Queue),
        (0..KINDS.len()).prop_map(Scope::Kind),
    ];
    let keys = select(&[Keys::Same, Keys::Apart, Keys::InTurn][..]);
    let at_once = prop::option::weighted(0.6, 1..3_u32);
    let rate = prop::option::weighted(0.5, (1..8_u64, 1..4_u32));
    (scope, keys, at_once, rate).prop_map(|(scope, keys, at_once, rate)| LimitOf {
        scope,
        keys,
        at_once,
        rate,
    })
}

fn new() -> impl Strategy<Value = New> {
    let delay = prop_oneof![4 => Just(0), 1 => 1..20_u64];
    (
        (0..QUEUES.len(), 0..KINDS.len()),
        prop::option::weighted(0.7, 0..KEYS.len()),
        prop::bool::weighted(0.2),
        delay,
        prop::option::weighted(0.15, 1..30_u64),
        prop::option::weighted(0.2, 1..5_u32),
        0..3_u32,
    )
        .prop_map(
            |((queue, kind), key, is_high, delay, expires, cost, retries)| New {
                queue,
                kind,
                key,
                is_high,
                delay,
                expires,
                cost,
                retries,
            },
        )
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        4 => Just(Outcome::Done),
        1 => Just(Outcome::Follow),
        2 => Just(Outcome::Error),
        1 => (0..20_u64).prop_map(Outcome::RetryIn),
        1 => (0..20_u64).prop_map(Outcome::Snooze),
        2 => Just(Outcome::Discard),
        1 => Just(Outcome::Cancel),
        2 => (1..20_u64).prop_map(Outcome::RateLimited),
        1 => Just(Outcome::Panic),
    ]
}

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        (0..QUEUES.len()).prop_map(What::Queue),
        (0..KINDS.len()).prop_map(What::Kind),
        (0..KEYS.len()).prop_map(What::Key),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        Just(Change::Now),
        (1..20_u64).prop_map(Change::After),
        any::<bool>().prop_map(Change::Priority),
        (0..QUEUES.len()).prop_map(Change::Queue),
    ]
}

fn flow() -> impl Strategy<Value = Operation> {
    let shape = prop_oneof![Just(Shape::Chain), Just(Shape::Diamond)];
    let policies = [
        Policy::Fail,
        Policy::FailAlone,
        Policy::Ignore,
        Policy::Continue,
    ];
    let policies = select(policies.to_vec());
    (shape, vec(new(), 2..5), vec(policies, 5))
        .prop_map(|(shape, jobs, policies)| Operation::Flow(shape, jobs, policies))
}

/// An operation that may go on while a handler runs.
fn simple() -> BoxedStrategy<Operation> {
    prop_oneof![
        6 => new().prop_map(Operation::Enqueue),
        3 => flow(),
        3 => (1..15_u64).prop_map(Operation::Advance),
        1 => what().prop_map(Operation::Pause),
        2 => what().prop_map(Operation::Resume),
        1 => (0..64_usize).prop_map(Operation::Cancel),
        1 => (0..64_usize, change()).prop_map(|(job, change)| Operation::Edit(job, change)),
        2 => (0..8_usize).prop_map(Operation::Replay),
        1 => (0..8_usize).prop_map(Operation::Purge),
    ]
    .boxed()
}

/// Attempts, whose handlers may run others, so many levels deep.
fn run(levels: u32) -> BoxedStrategy<Operation> {
    let meanwhile = match levels {
        0 => vec(simple(), 0..3).boxed(),
        _ => vec(prop_oneof![3 => simple(), 2 => run(levels - 1)], 0..5).boxed(),
    };
    let meanwhile = prop_oneof![2 => Just(Vec::new()), 1 => meanwhile];
    let attempt = (meanwhile, outcome());
    let attempt = attempt.prop_map(|(meanwhile, outcome)| Attempt { meanwhile, outcome });
    vec(attempt, 0..6).prop_map(Operation::Run).boxed()
}

pub(crate) fn case() -> impl Strategy<Value = Case> {
    let operation = prop_oneof![
        12 => simple(),
        6 => run(2),
        1 => Just(Operation::Crash),
    ];
    let limits = vec(limit(), 0..4);
    (any::<bool>(), limits, vec(operation, 1..40)).prop_map(|(is_punctual, limits, operations)| {
        Case {
            is_punctual,
            limits,
            operations,
        }
    })
}
