//! Many queues in one directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::options::Builder;
use crate::tree::{self, InTree, Tree};
use crate::{FlushError, Keys, OpenError, Queue, RecoveryReport, StorageError, Transaction};

/// A directory with many queues in it, which one process owns.
///
/// The queues are in the directory `queues`, each under its name. One lock, on the directory
/// itself, keeps other processes out of all of them. It is released when the last handle of the
/// directory and of its queues is dropped. A `Queues` is a handle: clone it to share it.
///
/// ```
/// use logmill::Queues;
/// use std::time::Duration;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let queues = Queues::open(dir.path().join("data"))?;
/// let mails = queues.queue("mails")?; // opened with the defaults, created if it is not there
/// let (images, report) = queues
///     .builder("images")
///     .lease_timeout(Duration::from_secs(300))
///     .open()?;
/// assert!(report.is_clean());
/// mails.enqueue(b"welcome Ada")?;
/// images.enqueue(b"resize cat.jpg")?;
/// assert_eq!(queues.names()?, ["images", "mails"]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Queues {
    tree: Arc<Tree>,
}

impl Queues {
    /// Opens a directory of queues, or creates it.
    ///
    /// The directory must be one that was made by this call, or be empty, or not exist. No queue is
    /// opened yet.
    ///
    /// # Errors
    /// [`OpenError::Locked`] if another handle has the directory open,
    /// [`OpenError::NotQueues`] if it has other files in it, and see [`OpenError`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::options(path).open()
    }

    /// Returns the options for opening or creating a directory of queues.
    pub fn options(path: impl AsRef<Path>) -> QueuesBuilder {
        QueuesBuilder {
            path: path.as_ref().to_path_buf(),
            lock_wait: Duration::ZERO,
            file_mode: 0o600,
            state_segment_size: None,
            #[cfg(feature = "manual-clock")]
            clock: None,
            #[cfg(feature = "simulated-disk")]
            has_no_threads: false,
        }
    }

    /// The directory, as an absolute path resolved when it was opened.
    pub fn path(&self) -> &Path {
        self.tree.root().path()
    }

    /// Returns a handle of the queue of this name.
    ///
    /// If the queue is open, the handle is another one of the same queue, with the options with
    /// which it was opened. Otherwise it is opened with the defaults, or created. What recovery
    /// found then is only told by events; use [`builder`](Self::builder) for the report.
    ///
    /// Waits while another thread opens the queue or drops its last handle.
    ///
    /// # Errors
    /// [`OpenError::Locked`] if the queue was [closed](Queue::close) and still has handles, or if
    /// user code that its open or its close calls asks for it; and see [`OpenError`]. The name must have 1 to 100 bytes of letters, digits, `-`, `_` and `.`,
    /// and not start with a dot; another one is [`OpenError::InvalidName`].
    pub fn queue(&self, name: &str) -> Result<Queue, OpenError> {
        self.builder(name).open_or_find()
    }

    /// Returns the options for opening or creating the queue of this name.
    ///
    /// [`Builder::open`] returns [`OpenError::Locked`] while the queue has handles, since these
    /// have options of their own. [`queue`](Self::queue) returns another handle.
    pub fn builder(&self, name: &str) -> Builder {
        let mut builder = Builder::new(&self.tree.path_of(name));
        builder.file_mode = self.tree.root().file_mode();
        // Many queues may never be used.
        builder.starts_idle = true;
        #[cfg(feature = "manual-clock")]
        {
            builder.clock = self.tree.clock().manual().cloned();
        }
        builder.in_tree = Some(InTree {
            tree: Arc::clone(&self.tree),
            name: name.to_owned(),
        });
        builder
    }

    /// Begins a transaction: jobs for any of these queues and changes of keys, all or nothing.
    pub fn transaction(&self) -> Transaction {
        Transaction::new(Arc::clone(&self.tree))
    }

    /// The keyed store: small durable values beside the queues.
    pub fn keys(&self) -> Keys {
        Keys::new(Arc::clone(&self.tree))
    }

    /// Makes all transactions and changes of keys so far durable, though not what went on in the
    /// queues; that is what [`Queue::flush`] does.
    ///
    /// # Errors
    /// The flush failed, now or earlier.
    pub fn flush(&self) -> Result<(), FlushError> {
        self.tree.state().flush().map_err(FlushError)
    }

    /// What recovery found in the log of transactions and keys when the directory was opened.
    pub fn recovery(&self) -> &RecoveryReport {
        self.tree.report()
    }

    /// Does what the maintenance of the state log would do if it were woken now, in a directory
    /// [without threads](QueuesBuilder::without_threads).
    #[cfg(feature = "simulated-disk")]
    #[doc(hidden)]
    pub fn rest(&self) {
        /// What passes from one turn to the next, on the clock that tells how long a segment is full.
        const PASSES: Duration = Duration::from_millis(60);
        if self.tree.runtime().is_idle() {
            self.tree.state().turn();
            if let Some(now) = crate::time::stopped::now() {
                crate::time::stopped::set(Some(now + PASSES));
            }
        }
    }

    /// Does what the maintenance of the state log would do if it were woken now. Returns when it
    /// would be due again.
    #[cfg(test)]
    pub(crate) fn maintain_state(&self) -> Option<std::time::Instant> {
        self.tree.state().turn()
    }

    /// The log of transactions and keys.
    #[cfg(test)]
    pub(crate) fn state(&self) -> &crate::state::State {
        self.tree.state()
    }

    #[cfg(test)]
    pub(crate) fn die(&self) {
        self.tree.die();
    }

    /// The names of the queues that exist, open or not, sorted.
    ///
    /// # Errors
    /// The directory could not be read.
    pub fn names(&self) -> Result<Vec<String>, StorageError> {
        tree::names_in(self.tree.queues())
    }
}

impl std::fmt::Debug for Queues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queues")
            .field("path", &self.path())
            .finish_non_exhaustive()
    }
}

/// Options for opening or creating a directory of queues, from [`Queues::options`].
#[derive(Clone, Debug)]
#[must_use]
pub struct QueuesBuilder {
    path: PathBuf,
    lock_wait: Duration,
    file_mode: u32,
    state_segment_size: Option<u64>,
    #[cfg(feature = "manual-clock")]
    clock: Option<crate::ManualClock>,
    #[cfg(feature = "simulated-disk")]
    has_no_threads: bool,
}

impl QueuesBuilder {
    /// Waits up to this long while another handle has the directory open.
    ///
    /// Default: no wait, see [`Builder::wait_for_lock`].
    pub fn wait_for_lock(mut self, timeout: Duration) -> Self {
        self.lock_wait = timeout;
        self
    }

    /// Sets the permissions of files that are created, for the directory and its queues.
    ///
    /// Default: `0o600`, see [`Builder::file_mode`].
    pub fn file_mode(mut self, mode: u32) -> Self {
        self.file_mode = mode;
        self
    }

    /// Sets the size of the segments in which transactions and keys are stored, in bytes; fixed when
    /// the directory is created.
    ///
    /// A transaction takes at most a quarter of it. See [`Builder::segment_size`]. Default: 8 MiB.
    pub fn state_segment_size(mut self, bytes: u64) -> Self {
        self.state_segment_size = Some(bytes);
        self
    }

    /// Sets the clock of the directory and of all queues in it, for tests. Default: the system's.
    #[cfg(feature = "manual-clock")]
    pub fn clock(mut self, clock: &crate::ManualClock) -> Self {
        self.clock = Some(clock.clone());
        self
    }

    /// Starts no threads for the directory and its queues, so that a simulation is the same each
    /// time. What they would do, the test does: it advances the clock, and has the
    /// [queues](Queue::rest) and the [directory](Queues::rest) rest.
    #[cfg(feature = "simulated-disk")]
    #[doc(hidden)]
    pub fn without_threads(mut self) -> Self {
        self.has_no_threads = true;
        self
    }

    /// Opens the directory, or creates it.
    ///
    /// # Errors
    /// See [`Queues::open`].
    pub fn open(self) -> Result<Queues, OpenError> {
        #[cfg(feature = "simulated-disk")]
        let has_no_threads = self.has_no_threads;
        let queues = self.open_idle()?;
        #[cfg(feature = "simulated-disk")]
        if has_no_threads {
            queues.tree.runtime().stay_idle();
        }
        queues.tree.start()?;
        Ok(queues)
    }

    /// Like [`open`](Self::open), with nobody who maintains the log of transactions and keys.
    pub(crate) fn open_idle(self) -> Result<Queues, OpenError> {
        let mut options = Builder::new(&self.path);
        options.file_mode = self.file_mode;
        options.segment_size = self.state_segment_size;
        options.validate()?;
        #[cfg(feature = "manual-clock")]
        if let Some(clock) = &self.clock {
            options.clock = Some(clock.clone());
        }
        let tree = Tree::open(
            &self.path,
            self.file_mode,
            self.lock_wait,
            self.state_segment_size,
            options.started_clock(),
        )?;
        Ok(Queues {
            tree: Arc::new(tree),
        })
    }
}
