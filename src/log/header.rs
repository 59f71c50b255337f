//! The 64-byte header that a segment and its ack file both start with, and the seal.
//!
//! ```text
//! offset  size  field
//!      0     8  magic         "logmillS" (segment) or "logmillA" (ack file)
//!      8     4  version       1
//!     12     4  check         CRC-32 of the bytes 0..12 and 16..48
//!     16     8  base          sequence of the first record, stripe included
//!     24     8  segment size  bytes, as preallocated
//!     32     8  created at    nanoseconds since the Unix epoch
//!     40     8  salt          random; part of every record's check
//!     48     4  records       seal: records in the segment   (0 until sealed)
//!     52     4  used units    seal: where the records end, in 8-byte units
//!     56     4  seal check    seal: CRC-32 of the bytes 40..56
//!     60     4  0
//! ```
//! The ack file repeats the segment's identity, so that either header can replace the other. It has
//! no seal; at offset 48 it has the segment's mark, and at 56 up to where a segment with reused
//! files is durable, 8 bytes each, see `mark.rs`.

use super::mark::{Mark, reused};
use super::tail::Position;
use crate::{Sequence, Timestamp};

pub(crate) const FILE_HEADER_BYTES: usize = 64;
/// Offset of the seal; its three words are written once, in place.
pub(crate) const SEAL_OFFSET: usize = 48;
/// Offset of the mark in the header of an ack file.
pub(crate) const MARK_OFFSET: usize = 48;
/// Offset in the header of an ack file of how far a segment that reuses files is durable.
pub(crate) const REUSED_OFFSET: usize = 56;
/// Format version of segments, ack files and the manifest.
pub(crate) const VERSION: u32 = 1;

const SEGMENT_MAGIC: [u8; 8] = *b"logmillS";
const ACK_MAGIC: [u8; 8] = *b"logmillA";

/// Distinguishes a segment from every other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) base: Sequence,
    pub(crate) segment_size: u64,
    pub(crate) created_at: Timestamp,
    pub(crate) salt: u64,
}

/// Which of the two files a header belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    Segment,
    Ack,
}

impl FileKind {
    fn magic(self) -> [u8; 8] {
        match self {
            FileKind::Segment => SEGMENT_MAGIC,
            FileKind::Ack => ACK_MAGIC,
        }
    }
}

impl Identity {
    pub(crate) fn encode(&self, kind: FileKind) -> [u8; FILE_HEADER_BYTES] {
        let mut bytes = [0; FILE_HEADER_BYTES];
        bytes[0..8].copy_from_slice(&kind.magic());
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.base.get().to_le_bytes());
        bytes[24..32].copy_from_slice(&self.segment_size.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.created_at.as_nanos().to_le_bytes());
        bytes[40..48].copy_from_slice(&self.salt.to_le_bytes());
        let check = check(&bytes);
        bytes[12..16].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// None if the bytes are not a complete, valid header of that kind of file.
    pub(crate) fn decode(kind: FileKind, bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; FILE_HEADER_BYTES] = bytes.first_chunk()?;
        let valid = bytes[0..8] == kind.magic()
            && u32_at(bytes, 8) == VERSION
            && u32_at(bytes, 12) == check(bytes);
        valid.then(|| Self {
            base: Sequence::new(u64_at(bytes, 16)),
            segment_size: u64_at(bytes, 24),
            created_at: Timestamp::from_nanos(u64_at(bytes, 32)),
            salt: u64_at(bytes, 40),
        })
    }
}

/// Whether this may be the header of a segment of which some words are still zero. It is written
/// word by word, so a kill may leave it like that.
pub(crate) fn may_be_half_written(bytes: &[u8], base: Sequence, segment_size: u64) -> bool {
    let Some(bytes) = bytes.first_chunk() else {
        return false;
    };
    let is_zero_or = |offset, whole| [0, whole].contains(&u64_at(bytes, offset));
    is_zero_or(0, u64::from_le_bytes(SEGMENT_MAGIC))
        && (u64_at(bytes, 8) == 0 || u32_at(bytes, 8) == VERSION)
        && is_zero_or(16, base.get())
        && is_zero_or(24, segment_size)
        && bytes[SEAL_OFFSET..].iter().all(|&byte| byte == 0)
}

fn check(bytes: &[u8; FILE_HEADER_BYTES]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[0..12]);
    hasher.update(&bytes[16..48]);
    hasher.finalize()
}

/// The words at [`SEAL_OFFSET`] of a sealed segment: records and used units, and their check.
pub(crate) fn encode_seal(salt: u64, end: Position) -> (u64, u32) {
    let word = u64::from(end.index) | u64::from(end.units) << 32;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(&word.to_le_bytes());
    (word, hasher.finalize())
}

/// The end of the records that a header's seal proves, if the segment is sealed.
pub(crate) fn decode_seal(salt: u64, bytes: &[u8]) -> Option<Position> {
    let bytes: &[u8; FILE_HEADER_BYTES] = bytes.first_chunk()?;
    let end = Position {
        index: u32_at(bytes, SEAL_OFFSET),
        units: u32_at(bytes, SEAL_OFFSET + 4),
    };
    let (_, check) = encode_seal(salt, end);
    (end.units != 0 && check == u32_at(bytes, SEAL_OFFSET + 8)).then_some(end)
}

/// From where on bytes of an earlier life of the files may stand in a segment with this salt, from
/// the header of its ack file.
pub(crate) fn decode_reused(salt: u64, bytes: &[u8]) -> Option<u32> {
    let bytes: &[u8; FILE_HEADER_BYTES] = bytes.first_chunk()?;
    reused::decode(salt, u64_at(bytes, REUSED_OFFSET))
}

/// The mark of a segment with this salt, from the header of its ack file.
pub(crate) fn decode_mark(salt: u64, bytes: &[u8]) -> Option<Mark> {
    let bytes: &[u8; FILE_HEADER_BYTES] = bytes.first_chunk()?;
    Mark::decode(salt, u64_at(bytes, MARK_OFFSET))
}

fn u32_at(bytes: &[u8; FILE_HEADER_BYTES], offset: usize) -> u32 {
    bytes[offset..]
        .first_chunk()
        .map_or(0, |chunk| u32::from_le_bytes(*chunk))
}

fn u64_at(bytes: &[u8; FILE_HEADER_BYTES], offset: usize) -> u64 {
    bytes[offset..]
        .first_chunk()
        .map_or(0, |chunk| u64::from_le_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity {
            base: Sequence::new(0x0200_0000_0000_0040),
            segment_size: 16384,
            created_at: Timestamp::from_nanos(5),
            salt: 0x1122_3344_5566_7788,
        }
    }

    #[test]
    fn the_header_bytes_are_pinned() {
        let bytes = identity().encode(FileKind::Segment);
        let mut expected = b"logmillS\x01\0\0\0".to_vec();
        expected.extend_from_slice(&bytes[12..16]);
        expected.extend_from_slice(b"\x40\0\0\0\0\0\0\x02\0\x40\0\0\0\0\0\0\x05\0\0\0\0\0\0\0");
        expected.extend_from_slice(b"\x88\x77\x66\x55\x44\x33\x22\x11");
        expected.extend_from_slice(&[0; 16]);
        assert_eq!(bytes.as_slice(), expected);
        assert_eq!(u32_at(&bytes, 12), 0x3af1_2026);
    }

    #[test]
    fn a_flipped_bit_or_a_short_header_is_refused() {
        let good = identity().encode(FileKind::Ack);
        assert_eq!(Identity::decode(FileKind::Ack, &good), Some(identity()));
        assert_eq!(Identity::decode(FileKind::Segment, &good), None);
        assert_eq!(Identity::decode(FileKind::Ack, &good[..63]), None);
        for bit in 0..SEAL_OFFSET * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Identity::decode(FileKind::Ack, &bad), None, "bit {bit}");
        }
    }

    #[test]
    fn a_header_that_is_half_written_has_no_other_bytes() {
        let Identity {
            base, segment_size, ..
        } = identity();
        let is_one = |bytes: &[u8]| may_be_half_written(bytes, base, segment_size);
        let whole = identity().encode(FileKind::Segment);
        for kept in 0..=u8::MAX {
            let mut half = whole;
            for (word, bytes) in half.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                if kept & (1 << word) == 0 {
                    *bytes = [0; 8];
                }
            }
            assert!(is_one(&half), "{kept}");
        }
        assert!(!is_one(&whole[..63]));
        for bit in 0..FILE_HEADER_BYTES * 8 {
            let mut bad = whole;
            bad[bit / 8] ^= 1 << (bit % 8);
            // The check, the time and the salt may be anything.
            let is_free = (12..16).contains(&(bit / 8)) || (32..48).contains(&(bit / 8));
            let is_zero = u64_at(&bad, bit / 64 * 8) == 0;
            assert_eq!(is_one(&bad), is_free || is_zero, "bit {bit}");
        }
    }

    #[test]
    fn a_seal_is_bound_to_its_salt() {
        let end = Position {
            index: 3,
            units: 100,
        };
        let mut bytes = identity().encode(FileKind::Segment);
        assert_eq!(decode_seal(identity().salt, &bytes), None);
        let (word, check) = encode_seal(identity().salt, end);
        bytes[48..56].copy_from_slice(&word.to_le_bytes());
        bytes[56..60].copy_from_slice(&check.to_le_bytes());
        assert_eq!(decode_seal(identity().salt, &bytes), Some(end));
        assert_eq!(decode_seal(identity().salt ^ 1, &bytes), None);
    }
}
