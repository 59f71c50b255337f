//! Why the slowest calls were slow: a round in which each call is looked at from both sides.
//!
//! Asking the kernel takes a few hundred nanoseconds before and after each call, and the calls
//! find colder caches after it. So these rounds are not part of the figures; they say what a slow
//! call met, not how slow calls are.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt::Write as _;

use super::generator::{Call, Watch};
use super::schedule::{Clock, Nanos};
use super::thread::Usage;

/// How many of the slowest calls are looked at.
const SLOWEST: usize = 100;

/// What a slow call met. The first that applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    RollThatWaited,
    RollThatLostItsCore,
    RollWithPageFaults,
    Roll,
    LostItsCore,
    Waited,
    PageFaults,
    NoneOfThese,
}

impl Cause {
    const ALL: [Self; 8] = [
        Self::RollThatWaited,
        Self::RollThatLostItsCore,
        Self::RollWithPageFaults,
        Self::Roll,
        Self::LostItsCore,
        Self::Waited,
        Self::PageFaults,
        Self::NoneOfThese,
    ];

    fn of(rolled: bool, usage: Usage) -> Self {
        let met = (
            usage.waits > 0,
            usage.preemptions > 0,
            usage.minor_faults > 0,
        );
        match (rolled, met) {
            (true, (true, ..)) => Self::RollThatWaited,
            (true, (_, true, _)) => Self::RollThatLostItsCore,
            (true, (.., true)) => Self::RollWithPageFaults,
            (true, _) => Self::Roll,
            (false, (_, true, _)) => Self::LostItsCore,
            (false, (true, ..)) => Self::Waited,
            (false, (.., true)) => Self::PageFaults,
            (false, _) => Self::NoneOfThese,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::RollThatWaited => "began a segment, and blocked (lock, disk)",
            Self::RollThatLostItsCore => "began a segment, and was preempted",
            Self::RollWithPageFaults => "began a segment, with page faults",
            Self::Roll => "began a segment",
            Self::LostItsCore => "preempted by another thread",
            Self::Waited => "blocked (lock, disk)",
            Self::PageFaults => "page faults",
            Self::NoneOfThese => "none of these: interrupts, cache misses, the hypervisor",
        }
    }
}

/// The slowest calls, and what they met.
#[derive(Default)]
pub struct Causes {
    before: Usage,
    slowest: BinaryHeap<Reverse<(Nanos, Cause)>>,
}

impl Watch for Causes {
    fn before(&mut self, clock: &Clock, _: Nanos) -> Nanos {
        self.before = Usage::now();
        clock.now()
    }

    fn after(&mut self, call: &Call) {
        let usage = Usage::now() - self.before;
        self.note(call.took(), Cause::of(call.rolled, usage));
    }
}

impl Causes {
    fn note(&mut self, took: Nanos, cause: Cause) {
        self.slowest.push(Reverse((took, cause)));
        if self.slowest.len() > SLOWEST {
            self.slowest.pop();
        }
    }

    /// How many of the slowest calls met what, and how long those took.
    pub fn to_markdown(&self) -> String {
        let mut table = String::from("| | calls | from | to |\n|---|---:|---:|---:|\n");
        for cause in Cause::ALL {
            let times = self.slowest.iter();
            let mut times: Vec<_> = times
                .filter(|Reverse((_, of))| *of == cause)
                .map(|Reverse((took, _))| *took)
                .collect();
            times.sort_unstable();
            if let (Some(&first), Some(&last)) = (times.first(), times.last()) {
                let (name, count) = (cause.name(), times.len());
                let (first, last) = (super::table::time(first), super::table::time(last));
                let _ = writeln!(table, "| {name} | {count} | {first} | {last} |");
            }
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_are_kept_and_counted_by_cause() {
        let mut causes = Causes::default();
        for took in 1..=1_000 {
            let cause = if took > 990 {
                Cause::Roll
            } else {
                Cause::NoneOfThese
            };
            causes.note(took, cause);
        }
        let table = causes.to_markdown();
        assert!(
            table.contains("| began a segment | 10 | 991 ns | 1.00 µs |"),
            "{table}"
        );
        assert!(table.contains("| 90 | 901 ns | 990 ns |"), "{table}");
    }

    #[test]
    fn a_roll_comes_before_what_it_met_and_a_wait_before_the_faults_of_its_switch() {
        let usage = |waits, preemptions, minor_faults| Usage {
            waits,
            preemptions,
            minor_faults,
            cpu: 0,
        };
        assert_eq!(Cause::of(true, usage(1, 0, 3)), Cause::RollThatWaited);
        assert_eq!(Cause::of(true, usage(0, 0, 0)), Cause::Roll);
        assert_eq!(Cause::of(false, usage(0, 1, 1)), Cause::LostItsCore);
        assert_eq!(Cause::of(false, usage(0, 0, 1)), Cause::PageFaults);
        assert_eq!(Cause::of(false, usage(0, 0, 0)), Cause::NoneOfThese);
    }
}
