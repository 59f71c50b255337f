//! The log of one stripe: an ordered list of segments. The newest is appended to; the oldest are
//! claimed from, retired and deleted.
//!
//! The dead letter log is one of these logs too. Producers find the active segment without a lock;
//! locks guard the roll to the next segment, retirement, and a consumer's step to the next segment.
//!
//! This file opens logs. Appending is in `append.rs`, claiming in `claiming.rs`, and the work of
//! the maintenance thread in `maintenance.rs`.

pub(crate) mod ack;
mod append;
mod budget;
mod claiming;
mod crc;
pub(crate) mod durable_end;
mod flush;
mod flushed_acks;
mod graveyard;
pub(crate) mod header;
pub(crate) mod headers;
mod hold;
pub(crate) mod lease;
mod limit;
pub(crate) mod lookup;
#[cfg(all(loom, test))]
mod loom_models;
mod maintenance;
pub(crate) mod manifest;
mod mapping;
pub(crate) mod mark;
pub(crate) mod meta;
pub(crate) mod names;
mod owed;
pub(crate) mod pinned;
pub(crate) mod poison;
mod progress;
pub(crate) mod raw;
pub(crate) mod record;
pub(crate) mod records;
pub(crate) mod recovery;
pub(crate) mod reserve;
#[cfg(feature = "async")]
pub(crate) mod rounds;
pub(crate) mod run;
pub(crate) mod segment;
mod segments;
pub(crate) mod snapshot;
mod spare;
mod stats;
pub(crate) mod tail;
#[cfg(test)]
mod tests;
mod verify;
mod zeroing;

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::RwLock;

pub(crate) use self::budget::SpaceBudget;
use self::claiming::HeldBack;
use self::graveyard::Graveyard;
use self::header::Identity;
use self::limit::SequenceLimit;
use self::meta::Elsewhere;
use self::names::Names;
use self::poison::Poison;
use self::records::Mender;
use self::recovery::{Quarantined, Recovery};
#[cfg(feature = "async")]
use self::rounds::Rounds;
use self::segment::{Paths, Segment, Warm};
use self::segments::Segments;
use self::spare::{Spare, Spares};
pub(crate) use self::stats::LogStats;
use crate::event_count::EventCount;
use crate::events::{Mutex, event};
use crate::lasting::Lasting;
use crate::storage::{Directory, Entry, StorageError};
use crate::{Sequence, Timestamp, time};

/// How often preparing a segment is put off after a roll, each time twice as long: about a quarter
/// of a second in total.
const MOST_PUT_OFF: u32 = 10;
const SHORTEST_PUT_OFF: Duration = Duration::from_micros(128);

/// How long a roll without a reserve segment waits for another thread that may be making one: less
/// than creating files takes.
const SPARE_WAIT: Duration = Duration::from_millis(1);

/// A record takes at most this fraction of a segment, so that rolling early wastes no more.
const RECORDS_PER_SEGMENT_AT_LEAST: u64 = 4;

/// Longest reservation, of one record or of a batch.
///
/// Keeps the sum of reservations that come too late far below what a packed tail can hold, see
/// `tail.rs`.
const MAX_RESERVATION_BYTES: u64 = 16 * 1024 * 1024;

/// Longest record, in bytes, of a log with this segment size; also the longest batch.
pub(crate) fn max_record_bytes(segment_size: u64) -> usize {
    let fraction = (segment_size - header::FILE_HEADER_BYTES as u64) / RECORDS_PER_SEGMENT_AT_LEAST;
    fraction.min(MAX_RESERVATION_BYTES) as usize
}

/// Why there is no next segment.
#[derive(Debug)]
pub(crate) enum RollError {
    /// `max_bytes`, which has this value, is used up.
    OverBudget(u64),
    /// The log was closed.
    Closed,
    Storage(StorageError),
}

/// What records that were found at open settle.
pub(crate) struct FoundSettlements {
    /// Records of the same queue.
    pub(crate) here: Vec<Sequence>,
    /// Records elsewhere, each with the segment of the record that names it.
    pub(crate) elsewhere: Vec<(Elsewhere, Arc<Segment>)>,
}

/// Called when there is work for the maintenance thread.
pub(crate) type Kick = Arc<dyn Fn() + Send + Sync>;

/// The configuration that a queue's stripes have in common.
#[derive(Clone)]
pub(crate) struct LogConfig {
    pub(crate) segment_size: u64,
    /// Whether an open creates the segment to append to, so that the first append need not.
    pub(crate) starts_ready: bool,
    /// Whether that is left to the first append all the same, so that a queue that is not used
    /// costs nothing.
    pub(crate) starts_idle: bool,
    /// Whether the queue is being created. An open of an existing queue continues without that
    /// segment if the disk is full: its consumers can make room.
    pub(crate) is_new: bool,
    /// The directory of the queue, which the quarantine directory is in.
    pub(crate) queue: Arc<Directory>,
    pub(crate) budget: Arc<SpaceBudget>,
    pub(crate) poison: Arc<Poison>,
    /// Called when there is maintenance to do: a roll, or a complete segment.
    pub(crate) kick: Kick,
    /// Consumers that sleep until there is something in the active segment, see
    /// `dispatch/sleep.rs`.
    pub(crate) sleepers: Arc<EventCount>,
    /// Called with the number of jobs that a scan found missing and that were not done.
    pub(crate) lost: Arc<dyn Fn(u64) + Send + Sync>,
}

/// The log of one stripe.
pub(crate) struct Log {
    origin: Sequence,
    names: Arc<Names>,
    config: LogConfig,
    segments: RwLock<Segments>,
    active: ArcSwap<Segment>,
    /// The segment consumers claim from. Everything before it is claimed.
    claiming: ArcSwap<Segment>,
    /// Held to move `claiming` on, or to scan a segment.
    step: Mutex<Mender>,
    /// Set if the segment to be claimed from could not be made ready.
    held_back: Mutex<Option<HeldBack>>,
    /// The errors that keep segments from being ready.
    failed_scans: Lasting,
    /// Set if a flush of quarantined bytes has failed.
    failed_scan: OnceLock<Arc<StorageError>>,
    next: Mutex<Next>,
    /// The segment that was created at open, until it is warm.
    cold: Mutex<Option<Arc<Segment>>>,
    /// The flushes so far, for those who wait for one.
    #[cfg(feature = "async")]
    pub(crate) rounds: Arc<Rounds>,
    /// Whether a flush was requested since the prepared segment was last flushed.
    flush_asked: AtomicBool,
    /// Whether jobs of this stripe wait in the timer, or did recently.
    has_waiting: AtomicBool,
    /// Held to seal or retire.
    maintenance: Mutex<Graveyard>,
    /// Jobs in removed segments that were appended since the queue was opened.
    retired_appended: AtomicU64,
    /// Jobs in removed segments that were done since the queue was opened.
    retired_done: AtomicU64,
    /// Jobs that were not done and that a scan since the open found missing.
    lost: AtomicU64,
    /// Damage found since the queue was opened.
    damage: Mutex<Vec<Quarantined>>,
}

/// The state from which the next roll takes its segment.
struct Next {
    base: Sequence,
    /// A durable upper bound of every sequence that was given out.
    limit: SequenceLimit,
    prepared: Option<Arc<Segment>>,
    /// Files from which further segments are made, before new ones are created.
    spares: Vec<Spare>,
    /// A spare that only compaction may use.
    reserved: Option<Spare>,
    /// How many files will be spares once they are zeroed.
    dirty: usize,
    /// How many bytes of the active segment were filled at this time.
    filled: (Instant, u64),
    /// Since when the active segment is that.
    active_since: Instant,
    /// How long the one before it was.
    last_took: Duration,
    /// How many segments there should be, including spares.
    pool: Spares,
    /// How often preparing a segment was put off since the last roll.
    put_off: u32,
    /// Whether nothing was appended since the open, so that no segment is prepared yet.
    is_idle: bool,
    /// Whether the log is closed, so that there is no next segment.
    closed: bool,
}

impl Next {
    /// Segments that are ready or nearly so.
    fn reserve(&self) -> usize {
        usize::from(self.prepared.is_some()) + self.spares.len()
    }

    /// Takes back the last base if it was not used in the end, unless a file of its name has
    /// stayed: on a full disk this happens again and again, and would use up sequences.
    fn take_back(&mut self, base: Sequence, paths: &Paths) {
        let is_gone = |entry: &Entry| matches!(entry.kind(), Ok(None));
        if is_gone(&paths.segment) && is_gone(&paths.ack) {
            self.base = base;
        }
    }
}

impl Log {
    /// Opens the log in a directory: recovers its segments, and starts a
    /// new one. Also returns the records that records in this log settle, for the caller to
    /// [settle](Self::settle). The settling records are durable by then. Nothing is sealed, retired
    /// or removed before the caller asks for it.
    pub(crate) fn open(
        directory: Directory,
        origin: Sequence,
        config: LogConfig,
        recovery: &mut Recovery<'_>,
    ) -> Result<(Self, FoundSettlements), StorageError> {
        let names = Names::of(directory, &config.poison);
        let found = names.directory().list()?;
        for spare in spare::left_in(&names, &found) {
            spare.remove()?;
        }
        let limit = SequenceLimit::find(&found, origin, config.is_new);
        let log = recovery.recover(&names, &found, origin)?;
        // A power cut must not leave a settlement without the record that is its reason.
        for segment in &log.settling {
            segment.flush(false).map_err(|error| error.retold())?;
        }
        let mut next = Next {
            base: log.next_base.max(limit.sequence()),
            limit,
            prepared: None,
            spares: Vec::new(),
            reserved: None,
            pool: Spares::new(config.budget.is_limited()),
            put_off: 0,
            dirty: 0,
            filled: (time::now(), 0),
            active_since: time::now(),
            last_took: Duration::MAX,
            is_idle: config.starts_idle,
            closed: false,
        };
        let mut segments: VecDeque<_> = log.segments.into();
        let size = config.segment_size;
        config.budget.end_expecting(log.files * size);
        config.budget.force(segments.len() as u64 * size);
        // A log that has jobs to deliver can open without room to enqueue.
        let has_room = config.budget.take(size);
        let created = if config.starts_idle {
            None
        } else if !has_room && !segments.is_empty() {
            event!(warn, "opened at the limit of max_bytes");
            None
        } else if config.starts_ready {
            let empty = log.leftovers.iter().chain(&log.reported);
            match create_first(&names, &config, &mut next, empty) {
                Ok(created) => Some(created),
                // Consumers can continue, and make room, also in other stripes.
                Err(error) if error.is_full() && !config.is_new => {
                    event!(warn, %error, "opened without room for another segment");
                    None
                }
                Err(error) => return Err(error),
            }
        } else {
            None
        };
        match &created {
            Some(_) if !has_room => config.budget.force(size),
            None if has_room => config.budget.give_back(size),
            Some(_) | None => {}
        }
        segments.extend(created.clone());
        // A full segment serves as the active one: the first append looks for another. Consumers,
        // if there are any, know the last segment found as the last one.
        let active = match (&created, segments.back()) {
            (Some(created), _) => Arc::clone(created),
            (None, Some(last)) if config.starts_ready => Arc::clone(last),
            (None, _) => Segment::full(&names, next.base),
        };
        if config.starts_ready && segments.is_empty() {
            // Consumers step from the placeholder to the first real segment, whose base must be
            // higher.
            next.base = next.base.plus(segment::capacity_of(size));
        }
        let mut graveyard = Graveyard::default();
        graveyard.remove(log.reported);
        graveyard.remove_ack_files(&names)?;
        graveyard.leave(log.leftovers);
        let stripe = Self {
            origin,
            names,
            claiming: ArcSwap::from(Arc::clone(segments.front().unwrap_or(&active))),
            active: ArcSwap::from(active),
            segments: RwLock::new(Segments::new(segments)),
            step: Mutex::new(Mender::new()),
            held_back: Mutex::new(None),
            failed_scans: Lasting::default(),
            failed_scan: OnceLock::new(),
            next: Mutex::new(next),
            cold: Mutex::new(created),
            #[cfg(feature = "async")]
            rounds: Arc::new(Rounds::new()),
            flush_asked: AtomicBool::new(false),
            has_waiting: AtomicBool::new(false),
            maintenance: Mutex::new(graveyard),
            retired_appended: AtomicU64::new(0),
            retired_done: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            damage: Mutex::new(Vec::new()),
            config,
        };
        let found = FoundSettlements {
            here: log.settles,
            elsewhere: log.settles_elsewhere,
        };
        Ok((stripe, found))
    }

    /// A segment file that does not belong to the log any more.
    #[cfg(test)]
    pub(crate) fn stray_file(&self) -> Option<String> {
        // Listed before the known files, so that a file made in between is not taken for a stray.
        let names = self.names.directory().list().expect("listed");
        let next = self.next.lock();
        let segments = self.segments.read();
        let known = segments.iter().chain(&next.prepared);
        let bases: Vec<_> = known
            .map(|segment| format!("{:020}", segment.base().within_stripe()))
            .collect();
        let is_stray = |name: &String| {
            let parts = name.split_once('.');
            parts.is_some_and(|(base, suffix)| {
                ["seg", "ack"].contains(&suffix) && !bases.iter().any(|known| known == base)
            })
        };
        names.into_iter().find(is_stray)
    }

    /// Bytes of its segment files, and those counted for all stripes of the queue.
    #[cfg(test)]
    pub(crate) fn space(&self) -> (u64, u64) {
        let graveyard = self.maintenance.lock();
        let next = self.next.lock();
        let segments = self.segments.read();
        let in_use = segments.iter().filter(|segment| !segment.is_retired());
        let spares = next.reserve() + usize::from(next.reserved.is_some());
        let has = in_use.count() + spares + graveyard.future_spares();
        let size = self.config.segment_size;
        (has as u64 * size, self.config.budget.used())
    }

    /// Whether a payload of this length fits the active segment.
    #[cfg(test)]
    pub(crate) fn has_room_for(&self, len: usize) -> bool {
        let active = self.active();
        let end = u64::from(active.reached().units) * record::UNIT as u64;
        let needed = (record::RECORD_HEADER_BYTES + len) as u64 + record::UNIT as u64;
        active.closed().is_none() && end + needed < self.config.segment_size
    }

    /// Prefaults the segment that was created at open, once. Returns whether that was still to be
    /// done.
    pub(crate) fn warm_up(&self) -> bool {
        let Some(first) = self.cold.lock().take() else {
            return false;
        };
        self.leave_if_bad(&first, first.warm_up());
        true
    }

    /// Makes the pages writable that producers come to next, after a flush of what is before them.
    pub(crate) fn make_writable_ahead(&self) {
        // A queue that is hardly used should make few pages dirty, which the kernel writes at times.
        const AT_LEAST: usize = 128 * 1024;
        let active = self.active();
        self.leave_if_bad(&active, active.make_writable_ahead(AT_LEAST));
    }

    /// Leaves a segment some of whose pages cannot be made present.
    fn leave_if_bad(&self, segment: &Segment, made: Result<(), StorageError>) {
        let Err(error) = made else {
            return;
        };
        // A store to such a page would raise a signal. A segment that was sealed in the meantime
        // has no pages at its end, and nothing is stored there.
        if segment.closed().is_none() {
            event!(error, %error, "left a segment");
        }
        if segment.abandon() {
            (self.config.kick)();
        }
    }

    /// Prepares the next segment ahead of need. A failure is left to the roll that needs the
    /// segment.
    ///
    /// If consumers keep up, the segment before the active one will soon be complete and can become
    /// the next segment. In that case this puts the preparation off, and returns for how long.
    pub(crate) fn prepare(&self) -> Option<Duration> {
        let mut next = self.next.lock();
        if next.prepared.is_some() || next.closed || next.is_idle {
            return None;
        }
        if next.spares.is_empty() && next.dirty > 0 && !self.config.poison.is_set() {
            // One is ready soon.
            return None;
        }
        if next.spares.is_empty() && next.put_off < MOST_PUT_OFF && self.is_kept_up_with() {
            next.put_off += 1;
            return Some(SHORTEST_PUT_OFF * (1 << next.put_off));
        }
        match self.create_within_budget(&mut next) {
            Ok(segment) => next.prepared = Some(segment),
            Err(error) => {
                // Reported once here, and later by the roll that needs the segment.
                if self.config.budget.note_short()
                    && let RollError::Storage(error) = error
                {
                    event!(debug, %error, "no segment prepared");
                }
            }
        }
        None
    }

    /// Whether only the active segment, less than half full, and the one before it are left.
    fn is_kept_up_with(&self) -> bool {
        let reached = u64::from(self.active.load().reached().units) * record::UNIT as u64;
        self.segments.read().len() == 2 && reached < self.config.segment_size / 2
    }

    /// Tells the maintenance thread that there is something to retire.
    pub(crate) fn kick(&self) {
        (self.config.kick)();
    }
}

/// First sequence of the dead letter log.
pub(crate) const DEAD_ORIGIN: Sequence = Sequence::first_of_stripe(u8::MAX);

/// Creates the segment that a log starts with. On a full disk, the leftovers are emptied to make
/// room for it.
fn create_first<'a>(
    names: &Arc<Names>,
    config: &LogConfig,
    next: &mut Next,
    leftovers: impl Iterator<Item = &'a Paths>,
) -> Result<Arc<Segment>, StorageError> {
    match create_segment(names, config, next, Warm::Start) {
        Err(error) if error.is_full() => {
            // Their names are removed later.
            for paths in leftovers {
                paths.empty()?;
            }
            create_segment(names, config, next, Warm::Start)
        }
        result => result,
    }
}

fn create_segment(
    names: &Arc<Names>,
    config: &LogConfig,
    next: &mut Next,
    warm: Warm,
) -> Result<Arc<Segment>, StorageError> {
    let identity = next_identity(names, config, next)?;
    match next.spares.pop() {
        Some(spare) => spare.into_segment(names, identity),
        None => Segment::create(names, identity, warm)
            .inspect_err(|_| next.take_back(identity.base, &Paths::new(names, identity.base))),
    }
}

/// The identity of the next segment, which is used for nothing else from here on.
fn next_identity(
    names: &Arc<Names>,
    config: &LogConfig,
    next: &mut Next,
) -> Result<Identity, StorageError> {
    let capacity = segment::capacity_of(config.segment_size);
    if next.base.within_stripe() > Sequence::MAX_WITHIN_STRIPE - u64::from(capacity) {
        let none_left = io::Error::other("the sequences of this stripe are used up");
        return Err(StorageError::new(
            "create a segment in",
            names.directory().path(),
            none_left,
        ));
    }
    let identity = Identity {
        base: next.base,
        segment_size: config.segment_size,
        created_at: Timestamp::now(),
        salt: crate::identity::new(),
    };
    next.limit.raise_above(names, next.base, capacity)?;
    // Even if the segment is not made in the end, since a file of that name may stay.
    next.base = next.base.plus(capacity);
    Ok(identity)
}
