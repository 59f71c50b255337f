//! A record and its metadata, in the second implementation of the format.

use super::{FIRST, RECORD_HEADER, UNIT, put, u32_at, u64_at};

const JOB: u8 = 1;
const PAD: u8 = 2;
const CANCELLATION: u8 = 3;
const FIRST_OF_BATCH: u8 = 5;
const LAST_OF_BATCH: u8 = 9;
const IN_BATCH: u8 = 13;
/// The tag of a header.
const HEADER: u8 = 128;

/// Bytes that may be a record: all of it is there, and its fields have possible values.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    pub bytes: &'a [u8],
}

impl<'a> Record<'a> {
    /// The record at `unit`, if it ends at or before the unit `end`.
    pub fn at(file: &'a [u8], unit: u32, end: u32) -> Option<Self> {
        let room = &file[unit as usize * UNIT..end as usize * UNIT];
        let len = u32_at(room.get(..RECORD_HEADER)?, 0) as usize;
        let bytes = room
            .get(..len)
            .filter(|bytes| bytes.len() >= RECORD_HEADER)?;
        let record = Self { bytes };
        let is_whole = RECORD_HEADER + record.name_len() + record.meta_len() <= len;
        (is_whole && bytes[12] != 0).then_some(record)
    }

    pub fn is_job(&self) -> bool {
        [JOB, FIRST_OF_BATCH, IN_BATCH, LAST_OF_BATCH].contains(&self.bytes[12])
    }

    /// Whether another job of its batch follows it.
    pub fn has_more(&self) -> bool {
        [FIRST_OF_BATCH, IN_BATCH].contains(&self.bytes[12])
    }

    /// Whether it follows another job of its batch.
    pub fn is_continued(&self) -> bool {
        [IN_BATCH, LAST_OF_BATCH].contains(&self.bytes[12])
    }

    /// Whether it is of a kind that is defined.
    pub fn is_understood(&self) -> bool {
        self.has_ordinal() || self.is_pad()
    }

    /// Whether it is a job or a cancellation.
    pub fn has_ordinal(&self) -> bool {
        self.is_job() || self.bytes[12] == CANCELLATION
    }

    pub fn units(&self) -> u32 {
        self.bytes.len().div_ceil(UNIT) as u32
    }

    pub fn index(&self) -> u32 {
        u32_at(self.bytes, 8)
    }

    pub fn is_pad(&self) -> bool {
        self.bytes[12] == PAD
    }

    fn name_len(&self) -> usize {
        usize::from(self.bytes[13])
    }

    fn meta_len(&self) -> usize {
        usize::from(u16::from_le_bytes([self.bytes[14], self.bytes[15]]))
    }

    pub fn due_at(&self) -> u64 {
        u64_at(self.bytes, 24)
    }

    pub fn name(&self) -> &'a [u8] {
        &self.bytes[RECORD_HEADER..][..self.name_len()]
    }

    pub fn meta(&self) -> &'a [u8] {
        &self.bytes[RECORD_HEADER + self.name_len()..][..self.meta_len()]
    }

    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[RECORD_HEADER + self.name_len() + self.meta_len()..]
    }

    pub fn is_valid(&self, salt: u64) -> bool {
        u32_at(self.bytes, 4) == self.check(salt)
    }

    fn check(&self, salt: u64) -> u32 {
        let mut words = vec![
            u64::from(u32_at(self.bytes, 0)),
            u64_at(self.bytes, 8),
            u64_at(self.bytes, 16),
            u64_at(self.bytes, 24),
        ];
        let mut content = 0;
        if !self.is_pad() {
            words.extend(words_of(self.name()));
            content = crc32fast::hash(self.payload());
            content ^= crc32fast::hash(self.meta()).wrapping_mul(0x9e37_79b1);
        }
        let mut fold = salt;
        for word in words {
            fold = (fold ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            fold ^= fold >> 32;
        }
        content ^ fold as u32
    }
}

/// The words of a name in the fold.
fn words_of(name: &[u8]) -> Vec<u64> {
    let word = |bytes: &[u8]| {
        let bytes = bytes.iter().rev();
        bytes.fold(0, |word, &byte| word << 8 | u64::from(byte))
    };
    let len = name.len();
    match len {
        0 => vec![],
        1..4 => vec![word(&[name[0], name[len / 2], name[len - 1]])],
        4..8 => vec![word(&name[..4]) | word(&name[len - 4..]) << 32],
        _ => {
            let mut words: Vec<_> = name.chunks_exact(8).map(word).collect();
            if !len.is_multiple_of(8) {
                words.push(word(&name[len - 8..]));
            }
            words
        }
    }
}

/// A check that [`mend_records`] does not recompute, so that an input can have valid and invalid
/// records.
pub const LEFT_WRONG: u32 = u32::MAX;

/// Recomputes the checks of the records of a segment. A possible record is looked for where the
/// previous one ends, and then every 8 bytes.
pub fn mend_records(file: &mut [u8], salt: u64) {
    let end = (file.len() / UNIT) as u32;
    let mut at = FIRST;
    while at < end {
        let Some(record) = Record::at(file, at, end) else {
            at += 1;
            continue;
        };
        let (check, units) = (record.check(salt), record.units());
        let stored = at as usize * UNIT + 4;
        if u32_at(file, stored) != LEFT_WRONG {
            put(file, stored, &check.to_le_bytes());
        }
        at += units;
    }
}

/// The content of the metadata.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Fields {
    /// 0: unlimited.
    pub max_attempts: Option<u8>,
    /// Nanoseconds, as are the next two.
    pub delay: Option<u64>,
    pub expires_at: Option<u64>,
    pub lease_timeout: Option<u64>,
    pub settles: Option<u64>,
    /// The id of a queue or state log, and a sequence in it.
    pub settles_elsewhere: Option<(u64, u64)>,
    pub original: Option<u64>,
    pub prior_attempts: u32,
    pub prior_crashes: u32,
    pub first_failure: Option<u64>,
    pub last_failure: Option<u64>,
    /// Attempt, time and text of each reason.
    pub reasons: Vec<(u32, u64, String)>,
    pub headers: Vec<(String, Vec<u8>)>,
}

/// Decodes metadata. The first of several fields with one tag counts, but for the reasons; if that has the
/// wrong length, there is none.
pub fn fields(mut meta: &[u8]) -> Fields {
    let mut fields = Fields::default();
    let mut has_headers = false;
    let mut seen = Vec::new();
    while meta.len() >= 3 {
        let len = usize::from(u16::from_le_bytes([meta[1], meta[2]]));
        let Some(value) = meta[3..].get(..len) else {
            break;
        };
        let word = (len == 8).then(|| u64_at(value, 0));
        let count = if len == 4 { u32_at(value, 0) } else { 0 };
        has_headers |= meta[0] >= HEADER;
        match meta[0] {
            // The first header ends the other fields.
            HEADER.. => fields.headers.extend(header(meta[0], value)),
            _ if has_headers => {}
            tag if tag != 7 && seen.contains(&tag) => {}
            1 => fields.max_attempts = value.first().copied(),
            2 => fields.settles = word,
            12 => {
                fields.settles_elsewhere =
                    (len == 16).then(|| (u64_at(value, 0), u64_at(value, 8)));
            }
            9 => fields.delay = word,
            10 => fields.expires_at = word,
            11 => fields.lease_timeout = word,
            3 => fields.original = word,
            4 => fields.prior_attempts = count,
            8 => fields.prior_crashes = count,
            5 => fields.first_failure = word,
            6 => fields.last_failure = word,
            7 if len >= 12 => fields.reasons.push((
                u32_at(value, 0),
                u64_at(value, 4),
                String::from_utf8_lossy(&value[12..]).into_owned(),
            )),
            _ => {}
        }
        seen.push(meta[0]);
        meta = &meta[3 + len..];
    }
    fields
}

/// What a record of the state log is.
#[derive(Debug, PartialEq, Eq)]
pub enum StateEntry {
    /// A job for the queue with this id.
    Job(u64),
    Value(Vec<u8>),
    Removal(Vec<u8>),
    Completion,
    Unknown,
}

/// Decides what a record of the state log is by the first field of each tag.
pub fn state_entry(meta: &[u8]) -> StateEntry {
    let first = |tag: u8| {
        let mut rest = meta;
        // The first header ends the other fields.
        while rest.len() >= 3 && rest[0] < HEADER {
            let len = usize::from(u16::from_le_bytes([rest[1], rest[2]]));
            let value = rest[3..].get(..len)?;
            if rest[0] == tag {
                return Some(value);
            }
            rest = &rest[3 + len..];
        }
        None
    };
    let key = first(14).map(<[u8]>::to_vec);
    match first(13) {
        Some(queue) if queue.len() == 8 => StateEntry::Job(u64_at(queue, 0)),
        _ => match key {
            Some(key) if first(15).is_some() => StateEntry::Removal(key),
            Some(key) => StateEntry::Value(key),
            None if fields(meta).settles_elsewhere.is_some() => StateEntry::Completion,
            None => StateEntry::Unknown,
        },
    }
}

/// The key and the value of a header.
fn header(tag: u8, field: &[u8]) -> Option<(String, Vec<u8>)> {
    let (&len, rest) = field.split_first()?;
    let key = rest.get(..usize::from(len))?;
    let key = std::str::from_utf8(key).ok()?;
    (tag == HEADER).then(|| (key.to_owned(), rest[usize::from(len)..].to_vec()))
}
