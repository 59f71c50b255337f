//! Pools that scale, on a simulated queue: jobs of a given length come at a given pace, threads take
//! them, and a [`Scaler`] looks once a second.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::Scale;
use super::decision::{Look, Scaler};
use crate::secs;

/// A simulation goes on in steps of this length.
const STEP: Duration = Duration::from_millis(10);
const STEPS_OF_SECOND: u64 = 100;

struct Simulated {
    scaler: Scaler,
    start: Instant,
    steps: u64,
    /// How many steps each job takes.
    takes: u64,
    /// Jobs that come in a step; what is left of it is carried on.
    comes: f64,
    carried: f64,
    ready: u64,
    enqueued: u64,
    ended: u64,
    wanted: usize,
    /// The steps that each thread is busy for.
    threads: Vec<u64>,
    /// The number of threads that was wanted at each look.
    wanted_so_far: Vec<usize>,
}

impl Simulated {
    fn new(scale: Scale, takes: Duration) -> Self {
        let (least, _) = scale.bounds();
        Self {
            scaler: Scaler::new(scale),
            start: Instant::now(),
            steps: 0,
            takes: u64::try_from(takes.as_nanos() / STEP.as_nanos()).unwrap(),
            comes: 0.0,
            carried: 0.0,
            ready: 0,
            enqueued: 0,
            ended: 0,
            wanted: least,
            threads: vec![0; least],
            wanted_so_far: Vec::new(),
        }
    }

    fn enqueue(&mut self, jobs: u64) {
        self.ready += jobs;
        self.enqueued += jobs;
    }

    fn run(&mut self, seconds: u64) {
        for _ in 0..seconds * STEPS_OF_SECOND {
            self.step();
        }
    }

    fn step(&mut self) {
        self.steps += 1;
        self.carried += self.comes;
        let come = self.carried.floor();
        self.carried -= come;
        self.enqueue(come as u64);
        for thread in &mut self.threads {
            if *thread > 0 {
                *thread -= 1;
                self.ended += u64::from(*thread == 0);
            }
        }
        // Threads that are too many end after their jobs.
        while self.threads.len() > self.wanted
            && let Some(idle) = self.threads.iter().position(|thread| *thread == 0)
        {
            self.threads.swap_remove(idle);
        }
        for thread in self.threads.iter_mut().filter(|thread| **thread == 0) {
            if self.ready > 0 {
                self.ready -= 1;
                *thread = self.takes;
            }
        }
        if self.steps.is_multiple_of(STEPS_OF_SECOND) {
            self.look();
        }
    }

    fn look(&mut self) {
        let elapsed = STEP * u32::try_from(self.steps).unwrap();
        let decision = self.scaler.look(Look {
            at: self.start + elapsed,
            ready: self.ready,
            enqueued: self.enqueued,
            ended: self.ended,
            threads: self.threads.len(),
            busy: self.threads.iter().filter(|thread| **thread > 0).count(),
            wanted: self.wanted,
        });
        self.wanted = decision.threads;
        self.wanted_so_far.push(self.wanted);
        while self.threads.len() < self.wanted {
            self.threads.push(0);
        }
    }

    /// How often the number of threads has changed in the last seconds.
    fn changes(&self, seconds: usize) -> usize {
        let from = self.wanted_so_far.len().saturating_sub(seconds);
        let last = &self.wanted_so_far[from..];
        last.windows(2).filter(|pair| pair[0] != pair[1]).count()
    }
}

#[test]
fn a_burst_has_a_pool_grow_within_seconds_and_an_idle_time_shrink_to_the_lower_bound() {
    let scale = Scale::threads(2..=16).drain_within(secs(30));
    let mut simulated = Simulated::new(scale, Duration::from_millis(100));
    simulated.run(120);
    assert_eq!(simulated.wanted, 2);
    // A hundred seconds for 16 threads.
    simulated.enqueue(16_000);
    simulated.run(6);
    assert_eq!(simulated.wanted, 16);
    simulated.run(105);
    assert_eq!((simulated.ready, simulated.ended), (0, 16_000));
    assert_eq!(simulated.wanted, 16);
    simulated.run(180);
    assert_eq!(simulated.wanted, 2);
}

#[test]
fn a_backlog_gets_as_many_threads_as_drain_it_in_time_and_not_all() {
    let scale = Scale::threads(1..=100).drain_within(secs(30));
    let mut simulated = Simulated::new(scale, Duration::from_millis(100));
    simulated.run(120);
    // Some nine threads drain it within 30 seconds; the burst counts as arrivals as well, once.
    simulated.enqueue(2700);
    simulated.run(30);
    assert!((9..=20).contains(&simulated.wanted), "{}", simulated.wanted);
    simulated.run(15);
    assert_eq!(simulated.ready, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A load that would keep this share of the most threads busy, by jobs of this length.
    #[test]
    fn a_steady_load_gets_threads_that_keep_up_and_then_their_number_stays(
        share in 0.02..0.9_f64,
        millis in 1..200_u64,
        within in 5..90_u64,
    ) {
        let takes = STEP * u32::try_from(millis).unwrap();
        let scale = Scale::threads(1..=32).drain_within(secs(within));
        let mut simulated = Simulated::new(scale, takes);
        let threads = share * 32.0;
        simulated.comes = threads * STEP.as_secs_f64() / takes.as_secs_f64();
        simulated.run(900);
        let settled = simulated.wanted;
        simulated.run(900);
        prop_assert!(simulated.changes(900) <= 2, "{:?}", simulated.wanted_so_far);
        let busy = threads.ceil() as usize;
        prop_assert!((busy..=2 * busy + 1).contains(&settled), "{settled} for {threads}");
        let comes_within = simulated.comes * (within * STEPS_OF_SECOND) as f64;
        prop_assert!(simulated.ready as f64 <= comes_within + 32.0, "{}", simulated.ready);
    }
}
