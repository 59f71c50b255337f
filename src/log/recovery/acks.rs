//! The ack files of segments found at open: opened, checked, made anew.

use super::{Copy, Recovery};
use crate::events::event;
use crate::log::ack::{self, AckFile, Deliveries, RECORDS_PER_WORD};
use crate::log::header::Identity;
use crate::log::segment::{self, Paths, Warm};
use crate::storage::StorageError;
use crate::storage::mapped::MappedFile;
use crate::storage::mappings::Purpose;

impl Recovery<'_> {
    /// The ack file of this identity, if it is complete and can be read.
    pub(super) fn ack_file(
        &self,
        paths: &Paths,
        identity: Identity,
    ) -> Result<Option<AckFile>, StorageError> {
        let capacity = segment::capacity_of(self.segment_size);
        let len = ack::file_bytes(capacity);
        if paths.ack.file_len()?.is_none_or(|found| found < len) {
            return Ok(None);
        }
        let file = MappedFile::open(paths.ack.clone(), len, Purpose::Look)?;
        if file.read_in(file.len()).is_err() {
            return Ok(None);
        }
        Ok(Some(AckFile::new(file, capacity, identity.salt)))
    }

    /// The ack file of a segment, rebuilt if it is not valid.
    pub(super) fn open_acks(
        &mut self,
        paths: &Paths,
        identity: &Identity,
        copied: Option<Copy>,
        records: u32,
    ) -> Result<AckFile, StorageError> {
        let capacity = segment::capacity_of(self.segment_size);
        let len = ack::file_bytes(capacity);
        if let Some(copied) = copied
            && paths.ack.file_len()?.is_some_and(|found| found >= len)
        {
            // A copy of a queue may have holes where the original had zeros.
            paths.ack.back_with_blocks(len)?;
            let file = MappedFile::open(paths.ack.clone(), len, Purpose::Look)?;
            // The delivery words of a long backlog are not read until they are needed.
            let [words, _] = ack::used_ranges(capacity, records);
            file.read_in(words.end)?;
            let acks = AckFile::new(file, capacity, identity.salt);
            if copied.mark.is_none() {
                // From here on, files stay as a process leaves them.
                acks.mark_fresh();
            }
            return Ok(acks);
        }
        let path = paths.ack.path().to_path_buf();
        self.report.ack_files_rebuilt.push(path.clone());
        event!(warn, path = %path.display(), "made an ack file anew");
        paths.ack.remove()?;
        segment::create_ack_file(&paths.ack, identity, capacity, Warm::All)
    }
}

/// Counts a crash for each job that a handler had when an earlier process died, exactly once: a
/// process that closes the queue leaves no running bits, and this process sets its own only after
/// the scan that calls this.
pub(super) fn count_crashes(acks: &AckFile, records: u32) {
    acks.update_running(records, Deliveries::crashed);
}

/// Resets the ack words that fail their check and sets the bits past the last record. Returns how
/// many were reset.
pub(super) fn check_acks(acks: &AckFile, records: u32) -> u64 {
    let mut reset = 0;
    for word in 0..ack::words_for(records) {
        let bits = acks.checked_bits(word);
        reset += u64::from(bits.is_none());
        let held = records - word * RECORDS_PER_WORD;
        let past = u32::MAX.checked_shl(held).unwrap_or(0);
        let wanted = bits.unwrap_or(0) | past;
        if bits != Some(wanted) {
            acks.store_bits(word, wanted);
        }
    }
    reset
}
