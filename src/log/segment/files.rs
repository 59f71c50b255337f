//! The files of a segment: creating, mapping and emptying them.
use crate::Sequence;
use crate::log::ack::{self, AckFile};
use crate::log::crc::Crc32;
use crate::log::header::{FileKind, Identity};
use crate::log::names::Names;
use crate::log::record::{self, KIND_JOB, NewRecord};
use crate::log::records::{Records, write_header, write_record};
use crate::log::tail::Position;
use crate::storage::mapped::MappedFile;
use crate::storage::{Entry, StorageError};

use super::START;

/// The two mappings of a segment.
///
/// Aligned, so that the fields that every append reads are not on the cache line of the share
/// count, which every claim changes.
#[repr(align(128))]
pub(crate) struct Maps {
    pub(crate) records: Records,
    pub(crate) acks: AckFile,
}

impl Maps {
    /// Writes the headers of a new segment into all-zero files.
    pub(crate) fn write_headers(&self, identity: &Identity) {
        write_header(&self.records.file, &identity.encode(FileKind::Segment));
        write_header(&self.acks.file, &identity.encode(FileKind::Ack));
        self.acks.mark_fresh();
        self.acks.note_durable(START.units);
    }

    /// Writes records, which must fit, at the start of a new segment that no other thread has seen.
    /// Returns where they end.
    pub(crate) fn write_records(&mut self, salt: u64, records: &[NewRecord<'_>]) -> Position {
        let crc = Crc32::new();
        let mut end = START;
        for record in records {
            let content = record.content().check(&crc);
            // SAFETY: `self` is borrowed exclusively.
            unsafe { write_record(&self.records.file, salt, end, KIND_JOB, record, content) };
            end.index += 1;
            end.units += record::units_of(record.len());
        }
        end
    }
}

/// How much of a new segment's files is in the page cache and mapped before the first append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Warm {
    All,
    /// What the first records need, so that an open does not wait for the rest, which
    /// [`Segment::warm_up`](super::Segment::warm_up) prefaults.
    Start,
}

/// Bytes of records of [`Warm::Start`]: at a million jobs of 64 B per second, what is enqueued in
/// two and a half milliseconds.
const WARM_START: u64 = 256 * 1024;

impl Warm {
    pub(super) fn records(self) -> u64 {
        match self {
            Self::All => u64::MAX,
            Self::Start => WARM_START,
        }
    }

    fn acks(self) -> u64 {
        match self {
            Self::All => u64::MAX,
            // The header. A page of ack words covers over thirty thousand records, one of delivery
            // words a thousand.
            Self::Start => 1,
        }
    }
}

/// The files of a segment.
#[derive(Clone)]
pub(crate) struct Paths {
    pub(crate) segment: Entry,
    pub(crate) ack: Entry,
}

impl Paths {
    pub(crate) fn new(names: &Names, base: Sequence) -> Self {
        let name = base.within_stripe();
        Self {
            segment: names.entry(&format!("{name:020}.seg")),
            ack: names.entry(&format!("{name:020}.ack")),
        }
    }

    /// Frees the files' space and keeps their names. The segment is emptied first, durably: beside
    /// an empty segment, the contents of the ack file do not matter.
    pub(crate) fn empty(&self) -> Result<(), StorageError> {
        self.segment.empty_durably()?;
        self.ack.truncate(0)
    }
}

pub(crate) fn create_segment_file(
    entry: &Entry,
    identity: &Identity,
    warm: Warm,
) -> Result<Records, StorageError> {
    let file = MappedFile::create(entry.clone(), identity.segment_size, warm.records())?;
    write_header(&file, &identity.encode(FileKind::Segment));
    Ok(Records { file })
}

pub(crate) fn create_ack_file(
    entry: &Entry,
    identity: &Identity,
    capacity: u32,
    warm: Warm,
) -> Result<AckFile, StorageError> {
    let file = MappedFile::create_small(entry.clone(), ack::file_bytes(capacity), warm.acks())?;
    write_header(&file, &identity.encode(FileKind::Ack));
    let acks = AckFile::new(file, capacity, identity.salt);
    acks.mark_fresh();
    Ok(acks)
}
