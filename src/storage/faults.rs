//! What unit tests do to the file system: let flushes fail, let the disk be full, and look at the
//! files between any two operations.

use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::Operation;

static FAILING: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
static FULL: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
static OBSERVER: Mutex<Option<(PathBuf, Observer)>> = Mutex::new(None);

/// Called before (false) and after (true) each operation on what is below a directory.
pub(crate) type Observer = Box<dyn FnMut(Operation, &Path, bool) + Send>;

/// A fault, until dropped.
#[must_use]
pub(crate) struct Fault(&'static Mutex<Vec<PathBuf>>, PathBuf);

/// Has flushes of a file or directory fail.
pub(crate) fn fail_flushes(path: &Path) -> Fault {
    Fault::begin(&FAILING, path)
}

/// Has the disk be full for new files below a directory.
pub(crate) fn fill_disk(dir: &Path) -> Fault {
    Fault::begin(&FULL, dir)
}

impl Fault {
    fn begin(faults: &'static Mutex<Vec<PathBuf>>, path: &Path) -> Self {
        faults.lock().push(path.to_path_buf());
        Self(faults, path.to_path_buf())
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        self.0.lock().retain(|path| *path != self.1);
    }
}

/// Calls an observer from now on. There is one at a time; the operations that it does itself are
/// not observed.
pub(crate) fn observe(dir: &Path, observer: Observer) {
    *OBSERVER.lock() = Some((dir.to_path_buf(), observer));
}

pub(crate) fn stop_observing() {
    *OBSERVER.lock() = None;
}

pub(super) fn before(operation: Operation, path: &Path) -> io::Result<()> {
    tell(operation, path, false);
    match operation {
        Operation::Flush | Operation::FlushDirectory
            if FAILING.lock().iter().any(|failing| failing == path) =>
        {
            Err(Errno::IO.into())
        }
        Operation::Create if FULL.lock().iter().any(|full| path.starts_with(full)) => {
            Err(Errno::NOSPC.into())
        }
        _ => Ok(()),
    }
}

pub(super) fn after(operation: Operation, path: &Path) {
    tell(operation, path, true);
}

fn tell(operation: Operation, path: &Path, is_done: bool) {
    let mut slot = OBSERVER.lock();
    let Some((dir, mut observer)) = slot.take_if(|(dir, _)| path.starts_with(dir)) else {
        return;
    };
    drop(slot);
    observer(operation, path, is_done);
    *OBSERVER.lock() = Some((dir, observer));
}
