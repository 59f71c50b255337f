//! Views: what a queue holds, above all for a process that does not have it open.

mod ids;
mod job;
mod looking;
#[cfg(all(test, not(loom)))]
mod tests;
mod walk;

use std::collections::VecDeque;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use self::ids::Ids;
pub use self::job::{JobState, ViewedJob};
pub use self::looking::JobCursor;
use self::walk::{Files, Found, Walk};
use crate::dead_letters::DeadLetter;
use crate::engine::letters::Letter;
use crate::engine::{Engine, home};
use crate::log::manifest::Manifest;
use crate::storage::Directory;
use crate::{OpenError, StorageError};

/// A look at a queue from outside, for tools: the jobs and the dead letters that it holds, also
/// while another process has it open.
///
/// A view only reads. It takes no lock, writes nothing, and its owner does not notice it. It works
/// while the owner enqueues, acks, compacts and closes, after it was killed, and without one. The
/// files are read into memory, one segment at a time, and every record is checked.
///
/// The process needs permission to read the files: by default only the owner's user has it, see
/// [`Builder::file_mode`](crate::Builder::file_mode). The owner itself looks with
/// [`Queue::jobs`](crate::Queue::jobs) and [`Queue::get`](crate::Queue::get).
///
/// ```
/// use logmill::{Queue, View};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path();
/// let (queue, _) = Queue::builder(path).open()?; // in one process
/// let id = queue.enqueue(b"resize cat.jpg")?;
///
/// let view = View::open(path)?; // in another one
/// for job in view.jobs() {
///     let job = job?;
///     println!("{}: {} bytes, {} failed attempts", job.id(), job.payload().len(), job.attempts());
///     assert_eq!((job.id(), job.payload()), (id, &b"resize cat.jpg"[..]));
/// }
/// assert_eq!(view.stats()?.jobs, 1);
/// # Ok(())
/// # }
/// ```
///
/// # What is seen
/// An iteration begins with the first call of its `next`. It is not a picture of one moment: each
/// segment is read when the iteration reaches it.
///
/// - Every job that was enqueued before the iteration began, and is neither acked nor dead before
///   it ends, is seen exactly once. This includes jobs that handlers have and that wait for a delay
///   or a backoff, wherever compaction moves them meanwhile. (A job that compaction moves sixty
///   times during one iteration may be missed.)
/// - Every job that is seen was enqueued with this payload, name and headers, and was neither acked
///   nor dead at some moment after the iteration began. So a job that was acked before is not seen.
/// - Of a batch, no job is seen before all are enqueued.
/// - A job becomes a letter at the moment at which the letter is in the dead letter log, and a
///   letter becomes a job when it is replayed. To see a job that dies meanwhile at least once, walk
///   over [`jobs`](Self::jobs) first; to see a letter that is replayed meanwhile, over
///   [`dead_letters`](Self::dead_letters).
/// - If nobody has the queue open, a view shows what the next open would find.
///
/// This holds for segments that can be read. For each one that cannot, the iteration yields an
/// error and goes on behind it. Damaged records are left out without an error; the owner sets them
/// aside and reports them when it opens the queue or reaches them. Where the acks of a segment are
/// damaged or lost, its jobs are seen again, as they are delivered again.
///
/// Of a queue in a directory of queues, a view does not read the log of transactions. After the death
/// of the owner it may show jobs that a transaction has completed in the last moments before, and it
/// does not show jobs that are still to come to the queue from there. The next open sorts this out.
///
/// # Costs
/// An iteration reads each segment file of its logs once, those that are not sealed twice, and of
/// each ack file what concerns these records; of a segment that is not sealed, the done bits of all
/// that would fit, less than 1% of its size. Memory holds one segment, without the unused room at its
/// end, and up to 40 bytes for each job seen, or for each 64 with consecutive ids. The owner waits for
/// none of this, but shares the disk and the page cache with it.
pub struct View {
    files: Files,
}

/// What a queue holds, from [`View::stats`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ViewStats {
    /// Jobs that are neither acked nor dead.
    ///
    /// Jobs that handlers have, and those that wait for a delay or a backoff, are included.
    pub jobs: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// Segments with records, done or not, including the dead letter log's.
    pub segments: u64,
    /// Bytes of the files of these segments, without ack files (about 13% more).
    pub bytes: u64,
}

impl View {
    /// Opens a view of the queue in this directory, which may be open in any process, or in none.
    ///
    /// The view stays with this directory if it is renamed.
    ///
    /// # Errors
    /// [`OpenError::NoQueue`] if there is no queue: nothing is there yet, or nothing more than an
    /// empty directory. A queue that is being created appears with its MANIFEST, which is written
    /// last. Otherwise those errors of [`Builder::open`](crate::Builder::open) that concern the
    /// directory and its MANIFEST.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        let (queue, manifest) = home::look(path.as_ref())?;
        Ok(Self::new(queue, &manifest))
    }

    /// A view of a queue that is open in this process.
    pub(crate) fn of(engine: &Engine) -> Self {
        let home = engine.home();
        Self::new(Arc::clone(home.directory()), &home.manifest)
    }

    fn new(queue: Arc<Directory>, manifest: &Manifest) -> Self {
        let files = Files {
            queue,
            stripes: manifest.stripes,
            segment_size: manifest.segment_size,
        };
        Self { files }
    }

    /// The queue directory, as an absolute path resolved when the view was opened.
    pub fn path(&self) -> &Path {
        self.files.queue.path()
    }

    /// Iterates over the jobs that are neither acked nor dead, stripe after stripe, and in each
    /// stripe the oldest first.
    ///
    /// A job whose last attempt has failed is included until its letter is written. A job that
    /// compaction has moved comes where its record is, behind newer ones.
    ///
    /// # Errors
    /// A file or directory that cannot be read yields an error, and the iteration goes on behind
    /// it. So does a segment that changes each time it is read, eight times in a row; the owner
    /// does nothing of that kind.
    pub fn jobs(&self) -> impl Iterator<Item = Result<ViewedJob, Arc<StorageError>>> + use<> {
        each_once(self.walk())
    }

    /// A walk over the jobs of all stripes.
    fn walk(&self) -> Walk {
        let logs = self.files.stripes().collect();
        // Jobs settle the places that they were moved from, and letters their jobs.
        let settlers = self.files.stripes().chain([None]).collect();
        Walk::new(self.files.clone(), logs, settlers)
    }

    /// Iterates over the dead letters, oldest first.
    ///
    /// A letter that is replayed is not included from the moment on at which its new job is in the
    /// queue. Letters of jobs that have just died are included once the owner has written them, a
    /// moment later.
    ///
    /// # Errors
    /// As for [`jobs`](Self::jobs).
    pub fn dead_letters(
        &self,
    ) -> impl Iterator<Item = Result<DeadLetter, Arc<StorageError>>> + use<> {
        // Replayed jobs settle their letters.
        let settlers = self.files.stripes().collect();
        let walk = Walk::new(self.files.clone(), vec![None], settlers);
        walk.map(|found| found.map(|found| DeadLetter::of(letter_of(found))))
    }

    /// Counts what the queue holds.
    ///
    /// Reads the header and the ack words of each sealed segment, and the others as a whole. The
    /// logs are counted one after the other, so the figures may differ by the jobs that change
    /// state meanwhile. Jobs of sealed segments count before they are checked, as in
    /// [`RecoveryReport::jobs`](crate::RecoveryReport::jobs).
    ///
    /// # Errors
    /// A file or directory could not be read.
    pub fn stats(&self) -> Result<ViewStats, Arc<StorageError>> {
        let mut errors = VecDeque::new();
        let logs = || self.files.stripes().chain([None]);
        let settled = self.files.settled(logs(), &mut errors);
        if let Some(error) = errors.pop_front() {
            return Err(error);
        }
        let mut stats = ViewStats::default();
        for number in logs() {
            let Some(log) = self.files.log(number)? else {
                continue;
            };
            for base in log.bases(None)? {
                let Some(held) = log.held(base, &settled)? else {
                    continue;
                };
                stats.segments += 1;
                stats.bytes += held.bytes;
                *match number {
                    Some(_) => &mut stats.jobs,
                    None => &mut stats.dead_letters,
                } += held.jobs;
            }
        }
        Ok(stats)
    }
}

fn letter_of(found: Found) -> Letter {
    Letter {
        sequence: found.sequence,
        enqueued_at: found.enqueued_at,
        payload: found.payload,
        name: found.name,
        headers: found.headers,
        meta: found.meta,
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View")
            .field("path", &self.path())
            .finish_non_exhaustive()
    }
}

/// The jobs that a walk finds, without those that it finds again where compaction has moved them.
fn each_once(walk: Walk) -> impl Iterator<Item = Result<ViewedJob, Arc<StorageError>>> {
    let mut seen = Ids::default();
    let is_new = move |found: &Result<Found, _>| match found {
        Ok(found) => seen.insert(found.job()),
        Err(_) => true,
    };
    walk.filter(is_new).map(|found| found.map(ViewedJob::of))
}
