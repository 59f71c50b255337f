//! Records in bytes in memory: those of a segment that nobody writes to, or a copy of them.
//!
//! Nothing here trusts the bytes. A record is what its check shows it to be, or none.

use super::record::{self, Content, HEADER_UNITS, Header, RECORD_HEADER_BYTES, UNIT};

/// The bytes of a segment, from the start of its file. A part of a unit at the end is left out.
#[derive(Clone, Copy)]
pub(crate) struct RawSegment<'a> {
    bytes: &'a [u8],
    units: &'a [[u8; UNIT]],
}

impl<'a> RawSegment<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        let (units, _) = bytes.as_chunks();
        Self { bytes, units }
    }

    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The word at `units`.
    #[inline]
    pub(crate) fn unit(&self, units: u32) -> u64 {
        u64::from_le_bytes(self.units[units as usize])
    }

    /// The record at `units` if its header is plausible and it fits below `end`; the check value is
    /// not verified.
    #[inline]
    pub(crate) fn plausible_record(&self, units: u32, end: u32) -> Option<RawRecord<'a>> {
        let end = (end as usize).min(self.units.len());
        let rest = self.units.get(units as usize..end)?;
        let (header, _) = rest.split_first_chunk::<{ HEADER_UNITS as usize }>()?;
        let [first, identity, enqueued_at, due_at] = header.map(u64::from_le_bytes);
        let (len, check) = (first as u32, (first >> 32) as u32);
        let header = Header::from_words(len, identity, enqueued_at, due_at);
        if !header.is_plausible(rest.len() * UNIT) {
            return None;
        }
        let start = units as usize * UNIT;
        Some(RawRecord {
            units,
            header,
            check,
            content: &self.bytes[start + RECORD_HEADER_BYTES..start + len as usize],
        })
    }

    /// The record at `units`, if there is a complete, valid one below `end`.
    pub(crate) fn valid_record(&self, units: u32, end: u32, salt: u64) -> Option<RawRecord<'a>> {
        let record = self.plausible_record(units, end)?;
        let check = record.header.check(salt, record.content());
        (record.check == check).then_some(record)
    }
}

/// A record whose header is plausible.
#[derive(Clone, Copy)]
pub(crate) struct RawRecord<'a> {
    units: u32,
    header: Header,
    check: u32,
    /// All bytes behind the header.
    content: &'a [u8],
}

impl<'a> RawRecord<'a> {
    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    pub(crate) fn units(&self) -> u32 {
        self.units
    }

    /// Where the next record starts.
    #[inline]
    pub(crate) fn next(&self) -> u32 {
        self.units + record::units_of(self.header.len as usize)
    }

    /// The check value stored in its header.
    #[inline]
    pub(crate) fn stored_check(&self) -> u32 {
        self.check
    }

    #[inline]
    pub(crate) fn content(&self) -> Content<'a> {
        let (name, rest) = self.content.split_at(usize::from(self.header.name_len));
        let (meta, payload) = rest.split_at(usize::from(self.header.meta_len));
        Content {
            name,
            meta,
            payload,
        }
    }
}
