//! The registry of a queue's consumers, in which an idle consumer finds another one to steal from.
//!
//! Each consumer has a place, which is reused once the consumer is gone, and a bit that tells
//! whether it may have jobs to steal, see `marks.rs`. So a search costs one load per 64 consumers,
//! plus a visit to each consumer that had jobs lately. Registering and unregistering cost the same
//! however many consumers there are.

use std::iter;
use std::sync::OnceLock;

use parking_lot::{RwLock, RwLockReadGuard};

use super::marks::Marks;
use super::source::Thief;
use crate::events::Mutex;

/// Places in a group; they share a word of marks.
const GROUP: usize = u64::BITS as usize;
/// Levels of groups, each with twice as many as the one before: more places than memory can hold.
const LEVELS: usize = 32;

/// The consumers of a queue.
pub(super) struct Registry {
    /// Allocated when needed, starting with the first level.
    levels: [OnceLock<Box<[Group]>>; LEVELS],
    places_given: Mutex<Places>,
    /// Places visited in search of jobs.
    #[cfg(test)]
    pub(super) visits: std::sync::atomic::AtomicU64,
}

#[derive(Default)]
struct Places {
    /// Registrations so far.
    count: usize,
    /// Places that were ever given out.
    places: usize,
    /// The free ones among them.
    free: Vec<usize>,
}

struct Group {
    marks: Marks,
    /// One lock per place: it costs the same however many threads there are, unlike a store to an
    /// `ArcSwap`.
    thieves: [RwLock<Option<Thief>>; GROUP],
}

impl Group {
    fn new() -> Self {
        Self {
            marks: Marks::new(),
            thieves: [const { RwLock::new(None) }; GROUP],
        }
    }
}

/// A consumer that may have jobs to steal.
#[derive(Clone, Copy)]
pub(super) struct ConsumerPlace<'a> {
    group: &'a Group,
    bit: u32,
}

impl ConsumerPlace<'_> {
    /// The stealing ends of the consumer's deques; None if it is gone.
    pub(super) fn thief(&self) -> RwLockReadGuard<'_, Option<Thief>> {
        self.group.thieves[self.bit as usize].read()
    }

    fn has_work(&self) -> bool {
        self.thief().as_ref().is_some_and(Thief::has_work)
    }

    /// Records that there is nothing to steal here. Returns false if there is something after all;
    /// the caller then wakes a sleeper.
    pub(super) fn note_empty(&self) -> bool {
        self.group.marks.clear(self.bit);
        // This looks at the current holder of the place, which may be a new one.
        let has_work = self.has_work();
        if has_work {
            self.group.marks.set(self.bit);
        }
        !has_work
    }
}

impl Registry {
    pub(super) fn new() -> Self {
        Self {
            levels: [const { OnceLock::new() }; LEVELS],
            places_given: Mutex::new(Places::default()),
            #[cfg(test)]
            visits: std::sync::atomic::AtomicU64::new(0),
        }
    }

    /// Registers a consumer to steal from; returns its place, and how many registered before it.
    pub(super) fn register(&self, thief: Thief) -> (usize, usize) {
        let mut places_given = self.places_given.lock();
        let count = places_given.count;
        places_given.count += 1;
        let place = places_given.free.pop().unwrap_or_else(|| {
            places_given.places += 1;
            places_given.places - 1
        });
        // Under the lock, so that levels are created in order.
        let (level, at) = level_of(place / GROUP);
        let groups =
            self.levels[level].get_or_init(|| (0..1 << level).map(|_| Group::new()).collect());
        *groups[at].thieves[place % GROUP].write() = Some(thief);
        (place, count)
    }

    /// Frees a place, after the consumer's deques were emptied.
    pub(super) fn unregister(&self, place: usize) {
        if let Some(group) = self.group(place / GROUP) {
            *group.thieves[place % GROUP].write() = None;
        }
        self.places_given.lock().free.push(place);
    }

    /// Records that there is something to steal from the consumer at `place`. The caller then wakes
    /// a sleeper, with a fence in between.
    pub(super) fn mark(&self, place: usize) {
        if let Some(group) = self.group(place / GROUP) {
            group.marks.set((place % GROUP) as u32);
        }
    }

    /// Consumers that may have jobs to steal, starting behind `place`, so that thieves start at
    /// different places.
    pub(super) fn marked_after(&self, place: usize) -> impl Iterator<Item = ConsumerPlace<'_>> {
        let levels = self.levels.iter().take_while(|level| level.get().is_some());
        let groups = (1 << levels.count()) - 1;
        let first = place / GROUP;
        let behind = u64::MAX << (place % GROUP) << 1;
        let others = (1..groups).map(move |distance| ((first + distance) % groups, u64::MAX));
        let searched = iter::once((first, behind))
            .chain(others)
            .chain(iter::once((first, !behind)));
        searched
            .filter_map(|(number, mask)| Some((self.group(number)?, mask)))
            .flat_map(|(group, mask)| {
                let marked = group.marks.get() & mask;
                bits(marked).map(move |bit| ConsumerPlace { group, bit })
            })
            .inspect(|_| self.count_visit())
    }

    /// Whether there is something to steal, for a consumer that has registered as a sleeper and
    /// fenced.
    pub(super) fn has_work(&self) -> bool {
        self.marked_after(0).any(|place| place.has_work())
    }

    /// Jobs in the deques of all consumers.
    pub(super) fn queued(&self) -> u64 {
        let groups = self.levels.iter().map_while(OnceLock::get).flatten();
        let thieves = groups.flat_map(|group| &group.thieves);
        thieves
            .filter_map(|thief| Some(thief.read().as_ref()?.queued()))
            .sum()
    }

    fn group(&self, number: usize) -> Option<&Group> {
        let (level, at) = level_of(number);
        self.levels.get(level)?.get()?.get(at)
    }

    fn count_visit(&self) {
        #[cfg(test)]
        self.visits
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

/// The level of a group, and its place in it.
fn level_of(group: usize) -> (usize, usize) {
    let level = (group + 1).ilog2();
    (level as usize, group + 1 - (1 << level))
}

/// The bits that are set.
fn bits(mut word: u64) -> impl Iterator<Item = u32> {
    iter::from_fn(move || {
        let bit = word.trailing_zeros();
        word &= word.wrapping_sub(1);
        (bit < u64::BITS).then_some(bit)
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::source::Deques;
    use super::*;

    #[test]
    fn each_consumer_has_a_place_of_its_own_until_it_is_gone() {
        let registry = Registry::new();
        let places: Vec<_> = (0..1000)
            .map(|_| registry.register(Deques::new().1))
            .collect();
        assert!((0..1000).map(|at| (at, at)).eq(places));
        registry.unregister(70);
        registry.unregister(500);
        assert_eq!(registry.register(Deques::new().1), (500, 1000));
        assert_eq!(registry.register(Deques::new().1), (70, 1001));
        assert_eq!(registry.register(Deques::new().1), (1000, 1002));
    }

    #[test]
    fn those_who_are_marked_are_found_wherever_the_search_begins() {
        let registry = Registry::new();
        for _ in 0..300 {
            registry.register(Deques::new().1);
        }
        let marked = [0, 63, 64, 130, 299];
        for place in marked {
            registry.mark(place);
        }
        for place in 0..300 {
            let mut found: Vec<_> = registry
                .marked_after(place)
                .map(|place| place.bit as usize)
                .collect();
            let behind = marked.iter().find(|&&other| other > place);
            let first = behind.unwrap_or(&marked[0]) % GROUP;
            assert_eq!(found[0], first, "after {place}");
            found.sort();
            assert_eq!(found, [0, 0, 2, 43, 63]);
        }
    }

    #[test]
    fn a_mark_is_taken_off_only_where_there_is_nothing() {
        let registry = Registry::new();
        let (_deques, thief) = Deques::new();
        let (place, _) = registry.register(thief);
        registry.mark(place);
        assert!(registry.marked_after(place).all(|place| place.note_empty()));
        assert_eq!(registry.marked_after(place).count(), 0);
        assert!(!registry.has_work());
        registry.unregister(place);
        registry.mark(place);
        assert!(registry.marked_after(place).all(|place| place.note_empty()));
    }
}
