//! Why an attempt at a job failed, and what happens next.

use std::any::Any;
use std::cell::Cell;
use std::error::Error;
use std::fmt::{self, Write};
use std::time::Duration;

use crate::user_code;

/// Why an attempt failed, and what happens next: a retry, a delayed retry, a dead letter, or
/// another attempt that counts as this one.
///
/// A `Failure` is made from anything that can be displayed, so a handler can use `?`; it then means
/// "retry by the policy". (For this reason `Failure` itself does not implement `Display`.)
///
/// ```
/// use logmill::Failure;
/// use std::time::Duration;
///
/// fn handler(payload: &[u8]) -> Result<(), Failure> {
///     let text = std::str::from_utf8(payload).map_err(Failure::dead_letter)?; // no retry helps
///     let number: u32 = text.parse()?; // retried
///     if number == 429 {
///         return Err(Failure::retry_after(Duration::from_secs(30), "told to slow down"));
///     }
///     Ok(())
/// }
/// # assert!(handler(b"1").is_ok() && handler(b"429").is_err());
/// ```
///
/// Code between the failure and the handler may use other error types. It can carry a `Failure` as
/// a [`FailureError`].
#[derive(Clone, Debug)]
pub struct Failure {
    pub(crate) reason: String,
    pub(crate) verdict: Verdict,
}

/// What happens after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Retry,
    RetryAfter(Duration),
    DeadLetter,
    /// No failure: the job is given back.
    Snooze(Duration),
}

impl Failure {
    /// Retries after the policy's backoff, whatever a [`FailureError`] in the reason asks for.
    pub fn retry(reason: impl fmt::Display) -> Self {
        Self::new(Verdict::Retry, reason)
    }

    /// Gives up: the job is dead, without a retry.
    pub fn dead_letter(reason: impl fmt::Display) -> Self {
        Self::new(Verdict::DeadLetter, reason)
    }

    /// Retries after this delay instead of the policy's backoff.
    ///
    /// The attempt counts as failed: if it was the last one, the job is dead.
    pub fn retry_after(delay: Duration, reason: impl fmt::Display) -> Self {
        Self::new(Verdict::RetryAfter(delay), reason)
    }

    /// Gives the job back: it comes back after this delay, and the attempt does not count.
    ///
    /// For a handler that cannot begin, such as one that meets a rate limit. See
    /// [`Job::snooze`](crate::Job::snooze).
    pub fn snooze(delay: Duration) -> Self {
        Self::new(Verdict::Snooze(delay), "given back")
    }

    fn new(verdict: Verdict, reason: impl fmt::Display) -> Self {
        let failure = Self::said_by(&reason);
        user_code::discard(reason);
        Self { verdict, ..failure }
    }

    /// Displays an error and takes the verdict of a [`FailureError`] that is displayed along with
    /// it.
    fn said_by(error: &dyn fmt::Display) -> Self {
        let mut reason = String::new();
        // Displaying the error may itself make a `Failure` of something.
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

    /// Makes a failure from an error and its sources.
    ///
    /// For errors that do not display their sources, as most do not: the sources are added to the
    /// reason, and a [`FailureError`] among them decides what happens next. A `Box<dyn Error>` or
    /// an `anyhow::Error` does not need this.
    ///
    /// ```
    /// use logmill::Failure;
    ///
    /// fn handler() -> Result<(), Failure> {
    ///     std::fs::read("missing").map_err(|error| Failure::with_sources(&error))?;
    ///     Ok(())
    /// }
    /// # assert!(handler().is_err());
    /// ```
    pub fn with_sources(error: &(dyn Error + 'static)) -> Self {
        Self::said_by(&Chain(error))
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

/// Never panics, even if the error's `Display` or `Drop` does; a panic in `Display` is noted in the
/// reason. The reason also includes the sources of a `Box<dyn Error>`.
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

/// A [`Failure`] as an error type, to pass through code with error types of its own.
///
/// Such code returns an `anyhow::Error`, a `Box<dyn Error>` or its own types between the failure
/// and the handler. A `FailureError` displays the reason.
///
/// When the handler's error becomes a [`Failure`] again, the first `FailureError` in it decides
/// what happens next: the error itself, or one whose text is displayed as part of it. It is found
/// inside `anyhow` errors with any context, inside boxes, whose sources are searched too, and
/// inside errors that display their source. For other errors use [`Failure::with_sources`].
///
/// ```
/// use anyhow::Context;
/// use logmill::{Failure, Job};
/// use std::time::Duration;
///
/// fn send(payload: &[u8]) -> anyhow::Result<()> {
///     # let _ = payload;
///     Err(Failure::retry_after(Duration::from_secs(30), "told to slow down").into_error())?
/// }
///
/// // Retried after 30 s, with the reason "sending: told to slow down".
/// let handler = |job: &Job<'_>| send(job.payload()).context("sending");
/// ```
#[derive(Clone, Debug)]
pub struct FailureError(Failure);

impl FailureError {
    /// What went wrong, and what happens next.
    pub fn failure(&self) -> &Failure {
        &self.0
    }
}

impl fmt::Display for FailureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if FOUND.get() == Search::Open {
            FOUND.set(Search::Found(self.0.verdict));
        }
        f.write_str(&self.0.reason)
    }
}

impl Error for FailureError {}

/// The search for a verdict in the error that this thread is displaying to make a [`Failure`] of
/// it.
///
/// Displaying is all that errors of any type have in common, so this is how a [`FailureError`]
/// inside one is found.
#[derive(Clone, Copy, PartialEq)]
enum Search {
    /// No search is going on.
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
            // Some errors already include their source in their text.
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

    const SOON: Duration = Duration::from_secs(30);

    fn slow_down() -> FailureError {
        Failure::retry_after(SOON, "slow down").into_error()
    }

    /// An error that displays its source, or leaves it out.
    #[derive(Debug)]
    struct Sending {
        shows_source: bool,
        source: FailureError,
    }

    impl fmt::Display for Sending {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("sending")?;
            if self.shows_source {
                write!(f, ": {}", self.source)?;
            }
            Ok(())
        }
    }

    impl Error for Sending {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.source)
        }
    }

    #[test]
    fn what_is_to_follow_is_kept_through_errors_of_other_types() {
        let sending = |shows_source| Sending {
            shows_source,
            source: slow_down(),
        };
        let boxed: Box<dyn Error> = Box::new(slow_down());
        let boxed_to_send: Box<dyn Error + Send + Sync> = Box::new(slow_down());
        let by_question_mark = (|| -> Result<(), Box<dyn Error>> { Err(slow_down())? })();
        let in_a_box = |shows_source| Box::new(sending(shows_source));
        let boxed_anyhow = || {
            anyhow::Error::new(slow_down())
                .context("sending")
                .into_boxed_dyn_error()
        };
        let failures: [(Failure, _); 14] = [
            (
                (in_a_box(true) as Box<dyn Error>).into(),
                "sending: slow down",
            ),
            (
                (in_a_box(false) as Box<dyn Error>).into(),
                "sending: slow down",
            ),
            (
                (in_a_box(false) as Box<dyn Error + Send>).into(),
                "sending: slow down",
            ),
            (
                (in_a_box(false) as Box<dyn Error + Send + Sync>).into(),
                "sending: slow down",
            ),
            (boxed_anyhow().into(), "sending: slow down"),
            (slow_down().into(), "slow down"),
            (boxed.into(), "slow down"),
            (boxed_to_send.into(), "slow down"),
            (by_question_mark.unwrap_err().into(), "slow down"),
            (anyhow::Error::new(slow_down()).into(), "slow down"),
            (
                Err::<(), _>(slow_down())
                    .context("sending")
                    .context("at night")
                    .unwrap_err()
                    .into(),
                "at night: sending: slow down",
            ),
            (sending(true).into(), "sending: slow down"),
            (
                anyhow::Error::new(sending(false)).into(),
                "sending: slow down",
            ),
            (Failure::with_sources(&sending(false)), "sending: slow down"),
        ];
        for (failure, reason) in failures {
            assert_eq!(
                (failure.reason(), failure.verdict),
                (reason, Verdict::RetryAfter(SOON))
            );
        }
    }

    #[test]
    fn an_error_that_says_nothing_of_what_is_to_follow_is_retried_by_the_policy() {
        let failure = Failure::from("a text");
        assert_eq!(
            (failure.reason(), failure.verdict),
            ("a text", Verdict::Retry)
        );
        // Displayed outside a search.
        assert_eq!(slow_down().to_string(), "slow down");
        assert_eq!(
            Failure::from(slow_down().to_string()).verdict,
            Verdict::Retry
        );
        assert_eq!(slow_down().failure().verdict, Verdict::RetryAfter(SOON));
    }

    #[test]
    fn the_outermost_word_on_what_is_to_follow_holds() {
        assert_eq!(
            Failure::dead_letter(slow_down()).verdict,
            Verdict::DeadLetter
        );
        assert_eq!(Failure::retry(slow_down()).verdict, Verdict::Retry);
        let given_up = Failure::dead_letter(slow_down()).into_error();
        let later = Failure::retry_after(Duration::ZERO, given_up.clone());
        assert_eq!(later.verdict, Verdict::RetryAfter(Duration::ZERO));
        let both = format_args!("{given_up}, {}", slow_down()).to_string();
        assert_eq!(both, "slow down, slow down");
        let both = anyhow::Error::new(slow_down()).context(given_up);
        assert_eq!(Failure::from(both).verdict, Verdict::DeadLetter);
    }

    #[test]
    fn failures_made_while_an_error_is_displayed_are_its_own_affair() {
        struct Nested;
        impl fmt::Display for Nested {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let inner = Failure::from(slow_down());
                assert_eq!(inner.verdict, Verdict::RetryAfter(SOON));
                f.write_str(inner.reason())
            }
        }
        assert_eq!(Failure::from(Nested).verdict, Verdict::Retry);
    }
}
