//! The ack file: which records of a segment are done, and how the deliveries of each have gone.
//!
//! ```text
//! offset          size           field
//!      0            64           header (see header.rs): the identity of the segment's own, at 48
//!                                the segment's mark, and at 56 how far it is durable if its files
//!                                are reused (see mark.rs)
//!     64   8 * ceil(capacity/32) ack words
//!      -   4 * capacity          delivery words
//! ```
//! Both arrays carry checks, because a bit set by accident would lose a job silently. Both checks
//! depend on the segment's salt, because a power cut may leave a reused file with pages of its
//! earlier contents:
//!
//! - An **ack word** holds 32 done bits in its lower half. Its upper half holds the sum of a
//!   constant for each set bit, times a key derived from the salt. Setting bit i adds `1 << i |
//!   (CODE[i] * key) << 32`: one wait-free fetch-and-add, since every bit is set once. A word with
//!   a wrong sum counts as zero at recovery: 32 jobs are redelivered, none lost.
//! - A **delivery word** holds, from its lowest bit on, 8 bits for the failed attempts, 4 for the
//!   crashes (the process died while a handler had the job), 1 that is set while a handler has the
//!   job, and a check of 18 bits: those of the product of the bits below with an odd constant, xor
//!   the salt's upper half. The highest bit is set. A word that fails its check counts as zero, and
//!   a zero word means that nothing has happened yet.
//!
//! A delivery begins with one store that sets the running bit; a failure clears it. If recovery
//! finds the bit set, the job was in a handler when its process died: a crash.

mod copied;
#[cfg(test)]
mod tests;

use std::sync::atomic::Ordering;

pub(crate) use self::copied::CopiedAcks;
use super::header::{FILE_HEADER_BYTES, MARK_OFFSET, REUSED_OFFSET};
use super::mark::{Mark, reused};
use crate::storage::mapped::MappedFile;

/// Records per ack word.
pub(crate) const RECORDS_PER_WORD: u32 = 32;

/// What each done bit adds to the upper half of its word: the high halves of a Weyl sequence put
/// through the finalizer of SplitMix64 (Steele, Lea and Flood 2014), without its last step. A test
/// below shows that no two sets of bits within a byte have the same sum.
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

/// The factor by which the lower part of a delivery word is multiplied for its check. A test below
/// shows that no change within one byte passes.
const DELIVERY_CODE: u32 = 0x9e37_79b1;
/// Set in every delivery word except the zero word, which means no delivery, so that no valid word
/// is the zero word with one byte changed.
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

    /// Failed attempts, at most 255.
    #[inline]
    pub(crate) fn failed(self) -> u8 {
        self.0 as u8
    }

    /// How often the process died while a handler had the job, at most [`MAX_CRASHES`].
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

    /// Clears the running bit: no handler has the job any more.
    pub(crate) fn ended(self) -> Self {
        Self(self.0 & !Self::RUNNING)
    }

    /// Counts a failed attempt. The running bit stays, as the handler may still run (lease
    /// timeouts).
    pub(crate) fn failed_once(self) -> Self {
        Self(self.0 + u16::from(self.0 & Self::FAILED != Self::FAILED))
    }

    /// Counts a crash: the process died while a handler had the job.
    pub(crate) fn crashed(self) -> Self {
        let is_most = self.0 & Self::CRASHES == Self::CRASHES;
        Self(self.ended().0 + if is_most { 0 } else { Self::CRASH })
    }
}

/// Most crashes that a delivery word can count.
pub(crate) const MAX_CRASHES: u8 = 15;

/// The key, derived from the salt, that the checks of an ack file depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    /// Odd, so that multiplication by it is reversible.
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

    /// The word with exactly the bits of `done` set.
    pub(crate) fn word_of(self, done: u32) -> u64 {
        let mut sum = 0u32;
        let mut bits = done;
        while bits != 0 {
            sum = sum.wrapping_add(CODE[bits.trailing_zeros() as usize]);
            bits &= bits - 1;
        }
        u64::from(sum.wrapping_mul(self.words)) << 32 | u64::from(done)
    }

    /// The done bits of a word; None if its check fails.
    pub(crate) fn bits_of(self, word: u64) -> Option<u32> {
        let done = word as u32;
        (self.word_of(done) == word).then_some(done)
    }

    /// The number that is added to a word to set the bit of a record.
    #[inline]
    fn step_of(self, index: u32) -> u64 {
        let bit = index % RECORDS_PER_WORD;
        1 << bit | u64::from(CODE[bit as usize].wrapping_mul(self.words)) << 32
    }

    /// The delivery word for these deliveries.
    #[inline]
    fn delivery_word(self, deliveries: Deliveries) -> u32 {
        let bits = u32::from(deliveries.0);
        if bits == 0 {
            return 0;
        }
        let check = bits.wrapping_mul(DELIVERY_CODE) ^ self.deliveries;
        check & !Deliveries::ALL | bits | WRITTEN
    }

    /// The deliveries in a delivery word; none if its check fails.
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

/// How many ack words `records` records need.
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

/// The bytes of an ack file that concern the records below `end`: the header with the ack words,
/// and the delivery words.
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
    /// Whether the files of the segment had an earlier life.
    is_reused: bool,
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
            is_reused: false,
        }
    }

    /// Records that the files of the segment had an earlier life.
    pub(super) fn set_reused(&mut self) {
        self.is_reused = true;
    }

    /// Records that everything in the segment before these units is durable, if its files are
    /// reused. This reaches the disk with the next flush of acks.
    pub(super) fn note_durable(&self, units: u32) {
        if self.is_reused {
            // Relaxed: one flush at a time stores it, and only recovery reads it.
            self.file
                .word64(REUSED_OFFSET)
                .store(reused::encode(self.salt, units), Ordering::Relaxed);
        }
    }

    /// Turns an all-zero file into the ack file of a segment with this salt.
    pub(super) fn set_salt(&mut self, salt: u64) {
        self.salt = salt;
        self.key = Key::new(salt);
    }

    fn mark_word(&self) -> &std::sync::atomic::AtomicU64 {
        self.file.word64(MARK_OFFSET)
    }

    /// Sets the mark to fresh, before any other thread sees the file.
    pub(super) fn mark_fresh(&self) {
        let word = Mark::Fresh.encode(self.salt);
        self.mark_word().store(word, Ordering::Relaxed);
    }

    /// Marks a record of the segment as durable. Returns false if that was marked before, or no
    /// longer matters.
    pub(super) fn mark_relied(&self) -> bool {
        let word = |mark: Mark| mark.encode(self.salt);
        // Relaxed, here and below: only the order of changes of this one word matters.
        let noted = self
            .mark_word()
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
                let is_noted = [word(Mark::Relied), word(Mark::Finished)].contains(&now);
                (!is_noted).then_some(word(Mark::Relied))
            });
        noted.is_ok()
    }

    /// Marks all jobs of the segment as done. Returns whether that must be made durable: a record
    /// was relied on, or another call set this mark before, and its flush may have failed.
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

    /// Sets the done bit of a record, if the bit is not set and no other thread can be setting it.
    /// Returns whether that filled the word.
    #[inline]
    pub(crate) fn set_once(&self, index: u32) -> bool {
        let step = self.key.step_of(index);
        // AcqRel: a thread that finds the word full has, through the chain of these
        // read-modify-writes, everything that each acker did before its ack, so the mapping may be
        // freed then.
        let old = self.word(index).fetch_add(step, Ordering::AcqRel);
        (old as u32) | (step as u32) == u32::MAX
    }

    /// Sets the done bit of a record that other threads may be acking too. Returns None if it was
    /// already set or the segment cannot hold such a record, otherwise whether setting it filled
    /// the word.
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

    /// Replaces the done bits of a word; for recovery, before any other thread sees the file.
    pub(crate) fn store_bits(&self, word: u32, done: u32) {
        self.word(word * RECORDS_PER_WORD)
            .store(self.key.word_of(done), Ordering::Release);
    }

    /// The done bits of a word; None if its check fails.
    pub(crate) fn checked_bits(&self, word: u32) -> Option<u32> {
        self.key
            .bits_of(self.word(word * RECORDS_PER_WORD).load(Ordering::Acquire))
    }

    /// Whether the file shows that there are jobs that are not all done: an ack beyond the full
    /// words, or a delivery.
    pub(crate) fn tells_of_jobs(&self) -> bool {
        if self.file.is_zero_from(FILE_HEADER_BYTES) {
            // The usual case, and much faster to detect than word by word.
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

    /// Records that a handler has a job. The caller holds the record's only lease, or is the only
    /// one that begins and ends its deliveries.
    #[inline]
    pub(crate) fn begin_delivery(&self, index: u32) -> Deliveries {
        let begun = self.deliveries(index).begun();
        // Relaxed: it is enough that the store is executed before the handler runs, on the same
        // thread; if the process dies in the handler, the page cache keeps the store.
        self.delivery_word(index)
            .store(self.key.delivery_word(begun), Ordering::Relaxed);
        begun
    }

    /// Changes the deliveries of a record; not for the hot path.
    pub(crate) fn update_deliveries(&self, index: u32, change: impl Fn(Deliveries) -> Deliveries) {
        // Relaxed, as in `begin_delivery`. A compare-and-swap loop, because a close may come
        // between the load and the store of a handler's end.
        let updated =
            self.delivery_word(index)
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
                    let before = self.key.deliveries_of(word);
                    let after = change(before);
                    (before != after).then(|| self.key.delivery_word(after))
                });
        // An error means that there was nothing to change.
        let _ = updated;
    }

    /// How the deliveries of a record have gone.
    #[inline]
    pub(crate) fn deliveries(&self, index: u32) -> Deliveries {
        self.key
            .deliveries_of(self.delivery_word(index).load(Ordering::Relaxed))
    }

    /// Applies a change to those of the first `records` records that are not done and whose running
    /// bit is set.
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
