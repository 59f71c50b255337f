//! The ack file, in the second implementation of the format.

use super::{FILE_HEADER, put, u32_at, u64_at};

/// The content of a delivery word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deliveries {
    pub failed: u8,
    pub crashes: u8,
    pub is_running: bool,
}

impl Deliveries {
    /// Decodes the bits of a word other than its check.
    fn of(word: u32) -> Self {
        Self {
            failed: word as u8,
            crashes: (word >> 8) as u8 & 15,
            is_running: word >> 12 & 1 == 1,
        }
    }

    /// The same deliveries after the process has died.
    pub fn after_a_crash(self) -> Self {
        Self {
            crashes: (self.crashes + u8::from(self.is_running)).min(15),
            is_running: false,
            ..self
        }
    }
}

/// The ack file of a segment that can hold `capacity` records.
pub struct Acks<B> {
    pub file: B,
    pub capacity: u32,
    pub salt: u64,
}

impl<B: AsRef<[u8]>> Acks<B> {
    pub fn file_bytes(capacity: u32) -> usize {
        FILE_HEADER + 8 * capacity.div_ceil(32) as usize + 4 * capacity as usize
    }

    fn word_offset(index: u32) -> usize {
        FILE_HEADER + 8 * (index / 32) as usize
    }

    fn delivery_offset(&self, index: u32) -> usize {
        Self::word_offset(0) + 8 * self.capacity.div_ceil(32) as usize + 4 * index as usize
    }

    /// The word that marks exactly these records done.
    fn word(&self, done: u32) -> u64 {
        let key = self.salt as u32 | 1;
        let bits = (0..32u32).filter(|bit| done >> bit & 1 == 1);
        let sum = bits.fold(0u32, |sum, bit| sum.wrapping_add(code(bit)));
        u64::from(sum.wrapping_mul(key)) << 32 | u64::from(done)
    }

    fn delivery_word(&self, deliveries: Deliveries) -> u32 {
        let Deliveries {
            failed,
            crashes,
            is_running,
        } = deliveries;
        let bits = u32::from(failed) | u32::from(crashes) << 8 | u32::from(is_running) << 12;
        match bits.wrapping_mul(0x9e37_79b1) ^ (self.salt >> 32) as u32 {
            _ if bits == 0 => 0,
            check => 1 << 31 | check & 0x7fff_e000 | bits,
        }
    }

    /// Whether the word of this record passes its check.
    pub fn checks(&self, index: u32) -> bool {
        let word = u64_at(self.file.as_ref(), Self::word_offset(index));
        word == self.word(word as u32)
    }

    pub fn is_done(&self, index: u32) -> bool {
        let word = u64_at(self.file.as_ref(), Self::word_offset(index));
        self.checks(index) && word >> (index % 32) & 1 == 1
    }

    pub fn deliveries(&self, index: u32) -> Deliveries {
        let word = u32_at(self.file.as_ref(), self.delivery_offset(index));
        let deliveries = Deliveries::of(word);
        if word == self.delivery_word(deliveries) {
            deliveries
        } else {
            Deliveries::default()
        }
    }

    /// Whether the mark says that a record is durable.
    pub fn is_relied_on(&self) -> bool {
        u64_at(self.file.as_ref(), 48) == mark(self.salt, 1)
    }

    /// Whether the mark says that the files are as a process left them since the machine started.
    pub fn is_fresh(&self) -> bool {
        u64_at(self.file.as_ref(), 48) == mark(self.salt, boot() | 4)
    }

    /// From where on bytes of an earlier life of the files may stand, if they are reused and were
    /// before the machine started.
    pub fn reused_from(&self) -> Option<u32> {
        let word = u64_at(self.file.as_ref(), 56);
        let (units, of_boot) = (word as u32 & 0xfff_ffff, word >> 28 & 0xfff);
        let folded = (self.salt ^ word & 0xff_ffff_ffff).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let check = (folded ^ folded >> 32).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let is_valid = units > 0 && check >> 40 == word >> 40;
        (is_valid && of_boot != boot() >> 52).then_some(units)
    }

    /// Whether the file shows that there are jobs not all of which are done: an ack or a delivery
    /// after the leading words in which all are done.
    pub fn tells_of_jobs(&self) -> bool {
        let is_full = |first: &u32| (*first..first + 32).all(|index| self.is_done(index));
        let words = (0..self.capacity).step_by(32);
        let full = words.take_while(is_full).count() as u32;
        let words = self.capacity.next_multiple_of(32);
        (32 * full..words).any(|index| self.is_done(index))
            || (32 * full..self.capacity)
                .any(|index| self.deliveries(index) != Deliveries::default())
    }
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Acks<B> {
    /// Sets the word that has the done bits of this record and 31 others.
    pub fn set_word(&mut self, index: u32, done: u32) {
        let word = self.word(done);
        put(
            self.file.as_mut(),
            Self::word_offset(index),
            &word.to_le_bytes(),
        );
    }

    pub fn set_deliveries(&mut self, index: u32, deliveries: Deliveries) {
        let (at, word) = (self.delivery_offset(index), self.delivery_word(deliveries));
        put(self.file.as_mut(), at, &word.to_le_bytes());
    }

    /// Recomputes the checks of all words.
    pub fn mend(&mut self) {
        for index in (0..self.capacity).step_by(32) {
            let done = u32_at(self.file.as_ref(), Self::word_offset(index));
            self.set_word(index, done);
        }
        for index in 0..self.capacity {
            let word = u32_at(self.file.as_ref(), self.delivery_offset(index));
            self.set_deliveries(index, Deliveries::of(word));
        }
    }
}

/// The summand of a done bit in the upper half of its word, before the key is applied.
fn code(bit: u32) -> u32 {
    let z = (u64::from(bit) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z >> 32) as u32
}

fn mark(salt: u64, code: u64) -> u64 {
    let mut word = salt ^ code;
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

/// What identifies this boot of the machine.
fn boot() -> u64 {
    let id = std::fs::read("/proc/sys/kernel/random/boot_id").expect("read");
    id.iter().fold(0u64, |folded, &byte| {
        folded.rotate_left(7).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(byte)
    })
}
