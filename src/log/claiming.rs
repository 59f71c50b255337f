//! Claiming from a stripe's log. The segment that is claimed from is first mapped for use and
//! scanned; if that fails, it is held back. The segments behind it wait for their turn, mapped or
//! not.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Log;
use super::records::Mender;
use super::recovery::{Recovery, RecoveryReport};
use super::segment::Segment;
use crate::events::event;
use crate::log::run::Claim;
use crate::log::run::Run;
use crate::storage::StorageError;
use crate::time;

/// Pause between two attempts to make a segment ready: a full disk stays full for a while.
const SCAN_PAUSE: Duration = Duration::from_secs(1);

/// When to try again to make a segment ready.
pub(super) struct HeldBack {
    pub(super) until: Instant,
    /// Whether the reason was a lack of mappings.
    is_unmappable: bool,
}

impl Log {
    /// Claims the next committed records and adds them to `runs` as runs, in log order.
    pub(crate) fn claim(
        &self,
        max_jobs: u32,
        max_bytes: usize,
        counted: bool,
        runs: &mut Vec<Run>,
    ) -> Claim {
        loop {
            let segment = self.claiming.load_full();
            // Only a segment that is mapped for use is claimed from. It stays mapped until it is
            // complete, since only segments behind `claiming` are unmapped, with `step` locked.
            let ready = segment.pin().filter(|_| !segment.is_unscanned());
            if let Some(pinned) = &ready {
                match pinned.claim(max_jobs, max_bytes, counted, runs) {
                    Claim::Exhausted => {}
                    found => return found,
                }
            }
            if !self.step_from(&segment, ready.is_none()) {
                return Claim::Empty;
            }
        }
    }

    /// Moves on from a segment that has nothing left to claim, or makes it ready if it was not when
    /// the caller looked. Returns false if there is no segment to go on with.
    pub(super) fn step_from(&self, from: &Arc<Segment>, was_unready: bool) -> bool {
        let mut step = self.step.lock();
        if self.claiming.load().base() != from.base() {
            return true;
        }
        // A segment that was done before it was ready has nothing to claim, and its files may be
        // gone. Whether it is ready is not asked again: another thread may just have made it ready,
        // and then nothing has been claimed from it yet.
        if was_unready && !from.is_retired() && !from.has_nothing_left() {
            return self.get_ready(from, &mut step);
        }
        match self.segment_after(Some(from.base())) {
            Some(segment) => {
                self.segments.write().wake(&segment);
                self.claiming.store(segment);
                true
            }
            None => false,
        }
    }

    /// Maps a segment for use and scans it. Returns false if that is not possible now. The caller
    /// holds `step`.
    fn get_ready(&self, segment: &Arc<Segment>, mender: &mut Mender) -> bool {
        if self.is_held_back() {
            return false;
        }
        let mapped = segment.begin_use().or_else(|error| {
            if !error.is_unmappable() {
                return Err(error);
            }
            // Neither the segments that wait behind it nor spares need to be mapped.
            self.unmap_all_waiting();
            self.take_in(Vec::new());
            segment.begin_use()
        });
        let ready = mapped
            .map_err(Arc::new)
            .and_then(|()| self.scan(segment, mender));
        let is_ready = ready.is_ok();
        match ready {
            Ok(()) => self.end_hold_back(),
            Err(error) => self.hold_back(error),
        }
        is_ready
    }

    /// Checks a segment record by record, if that has not been done. The caller holds `step`.
    pub(super) fn scan(
        &self,
        segment: &Arc<Segment>,
        mender: &mut Mender,
    ) -> Result<(), Arc<StorageError>> {
        if !segment.is_unscanned() {
            return Ok(());
        }
        if let Some(error) = self.failed_scan.get() {
            // A flush has failed: another one would prove nothing for as long as the queue is open.
            return Err(Arc::clone(error));
        }
        let Some(pinned) = segment.look().map_err(Arc::new)? else {
            return Ok(());
        };
        self.segments.write().wake(segment);
        let mut recovery = Recovery {
            segment_size: self.config.segment_size,
            queue: &self.config.queue,
            report: RecoveryReport::default(),
            progress: None,
            segments_seen: 0,
        };
        match recovery.scan_later(&pinned, mender) {
            Ok((lost, complete)) => {
                if !recovery.report.quarantined.is_empty() || recovery.report.holes > 0 {
                    segment.note_mended();
                    // Records of an unmapped segment are durable, so they need no flush.
                    if !segment.is_mapped() {
                        segment.flush(false)?;
                    }
                }
                if lost > 0 {
                    // Relaxed: a count for statistics.
                    self.lost.fetch_add(lost, Ordering::Relaxed);
                    (self.config.lost)(lost);
                }
                self.damage.lock().extend(recovery.report.quarantined);
                segment.set_scanned();
                if self.has_held_back() && self.claiming.load().base() == segment.base() {
                    // Consumers should neither wait for the next attempt nor sleep.
                    self.end_hold_back();
                    self.config.sleepers.notify_fenced(1);
                }
                // The segment may have been complete before, and only kept by the damage.
                if complete || segment.is_complete() {
                    (self.config.kick)();
                }
                Ok(())
            }
            // Damaged bytes could not be set aside; until they are, they must not be overwritten.
            Err(error) => {
                let error = Arc::new(error);
                if error.is_failed_flush() {
                    let _ = self.failed_scan.set(Arc::clone(&error));
                    self.config.poison.note(&error);
                }
                Err(error)
            }
        }
    }

    /// Holds back the segment to be claimed from, because it could not be made ready; a later claim
    /// tries again.
    fn hold_back(&self, error: Arc<StorageError>) {
        *self.held_back.lock() = Some(HeldBack {
            until: time::now() + SCAN_PAUSE,
            is_unmappable: error.is_unmappable(),
        });
        if let Some(times) = self.failed_scans.met_error(&error) {
            event!(error, %error, times, "a segment is held back");
        }
        (self.config.kick)();
    }

    fn end_hold_back(&self) {
        for failure in self.failed_scans.over_since(Duration::ZERO) {
            event!(info, failure, "a segment is held back no more");
        }
        *self.held_back.lock() = None;
    }

    /// Allows an immediate retry for a segment held back for lack of mappings, as some were freed.
    pub(super) fn note_unmapped(&self) {
        if let Some(held_back) = &mut *self.held_back.lock()
            && held_back.is_unmappable
        {
            held_back.until = time::now();
        }
    }

    /// A test for segments that wait to be claimed from, for a caller that holds `step`.
    pub(super) fn is_waiting(&self) -> impl Fn(&Segment) -> bool + use<> {
        let claiming = self.claiming.load().base();
        let active = self.active.load().base();
        move |segment| segment.base() > claiming && segment.base() != active
    }

    /// Unmaps the segments that wait to be claimed from, where possible. The caller holds `step`.
    fn unmap_all_waiting(&self) {
        let is_waiting = self.is_waiting();
        let segments = self.segments.read();
        for segment in segments.iter().filter(|segment| is_waiting(segment)) {
            segment.end_wait_use();
        }
    }

    /// Unmaps the segments that wait to be claimed from, unless another thread holds `step`.
    pub(super) fn unmap_waiting(&self) {
        if let Some(_step) = self.step.try_lock() {
            self.unmap_all_waiting();
        }
    }

    /// Whether there may be something to claim, for a consumer that has registered as a sleeper
    /// and fenced.
    pub(crate) fn may_have_work(&self) -> bool {
        let claiming = self.claiming.load();
        let has_next = || self.active.load().base() != claiming.base();
        let is_unready = claiming.is_unscanned() || !claiming.is_mapped();
        if is_unready && (claiming.is_retired() || claiming.has_nothing_left()) {
            // The claim moves on to the next segment.
            return has_next();
        }
        if is_unready {
            // Not while the segment is held back: the search would find nothing, again and again.
            return !self.is_held_back();
        }
        claiming.may_have_work() || has_next()
    }

    /// How many jobs there may be to claim, at most; for a caller as that of
    /// [`may_have_work`](Self::may_have_work).
    pub(crate) fn most_unclaimed(&self) -> usize {
        if !self.may_have_work() {
            return 0;
        }
        let claiming = self.claiming.load();
        if self.active.load().base() != claiming.base() {
            return usize::MAX;
        }
        let records = claiming
            .reached()
            .index
            .saturating_sub(claiming.claimed().index);
        (records as usize).max(1)
    }

    /// Whether a segment could not be made ready at the last attempt.
    pub(crate) fn has_held_back(&self) -> bool {
        self.held_back.lock().is_some()
    }

    /// Whether a segment waits for the next attempt to make it ready.
    pub(crate) fn is_held_back(&self) -> bool {
        if self.failed_scan.get().is_some() {
            return true;
        }
        let held_back = self.held_back.lock();
        let is_waiting = |held_back: &HeldBack| time::now() < held_back.until;
        held_back.as_ref().is_some_and(is_waiting)
    }
}
