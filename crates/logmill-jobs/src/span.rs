//! The span of `tracing` that each attempt runs in, and the trace context that goes from who enqueues
//! to the handler.

use std::sync::Arc;

use tracing::level_filters::LevelFilter;
use tracing::{Level, Span};

use crate::context::Attempt;
use crate::middleware::Extra;
use crate::mill::Mill;
use crate::user_code;

/// Carries a trace from the code that enqueues a job to its handler, as the text of a W3C
/// `traceparent`; see [`MillOptions::trace_context`](crate::MillOptions::trace_context).
///
/// With `tracing-opentelemetry`, `current` injects the context of the current span by its
/// `TraceContextPropagator`, and `attach` extracts it and calls `set_parent` on the span.
///
/// ```
/// use logmill_jobs::{Mill, MillOptions, TraceContext};
///
/// struct Propagation;
///
/// impl TraceContext for Propagation {
///     fn current(&self) -> Option<String> {
///         Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned())
///     }
///
///     fn attach(&self, _span: &tracing::Span, traceparent: &str) {
///         assert!(traceparent.starts_with("00-"));
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let options = MillOptions::new().trace_context(Propagation);
/// let mill = Mill::builder(dir.path().join("jobs")).options(options).open()?;
/// # Ok(())
/// # }
/// ```
pub trait TraceContext: Send + Sync + 'static {
    /// The `traceparent` of the code that enqueues a job, if it is traced. A panic counts as none.
    fn current(&self) -> Option<String>;

    /// Makes the span of an attempt belong to a trace. Called before the span is entered. A panic is
    /// ignored.
    fn attach(&self, span: &Span, traceparent: &str);
}

/// The header with the trace context of who enqueued the job.
const TRACEPARENT: &str = "traceparent";

/// Adds the trace context of the calling code to the headers of a job.
pub(crate) fn add_current(mill: &Mill, headers: &mut Extra) {
    let Some(trace_context) = &mill.inner.trace_context else {
        return;
    };
    if let Ok(Some(current)) = user_code::call(|| trace_context.current()) {
        headers.push((TRACEPARENT.to_owned(), current.into_bytes()));
    }
}

impl Attempt<'_> {
    /// The trace context of the code that enqueued the job, if there was one.
    pub fn traceparent(&self) -> Option<&str> {
        std::str::from_utf8(self.claim.header(TRACEPARENT)?).ok()
    }
}

/// The span of an attempt; none if nobody looks at it.
#[inline]
pub(crate) fn of(attempt: &Attempt<'_>) -> Option<Entering> {
    let is_on = Level::INFO <= LevelFilter::current();
    let trace_context = &attempt.mill.inner.trace_context;
    if !is_on && trace_context.is_none() {
        return None;
    }
    Some(of_slow(attempt, trace_context.as_ref()))
}

fn of_slow(attempt: &Attempt<'_>, trace_context: Option<&Arc<dyn TraceContext>>) -> Entering {
    let span = user_code::call(|| {
        tracing::info_span!(
            "job",
            kind = attempt.kind(),
            id = %attempt.id(),
            queue = attempt.id().queue(),
            attempt = attempt.attempt(),
        )
    });
    // A panic is the subscriber's own.
    let span = span.unwrap_or_else(|_| Span::none());
    if let (Some(trace_context), Some(traceparent)) = (trace_context, attempt.traceparent()) {
        let _ = user_code::call(|| trace_context.attach(&span, traceparent));
    }
    Entering(Some(span))
}

/// The span of a handler that takes several jobs, which follows from those of their attempts; none if
/// nobody looks at these.
pub(crate) fn of_chunk<'a>(
    kind: &str,
    jobs: usize,
    attempts: impl Iterator<Item = &'a Arc<Entering>>,
) -> Option<Entering> {
    let mut attempts = attempts.peekable();
    attempts.peek()?;
    let span = user_code::call(|| {
        let span = tracing::info_span!("chunk", kind, jobs);
        for attempt in attempts.filter_map(|attempt| attempt.0.as_ref()) {
            span.follows_from(attempt);
        }
        span
    });
    Some(Entering(Some(span.unwrap_or_else(|_| Span::none()))))
}

/// A span that code is run in. No panic of a subscriber gets past it.
pub(crate) struct Entering(Option<Span>);

impl Entering {
    pub(crate) fn within<T>(&self, code: impl FnOnce() -> T) -> T {
        let entered = user_code::call(|| self.0.as_ref().map(Span::enter));
        let result = code();
        user_code::discard(entered);
        result
    }
}

impl Drop for Entering {
    fn drop(&mut self) {
        user_code::discard(self.0.take());
    }
}

/// Runs code in the span, if there is one.
#[inline]
pub(crate) fn within<T>(span: Option<&Entering>, code: impl FnOnce() -> T) -> T {
    match span {
        None => code(),
        Some(span) => span.within(code),
    }
}
