use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use super::*;

const LONG: Duration = Duration::from_secs(30);

/// A task that tells of each turn, and does what it is asked to.
struct Body<F> {
    turns: Mutex<Sender<Instant>>,
    act: F,
}

fn serve(
    task: &Task,
    act: impl Fn() -> Option<Instant> + Send + Sync + 'static,
) -> Receiver<Instant> {
    let (sender, turns) = channel();
    task.serve(Body {
        turns: Mutex::new(sender),
        act,
    });
    turns
}

impl<F: Fn() -> Option<Instant> + Send + Sync> Serve for Body<F> {
    fn turn(&self) -> Option<Instant> {
        let next = (self.act)();
        let _ = self.turns.lock().unwrap().send(Instant::now());
        next
    }
}

fn many() -> Runtime {
    let runtime = Runtime::for_many();
    runtime.start().unwrap();
    runtime
}

/// Waits for something that other threads bring about.
fn wait_until(what: impl Fn() -> bool) {
    let end = Instant::now() + LONG;
    while !what() {
        assert!(Instant::now() < end);
        thread::yield_now();
    }
}

#[test]
fn a_task_has_a_turn_when_it_is_woken_and_when_it_is_due() {
    for runtime in [Runtime::for_one(), Runtime::for_many()] {
        runtime.start().unwrap();
        let task = runtime.timer_task();
        let due = Duration::from_millis(30);
        let left = AtomicUsize::new(1);
        let turns = serve(&task, move || {
            let again =
                left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
            again.is_ok().then(|| Instant::now() + due)
        });
        let first = turns.recv_timeout(LONG).unwrap();
        let second = turns.recv_timeout(LONG).unwrap();
        assert!(second - first >= due - Duration::from_millis(1));
        task.waker().wake();
        turns.recv_timeout(LONG).unwrap();
        assert!(turns.recv_timeout(Duration::from_millis(20)).is_err());
    }
}

#[test]
fn a_task_that_is_woken_in_its_turn_has_another_one() {
    let runtime = many();
    let task = runtime.timer_task();
    let (waker, has_woken) = (task.waker(), AtomicUsize::new(0));
    let turns = serve(&task, move || {
        if has_woken.fetch_add(1, Ordering::Relaxed) < 3 {
            waker.wake();
        }
        None
    });
    for _ in 0..4 {
        turns.recv_timeout(LONG).unwrap();
    }
    assert!(turns.recv_timeout(Duration::from_millis(20)).is_err());
}

#[test]
fn tasks_due_at_different_times_are_served_in_time_by_few_threads() {
    let runtime = many();
    let start = Instant::now();
    let tasks: Vec<_> = (0..1000)
        .map(|number| {
            let task = runtime.maintenance_task();
            let at = start + Duration::from_millis(50 + number % 100);
            let turns = serve(&task, move || (Instant::now() < at).then_some(at));
            (task, turns, at)
        })
        .collect();
    for (_, turns, at) in &tasks {
        while turns.recv_timeout(LONG).unwrap() < *at {}
    }
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(runtime.maintenance.threads() <= MAINTENANCE_THREADS);
}

#[test]
fn turns_that_take_long_do_not_hold_up_other_tasks() {
    let runtime = many();
    let release = Arc::new(OnceLock::<()>::new());
    let stuck: Vec<_> = (0..MAINTENANCE_THREADS - 1)
        .map(|_| {
            let task = runtime.maintenance_task();
            let wait = Arc::clone(&release);
            let turns = serve(&task, move || {
                wait.wait();
                None
            });
            (task, turns)
        })
        .collect();
    let other = runtime.maintenance_task();
    let turns = serve(&other, || None);
    turns.recv_timeout(LONG).unwrap();
    // Also one that is due later.
    let later = Instant::now() + Duration::from_millis(20);
    let other = runtime.maintenance_task();
    let turns = serve(&other, move || (Instant::now() < later).then_some(later));
    while turns.recv_timeout(LONG).unwrap() < later {}
    release.set(()).unwrap();
    for (_, turns) in &stuck {
        turns.recv_timeout(LONG).unwrap();
    }
}

#[test]
fn user_code_that_does_not_return_holds_up_no_other_task_however_many_there_is() {
    let runtime = many();
    let release = Arc::new(OnceLock::<()>::new());
    let stuck: Vec<_> = (0..20)
        .map(|_| {
            let task = runtime.timer_task();
            let wait = Arc::clone(&release);
            let turns = serve(&task, move || {
                outside(|| outside(|| *wait.wait()));
                None
            });
            let other = runtime.timer_task();
            serve(&other, || None).recv_timeout(LONG).unwrap();
            (task, turns)
        })
        .collect();
    release.set(()).unwrap();
    for (task, turns) in &stuck {
        turns.recv_timeout(LONG).unwrap();
        task.waker().wake();
        turns.recv_timeout(LONG).unwrap();
    }
    // The threads that stood in are gone.
    wait_until(|| runtime.timer.threads() <= TIMER_THREADS);
}

#[test]
fn a_queue_alone_has_one_thread_in_each_lane_whatever_its_turns_do() {
    let runtime = Runtime::for_one();
    runtime.start().unwrap();
    let task = runtime.timer_task();
    let turns = serve(&task, || {
        outside(|| thread::sleep(Duration::from_millis(1)));
        Some(Instant::now())
    });
    for _ in 0..10 {
        turns.recv_timeout(LONG).unwrap();
        assert_eq!(runtime.timer.threads(), 1);
    }
}

#[test]
fn a_removed_task_has_no_more_turns_and_its_last_one_has_ended() {
    let runtime = many();
    for _ in 0..100 {
        let task = runtime.timer_task();
        let in_turn = Arc::new(AtomicUsize::new(0));
        let own = Arc::clone(&in_turn);
        let turns = serve(&task, move || {
            own.fetch_add(1, Ordering::Relaxed);
            thread::yield_now();
            own.fetch_sub(1, Ordering::Relaxed);
            Some(Instant::now())
        });
        turns.recv_timeout(LONG).unwrap();
        let waker = task.waker();
        drop(task);
        assert_eq!(in_turn.load(Ordering::Relaxed), 0);
        while turns.try_recv().is_ok() {}
        waker.wake();
        thread::yield_now();
        assert!(turns.try_recv().is_err());
    }
}

#[test]
fn a_turn_may_remove_its_own_task_another_one_and_the_runtime() {
    let runtime = many();
    let (own, other) = (runtime.timer_task(), runtime.timer_task());
    let _turns = serve(&other, || Some(Instant::now()));
    let dropped = Mutex::new(None);
    let dropped = Arc::new(dropped);
    let held = Arc::clone(&dropped);
    let (sender, ended) = channel();
    let sender = Mutex::new(sender);
    let waker = own.waker();
    let _turns = serve(&own, move || {
        let (own, other, runtime) = held.lock().unwrap().take()?;
        outside(|| drop::<(Task, Task, Runtime)>((own, other, runtime)));
        sender.lock().unwrap().send(()).unwrap();
        Some(Instant::now())
    });
    *dropped.lock().unwrap() = Some((own, other, runtime));
    waker.wake();
    ended.recv_timeout(LONG).unwrap();
}
