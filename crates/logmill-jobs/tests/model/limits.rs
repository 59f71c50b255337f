//! The limits of the model: places that are taken, buckets of tokens, and keys that are held back.

use std::collections::HashMap;

use crate::operations::{Keys, LimitOf, Scope};

/// What limits look at in a job.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject {
    pub(crate) queue: usize,
    pub(crate) kind: usize,
    pub(crate) key: Option<usize>,
    pub(crate) cost: u32,
}

/// The jobs that a limit counts together: which limit, and of which key if it tells them apart.
pub(crate) type Group = (usize, Option<usize>);

pub(crate) struct Limits {
    limits: Vec<LimitOf>,
    /// Jobs that a rate has let through begin at that moment. If they may come late, one more than the rate
    /// says may begin, and others may have to wait for what those do not use.
    is_punctual: bool,
    counts: HashMap<Group, Count>,
    /// Until when a kind and a key that no limit concerns are held back.
    held: HashMap<(usize, Option<usize>), u64>,
}

#[derive(Clone, Copy, Default)]
struct Count {
    running: u32,
    /// Seconds that the bucket has, of which a job takes some; less than zero for a debt.
    level: i64,
    at: u64,
    closed: u64,
}

impl Limits {
    pub(crate) fn new(limits: Vec<LimitOf>, is_punctual: bool) -> Self {
        Self {
            limits,
            is_punctual,
            counts: HashMap::new(),
            held: HashMap::new(),
        }
    }

    /// The process has ended: counts and holds are in memory.
    pub(crate) fn forget(&mut self) {
        self.counts.clear();
        self.held.clear();
    }

    /// The groups that a job is counted in.
    pub(crate) fn groups(&self, job: &Subject) -> Vec<Group> {
        let limits = self.limits.iter().enumerate();
        let concerned = limits.filter(|(_, limit)| match limit.scope {
            Scope::Queue(queue) => queue == job.queue,
            Scope::Kind(kind) => kind == job.kind,
        });
        concerned
            .filter_map(|(at, limit)| match limit.keys {
                Keys::Apart => Some((at, Some(job.key?))),
                Keys::Same | Keys::InTurn => Some((at, None)),
            })
            .collect()
    }

    fn full(&self, group: Group) -> i64 {
        let rate = self.limits[group.0].rate;
        rate.map_or(0, |(interval, burst)| interval as i64 * i64::from(burst))
    }

    fn count(&self, group: Group, now: u64) -> Count {
        let full = self.full(group);
        let mut count = self.counts.get(&group).copied().unwrap_or(Count {
            level: full,
            at: now,
            ..Count::default()
        });
        count.level = (count.level + now as i64 - count.at as i64).min(full);
        count.at = now;
        count
    }

    /// Whether a group has no place for one more, or not enough tokens for a job that costs so much.
    fn is_full(&self, group: Group, cost: u32, now: u64) -> bool {
        let (limit, count) = (&self.limits[group.0], self.count(group, now));
        let lacks_tokens = limit.rate.is_some_and(|(interval, burst)| {
            let one_more = i64::from(!self.is_punctual);
            count.level < interval as i64 * (i64::from(cost.min(burst)) - one_more)
        });
        let has_no_place = limit.at_once.is_some_and(|most| count.running >= most);
        count.closed > now || has_no_place || lacks_tokens
    }

    /// Whether a job that costs so much may have to wait in a group.
    pub(crate) fn may_wait(&self, group: Group, cost: u32, now: u64) -> bool {
        let may_lack = !self.is_punctual && self.limits[group.0].rate.is_some();
        may_lack || self.is_full(group, cost, now)
    }

    /// Whether a job is held back, though no limit concerns it.
    pub(crate) fn is_held(&self, job: &Subject, now: u64) -> bool {
        let until = self.held.get(&(job.kind, job.key));
        until.is_some_and(|until| *until > now)
    }

    /// Whether a limit may ever hold a job, by what is known of the process.
    pub(crate) fn may_hold(&self, job: &Subject) -> bool {
        self.held.contains_key(&(job.kind, job.key)) || !self.groups(job).is_empty()
    }

    /// The groups that let a job begin, or the one that does not.
    pub(crate) fn check(&self, job: &Subject, now: u64) -> Result<(), String> {
        if self.is_held(job, now) {
            return Err("a handler was told to slow down".to_owned());
        }
        let groups = self.groups(job);
        match groups
            .into_iter()
            .find(|&group| self.is_full(group, job.cost, now))
        {
            None => Ok(()),
            Some(group) => Err(format!("{:?}", self.limits[group.0])),
        }
    }

    pub(crate) fn begin(&mut self, job: &Subject, now: u64) {
        for group in self.groups(job) {
            let mut count = self.count(group, now);
            count.running += 1;
            if let Some((interval, _)) = self.limits[group.0].rate {
                count.level -= interval as i64 * i64::from(job.cost);
            }
            self.counts.insert(group, count);
        }
    }

    pub(crate) fn end(&mut self, job: &Subject, now: u64) {
        for group in self.groups(job) {
            let mut count = self.count(group, now);
            count.running -= 1;
            self.counts.insert(group, count);
        }
    }

    /// A handler was told to slow down: its key waits until this time, and no burst follows.
    pub(crate) fn hold(&mut self, job: &Subject, now: u64, until: u64) {
        let mut groups = self.groups(job);
        groups.retain(|group| self.limits[group.0].keys != Keys::InTurn);
        if groups.iter().any(|group| group.1.is_some()) {
            groups.retain(|group| group.1.is_some());
        }
        if groups.is_empty() {
            let held = self.held.entry((job.kind, job.key)).or_default();
            *held = (*held).max(until);
        }
        for group in groups {
            let mut count = self.count(group, now);
            count.closed = count.closed.max(until);
            if let Some((interval, _)) = self.limits[group.0].rate {
                let then = count.level + until as i64 - now as i64;
                count.level = then.min(self.full(group)).min(interval as i64);
                count.at = until;
            }
            self.counts.insert(group, count);
        }
    }
}
