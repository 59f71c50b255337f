//! Async tasks among the sleepers of an event count.
//!
//! A task that waits has its waker in a list. To wake it is to take the waker out of the list, so
//! the task finds out whether it was woken by looking whether its waker is still there. Unlike the
//! permit of a thread, the wake-up belongs to that task:
//!
//! - If the task looks for work again, it has used its wake-up, or never needed one.
//! - If its future is dropped instead, nobody looks for the work that it was woken for. It then
//!   wakes another sleeper, a thread or a task, if there is one. If there is none, whoever registers
//!   later sees the work in its last look: the waker was taken out under the lock that registering
//!   takes.
//!
//! Wakers are user code. They are cloned, woken and dropped outside of the lock.

use std::collections::BTreeMap;
use std::task::{Context, Poll, Waker};

use smallvec::SmallVec;

use super::EventCount;
use crate::events;
use crate::sync::{Ordering, fence};

/// The tasks that wait, in the order in which they registered.
#[derive(Default)]
pub(super) struct Wakers {
    asleep: BTreeMap<u64, Waker>,
    registered: u64,
}

pub(super) type Taken = SmallVec<[Waker; 4]>;

impl Wakers {
    pub(super) fn len(&self) -> usize {
        self.asleep.len()
    }

    /// Takes out up to `count` tasks, for the caller to [`wake`] outside of the lock.
    pub(super) fn take(&mut self, count: usize) -> Taken {
        let mut taken = Taken::new();
        while taken.len() < count
            && let Some((_, waker)) = self.asleep.pop_first()
        {
            taken.push(waker);
        }
        taken
    }
}

pub(super) fn wake(wakers: Taken) {
    for waker in wakers {
        events::wake(waker);
    }
}

/// Whether a task waits, or has been woken and not looked for work since. Before it is dropped, it
/// is [given up](EventCount::give_up).
#[derive(Default)]
pub(crate) struct Waiting(Option<u64>);

impl EventCount {
    /// Looks for work for a task, which is woken when there may be some.
    ///
    /// `look` takes work, `may_have_work` is the last look before the task sleeps. If there is
    /// something that cannot be taken yet, the task is woken at once, to look again after others
    /// had their turn.
    pub(crate) fn poll<T>(
        &self,
        waiting: &mut Waiting,
        context: &Context<'_>,
        look: impl FnOnce() -> Option<T>,
        may_have_work: impl FnOnce() -> bool,
    ) -> Poll<T> {
        // Whether it was woken or not: it looks now.
        self.forget(waiting);
        if let Some(found) = look() {
            return Poll::Ready(found);
        }
        self.register_task(waiting, context.waker().clone());
        if may_have_work() {
            // It stays in the list: if it is told of other work and then dropped, it must pass that
            // on. Others know of the work that it has seen itself: they were told, or see it in
            // their own last look.
            context.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn register_task(&self, waiting: &mut Waiting, waker: Waker) {
        let mut state = self.lock();
        let number = state.wakers.registered;
        state.wakers.registered += 1;
        state.wakers.asleep.insert(number, waker);
        self.note_asleep(&state);
        drop(state);
        // As in `register`.
        fence(Ordering::SeqCst);
        waiting.0 = Some(number);
    }

    /// Ends the wait of a task that looks for work after that. Returns false if it has been woken.
    fn forget(&self, waiting: &mut Waiting) -> bool {
        let Some(number) = waiting.0.take() else {
            return true;
        };
        let mut state = self.lock();
        let waker = state.wakers.asleep.remove(&number);
        self.note_asleep(&state);
        drop(state);
        waker.is_some()
    }

    /// Ends the wait of a task that does not look for work any more. If it has been woken, another
    /// sleeper is woken in its place.
    pub(crate) fn give_up(&self, waiting: &mut Waiting) {
        if !self.forget(waiting) {
            // Under the lock again: a look at `sleepers` without it might miss one that has
            // registered since the work was made visible.
            self.wake_some(self.lock(), 1);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::task::Wake;
    use std::time::Instant;

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    impl Wakes {
        fn so_far(&self) -> usize {
            self.0.load(Relaxed)
        }
    }

    /// A task that has polled and found nothing.
    fn asleep(sleepers: &EventCount) -> (Waiting, Arc<Wakes>) {
        let wakes = Arc::<Wakes>::default();
        let mut waiting = Waiting::default();
        let waker = Waker::from(Arc::clone(&wakes));
        let context = Context::from_waker(&waker);
        let polled = sleepers.poll(&mut waiting, &context, || None::<()>, || false);
        assert!(polled.is_pending());
        (waiting, wakes)
    }

    #[test]
    fn tasks_are_woken_in_the_order_in_which_they_came() {
        let sleepers = EventCount::new();
        let mut tasks = [(); 3].map(|()| asleep(&sleepers));
        let woken = |tasks: &[(Waiting, Arc<Wakes>)]| -> Vec<_> {
            tasks.iter().map(|(_, wakes)| wakes.so_far()).collect()
        };
        sleepers.notify(1);
        assert_eq!(woken(&tasks), [1, 0, 0]);
        sleepers.notify(5);
        assert_eq!(woken(&tasks), [1, 1, 1]);
        assert!(sleepers.is_quiet());
        for (waiting, _) in &mut tasks {
            sleepers.give_up(waiting);
        }
        assert!(sleepers.is_quiet());
    }

    #[test]
    fn a_task_that_gives_up_leaves_nothing_to_wake() {
        let sleepers = EventCount::new();
        let (mut waiting, wakes) = asleep(&sleepers);
        sleepers.give_up(&mut waiting);
        assert!(sleepers.is_quiet());
        sleepers.notify_all();
        assert_eq!(wakes.so_far(), 0);
    }

    #[test]
    fn a_woken_task_that_gives_up_wakes_another_task_and_one_that_looks_again_does_not() {
        let sleepers = EventCount::new();
        let (mut first, _) = asleep(&sleepers);
        let (mut second, wakes) = asleep(&sleepers);
        sleepers.notify(1);
        sleepers.give_up(&mut first);
        assert_eq!(wakes.so_far(), 1);
        let (mut third, wakes) = asleep(&sleepers);
        let context = Context::from_waker(Waker::noop());
        assert!(
            sleepers
                .poll(&mut second, &context, || Some(()), || false)
                .is_ready()
        );
        sleepers.give_up(&mut second);
        assert_eq!(wakes.so_far(), 0);
        sleepers.give_up(&mut third);
    }

    #[test]
    fn a_woken_task_that_gives_up_wakes_a_thread() {
        let sleepers = EventCount::new();
        let (mut task, _) = asleep(&sleepers);
        sleepers.notify(1);
        let thread = sleepers.register();
        sleepers.give_up(&mut task);
        sleepers.wait(thread, None);
        assert!(sleepers.is_quiet());
    }

    #[test]
    fn a_permit_of_a_thread_that_does_not_wait_wakes_a_task() {
        let sleepers = EventCount::new();
        let thread = sleepers.register();
        let (mut task, wakes) = asleep(&sleepers);
        sleepers.notify(1);
        assert_eq!(wakes.so_far(), 0);
        sleepers.cancel(thread);
        assert_eq!(wakes.so_far(), 1);
        assert!(sleepers.is_quiet());
        sleepers.give_up(&mut task);
    }

    #[test]
    fn a_thread_that_reaches_its_deadline_takes_no_wake_up_from_a_task() {
        let sleepers = EventCount::new();
        let thread = sleepers.register();
        let (mut task, wakes) = asleep(&sleepers);
        sleepers.wait(thread, Some(Instant::now()));
        sleepers.notify(1);
        assert_eq!(wakes.so_far(), 1);
        sleepers.give_up(&mut task);
        assert!(sleepers.is_quiet());
    }

    #[test]
    fn a_waker_that_panics_hurts_nobody_and_the_next_one_is_woken() {
        struct Bomb;
        impl Wake for Bomb {
            fn wake(self: Arc<Self>) {
                std::panic::resume_unwind(Box::new("a bug in an executor"));
            }
        }
        let sleepers = EventCount::new();
        let mut waiting = Waiting::default();
        let waker = Waker::from(Arc::new(Bomb));
        let context = Context::from_waker(&waker);
        assert!(
            sleepers
                .poll(&mut waiting, &context, || None::<()>, || false)
                .is_pending()
        );
        let (mut task, wakes) = asleep(&sleepers);
        sleepers.notify(2);
        assert_eq!(wakes.so_far(), 1);
        sleepers.give_up(&mut task);
    }

    #[test]
    fn a_task_is_woken_after_the_last_lock_is_released() {
        let sleepers = EventCount::new();
        let (mut waiting, wakes) = asleep(&sleepers);
        let lock = events::Mutex::new(());
        let outer = events::Held::new();
        let guard = lock.lock();
        sleepers.notify(1);
        drop(guard);
        assert_eq!(wakes.so_far(), 0);
        drop(outer);
        assert_eq!(wakes.so_far(), 1);
        sleepers.give_up(&mut waiting);
    }
}
