//! A change that threads and tasks wait for. Wakers are the user's code, which may panic or call back:
//! they are cloned, called and dropped under no lock.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::user_code;

/// Something that changes. Who waits reads [`changes`](Self::changes) first, then looks at what has
/// changed, and waits for a change since then: so a change in between is not missed.
#[derive(Default)]
pub(crate) struct Notice {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    changes: u64,
    /// Tasks so far.
    tasks: u64,
    /// Of tasks that wait, each with its number.
    wakers: Vec<(u64, Waker)>,
}

impl Notice {
    /// How many changes there were.
    pub(crate) fn changes(&self) -> u64 {
        self.state.lock().changes
    }

    /// Has all who wait look again. The caller holds no lock.
    pub(crate) fn notify(&self) {
        let wakers = {
            let mut state = self.state.lock();
            state.changes += 1;
            std::mem::take(&mut state.wakers)
        };
        self.changed.notify_all();
        for (_, waker) in wakers {
            // A panic is its task's own, and keeps the others asleep no longer.
            let _ = user_code::call(|| waker.wake());
        }
    }

    /// Blocks until there was a change since then, or until this time. Returns whether there was.
    pub(crate) fn wait(&self, since: u64, until: Option<Instant>) -> bool {
        let mut state = self.state.lock();
        while state.changes == since {
            match until {
                None => self.changed.wait(&mut state),
                Some(until) => {
                    if self.changed.wait_until(&mut state, until).timed_out() {
                        return state.changes != since;
                    }
                }
            }
        }
        true
    }

    /// Is ready once there was a change since then.
    pub(crate) fn changed(&self, since: u64) -> Changed<'_> {
        Changed {
            notice: self,
            since,
            task: None,
        }
    }
}

/// A task that waits, from [`Notice::changed`].
pub(crate) struct Changed<'a> {
    notice: &'a Notice,
    since: u64,
    /// Its number, once it has waited.
    task: Option<u64>,
}

impl Future for Changed<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let waker = cx.waker().clone();
        let mut state = self.notice.state.lock();
        if state.changes != self.since {
            drop(state);
            return Poll::Ready(());
        }
        let task = *self.task.get_or_insert_with(|| {
            state.tasks += 1;
            state.tasks
        });
        let known = state.wakers.iter_mut().find(|(number, _)| *number == task);
        let former = match known {
            Some((_, known)) => Some(std::mem::replace(known, waker)),
            None => {
                state.wakers.push((task, waker));
                None
            }
        };
        drop(state);
        user_code::discard(former);
        Poll::Pending
    }
}

impl Drop for Changed<'_> {
    fn drop(&mut self) {
        let Some(task) = self.task else {
            return;
        };
        let mut state = self.notice.state.lock();
        let at = state.wakers.iter().position(|(number, _)| *number == task);
        let waker = at.map(|at| state.wakers.swap_remove(at));
        drop(state);
        user_code::discard(waker);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Wake;
    use std::time::Duration;

    use super::*;

    /// A task that its waker polls at once, on the thread that wakes it.
    struct Inline {
        notice: Arc<Notice>,
        task: Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
        polls: AtomicU32,
    }

    impl Inline {
        fn poll(self: &Arc<Self>) {
            self.polls.fetch_add(1, Ordering::SeqCst);
            let task = self.task.lock().take();
            if let Some(mut task) = task {
                let waker = Waker::from(Arc::clone(self));
                if task
                    .as_mut()
                    .poll(&mut Context::from_waker(&waker))
                    .is_pending()
                {
                    *self.task.lock() = Some(task);
                }
            }
        }
    }

    impl Wake for Inline {
        fn wake(self: Arc<Self>) {
            // It calls back.
            assert!(self.notice.changes() > 0);
            self.poll();
        }
    }

    /// Waits for two changes.
    fn inline(notice: &Arc<Notice>) -> Arc<Inline> {
        let waited = Arc::clone(notice);
        let task = async move {
            for _ in 0..2 {
                let since = waited.changes();
                waited.changed(since).await;
            }
        };
        let inline = Arc::new(Inline {
            notice: Arc::clone(notice),
            task: Mutex::new(Some(Box::pin(task))),
            polls: AtomicU32::new(0),
        });
        inline.poll();
        inline
    }

    struct Panics;

    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("a waker");
        }
    }

    #[test]
    fn a_waker_may_poll_at_once_and_another_one_panic() {
        let notice = Arc::<Notice>::default();
        let panics = Waker::from(Arc::new(Panics));
        let mut first = notice.changed(0);
        let polled = Pin::new(&mut first).poll(&mut Context::from_waker(&panics));
        assert!(polled.is_pending());
        let task = inline(&notice);
        notice.notify();
        assert!(task.task.lock().is_some(), "it waits for the second change");
        notice.notify();
        assert!(task.task.lock().is_none());
        assert_eq!(task.polls.load(Ordering::SeqCst), 3);
        assert!(notice.state.lock().wakers.is_empty());
    }

    #[test]
    fn a_task_that_is_dropped_leaves_nothing_behind() {
        let notice = Notice::default();
        let mut waits = notice.changed(0);
        for _ in 0..3 {
            let mut cx = Context::from_waker(Waker::noop());
            assert!(Pin::new(&mut waits).poll(&mut cx).is_pending());
        }
        assert_eq!(notice.state.lock().wakers.len(), 1);
        drop(waits);
        assert!(notice.state.lock().wakers.is_empty());
    }

    #[test]
    fn a_change_before_the_wait_is_not_missed() {
        let notice = Notice::default();
        let since = notice.changes();
        notice.notify();
        assert!(notice.wait(since, None));
        let since = notice.changes();
        let soon = Instant::now() + Duration::from_millis(5);
        assert!(!notice.wait(since, Some(soon)));
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| notice.wait(since, None));
            notice.notify();
            assert!(waits.join().unwrap());
        });
    }
}
