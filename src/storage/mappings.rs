//! Counts the files of queues that this process has mapped, and limits them.
//!
//! The kernel limits the mappings of a process (`vm.max_map_count`). A process that has reached the
//! limit cannot allocate memory or start threads, and is aborted. So part of the mappings is left
//! to the rest of the process, and whatever does not get a mapping waits, as on a full disk.

use std::fmt;
use std::io;
use std::sync::OnceLock;

/// What a file is mapped for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// For use: while it is appended to, or while jobs in it are being processed or wait to be due.
    Use,
    /// For a short lookup. May still get a mapping when `Use` gets none.
    Look,
}

/// Linux's default, used if the limit cannot be read.
const DEFAULT_MAX: usize = 65_530;

/// The share of all mappings that [`Purpose::Use`] may take, including [`Purpose::Look`].
const SHARE_TO_USE: (usize, usize) = (3, 4);
/// The share of all mappings that both purposes together may take.
const SHARE_TO_LOOK: (usize, usize) = (7, 8);
/// Up to this share of all mappings, segments that wait to be claimed from stay mapped, so that the
/// claim need not map them again.
const SHARE_TO_WAIT: (usize, usize) = (1, 2);

/// A counted mapping.
#[derive(Debug)]
pub(crate) struct Counted(());

impl Counted {
    /// Counts one more mapping, if the limit allows it.
    pub(crate) fn new(purpose: Purpose) -> io::Result<Self> {
        let share = match purpose {
            Purpose::Use => SHARE_TO_USE,
            Purpose::Look => SHARE_TO_LOOK,
        };
        // Counted before the check, so that several threads at once cannot exceed the limit.
        let counted = Self::unlimited();
        let mapped = count::now();
        if mapped > of_all(share) {
            let error = TooMany { mapped, max: max() };
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, error));
        }
        Ok(counted)
    }

    /// Counts a mapping that is not a file's.
    pub(crate) fn unlimited() -> Self {
        count::add(1);
        Self(())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        count::add(-1);
    }
}

/// Whether there are so many mappings that segments which wait should not be mapped.
pub(crate) fn are_many() -> bool {
    #[cfg(test)]
    if limited::are_many() {
        return true;
    }
    count::now() > of_all(SHARE_TO_WAIT)
}

fn of_all((part, whole): (usize, usize)) -> usize {
    max() / whole * part
}

/// The most mappings that this process may have.
fn max() -> usize {
    #[cfg(test)]
    if let Some(max) = limited::max() {
        return max;
    }
    static MAX: OnceLock<usize> = OnceLock::new();
    *MAX.get_or_init(|| {
        let read = std::fs::read_to_string("/proc/sys/vm/max_map_count");
        let max = read.ok().and_then(|text| text.trim().parse().ok());
        max.unwrap_or(DEFAULT_MAX)
    })
}

#[derive(Debug)]
struct TooMany {
    mapped: usize,
    max: usize,
}

impl fmt::Display for TooMany {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mapped, max } = self;
        write!(
            f,
            "{mapped} files of queues are mapped, as many as leave room for the rest of the process \
             with vm.max_map_count at {max}; complete jobs, use larger segments, or raise it"
        )
    }
}

impl std::error::Error for TooMany {}

#[cfg(not(test))]
mod count {
    use std::sync::atomic::{AtomicIsize, Ordering};

    static COUNT: AtomicIsize = AtomicIsize::new(0);

    pub(super) fn add(count: isize) {
        // Relaxed: a count, which orders nothing.
        COUNT.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn now() -> usize {
        usize::try_from(COUNT.load(Ordering::Relaxed)).unwrap_or(0)
    }
}

/// In unit tests each thread has its own count and limit.
#[cfg(test)]
mod count {
    use std::cell::Cell;

    thread_local! {
        static COUNT: Cell<isize> = const { Cell::new(0) };
    }

    pub(super) fn add(count: isize) {
        // A thread that is ending does not count any more.
        let _ = COUNT.try_with(|all| all.set(all.get() + count));
    }

    pub(super) fn now() -> usize {
        usize::try_from(COUNT.get()).unwrap_or(0)
    }
}

/// A lower limit, for tests within one thread.
#[cfg(test)]
pub(crate) mod limited {
    use std::cell::Cell;

    thread_local! {
        static MAX: Cell<Option<usize>> = const { Cell::new(None) };
        static ARE_MANY: Cell<bool> = const { Cell::new(false) };
    }

    /// Makes the calling thread's queues unmap segments that wait, however many mappings there are.
    pub(crate) fn to_what_is_used(is_limited: bool) {
        ARE_MANY.set(is_limited);
    }

    pub(super) fn are_many() -> bool {
        ARE_MANY.get()
    }

    /// Limits the calling thread to this many mappings; None removes the limit.
    pub(crate) fn to(max: Option<usize>) {
        MAX.set(max);
    }

    pub(super) fn max() -> Option<usize> {
        MAX.get()
    }

    pub(crate) fn mapped() -> usize {
        super::count::now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_leaves_room_to_look_and_both_leave_room_for_the_rest() {
        limited::to(Some(16));
        let mut used: Vec<_> = (0..8)
            .map(|_| Counted::new(Purpose::Use).unwrap())
            .collect();
        assert!(!are_many());
        used.extend((8..12).map(|_| Counted::new(Purpose::Use).unwrap()));
        assert!(are_many());
        let error = Counted::new(Purpose::Use).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
        assert!(
            error.to_string().contains("vm.max_map_count at 16"),
            "{error}"
        );
        let looks: Vec<_> = (12..14)
            .map(|_| Counted::new(Purpose::Look).unwrap())
            .collect();
        assert!(Counted::new(Purpose::Look).is_err());
        drop(looks);
        used.pop();
        assert!(Counted::new(Purpose::Use).is_ok());
        limited::to(None);
    }
}
