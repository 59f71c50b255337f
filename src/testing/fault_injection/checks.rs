//! Checks what must hold while a disk fails, and once it works again.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::run::{LARGE, PER_SEGMENT, Run, SMALL};
use super::scenes::{Scene, files_below, has_extension};
use super::truth::Found;
use crate::storage::Operation;
use crate::storage::faults::{Call, Effect, Fault};
use crate::{Durability, Queue};

/// Far longer than any wait takes.
const LIMIT: Duration = Duration::from_secs(30);

fn is_flush(call: &Call) -> bool {
    matches!(call.operation, Operation::Flush | Operation::FlushDirectory)
}

/// Whether a call failed: not one that was only interrupted or cut short, and not a failure that
/// the queue can do without the call.
fn has_failed(call: &Call) -> bool {
    match call.effect {
        Some(Effect::Fail(errno) | Effect::FailAfter(errno)) => match call.operation {
            Operation::Prefault | Operation::ReadIn => {
                [Errno::FAULT, Errno::HWPOISON].contains(&errno)
            }
            _ => ![Errno::INTR, Errno::OPNOTSUPP].contains(&errno),
        },
        Some(Effect::Short) | None => false,
    }
}

impl Run {
    /// If the disk has failed and is to be mended early: mends it, and checks that enqueues go on
    /// by themselves, durable ones only if no flush has failed.
    pub(super) fn check_that_it_goes_on(&mut self, queue: &Queue, fault: &Fault) {
        self.calls.extend(fault.take_calls());
        let is_over = self.calls.iter().any(|call| call.effect.is_some());
        if !self.is_mended_early || !is_over {
            return;
        }
        fault.lift();
        let errors = self.errors.len();
        for _ in 0..2 {
            self.enqueue(LARGE, Durability::Process, |payload, options| {
                queue.enqueue_with(payload, options.wait(LIMIT))
            });
        }
        assert_eq!(self.errors.len(), errors, "{:?}", self.errors);
        let has_failed_flush = |call: &Call| is_flush(call) && has_failed(call);
        if self.calls.iter().any(has_failed_flush) {
            // The maintenance thread may not have reported it yet.
            let deadline = Instant::now() + LIMIT;
            while !self.is_poisoned {
                assert!(Instant::now() < deadline, "a failed flush was not reported");
                self.enqueue(SMALL, Durability::Sync, |payload, options| {
                    queue.enqueue_with(payload, options)
                });
            }
        }
        let errors = self.errors.len();
        self.enqueue(SMALL, Durability::Sync, |payload, options| {
            queue.enqueue_with(payload, options)
        });
        self.flush(queue);
        let has_failed = self.errors.len() > errors;
        assert_eq!(has_failed, self.is_poisoned, "{:?}", self.errors);
        if !self.is_poisoned {
            self.check_that_everything_works(queue);
        }
    }

    /// Checks that the open queue can do everything, once the disk works again and if no flush has
    /// failed.
    fn check_that_everything_works(&mut self, queue: &Queue) {
        let errors = self.errors.len();
        // A segment that could not be mapped or read is tried again after a while.
        let engine = queue.engine();
        let logs = || {
            engine
                .dispatch()
                .stripes()
                .iter()
                .chain([engine.dead().log()])
        };
        let deadline = Instant::now() + LIMIT;
        while logs().any(|log| log.is_held_back()) {
            assert!(Instant::now() < deadline, "a segment is still held back");
            thread::sleep(Duration::from_millis(5));
        }
        let consumer = queue.consumer();
        // Through several segments, so that there is something to seal and to retire.
        for durability in [Durability::Process, Durability::Sync] {
            for _ in 0..2 * PER_SEGMENT {
                self.enqueue(LARGE, durability, |payload, options| {
                    queue.enqueue_with(payload, options.wait(LIMIT))
                });
            }
            let taken = self.consume(&consumer, 2 * PER_SEGMENT);
            // A damaged record holds back the jobs behind it for a while.
            assert!(taken > 0 || self.is_damage_expected);
            self.flush(queue);
            self.work_with_letters(&queue.dead_letters());
            for log in logs() {
                log.seal(false).unwrap();
                log.reclaim().unwrap();
            }
            for stripe in engine.dispatch().stripes() {
                stripe.prepare();
                stripe.flush_ahead().unwrap();
            }
            engine.compact(false).unwrap();
        }
        assert_eq!(self.errors.len(), errors, "{:?}", self.errors);
        // The maintenance thread may be in the middle of creating or removing a file.
        let deadline = Instant::now() + LIMIT;
        loop {
            let (has, counted) = engine.space();
            if counted == has {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "{counted} bytes are counted, and the files have {has}"
            );
        }
        // Files that could not be removed while the disk failed are removed by maintenance. (A file
        // that was made by a call that returned an error is found by the next open.)
        let is_done = |call: &Call| matches!(call.effect, Some(Effect::FailAfter(_)));
        if self.calls.iter().any(is_done) {
            return;
        }
        let deadline = Instant::now() + LIMIT;
        for log in logs() {
            while let Some(stray) = log.stray_file() {
                assert!(Instant::now() < deadline, "{stray} was not removed");
                log.reclaim().unwrap();
            }
        }
    }

    /// Ends a session, in which the queue was closed or could not be opened. Checks that no file
    /// was flushed again after a failed flush of it, and that none was used that is incomplete.
    pub(super) fn end_session(&mut self, fault: &Fault) {
        self.calls.extend(fault.take_calls());
        self.is_poisoned = false;
        let mut failed = Vec::new();
        // A temporary file is a new one each time.
        let of_log = |call: &&Call| is_flush(call) && !has_extension(&call.path, "tmp");
        for call in self.calls.iter().filter(of_log) {
            assert!(
                !failed.contains(&&call.path),
                "{} was flushed after a flush of it had failed",
                call.path.display()
            );
            if has_failed(call) {
                failed.push(&call.path);
            }
        }
        self.check_that_whole_files_are_used();
    }

    fn check_that_whole_files_are_used(&self) {
        let mut broken = Vec::new();
        let mut bad_pages = Vec::new();
        let mut used: Vec<&PathBuf> = Vec::new();
        let mut created: Vec<&PathBuf> = Vec::new();
        for call in &self.calls {
            let is_use = match call.operation {
                Operation::Map => true,
                Operation::Rename => has_extension(&call.path, "tmp"),
                _ => false,
            };
            assert!(
                !is_use || !broken.contains(&&call.path),
                "{} was used although it is incomplete",
                call.path.display()
            );
            match (call.operation, has_failed(call)) {
                (Operation::Create, false) => {
                    broken.retain(|path| **path != call.path);
                    used.retain(|path| **path != call.path);
                    created.push(&call.path);
                }
                // A file that already existed may be read before its blocks are allocated.
                (Operation::Allocate | Operation::Write, true) if created.contains(&&call.path) => {
                    broken.push(&call.path);
                }
                // Only for temporary files: a file of a log may be read after a failed flush.
                (Operation::Flush, true) if has_extension(&call.path, "tmp") => {
                    broken.push(&call.path);
                }
                // A segment that is in use, or was prepared and flushed, stays: the next append goes
                // to another one.
                (Operation::Prefault | Operation::Flush, false) => used.push(&call.path),
                (Operation::Prefault, true) if !used.contains(&&call.path) => {
                    bad_pages.push(&call.path);
                }
                (Operation::Remove, _) => bad_pages.retain(|path| **path != call.path),
                _ => {}
            }
        }
        assert_eq!(
            bad_pages,
            Vec::<&PathBuf>::new(),
            "files were kept whose pages could not be prefaulted"
        );
    }

    /// Checks that each error that was returned belongs to a call that failed, and names its
    /// action, path and code.
    pub(super) fn check_errors(&self) {
        for told in &self.errors {
            let is_it = |call: &Call| {
                let (Some(Effect::Fail(errno)) | Some(Effect::FailAfter(errno))) = call.effect
                else {
                    return false;
                };
                call.path == told.path
                    && call.operation.verb() == told.action
                    && told.code == Some(errno.raw_os_error())
            };
            assert!(self.calls.iter().any(is_it), "{told:?}");
        }
    }

    /// Checks, once the disk works again, that everything promised is in the queue, and that the
    /// queue can be drained and closed.
    pub(super) fn check_what_is_left(&mut self, scene: &Scene) {
        let queue = self.open(scene.stripes).expect("the disk works again");
        let found = self.take_all(&queue);
        self.truth.check(&found);
        let report = queue.verify().unwrap();
        let is_whole = report.damaged.is_empty();
        assert!(self.is_damage_expected || is_whole, "{report:?}");
        for bytes in &scene.damage {
            assert!(
                self.is_in_quarantine(bytes),
                "damaged bytes are not in the quarantine"
            );
        }
        queue.close().unwrap();
        // Jobs that are done stay done after another open.
        self.is_damage_expected = false;
        let queue = self.open(scene.stripes).unwrap();
        let again = self.take_all(&queue);
        for (found, again) in found.iter().zip(&again) {
            let left = (found.delayed, found.letters);
            assert_eq!((again.jobs, again.letters), left);
        }
        queue.close().unwrap();
        self.check_names();
    }

    fn take_all(&mut self, queue: &Queue) -> Vec<Found> {
        let mut found = vec![Found::default(); self.truth.len()];
        let consumer = queue.consumer();
        while let Some(job) = consumer.try_next() {
            found[self.truth.number_of(&job)].jobs += 1;
            job.ack();
        }
        let letters = queue.dead_letters();
        for letter in letters.iter() {
            found[self.truth.number_of_letter(&letter)].letters += 1;
        }
        let stripes = queue.engine().dispatch().stripes().iter();
        for segment in stripes.flat_map(|stripe| stripe.pins().map(Result::unwrap)) {
            for record in segment.live_records() {
                let found = &mut found[self.truth.number_of_record(&record)];
                found.jobs += 1;
                found.delayed += 1;
            }
        }
        let stats = queue.stats();
        let delayed = found.iter().map(|found| u64::from(found.delayed)).sum();
        assert_eq!((stats.depth(), stats.dead), (delayed, letters.len()));
        found
    }

    fn is_in_quarantine(&self, bytes: &[u8]) -> bool {
        let entries = fs::read_dir(self.queue_dir.join("quarantine")).unwrap();
        let mut paths = entries.map(|entry| entry.unwrap().path());
        paths.any(|path| has_extension(&path, "bin") && fs::read(path).unwrap() == bytes)
    }

    /// Checks that no file is left that nothing would ever remove.
    fn check_names(&self) {
        for (path, _) in files_below(&self.queue_dir) {
            let extension = path.extension().and_then(|extension| extension.to_str());
            let is_of_use = match extension {
                None | Some("seg" | "ack" | "limit") => true,
                // Copies, also unfinished ones that could not be removed.
                Some("bin" | "txt" | "tmp") => path.starts_with("quarantine"),
                Some(_) => false,
            };
            assert!(is_of_use, "{} is left", path.display());
        }
    }
}
