//! A disk for tests: what has reached it decides what a power cut leaves of a directory.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::log::mark::pretended::Boot;
use crate::storage::disk::Disk;
use crate::storage::faults;

/// A model of the disk below a directory, for tests of power cuts.
///
/// The files are real. The disk is told of each operation by which logmill creates, renames, removes
/// or flushes one below the directory, and keeps what has reached it. After a power cut, a sector that
/// was written since the last flush that covered it is the old one or the new one; a name that was
/// created, changed or removed since the last flush of its directory is there or not. A seed decides.
///
/// Sectors are not torn: what may happen then is part of the limits of logmill's guarantees.
///
/// ```
/// use logmill::{Durability, EnqueueOptions, Queue, SimulatedDisk};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let tests = tempfile::tempdir()?;
/// let (before, after) = (tests.path().join("before"), tests.path().join("after"));
/// std::fs::create_dir(&before)?;
/// let disk = SimulatedDisk::new(&before, 7)?;
/// let (queue, _) = Queue::builder(&before).open()?;
/// let sync = EnqueueOptions::new().durability(Durability::Sync);
/// queue.enqueue_with(b"charge order 7", sync)?;
/// queue.enqueue(b"update the search index")?; // may be lost
///
/// let _disk = disk.cut_power(&after)?;
/// let (queue, _) = Queue::builder(&after).open()?;
/// assert!(queue.jobs().flatten().any(|job| job.payload() == b"charge order 7"));
/// # Ok(())
/// # }
/// ```
///
/// Nothing else may write below the directory, and no thread may use it while the power is cut. A
/// queue has threads of its own, so what a cut leaves is the same each time only if there is nothing
/// for them to do.
///
/// The thread that makes a disk, or cuts its power, also sees a new boot of the machine, until the
/// disk is dropped: what tells a file that was written before a restart from one that was not. So open
/// on that thread what a power cut leaves. The clock by which a queue puts off work of its own stands still on
/// this thread meanwhile.
///
/// # Panics
/// An operation of logmill panics if the files below the directory cannot be read.
pub struct SimulatedDisk {
    directory: PathBuf,
    disk: Arc<Mutex<Disk>>,
    boot: Arc<Boot>,
}

impl SimulatedDisk {
    /// A disk on which all that is in the directory is durable.
    ///
    /// # Errors
    /// There is no such directory.
    pub fn new(directory: impl AsRef<Path>, seed: u64) -> io::Result<Self> {
        let directory = std::path::absolute(directory)?;
        if !directory.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let disk = Disk::new(&directory, seed);
        // Any value that differs from disk to disk.
        let boot = Boot::new(seed.rotate_left(32) ^ 0x9e37_79b9_7f4a_7c15);
        Ok(Self::attached(directory, disk, Arc::new(boot)))
    }

    fn attached(directory: PathBuf, mut disk: Disk, boot: Arc<Boot>) -> Self {
        disk.trust_operations();
        disk.keep_sectors_whole();
        let disk = Arc::new(Mutex::new(disk));
        faults::attach(&directory, &disk);
        Self {
            directory,
            disk,
            boot,
        }
    }

    /// Writes to the directory `to`, which is created, what is left if the power fails now. Returns the disk
    /// below that, on which all of it is durable.
    ///
    /// Who has files below the former directory open may go on with them, and better closes them.
    ///
    /// # Errors
    /// The directory cannot be created.
    ///
    /// # Panics
    /// The files cannot be read or written.
    pub fn cut_power(&self, to: impl AsRef<Path>) -> io::Result<Self> {
        let to = created(to.as_ref())?;
        let mut disk = self.disk.lock();
        let left = disk.leave_after_a_power_cut(&to);
        let boot = Boot::new(disk.random_number());
        Ok(Self::attached(to, left, Arc::new(boot)))
    }

    /// Has flushes make nothing durable from now on, for a process that is [killed](Self::kill) a moment
    /// later: as if that had happened before the flush.
    pub fn ignore_flushes(&self) {
        self.disk.lock().ignore_flushes();
    }

    /// Writes to the directory `to`, which is created, what is left if the process dies now: all of it. Returns
    /// the disk below that. What was not durable is not durable there either.
    ///
    /// # Errors
    /// The directory cannot be created.
    ///
    /// # Panics
    /// The files cannot be read or written.
    pub fn kill(&self, to: impl AsRef<Path>) -> io::Result<Self> {
        let to = created(to.as_ref())?;
        let left = self.disk.lock().leave_after_a_kill(&to);
        Ok(Self::attached(to, left, Arc::clone(&self.boot)))
    }
}

fn created(directory: &Path) -> io::Result<PathBuf> {
    fs::create_dir(directory)?;
    std::path::absolute(directory)
}

impl Drop for SimulatedDisk {
    fn drop(&mut self) {
        faults::detach(&self.disk);
    }
}

impl fmt::Debug for SimulatedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedDisk")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}
