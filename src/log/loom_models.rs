//! Loom models of the log's protocols: appending, claiming, flushing, acks and retirement.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test --release --all-features --lib loom
//! ```
//!
//! Loom runs each model in all interleavings, or in those with few preemptions, and with every
//! value that the memory model lets a load see. The types under test are the real ones: the tail,
//! the cursor, the progress, the flush gate, and the notes of what is flushed of either file. What
//! lies in a mapping is modelled with the orderings of `segment/` and `ack/`: the words by loom's
//! atomics, and the bytes by loom's cells, which report an access that does not happen after the
//! store whose value it sees.

#[cfg(feature = "async")]
mod rounds;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, PoisonError};

use loom::cell::Cell;
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use super::durable_end::DurableEnd;
use super::flush::FlushGate;
use super::flushed_acks::{DeliveriesChanged, FlushedAcks};
use super::progress::Progress;
use super::tail::{Cursor, Position, Reserved, Tail};
use crate::sync::model::{check, concurrently};

/// Where the first record starts. As in a file, unit 0 holds the header.
const START: Position = Position { index: 0, units: 1 };

/// A model of a segment. The payload of a record is its name, repeated in each of its units.
struct Area {
    tail: Tail,
    cursor: Cursor,
    /// For each unit: 0, or the length in units of the record that starts there.
    commit_words: Vec<AtomicU32>,
    /// For each unit: the name of the record that it belongs to.
    payload: Vec<Cell<u32>>,
}

impl Area {
    fn new(end_units: u32) -> Self {
        Self {
            tail: Tail::open(START, end_units),
            cursor: Cursor::new(START),
            commit_words: (0..end_units).map(|_| AtomicU32::new(0)).collect(),
            payload: (0..end_units).map(|_| Cell::new(0)).collect(),
        }
    }

    /// Models `Segment::append`.
    fn append(&self, name: u32, len: u32) -> Reserved {
        let reserved = self.tail.reserve(1, len);
        match reserved {
            Reserved::At(position) => {
                for unit in position.units..position.units + len {
                    // If two reservations overlapped, loom would report a race, or this would find
                    // the name of the other record.
                    assert_eq!(self.payload[unit as usize].replace(name), 0);
                }
                self.commit_words[position.units as usize].store(len, Ordering::Release);
            }
            Reserved::Closing(end) => self.tail.close(end),
            Reserved::Closed => {}
        }
        reserved
    }

    /// Models `Segment::append_batch`, of records of one unit: the first is committed last.
    fn append_batch(&self, names: &[u32]) {
        let jobs = names.len() as u32;
        let Reserved::At(first) = self.tail.reserve(jobs, jobs) else {
            panic!("there is room");
        };
        let mut records: Vec<_> = (first.units..).zip(names).collect();
        records.rotate_left(1);
        for (units, &name) in records {
            assert_eq!(self.payload[units as usize].replace(name), 0);
            self.commit_words[units as usize].store(1, Ordering::Release);
        }
    }

    /// Models `Pinned::record`. Returns the name and length of the record at `units`, if one is
    /// committed there.
    fn record(&self, units: u32) -> Option<(u32, u32)> {
        let len = self.commit_words[units as usize].load(Ordering::Acquire);
        (len != 0).then(|| {
            let name = self.payload[units as usize].get();
            assert_ne!(name, 0);
            for unit in units..units + len {
                assert_eq!(self.payload[unit as usize].get(), name);
            }
            (name, len)
        })
    }

    /// The end of the segment: where it was closed, or else its size.
    fn end(&self) -> u32 {
        let closed = self.tail.closed().map(|end| end.units);
        closed.unwrap_or(self.commit_words.len() as u32)
    }

    /// Models `Pinned::records`. Returns the names of the records up to the first that is not
    /// committed.
    fn walk(&self) -> Vec<u32> {
        let end = self.end();
        let mut names = Vec::new();
        let mut units = START.units;
        while units < end {
            let Some((name, len)) = self.record(units) else {
                break;
            };
            names.push(name);
            units += len;
        }
        names
    }

    /// Models `Pinned::claim` of at most `max` records. Returns their names.
    fn claim(&self, max: usize) -> Vec<u32> {
        loop {
            let from = self.cursor.position();
            let closed = self.tail.closed();
            let end = self.end();
            let mut to = from;
            let mut names = Vec::new();
            while to.units < end && names.len() < max {
                let Some((name, len)) = self.record(to.units) else {
                    break;
                };
                names.push(name);
                to.index += 1;
                to.units += len;
            }
            if to == from {
                if closed.is_some_and(|closed| from.units >= closed.units) {
                    // The segment is exhausted, and stays so.
                    assert_eq!(closed, Some(self.cursor.position()));
                }
                return names;
            }
            if self.cursor.advance(from, to) {
                return names;
            }
        }
    }

    fn is_exhausted(&self) -> bool {
        self.tail.closed() == Some(self.cursor.position())
    }
}

/// A model of a stripe: a segment and the next one.
struct ModelLog {
    segments: [Area; 2],
    active: AtomicUsize,
    rolling: Mutex<()>,
    closers: AtomicUsize,
}

impl ModelLog {
    fn new(end_units: u32) -> Self {
        Self {
            segments: [Area::new(end_units), Area::new(end_units)],
            active: AtomicUsize::new(0),
            rolling: Mutex::new(()),
            closers: AtomicUsize::new(0),
        }
    }

    /// Models `Log::append`, and `Log::roll` when the segment is full.
    fn append(&self, cached: &mut usize, name: u32, len: u32) {
        loop {
            match self.segments[*cached].append(name, len) {
                Reserved::At(_) => return,
                Reserved::Closing(_) => {
                    self.closers.fetch_add(1, Ordering::Relaxed);
                }
                Reserved::Closed => {}
            }
            let _rolling = self.rolling.lock().unwrap_or_else(PoisonError::into_inner);
            if self.active.load(Ordering::Acquire) == *cached {
                self.active.fetch_add(1, Ordering::Release);
            }
            *cached += 1;
        }
    }
}

#[test]
fn no_record_is_lost_and_none_overlaps_when_two_producers_meet_the_end() {
    check(None, || {
        // There is room in units 1 to 3. The four records have 6 units, so they pass the end in
        // whatever order they come.
        let log = Arc::new(ModelLog::new(4));
        concurrently(
            &log,
            [
                |log| {
                    let mut cached = 0;
                    log.append(&mut cached, 1, 1);
                    log.append(&mut cached, 2, 2);
                },
                |log| {
                    let mut cached = 0;
                    log.append(&mut cached, 3, 2);
                    log.append(&mut cached, 4, 1);
                },
            ],
        );
        assert_eq!(log.closers.load(Ordering::Relaxed), 1);
        assert_eq!(log.active.load(Ordering::Relaxed), 1);
        let [first, second] = [0, 1].map(|at| log.segments[at].walk());
        for (segment, names) in log.segments.iter().zip([&first, &second]) {
            assert_eq!(segment.tail.reached().index as usize, names.len());
        }
        let mut names = [first, second].concat();
        let place = |name| names.iter().position(|&other| other == name);
        assert!(
            place(1) < place(2) && place(3) < place(4),
            "the records of a producer are out of order"
        );
        names.sort_unstable();
        assert_eq!(names, [1, 2, 3, 4]);
    });
}

#[test]
fn closing_for_shutdown_and_reservations_that_cross_the_end_make_one_closer() {
    check(Some(4), || {
        let area = Arc::new(Area::new(3));
        let is_closing = |reserved| usize::from(matches!(reserved, Reserved::Closing(_)));
        let closers = concurrently(
            &area,
            [
                |area| vec![area.append(1, 1), area.append(2, 2)],
                |area| vec![area.append(3, 3)],
                |area| {
                    area.tail
                        .close_now()
                        .map(Reserved::Closing)
                        .into_iter()
                        .collect()
                },
            ],
        );
        let closers: usize = closers.concat().into_iter().map(is_closing).sum();
        assert_eq!(closers, 1);
        assert_eq!(area.tail.close_now(), None);
        let end = area.tail.closed().unwrap();
        assert_eq!(area.walk().len(), end.index as usize);
        assert_eq!(area.tail.reached(), end);
    });
}

#[test]
fn reservations_never_seem_to_reach_past_the_end() {
    check(None, || {
        let area = Arc::new(Area::new(2));
        let append = |area: &Area| {
            area.append(1, 1);
            START
        };
        let [_, _, reached] = concurrently(&area, [append, append, |area| area.tail.reached()]);
        assert!(reached.index <= 1 && reached.units <= 2);
        assert_eq!(area.tail.reached(), area.tail.closed().unwrap());
    });
}

#[test]
fn a_reader_sees_a_prefix_of_whole_records() {
    check(None, || {
        let area = Arc::new(Area::new(5));
        let [_, _, early] = concurrently(
            &area,
            [
                |area| {
                    area.append(1, 2);
                    Vec::new()
                },
                |area| {
                    area.append(2, 2);
                    Vec::new()
                },
                Area::walk,
            ],
        );
        let late = area.walk();
        assert_eq!(late.len(), 2);
        assert!(late.starts_with(&early));
    });
}

#[test]
fn a_reader_or_a_claim_sees_all_records_of_a_batch_or_none() {
    check(Some(4), || {
        let area = Arc::new(Area::new(6));
        let [_, _, walked, claimed] = concurrently(
            &area,
            [
                |area| {
                    area.append_batch(&[1, 2, 3]);
                    Vec::new()
                },
                |area| {
                    area.append(4, 1);
                    Vec::new()
                },
                Area::walk,
                |area| area.claim(5),
            ],
        );
        for seen in [walked, claimed] {
            let of_batch: Vec<_> = seen.into_iter().filter(|&name| name < 4).collect();
            assert!(of_batch.is_empty() || of_batch == [1, 2, 3]);
        }
    });
}

#[test]
fn every_record_is_claimed_once_and_in_order_and_then_the_segment_is_exhausted() {
    check(Some(4), || {
        let area = Arc::new(Area::new(3));
        let [_, ones, twos] = concurrently(
            &area,
            [
                |area| {
                    for name in 1..=2 {
                        area.append(name, 1);
                    }
                    let closed = area.append(3, 1);
                    assert_eq!(closed, Reserved::Closing(Position { index: 2, units: 3 }));
                    Vec::new()
                },
                |area| [area.claim(1), area.claim(1)].concat(),
                |area| area.claim(2),
            ],
        );
        let rest = [area.claim(2), area.claim(2)].concat();
        assert!(area.is_exhausted());
        assert!(ones.is_sorted() && twos.is_sorted());
        let early = ones.len() + twos.len();
        let mut names = [ones, twos].concat();
        names.sort_unstable();
        assert_eq!(names.len(), early);
        // The records that were not claimed come after those that were.
        assert_eq!([names, rest].concat(), [1, 2]);
    });
}

#[test]
fn a_segment_is_not_exhausted_before_its_last_record_is_committed_and_claimed() {
    check(Some(4), || {
        let area = Arc::new(Area::new(2));
        let append = |area: &Area| {
            area.append(1, 1);
            Vec::new()
        };
        let claimed = concurrently(&area, [append, append, |area| area.claim(1)]);
        assert_eq!([claimed.concat(), area.claim(1)].concat(), [1]);
        assert!(area.is_exhausted());
    });
}

#[test]
fn a_thread_that_sees_the_cursor_past_a_record_sees_the_record() {
    check(None, || {
        let area = Arc::new(Area::new(3));
        concurrently(
            &area,
            [
                |area| {
                    area.append(1, 1);
                },
                |area| {
                    area.claim(1);
                },
                |area| {
                    if area.cursor.position() != START {
                        let word = &area.commit_words[START.units as usize];
                        assert_eq!(word.load(Ordering::Relaxed), 1);
                        assert_eq!(area.payload[START.units as usize].get(), 1);
                    }
                },
            ],
        );
    });
}

#[test]
fn a_thread_that_sees_the_end_of_a_segment_sees_the_records_of_the_thread_that_closed_it() {
    check(None, || {
        let area = Arc::new(Area::new(2));
        concurrently(
            &area,
            [
                |area| {
                    area.append(1, 1);
                    assert!(matches!(area.append(2, 1), Reserved::Closing(_)));
                },
                |area| {
                    if area.tail.closed().is_some() {
                        assert_eq!(area.walk(), [1]);
                    }
                },
            ],
        );
    });
}

/// A model of a file that has one bit per record: the bits written, and those that are durable.
struct File {
    written: AtomicU32,
    durable: AtomicU32,
    flushes: AtomicUsize,
    gate: FlushGate<usize>,
    /// How many flushes succeed before one fails.
    good: usize,
}

type Flushed = Result<(), Arc<usize>>;

impl File {
    fn new(good: usize) -> Arc<Self> {
        Arc::new(Self {
            written: AtomicU32::new(0),
            durable: AtomicU32::new(0),
            flushes: AtomicUsize::new(0),
            gate: FlushGate::new(),
            good,
        })
    }

    /// Relaxed throughout, so that only the gate can make a flush see what was written before it,
    /// and its caller see what it made durable.
    fn flush(&self) -> Flushed {
        self.gate.flush(|| {
            let flush = self.flushes.fetch_add(1, Ordering::Relaxed);
            if flush == self.good {
                return Err(flush);
            }
            let written = self.written.load(Ordering::Relaxed);
            self.durable.fetch_or(written, Ordering::Relaxed);
            Ok(())
        })
    }

    fn write_and_flush(&self, record: u32) -> Flushed {
        self.written.fetch_or(1 << record, Ordering::Relaxed);
        let result = self.flush();
        if result.is_ok() {
            let durable = self.durable.load(Ordering::Relaxed);
            assert_ne!(
                durable & 1 << record,
                0,
                "flush returned Ok, but the record is not durable"
            );
        }
        result
    }

    fn write_and_flush_thrice(self: &Arc<Self>) -> [Flushed; 3] {
        concurrently(
            self,
            [
                |file| file.write_and_flush(0),
                |file| file.write_and_flush(1),
                |file| file.write_and_flush(2),
            ],
        )
    }
}

#[test]
fn a_caller_returns_after_a_flush_that_began_after_it_asked() {
    check(Some(3), || {
        let file = File::new(usize::MAX);
        for result in file.write_and_flush_thrice() {
            assert_eq!(result, Ok(()));
        }
        assert!(file.flushes.load(Ordering::Relaxed) <= 3);
    });
}

#[test]
fn a_failed_flush_fails_every_caller_that_waits_and_every_later_call() {
    check(Some(4), || {
        let file = File::new(0);
        for result in file.write_and_flush_thrice() {
            assert_eq!(result, Err(Arc::new(0)));
        }
        assert_eq!(file.flush(), Err(Arc::new(0)));
        assert_eq!(file.flushes.load(Ordering::Relaxed), 1);
    });
}

#[test]
fn a_flush_that_fails_after_a_good_one_fails_every_caller_that_it_would_cover() {
    check(Some(3), || {
        let file = File::new(1);
        let results = file.write_and_flush_thrice();
        assert!(results.contains(&Ok(())));
        let flushes = file.flushes.load(Ordering::Relaxed);
        assert_eq!(results.contains(&Err(Arc::new(1))), flushes == 2);
        assert_eq!(file.flush(), Err(Arc::new(1)));
        assert_eq!(file.flushes.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn callers_that_waited_for_a_flush_that_panics_run_another() {
    check(Some(3), || {
        let file = File::new(usize::MAX);
        concurrently(
            &file,
            [
                |file| {
                    let flush = || file.gate.flush(|| resume_unwind(Box::new(())));
                    // If the flush of another caller covers this one, its own does not run.
                    let _ = catch_unwind(AssertUnwindSafe(flush));
                },
                |file| assert_eq!(file.write_and_flush(0), Ok(())),
                |file| assert_eq!(file.write_and_flush(1), Ok(())),
            ],
        );
    });
}

/// A model of the file of a segment with three records of one unit each, which the flush makes
/// durable as far as it covers them.
struct Records {
    tail: Tail,
    commit_words: [AtomicU32; 4],
    on_disk: [AtomicU32; 4],
    durable: DurableEnd,
    gate: FlushGate<()>,
}

impl Records {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            tail: Tail::open(START, 4),
            commit_words: Default::default(),
            on_disk: Default::default(),
            durable: DurableEnd::new(),
            gate: FlushGate::new(),
        })
    }

    /// Models `Segment::flush`. The stores to the disk are Relaxed, so that only the gate makes a
    /// caller see them.
    fn flush(&self) {
        let flushed = self.gate.flush(|| {
            let reached = self.tail.reached().units;
            let end_of = |units: u32| {
                let word = &self.commit_words[units as usize];
                (word.load(Ordering::Acquire) != 0).then_some(units + 1)
            };
            let flush = |units: std::ops::Range<u32>| {
                for units in units {
                    let word = self.commit_words[units as usize].load(Ordering::Relaxed);
                    self.on_disk[units as usize].store(word, Ordering::Relaxed);
                }
                Ok(())
            };
            let durable = self.durable.flush(START.units, reached, end_of, flush)?;
            for units in START.units..durable {
                let on_disk = self.on_disk[units as usize].load(Ordering::Relaxed);
                assert_ne!(on_disk, 0, "a record counts as durable and is not");
            }
            Ok(())
        });
        assert_eq!(flushed, Ok(()));
    }

    fn append_and_flush(&self) {
        let Reserved::At(position) = self.tail.reserve(1, 1) else {
            panic!("it fits");
        };
        let units = position.units as usize;
        self.commit_words[units].store(1, Ordering::Release);
        self.flush();
        let on_disk = self.on_disk[units].load(Ordering::Relaxed);
        assert_ne!(on_disk, 0, "a flush left out a record");
    }
}

#[test]
fn a_flush_of_what_comes_after_the_durable_records_leaves_none_out() {
    check(Some(3), || {
        concurrently(&Records::new(), [Records::append_and_flush; 3]);
    });
}

/// A model of an ack file with the done bits of two records and one delivery word.
struct AckFile {
    done: AtomicU32,
    word: AtomicU32,
    durable_done: AtomicU32,
    durable_word: AtomicU32,
    flushed: FlushedAcks,
    deliveries: DeliveriesChanged,
    gate: FlushGate<()>,
}

impl AckFile {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            done: AtomicU32::new(0),
            word: AtomicU32::new(0),
            durable_done: AtomicU32::new(0),
            durable_word: AtomicU32::new(0),
            flushed: FlushedAcks::new(),
            deliveries: DeliveriesChanged::new(),
            gate: FlushGate::new(),
        })
    }

    /// Models `Segment::flush`. The flush makes durable what it finds in memory.
    fn flush(&self) {
        let done = || self.done.load(Ordering::Acquire).count_ones();
        let flush = || {
            let done = self.done.load(Ordering::Relaxed);
            self.durable_done.store(done, Ordering::Relaxed);
            let word = self.word.load(Ordering::Relaxed);
            self.durable_word.store(word, Ordering::Relaxed);
            Ok(())
        };
        let flushed = self
            .gate
            .flush(|| self.flushed.flush(&self.deliveries, done, flush));
        assert_eq!(flushed, Ok(()));
    }

    fn ack_and_flush(&self, index: u32) {
        self.done.fetch_add(1 << index, Ordering::AcqRel);
        self.flush();
        let durable = self.durable_done.load(Ordering::Relaxed);
        assert_ne!(durable & 1 << index, 0, "the flush skipped an ack");
    }
}

#[test]
fn a_flush_skips_no_ack_that_came_before_it() {
    check(Some(3), || {
        concurrently(
            &AckFile::new(),
            [
                |file| file.ack_and_flush(0),
                |file| file.ack_and_flush(1),
                AckFile::flush,
            ],
        );
    });
}

#[test]
fn a_flush_skips_no_delivery_that_ended_before_it() {
    check(Some(3), || {
        concurrently(
            &AckFile::new(),
            [
                |file| {
                    file.word.store(1, Ordering::Relaxed);
                    file.deliveries.note();
                    file.deliveries.note_end();
                    file.flush();
                    assert_eq!(file.durable_word.load(Ordering::Relaxed), 1);
                },
                AckFile::flush,
                AckFile::flush,
            ],
        );
    });
}

/// Records per ack word in the models. Real ack words have 32.
const RECORDS_PER_WORD: u32 = 2;

/// A model of the acks of a segment that has three records.
struct Acked {
    progress: Progress,
    ack_words: [AtomicU64; 2],
    /// Whether the ack words are mapped. Unmapping stores to it: loom reports a use that is still
    /// going on as a race, and a later use finds `false`.
    mapped: Cell<bool>,
}

impl Acked {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            progress: Progress::open(),
            ack_words: [AtomicU64::new(0), AtomicU64::new(0)],
            mapped: Cell::new(true),
        })
    }

    /// Models `AckFile::set_once`.
    fn set_once(&self, index: u32) -> bool {
        assert!(self.mapped.get(), "ack words used after they were unmapped");
        let step = 1 << (index % RECORDS_PER_WORD);
        let word = &self.ack_words[(index / RECORDS_PER_WORD) as usize];
        let old = word.fetch_add(step, Ordering::AcqRel);
        assert_eq!(old & step, 0);
        old | step == (1 << RECORDS_PER_WORD) - 1
    }

    /// Models `Lease::ack`.
    fn ack(&self, index: u32) -> bool {
        self.set_once(index) && self.progress.count_full_words(1)
    }

    /// Models `Segment::close`.
    fn close(&self, end: u32) -> bool {
        let words = end.div_ceil(RECORDS_PER_WORD);
        let mut filled = 0;
        for index in end..words * RECORDS_PER_WORD {
            filled += u32::from(self.set_once(index));
        }
        self.progress.close(words, filled)
    }

    /// Models `Log::reclaim`.
    fn retire_if_complete(&self) -> bool {
        let complete = self.progress.is_complete();
        if complete {
            self.unmap();
        }
        complete
    }

    fn unmap(&self) {
        assert!(self.mapped.replace(false));
    }
}

#[test]
fn one_thread_learns_that_a_segment_is_complete_and_none_uses_it_once_retired() {
    check(Some(4), || {
        let segment = Acked::new();
        let [acker, other, closer, retired] = concurrently(
            &segment,
            [
                |segment| usize::from(segment.ack(0)) + usize::from(segment.ack(2)),
                |segment| usize::from(segment.ack(1)),
                |segment| usize::from(segment.close(3)),
                // May look at any time, like the maintenance thread.
                |segment| usize::from(segment.retire_if_complete()),
            ],
        );
        assert_eq!(acker + other + closer, 1);
        assert!(retired == 1 || segment.retire_if_complete());
    });
}

#[test]
fn the_thread_that_learns_that_a_segment_is_complete_may_unmap_it() {
    check(None, || {
        let segment = Acked::new();
        concurrently(
            &segment,
            [
                |segment| {
                    if segment.ack(0) | segment.ack(2) {
                        segment.unmap();
                    }
                },
                |segment| {
                    if segment.ack(1) {
                        segment.unmap();
                    }
                },
                |segment| {
                    if segment.close(3) {
                        segment.unmap();
                    }
                },
            ],
        );
        assert!(!segment.mapped.get());
    });
}
