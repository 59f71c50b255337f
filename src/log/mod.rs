//! The log of one stripe: an ordered run of segments, of which the newest is appended to and the
//! oldest are claimed from, retired and deleted.
//!
//! The dead letter log is one of these too. Producers find the active segment without a lock;
//! locks guard the roll to the next segment, retirement, and a consumer's step to the next one.

pub(crate) mod ack;
pub(crate) mod flush;
pub(crate) mod header;
#[cfg(all(loom, test))]
mod loom_models;
pub(crate) mod manifest;
pub(crate) mod record;
pub(crate) mod recovery;
pub(crate) mod segment;
pub(crate) mod tail;
pub(crate) mod view;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};

use self::header::Identity;
use self::record::NewRecord;
use self::recovery::{Quarantined, RecoveredLog, Recovery, RecoveryReport};
use self::segment::{Append, Claim, Lease, Maps, Pinned, START, Segment};
use crate::storage::{self, StorageError};
use crate::{Sequence, Timestamp};

/// A record takes at most this fraction of a segment, so that rolling early wastes no more.
const RECORDS_PER_SEGMENT_AT_LEAST: u64 = 4;

/// Longest reservation, be it one record or a batch.
///
/// A reservation that finds a segment full moves its tail on all the same, and the units of the
/// tail are 32 bits, of which a segment's own are at most 2^27. To carry into the index, the
/// producers that passed the look at the closed tail before the segment was closed, and reserve
/// after, would have to number over 1,900: (2^32 - 2^27) / (16 MiB / 8).
const MAX_RESERVATION_BYTES: u64 = 16 * 1024 * 1024;

/// Longest record, in bytes, of a log with this segment size; also the longest batch.
pub(crate) fn max_record_bytes(segment_size: u64) -> usize {
    let fraction = (segment_size - header::HEADER_BYTES as u64) / RECORDS_PER_SEGMENT_AT_LEAST;
    fraction.min(MAX_RESERVATION_BYTES) as usize
}

/// Bytes of segment files that the stripes of a queue may take together.
pub(crate) struct SpaceBudget {
    max: Option<u64>,
    used: AtomicU64,
}

impl SpaceBudget {
    pub(crate) fn new(max: Option<u64>) -> Self {
        Self {
            max,
            used: AtomicU64::new(0),
        }
    }

    fn take(&self, bytes: u64) -> bool {
        let max = self.max.unwrap_or(u64::MAX);
        // Relaxed: a count, which orders nothing.
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|&sum| sum <= max)
            })
            .is_ok()
    }

    fn force(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Why there is no next segment.
#[derive(Debug)]
pub(crate) enum RollError {
    /// `max_bytes` is used up.
    OverBudget,
    /// The log was closed.
    Closed,
    Storage(StorageError),
}

/// Told when there is something to do for the maintenance thread.
pub(crate) type Kick = Arc<dyn Fn() + Send + Sync>;

/// What a queue's stripes have in common.
#[derive(Clone)]
pub(crate) struct LogConfig {
    pub(crate) segment_size: u64,
    pub(crate) quarantine: PathBuf,
    pub(crate) budget: Arc<SpaceBudget>,
    /// Make a segment's name durable before it is used, rather than at its first flush.
    pub(crate) durable_names: bool,
    /// There is maintenance to do: a roll, or a complete segment.
    pub(crate) kick: Kick,
}

/// The log of one stripe.
pub(crate) struct Stripe {
    origin: Sequence,
    dir: PathBuf,
    config: LogConfig,
    /// Oldest first; the last is the active one.
    segments: RwLock<VecDeque<Arc<Segment>>>,
    active: ArcSwap<Segment>,
    /// The segment consumers claim from. Everything before it is claimed.
    claiming: ArcSwap<Segment>,
    /// Held by whoever moves `claiming` on.
    step: Mutex<()>,
    next: Mutex<Next>,
    /// Held by whoever seals or retires.
    upkeep: Mutex<Graveyard>,
    /// Jobs of segments that are gone, appended since the queue was opened.
    retired_appended: AtomicU64,
    /// Jobs of segments that are gone, done since the queue was opened.
    retired_done: AtomicU64,
    /// Damage found since the queue was opened.
    damage: Mutex<Vec<Quarantined>>,
}

/// The segment that the next roll takes.
struct Next {
    base: Sequence,
    prepared: Option<Arc<Segment>>,
    /// There is none.
    closed: bool,
}

/// What was retired and may still be read by someone.
#[derive(Default)]
struct Graveyard {
    maps: Vec<Arc<Maps>>,
    /// Ack files whose segment's removal is not durable yet. An ack file that goes first would
    /// bring back its segment's jobs after a power cut.
    ack_files: Vec<PathBuf>,
}

/// What a stripe holds, for statistics. All but `bytes` and `segments` in jobs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StripeStats {
    /// Not done.
    pub(crate) live: u64,
    /// Not claimed yet.
    pub(crate) unclaimed: u64,
    /// Appended since the queue was opened.
    pub(crate) appended: u64,
    /// Done since the queue was opened.
    pub(crate) done: u64,
    pub(crate) bytes: u64,
    pub(crate) segments: u64,
}

impl Stripe {
    /// Opens the log in `dir`: recovers what is there, and starts a new segment. Also returns the
    /// letters that were replayed, see [`RecoveredLog::replays`]; nothing is sealed or retired
    /// before the caller asks for it.
    pub(crate) fn open(
        dir: &Path,
        origin: Sequence,
        config: LogConfig,
        recovery: &mut Recovery<'_>,
    ) -> Result<(Self, Vec<Sequence>), StorageError> {
        storage::create_directory(dir)?;
        let RecoveredLog {
            segments,
            next_base,
            leftovers,
            replays,
        } = recovery.recover_directory(dir, origin)?;
        let mut next = Next {
            base: next_base,
            prepared: None,
            closed: false,
        };
        for _ in &segments {
            config.budget.force(config.segment_size);
        }
        config.budget.force(config.segment_size);
        let active = create_segment(dir, &config, &mut next)?;
        let mut graveyard = Graveyard::default();
        if !leftovers.is_empty() {
            // The new segment's name is durable before the old ones go.
            storage::flush_directory(dir)?;
            for paths in leftovers {
                storage::remove_file(&paths.segment)?;
                graveyard.ack_files.push(paths.ack);
            }
            remove_ack_files(dir, &mut graveyard.ack_files)?;
        }
        let mut segments: VecDeque<_> = segments.into();
        segments.push_back(Arc::clone(&active));
        let stripe = Self {
            origin,
            dir: dir.to_path_buf(),
            claiming: ArcSwap::from(Arc::clone(&segments[0])),
            active: ArcSwap::from(active),
            segments: RwLock::new(segments),
            step: Mutex::new(()),
            next: Mutex::new(next),
            upkeep: Mutex::new(graveyard),
            retired_appended: AtomicU64::new(0),
            retired_done: AtomicU64::new(0),
            damage: Mutex::new(Vec::new()),
            config,
        };
        Ok((stripe, replays))
    }

    pub(crate) fn active(&self) -> Arc<Segment> {
        self.active.load_full()
    }

    /// Appends a record. `cached` is the caller's notion of the active segment; it is brought up
    /// to date, and holds the record's segment afterwards.
    #[inline]
    pub(crate) fn append(
        &self,
        cached: &mut Arc<Segment>,
        record: &NewRecord<'_>,
    ) -> Result<Sequence, RollError> {
        loop {
            match cached.append(record) {
                Append::Done(position) => return Ok(cached.sequence(position.index)),
                Append::Full { complete } => *cached = self.after_full(cached, complete)?,
            }
        }
    }

    /// As [`append`](Self::append), without a cached segment: also returns the record's segment.
    #[inline]
    pub(crate) fn append_shared(
        &self,
        record: &NewRecord<'_>,
    ) -> Result<(Sequence, Option<Arc<Segment>>), RollError> {
        {
            let active = self.active.load();
            match active.append(record) {
                Append::Done(position) => return Ok((active.sequence(position.index), None)),
                Append::Full { complete } => self.after_full(&active, complete)?,
            };
        }
        let mut cached = self.active();
        let sequence = self.append(&mut cached, record)?;
        Ok((sequence, Some(cached)))
    }

    /// Appends records, few enough for one segment, with one reservation. Returns the first's
    /// sequence; the others follow without a gap.
    pub(crate) fn append_all(
        &self,
        cached: &mut Arc<Segment>,
        records: &[NewRecord<'_>],
    ) -> Result<Sequence, RollError> {
        loop {
            match cached.append_all(records) {
                Append::Done(first) => return Ok(cached.sequence(first.index)),
                Append::Full { complete } => *cached = self.after_full(cached, complete)?,
            }
        }
    }

    /// Bytes of records that [`append_all`](Self::append_all) takes at once.
    pub(crate) fn max_batch_bytes(&self) -> usize {
        max_record_bytes(self.config.segment_size)
    }

    #[cold]
    fn after_full(&self, full: &Arc<Segment>, complete: bool) -> Result<Arc<Segment>, RollError> {
        if complete {
            (self.config.kick)();
        }
        self.roll(full)
    }

    /// The segment after `full`, making it the active one if nobody has.
    fn roll(&self, full: &Arc<Segment>) -> Result<Arc<Segment>, RollError> {
        let mut next = self.next.lock();
        let active = self.active();
        if active.base() != full.base() {
            return Ok(active);
        }
        if next.closed {
            return Err(RollError::Closed);
        }
        let segment = match next.prepared.take() {
            Some(segment) => segment,
            // The maintenance thread is behind, or could not.
            None => match self.create_within_budget(&mut next) {
                Ok(segment) => segment,
                Err(error) => {
                    // If the maintenance thread is at it, or a replay holds it, the caller tries
                    // again later.
                    let Some(mut graveyard) = self.upkeep.try_lock() else {
                        return Err(error);
                    };
                    self.reclaim_into(&mut graveyard)
                        .map_err(RollError::Storage)?;
                    drop(graveyard);
                    self.create_within_budget(&mut next)?
                }
            },
        };
        self.segments.write().push_back(Arc::clone(&segment));
        self.active.store(Arc::clone(&segment));
        // Pairs with the fence of a consumer that is about to sleep: either it sees the new
        // active segment, or whoever appends to it sees the sleeper.
        fence(Ordering::SeqCst);
        drop(next);
        (self.config.kick)();
        Ok(segment)
    }

    fn create_within_budget(&self, next: &mut Next) -> Result<Arc<Segment>, RollError> {
        if !self.config.budget.take(self.config.segment_size) {
            return Err(RollError::OverBudget);
        }
        create_segment(&self.dir, &self.config, next).map_err(|error| {
            self.config.budget.give_back(self.config.segment_size);
            RollError::Storage(error)
        })
    }

    /// Creates the next segment ahead of need. A failure is left to the roll that needs it.
    pub(crate) fn prepare(&self) {
        let mut next = self.next.lock();
        if next.prepared.is_none() && !next.closed {
            match self.create_within_budget(&mut next) {
                Ok(segment) => next.prepared = Some(segment),
                Err(RollError::OverBudget | RollError::Closed) => {}
                Err(RollError::Storage(error)) => {
                    tracing::debug!(%error, "no segment prepared");
                }
            }
        }
    }

    /// Adds the leases of the next run of committed records to `leases`, in log order.
    pub(crate) fn claim(
        &self,
        max_jobs: u32,
        max_bytes: usize,
        counted: bool,
        leases: &mut Vec<Lease>,
    ) -> Claim {
        loop {
            let segment = self.claiming.load_full();
            if !segment.is_unscanned()
                && let Some(pinned) = segment.pin()
            {
                match pinned.claim(max_jobs, max_bytes, counted, leases) {
                    Claim::Exhausted => {}
                    found => return found,
                }
            }
            if !self.step_from(&segment) {
                return Claim::Empty;
            }
        }
    }

    /// Moves on from a segment that has nothing left to claim, or scans it if that is still to be
    /// done. Returns false if there is nowhere to go.
    fn step_from(&self, from: &Arc<Segment>) -> bool {
        let _step = self.step.lock();
        if self.claiming.load().base() != from.base() {
            return true;
        }
        // A segment that was retired before it was scanned has nothing to claim.
        if from.is_unscanned() && from.pin().is_some() {
            return self.scan(from);
        }
        let segments = self.segments.read();
        let at = segments.partition_point(|segment| segment.base() <= from.base());
        match segments.get(at) {
            Some(segment) => {
                self.claiming.store(Arc::clone(segment));
                true
            }
            None => false,
        }
    }

    /// Checks a segment sealed by an earlier process. Returns false if it cannot be read now.
    fn scan(&self, segment: &Arc<Segment>) -> bool {
        if !segment.is_unscanned() {
            return true;
        }
        let Some(pinned) = segment.pin() else {
            return true;
        };
        let mut recovery = Recovery {
            segment_size: self.config.segment_size,
            quarantine: &self.config.quarantine,
            report: RecoveryReport::default(),
            progress: None,
            segments_seen: 0,
        };
        match recovery.scan_sealed(segment, pinned.maps()) {
            Ok(()) => {
                self.damage.lock().extend(recovery.report.quarantined);
                segment.set_scanned();
                true
            }
            Err(error) => {
                // Damaged bytes could not be set aside; they must not be covered before. The
                // segment waits; a later claim tries again.
                tracing::error!(%error, "a damaged segment is held back");
                false
            }
        }
    }

    /// Whether there may be something to claim, for a consumer that has registered as a sleeper
    /// and fenced.
    pub(crate) fn may_have_work(&self) -> bool {
        let claiming = self.claiming.load();
        claiming.is_unscanned()
            || claiming.may_have_work()
            || self.active.load().base() != claiming.base()
    }

    /// The segments, oldest first, each scanned.
    pub(crate) fn pins(&self) -> Vec<Pinned> {
        let segments: Vec<_> = self.segments.read().iter().cloned().collect();
        segments
            .iter()
            .filter(|segment| {
                if segment.is_unscanned() {
                    let _step = self.step.lock();
                    self.scan(segment)
                } else {
                    true
                }
            })
            .filter_map(Segment::pin)
            .collect()
    }

    /// The segment that a sequence lies in, scanned.
    pub(crate) fn pin_containing(&self, sequence: Sequence) -> Option<Pinned> {
        let segment = {
            let segments = self.segments.read();
            let after = segments.partition_point(|segment| segment.base() <= sequence);
            Arc::clone(segments.get(after.checked_sub(1)?)?)
        };
        if segment.is_unscanned() {
            let _step = self.step.lock();
            if !self.scan(&segment) {
                return None;
            }
        }
        segment.pin()
    }

    /// Flushes everything appended before this call; with `acks_too`, the acks as well.
    pub(crate) fn flush(&self, acks_too: bool) -> Result<(), Arc<StorageError>> {
        let segments: Vec<_> = self.segments.read().iter().cloned().collect();
        for segment in segments {
            // A sealed segment's records are durable; only its acks change.
            if acks_too || !segment.is_sealed() {
                segment.flush(acks_too)?;
            }
        }
        Ok(())
    }

    /// Closes the log for ever: no record can be appended any more.
    pub(crate) fn close(&self) {
        let mut next = self.next.lock();
        if next.closed {
            return;
        }
        next.closed = true;
        if let Some(prepared) = next.prepared.take() {
            // It holds nothing. If it stays, the next open removes it.
            let _ = storage::remove_file(&prepared.paths().segment);
            let _ = storage::remove_file(&prepared.paths().ack);
            self.config.budget.give_back(self.config.segment_size);
        }
        let complete = self.active.load().close_now();
        drop(next);
        if complete {
            (self.config.kick)();
        }
    }

    /// Seals full segments, oldest first.
    ///
    /// With `all`, every one of them; after [`close`](Self::close) that is all there are.
    /// Otherwise the newest is left alone: consumers that keep up will have it complete in a
    /// moment, and then it never costs disk bandwidth. Nor does it wait then for whoever
    /// [holds retirement](Self::hold_retirement); a later call seals.
    pub(crate) fn seal(&self, all: bool) -> Result<(), Arc<StorageError>> {
        let _upkeep = if all {
            self.upkeep.lock()
        } else {
            match self.upkeep.try_lock() {
                Some(upkeep) => upkeep,
                None => return Ok(()),
            }
        };
        let full: Vec<_> = self
            .segments
            .read()
            .iter()
            .filter(|segment| segment.closed().is_some())
            .cloned()
            .collect();
        let keep = usize::from(!all);
        for segment in &full[..full.len().saturating_sub(keep)] {
            let ready = !segment.is_sealed() && !segment.is_unscanned() && !segment.is_complete();
            if ready && segment.is_committed() {
                segment.seal()?;
            }
        }
        Ok(())
    }

    /// Holds back retirement and sealing while the guard lives, so that the next open finds
    /// whatever is appended meanwhile, in a segment that it scans.
    pub(crate) fn hold_retirement(&self) -> impl Sized {
        self.upkeep.lock()
    }

    /// Retires complete segments: deletes their files, and unmaps those retired earlier that
    /// nobody reads any more.
    pub(crate) fn reclaim(&self) -> Result<(), StorageError> {
        self.reclaim_into(&mut self.upkeep.lock())
    }

    fn reclaim_into(&self, graveyard: &mut Graveyard) -> Result<(), StorageError> {
        let mut retired = Vec::new();
        {
            let active = self.active.load().base();
            let mut segments = self.segments.write();
            segments.retain(|segment| {
                let keep = !segment.is_complete() || segment.base() == active;
                if !keep {
                    retired.push(Arc::clone(segment));
                }
                keep
            });
        }
        let mut result = Ok(());
        for segment in &retired {
            let records = segment.closed().map_or(0, |end| end.index);
            if !segment.is_recovered() {
                self.retired_appended
                    .fetch_add(u64::from(records), Ordering::Relaxed);
            }
            self.retired_done.fetch_add(
                u64::from(records - segment.done_at_open().min(records)),
                Ordering::Relaxed,
            );
            graveyard.maps.extend(segment.retire());
            self.config.budget.give_back(self.config.segment_size);
            // A file that stays is found again, complete, by the next open.
            match storage::remove_file(&segment.paths().segment) {
                Ok(()) => graveyard.ack_files.push(segment.paths().ack.clone()),
                Err(error) => result = Err(error),
            }
        }
        // Whoever still holds a share got it before `retire`, and no further shares can be made.
        graveyard.maps.retain(|maps| Arc::strong_count(maps) > 1);
        remove_ack_files(&self.dir, &mut graveyard.ack_files)?;
        result
    }

    /// What was damaged in segments scanned since the queue was opened.
    pub(crate) fn damage(&self) -> Vec<Quarantined> {
        self.damage.lock().clone()
    }

    pub(crate) fn damaged_regions(&self) -> u64 {
        self.damage.lock().len() as u64
    }

    /// What the stripe holds. Costs a look at each ack word of the segments that consumers have
    /// reached, and nothing for the backlog behind them.
    pub(crate) fn stats(&self) -> StripeStats {
        let segments: Vec<_> = self.segments.read().iter().cloned().collect();
        let mut stats = StripeStats {
            appended: self.retired_appended.load(Ordering::Relaxed),
            done: self.retired_done.load(Ordering::Relaxed),
            ..StripeStats::default()
        };
        for segment in &segments {
            let claimed = segment.claimed();
            let reached = segment.reached().index;
            let done_at_open = segment.done_at_open();
            let untouched = claimed == START && self.origin != DEAD_ORIGIN;
            let done = if untouched {
                done_at_open
            } else {
                segment.pin().map_or(reached, |pinned| pinned.done())
            };
            if !segment.is_recovered() {
                stats.appended += u64::from(reached);
            }
            stats.done += u64::from(done - done_at_open.min(done));
            stats.live += u64::from(reached - done.min(reached));
            stats.unclaimed += u64::from(if untouched {
                reached - done_at_open.min(reached)
            } else {
                reached - claimed.index.min(reached)
            });
            stats.segments += 1;
            stats.bytes += match segment.closed() {
                Some(end) if segment.is_sealed() => u64::from(end.units) * record::UNIT as u64,
                _ => self.config.segment_size,
            };
        }
        stats
    }

    /// Marks a record done of which no lease can exist: before any claim, or in a log that is not
    /// claimed from. Returns whether it was found and not done.
    pub(crate) fn mark_done(&self, sequence: Sequence) -> bool {
        let segment = {
            let segments = self.segments.read();
            let after = segments.partition_point(|segment| segment.base() <= sequence);
            after
                .checked_sub(1)
                .and_then(|at| segments.get(at))
                .cloned()
        };
        let Some(pinned) = segment.as_ref().and_then(Segment::pin) else {
            return false;
        };
        let index = sequence.offset_from(pinned.segment().base());
        if index >= pinned.segment().reached().index {
            return false;
        }
        match pinned.mark_done(index) {
            Some(complete) => {
                if complete {
                    (self.config.kick)();
                }
                true
            }
            None => false,
        }
    }

    /// When the oldest job that is not done was enqueued.
    pub(crate) fn oldest_enqueued_at(&self) -> Option<Timestamp> {
        self.pins().iter().find_map(Pinned::oldest_enqueued_at)
    }
}

/// First sequence of the dead letter log.
pub(crate) const DEAD_ORIGIN: Sequence = Sequence::first_of_stripe(u8::MAX);

fn create_segment(
    dir: &Path,
    config: &LogConfig,
    next: &mut Next,
) -> Result<Arc<Segment>, StorageError> {
    let identity = Identity {
        base: next.base,
        segment_size: config.segment_size,
        created_at: Timestamp::now(),
        salt: fastrand::u64(..),
    };
    // A base is used once, even if it comes to nothing: a file of that name may have stayed.
    next.base = next.base.plus(segment::capacity_of(config.segment_size));
    Segment::create(dir, identity, config.durable_names)
}

/// Removes ack files once the removal of their segments is durable.
fn remove_ack_files(dir: &Path, files: &mut Vec<PathBuf>) -> Result<(), StorageError> {
    if files.is_empty() {
        return Ok(());
    }
    storage::flush_directory(dir)?;
    for path in files.drain(..) {
        storage::remove_file(&path)?;
    }
    Ok(())
}
