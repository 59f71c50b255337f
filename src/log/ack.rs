//! The ack file: which records of a segment are done, and how the deliveries of each have gone.
//!
//! ```text
//! offset          size           field
//!      0            64           header (see header.rs): the identity of the segment's own, and at
//!                                48 the segment's mark (see mark.rs)
//!     64   8 * ceil(capacity/32) ack words
//!      -   4 * capacity          delivery words
//! ```
//! Both arrays check themselves, since a lost job hides behind a bit set by accident, and both
//! checks depend on the segment's salt, since a file that is used again may come out of a power cut
//! with pages of its past:
//!
//! - An **ack word** holds 32 done bits below and, above, the sum of a constant for each set bit,
//!   times a key made from the salt. Setting bit i adds `1 << i | (CODE[i] * key) << 32`: one
//!   wait-free fetch-and-add, as every bit is set once. A word whose sum is off is taken as zero at
//!   recovery: 32 jobs are redelivered, none lost.
//! - A **delivery word** has, from its lowest bit on, 8 bits for the attempts that failed, 4 for
//!   the crashes (the process died while a handler had the job), 1 that says that a handler has
//!   it, and a check of 18 bits: those of the product of the bits below with an odd constant, xor
//!   the salt's upper half. The highest bit is set. A word that fails its check is taken as zero,
//!   and a word of zeros says that nothing has happened yet.
//!
//! A delivery begins with one store that sets the bit of the running handler; a failure clears it.
//! What recovery finds running was in a handler when its process died: a crash.

use std::sync::atomic::Ordering;

use super::header::{FILE_HEADER_BYTES, MARK_OFFSET};
use super::mark::Mark;
use crate::storage::mapped::MappedFile;

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

/// What the lower part of a delivery word is multiplied by for its check. That no change within one
/// byte passes is tested below.
const DELIVERY_CODE: u32 = 0x9e37_79b1;
/// Set in every delivery word but that of no delivery, so that none is a word of zeros with one byte
/// changed.
const WRITTEN: u32 = 1 << 31;

/// How the deliveries of a record have gone: the lower part of its delivery word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Deliveries(u16);

impl Deliveries {
    const FAILED: u16 = 0xff;
    const CRASH: u16 = 1 << 8;
    const CRASHES: u16 = 0xf << 8;
    const RUNNING: u16 = 1 << 12;
    /// All bits of a delivery word that are not its check.
    const ALL: u32 = (1 << 13) - 1;

    /// Attempts that failed; stays at 255.
    #[inline]
    pub(crate) fn failed(self) -> u8 {
        self.0 as u8
    }

    /// How often the process died while a handler had the job; stays at [`MAX_CRASHES`].
    pub(crate) fn crashes(self) -> u8 {
        ((self.0 & Self::CRASHES) / Self::CRASH) as u8
    }

    /// Whether a handler has the job, or had it when the process died.
    pub(crate) fn is_running(self) -> bool {
        self.0 & Self::RUNNING != 0
    }

    #[inline]
    pub(crate) fn begun(self) -> Self {
        Self(self.0 | Self::RUNNING)
    }

    /// No handler has the job any more.
    pub(crate) fn ended(self) -> Self {
        Self(self.0 & !Self::RUNNING)
    }

    /// An attempt has failed, whose handler may still be at it (lease timeouts).
    pub(crate) fn failed_once(self) -> Self {
        Self(self.0 + u16::from(self.0 & Self::FAILED != Self::FAILED))
    }

    /// The process died while a handler had the job.
    pub(crate) fn crashed(self) -> Self {
        let is_most = self.0 & Self::CRASHES == Self::CRASHES;
        Self(self.ended().0 + if is_most { 0 } else { Self::CRASH })
    }
}

/// Most crashes that a delivery word can count.
pub(crate) const MAX_CRASHES: u8 = 15;

/// What the checks of an ack file depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    /// Odd, so that multiplying by it loses nothing.
    words: u32,
    deliveries: u32,
}

impl Key {
    pub(crate) fn new(salt: u64) -> Self {
        Self {
            words: salt as u32 | 1,
            deliveries: (salt >> 32) as u32,
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

    /// The delivery word that says this.
    #[inline]
    fn delivery_word(self, deliveries: Deliveries) -> u32 {
        let bits = u32::from(deliveries.0);
        if bits == 0 {
            return 0;
        }
        let check = bits.wrapping_mul(DELIVERY_CODE) ^ self.deliveries;
        check & !Deliveries::ALL | bits | WRITTEN
    }

    /// What a delivery word says; nothing, if it does not check.
    #[inline]
    fn deliveries_of(self, word: u32) -> Deliveries {
        let deliveries = Deliveries((word & Deliveries::ALL) as u16);
        if self.delivery_word(deliveries) == word {
            deliveries
        } else {
            Deliveries::default()
        }
    }
}

/// Ack words that `records` records need.
pub(crate) fn words_for(records: u32) -> u32 {
    records.div_ceil(RECORDS_PER_WORD)
}

/// Bytes of the ack file of a segment of `capacity` records.
pub(crate) fn file_bytes(capacity: u32) -> u64 {
    FILE_HEADER_BYTES as u64 + 8 * u64::from(words_for(capacity)) + 4 * u64::from(capacity)
}

fn deliveries_offset(capacity: u32) -> usize {
    FILE_HEADER_BYTES + 8 * words_for(capacity) as usize
}

/// The bytes of an ack file that say something of the records below `end`: its header with the ack
/// words, and the delivery words.
pub(super) fn used_ranges(capacity: u32, end: u32) -> [std::ops::Range<usize>; 2] {
    let deliveries = deliveries_offset(capacity);
    [
        0..FILE_HEADER_BYTES + 8 * words_for(end) as usize,
        deliveries..deliveries + 4 * end as usize,
    ]
}

/// The arrays of a mapped ack file.
pub(crate) struct AckFile {
    pub(crate) file: MappedFile,
    capacity: u32,
    /// Where the delivery words begin.
    deliveries: usize,
    salt: u64,
    key: Key,
}

impl AckFile {
    /// The ack file of a segment with this salt.
    pub(crate) fn new(file: MappedFile, capacity: u32, salt: u64) -> Self {
        debug_assert!(file.len() as u64 >= file_bytes(capacity));
        Self {
            file,
            capacity,
            deliveries: deliveries_offset(capacity),
            salt,
            key: Key::new(salt),
        }
    }

    /// Makes a file that is all zero that of a segment with this salt.
    pub(super) fn set_salt(&mut self, salt: u64) {
        self.salt = salt;
        self.key = Key::new(salt);
    }

    fn mark_word(&self) -> &std::sync::atomic::AtomicU64 {
        self.file.word64(MARK_OFFSET)
    }

    /// Begins anew; before anyone else sees the file.
    pub(super) fn mark_fresh(&self) {
        let word = Mark::Fresh.encode(self.salt);
        self.mark_word().store(word, Ordering::Relaxed);
    }

    /// Notes that a record of the segment is durable. Returns false if that was noted before, or
    /// does not matter any more.
    pub(super) fn mark_relied(&self) -> bool {
        let word = |mark: Mark| mark.encode(self.salt);
        // Relaxed, here and below: what counts is the order of changes of this one word.
        let noted = self
            .mark_word()
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
                let is_noted = [word(Mark::Relied), word(Mark::Finished)].contains(&now);
                (!is_noted).then_some(word(Mark::Relied))
            });
        noted.is_ok()
    }

    /// Notes that all jobs of the segment are done. Returns whether that is to be made durable: a
    /// record was relied on, or it was noted before, by somebody whose flush may have failed.
    pub(super) fn mark_finished(&self) -> bool {
        let word = |mark: Mark| mark.encode(self.salt);
        let was = self.mark_word();
        let was = was.swap(word(Mark::Finished), Ordering::Relaxed);
        [word(Mark::Relied), word(Mark::Finished)].contains(&was)
    }

    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    #[inline]
    fn word(&self, index: u32) -> &std::sync::atomic::AtomicU64 {
        self.file
            .word64(FILE_HEADER_BYTES + 8 * (index / RECORDS_PER_WORD) as usize)
    }

    #[inline]
    fn delivery_word(&self, index: u32) -> &std::sync::atomic::AtomicU32 {
        self.file.word32(self.deliveries + 4 * index as usize)
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

    /// How many of the records `[from, to)` are done.
    pub(crate) fn done_within(&self, from: u32, to: u32) -> u32 {
        let mut done = 0;
        for word in from / RECORDS_PER_WORD..words_for(to) {
            let first = word * RECORDS_PER_WORD;
            let below = |index: u32| match index.saturating_sub(first) {
                bits @ 0..RECORDS_PER_WORD => (1 << bits) - 1,
                _ => u32::MAX,
            };
            let within = below(to) & !below(from);
            done += (self.done_bits(word) & within).count_ones();
        }
        done
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
        if self.file.is_zero_from(FILE_HEADER_BYTES) {
            // Mostly, and much sooner known than word by word.
            return false;
        }
        let words = words_for(self.capacity);
        let bits = |word| self.checked_bits(word).unwrap_or(0);
        let full = (0..words)
            .take_while(|&word| bits(word) == u32::MAX)
            .count() as u32;
        (full..words).any(|word| bits(word) != 0)
            || (full * RECORDS_PER_WORD..self.capacity)
                .any(|index| self.deliveries(index) != Deliveries::default())
    }

    /// Notes that a handler has a record that the caller holds the only lease of, or alone begins
    /// and ends deliveries of.
    #[inline]
    pub(crate) fn begin_delivery(&self, index: u32) -> Deliveries {
        let begun = self.deliveries(index).begun();
        // Relaxed: what counts is that the store is executed before the handler runs, by the same
        // thread; a process that dies in the handler leaves it in the page cache.
        self.delivery_word(index)
            .store(self.key.delivery_word(begun), Ordering::Relaxed);
        begun
    }

    /// Changes what is said of the deliveries of a record; not for the hot path.
    pub(crate) fn update_deliveries(&self, index: u32, change: impl Fn(Deliveries) -> Deliveries) {
        // Relaxed, as in `begin_delivery`. A compare-and-swap loop, as a close may come in between
        // a handler's end.
        let updated =
            self.delivery_word(index)
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
                    let before = self.key.deliveries_of(word);
                    let after = change(before);
                    (before != after).then(|| self.key.delivery_word(after))
                });
        // An error says that there was nothing to change.
        let _ = updated;
    }

    /// How the deliveries of a record have gone.
    #[inline]
    pub(crate) fn deliveries(&self, index: u32) -> Deliveries {
        self.key
            .deliveries_of(self.delivery_word(index).load(Ordering::Relaxed))
    }

    /// Applies a change to those of the first `records` records that are not done and that a
    /// handler has, or had when its process died.
    pub(super) fn update_running(&self, records: u32, change: impl Fn(Deliveries) -> Deliveries) {
        for index in 0..records {
            if self.deliveries(index).is_running() && !self.is_done(index) {
                self.update_deliveries(index, |deliveries| match deliveries.is_running() {
                    true => change(deliveries),
                    false => deliveries,
                });
            }
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
        deliveries: 0x1122_3344,
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

    fn ack_file(dir: &tempfile::TempDir, capacity: u32, salt: u64) -> AckFile {
        let path = dir.path().join("a");
        let file = MappedFile::create(Entry::at(&path), file_bytes(capacity), u64::MAX).unwrap();
        AckFile::new(file, capacity, salt)
    }

    #[test]
    fn a_delivery_that_fails_is_counted_and_runs_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let acks = ack_file(&dir, 10, SALT);
        assert_eq!(acks.deliveries(9), Deliveries::default());
        for failed in 0..300 {
            let begun = acks.begin_delivery(9);
            assert_eq!(acks.deliveries(9), begun);
            assert_eq!(u32::from(begun.failed()), failed.min(255));
            assert!(begun.is_running());
            acks.update_deliveries(9, |deliveries| deliveries.failed_once().ended());
            assert!(!acks.deliveries(9).is_running());
        }
        assert_eq!(acks.deliveries(9).crashes(), 0);
        assert_eq!(acks.deliveries(8), Deliveries::default());
    }

    #[test]
    fn a_crash_is_counted_once_and_is_no_failed_attempt() {
        let dir = tempfile::tempdir().unwrap();
        let acks = ack_file(&dir, 10, SALT);
        let said = |index| {
            let deliveries = acks.deliveries(index);
            (deliveries.failed(), deliveries.crashes())
        };
        acks.update_deliveries(3, Deliveries::failed_once);
        acks.begin_delivery(4);
        acks.set_once(4);
        acks.begin_delivery(1);
        for crashes in 1..20 {
            acks.begin_delivery(3);
            for _ in 0..2 {
                acks.update_running(10, Deliveries::crashed);
                assert_eq!(said(3), (1, crashes.min(MAX_CRASHES)));
                assert!(!acks.deliveries(3).is_running());
            }
        }
        assert_eq!(said(1), (0, 1));
        // It was done.
        assert_eq!(said(4), (0, 0));
        acks.begin_delivery(3);
        acks.update_running(10, Deliveries::ended);
        assert_eq!(said(3), (1, MAX_CRASHES));
        assert!(!acks.deliveries(3).is_running());
    }

    #[test]
    fn a_delivery_word_with_another_check_reads_as_no_delivery() {
        let dir = tempfile::tempdir().unwrap();
        let acks = ack_file(&dir, 10, SALT);
        acks.begin_delivery(9);
        let word = acks.delivery_word(9);
        for bit in 0..32 {
            word.fetch_xor(1 << bit, Ordering::Relaxed);
            assert_eq!(acks.deliveries(9), Deliveries::default());
            word.fetch_xor(1 << bit, Ordering::Relaxed);
        }
        assert!(acks.deliveries(9).is_running());
        word.store(u32::MAX, Ordering::Relaxed);
        assert_eq!(acks.deliveries(9), Deliveries::default());
    }

    #[test]
    fn the_delivery_words_are_pinned() {
        let begun = Deliveries::default().begun();
        assert_eq!(KEY.delivery_word(Deliveries::default()), 0);
        assert_eq!(KEY.delivery_word(begun), 0xe6b9_3000);
        let other = begun.failed_once().failed_once().crashed();
        assert_eq!(KEY.delivery_word(other), 0xe2ca_8102);
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
        acks.begin_delivery(3);
        acks.set_once(4);
        acks.set_salt(SALT);
        assert_eq!(acks.deliveries(3), Deliveries::default());
        assert_eq!(acks.checked_bits(0), None);
    }

    #[test]
    fn no_change_within_one_byte_of_a_delivery_word_passes_the_check() {
        for salt in [0, SALT] {
            let key = Key::new(salt);
            let passes =
                |word: u32| key.delivery_word(Deliveries((word & Deliveries::ALL) as u16)) == word;
            for bits in 0..=Deliveries::ALL as u16 {
                let good = key.delivery_word(Deliveries(bits));
                assert!(passes(good));
                for byte in 0..4 {
                    for change in 1..=u32::from(u8::MAX) {
                        assert!(!passes(good ^ change << (8 * byte)), "{bits:x}");
                    }
                }
            }
        }
    }
}
