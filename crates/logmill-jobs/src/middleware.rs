//! Middleware: code of the application around each attempt of a pool, and a look at each job before it
//! is stored.
//!
//! ```text
//!  enqueue ─▶ encode ─▶ hooks ─▶ store        take ─▶ before, before ─▶ handler ─▶ after, after ─▶ settle
//! ```

use std::sync::Arc;

use crate::context::Attempt;
use crate::error::EnqueueError;
use crate::failure::{Failure, JobResult};
use crate::handler::{Called, CalledChunk, ChunkRoute, Intake, Part, Route, not_called};
use crate::mill::Mill;
use crate::settle::Returned;
use crate::{ChunkOptions, KindOptions, span, user_code};

/// Code around each attempt of a pool, see [`Workers::with`](crate::Workers::with).
///
/// Implemented for functions from an [`Attempt`] to what is to happen [`After`] it. The same one serves
/// blocking and async handlers.
///
/// ```
/// use logmill_jobs::{After, Attempt, Failure, Job, JobResult, Mill, Workers};
/// use serde::{Deserialize, Serialize};
/// use std::time::Instant;
///
/// #[derive(Serialize, Deserialize, Job)]
/// #[job(kind = "resize")]
/// struct Resize;
///
/// fn timed(attempt: &Attempt<'_>) -> Result<After, Failure> {
///     let (id, start) = (attempt.id().clone(), Instant::now());
///     Ok(After::call(move |result| {
///         println!("{id} took {:?}", start.elapsed());
///         result
///     }))
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let mill = Mill::open(dir.path().join("jobs"))?;
/// let workers = Workers::new(()).on(|_: Resize| JobResult::Ok(())).with(timed);
/// let pool = workers.start(&mill)?;
/// mill.enqueue(Resize)?.wait()?;
/// # drop(pool);
/// # Ok(())
/// # }
/// ```
pub trait Middleware: Send + Sync + 'static {
    /// Called on a thread of the pool before the handler.
    ///
    /// # Errors
    /// The attempt ends with this failure, and the handler is not called. A panic is a failed attempt.
    fn before(&self, attempt: &Attempt<'_>) -> Result<After, Failure>;
}

impl<F> Middleware for F
where
    F: Fn(&Attempt<'_>) -> Result<After, Failure> + Send + Sync + 'static,
{
    fn before(&self, attempt: &Attempt<'_>) -> Result<After, Failure> {
        self(attempt)
    }
}

type Call = Box<dyn FnOnce(JobResult) -> JobResult + Send>;

/// What a [`Middleware`] does after an attempt.
#[derive(Default)]
#[must_use]
pub struct After(Option<Call>);

impl After {
    /// Nothing.
    pub fn nothing() -> Self {
        Self(None)
    }

    /// Calls this with how the attempt has ended, before that is stored. What it returns takes its place.
    ///
    /// A failure that becomes `Ok` completes the job, without an output. If the call panics, the attempt
    /// ends as if there were none. For an async handler it is called on a thread of the runtime; if
    /// the attempt is dropped as its time is up or the runtime ends, it is called with a failure, and
    /// what it returns is ignored. (The jobs of a [chunk](crate::Chunk) whose time is up have ended, and
    /// what it returns counts.)
    pub fn call(call: impl FnOnce(JobResult) -> JobResult + Send + 'static) -> Self {
        Self(Some(Box::new(call)))
    }
}

impl std::fmt::Debug for After {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("After").field(&self.0.is_some()).finish()
    }
}

pub(crate) type Chain = Arc<[Arc<dyn Middleware>]>;

/// A handler with middleware around it.
pub(crate) struct Wrapped<S> {
    route: Arc<dyn Route<S>>,
    chain: Chain,
}

impl<S: 'static> Wrapped<S> {
    pub(crate) fn route(route: Arc<dyn Route<S>>, chain: &Chain) -> Arc<dyn Route<S>> {
        match chain.is_empty() {
            true => route,
            false => Arc::new(Self {
                route,
                chain: Arc::clone(chain),
            }),
        }
    }
}

impl<S: 'static> Route<S> for Wrapped<S> {
    fn kinds(&self) -> Vec<&'static str> {
        self.route.kinds()
    }

    fn options(&self) -> &KindOptions {
        self.route.options()
    }

    fn intake(&self) -> Intake {
        self.route.intake()
    }

    fn of_chunks(&self) -> Option<&dyn ChunkRoute<S>> {
        self.route.of_chunks()?;
        Some(self)
    }

    fn call(&self, state: &S, attempt: &Attempt<'_>) -> Called {
        let afters = match self.before(attempt) {
            Ok(afters) => afters,
            Err(returned) => return Called::Returned(returned),
        };
        match self.route.call(state, attempt) {
            Called::Returned(returned) => Called::Returned(afters.end(returned)),
            #[cfg(feature = "tokio")]
            Called::Begun(mut future) => Called::Begun(Box::pin(async move {
                let returned = std::future::poll_fn(|cx| {
                    let polled = user_code::call(|| future.as_mut().poll(cx));
                    polled
                        .unwrap_or_else(|panic| std::task::Poll::Ready(Err(Failure::retry(panic))))
                });
                let returned = returned.await;
                afters.end(returned)
            })),
        }
    }
}

impl<S> Wrapped<S> {
    /// Calls what comes before the handler. How the attempt has ended, if the handler is not called.
    fn before(&self, attempt: &Attempt<'_>) -> Result<Afters, Returned> {
        let mut afters = Afters(Vec::new());
        for middleware in self.chain.iter() {
            let before = user_code::call(|| middleware.before(attempt));
            match before.unwrap_or_else(|panic| Err(Failure::retry(panic))) {
                Ok(after) => afters.0.extend(after.0),
                Err(failure) => return Err(afters.end(Err(failure))),
            }
        }
        Ok(afters)
    }
}

impl<S: 'static> ChunkRoute<S> for Wrapped<S> {
    fn chunk_options(&self) -> ChunkOptions {
        let inner = self.route.of_chunks();
        inner.map_or_else(|| ChunkOptions::up_to(1), ChunkRoute::chunk_options)
    }

    fn call_chunk(&self, state: &S, parts: &[Part<'_>]) -> CalledChunk {
        let before = |part: &Part<'_>| part.within(|| self.before(part.attempt));
        let begun: Vec<_> = parts.iter().map(before).collect();
        let called = parts.iter().zip(&begun).filter(|(_, begun)| begun.is_ok());
        let called: Vec<_> = called.map(|(part, _)| *part).collect();
        let inner = self.route.of_chunks().filter(|_| !called.is_empty());
        let inner = inner.map(|inner| inner.call_chunk(state, &called));
        let CalledChunk { called, end } = inner.unwrap_or_else(CalledChunk::of_none);
        let spans = parts.iter().map(|part| part.span.cloned());
        let begun: Vec<_> = spans.zip(begun).collect();
        let end = move |returned| {
            let mut returned = end(returned).into_iter();
            let ended = begun.into_iter().map(|(span, begun)| match begun {
                Ok(afters) => {
                    let returned = returned.next().unwrap_or_else(not_called);
                    span::within(span.as_deref(), || afters.end(returned))
                }
                Err(returned) => returned,
            });
            ended.collect()
        };
        CalledChunk {
            called,
            end: Box::new(end),
        }
    }
}

/// What is still to be called.
struct Afters(Vec<Call>);

impl Afters {
    /// Calls all, the last first.
    fn end(mut self, mut returned: Returned) -> Returned {
        while let Some(call) = self.0.pop() {
            let result = match &returned {
                Ok(_) => Ok(()),
                Err(failure) => Err(failure.clone()),
            };
            returned = match user_code::call(|| call(result)) {
                Ok(Ok(())) => returned.or(Ok(None)),
                Ok(Err(failure)) => Err(failure),
                Err(panic) => {
                    tracing::error!(panic, "middleware panicked after an attempt");
                    returned
                }
            };
        }
        returned
    }
}

impl Drop for Afters {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            let rest = Self(std::mem::take(&mut self.0));
            let dropped = Failure::retry("the attempt was dropped before it had ended".to_owned());
            let _ = rest.end(Err(dropped));
        }
    }
}

/// A job that is about to be stored, as a hook of
/// [`MillOptions::on_enqueue`](crate::MillOptions::on_enqueue) sees it.
#[derive(Debug)]
pub struct Enqueueing<'a> {
    kind: &'a str,
    queue: &'a str,
    key: Option<&'a str>,
    payload: &'a [u8],
    headers: Extra,
}

/// Headers that were added to a job.
pub(crate) type Extra = Vec<(String, Vec<u8>)>;
pub(crate) type Hook = Arc<dyn Fn(&mut Enqueueing<'_>) -> Result<(), String> + Send + Sync>;

/// Headers that the application adds are stored with this before their names.
const PREFIX: &str = "app.";

impl Enqueueing<'_> {
    /// Its kind.
    pub fn kind(&self) -> &str {
        self.kind
    }

    /// Its queue.
    pub fn queue(&self) -> &str {
        self.queue.split('.').next().unwrap_or_default()
    }

    /// The key that limits count it by.
    pub fn key(&self) -> Option<&str> {
        self.key
    }

    /// Its arguments, encoded.
    pub fn payload(&self) -> &[u8] {
        self.payload
    }

    /// Stores a header with the job, which [`Attempt::header`] reads; one of the same name is replaced.
    /// It takes room in the job's record, some tens of bytes beside its own.
    pub fn set_header(&mut self, name: &str, value: impl Into<Vec<u8>>) {
        let (name, value) = (format!("{PREFIX}{name}"), value.into());
        self.headers.retain(|(other, _)| *other != name);
        self.headers.push((name, value));
    }
}

impl Attempt<'_> {
    /// The value of a header that a hook of
    /// [`MillOptions::on_enqueue`](crate::MillOptions::on_enqueue) added to the job.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.claim.header(&format!("{PREFIX}{name}"))
    }
}

/// What hooks and the trace context add to a job; an error if a hook refuses it.
#[inline]
pub(crate) fn extra(
    mill: &Mill,
    kind: &str,
    queue: &str,
    key: Option<&str>,
    payload: &[u8],
) -> Result<Extra, EnqueueError> {
    let inner = &mill.inner;
    if inner.hooks.is_empty() && inner.trace_context.is_none() {
        return Ok(Extra::new());
    }
    extra_slow(mill, kind, queue, key, payload)
}

#[cold]
fn extra_slow(
    mill: &Mill,
    kind: &str,
    queue: &str,
    key: Option<&str>,
    payload: &[u8],
) -> Result<Extra, EnqueueError> {
    let mut job = Enqueueing {
        kind,
        queue,
        key,
        payload,
        headers: Extra::new(),
    };
    for hook in &mill.inner.hooks {
        let answer = user_code::call(|| hook(&mut job));
        answer
            .unwrap_or_else(|panic| Err(format!("a hook panicked: {panic}")))
            .map_err(EnqueueError::Refused)?;
    }
    crate::span::add_current(mill, &mut job.headers);
    Ok(job.headers)
}
