//! Assigns stripes to producers and threads: they get a queue's stripes in turn, and keep the one
//! they got.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

/// Queues whose stripe a thread finds without a lookup in its map, if their ids are consecutive.
const AT_HAND: usize = 8;
/// A thread's map is not searched for closed queues before it has this many entries.
const FEW: usize = 16;

/// The stripes of a queue, assigned in turn.
pub(crate) struct Turns {
    /// The id of this open queue, unique and not 0.
    id: u64,
    stripes: usize,
    next: AtomicUsize,
    /// Lets threads forget the queue when it is gone.
    is_open: Arc<()>,
}

/// The entry of a queue in a thread's map.
struct Remembered {
    stripe: usize,
    is_open: Weak<()>,
}

thread_local! {
    /// Indexed by the lowest bits of the queue's id: the id, and the thread's stripe.
    static AT_HAND_HERE: [Cell<(u64, usize)>; AT_HAND] =
        const { [const { Cell::new((0, 0)) }; AT_HAND] };
    static REMEMBERED_HERE: RefCell<HashMap<u64, Remembered>> = RefCell::default();
}

impl Turns {
    pub(crate) fn new(stripes: usize) -> Self {
        static IDS: AtomicU64 = AtomicU64::new(1);
        Self {
            // Relaxed, here and below: any number will do that no other caller gets.
            id: IDS.fetch_add(1, Ordering::Relaxed),
            stripes,
            next: AtomicUsize::new(0),
            is_open: Arc::new(()),
        }
    }

    /// The stripe for the next caller.
    pub(crate) fn next(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed) % self.stripes
    }

    /// The stripe of the calling thread.
    #[inline]
    pub(crate) fn of_this_thread(&self) -> usize {
        AT_HAND_HERE.with(|at_hand| {
            let at_hand = &at_hand[self.id as usize % AT_HAND];
            let (id, stripe) = at_hand.get();
            if id == self.id {
                return stripe;
            }
            let stripe = self.remembered();
            at_hand.set((self.id, stripe));
            stripe
        })
    }

    #[cold]
    fn remembered(&self) -> usize {
        let stripe = REMEMBERED_HERE.try_with(|remembered| {
            let mut remembered = remembered.borrow_mut();
            if let Some(known) = remembered.get(&self.id) {
                return known.stripe;
            }
            // Before the map would grow, so that the cost is covered by the entries added since the
            // last time.
            if remembered.len() >= FEW && remembered.len() == remembered.capacity() {
                remembered.retain(|_, known| known.is_open.strong_count() > 0);
            }
            let stripe = self.next();
            let known = Remembered {
                stripe,
                is_open: Arc::downgrade(&self.is_open),
            };
            remembered.insert(self.id, known);
            stripe
        });
        // A thread that is ending, and has no map any more, takes the first stripe.
        stripe.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_its_stripe_in_each_of_many_queues() {
        let queues: Vec<_> = (0..100).map(|_| Turns::new(3)).collect();
        let others: Vec<_> = queues.iter().map(Turns::next).collect();
        assert_eq!(others, [0; 100]);
        for _ in 0..3 {
            assert!(queues.iter().all(|turns| turns.of_this_thread() == 1));
        }
        assert!(queues.iter().all(|turns| turns.next() == 2));
    }

    #[test]
    fn threads_that_use_two_queues_each_share_all_stripes_of_both() {
        let queues = [Turns::new(4), Turns::new(4)];
        for _ in 0..3 {
            let stripes = [(); 4].map(|()| {
                std::thread::scope(|scope| {
                    let both = || queues.each_ref().map(Turns::of_this_thread);
                    scope.spawn(both).join().unwrap()
                })
            });
            assert_eq!(stripes, [[0, 0], [1, 1], [2, 2], [3, 3]]);
        }
    }

    #[test]
    fn a_thread_forgets_queues_that_are_gone() {
        let kept = Turns::new(5);
        kept.next();
        let stripe = kept.of_this_thread();
        for _ in 0..10_000 {
            Turns::new(5).of_this_thread();
        }
        let remembered = REMEMBERED_HERE.with_borrow(HashMap::capacity);
        assert!(remembered < 100, "room for {remembered}");
        assert_eq!(kept.of_this_thread(), stripe);
    }
}
