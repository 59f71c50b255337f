//! Why an attempt did not complete its job, and what happens next.

use std::any::Any;
use std::cell::Cell;
use std::error::Error;
use std::fmt::{self, Write};
use std::time::Duration;

use crate::user_code;

/// What a handler returns: the job's output, or a failure.
pub type JobResult<T = ()> = Result<T, Failure>;

/// Why an attempt did not complete its job, and what happens next.
///
/// Made from any error by `?`, which means a retry with the kind's backoff. [`retry_in`],
/// [`rate_limited`], [`discard`], [`snooze`] and [`cancel`] say something else:
///
/// ```
/// use logmill_jobs::{JobResult, discard, rate_limited, retry_in, secs};
///
/// fn send(address: &str) -> JobResult {
///     if !address.contains('@') {
///         return Err(discard("not an address")); // no retry helps
///     }
///     let answer: u32 = "429".parse()?; // an error here is retried
///     match answer {
///         429 => Err(rate_limited(secs(60), "told to slow down")), // holds its key back
///         503 => Err(retry_in(secs(5), "not available")),
///         _ => Ok(()),
///     }
/// }
/// # assert!(send("ada").is_err() && send("ada@example.com").is_err());
/// ```
///
/// Code between the failure and the handler may use other error types, as `anyhow::Error`:
/// [`into_error`](Self::into_error) passes through it and keeps its meaning. (`Failure` itself does
/// not implement `Display`, so that it can be made from everything that does.)
#[derive(Clone, Debug)]
pub struct Failure {
    pub(crate) reason: String,
    pub(crate) verdict: Verdict,
}

/// What happens after an attempt that did not complete its job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Retry,
    RetryIn(Duration),
    Discard,
    /// No failure: the job is given back.
    Snooze(Duration),
    /// No failure: the job and all others of its key are held back.
    RateLimited(Duration),
    Cancel,
}

/// Fails the attempt; the job comes back after this delay instead of the kind's backoff.
///
/// If it was the last attempt, the job is dead. An error that is displayed is its reason.
pub fn retry_in(delay: Duration, error: impl fmt::Display) -> Failure {
    Failure::new(Verdict::RetryIn(delay), error)
}

/// Gives up: the job is dead, and kept as a dead letter with this reason.
pub fn discard(error: impl fmt::Display) -> Failure {
    Failure::new(Verdict::Discard, error)
}

/// Gives the job back: it comes again after this delay, and no attempt is spent.
///
/// For a handler that cannot begin, as the service that it needs is not up.
pub fn snooze(delay: Duration) -> Failure {
    Failure::new(Verdict::Snooze(delay), "given back")
}

/// Holds the job and all others of its key back for this long: what they call said that it gets too
/// many of them, as an API by the status 429. No attempt is spent.
///
/// Held back are
/// - those that a limit [by key](crate::Limit::by_key) counts together with the job, if there is one;
/// - else those of the queue or the kind of any limit that concerns the job;
/// - else, if no limit concerns it, the jobs of its kind with the same key (or without one, if it has
///   none).
///
/// Jobs that run go on, and those of other keys are not held up. The job comes first when the time has
/// passed; where there is a rate, the others follow at the rate, without a burst. The hold is in
/// memory: after a restart of the process the first job of the key finds out anew.
pub fn rate_limited(after: Duration, reason: impl fmt::Display) -> Failure {
    Failure::new(Verdict::RateLimited(after), reason)
}

/// Ends the job without a dead letter: nobody needs it any more.
pub fn cancel(reason: impl fmt::Display) -> Failure {
    Failure::new(Verdict::Cancel, reason)
}

impl Failure {
    fn new(verdict: Verdict, error: impl fmt::Display) -> Self {
        let said = Self::said_by(&error);
        user_code::discard(error);
        Self { verdict, ..said }
    }

    /// A failure that is retried.
    pub(crate) fn retry(reason: String) -> Self {
        Self {
            reason,
            verdict: Verdict::Retry,
        }
    }

    /// Displays an error, and takes the verdict of a [`FailureError`] that is displayed with it.
    fn said_by(error: &dyn fmt::Display) -> Self {
        let mut reason = String::new();
        // To display the error may itself make a failure of something.
        let outer = FOUND.replace(Search::Open);
        // The alternate form also prints the causes, for errors that have one.
        let displayed = user_code::call(|| write!(reason, "{error:#}"));
        let found = FOUND.replace(outer);
        match displayed {
            Ok(Ok(())) => {}
            Ok(Err(fmt::Error)) => reason.push_str(" (displaying it failed)"),
            Err(panic) => {
                let _ = write!(reason, " (displaying it panicked: {panic})");
            }
        }
        let verdict = match found {
            Search::Found(verdict) => verdict,
            Search::Off | Search::Open => Verdict::Retry,
        };
        Self { reason, verdict }
    }

    /// The text that says what went wrong.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Wraps the failure as an error, to be returned through code that knows nothing of jobs.
    pub fn into_error(self) -> FailureError {
        FailureError(self)
    }
}

/// Never panics, even if the error's `Display` or `Drop` does.
impl<E: fmt::Display + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let failure = match boxed_in(&error) {
            Some(boxed) => Self::said_by(&Chain(boxed)),
            None => Self::said_by(&error),
        };
        user_code::discard(error);
        failure
    }
}

/// Boxes what [`Failure::into_error`] makes of it, for code that takes any error, such as the layers of
/// `tower`.
impl From<Failure> for Box<dyn Error + Send + Sync> {
    fn from(failure: Failure) -> Self {
        Box::new(failure.into_error())
    }
}

/// A [`Failure`] as an error type.
///
/// When the handler's error becomes a [`Failure`] again, the first `FailureError` in it decides what
/// happens next. It is found in `anyhow` errors with any context, in boxed errors and their sources,
/// and in errors that display their source.
#[derive(Clone, Debug)]
pub struct FailureError(Failure);

impl fmt::Display for FailureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if FOUND.get() == Search::Open {
            FOUND.set(Search::Found(self.0.verdict));
        }
        f.write_str(&self.0.reason)
    }
}

impl Error for FailureError {}

/// The search for a verdict in the error that this thread is displaying: to be displayed is all that
/// errors of any type have in common.
#[derive(Clone, Copy, PartialEq)]
enum Search {
    Off,
    Open,
    Found(Verdict),
}

thread_local! {
    static FOUND: Cell<Search> = const { Cell::new(Search::Off) };
}

/// The error inside a box of one of the usual types.
fn boxed_in(error: &dyn Any) -> Option<&(dyn Error + 'static)> {
    if let Some(boxed) = error.downcast_ref::<Box<dyn Error + Send + Sync>>() {
        Some(&**boxed)
    } else if let Some(boxed) = error.downcast_ref::<Box<dyn Error + Send>>() {
        Some(&**boxed)
    } else if let Some(boxed) = error.downcast_ref::<Box<dyn Error>>() {
        Some(&**boxed)
    } else {
        None
    }
}

/// An error and its sources, on one line.
struct Chain<'a>(&'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.0.to_string();
        let mut source = self.0.source();
        while let Some(error) = source {
            let own = error.to_string();
            // Some errors include their source in their own text.
            if !text.ends_with(&own) {
                write!(text, ": {own}")?;
            }
            source = error.source();
        }
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;
    use crate::secs;

    #[test]
    fn any_error_means_a_retry_and_a_failure_in_it_keeps_its_verdict() {
        let number = "x".parse::<u32>().unwrap_err();
        let plain = Failure::from(number);
        assert_eq!(plain.verdict, Verdict::Retry);
        assert_eq!(plain.reason(), "invalid digit found in string");

        let slow = || retry_in(secs(60), "told to slow down").into_error();
        let wrapped = Err::<(), _>(slow()).context("sending").unwrap_err();
        let wrapped = Failure::from(wrapped);
        assert_eq!(wrapped.verdict, Verdict::RetryIn(secs(60)));
        assert_eq!(wrapped.reason(), "sending: told to slow down");

        let boxed: Box<dyn Error> = Box::new(slow());
        assert_eq!(Failure::from(boxed).verdict, Verdict::RetryIn(secs(60)));
        assert_eq!(discard(slow()).verdict, Verdict::Discard);
        assert_eq!(snooze(secs(1)).verdict, Verdict::Snooze(secs(1)));
        assert_eq!(cancel("gone").verdict, Verdict::Cancel);
        let limited = rate_limited(secs(2), "429");
        assert_eq!(limited.verdict, Verdict::RateLimited(secs(2)));
    }

    #[test]
    fn an_error_whose_display_panics_is_a_reason_all_the_same() {
        struct Bomb;
        impl fmt::Display for Bomb {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                panic!("no text")
            }
        }
        let failure = Failure::from(Bomb);
        assert_eq!(failure.reason(), " (displaying it panicked: no text)");
        assert_eq!(failure.verdict, Verdict::Retry);
    }
}
