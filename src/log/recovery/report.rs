//! The public reports of what opening a queue and verifying it found.

use std::path::PathBuf;

/// What is wrong with a region of a file, or with the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Damage {
    /// A record, or what looks like one, fails its checksum.
    Checksum,
    /// Bytes were written, but no length.
    ///
    /// Either the producer died before its enqueue returned, or the length was lost later.
    Uncommitted,
    /// Jobs of a batch of which others are missing.
    ///
    /// Usually the power failed before the batch was flushed. A batch is in the queue as a whole or
    /// not at all, so that a damaged job takes the rest of its batch with it; that is reported as
    /// [`Checksum`](Self::Checksum). Once its segment is sealed, it does not any more.
    Incomplete,
    /// Neither the segment's header nor the copy of it in the ack file is valid.
    Header,
    /// The file is too short.
    ///
    /// It is shorter than its seal says, or, without a seal, shorter than it was created. Or it is
    /// empty while its ack file records jobs.
    Truncated,
    /// A file or directory is gone.
    ///
    /// The file is gone while its ack file records jobs, or something other than a file is in its
    /// place. Or a directory of the queue is gone, with everything in it.
    Missing,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Damage::Checksum => "failed its check",
            Damage::Uncommitted => "was never committed",
            Damage::Incomplete => "is part of a batch that is not complete",
            Damage::Header => "has no valid header",
            Damage::Truncated => "is cut off",
            Damage::Missing => "is missing",
        })
    }
}

/// A damaged region of a segment file: quarantined, or lost.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Quarantined {
    /// The segment file in which it was found, or the file or directory that is lost.
    pub path: PathBuf,
    /// Where the region starts in that file, in bytes.
    pub offset: u64,
    /// Length of the region in bytes; 0 for a directory.
    pub len: u64,
    /// What is wrong with it.
    pub damage: Damage,
    /// The copy in the `quarantine` directory; `None` if there were no bytes to copy.
    ///
    /// A text file beside the copy records the other fields.
    pub copy: Option<PathBuf>,
}

/// What opening a queue found and did, from [`Builder::open`](crate::Builder::open).
///
/// ```
/// use logmill::Queue;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let (queue, report) = Queue::builder(dir.path()).open()?;
/// println!("{} jobs and {} dead letters found", report.jobs, report.dead_letters);
/// if !report.is_clean() {
///     for region in &report.quarantined {
///         eprintln!("{}: {} bytes: {}", region.path.display(), region.len, region.damage);
///     }
/// }
/// # assert!(report.is_clean());
/// # queue.close()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// Segments found with records in them, including the dead letter log's.
    pub segments: u64,
    /// Of these, segments trusted because of their seal. Each is checked before it is first read.
    pub sealed: u64,
    /// Of these, segments scanned record by record.
    pub scanned: u64,
    /// Bytes read by scans.
    pub bytes_scanned: u64,
    /// Records found, done or not.
    pub records: u64,
    /// Jobs found that are not done.
    ///
    /// Jobs of sealed segments are counted before they are checked. Those found damaged later are
    /// counted in [`Stats::lost`](crate::Stats::lost).
    pub jobs: u64,
    /// Dead letters found.
    pub dead_letters: u64,
    /// Damaged regions that were quarantined, and files or parts of files that are lost.
    pub quarantined: Vec<Quarantined>,
    /// Holes: places that a producer had reserved but not written to when its process died.
    pub holes: u64,
    /// Ack files that were rebuilt. All jobs of their segments are delivered again.
    pub ack_files_rebuilt: Vec<PathBuf>,
    /// Ack words that failed their check. Up to 32 jobs for each are delivered again.
    pub ack_words_reset: u64,
    /// Segment headers restored from the copy in the ack file.
    pub headers_mended: Vec<PathBuf>,
    /// Moves interrupted by a crash that were completed, and cancelled jobs that were still there.
    ///
    /// These are jobs that became letters, letters that were replayed, and jobs that compaction
    /// moved. The job or letter left behind is marked done, so that exactly one of the two exists.
    /// A [cancelled](crate::Queue::cancel) job that no consumer had come to is marked done as well,
    /// also after a close.
    pub settled: u64,
}

impl RecoveryReport {
    /// Whether nothing was damaged.
    ///
    /// Three things that the death of a process can leave do not count as damage: holes, moves that
    /// were completed, and records that were [never committed](Damage::Uncommitted). After a power
    /// cut, records that no flush had covered may be incomplete, and these count as damage.
    pub fn is_clean(&self) -> bool {
        self.quarantined
            .iter()
            .all(|region| region.damage == Damage::Uncommitted)
            && self.ack_files_rebuilt.is_empty()
            && self.ack_words_reset == 0
            && self.headers_mended.is_empty()
    }
}

/// The progress of opening a queue, for long scans.
///
/// Passed to the function given to [`Builder::on_progress`](crate::Builder::on_progress).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecoveryProgress {
    /// Segments processed so far, in all stripes.
    pub segments: u64,
    /// Bytes read by scans so far.
    pub bytes_scanned: u64,
}

/// What a check of every record found, from [`Queue::verify`](crate::Queue::verify).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Segments read, including the dead letter log's.
    pub segments: u64,
    /// Valid jobs and letters, done or not.
    pub records: u64,
    /// Total size of their records in bytes.
    pub bytes: u64,
    /// Damage found since the queue was opened.
    ///
    /// This includes regions that were quarantined when a segment was first read, and, without a
    /// copy, records that were valid then and are damaged now.
    pub damaged: Vec<Quarantined>,
}
