//! Entry points for the fuzz targets: they decode and scan the file formats in memory.
//!
//! Built only with `--cfg fuzzing`, and not part of the API.

#![allow(missing_docs)]

use std::time::Duration;

use super::scan::{RegionKind, Scan, ScanLimit};
use super::{Damage, Position, Records, START, Sequence, check_acks, count_crashes, header};
use crate::log::ack::AckFile;
use crate::log::header::{FileKind, Identity};
use crate::log::headers::{Headers, headers_of};
use crate::log::meta::{Elsewhere, FailureReason, MAX_META_BYTES, Meta};
use crate::storage::mapped::MappedFile;

/// The header of a segment or an ack file.
#[derive(Debug)]
pub struct Header {
    pub base: u64,
    pub segment_size: u64,
    pub created_at: u64,
    pub salt: u64,
    /// The header encoded again, without a seal.
    pub encoded: [u8; header::FILE_HEADER_BYTES],
}

pub fn header(is_ack: bool, bytes: &[u8]) -> Option<Header> {
    let kind = if is_ack {
        FileKind::Ack
    } else {
        FileKind::Segment
    };
    let identity = Identity::decode(kind, bytes)?;
    Some(Header {
        base: identity.base.get(),
        segment_size: identity.segment_size,
        created_at: identity.created_at.as_nanos(),
        salt: identity.salt,
        encoded: identity.encode(kind),
    })
}

/// Decodes a seal: the records and units of a sealed segment.
pub fn seal(salt: u64, bytes: &[u8]) -> Option<(u32, u32)> {
    header::decode_seal(salt, bytes).map(|end| (end.index, end.units))
}

/// What a scan found.
#[derive(Debug)]
pub struct Scanned {
    /// Where the records end, in records and units.
    pub end: (u32, u32),
    pub gaps: Vec<Gap>,
    /// Ordinals `[from, to)` without a record.
    pub missing: Vec<(u32, u32)>,
    pub settles: Vec<u64>,
    /// What records settle elsewhere: the id of a log, and a sequence.
    pub settles_elsewhere: Vec<(u64, u64)>,
    /// The unit of the first record that only a later version understands.
    pub not_understood: Option<u32>,
    /// How many bytes were hashed.
    pub hashed: usize,
    /// The segment after the gaps were covered with pads.
    pub covered: Vec<u8>,
    /// The segment after that, with the header of each record decoded and encoded again.
    pub rewritten: Vec<u8>,
    /// The jobs found by a walk from record to record after the gaps were covered: ordinals and
    /// units.
    pub jobs: Vec<(u32, u32)>,
    /// The unit at which that walk ends.
    pub walked_to: u32,
}

/// Units `[from, to)` that hold no valid record.
#[derive(Debug, PartialEq, Eq)]
pub struct Gap {
    pub from: u32,
    pub to: u32,
    pub next_index: u32,
    /// `None` for a hole.
    pub damage: Option<Damage>,
}

/// Scans a segment for records of up to `max_record` bytes. The segment uses at most `(index,
/// units)` records and units, or exactly that many if it `is_sealed`.
pub fn scan(
    segment: &[u8],
    salt: u64,
    max_record: usize,
    (index, units): (u32, u32),
    is_sealed: bool,
) -> Scanned {
    let mut records = Records {
        file: MappedFile::in_memory(segment),
    };
    let mut access = records.sole_access();
    let limit = Position { index, units };
    let limit = if is_sealed {
        ScanLimit::Exactly(limit)
    } else {
        ScanLimit::AtMost(limit)
    };
    let scan = Scan::run(access.raw(), limit, salt, max_record);
    for region in &scan.regions {
        access.cover(region.from, region.to, region.index, salt);
    }
    let covered = access.bytes().to_vec();
    let mut jobs = Vec::new();
    let mut at = START.units;
    while let Some(record) = access.raw().valid_record(at, scan.end.units, salt) {
        let header = *record.header();
        if header.is_job() {
            jobs.push((header.index, at));
        }
        let check = header.check(salt, record.content());
        let next = record.next();
        access.rewrite_header(at, &header, check);
        at = next;
    }
    let gaps = scan.regions.iter().map(|region| Gap {
        from: region.from,
        to: region.to,
        next_index: region.index,
        damage: match region.kind {
            RegionKind::Hole => None,
            RegionKind::Uncommitted => Some(Damage::Uncommitted),
            RegionKind::Incomplete => Some(Damage::Incomplete),
            RegionKind::Invalid => Some(Damage::Checksum),
        },
    });
    Scanned {
        end: (scan.end.index, scan.end.units),
        gaps: gaps.collect(),
        missing: scan.missing,
        not_understood: scan.not_understood,
        settles: scan.settles.into_iter().map(Sequence::get).collect(),
        settles_elsewhere: scan.settles_elsewhere.into_iter().map(named).collect(),
        hashed: scan.hashed,
        covered,
        rewritten: records.sole_access().bytes().to_vec(),
        jobs,
        walked_to: at,
    }
}

/// Decoded metadata.
#[derive(Debug, PartialEq, Eq)]
pub struct Fields {
    pub max_attempts: Option<Option<u8>>,
    pub delay: Option<Duration>,
    pub expires_at: Option<u64>,
    pub lease_timeout: Option<Duration>,
    pub settles: Option<u64>,
    pub settles_elsewhere: Option<(u64, u64)>,
    pub original: Option<u64>,
    pub prior_attempts: u32,
    pub prior_crashes: u32,
    pub first_failure: Option<u64>,
    pub last_failure: Option<u64>,
    pub reasons: Vec<FailureReason>,
    pub headers: Vec<(String, Vec<u8>)>,
}

/// Decodes metadata, and encodes it again.
///
/// Returns both.
pub fn meta(bytes: &[u8]) -> (Fields, Vec<u8>) {
    let meta = Meta::decode(bytes);
    let headers = headers_of(bytes);
    let encoded = meta.encode(headers, MAX_META_BYTES).to_vec();
    let fields = Fields {
        max_attempts: meta.options.max_attempts,
        delay: meta.options.delay,
        expires_at: meta.options.expires_at.map(|at| at.as_nanos()),
        lease_timeout: meta.options.lease_timeout,
        settles: meta.settles.map(Sequence::get),
        settles_elsewhere: meta.settles_elsewhere.map(named),
        original: meta.original.map(Sequence::get),
        prior_attempts: meta.prior_attempts,
        prior_crashes: meta.prior_crashes,
        first_failure: meta.first_failure.map(|at| at.as_nanos()),
        last_failure: meta.last_failure.map(|at| at.as_nanos()),
        reasons: meta.reasons,
        headers: Headers::of(headers)
            .map(|(key, value)| (key.to_owned(), value.to_vec()))
            .collect(),
    };
    (fields, encoded)
}

fn named(elsewhere: Elsewhere) -> (u64, u64) {
    (elsewhere.home, elsewhere.record.get())
}

/// What an ack file says about its records, and its content after the jobs were delivered and
/// acked.
#[derive(Debug)]
pub struct Acks {
    /// Whether each record is done; failed attempts, crashes, and whether a handler has it.
    pub found: Vec<(bool, (u8, u8, bool))>,
    /// How many words failed their check.
    pub reset: u64,
    /// The file after recovery has counted crashes, and each record that was not done was delivered
    /// and failed, then delivered again and acked.
    pub finished: Vec<u8>,
}

/// Reads the ack file of a segment that has room for `capacity` records and holds `records`.
pub fn acks(file: &[u8], salt: u64, capacity: u32, records: u32) -> Acks {
    let acks = AckFile::new(MappedFile::in_memory(file), capacity, salt);
    let reset = check_acks(&acks, records);
    let found = (0..records).map(|index| {
        let of_job = acks.deliveries(index);
        let of_job = (of_job.failed(), of_job.crashes(), of_job.is_running());
        (acks.is_done(index), of_job)
    });
    let found: Vec<_> = found.collect();
    count_crashes(&acks, records);
    for (index, (is_done, _)) in (0..).zip(&found) {
        if !is_done {
            acks.begin_delivery(index);
            acks.update_deliveries(index, |deliveries| deliveries.failed_once().ended());
            acks.begin_delivery(index);
            acks.set(index);
        }
    }
    let finished = Records { file: acks.file }.sole_access().bytes().to_vec();
    Acks {
        found,
        reset,
        finished,
    }
}
