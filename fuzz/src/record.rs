//! The target `record`: records, headers, metadata and acks as bytes in memory. Checks what the
//! library decodes, and encodes again, without files or threads.

use std::time::{Duration, UNIX_EPOCH};

use logmill::fuzzing;

use crate::format::{
    self, ACK_MAGIC, Acks, End, FILE_HEADER, FIRST, Fields, Gap, RECORD_UNITS, Record,
    SEGMENT_MAGIC, StateEntry, UNIT,
};
use crate::is_one_in;

// The flags in the first byte of an input.
/// The checks are recomputed, see `format.rs`.
const MEND: u8 = 1;
/// The bytes are those of an ack file.
const ACK: u8 = 2;

/// The longest valid record, in bytes.
const MAX_RECORD: usize = 1024;
/// The size of a segment, and of its longest record, that is large enough for quadratic hashing to
/// show.
const LARGE: usize = 64 * 1024;
/// The most bytes that a scan may hash for each place where a record can start: two blocks, see
/// `src/log/recovery/checksums.rs`, while it looks for a record, and the same bytes again when it
/// takes the record.
const MOST_HASHED: usize = 2 * 1024;

/// Tests the bytes of a segment or an ack file with its header, after a byte of flags.
pub fn record(bytes: &[u8]) {
    check(bytes, None);
    // This takes at least a hundred times as long, so it is done rarely.
    if is_one_in(256, bytes) {
        check(bytes, Some(LARGE));
    }
}

/// Checks the bytes; with a size, the records are repeated up to that size.
fn check(bytes: &[u8], size: Option<usize>) {
    let Some((&flags, bytes)) = bytes.split_first() else {
        return;
    };
    if bytes.len() < FILE_HEADER {
        return;
    }
    let mut file = bytes.to_vec();
    if flags & MEND != 0 {
        format::mend_header(&mut file);
    }
    check_header(false, &file);
    check_header(true, &file);
    if flags & ACK != 0 {
        check_acks(file, flags & MEND != 0);
        return;
    }
    check_meta(&file[FILE_HEADER..]);
    if let Some(size) = size {
        let records = file.split_off(FILE_HEADER);
        file.extend(records.into_iter().cycle().take(size - FILE_HEADER));
    }
    // The library reads only whole units of a segment file.
    file.truncate(file.len() / UNIT * UNIT);
    if flags & MEND != 0 {
        let salt = format::u64_at(&file, 40);
        format::mend_seal(&mut file);
        format::mend_records(&mut file, salt);
    }
    // Records may be as long as the segment, so that only the scan itself keeps the time linear.
    let max_record = if size.is_some() { LARGE } else { MAX_RECORD };
    check_segment(&file, max_record);
}

fn check_header(is_ack: bool, file: &[u8]) {
    let magic = if is_ack { ACK_MAGIC } else { SEGMENT_MAGIC };
    let expected = format::identity(magic, file);
    let found = fuzzing::header(is_ack, file);
    assert_eq!(found.is_some(), expected.is_some());
    if let (Some(found), Some(expected)) = (found, expected) {
        assert_eq!(found.base, expected.base);
        assert_eq!(found.segment_size, expected.segment_size);
        assert_eq!(found.created_at, expected.created_at);
        assert_eq!(found.salt, expected.salt);
        assert_eq!(found.encoded[..48], file[..48]);
    }
}

fn check_segment(file: &[u8], max_record: usize) {
    let salt = format::u64_at(file, 40);
    let most = End::of_bytes(file.len());
    let seal = format::seal(file, salt);
    let found = fuzzing::seal(salt, file);
    assert_eq!(found, seal.map(|end| (end.records, end.units)));
    let seal = seal.filter(|end| end.is_possible(file.len()));
    let is_sealed = seal.is_some();
    let end = seal.unwrap_or(most);

    let expected = format::scan(file, salt, max_record, end, is_sealed, is_sealed, u32::MAX);
    let found = fuzzing::scan(file, salt, max_record, (end.records, end.units), is_sealed);
    let is_gap = |(found, expected): (&fuzzing::Gap, &Gap)| {
        let places = [found.from, found.to, found.next_index];
        places == [expected.from, expected.to, expected.next] && found.damage == expected.damage
    };
    assert_eq!(found.end, (expected.end.records, expected.end.units));
    assert_eq!(found.gaps.len(), expected.gaps.len());
    assert!(
        found.gaps.iter().zip(&expected.gaps).all(is_gap),
        "{:?}",
        found.gaps
    );
    let missing = found.missing.iter().flat_map(|&(from, to)| from..to);
    assert!(missing.eq(expected.missing.iter().copied()));
    assert_eq!(found.jobs, expected.jobs);
    check_tiles(file, &found, end, is_sealed);

    let mut settles = Vec::new();
    let mut settles_elsewhere = Vec::new();
    for &unit in &expected.records {
        let record = Record::at(file, unit, end.units).expect("a scan finds records");
        let fields = check_meta(record.meta());
        settles.extend(fields.settles);
        settles_elsewhere.extend(fields.settles_elsewhere);
    }
    assert_eq!(found.settles, settles);
    assert_eq!(found.settles_elsewhere, settles_elsewhere);
    assert_eq!(found.not_understood, expected.not_understood);

    // Bytes without a record are covered and all others unchanged, and what was decoded from them
    // is encoded in the same way.
    assert!(found.covered == found.rewritten);
    // A second scan, of the segment as it is then sealed, finds the same.
    let again = fuzzing::scan(&found.covered, salt, max_record, found.end, true);
    assert_eq!(again.gaps, [], "{:?}", found.gaps);
    assert_eq!(again.jobs, found.jobs);
    assert_eq!(again.missing, found.missing);
}

/// Checks that records and gaps follow each other without space or overlap, that ordinals grow, and
/// that each ordinal below the end has a record or is missing.
fn check_tiles(file: &[u8], found: &fuzzing::Scanned, end: End, is_sealed: bool) {
    let salt = format::u64_at(file, 40);
    let mut gaps = found.gaps.iter().peekable();
    let mut jobs = found.jobs.iter().copied();
    let mut indexes = Vec::new();
    let mut at = FIRST;
    while at < found.end.1 {
        if let Some(gap) = gaps.next_if(|gap| gap.from == at) {
            assert!(gap.to > gap.from);
            let covered = Record::at(&found.covered, at, gap.to);
            let covered = covered.is_some_and(|pad| {
                pad.is_pad() && pad.is_valid(salt) && at + pad.units() == gap.to
            });
            assert!(covered || gap.to - gap.from < RECORD_UNITS);
            at = gap.to;
        } else if let Some(record) = Record::at(file, at, end.units).filter(|it| it.is_valid(salt))
        {
            if record.is_job() {
                indexes.push(record.index());
                assert_eq!(jobs.next(), Some((record.index(), at)));
            }
            at += record.units();
        } else {
            // The rest at the end is too short for a record.
            assert!(end.units - at < RECORD_UNITS);
            at = end.units;
        }
    }
    assert_eq!(at, found.end.1);
    assert!(gaps.next().is_none() && jobs.next().is_none());
    let mut rest = at..end.units;
    assert!(rest.all(|unit| format::u64_at(file, unit as usize * UNIT) == 0));
    if is_sealed {
        assert_eq!(found.end, (end.records, end.units));
    }
    assert!(indexes.is_sorted_by(|a, b| a < b));
    indexes.extend(found.missing.iter().flat_map(|&(from, to)| from..to));
    indexes.sort_unstable();
    assert!(indexes.into_iter().eq(0..found.end.0));
    assert!(found.end.0 <= (found.end.1 - FIRST) / RECORD_UNITS);
    let places = (end.units + found.end.1 / RECORD_UNITS) as usize;
    assert!(found.hashed <= file.len() + places * MOST_HASHED);
}

fn check_meta(bytes: &[u8]) -> Fields {
    let bytes = &bytes[..bytes.len().min(usize::from(u16::MAX))];
    let expected = format::fields(bytes);
    let (found, encoded) = fuzzing::meta(bytes);
    let max_attempts = found.max_attempts.map(|max| max.unwrap_or(0));
    assert_eq!(max_attempts, expected.max_attempts);
    let (delay, lease_timeout) = (expected.delay, expected.lease_timeout);
    assert_eq!(found.delay, delay.map(Duration::from_nanos));
    assert_eq!(found.expires_at, expected.expires_at);
    assert_eq!(found.lease_timeout, lease_timeout.map(Duration::from_nanos));
    assert_eq!(found.settles, expected.settles);
    assert_eq!(found.settles_elsewhere, expected.settles_elsewhere);
    check_state_entry(bytes);
    assert_eq!(found.original, expected.original);
    assert_eq!(found.prior_attempts, expected.prior_attempts);
    assert_eq!(found.prior_crashes, expected.prior_crashes);
    assert_eq!(found.first_failure, expected.first_failure);
    assert_eq!(found.last_failure, expected.last_failure);
    assert_eq!(found.headers, expected.headers);
    assert_eq!(found.reasons.len(), expected.reasons.len());
    for (found, (attempt, at, reason)) in found.reasons.iter().zip(&expected.reasons) {
        assert_eq!(found.attempt, *attempt);
        assert_eq!(found.at, UNIX_EPOCH + Duration::from_nanos(*at));
        assert_eq!(found.reason, *reason);
    }
    // Text that was not UTF-8 may have become too long when decoded; then the oldest reasons are
    // dropped.
    let mut again = fuzzing::meta(&encoded).0;
    let left_out = found.reasons.len() - again.reasons.len();
    let text: usize = found
        .reasons
        .iter()
        .map(|reason| 15 + reason.reason.len())
        .sum();
    assert!(left_out == 0 || text + bytes.len() + 64 > usize::from(u16::MAX));
    again
        .reasons
        .splice(..0, found.reasons[..left_out].iter().cloned());
    assert_eq!(again, found);
    expected
}

fn check_state_entry(meta: &[u8]) {
    let expected = match format::state_entry(meta) {
        StateEntry::Job(queue) => fuzzing::StateEntry::Job(queue),
        StateEntry::Value(key) => fuzzing::StateEntry::Value(key),
        StateEntry::Removal(key) => fuzzing::StateEntry::Removal(key),
        StateEntry::Completion => fuzzing::StateEntry::Completion,
        StateEntry::Unknown => fuzzing::StateEntry::Unknown,
    };
    assert_eq!(fuzzing::state_entry(meta), expected);
}

fn check_acks(file: Vec<u8>, is_mended: bool) {
    // The number of records for which the bytes have room.
    let capacity =
        (0..).take_while(|&capacity| Acks::<Vec<u8>>::file_bytes(capacity) <= file.len());
    let capacity = capacity.last().unwrap_or(0);
    let salt = format::u64_at(&file, 40);
    let mut acks = Acks {
        file,
        capacity,
        salt,
    };
    if is_mended {
        acks.mend();
    }
    // The number of records in the segment: that number or fewer.
    let records = format::u32_at(&acks.file, 48).min(capacity);
    let found = fuzzing::acks(&acks.file, salt, capacity, records);
    let expected = (0..records).map(|index| {
        let of_job = acks.deliveries(index);
        let of_job = (of_job.failed, of_job.crashes, of_job.is_running);
        (acks.is_done(index), of_job)
    });
    assert!(found.found.iter().copied().eq(expected));
    let words = (0..records).step_by(32);
    let reset = words.clone().filter(|&index| !acks.checks(index)).count();
    assert_eq!(found.reset, reset as u64);

    // The library treats the process as dead; then each job is delivered once more, fails, is
    // delivered again, and is acked.
    for (index, &(is_done, _)) in (0..).zip(&found.found) {
        if !is_done {
            let mut deliveries = acks.deliveries(index).after_a_crash();
            deliveries.failed = deliveries.failed.saturating_add(1);
            deliveries.is_running = true;
            acks.set_deliveries(index, deliveries);
        }
    }
    for index in words {
        acks.set_word(index, u32::MAX);
    }
    assert!(acks.file == found.finished);
}
