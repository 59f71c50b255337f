//! Recovery: from the files that a crash left to segments that can be walked plainly.
//!
//! Each segment is decided on by itself, by this table (first row that applies):
//!
//! | # | segment header | ack header | records | decision |
//! |---|---|---|---|---|
//! | 1 | invalid | invalid | all bytes zero | `Nothing`: a crash while it was created; remove |
//! | 2 | invalid | invalid | any | `Quarantine`: whole, reported; remove |
//! | 3 | invalid | valid | - | mend the header from the ack file's copy, then as below |
//! | 4 | valid | - | sealed, file as long as the seal says | `Trust`: scanned when first claimed |
//! | 5 | valid | - | otherwise | `Scan` now |
//! | 6 | - | - | scanned, no record found, nothing damaged | `Nothing`; remove |
//!
//! A header is valid if it checks, its base is the file's name and stripe, and its segment size is
//! the manifest's. An ack file that is missing, short, or whose header does not match the
//! segment's is made anew: its segment's jobs are redelivered.
//!
//! A scan keeps each valid record. Where there is none it looks for the next, unit by unit, and
//! what lies between is quarantined (copied out, flushed, reported) unless it is all zero, then
//! covered by a pad; the ordinals that went missing are marked done. A recovered segment is never
//! appended to, so no stale byte and no stale ack can touch a new record.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ack::{self, AckFile, RECORDS_PER_WORD};
use super::header::{self, FileKind, Identity};
use super::record::{HEADER_UNITS, KIND_JOB, Meta, UNIT};
use super::segment::{self, Found, Maps, Paths, START, Segment};
use super::tail::Position;
use crate::mapped::MappedFile;
use crate::storage::{self, Context, StorageError};
use crate::{Sequence, Timestamp};

/// Why bytes were set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Damage {
    /// A record, or what looks like one, fails its check.
    Checksum,
    /// Bytes were written, but no length: the producer died before its enqueue returned, or the
    /// length was lost later.
    Uncommitted,
    /// Neither the segment's header nor the copy of it in the ack file is valid.
    Header,
    /// The file is shorter than its seal says.
    Truncated,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Damage::Checksum => "failed its check",
            Damage::Uncommitted => "was never committed",
            Damage::Header => "has no valid header",
            Damage::Truncated => "is cut off",
        })
    }
}

/// A region of a segment file that was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Quarantined {
    /// The segment file it was found in.
    pub path: PathBuf,
    /// Where it starts in that file, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub len: u64,
    /// What is wrong with it.
    pub damage: Damage,
    /// The copy in the `quarantine` directory; a text file beside it says the above. None where
    /// there were no bytes to copy.
    pub copy: Option<PathBuf>,
}

/// What opening a queue found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// Segments found with records in them, the dead letter log's included.
    pub segments: u64,
    /// Of these, segments trusted by their seal; each is checked when its first job is claimed.
    pub sealed: u64,
    /// Of these, segments scanned record by record.
    pub scanned: u64,
    /// Bytes read by scans.
    pub bytes_scanned: u64,
    /// Records found, done or not.
    pub records: u64,
    /// Jobs found that are not done.
    pub jobs: u64,
    /// Dead letters found.
    pub dead_letters: u64,
    /// Regions set aside because they failed their check.
    pub quarantined: Vec<Quarantined>,
    /// Places that a producer had reserved and written nothing to when its process died.
    pub holes: u64,
    /// Ack files made anew: the jobs of these segments are delivered again.
    pub ack_files_rebuilt: Vec<PathBuf>,
    /// Ack words that failed their check: up to 32 jobs each are delivered again.
    pub ack_words_reset: u64,
    /// Segment headers mended from the copy in the ack file.
    pub headers_mended: Vec<PathBuf>,
    /// Replays that a crash had interrupted after their job was written; the letters were
    /// removed, so that each replay made exactly one job.
    pub replays_settled: u64,
}

impl RecoveryReport {
    /// Whether nothing was damaged. Holes and settled replays are what a crash leaves, not damage.
    pub fn is_clean(&self) -> bool {
        self.quarantined.is_empty()
            && self.ack_files_rebuilt.is_empty()
            && self.ack_words_reset == 0
            && self.headers_mended.is_empty()
    }
}

/// How far opening a queue has come, for long scans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecoveryProgress {
    /// Segments looked at so far, in all stripes.
    pub segments: u64,
    /// Bytes read by scans so far.
    pub bytes_scanned: u64,
}

/// What recovery needs to know and where it reports.
pub(crate) struct Recovery<'a> {
    pub(crate) segment_size: u64,
    pub(crate) quarantine: &'a Path,
    pub(crate) report: RecoveryReport,
    pub(crate) progress: Option<&'a (dyn Fn(RecoveryProgress) + Send + Sync)>,
    pub(crate) segments_seen: u64,
}

/// The segments of one directory, oldest first.
pub(crate) struct RecoveredLog {
    pub(crate) segments: Vec<Arc<Segment>>,
    /// The base that the next segment may have.
    pub(crate) next_base: Sequence,
    /// Files that hold nothing. They go once a newer segment is durable: the highest name in the
    /// directory says which sequences were given out.
    pub(crate) leftovers: Vec<Paths>,
    /// The letters that jobs in the scanned segments are replays of, done jobs included. The
    /// letters are to be marked done, durably, before any of these segments is sealed or retired.
    pub(crate) replays: Vec<Sequence>,
}

impl Recovery<'_> {
    /// Recovers the segments in `dir`, whose sequences start at `origin`.
    pub(crate) fn recover_directory(
        &mut self,
        dir: &Path,
        origin: Sequence,
    ) -> Result<RecoveredLog, StorageError> {
        let mut log = RecoveredLog {
            segments: Vec::new(),
            next_base: origin,
            leftovers: Vec::new(),
            replays: Vec::new(),
        };
        let names = storage::list(dir)?;
        let bases = |suffix: &'static str| {
            names.iter().filter_map(move |name| {
                let base: u64 = name.strip_suffix(suffix)?.parse().ok()?;
                (name.len() == 24 && base <= Sequence::MAX_WITHIN_STRIPE).then_some(base)
            })
        };
        let capacity = segment::capacity_of(self.segment_size);
        for base in bases(".seg") {
            let base = origin.plus_wide(base);
            let paths = Paths::new(dir, base);
            match self.recover_segment(base, &paths, &mut log.replays)? {
                Some(segment) => log.segments.push(segment),
                None => log.leftovers.push(paths),
            }
            log.next_base = base.plus(capacity);
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
            let paths = Paths::new(dir, base);
            if !names.iter().any(|name| paths.segment.ends_with(name)) {
                log.next_base = log.next_base.max(base.plus(capacity));
                log.leftovers.push(paths);
            }
        }
        Ok(log)
    }

    /// Decides on one segment; None: it holds nothing (any more).
    fn recover_segment(
        &mut self,
        base: Sequence,
        paths: &Paths,
        replays: &mut Vec<Sequence>,
    ) -> Result<Option<Arc<Segment>>, StorageError> {
        let is_ours =
            |id: &Identity| id.base == base && id.segment_size == self.segment_size;
        let segment_header = read_header(&paths.segment)?;
        let ack_header = read_header(&paths.ack)?;
        let own = Identity::decode(FileKind::Segment, &segment_header).filter(is_ours);
        let copy = Identity::decode(FileKind::Ack, &ack_header).filter(is_ours);
        let file_len = storage::file_len(&paths.segment)?.min(self.segment_size);

        let Some(identity) = own.or(copy) else {
            // Rows 1 and 2.
            let bytes = fs::read(&paths.segment).context("read", &paths.segment)?;
            if bytes.iter().any(|&byte| byte != 0) {
                self.set_aside(base, &paths.segment, 0, &bytes, Damage::Header)?;
            }
            return Ok(None);
        };
        let units = (file_len as usize / UNIT) as u32;
        if units < START.units {
            // The ack file knows of a segment that is cut off within its header. A crash during
            // creation leaves this too, but then no byte was ever durable in either file.
            let bytes = fs::read(&paths.segment).context("read", &paths.segment)?;
            self.set_aside(base, &paths.segment, 0, &bytes, Damage::Truncated)?;
            return Ok(None);
        }
        let records = MappedFile::open(&paths.segment, u64::from(units) * UNIT as u64)?;
        if own.is_none() {
            // Row 3. The seal is not part of the copy and keeps its own check.
            for (word, chunk) in identity.encode(FileKind::Segment)[..header::SEAL_OFFSET]
                .as_chunks::<8>()
                .0
                .iter()
                .enumerate()
            {
                records.word64(8 * word).store(
                    u64::from_le_bytes(*chunk),
                    std::sync::atomic::Ordering::Relaxed,
                );
            }
        }
        let seal = header::decode_seal(identity.salt, &segment_header);
        let capacity = segment::capacity_of(self.segment_size);
        let ack_bytes = ack::file_bytes(capacity);
        let have_acks =
            copy == Some(identity) && storage::file_len(&paths.ack)? >= ack_bytes;
        let acks = if have_acks {
            AckFile::new(MappedFile::open(&paths.ack, ack_bytes)?, capacity)
        } else {
            storage::remove_file(&paths.ack)?;
            segment::create_ack_file(&paths.ack, &identity, capacity)?
        };
        let maps = Maps { records, acks };

        let trusted = seal.filter(|end| end.units <= units && end.index <= capacity);
        let found = match trusted {
            // Row 4.
            Some(end) => Found {
                end,
                sealed: true,
                unscanned: true,
            },
            // Row 5.
            None => {
                let scan = Scan::run(&maps, units, identity.salt);
                self.report.bytes_scanned += u64::from(units) * UNIT as u64;
                if scan.end.index == 0 && scan.regions.iter().all(|region| region.zero) {
                    // Row 6.
                    return Ok(None);
                }
                if let Some(seal) = seal {
                    let offset = u64::from(scan.end.units) * UNIT as u64;
                    self.report.quarantined.push(Quarantined {
                        path: paths.segment.clone(),
                        offset,
                        len: (u64::from(seal.units) * UNIT as u64).saturating_sub(offset),
                        damage: Damage::Truncated,
                        copy: None,
                    });
                }
                self.report.scanned += 1;
                replays.extend(&scan.replays);
                self.mend(base, paths, &maps, identity.salt, &scan)?;
                Found {
                    end: scan.end,
                    sealed: false,
                    unscanned: false,
                }
            }
        };
        if own.is_none() {
            self.report.headers_mended.push(paths.segment.clone());
        }
        if !have_acks {
            self.report.ack_files_rebuilt.push(paths.ack.clone());
        }
        self.report.segments += 1;
        self.report.sealed += u64::from(found.sealed);
        self.report.records += u64::from(found.end.index);
        self.report.ack_words_reset += check_acks(&maps.acks, found.end.index);
        Ok(Some(Segment::recover(identity, maps, paths.clone(), &found)))
    }

    /// Scans a sealed segment that was trusted so far, and mends what it finds.
    pub(crate) fn scan_sealed(
        &mut self,
        segment: &Segment,
        maps: &Maps,
    ) -> Result<(), StorageError> {
        let Some(end) = segment.closed() else {
            return Ok(());
        };
        let salt = segment.identity().salt;
        let mut scan = Scan::run(maps, end.units, salt);
        self.report.bytes_scanned += u64::from(end.units) * UNIT as u64;
        if scan.end.units < end.units {
            // All zero up to the end that the seal proves: those records are gone.
            scan.regions.push(Region {
                from: scan.end.units,
                to: end.units,
                index: scan.end.index,
                zero: false,
                uncommitted: false,
            });
        }
        if scan.end.index < end.index {
            scan.missing.push((scan.end.index, end.index));
        }
        self.mend(segment.base(), segment.paths(), maps, salt, &scan)
    }

    /// Sets the damaged regions of a scan aside and covers them.
    fn mend(
        &mut self,
        base: Sequence,
        paths: &Paths,
        maps: &Maps,
        salt: u64,
        scan: &Scan,
    ) -> Result<(), StorageError> {
        for region in &scan.regions {
            if region.zero {
                self.report.holes += 1;
            } else {
                let damage = if region.uncommitted {
                    Damage::Uncommitted
                } else {
                    Damage::Checksum
                };
                let bytes = maps.copy_out(region.from, region.to);
                let offset = u64::from(region.from) * UNIT as u64;
                self.set_aside(base, &paths.segment, offset, &bytes, damage)?;
            }
            maps.cover(region.from, region.to, region.index, salt);
        }
        for &(from, to) in &scan.missing {
            for index in from..to {
                maps.acks.set(index);
            }
        }
        Ok(())
    }

    /// Copies bytes into the quarantine directory, durably, with a text that says where they are
    /// from. The names depend on nothing else, so doing it twice leaves one copy.
    fn set_aside(
        &mut self,
        base: Sequence,
        path: &Path,
        offset: u64,
        bytes: &[u8],
        damage: Damage,
    ) -> Result<(), StorageError> {
        storage::create_directory(self.quarantine)?;
        let name = format!(
            "{:02}-{:020}-{offset}",
            base.stripe(),
            base.within_stripe()
        );
        let copy = self.quarantine.join(format!("{name}.bin"));
        let text = format!(
            "file: {}\noffset: {offset}\nlength: {}\nreason: {damage}\nfound: {} ns since the Unix epoch\n",
            path.display(),
            bytes.len(),
            Timestamp::now().as_nanos(),
        );
        for (path, content) in [
            (&copy, bytes),
            (&self.quarantine.join(format!("{name}.txt")), text.as_bytes()),
        ] {
            let mut file = fs::File::create(path).context("create", path)?;
            file.write_all(content).context("write", path)?;
            file.sync_all().context("flush", path)?;
        }
        storage::flush_directory(self.quarantine)?;
        tracing::warn!(
            path = %path.display(), offset, len = bytes.len(), %damage, copy = %copy.display(),
            "set damaged bytes aside"
        );
        self.report.quarantined.push(Quarantined {
            path: path.to_path_buf(),
            offset,
            len: bytes.len() as u64,
            damage,
            copy: Some(copy),
        });
        Ok(())
    }
}

/// The first bytes of a file, fewer if it is shorter, none if it does not exist.
fn read_header(path: &Path) -> Result<Vec<u8>, StorageError> {
    use std::io::Read;
    let mut bytes = Vec::with_capacity(header::HEADER_BYTES);
    match fs::File::open(path) {
        Ok(file) => file
            .take(header::HEADER_BYTES as u64)
            .read_to_end(&mut bytes)
            .context("read", path)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        Err(error) => return Err(StorageError::new("open", path, error)),
    };
    Ok(bytes)
}

/// Resets the ack words that fail their check and sets the bits past the last record. Returns how
/// many were reset.
fn check_acks(acks: &AckFile, records: u32) -> u64 {
    let mut reset = 0;
    for word in 0..ack::words_for(records) {
        let bits = acks.checked_bits(word);
        reset += u64::from(bits.is_none());
        let held = records - word * RECORDS_PER_WORD;
        let past = u32::MAX.checked_shl(held).unwrap_or(0);
        let wanted = bits.unwrap_or(0) | past;
        if bits != Some(wanted) {
            acks.store_bits(word, wanted);
        }
    }
    reset
}

/// What a walk over a segment found: valid records up to `end`, but for the regions and ordinals
/// listed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Scan {
    /// After the last valid record or region.
    pub(crate) end: Position,
    pub(crate) regions: Vec<Region>,
    /// Ordinals `[from, to)` without a record.
    pub(crate) missing: Vec<(u32, u32)>,
    /// The letters that jobs are replays of.
    pub(crate) replays: Vec<Sequence>,
}

/// Units that hold no valid record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) from: u32,
    pub(crate) to: u32,
    /// The ordinal that the next record has at least.
    pub(crate) index: u32,
    /// Nothing was ever written here.
    pub(crate) zero: bool,
    /// It starts with a zero length.
    pub(crate) uncommitted: bool,
}

impl Scan {
    /// Walks the units of a segment up to `limit`.
    pub(crate) fn run(maps: &Maps, limit: u32, salt: u64) -> Self {
        let mut scan = Self {
            end: START,
            regions: Vec::new(),
            missing: Vec::new(),
            replays: Vec::new(),
        };
        // Records that may have been lost since the last valid one: at most one for each
        // smallest record that fits the pads and regions passed since.
        let mut lost = 0;
        while scan.end.units + HEADER_UNITS <= limit {
            let at = scan.end.units;
            if let Some(units) = scan.take(maps, at, limit, salt, &mut lost) {
                scan.end.units += units;
                continue;
            }
            // Look for the next valid record. Nothing shorter than a header can be between.
            let mut candidate = at + HEADER_UNITS;
            let mut last_written = None;
            for units in at..candidate.min(limit) {
                if maps.unit(units) != 0 {
                    last_written = Some(units);
                }
            }
            let next = loop {
                if candidate + HEADER_UNITS > limit {
                    break None;
                }
                let word = maps.unit(candidate);
                if word != 0 {
                    // A record's first word holds its length and is never zero.
                    let reach = lost + (candidate - at) / HEADER_UNITS;
                    let is_next = maps
                        .valid_record(candidate, limit, salt)
                        .is_some_and(|record| scan.may_follow(record.header(), reach));
                    if is_next {
                        break Some(candidate);
                    }
                    last_written = Some(candidate);
                }
                candidate += 1;
            };
            let to = match (next, last_written) {
                (Some(next), _) => next,
                // Zeros up to the end: this is where the records end.
                (None, None) if (at..limit).all(|units| maps.unit(units) == 0) => break,
                (None, _) => {
                    let last = (at..limit).rev().find(|&units| maps.unit(units) != 0);
                    (last.map_or(at, |last| last + 1)).max((at + HEADER_UNITS).min(limit))
                }
            };
            scan.regions.push(Region {
                from: at,
                to,
                index: scan.end.index,
                zero: (at..to).all(|units| maps.unit(units) == 0),
                uncommitted: maps.unit(at) as u32 == 0,
            });
            lost += (to - at) / HEADER_UNITS;
            scan.end.units = to;
        }
        scan
    }

    /// Whether a record with this header can be the next, when up to `lost` were lost before it.
    fn may_follow(&self, header: &super::record::Header, lost: u32) -> bool {
        header.index >= self.end.index && header.index - self.end.index <= lost
    }

    /// Takes in the record at `at`, if there is a valid one that fits. Returns its units.
    fn take(
        &mut self,
        maps: &Maps,
        at: u32,
        limit: u32,
        salt: u64,
        lost: &mut u32,
    ) -> Option<u32> {
        let record = maps.valid_record(at, limit, salt)?;
        let header = record.header();
        if !self.may_follow(header, *lost) {
            return None;
        }
        let units = super::record::units_of(header.len as usize);
        if header.kind == KIND_JOB {
            if header.index > self.end.index {
                self.missing.push((self.end.index, header.index));
            }
            self.end.index = header.index + 1;
            self.replays.extend(Meta::decode(record.meta()).replay_of);
            *lost = 0;
        } else {
            *lost += units / HEADER_UNITS;
        }
        Some(units)
    }
}
