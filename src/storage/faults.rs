//! What unit tests do to the file system: let flushes fail, let the disk be full, and look at the
//! files between any two operations.

use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::Operation;

static FAILING: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
static FULL: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

thread_local! {
    static OBSERVER: RefCell<Option<(PathBuf, Observer)>> = const { RefCell::new(None) };
}

/// When an operation is observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// An error from the observer is the operation's.
    Before,
    After,
}

/// Called before and after each operation on what is below a directory.
pub(crate) type Observer = Box<dyn FnMut(Operation, &Path, Moment) -> io::Result<()>>;

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

/// Calls an observer of this thread's operations from now on; returns the one there was. The
/// operations that an observer does itself are not observed, unless it sets another.
pub(crate) fn observe(observer: Option<(PathBuf, Observer)>) -> Option<(PathBuf, Observer)> {
    OBSERVER.replace(observer)
}

pub(super) fn before(operation: Operation, path: &Path) -> io::Result<()> {
    tell(operation, path, Moment::Before)?;
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
    // It has happened.
    let _ = tell(operation, path, Moment::After);
}

fn tell(operation: Operation, path: &Path, moment: Moment) -> io::Result<()> {
    let Some((dir, mut observer)) = OBSERVER.take() else {
        return Ok(());
    };
    let told = if path.starts_with(&dir) {
        observer(operation, path, moment)
    } else {
        Ok(())
    };
    OBSERVER.set(Some((dir, observer)));
    told
}
