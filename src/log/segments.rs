//! The segments of a stripe's log in order, and which of them need attention.
//!
//! A segment is *at rest* if it is sealed and waits to be claimed from. Nothing in it changes, so
//! flushes, maintenance and statistics skip it, and their cost does not depend on how many such
//! segments there are. A segment must be woken before anything in it is changed.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Deref;
use std::sync::Arc;

use super::segment::Segment;
use super::stats::LogStats;
use crate::Sequence;

/// The segments of a log, oldest first; the last is the active one.
pub(super) struct Segments {
    all: VecDeque<Arc<Segment>>,
    /// The segments that are not at rest.
    awake: BTreeMap<Sequence, Arc<Segment>>,
    /// Segments at rest whose acks may not be durable: an earlier process made them, or they hold
    /// letters that were purged.
    unflushed: BTreeMap<Sequence, Arc<Segment>>,
    /// The sum of what the segments at rest hold.
    resting: LogStats,
}

impl Segments {
    pub(super) fn new(all: VecDeque<Arc<Segment>>) -> Self {
        let awake = all.iter().map(|one| (one.base(), Arc::clone(one)));
        Self {
            awake: awake.collect(),
            all,
            unflushed: BTreeMap::new(),
            resting: LogStats::default(),
        }
    }

    pub(super) fn push_back(&mut self, segment: Arc<Segment>) {
        self.awake.insert(segment.base(), Arc::clone(&segment));
        self.all.push_back(segment);
    }

    /// Removes a segment that is awake.
    pub(super) fn remove(&mut self, gone: &Segment) {
        self.awake.remove(&gone.base());
        let at = self.all.partition_point(|one| one.base() < gone.base());
        self.all.remove(at);
    }

    /// The segments that are not at rest, oldest first.
    pub(super) fn awake(&self) -> impl Iterator<Item = &Arc<Segment>> {
        self.awake.values()
    }

    /// The segments that a flush has to look at; with `acks_too`, also for acks.
    pub(super) fn to_flush(&self, acks_too: bool) -> Vec<Arc<Segment>> {
        let unflushed = self.unflushed.values().filter(|_| acks_too);
        self.awake().chain(unflushed).cloned().collect()
    }

    /// Called after a flush of acks.
    pub(super) fn note_flushed(&mut self) {
        self.unflushed.retain(|_, one| !one.are_acks_flushed());
    }

    /// The sum of what the segments at rest hold.
    pub(super) fn resting(&self) -> &LogStats {
        &self.resting
    }

    /// Puts to rest a segment in which nothing changes until it is woken.
    pub(super) fn rest(&mut self, segment: &Arc<Segment>) {
        if self.awake.remove(&segment.base()).is_some() {
            self.resting.add(&LogStats::of_resting(segment));
            if !segment.are_acks_flushed() {
                self.unflushed.insert(segment.base(), Arc::clone(segment));
            }
        }
    }

    /// Wakes a segment, before anything in it changes.
    pub(super) fn wake(&mut self, segment: &Arc<Segment>) {
        let base = segment.base();
        // A segment that was removed is not added again.
        if !self.awake.contains_key(&base) && self.contains(segment) {
            self.resting.subtract(&LogStats::of_resting(segment));
            self.unflushed.remove(&base);
            self.awake.insert(base, Arc::clone(segment));
        }
    }

    fn contains(&self, segment: &Segment) -> bool {
        let found = self
            .all
            .binary_search_by_key(&segment.base(), |one| one.base());
        found.is_ok()
    }
}

impl Deref for Segments {
    type Target = VecDeque<Arc<Segment>>;

    fn deref(&self) -> &Self::Target {
        &self.all
    }
}
