//! How long a job waits before its next attempt.

use std::sync::Arc;
use std::time::Duration;

/// How long a job waits before a retry.
///
/// ```
/// use logmill_jobs::{Backoff, minutes, secs};
///
/// let doubling = Backoff::exponential(secs(1), minutes(5)); // the default
/// let steady = Backoff::fixed(secs(60));
/// let own = Backoff::custom(|failed| secs(u64::from(failed) * 10));
/// ```
#[derive(Clone)]
pub struct Backoff(Kind);

#[derive(Clone)]
enum Kind {
    Fixed(Duration),
    Exponential { base: Duration, cap: Duration },
    Custom(Arc<dyn Fn(u32) -> Duration + Send + Sync>),
}

impl Backoff {
    pub(crate) const DEFAULT: Self =
        Self::exponential(Duration::from_secs(1), Duration::from_secs(300));

    /// The same time before each retry.
    pub const fn fixed(delay: Duration) -> Self {
        Self(Kind::Fixed(delay))
    }

    /// A random time of up to `base` before the first retry, and up to twice as long before each
    /// further one, at most `cap`.
    ///
    /// The random part ("full jitter") keeps jobs that failed together from coming back together.
    pub const fn exponential(base: Duration, cap: Duration) -> Self {
        Self(Kind::Exponential { base, cap })
    }

    /// The time that a function of the number of failed attempts gives, exactly.
    ///
    /// If it panics, the default applies.
    pub fn custom(delay: impl Fn(u32) -> Duration + Send + Sync + 'static) -> Self {
        Self(Kind::Custom(Arc::new(delay)))
    }

    /// The time after this many failed attempts, with `random` between 0 and 1.
    pub(crate) fn after(&self, failed: u32, random: f64) -> Duration {
        match &self.0 {
            Kind::Fixed(delay) => *delay,
            Kind::Exponential { base, cap } => {
                let doublings = failed.saturating_sub(1).min(31);
                let most = base.saturating_mul(1 << doublings).min(*cap);
                most.mul_f64(random)
            }
            Kind::Custom(delay) => match crate::user_code::call(|| delay(failed)) {
                Ok(delay) => delay,
                Err(_) => Self::DEFAULT.after(failed, random),
            },
        }
    }
}

impl std::fmt::Debug for Backoff {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Kind::Fixed(delay) => f.debug_tuple("Fixed").field(delay).finish(),
            Kind::Exponential { base, cap } => f
                .debug_struct("Exponential")
                .field("base", base)
                .field("cap", cap)
                .finish(),
            Kind::Custom(_) => f.write_str("Custom"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secs;

    #[test]
    fn it_doubles_up_to_the_cap() {
        let backoff = Backoff::exponential(secs(1), secs(300));
        let most: Vec<_> = (1..12).map(|failed| backoff.after(failed, 1.0)).collect();
        let expected = [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300];
        assert_eq!(most, expected.map(secs));
        assert_eq!(backoff.after(u32::MAX, 1.0), secs(300));
        assert_eq!(backoff.after(3, 0.5), secs(2));
        assert_eq!(backoff.after(3, 0.0), Duration::ZERO);
    }

    #[test]
    fn a_function_that_panics_leaves_the_default() {
        let own = Backoff::custom(|failed| secs(u64::from(10 / (failed - 1))));
        assert_eq!(own.after(2, 0.3), secs(10));
        assert_eq!(own.after(1, 1.0), secs(1));
    }
}
