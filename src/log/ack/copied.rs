//! A copy of what an ack file says, for those who look at a queue from outside.

use super::{Deliveries, FILE_HEADER_BYTES, Key, RECORDS_PER_WORD, file_bytes, used_ranges};
use crate::storage::{ReadFile, StorageError};

/// How often a word that fails its check is read again: it may have been read in two halves, with
/// an ack in between.
const READ_AGAIN: u32 = 16;

/// Which records of a segment are done, and how the deliveries of each have gone.
pub(crate) struct CopiedAcks {
    key: Key,
    /// The done bits of 32 records each.
    done: Vec<u32>,
    /// The delivery words, if they were asked for.
    deliveries: Vec<u8>,
}

impl CopiedAcks {
    /// Of a segment whose ack file is not there or not valid: no record is done.
    pub(crate) fn none(salt: u64) -> Self {
        Self {
            key: Key::new(salt),
            done: Vec::new(),
            deliveries: Vec::new(),
        }
    }

    /// Copies the done bits of the first `records` records, in a segment of `capacity` with this
    /// salt. The words of a file that is too short count as zero, as do those that fail their check.
    pub(crate) fn read(
        file: &ReadFile,
        salt: u64,
        capacity: u32,
        records: u32,
    ) -> Result<Self, StorageError> {
        let mut acks = Self::none(salt);
        if file.len()? < file_bytes(capacity) {
            return Ok(acks);
        }
        let [words, _] = used_ranges(capacity, records);
        let mut bytes = vec![0; words.end - FILE_HEADER_BYTES];
        let read = file.read_at(FILE_HEADER_BYTES as u64, &mut bytes)?;
        let (read, _) = bytes[..read].as_chunks();
        for (number, word) in read.iter().enumerate() {
            let offset = (FILE_HEADER_BYTES + 8 * number) as u64;
            acks.done.push(acks.checked_bits(file, offset, *word)?);
        }
        Ok(acks)
    }

    /// Copies the delivery words of the first `records` records.
    pub(crate) fn read_deliveries(
        &mut self,
        file: &ReadFile,
        capacity: u32,
        records: u32,
    ) -> Result<(), StorageError> {
        if file.len()? < file_bytes(capacity) {
            return Ok(());
        }
        let [_, counts] = used_ranges(capacity, records);
        self.deliveries.resize(counts.len(), 0);
        let read = file.read_at(counts.start as u64, &mut self.deliveries)?;
        self.deliveries.truncate(read);
        Ok(())
    }

    fn checked_bits(
        &self,
        file: &ReadFile,
        offset: u64,
        mut word: [u8; 8],
    ) -> Result<u32, StorageError> {
        for _ in 0..READ_AGAIN {
            if let Some(bits) = self.key.bits_of(u64::from_le_bytes(word)) {
                return Ok(bits);
            }
            let before = word;
            file.read_at(offset, &mut word)?;
            if word == before {
                // It was not read in two halves: bits are only ever set. It is damaged, or of an
                // earlier life of the file.
                break;
            }
        }
        Ok(0)
    }

    pub(crate) fn is_done(&self, index: u32) -> bool {
        let word = self.done.get((index / RECORDS_PER_WORD) as usize);
        word.is_some_and(|bits| bits >> (index % RECORDS_PER_WORD) & 1 == 1)
    }

    /// How the deliveries of a record have gone.
    pub(crate) fn deliveries(&self, index: u32) -> Deliveries {
        let (words, _) = self.deliveries.as_chunks();
        let word = words.get(index as usize);
        word.map_or_else(Deliveries::default, |word| {
            self.key.deliveries_of(u32::from_le_bytes(*word))
        })
    }

    /// How many of the first `records` records are done.
    pub(crate) fn done_below(&self, records: u32) -> u32 {
        let whole = (records / RECORDS_PER_WORD) as usize;
        let full: u32 = self
            .done
            .iter()
            .take(whole)
            .map(|bits| bits.count_ones())
            .sum();
        let below = (1 << (records % RECORDS_PER_WORD)) - 1;
        full + self
            .done
            .get(whole)
            .map_or(0, |bits| (bits & below).count_ones())
    }
}
