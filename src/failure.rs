//! Why an attempt of a job failed, and what is to follow.

use std::fmt::{self, Write};
use std::time::Duration;

use crate::user_code;

/// Why an attempt failed, and what is to follow.
///
/// Made from anything that can be displayed, so that a handler can use `?`; it then means "retry
/// by the policy". (For that reason it cannot be displayed itself.)
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
#[derive(Clone, Debug)]
pub struct Failure {
    pub(crate) reason: String,
    pub(crate) then: Then,
}

/// What is to follow a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Retry,
    RetryAfter(Duration),
    DeadLetter,
}

impl Failure {
    /// No retry: the job is dead.
    pub fn dead_letter(reason: impl fmt::Display) -> Self {
        Self {
            then: Then::DeadLetter,
            ..reason.into()
        }
    }

    /// A retry after this delay instead of the policy's backoff. It counts as an attempt.
    pub fn retry_after(delay: Duration, reason: impl fmt::Display) -> Self {
        Self {
            then: Then::RetryAfter(delay),
            ..reason.into()
        }
    }

    /// What went wrong.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

/// Does not panic, whatever the error's `Display` and `Drop` do: the reason tells of it.
impl<E: fmt::Display> From<E> for Failure {
    fn from(error: E) -> Self {
        let reason = text_of(&error);
        user_code::discard(error);
        Self {
            reason,
            then: Then::Retry,
        }
    }
}

fn text_of(error: &dyn fmt::Display) -> String {
    let mut text = String::new();
    // The alternate form is the one that prints the causes too, where there is one.
    match user_code::call(|| write!(text, "{error:#}")) {
        Ok(Ok(())) => {}
        Ok(Err(fmt::Error)) => text.push_str(" (displaying it failed)"),
        Err(panic) => {
            let _ = write!(text, " (displaying it panicked: {panic})");
        }
    }
    text
}
