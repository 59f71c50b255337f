//! Jobs: the types that are enqueued, and the options of their kinds.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Backoff, CodecError, InputShape};

/// A type of job: what a producer enqueues and a handler gets.
///
/// Derive it on a type that serde can serialize and deserialize:
///
/// ```
/// use logmill_jobs::{Backoff, Job, secs};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, Job)]
/// #[job(kind = "send_welcome", queue = "mail", max_retries = 3, backoff = Backoff::fixed(secs(60)))]
/// struct SendWelcome {
///     user_id: u64,
/// }
/// assert_eq!(SendWelcome::KIND, "send_welcome");
/// ```
///
/// | `#[job(...)]` | | default |
/// |---|---|---|
/// | `kind = "send_welcome"` | the name under which jobs are stored | required |
/// | `alias = "welcome"` | a former kind, whose jobs this type takes as well; may be repeated | |
/// | `queue = "mail"` | the queue | `"default"` |
/// | `max_retries = 3` | attempts after the first | 4 |
/// | `backoff = Backoff::fixed(secs(60))` | the time before a retry | exponential, 1 s to 5 min |
/// | `timeout = secs(30)` | how long an attempt may take | no limit |
/// | `grace = secs(10)` | after that, until a blocking handler is reported as stuck | 30 s |
/// | `priority = Priority::High` | among the jobs of the queue | `Priority::Normal` |
/// | `expires_after = hours(1)` | then it is not started any more | never |
/// | `output = Receipt` | what the handler returns, kept as the job's result | `()`, not kept |
/// | `inputs = (Charge, Vec<Resize>)` | what it takes from others of its [flow](crate::Flow::join) | `()`, nothing |
/// | `keep_results = hours(1)` | how long the record of its end is kept | the mill's |
/// | `unique = "user_id"` | one job at a time with this value of a field | not unique |
/// | `key = "tenant"` | the field by which limits count | none |
/// | `cost = 5` | as how many jobs it counts for rates | 1 |
///
/// `unique` and `key` also take several fields, `unique("user_id", "day")`; `unique` alone means all
/// fields. A key is the JSON of the fields, so those of a `HashSet`, which has no order, are not equal
/// for equal sets.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a job",
    label = "not a job",
    note = "a job is a type with `#[derive(Serialize, Deserialize, Job)]` and `#[job(kind = \"...\")]`; \
            a handler takes it as its first argument"
)]
pub trait Job: Serialize + DeserializeOwned + Send + 'static {
    /// What the handler returns.
    ///
    /// Kept as the job's result, unless it is `()`.
    type Output: Serialize + DeserializeOwned + Send + 'static;

    /// What the job takes from others of its flow; `()` if it takes nothing.
    type Inputs: InputShape;

    /// The name under which jobs are stored, 1 to 255 bytes. It outlives names in the code: jobs
    /// that wait during a deploy are found by it.
    const KIND: &'static str;

    /// Former kinds, whose jobs are decoded as this type as well.
    const ALIASES: &'static [&'static str] = &[];

    /// The options of the kind.
    fn kind_options() -> KindOptions {
        KindOptions::new()
    }

    /// The key within which the job is unique, if it is.
    ///
    /// # Errors
    /// The key cannot be made; the job is not enqueued.
    fn unique_key(&self) -> Result<Option<String>, CodecError> {
        Ok(None)
    }

    /// The key by which limits count the job, such as its tenant.
    ///
    /// # Errors
    /// The key cannot be made; the job is not enqueued.
    fn limit_key(&self) -> Result<Option<String>, CodecError> {
        Ok(None)
    }
}

/// Which jobs of a queue come first.
///
/// While jobs of several levels wait, the higher ones get most of the workers' turns, and the lower
/// ones some, so that none starves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// After all others.
    Lowest,
    /// Before the lowest.
    Low,
    /// The default.
    #[default]
    Normal,
    /// Before normal ones.
    High,
    /// Before all others.
    Highest,
}

impl Priority {
    /// All levels, the highest first.
    pub const ALL: [Self; 5] = [
        Self::Highest,
        Self::High,
        Self::Normal,
        Self::Low,
        Self::Lowest,
    ];
}

/// The options of a kind: what holds for its jobs unless an enqueue says otherwise.
#[derive(Clone, Debug)]
#[must_use]
pub struct KindOptions {
    pub(crate) queue: &'static str,
    pub(crate) max_retries: u32,
    pub(crate) backoff: Backoff,
    pub(crate) timeout: Option<Duration>,
    pub(crate) grace: Duration,
    pub(crate) keep_results: Option<Duration>,
    pub(crate) priority: Priority,
    pub(crate) expires_after: Option<Duration>,
    pub(crate) cost: u32,
}

/// How long a blocking handler may go on after its timeout by default.
const GRACE: Duration = Duration::from_secs(30);
/// The queue of jobs that name none.
pub(crate) const DEFAULT_QUEUE: &str = "default";

impl Default for KindOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl KindOptions {
    /// The defaults.
    pub const fn new() -> Self {
        Self {
            queue: DEFAULT_QUEUE,
            max_retries: 4,
            backoff: Backoff::DEFAULT,
            timeout: None,
            grace: GRACE,
            keep_results: None,
            priority: Priority::Normal,
            expires_after: None,
            cost: 1,
        }
    }

    /// Sets the queue: 1 to 90 bytes of letters, digits, `-` and `_`.
    pub const fn queue(mut self, queue: &'static str) -> Self {
        self.queue = queue;
        self
    }

    /// Sets how many attempts may follow the first, if that fails; at most 249.
    pub const fn max_retries(mut self, retries: u32) -> Self {
        self.max_retries = retries;
        self
    }

    /// Sets the time before each retry.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// Sets how long an attempt may take.
    ///
    /// After that, [`Context::is_stopping`](crate::Context::is_stopping) is true, and the attempt of
    /// an async handler ends at its next await and has failed. A blocking handler that does not look
    /// goes on, and counts as stuck after its [grace](Self::grace).
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sets how long a blocking handler may go on after its [timeout](Self::timeout) until it counts
    /// as [stuck](crate::Pool::stuck): it is reported, and another thread takes its place. Default:
    /// 30 s.
    ///
    /// The job stays with the handler until that returns, and what it returns counts.
    pub const fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Sets how long the records of how jobs of the kind ended are kept, with their results, instead
    /// of [`MillOptions::keep_results`](crate::MillOptions::keep_results).
    pub const fn keep_results(mut self, time: Duration) -> Self {
        self.keep_results = Some(time);
        self
    }

    /// Sets the priority among the jobs of the queue.
    pub const fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// Sets as how many jobs one of this kind counts for [rates](crate::Limit::rate); at least 1. See
    /// [`Enqueue::cost`](crate::Enqueue::cost).
    pub const fn cost(mut self, cost: u32) -> Self {
        self.cost = if cost == 0 { 1 } else { cost };
        self
    }

    /// Sets after how long a job that has not begun is not started any more.
    pub const fn expires_after(mut self, after: Duration) -> Self {
        self.expires_after = Some(after);
        self
    }
}

/// Seconds, for options of jobs.
pub const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Minutes, for options of jobs.
pub const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(minutes.saturating_mul(60))
}

/// Hours, for options of jobs.
pub const fn hours(hours: u64) -> Duration {
    Duration::from_secs(hours.saturating_mul(3600))
}

/// Days, for options of jobs.
pub const fn days(days: u64) -> Duration {
    Duration::from_secs(days.saturating_mul(86_400))
}

/// The key that these values make: as JSON, with the keys of maps in order.
#[doc(hidden)]
pub fn key_of(values: &impl Serialize) -> Result<String, CodecError> {
    let value = serde_json::to_value(values).map_err(CodecError::new)?;
    Ok(value.to_string())
}
