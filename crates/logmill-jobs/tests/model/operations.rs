//! What a case of the model test does: its limits, and operations on jobs, queues and the clock.

use crate::schedules::Definition;

/// The queues. Handlers of jobs of one run those of the queues behind it, so that several run at once.
pub(crate) const QUEUES: [&str; 3] = ["a", "b", "c"];
pub(crate) const KINDS: [&str; 2] = ["task", "chore"];
pub(crate) const KEYS: [&str; 2] = ["x", "y"];
/// Keys of unique jobs.
pub(crate) const UNIQUES: [&str; 2] = ["u", "v"];
pub(crate) const SCHEDULES: [&str; 2] = ["always", "unless running"];

/// A case.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// Whether workers are there whenever time passes, if a limit has a rate.
    pub(crate) is_punctual: bool,
    pub(crate) limits: Vec<LimitOf>,
    /// Strict orders within each key.
    pub(crate) orders: Vec<Scope>,
    /// How jobs are unique, by their keys.
    pub(crate) modes: Vec<Mode>,
    pub(crate) operations: Vec<Operation>,
}

/// One line for each limit and each operation.
impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "punctual: {}", self.is_punctual)?;
        for limit in &self.limits {
            writeln!(f, "{limit:?}")?;
        }
        writeln!(f, "orders: {:?}, unique: {:?}", self.orders, self.modes)?;
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

/// How a job is unique within a key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mode {
    Plain,
    Period(u64),
    Replacing,
    KeepLatest,
    WhileWaiting {
        is_replacing: bool,
    },
    Debounce {
        time: u64,
        max_wait: Option<u64>,
        is_leading: bool,
    },
}

/// Times are in seconds, jobs are numbers that are taken modulo how many there are.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Enqueue(New),
    /// A call with a key of unique jobs.
    Unique(usize, New),
    Flow(Shape, Vec<New>, Vec<Policy>),
    Batch(Batch),
    /// Something with a schedule.
    Schedule(usize, OfSchedule),
    /// Runs what is due, with these attempts first; the others are done.
    Run(Vec<Attempt>),
    Advance(u64),
    Pause(What),
    Resume(What),
    Cancel(usize),
    Edit(usize, Change),
    Replay(usize),
    Purge(usize),
    /// Has others pass a job that blocks its key.
    Unblock(usize),
    Crash,
    /// Closes the mill, and opens it again after this time.
    Reopen(u64),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum OfSchedule {
    /// Stores it, with times that count from now; None stores it as it is.
    Store(Option<Definition>),
    Pause,
    Resume,
    Remove,
    RunNow,
}

/// What becomes of ticks that were missed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Missed {
    Skip,
    Once,
    All(u32),
}

/// A job to be enqueued.
#[derive(Clone, Copy, Debug, PartialEq)]
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

/// Jobs side by side, with the options of their kind, and what follows when all are done, when all have
/// ended, and when the first has failed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batch {
    pub(crate) queue: usize,
    pub(crate) kind: usize,
    pub(crate) jobs: usize,
    pub(crate) on_success: bool,
    pub(crate) on_complete: bool,
    pub(crate) on_death: bool,
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
    /// That one runs only then; of a batch.
    AtFailure,
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
    Arguments,
    ExpiresAfter(u64),
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
