//! The way from several attempts to a handler of chunks, and back to a result for each.

use std::marker::PhantomData;
use std::sync::Arc;

use super::super::route::{Called, Intake, Route, decode, kinds_of};
#[cfg(feature = "tokio")]
use super::AsyncChunkHandler;
use super::{Chunk, ChunkHandler, ChunkJob, Said};
use crate::context::Attempt;
use crate::handle::is_unit;
use crate::settle::Returned;
use crate::span::{self, Entering};
use crate::{ChunkOptions, Failure, Job, KindOptions, user_code};

/// The handler of a kind, which takes chunks of its jobs.
pub(crate) trait ChunkRoute<S> {
    /// How large a chunk is, and how long a job waits for it.
    fn chunk_options(&self) -> ChunkOptions;

    /// Runs these attempts, or begins them.
    fn call_chunk(&self, state: &S, parts: &[Part<'_>]) -> CalledChunk;
}

/// An attempt that runs together with others, and its span.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    pub(crate) attempt: &'a Attempt<'a>,
    pub(crate) span: Option<&'a Arc<Entering>>,
}

impl Part<'_> {
    /// Runs code that concerns this attempt alone.
    pub(crate) fn within<T>(&self, code: impl FnOnce() -> T) -> T {
        span::within(self.span.map(|span| &**span), code)
    }
}

/// Attempts whose handler was called.
pub(crate) struct CalledChunk {
    pub(crate) called: Called,
    pub(crate) end: EndOfChunk,
}

/// From what the handler has returned to a result for each attempt, in their order.
pub(crate) type EndOfChunk = Box<dyn FnOnce(Returned) -> Vec<Returned> + Send>;

impl CalledChunk {
    /// A handler that is not called, as no attempt needs it.
    pub(crate) fn of_none() -> Self {
        Self {
            called: Called::Returned(Ok(None)),
            end: Box::new(|_| Vec::new()),
        }
    }

    /// The handler of a chunk of one.
    fn of_one(self) -> Called {
        let Self { called, end } = self;
        let last = |returned| end(returned).pop().unwrap_or_else(not_called);
        match called {
            Called::Returned(returned) => Called::Returned(last(returned)),
            #[cfg(feature = "tokio")]
            Called::Begun(future) => Called::Begun(Box::pin(async move { last(future.await) })),
        }
    }
}

/// The result of an attempt for which there is none: a fault of this layer, that loses no job.
pub(crate) fn not_called() -> Returned {
    Err(Failure::retry("the handler was not called".to_owned()))
}

/// The result of an attempt of which a handler has said nothing, although its job has an output.
fn no_output() -> Failure {
    Failure::retry("the handler has said no output of this job".to_owned())
}

/// A handler of chunks of `J`s, which is called by a `C`.
pub(crate) struct RouteOfChunks<J, C> {
    caller: C,
    options: KindOptions,
    chunks: ChunkOptions,
    types: PhantomData<fn() -> J>,
}

/// How a handler is called.
pub(crate) trait Caller<J, S>: Send + Sync {
    const IS_ASYNC: bool;

    /// Calls the handler. Its panics are failures.
    fn call(&self, chunk: Chunk<J>, state: &S) -> Called;
}

/// A handler that runs on the worker's thread.
pub(crate) struct Blocking<H, M>(H, PhantomData<fn() -> M>);

/// A handler that is awaited.
#[cfg(feature = "tokio")]
pub(crate) struct Awaited<H, M>(H, PhantomData<fn() -> M>);

impl<H, M> Blocking<H, M> {
    pub(crate) fn new(handler: H) -> Self {
        Self(handler, PhantomData)
    }
}

#[cfg(feature = "tokio")]
impl<H, M> Awaited<H, M> {
    pub(crate) fn new(handler: H) -> Self {
        Self(handler, PhantomData)
    }
}

impl<J: Job, C> RouteOfChunks<J, C> {
    pub(crate) fn new(caller: C, chunks: ChunkOptions) -> Self {
        Self {
            caller,
            options: J::kind_options(),
            chunks,
            types: PhantomData,
        }
    }
}

impl<J: Job, S, H: ChunkHandler<J, S, M>, M> Caller<J, S> for Blocking<H, M> {
    const IS_ASYNC: bool = false;

    fn call(&self, chunk: Chunk<J>, state: &S) -> Called {
        let called = user_code::call(|| self.0.call(chunk, state));
        let result = called.unwrap_or_else(|panic| Err(Failure::retry(panic)));
        Called::Returned(result.map(|()| None))
    }
}

#[cfg(feature = "tokio")]
impl<J: Job, S, H: AsyncChunkHandler<J, S, M>, M> Caller<J, S> for Awaited<H, M> {
    const IS_ASYNC: bool = true;

    fn call(&self, chunk: Chunk<J>, state: &S) -> Called {
        match user_code::call(|| self.0.call(chunk, state)) {
            Ok(future) => Called::Begun(Box::pin(async move { future.await.map(|()| None) })),
            Err(panic) => Called::Returned(Err(Failure::retry(panic))),
        }
    }
}

impl<S, J: Job, C: Caller<J, S>> Route<S> for RouteOfChunks<J, C> {
    fn kinds(&self) -> Vec<&'static str> {
        kinds_of::<J>()
    }

    fn options(&self) -> &KindOptions {
        &self.options
    }

    fn intake(&self) -> Intake {
        Intake::Chunks {
            is_async: C::IS_ASYNC,
        }
    }

    fn of_chunks(&self) -> Option<&dyn ChunkRoute<S>> {
        Some(self)
    }

    fn call(&self, state: &S, attempt: &Attempt<'_>) -> Called {
        let part = Part {
            attempt,
            span: None,
        };
        self.call_chunk(state, &[part]).of_one()
    }
}

impl<S, J: Job, C: Caller<J, S>> ChunkRoute<S> for RouteOfChunks<J, C> {
    fn chunk_options(&self) -> ChunkOptions {
        self.chunks
    }

    fn call_chunk(&self, state: &S, parts: &[Part<'_>]) -> CalledChunk {
        let said = Said::of(parts.len());
        let mut chunk = Chunk { jobs: Vec::new() };
        for (at, part) in parts.iter().enumerate() {
            let decoded = part.within(|| user_code::call(|| decode::<J>(part.attempt)));
            match decoded.unwrap_or_else(|panic| Err(Failure::retry(panic))) {
                Ok(job) => chunk.jobs.push(ChunkJob {
                    job,
                    context: part.attempt.context().clone(),
                    said: Arc::clone(&said),
                    at,
                }),
                Err(failure) => said.say(at, Err(failure)),
            }
        }
        let called = match chunk.is_empty() {
            true => Called::Returned(Ok(None)),
            false => self.caller.call(chunk, state),
        };
        let end = move |returned: Returned| {
            said.end(&match returned {
                Ok(_) if !is_unit::<J::Output>() => Err(no_output()),
                returned => returned,
            })
        };
        CalledChunk {
            called,
            end: Box::new(end),
        }
    }
}
