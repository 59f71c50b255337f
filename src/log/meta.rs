//! The metadata of a record, between the job's name and its payload: what the engine notes about the
//! job, and the headers that its producer gave it.
//!
//! Metadata is a list of fields: a tag of 1 byte, the length of the value in 2 bytes, the value.
//! The headers come last, each in a field of its own. So one byte tells whether there are other
//! fields, and a record that is written anew takes the headers over as they are.

use std::time::{Duration, SystemTime};

use smallvec::SmallVec;

use crate::time::nanos;
use crate::{Sequence, Timestamp};

/// Most bytes of metadata a record can have: its length is a u16.
pub(crate) const MAX_META_BYTES: usize = u16::MAX as usize;
/// The tag of a header. Lower tags are the engine's.
pub(super) const TAG_HEADER: u8 = 128;
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

/// What the producer of a job asked for, as far as it is stored with the job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct JobOptions {
    /// Attempts allowed for this job, if not the queue's default; `Some(None)` is unlimited.
    pub(crate) max_attempts: Option<Option<u8>>,
    /// Longest time that the job waits for its due time, whatever the wall clock does. None: it is
    /// due at that time by the wall clock.
    pub(crate) delay: Option<Duration>,
    /// From this time on, the job is not delivered.
    pub(crate) expires_at: Option<Timestamp>,
    /// How long a handler may have the job, if not as long as the queue's default.
    pub(crate) lease_timeout: Option<Duration>,
}

/// A record in a log outside of the queue: of another queue, or of the state log, in the same
/// directory of queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Elsewhere {
    /// The id of the queue, or of the state log.
    pub(crate) home: u64,
    pub(crate) record: Sequence,
}

impl Elsewhere {
    fn encode(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.home.to_le_bytes());
        bytes[8..].copy_from_slice(&self.record.get().to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (home, record) = bytes.split_first_chunk::<8>()?;
        let record = record.try_into().ok()?;
        Some(Self {
            home: u64::from_le_bytes(*home),
            record: Sequence::new(u64::from_le_bytes(record)),
        })
    }
}

/// The metadata fields of a record, decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) options: JobOptions,
    /// The record that this one settles: a letter names its job, a replayed job its letter, a moved
    /// job its old record.
    pub(crate) settles: Option<Sequence>,
    /// The record elsewhere that this one settles: a transaction names the job that it completes,
    /// and a job the record of the transaction that it was enqueued by.
    pub(crate) settles_elsewhere: Option<Elsewhere>,
    /// The sequence the job was first enqueued under (a letter's, or a compacted job's).
    pub(crate) original: Option<Sequence>,
    /// Failed attempts before this record was written.
    pub(crate) prior_attempts: u32,
    /// How often the process had died while a handler had the job, before this record was written.
    pub(crate) prior_crashes: u32,
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
const TAG_EXPIRES_AT: u8 = 10;
const TAG_LEASE_TIMEOUT: u8 = 11;
const TAG_SETTLES_ELSEWHERE: u8 = 12;
/// In the state log: the record is a job for the queue with this id.
pub(crate) const TAG_QUEUE: u8 = 13;
/// In the state log: the record holds the value of this key.
pub(crate) const TAG_KEY: u8 = 14;
/// In the state log: the key is removed.
pub(crate) const TAG_REMOVED: u8 = 15;

/// Bytes of a field before its value.
const FIELD_HEADER_BYTES: usize = 3;

impl Meta {
    /// The encoded fields, and then the headers, which are encoded already. Reasons that would not
    /// fit `limit` bytes are left out, oldest first.
    pub(crate) fn encode(&self, headers: &[u8], limit: usize) -> MetaBytes {
        let mut bytes = MetaBytes::new();
        put_options(&mut bytes, &self.options);
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
        if let Some(elsewhere) = self.settles_elsewhere {
            put(&mut bytes, TAG_SETTLES_ELSEWHERE, &elsewhere.encode());
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
        let mut room = limit.saturating_sub(bytes.len() + headers.len());
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
        bytes.extend_from_slice(headers);
        bytes
    }

    /// Decodes the fields that [`encode`](Self::encode) wrote, up to the headers. Unknown tags are
    /// skipped, so that a later minor version may add fields; a field that is cut short ends the
    /// list. Of several fields with one tag the first counts, but for the reasons.
    pub(crate) fn decode(bytes: &[u8]) -> Self {
        let mut meta = Self::default();
        let mut seen = 0_u128;
        for (tag, value) in Fields(bytes) {
            if tag >= TAG_HEADER {
                break;
            }
            let bit = 1 << tag;
            if seen & bit != 0 && tag != TAG_REASON {
                continue;
            }
            seen |= bit;
            let word = value.try_into().ok().map(u64::from_le_bytes);
            let count = value.try_into().map_or(0, u32::from_le_bytes);
            match tag {
                TAG_MAX_ATTEMPTS => {
                    meta.options.max_attempts = value
                        .first()
                        .map(|&max| if max == 0 { None } else { Some(max) });
                }
                TAG_SETTLES => meta.settles = word.map(Sequence::new),
                TAG_SETTLES_ELSEWHERE => meta.settles_elsewhere = Elsewhere::decode(value),
                TAG_ORIGINAL => meta.original = word.map(Sequence::new),
                TAG_FIRST_FAILURE => meta.first_failure = word.map(Timestamp::from_nanos),
                TAG_LAST_FAILURE => meta.last_failure = word.map(Timestamp::from_nanos),
                TAG_PRIOR_ATTEMPTS => meta.prior_attempts = count,
                TAG_PRIOR_CRASHES => meta.prior_crashes = count,
                TAG_DELAY => meta.options.delay = word.map(Duration::from_nanos),
                TAG_EXPIRES_AT => meta.options.expires_at = word.map(Timestamp::from_nanos),
                TAG_LEASE_TIMEOUT => meta.options.lease_timeout = word.map(Duration::from_nanos),
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

/// Encoded metadata. Most jobs that have any need no allocation for it.
pub(crate) type MetaBytes = SmallVec<[u8; 64]>;

/// Appends the fields of a job's options.
pub(crate) fn put_options(bytes: &mut MetaBytes, options: &JobOptions) {
    if let Some(max) = options.max_attempts {
        put(bytes, TAG_MAX_ATTEMPTS, &[max.unwrap_or(0)]);
    }
    let words = [
        (TAG_DELAY, options.delay.map(nanos)),
        (TAG_EXPIRES_AT, options.expires_at.map(Timestamp::as_nanos)),
        (TAG_LEASE_TIMEOUT, options.lease_timeout.map(nanos)),
    ];
    for (tag, word) in words {
        if let Some(word) = word {
            put(bytes, tag, &word.to_le_bytes());
        }
    }
}

/// Whether metadata has anything but headers.
#[inline]
pub(crate) fn has_engine_fields(meta: &[u8]) -> bool {
    meta.first().is_some_and(|&tag| tag < TAG_HEADER)
}

/// The fields of encoded metadata, by tag. One that is cut short ends the list.
#[derive(Clone)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (u8, &'a [u8]);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let [tag, low, high, rest @ ..] = self.0 else {
            return None;
        };
        let len = usize::from(u16::from_le_bytes([*low, *high]));
        let (value, rest) = rest.split_at_checked(len)?;
        self.0 = rest;
        Some((*tag, value))
    }
}

/// The value of the engine's field with this tag, without decoding the others.
pub(crate) fn field(meta: &[u8], tag: u8) -> Option<&[u8]> {
    let mut engine = Fields(meta).take_while(|(tag, _)| *tag < TAG_HEADER);
    engine.find_map(|(found, value)| (found == tag).then_some(value))
}

/// The sequence that the job was first enqueued under, if it was moved since.
pub(crate) fn original_of(meta: &[u8]) -> Option<Sequence> {
    let word = field(meta, TAG_ORIGINAL)?.try_into().ok()?;
    Some(Sequence::new(u64::from_le_bytes(word)))
}

/// Failed attempts before the record was written.
pub(crate) fn prior_attempts_of(meta: &[u8]) -> u32 {
    count_in(meta, TAG_PRIOR_ATTEMPTS)
}

/// Crashes before the record was written.
pub(crate) fn prior_crashes_of(meta: &[u8]) -> u32 {
    count_in(meta, TAG_PRIOR_CRASHES)
}

fn count_in(meta: &[u8], tag: u8) -> u32 {
    let count = field(meta, tag).and_then(|count| count.try_into().ok());
    count.map_or(0, u32::from_le_bytes)
}

/// As [`JobOptions::max_attempts`].
pub(crate) fn max_attempts_of(meta: &[u8]) -> Option<Option<u8>> {
    let &max = field(meta, TAG_MAX_ATTEMPTS)?.first()?;
    Some((max > 0).then_some(max))
}

/// Whether the record settles another one.
pub(crate) fn settles_another(meta: &[u8]) -> bool {
    let has = |tag, len| field(meta, tag).is_some_and(|value| value.len() == len);
    has(TAG_SETTLES, 8) || has(TAG_SETTLES_ELSEWHERE, 16)
}

#[inline]
pub(crate) fn put(bytes: &mut MetaBytes, tag: u8, value: &[u8]) {
    let Ok(len) = u16::try_from(value.len()) else {
        return;
    };
    let [low, high] = len.to_le_bytes();
    bytes.extend_from_slice(&[tag, low, high]);
    bytes.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
        let decoded = Meta::decode(&meta.encode(&[], 400));
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
                options: JobOptions {
                    max_attempts: max,
                    delay: first.map(Duration::from_nanos),
                    expires_at: first.map(Timestamp::from_nanos),
                    lease_timeout: first.map(Duration::from_nanos),
                },
                settles: replay.map(Sequence::new),
                settles_elsewhere: replay.map(|record| Elsewhere {
                    home: u64::from(prior),
                    record: Sequence::new(record),
                }),
                original: replay.map(Sequence::new),
                prior_attempts: prior,
                prior_crashes: crashes,
                first_failure: first.map(Timestamp::from_nanos),
                last_failure: first.map(Timestamp::from_nanos),
                reasons: reasons
                    .into_iter()
                    .map(|(attempt, at, reason)| FailureReason {
                        attempt,
                        at: Timestamp::from_nanos(at).into(),
                        reason,
                    })
                    .collect(),
            };
            let encoded = meta.encode(&[], MAX_META_BYTES);
            prop_assert_eq!(original_of(&encoded), meta.original);
            prop_assert_eq!(prior_attempts_of(&encoded), meta.prior_attempts);
            prop_assert_eq!(prior_crashes_of(&encoded), meta.prior_crashes);
            prop_assert_eq!(max_attempts_of(&encoded), meta.options.max_attempts);
            prop_assert_eq!(settles_another(&encoded), meta.settles.is_some());
            prop_assert_eq!(Meta::decode(&encoded), meta);
        }

        #[test]
        fn whoever_reads_a_field_reads_the_same(
            fields in proptest::collection::vec(
                (prop_oneof![1u8..5, 7u8..9, 12u8..13, 128u8..129], prop_oneof![
                    proptest::collection::vec(any::<u8>(), 8),
                    proptest::collection::vec(any::<u8>(), 4),
                    proptest::collection::vec(any::<u8>(), 0..20),
                ]),
                0..6,
            ),
        ) {
            let mut encoded = MetaBytes::new();
            for (tag, value) in &fields {
                put(&mut encoded, *tag, value);
            }
            let meta = Meta::decode(&encoded);
            prop_assert_eq!(original_of(&encoded), meta.original);
            prop_assert_eq!(prior_attempts_of(&encoded), meta.prior_attempts);
            prop_assert_eq!(prior_crashes_of(&encoded), meta.prior_crashes);
            prop_assert_eq!(max_attempts_of(&encoded), meta.options.max_attempts);
            let settles = meta.settles.is_some() || meta.settles_elsewhere.is_some();
            prop_assert_eq!(settles_another(&encoded), settles);
        }

        #[test]
        fn decoding_arbitrary_metadata_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Meta::decode(&bytes);
        }
    }
}
