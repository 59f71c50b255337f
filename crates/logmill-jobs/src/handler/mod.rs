//! Handlers: plain functions that take a job and what they need of the application and the attempt.

pub mod checks;
mod chunk;
mod extract;
mod functions;
mod route;
#[cfg(feature = "tower")]
mod service;

#[cfg(feature = "tokio")]
pub use self::chunk::AsyncChunkHandler;
#[cfg(feature = "tokio")]
pub(crate) use self::chunk::{Awaited, EndOfChunk};
pub(crate) use self::chunk::{Blocking, CalledChunk, ChunkRoute, Part, RouteOfChunks, not_called};
pub use self::chunk::{Chunk, ChunkHandler, ChunkJob, ChunkJobs};
pub use self::extract::{FromAttempt, FromRef, State};
#[cfg(feature = "tokio")]
pub(crate) use self::route::AsyncRoute;
pub(crate) use self::route::{Called, Intake, Route, SyncRoute};
#[cfg(feature = "tower")]
pub use self::service::JobRequest;
#[cfg(feature = "tower")]
pub(crate) use self::service::{OfService, ServiceHandler};

use crate::context::Attempt;
use crate::{Failure, Job};

/// A function that runs jobs of type `J` in an application whose state is an `S`.
///
/// Implemented for functions and closures whose first argument is the job and whose others, up to
/// six, are extractors ([`State`], [`Context`](crate::Context)), and that return
/// `Result<J::Output, E>` for any error that becomes a [`Failure`]. `M` tells their shapes apart and
/// is never written out.
#[diagnostic::on_unimplemented(
    message = "this function cannot run jobs",
    label = "not a handler",
    note = "the first argument of a handler is its job, a type with `#[derive(Job)]`, by value",
    note = "each further argument is an extractor, such as `State<T>` or `Context`",
    note = "it returns `Result<T, E>`, where T is the job's output (`()`, or that of \
            `#[job(output = ...)]`) and E any error that can be displayed",
    note = "an `async fn` is registered by `on_async`, any other function by `on`"
)]
pub trait Handler<J: Job, S, M>: Send + Sync + 'static {
    /// Runs a job.
    ///
    /// # Errors
    /// The attempt has not completed the job.
    fn call(&self, job: J, state: &S, attempt: &Attempt<'_>) -> Result<J::Output, Failure>;
}

/// An async function that runs jobs of type `J`, see [`Handler`].
#[cfg(feature = "tokio")]
#[diagnostic::on_unimplemented(
    message = "this function cannot run jobs as an async handler",
    label = "not an async handler",
    note = "the first argument of a handler is its job, a type with `#[derive(Job)]`, by value",
    note = "each further argument is an extractor, such as `State<T>` or `Context`",
    note = "its future is `Send` and returns `Result<T, E>`, where T is the job's output (`()`, or \
            that of `#[job(output = ...)]`) and E any error that can be displayed"
)]
pub trait AsyncHandler<J: Job, S, M>: Send + Sync + 'static {
    /// Begins to run a job.
    ///
    /// # Errors
    /// An extractor failed, so that the attempt has not completed the job.
    fn call(
        &self,
        job: J,
        state: &S,
        attempt: &Attempt<'_>,
    ) -> Result<impl Future<Output = Result<J::Output, Failure>> + Send + 'static, Failure>;
}
