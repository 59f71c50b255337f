//! Which byte of a file belongs to which field: the layout of section 3 of docs/DESIGN.md,
//! implemented from its tables without the library.

use std::ops::Range;

pub(crate) const SEGMENT_SIZE: usize = 16 * 1024;
pub(crate) const HEADER_BYTES: usize = 64;
/// The place of a record in the log: the number of a job's or a letter's id.
pub(crate) type Place = u64;

/// The bytes that a header's check covers, and the check itself.
pub(crate) const IDENTITY: Range<usize> = 0..48;
/// The version field of a MANIFEST.
pub(crate) const MANIFEST_VERSION: Range<usize> = 8..12;

const RECORD_HEADER_BYTES: usize = 32;
/// The tag of a metadata field that has a header of the job.
const HEADER_TAG: u8 = 128;
const MOST_RECORDS: usize = (SEGMENT_SIZE - HEADER_BYTES) / RECORD_HEADER_BYTES;
const RECORDS_PER_WORD: usize = 32;
const DELIVERIES: usize = HEADER_BYTES + 8 * MOST_RECORDS.div_ceil(RECORDS_PER_WORD);

/// A segment file, undamaged.
pub(crate) struct Segment {
    /// Whether there is a seal, which says where the records end.
    pub is_sealed: bool,
    pub records: Vec<Record>,
}

pub(crate) struct Record {
    pub sequence: Place,
    /// The bytes of the record: header, name, metadata and payload.
    pub bytes: Range<usize>,
    /// The same bytes, up to the next multiple of 8.
    pub units: Range<usize>,
    pub name: Range<usize>,
    /// Keys and values.
    pub headers: Vec<(Range<usize>, Range<usize>)>,
    pub payload: Range<usize>,
}

impl Segment {
    pub(crate) const SEAL: Range<usize> = 48..60;

    pub(crate) fn parse(bytes: &[u8]) -> Self {
        assert!(bytes.starts_with(b"logmillS"));
        let base = u64_at(bytes, 16);
        let records_sealed = u32_at(bytes, 48) as usize;
        let end = match 8 * u32_at(bytes, 52) as usize {
            0 => bytes.len(),
            end => end,
        };
        let mut records: Vec<Record> = Vec::new();
        let mut at = HEADER_BYTES;
        while at < end && u32_at(bytes, at) != 0 {
            let len = u32_at(bytes, at) as usize;
            let index = u32_at(bytes, at + 8);
            assert_eq!((index as usize, bytes[at + 12]), (records.len(), 1));
            let name = at + RECORD_HEADER_BYTES;
            let meta = name + usize::from(bytes[at + 13]);
            let payload = meta + usize::from(u16_at(bytes, at + 14));
            records.push(Record {
                sequence: Place::from(base + u64::from(index)),
                bytes: at..at + len,
                units: at..at + len.next_multiple_of(8),
                name: name..meta,
                headers: headers(bytes, meta..payload),
                payload: payload..at + len,
            });
            at += len.next_multiple_of(8);
        }
        let is_sealed = u32_at(bytes, 52) != 0;
        assert!(!is_sealed || (records.len(), at) == (records_sealed, end));
        Self { is_sealed, records }
    }
}

/// The headers in the metadata at this place.
fn headers(bytes: &[u8], meta: Range<usize>) -> Vec<(Range<usize>, Range<usize>)> {
    let mut headers = Vec::new();
    let mut at = meta.start;
    while at < meta.end {
        let value = at + 3;
        let end = value + usize::from(u16_at(bytes, at + 1));
        if bytes[at] == HEADER_TAG {
            let key = value + 1..value + 1 + usize::from(bytes[value]);
            headers.push((key.clone(), key.end..end));
        }
        at = end;
    }
    assert_eq!(at, meta.end);
    headers
}

/// What a delivery word says about a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Deliveries {
    pub failed: u32,
    pub crashes: u32,
    pub is_running: bool,
}

/// The bytes of an ack file.
pub(crate) struct Acks;

impl Acks {
    pub(crate) const BYTES: usize = DELIVERIES + 4 * MOST_RECORDS;

    /// The word with the done bit of this record.
    pub(crate) fn word(index: usize) -> Range<usize> {
        let at = HEADER_BYTES + 8 * (index / RECORDS_PER_WORD);
        at..at + 8
    }

    /// The words of this many records.
    pub(crate) fn words(records: usize) -> impl Iterator<Item = Range<usize>> {
        (0..records).step_by(RECORDS_PER_WORD).map(Self::word)
    }

    pub(crate) fn is_done(bytes: &[u8], index: usize) -> bool {
        let done = u32_at(bytes, Self::word(index).start);
        done >> (index % RECORDS_PER_WORD) & 1 == 1
    }

    /// The delivery word of this record.
    pub(crate) fn delivery_word(index: usize) -> Range<usize> {
        DELIVERIES + 4 * index..DELIVERIES + 4 * index + 4
    }

    pub(crate) fn deliveries(bytes: &[u8], index: usize) -> Deliveries {
        let word = u32_at(bytes, Self::delivery_word(index).start);
        Deliveries {
            failed: word & 0xff,
            crashes: word >> 8 & 0xf,
            is_running: word >> 12 & 1 == 1,
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}
