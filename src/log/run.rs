//! Claims: take the next committed records of a segment as runs, which are then turned into leases.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::ack;
use super::hold::Hold;
use super::lease::Lease;
use super::pinned::Pinned;
use super::record::{self, HEADER_UNITS, META_LEN_SHIFT, UNIT};
#[cfg(test)]
use super::segment::Segment;
use super::tail::Position;

/// The result of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Runs were added. `caught_up`: the claim ended because the next record is not committed yet,
    /// not because it was large enough.
    Taken { caught_up: bool },
    /// Nothing is committed past the cursor.
    Empty,
    /// Everything is claimed and no record can follow.
    Exhausted,
}

/// Most jobs in a run: what a crossbeam deque holds without growing, and two ack words.
pub(crate) const RUN_JOBS: u32 = 64;

/// A stretch of records that a claim has walked over.
struct Walked {
    from: Position,
    to: Position,
    /// How many of them are not done.
    live: u32,
}

impl Pinned {
    /// Claims up to `max_jobs` committed records, or about `max_bytes`, and adds them to `runs`.
    /// With `counted`, each of their leases will own a share of the mappings.
    pub(crate) fn claim(
        &self,
        max_jobs: u32,
        max_bytes: usize,
        counted: bool,
        runs: &mut Vec<Run>,
    ) -> Claim {
        let segment = &**self.segment();
        assert!(self.is_in_use(), "claimed from a segment that waits");
        let runs_before = runs.len();
        let mut shared = None;
        let mut hold = || {
            if counted {
                let pinned = shared.get_or_insert_with(|| Arc::new(self.another()));
                Hold::counted(Arc::clone(pinned))
            } else {
                Hold::not_done(segment)
            }
        };
        let max_units = u32::try_from(max_bytes / UNIT).unwrap_or(u32::MAX).max(1);
        loop {
            let from = segment.cursor.position();
            // Read before the walk, so that the walk sees what was committed before the close.
            let closed = segment.tail.closed();
            let end = closed.map_or_else(|| self.maps().records.units(), |end| end.units);
            // Up to a whole ack word, so that ackers of two claims share no word.
            let last = from.index.saturating_add(max_jobs.max(1));
            let last = match last - last % ack::RECORDS_PER_WORD {
                aligned if aligned > from.index => aligned,
                _ => last,
            };
            let end_units = end.min(from.units.saturating_add(max_units));
            let mut to = from;
            runs.truncate(runs_before);
            while to.index < last
                && to.units < end_units
                && let Some(run) = self.walk_run(to, last, end_units, end)
            {
                to = run.to;
                // A run can only keep its segment if one of its records is not done.
                if run.live > 0 {
                    runs.push(Run {
                        hold: hold(),
                        from: run.from,
                        to_units: run.to.units,
                        jobs: run.live,
                    });
                }
            }
            if closed.is_some() && to.units < end && end - to.units < HEADER_UNITS {
                // The rest is too short for a record. The cursor passes it, so that it does not
                // look like work.
                to.units = end;
            }
            if to == from {
                return if closed.is_some() && from.units >= end {
                    Claim::Exhausted
                } else {
                    Claim::Empty
                };
            }
            if segment.cursor.advance(from, to) && runs.len() > runs_before {
                let is_open = closed.is_none() && !segment.recovered;
                return Claim::Taken {
                    caught_up: is_open && to.index < last && to.units < end_units,
                };
            }
            // Another consumer was faster, or there were only pads and records that are done.
        }
    }

    /// Walks committed records from `from` on, to the end of a run; None if there is none. Records
    /// that start before `end_units` count; the segment's own end is `end`.
    #[inline]
    fn walk_run(&self, from: Position, last: u32, end_units: u32, end: u32) -> Option<Walked> {
        let records = &self.maps().records;
        let recovered = self.segment().recovered;
        let last = last.min(from.index + RUN_JOBS - from.index % RUN_JOBS);
        let mut to = from;
        let mut live = 0;
        while to.index < last && to.units < end_units && to.units + HEADER_UNITS <= end {
            let len = records.commit_word(to.units);
            if len == 0 {
                break;
            }
            if recovered {
                // There may be pads, and gaps in the ordinals. Records past the cursor can only
                // have been acked by an earlier process.
                let header = records.header(to.units);
                if header.is_job() {
                    to.index = header.index + 1;
                    live += u32::from(!self.maps().acks.is_done(header.index));
                }
            } else {
                to.index += 1;
                live += 1;
            }
            to.units += record::units_of(len as usize);
        }
        (to.units > from.units).then_some(Walked { from, to, live })
    }
}

/// Claimed records that have no leases yet: at most [`RUN_JOBS`], in log order.
#[must_use]
pub(crate) struct Run {
    hold: Hold,
    from: Position,
    to_units: u32,
    /// How many of them are not done.
    jobs: u32,
}

impl Run {
    /// How many leases there will be.
    pub(crate) fn jobs(&self) -> u64 {
        u64::from(self.jobs)
    }

    /// Whether its segment was found at open. Otherwise all its jobs are as their producers left
    /// them.
    pub(crate) fn is_recovered(&self) -> bool {
        self.hold.segment().recovered
    }

    /// Makes the leases, in log order. `is_ready` tells of a lease that its job can be delivered
    /// immediately: it has no due time, and was not found at open.
    #[inline]
    pub(crate) fn expand(self, mut each: impl FnMut(Lease, bool)) {
        let (segment, maps) = (self.hold.segment(), self.hold.maps());
        // Both stay locals: as arguments they would be assumed valid until the end, and after the
        // last lease is handed out the segment may be retired.
        let records = &maps.records;
        let mut at = self.from;
        if !segment.recovered {
            // All are jobs, their ordinals have no gaps, and none is done.
            while at.units < self.to_units {
                let words = records.words(at.units);
                let is_bare = words.identity.load(Ordering::Relaxed) >> META_LEN_SHIFT == 0;
                let is_due = words.due_at.load(Ordering::Relaxed) == 0;
                let next = at.units + record::units_of(words.len.load(Ordering::Acquire) as usize);
                let lease = Lease::new(self.hold.clone(), at, is_bare);
                at.units = next;
                at.index += 1;
                // The receiver may ack it at once. The segment is still not complete before the
                // next one has a lease.
                each(lease, is_due);
            }
            return;
        }
        // A lease is handed out only when the next one is made: its receiver may ack it at once,
        // and without another record that is not done the segment might be complete.
        let mut previous: Option<Lease> = None;
        while at.units < self.to_units {
            let header = records.header(at.units);
            if header.is_job() && !maps.acks.is_done(header.index) {
                at.index = header.index;
                let lease = Lease::new(self.hold.clone(), at, false);
                if let Some(lease) = previous.replace(lease) {
                    each(lease, false);
                }
            }
            at.units += record::units_of(header.len as usize);
        }
        if let Some(lease) = previous {
            each(lease, false);
        }
    }
}

/// Claims in one step, for tests below the dispatch.
#[cfg(test)]
impl Pinned {
    /// In the state of a segment that is about to be claimed from.
    pub(crate) fn to_claim(segment: &Arc<Segment>) -> Self {
        segment.begin_use().unwrap();
        segment.pin().unwrap()
    }

    pub(crate) fn claim_leases(
        &self,
        max_jobs: u32,
        max_bytes: usize,
        counted: bool,
        leases: &mut Vec<Lease>,
    ) -> Claim {
        let mut runs = Vec::new();
        let claim = self.claim(max_jobs, max_bytes, counted, &mut runs);
        for run in runs {
            run.expand(|lease, _| leases.push(lease));
        }
        claim
    }
}
