//! A second implementation of the file format, from docs/DESIGN.md: what the bytes of a MANIFEST, a
//! segment and an ack file mean, and what their checks must be.
//!
//! It is plain and slow, and shares no code with the library. So what the two agree on is what the
//! document says, and a mistake in one is not in the other. It predicts what the library makes of
//! some bytes, and recomputes checks in them, so that a fuzzer gets past these.

mod acks;
mod record;
mod scan;
mod segment;

pub use acks::{Acks, Deliveries};
pub use record::{Fields, Record, StateEntry, fields, mend_records, state_entry};
pub use scan::{Gap, scan};
pub use segment::{Content, Job, Segment};

pub const UNIT: usize = 8;
pub const FILE_HEADER: usize = 64;
pub const RECORD_HEADER: usize = 32;
/// The size of the smallest record, in units.
pub const RECORD_UNITS: u32 = (RECORD_HEADER / UNIT) as u32;
/// The place of the first record, in units.
pub const FIRST: u32 = (FILE_HEADER / UNIT) as u32;

pub const SEGMENT_MAGIC: [u8; 8] = *b"logmillS";
pub const ACK_MAGIC: [u8; 8] = *b"logmillA";

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// The content of a MANIFEST.
#[derive(Debug)]
pub enum Manifest {
    Corrupt,
    OtherVersion,
    Of {
        stripes: u32,
        segment_size: u64,
        is_in_tree: bool,
    },
}

pub fn manifest(bytes: &[u8]) -> Manifest {
    if bytes.len() < 12 || bytes[..8] != *b"logmillM" {
        return Manifest::Corrupt;
    }
    if u32_at(bytes, 8) != 1 {
        return Manifest::OtherVersion;
    }
    if bytes.len() != 44 || u32_at(bytes, 40) != crc32fast::hash(&bytes[..40]) {
        return Manifest::Corrupt;
    }
    let stripes = u32_at(bytes, 12);
    let segment_size = u64_at(bytes, 16);
    let is_size = (16 << 10..=1 << 30).contains(&segment_size) && segment_size.is_multiple_of(4096);
    if !(1..=64).contains(&stripes) || !is_size {
        return Manifest::Corrupt;
    }
    Manifest::Of {
        stripes,
        segment_size,
        is_in_tree: u64_at(bytes, 32) != 0,
    }
}

/// Recomputes the check of a MANIFEST, if it has the right length.
pub fn mend_manifest(bytes: &mut [u8]) {
    if bytes.len() == 44 {
        let check = crc32fast::hash(&bytes[..40]);
        put(bytes, 40, &check.to_le_bytes());
    }
}

/// The fields that the headers of a segment and of its ack file share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub base: u64,
    pub segment_size: u64,
    pub created_at: u64,
    pub salt: u64,
}

pub fn identity(magic: [u8; 8], file: &[u8]) -> Option<Identity> {
    let is_valid = file.len() >= FILE_HEADER
        && file[..8] == magic
        && u32_at(file, 8) == 1
        && u32_at(file, 12) == header_check(file);
    is_valid.then(|| Identity {
        base: u64_at(file, 16),
        segment_size: u64_at(file, 24),
        created_at: u64_at(file, 32),
        salt: u64_at(file, 40),
    })
}

fn header_check(file: &[u8]) -> u32 {
    crc32fast::hash(&[&file[..12], &file[16..48]].concat())
}

/// Recomputes the check of a file's header.
pub fn mend_header(file: &mut [u8]) {
    if file.len() >= FILE_HEADER {
        let check = header_check(file);
        put(file, 12, &check.to_le_bytes());
    }
}

/// The length of the longest record that a queue with this segment size writes.
pub fn max_record(segment_size: usize) -> usize {
    ((segment_size - FILE_HEADER) / 4).min(16 << 20)
}

/// The place where the records of a segment end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    pub records: u32,
    pub units: u32,
}

impl End {
    /// The most records and units that fit this many bytes of a segment.
    pub fn of_bytes(len: usize) -> Self {
        Self {
            records: ((len - FILE_HEADER) / RECORD_HEADER) as u32,
            units: (len / UNIT) as u32,
        }
    }

    /// Whether this many records fit this many units, and these units a segment of this size.
    pub fn is_possible(&self, segment_size: usize) -> bool {
        let most = Self::of_bytes(segment_size).units;
        (FIRST..=most).contains(&self.units) && self.records <= (self.units - FIRST) / RECORD_UNITS
    }
}

/// The end of the records according to the seal, if a segment with this salt is sealed.
pub fn seal(file: &[u8], salt: u64) -> Option<End> {
    let end = End {
        records: u32_at(file, 48),
        units: u32_at(file, 52),
    };
    (end.units != 0 && u32_at(file, 56) == seal_check(file, salt)).then_some(end)
}

fn seal_check(file: &[u8], salt: u64) -> u32 {
    crc32fast::hash(&[&salt.to_le_bytes(), &file[48..56]].concat())
}

/// Recomputes the check of a seal, if there is a seal.
pub fn mend_seal(file: &mut [u8]) {
    if file.len() >= FILE_HEADER && u32_at(file, 52) != 0 {
        let check = seal_check(file, u64_at(file, 40));
        put(file, 56, &check.to_le_bytes());
    }
}
