//! A consumer: which queue is next, and waiting for a job.

use std::sync::Arc;
use std::time::Instant;

use logmill_jobs::backend::{Choice, Claim, Consumer, Next, Served};

use super::Process;
use super::claim::MemoryClaim;
use super::jobs::Over;
use super::store::State;

pub(super) struct MemoryConsumer {
    process: Arc<Process>,
    queues: Vec<Turns>,
    choice: Choice,
}

/// The turns of a queue.
struct Turns {
    queue: String,
    weight: i64,
    /// How far it is behind its share.
    credit: i64,
}

impl MemoryConsumer {
    pub(super) fn new(process: Arc<Process>, queues: &[Served<'_>], choice: Choice) -> Self {
        let queues = queues.iter().map(|served| Turns {
            queue: served.queue.to_owned(),
            weight: i64::from(served.weight.max(1)),
            credit: 0,
        });
        Self {
            process,
            queues: queues.collect(),
            choice,
        }
    }

    /// Takes a job of the queue whose turn it is, if there is one.
    fn take(&mut self, state: &mut State, ends: &mut Vec<Over>) -> Option<MemoryClaim> {
        let mut ready = Vec::new();
        for (at, turns) in self.queues.iter().enumerate() {
            let queue = state.queue_mut(&turns.queue)?;
            if let Some(number) = queue.first_free(ends) {
                ready.push((at, number));
            }
        }
        let (at, number) = match self.choice {
            Choice::Priority => *ready.first()?,
            Choice::Weight => self.next_by_weight(&ready)?,
        };
        let (claim, lease) = (state.next_number(), self.process.capabilities.lease);
        let name = &self.queues[at].queue;
        let job = state.queue_mut(name)?.take(number, claim, lease)?;
        Some(MemoryClaim::new(&self.process, name.clone(), job, claim))
    }

    /// Each of those with jobs gets its weight as credit; the one with the most has the turn, and pays
    /// for it what all have got.
    fn next_by_weight(&mut self, ready: &[(usize, u64)]) -> Option<(usize, u64)> {
        let mut all = 0;
        for (at, _) in ready {
            let turns = &mut self.queues[*at];
            turns.credit += turns.weight;
            all += turns.weight;
        }
        let next = ready.iter().max_by_key(|(at, _)| self.queues[*at].credit);
        let next = *next?;
        self.queues[next.0].credit -= all;
        Some(next)
    }

    /// When a job of the queues becomes free by itself.
    fn free_at(&self) -> Option<Instant> {
        let state = self.process.store.lock();
        let queues = self.queues.iter();
        let times = queues.filter_map(|turns| state.queue(&turns.queue)?.free_in());
        Instant::now().checked_add(times.min()?)
    }
}

impl Consumer for MemoryConsumer {
    fn next(
        &mut self,
        until: Option<Instant>,
        stopped: &dyn Fn() -> bool,
        take: &mut dyn FnMut(&mut dyn Claim),
    ) -> Next {
        let process = Arc::clone(&self.process);
        loop {
            // Read before everything else that is looked at, so that no change of it is slept through.
            let since = process.store.changes();
            if process.is_closed() {
                return Next::Closed;
            }
            if stopped() {
                return Next::Nothing;
            }
            let mut ends = Vec::new();
            let taken = self.take(&mut process.store.lock(), &mut ends);
            process.tell(&ends);
            if let Some(mut claim) = taken {
                // Under no lock: the handler runs in it.
                take(&mut claim);
                return Next::Taken;
            }
            if until.is_some_and(|until| until <= Instant::now()) {
                return Next::Nothing;
            }
            let free_at = self.free_at();
            let until = [until, free_at].into_iter().flatten().min();
            process.store.sleep(since, until);
        }
    }
}
