//! The scan of a segment, in the second implementation of the format.

use logmill::Damage;

use super::{End, FIRST, RECORD_UNITS, Record, UNIT, u32_at, u64_at};

/// A region of units `[from, to)` without a valid record.
#[derive(Debug, PartialEq, Eq)]
pub struct Gap {
    pub from: u32,
    pub to: u32,
    /// The smallest ordinal that a record after the region can have.
    pub next: u32,
    /// `None`: a hole.
    pub damage: Option<Damage>,
}

/// What a scan finds in a segment.
#[derive(Debug)]
pub struct Scan {
    /// The ordinals of the jobs, and the units where they start.
    pub jobs: Vec<(u32, u32)>,
    /// The units where jobs and cancellations start.
    pub records: Vec<u32>,
    pub gaps: Vec<Gap>,
    /// The ordinals without a record, and those of cancellations.
    pub missing: Vec<u32>,
    pub end: End,
    /// The first record of a kind that is not defined.
    pub not_understood: Option<u32>,
}

/// Finds the records of a segment, of up to `max_record` bytes each. They end at `limit` in a
/// sealed segment, and at or before `limit` in an unsealed one, or in one that `was_sealed` and was
/// cut off since. Bytes of an earlier life of the file may stand from the unit `reused_from` on.
///
/// The ordinal of a record is at least that of the previous job plus one. It is more only if
/// records may have been lost between: at most as many as fit the pads and gaps since that job.
pub fn scan(
    file: &[u8],
    salt: u64,
    max_record: usize,
    limit: End,
    is_sealed: bool,
    was_sealed: bool,
    reused_from: u32,
) -> Scan {
    let zero = |unit: u32| u64_at(file, unit as usize * UNIT) == 0;
    let valid = |at: u32, next: u32, lost: u32| {
        let record = Record::at(file, at, limit.units)?;
        let is_counted = !record.has_ordinal() || record.index() < limit.records;
        let may_follow = is_counted && record.index() >= next && record.index() - next <= lost;
        let is_written = !record.has_ordinal() || record.bytes.len() <= max_record;
        (may_follow && is_written && record.is_valid(salt)).then_some(record)
    };
    // What is wrong with the batch of a valid record, if no record of the batch was taken before:
    // nothing, or others are missing, or damaged.
    let wrong = |record: &Record<'_>, at: u32| {
        let (mut last, mut at) = (*record, at);
        if was_sealed {
            return None;
        }
        if record.is_continued() {
            return Some(Damage::Incomplete);
        }
        while last.has_more() {
            at += last.units();
            match valid(at, last.index() + 1, 0).filter(Record::is_continued) {
                Some(next) => last = next,
                None if at >= limit.units || u32_at(file, at as usize * UNIT) == 0 => {
                    return Some(Damage::Incomplete);
                }
                None => return Some(Damage::Checksum),
            }
        }
        None
    };
    let mut in_batch = false;
    let mut scan = Scan {
        jobs: Vec::new(),
        records: Vec::new(),
        gaps: Vec::new(),
        missing: Vec::new(),
        end: End {
            records: 0,
            units: FIRST,
        },
        not_understood: None,
    };
    let mut lost = 0;
    while scan.end.units < limit.units {
        let (at, next) = (scan.end.units, scan.end.records);
        let record = valid(at, next, lost);
        if let Some(record) = record.filter(|record| in_batch || wrong(record, at).is_none()) {
            in_batch = record.has_more() && !was_sealed;
            scan.end.units += record.units();
            if !record.is_understood() {
                scan.not_understood.get_or_insert(at);
            }
            if !record.has_ordinal() {
                lost += record.units() / RECORD_UNITS;
            } else {
                scan.missing.extend(next..record.index());
                scan.records.push(at);
                match record.is_job() {
                    true => scan.jobs.push((record.index(), at)),
                    false => scan.missing.push(record.index()),
                }
                scan.end.records = record.index() + 1;
                lost = 0;
            }
            continue;
        }
        in_batch = false;
        let passed = |to: u32| lost + (to - at) / RECORD_UNITS;
        let found = (at + RECORD_UNITS..limit.units).find(|&to| {
            let record = valid(to, next, passed(to));
            !zero(to) && record.is_some_and(|record| wrong(&record, to).is_none())
        });
        let to = match found {
            Some(to) => to,
            None if is_sealed => limit.units,
            None => match (at..limit.units).rev().find(|&unit| !zero(unit)) {
                Some(last) if (last + 1).min(reused_from) > at => (last + 1)
                    .min(reused_from)
                    .max(at + RECORD_UNITS)
                    .min(limit.units),
                _ => break,
            },
        };
        scan.end.units = to;
        let is_zero = (at..to).all(zero);
        if is_zero && to - at < RECORD_UNITS {
            // The rest of a segment that is too short for a record.
            continue;
        }
        let damage = if let Some(damage) = record.and_then(|record| wrong(&record, at)) {
            Some(damage)
        } else if is_zero && !is_sealed {
            None
        } else if u32_at(file, at as usize * UNIT) == 0 {
            Some(Damage::Uncommitted)
        } else {
            Some(Damage::Checksum)
        };
        lost = passed(to);
        scan.gaps.push(Gap {
            from: at,
            to,
            next,
            damage,
        });
    }
    if is_sealed {
        scan.missing.extend(scan.end.records..limit.records);
        scan.end.records = limit.records;
    }
    scan
}
