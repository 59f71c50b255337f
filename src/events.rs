//! Events for a `tracing` subscriber. A subscriber is user code: it may panic, and may use, close
//! or drop the queue that emits the event.
//!
//! So no event is emitted while this crate holds a lock. An event raised under a lock waits in its
//! thread until the last lock is released; the locks in this file keep count. Events that a
//! subscriber's own calls raise while it handles an event are dropped, since they would lead to
//! further ones without end.
//!
//! The wakers of async tasks are user code too, and wait in the same way.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
#[cfg(feature = "async")]
use std::task::Waker;
use std::time::Duration;

use crate::user_code;

thread_local! {
    static STATE: Cell<State> = const {
        Cell::new(State { held: 0, has_waiting: false, is_telling: false })
    };
    static WAITING: RefCell<Vec<Box<dyn FnOnce()>>> = const { RefCell::new(Vec::new()) };
}

#[derive(Clone, Copy)]
struct State {
    /// How many locks the thread holds.
    held: u32,
    /// Whether something waits until the last of them is released. While a subscriber handles an
    /// event, that can only be wakers.
    has_waiting: bool,
    is_telling: bool,
}

/// Raises an event: a level, and the arguments of the `tracing` macro. Values that it names are
/// moved into the event, so they are owned.
macro_rules! event {
    (debug, $($told:tt)+) => {
        // Raised for each failed attempt, and usually not subscribed to.
        if ::tracing::level_filters::LevelFilter::current() >= ::tracing::Level::DEBUG {
            $crate::events::raise(move || ::tracing::debug!($($told)+))
        }
    };
    ($level:ident, $($told:tt)+) => {
        $crate::events::raise(move || ::tracing::$level!($($told)+))
    };
}
pub(crate) use event;

pub(crate) fn raise(event: impl FnOnce() + 'static) {
    let state = STATE.get();
    if state.is_telling {
        return;
    }
    if state.held == 0 {
        tell(event);
        return;
    }
    // A thread that is ending, and has no locals any more, emits no more events.
    let kept = WAITING.try_with(|waiting| {
        waiting.borrow_mut().push(Box::new(move || tell(event)));
    });
    STATE.set(State {
        has_waiting: kept.is_ok(),
        ..state
    });
}

/// Wakes a task as soon as the thread holds none of this crate's locks.
#[cfg(feature = "async")]
pub(crate) fn wake(waker: Waker) {
    fn now(waker: Waker) {
        // Its panic must not end what brought the news.
        let _ = user_code::call(|| waker.wake());
    }
    let state = STATE.get();
    if state.held == 0 {
        return now(waker);
    }
    let mut waker = Some(waker);
    let kept = WAITING.try_with(|waiting| {
        let waker = waker.take();
        let wake = move || waker.into_iter().for_each(now);
        waiting.borrow_mut().push(Box::new(wake));
    });
    match waker {
        // A thread that is ending has no locals any more.
        Some(waker) if kept.is_err() => now(waker),
        _ => STATE.set(State {
            has_waiting: true,
            ..state
        }),
    }
}

fn tell(event: impl FnOnce()) {
    let telling = |is_telling| {
        STATE.set(State {
            is_telling,
            ..STATE.get()
        });
    };
    telling(true);
    // If the subscriber panics, the event is lost.
    let _ = user_code::call(event);
    telling(false);
}

#[cold]
fn tell_waiting() {
    let waiting = WAITING.try_with(RefCell::take).unwrap_or_default();
    for tell in waiting {
        tell();
    }
}

/// While it lives, its thread emits no events.
pub(crate) struct Held {
    /// Belongs to the thread that created it.
    not_send: PhantomData<*const ()>,
}

impl Held {
    #[inline]
    pub(crate) fn new() -> Self {
        let state = STATE.get();
        STATE.set(State {
            held: state.held + 1,
            ..state
        });
        Self {
            not_send: PhantomData,
        }
    }
}

impl Drop for Held {
    #[inline]
    fn drop(&mut self) {
        let state = STATE.get();
        let held = state.held - 1;
        let tells = held == 0 && state.has_waiting;
        STATE.set(State {
            held,
            has_waiting: state.has_waiting && !tells,
            ..state
        });
        if tells {
            tell_waiting();
        }
    }
}

/// A mutex under which events can be raised.
#[derive(Default)]
pub(crate) struct Mutex<T>(parking_lot::Mutex<T>);

pub(crate) struct MutexGuard<'a, T> {
    guard: parking_lot::MutexGuard<'a, T>,
    /// Dropped after the guard.
    _held: Held,
}

impl<T> Mutex<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(parking_lot::Mutex::new(value))
    }

    #[inline]
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        let held = Held::new();
        MutexGuard {
            guard: self.0.lock(),
            _held: held,
        }
    }

    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let held = Held::new();
        Some(MutexGuard {
            guard: self.0.try_lock()?,
            _held: held,
        })
    }

    pub(crate) fn try_lock_for(&self, timeout: Duration) -> Option<MutexGuard<'_, T>> {
        let held = Held::new();
        Some(MutexGuard {
            guard: self.0.try_lock_for(timeout)?,
            _held: held,
        })
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

/// A subscriber for tests.
#[cfg(all(test, not(loom)))]
pub(crate) mod recorded {
    use std::fmt::Debug;
    use std::sync::{Arc, Mutex};

    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Metadata, Subscriber};

    #[derive(Clone, Default)]
    struct Recorder(Arc<Mutex<Vec<String>>>);

    /// The levels and messages of this thread's events while it runs `code`.
    pub(crate) fn during(code: impl FnOnce()) -> Vec<String> {
        let recorder = Recorder::default();
        tracing::subscriber::with_default(recorder.clone(), code);
        std::mem::take(&mut recorder.0.lock().unwrap())
    }

    struct Message<'a>(&'a mut String);

    impl Visit for Message<'_> {
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            if field.name() == "message" {
                *self.0 += &format!(" {value:?}");
            }
        }
    }

    impl Subscriber for Recorder {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }

        fn record(&self, _: &Id, _: &Record<'_>) {}

        fn record_follows_from(&self, _: &Id, _: &Id) {}

        fn event(&self, event: &Event<'_>) {
            let mut text = event.metadata().level().to_string();
            event.record(&mut Message(&mut text));
            self.0.lock().unwrap().push(text);
        }

        fn enter(&self, _: &Id) {}

        fn exit(&self, _: &Id) {}
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::rc::Rc;

    use super::*;

    /// Records the order in which things happened.
    #[derive(Clone, Default)]
    struct Notes(Rc<RefCell<Vec<&'static str>>>);

    impl Notes {
        fn add(&self, note: &'static str) {
            self.0.borrow_mut().push(note);
        }

        fn raise(&self, note: &'static str) {
            let notes = self.clone();
            raise(move || notes.add(note));
        }

        fn take(&self) -> Vec<&'static str> {
            self.0.take()
        }
    }

    #[test]
    fn events_are_told_at_once_or_when_the_last_lock_of_the_thread_is_released() {
        let (outer, inner, notes) = (Mutex::new(()), Mutex::new(()), Notes::default());
        notes.raise("free");
        assert_eq!(notes.take(), ["free"]);
        let outer_guard = outer.lock();
        notes.raise("under one");
        let inner_guard = inner.try_lock();
        assert!(inner_guard.is_some() && inner.try_lock_for(Duration::ZERO).is_none());
        notes.raise("under two");
        drop(outer_guard);
        assert_eq!(notes.take(), [""; 0]);
        let held = Held::new();
        drop(inner_guard);
        assert_eq!(notes.take(), [""; 0]);
        drop(held);
        assert_eq!(notes.take(), ["under one", "under two"]);
        // The guard is dropped before the events that wait for it.
        let shared = Rc::new(Mutex::new(()));
        let (other, told) = (Rc::clone(&shared), notes.clone());
        let guard = shared.lock();
        raise(move || {
            told.add(if other.try_lock().is_some() {
                "free"
            } else {
                "locked"
            })
        });
        drop(guard);
        assert_eq!(notes.take(), ["free"]);
    }

    #[test]
    fn a_subscriber_that_panics_or_raises_events_itself_is_told_the_next_ones() {
        let (lock, notes) = (Mutex::new(()), Notes::default());
        raise(|| panic!("a bug in a subscriber"));
        let inner = notes.clone();
        raise(move || {
            inner.raise("of itself");
            let lock = Mutex::new(());
            let _guard = lock.lock();
            inner.raise("of itself, under a lock");
        });
        let guard = lock.lock();
        raise(|| panic!("another one"));
        notes.raise("told");
        drop(guard);
        notes.raise("told, too");
        assert_eq!(notes.take(), ["told", "told, too"]);
    }

    /// `tracing` is called only here. Under other kinds of locks no event may be raised: those with
    /// a condition variable, the list of segments, the index of keys and the places of consumers,
    /// which guard a few lines each that raise none, and those of a turn's own state, which nobody
    /// else waits for.
    #[test]
    fn all_events_go_through_this_file_and_locks_are_of_the_kind_that_knows() {
        let with_others = [
            "dispatch/registry.rs",
            "dispatch/timer.rs",
            "engine/flusher.rs",
            "engine/maintenance.rs",
            "engine/threads.rs",
            "log/mod.rs",
            "state/mod.rs",
            "tree/mod.rs",
            "workers.rs",
        ];
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut todo = vec![root.clone()];
        let mut with_locks = Vec::new();
        while let Some(path) = todo.pop() {
            if path.is_dir() {
                todo.extend(
                    std::fs::read_dir(path)
                        .unwrap()
                        .map(|entry| entry.unwrap().path()),
                );
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap();
            // What makes faults, and simulates a disk, is for tests only.
            let is_for_tests = name.ends_with("faults.rs") || name == "simulated_disk.rs";
            if name == "events.rs" || is_for_tests {
                continue;
            }
            assert!(!text.contains("tracing::"), "{name}: use events::event!");
            if text.contains("parking_lot::") {
                with_locks.push(name.to_owned());
            }
        }
        with_locks.sort();
        assert_eq!(
            with_locks, with_others,
            "use events::Mutex, or argue here why not"
        );
    }
}
