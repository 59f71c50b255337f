//! The jobs of an order, by key: those that have not ended, oldest first, and which of them has its
//! turn.
//!
//! A job enters its line before it is published, so a worker that comes to a later one finds that an
//! earlier one is there, wherever that is: in the queue, with another worker, in its backoff. Only the
//! first of a line runs. A worker that comes to another one *holds* it, in three steps: under the lock
//! it sees that the job is not the first; without the lock it takes the job out of the queue; under
//! the lock again it leaves it in the line, unless the job has become the first meanwhile, and then it
//! goes back to the queue at once. Whoever makes another job the first does so under the lock, and puts
//! it back if it is held. So a first job is never left held: either who made it the first found it
//! held, or who holds it finds that it is the first.

use std::collections::{HashMap, VecDeque};

use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::JobId;
use crate::backend::Held;

/// The place of a job among all of its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    /// From its header; the time of its enqueue, if it was enqueued before there was an order.
    pub(super) number: u64,
    /// Its number and its queue if it has no header, else 0.
    pub(super) tie: u64,
}

/// The lines of an order.
#[derive(Default)]
pub(super) struct Lines {
    keys: Mutex<HashMap<Box<[u8]>, Line>>,
}

#[derive(Default)]
struct Line {
    /// In the order of their positions. Those that have ended are there until none is in line before them.
    jobs: VecDeque<Entry>,
    /// The one that a worker has.
    running: Option<Position>,
}

struct Entry {
    position: Position,
    /// Known once it is published, or a worker comes to it.
    id: Option<JobId>,
    /// What went wrong last.
    failure: Option<Box<Failed>>,
    state: State,
}

/// Few jobs have failed, so what went wrong is elsewhere.
struct Failed {
    reason: String,
}

enum State {
    /// In its queue, in its backoff, with a worker, or held here.
    Alive(Option<Box<dyn Held>>),
    Dead,
    /// It is passed by the others, as an operator said.
    Skipped,
    Ended,
}

// The documented cost of a job in a line.
const _: () = assert!(size_of::<Entry>() <= 72);

/// Jobs that go back to their queues when this is dropped, which must not be under a lock.
pub(super) type Woken = SmallVec<[Box<dyn Held>; 1]>;

/// What a worker does with a job that it came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    Runs,
    Waits,
}

/// What a job was that is about to be published again.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Revival {
    /// Dead, in its line.
    Revived,
    /// Not in its line, as it was skipped.
    Entered,
    /// Alive, as somebody else publishes it again.
    AliveAlready,
}

/// A key whose first job has failed.
pub(super) struct Blocked {
    pub(super) key: Box<[u8]>,
    pub(super) position: Position,
    pub(super) head: JobId,
    pub(super) is_dead: bool,
    pub(super) reason: String,
    pub(super) behind: usize,
}

impl Failed {
    fn new(reason: &str) -> Box<Self> {
        Box::new(Self {
            reason: reason.to_owned(),
        })
    }
}

impl Entry {
    fn new(position: Position, id: Option<JobId>) -> Self {
        Self {
            position,
            id,
            failure: None,
            state: State::Alive(None),
        }
    }

    fn is_in_line(&self) -> bool {
        matches!(self.state, State::Alive(_) | State::Dead)
    }

    fn take_held(&mut self) -> Option<Box<dyn Held>> {
        match &mut self.state {
            State::Alive(held) => held.take(),
            _ => None,
        }
    }
}

impl Line {
    fn index_of(&self, position: Position) -> Result<usize, usize> {
        // New ones come last.
        match self.jobs.back() {
            Some(last) if last.position < position => Err(self.jobs.len()),
            _ => self
                .jobs
                .binary_search_by_key(&position, |entry| entry.position),
        }
    }

    fn find(&mut self, position: Position) -> Option<&mut Entry> {
        let at = self.index_of(position).ok()?;
        self.jobs.get_mut(at)
    }

    /// Returns whether it is new.
    fn insert(&mut self, entry: Entry) -> bool {
        let Err(at) = self.index_of(entry.position) else {
            return false;
        };
        if self.jobs.capacity() == 0 {
            // Many keys have one job.
            self.jobs.reserve_exact(1);
        }
        self.jobs.insert(at, entry);
        true
    }

    fn first(&self) -> Option<&Entry> {
        self.jobs.iter().find(|entry| entry.is_in_line())
    }

    fn is_turn_of(&self, position: Position) -> bool {
        let first = self.first().map(|first| first.position);
        self.running.is_none() && first == Some(position)
    }

    fn end(&mut self, position: Position, woken: &mut Woken) {
        if self.running == Some(position) {
            self.running = None;
        }
        if let Some(entry) = self.find(position) {
            woken.extend(entry.take_held());
            entry.state = State::Ended;
        }
    }

    /// Forgets what has ended, and wakes the job whose turn it is.
    fn settle(&mut self, woken: &mut Woken) {
        // Those that are skipped are passed by what ends behind them.
        let mut passed = 0;
        while let Some(entry) = self.jobs.get(passed)
            && !entry.is_in_line()
        {
            match entry.state {
                State::Ended => drop(self.jobs.remove(passed)),
                _ => passed += 1,
            }
        }
        if self.jobs.len() < self.jobs.capacity() / 4 {
            self.jobs.shrink_to(self.jobs.len() * 2);
        }
        if self.running.is_none()
            && let Some(first) = self.jobs.iter_mut().find(|entry| entry.is_in_line())
        {
            woken.extend(first.take_held());
        }
    }
}

impl Lines {
    /// Changes a line, and wakes the job whose turn it is after that. What is returned is to be dropped
    /// without a lock.
    fn change<T>(&self, key: &[u8], change: impl FnOnce(&mut Line, &mut Woken) -> T) -> Option<T> {
        let mut woken = Woken::new();
        let mut keys = self.keys.lock();
        let line = keys.get_mut(key)?;
        let changed = change(line, &mut woken);
        line.settle(&mut woken);
        if line.jobs.is_empty() {
            keys.remove(key);
            if keys.len() < keys.capacity() / 8 {
                let twice = 2 * keys.len();
                keys.shrink_to(twice);
            }
        }
        drop(keys);
        drop(woken);
        Some(changed)
    }

    /// Enters a job that is about to be published, with the position that is asked for under the lock:
    /// so of two that enter a line, the later has the later position.
    pub(super) fn enter(&self, key: &[u8], position: impl FnOnce() -> Position) -> Position {
        let mut keys = self.keys.lock();
        let position = position();
        let line = match keys.get_mut(key) {
            Some(line) => line,
            None => keys.entry(key.into()).or_default(),
        };
        line.insert(Entry::new(position, None));
        position
    }

    /// Enters a job at a position that it had before. Returns whether it is new there.
    pub(super) fn enter_at(&self, key: &[u8], position: Position, id: Option<JobId>) -> bool {
        let mut keys = self.keys.lock();
        let line = keys.entry(key.into()).or_default();
        line.insert(Entry::new(position, id))
    }

    /// Notes the id of a job that was published.
    pub(super) fn name(&self, key: &[u8], position: Position, id: JobId) {
        let mut keys = self.keys.lock();
        if let Some(entry) = keys.get_mut(key).and_then(|line| line.find(position)) {
            entry.id = Some(id);
        }
    }

    /// A worker has come to a job. If it runs, its turn lasts until it is [paused](Self::pause) or
    /// [ended](Self::end).
    pub(super) fn arrive(&self, key: &[u8], position: Position, id: &JobId) -> Arrival {
        let mut keys = self.keys.lock();
        let line = match keys.get_mut(key) {
            Some(line) => line,
            None => keys.entry(key.into()).or_default(),
        };
        // One that nobody has entered was published by somebody else.
        line.insert(Entry::new(position, None));
        let is_turn = line.is_turn_of(position);
        let Some(entry) = line.find(position) else {
            return Arrival::Runs;
        };
        if entry.id.is_none() {
            entry.id = Some(id.clone());
        }
        match entry.state {
            State::Skipped => return Arrival::Runs,
            // It was published again in its place.
            State::Dead | State::Ended => entry.state = State::Alive(None),
            State::Alive(_) => {}
        }
        if is_turn || line.is_turn_of(position) {
            line.running = Some(position);
            return Arrival::Runs;
        }
        Arrival::Waits
    }

    /// Leaves a job in its line that a worker has taken out of its queue; it goes back to it if it is
    /// its turn by now.
    pub(super) fn hold(&self, key: &[u8], position: Position, held: Box<dyn Held>) {
        let mut late = Some(held);
        let mut keys = self.keys.lock();
        if let Some(line) = keys.get_mut(key)
            && !line.is_turn_of(position)
            && let Some(entry) = line.find(position)
            && let State::Alive(place) = &mut entry.state
        {
            *place = late.take();
        }
        drop(keys);
        drop(late);
    }

    /// The attempt of a job has ended, and the job comes back; it blocks its key until then.
    pub(super) fn pause(&self, key: &[u8], position: Position, failure: Option<&str>) {
        self.change(key, |line, _| {
            if line.running == Some(position) {
                line.running = None;
            }
            if let (Some(entry), Some(failure)) = (line.find(position), failure) {
                entry.failure = Some(Failed::new(failure));
            }
        });
    }

    /// A job has ended.
    pub(super) fn end(&self, key: &[u8], position: Position) {
        self.change(key, |line, woken| line.end(position, woken));
    }

    /// A job has died, and blocks its key. Returns false if it was skipped, and blocks nothing.
    pub(super) fn die(&self, key: &[u8], position: Position, reason: &str) -> bool {
        let blocks = self.change(key, |line, woken| {
            let Some(entry) = line.find(position) else {
                return true;
            };
            if matches!(entry.state, State::Skipped) {
                line.end(position, woken);
                return false;
            }
            woken.extend(entry.take_held());
            entry.state = State::Dead;
            entry.failure = Some(Failed::new(reason));
            if line.running == Some(position) {
                line.running = None;
            }
            true
        });
        blocks.unwrap_or(true)
    }

    /// A dead job is about to be published again, in its place.
    pub(super) fn revive(&self, key: &[u8], position: Position) -> Revival {
        let was_dead = self.change(key, |line, _| {
            let dead = line.find(position);
            let dead = dead.filter(|entry| matches!(entry.state, State::Dead));
            let was_dead = dead.is_some();
            if let Some(entry) = dead {
                *entry = Entry::new(position, None);
            }
            was_dead
        });
        match was_dead {
            Some(true) => Revival::Revived,
            _ if self.enter_at(key, position, None) => Revival::Entered,
            _ => Revival::AliveAlready,
        }
    }

    /// The job at a position, and whether it is dead.
    pub(super) fn at(&self, key: &[u8], position: Position) -> Option<(JobId, bool)> {
        let mut keys = self.keys.lock();
        let entry = keys.get_mut(key)?.find(position)?;
        Some((entry.id.clone()?, matches!(entry.state, State::Dead)))
    }

    /// Has the others pass a job that is dead, or that has failed and does not run, whichever it is
    /// said to be. Returns whether it held them back.
    pub(super) fn skip(&self, key: &[u8], position: Position, is_dead: bool) -> bool {
        let skipped = self.change(key, |line, woken| {
            let is_running = line.running == Some(position);
            let Some(entry) = line.find(position).filter(|_| !is_running) else {
                return false;
            };
            match (&entry.state, &entry.failure) {
                (State::Dead, _) if is_dead => line.end(position, woken),
                (State::Alive(_), Some(_)) if !is_dead => {
                    woken.extend(entry.take_held());
                    entry.state = State::Skipped;
                }
                _ => return false,
            }
            true
        });
        skipped.unwrap_or(false)
    }

    /// The position of a job that has no header.
    pub(super) fn find(&self, key: &[u8], id: &JobId) -> Option<Position> {
        let keys = self.keys.lock();
        let mut jobs = keys.get(key)?.jobs.iter();
        let found = jobs.find(|entry| entry.id.as_ref() == Some(id));
        found.map(|entry| entry.position)
    }

    /// The first of the line in which a job is held.
    pub(super) fn awaited_by(&self, key: &[u8], position: Position) -> Option<Option<JobId>> {
        let mut keys = self.keys.lock();
        let line = keys.get_mut(key)?;
        let first = line.first().and_then(|first| first.id.clone());
        match &line.find(position)?.state {
            State::Alive(Some(_)) => Some(first),
            _ => None,
        }
    }

    /// The keys whose first job has failed and does not run.
    pub(super) fn blocked(&self) -> Vec<Blocked> {
        let keys = self.keys.lock();
        let blocked = keys.iter().filter_map(|(key, line)| {
            let first = line.first().filter(|_| line.running.is_none())?;
            let in_line = line.jobs.iter().filter(|entry| entry.is_in_line());
            Some(Blocked {
                key: key.clone(),
                position: first.position,
                head: first.id.clone()?,
                is_dead: matches!(first.state, State::Dead),
                reason: first.failure.as_ref()?.reason.clone(),
                behind: in_line.count() - 1,
            })
        });
        blocked.collect()
    }

    /// All jobs that are held.
    pub(super) fn take_all(&self) -> Vec<Box<dyn Held>> {
        let mut keys = self.keys.lock();
        let entries = keys.values_mut().flat_map(|line| &mut line.jobs);
        entries.filter_map(Entry::take_held).collect()
    }

    /// Keys, jobs that have not ended.
    #[cfg(any(all(test, feature = "embedded"), feature = "testing"))]
    pub(super) fn counts(&self) -> (usize, usize) {
        let keys = self.keys.lock();
        (keys.len(), keys.values().map(|line| line.jobs.len()).sum())
    }
}
