//! Jobs that wait at a limit: in one line, or in one for each key, and these take turns.
//!
//! Turns are those of start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996). Each line has the
//! virtual time at which its first job may start, and the least of them is next. A job moves that of its
//! line on by its cost over the weight of its key; a line that was empty starts at the present virtual
//! time, so that nobody saves turns up.
//!
//! The present virtual time is the start of the last turn, and goes on by the cost of that turn over the
//! weights of all keys that wait, as in WF2Q+ (Bennett and Zhang, IEEE/ACM Transactions on Networking 1997).
//! Otherwise it would stand still while new keys keep coming, and those with a later start would have no
//! turn.

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::BuildHasherDefault;

use super::bucket::Waiting;
use crate::JobId;
use crate::identity::Same;

/// The turns that keys with weights other than 1 have.
pub(super) type Weights = HashMap<u64, u32, BuildHasherDefault<Same>>;

pub(super) enum Lines {
    One(VecDeque<Waiting>),
    InTurn(Box<Turns>),
}

/// A line for each key.
#[derive(Default)]
pub(super) struct Turns {
    lines: HashMap<u64, Line, BuildHasherDefault<Same>>,
    /// Of each line its start, when it came to that, and its key.
    order: BTreeSet<(u128, u64, u64)>,
    now: u128,
    /// How often a line has come to a start: those that start at the same time take turns.
    comings: u64,
    waiting: usize,
    /// The weights of the keys that wait.
    weights: u128,
}

/// The jobs of a key, which are none for a while after its last turn: it may not start at once then.
#[derive(Default)]
struct Line {
    jobs: VecDeque<Waiting>,
    start: u128,
    came: u64,
    weight: u32,
}

/// A turn of a key with weight 1, in virtual time.
const TURN: u128 = 1 << 32;

impl Lines {
    pub(super) fn new(is_in_turn: bool) -> Self {
        match is_in_turn {
            true => Self::InTurn(Box::default()),
            false => Self::One(VecDeque::new()),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::One(line) => line.len(),
            Self::InTurn(turns) => turns.waiting,
        }
    }

    /// Adds a job to the line of its key, behind those that came before it.
    pub(super) fn push(&mut self, key: u64, job: Waiting, weights: &Weights) {
        let line = match self {
            Self::One(line) => line,
            Self::InTurn(turns) => turns.line_for_one_more(key, weights),
        };
        if line.capacity() == 0 {
            // Many keys have one job that waits.
            line.reserve_exact(1);
        }
        let at = line.partition_point(|one| one.came < job.came);
        line.insert(at, job);
    }

    /// The job whose turn it is.
    pub(super) fn front(&mut self) -> Option<&Waiting> {
        match self {
            Self::One(line) => line.front(),
            Self::InTurn(turns) => turns.front(),
        }
    }

    /// Takes out the job whose turn it is.
    pub(super) fn pop_front(&mut self) -> Option<Waiting> {
        match self {
            Self::One(line) => line.pop_front(),
            Self::InTurn(turns) => turns.pop_front(),
        }
    }

    /// A job that waits, and came then.
    pub(super) fn find(&mut self, key: u64, came: u64, id: &JobId) -> Option<&mut Waiting> {
        let line = self.line(key)?;
        let from = line.partition_point(|one| one.came < came);
        let mut same = line.range_mut(from..).take_while(|one| one.came == came);
        same.find(|one| one.id == *id)
    }

    /// Takes a job out. Looks through those of its line.
    pub(super) fn remove(&mut self, key: u64, id: &JobId) -> Option<Waiting> {
        let line = self.line(key)?;
        let at = line.iter().position(|one| one.id == *id)?;
        let removed = line.remove(at);
        if let Self::InTurn(turns) = self {
            turns.note_one_less(key);
        }
        removed
    }

    pub(super) fn contains(&self, id: &JobId) -> bool {
        let is_it = |one: &Waiting| one.id == *id;
        match self {
            Self::One(line) => line.iter().any(is_it),
            Self::InTurn(turns) => {
                let mut jobs = turns.lines.values().flat_map(|line| &line.jobs);
                jobs.any(is_it)
            }
        }
    }

    /// Takes out all jobs.
    pub(super) fn take_all(&mut self) -> Vec<Waiting> {
        match self {
            Self::One(line) => std::mem::take(line).into(),
            Self::InTurn(turns) => {
                let lines = std::mem::take(&mut **turns).lines;
                lines.into_values().flat_map(|line| line.jobs).collect()
            }
        }
    }

    fn line(&mut self, key: u64) -> Option<&mut VecDeque<Waiting>> {
        match self {
            Self::One(line) => Some(line),
            Self::InTurn(turns) => Some(&mut turns.lines.get_mut(&key)?.jobs),
        }
    }
}

impl Turns {
    fn line_for_one_more(&mut self, key: u64, weights: &Weights) -> &mut VecDeque<Waiting> {
        self.waiting += 1;
        let line = self.lines.entry(key).or_default();
        if line.jobs.is_empty() {
            line.weight = weights.get(&key).copied().unwrap_or(1).max(1);
            self.weights += u128::from(line.weight);
        }
        let is_new = line.came == 0;
        if is_new || line.jobs.is_empty() && line.start < self.now {
            if !is_new {
                self.order.remove(&(line.start, line.came, key));
            }
            self.comings += 1;
            line.start = self.now;
            line.came = self.comings;
            self.order.insert((line.start, line.came, key));
        }
        &mut line.jobs
    }

    /// The key whose turn it is. Forgets lines without jobs whose start has come.
    fn key(&mut self) -> Option<u64> {
        while let Some(&first @ (_, _, key)) = self.order.first() {
            if self
                .lines
                .get(&key)
                .is_some_and(|line| !line.jobs.is_empty())
            {
                return Some(key);
            }
            self.order.remove(&first);
            self.lines.remove(&key);
        }
        None
    }

    fn front(&mut self) -> Option<&Waiting> {
        let key = self.key()?;
        self.lines.get(&key)?.jobs.front()
    }

    fn pop_front(&mut self) -> Option<Waiting> {
        let key = self.key()?;
        let line = self.lines.get_mut(&key)?;
        let job = line.jobs.pop_front()?;
        self.order.remove(&(line.start, line.came, key));
        let cost = u128::from(job.cost.max(1)) * TURN;
        // Its own weight is one of them.
        self.now = line.start.max(self.now + cost / self.weights.max(1));
        self.comings += 1;
        line.start += cost / u128::from(line.weight);
        line.came = self.comings;
        self.order.insert((line.start, line.came, key));
        self.note_one_less(key);
        Some(job)
    }

    /// A job has left the line of its key.
    fn note_one_less(&mut self, key: u64) {
        self.waiting -= 1;
        if let Some(line) = self.lines.get(&key)
            && line.jobs.is_empty()
        {
            self.weights -= u128::from(line.weight);
        }
        self.forget_if_empty();
    }

    /// Forgets who has had how many turns once nobody waits.
    fn forget_if_empty(&mut self) {
        if self.waiting == 0 {
            *self = Self::default();
        }
    }
}
