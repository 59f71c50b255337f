//! Appending to a segment: reserve, copy in, commit; and the close that ends it.

#![allow(unsafe_code)]

use super::*;

/// The result of an append.
pub(crate) enum Append {
    /// Committed; this is the position of the (first) record.
    Done(Position),
    /// The segment is full. `complete`: finding that out made the segment complete.
    Full { complete: bool },
}

impl Segment {
    /// Reserves and commits one record.
    #[inline(always)]
    pub(crate) fn append(&self, record: &NewRecord<'_>) -> Append {
        let content = self.content_check(record);
        match self.tail.reserve(1, record::units_of(record.len())) {
            Reserved::At(position) => {
                self.commit(position, record, content);
                Append::Done(position)
            }
            Reserved::Closing(position) => Append::Full {
                complete: self.close(position),
            },
            Reserved::Closed => Append::Full { complete: false },
        }
    }

    /// Reserves records for all payloads in one step and commits them in order. Everything else in
    /// them is as in `template`.
    pub(crate) fn append_all(&self, template: &NewRecord<'_>, payloads: &[&[u8]]) -> Append {
        let records = || {
            payloads
                .iter()
                .map(|payload| template.with_payload(payload))
        };
        let units = |record: &NewRecord<'_>| record::units_of(record.len());
        let all_units = records().map(|record| units(&record)).sum();
        match self.tail.reserve(payloads.len() as u32, all_units) {
            Reserved::At(first) => {
                let mut position = first;
                for record in records() {
                    self.commit(position, &record, self.content_check(&record));
                    position.index += 1;
                    position.units += units(&record);
                }
                Append::Done(first)
            }
            Reserved::Closing(position) => Append::Full {
                complete: self.close(position),
            },
            Reserved::Closed => Append::Full { complete: false },
        }
    }

    #[inline(always)]
    pub(super) fn content_check(&self, record: &NewRecord<'_>) -> u32 {
        record.content().check(&self.crc)
    }

    #[inline(always)]
    pub(super) fn commit(&self, position: Position, record: &NewRecord<'_>, content: u32) {
        // SAFETY: the caller holds the reservation of this record, which is not committed.
        let records = &unsafe { self.maps_in_use() }.records.file;
        // SAFETY: nobody else touches the bytes of a reserved and uncommitted record.
        unsafe { write_record(records, self.identity.salt, position, record, content) };
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
