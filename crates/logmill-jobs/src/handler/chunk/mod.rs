//! Handlers that take several jobs of their kind at once, and say of each how it ends.
//!
//! ```text
//!  attempts ─▶ decode each ─▶ Chunk ─▶ handler: done(), done_with(), fail() of single jobs
//!                 │ fails alone             │
//!                 ▼                         ▼ Ok, an error or a panic: for all others
//!                 └───────▶ a result for each attempt
//! ```
//!
//! One that is awaited has been called when its future is made, and ends when that does.

mod functions;
mod route;

use std::ops::Deref;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

#[cfg(feature = "tokio")]
pub use self::functions::AsyncChunkHandler;
pub use self::functions::ChunkHandler;
#[cfg(feature = "tokio")]
pub(crate) use self::route::{Awaited, EndOfChunk};
pub(crate) use self::route::{Blocking, CalledChunk, ChunkRoute, Part, RouteOfChunks, not_called};
use super::route::encode;
use crate::context::Context;
use crate::settle::Returned;
use crate::{Failure, Job, JobId, JobResult, user_code};

/// Jobs of a kind that a handler takes at once, registered by
/// [`Workers::on_chunk`](crate::Workers::on_chunk) or
#[cfg_attr(
    feature = "tokio",
    doc = "[`Workers::on_chunk_async`](crate::Workers::on_chunk_async)."
)]
#[cfg_attr(not(feature = "tokio"), doc = "`Workers::on_chunk_async`.")]
///
/// It is used as the slice of [`ChunkJob`]s that it is, and has at least one. What the handler returns
/// is how those jobs end of which it has said nothing:
///
/// ```
/// use logmill_jobs::{Chunk, Job, JobResult, discard, secs, retry_in};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, Job)]
/// #[job(kind = "send_mail")]
/// struct SendMail {
///     to: String,
/// }
///
/// # fn deliver(_: &[&str]) -> std::io::Result<Vec<u16>> { Ok(Vec::new()) }
/// fn send_mails(mails: Chunk<SendMail>) -> JobResult {
///     let to: Vec<_> = mails.iter().map(|mail| &*mail.job.to).collect();
///     let answers = deliver(&to)?; // an error here fails the attempts of all
///     for (mail, answer) in mails.iter().zip(answers) {
///         match answer {
///             450 => mail.fail(retry_in(secs(60), "try again later")),
///             550 => mail.fail(discard("no such address")),
///             _ => {}
///         }
///     }
///     Ok(()) // completes the others
/// }
/// ```
pub struct Chunk<J> {
    jobs: Vec<ChunkJob<J>>,
}

/// One of the jobs of a [`Chunk`].
pub struct ChunkJob<J> {
    /// The job.
    pub job: J,
    context: Context,
    said: Arc<Said>,
    at: usize,
}

/// What a handler has said of the jobs of its chunk.
struct Said(Mutex<Vec<Option<Returned>>>);

impl<J> Chunk<J> {
    /// Whether the handler should end: its time is up, or the workers are being shut down.
    ///
    /// A job of its own may be cancelled: [`ChunkJob::context`] says so.
    pub fn is_stopping(&self) -> bool {
        self.check().is_err()
    }

    /// Ends the handler by `?` if it should end, as [`Context::check`] does for a handler of one job.
    /// The jobs of which it has said nothing are given back without an attempt at a shutdown, and have
    /// failed an attempt if the time is up.
    ///
    /// # Errors
    /// A failure that does this.
    pub fn check(&self) -> JobResult {
        let first = self.jobs.first();
        match first.and_then(|job| job.context.stop_cause_of_chunk()) {
            None => Ok(()),
            Some(cause) => Err(cause.failure()),
        }
    }

    /// When the handler's time is up, if the kind has a timeout.
    pub fn deadline(&self) -> Option<Instant> {
        self.jobs.first()?.context.deadline()
    }
}

impl<J> ChunkJob<J> {
    /// The job's id.
    pub fn id(&self) -> &JobId {
        self.context.id()
    }

    /// The number of this attempt, see [`Context::attempt`].
    pub fn attempt(&self) -> u32 {
        self.context.attempt()
    }

    /// The context of this job's attempt: its steps, its progress, what follows from its completion.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Has the job completed when the handler ends, also if that returns an error or panics. What was
    /// said last of a job counts.
    pub fn done(&self)
    where
        J: Job<Output = ()>,
    {
        self.say(Ok(None));
    }

    /// Has the job completed with this output when the handler ends, also if that returns an error or
    /// panics. A job that has an output and of which a handler says nothing has failed an attempt.
    ///
    /// The output is encoded at once. If it cannot be, the attempt has failed.
    ///
    /// ```
    /// use logmill_jobs::{Chunk, Job, JobResult};
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Serialize, Deserialize, Job)]
    /// #[job(kind = "embed", output = Vec<f32>)]
    /// struct Embed {
    ///     text: String,
    /// }
    ///
    /// # fn model(texts: &[&str]) -> Vec<Vec<f32>> { vec![Vec::new(); texts.len()] }
    /// fn embed(chunk: Chunk<Embed>) -> JobResult {
    ///     let texts: Vec<_> = chunk.iter().map(|one| &*one.job.text).collect();
    ///     for (one, embedding) in chunk.iter().zip(model(&texts)) {
    ///         one.done_with(embedding);
    ///     }
    ///     Ok(())
    /// }
    /// ```
    pub fn done_with(&self, output: J::Output)
    where
        J: Job,
    {
        self.say(encode(self.context.mill(), output));
    }

    /// Has the attempt end with this failure when the handler ends, whatever that returns.
    ///
    /// It may be all that a handler of one job can return: any error, or what
    /// [`retry_in`](crate::retry_in), [`snooze`](crate::snooze), [`discard`](crate::discard) and the
    /// like make.
    pub fn fail(&self, failure: impl Into<Failure>) {
        self.say(Err(failure.into()));
    }

    fn say(&self, result: Returned) {
        self.said.say(self.at, result);
    }
}

impl Said {
    fn of(jobs: usize) -> Arc<Self> {
        let nothing = std::iter::repeat_with(|| None);
        Arc::new(Self(Mutex::new(nothing.take(jobs).collect())))
    }

    fn say(&self, at: usize, result: Returned) {
        // There is none any more once the handler has ended: a job can outlive it.
        if let Some(said) = self.0.lock().get_mut(at) {
            *said = Some(result);
        }
    }

    /// How each attempt ends, with this for those of which nothing was said.
    fn end(&self, rest: &Returned) -> Vec<Returned> {
        let said = std::mem::take(&mut *self.0.lock());
        let said = said.into_iter();
        said.map(|said| said.unwrap_or_else(|| rest.clone()))
            .collect()
    }
}

impl<J> Deref for Chunk<J> {
    type Target = [ChunkJob<J>];

    fn deref(&self) -> &[ChunkJob<J>] {
        &self.jobs
    }
}

impl<'a, J> IntoIterator for &'a Chunk<J> {
    type Item = &'a ChunkJob<J>;
    type IntoIter = std::slice::Iter<'a, ChunkJob<J>>;

    fn into_iter(self) -> Self::IntoIter {
        self.jobs.iter()
    }
}

impl<J> IntoIterator for Chunk<J> {
    type Item = ChunkJob<J>;
    type IntoIter = ChunkJobs<J>;

    fn into_iter(mut self) -> ChunkJobs<J> {
        ChunkJobs(std::mem::take(&mut self.jobs).into_iter())
    }
}

/// The jobs of a [`Chunk`], by value.
pub struct ChunkJobs<J>(std::vec::IntoIter<ChunkJob<J>>);

impl<J> Iterator for ChunkJobs<J> {
    type Item = ChunkJob<J>;

    fn next(&mut self) -> Option<ChunkJob<J>> {
        self.0.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl<J> ExactSizeIterator for ChunkJobs<J> {}

// One by one, here and below: if the drops of two jobs panic, the second would abort the process.
impl<J> Drop for Chunk<J> {
    fn drop(&mut self) {
        self.jobs.drain(..).for_each(user_code::discard);
    }
}

impl<J> Drop for ChunkJobs<J> {
    fn drop(&mut self) {
        self.0.by_ref().for_each(user_code::discard);
    }
}

impl<J> std::fmt::Debug for Chunk<J> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.jobs).finish()
    }
}

impl<J> std::fmt::Debug for ChunkJobs<J> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.as_slice()).finish()
    }
}

impl<J> std::fmt::Debug for ChunkJob<J> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkJob")
            .field("context", &self.context)
            .finish_non_exhaustive()
    }
}
