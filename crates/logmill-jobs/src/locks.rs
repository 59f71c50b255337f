//! Locks that are held while the backend is called, such as those of unique keys and of flows.
//!
//! The backend may call a subscriber of its events, whose code may do anything, such as enqueue another
//! unique job. So two threads can want each other's locks. A thread that has one, or is about to open a
//! queue, waits for another one for a time only.
//!
//! A call that takes several by itself takes them in this order: that of edits, that of a unique key, and
//! then that of a flow or of the walk over a queue. It waits for the next one as long as it takes.

use std::cell::Cell;
use std::hash::BuildHasher;
use std::time::Duration;

use foldhash::quality::RandomState;
use parking_lot::{ReentrantMutex, ReentrantMutexGuard};

use crate::backend::BackendError;

/// Keys that share a lock are those whose hashes agree in the lowest bits.
const LOCKS: usize = 256;
/// For so long a thread waits that may be waited for itself.
const LONGEST: Duration = Duration::from_secs(1);
/// Why it is refused then.
const WAITS: &str = "a call of a subscriber waits for another thread, which may wait for it";

thread_local! {
    /// What this thread has that others may wait for.
    static HAS: Cell<u32> = const { Cell::new(0) };
}

/// Says that this thread has something for which others may wait, until it is dropped.
pub(crate) struct Having(());

impl Having {
    pub(crate) fn one_more() -> Self {
        let _ = HAS.try_with(|has| has.set(has.get().saturating_add(1)));
        Self(())
    }
}

impl Drop for Having {
    fn drop(&mut self) {
        let _ = HAS.try_with(|has| has.set(has.get().saturating_sub(1)));
    }
}

/// A lock. Reentrant, as a subscriber may come back to it.
#[derive(Default)]
pub(crate) struct Lock(ReentrantMutex<()>);

/// What is locked, until it is dropped.
pub(crate) struct Locked<'a> {
    _lock: ReentrantMutexGuard<'a, ()>,
    _having: Having,
}

impl Lock {
    /// # Errors
    /// [`BackendError::Invalid`]: another thread has the lock, and may wait for what this one has.
    pub(crate) fn lock(&self) -> Result<Locked<'_>, BackendError> {
        self.lock_after(0)
    }

    /// Takes the lock after so many that this call took before, always in the order that [the
    /// module](self) says. Nobody who has this one waits for those without end, so they are no reason
    /// to wait for a time only.
    ///
    /// # Errors
    /// As for [`lock`](Self::lock).
    pub(crate) fn lock_after(&self, own: u32) -> Result<Locked<'_>, BackendError> {
        let has_others = HAS.try_with(Cell::get).is_ok_and(|has| has > own);
        let lock = match has_others {
            false => Some(self.0.lock()),
            true => self.0.try_lock_for(LONGEST),
        };
        let lock = lock.ok_or_else(|| BackendError::Invalid(WAITS.to_owned()))?;
        Ok(Locked {
            _lock: lock,
            _having: Having::one_more(),
        })
    }
}

/// A step that is made once, and again only if it has failed.
#[derive(Default)]
pub(crate) struct Once {
    lock: ReentrantMutex<Cell<Progress>>,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Progress {
    #[default]
    NotDone,
    Begun,
    Done,
}

impl Once {
    /// Makes the step, unless it was made. Others wait meanwhile, a time only if this thread has something
    /// for which the step may wait.
    ///
    /// # Errors
    /// Those of the step. [`BackendError::Invalid`]: it is being made, and this is called from within it, or
    /// has waited in vain.
    pub(crate) fn make(
        &self,
        step: impl FnOnce() -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        let refused = |why: &str| Err(BackendError::Invalid(why.to_owned()));
        let has_any = HAS.try_with(Cell::get).is_ok_and(|has| has > 0);
        let lock = match has_any {
            false => Some(self.lock.lock()),
            true => self.lock.try_lock_for(LONGEST),
        };
        let Some(progress) = lock else {
            return refused(WAITS);
        };
        match progress.get() {
            Progress::Done => return Ok(()),
            Progress::Begun => return refused("a subscriber calls what it was called from"),
            Progress::NotDone => {}
        }
        /// Whatever becomes of the step, also if a subscriber panics in it.
        struct Ends<'a>(&'a Cell<Progress>);
        impl Drop for Ends<'_> {
            fn drop(&mut self) {
                if self.0.get() == Progress::Begun {
                    self.0.set(Progress::NotDone);
                }
            }
        }
        progress.set(Progress::Begun);
        let ends = Ends(&progress);
        step()?;
        ends.0.set(Progress::Done);
        Ok(())
    }
}

/// Locks of which each key has one.
pub(crate) struct Locks {
    hasher: RandomState,
    locks: Box<[Lock]>,
}

impl Default for Locks {
    fn default() -> Self {
        Self {
            hasher: RandomState::default(),
            locks: (0..LOCKS).map(|_| Lock::default()).collect(),
        }
    }
}

impl Locks {
    /// Locks a key.
    ///
    /// # Errors
    /// Those of [`Lock::lock`].
    pub(crate) fn lock(&self, key: &[u8]) -> Result<Locked<'_>, BackendError> {
        self.lock_after(0, key)
    }

    /// Locks a key after so many locks that this call took before.
    ///
    /// # Errors
    /// Those of [`Lock::lock_after`].
    pub(crate) fn lock_after(&self, own: u32, key: &[u8]) -> Result<Locked<'_>, BackendError> {
        let hash = self.hasher.hash_one(key);
        // The remainder is less than the number of locks.
        self.locks[(hash % LOCKS as u64) as usize].lock_after(own)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    /// Keys with different locks.
    fn keys(locks: &Locks) -> [Vec<u8>; 2] {
        let at = |key: &[u8]| locks.hasher.hash_one(key) % LOCKS as u64;
        let other = (1..=u8::MAX).find(|key| at(&[*key]) != at(&[0]));
        [vec![0], vec![other.unwrap()]]
    }

    #[test]
    fn two_threads_that_want_each_others_keys_both_go_on() {
        let locks = Locks::default();
        let [one, other] = keys(&locks);
        let both_have = Barrier::new(2);
        let take = |first: &[u8], second: &[u8]| {
            let _first = locks.lock(first).unwrap();
            both_have.wait();
            locks.lock(second).map(drop)
        };
        let taken = std::thread::scope(|scope| {
            let first = scope.spawn(|| take(&one, &other));
            let second = scope.spawn(|| take(&other, &one));
            [first.join().unwrap(), second.join().unwrap()]
        });
        let refused = taken.iter().filter_map(|taken| taken.as_ref().err());
        assert!(refused.clone().count() >= 1);
        for error in refused {
            assert!(matches!(error, BackendError::Invalid(_)), "{error}");
        }
        // Nothing is left locked, and nobody counts as having anything.
        assert!(locks.lock(&one).is_ok() && locks.lock(&other).is_ok());
        assert_eq!(HAS.get(), 0);
    }

    #[test]
    fn a_call_that_takes_several_in_order_waits_as_long_as_it_takes() {
        let (locks, next) = (Locks::default(), Lock::default());
        let is_held = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _held = next.lock().unwrap();
                is_held.wait();
                std::thread::sleep(LONGEST + LONGEST / 2);
            });
            is_held.wait();
            let _key = locks.lock(b"key").unwrap();
            assert!(next.lock_after(1).is_ok());
        });
    }

    #[test]
    fn a_step_is_made_once_though_it_calls_itself_panics_or_fails_before() {
        let once = Once::default();
        let made = Cell::new(0);
        let step = || {
            made.set(made.get() + 1);
            let within = once.make(|| panic!("made twice"));
            assert!(matches!(within, Err(BackendError::Invalid(_))));
            match made.get() {
                1 => panic!("in a subscriber"),
                2 => Err(BackendError::Closed),
                _ => Ok(()),
            }
        };
        let interrupted = std::panic::AssertUnwindSafe(|| once.make(step));
        assert!(std::panic::catch_unwind(interrupted).is_err());
        assert!(matches!(once.make(step), Err(BackendError::Closed)));
        assert!(once.make(step).is_ok() && once.make(step).is_ok());
        assert_eq!(made.get(), 3);
    }

    #[test]
    fn a_thread_that_has_a_key_takes_it_again_and_waits_for_no_other_without_end() {
        let locks = Locks::default();
        let [one, other] = keys(&locks);
        let has = locks.lock(&one).unwrap();
        drop((locks.lock(&one).unwrap(), locks.lock(&other).unwrap()));
        drop(has);
        assert_eq!(HAS.get(), 0);
    }
}
