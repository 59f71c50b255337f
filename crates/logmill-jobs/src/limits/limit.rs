//! What an application says of a limit: which jobs it concerns, and how many it lets through.

use std::collections::BTreeMap;
use std::time::Duration;

use super::rate::Rate;

/// A limit on jobs that run at the same time, or that begin in a time.
///
/// ```
/// use logmill_jobs::{Limit, Mill, MillOptions, secs};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let options = MillOptions::new()
///     // Each tenant has at most two exports running.
///     .limit(Limit::on_kind("export").by_key().at_once(2))
///     // The mail API takes ten a second, and five of them together.
///     .limit(Limit::on_queue("mail").rate(10, secs(1)).burst(5))
///     // Four thumbnails run, and tenants take turns; "gold" has three for each of another's.
///     .limit(Limit::on_kind("thumbnail").at_once(4).in_turn().weight("gold", 3));
/// let mill = Mill::builder(dir.path().join("jobs")).options(options).open()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Limit {
    scope: Scope,
    pub(super) keys: Keys,
    pub(super) at_once: Option<u32>,
    pub(super) rate: Option<Rate>,
}

/// What the keys of jobs are to a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Keys {
    /// Nothing: all jobs wait in one line.
    Same,
    /// Each has places of its own.
    Apart,
    /// They share the places, and take turns, with these weights where they are not 1.
    InTurn(BTreeMap<String, u32>),
}

/// Which jobs a limit concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Scope {
    Queue(String),
    Kind(String),
    /// Those whose handlers were told to slow down, if no other limit concerns them.
    Held,
}

/// What limits look at in a job.
#[derive(Clone, Copy)]
pub(crate) struct Subject<'a> {
    /// As the application names it.
    pub(crate) queue: &'a str,
    pub(crate) kind: &'a str,
    pub(crate) key: Option<&'a [u8]>,
}

impl Limit {
    /// Limits the jobs of a queue, all kinds and priorities together.
    pub fn on_queue(queue: impl Into<String>) -> Self {
        Self::on(Scope::Queue(queue.into()))
    }

    /// Limits the jobs of a kind, in all queues.
    pub fn on_kind(kind: impl Into<String>) -> Self {
        Self::on(Scope::Kind(kind.into()))
    }

    fn on(scope: Scope) -> Self {
        Self {
            scope,
            keys: Keys::Same,
            at_once: None,
            rate: None,
        }
    }

    /// Counts the jobs of each key by themselves, as each tenant's. Jobs without a key are not
    /// limited then.
    ///
    /// The key is that of `#[job(key = "tenant")]` or of [`Enqueue::key`](crate::Enqueue::key).
    pub fn by_key(mut self) -> Self {
        self.keys = Keys::Apart;
        self
    }

    /// Has the keys share what the limit lets through, and take turns: however many jobs of one key
    /// wait, the first one of another is next but for those of other keys. Within a key, the jobs keep
    /// the order in which workers came to them. Those without a key are one more key.
    ///
    /// It takes the place of [`by_key`](Self::by_key). A job has as many turns as it
    /// [costs](crate::Enqueue::cost); with costs of 1 and without [weights](Self::weight), this is
    /// round robin.
    ///
    /// Turns are taken by jobs that wait for the limit. To know them, workers read ahead in the
    /// queue, past jobs for which there is no place. So a limit of so many [at once](Self::at_once)
    /// needs pools with more threads than that, and with more tasks if its handlers are async; with
    /// as many or fewer, no job ever waits for it, and jobs run in the order of the queue. A pool that is
    /// started like this logs a warning. What waits is in memory, see the guide for how much that is.
    ///
    /// The order is that of start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996).
    pub fn in_turn(mut self) -> Self {
        self.keys = Keys::InTurn(BTreeMap::new());
        self
    }

    /// Gives a key so many turns for each one of a key without a weight, which has 1; at least 1. Has an
    /// effect after [`in_turn`](Self::in_turn) only.
    ///
    /// The key is that of [`Enqueue::key`](crate::Enqueue::key), or the value of the field that
    /// `#[job(key = "tenant")]` names; that of several fields is a JSON list of them.
    pub fn weight(mut self, key: impl Into<String>, turns: u32) -> Self {
        if let Keys::InTurn(weights) = &mut self.keys {
            weights.insert(key.into(), turns.max(1));
        }
        self
    }

    /// At most so many run at the same time; at least 1.
    pub fn at_once(mut self, jobs: u32) -> Self {
        self.at_once = Some(jobs.max(1));
        self
    }

    /// At most so many begin in this time, evenly: ten in a second means one in each tenth.
    ///
    /// In any period of this length, at most so many jobs and one begin, or as many more as
    /// [`burst`](Self::burst) says; and one more where jobs that were let through begin late, as their queue
    /// was paused or no worker was free. Each attempt counts, as many times as the job
    /// [costs](crate::Enqueue::cost). The count is in memory, and begins anew with the process.
    pub fn rate(mut self, jobs: u32, period: Duration) -> Self {
        let burst = self.rate.map_or(1, |rate| rate.burst);
        let interval = period / jobs.max(1);
        self.rate = Some(Rate { interval, burst });
        self
    }

    /// Lets so many begin together after a time in which fewer began than might have; at least 1,
    /// the default. Has no effect without a [`rate`](Self::rate).
    pub fn burst(mut self, jobs: u32) -> Self {
        if let Some(rate) = &mut self.rate {
            rate.burst = jobs.max(1);
        }
        self
    }

    /// The limit of jobs whose handlers were told to slow down: it lets all through that it is not
    /// closed for.
    pub(super) fn of_held() -> Self {
        Self::on(Scope::Held).by_key()
    }

    pub(super) fn is_in_turn(&self) -> bool {
        matches!(self.keys, Keys::InTurn(_))
    }

    /// Whether it matters how many run: a rate counts beginnings alone. The limit of jobs that were told
    /// to slow down forgets a key only when none of its jobs has a place.
    pub(super) fn counts_running(&self) -> bool {
        self.at_once.is_some() || matches!(self.scope, Scope::Held)
    }

    pub(super) fn concerns(&self, job: &Subject<'_>) -> bool {
        match &self.scope {
            Scope::Queue(queue) => queue == job.queue,
            Scope::Kind(kind) => kind == job.kind,
            Scope::Held => true,
        }
    }
}

/// What the limit is called where it is the reason for which a job waits.
impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.scope {
            Scope::Queue(queue) => write!(f, "the limit of the queue {queue:?}")?,
            Scope::Kind(kind) => write!(f, "the limit of the kind {kind:?}")?,
            Scope::Held => return f.write_str("a handler that was told to slow down"),
        }
        match self.keys {
            Keys::Same => {}
            Keys::Apart => f.write_str(", of each key")?,
            Keys::InTurn(_) => f.write_str(", for which keys take turns")?,
        }
        if let Some(at_once) = self.at_once {
            write!(f, ", {at_once} at once")?;
        }
        if let Some(rate) = self.rate {
            write!(f, ", one in {:?}", rate.interval)?;
        }
        Ok(())
    }
}
