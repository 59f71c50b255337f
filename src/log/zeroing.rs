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
use crate::time;

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

/// How many bytes to zero now, while the active segment has this size, and was filled up to
/// `reached` bytes since it became the active one.
pub(super) fn piece(size: u64, reached: u64, since: Instant) -> usize {
    let passed = time::now().saturating_duration_since(since).as_secs_f64();
    let left = passed * size.saturating_sub(reached) as f64 / reached.max(1) as f64;
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
    use crate::time::stopped;

    #[test]
    fn a_segment_is_zeroed_in_pieces_only_if_there_is_time_for_them() {
        const SIZE: u64 = 8 << 20;
        stopped::set(Some(Duration::from_secs(1)));
        let since = time::now();
        let after = |time: Duration, reached| {
            stopped::set(Some(Duration::from_secs(1) + time));
            piece(SIZE, reached, since) != usize::MAX
        };
        let ms = Duration::from_millis;
        // 48 MiB a second, 800 MiB a second.
        assert!(after(ms(1), 48 << 10));
        assert!(!after(ms(1), 800 << 10));
        // Nearly full.
        assert!(after(ms(80), 4 << 20));
        assert!(!after(ms(160), 15 << 19));
        // Nobody enqueues.
        assert!(after(ms(10_000), 64));
        stopped::set(None);
    }
}
