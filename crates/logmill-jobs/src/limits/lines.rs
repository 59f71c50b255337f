//! Jobs that wait at a limit: in one line, or in one for each key, and these take turns.
//!
//! Turns are those of start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996). Each line has the
//! virtual time at which its first job may start, and the least of them is next. A job moves that of its
//! line on by its cost over the weight of its key; a line that was empty starts at the present virtual
//! time, which is that of the last turn, so that nobody saves turns up.

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
}

/// The jobs of a key, which are none for a while after its last turn: it may not start at once then.
#[derive(Default)]
struct Line {
    jobs: VecDeque<Waiting>,
    start: u128,
    came: u64,
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
    pub(super) fn push(&mut self, key: u64, job: Waiting) {
        let line = match self {
            Self::One(line) => line,
            Self::InTurn(turns) => turns.line_for_one_more(key),
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
    pub(super) fn pop_front(&mut self, weights: &Weights) -> Option<Waiting> {
        match self {
            Self::One(line) => line.pop_front(),
            Self::InTurn(turns) => turns.pop_front(weights),
        }
    }

    /// A job that came into its line a moment ago: it is nearly always at one of the ends.
    pub(super) fn find(&mut self, key: u64, id: &JobId) -> Option<&mut Waiting> {
        let line = self.line(key)?;
        match line.front().is_some_and(|one| one.id == *id) {
            true => line.front_mut(),
            false => line.iter_mut().rfind(|one| one.id == *id),
        }
    }

    /// Takes a job out. Looks through those of its line.
    pub(super) fn remove(&mut self, key: u64, id: &JobId) -> Option<Waiting> {
        let line = self.line(key)?;
        let at = line.iter().position(|one| one.id == *id)?;
        let removed = line.remove(at);
        if let Self::InTurn(turns) = self {
            turns.waiting -= 1;
            turns.forget_if_empty();
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
    fn line_for_one_more(&mut self, key: u64) -> &mut VecDeque<Waiting> {
        self.waiting += 1;
        let line = self.lines.entry(key).or_default();
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

    fn pop_front(&mut self, weights: &Weights) -> Option<Waiting> {
        let key = self.key()?;
        let line = self.lines.get_mut(&key)?;
        let job = line.jobs.pop_front()?;
        self.order.remove(&(line.start, line.came, key));
        self.now = line.start;
        self.comings += 1;
        let weight = weights.get(&key).copied().unwrap_or(1);
        line.start += u128::from(job.cost.max(1)) * TURN / u128::from(weight.max(1));
        line.came = self.comings;
        self.order.insert((line.start, line.came, key));
        self.waiting -= 1;
        self.forget_if_empty();
        Some(job)
    }

    /// Forgets who has had how many turns once nobody waits.
    fn forget_if_empty(&mut self) {
        if self.waiting == 0 {
            *self = Self::default();
        }
    }
}
