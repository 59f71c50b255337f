//! The side that sends: a job at each of the schedule's times, timed.

use std::ops::Range;

use anyhow::Result;

use super::contenders::Send;
use super::schedule::{Clock, Nanos, Schedule};
use super::series::Series;
use super::thread::Usage;

/// In the job that is sent last, stands where the others say when they were to be sent.
const LAST: Nanos = Nanos::MAX;
const STAMP_BYTES: usize = size_of::<Nanos>();

/// A call, as it was made.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub begun: Nanos,
    pub ended: Nanos,
    /// It began a new segment.
    pub rolled: bool,
}

impl Call {
    #[inline]
    pub fn took(&self) -> Nanos {
        self.ended - self.begun
    }
}

/// Looks closer at calls, at some cost.
pub trait Watch {
    /// A call is to come now; returns the time at which it begins.
    fn before(&mut self, clock: &Clock, now: Nanos) -> Nanos;
    /// That call was made.
    fn after(&mut self, call: &Call);
}

/// Does not look.
pub struct NoWatch;

impl Watch for NoWatch {
    #[inline]
    fn before(&mut self, _: &Clock, now: Nanos) -> Nanos {
        now
    }

    #[inline]
    fn after(&mut self, _: &Call) {}
}

/// What was measured.
pub struct Sent {
    pub call: Series,
    pub enqueue: Series,
    /// Those calls that began a new segment.
    pub rolls: Series,
    pub usage: Usage,
}

/// Sends jobs of one length.
pub struct Generator<'a, S, W> {
    clock: &'a Clock,
    schedule: &'a Schedule,
    sender: S,
    watch: &'a mut W,
    payload: Vec<u8>,
}

impl<'a, S: Send, W: Watch> Generator<'a, S, W> {
    pub fn new(
        clock: &'a Clock,
        schedule: &'a Schedule,
        payload: usize,
        sender: S,
        watch: &'a mut W,
    ) -> Self {
        Self {
            clock,
            schedule,
            sender,
            watch,
            payload: vec![7; payload.max(STAMP_BYTES)],
        }
    }

    /// Sends all jobs of the schedule, and one more that says that it is the last.
    pub fn run(mut self) -> Result<Sent> {
        let mut sent = Sent {
            call: Series::new(),
            enqueue: Series::new(),
            rolls: Series::new(),
            usage: Usage::default(),
        };
        self.send(self.schedule.warm_up(), |_, _, _| {})?;
        let before = Usage::now();
        self.send(self.schedule.measured(), |watch, intended, call| {
            watch.after(call);
            sent.call.record(call.took());
            sent.enqueue.record(call.ended - intended);
            if call.rolled {
                sent.rolls.record(call.took());
            }
        })?;
        sent.usage = Usage::now() - before;
        self.stamp(LAST);
        self.sender.send(&self.payload)?;
        Ok(sent)
    }

    fn send(&mut self, jobs: Range<u64>, mut each: impl FnMut(&mut W, Nanos, &Call)) -> Result<()> {
        for job in jobs {
            let intended = self.schedule.time_of(job);
            self.stamp(intended);
            let now = self.clock.wait_until(intended);
            let begun = self.watch.before(self.clock, now);
            let receipt = self.sender.send(&self.payload)?;
            let ended = self.clock.now();
            let rolled = self.sender.has_rolled(receipt);
            let call = Call {
                begun,
                ended,
                rolled,
            };
            each(self.watch, intended, &call);
        }
        Ok(())
    }

    #[inline]
    fn stamp(&mut self, intended: Nanos) {
        self.payload[..STAMP_BYTES].copy_from_slice(&intended.to_le_bytes());
    }
}

/// When a job was to be sent; None for the last one, which is not measured.
#[inline]
pub fn intended_time(payload: &[u8]) -> Option<Nanos> {
    let stamp = payload.first_chunk().copied().map(Nanos::from_le_bytes);
    stamp.filter(|&intended| intended != LAST)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::schedule::Arrivals;
    use super::*;

    /// Notes what it is sent, and stalls once.
    struct Stalls {
        sent: Vec<Option<Nanos>>,
        at: usize,
        long: Duration,
    }

    impl Send for &mut Stalls {
        type Receipt = bool;

        fn send(&mut self, payload: &[u8]) -> Result<bool> {
            let stalls = self.sent.len() == self.at;
            if stalls {
                std::thread::sleep(self.long);
            }
            self.sent.push(intended_time(payload));
            Ok(stalls)
        }

        fn has_rolled(&mut self, receipt: bool) -> bool {
            receipt
        }
    }

    #[test]
    fn a_stall_is_seen_in_the_jobs_that_it_delays_and_none_is_skipped() {
        let long = Duration::from_millis(20);
        let mut sender = Stalls {
            sent: Vec::new(),
            at: 25,
            long,
        };
        let (clock, each) = (Clock::start(), Duration::from_millis(10));
        // One job each millisecond: ten to warm up, forty that are measured.
        let schedule = Schedule::new(1_000_000, (1_000, Arrivals::Even), each, 4 * each);
        let mut watch = NoWatch;
        let generator = Generator::new(&clock, &schedule, 64, &mut sender, &mut watch);
        let measured = generator.run().unwrap();

        let mut expected: Vec<_> = (0..50).map(|job| Some(schedule.time_of(job))).collect();
        expected.push(None);
        assert_eq!(sender.sent, expected);
        assert_eq!((measured.call.len(), measured.rolls.len()), (40, 1));
        let long = long.as_nanos() as Nanos;
        assert!(measured.rolls.max() >= long);
        // One call took long; those planned during the stall waited for it: 20, 19, 18 ms...
        assert!(measured.call.at(0.9) < long / 2);
        assert!(measured.enqueue.at(0.78) >= long / 2);
    }
}
