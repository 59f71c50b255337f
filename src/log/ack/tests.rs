//! Tests of ack words and delivery words: their bytes, their checks, and what changes them.

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
            "two values of byte {byte} have the same check"
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
fn a_crash_is_counted_once_and_is_not_a_failed_attempt() {
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
    // That job was done.
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
fn words_written_with_another_salt_are_neither_acks_nor_deliveries() {
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
