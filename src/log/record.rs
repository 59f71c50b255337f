//! The record: the bytes of one job in a segment, and how they are checked.
//!
//! ```text
//! offset  size  field
//!      0     4  len          total bytes, header included; 0: not committed (stored last)
//!      4     4  check        of everything else, see [`Header::check`]
//!      8     4  index        ordinal within the segment
//!     12     1  kind         1 job, 2 pad, 3 cancellation; of a batch: 5 first, 13 another, 9 last
//!                            job
//!     13     1  name_len     bytes of the job's name; 0: it has none
//!     14     2  meta_len     bytes of metadata
//!     16     8  enqueued_at  nanoseconds since the Unix epoch
//!     24     8  due_at       nanoseconds since the Unix epoch; 0: at once
//!     32     -  name         in UTF-8
//!      -     -  metadata     see `meta.rs`
//!      -     -  payload
//! ```
//! All integers are little-endian; every record starts at a multiple of [`UNIT`] bytes.

use super::crc::Crc32;
use crate::Timestamp;

/// Records are placed in units of this many bytes, so that offsets fit 32 bits.
pub(crate) const UNIT: usize = 8;
/// Bytes of a record's header.
pub(crate) const RECORD_HEADER_BYTES: usize = 32;
/// Units of a record's header, and so of the smallest record.
pub(crate) const HEADER_UNITS: u32 = (RECORD_HEADER_BYTES / UNIT) as u32;

/// Where the length of the name is in the 8 bytes at offset 8.
pub(crate) const NAME_LEN_SHIFT: u32 = 40;
/// Where the length of the metadata is in the 8 bytes at offset 8.
pub(crate) const META_LEN_SHIFT: u32 = 48;

/// A job.
pub(crate) const KIND_JOB: u8 = 1;
/// A region without a record; recovery writes it over damage, so that later walks can step over it.
pub(crate) const KIND_PAD: u8 = 2;
/// A cancellation, in the dead letter log: it settles the job that it names, and is done itself
/// from the start.
pub(crate) const KIND_CANCELLATION: u8 = 3;
/// Set in the kind of a job that another job of its batch follows.
const MORE: u8 = 4;
/// Set in the kind of a job that follows another job of its batch.
const CONTINUED: u8 = 8;

/// The kind of a job in a batch.
#[inline]
pub(crate) fn kind_in_batch(is_first: bool, is_last: bool) -> u8 {
    KIND_JOB | if is_last { 0 } else { MORE } | if is_first { 0 } else { CONTINUED }
}

/// How many units a record of `len` bytes takes.
#[inline]
pub(crate) fn units_of(len: usize) -> u32 {
    // A record fits a segment, and a segment has at most 2^27 units.
    len.div_ceil(UNIT) as u32
}

/// The header's fields, as the words in which they are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) len: u32,
    pub(crate) index: u32,
    pub(crate) kind: u8,
    pub(crate) name_len: u8,
    pub(crate) meta_len: u16,
    pub(crate) enqueued_at: Timestamp,
    pub(crate) due_at: Timestamp,
}

impl Header {
    /// The 8 bytes at offset 8.
    #[inline]
    pub(crate) fn identity_word(&self) -> u64 {
        u64::from(self.index)
            | u64::from(self.kind) << 32
            | u64::from(self.name_len) << NAME_LEN_SHIFT
            | u64::from(self.meta_len) << META_LEN_SHIFT
    }

    /// Rebuilds a header from its words.
    #[inline]
    pub(crate) fn from_words(len: u32, identity: u64, enqueued_at: u64, due_at: u64) -> Self {
        Self {
            len,
            index: identity as u32,
            kind: (identity >> 32) as u8,
            name_len: (identity >> NAME_LEN_SHIFT) as u8,
            meta_len: (identity >> META_LEN_SHIFT) as u16,
            enqueued_at: Timestamp::from_nanos(enqueued_at),
            due_at: Timestamp::from_nanos(due_at),
        }
    }

    /// Whether the fields can be those of a record with `room` bytes up to the segment's end.
    pub(crate) fn is_plausible(&self, room: usize) -> bool {
        let len = self.len as usize;
        len >= RECORD_HEADER_BYTES
            && len <= room
            && self.before_payload() <= len - RECORD_HEADER_BYTES
            && self.kind != 0
    }

    /// Whether this version knows what the record means, given that its check is right. A segment
    /// with another record is left to a later version, which must give a record another kind if
    /// this version would misread it. What may be ignored goes into a field of the metadata.
    pub(crate) fn is_understood(&self) -> bool {
        self.kind == KIND_PAD || self.has_ordinal()
    }

    /// Whether it has an ordinal of its own, and so a done bit: a pad has none.
    pub(crate) fn has_ordinal(&self) -> bool {
        self.is_job() || self.kind == KIND_CANCELLATION
    }

    #[inline]
    pub(crate) fn is_job(&self) -> bool {
        self.kind & !(MORE | CONTINUED) == KIND_JOB
    }

    /// Whether another record of its batch follows it.
    pub(crate) fn has_more(&self) -> bool {
        self.is_job() && self.kind & MORE != 0
    }

    /// Whether it follows another record of its batch.
    pub(crate) fn is_continued(&self) -> bool {
        self.is_job() && self.kind & CONTINUED != 0
    }

    /// Bytes between the header and the payload.
    #[inline]
    pub(crate) fn before_payload(&self) -> usize {
        usize::from(self.name_len) + usize::from(self.meta_len)
    }

    /// The check value of a record with this header.
    ///
    /// The header and the name are folded in word by word, by multiplication and shift, each step a
    /// bijection, rather than hashed as bytes. The header's words are in registers when a record is
    /// written, and reading them back from memory right after the store would stall; of a short
    /// name, a fold takes less time than a CRC. Metadata and payload are covered by a CRC-32 each.
    /// The salt, random in each segment, and the index make a stale or misplaced record fail.
    #[inline]
    pub(crate) fn check(&self, salt: u64, content: Content<'_>) -> u32 {
        // A pad covers arbitrary bytes, which its check does not include.
        match self.kind {
            KIND_PAD => self.check_over(salt, b"", 0),
            _ => self.check_over(salt, content.name, content.check(&Crc32::new())),
        }
    }

    /// The check value of a record with this header and this name, given the check of metadata and
    /// payload (0 for a pad).
    #[inline]
    pub(crate) fn check_over(&self, salt: u64, name: &[u8], content: u32) -> u32 {
        let header = [
            u64::from(self.len),
            self.identity_word(),
            self.enqueued_at.as_nanos(),
            self.due_at.as_nanos(),
        ];
        let fold = header.into_iter().fold(salt, fold_word);
        content ^ fold_name(fold, name) as u32
    }
}

#[inline]
fn fold_word(fold: u64, word: u64) -> u64 {
    // An odd constant (2^64 over the golden ratio): multiplication by it is a bijection.
    let fold = (fold ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    fold ^ fold >> 32
}

/// Folds a name in, 8 bytes at a time. The last word may overlap the one before, and the words of a
/// name of less than 8 bytes are made of bytes that may overlap; the header has its length.
#[inline]
fn fold_name(mut fold: u64, name: &[u8]) -> u64 {
    let half = |half: &[u8; 4]| u64::from(u32::from_le_bytes(*half));
    if let Some(last) = name.last_chunk::<8>() {
        let whole = name.len() / 8;
        if let (1, Some(first)) = (whole, name.first_chunk::<8>()) {
            fold = fold_word(fold, u64::from_le_bytes(*first));
        } else {
            for word in name.as_chunks::<8>().0 {
                fold = fold_word(fold, u64::from_le_bytes(*word));
            }
        }
        match name.len().is_multiple_of(8) {
            true => fold,
            false => fold_word(fold, u64::from_le_bytes(*last)),
        }
    } else if let (Some(first), Some(last)) = (name.first_chunk::<4>(), name.last_chunk::<4>()) {
        fold_word(fold, half(first) | half(last) << 32)
    } else if let (Some(&first), Some(&last)) = (name.first(), name.last()) {
        let middle = u64::from(name[name.len() / 2]);
        fold_word(fold, u64::from(first) | middle << 8 | u64::from(last) << 16)
    } else {
        fold
    }
}

/// What follows a record's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Content<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) meta: &'a [u8],
    pub(crate) payload: &'a [u8],
}

impl Content<'_> {
    /// The check of metadata and payload.
    // A plain job is known to have no metadata where this is inlined.
    #[inline(always)]
    pub(crate) fn check(&self, crc: &Crc32) -> u32 {
        let payload = crc.of(self.payload);
        match self.meta.is_empty() {
            true => payload,
            false => joined_check(crc.of(self.meta), payload),
        }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.name.len() + self.meta.len() + self.payload.len()
    }
}

/// The check of metadata and payload with these CRC-32s; that of no bytes is 0.
///
/// Neither of the two has to be copied to be beside the other.
#[inline]
pub(crate) fn joined_check(meta: u32, payload: u32) -> u32 {
    // Multiplication by an odd constant is a bijection, and keeps the same change in both from
    // cancelling itself out.
    payload ^ meta.wrapping_mul(0x9e37_79b1)
}

/// A record to append.
#[derive(Clone, Copy)]
pub(crate) struct NewRecord<'a> {
    pub(crate) enqueued_at: Timestamp,
    pub(crate) due_at: Timestamp,
    /// At most 255 bytes of it.
    pub(crate) name: &'a [u8],
    pub(crate) meta: &'a [u8],
    pub(crate) payload: &'a [u8],
}

impl<'a> NewRecord<'a> {
    /// The same record with another payload.
    #[inline]
    pub(crate) fn with_payload(&self, payload: &'a [u8]) -> Self {
        Self { payload, ..*self }
    }

    #[inline]
    pub(crate) fn content(&self) -> Content<'a> {
        Content {
            name: self.name,
            meta: self.meta,
            payload: self.payload,
        }
    }

    /// Total bytes of the record.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        RECORD_HEADER_BYTES + self.content().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: Content<'_> = Content {
        name: b"",
        meta: b"",
        payload: b"hello",
    };

    fn header() -> Header {
        Header {
            len: 37,
            index: 7,
            kind: KIND_JOB,
            name_len: 0,
            meta_len: 0,
            enqueued_at: Timestamp::from_nanos(1_700_000_000_000_000_001),
            due_at: Timestamp::from_nanos(0),
        }
    }

    #[test]
    fn the_check_value_is_pinned() {
        assert_eq!(header().check(42, HELLO), 0xf85e_ea86);
        assert_eq!(header().identity_word(), 0x0000_0001_0000_0007);
        let content = Content {
            name: b"resize_image",
            meta: b"\x01\x01\x00\x03",
            ..HELLO
        };
        let header = Header {
            len: 53,
            name_len: 12,
            meta_len: 4,
            ..header()
        };
        assert_eq!(header.check(42, content), 0x26fb_ef42);
        assert_eq!(header.identity_word(), 0x0004_0c01_0000_0007);
    }

    #[test]
    fn every_flipped_bit_of_the_header_changes_the_check() {
        let good = header();
        let expected = good.check(42, HELLO);
        let words = [
            u64::from(good.len),
            good.identity_word(),
            good.enqueued_at.as_nanos(),
            0,
        ];
        for word in 0..4 {
            for bit in 0..64 {
                let mut flipped = words;
                flipped[word] ^= 1 << bit;
                let header =
                    Header::from_words(flipped[0] as u32, flipped[1], flipped[2], flipped[3]);
                if header == good {
                    // The bit is not part of the decoded header: it is in the upper half of `len`.
                    assert!(word == 0 && bit >= 32);
                    continue;
                }
                assert_ne!(header.check(42, HELLO), expected, "{word}/{bit}");
            }
        }
        assert_ne!(good.check(43, HELLO), expected);
    }

    #[test]
    fn every_flipped_bit_of_the_content_changes_the_check() {
        // Names of all lengths that are folded in differently.
        for name_len in 0..=40 {
            let good: Vec<u8> = (0..name_len + 9).collect();
            let header = Header {
                len: 32 + good.len() as u32,
                name_len,
                meta_len: 4,
                ..header()
            };
            let check_of = |bytes: &[u8]| {
                let (name, rest) = bytes.split_at(name_len.into());
                let (meta, payload) = rest.split_at(4);
                let content = Content {
                    name,
                    meta,
                    payload,
                };
                header.check(42, content)
            };
            for bit in 0..8 * good.len() {
                let mut flipped = good.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert_ne!(check_of(&flipped), check_of(&good), "{name_len}/{bit}");
            }
        }
    }
}
