//! The mark of a segment, in the header of its ack file: it tells recovery how to judge a segment
//! that is missing, empty or truncated.
//!
//! A power cut may leave nothing of a segment that was never flushed, for which nothing was
//! promised; and a segment whose jobs are all done is emptied or removed by this library. In any
//! other case the segment was lost for another reason, and recovery reports that.
//!
//! A segment begins as [`Fresh`](Mark::Fresh). It becomes [`Relied`](Mark::Relied) when a flush of
//! its records has succeeded, so that a mark on disk proves a record on disk. It becomes
//! [`Finished`](Mark::Finished) before its file is emptied, renamed or removed, durably if it was
//! relied on.

use std::fs;
use std::sync::LazyLock;

/// The states of a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// It was made, or found at open, since the machine started, so its files are as this process
    /// or an earlier one left them.
    Fresh,
    /// At least one record is durable.
    Relied,
    /// All of its jobs are done.
    Finished,
}

impl Mark {
    /// The word that encodes this mark in the header of an ack file with this salt.
    pub(super) fn encode(self, salt: u64) -> u64 {
        let code = match self {
            Self::Relied => 1,
            Self::Finished => 2,
            // Differs from both codes above.
            Self::Fresh => boot() | 4,
        };
        // The finalizer of SplitMix64 (Steele, Lea and Flood 2014): each step is reversible.
        let mut word = salt ^ code;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// Decodes a mark. None if the mark is fresh but from before the machine started, or if the
    /// word is not valid.
    pub(super) fn decode(salt: u64, word: u64) -> Option<Self> {
        let marks = [Self::Fresh, Self::Relied, Self::Finished];
        marks.into_iter().find(|mark| mark.encode(salt) == word)
    }
}

/// How far a segment that reuses files is durable, in the header of its ack file.
///
/// The zeros that its files were filled with need not be durable, so a power cut may leave bytes of
/// an earlier life of the files behind its records. This says from where on that is possible; what
/// is before it was flushed.
///
/// ```text
/// bits  0..28  units
///      28..40  of the boot in which the files were zeroed: until the next one, a process finds
///              what the last one has written
///      40..64  check of the salt and the bits below
/// ```
pub(in crate::log) mod reused {
    use super::boot;

    const UNITS: u64 = (1 << 28) - 1;
    const CHECKED: u64 = (1 << 40) - 1;

    fn boot_bits() -> u64 {
        (boot() >> 52) << 28
    }

    fn with_check(salt: u64, bits: u64) -> u64 {
        let folded = (salt ^ bits).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let check = (folded ^ (folded >> 32)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        check & !CHECKED | bits
    }

    /// The word that says that everything before these units is durable.
    pub(in crate::log) fn encode(salt: u64, units: u32) -> u64 {
        with_check(salt, u64::from(units) & UNITS | boot_bits())
    }

    /// From where on bytes of an earlier life may stand. None if the files were not reused, or were
    /// since the machine started, or if the word is not valid.
    pub(in crate::log) fn decode(salt: u64, word: u64) -> Option<u32> {
        let bits = word & CHECKED;
        let units = (bits & UNITS) as u32;
        let is_valid = units > 0 && with_check(salt, bits) == word;
        (is_valid && bits & !UNITS != boot_bits()).then_some(units)
    }
}

/// A value that identifies this boot of the machine.
fn boot() -> u64 {
    static BOOT: LazyLock<u64> =
        LazyLock::new(|| match fs::read("/proc/sys/kernel/random/boot_id") {
            // A UUID, so any half of it will do.
            Ok(id) => id.iter().fold(0, |folded: u64, &byte| {
                folded.rotate_left(7).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(byte)
            }),
            // A random value, so that no other process seems to be from the same boot.
            Err(_) => crate::identity::new(),
        });
    #[cfg(any(test, feature = "simulated-disk"))]
    if let Some(boot) = pretended::boot() {
        return boot;
    }
    *BOOT
}

/// Simulated boots of the machine.
#[cfg(any(test, feature = "simulated-disk"))]
pub(crate) mod pretended {
    use std::cell::Cell;
    #[cfg(feature = "simulated-disk")]
    use std::time::Duration;

    #[cfg(feature = "simulated-disk")]
    use crate::time::stopped;

    thread_local! {
        static BOOT: Cell<Option<u64>> = const { Cell::new(None) };
    }

    pub(super) fn boot() -> Option<u64> {
        BOOT.get()
    }

    /// Makes this thread see a new boot of the machine while the guard lives.
    #[cfg(test)]
    pub(crate) fn restart() -> Restarted {
        Restarted(BOOT.replace(Some(fastrand::u64(..))))
    }

    #[cfg(test)]
    #[must_use]
    pub(crate) struct Restarted(Option<u64>);

    #[cfg(test)]
    impl Drop for Restarted {
        fn drop(&mut self) {
            BOOT.set(self.0);
        }
    }

    /// A boot that a thread sees from when it is made until another one is, or this is dropped. Clocks
    /// that no one advances stand still meanwhile.
    #[cfg(feature = "simulated-disk")]
    #[derive(Debug)]
    pub(crate) struct Boot(u64);

    /// What the clocks show then.
    #[cfg(feature = "simulated-disk")]
    const STARTED: Duration = Duration::from_secs(1_000_000);

    #[cfg(feature = "simulated-disk")]
    impl Boot {
        pub(crate) fn new(boot: u64) -> Self {
            BOOT.set(Some(boot));
            stopped::set(Some(STARTED));
            Self(boot)
        }
    }

    #[cfg(feature = "simulated-disk")]
    impl Drop for Boot {
        fn drop(&mut self) {
            if BOOT.get() == Some(self.0) {
                BOOT.set(None);
                stopped::set(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_bound_to_its_salt_and_a_fresh_one_to_the_start_of_the_machine() {
        let marks = [Mark::Fresh, Mark::Relied, Mark::Finished];
        for mark in marks {
            let word = mark.encode(7);
            assert_eq!(Mark::decode(7, word), Some(mark));
            assert_eq!(Mark::decode(8, word), None);
            for bit in 0..64 {
                assert_eq!(Mark::decode(7, word ^ 1 << bit), None);
            }
            let _restarted = pretended::restart();
            let is_fresh = mark == Mark::Fresh;
            assert_eq!(Mark::decode(7, word), (!is_fresh).then_some(mark));
        }
        assert_eq!(Mark::decode(7, 0), None);
    }

    #[test]
    fn how_far_reused_files_are_durable_matters_only_after_a_restart_of_the_machine() {
        for units in [8, 1000, 1 << 27] {
            let word = reused::encode(7, units);
            assert_eq!(reused::decode(7, word), None);
            let _restarted = pretended::restart();
            assert_eq!(reused::decode(7, word), Some(units));
            assert_eq!(reused::decode(8, word), None);
            for bit in 0..64 {
                assert_eq!(reused::decode(7, word ^ 1 << bit), None, "{bit}");
            }
        }
        assert_eq!(reused::decode(7, 0), None);
    }

    #[test]
    fn the_words_of_lasting_marks_are_pinned() {
        const SALT: u64 = 0x1122_3344_5566_7788;
        // Computed from the definition by a separate program.
        assert_eq!(Mark::Relied.encode(SALT), 0x4f65_34ca_da3d_2192);
        assert_eq!(Mark::Finished.encode(SALT), 0xb03a_2df2_9a12_9175);
    }
}
