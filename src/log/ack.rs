//! The ack file: which records of a segment are done, and how often each was delivered.
//!
//! ```text
//! offset          size           field
//!      0            64           header (see header.rs), the identity of the segment's own
//!     64   8 * ceil(capacity/32) ack words
//!      -   4 * capacity          delivery counts
//! ```
//! Both arrays check themselves, since a lost job hides behind a bit set by accident, and both
//! checks depend on the segment's salt, since a file that is used again may come out of a power cut
//! with pages of its past:
//!
//! - An **ack word** holds 32 done bits below and, above, the sum of a constant for each set bit,
//!   times a key made from the salt. Setting bit i adds `1 << i | (CODE[i] * key) << 32`: one
//!   wait-free fetch-and-add, as every bit is set once. A word whose sum is off is taken as zero at
//!   recovery: 32 jobs are redelivered, none lost.
//! - A **delivery count** is a byte and, above it, a check of 24 bits: those of its product with an
//!   odd constant, xor the salt's upper half. A count that fails its check is taken as zero; no
//!   delivery is a word of zeros.

use std::sync::atomic::Ordering;

use super::header::HEADER_BYTES;
use crate::mapped::MappedFile;

/// Records per ack word.
pub(crate) const RECORDS_PER_WORD: u32 = 32;

/// What each done bit adds to the upper half of its word: the high halves of a Weyl sequence put
/// through the finalizer of SplitMix64 (Steele, Lea and Flood 2014), without its last step. That no
/// two sets of bits within a byte have the same sum is tested below.
const CODE: [u32; RECORDS_PER_WORD as usize] = {
    let mut code = [0; RECORDS_PER_WORD as usize];
    let mut i = 0;
    while i < code.len() {
        let mut z = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        code[i] = (z >> 32) as u32;
        i += 1;
    }
    code
};

/// Odd, so that distinct counts have distinct products.
const COUNT_CODE: u32 = 0x9e37_79b1;

/// What the checks of an ack file depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    /// Odd, so that multiplying by it loses nothing.
    words: u32,
    counts: u32,
}

impl Key {
    pub(crate) fn new(salt: u64) -> Self {
        Self {
            words: salt as u32 | 1,
            counts: (salt >> 32) as u32,
        }
    }

    /// The word that has exactly the bits of `done` set.
    pub(crate) fn word_of(self, done: u32) -> u64 {
        let mut sum = 0u32;
        let mut bits = done;
        while bits != 0 {
            sum = sum.wrapping_add(CODE[bits.trailing_zeros() as usize]);
            bits &= bits - 1;
        }
        u64::from(sum.wrapping_mul(self.words)) << 32 | u64::from(done)
    }

    /// The done bits of a word, or None if it does not check.
    pub(crate) fn bits_of(self, word: u64) -> Option<u32> {
        let done = word as u32;
        (self.word_of(done) == word).then_some(done)
    }

    /// What setting the bit of a record adds to its word.
    #[inline]
    fn step_of(self, index: u32) -> u64 {
        let bit = index % RECORDS_PER_WORD;
        1 << bit | u64::from(CODE[bit as usize].wrapping_mul(self.words)) << 32
    }

    /// A count with its check.
    #[inline]
    fn count_of(self, deliveries: u8) -> u32 {
        if deliveries == 0 {
            return 0;
        }
        let product = u32::from(deliveries).wrapping_mul(COUNT_CODE);
        (product ^ self.counts) & !0xff | u32::from(deliveries)
    }
}

/// Ack words that `records` records need.
pub(crate) fn words_for(records: u32) -> u32 {
    records.div_ceil(RECORDS_PER_WORD)
}

/// Bytes of the ack file of a segment of `capacity` records.
pub(crate) fn file_bytes(capacity: u32) -> u64 {
    HEADER_BYTES as u64 + 8 * u64::from(words_for(capacity)) + 4 * u64::from(capacity)
}

fn counts_offset(capacity: u32) -> usize {
    HEADER_BYTES + 8 * words_for(capacity) as usize
}

/// The bytes of an ack file that say something of the records below `end`: its header with the ack
/// words, and the delivery counts.
pub(super) fn used_ranges(capacity: u32, end: u32) -> [std::ops::Range<usize>; 2] {
    let counts = counts_offset(capacity);
    [
        0..HEADER_BYTES + 8 * words_for(end) as usize,
        counts..counts + 4 * end as usize,
    ]
}

/// The arrays of a mapped ack file.
pub(crate) struct AckFile {
    pub(crate) file: MappedFile,
    capacity: u32,
    /// Where the delivery counts begin.
    counts: usize,
    key: Key,
}

impl AckFile {
    /// The ack file of a segment with this salt.
    pub(crate) fn new(file: MappedFile, capacity: u32, salt: u64) -> Self {
        debug_assert!(file.len() as u64 >= file_bytes(capacity));
        Self {
            file,
            capacity,
            counts: counts_offset(capacity),
            key: Key::new(salt),
        }
    }

    /// Makes a file that is all zero that of a segment with this salt.
    pub(super) fn set_salt(&mut self, salt: u64) {
        self.key = Key::new(salt);
    }

    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    #[inline]
    fn word(&self, index: u32) -> &std::sync::atomic::AtomicU64 {
        self.file
            .word64(HEADER_BYTES + 8 * (index / RECORDS_PER_WORD) as usize)
    }

    #[inline]
    fn count(&self, index: u32) -> &std::sync::atomic::AtomicU32 {
        self.file.word32(self.counts + 4 * index as usize)
    }

    /// Sets the done bit of a record whose bit nobody else can be setting and that is not set.
    /// Returns whether that filled the word.
    #[inline]
    pub(crate) fn set_once(&self, index: u32) -> bool {
        let step = self.key.step_of(index);
        // AcqRel: whoever finds the word full has, through the chain of these read-modify-writes,
        // everything that each acker did before its ack, so the mapping may then go.
        let old = self.word(index).fetch_add(step, Ordering::AcqRel);
        (old as u32) | (step as u32) == u32::MAX
    }

    /// Sets the done bit of a record that others may be acking too. Returns None if it was set
    /// already, or the segment cannot hold such a record, else whether setting it filled the word.
    pub(crate) fn set(&self, index: u32) -> Option<bool> {
        if index >= self.capacity {
            return None;
        }
        let step = self.key.step_of(index);
        // AcqRel as in `set_once`.
        self.word(index)
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |old| {
                (old as u32 & step as u32 == 0).then(|| old.wrapping_add(step))
            })
            .ok()
            .map(|old| (old as u32) | (step as u32) == u32::MAX)
    }

    #[inline]
    pub(crate) fn is_done(&self, index: u32) -> bool {
        self.done_bits(index / RECORDS_PER_WORD) >> (index % RECORDS_PER_WORD) & 1 == 1
    }

    /// The done bits of the 32 records from `32 * word` on.
    #[inline]
    pub(crate) fn done_bits(&self, word: u32) -> u32 {
        self.word(word * RECORDS_PER_WORD).load(Ordering::Acquire) as u32
    }

    /// Replaces the done bits of a word; for recovery, before anyone else sees the file.
    pub(crate) fn store_bits(&self, word: u32, done: u32) {
        self.word(word * RECORDS_PER_WORD)
            .store(self.key.word_of(done), Ordering::Release);
    }

    /// The done bits of a word, or None if it does not check.
    pub(crate) fn checked_bits(&self, word: u32) -> Option<u32> {
        self.key
            .bits_of(self.word(word * RECORDS_PER_WORD).load(Ordering::Acquire))
    }

    /// Whether there is a trace of jobs that are not all done: an ack beyond the words that are
    /// full, or a delivery.
    pub(crate) fn tells_of_jobs(&self) -> bool {
        if self.file.is_zero_from(HEADER_BYTES) {
            // Mostly, and much sooner known than word by word.
            return false;
        }
        let words = words_for(self.capacity);
        let bits = |word| self.checked_bits(word).unwrap_or(0);
        let full = (0..words)
            .take_while(|&word| bits(word) == u32::MAX)
            .count() as u32;
        (full..words).any(|word| bits(word) != 0)
            || (full * RECORDS_PER_WORD..self.capacity).any(|index| self.deliveries(index) > 0)
    }

    /// Counts one more delivery of a record that the caller holds the only lease of, saturating.
    /// Returns the new count.
    #[inline]
    pub(crate) fn count_delivery(&self, index: u32) -> u8 {
        let count = self.deliveries(index).saturating_add(1);
        // Relaxed: what counts is that the store is executed before the handler runs, by the same
        // thread; a process that dies in the handler leaves it in the page cache.
        self.count(index)
            .store(self.key.count_of(count), Ordering::Relaxed);
        count
    }

    /// How often a record was delivered.
    #[inline]
    pub(crate) fn deliveries(&self, index: u32) -> u8 {
        let stored = self.count(index).load(Ordering::Relaxed);
        let count = stored as u8;
        if self.key.count_of(count) == stored {
            count
        } else {
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Entry;

    const SALT: u64 = 0x1122_3344_5566_7788;
    const KEY: Key = Key {
        words: 0x5566_7789,
        counts: 0x1122_3344,
    };

    #[test]
    fn an_empty_word_is_zero_and_adding_steps_gives_the_word_of_the_bits() {
        assert_eq!(KEY.word_of(0), 0);
        let mut word = 0u64;
        let mut bits = 0u32;
        for index in [3, 31, 0, 17, 8] {
            word = word.wrapping_add(KEY.step_of(index));
            bits |= 1 << index;
            assert_eq!(word, KEY.word_of(bits));
            assert_eq!(KEY.bits_of(word), Some(bits));
        }
    }

    #[test]
    fn no_change_within_one_byte_of_a_word_passes_the_check() {
        for byte in 0..4 {
            let sums: std::collections::HashSet<u64> = (0..256)
                .map(|bits| KEY.word_of(bits << (8 * byte)) >> 32)
                .collect();
            assert_eq!(
                sums.len(),
                256,
                "two sets of bits of byte {byte} have one sum"
            );
        }
        for done in [0, 1, 0x8000_0000, 0xdead_beef, u32::MAX] {
            for byte in 4..8 {
                for change in 1..256u64 {
                    assert_eq!(KEY.bits_of(KEY.word_of(done) ^ change << (8 * byte)), None);
                }
            }
        }
        assert_eq!(KEY.bits_of(u64::MAX), None);
    }

    #[test]
    fn a_count_with_any_other_check_byte_reads_as_zero() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let acks = AckFile::new(
            MappedFile::create(Entry::at(&path), file_bytes(10), u64::MAX).unwrap(),
            10,
            SALT,
        );
        assert_eq!(acks.deliveries(9), 0);
        assert_eq!(acks.count_delivery(9), 1);
        assert_eq!(acks.count_delivery(9), 2);
        assert_eq!(acks.deliveries(9), 2);
        acks.count(9).fetch_xor(0x0100, Ordering::Relaxed);
        assert_eq!(acks.deliveries(9), 0);
        acks.count(9).store(u32::MAX, Ordering::Relaxed);
        assert_eq!(acks.deliveries(9), 0);
        for _ in 0..300 {
            acks.count_delivery(8);
        }
        assert_eq!(acks.deliveries(8), 255);
    }

    #[test]
    fn the_last_ack_of_a_word_fills_it_and_a_second_ack_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let acks = AckFile::new(
            MappedFile::create(Entry::at(&path), file_bytes(64), u64::MAX).unwrap(),
            64,
            SALT,
        );
        for index in 32..63 {
            assert!(!acks.set_once(index));
        }
        assert!(!acks.is_done(63));
        assert_eq!(acks.set(63), Some(true));
        assert_eq!(acks.set(63), None);
        assert_eq!(acks.done_bits(1), u32::MAX);
        assert_eq!(acks.checked_bits(1), Some(u32::MAX));
        assert_eq!(acks.done_bits(0), 0);
    }

    #[test]
    fn what_is_left_of_another_salt_is_neither_an_ack_nor_a_delivery() {
        let other = Key::new(0x8877_6655_4433_2211);
        assert_eq!(KEY.bits_of(0), Some(0));
        for done in [1, 0x8000_0000, 0xff, 0xdead_beef, u32::MAX] {
            assert_eq!(KEY.bits_of(other.word_of(done)), None);
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let file = MappedFile::create(Entry::at(&path), file_bytes(10), u64::MAX).unwrap();
        let mut acks = AckFile::new(file, 10, 0x8877_6655_4433_2211);
        acks.count_delivery(3);
        acks.set_once(4);
        acks.set_salt(SALT);
        assert_eq!(acks.deliveries(3), 0);
        assert_eq!(acks.checked_bits(0), None);
    }

    #[test]
    fn no_change_within_one_byte_of_a_count_passes_the_check() {
        let passes = |word: u32| KEY.count_of(word as u8) == word;
        for deliveries in 0..=u8::MAX {
            let good = KEY.count_of(deliveries);
            assert!(passes(good));
            for byte in 0..4 {
                for change in 1..=u32::from(u8::MAX) {
                    assert!(!passes(good ^ change << (8 * byte)), "{deliveries}");
                }
            }
        }
    }
}
