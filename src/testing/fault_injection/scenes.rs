//! The scenes in which calls fail: each is a queue on disk and a workload for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::run::{LARGE, PER_SEGMENT, Run, SMALL, builder};
use super::truth::Truth;
use crate::engine::Running;
use crate::storage::faults::{self, Call, Fault, Plan};
use crate::{Consumer, Durability, EnqueueOptions, Producer, Queue};

/// A delay longer than any run.
const LATER: Duration = Duration::from_secs(3600);

/// A queue on disk, what is known of it, and a workload for it.
pub(super) struct Scene {
    pub(super) name: &'static str,
    pub(super) stripes: usize,
    files: Vec<(PathBuf, Vec<u8>)>,
    truth: Truth,
    /// Damaged byte ranges, each of which must be in the quarantine at the end.
    pub(super) damage: Vec<Vec<u8>>,
    /// The workload. It may lift the faults before its end.
    play: fn(&mut Run, &Scene, &Fault),
}

/// What a run saw.
pub(super) struct Outcome {
    /// The calls that were made while the workload ran.
    pub(super) calls: Vec<Call>,
    /// How many errors were returned.
    pub(super) errors: usize,
    /// Whether a failed flush was reported.
    pub(super) was_poisoned: bool,
}

/// A temporary directory, in memory if possible: the faults decide what the disk does.
pub(super) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

pub(super) fn has_extension(path: &Path, wanted: &str) -> bool {
    path.extension()
        .is_some_and(|extension| extension == wanted)
}

impl Scene {
    pub(super) fn run(&self, plans: Vec<Plan>, is_mended_early: bool) -> Outcome {
        let scratch = scratch();
        let queue_dir = scratch.path().join("queue");
        for (path, bytes) in &self.files {
            let path = queue_dir.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let mut run = Run {
            queue_dir,
            truth: self.truth.clone(),
            calls: Vec::new(),
            errors: Vec::new(),
            is_poisoned: false,
            is_damage_expected: !self.damage.is_empty(),
            is_mended_early,
        };
        let fault = faults::watch(scratch.path(), plans);
        (self.play)(&mut run, self, &fault);
        run.end_session(&fault);
        fault.lift();
        run.check_errors();
        let errors = std::mem::take(&mut run.errors);
        let outcome = Outcome {
            calls: std::mem::take(&mut run.calls),
            errors: errors.len(),
            was_poisoned: errors.iter().any(|told| told.is_failed_flush),
        };
        run.check_what_is_left(self);
        assert!(run.errors.is_empty(), "{:?}", run.errors);
        outcome
    }
}

/// A new queue is created, used and closed.
pub(super) fn a_new_queue() -> Scene {
    Scene {
        name: "a new queue",
        stripes: 2,
        files: Vec::new(),
        truth: Truth::default(),
        damage: Vec::new(),
        play: |run, scene, fault| {
            if let Some(queue) = run.open(scene.stripes) {
                run.work(&queue);
                run.check_that_it_goes_on(&queue, fault);
                run.close(queue);
            }
        },
    }
}

/// Opens a queue, drains it and closes it.
fn work_off(run: &mut Run, scene: &Scene, fault: &Fault) {
    let Some(queue) = run.open(scene.stripes) else {
        return;
    };
    let consumer = queue.consumer();
    run.consume(&consumer, 1000);
    run.work_with_letters(&queue.dead_letters());
    run.enqueue(SMALL, Durability::Sync, |payload, options| {
        queue.enqueue_with(payload, options)
    });
    run.flush(&queue);
    run.check_that_it_goes_on(&queue, fault);
    drop(consumer);
    run.close(queue);
}

/// Makes the queue that a scene finds on disk. It has no threads, so that nothing happens in the
/// background.
struct Maker {
    scratch: tempfile::TempDir,
    queue: Queue,
    producer: Producer,
    consumer: Consumer,
    truth: Truth,
}

impl Maker {
    fn new() -> Self {
        let scratch = scratch();
        let running = Running::open_idle(&builder(scratch.path(), 1)).unwrap().0;
        let queue = Queue::of(running);
        Self {
            scratch,
            producer: queue.producer(),
            consumer: queue.consumer(),
            queue,
            truth: Truth::default(),
        }
    }

    /// Enqueues jobs of `len` bytes, and returns the number of the first.
    fn enqueue(&mut self, jobs: usize, len: usize) -> usize {
        let first = self.truth.len();
        for number in first..first + jobs {
            self.truth.new_job(len);
            let options = self.truth.label(number, EnqueueOptions::new());
            let payload = self.truth.payload(number);
            let sequence = self.producer.enqueue_with(&payload, options).unwrap();
            self.truth.enqueued(number, sequence);
        }
        first
    }

    fn ack(&mut self, jobs: usize) {
        for _ in 0..jobs {
            let job = self.consumer.try_next().unwrap();
            self.truth.acked(self.truth.number_of(&job));
            job.ack();
        }
    }

    /// Turns the next jobs into letters.
    fn kill(&mut self, jobs: usize) {
        for _ in 0..jobs {
            let job = self.consumer.try_next().unwrap();
            self.truth.died(self.truth.number_of(&job));
            job.dead_letter("of no use");
        }
        self.queue.flush().unwrap();
        self.truth.letters_flushed();
    }

    /// The segment files of the stripe, oldest first, relative to the queue's directory.
    fn segments(&self) -> Vec<PathBuf> {
        let files = files_below(self.scratch.path());
        let is_segment = |path: &PathBuf| path.starts_with("log") && has_extension(path, "seg");
        let paths = files.into_iter().map(|(path, _)| path);
        let mut segments: Vec<_> = paths.filter(is_segment).collect();
        segments.sort();
        segments
    }
}

/// The files below a directory: their paths relative to it, and their contents.
pub(super) fn files_below(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                let bytes = fs::read(&path).unwrap();
                files.push((path.strip_prefix(root).unwrap().to_path_buf(), bytes));
            }
        }
    }
    files
}

fn bytes_of<'a>(files: &'a mut [(PathBuf, Vec<u8>)], path: &Path) -> &'a mut Vec<u8> {
    let found = files.iter_mut().find(|(other, _)| other == path);
    &mut found.unwrap().1
}

/// Flips a bit in a job's payload. Returns the offset of the damaged record and its bytes.
fn damage_record(segment: &mut [u8], truth: &Truth, number: usize) -> (usize, Vec<u8>) {
    let payload = truth.payload(number);
    let labels = truth.label(number, EnqueueOptions::new()).len();
    let mut windows = segment.windows(payload.len());
    let at = windows.position(|window| window == payload).unwrap();
    segment[at + 20] ^= 1;
    let start = at - labels - crate::log::record::RECORD_HEADER_BYTES;
    let end = (at + payload.len()).next_multiple_of(8);
    (start, segment[start..end].to_vec())
}

/// A queue whose process died in the middle of a replay, and whose files have every kind of damage
/// that an open can repair or set aside.
pub(super) fn an_unclean_queue() -> Scene {
    let mut maker = Maker::new();
    maker.enqueue(4, SMALL);
    maker.kill(4);
    // Fills the segment and another one, which becomes a spare.
    maker.enqueue(2 * PER_SEGMENT, LARGE);
    maker.ack(2 * PER_SEGMENT);
    let first = maker.enqueue(4 * PER_SEGMENT, LARGE);
    maker.ack(2);
    let segments = maker.segments();
    let [.., partly_done, mended, without_acks, given_up] = &segments[..] else {
        panic!("{segments:?}");
    };
    maker.enqueue(1, LARGE);
    let stripe = &maker.queue.engine().dispatch().stripes()[0];
    stripe.reclaim().unwrap();
    stripe.prepare();
    // Handlers have the other jobs when the process dies.
    while let Some(job) = maker.consumer.try_next() {
        std::mem::forget(job);
    }
    let dead_before = files_below(&maker.scratch.path().join("dead"));
    let letters = maker.queue.dead_letters();
    let letter = letters.iter().next().unwrap();
    let job = letters.replay(letter.id()).unwrap();
    let number = maker.truth.number_of_letter(&letter);
    maker.truth.replayed(number, job);

    let mut files = files_below(maker.scratch.path());
    for (path, bytes) in dead_before {
        *bytes_of(&mut files, &Path::new("dead").join(path)) = bytes;
    }
    let mut truth = maker.truth.clone();
    let mut damage = Vec::new();
    let (offset, record) = damage_record(bytes_of(&mut files, partly_done), &truth, first + 3);
    damage.push(record);
    truth.damaged(first + 3);
    // An earlier process has set aside other bytes from the same place.
    let base = partly_done.file_stem().unwrap().display();
    let earlier = format!("quarantine/00-{base}-{offset}.bin");
    files.push((earlier.into(), b"damage of an earlier time".into()));
    damage.push(b"damage of an earlier time".into());
    bytes_of(&mut files, mended)[20] ^= 1;
    files.retain(|(path, _)| *path != without_acks.with_extension("ack"));
    bytes_of(&mut files, &given_up.with_extension("ack"))[20] ^= 1;
    bytes_of(&mut files, given_up)[20] ^= 1;
    damage.push(bytes_of(&mut files, given_up).clone());
    for number in first + 3 * PER_SEGMENT..first + 4 * PER_SEGMENT {
        truth.damaged(number);
    }
    Scene {
        name: "an unclean queue",
        stripes: 1,
        files,
        truth,
        damage,
        play: work_off,
    }
}

/// A queue that was closed, and one of whose sealed segments was damaged after that.
pub(super) fn a_closed_queue() -> Scene {
    let mut maker = Maker::new();
    maker.enqueue(3, SMALL);
    maker.kill(3);
    let first = maker.enqueue(4 * PER_SEGMENT, LARGE);
    maker.ack(2);
    let damaged = maker.segments().pop().unwrap();
    maker.enqueue(1, SMALL);
    let Maker {
        scratch,
        queue,
        producer,
        consumer,
        mut truth,
    } = maker;
    drop((producer, consumer, queue));
    let mut files = files_below(scratch.path());
    let number = first + 3 * PER_SEGMENT + 2;
    let (_, record) = damage_record(bytes_of(&mut files, &damaged), &truth, number);
    truth.damaged(number);
    Scene {
        name: "a closed queue",
        stripes: 1,
        files,
        truth,
        damage: vec![record],
        play: work_off,
    }
}

/// The work of the maintenance thread: sealing, retiring, preparing segments, compaction.
pub(super) fn maintenance() -> Scene {
    Scene {
        name: "maintenance",
        stripes: 1,
        files: Vec::new(),
        truth: Truth::default(),
        damage: Vec::new(),
        play: play_maintenance,
    }
}

/// Delayed jobs are moved into the reserve segment because there is no room for another segment.
pub(super) fn no_room() -> Scene {
    Scene {
        name: "no room",
        stripes: 1,
        files: Vec::new(),
        truth: Truth::default(),
        damage: Vec::new(),
        play: play_no_room,
    }
}

fn play_no_room(run: &mut Run, scene: &Scene, fault: &Fault) {
    let builder = builder(&run.queue_dir, scene.stripes);
    let queue = match Running::open_idle(&builder) {
        Ok((running, _)) => Queue::of(running),
        Err(error) => return run.note_failed_open(&error),
    };
    let consumer = queue.consumer();
    let stripe = &queue.engine().dispatch().stripes()[0];
    let full = |run: &mut Run| {
        for _ in 0..PER_SEGMENT {
            run.enqueue(LARGE, Durability::Process, |payload, options| {
                queue.enqueue_with(payload, options)
            });
        }
    };
    for round in 0..4 {
        full(run);
        if let Some((_, job)) = run.next(&consumer) {
            job.retry_after(LATER, "not today");
        }
        while let Some((number, job)) = run.next(&consumer) {
            job.ack();
            run.truth.acked(number);
        }
        if round % 2 == 1 {
            // The first time, the active segment is almost full; the second time, it has room.
            if let Err(error) = queue.engine().compact(true) {
                run.note(&error);
            }
            if let Err(error) = stripe.reclaim() {
                run.note(&error);
            }
        }
    }
    run.check_that_it_goes_on(&queue, fault);
    drop(consumer);
    run.close(queue);
}

fn play_maintenance(run: &mut Run, scene: &Scene, fault: &Fault) {
    let builder = builder(&run.queue_dir, scene.stripes);
    let queue = match Running::open_idle(&builder) {
        Ok((running, _)) => Queue::of(running),
        Err(error) => return run.note_failed_open(&error),
    };
    let consumer = queue.consumer();
    let stripe = &queue.engine().dispatch().stripes()[0];
    let fill = |run: &mut Run| {
        for _ in 0..PER_SEGMENT {
            run.enqueue(LARGE, Durability::Process, |payload, options| {
                queue.enqueue_with(payload, options)
            });
        }
    };
    let ack_all = |run: &mut Run| {
        while let Some((number, job)) = run.next(&consumer) {
            job.ack();
            run.truth.acked(number);
        }
    };
    // Segments with one job each that has a long delay.
    for _ in 0..5 {
        fill(run);
        if let Some((_, job)) = run.next(&consumer) {
            job.retry_after(LATER, "not today");
        }
        ack_all(run);
    }
    run.flush(&queue);
    fill(run);
    if let Err(error) = queue.engine().compact(false) {
        run.note(&error);
    }
    for is_sealed in [true, false, false] {
        fill(run);
        if is_sealed && let Err(error) = stripe.seal(true) {
            run.note(&error);
        }
        run.flush(&queue);
        ack_all(run);
        if let Err(error) = stripe.reclaim() {
            run.note(&error);
        }
        stripe.prepare();
        if let Err(error) = stripe.flush_ahead() {
            run.note(&error);
        }
    }
    run.check_that_it_goes_on(&queue, fault);
    drop(consumer);
    run.close(queue);
}
