//! What unit tests do to the file system: have calls fail or fall short, note which calls are made,
//! and look at the files between any two operations.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::Operation;

static FAULTS: Mutex<Vec<State>> = Mutex::new(Vec::new());

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

/// Called before and after each creation, truncation, renaming, removal and flush of what is below
/// a directory.
pub(crate) type Observer = Box<dyn FnMut(Operation, &Path, Moment) -> io::Result<()>>;

/// What is done to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// It is not made, and fails.
    Fail(Errno),
    /// It is made, and fails all the same.
    FailAfter(Errno),
    /// It reads or writes half of what it should.
    Short,
}

/// Some calls of one operation, by their number from 0, and what is done to them.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) operation: Operation,
    pub(crate) calls: Range<usize>,
    pub(crate) effect: Effect,
}

/// A call that was made, or would have been.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) operation: Operation,
    pub(crate) path: PathBuf,
    pub(crate) effect: Option<Effect>,
}

/// Calls are watched, and things done to them, until this is dropped.
#[must_use]
pub(crate) struct Fault(u64);

struct State {
    id: u64,
    path: PathBuf,
    /// It is about this path alone, and not about what is below it.
    is_exact: bool,
    /// How many calls each plan has seen.
    plans: Vec<(Plan, usize)>,
    calls: Vec<Call>,
}

/// Has flushes of a file or directory fail.
pub(crate) fn fail_flushes(path: impl AsRef<Path>) -> Fault {
    let plan = |operation| Plan {
        operation,
        calls: 0..usize::MAX,
        effect: Effect::Fail(Errno::IO),
    };
    let plans = [Operation::Flush, Operation::FlushDirectory].map(plan);
    Fault::begin(path.as_ref(), true, plans.into())
}

/// Has the disk be full for new files below a directory.
pub(crate) fn fill_disk(dir: &Path) -> Fault {
    let plan = Plan {
        operation: Operation::Create,
        calls: 0..usize::MAX,
        effect: Effect::Fail(Errno::NOSPC),
    };
    watch(dir, vec![plan])
}

/// Watches all calls below a directory, and does to them what is planned.
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

    /// Does nothing to further calls, and goes on watching them.
    pub(crate) fn lift(&self) {
        self.with(|state| state.plans.clear());
    }

    /// The calls since the last look.
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

    /// What is to be done to the next call.
    fn effect(&self, operation: Operation) -> Option<Effect> {
        let mut plans = self.plans.iter();
        let hit =
            plans.find(|(plan, seen)| plan.operation == operation && plan.calls.contains(seen));
        hit.map(|(plan, _)| plan.effect)
    }

    fn note(&mut self, operation: Operation, path: &Path) -> Option<Effect> {
        let effect = self.effect(operation);
        for (plan, seen) in &mut self.plans {
            *seen += usize::from(plan.operation == operation);
        }
        self.calls.push(Call {
            operation,
            path: path.to_path_buf(),
            effect,
        });
        effect
    }
}

/// Calls an observer of this thread's operations from now on; returns the one there was. The
/// operations that an observer does itself are not observed, unless it sets another.
pub(crate) fn observe(observer: Option<(PathBuf, Observer)>) -> Option<(PathBuf, Observer)> {
    OBSERVER.replace(observer)
}

/// How many of `len` bytes the next read or write is to be asked for.
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
    tell(operation, path, Moment::Before)?;
    let mut effect = None;
    for state in FAULTS
        .lock()
        .iter_mut()
        .filter(|state| state.is_about(path))
    {
        effect = effect.or(state.note(operation, path));
    }
    let result = match effect {
        Some(Effect::Fail(error)) => return Err(error.into()),
        Some(Effect::FailAfter(error)) => {
            let _ = call();
            Err(error.into())
        }
        Some(Effect::Short) | None => call(),
    };
    // It has happened.
    let _ = tell(operation, path, Moment::After);
    result
}

fn tell(operation: Operation, path: &Path, moment: Moment) -> io::Result<()> {
    use Operation::{Create, Flush, FlushDirectory, Remove, Rename, Truncate};
    if !matches!(
        operation,
        Create | Truncate | Rename | Remove | Flush | FlushDirectory
    ) {
        return Ok(());
    }
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
