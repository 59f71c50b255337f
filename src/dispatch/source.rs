//! One consumer's end of the dispatch: its leases and runs, the distance that it keeps from a fast
//! producer, and how it waits when there is nothing to do.

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_deque::{Steal, Stealer, Worker};
use crossbeam_utils::CachePadded;

use super::Dispatch;
use super::at_hand::{AtHand, Taker};
use super::naps::Watched;
use crate::log::lease::Lease;
use crate::log::run::Run;

/// How often a consumer looks for work before it goes to sleep, each time after a pause. All pauses
/// together take a few tens of microseconds, about what a sleep and a wake-up cost. A consumer
/// looks only once if as many as there are cores are looking already.
const LOOKS_BEFORE_SLEEP: u32 = 48;
/// The number of these looks that follow a spin. Later ones yield the core, in case the producer
/// needs it.
const LOOKS_WITH_SPIN: u32 = 24;
/// Spin-loop hints per pause, about a microsecond. A consumer that looked more often would follow
/// the producer record by record, and each record's cache line would travel between the cores
/// twice: slower for both than a run at a time.
pub(super) const SPINS_PER_LOOK: u32 = 24;

/// The two kinds of jobs that a consumer takes in turn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    New,
    CameBack,
}

/// A consumer's own deques.
pub(super) struct Deques {
    /// New jobs to deliver next.
    pub(super) at_hand: AtHand<Lease>,
    /// New jobs to deliver after these; never more than a run, so that the deque does not grow.
    pub(super) leases: Worker<Lease>,
    /// Claimed runs that are not turned into leases yet.
    runs: Worker<Run>,
    /// Jobs in `runs`.
    in_runs: Arc<AtomicU64>,
    /// Which kind of job is next if both wait.
    pub(super) turn: Cell<Turn>,
    /// Whether the last look beyond the leases found a suspect.
    pub(super) had_suspect: Cell<bool>,
    /// How often in a row others were left their leases at hand because they were taking them.
    pub(super) left_alone: Cell<u32>,
    /// The buffer into which a claim puts its runs.
    pub(super) claimed: Cell<Vec<Run>>,
    /// The consumer's place in the registry.
    pub(super) place: usize,
    home: usize,
    /// Claims so far.
    claims: Cell<usize>,
    /// Looks outside these deques so far.
    looks: Cell<usize>,
    /// How many of the latest claims in a row were close behind a producer.
    close_behind: Cell<u32>,
    /// A consumer that can wait makes no claim until then.
    pub(super) distance: Cell<Option<Instant>>,
    /// When the consumer last took a job from its naps, until it comes back.
    pub(super) left_at: Cell<Option<Instant>>,
    /// How long it is away from its naps, on average.
    pub(super) away: Cell<Duration>,
}

/// A claim that caught up with the producers and found this many jobs counts as close behind.
///
/// A consumer that reads close behind a producer slows both to half their speed: its core fetches
/// the cache lines that the producer is about to write, which the producer must then take back. It
/// also stays there: as both are slow, each claim finds the ten jobs or so that were enqueued
/// during the last ten.
const CLOSE_BEHIND: Range<u64> = 8..64;
/// This many claims close behind in a row make the consumer keep a distance.
const CLAIMS_CLOSE_BEHIND: u32 = 4;
/// How long the consumer then makes no claim, so that it falls behind by several hundred jobs.
/// Measured: from 8 µs on, the two run at the speed that each has alone.
const DISTANCE: Duration = Duration::from_micros(12);

/// One in this many claims begins at a stripe other than home, each in turn: a stripe that is no
/// consumer's home must not wait until another one runs dry.
const CLAIMS_AT_HOME: usize = 8;

/// One in this many looks begins with other consumers' deques rather than with the logs: what a
/// stuck consumer has claimed must not wait for the end of a backlog.
const LOOKS_AT_LOGS: usize = 16;

/// What other consumers see of a consumer: the stealing ends of its deques.
pub(super) struct Thief {
    pub(super) at_hand: Taker<Lease>,
    pub(super) leases: Stealer<Lease>,
    runs: Stealer<Run>,
    in_runs: Arc<AtomicU64>,
}

impl Deques {
    /// Empty deques with the first stripe as home, and their stealing ends.
    pub(super) fn new() -> (Self, Thief) {
        let (at_hand, taker) = AtHand::new();
        let leases = Worker::new_fifo();
        let runs = Worker::new_fifo();
        let in_runs = Arc::new(AtomicU64::new(0));
        let thief = Thief {
            at_hand: taker,
            leases: leases.stealer(),
            runs: runs.stealer(),
            in_runs: Arc::clone(&in_runs),
        };
        let own = Self {
            at_hand,
            leases,
            runs,
            in_runs,
            turn: Cell::new(Turn::New),
            had_suspect: Cell::new(false),
            left_alone: Cell::new(0),
            claimed: Cell::default(),
            place: 0,
            home: 0,
            claims: Cell::new(0),
            looks: Cell::new(0),
            close_behind: Cell::new(0),
            distance: Cell::new(None),
            left_at: Cell::new(None),
            away: Cell::new(Duration::ZERO),
        };
        (own, thief)
    }

    /// The stripe at which the next claim begins.
    pub(super) fn first_stripe(&self) -> usize {
        let claims = self.claims.get().wrapping_add(1);
        self.claims.set(claims);
        if claims.is_multiple_of(CLAIMS_AT_HOME) {
            self.home + claims / CLAIMS_AT_HOME
        } else {
            self.home
        }
    }

    /// Whether the next look begins with other consumers' deques.
    pub(super) fn steals_first(&self) -> bool {
        let looks = self.looks.get().wrapping_add(1);
        self.looks.set(looks);
        looks.is_multiple_of(LOOKS_AT_LOGS)
    }

    /// Whether a consumer that can wait should make no claim for now.
    pub(super) fn keeps_distance(&self) -> bool {
        let until = self.distance.get();
        let keeps = until.is_some_and(|until| Instant::now() < until);
        if !keeps {
            self.distance.set(None);
        }
        keeps
    }

    /// Records how many jobs a claim found, and whether it caught up with the producers.
    pub(super) fn note_claim(&self, jobs: u64, caught_up: bool) {
        let is_close = caught_up && CLOSE_BEHIND.contains(&jobs);
        let mut in_a_row = if is_close {
            self.close_behind.get() + 1
        } else {
            0
        };
        if in_a_row == CLAIMS_CLOSE_BEHIND {
            self.distance.set(Some(Instant::now() + DISTANCE));
            in_a_row = 0;
        }
        self.close_behind.set(in_a_row);
    }

    /// Takes the next lease.
    #[inline(always)]
    pub(super) fn pop(&self) -> Option<Lease> {
        self.at_hand.pop().or_else(|| self.leases.pop())
    }

    /// How many leases there are.
    pub(super) fn leases(&self) -> usize {
        self.at_hand.len() + self.leases.len()
    }

    /// Takes the next lease. After that it is the turn of a job that came back.
    pub(super) fn pop_lease(&self) -> Option<Lease> {
        let lease = self.pop()?;
        self.turn.set(Turn::CameBack);
        Some(lease)
    }

    pub(super) fn push_run(&self, run: Run) {
        // Relaxed, here and below: a count for statistics.
        self.in_runs.fetch_add(run.jobs(), Ordering::Relaxed);
        self.runs.push(run);
    }

    pub(super) fn has_runs(&self) -> bool {
        !self.runs.is_empty()
    }

    pub(super) fn pop_run(&self) -> Option<Run> {
        let run = self.runs.pop()?;
        self.in_runs.fetch_sub(run.jobs(), Ordering::Relaxed);
        Some(run)
    }
}

impl Thief {
    pub(super) fn steal_run(&self) -> Steal<Run> {
        let stolen = self.runs.steal();
        if let Steal::Success(run) = &stolen {
            self.in_runs.fetch_sub(run.jobs(), Ordering::Relaxed);
        }
        stolen
    }

    /// Jobs in the deques.
    pub(super) fn queued(&self) -> u64 {
        (self.at_hand.len() + self.leases.len()) as u64 + self.in_runs.load(Ordering::Relaxed)
    }

    pub(super) fn has_work(&self) -> bool {
        self.at_hand.has_any() || !self.leases.is_empty() || !self.runs.is_empty()
    }
}

/// Limits how many consumers look for work repeatedly: no more than there are cores, since more
/// would only take cores away from producers and handlers.
pub(super) struct Looking {
    count: CachePadded<AtomicUsize>,
    max: usize,
}

/// One consumer that is looking.
struct Looker<'a>(&'a Looking);

impl Looking {
    pub(super) fn new() -> Self {
        static CORES: OnceLock<usize> = OnceLock::new();
        let cores = || thread::available_parallelism().map_or(1, usize::from);
        Self {
            count: CachePadded::new(AtomicUsize::new(0)),
            max: *CORES.get_or_init(cores),
        }
    }

    /// None if enough consumers are looking already.
    fn join(&self) -> Option<Looker<'_>> {
        // Relaxed, here and below: a count, which orders nothing.
        if self.count.fetch_add(1, Ordering::Relaxed) < self.max {
            return Some(Looker(self));
        }
        self.count.fetch_sub(1, Ordering::Relaxed);
        None
    }
}

/// The looks of a consumer before it goes to sleep.
pub(crate) struct Looks<'a> {
    done: u32,
    /// None: it looks until there is work.
    most: Option<u32>,
    looker: Option<Looker<'a>>,
}

impl Looks<'_> {
    fn of(dispatch: &Dispatch) -> Self {
        Self {
            done: 0,
            most: (!dispatch.spins).then_some(LOOKS_BEFORE_SLEEP),
            looker: None,
        }
    }

    /// For a consumer of this many queues, whose looks take longer.
    pub(crate) fn of_one_among(queues: usize) -> Self {
        let queues = u32::try_from(queues).unwrap_or(u32::MAX);
        Self {
            done: 0,
            most: Some(LOOKS_BEFORE_SLEEP / queues.max(1)),
            looker: None,
        }
    }
}

impl Drop for Looker<'_> {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A consumer's place in the dispatch. When it is dropped, its jobs go back to the other consumers.
pub(crate) struct Source<D: AsRef<Dispatch>> {
    pub(super) dispatch: D,
    pub(super) own: Deques,
}

impl<D: AsRef<Dispatch>> Source<D> {
    pub(crate) fn new(dispatch: D) -> Self {
        let (mut own, thief) = Deques::new();
        let (place, count) = dispatch.as_ref().consumers.register(thief);
        own.place = place;
        own.home = count % dispatch.as_ref().stripes.len();
        Self { dispatch, own }
    }

    #[cfg(feature = "async")]
    pub(super) fn dispatch(&self) -> &Dispatch {
        self.dispatch.as_ref()
    }

    /// The next job, if the consumer has claimed it already.
    #[inline(always)]
    pub(crate) fn at_hand(&self) -> Option<Lease> {
        self.dispatch.as_ref().find_at_hand(&self.own)
    }

    /// The next job, if there is one now.
    #[inline]
    pub(crate) fn try_next(&self) -> Option<Lease> {
        let dispatch = self.dispatch.as_ref();
        match dispatch.find_at_hand(&self.own) {
            Some(lease) => Some(lease),
            None => dispatch.find(&self.own, false),
        }
    }

    /// The next job, waiting for it until the deadline, or until `stopped`. A caller that makes
    /// `stopped` true wakes the sleepers. A job that is found at once is returned anyway. The
    /// deadline is only computed if there is no job at hand.
    #[inline]
    pub(crate) fn next(
        &self,
        deadline: impl FnOnce() -> Option<Instant>,
        stopped: impl Fn() -> bool,
    ) -> Option<Lease> {
        match self.dispatch.as_ref().find_at_hand(&self.own) {
            Some(lease) => Some(lease),
            None => self.wait(deadline(), &stopped),
        }
    }

    /// The next job, if there is one now; a patient caller keeps its distance from a producer.
    pub(crate) fn look(&self, patient: bool) -> Option<Lease> {
        let dispatch = self.dispatch.as_ref();
        let at_hand = dispatch.find_at_hand(&self.own);
        at_hand.or_else(|| dispatch.find(&self.own, patient))
    }

    /// Pauses before the next look; false if it is time to sleep.
    pub(crate) fn pause<'a>(&'a self, looks: &mut Looks<'a>) -> bool {
        if looks.done == 0 {
            looks.looker = self.dispatch.as_ref().looking.join();
        }
        looks.done = looks.done.saturating_add(1);
        if looks.looker.is_none() || looks.most.is_some_and(|most| looks.done >= most) {
            return false;
        }
        if looks.most.is_none() || looks.done <= LOOKS_WITH_SPIN {
            for _ in 0..SPINS_PER_LOOK {
                std::hint::spin_loop();
            }
        } else {
            thread::yield_now();
        }
        true
    }

    /// Gives a job back that was not delivered.
    #[cold]
    pub(crate) fn put_back(&self, lease: Lease) {
        let dispatch = self.dispatch.as_ref();
        // A suspect was taken together with its turn, which ends without a handler.
        let is_suspect = lease.is_suspect();
        dispatch.inject(lease);
        if is_suspect {
            dispatch.end_suspect();
        }
    }

    fn wait(&self, deadline: Option<Instant>, stopped: impl Fn() -> bool) -> Option<Lease> {
        let dispatch = self.dispatch.as_ref();
        loop {
            let mut looks = Looks::of(dispatch);
            loop {
                let is_last = deadline.is_some_and(|deadline| deadline <= Instant::now());
                if let Some(lease) = dispatch.find(&self.own, !is_last) {
                    return Some(lease);
                }
                if is_last || stopped() {
                    return None;
                }
                if !self.pause(&mut looks) {
                    break;
                }
            }
            let has_looked = looks.looker.take().is_some();
            match self.watch(deadline, &stopped) {
                Watched::Found(lease) => return Some(lease),
                Watched::Interrupted => continue,
                Watched::InVain => {}
            }
            let registered = dispatch.sleepers.register();
            if stopped() || dispatch.may_have_work() {
                dispatch.sleepers.cancel(registered);
                if !has_looked {
                    // The thread that brings the work may need the core.
                    thread::yield_now();
                }
            } else {
                dispatch.sleepers.wait(registered, deadline);
            }
        }
    }
}

impl<D: AsRef<Dispatch>> Drop for Source<D> {
    fn drop(&mut self) {
        let dispatch = self.dispatch.as_ref();
        let mut rest = Vec::new();
        while let Some(lease) = self.own.pop() {
            rest.push(lease);
        }
        while let Some(run) = self.own.pop_run() {
            dispatch.make_leases(run, |lease| rest.push(lease));
        }
        dispatch.consumers.unregister(self.own.place);
        if !rest.is_empty() {
            dispatch.inject_all(rest);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn only_claims_close_behind_a_producer_one_after_the_other_make_a_consumer_keep_its_distance() {
        let claims: [(&[(u64, bool)], bool); 7] = [
            (&[(8, true), (63, true), (10, true)], false),
            (&[(8, true), (63, true), (10, true), (10, true)], true),
            // Further behind.
            (&[(64, true); 9], false),
            // One job at a time.
            (&[(7, true); 9], false),
            // Large jobs, with more to come.
            (&[(10, false); 9], false),
            // The producers pause.
            (
                &[(10, true), (10, true), (10, true), (0, true), (10, true)],
                false,
            ),
            (
                &[(10, true), (10, true), (10, true), (256, false), (10, true)],
                false,
            ),
        ];
        for (claims, expected) in claims {
            let own = Deques::new().0;
            for &(jobs, caught_up) in claims {
                own.note_claim(jobs, caught_up);
            }
            assert_eq!(own.distance.get().is_some(), expected, "{claims:?}");
        }
    }

    #[test]
    fn no_more_consumers_look_again_and_again_than_there_are_cores() {
        let looking = Looking::new();
        let mut lookers: Vec<_> = (0..looking.max).map(|_| looking.join().unwrap()).collect();
        assert!(looking.join().is_none());
        lookers.pop();
        assert!(looking.join().is_some());
        assert!(looking.join().is_some());
    }

    #[test]
    fn a_distance_ends() {
        let own = Deques::new().0;
        assert!(!own.keeps_distance());
        own.distance
            .set(Some(Instant::now() + Duration::from_secs(3600)));
        assert!(own.keeps_distance());
        own.distance.set(Some(Instant::now()));
        assert!(!own.keeps_distance());
        assert_eq!(own.distance.get(), None);
    }
}
