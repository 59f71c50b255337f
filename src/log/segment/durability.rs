//! Durability of a segment: flushing its records, its acks and its names, and writing the seal.
#![deny(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Maps, START, Segment, is_missing};
use crate::events::event;
use crate::log::header;
use crate::log::record::UNIT;
use crate::log::records::Record;
use crate::storage::StorageError;

impl Segment {
    /// Makes every record committed before this call durable, sharing one flush with concurrent
    /// callers; with `acks_too`, the acks as well.
    ///
    /// Records, acks and names are flushed separately, and a failed flush of one of them is final:
    /// every later call for it returns the same error.
    pub(crate) fn flush(&self, acks_too: bool) -> Result<(), Arc<StorageError>> {
        let maps = self.maps();
        if maps.is_none() && self.is_retired() {
            // Complete and deleted: there is nothing left that could be lost.
            return Ok(());
        }
        self.flush_files(maps, acks_too)
            .inspect_err(|error| self.names.poison().note(error))
    }

    fn flush_files(
        &self,
        mut maps: Option<Arc<Maps>>,
        mut acks_too: bool,
    ) -> Result<(), Arc<StorageError>> {
        // SeqCst, like the load in `was_flushed`: a flush that returned before is seen.
        self.flushed.store(true, Ordering::SeqCst);
        if !self.is_settled() {
            let looked = match maps {
                Some(maps) => Some(maps),
                None => self.maps_to_look().map_err(Arc::new)?,
            };
            let Some(looked) = looked else {
                return Ok(());
            };
            let Maps { records, acks } = &*looked;
            self.records_gate.flush(|| {
                // If so, no record can follow what is there now.
                let is_whole = !self.is_unscanned() && self.is_committed();
                // A segment without records may be flushed ahead of need, and nobody relies on that.
                let has_record = Record::at(records, START.units).is_some();
                self.flush_records(&looked)?;
                if has_record {
                    self.has_durable_record.store(true, Ordering::Release);
                }
                if is_whole {
                    self.settled.store(true, Ordering::Release);
                }
                Ok(())
            })?;
            self.flush_names()?;
            // Only after the records and their names are durable, because the mark states that.
            // Whoever ran the flush that this caller waited for has looked.
            let has_record = self.has_durable_record.load(Ordering::Acquire);
            if has_record && acks.mark_relied() {
                self.deliveries_changed.note_end();
                acks_too = true;
            }
            maps = Some(looked);
        }
        if acks_too {
            self.flush_acks(maps.as_deref())?;
        }
        Ok(())
    }

    /// Flushes the records, one flush at a time: from where they are durable up to where the last
    /// reservation ends. So the pages that come next, which producers write to meanwhile, are
    /// neither written nor write-protected.
    fn flush_records(&self, maps: &Maps) -> Result<(), StorageError> {
        let Maps { records, acks } = maps;
        if self.recovered {
            // Nobody knows what of it is durable, and a recovery may have mended any of it.
            return records.file.flush();
        }
        // A claim has found all before it committed, and saves another look at each. Loaded before
        // the end of the last reservation, which is not before it then.
        let claimed = self.claimed().units;
        // Includes each record that was committed before this flush was asked for.
        let reached = self.reached().units;
        let end_of = |units| Record::at(records, units).map(|record| record.next());
        let flush = |units: Range<u32>| {
            let bytes = |units: u32| units as usize * UNIT;
            records
                .file
                .flush_range(bytes(units.start)..bytes(units.end))
        };
        let durable = self.durable.flush(claimed, reached, end_of, flush)?;
        acks.note_durable(durable);
        Ok(())
    }

    /// Makes the pages writable that producers come to next, and that a flush has write-protected:
    /// as far as they came since the last call, twice, and `at_least` so many bytes. A store to them
    /// then causes no page fault.
    pub(crate) fn make_writable_ahead(&self, at_least: usize) -> Result<(), StorageError> {
        let Some(maps) = self.maps() else {
            return Ok(());
        };
        let reached = self.reached().units;
        // Relaxed: a hint.
        let before = self.made_writable.swap(reached, Ordering::Relaxed);
        let from = reached as usize * UNIT;
        let passed = reached.saturating_sub(before) as usize * UNIT;
        maps.records
            .file
            .make_writable(from..from + at_least.max(2 * passed))
    }

    fn flush_acks(&self, maps: Option<&Maps>) -> Result<(), Arc<StorageError>> {
        if self.are_acks_flushed() {
            return Ok(());
        }
        let entry = &self.paths.ack;
        // A lookup may have it mapped.
        let shared = self.mapping.shared();
        let mapped = maps.or(shared.as_deref());
        let file = match mapped {
            Some(_) => None,
            // Opened before the flush is requested: a failure to open the file is not a failed
            // flush.
            None => match entry.open_to_flush() {
                Ok(file) => Some(file),
                // It was retired in the meantime.
                Err(error) if self.is_complete() && is_missing(&error) => return Ok(()),
                Err(error) => return Err(Arc::new(error)),
            },
        };
        let flush = || match (mapped, &file) {
            (Some(maps), _) => maps.acks.file.flush(),
            (None, Some(file)) => entry.flush(file),
            (None, None) => Ok(()),
        };
        // In a segment that waits, only `mark_done` marks records done, and it counts them.
        let done = || {
            maps.map_or_else(
                || self.not_acked(),
                |maps| maps.acks.done_within(0, self.reached().index),
            )
        };
        let deliveries = &self.deliveries_changed;
        self.acks_gate
            .flush(|| self.flushed_acks.flush(deliveries, done, flush))
    }

    /// Marks all its jobs as done, before its files are emptied, renamed or removed, so that this
    /// does not look like a loss. The mark is made durable if a record was relied on, or if
    /// `durably` is set.
    pub(crate) fn finish(&self, durably: bool) -> Result<(), Arc<StorageError>> {
        debug_assert!(self.is_complete());
        let Some(maps) = self.maps_to_look().map_err(Arc::new)? else {
            return Ok(());
        };
        if maps.acks.mark_finished() || durably {
            self.deliveries_changed.note_end();
            self.flush_acks(Some(&maps))
                .inspect_err(|error| self.names.poison().note(error))?;
        }
        Ok(())
    }

    /// Whether nothing was claimed from it and all acks in it are durable.
    pub(crate) fn are_acks_flushed(&self) -> bool {
        self.claimed() == START
            && self
                .flushed_acks
                .covers(&self.deliveries_changed, self.not_acked())
    }

    /// Whether a flush has begun, so that data on disk may be relied on.
    pub(crate) fn was_flushed(&self) -> bool {
        self.flushed.load(Ordering::SeqCst)
    }

    /// Records that its records were mended, and that this is not durable yet.
    pub(crate) fn note_mended(&self) {
        self.settled.store(false, Ordering::Release);
    }

    /// Whether all records that it will ever have are durable, with their names.
    pub(crate) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire) && self.named.load(Ordering::Acquire)
    }

    /// Makes the names of the files durable, once.
    pub(crate) fn flush_names(&self) -> Result<(), Arc<StorageError>> {
        if !self.named.load(Ordering::Acquire) {
            self.names.flush()?;
            self.named.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Flushes the records, then writes the seal, flushes it, and frees the unused end of the file:
    /// in this order, so that a seal on disk proves its records.
    ///
    /// The segment is full, and every record committed. If a flush fails, this returns the error
    /// before it writes the seal, and so does every later attempt.
    pub(crate) fn seal(&self) -> Result<(), Arc<StorageError>> {
        let (Some(end), Some(maps)) = (self.closed(), self.maps_to_look()?) else {
            return Ok(());
        };
        let records = &maps.records.file;
        if !self.is_settled() {
            // Consumers that settle its jobs meanwhile meet a page fault for each page, as after any flush.
            maps.acks.file.release_pages();
        }
        self.flush(true)?;
        let (word, check) = header::encode_seal(self.identity.salt, end);
        records
            .word64(header::SEAL_OFFSET)
            .store(word, Ordering::Relaxed);
        records
            .word32(header::SEAL_OFFSET + 8)
            .store(check, Ordering::Relaxed);
        let header = 0..header::FILE_HEADER_BYTES;
        let sealed = self.records_gate.flush(|| records.flush_range(header));
        sealed.inspect_err(|error| {
            // Not settled any more, so that later flushes meet the failure at the gate.
            self.settled.store(false, Ordering::Release);
            self.names.poison().note(error);
        })?;
        // One unit more than is used: a walk that began before the segment was closed looks for a
        // commit word at its end. Nothing touches the mapping beyond that. A segment found at open
        // was already closed, and its file may be no longer than its records.
        let kept = (u64::from(end.units) + u64::from(!self.recovered)) * UNIT as u64;
        if let Err(error) = self
            .paths
            .segment
            .truncate(kept.min(self.identity.segment_size))
        {
            // The seal is valid for a longer file too; the file only takes more space.
            event!(debug, %error, "a sealed segment keeps its unused end");
        }
        self.sealed.store(true, Ordering::Release);
        Ok(())
    }
}
