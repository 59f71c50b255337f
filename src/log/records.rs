//! The records in a segment's file: writing, finding and reading them.

#![allow(unsafe_code)]
use std::sync::atomic::Ordering;

use super::header::{self, FileKind, Identity};
use super::raw::RawSegment;
use super::record::{
    self, Content, HEADER_UNITS, Header, KIND_PAD, NewRecord, RECORD_HEADER_BYTES, UNIT,
};
use super::tail::Position;
use crate::Timestamp;
use crate::storage::mapped::{MappedFile, RecordWords};
use crate::storage::mappings::Purpose;
use crate::storage::{Entry, StorageError};

/// The mapped file of a segment's records.
pub(crate) struct Records {
    pub(super) file: MappedFile,
}

impl Records {
    /// Maps the first `len` bytes of an existing segment file.
    pub(crate) fn open(entry: Entry, len: u64, purpose: Purpose) -> Result<Self, StorageError> {
        let file = MappedFile::open(entry, len, purpose)?;
        Ok(Self { file })
    }

    /// Reads the whole file into memory.
    pub(crate) fn read_in(&self) -> Result<(), StorageError> {
        self.file.read_in(self.file.len())
    }

    /// Writes the header, except for the seal.
    pub(crate) fn restore_header(&self, identity: &Identity) {
        let bytes = identity.encode(FileKind::Segment);
        write_header(&self.file, &bytes[..header::SEAL_OFFSET]);
    }

    #[inline]
    pub(super) fn commit_word(&self, units: u32) -> u32 {
        // Acquire pairs with the Release in `write_record_header`.
        self.file
            .word32(units as usize * UNIT)
            .load(Ordering::Acquire)
    }

    #[inline]
    pub(super) fn words(&self, units: u32) -> &RecordWords {
        self.file.record_words(units as usize * UNIT)
    }

    #[inline]
    pub(super) fn header(&self, units: u32) -> Header {
        let words = self.words(units);
        Header::from_words(
            // As in `commit_word`.
            words.len.load(Ordering::Acquire),
            words.identity.load(Ordering::Relaxed),
            words.enqueued_at.load(Ordering::Relaxed),
            words.due_at.load(Ordering::Relaxed),
        )
    }

    /// How many units are mapped.
    pub(crate) fn units(&self) -> u32 {
        (self.file.len() / UNIT) as u32
    }

    /// The bytes behind the header of a record of `len` bytes, without the first `from` of them.
    #[inline]
    pub(super) fn content(&self, units: u32, from: usize, len: u32) -> &[u8] {
        let start = RECORD_HEADER_BYTES + from;
        // SAFETY: the record is committed, and the bytes of a committed record never change; or it
        // is from a `SoleAccess`, which is borrowed for as long as the record is, and then nobody
        // stores to the file.
        unsafe {
            self.file
                .bytes(units as usize * UNIT + start, len as usize - start)
        }
    }

    /// The header at `units`, if it is plausible and its record fits below `end`; the check value
    /// is not verified.
    fn plausible_header(&self, units: u32, end: u32) -> Option<Header> {
        let end = end.min(self.units());
        if units >= end || end - units < HEADER_UNITS {
            return None;
        }
        let header = self.header(units);
        let is_plausible = header.is_plausible((end - units) as usize * UNIT);
        is_plausible.then_some(header)
    }

    /// Access to the bytes of a file that only the caller has mapped.
    pub(crate) fn sole_access(&mut self) -> SoleAccess<'_> {
        SoleAccess(self)
    }
}

/// The right to read and mend the segments of a log that are still unscanned: one for each log,
/// behind its lock `step`.
pub(crate) struct Mender(());

impl Mender {
    pub(super) const fn new() -> Self {
        Self(())
    }

    /// Access to the records of a segment that is unscanned. Its producers ended with the process
    /// that wrote it, and no claim reads it before it is scanned.
    pub(super) fn sole_access<'a>(&'a mut self, records: &'a Records) -> SoleAccess<'a> {
        SoleAccess(records)
    }
}

/// Access to all bytes of a file of records, which nobody else stores to or mends for as long as
/// this lives: the file is not shared yet, or its log's [`Mender`] is borrowed.
///
/// What it hands out is gone before it changes anything, as that borrows it exclusively.
pub(crate) struct SoleAccess<'a>(&'a Records);

impl SoleAccess<'_> {
    /// The whole file.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: nobody stores to the file, by this type's invariant.
        unsafe { self.0.file.bytes(0, self.0.file.len()) }
    }

    /// The whole file, as records.
    pub(crate) fn raw(&self) -> RawSegment<'_> {
        RawSegment::new(self.bytes())
    }

    /// Writes a record's header again.
    #[cfg(fuzzing)]
    pub(crate) fn rewrite_header(&mut self, units: u32, header: &Header, check: u32) {
        write_record_header(&self.0.file, units as usize * UNIT, header, check);
    }

    /// Covers the units `[from, to)` of a segment found at open with a pad, or with zeros where a
    /// pad would not fit.
    pub(crate) fn cover(&mut self, from: u32, to: u32, index: u32, salt: u64) {
        if to - from < HEADER_UNITS {
            for units in from..to {
                self.0
                    .file
                    .word64(units as usize * UNIT)
                    .store(0, Ordering::Relaxed);
            }
            return;
        }
        let header = Header {
            len: (to - from) * UNIT as u32,
            index,
            kind: KIND_PAD,
            name_len: 0,
            meta_len: 0,
            enqueued_at: Timestamp::ZERO,
            due_at: Timestamp::ZERO,
        };
        let check = header.check_over(salt, b"", 0);
        write_record_header(&self.0.file, from as usize * UNIT, &header, check);
    }
}

/// A committed record.
#[derive(Clone, Copy)]
pub(crate) struct Record<'a> {
    records: &'a Records,
    units: u32,
    header: Header,
}

impl<'a> Record<'a> {
    #[inline]
    pub(super) fn at(records: &'a Records, units: u32) -> Option<Self> {
        (records.commit_word(units) != 0).then(|| Self {
            records,
            units,
            header: records.header(units),
        })
    }

    /// The committed record of a lease.
    #[inline]
    pub(super) fn committed(records: &'a Records, units: u32) -> Self {
        Self {
            records,
            units,
            header: records.header(units),
        }
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    pub(crate) fn units(&self) -> u32 {
        self.units
    }

    /// Whether it is still what was appended.
    pub(crate) fn is_valid(&self, salt: u64) -> bool {
        let plausible = self.records.plausible_header(self.units, self.next());
        plausible.is_some() && self.has_valid_check(salt)
    }

    fn has_valid_check(&self, salt: u64) -> bool {
        self.stored_check() == self.header.check(salt, self.content())
    }

    /// Where the next record starts.
    #[inline]
    pub(crate) fn next(&self) -> u32 {
        self.units + record::units_of(self.header.len as usize)
    }

    #[inline]
    pub(crate) fn content(&self) -> Content<'a> {
        let bytes = self.bytes();
        let (name, bytes) = bytes.split_at(usize::from(self.header.name_len));
        let (meta, payload) = bytes.split_at(usize::from(self.header.meta_len));
        Content {
            name,
            meta,
            payload,
        }
    }

    #[inline]
    pub(crate) fn name(&self) -> &'a [u8] {
        self.content().name
    }

    #[inline]
    pub(crate) fn meta(&self) -> &'a [u8] {
        self.content().meta
    }

    #[inline]
    pub(crate) fn payload(&self) -> &'a [u8] {
        self.content().payload
    }

    /// All bytes behind the header.
    #[inline]
    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.records.content(self.units, 0, self.header.len)
    }

    /// The check value stored in its header.
    pub(crate) fn stored_check(&self) -> u32 {
        self.records
            .file
            .word32(self.units as usize * UNIT + 4)
            .load(Ordering::Relaxed)
    }
}

/// The name in a record.
#[inline]
pub(crate) fn name_of(stored: &[u8]) -> Option<&str> {
    if is_short_ascii(stored) {
        // A twentieth to a tenth of the time of a job with a name, end to end, is saved by this.
        // SAFETY: ASCII is UTF-8, and nobody changes the bytes of a shared slice.
        return Some(unsafe { str::from_utf8_unchecked(stored) });
    }
    match stored.is_empty() {
        true => None,
        false => str::from_utf8(stored).ok(),
    }
}

/// Whether these are 8 to 16 bytes, all of them ASCII.
#[inline]
fn is_short_ascii(bytes: &[u8]) -> bool {
    const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);
    match (bytes.len(), bytes.first_chunk(), bytes.last_chunk()) {
        (8..=16, Some(&first), Some(&last)) => {
            (u64::from_ne_bytes(first) | u64::from_ne_bytes(last)) & HIGH == 0
        }
        _ => false,
    }
}

/// Stores a file header. No other thread has seen the mapping yet.
pub(super) fn write_header(file: &MappedFile, bytes: &[u8]) {
    for (word, chunk) in bytes.as_chunks::<8>().0.iter().enumerate() {
        file.word64(8 * word)
            .store(u64::from_le_bytes(*chunk), Ordering::Relaxed);
    }
}

/// Writes a record and commits it.
///
/// # Safety
/// Nobody else touches the bytes of the record meanwhile.
#[inline(always)]
pub(super) unsafe fn write_record(
    records: &MappedFile,
    salt: u64,
    position: Position,
    kind: u8,
    record: &NewRecord<'_>,
    content: u32,
) {
    let header = Header {
        len: record.len() as u32,
        index: position.index,
        kind,
        name_len: record.name.len() as u8,
        meta_len: record.meta.len() as u16,
        enqueued_at: record.enqueued_at,
        due_at: record.due_at,
    };
    let offset = position.units as usize * UNIT;
    let mut at = offset + RECORD_HEADER_BYTES;
    if !record.name.is_empty() {
        // SAFETY: by this function's contract.
        unsafe { copy_name(records, at, record.name) };
        at += record.name.len();
    }
    if !record.meta.is_empty() {
        // SAFETY: as above.
        unsafe { records.copy_in(at, record.meta) };
        at += record.meta.len();
    }
    // SAFETY: as above.
    unsafe { records.copy_in(at, record.payload) };
    write_record_header(
        records,
        offset,
        &header,
        header.check_over(salt, record.name, content),
    );
}

/// Copies a name in. Names of common lengths take two moves that may overlap, where a call of the
/// general function would take longer than the rest of storing the name.
///
/// # Safety
/// That of [`MappedFile::copy_in`].
#[inline(always)]
unsafe fn copy_name(records: &MappedFile, at: usize, name: &[u8]) {
    if let (8..=16, Some(first), Some(last)) =
        (name.len(), name.first_chunk::<8>(), name.last_chunk::<8>())
    {
        // SAFETY: by this function's contract, for either half.
        unsafe {
            records.copy_in(at, first);
            records.copy_in(at + name.len() - last.len(), last);
        }
    } else {
        // SAFETY: by this function's contract.
        unsafe { records.copy_in(at, name) };
    }
}

#[inline(always)]
pub(super) fn write_record_header(
    records: &MappedFile,
    offset: usize,
    header: &Header,
    check: u32,
) {
    let words = records.record_words(offset);
    words.check.store(check, Ordering::Relaxed);
    words
        .identity
        .store(header.identity_word(), Ordering::Relaxed);
    words
        .enqueued_at
        .store(header.enqueued_at.as_nanos(), Ordering::Relaxed);
    words
        .due_at
        .store(header.due_at.as_nanos(), Ordering::Relaxed);
    // Release: a thread that sees the length, with the Acquire in `commit_word`, sees the record.
    words.len.store(header.len, Ordering::Release);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_is_valid_utf8_and_not_empty() {
        assert_eq!(name_of(b""), None);
        for len in 1..=20 {
            let mut bytes = vec![b'n'; len];
            assert_eq!(name_of(&bytes), str::from_utf8(&bytes).ok());
            for at in 0..len {
                bytes[at] = 0xc3;
                assert_eq!(name_of(&bytes), None, "{at} of {len}");
                if at + 1 < len {
                    bytes[at + 1] = 0xa4;
                    assert_eq!(name_of(&bytes), str::from_utf8(&bytes).ok());
                    bytes[at + 1] = b'n';
                }
                bytes[at] = b'n';
            }
        }
    }
}
