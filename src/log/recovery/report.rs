//! What recovery found and did, as a user reads it.

use std::path::PathBuf;

/// What is wrong with a region of a file, or with the file.
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
    /// The file is shorter than its seal says, or than it was made if it has none; or nothing is
    /// left in it, while its ack file tells of jobs.
    Truncated,
    /// The file is gone while its ack file tells of jobs, or something else than a file stands in its
    /// place; or a directory of the queue is gone, with all that was in it.
    Missing,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Damage::Checksum => "failed its check",
            Damage::Uncommitted => "was never committed",
            Damage::Header => "has no valid header",
            Damage::Truncated => "is cut off",
            Damage::Missing => "is missing",
        })
    }
}

/// A region of a segment file that was set aside, or is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Quarantined {
    /// The segment file it was found in, or the file or directory that is lost.
    pub path: PathBuf,
    /// Where it starts in that file, in bytes.
    pub offset: u64,
    /// How long it is, in bytes; 0 for a directory.
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
    /// Of these, segments trusted by their seal; each is checked before it is first read from.
    pub sealed: u64,
    /// Of these, segments scanned record by record.
    pub scanned: u64,
    /// Bytes read by scans.
    pub bytes_scanned: u64,
    /// Records found, done or not.
    pub records: u64,
    /// Jobs found that are not done, those of sealed segments before their check. What is
    /// found damaged later is in [`Stats::lost`](crate::Stats::lost).
    pub jobs: u64,
    /// Dead letters found.
    pub dead_letters: u64,
    /// Regions set aside because they failed their check, and what is lost.
    pub quarantined: Vec<Quarantined>,
    /// Places that a producer had reserved and written nothing to when its process died.
    pub holes: u64,
    /// Ack files made anew: the jobs of these segments are delivered again.
    pub ack_files_rebuilt: Vec<PathBuf>,
    /// Ack words that failed their check: up to 32 jobs each are delivered again.
    pub ack_words_reset: u64,
    /// Segment headers mended from the copy in the ack file.
    pub headers_mended: Vec<PathBuf>,
    /// Moves that a crash had interrupted: jobs that have become letters, letters that were replayed,
    /// jobs that compaction has moved. The job or letter that was left behind is done, so that exactly
    /// one of the two is there.
    pub settled: u64,
}

impl RecoveryReport {
    /// Whether nothing was damaged. What the death of a process leaves is no damage: holes, settled moves, and
    /// records that were [never committed](Damage::Uncommitted). After a power cut, records that no flush had
    /// covered may be there in part, and count as damage.
    pub fn is_clean(&self) -> bool {
        self.quarantined
            .iter()
            .all(|region| region.damage == Damage::Uncommitted)
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

/// What a check of every record found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Segments read, the dead letter log's included.
    pub segments: u64,
    /// Valid jobs and letters, done or not.
    pub records: u64,
    /// Bytes of their records.
    pub bytes: u64,
    /// Damage found since the queue was opened: what was set aside when a segment was first read, and, without
    /// a copy, records that were valid then and are not any more.
    pub damaged: Vec<Quarantined>,
}
