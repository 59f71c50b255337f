//! Compaction: moves waiting jobs from the timer to the end of the log, so that they do not keep
//! segments alive in which all other jobs are done.
//!
//! A job keeps its id, its attempts and its times. The order of steps is that of dead letters:
//! append the copies, each naming the old record; flush them; then mark the old records done and
//! flush that. After a crash in between, the next open finds the names and marks the old records.
//!
//! A [`Rule`] chooses the segments. Where there is room, it takes several segments of which little
//! is left; where producers find no room, any segment that is more than a quarter done.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Dispatch;
use super::timer::{Now, When};
use crate::Timestamp;
use crate::log::lease::Lease;
use crate::log::meta::{JobOptions, MAX_META_BYTES, Meta, MetaBytes};
use crate::log::record::NewRecord;
use crate::log::reserve::Left;
use crate::log::segment::{Segment, Unsettled};
use crate::log::{Log, RollError};
use crate::storage::StorageError;

/// Where there is room, at least this many segments are freed per flush.
const MIN_SEGMENTS: usize = 4;
/// Where there is room, a job that is due within this time is not moved: its segment will soon be
/// free anyway.
const MIN_WAIT: Duration = Duration::from_secs(10);

/// Which jobs are moved, and where to.
struct Rule {
    /// Only jobs that are due later than this.
    wait: Duration,
    /// Only if at least this many segments are freed.
    segments: usize,
    /// Most bytes left in the segment with the least left, so that moving frees more than it takes.
    first: u64,
    /// Most bytes left in each other segment.
    others: u64,
    /// Most bytes left in all of them together.
    all: u64,
    /// Bytes of files that the move must free.
    frees: u64,
    /// Whether the copies go to the reserve segment rather than the active one.
    into_reserve: bool,
}

impl Rule {
    fn of(stripe: &Log, is_short: bool) -> Self {
        let size = stripe.segment_size();
        // Leaves room for the largest possible record.
        let three_quarters = size / 4 * 3 - 64;
        let rule = Self {
            wait: Duration::ZERO,
            segments: 1,
            first: three_quarters,
            others: size / 4,
            all: three_quarters,
            frees: 0,
            into_reserve: false,
        };
        match stripe.room_left() {
            _ if !is_short => Self {
                wait: MIN_WAIT,
                segments: MIN_SEGMENTS,
                first: size / 4,
                all: size,
                ..rule
            },
            Some(room) => Self { all: room, ..rule },
            None => Self {
                // What the reserve takes on the disk must be freed again.
                frees: match stripe.is_limited_by_disk() {
                    true => (size + stripe.ack_file_bytes()) / 4 * 3,
                    false => 0,
                },
                into_reserve: true,
                ..rule
            },
        }
    }

    /// The segments that are worth moving jobs out of.
    fn choose(&self, mut all: Vec<Left>) -> Vec<Left> {
        all.sort_by_key(|left| left.bytes);
        let mut bytes = 0;
        let mut most = self.first;
        let mut is_worth_it = |left: &Left| {
            bytes += left.bytes;
            left.bytes <= std::mem::replace(&mut most, self.others) && bytes <= self.all
        };
        let fits = all.iter().take_while(|left| is_worth_it(left)).count();
        all.truncate(fits);
        let frees: u64 = all.iter().map(|left| left.frees).sum();
        if all.len() < self.segments || frees < self.frees {
            all.clear();
        }
        all
    }
}

/// A job that is being moved.
struct Move {
    lease: Lease,
    due: When,
}

/// What the record of a moved job is made of, besides the payload.
struct Copied {
    due_at: Timestamp,
    meta: MetaBytes,
}

impl Copied {
    fn record<'a>(&'a self, lease: &'a Lease) -> NewRecord<'a> {
        let record = lease.record();
        NewRecord {
            enqueued_at: record.header().enqueued_at,
            due_at: self.due_at,
            name: record.name(),
            meta: &self.meta,
            payload: record.payload(),
        }
    }
}

impl Dispatch {
    /// Moves waiting jobs out of segments that nothing else keeps. `is_short`: producers find no
    /// room. Returns whether there were such jobs.
    pub(crate) fn compact(&self, is_short: bool) -> Result<bool, Arc<StorageError>> {
        let _moving = self.moving.lock();
        let mut has_moved = false;
        let mut result = Ok(());
        // An error in one stripe does not stop the others.
        for (number, stripe) in (0..).zip(&self.stripes) {
            stripe.set_waiting(self.timer.has_any_of(number));
            match self.compact_stripe(stripe, is_short) {
                Ok(moved) => has_moved |= moved,
                Err(error) => result = Err(error),
            }
        }
        result.map(|()| has_moved)
    }

    /// Whether jobs wait for a delay named by a handler that is not stored with them yet.
    pub(crate) fn has_unkept(&self) -> bool {
        !self.unkept.lock().is_empty()
    }

    /// Moves the jobs that wait for a delay named by a handler, so that the delay is stored with
    /// them and survives a restart. A job for which there is no room is moved later, and so is one
    /// that came from another record which is not settled yet.
    pub(crate) fn keep_delays(&self) -> Result<(), Arc<StorageError>> {
        let _moving = self.moving.lock();
        let unkept = std::mem::take(&mut *self.unkept.lock());
        let mut result = Ok(());
        for (number, stripe) in (0..).zip(&self.stripes) {
            let of_stripe = unkept.iter().filter(|(one, _)| one.stripe() == number);
            let moves = of_stripe
                .filter_map(|&(one, due)| {
                    let lease = self.timer.take_to_move(one, due)?;
                    Some(Move { lease, due })
                })
                .collect::<Vec<_>>();
            // A power cut might leave the copy, and what the job came from, but not its record in
            // between.
            let (held, moves): (Vec<_>, Vec<_>) = moves
                .into_iter()
                .partition(|one| one.lease.may_not_be_durable_yet());
            self.put_back(held);
            if !moves.is_empty()
                && let Err(error) = self.move_to_the_end(stripe, moves)
            {
                result = Err(error);
            }
        }
        // Those that could not be moved wait at their old places.
        let mut again = self.unkept.lock();
        again.extend(
            unkept
                .into_iter()
                .filter(|&(one, due)| self.timer.has(one, due)),
        );
        result
    }

    fn compact_stripe(&self, stripe: &Log, is_short: bool) -> Result<bool, Arc<StorageError>> {
        let rule = Rule::of(stripe, is_short);
        if rule.into_reserve && !stripe.has_reserve() {
            // The timer would be searched for nothing.
            return Ok(false);
        }
        let mut left = stripe.left(rule.first, |base| self.timer.waiting_in(base));
        // The timer is not searched for jobs that are due soon if too few segments remain anyway.
        if left.len() >= rule.segments && !rule.wait.is_zero() {
            let bases = left.iter().map(|left| left.base).collect();
            let soon = self.timer.soon_in(&bases, Now::of(&self.clock), rule.wait);
            left.retain(|left| !soon.contains(&left.base));
        }
        let chosen = rule.choose(left);
        let moves = self.take(&chosen, &rule);
        if moves.is_empty() {
            return Ok(false);
        }
        match rule.into_reserve {
            true => self.move_into_reserve(stripe, moves),
            false => self.move_to_the_end(stripe, moves),
        }
    }

    /// Takes the jobs of the chosen segments out of the timer: of each segment all or none.
    fn take(&self, chosen: &[Left], rule: &Rule) -> Vec<Move> {
        if chosen.is_empty() {
            return Vec::new();
        }
        let bases: HashSet<_> = chosen.iter().map(|left| left.base).collect();
        let taken = self.timer.take_segments(&bases);
        let mut counts = HashMap::new();
        for (lease, _) in &taken {
            *counts.entry(lease.segment_base()).or_insert(0) += 1;
        }
        let is_whole = |left: &&Left| counts.get(&left.base) == Some(&left.jobs);
        let whole: HashSet<_> = chosen
            .iter()
            .filter(is_whole)
            .map(|left| left.base)
            .collect();
        let moves = taken.into_iter().map(|(lease, due)| Move { lease, due });
        let is_worth_it =
            whole.len() == chosen.len() || rule.frees == 0 && whole.len() >= rule.segments;
        let (moves, others): (Vec<_>, Vec<_>) =
            moves.partition(|one| is_worth_it && whole.contains(&one.lease.segment_base()));
        self.put_back(others);
        moves
    }

    fn put_back(&self, moves: impl IntoIterator<Item = Move>) {
        for Move { lease, due } in moves {
            // No handler has the job, so no ack can have arrived in the meantime.
            let _ = self.wait(lease, due, false);
            self.timer.note_moved(1);
        }
    }

    fn copied(&self, one: &Move) -> Copied {
        let own = one.lease.meta();
        let (due_at, delay) = match one.due {
            When::After(_) => {
                let now = Now::of(&self.clock);
                let left = now.until(one.due);
                (now.wall.saturating_add(left), Some(left))
            }
            When::At(time) => (time, None),
        };
        let meta = Meta {
            options: JobOptions {
                delay,
                ..own.options
            },
            settles: Some(one.lease.sequence()),
            original: Some(one.lease.job()),
            prior_attempts: one.lease.failed(),
            prior_crashes: one.lease.crashes(),
            ..Meta::default()
        };
        Copied {
            due_at,
            meta: meta.encode(one.lease.headers(), MAX_META_BYTES),
        }
    }

    fn move_to_the_end(&self, stripe: &Log, moves: Vec<Move>) -> Result<bool, Arc<StorageError>> {
        let mut active = stripe.active();
        let mut old = Vec::new();
        let mut unsettled = Vec::new();
        let mut moves = moves.into_iter();
        let mut result = Ok(());
        for one in moves.by_ref() {
            match self.append_copy(stripe, &mut active, &one) {
                Ok(owed) => {
                    unsettled.push(owed);
                    old.push(one.lease);
                }
                Err(error) => {
                    // A lack of room is not an error: the move is retried later.
                    if let RollError::Storage(error) = error
                        && !error.is_full()
                    {
                        result = Err(Arc::new(error));
                    }
                    self.put_back([one]);
                    break;
                }
            }
        }
        self.put_back(moves);
        self.settle(stripe, old, unsettled)
            .and_then(|moved| result.map(|()| moved))
    }

    fn append_copy(
        &self,
        stripe: &Log,
        active: &mut Arc<Segment>,
        one: &Move,
    ) -> Result<Unsettled, RollError> {
        let copied = self.copied(one);
        // Relaxed: published by the commit of the copy, which follows.
        self.in_two_places.fetch_add(1, Ordering::Relaxed);
        let appended = stripe.append_owing(active, &copied.record(&one.lease));
        let (_, unsettled) = appended.inspect_err(|_| self.note_in_one_place(1))?;
        // Relaxed, here and below: a count for statistics.
        self.copied.fetch_add(1, Ordering::Relaxed);
        self.timer.note_moved(1);
        Ok(unsettled)
    }

    fn move_into_reserve(&self, stripe: &Log, moves: Vec<Move>) -> Result<bool, Arc<StorageError>> {
        let copied: Vec<_> = moves.iter().map(|one| self.copied(one)).collect();
        let pairs = copied.iter().zip(&moves);
        let records: Vec<_> = pairs
            .map(|(copied, one)| copied.record(&one.lease))
            .collect();
        let count = moves.len() as u64;
        self.in_two_places.fetch_add(count, Ordering::Relaxed);
        let rolled = stripe.roll_into_reserve(&records);
        drop(records);
        if !matches!(rolled, Ok(Some(_))) {
            self.note_in_one_place(count);
        }
        match rolled {
            Ok(Some(unsettled)) => {
                #[cfg(test)]
                self.reserves_used.fetch_add(1, Ordering::Relaxed);
                self.copied.fetch_add(moves.len() as u64, Ordering::Relaxed);
                self.timer.note_moved(moves.len());
                let old = moves.into_iter().map(|one| one.lease).collect();
                self.settle(stripe, old, vec![unsettled])
            }
            Ok(None) => {
                self.put_back(moves);
                Ok(false)
            }
            Err(error) => {
                self.put_back(moves);
                match error.is_full() {
                    true => Ok(false),
                    false => Err(error),
                }
            }
        }
    }

    fn note_in_one_place(&self, jobs: u64) {
        // Release pairs with the Acquire in `has_any_in_two_places`.
        self.in_two_places.fetch_sub(jobs, Ordering::Release);
    }

    /// Marks jobs done at their old places, once their copies are durable. Returns whether there
    /// are any.
    fn settle(
        &self,
        stripe: &Log,
        old: Vec<Lease>,
        unsettled: Vec<Unsettled>,
    ) -> Result<bool, Arc<StorageError>> {
        if old.is_empty() {
            return Ok(false);
        }
        // If this fails, the old records stay not done and without a lease. The copies are
        // delivered, and the next open finds each job in one of its two places.
        let flushed = stripe.flush(false);
        // The copies are still to be claimed and put into the timer again.
        self.sleepers.notify_fenced(1);
        flushed?;
        for lease in old {
            // First, so that statistics do not miss the job.
            self.moved.fetch_add(1, Ordering::Relaxed);
            lease.ack();
            self.note_in_one_place(1);
        }
        if let Err(error) = stripe.flush(true) {
            // The cause may be a file that could not be opened: a later flush settles these.
            self.unsettled.lock().extend(unsettled);
            return Err(error);
        }
        for one in unsettled {
            one.settle();
        }
        // Segments may be freed, and letters wait for this.
        stripe.kick();
        Ok(true)
    }
}
