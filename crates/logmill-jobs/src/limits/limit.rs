//! What an application says of a limit: which jobs it concerns, and how many it lets through.

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
///     .limit(Limit::on_queue("mail").rate(10, secs(1)).burst(5));
/// let mill = Mill::builder(dir.path().join("jobs")).options(options).open()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Limit {
    scope: Scope,
    pub(super) by_key: bool,
    pub(super) at_once: Option<u32>,
    pub(super) rate: Option<Rate>,
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
            by_key: false,
            at_once: None,
            rate: None,
        }
    }

    /// Counts the jobs of each key by themselves, as each tenant's. Jobs without a key are not
    /// limited then.
    ///
    /// The key is that of `#[job(key = "tenant")]` or of [`Enqueue::key`](crate::Enqueue::key).
    pub fn by_key(mut self) -> Self {
        self.by_key = true;
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
    /// [`burst`](Self::burst) says. Each attempt counts, as many times as the job
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
        if self.by_key {
            f.write_str(", of each key")?;
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
