//! The log's part of compaction: finds segments that only waiting jobs keep, and provides room to
//! move those jobs to when there is no other.
//!
//! That room is one segment that producers cannot take. With `max_bytes`, there is one for the
//! whole queue; otherwise, each stripe that has jobs in the timer keeps a spare segment, since on a
//! full disk only existing files are sure to be available. The reserve is used when producers have
//! no room: it becomes the active segment, with the moved jobs in it from the start. After any
//! crash, it is one segment with all of them, or none; and the jobs' old segments free more than it
//! takes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::ack;
use super::headers::headers_of;
use super::record::{NewRecord, RECORD_HEADER_BYTES, UNIT, units_of};
use super::segment::{self, Paths, Segment, Unsettled};
use super::spare::{self, Spare};
use super::{Log, Next, RollError};
use crate::Sequence;
use crate::log::pinned::Pinned;
use crate::log::records::Record;
use crate::storage::StorageError;

/// Most bytes of metadata in the record of a moved job.
pub(crate) const MOVED_META_BYTES: usize = 73;

/// A full segment in which every job is done or waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left {
    pub(crate) base: Sequence,
    /// Jobs that wait.
    pub(crate) jobs: u32,
    /// Most bytes of records that these jobs take once they are moved.
    pub(crate) bytes: u64,
    /// Bytes of files that the move frees.
    pub(crate) frees: u64,
}

impl Log {
    pub(crate) fn segment_size(&self) -> u64 {
        self.config.segment_size
    }

    /// The full segments that are kept only by jobs in the timer, and whose jobs fit into `most`
    /// bytes. `waiting` returns how many jobs of a segment are in the timer.
    pub(crate) fn left(&self, most: u64, waiting: impl Fn(Sequence) -> u32) -> Vec<Left> {
        let segments: Vec<_> = self.segments.read().awake().cloned().collect();
        let left_of = |segment: &Arc<Segment>| {
            let end = segment.closed()?;
            // (If the last ordinals are missing, the cursor's index stays behind.)
            if segment.claimed().units != end.units
                || segment.is_unscanned()
                || segment.is_complete()
                // A job can only move on once its last settlement is durable.
                || !segment.owes_nothing()
            {
                return None;
            }
            let waiting = waiting(segment.base());
            let fewest_bytes = u64::from(waiting) * RECORD_HEADER_BYTES as u64;
            if waiting == 0 || fewest_bytes > most {
                return None;
            }
            let pinned = segment.pin()?;
            if end.index - pinned.done().min(end.index) != waiting {
                return None;
            }
            let bytes = segment.left_bytes(waiting, || bytes_moved(&pinned));
            let len = match segment.is_sealed() {
                true => u64::from(end.units) * UNIT as u64,
                false => self.config.segment_size,
            };
            (bytes <= most).then(|| Left {
                base: segment.base(),
                jobs: waiting,
                bytes,
                frees: len + self.ack_file_bytes(),
            })
        };
        segments.iter().filter_map(left_of).collect()
    }

    pub(crate) fn ack_file_bytes(&self) -> u64 {
        ack::file_bytes(segment::capacity_of(self.config.segment_size))
    }

    /// Bytes of records that still fit the active segment; None if it is full, or has no room for
    /// the largest record.
    pub(crate) fn room_left(&self) -> Option<u64> {
        let active = self.active();
        let size = self.config.segment_size;
        let room = size.saturating_sub(u64::from(active.reached().units) * UNIT as u64);
        (active.closed().is_none() && room >= size / 4).then_some(room)
    }

    /// Whether room is short, in this stripe or another one of the queue.
    pub(crate) fn is_short(&self) -> bool {
        self.config.budget.is_short()
    }

    pub(crate) fn end_shortage(&self) {
        self.config.budget.note_room();
    }

    /// Whether there is no limit other than the disk.
    pub(crate) fn is_limited_by_disk(&self) -> bool {
        !self.config.budget.is_limited()
    }

    /// Records that a job of this stripe is about to wait in the timer.
    #[inline]
    pub(crate) fn note_waiting(&self) {
        // Relaxed: a hint, as below.
        if !self.has_waiting.load(Ordering::Relaxed) {
            self.has_waiting.store(true, Ordering::Relaxed);
        }
    }

    /// Sets whether jobs of this stripe wait in the timer. If none does, the reserve segment may be
    /// used like any other.
    pub(crate) fn set_waiting(&self, has_waiting: bool) {
        self.has_waiting.store(has_waiting, Ordering::Relaxed);
        let reserved = match has_waiting {
            true => None,
            false => self.next.lock().reserved.take(),
        };
        if let Some(reserved) = reserved {
            self.take_in(vec![reserved]);
        }
    }

    /// Whether a segment should be put into reserve.
    pub(super) fn wants_reserve(&self, next: &Next) -> bool {
        next.reserved.is_none()
            && !next.closed
            && self.is_limited_by_disk()
            && self.has_waiting.load(Ordering::Relaxed)
    }

    /// Puts a segment into reserve, before producers get another one.
    pub(super) fn keep_reserve(&self, next: &mut Next) -> Result<(), RollError> {
        if self.wants_reserve(next) {
            let spare = match next.spares.pop() {
                Some(spare) => spare,
                None => {
                    let spare = self.create_spare(next).map_err(RollError::Storage)?;
                    self.config.budget.force(self.config.segment_size);
                    spare
                }
            };
            next.reserved = Some(spare);
        }
        Ok(())
    }

    fn create_spare(&self, next: &mut Next) -> Result<Spare, StorageError> {
        let base = next.base;
        // The base is given to no later segment and no other spare, so the name is unique.
        next.base = base.plus(segment::capacity_of(self.config.segment_size));
        let paths = spare::waiting(&Paths::new(&self.names, base));
        Spare::create(&paths, self.config.segment_size)
            .inspect_err(|_| next.take_back(base, &paths))
    }

    /// Whether there is a reserve segment, and no segment that producers could have.
    pub(crate) fn has_reserve(&self) -> bool {
        let next = self.next.lock();
        let has_spare = !next.spares.is_empty() || next.reserved.is_some();
        let may_have = has_spare || self.config.budget.has_reserve(self.config.segment_size);
        !next.closed && next.prepared.is_none() && may_have
    }

    /// Makes a segment of the reserve the active one, with these records already in it. Each of the
    /// records names what it settles. None if producers have room, or if there is no reserve.
    pub(crate) fn roll_into_reserve(
        &self,
        records: &[NewRecord<'_>],
    ) -> Result<Option<Unsettled>, Arc<StorageError>> {
        let rolled = self.try_roll_into_reserve(records).map_err(Arc::new);
        rolled.inspect_err(|error| self.config.poison.note(error))
    }

    fn try_roll_into_reserve(
        &self,
        records: &[NewRecord<'_>],
    ) -> Result<Option<Unsettled>, StorageError> {
        let size = self.config.segment_size;
        let mut next = self.next.lock();
        if next.closed || next.prepared.is_some() || self.room_left().is_some() {
            return Ok(None);
        }
        let give_back = |_: &StorageError| self.config.budget.give_back(size);
        let spare = match next.spares.pop().or_else(|| next.reserved.take()) {
            Some(spare) => spare,
            None if self.config.budget.take_reserved(size) => {
                self.create_spare(&mut next).inspect_err(give_back)?
            }
            None => return Ok(None),
        };
        let identity = match super::next_identity(&self.names, &self.config, &mut next) {
            Ok(identity) => identity,
            Err(error) => {
                next.spares.push(spare);
                return Err(error);
            }
        };
        let segment = spare
            .into_segment_with(&self.names, identity, records)
            .inspect_err(give_back)?;
        let unsettled = segment.owing(records.len() as u64);
        let before = self.make_active(&mut next, &segment);
        drop(next);
        // Nothing is appended to it any more, whether it is full or not.
        before.note_full();
        before.close_now();
        (self.config.kick)();
        Ok(Some(unsettled))
    }
}

/// Most bytes of records that the jobs of a segment take once they are moved.
fn bytes_moved(pinned: &Pinned) -> u64 {
    let bytes_of = |record: Record<'_>| {
        let headers = headers_of(record.meta()).len();
        let kept = record.name().len() + headers + record.payload().len();
        let len = RECORD_HEADER_BYTES + MOVED_META_BYTES + kept;
        u64::from(units_of(len)) * UNIT as u64
    };
    pinned.live_records().map(bytes_of).sum()
}
