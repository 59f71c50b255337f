//! Alarms of tasks: the timer thread wakes a task at a time, as no runtime's timer is known.

use std::collections::BTreeMap;
use std::task::Waker;

use crate::events::{self, Mutex};
use crate::time::Tick;

/// The tasks to be woken, by the time.
#[derive(Default)]
pub(crate) struct Alarms(Mutex<State>);

#[derive(Default)]
struct State {
    set: BTreeMap<(Tick, u64), Waker>,
    count: u64,
}

/// An alarm that may be set; it is [cleared](Alarms::clear) before it is dropped.
#[derive(Default)]
pub(crate) struct Alarm(Option<(Tick, u64)>);

impl Alarms {
    /// Sets an alarm that is not set. Returns whether it is the next one, so that the timer thread
    /// must know of it.
    pub(super) fn set(&self, alarm: &mut Alarm, at: Tick, waker: Waker) -> bool {
        let mut state = self.0.lock();
        let key = (at, state.count);
        state.count += 1;
        state.set.insert(key, waker);
        alarm.0 = Some(key);
        state.set.keys().next() == Some(&key)
    }

    pub(super) fn clear(&self, alarm: &mut Alarm) {
        if let Some(key) = alarm.0.take() {
            let waker = self.0.lock().set.remove(&key);
            drop(waker);
        }
    }

    /// Wakes those whose time has come. Returns the time of the next one.
    pub(super) fn ring(&self, now: Tick) -> Option<Tick> {
        let mut state = self.0.lock();
        while let Some(first) = state.set.first_entry()
            && first.key().0 <= now
        {
            // It is woken when the lock is released.
            events::wake(first.remove());
        }
        state.set.keys().next().map(|(at, _)| *at)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;
    use std::time::Duration;

    use super::*;
    use crate::time::Clock;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn an_alarm_rings_once_when_its_time_has_come_unless_it_is_cleared() {
        let alarms = Alarms::default();
        let now = Clock::start().now();
        let after = |seconds| now.saturating_add(Duration::from_secs(seconds));
        let wakes = Arc::<Wakes>::default();
        let waker = || Waker::from(Arc::clone(&wakes));
        let mut set = [(); 4].map(|()| Alarm::default());
        let is_next: Vec<_> = [20, 10, 30, 5]
            .into_iter()
            .zip(&mut set)
            .map(|(seconds, alarm)| alarms.set(alarm, after(seconds), waker()))
            .collect();
        assert_eq!(is_next, [true, true, false, true]);
        let [_, _, _, mut cleared] = set;
        alarms.clear(&mut cleared);
        assert_eq!(alarms.ring(after(1)), Some(after(10)));
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
        assert_eq!(alarms.ring(after(20)), Some(after(30)));
        assert_eq!(wakes.0.load(Ordering::Relaxed), 2);
        assert_eq!(alarms.ring(after(30)), None);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 3);
    }
}
