//! Spare segments: the emptied files of a retired segment, from which the next one is made.
//!
//! For each 4 KiB that goes through the log, new files cost the kernel a page to find, zero, map
//! and account for. Reused files only cost the zeroing, of pages that are already mapped and mostly
//! in the cache.
//!
//! While a spare waits, its files have names of their own, which the next open removes. Everything
//! but its headers is zero before it gets its new names, and its new salt makes any old contents
//! that a power cut brings back fail every check. The zeros are not flushed: that would be as many
//! bytes again as the records. The header of the ack file says that the files are reused, and up to
//! where the records are durable, so that recovery does not take old contents for damage.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ack::{self, AckFile};
use super::header::Identity;
use super::names::Names;
use super::record::NewRecord;
use super::segment::{self, Maps, Paths, START, Segment};
use super::tail::Position;
use crate::events::event;
use crate::log::records::Records;
use crate::storage::mapped::MappedFile;
use crate::storage::{Entry, StorageError};
use crate::time;

const SEGMENT_SUFFIX: &str = "spare";
const ACK_SUFFIX: &str = "spare-ack";

/// How many segments a stripe should have, in use and in reserve: as many as it recently needed,
/// and one more. Files are created, and their space is freed, only when that number changes.
pub(super) struct Spares {
    wanted: usize,
    /// When the pool last needed to be as large as wanted.
    needed_at: Instant,
    /// Whether space is limited: another stripe may need whatever exceeds the smallest pool.
    limited: bool,
}

/// The segment appended to, the one before it, which is about to be complete, and the next one.
const SMALLEST_POOL: usize = 3;
/// How long a pool stays as large as it was needed.
const POOL_MEMORY: Duration = Duration::from_secs(1);

impl Spares {
    pub(super) fn new(limited: bool) -> Self {
        Self {
            wanted: SMALLEST_POOL,
            needed_at: time::now(),
            limited,
        }
    }

    pub(super) fn grow_to(&mut self, needed: usize) {
        let now = time::now();
        if needed >= self.wanted || now.duration_since(self.needed_at) > POOL_MEMORY {
            self.wanted = needed.max(SMALLEST_POOL);
            self.needed_at = now;
        }
    }

    /// How many segments there should be when this many are in use.
    pub(super) fn wanted(&self, in_use: usize) -> usize {
        if self.limited {
            SMALLEST_POOL
        } else if time::now().duration_since(self.needed_at) > POOL_MEMORY {
            SMALLEST_POOL.max(in_use + 1)
        } else {
            self.wanted
        }
    }

    /// When a pool of this size should be checked again.
    pub(super) fn look_again(&self, size: usize) -> Option<Duration> {
        (size > SMALLEST_POOL).then_some(POOL_MEMORY)
    }
}

/// The mapped files of a retired segment, all zero.
pub(super) struct Spare(Maps);

/// The names under which the files of a spare segment wait.
pub(super) fn waiting(paths: &Paths) -> Paths {
    Paths {
        segment: paths.segment.with_extension(SEGMENT_SUFFIX),
        ack: paths.segment.with_extension(ACK_SUFFIX),
    }
}

/// The files of spares that an earlier process left, by the names in a directory.
pub(super) fn left_in(directory: &Names, names: &[String]) -> Vec<Entry> {
    let is_spare = |name: &&String| {
        name.split_once('.').is_some_and(|(number, suffix)| {
            let is_number = number.len() == 20 && number.bytes().all(|byte| byte.is_ascii_digit());
            is_number && [SEGMENT_SUFFIX, ACK_SUFFIX].contains(&suffix)
        })
    };
    names
        .iter()
        .filter(is_spare)
        .map(|name| directory.entry(name))
        .collect()
}

impl Spare {
    /// Of files whose records are zeroed. Those ended at this position; their acks are zeroed here.
    pub(super) fn of_zeros(mut maps: Maps, end: Position) -> Self {
        maps.acks.zero_up_to(end.index);
        maps.acks.set_reused();
        Self(maps)
    }

    /// Creates the files of a spare. Their blocks are allocated, but not in the page cache. Leaves
    /// nothing behind on failure.
    pub(super) fn create(paths: &Paths, segment_size: u64) -> Result<Self, StorageError> {
        const COLD: u64 = 1;
        let capacity = segment::capacity_of(segment_size);
        let file = MappedFile::create(paths.segment.clone(), segment_size, COLD)?;
        let acks = MappedFile::create_small(paths.ack.clone(), ack::file_bytes(capacity), COLD)
            .inspect_err(|_| _ = paths.segment.remove())?;
        Ok(Self(Maps {
            records: Records { file },
            acks: AckFile::new(acks, capacity, 0),
        }))
    }

    /// Turns it into the segment of this identity. Leaves nothing behind on failure.
    pub(super) fn into_segment(
        self,
        names: &Arc<Names>,
        identity: Identity,
    ) -> Result<Arc<Segment>, StorageError> {
        self.into_named(names, identity, |maps, paths| {
            // The segment first, see `Segment::create`.
            maps.records.file.rename(&paths.segment)?;
            maps.acks.file.rename(&paths.ack)?;
            Ok(START)
        })
    }

    /// Turns it into the segment of this identity that begins with these records. After a crash it
    /// exists with all of them, or does not exist. Leaves nothing behind on failure.
    pub(super) fn into_segment_with(
        self,
        names: &Arc<Names>,
        identity: Identity,
        records: &[NewRecord<'_>],
    ) -> Result<Arc<Segment>, StorageError> {
        self.into_named(names, identity, |maps, paths| {
            let end = maps.write_records(identity.salt, records);
            for file in [&maps.records.file, &maps.acks.file] {
                file.flush()?;
            }
            // The ack file first: records without an ack file would count as a loss of acks.
            maps.acks.file.rename(&paths.ack)?;
            maps.records.file.rename(&paths.segment)?;
            Ok(end)
        })
    }

    fn into_named(
        mut self,
        names: &Arc<Names>,
        identity: Identity,
        name: impl FnOnce(&mut Maps, &Paths) -> Result<Position, StorageError>,
    ) -> Result<Arc<Segment>, StorageError> {
        let paths = Paths::new(names, identity.base);
        self.0.acks.set_salt(identity.salt);
        self.0.write_headers(&identity);
        match name(&mut self.0, &paths) {
            Ok(tail) => Ok(Segment::from_spare(identity, self.0, tail, paths, names)),
            Err(error) => {
                self.remove();
                // An operation that reported failure may still have been done, and a segment with
                // copies of jobs must not be found beside the jobs.
                for entry in [&paths.segment, &paths.ack] {
                    if let Err(error) = entry.remove() {
                        event!(debug, %error, "a segment that was not made stays");
                    }
                }
                Err(error)
            }
        }
    }

    /// Frees its space. Files that stay are removed by the next open.
    pub(super) fn remove(self) {
        let Self(maps) = self;
        for file in [&maps.records.file, &maps.acks.file] {
            if let Err(error) = file.entry().remove() {
                event!(debug, %error, "a spare segment stays");
            }
        }
    }
}

impl AckFile {
    /// Zeroes the header and everything that concerns the records below `end`.
    fn zero_up_to(&mut self, end: u32) {
        let [words, counts] = ack::used_ranges(self.capacity(), end);
        self.file.zero(words.start, words.len());
        self.file.zero(counts.start, counts.len());
    }
}
