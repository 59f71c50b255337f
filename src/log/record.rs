//! The record: the bytes of one job in a segment, how they are checked, and the optional metadata
//! between header and payload.
//!
//! ```text
//! offset  size  field
//!      0     4  len          total bytes, header included; 0: not committed (stored last)
//!      4     4  check        CRC-32 of metadata and payload, xor a fold of salt and header
//!      8     4  index        ordinal within the segment
//!     12     1  kind         1 job, 2 pad
//!     13     1  flags        0
//!     14     2  meta_len     bytes of metadata
//!     16     8  enqueued_at  nanoseconds since the Unix epoch
//!     24     8  due_at       nanoseconds since the Unix epoch; 0: at once
//!     32     -  metadata     fields: tag u8, length u16, value
//!      -     -  payload
//! ```
//! All integers are little-endian; every record starts at a multiple of [`UNIT`] bytes.

use std::ops::Deref;
use std::time::{Duration, SystemTime};

use super::crc::Crc32;
use crate::time::nanos;
use crate::{Sequence, Timestamp};

/// Records are placed in units of this many bytes, so that offsets fit 32 bits.
pub(crate) const UNIT: usize = 8;
/// Bytes of a record's header.
pub(crate) const RECORD_HEADER_BYTES: usize = 32;
/// Units of a record's header, and so of the smallest record.
pub(crate) const HEADER_UNITS: u32 = (RECORD_HEADER_BYTES / UNIT) as u32;
/// Most bytes of metadata a record can have: its length is a u16.
pub(crate) const MAX_META_BYTES: usize = u16::MAX as usize;

/// Where the metadata length is in the 8 bytes at offset 8.
pub(crate) const META_LEN_SHIFT: u32 = 48;

/// A job.
pub(crate) const KIND_JOB: u8 = 1;
/// A region without a record; recovery writes it over damage, so that later walks can step over it.
pub(crate) const KIND_PAD: u8 = 2;

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
            | u64::from(self.meta_len) << META_LEN_SHIFT
    }

    /// Rebuilds a header from its words. Flags other than 0 fail the check.
    #[inline]
    pub(crate) fn from_words(len: u32, identity: u64, enqueued_at: u64, due_at: u64) -> Self {
        Self {
            len,
            index: identity as u32,
            kind: (identity >> 32) as u8,
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
            && usize::from(self.meta_len) <= len - RECORD_HEADER_BYTES
            && matches!(self.kind, KIND_JOB | KIND_PAD)
    }

    /// The check value of a record with this header.
    ///
    /// The header is folded in as four words by multiplication and shift, each step a bijection,
    /// rather than hashed as bytes: the words are in registers when a record is written, and
    /// reading them back from memory right after the store would stall. Metadata and payload are
    /// covered by the CRC-32 itself. The salt, random in each segment, and the index make a stale
    /// or misplaced record fail.
    #[inline]
    pub(crate) fn check(&self, salt: u64, meta: &[u8], payload: &[u8]) -> u32 {
        // A pad covers arbitrary bytes, which its check does not include.
        let content = match self.kind {
            KIND_PAD => 0,
            _ => content_check(&Crc32::new(), meta, payload),
        };
        self.check_over(salt, content)
    }

    /// The check value of a record with this header, given the CRC-32 of metadata and payload (0
    /// for a pad).
    #[inline]
    pub(crate) fn check_over(&self, salt: u64, content: u32) -> u32 {
        // An odd constant (2^64 over the golden ratio): multiplication by it is a bijection.
        const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut fold = salt;
        for word in [
            u64::from(self.len),
            self.identity_word(),
            self.enqueued_at.as_nanos(),
            self.due_at.as_nanos(),
        ] {
            fold = (fold ^ word).wrapping_mul(MULTIPLIER);
            fold ^= fold >> 32;
        }
        content ^ fold as u32
    }
}

/// The CRC-32 of metadata and payload.
#[inline]
pub(crate) fn content_check(crc: &Crc32, meta: &[u8], payload: &[u8]) -> u32 {
    if meta.is_empty() {
        crc.of(payload)
    } else {
        crc.of_both(meta, payload)
    }
}

/// The fields of a record to append.
#[derive(Clone, Copy)]
pub(crate) struct NewRecord<'a> {
    pub(crate) enqueued_at: Timestamp,
    pub(crate) due_at: Timestamp,
    pub(crate) meta: &'a [u8],
    pub(crate) payload: &'a [u8],
}

impl<'a> NewRecord<'a> {
    /// The same record with another payload.
    #[inline]
    pub(crate) fn with_payload(&self, payload: &'a [u8]) -> Self {
        Self { payload, ..*self }
    }

    /// Total bytes of the record.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        RECORD_HEADER_BYTES + self.meta.len() + self.payload.len()
    }
}

/// Why an attempt of a job failed, and when; from
/// [`DeadLetter::reasons`](crate::DeadLetter::reasons).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailureReason {
    /// The number of the attempt that failed, from 1.
    ///
    /// If the job died of [crashes](crate::RetryPolicy::max_crashes), this is the attempt that they
    /// cut short, which does not count as failed.
    pub attempt: u32,
    /// When it failed, accurate to the kernel's clock tick (1 to 10 ms).
    ///
    /// If the process died, this is when a later process came to deliver the job again.
    pub at: SystemTime,
    /// Why the attempt failed: the handler's error, the message of its panic, or another cause.
    ///
    /// Other causes are a lease that timed out, a [`Job`](crate::Job) that was dropped, and the
    /// death of the process.
    pub reason: String,
}

/// The metadata fields of a record, decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Attempts allowed for this job, if not the queue's default; `Some(None)` is unlimited.
    pub(crate) max_attempts: Option<Option<u8>>,
    /// The record that this one settles: a letter names its job, a replayed job its letter, a moved
    /// job its old record.
    pub(crate) settles: Option<Sequence>,
    /// The sequence the job was first enqueued under (a letter's, or a compacted job's).
    pub(crate) original: Option<Sequence>,
    /// Failed attempts before this record was written.
    pub(crate) prior_attempts: u32,
    /// How often the process had died while a handler had the job, before this record was written.
    pub(crate) prior_crashes: u32,
    /// Longest time that the job waits for its due time, whatever the wall clock does. None: it is
    /// due at that time by the wall clock.
    pub(crate) delay: Option<Duration>,
    /// When the job was first enqueued, if not when this record was.
    pub(crate) first_failure: Option<Timestamp>,
    pub(crate) last_failure: Option<Timestamp>,
    pub(crate) reasons: Vec<FailureReason>,
}

const TAG_MAX_ATTEMPTS: u8 = 1;
const TAG_SETTLES: u8 = 2;
const TAG_ORIGINAL: u8 = 3;
const TAG_PRIOR_ATTEMPTS: u8 = 4;
const TAG_FIRST_FAILURE: u8 = 5;
const TAG_LAST_FAILURE: u8 = 6;
const TAG_REASON: u8 = 7;
const TAG_PRIOR_CRASHES: u8 = 8;
const TAG_DELAY: u8 = 9;

/// Bytes of a field before its value.
const FIELD_HEADER_BYTES: usize = 3;

impl Meta {
    /// The encoded fields. Reasons that would not fit `limit` bytes are left out, oldest first.
    pub(crate) fn encode(&self, limit: usize) -> Vec<u8> {
        // Most records need no more.
        let mut bytes = Vec::with_capacity(64);
        bytes.extend_from_slice(&NewMeta::new(self.max_attempts, self.delay));
        let words = [
            (TAG_SETTLES, self.settles.map(Sequence::get)),
            (TAG_ORIGINAL, self.original.map(Sequence::get)),
            (
                TAG_FIRST_FAILURE,
                self.first_failure.map(Timestamp::as_nanos),
            ),
            (TAG_LAST_FAILURE, self.last_failure.map(Timestamp::as_nanos)),
        ];
        for (tag, word) in words {
            if let Some(word) = word {
                put(&mut bytes, tag, &word.to_le_bytes());
            }
        }
        let counts = [
            (TAG_PRIOR_ATTEMPTS, self.prior_attempts),
            (TAG_PRIOR_CRASHES, self.prior_crashes),
        ];
        for (tag, count) in counts {
            if count > 0 {
                put(&mut bytes, tag, &count.to_le_bytes());
            }
        }
        let limit = limit.min(MAX_META_BYTES);
        let mut room = limit.saturating_sub(bytes.len());
        let mut first = self.reasons.len();
        while first > 0 {
            let need = FIELD_HEADER_BYTES + 12 + self.reasons[first - 1].reason.len();
            if need > room {
                break;
            }
            room -= need;
            first -= 1;
        }
        for reason in &self.reasons[first..] {
            let mut value = Vec::with_capacity(12 + reason.reason.len());
            value.extend_from_slice(&reason.attempt.to_le_bytes());
            value.extend_from_slice(&Timestamp::from(reason.at).as_nanos().to_le_bytes());
            value.extend_from_slice(reason.reason.as_bytes());
            put(&mut bytes, TAG_REASON, &value);
        }
        bytes
    }

    /// Decodes what [`encode`](Self::encode) wrote. Unknown tags are skipped, so that a later
    /// minor version may add fields; a field that is cut short ends the list.
    pub(crate) fn decode(mut bytes: &[u8]) -> Self {
        let mut meta = Self::default();
        while let [tag, low, high, rest @ ..] = bytes {
            let len = usize::from(u16::from_le_bytes([*low, *high]));
            let Some((value, rest)) = rest.split_at_checked(len) else {
                break;
            };
            bytes = rest;
            let word = value.try_into().ok().map(u64::from_le_bytes);
            let count = value.try_into().map_or(0, u32::from_le_bytes);
            match *tag {
                TAG_MAX_ATTEMPTS => {
                    meta.max_attempts = value
                        .first()
                        .map(|&max| if max == 0 { None } else { Some(max) });
                }
                TAG_SETTLES => meta.settles = word.map(Sequence::new),
                TAG_ORIGINAL => meta.original = word.map(Sequence::new),
                TAG_FIRST_FAILURE => meta.first_failure = word.map(Timestamp::from_nanos),
                TAG_LAST_FAILURE => meta.last_failure = word.map(Timestamp::from_nanos),
                TAG_PRIOR_ATTEMPTS => meta.prior_attempts = count,
                TAG_PRIOR_CRASHES => meta.prior_crashes = count,
                TAG_DELAY => meta.delay = word.map(Duration::from_nanos),
                TAG_REASON => {
                    if let Some((attempt, rest)) = value.split_first_chunk::<4>()
                        && let Some((at, text)) = rest.split_first_chunk::<8>()
                    {
                        meta.reasons.push(FailureReason {
                            attempt: u32::from_le_bytes(*attempt),
                            at: Timestamp::from_nanos(u64::from_le_bytes(*at)).into(),
                            reason: String::from_utf8_lossy(text).into_owned(),
                        });
                    }
                }
                _ => {}
            }
        }
        meta
    }
}

/// The encoded metadata of a new job: the options of its producer. On the stack, because every
/// enqueue pays for it.
pub(crate) struct NewMeta {
    bytes: [u8; Self::MAX_BYTES],
    len: usize,
}

impl NewMeta {
    const MAX_BYTES: usize = 2 * FIELD_HEADER_BYTES + 1 + 8;

    pub(crate) fn new(max_attempts: Option<Option<u8>>, delay: Option<Duration>) -> Self {
        let mut meta = Self {
            bytes: [0; Self::MAX_BYTES],
            len: 0,
        };
        if let Some(max) = max_attempts {
            meta.put(TAG_MAX_ATTEMPTS, [max.unwrap_or(0)]);
        }
        if let Some(delay) = delay {
            meta.put(TAG_DELAY, nanos(delay).to_le_bytes());
        }
        meta
    }

    fn put<const LEN: usize>(&mut self, tag: u8, value: [u8; LEN]) {
        let [low, high] = (LEN as u16).to_le_bytes();
        let field = [tag, low, high].into_iter().chain(value);
        for (to, byte) in self.bytes[self.len..].iter_mut().zip(field) {
            *to = byte;
        }
        self.len += FIELD_HEADER_BYTES + LEN;
    }
}

impl Deref for NewMeta {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

fn put(bytes: &mut Vec<u8>, tag: u8, value: &[u8]) {
    let Ok(len) = u16::try_from(value.len()) else {
        return;
    };
    bytes.push(tag);
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> Header {
        Header {
            len: 37,
            index: 7,
            kind: KIND_JOB,
            meta_len: 0,
            enqueued_at: Timestamp::from_nanos(1_700_000_000_000_000_001),
            due_at: Timestamp::from_nanos(0),
        }
    }

    #[test]
    fn the_check_value_is_pinned() {
        assert_eq!(header().check(42, b"", b"hello"), 0xf85e_ea86);
        assert_eq!(header().identity_word(), 0x0000_0001_0000_0007);
    }

    #[test]
    fn every_flipped_bit_of_header_and_payload_changes_the_check() {
        let good = header();
        let expected = good.check(42, b"", b"hello");
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
                    // The bit is not part of the decoded header: it is in the upper half of `len`,
                    // or in the flags.
                    assert!(word == 0 && bit >= 32 || word == 1 && (40..48).contains(&bit));
                    continue;
                }
                assert_ne!(header.check(42, b"", b"hello"), expected, "{word}/{bit}");
            }
        }
        for bit in 0..40 {
            let mut payload = *b"hello";
            payload[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(good.check(42, b"", &payload), expected);
        }
        assert_ne!(good.check(43, b"", b"hello"), expected);
    }

    #[test]
    fn reasons_that_do_not_fit_are_left_out_oldest_first() {
        let reasons: Vec<_> = (1..=10)
            .map(|attempt| FailureReason {
                attempt,
                at: Timestamp::from_nanos(u64::from(attempt)).into(),
                reason: "x".repeat(100),
            })
            .collect();
        let meta = Meta {
            reasons: reasons.clone(),
            ..Meta::default()
        };
        let decoded = Meta::decode(&meta.encode(400));
        assert_eq!(decoded.reasons, reasons[7..]);
    }

    proptest! {
        #[test]
        fn metadata_decodes_to_what_was_encoded(
            max in proptest::option::of(proptest::option::of(1u8..)),
            replay in proptest::option::of(any::<u64>()),
            prior in any::<u32>(),
            crashes in any::<u32>(),
            first in proptest::option::of(any::<u64>()),
            reasons in proptest::collection::vec((any::<u32>(), any::<u64>(), ".{0,40}"), 0..5),
        ) {
            let meta = Meta {
                max_attempts: max,
                settles: replay.map(Sequence::new),
                original: replay.map(Sequence::new),
                prior_attempts: prior,
                prior_crashes: crashes,
                first_failure: first.map(Timestamp::from_nanos),
                last_failure: first.map(Timestamp::from_nanos),
                delay: first.map(Duration::from_nanos),
                reasons: reasons
                    .into_iter()
                    .map(|(attempt, at, reason)| FailureReason {
                        attempt,
                        at: Timestamp::from_nanos(at).into(),
                        reason,
                    })
                    .collect(),
            };
            prop_assert_eq!(Meta::decode(&meta.encode(MAX_META_BYTES)), meta);
        }

        #[test]
        fn decoding_arbitrary_metadata_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Meta::decode(&bytes);
        }
    }
}
