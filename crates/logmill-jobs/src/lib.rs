//! Typed background jobs in process, on the durable queue [`logmill`](https://docs.rs/logmill).
//!
//! A job is a type that serde can serialize; a handler is a plain function that takes it. Enqueueing
//! one returns at once, and workers of the same process run it later: with retries and backoff,
//! priorities, unique jobs and results, and so that no crash loses a job.
//!
//! ```
//! use logmill_jobs::{Context, Job, JobResult, Mill, State, Workers, discard, retry_in, secs};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize, Job)]
//! #[job(kind = "send_welcome", queue = "mail", max_retries = 3)]
//! struct SendWelcome {
//!     user_id: u64,
//! }
//!
//! fn send_welcome(job: SendWelcome, State(mailer): State<Mailer>, cx: Context) -> JobResult {
//!     match mailer.send(job.user_id) {
//!         Answer::Sent => Ok(()),
//!         Answer::Busy => Err(retry_in(secs(60), format!("busy at attempt {}", cx.attempt()))),
//!         Answer::NoSuchUser => Err(discard("no such user")),
//!     }
//! }
//! # #[derive(Clone)]
//! # struct Mailer;
//! # enum Answer { Sent, Busy, NoSuchUser }
//! # impl Mailer {
//! #     fn send(&self, user: u64) -> Answer {
//! #         match user { 0 => Answer::NoSuchUser, 1 => Answer::Busy, _ => Answer::Sent }
//! #     }
//! # }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("jobs");
//! let mill = Mill::open(path)?;
//! let workers = Workers::new(Mailer).on(send_welcome).start(&mill)?;
//! let handle = mill.enqueue(SendWelcome { user_id: 42 })?;
//! handle.wait()?;
//! workers.shutdown(secs(30));
//! mill.close()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Guarantees
//! - **At least once.** A job whose enqueue has returned runs until a handler has completed it, or it
//!   is dead, cancelled or expired; also if the process dies in between. A handler may run twice for
//!   the same job, so what it does outside has to be idempotent.
//! - **Exactly once for what the mill stores.** The completion of a job, its result, the jobs that
//!   [follow](Context::then) and the release of its unique key are one step: after the death of the
//!   process either all of it has happened, or none. A power cut may undo the last steps; with
//!   [`MillBuilder::sync`] it does not.
//!
//! # Features
//! - `embedded` (default): the engine that runs in this process. Without it, the crate has the types
//!   of jobs and the [`backend`] seam.
//! - `schedules`: jobs that are enqueued again and again, by cron expressions or at intervals.
//! - `tokio`: handlers that are async functions.
//! - `tower`: handlers that are services of the crate [`tower`](https://docs.rs/tower), with its layers
//!   around them.
//! - `conformance`: checks of what a [`backend`] has to do, for the tests of one.
//! - `metrics`: the figures as metrics of the crate [`metrics`](https://docs.rs/metrics).
//! - `testing`: [`testing`], with a manual clock and simulated power cuts, for tests of handlers and flows.
//! - `webhooks`: [`webhooks`], outgoing HTTP notifications that are jobs.
//! - `msgpack`, `postcard`: other [formats](Format) than JSON.

mod again;
mod backoff;
mod before;
mod cancelling;
mod clock;
mod codec;
mod context;
mod dead_jobs;
mod edit;
mod ended;
mod enqueue;
mod error;
mod events;
mod expiry;
mod failure;
mod fields;
mod figures;
mod flow;
mod handle;
mod handler;
mod id;
mod identity;
mod job;
mod keys;
mod limits;
mod listing;
mod locks;
mod middleware;
mod mill;
mod notice;
mod options;
mod order;
mod parked;
mod paused;
mod prepared;
mod progress;
mod queue;
mod queues;
mod refused;
mod retention;
mod running;
#[cfg(feature = "schedules")]
mod schedules;
mod settle;
mod span;
#[cfg(feature = "testing")]
pub mod testing;
mod together;
mod unique;
mod user_code;
mod waiters;
mod waiting;
#[cfg(feature = "webhooks")]
pub mod webhooks;
mod workers;

pub mod backend;

pub use backoff::Backoff;
pub use codec::{CodecError, Format, Layer};
pub use context::{Attempt, Context, StopCause};
pub use dead_jobs::{DeadCursor, DeadPage};
pub use edit::{Edit, EditError};
pub use enqueue::Enqueue;
pub use error::{EnqueueError, OpenError, StartError, WaitError};
pub use events::{Event, EventKind, Events};
pub use failure::{
    Failure, FailureError, JobResult, cancel, discard, rate_limited, retry_in, snooze,
};
pub use figures::{KindLoad, KindStats, Load, Times};
pub use flow::{
    Batch, Flow, FlowHandle, FlowId, FlowTree, InputShape, Inputs, JobNode, NodeStatus, OnFailure,
    ParseFlowIdError, TreeJob,
};
#[doc(hidden)]
pub use flow::{Noted, StoredInputs};
pub use handle::{JobHandle, Outcome, Status};
#[cfg(feature = "tower")]
pub use handler::JobRequest;
#[doc(hidden)]
pub use handler::checks as handler_checks;
#[cfg(feature = "tokio")]
pub use handler::{AsyncChunkHandler, AsyncHandler};
pub use handler::{Chunk, ChunkHandler, ChunkJob, ChunkJobs};
pub use handler::{FromAttempt, FromRef, Handler, State};
pub use id::{JobId, ParseIdError};
#[doc(hidden)]
pub use job::key_of;
pub use job::{Job, KindOptions, Priority, days, hours, minutes, secs};
pub use limits::Limit;
pub use listing::{JobCursor, JobPage, QueuedJob, WithArguments};
pub use logmill_jobs_macros::Job;
/// Has the compiler say what is wrong with a function that does not fit as a handler.
///
/// Without it, the error is at [`Workers::on`], and says that the function is not a handler. With it, the
/// error is at the argument, the type that is returned, or the value in an async function that keeps its
/// future from being `Send`. It belongs to functions without generic parameters, blocking or async, of a
/// job or of a [`Chunk`], and changes nothing at run time. Of an async function, a copy is checked: an `impl` in its body has to be
/// for a type that the body defines.
///
/// ```
/// use logmill_jobs::{Context, Job, JobResult, State, debug_handler};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, Job)]
/// #[job(kind = "resize")]
/// struct Resize {
///     image: u64,
/// }
///
/// #[derive(Clone)]
/// struct Studio;
///
/// #[debug_handler]
/// fn resize(job: Resize, State(_studio): State<Studio>, cx: Context) -> JobResult {
///     println!("resizing {} at attempt {}", job.image, cx.attempt());
///     Ok(())
/// }
/// ```
///
/// The workers' state is assumed to be the T of the only `State<T>`, or `()` if there is none. Name it
/// where a handler takes a part of the state, or an argument of a type that is made from the state:
///
/// ```
/// # use logmill_jobs::{FromRef, Job, JobResult, State, debug_handler};
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Serialize, Deserialize, Job)]
/// # #[job(kind = "resize")]
/// # struct Resize;
/// #[derive(Clone)]
/// struct App {
///     quality: u8,
/// }
///
/// impl FromRef<App> for u8 {
///     fn from_ref(app: &App) -> Self {
///         app.quality
///     }
/// }
///
/// #[debug_handler(state = App)]
/// fn resize(_: Resize, State(quality): State<u8>) -> JobResult {
///     println!("with a quality of {quality}");
///     Ok(())
/// }
/// ```
///
/// A job that is taken by reference is reported at that argument:
///
/// ```compile_fail
/// # use logmill_jobs::{Job, JobResult, debug_handler};
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Serialize, Deserialize, Job)]
/// # #[job(kind = "resize")]
/// # struct Resize;
/// #[debug_handler]
/// fn resize(_: &Resize) -> JobResult {
///     Ok(()) // error: a handler takes its job by value, not by reference
/// }
/// ```
#[doc(inline)]
pub use logmill_jobs_macros::debug_handler;
pub use middleware::{After, Enqueueing, Middleware};
pub use mill::Mill;
#[cfg(feature = "embedded")]
pub use options::MillBuilder;
pub use options::MillOptions;
pub use order::{BlockedKey, Order};
pub use parked::ParkedKind;
pub use paused::PausedJobs;
pub use progress::Progress;
pub use queue::{DeadJob, JobQueue};
#[cfg(feature = "schedules")]
pub use schedules::{Misfire, Schedule, ScheduleError, ScheduleInfo, Scheduled, Tick};
pub use span::TraceContext;
pub use together::Together;
pub use unique::Unique;
pub use waiting::WaitsFor;
pub use workers::{ChunkOptions, Pool, PoolHealth, Scale, ShutdownReport, StuckJob, Workers};

/// Compiles and runs the snippets of the guides.
#[cfg(all(doctest, feature = "embedded"))]
mod snippets {
    #[doc = include_str!("../../../docs/JOBS.md")]
    mod guide {}
    #[doc = include_str!("../../../docs/jobs/bullmq.md")]
    mod bullmq {}
    #[doc = include_str!("../../../docs/jobs/celery.md")]
    mod celery {}
    #[doc = include_str!("../../../docs/jobs/rq.md")]
    mod rq {}
}
