//! The limit of the machine end to end: a ring of records in memory for each producer and its consumer.
//!
//! It does what cannot be left out: what the limit of an enqueue does, and one load, one look at the
//! payload and one locked add for each record. A ring that is zeroed also does what a log needs that
//! writes into files again: whoever reads it after a crash has to see where the records end.

use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use crossbeam_utils::CachePadded;

use super::limit::{REGION, record_bytes};
use super::payload;
use crate::contender::Jobs;
use crate::threads::{self, Others};

/// The parts of a ring that are zeroed at once: a log's segments.
const SEGMENTS: u64 = 3;
/// The consumer reads so many at a time, so that it does not follow the producer record by record.
const READ_AT_ONCE: u64 = 256;
/// The producer tells of so many at a time.
const TOLD_AT_ONCE: u64 = 64;
/// Spins between two looks at what is committed: about a microsecond.
const PAUSE: u32 = 24;
/// How long the thread that zeroes sleeps when there is nothing to zero.
const REST: Duration = Duration::from_micros(200);

/// A ring of records between one producer and one consumer.
struct Ring {
    words: Vec<AtomicU64>,
    words_each: usize,
    /// How many records there is room for.
    records: u64,
    /// Acks, of 32 records each.
    acks: Vec<AtomicU64>,
    /// Records committed, records read, and the first one that there is no room for yet.
    committed: CachePadded<AtomicU64>,
    read: CachePadded<AtomicU64>,
    room: CachePadded<AtomicU64>,
    /// Whether the producer is done.
    is_over: AtomicBool,
}

/// Producers and consumers at work at once, each pair with a ring of its own; they wait for each other
/// only when the ring is full or nearly empty. With `zeroes`, another thread zeroes each segment that
/// was read before it is written again.
pub fn end_to_end(threads: usize, size: usize, zeroes: bool) -> Result<Jobs> {
    let payload = payload(size);
    let rings: Vec<Ring> = (0..threads).map(|_| Ring::new(size)).collect();
    Ok(Box::new(move |jobs| {
        rings.iter().for_each(Ring::reset);
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            if zeroes {
                scope.spawn(|| zero_what_was_read(&rings, &is_over));
            }
            let took = threads::timed(
                threads,
                |thread| {
                    let jobs = threads::share(jobs, threads, thread);
                    rings[thread].produce(&payload, jobs);
                    Ok(())
                },
                |thread, others| rings[thread].consume(!zeroes, others),
            );
            is_over.store(true, Ordering::Relaxed);
            took
        })
    }))
}

fn zero_what_was_read(rings: &[Ring], is_over: &AtomicBool) {
    while !is_over.load(Ordering::Relaxed) {
        // All are asked.
        let zeroed = rings.iter().filter(|ring| ring.zero_a_segment()).count();
        if zeroed == 0 {
            thread::sleep(REST);
        }
    }
}

impl Ring {
    fn new(size: usize) -> Self {
        let words_each = record_bytes(size) / 8;
        let records = (REGION / record_bytes(size)) as u64 / SEGMENTS * SEGMENTS;
        let zeroed = |count: usize| (0..count).map(|_| AtomicU64::new(0)).collect();
        Self {
            words: zeroed(records as usize * words_each),
            words_each,
            records,
            acks: zeroed(records as usize / 32 + 1),
            committed: CachePadded::default(),
            read: CachePadded::default(),
            room: CachePadded::default(),
            is_over: AtomicBool::new(false),
        }
    }

    fn reset(&self) {
        self.committed.store(0, Ordering::Relaxed);
        self.read.store(0, Ordering::Relaxed);
        self.room.store(self.records, Ordering::Relaxed);
        self.is_over.store(false, Ordering::Relaxed);
    }

    fn record(&self, index: u64) -> &[AtomicU64] {
        let at = (index % self.records) as usize * self.words_each;
        &self.words[at..at + self.words_each]
    }

    fn produce(&self, payload: &[u8], jobs: u64) {
        let tail = CachePadded::new(AtomicU64::new(0));
        for _ in 0..jobs {
            let payload = black_box(payload);
            let index = tail.fetch_add(1, Ordering::Relaxed);
            while index >= self.room.load(Ordering::Acquire) {
                thread::yield_now();
            }
            let record = self.record(index);
            let check = crc32fast::hash(payload) ^ index as u32;
            record[1].store(check.into(), Ordering::Relaxed);
            record[2].store(index, Ordering::Relaxed);
            record[3].store(payload.len() as u64, Ordering::Relaxed);
            for (word, bytes) in record[4..].iter().zip(payload.chunks_exact(8)) {
                let bytes = bytes.try_into().map_or(0, u64::from_le_bytes);
                word.store(bytes, Ordering::Relaxed);
            }
            record[0].store(index + 1, Ordering::Release);
            if index % TOLD_AT_ONCE == TOLD_AT_ONCE - 1 {
                self.committed.store(index + 1, Ordering::Release);
            }
        }
        self.committed.store(jobs, Ordering::Release);
        self.is_over.store(true, Ordering::Release);
    }

    fn consume(&self, makes_room: bool, others: &Others<'_>) -> Result<()> {
        let mut index = 0;
        loop {
            let is_over = self.is_over.load(Ordering::Acquire);
            let committed = self.committed.load(Ordering::Acquire);
            if committed - index < READ_AT_ONCE && !is_over {
                others.check()?;
                (0..PAUSE).for_each(|_| spin_loop());
                continue;
            }
            if index == committed {
                return Ok(());
            }
            let end = committed.min(index + READ_AT_ONCE);
            while index < end {
                let record = self.record(index);
                black_box(record[0].load(Ordering::Acquire));
                black_box(record[self.words_each - 1].load(Ordering::Relaxed));
                let ack = (index % self.records) as usize / 32;
                self.acks[ack].fetch_add(1, Ordering::AcqRel);
                index += 1;
            }
            self.read.store(index, Ordering::Release);
            if makes_room {
                self.room.store(index + self.records, Ordering::Release);
            }
        }
    }

    /// Zeroes the oldest segment if it was read, which makes room for as many records; false if not.
    fn zero_a_segment(&self) -> bool {
        let in_segment = self.records / SEGMENTS;
        let room = self.room.load(Ordering::Relaxed);
        let first = room - self.records;
        if self.read.load(Ordering::Acquire) < first + in_segment {
            return false;
        }
        let from = (first % self.records) as usize * self.words_each;
        for word in &self.words[from..from + in_segment as usize * self.words_each] {
            word.store(0, Ordering::Relaxed);
        }
        self.room.store(room + in_segment, Ordering::Release);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_is_zeroed_a_segment_at_a_time_once_it_was_read() {
        let ring = Ring::new(64);
        ring.reset();
        let (records, in_segment) = (ring.records, ring.records / SEGMENTS);
        ring.produce(&[7; 64], records);
        assert!(!ring.zero_a_segment());
        ring.read.store(in_segment, Ordering::Relaxed);
        assert!(ring.zero_a_segment());
        assert!(!ring.zero_a_segment());
        assert_eq!(ring.room.load(Ordering::Relaxed), records + in_segment);
        let committed = |index| ring.record(index)[0].load(Ordering::Relaxed);
        assert_eq!((committed(0), committed(in_segment - 1)), (0, 0));
        assert_eq!(committed(in_segment), in_segment + 1);
    }
}
