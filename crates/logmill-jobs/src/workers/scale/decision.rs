//! How many threads a pool is to have, decided from looks at its queues and threads. It knows no
//! clock, no pool and no queue.
//!
//! A pool grows while its threads are busy and what is ready would take too long:
//!
//! ```text
//!  threads needed = (arrivals + ready / time to drain) / jobs that a busy thread ends in a second
//! ```
//!
//! It shrinks when fewer would have been busy for 80% of the time at most, at each look since long.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Scale;

/// What is seen at a moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) at: Instant,
    /// Jobs that can begin.
    pub(super) ready: u64,
    /// Jobs enqueued so far.
    pub(super) enqueued: u64,
    /// Jobs ended so far.
    pub(super) ended: u64,
    /// Threads that take jobs, and those of them that run a handler.
    pub(super) threads: usize,
    pub(super) busy: usize,
    /// Threads that the pool is to have so far.
    pub(super) wanted: usize,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    /// Threads that the pool is to have from now on.
    pub(super) threads: usize,
    /// How long it will take until no job is ready, if jobs keep coming and going as now; None if as
    /// many come as go, or more.
    pub(super) time_to_drain: Option<Duration>,
}

/// Decides, look by look.
pub(super) struct Scaler {
    scale: Scale,
    window: Duration,
    shrink_after: Duration,
    /// When it looked first.
    since: Option<Instant>,
    /// Looks within the window, and the last one before.
    looks: VecDeque<Look>,
    /// How many threads were needed at each look since `shrink_after`.
    needs: VecDeque<(Instant, usize)>,
}

/// Rates are taken over the time to drain, as both say what counts as the load of the moment; in a
/// shorter time too little happens to tell, and in a longer one too much.
const SHORTEST_WINDOW: Duration = Duration::from_secs(10);
const LONGEST_WINDOW: Duration = Duration::from_secs(60);
/// The share of the time for which threads may be busy after the pool has shrunk. With less room, the
/// next small backlog would have it grow again.
const BUSY_AFTER_SHRINKING: f64 = 0.8;

impl Look {
    /// Whether more threads would get more done. Where jobs wait for a limit or for the end of a pause,
    /// threads are idle. Three in four: some are between two jobs.
    fn is_busy(&self) -> bool {
        self.threads > 0 && self.busy * 4 >= self.threads * 3
    }
}

/// What happened within the window.
struct Pace {
    enqueued: u64,
    ended: u64,
    over: Duration,
    /// The time for which threads were busy, all together, in seconds.
    busy: f64,
}

impl Scaler {
    pub(super) fn new(scale: Scale) -> Self {
        let window = scale.drain_within.clamp(SHORTEST_WINDOW, LONGEST_WINDOW);
        Self {
            scale,
            window,
            shrink_after: scale.shrink_after.max(SHORTEST_WINDOW),
            since: None,
            looks: VecDeque::new(),
            needs: VecDeque::new(),
        }
    }

    /// Takes a look, later than those before.
    pub(super) fn look(&mut self, look: Look) -> Decision {
        let (least, most) = self.scale.bounds();
        let wanted = look.wanted.clamp(least, most);
        let since = *self.since.get_or_insert(look.at);
        self.add(look);
        let pace = self.pace(&look);
        let needed = match look.ready > 0 && look.is_busy() && look.threads >= wanted {
            true => pace.threads_for(look.ready, self.scale.drain_within, self.window),
            // A thread that could not be started is no reason to start more.
            false => 0,
        };
        let need = needed.max(pace.threads_busy().min(wanted));
        self.note_need(look.at, need);
        let ready = usize::try_from(look.ready).unwrap_or(usize::MAX);
        let grown = needed
            .min(wanted.saturating_mul(2))
            .min(look.busy.saturating_add(ready))
            .min(most);
        let has_seen_enough = look.at.saturating_duration_since(since) >= self.shrink_after;
        let threads = match grown > wanted {
            true => grown,
            false if has_seen_enough => {
                let peak = self.needs.iter().map(|(_, need)| *need).max();
                let step = (wanted / 8).max(1);
                // What was needed may be more than there are.
                let peak = peak.unwrap_or(wanted).clamp(least, wanted);
                (wanted - step.min(wanted)).max(peak)
            }
            false => wanted,
        };
        Decision {
            threads,
            time_to_drain: pace.time_to_drain(look.ready),
        }
    }

    fn add(&mut self, look: Look) {
        self.looks.push_back(look);
        let ago = |old: &Look| look.at.saturating_duration_since(old.at);
        // The first one that is kept is the last one before the window.
        while self
            .looks
            .get(1)
            .is_some_and(|next| ago(next) >= self.window)
        {
            self.looks.pop_front();
        }
    }

    fn note_need(&mut self, at: Instant, need: usize) {
        self.needs.push_back((at, need));
        let is_old =
            |(then, _): &(Instant, usize)| at.saturating_duration_since(*then) > self.shrink_after;
        while self.needs.front().is_some_and(is_old) {
            self.needs.pop_front();
        }
    }

    fn pace(&self, now: &Look) -> Pace {
        let first = self.looks.front().unwrap_or(now);
        let looks = self.looks.iter();
        let pairs = looks.clone().zip(looks.skip(1));
        let busy = pairs.map(|(one, next)| {
            let time = next.at.saturating_duration_since(one.at);
            time.as_secs_f64() * (one.busy + next.busy) as f64 / 2.0
        });
        Pace {
            enqueued: now.enqueued.saturating_sub(first.enqueued),
            ended: now.ended.saturating_sub(first.ended),
            over: now.at.saturating_duration_since(first.at),
            busy: busy.sum(),
        }
    }
}

impl Pace {
    /// How many threads end what comes and have what is ready ended within this time.
    fn threads_for(&self, ready: u64, within: Duration, window: Duration) -> usize {
        // If none has ended yet, the next one may be about to: no thread is slower than that says.
        let by_thread = self.ended.max(1) as f64 / self.busy;
        // Before the first look nothing came, as far as is known. A burst in the first seconds is not
        // taken for what comes in each second.
        let arrivals = self.enqueued as f64 / self.over.max(window).as_secs_f64();
        let within = within.max(Duration::from_secs(1));
        let needed = (arrivals + ready as f64 / within.as_secs_f64()) / by_thread;
        // 0 if no thread was ever seen busy. The conversion saturates.
        needed.ceil() as usize
    }

    /// How many threads would have had room for what was run.
    fn threads_busy(&self) -> usize {
        let busy = match self.over.is_zero() {
            true => 0.0,
            false => self.busy / self.over.as_secs_f64(),
        };
        (busy / BUSY_AFTER_SHRINKING).ceil() as usize
    }

    fn time_to_drain(&self, ready: u64) -> Option<Duration> {
        if ready == 0 {
            return Some(Duration::ZERO);
        }
        let fewer = self.ended as f64 - self.enqueued as f64;
        // Not positive, or too long to say: an error.
        Duration::try_from_secs_f64(ready as f64 / (fewer / self.over.as_secs_f64())).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{hours, secs};

    const SECOND: Duration = Duration::from_secs(1);

    /// Takes looks, a second apart, with what the pool has had by the decisions before.
    struct Taken {
        scaler: Scaler,
        at: Instant,
        wanted: usize,
    }

    impl Taken {
        fn new(scale: Scale) -> Self {
            Self {
                wanted: scale.bounds().0,
                scaler: Scaler::new(scale),
                at: Instant::now(),
            }
        }

        /// All threads are busy unless this says how many are.
        fn look(&mut self, ready: u64, ended: u64, busy: Option<usize>) -> usize {
            self.at += SECOND;
            let decision = self.scaler.look(Look {
                at: self.at,
                ready,
                enqueued: 0,
                ended,
                threads: self.wanted,
                busy: busy.unwrap_or(self.wanted),
                wanted: self.wanted,
            });
            self.wanted = decision.threads;
            self.wanted
        }
    }

    #[test]
    fn a_pool_whose_jobs_have_not_ended_yet_grows_to_what_may_run_at_once() {
        let mut taken = Taken::new(Scale::threads(1..=64).drain_within(secs(10)));
        let grown: Vec<_> = (0..12).map(|_| taken.look(30, 0, None)).collect();
        // The first look says nothing of the time that a job takes.
        assert_eq!(grown[..6], [1, 2, 4, 8, 16, 32]);
        assert!(grown[6..].iter().all(|threads| *threads <= 64));
        // With one job ready, one thread more is enough.
        let mut taken = Taken::new(Scale::threads(4..=64).drain_within(secs(10)));
        for _ in 0..30 {
            let before = taken.wanted;
            assert!(taken.look(1, 0, None) <= before + 1);
        }
    }

    #[test]
    fn a_backlog_that_drains_in_time_has_no_thread_started() {
        let mut taken = Taken::new(Scale::threads(2..=64).drain_within(secs(60)));
        for second in 0..60 {
            // Two threads end ten jobs in a second.
            assert_eq!(taken.look(600 - 10 * second, 10 * second, None), 2);
        }
    }

    #[test]
    fn threads_that_wait_for_a_limit_do_not_become_more() {
        let mut taken = Taken::new(Scale::threads(2..=64).drain_within(secs(1)));
        for second in 0..600 {
            assert_eq!(taken.look(1_000_000, second, Some(1)), 2);
        }
    }

    #[test]
    fn a_pool_shrinks_after_the_time_and_in_small_steps() {
        let scale = Scale::threads(2..=16).shrink_after(secs(60));
        let mut taken = Taken::new(scale);
        taken.wanted = 16;
        let counts: Vec<_> = (0..120).map(|_| taken.look(0, 0, Some(0))).collect();
        assert!(counts[..60].iter().all(|threads| *threads == 16));
        assert_eq!(counts[60..65], [14, 13, 12, 11, 10]);
        assert_eq!(counts.last(), Some(&2));
        // A pool with threads that are busy keeps them and some.
        let mut taken = Taken::new(scale);
        taken.wanted = 16;
        let counts = (0..600).map(|_| taken.look(0, 0, Some(8)));
        assert_eq!(counts.last(), Some(10));
    }

    #[test]
    fn what_cannot_be_started_does_not_have_more_wanted() {
        let mut taken = Taken::new(Scale::threads(1..=64));
        taken.wanted = 8;
        for _ in 0..30 {
            taken.at += SECOND;
            let decision = taken.scaler.look(Look {
                at: taken.at,
                ready: 1000,
                enqueued: 0,
                ended: 0,
                threads: 4,
                busy: 4,
                wanted: 8,
            });
            assert_eq!(decision.threads, 8);
        }
    }

    #[test]
    fn a_look_says_when_no_job_will_be_ready() {
        let mut scaler = Scaler::new(Scale::threads(1..=1));
        let at = Instant::now();
        let mut look = Look {
            at,
            ready: 100,
            enqueued: 100,
            ended: 0,
            threads: 1,
            busy: 1,
            wanted: 1,
        };
        assert_eq!(scaler.look(look).time_to_drain, None);
        look = Look {
            at: at + 10 * SECOND,
            ready: 80,
            ended: 20,
            ..look
        };
        assert_eq!(scaler.look(look).time_to_drain, Some(secs(40)));
        look.ready = 0;
        assert_eq!(scaler.look(look).time_to_drain, Some(Duration::ZERO));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let scale = Scale::threads(1..=8).drain_within(hours(1));
        let mut taken = Taken::new(scale);
        for second in 0..10_000 {
            taken.look(1, second, Some(1));
        }
        assert!(taken.scaler.looks.len() <= 62 && taken.scaler.needs.len() <= 62);
    }

    proptest! {
        #[test]
        fn no_looks_have_a_pool_leave_its_bounds_or_jump(
            (least, more) in (1..20_usize, 0..50_usize),
            within in 0..200_u64,
            shrink in 0..100_u64,
            looks in prop::collection::vec(
                (0..5000_u64, 0..3000_u64, 0..300_u64, 0..300_u64, 0..80_usize, 0..80_usize),
                1..300,
            ),
        ) {
            let scale = Scale::threads(least..=least + more);
            let scale = scale.drain_within(secs(within)).shrink_after(secs(shrink));
            let mut scaler = Scaler::new(scale);
            let (mut at, mut enqueued, mut ended) = (Instant::now(), 0, 0);
            let mut wanted = least;
            for (millis, ready, came, went, threads, busy) in looks {
                at += Duration::from_millis(millis);
                enqueued += came;
                ended += went;
                let busy = busy.min(threads);
                let look = Look { at, ready, enqueued, ended, threads, busy, wanted };
                let next = scaler.look(look).threads;
                prop_assert!((least..=least + more).contains(&next));
                prop_assert!(next <= 2 * wanted);
                prop_assert!(next >= wanted - (wanted / 8).max(1));
                if next > wanted {
                    prop_assert!(ready > 0 && look.is_busy());
                    prop_assert!(next as u64 <= busy as u64 + ready);
                }
                wanted = next;
            }
        }
    }
}
