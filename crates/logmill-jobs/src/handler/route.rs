//! The way from stored bytes to a handler and back: decode, call, encode. The handlers of a pool are
//! boxed here, so that the types of jobs go no further.

use std::marker::PhantomData;

#[cfg(feature = "tokio")]
use super::AsyncHandler;
use super::Handler;
use super::chunk::ChunkRoute;
use crate::codec::CodecError;
use crate::context::Attempt;
use crate::enqueue::header;
use crate::handle::is_unit;
use crate::mill::Mill;
use crate::settle::Returned;
use crate::{Failure, Job, KindOptions, user_code};

/// The handler of a kind.
pub(crate) trait Route<S>: Send + Sync {
    /// The kinds that it takes, its own first.
    fn kinds(&self) -> Vec<&'static str>;

    fn options(&self) -> &KindOptions;

    /// How it takes its jobs.
    fn intake(&self) -> Intake {
        Intake::Thread
    }

    /// The handler, if it takes chunks.
    fn of_chunks(&self) -> Option<&dyn ChunkRoute<S>> {
        None
    }

    /// Whether its attempts go on as tasks.
    fn is_async(&self) -> bool {
        let intake = self.intake();
        matches!(intake, Intake::Task | Intake::Chunks { is_async: true })
    }

    /// Runs an attempt, or begins it.
    fn call(&self, state: &S, attempt: &Attempt<'_>) -> Called;
}

/// How a handler takes its jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intake {
    /// One at a time, on the worker's thread.
    Thread,
    /// One at a time, as a task.
    Task,
    /// Several at a time, on a worker's thread or as a task: see [`ChunkRoute`].
    Chunks { is_async: bool },
}

/// What a handler has done so far.
pub(crate) enum Called {
    Returned(Returned),
    /// It is to be awaited.
    #[cfg(feature = "tokio")]
    Begun(std::pin::Pin<Box<dyn Future<Output = Returned> + Send>>),
}

/// A handler that runs on the worker's thread.
pub(crate) struct SyncRoute<J, H, M> {
    handler: H,
    options: KindOptions,
    types: PhantomData<fn() -> (J, M)>,
}

impl<J: Job, H, M> SyncRoute<J, H, M> {
    pub(crate) fn new(handler: H) -> Self {
        Self {
            handler,
            options: J::kind_options(),
            types: PhantomData,
        }
    }
}

impl<S, J: Job, H: Handler<J, S, M>, M> Route<S> for SyncRoute<J, H, M> {
    fn kinds(&self) -> Vec<&'static str> {
        kinds_of::<J>()
    }

    fn options(&self) -> &KindOptions {
        &self.options
    }

    #[inline]
    fn call(&self, state: &S, attempt: &Attempt<'_>) -> Called {
        let run = || {
            let job = decode::<J>(attempt)?;
            let output = self.handler.call(job, state, attempt)?;
            encode(attempt.mill, output)
        };
        Called::Returned(user_code::call(run).unwrap_or_else(|panic| Err(Failure::retry(panic))))
    }
}

pub(super) fn kinds_of<J: Job>() -> Vec<&'static str> {
    let aliases = J::ALIASES.iter().copied();
    std::iter::once(J::KIND).chain(aliases).collect()
}

// Always inlined, as the two below it are: what is decoded is moved less often.
#[inline(always)]
pub(super) fn decode<J: Job>(attempt: &Attempt<'_>) -> Result<J, Failure> {
    let tag = attempt.claim.header(header::CODEC);
    let payload = attempt.claim.payload();
    match attempt.mill.inner.codec.decode(tag, payload) {
        Ok(job) => Ok(job),
        Err(error) => Err(undecodable(&error)),
    }
}

#[cold]
fn undecodable(error: &CodecError) -> Failure {
    Failure::retry(format!("the arguments cannot be decoded: {error}"))
}

#[inline]
pub(super) fn encode<T: serde::Serialize + 'static>(mill: &Mill, output: T) -> Returned {
    if is_unit::<T>() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    match mill.inner.codec.encode(&output, &mut bytes) {
        Ok(()) => Ok(Some(bytes)),
        Err(error) => Err(Failure::retry(format!(
            "the output cannot be encoded: {error}"
        ))),
    }
}

/// A handler that is awaited.
#[cfg(feature = "tokio")]
pub(crate) struct AsyncRoute<J, H, M>(SyncRoute<J, H, M>);

#[cfg(feature = "tokio")]
impl<J: Job, H, M> AsyncRoute<J, H, M> {
    pub(crate) fn new(handler: H) -> Self {
        Self(SyncRoute::new(handler))
    }
}

#[cfg(feature = "tokio")]
impl<S, J: Job, H: AsyncHandler<J, S, M>, M> Route<S> for AsyncRoute<J, H, M> {
    fn kinds(&self) -> Vec<&'static str> {
        kinds_of::<J>()
    }

    fn options(&self) -> &KindOptions {
        &self.0.options
    }

    fn intake(&self) -> Intake {
        Intake::Task
    }

    fn call(&self, state: &S, attempt: &Attempt<'_>) -> Called {
        let begin = || {
            let job = decode::<J>(attempt)?;
            self.0.handler.call(job, state, attempt)
        };
        let future = match user_code::call(begin) {
            Ok(Ok(future)) => future,
            Ok(Err(failure)) => return Called::Returned(Err(failure)),
            Err(panic) => return Called::Returned(Err(Failure::retry(panic))),
        };
        let mill = attempt.mill.clone();
        Called::Begun(Box::pin(async move {
            let output = future.await?;
            encode(&mill, output)
        }))
    }
}
