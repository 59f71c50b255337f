//! Jobs that wait for others of their kind, to be run together by one call of their handler.
//!
//! ```text
//!            take: limits, orders, pauses ...              full: at once, on this thread
//!  worker ──────────────────────────────────▶ open chunk ──────────────────────────────▶ run
//!                                               │  │                                    ▲  ▲
//!              first job has waited for `within`│  │ `at_least` so many                 │  │
//!                                               ▼  ▼                                    │  │
//!                                               │  a thread that takes what is there ───┘  │
//!                                               │          until there is no more for it   │
//!                                               timer: wakes a thread ──▶ the next free ───┘
//! ```
//!
//! An open chunk belongs to the pool and to no thread, so the one that has opened it goes on to other
//! jobs. A thread of the pool's own sleeps until the first chunk is due, and has a worker run it then.

mod member;
mod options;
mod run;
#[cfg(feature = "tokio")]
mod task;
mod timer;

use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

pub(super) use self::member::Member;
pub use self::options::ChunkOptions;
use super::thread::Routes;
use crate::clock::{Advances, Clock};
use crate::handler::Route;
use crate::mill::Mill;

/// The open chunks of a pool.
pub(super) struct Chunks {
    /// Which of the chunks the jobs of a kind join.
    by_kind: HashMap<&'static str, usize>,
    clock: Clock,
    /// What threads ask between two jobs: [`DUE`], [`ENOUGH`].
    calls: AtomicU8,
    state: Mutex<State>,
    /// What the timer waits for.
    changed: Condvar,
    advances: OnceLock<Advances>,
}

/// A chunk is due.
const DUE: u8 = 1;
/// A chunk has as many jobs as it is to have at least.
const ENOUGH: u8 = 2;

/// What the chunks of a pool ask of a thread that is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// To run one that is due.
    Run,
    /// To take jobs that are there, and run one that has enough when there are no others.
    Fill,
}

struct State {
    /// One for each handler.
    open: Vec<Open>,
    /// When the timer looks next; None if it sleeps until it is woken.
    looks_at: Option<Instant>,
    /// Whether it is to look before that.
    looks_again: bool,
    is_closed: bool,
}

/// The jobs that wait for a handler.
struct Open {
    /// Its own kind.
    kind: &'static str,
    options: ChunkOptions,
    members: Vec<Member>,
    /// When the first of them has waited for long enough. None if there is none, or it waits for ever.
    due: Option<Instant>,
}

/// Jobs that are to run together.
pub(super) struct Ready {
    /// The handler's own kind.
    pub(super) kind: &'static str,
    pub(super) members: Vec<Member>,
}

/// How many jobs a handler takes at once.
pub(super) fn most_of<S>(route: &dyn Route<S>) -> usize {
    let chunks = route.of_chunks();
    chunks.map_or(1, |chunks| chunks.chunk_options().most())
}

impl Open {
    fn has_enough(&self) -> bool {
        self.members.len() >= self.options.least()
    }

    /// The jobs, which do not wait any more.
    fn take(&mut self) -> Option<Ready> {
        self.due = None;
        let members = std::mem::take(&mut self.members);
        let kind = self.kind;
        (!members.is_empty()).then_some(Ready { kind, members })
    }
}

impl State {
    /// When the first chunk is due.
    fn first_due(&self) -> Option<Instant> {
        self.open.iter().filter_map(|open| open.due).min()
    }
}

impl Chunks {
    pub(super) fn new<S>(mill: &Mill, routes: &Routes<S>) -> Self {
        let mut by_kind = HashMap::new();
        let mut open = Vec::<Open>::new();
        for route in routes.values() {
            let (Some(chunks), kinds) = (route.of_chunks(), route.kinds()) else {
                continue;
            };
            let Some(own) = kinds.first().filter(|own| !by_kind.contains_key(*own)) else {
                continue;
            };
            by_kind.extend(kinds.iter().map(|kind| (*kind, open.len())));
            open.push(Open {
                kind: own,
                options: chunks.chunk_options(),
                members: Vec::new(),
                due: None,
            });
        }
        Self {
            by_kind,
            clock: mill.inner.clock.clone(),
            calls: AtomicU8::new(0),
            state: Mutex::new(State {
                open,
                looks_at: None,
                looks_again: false,
                is_closed: false,
            }),
            changed: Condvar::new(),
            advances: OnceLock::new(),
        }
    }

    /// Whether a thread is to call [`take_due`](Self::take_due).
    #[inline]
    pub(super) fn has_due(&self) -> bool {
        // Relaxed: the timer wakes whoever sleeps after it has stored this, and a thread that is awake
        // asks again after its job.
        self.calls.load(Ordering::Relaxed) & DUE != 0
    }

    #[inline]
    pub(super) fn call(&self) -> Option<Call> {
        match self.calls.load(Ordering::Relaxed) {
            0 => None,
            ENOUGH => Some(Call::Fill),
            _ => Some(Call::Run),
        }
    }

    /// A chunk that has this job only.
    fn of_one(&self, kind: &str, member: Member) -> Option<Ready> {
        let at = self.by_kind.get(kind)?;
        let kind = self.state.lock().open.get(*at)?.kind;
        let members = vec![member];
        Some(Ready { kind, members })
    }

    /// Adds a job to the chunk of its kind. Returns the chunk if that is full.
    fn join(&self, kind: &str, member: Member) -> Option<Ready> {
        // One that does not join is given back, and not under the lock.
        let mut member = Some(member);
        let mut state = self.state.lock();
        let at = *self.by_kind.get(kind).filter(|_| !state.is_closed)?;
        let now = self.clock.now();
        let open = state.open.get_mut(at)?;
        open.members.extend(member.take());
        if open.members.len() >= open.options.most() {
            let full = open.take();
            self.note_taken(&state, now);
            return full;
        }
        if open.has_enough() {
            // Relaxed: this thread asks next.
            self.calls.fetch_or(ENOUGH, Ordering::Relaxed);
        }
        if open.members.len() == 1 {
            open.due = now.checked_add(open.options.longest_wait());
            let due = open.due;
            let is_earlier = |due| state.looks_at.is_none_or(|looks_at| due < looks_at);
            if due.is_some_and(is_earlier) {
                state.looks_again = true;
                self.changed.notify_one();
            }
        }
        None
    }

    /// A chunk whose time has come. Whoever takes it runs it.
    fn take_due(&self) -> Option<Ready> {
        let mut state = self.state.lock();
        let now = self.clock.now();
        let is_due = |open: &&mut Open| open.due.is_some_and(|due| due <= now);
        // The one that has waited for longest.
        let due = state.open.iter_mut().filter(is_due);
        let ready = due.min_by_key(|open| open.due).and_then(Open::take);
        self.note_taken(&state, now);
        ready
    }

    /// A chunk that has enough jobs.
    fn take_enough(&self) -> Option<Ready> {
        let mut state = self.state.lock();
        let ready = state.open.iter_mut().find(|open| open.has_enough());
        let ready = ready.and_then(Open::take);
        self.note_taken(&state, self.clock.now());
        ready
    }

    /// Whether a job of this kind would join a chunk.
    fn is_for_chunk(&self, kind: &str) -> bool {
        self.by_kind.contains_key(kind)
    }

    /// Has chunks that have enough run on the next thread that is free, as this one has other work.
    pub(super) fn have_others_run_enough(&self) {
        if self.calls.load(Ordering::Relaxed) & ENOUGH == 0 {
            return;
        }
        let mut state = self.state.lock();
        let now = self.clock.now();
        for open in state.open.iter_mut().filter(|open| open.has_enough()) {
            // It may be due by then.
            open.due = open.due.map_or(Some(now), |due| Some(due.min(now)));
        }
        self.calls.fetch_and(!ENOUGH, Ordering::Relaxed);
        state.looks_again = true;
        self.changed.notify_one();
    }

    /// A chunk that has jobs, whether or not it is due.
    #[cfg(feature = "testing")]
    fn take_open(&self) -> Option<Ready> {
        self.state.lock().open.iter_mut().find_map(Open::take)
    }

    /// Notes that no chunk is due, or has enough, if none is. That one is due, only the timer notes: it
    /// also wakes a thread for it.
    fn note_taken(&self, state: &State, now: Instant) {
        if state.first_due().is_none_or(|due| due > now) {
            self.calls.fetch_and(!DUE, Ordering::SeqCst);
        }
        if !state.open.iter().any(Open::has_enough) {
            self.calls.fetch_and(!ENOUGH, Ordering::Relaxed);
        }
    }

    /// Gives the jobs back that wait, and all that come from now on; ends the timer.
    pub(super) fn close(&self) {
        let waiting: Vec<_> = {
            let mut state = self.state.lock();
            state.is_closed = true;
            self.calls.store(0, Ordering::SeqCst);
            state.open.iter_mut().filter_map(Open::take).collect()
        };
        self.changed.notify_all();
        drop(waiting);
    }
}
