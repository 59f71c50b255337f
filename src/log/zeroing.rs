//! Zeroing the files of a retired segment, a piece at a time.
//!
//! A segment of 8 MiB takes the maintenance thread several hundred microseconds. Where every core is
//! busy, it takes them from a producer or a consumer. So as long as the active segment fills slowly,
//! it zeroes a small piece and pauses. If there may be no time for that, it zeroes all at once, as
//! does a producer that has to roll and finds nothing prepared.

use std::time::{Duration, Instant};

use super::record::UNIT;
use super::segment::{Maps, Paths};
use super::spare::Spare;
use super::tail::Position;

/// Bytes of a piece: some twenty microseconds.
const PIECE: u64 = 256 * 1024;
/// Between two pieces.
pub(super) const PAUSE: Duration = Duration::from_millis(1);
/// So many times the time that all pieces take must be left until the active segment is full.
const MARGIN: f64 = 2.0;

/// The mapped files of a retired segment, on their way to a spare.
pub(super) struct Dirty {
    maps: Maps,
    end: Position,
    zeroed: usize,
}

impl Dirty {
    /// Of files that were renamed to `paths`, and are already zero from `end` on.
    pub(super) fn new(mut maps: Maps, end: Position, paths: Paths) -> Self {
        maps.records.file.moved_to(paths.segment);
        maps.acks.file.moved_to(paths.ack);
        Self {
            maps,
            end,
            zeroed: 0,
        }
    }

    /// Zeroes at most so many more bytes of the records, from their start on. Returns whether that
    /// was the rest of them.
    pub(super) fn zero(&mut self, most: usize) -> bool {
        let all = self.end.units as usize * UNIT;
        let len = most.min(all - self.zeroed);
        self.maps.records.file.zero(self.zeroed, len);
        self.zeroed += len;
        self.zeroed == all
    }

    /// Zeroes what is left.
    pub(super) fn into_spare(mut self) -> Spare {
        self.zero(usize::MAX);
        Spare::of_zeros(self.maps, self.end)
    }
}

/// How many bytes to zero now, while the active segment has this size, and so many bytes of it were
/// filled before and are filled now. The one before it was full after `last`: who enqueues in bursts
/// is about to go on as fast.
pub(super) fn piece(
    size: u64,
    before: (Instant, u64),
    now: (Instant, u64),
    last: Duration,
) -> usize {
    let passed = now.0.saturating_duration_since(before.0).as_secs_f64();
    let filled = now.1.saturating_sub(before.1).max(1);
    let left = passed * size.saturating_sub(now.1) as f64 / filled as f64;
    let left = left.min(last.as_secs_f64());
    let needed = PAUSE.as_secs_f64() * size.div_ceil(PIECE) as f64;
    if left > MARGIN * needed {
        PIECE as usize
    } else {
        usize::MAX
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_zeroed_in_pieces_only_if_there_is_time_for_them() {
        const SIZE: u64 = 8 << 20;
        let start = Instant::now();
        let is_in_pieces = |micros, from, to| {
            let now = start + Duration::from_micros(micros);
            piece(SIZE, (start, from), (now, to), Duration::MAX) != usize::MAX
        };
        // 48 MiB a second, 800 MiB a second.
        assert!(is_in_pieces(1_000, 0, 48 << 10));
        assert!(!is_in_pieces(1_000, 0, 800 << 10));
        // Nearly full.
        assert!(is_in_pieces(1_000, 4 << 20, (4 << 20) + (48 << 10)));
        assert!(!is_in_pieces(1_000, 15 << 19, (15 << 19) + (48 << 10)));
        // Nobody enqueues.
        assert!(is_in_pieces(1_000, 64, 64));
        assert!(is_in_pieces(10_000_000, 64, 8_000));
    }

    #[test]
    fn between_bursts_a_segment_is_zeroed_at_once() {
        let start = Instant::now();
        let nothing_since = ((start, 64), (start + PAUSE, 64));
        let after = |last| piece(8 << 20, nothing_since.0, nothing_since.1, last);
        assert_eq!(after(Duration::from_micros(500)), usize::MAX);
        assert_eq!(after(Duration::from_millis(170)), PIECE as usize);
    }
}
