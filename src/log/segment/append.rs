//! Appending to a segment: reserve, copy in, commit; and the close that ends it.

#![allow(unsafe_code)]

use super::*;
use crate::log::record::KIND_JOB;

/// The records of a batch, which can be gone through more than once.
pub(crate) trait BatchRecords<'a>: Iterator<Item = NewRecord<'a>> + Clone {}

impl<'a, I: Iterator<Item = NewRecord<'a>> + Clone> BatchRecords<'a> for I {}

/// Records to append all or none, in one segment.
pub(crate) struct Batch<I> {
    records: I,
    jobs: u32,
    units: u32,
}

impl<'a, I: BatchRecords<'a>> Batch<I> {
    /// None if they are more than fit `max_bytes`; then these are the bytes that they take.
    pub(crate) fn new(records: I, max_bytes: usize) -> Result<Self, u64> {
        let units_of = |record: NewRecord<'_>| u64::from(record::units_of(record.len()));
        let units: u64 = records.clone().map(units_of).sum();
        if units * UNIT as u64 > max_bytes as u64 {
            return Err(units * UNIT as u64);
        }
        // As many as fit a segment fit a u32.
        Ok(Self {
            jobs: records.clone().count() as u32,
            units: units as u32,
            records,
        })
    }

    pub(crate) fn jobs(&self) -> u32 {
        self.jobs
    }
}

/// The result of an append.
pub(crate) enum Append {
    /// Committed; this is the position of the (first) record.
    Done(Position),
    /// The segment is full. `complete`: finding that out made the segment complete.
    Full { complete: bool },
}

impl Segment {
    /// Reserves and commits the record of a job.
    #[inline(always)]
    pub(crate) fn append(&self, record: &NewRecord<'_>) -> Append {
        self.append_as(KIND_JOB, record)
    }

    /// Reserves and commits one record.
    #[inline(always)]
    pub(super) fn append_as(&self, kind: u8, record: &NewRecord<'_>) -> Append {
        let content = self.content_check(record);
        match self.tail.reserve(1, record::units_of(record.len())) {
            Reserved::At(position) => {
                self.commit(position, kind, record, content);
                Append::Done(position)
            }
            Reserved::Closing(position) => Append::Full {
                complete: self.close(position),
            },
            Reserved::Closed => Append::Full { complete: false },
        }
    }

    /// Reserves a batch of records in one step, and commits it as a whole: the first record last.
    /// Until then neither a claim nor another walk gets past that one, and a scan after a crash
    /// finds the batch incomplete.
    pub(crate) fn append_batch<'a>(&self, batch: &Batch<impl BatchRecords<'a>>) -> Append {
        match self.tail.reserve(batch.jobs, batch.units) {
            Reserved::At(first) => {
                self.commit_batch(first, batch);
                Append::Done(first)
            }
            Reserved::Closing(position) => Append::Full {
                complete: self.close(position),
            },
            Reserved::Closed => Append::Full { complete: false },
        }
    }

    fn commit_batch<'a>(&self, first: Position, batch: &Batch<impl BatchRecords<'a>>) {
        let commit = |position: Position, record: &NewRecord<'_>| {
            let at = position.index - first.index;
            let kind = record::kind_in_batch(at == 0, at + 1 == batch.jobs);
            self.commit(position, kind, record, self.content_check(record));
            #[cfg(all(test, not(loom)))]
            crate::storage::faults::note_commit(self.paths.segment.path());
        };
        let mut records = batch.records.clone();
        let Some(head) = records.next() else {
            return;
        };
        let after = |position: Position, record: &NewRecord<'_>| Position {
            index: position.index + 1,
            units: position.units + record::units_of(record.len()),
        };
        let mut position = after(first, &head);
        for record in records {
            commit(position, &record);
            position = after(position, &record);
        }
        commit(first, &head);
    }

    #[inline(always)]
    pub(super) fn content_check(&self, record: &NewRecord<'_>) -> u32 {
        record.content().check(&self.crc)
    }

    #[inline(always)]
    pub(super) fn commit(
        &self,
        position: Position,
        kind: u8,
        record: &NewRecord<'_>,
        content: u32,
    ) {
        // SAFETY: the caller holds the reservation of this record, which is not committed.
        let records = &unsafe { self.maps_in_use() }.records.file;
        // SAFETY: nobody else touches the bytes of a reserved and uncommitted record.
        unsafe { write_record(records, self.identity.salt, position, kind, record, content) };
    }

    /// Publishes the end. Returns whether that made the segment complete.
    pub(super) fn close(&self, end: Position) -> bool {
        self.tail.close(end);
        // SAFETY: the closer is not done before `progress.close` below has counted the close.
        let acks = &unsafe { self.maps_in_use() }.acks;
        let mut filled = 0;
        for index in end.index..ack::words_for(end.index) * ack::RECORDS_PER_WORD {
            filled += u32::from(acks.set_once(index));
        }
        self.progress.close(ack::words_for(end.index), filled)
    }

    /// Closes the segment at its current end, for shutdown. Returns whether that made it complete.
    pub(crate) fn close_now(&self) -> bool {
        match self.tail.close_now() {
            Some(end) => self.close(end),
            None => {
                // The thread that crossed the end publishes it in a moment.
                while self.closed().is_none() {
                    std::thread::yield_now();
                }
                false
            }
        }
    }
}
