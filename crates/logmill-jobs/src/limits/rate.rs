//! A rate, as the generic cell rate algorithm (ITU-T I.371) counts it: one time for each key says when
//! its next cell is due, and jobs may be early by as much as the burst allows.
//!
//! A job takes as many cells as it costs, and waits until there are so many. One that costs more
//! than the burst waits for a full burst, and leaves a debt: what follows waits until it is paid.

use std::time::{Duration, Instant};

/// So many cells in a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rate {
    /// The time between two cells.
    pub(super) interval: Duration,
    /// How many may be taken together after a pause.
    pub(super) burst: u32,
}

impl Rate {
    /// When so many cells are there, if the next one is due at that time.
    #[inline]
    pub(super) fn until(&self, next: Instant, cost: u32) -> Option<Instant> {
        let early = match (cost, self.burst) {
            (0..=1, 1) => return Some(next),
            (_, burst) => self.cells(burst - cost.clamp(1, burst)),
        };
        // What would be before all times is now.
        next.checked_sub(early)
    }

    /// As [`until`](Self::until), where `next` says what has begun. A job begins a moment after it was let
    /// through, and not always the same: so one more may begin together.
    pub(super) fn until_begun(&self, next: Instant, cost: u32) -> Option<Instant> {
        let looser = Self {
            burst: self.burst.saturating_add(1),
            ..*self
        };
        looser.until(next, cost)
    }

    /// When the next cell is due after so many are taken. None for a time that overflows: it never
    /// comes, and limits nothing here.
    #[inline]
    pub(super) fn after(&self, next: Option<Instant>, now: Instant, cost: u32) -> Option<Instant> {
        let from = next.map_or(now, |next| next.max(now));
        from.checked_add(self.cells(cost))
    }

    /// When the next cell is due if so many are given back.
    pub(super) fn given_back(&self, next: Instant, cost: u32) -> Option<Instant> {
        next.checked_sub(self.cells(cost))
    }

    /// The due time of the next cell for which there is none before `until`, and then one.
    pub(super) fn closed_until(&self, until: Instant) -> Option<Instant> {
        until.checked_add(self.cells(self.burst - 1))
    }

    /// The time of so many cells. Most jobs take one, for which nothing is multiplied.
    #[inline]
    fn cells(&self, count: u32) -> Duration {
        match count {
            1 => self.interval,
            _ => self.interval.saturating_mul(count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes cells if there are enough.
    fn take(rate: &Rate, next: &mut Option<Instant>, now: Instant, cost: u32) -> bool {
        let until = next.and_then(|next| rate.until(next, cost));
        let is_free = until.is_none_or(|until| until <= now);
        if is_free {
            *next = rate.after(*next, now, cost);
        }
        is_free
    }

    /// A bucket of tokens in whole units, which the algorithm is equal to.
    struct Tokens {
        /// May be less than zero: a debt.
        nanos: i128,
        at: Instant,
    }

    impl Tokens {
        fn take(&mut self, rate: &Rate, now: Instant, cost: u32) -> bool {
            let one = rate.interval.as_nanos() as i128;
            let most = one * i128::from(rate.burst);
            let passed = now.duration_since(self.at).as_nanos() as i128;
            self.nanos = (self.nanos + passed).min(most);
            self.at = now;
            let is_free = self.nanos >= one * i128::from(cost.min(rate.burst));
            if is_free {
                self.nanos -= one * i128::from(cost);
            }
            is_free
        }
    }

    #[test]
    fn a_rate_with_costs_lets_through_what_a_bucket_of_tokens_does() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let rate = Rate {
                interval: Duration::from_nanos(random.u64(1..50)),
                burst: random.u32(1..8),
            };
            let start = Instant::now();
            let mut now = start;
            let mut next = None;
            let full = rate.interval.as_nanos() as i128 * i128::from(rate.burst);
            let mut tokens = Tokens {
                nanos: full,
                at: start,
            };
            let mut taken = 0_u64;
            for step in 0..500 {
                now += Duration::from_nanos(random.u64(0..100));
                let cost = random.u32(1..12);
                let got = take(&rate, &mut next, now, cost);
                assert_eq!(
                    got,
                    tokens.take(&rate, now, cost),
                    "seed {seed}, step {step}"
                );
                taken += if got { u64::from(cost) } else { 0 };
            }
            // No more than the rate, the burst, and the debt of the last one.
            let passed = now.duration_since(start).as_nanos() / rate.interval.as_nanos();
            assert!(u128::from(taken) <= passed + u128::from(rate.burst) + 12);
        }
    }

    #[test]
    fn a_cost_above_the_burst_is_let_through_alone() {
        let rate = Rate {
            interval: Duration::from_secs(1),
            burst: 3,
        };
        let (start, mut next) = (Instant::now(), None);
        assert!(take(&rate, &mut next, start, 10));
        // Its debt is paid first.
        assert!(!take(&rate, &mut next, start + Duration::from_secs(7), 1));
        assert!(take(&rate, &mut next, start + Duration::from_secs(8), 1));
        assert!(!take(&rate, &mut next, start + Duration::from_secs(10), 10));
        assert!(take(&rate, &mut next, start + Duration::from_secs(11), 10));
    }

    #[test]
    fn a_rate_that_was_closed_lets_one_through_and_then_goes_on() {
        let rate = Rate {
            interval: Duration::from_secs(1),
            burst: 3,
        };
        let until = Instant::now() + Duration::from_secs(60);
        let mut next = rate.closed_until(until);
        assert!(!take(&rate, &mut next, until - Duration::from_nanos(1), 1));
        assert!(take(&rate, &mut next, until, 1));
        assert!(!take(&rate, &mut next, until, 1));
        assert!(take(&rate, &mut next, until + Duration::from_secs(1), 1));
    }
}
