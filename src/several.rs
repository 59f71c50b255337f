//! Where a consumer of several queues gets its next job from: the choice among the queues, by
//! priority or by weight, and one sleep for all of them.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;

use crate::dispatch::source::{Looks, Source};
use crate::engine::Running;
use crate::event_count::{Bell, EventCount, Hook};
use crate::log::lease::Lease;

/// By how much a queue of weight 1 falls behind with each job.
const STRIDE: u64 = 1 << 20;
/// The largest weight: it still has a stride of some precision.
pub(crate) const MAX_WEIGHT: u32 = 1000;

/// How a consumer chooses among several queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// The first in the list that has a job.
    Priority,
    /// Each in proportion to its weight.
    Weight,
}

/// The queues that a consumer serves, each with its weight.
#[derive(Clone)]
pub(crate) struct Several {
    pub(crate) choice: Choice,
    pub(crate) queues: Arc<[(Arc<Running>, u32)]>,
}

/// One consumer's end of several queues.
pub(crate) struct Sources {
    choice: Choice,
    members: Box<[Member]>,
    /// Scratch: places of members in the order in which they are tried.
    order: Cell<Vec<usize>>,
    bell: Arc<Bell>,
}

struct Member {
    running: Arc<Running>,
    source: Source<Arc<Running>>,
    /// The share of the consumer's jobs that the queue has had, in inverse proportion to its weight:
    /// the queue whose share is the smallest is next. (Stride scheduling, by Waldspurger and Weihl.)
    share: Cell<u64>,
    stride: u64,
    /// Whether the consumer was told of work here, and has not looked since.
    told: Cell<bool>,
}

impl Member {
    /// Where a consumer waits that this queue has no job for.
    fn sleepers(&self, is_paused: bool) -> &EventCount {
        match is_paused {
            true => self.running.resumed(),
            false => &self.running.dispatch().sleepers,
        }
    }

    /// The next job, if there is one and it may be delivered.
    fn look(&self, patient: bool) -> Option<Lease> {
        self.told.set(false);
        if self.running.is_resting() {
            return None;
        }
        let lease = self.source.look(patient)?;
        // Checked last, so that no job is taken that came after a pause began.
        match self.running.is_resting() {
            false => Some(lease),
            true => {
                self.source.put_back(lease);
                None
            }
        }
    }
}

impl Sources {
    pub(crate) fn new(several: &Several) -> Self {
        let members = several.queues.iter().map(|(running, weight)| Member {
            running: Arc::clone(running),
            source: Source::new(Arc::clone(running)),
            share: Cell::new(0),
            stride: STRIDE / u64::from((*weight).clamp(1, MAX_WEIGHT)),
            told: Cell::new(false),
        });
        Self {
            choice: several.choice,
            members: members.collect(),
            order: Cell::default(),
            bell: Bell::new(),
        }
    }

    pub(crate) fn running(&self, at: usize) -> &Arc<Running> {
        &self.members[at].running
    }

    /// The next job and the place of its queue, if there is one now.
    pub(crate) fn try_next(&self) -> Option<(usize, Lease)> {
        self.look(false)
    }

    /// The next job and the place of its queue, waiting for it until the deadline, or until
    /// `stopped`; None also once all queues are closed. A caller that makes `stopped` true wakes
    /// the consumers of the queues.
    pub(crate) fn next(
        &self,
        deadline: impl FnOnce() -> Option<Instant>,
        stopped: impl Fn() -> bool,
    ) -> Option<(usize, Lease)> {
        let found = match self.look(true) {
            Some(found) => Some(found),
            None => self.wait(deadline(), &stopped),
        };
        let found = match found {
            Some((at, lease)) if stopped() => {
                self.members[at].source.put_back(lease);
                None
            }
            found => found,
        };
        // Of what it was told and did not look for, it tells others.
        for member in &self.members {
            if member.told.take() {
                member.sleepers(false).pass_on();
            }
        }
        found
    }

    fn wait(
        &self,
        deadline: Option<Instant>,
        stopped: &impl Fn() -> bool,
    ) -> Option<(usize, Lease)> {
        let first = self.members.first()?;
        loop {
            let mut looks = Looks::of_one_among(self.members.len());
            loop {
                let is_last = deadline.is_some_and(|deadline| deadline <= Instant::now());
                if let Some(found) = self.look(!is_last) {
                    return Some(found);
                }
                if is_last || stopped() || self.are_closed() {
                    return None;
                }
                if !first.source.pause(&mut looks) {
                    break;
                }
            }
            drop(looks);
            self.sleep(deadline, stopped);
        }
    }

    fn are_closed(&self) -> bool {
        self.members.iter().all(|member| member.running.is_closed())
    }

    /// Sleeps until there may be a job, or other news, in one of the queues.
    fn sleep(&self, deadline: Option<Instant>, stopped: &impl Fn() -> bool) {
        let open = self
            .members
            .iter()
            .filter(|member| !member.running.is_closed());
        let hung: Vec<(&Member, bool, Hook)> = open
            .map(|member| {
                // A queue that is paused would wake the consumer for each new job.
                let is_paused = member.running.is_paused();
                let hook = member.sleepers(is_paused).hang(&self.bell);
                (member, is_paused, hook)
            })
            .collect();
        // Whoever pauses, resumes or closes a queue rings the bell, if it does so after this.
        let has_changed = |member: &Member, was_paused: bool| match was_paused {
            true => !member.running.is_paused(),
            false => member.running.is_resting() || member.running.dispatch().may_have_work(),
        };
        let has_news = stopped()
            || hung.is_empty()
            || hung
                .iter()
                .any(|(member, was_paused, _)| has_changed(member, *was_paused));
        if !has_news {
            self.bell.wait(deadline);
        }
        for (member, was_paused, hook) in hung {
            let was_rung = member.sleepers(was_paused).take_back(hook);
            if was_rung && !was_paused {
                member.told.set(true);
            }
        }
        if has_news {
            // The thread that brings the work may need the core.
            std::thread::yield_now();
        }
    }

    /// Looks for a job in the order of the choice.
    fn look(&self, patient: bool) -> Option<(usize, Lease)> {
        let look = |at: usize| Some((at, self.members[at].look(patient)?));
        if self.choice == Choice::Priority {
            return (0..self.members.len()).find_map(look);
        }
        let share = |at: usize| self.members[at].share.get();
        let first = (0..self.members.len()).min_by_key(|&at| share(at))?;
        if let Some(found) = look(first) {
            self.charge(first);
            return Some(found);
        }
        // The vector is taken out of its cell: a subscriber may have this very consumer look for a
        // job.
        let mut order = self.order.take();
        order.clear();
        order.extend((0..self.members.len()).filter(|&at| at != first));
        order.sort_by_key(|&at| share(at));
        let found = order.iter().find_map(|&at| look(at));
        if let Some((at, _)) = found {
            // Queues that have no job do not save up for later.
            let of_found = share(at);
            for empty in order
                .iter()
                .take_while(|&&empty| empty != at)
                .chain([&first])
            {
                self.members[*empty].share.set(of_found);
            }
            self.charge(at);
        }
        self.order.set(order);
        found
    }

    fn charge(&self, at: usize) {
        let member = &self.members[at];
        member.share.set(member.share.get() + member.stride);
    }
}
