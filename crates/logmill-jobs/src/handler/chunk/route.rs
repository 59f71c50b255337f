//! The way from several attempts to a handler of chunks, and back to a result for each.

use std::marker::PhantomData;

use super::super::route::{Called, Intake, Route, decode, kinds_of};
use super::{Chunk, ChunkHandler, ChunkJob, Said};
use crate::context::Attempt;
use crate::settle::Returned;
use crate::span::{self, Entering};
use crate::{ChunkOptions, Failure, Job, KindOptions, user_code};

/// The handler of a kind, which takes chunks of its jobs.
pub(crate) trait ChunkRoute<S> {
    /// How large a chunk is, and how long a job waits for it.
    fn chunk_options(&self) -> ChunkOptions;

    /// Runs these attempts. Returns as many results, in their order.
    fn call_chunk(&self, state: &S, parts: &[Part<'_>]) -> Vec<Returned>;
}

/// An attempt that runs together with others, and its span.
#[derive(Clone, Copy)]
pub(crate) struct Part<'a> {
    pub(crate) attempt: &'a Attempt<'a>,
    pub(crate) span: Option<&'a Entering>,
}

impl Part<'_> {
    /// Runs code that concerns this attempt alone.
    pub(crate) fn within<T>(&self, code: impl FnOnce() -> T) -> T {
        span::within(self.span, code)
    }
}

/// The result of an attempt for which there is none: a fault of this layer, that loses no job.
pub(crate) fn not_called() -> Returned {
    Err(Failure::retry("the handler was not called".to_owned()))
}

/// A handler that runs on the worker's thread.
pub(crate) struct RouteOfChunks<J, H, M> {
    handler: H,
    options: KindOptions,
    chunks: ChunkOptions,
    types: PhantomData<fn() -> (J, M)>,
}

impl<J: Job, H, M> RouteOfChunks<J, H, M> {
    pub(crate) fn new(handler: H, chunks: ChunkOptions) -> Self {
        Self {
            handler,
            options: J::kind_options(),
            chunks,
            types: PhantomData,
        }
    }
}

impl<S, J: Job, H: ChunkHandler<J, S, M>, M> Route<S> for RouteOfChunks<J, H, M> {
    fn kinds(&self) -> Vec<&'static str> {
        kinds_of::<J>()
    }

    fn options(&self) -> &KindOptions {
        &self.options
    }

    fn intake(&self) -> Intake {
        Intake::Chunks
    }

    fn of_chunks(&self) -> Option<&dyn ChunkRoute<S>> {
        Some(self)
    }

    fn call(&self, state: &S, attempt: &Attempt<'_>) -> Called {
        let part = Part {
            attempt,
            span: None,
        };
        let returned = self.call_chunk(state, &[part]).pop();
        Called::Returned(returned.unwrap_or_else(not_called))
    }
}

impl<S, J: Job, H: ChunkHandler<J, S, M>, M> ChunkRoute<S> for RouteOfChunks<J, H, M> {
    fn chunk_options(&self) -> ChunkOptions {
        self.chunks
    }

    fn call_chunk(&self, state: &S, parts: &[Part<'_>]) -> Vec<Returned> {
        let said = Said::of(parts.len());
        let mut chunk = Chunk { jobs: Vec::new() };
        for (at, part) in parts.iter().enumerate() {
            let decoded = part.within(|| user_code::call(|| decode::<J>(part.attempt)));
            match decoded.unwrap_or_else(|panic| Err(Failure::retry(panic))) {
                Ok(job) => chunk.jobs.push(ChunkJob {
                    job,
                    context: part.attempt.context().clone(),
                    said: std::sync::Arc::clone(&said),
                    at,
                }),
                Err(failure) => said.say(at, Err(failure)),
            }
        }
        let mut rest = Ok(());
        if !chunk.is_empty() {
            let called = user_code::call(|| self.handler.call(chunk, state));
            rest = called.unwrap_or_else(|panic| Err(Failure::retry(panic)));
        }
        let results = said.end(&rest).into_iter();
        results.map(|result| result.map(|()| None)).collect()
    }
}
