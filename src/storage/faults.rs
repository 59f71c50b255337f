//! Fault injection for tests: makes file system calls fail or fall short, records the calls that are
//! made, shows the files between any two operations, and tells simulated disks of those below them.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::Operation;
use super::disk::Disk;

static FAULTS: Mutex<Vec<State>> = Mutex::new(Vec::new());
/// The directories with simulated disks.
static DISKS: Mutex<Vec<(PathBuf, Arc<Mutex<Disk>>)>> = Mutex::new(Vec::new());

thread_local! {
    static OBSERVER: RefCell<Option<(PathBuf, Observer)>> = const { RefCell::new(None) };
    /// The bytes that this thread is about to flush, and those that the observer is told of.
    static FLUSHING: RefCell<Option<Range<usize>>> = const { RefCell::new(None) };
    static FLUSHED: RefCell<Option<Range<usize>>> = const { RefCell::new(None) };
}

/// The moment at which an operation is observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moment {
    /// If the observer returns an error, the operation fails with it.
    Before,
    After,
}

/// Called before and after each creation, truncation, renaming, removal and flush below a
/// directory, and after each commit of a record of a batch.
pub(crate) type Observer = Box<dyn FnMut(Operation, &Path, Moment) -> io::Result<()>>;

/// The effect on a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The call is not made, and fails.
    Fail(Errno),
    /// The call is made, and fails nevertheless.
    FailAfter(Errno),
    /// The call reads or writes half of its bytes.
    Short,
}

/// Some calls of one operation, numbered from 0, and the effect on them.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) operation: Operation,
    pub(crate) calls: Range<usize>,
    pub(crate) effect: Effect,
}

/// A call that was made, or that a fault prevented.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) operation: Operation,
    pub(crate) path: PathBuf,
    /// The bytes that a flush covers, if it does not cover the whole file.
    pub(crate) range: Option<Range<usize>>,
    pub(crate) effect: Option<Effect>,
}

/// Watches calls and injects faults until it is dropped.
#[must_use]
pub(crate) struct Fault(u64);

struct State {
    id: u64,
    path: PathBuf,
    /// Whether only this path is concerned, and not what is below it.
    is_exact: bool,
    /// How many calls each plan has seen.
    plans: Vec<(Plan, usize)>,
    calls: Vec<Call>,
}

/// Makes flushes of a file or directory fail.
pub(crate) fn fail_flushes(path: impl AsRef<Path>) -> Fault {
    let plan = |operation| Plan {
        operation,
        calls: 0..usize::MAX,
        effect: Effect::Fail(Errno::IO),
    };
    let plans = [Operation::Flush, Operation::FlushDirectory].map(plan);
    Fault::begin(path.as_ref(), true, plans.into())
}

/// Makes the disk appear full to new files below a directory.
pub(crate) fn fill_disk(dir: &Path) -> Fault {
    let plan = Plan {
        operation: Operation::Create,
        calls: 0..usize::MAX,
        effect: Effect::Fail(Errno::NOSPC),
    };
    watch(dir, vec![plan])
}

/// Watches all calls below a directory, and applies the planned effects to them.
pub(crate) fn watch(dir: &Path, plans: Vec<Plan>) -> Fault {
    Fault::begin(dir, false, plans)
}

impl Fault {
    fn begin(path: &Path, is_exact: bool, plans: Vec<Plan>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        FAULTS.lock().push(State {
            id,
            path: path.to_path_buf(),
            is_exact,
            plans: plans.into_iter().map(|plan| (plan, 0)).collect(),
            calls: Vec::new(),
        });
        Self(id)
    }

    fn with<T>(&self, run: impl FnOnce(&mut State) -> T) -> T {
        let mut faults = FAULTS.lock();
        let state = faults.iter_mut().find(|state| state.id == self.0);
        run(state.expect("it lives as long as its guard"))
    }

    /// Ends the effects on further calls, but keeps watching them.
    pub(crate) fn lift(&self) {
        self.with(|state| state.plans.clear());
    }

    /// The calls since the last time this was called.
    pub(crate) fn take_calls(&self) -> Vec<Call> {
        self.with(|state| std::mem::take(&mut state.calls))
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        FAULTS.lock().retain(|state| state.id != self.0);
    }
}

impl State {
    fn is_about(&self, path: &Path) -> bool {
        if self.is_exact {
            path == self.path
        } else {
            path.starts_with(&self.path)
        }
    }

    /// The effect on the next call.
    fn effect(&self, operation: Operation) -> Option<Effect> {
        let mut plans = self.plans.iter();
        let hit =
            plans.find(|(plan, seen)| plan.operation == operation && plan.calls.contains(seen));
        hit.map(|(plan, _)| plan.effect)
    }

    fn note(
        &mut self,
        operation: Operation,
        path: &Path,
        range: Option<&Range<usize>>,
    ) -> Option<Effect> {
        let effect = self.effect(operation);
        for (plan, seen) in &mut self.plans {
            *seen += usize::from(plan.operation == operation);
        }
        self.calls.push(Call {
            operation,
            path: path.to_path_buf(),
            range: range.cloned(),
            effect,
        });
        effect
    }
}

/// Makes a call that flushes these bytes of a file and no others.
pub(super) fn flushing<T>(range: Range<usize>, call: impl FnOnce() -> T) -> T {
    FLUSHING.set(Some(range));
    let result = call();
    FLUSHING.set(None);
    result
}

/// For an observer that is told of a flush: the bytes that it covers, None if it covers the whole
/// file.
pub(crate) fn flushed_range() -> Option<Range<usize>> {
    FLUSHED.with_borrow(Clone::clone)
}

/// Sets the observer of this thread's operations; returns the previous one. The operations of an
/// observer itself are not observed, unless it sets another one.
pub(crate) fn observe(observer: Option<(PathBuf, Observer)>) -> Option<(PathBuf, Observer)> {
    OBSERVER.replace(observer)
}

/// Tells a disk of all operations below a directory, on whatever thread.
pub(crate) fn attach(directory: &Path, disk: &Arc<Mutex<Disk>>) {
    let attached = (directory.to_path_buf(), Arc::clone(disk));
    DISKS.lock().push(attached);
}

/// Tells this disk of nothing more.
pub(crate) fn detach(disk: &Arc<Mutex<Disk>>) {
    DISKS.lock().retain(|(_, other)| !Arc::ptr_eq(other, disk));
}

/// The disk below a path, if it is a simulated one.
fn disk_below(path: &Path) -> Option<Arc<Mutex<Disk>>> {
    let disks = DISKS.lock();
    let below = disks.iter().find(|(root, _)| path.starts_with(root));
    below.map(|(_, disk)| Arc::clone(disk))
}

/// How many of `len` bytes the next read or write asks for.
pub(super) fn length(operation: Operation, path: &Path, len: usize) -> usize {
    let faults = FAULTS.lock();
    let mut about = faults.iter().filter(|state| state.is_about(path));
    if about.any(|state| state.effect(operation) == Some(Effect::Short)) {
        len.div_ceil(2)
    } else {
        len
    }
}

pub(super) fn around<T>(
    operation: Operation,
    path: &Path,
    call: &mut impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    // An observer makes calls of its own.
    let range = FLUSHING.take();
    let result = around_range(operation, path, range.as_ref(), call);
    FLUSHING.set(range);
    result
}

fn around_range<T>(
    operation: Operation,
    path: &Path,
    range: Option<&Range<usize>>,
    call: &mut impl FnMut() -> io::Result<T>,
) -> io::Result<T> {
    tell(operation, path, range, Moment::Before)?;
    let mut effect = None;
    for state in FAULTS
        .lock()
        .iter_mut()
        .filter(|state| state.is_about(path))
    {
        effect = effect.or(state.note(operation, path, range));
    }
    let result = match effect {
        Some(Effect::Fail(error)) => return Err(error.into()),
        Some(Effect::FailAfter(error)) => {
            let _ = call();
            Err(error.into())
        }
        Some(Effect::Short) | None => call(),
    };
    // The operation has happened.
    let _ = tell(operation, path, range, Moment::After);
    result
}

/// Tells the observer that a record of a batch was committed.
pub(crate) fn note_commit(segment: &Path) {
    // There is nothing that an error could prevent.
    let _ = tell(Operation::Commit, segment, None, Moment::After);
}

fn tell(
    operation: Operation,
    path: &Path,
    range: Option<&Range<usize>>,
    moment: Moment,
) -> io::Result<()> {
    use Operation::{Commit, Create, Flush, FlushDirectory, Remove, Rename, Truncate};
    if !matches!(
        operation,
        Create | Truncate | Rename | Remove | Flush | FlushDirectory | Commit
    ) {
        return Ok(());
    }
    let outer = FLUSHED.replace(range.cloned());
    let mut told = match disk_below(path) {
        Some(disk) => disk.lock().note(operation, path, moment),
        None => Ok(()),
    };
    if let Some((dir, mut observer)) = OBSERVER.take() {
        if path.starts_with(&dir) {
            told = told.and(observer(operation, path, moment));
        }
        OBSERVER.set(Some((dir, observer)));
    }
    FLUSHED.set(outer);
    told
}
