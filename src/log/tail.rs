//! The two ends of a segment: the tail where producers reserve, and the cursor where consumers
//! claim. Nothing here touches the records themselves, so that loom can check this file completely.
//!
//! The packed tail, reserved by one fetch-and-add and closed by the one reservation that crosses
//! the end, follows Aeron's log buffers (Thompson, Montgomery et al., real-logic/aeron).

use crossbeam_utils::CachePadded;

use crate::sync::{AtomicU64, Ordering, yield_now};

/// Bits of a packed position that count units; the remaining bits hold the index.
///
/// The largest segment, of 1 GiB, has 2^27 units and 2^25 records. The sum of a tail and of every
/// reservation that was refused and not yet taken back must stay below 2^38 units, or the tail
/// would wrap around and hand out units a second time. Even at 2^27 units per reservation, that
/// takes over two thousand threads at once between two adjacent lines of `reserve`.
const UNITS_BITS: u32 = 38;
const UNITS_MASK: u64 = (1 << UNITS_BITS) - 1;

/// A place in a segment: the ordinal of a record and the offset, in units, where it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) index: u32,
    pub(crate) units: u32,
}

impl Position {
    /// Unpacks a word that does not lie past the end of a segment.
    #[inline]
    pub(super) fn unpack(word: u64) -> Self {
        Self {
            index: (word >> UNITS_BITS) as u32,
            units: (word & UNITS_MASK) as u32,
        }
    }

    #[inline]
    pub(super) fn pack(self) -> u64 {
        u64::from(self.index) << UNITS_BITS | u64::from(self.units)
    }
}

/// The result of a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reserved {
    /// The caller alone owns the records and units from here on, and must commit them.
    At(Position),
    /// The reservation did not fit and closed the segment; exactly one caller gets this.
    Closing(Position),
    /// The segment is closed, or about to be.
    Closed,
}

/// No position packs to this: its units are far below `UNITS_MASK`.
const OPEN: u64 = u64::MAX;

/// The end of a segment at which producers reserve.
pub(crate) struct Tail {
    next: CachePadded<AtomicU64>,
    /// The final position, once closed. On a cache line of its own, read by everyone, written once.
    closed: CachePadded<AtomicU64>,
    end_units: u32,
}

impl Tail {
    /// An open tail at `start`; records may take the units below `end_units`.
    pub(crate) fn open(start: Position, end_units: u32) -> Self {
        Self {
            next: CachePadded::new(AtomicU64::new(start.pack())),
            closed: CachePadded::new(AtomicU64::new(OPEN)),
            end_units,
        }
    }

    /// The tail of a segment that is never appended to again.
    pub(crate) fn closed_at(end: Position) -> Self {
        Self {
            next: CachePadded::new(AtomicU64::new(end.pack())),
            closed: CachePadded::new(AtomicU64::new(end.pack())),
            end_units: end.units,
        }
    }

    /// Reserves `records` ordinals and `units` units with one fetch-and-add.
    ///
    /// The caller that gets [`Reserved::Closing`] must call [`close`](Self::close).
    #[inline(always)]
    pub(crate) fn reserve(&self, records: u32, units: u32) -> Reserved {
        // Relaxed: this only saves refused callers the fetch-and-add, which decides.
        if self.closed.load(Ordering::Relaxed) != OPEN {
            return Reserved::Closed;
        }
        let step = Position {
            index: records,
            units,
        }
        .pack();
        // Acquire pairs with the Release of the read-modify-write in `reserved_past`, see there.
        // This one publishes only its own value; the record is published by its commit word.
        let word = self.next.fetch_add(step, Ordering::Acquire);
        if self.is_past_end(word) {
            // Taken back, so that the tail does not wrap around however often callers come before
            // `closed` is set. It stays past the end: the closing reservation is never taken back,
            // and no subtraction comes before its own addition. Relaxed, as nobody learns from it.
            self.next.fetch_sub(step, Ordering::Relaxed);
            return Reserved::Closed;
        }
        let position = Position::unpack(word);
        if units <= self.end_units - position.units {
            Reserved::At(position)
        } else {
            Reserved::Closing(position)
        }
    }

    /// Whether this value of `next` shows that a reservation has crossed the end.
    #[inline]
    fn is_past_end(&self, word: u64) -> bool {
        word & UNITS_MASK > u64::from(self.end_units)
    }

    /// Publishes the final position.
    pub(crate) fn close(&self, end: Position) {
        // Release pairs with the Acquire in `closed`: a thread that sees the end sees what its
        // closer did before, including its last records.
        self.closed.store(end.pack(), Ordering::Release);
    }

    /// Closes the tail at its current position, unless a reservation has closed it or is about to.
    /// Returns the final position if this call closed it.
    pub(crate) fn close_now(&self) -> Option<Position> {
        // One unit more than can ever fit: this reservation crosses the end unless another one has.
        match self.reserve(0, self.end_units + 1) {
            Reserved::Closing(position) => {
                self.close(position);
                Some(position)
            }
            Reserved::At(_) | Reserved::Closed => None,
        }
    }

    /// The final position, once closed.
    #[inline]
    pub(crate) fn closed(&self) -> Option<Position> {
        // Acquire pairs with the Release in `close`.
        match self.closed.load(Ordering::Acquire) {
            OPEN => None,
            word => Some(Position::unpack(word)),
        }
    }

    /// How far reservations have come: everything below is or will be committed.
    pub(crate) fn reached(&self) -> Position {
        loop {
            if let Some(end) = self.closed() {
                return end;
            }
            // Relaxed: a number for statistics and bounds; nothing is read on its strength.
            let word = self.next.load(Ordering::Relaxed);
            if !self.is_past_end(word) {
                return Position::unpack(word);
            }
            // Another thread is between the reservation that crossed the end and `close`, and only
            // it knows the end. The tail's own value counts reservations that were refused.
            yield_now();
        }
    }

    /// Whether a reservation was ever made past `position`, for a consumer that is about to sleep.
    ///
    /// This is a read-modify-write rather than a load, so that it takes its place among the
    /// producers' own in the tail's modification order. Either it comes after a producer's
    /// reservation and sees it, or it comes before. In that case the producer, whose reservation
    /// acquires from this release (through the read-modify-writes between them, if any), sees the
    /// consumer's registration as a sleeper when it looks for sleepers.
    ///
    /// The same holds for the reservation that closes the tail, and so for everything that its
    /// caller does afterwards.
    pub(crate) fn reserved_past(&self, position: Position) -> bool {
        // Release pairs with the Acquire in `reserve`, see above. (The fence in `register` would be
        // enough, too, but compilers turn a Relaxed addition of zero into a load.) From the
        // producers' side only the value is learned; a record is published by its commit word.
        let word = self.next.fetch_add(0, Ordering::Release);
        let reached = match self.closed() {
            Some(end) => u64::from(end.units),
            // Past the end until `close`: the consumer looks again rather than sleeping.
            None => word & UNITS_MASK,
        };
        reached > u64::from(position.units)
    }
}

/// The end of a segment at which consumers claim.
pub(crate) struct Cursor {
    next: CachePadded<AtomicU64>,
}

impl Cursor {
    pub(crate) fn new(start: Position) -> Self {
        Self {
            next: CachePadded::new(AtomicU64::new(start.pack())),
        }
    }

    #[inline]
    pub(crate) fn position(&self) -> Position {
        // Acquire pairs with the Release of `advance`: a thread that sees the cursor past a record
        // may conclude that its claimer saw it committed.
        Position::unpack(self.next.load(Ordering::Acquire))
    }

    /// Claims everything from `from` up to `to`, if no other thread has.
    #[inline]
    pub(crate) fn advance(&self, from: Position, to: Position) -> bool {
        // Release pairs with the Acquire in `position`. Relaxed on failure: the caller reads the
        // position again. No position occurs twice, as every advance adds units.
        self.next
            .compare_exchange(from.pack(), to.pack(), Ordering::Release, Ordering::Relaxed)
            .is_ok()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const START: Position = Position { index: 0, units: 8 };

    fn at(index: u32, units: u32) -> Position {
        Position { index, units }
    }

    #[test]
    fn reservations_follow_each_other_up_to_the_very_end() {
        let tail = Tail::open(START, 20);
        assert_eq!(tail.reserve(1, 4), Reserved::At(at(0, 8)));
        assert_eq!(tail.reserve(2, 8), Reserved::At(at(1, 12)));
        assert_eq!(tail.reached(), at(3, 20));
        assert_eq!(tail.reserve(1, 4), Reserved::Closing(at(3, 20)));
        assert_eq!(tail.reserve(1, 4), Reserved::Closed);
        tail.close(at(3, 20));
        assert_eq!(tail.reserve(1, 4), Reserved::Closed);
        assert_eq!(tail.closed(), Some(at(3, 20)));
        assert_eq!(tail.reached(), at(3, 20));
        assert_eq!(tail.close_now(), None);
    }

    #[test]
    fn no_number_of_refused_reservations_reopens_a_tail_whose_close_is_delayed() {
        let end_units = 1 << 27;
        let tail = Tail::open(START, end_units);
        assert_eq!(tail.reserve(1, end_units), Reserved::Closing(START));
        for _ in 0..10_000 {
            assert_eq!(tail.reserve(1 << 23, end_units / 4), Reserved::Closed);
            assert_eq!(tail.close_now(), None);
        }
    }

    #[test]
    fn a_thousand_reservations_refused_at_once_do_not_reopen_a_tail() {
        let end_units = 1 << 27;
        let tail = Tail::open(START, end_units);
        assert_eq!(tail.reserve(1, end_units), Reserved::Closing(START));
        for _ in 0..1_000 {
            // The addition in `reserve`, before it is taken back.
            let refused = at(1 << 23, end_units);
            tail.next.fetch_add(refused.pack(), Ordering::Relaxed);
            assert_eq!(tail.reserve(1, 4), Reserved::Closed);
        }
    }

    #[test]
    fn the_largest_segment_full_of_the_smallest_records_keeps_its_positions() {
        let end = at((1 << 25) - 2, 1 << 27);
        let tail = Tail::open(START, end.units);
        let Reserved::At(_) = tail.reserve(end.index, end.units - START.units) else {
            panic!("it fits");
        };
        assert_eq!(tail.reached(), end);
        assert_eq!(tail.close_now(), Some(end));
        assert_eq!(tail.closed(), Some(end));
        let cursor = Cursor::new(START);
        assert!(cursor.advance(START, end));
        assert_eq!(cursor.position(), end);
        assert!(!cursor.advance(START, end));
    }

    #[test]
    fn a_consumer_may_sleep_only_where_nothing_is_reserved_past_it() {
        let tail = Tail::open(START, 20);
        assert!(!tail.reserved_past(START));
        let _ = tail.reserve(1, 4);
        assert!(tail.reserved_past(START));
        assert!(!tail.reserved_past(at(1, 12)));
        // Crossing the end: until the close is published, the end is not known.
        assert_eq!(tail.reserve(1, 10), Reserved::Closing(at(1, 12)));
        assert!(tail.reserved_past(at(1, 12)));
        tail.close(at(1, 12));
        assert!(!tail.reserved_past(at(1, 12)));
        assert!(Tail::closed_at(at(1, 12)).reserved_past(START));
    }
}
