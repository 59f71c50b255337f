//! The two ends of a segment: the tail where producers reserve, and the cursor where consumers
//! claim. Nothing here touches the records themselves, so that loom can check it whole.
//!
//! The packed tail, reserved by one fetch-and-add and closed by the one reservation that crosses
//! the end, follows Aeron's log buffers (Thompson, Montgomery et al., real-logic/aeron).

use crossbeam_utils::CachePadded;

use crate::sync::{AtomicU64, Ordering};

/// A place in a segment: the ordinal of a record and the offset, in units, where it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) index: u32,
    pub(crate) units: u32,
}

impl Position {
    #[inline]
    pub(super) fn unpack(word: u64) -> Self {
        Self {
            index: (word >> 32) as u32,
            units: word as u32,
        }
    }

    #[inline]
    pub(super) fn pack(self) -> u64 {
        u64::from(self.index) << 32 | u64::from(self.units)
    }
}

/// What became of a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reserved {
    /// The caller alone owns the records and units from here on, and must commit them.
    At(Position),
    /// The reservation did not fit and closed the segment; this happens to exactly one caller.
    Closing(Position),
    /// The segment is closed, or about to be.
    Closed,
}

/// No position packs to this: units stay far below `u32::MAX`.
const OPEN: u64 = u64::MAX;

/// Where producers reserve.
pub(crate) struct Tail {
    next: CachePadded<AtomicU64>,
    /// The final position, once closed. On a line of its own, read by everyone, written once.
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
    #[inline]
    pub(crate) fn reserve(&self, records: u32, units: u32) -> Reserved {
        // Without this look, every refused reservation would move the tail on, and enough of
        // them would wrap it around. With it, only callers already past this line still do.
        if self.closed.load(Ordering::Relaxed) != OPEN {
            return Reserved::Closed;
        }
        let step = u64::from(records) << 32 | u64::from(units);
        // AcqRel: pairs with the read-modify-write in `reserved`, see there.
        let position = Position::unpack(self.next.fetch_add(step, Ordering::AcqRel));
        if position.units > self.end_units {
            Reserved::Closed
        } else if units <= self.end_units - position.units {
            Reserved::At(position)
        } else {
            Reserved::Closing(position)
        }
    }

    /// Publishes the final position.
    pub(crate) fn close(&self, end: Position) {
        // Release, paired with the Acquire in `closed`.
        self.closed.store(end.pack(), Ordering::Release);
    }

    /// Closes the tail where it stands, unless a reservation has closed it or is about to.
    /// Returns the final position if this call closed it.
    pub(crate) fn close_now(&self) -> Option<Position> {
        // One unit more than can ever fit: this reservation crosses the end unless one has.
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
        match self.closed.load(Ordering::Acquire) {
            OPEN => None,
            word => Some(Position::unpack(word)),
        }
    }

    /// How far reservations have come: an upper bound of what is or will be committed.
    pub(crate) fn reached(&self) -> Position {
        self.closed()
            .unwrap_or_else(|| Position::unpack(self.next.load(Ordering::Relaxed)))
    }

    /// Whether a reservation was ever made past `position`, for a consumer that is about to sleep.
    ///
    /// A read-modify-write rather than a load, so that it takes its place among the producers'
    /// own in the tail's modification order. Either it comes after a producer's reservation and
    /// sees it, or it comes before, and then that producer, whose reservation acquires from this
    /// release, sees the consumer's registration as a sleeper when it looks for sleepers.
    pub(crate) fn reserved_past(&self, position: Position) -> bool {
        let next = Position::unpack(self.next.fetch_add(0, Ordering::AcqRel));
        let end = self.closed().unwrap_or(next);
        end.units > position.units
    }
}

/// Where consumers claim.
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
        // Acquire pairs with the Release of `advance`: who sees the cursor past a record may
        // conclude that its claimer saw it committed.
        Position::unpack(self.next.load(Ordering::Acquire))
    }

    /// Takes everything from `from` up to `to`, if nobody else has.
    #[inline]
    pub(crate) fn advance(&self, from: Position, to: Position) -> bool {
        self.next
            .compare_exchange(from.pack(), to.pack(), Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }
}
