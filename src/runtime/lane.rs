//! A lane: tasks of one kind, and the threads that do their turns.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::sync::{Arc, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::{Serve, Waker};
use crate::sync::{AtomicBool, Condvar, Mutex, MutexGuard, Ordering};

/// Tasks of one kind, and the threads that do their turns.
pub(super) struct Lane {
    name: &'static str,
    /// Most threads in turns, those in user code aside.
    max: usize,
    state: Mutex<State>,
    /// Idle threads wait here.
    work: Condvar,
    /// Whoever removes a task waits here for the end of its turn.
    ended: Condvar,
    threads: std::sync::Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Default)]
struct State {
    tasks: HashMap<u64, Place>,
    /// The id of the latest task.
    last_id: u64,
    /// Tasks to be served, each once; some may have been removed.
    ready: VecDeque<u64>,
    /// Tasks that wait for a time.
    due: BTreeSet<(Instant, u64)>,
    /// When the first idle thread wakes up by itself.
    watched: Option<Instant>,
    threads: usize,
    idle: usize,
    /// Threads in user code.
    outside: usize,
    /// Callers that wait in [`Lane::ended`].
    waiting: usize,
    stopped: bool,
}

/// A task in its lane.
struct Place {
    task: Arc<Shared>,
    status: Status,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Status {
    Waiting(Option<Instant>),
    Ready,
    /// In a turn on the thread with this number.
    Running(u64),
}

/// What a task and its wakers share.
pub(super) struct Shared {
    lane: Arc<Lane>,
    id: u64,
    /// Whether a turn is to begin after the task was woken. Spares further wakers the lock.
    woken: AtomicBool,
    body: OnceLock<Box<dyn Serve>>,
}

/// A task in a lane; it is removed when this is dropped.
pub(crate) struct Task(Arc<Shared>);

/// A thread of a lane.
struct Here {
    lane: Arc<Lane>,
    number: u64,
}

thread_local! {
    /// How many calls of user code the thread is in, if it is one of a lane.
    static DEPTH: Cell<Option<u32>> = const { Cell::new(None) };
    static HERE: RefCell<Option<Here>> = const { RefCell::new(None) };
}

/// The number of this thread, if it is one of a lane.
fn this_thread() -> Option<u64> {
    let number = HERE.try_with(|here| here.borrow().as_ref().map(|here| here.number));
    number.ok().flatten()
}

/// Runs user code, which may not return: on a thread of a lane, lets another thread go on with
/// other tasks meanwhile.
#[inline]
pub(crate) fn outside<T>(code: impl FnOnce() -> T) -> T {
    match DEPTH.get() {
        None => code(),
        Some(depth) => outside_of_lane(depth, code),
    }
}

#[cold]
fn outside_of_lane<T>(depth: u32, code: impl FnOnce() -> T) -> T {
    let lane = HERE.try_with(|here| here.borrow().as_ref().map(|here| Arc::clone(&here.lane)));
    let lane = lane.ok().flatten().filter(|_| depth == 0);
    DEPTH.set(Some(depth + 1));
    if let Some(lane) = &lane {
        let mut state = lane.lock();
        state.outside += 1;
        Lane::cover(lane, state);
    }
    let result = code();
    if let Some(lane) = &lane {
        lane.lock().outside -= 1;
    }
    DEPTH.set(Some(depth));
    result
}

impl State {
    /// Makes a task that waits ready.
    fn make_ready(&mut self, id: u64) {
        if let Some(place) = self.tasks.get_mut(&id) {
            if let Status::Waiting(Some(at)) = place.status {
                self.due.remove(&(at, id));
            }
            place.status = Status::Ready;
            self.ready.push_back(id);
        }
    }

    /// The next task that is ready or due at this time.
    fn take(&mut self, now: Instant, thread: u64) -> Option<Arc<Shared>> {
        while let Some(&(at, id)) = self.due.first()
            && at <= now
        {
            self.make_ready(id);
        }
        loop {
            let id = self.ready.pop_front()?;
            if let Some(place) = self.tasks.get_mut(&id) {
                place.status = Status::Running(thread);
                return Some(Arc::clone(&place.task));
            }
        }
    }

    /// Whether something is to be done that no idle thread waits for.
    fn is_unwatched(&self) -> bool {
        !self.ready.is_empty() || !self.due.is_empty() && self.watched.is_none()
    }

    /// Threads in turns or idle.
    fn inside(&self) -> usize {
        self.threads - self.outside
    }
}

impl Lane {
    pub(super) fn new(name: &'static str, max: usize) -> Arc<Self> {
        Arc::new(Self {
            name,
            max,
            state: Mutex::new(State::default()),
            work: Condvar::new(),
            ended: Condvar::new(),
            threads: std::sync::Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the first thread, unless there is one.
    pub(super) fn start(self: &Arc<Self>) -> io::Result<()> {
        let mut state = self.lock();
        if state.threads > 0 {
            return Ok(());
        }
        state.threads += 1;
        drop(state);
        Self::spawn(self)
    }

    /// Starts a thread that is counted already.
    fn spawn(lane: &Arc<Self>) -> io::Result<()> {
        let own = Arc::clone(lane);
        let thread = thread::Builder::new().name(lane.name.to_owned());
        match thread.spawn(move || Self::run(&own)) {
            Ok(thread) => {
                let mut threads = lane.threads.lock().unwrap_or_else(PoisonError::into_inner);
                threads.retain(|thread| !thread.is_finished());
                threads.push(thread);
                Ok(())
            }
            Err(error) => {
                lane.lock().threads -= 1;
                Err(error)
            }
        }
    }

    /// Ends the threads, and waits for those that are not the caller's own.
    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.work.notify_all();
        let threads = {
            let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *threads)
        };
        let this = thread::current().id();
        for thread in threads {
            // A thread whose user code drops the runtime ends when that code has returned.
            if thread.thread().id() != this {
                // Turns do not panic.
                let _ = thread.join();
            }
        }
    }

    pub(super) fn add(lane: &Arc<Self>) -> Task {
        let mut state = lane.lock();
        state.last_id += 1;
        let id = state.last_id;
        let task = Arc::new(Shared {
            lane: Arc::clone(lane),
            id,
            woken: AtomicBool::new(false),
            body: OnceLock::new(),
        });
        let place = Place {
            task: Arc::clone(&task),
            status: Status::Waiting(None),
        };
        state.tasks.insert(id, place);
        // The only thread may be in the turn of what was the only task.
        if state.threads > 0 {
            Self::cover(lane, state);
        }
        Task(task)
    }

    /// Sees to it that what is to be done is done while the caller, a thread of the lane, is busy.
    fn cover(lane: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if state.idle > 0 {
            if state.is_unwatched() {
                lane.work.notify_one();
            }
        } else if state.tasks.len() > 1 && state.inside() < lane.max && !state.stopped {
            state.threads += 1;
            drop(state);
            // If there can be no other thread, the tasks wait for this one.
            let _ = Self::spawn(lane);
        }
    }

    fn run(lane: &Arc<Self>) {
        static NUMBERS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        // Relaxed: any number will do that no other thread has.
        let number = NUMBERS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        HERE.set(Some(Here {
            lane: Arc::clone(lane),
            number,
        }));
        DEPTH.set(Some(0));
        while let Some(task) = Self::next(lane, number) {
            let next = task.turn();
            lane.finish(&task, next);
        }
    }

    /// Does a turn of the next task that is ready, as the thread with this number; false if none
    /// is.
    #[cfg(all(loom, test))]
    pub(super) fn serve_one(&self, thread: u64) -> bool {
        let taken = self.lock().take(Instant::now(), thread);
        let Some(task) = taken else {
            return false;
        };
        let next = task.turn();
        self.finish(&task, next);
        true
    }

    /// How many threads there are.
    #[cfg(all(test, not(loom)))]
    pub(super) fn threads(&self) -> usize {
        self.lock().threads
    }

    /// Waits for the next task to serve; None if the thread is to end.
    fn next(lane: &Arc<Self>, thread: u64) -> Option<Arc<Shared>> {
        let mut state = lane.lock();
        loop {
            // More threads than there may be are left when user code has returned.
            if state.stopped || state.inside() > lane.max {
                state.threads -= 1;
                if state.is_unwatched() {
                    lane.work.notify_one();
                }
                return None;
            }
            let now = Instant::now();
            if let Some(task) = state.take(now, thread) {
                Self::cover(lane, state);
                return Some(task);
            }
            state.idle += 1;
            let first = state.due.first().map(|&(at, _)| at);
            match first.filter(|&at| state.watched.is_none_or(|watched| at < watched)) {
                None => {
                    state = lane
                        .work
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                Some(at) => {
                    state.watched = Some(at);
                    (state, _) = lane
                        .work
                        .wait_timeout(state, at.saturating_duration_since(now))
                        .unwrap_or_else(PoisonError::into_inner);
                    if state.watched == Some(at) {
                        state.watched = None;
                    }
                }
            }
            state.idle -= 1;
        }
    }

    /// Puts a task back after its turn.
    fn finish(&self, task: &Shared, next: Option<Instant>) {
        let mut state = self.lock();
        if state.waiting > 0 {
            self.ended.notify_all();
        }
        let Some(place) = state.tasks.get_mut(&task.id) else {
            return;
        };
        place.status = Status::Waiting(None);
        // Relaxed: a waker that is not seen here gets the lock later, and finds the task waiting.
        if task.woken.load(Ordering::Relaxed) || next.is_some_and(|next| next <= Instant::now()) {
            state.make_ready(task.id);
        } else if let Some(next) = next {
            place.status = Status::Waiting(Some(next));
            state.due.insert((next, task.id));
        }
    }
}

impl Shared {
    /// Has the task do a turn that sees what the caller has done before.
    pub(super) fn wake(&self) {
        // Pairs with the swap in `turn`: if it is set already, the turn that clears it is still to
        // begin, and acquires what this releases.
        if self.woken.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut state = self.lane.lock();
        if let Some(place) = state.tasks.get(&self.id)
            && matches!(place.status, Status::Waiting(_))
        {
            state.make_ready(self.id);
            if state.idle > 0 {
                self.lane.work.notify_one();
            }
        }
    }

    fn turn(&self) -> Option<Instant> {
        self.woken.swap(false, Ordering::AcqRel);
        self.body.get()?.turn()
    }
}

impl Task {
    pub(crate) fn waker(&self) -> Waker {
        Waker(Some(Arc::clone(&self.0)))
    }

    /// Sets what the task does, and wakes it.
    pub(crate) fn serve(&self, body: impl Serve + 'static) {
        // It is set once.
        let _ = self.0.body.set(Box::new(body));
        self.0.wake();
    }

    /// Removes the task, and waits for the end of a turn that has begun, unless it is the caller
    /// who is in it.
    pub(crate) fn remove(&self) {
        let this = this_thread();
        let lane = &self.0.lane;
        let mut state = lane.lock();
        while let Some(place) = state.tasks.get(&self.0.id) {
            match place.status {
                Status::Running(thread) if Some(thread) != this => {
                    state.waiting += 1;
                    state = lane
                        .ended
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                    state.waiting -= 1;
                }
                status => {
                    if let Status::Waiting(Some(at)) = status {
                        state.due.remove(&(at, self.0.id));
                    }
                    state.tasks.remove(&self.0.id);
                }
            }
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.remove();
    }
}
