//! The retry policy: how often a failed job is tried again, and how long it backs off.

use std::sync::Arc;
use std::time::Duration;

use crate::events::event;
use crate::lasting::Lasting;
use crate::user_code;

/// Highest limit of attempts that can be set; failed attempts are one byte on disk.
pub const MAX_ATTEMPTS: u8 = 254;
/// Highest limit of crashes that can be set; crashes are four bits on disk.
pub const MAX_CRASHES: u8 = crate::log::ack::MAX_CRASHES;

/// Limits of attempts and crashes for each job, and the backoff between attempts.
///
/// The default is 5 attempts with exponential backoff from 1 second up to 5 minutes and full
/// jitter, and 3 crashes.
///
/// ```
/// use logmill::{Jitter, RetryPolicy};
/// use std::time::Duration;
///
/// let policy = RetryPolicy::exponential(Duration::from_millis(50), Duration::from_secs(60))
///     .jitter(Jitter::Equal)
///     .max_attempts(8);
/// assert!(policy.backoff(1) >= Duration::from_millis(25));
/// assert!(policy.backoff(200) <= Duration::from_secs(60));
/// ```
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    backoff: Backoff,
    jitter: Jitter,
    max_attempts: Option<u8>,
    max_crashes: u8,
}

#[derive(Clone)]
enum Backoff {
    Fixed(Duration),
    Exponential { base: Duration, cap: Duration },
    Custom(Custom),
}

/// A backoff function of the user's. `delay` is None only while it is being dropped.
#[derive(Clone)]
struct Custom {
    delay: Option<Arc<dyn Fn(u32) -> Duration + Send + Sync>>,
    panics: Arc<Lasting>,
}

impl Custom {
    fn delay(&self, failed: u32) -> Duration {
        let delay = self.delay.as_ref();
        let delay = delay.map(|delay| user_code::call(|| delay(failed)));
        match delay {
            Some(Ok(delay)) => delay,
            Some(Err(panic)) => {
                if let Some(times) = self.panics.met(String::new()) {
                    event!(
                        error,
                        failed,
                        panic,
                        times,
                        "the custom backoff function panics"
                    );
                }
                Duration::ZERO
            }
            None => Duration::ZERO,
        }
    }
}

impl Drop for Custom {
    fn drop(&mut self) {
        // The last clone may be dropped along with the queue, on a thread of this library.
        user_code::discard(self.delay.take());
    }
}

impl std::fmt::Debug for Backoff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Backoff::Fixed(delay) => f.debug_tuple("Fixed").field(delay).finish(),
            Backoff::Exponential { base, cap } => f
                .debug_struct("Exponential")
                .field("base", base)
                .field("cap", cap)
                .finish(),
            Backoff::Custom(_) => f.write_str("Custom"),
        }
    }
}

/// How much of a backoff is random.
///
/// Randomness spreads the retries of jobs that failed together. The names are those of Brooker,
/// "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Jitter {
    /// The whole backoff, without randomness.
    None,
    /// A random time from zero to the whole backoff.
    #[default]
    Full,
    /// Half the backoff, plus a random time up to the other half.
    Equal,
}

const DEFAULT_MAX_ATTEMPTS: u8 = 5;
const DEFAULT_MAX_CRASHES: u8 = 3;

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::exponential(Duration::from_secs(1), Duration::from_secs(300))
    }
}

impl RetryPolicy {
    /// One attempt and one crash.
    ///
    /// A job that fails is dead at once. A job that a handler has when the process dies is dead at
    /// the next open.
    pub fn none() -> Self {
        Self::fixed(Duration::ZERO).max_attempts(1).max_crashes(1)
    }

    /// The same delay before each retry, without jitter; 5 attempts.
    pub fn fixed(delay: Duration) -> Self {
        Self {
            backoff: Backoff::Fixed(delay),
            jitter: Jitter::None,
            max_attempts: Some(DEFAULT_MAX_ATTEMPTS),
            max_crashes: DEFAULT_MAX_CRASHES,
        }
    }

    /// A delay that doubles with each failure, from `base` up to `cap`; full jitter, 5 attempts.
    ///
    /// The delay is `base` after the first failure, and is doubled at most 31 times.
    pub fn exponential(base: Duration, cap: Duration) -> Self {
        Self {
            backoff: Backoff::Exponential { base, cap },
            jitter: Jitter::Full,
            max_attempts: Some(DEFAULT_MAX_ATTEMPTS),
            max_crashes: DEFAULT_MAX_CRASHES,
        }
    }

    /// A delay that a function computes; without jitter, 5 attempts.
    ///
    /// The function gets the number of attempts that have failed (1 after the first).
    ///
    /// It is called on the thread that settles the job, on the queue's timer thread if the lease
    /// timed out, and in a consumer for a job that failed in an earlier process. If it panics, the
    /// panic is caught and reported by an event, and the job is retried at once.
    pub fn custom(delay: impl Fn(u32) -> Duration + Send + Sync + 'static) -> Self {
        Self {
            backoff: Backoff::Custom(Custom {
                delay: Some(Arc::new(delay)),
                panics: Arc::default(),
            }),
            jitter: Jitter::None,
            max_attempts: Some(DEFAULT_MAX_ATTEMPTS),
            max_crashes: DEFAULT_MAX_CRASHES,
        }
    }

    /// Sets how many attempts at a job may fail before it is dead: 1 to [`MAX_ATTEMPTS`].
    ///
    /// Opening a queue with any other number is an error.
    pub fn max_attempts(mut self, attempts: u8) -> Self {
        self.max_attempts = Some(attempts);
        self
    }

    /// Retries for ever.
    ///
    /// A job becomes dead only if a handler asks for that, or after too many crashes, see
    /// [`max_crashes`](Self::max_crashes).
    pub fn unlimited_attempts(mut self) -> Self {
        self.max_attempts = None;
        self
    }

    /// Sets how many crashes make a job dead: 1 to [`MAX_CRASHES`].
    ///
    /// A crash is a death of the process, or a power failure, while a handler has the job. At the
    /// limit, the next process makes the job a dead letter instead of delivering it. Opening a
    /// queue with any other number is an error. Default: 3, but 1 for [`none`](Self::none). The
    /// limit cannot be removed, so that no job can kill the process again and again for ever.
    ///
    /// A crash is not a failed attempt. It counts for each job that a handler had, including those
    /// that had nothing to do with it. To tell these from the culprit, no two jobs with a crash are
    /// delivered at the same time until their handlers have ended once. Closing the queue while
    /// handlers have jobs is not a crash, whether with [`Queue::close`](crate::Queue::close) or by
    /// dropping its last handle.
    pub fn max_crashes(mut self, crashes: u8) -> Self {
        self.max_crashes = crashes;
        self
    }

    /// Sets the jitter. Default: full with [`exponential`](Self::exponential), none otherwise.
    pub fn jitter(mut self, jitter: Jitter) -> Self {
        self.jitter = jitter;
        self
    }

    /// The limit of attempts; None if unlimited.
    pub fn attempts_limit(&self) -> Option<u8> {
        self.max_attempts
    }

    /// The limit of crashes.
    pub fn crashes_limit(&self) -> u8 {
        self.max_crashes
    }

    /// Computes the delay of a job of which `failed` attempts have failed (1 after the first).
    ///
    /// The result is random if there is jitter.
    pub fn backoff(&self, failed: u32) -> Duration {
        let whole = match &self.backoff {
            Backoff::Fixed(delay) => *delay,
            Backoff::Exponential { base, cap } => {
                // 2^31 times any realistic base exceeds any cap.
                let doublings = failed.saturating_sub(1).min(31);
                base.saturating_mul(1 << doublings).min(*cap)
            }
            Backoff::Custom(custom) => custom.delay(failed),
        };
        match self.jitter {
            Jitter::None => whole,
            Jitter::Full => whole.mul_f64(fastrand::f64()),
            Jitter::Equal => whole / 2 + (whole / 2).mul_f64(fastrand::f64()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn exponential_backoff_doubles_up_to_its_cap() {
        let policy = RetryPolicy::exponential(SECOND, 10 * SECOND).jitter(Jitter::None);
        let delays: Vec<_> = (1..7).map(|n| policy.backoff(n).as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 10, 10]);
        assert_eq!(policy.backoff(u32::MAX), 10 * SECOND);
    }

    #[test]
    fn jitter_stays_within_its_bounds_and_varies() {
        for (jitter, low) in [(Jitter::Full, Duration::ZERO), (Jitter::Equal, SECOND / 2)] {
            let policy = RetryPolicy::fixed(SECOND).jitter(jitter);
            let delays: Vec<_> = (0..100).map(|_| policy.backoff(1)).collect();
            assert!(delays.iter().all(|&delay| low <= delay && delay <= SECOND));
            assert!(delays.iter().any(|&delay| delay != delays[0]));
        }
    }

    #[test]
    fn a_custom_function_sees_the_failures_and_may_panic() {
        let policy = RetryPolicy::custom(|failed| {
            assert!(failed < 3, "too many for me");
            failed * SECOND
        });
        assert_eq!(policy.backoff(2), 2 * SECOND);
        assert_eq!(policy.backoff(3), Duration::ZERO);
    }
}
