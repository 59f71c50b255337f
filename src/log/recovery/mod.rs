//! Recovery: turns the files that a crash left into segments whose records can be walked without
//! checks.
//!
//! Each segment is decided on separately, by this table (the first row that applies):
//!
//! | # | segment header | ack header | segment file | decision |
//! |---|---|---|---|---|
//! | 1 | invalid | invalid, or the segment file ends within its header | all bytes zero; beside an invalid ack header, also one with any words of a header | `Nothing`: a crash while it was created; remove |
//! | 2 | invalid | as above | any | `Quarantine`: whole, reported; remove |
//! | 3 | invalid | valid | - | mend the header from the ack file's copy, then as below |
//! | 4 | valid | - | sealed, as long as the seal says | `Trust`: scanned when first claimed |
//! | 5 | valid | - | shorter than the seal says, or without a seal than it was made | `Scan` now, reported as cut off |
//! | 6 | valid | - | scanned, no record found, nothing damaged | `Nothing`; remove |
//! | 7 | valid | - | any | `Scan` now |
//!
//! Rows 1 and 6 are reported if the segment's mark (see `mark.rs`) shows that something other than
//! this library lost it; so is an ack file without a segment, and row 5 without a seal. Row 5 with
//! a seal is always reported. A segment that is not a regular file is reported and left alone.
//!
//! A header is valid if its check matches, its base is the file's name and stripe, and its segment
//! size is the manifest's. An ack file that is missing, short, or whose header does not match the
//! segment's is rebuilt: its segment's jobs are redelivered. An ack file that cannot be read is an
//! error.
//!
//! A scan keeps each valid record. Where there is none it looks for the next one, unit by unit.
//! What lies between is quarantined (copied out, flushed, reported) unless it is all zero, then
//! covered by a pad; the missing ordinals are marked done. A recovered segment is never appended
//! to, so no stale byte and no stale ack can affect a new record.
//!
//! If the disk is too full for the quarantine, the segment is held back, unchanged, and mended when
//! it is first claimed from; consumers of the segments before it make room.

mod acks;
mod checksums;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod quarantine;
mod report;
pub(super) mod scan;
#[cfg(test)]
mod tests;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;

use self::acks::{check_acks, count_crashes};
pub use self::report::{Damage, Quarantined, RecoveryProgress, RecoveryReport, VerifyReport};
use self::scan::{Region, RegionKind, Scan, ScanLimit};
use super::header::{self, FileKind, Identity};
use super::mark::Mark;
use super::meta::Elsewhere;
use super::names::Names;
use super::record::{HEADER_UNITS, UNIT};
use super::segment::{self, Done, Found, Maps, Paths, START, Segment};
use super::tail::Position;
use crate::Sequence;
use crate::events::event;
use crate::log::pinned::Pinned;
use crate::log::raw::RawSegment;
use crate::log::records::{Mender, Records};
use crate::storage::mappings::{self, Purpose};
use crate::storage::{Directory, Entry, Kind, StorageError};

/// The inputs of recovery, and its report.
pub(crate) struct Recovery<'a> {
    pub(crate) segment_size: u64,
    /// The directory of the queue, which the quarantine directory is in.
    pub(crate) queue: &'a Directory,
    pub(crate) report: RecoveryReport,
    pub(crate) progress: Option<&'a (dyn Fn(RecoveryProgress) + Send + Sync)>,
    pub(crate) segments_seen: u64,
}

/// The segments of one directory, oldest first.
pub(crate) struct RecoveredLog {
    pub(crate) segments: Vec<Arc<Segment>>,
    /// The number of segment files, including those without contents.
    pub(crate) files: u64,
    /// The base that the next segment may have.
    pub(crate) next_base: Sequence,
    /// Files without contents.
    pub(crate) leftovers: Vec<Paths>,
    /// Files without contents that are mentioned in the report. They are removed before the open
    /// returns, so that the next one does not report them again.
    pub(crate) reported: Vec<Paths>,
    /// What records in the scanned segments settle, including records that are done. It must be
    /// marked done, durably, before any of these segments is sealed or retired, and after they were
    /// flushed.
    pub(crate) settles: Vec<Sequence>,
    /// What records in the scanned segments settle elsewhere, each with its segment.
    pub(crate) settles_elsewhere: Vec<(Elsewhere, Arc<Segment>)>,
    /// The segments with records that settle others.
    pub(crate) settling: Vec<Arc<Segment>>,
}

/// What the records of a segment settle.
#[derive(Default)]
struct Settles {
    here: Vec<Sequence>,
    elsewhere: Vec<Elsewhere>,
}

/// The contents of an ack file's header that concern its segment.
#[derive(Clone, Copy)]
struct Copy {
    identity: Identity,
    mark: Option<Mark>,
    /// From where on bytes of an earlier life of the files may stand.
    reused_from: Option<u32>,
}

impl Recovery<'_> {
    /// Like [`recover`](Self::recover), by the names that are in the directory.
    #[cfg(test)]
    pub(crate) fn recover_directory(
        &mut self,
        directory: &Arc<Names>,
        origin: Sequence,
    ) -> Result<RecoveredLog, StorageError> {
        let names = directory.directory().list()?;
        self.recover(directory, &names, origin)
    }

    /// Recovers the segments in a directory with these names, whose sequences start at `origin`.
    pub(crate) fn recover(
        &mut self,
        directory: &Arc<Names>,
        names: &[String],
        origin: Sequence,
    ) -> Result<RecoveredLog, StorageError> {
        let capacity = segment::capacity_of(self.segment_size);
        let mut log = RecoveredLog {
            segments: Vec::new(),
            files: count_segments(names, capacity),
            next_base: origin,
            leftovers: Vec::new(),
            reported: Vec::new(),
            settles: Vec::new(),
            settles_elsewhere: Vec::new(),
            settling: Vec::new(),
        };
        let bases = |suffix| {
            let names = names.iter();
            names.filter_map(move |name| base_of(name, suffix, capacity))
        };
        for base in bases(".seg") {
            let base = origin.plus_wide(base);
            let paths = Paths::new(directory, base);
            log.next_base = base.plus(capacity);
            let file_len = match paths.segment.kind()? {
                Some(Kind::File(len)) => len,
                // It is not touched, so each open reports it again.
                Some(Kind::Other) => {
                    self.report_lost(&paths.segment, Damage::Missing);
                    continue;
                }
                None => continue,
            };
            let damage = self.report.quarantined.len();
            let mut settles = Settles::default();
            match self.recover_segment(base, &paths, file_len, directory, &mut settles)? {
                Some(segment) => {
                    if !settles.here.is_empty() || !settles.elsewhere.is_empty() {
                        log.settling.push(Arc::clone(&segment));
                    }
                    log.settles.extend(settles.here);
                    let elsewhere = settles.elsewhere.into_iter();
                    let with_segment = elsewhere.map(|one| (one, Arc::clone(&segment)));
                    log.settles_elsewhere.extend(with_segment);
                    log.segments.push(segment);
                }
                None if self.report.quarantined.len() > damage => log.reported.push(paths),
                None => log.leftovers.push(paths),
            }
            self.segments_seen += 1;
            if let Some(progress) = self.progress {
                progress(RecoveryProgress {
                    segments: self.segments_seen,
                    bytes_scanned: self.report.bytes_scanned,
                });
            }
        }
        for base in bases(".ack") {
            let base = origin.plus_wide(base);
            let paths = Paths::new(directory, base);
            let segment = paths.segment.path().file_name();
            let is_alone = segment.and_then(OsStr::to_str).is_none_or(|name| {
                let found = names.binary_search_by(|other| other.as_str().cmp(name));
                found.is_err()
            });
            if is_alone && paths.ack.file_len()?.is_some() {
                log.next_base = log.next_base.max(base.plus(capacity));
                let header = paths.ack.read_start(header::FILE_HEADER_BYTES as u64)?;
                let copy = self.copy_of(base, &header.unwrap_or_default());
                if self.is_lost(&paths, copy)? {
                    self.report_lost(&paths.segment, Damage::Missing);
                    log.reported.push(paths);
                } else {
                    log.leftovers.push(paths);
                }
            }
        }
        Ok(log)
    }

    fn is_ours(&self, base: Sequence, identity: &Identity) -> bool {
        identity.base == base && identity.segment_size == self.segment_size
    }

    /// Decodes the header of an ack file.
    fn copy_of(&self, base: Sequence, header: &[u8]) -> Option<Copy> {
        let identity = Identity::decode(FileKind::Ack, header)?;
        self.is_ours(base, &identity).then(|| Copy {
            identity,
            mark: header::decode_mark(identity.salt, header),
            reused_from: header::decode_reused(identity.salt, header),
        })
    }

    /// Decides on one segment; None if it has no contents (any more).
    fn recover_segment(
        &mut self,
        base: Sequence,
        paths: &Paths,
        file_len: u64,
        directory: &Arc<Names>,
        settles: &mut Settles,
    ) -> Result<Option<Arc<Segment>>, StorageError> {
        let read = |entry: &Entry| entry.read_start(header::FILE_HEADER_BYTES as u64);
        let own_header = read(&paths.segment)?.unwrap_or_default();
        // An ack file that cannot be read is an error, unlike a missing one: it may hold the only
        // copy of the header, and the disk may work again next time.
        let copied_header = read(&paths.ack)?.unwrap_or_default();
        let own = Identity::decode(FileKind::Segment, &own_header);
        let own = own.filter(|identity| self.is_ours(base, identity));
        let copied = self.copy_of(base, &copied_header);
        let copy = copied.map(|copied| copied.identity);
        // This library writes nothing beyond the segment's size.
        let file_len = file_len.min(self.segment_size);
        let units = (file_len as usize / UNIT) as u32;

        let Some(identity) = own.or(copy.filter(|_| units >= START.units)) else {
            // Rows 1 and 2.
            if file_len > 0 {
                let mut records = Records::open(paths.segment.clone(), file_len, Purpose::Look)?;
                records.read_in()?;
                let access = records.sole_access();
                let is_half_written = copy.is_none()
                    && header::may_be_half_written(&own_header, base, self.segment_size);
                let begins = match is_half_written {
                    true => header::FILE_HEADER_BYTES,
                    false => 0,
                };
                if access.bytes().iter().skip(begins).any(|&byte| byte != 0) {
                    let damage = match copy {
                        Some(_) => Damage::Truncated,
                        None => Damage::Header,
                    };
                    let whole = [(0, access.bytes().len() as u64, damage)];
                    self.set_aside(base, &paths.segment, access.bytes(), &whole)?;
                    return Ok(None);
                }
            }
            if self.is_lost(paths, copied)? {
                self.report_lost(&paths.segment, Damage::Truncated);
            }
            return Ok(None);
        };
        let len = u64::from(units) * UNIT as u64;
        let mut records = Records::open(paths.segment.clone(), len, Purpose::Look)?;
        let capacity = segment::capacity_of(self.segment_size);
        let seal = seal_of(&identity, &own_header);
        let mut missing = Vec::new();
        let (end, sealed, unscanned) = match seal {
            // Row 4.
            Some(end) if end.units <= units => (end, true, true),
            // Rows 5 to 7.
            seal => {
                let limit = Position {
                    index: capacity,
                    units,
                };
                records.read_in()?;
                let mut access = records.sole_access();
                // A seal, though not the file, says that every batch was complete.
                let reused_from = copied
                    .filter(|copied| copied.identity == identity)
                    .and_then(|copied| copied.reused_from);
                let limit = match (seal, reused_from) {
                    (Some(_), _) => ScanLimit::CutOff(limit),
                    (None, Some(from)) => ScanLimit::Reused(limit, from),
                    (None, None) => ScanLimit::AtMost(limit),
                };
                let scan = self.scan(&paths.segment, access.raw(), limit, identity.salt)?;
                self.report.bytes_scanned += file_len;
                // Until it is sealed, a file has the length with which it was created.
                let len = seal.map_or(self.segment_size, |end| u64::from(end.units) * UNIT as u64);
                if file_len < len {
                    // A power cut may leave a file that was never flushed like this.
                    let mark = copied.and_then(|copied| copied.mark);
                    if seal.is_some() || matches!(mark, Some(Mark::Relied | Mark::Fresh)) {
                        let offset = u64::from(scan.end.units) * UNIT as u64;
                        self.report_cut(&paths.segment, offset, len);
                    }
                    if seal.is_none() {
                        // So that it is not reported again. A partial unit at the end holds no
                        // record.
                        let whole = u64::from(units) * UNIT as u64;
                        paths.segment.fits_file_size_limit(len)?;
                        paths.segment.truncate(whole)?;
                        paths.segment.truncate(len)?;
                    }
                }
                let is_hole = |region: &Region| region.kind == RegionKind::Hole;
                if scan.end.index == 0 && scan.regions.iter().all(is_hole) {
                    // Pads mean that what they cover has been reported.
                    if scan.end != START {
                        self.finish(paths, copied)?;
                    } else if file_len == len && self.is_lost(paths, copied)? {
                        self.report_lost(&paths.segment, Damage::Truncated);
                    }
                    return Ok(None);
                }
                self.report.scanned += 1;
                settles.here = scan.settles;
                settles.elsewhere = scan.settles_elsewhere;
                let unscanned = match self.mend(
                    base,
                    &paths.segment,
                    &mut access,
                    identity.salt,
                    &scan.regions,
                ) {
                    Ok(()) => {
                        missing = scan.missing;
                        false
                    }
                    Err(error) if error.is_full() => {
                        event!(error, %error, "a damaged segment is held back");
                        true
                    }
                    Err(error) => return Err(error),
                };
                (scan.end, false, unscanned)
            }
        };
        if !sealed {
            // For the seal.
            paths
                .segment
                .back_with_blocks(header::FILE_HEADER_BYTES as u64)?;
        }
        if own.is_none() {
            // Row 3. The seal is not part of the copy and has its own check.
            paths.segment.back_with_blocks(file_len)?;
            records.restore_header(&identity);
            let path = paths.segment.path().to_path_buf();
            self.report.headers_mended.push(path.clone());
            event!(warn, path = %path.display(), "mended a segment's header");
        }
        let copied = copied.filter(|copied| copied.identity == identity);
        let acks = self.open_acks(paths, &identity, copied, end.index)?;
        self.report.ack_words_reset += check_acks(&acks, end.index);
        for index in missing.into_iter().flat_map(|(from, to)| from..to) {
            acks.set(index);
        }
        if !unscanned {
            count_crashes(&acks, end.index);
        }
        self.report.segments += 1;
        self.report.sealed += u64::from(sealed);
        self.report.records += u64::from(end.index);
        let found = Found {
            end,
            sealed,
            unscanned,
            done: Done::count(&acks, end.index),
        };
        let maps = Maps { records, acks };
        let segment = Segment::recover(identity, maps, paths.clone(), directory, &found);
        if mappings::are_many() && !unscanned {
            segment.flush(false).map_err(|error| error.retold())?;
            segment.end_wait_use();
        }
        Ok(Some(segment))
    }

    /// Reports that a segment file does not reach to `end`, and has no records from `offset` on.
    fn report_cut(&mut self, entry: &Entry, offset: u64, end: u64) {
        self.report.quarantined.push(Quarantined {
            path: entry.path().to_path_buf(),
            offset,
            len: end.saturating_sub(offset),
            damage: Damage::Truncated,
            copy: None,
        });
    }

    /// Reports a directory that is missing, name and all.
    pub(crate) fn report_lost_directory(&mut self, path: PathBuf) {
        let shown = path.display().to_string();
        event!(warn, path = %shown, "made a directory anew that was lost");
        self.report.quarantined.push(Quarantined {
            path,
            offset: 0,
            len: 0,
            damage: Damage::Missing,
            copy: None,
        });
    }

    /// Reports a whole segment.
    fn report_lost(&mut self, entry: &Entry, damage: Damage) {
        self.report.quarantined.push(Quarantined {
            path: entry.path().to_path_buf(),
            offset: 0,
            len: self.segment_size,
            damage,
            copy: None,
        });
    }

    /// Whether a segment that is empty or missing was lost for a reason other than this library:
    /// its ack file says that a record of it was durable; or shows jobs that are not all done in
    /// files that no power cut can have affected since.
    fn is_lost(&self, paths: &Paths, copied: Option<Copy>) -> Result<bool, StorageError> {
        let identity = match copied {
            Some(Copy {
                mark: Some(Mark::Relied),
                ..
            }) => return Ok(true),
            Some(Copy {
                mark: Some(Mark::Fresh),
                identity,
                ..
            }) => identity,
            _ => return Ok(false),
        };
        let acks = self.ack_file(paths, identity)?;
        Ok(acks.is_some_and(|acks| acks.tells_of_jobs()))
    }

    /// Marks durably that nothing in a segment is needed, before its file is removed.
    fn finish(&self, paths: &Paths, copied: Option<Copy>) -> Result<(), StorageError> {
        match copied {
            Some(Copy { identity, .. }) => match self.ack_file(paths, identity)? {
                Some(acks) if acks.mark_finished() => acks.file.flush(),
                _ => Ok(()),
            },
            None => Ok(()),
        }
    }

    /// Scans a segment that is [unscanned](Segment::is_unscanned), and mends what it finds. Returns
    /// how many jobs that were not done are missing, and whether that made the segment complete.
    pub(crate) fn scan_later(
        &mut self,
        pinned: &Pinned,
        mender: &mut Mender,
    ) -> Result<(u64, bool), StorageError> {
        let segment = pinned.segment();
        let Some(end) = segment.closed() else {
            return Ok((0, false));
        };
        let limit = if segment.is_sealed() {
            ScanLimit::Exactly(end)
        } else {
            // Records of a batch that was not complete count as damage before the end, too.
            ScanLimit::AtMost(Position {
                index: segment::capacity_of(self.segment_size),
                ..end
            })
        };
        pinned.maps().records.read_in()?;
        let salt = segment.identity().salt;
        let mut access = pinned.sole_access(mender);
        let entry = &segment.paths().segment;
        let scan = self.scan(entry, access.raw(), limit, salt)?;
        self.report.bytes_scanned += u64::from(end.units) * UNIT as u64;
        self.mend(segment.base(), entry, &mut access, salt, &scan.regions)?;
        let (mut lost, mut complete) = (0, false);
        for index in scan.missing.into_iter().flat_map(|(from, to)| from..to) {
            if let Some(completes) = pinned.mark_done(index) {
                lost += 1;
                complete |= completes;
            }
        }
        count_crashes(&pinned.maps().acks, end.index);
        segment.deliveries_changed.note_end();
        Ok((lost, complete))
    }

    /// Scans a segment. A record that only a later version of this library understands is an error,
    /// and the segment stays as it is.
    fn scan(
        &self,
        entry: &Entry,
        records: RawSegment<'_>,
        limit: ScanLimit,
        salt: u64,
    ) -> Result<Scan, StorageError> {
        let max_record = super::max_record_bytes(self.segment_size);
        Scan::of_file(entry, records, limit, salt, max_record)
    }
}

/// The end of the records of a sealed segment, from its header.
pub(super) fn seal_of(identity: &Identity, header: &[u8]) -> Option<Position> {
    header::decode_seal(identity.salt, header).filter(|end| {
        let all_units = (identity.segment_size as usize / UNIT) as u32;
        (START.units..=all_units).contains(&end.units)
            && end.index <= (end.units - START.units) / HEADER_UNITS
    })
}

/// The base in a file's name, within its stripe. None for names that this library cannot have
/// given, including bases so high that their segment's sequences would leave the stripe.
pub(super) fn base_of(name: &str, suffix: &str, capacity: u32) -> Option<u64> {
    let digits = name.strip_suffix(suffix)?;
    if digits.len() != 20 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let base = digits.parse().ok()?;
    (base <= Sequence::MAX_WITHIN_STRIPE - u64::from(capacity)).then_some(base)
}

/// How many of the names in a log's directory are those of segments.
pub(crate) fn count_segments(names: &[String], capacity: u32) -> u64 {
    let bases = names
        .iter()
        .filter_map(|name| base_of(name, ".seg", capacity));
    bases.count() as u64
}
