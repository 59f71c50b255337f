//! Tests of opening, closing and flushing a queue when something fails on the way.

use std::thread;
use std::time::Duration;

use rustix::io::Errno;

use super::*;
use crate::log::manifest;
use crate::options::Builder;
use crate::storage::Operation;
use crate::storage::faults::{self, Call, Effect, Plan};
use crate::{EnqueueError, EnqueueOptions};

#[test]
fn a_consumer_asleep_is_woken_when_a_damaged_segment_can_be_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let builder = Builder::new(dir.path()).stripes(1).segment_size(16 * 1024);
    {
        let running = Running::open(&builder, None).unwrap().0;
        for _ in 0..8 {
            let place = enqueue::Place::of_this_thread(&running);
            running.enqueue(place, &[7; 3000]).unwrap();
        }
    }
    let segment = dir.path().join(format!("log/00/{:020}.seg", 0));
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[200] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    // The damaged bytes cannot be set aside yet.
    let full = faults::fill_disk(&dir.path().join("quarantine"));
    let running = Arc::new(Running::open(&builder, None).unwrap().0);
    let consumer = crate::Consumer::new(Arc::clone(&running));
    assert!(consumer.try_next().is_none());
    drop(full);
    // Nothing else happens to the queue from here on.
    let (delivered, is_delivered) = std::sync::mpsc::channel();
    thread::spawn(move || {
        consumer.next().unwrap().ack();
        delivered.send(()).unwrap();
    });
    is_delivered.recv_timeout(Duration::from_secs(60)).unwrap();
}

#[test]
fn durable_enqueues_are_refused_after_a_failed_flush_that_no_caller_was_told_of() {
    let enqueue = |running: &Running, payload: &[u8], durability| {
        let place = enqueue::Place::of_this_thread(running);
        let options = EnqueueOptions::new().durability(durability);
        running.enqueue_with(place, payload, &options)
    };
    for failing in ["quarantine", "log/00"] {
        let dir = tempfile::tempdir().unwrap();
        let builder = Builder::new(dir.path()).stripes(1).segment_size(16 * 1024);
        let running = Running::open(&builder, None).unwrap().0;
        enqueue(&running, &[7; 3000], Durability::Sync).unwrap();
        drop(running);
        let running = Arc::new(Running::open_idle(&builder).unwrap().0);
        let segment = dir.path().join(format!("log/00/{:020}.seg", 0));
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(segment)
            .unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"x", 200).unwrap();
        enqueue(&running, &[7; 10], Durability::Sync).unwrap();
        let fault = faults::fail_flushes(dir.path().join(failing));
        // This claim sets the damaged bytes aside.
        let consumer = crate::Consumer::new(Arc::clone(&running));
        assert_eq!(consumer.try_next().is_some(), failing != "quarantine");
        // Enough rolls that the limit of sequences has to be raised. Any of these calls may fail.
        for _ in 0..64 {
            let stripe = &running.dispatch().stripes()[0];
            stripe.prepare();
            for _ in 0..6 {
                let _ = enqueue(&running, &[7; 3000], Durability::Process);
            }
        }
        drop(fault);
        let error = enqueue(&running, &[7; 10], Durability::Sync).unwrap_err();
        assert!(matches!(error, EnqueueError::Poisoned(_)), "{error}");
        assert!(running.flush().is_err());
    }
}

#[test]
fn a_directory_that_cannot_be_inspected_is_not_treated_as_a_new_queue() {
    let dir = tempfile::tempdir().unwrap();
    let builder = Builder::new(dir.path());
    drop(Running::open(&builder, None).unwrap());
    let manifest = dir.path().join(manifest::FILE_NAME);
    std::fs::remove_file(&manifest).unwrap();
    for operation in [Operation::Inspect, Operation::List] {
        let plan = Plan {
            operation,
            calls: 0..usize::MAX,
            effect: Effect::Fail(Errno::IO),
        };
        let _fault = faults::watch(dir.path(), vec![plan]);
        assert!(Running::open(&builder, None).is_err());
        assert!(!manifest.exists());
    }
}

#[test]
fn the_name_of_a_queue_is_durable_before_it_has_a_manifest() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("queue");
    std::fs::create_dir(&dir).unwrap();
    let fault = faults::watch(root.path(), Vec::new());
    drop(Running::open(&Builder::new(&dir), None).unwrap());
    let calls = fault.take_calls();
    let at = |operation, path: &Path| {
        let is_it = |call: &Call| call.operation == operation && call.path == path;
        calls.iter().position(is_it).unwrap()
    };
    let named = at(Operation::FlushDirectory, root.path());
    assert!(named < at(Operation::Rename, &dir.join(manifest::TEMPORARY_NAME)));
}

#[test]
fn a_queue_opens_on_a_full_disk_though_a_stripe_has_no_segment() {
    let dir = tempfile::tempdir().unwrap();
    let builder = Builder::new(dir.path()).stripes(2).segment_size(16 * 1024);
    let enqueue = |running: &Running, stripe: usize| {
        let place = enqueue::Place::on(&running.dispatch().stripes()[stripe]);
        running.enqueue(place, b"job")
    };
    {
        let running = Running::open(&builder, None).unwrap().0;
        enqueue(&running, 0).unwrap();
    }
    let full = faults::fill_disk(&dir.path().join("log"));
    let running = Arc::new(Running::open(&builder, None).unwrap().0);
    for stripe in [0, 1] {
        let error = enqueue(&running, stripe).unwrap_err();
        assert!(matches!(error, EnqueueError::StorageFull(_)), "{error}");
    }
    let consumer = crate::Consumer::new(Arc::clone(&running));
    consumer.try_next().unwrap().ack();
    assert!(consumer.try_next().is_none());
    drop(full);
    for stripe in [1, 0] {
        let id = enqueue(&running, stripe).unwrap();
        let job = consumer.next_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(job.id(), id);
        job.ack();
    }
}

#[test]
fn a_job_that_was_moved_after_its_last_attempt_is_dead_and_not_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let builder = Builder::new(dir.path()).stripes(1).segment_size(16 * 1024);
    let running = Arc::new(Running::open_idle(&builder).unwrap().0);
    let stripe = &running.dispatch().stripes()[0];
    let limit = crate::RetryPolicy::default().attempts_limit().unwrap();
    let counts = [(u32::from(limit), 0), (0, running.dispatch().max_crashes())];
    for (prior_attempts, prior_crashes) in counts {
        let meta = crate::log::meta::Meta {
            prior_attempts,
            prior_crashes,
            ..Default::default()
        };
        let record = crate::log::record::NewRecord {
            enqueued_at: crate::Timestamp::ZERO,
            due_at: crate::Timestamp::ZERO,
            name: b"",
            meta: &meta.encode(&[], 100),
            payload: b"moved",
        };
        stripe.append_shared(&record).unwrap();
    }
    let consumer = crate::Consumer::new(Arc::clone(&running));
    assert!(consumer.try_next().is_none());
    assert_eq!(running.dead().stats().dying, 2);
}

#[test]
fn jobs_are_flushed_although_letters_do_not_fit_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut builder = Builder::new(dir.path());
    builder = builder.stripes(1).segment_size(16 * 1024);
    let running = Arc::new(Running::open(&builder, None).unwrap().0);
    let _full = faults::fill_disk(&dir.path().join("dead"));
    let consumer = crate::Consumer::new(Arc::clone(&running));
    let stripe = &running.dispatch().stripes()[0];
    // More letters than the first segment of the dead letter log holds.
    for _ in 0..8 {
        let place = enqueue::Place::of_this_thread(&running);
        running.enqueue(place, &[7; 3000]).unwrap();
        let job = consumer.next_timeout(Duration::from_secs(60)).unwrap();
        job.dead_letter("of no use");
    }
    let error = running.flush().unwrap_err();
    assert!(error.is_full(), "{error}");
    assert!(running.poison().is_none());
    // So the flush comes to this failure.
    let _failing = faults::fail_flushes(stripe.active().paths().segment.path());
    assert!(running.flush().unwrap_err().is_failed_flush());
    assert!(running.poison().is_some());
}

#[test]
fn maintenance_notes_a_failed_flush_although_something_else_has_failed_before() {
    let dir = tempfile::tempdir().unwrap();
    let builder = Builder::new(dir.path()).stripes(1).segment_size(16 * 1024);
    let running = Arc::new(Running::open_idle(&builder).unwrap().0);
    let stripe = &running.dispatch().stripes()[0];
    running.enqueue(enqueue::Place::on(stripe), b"job").unwrap();
    let consumer = crate::Consumer::new(Arc::clone(&running));
    consumer.try_next().unwrap().dead_letter("of no use");
    stripe.flush(false).unwrap();
    // The letter does not fit the disk, and the segment that maintenance prepares cannot be
    // flushed.
    let _full = faults::fill_disk(&dir.path().join("dead"));
    let next = crate::log::segment::capacity_of(16 * 1024);
    let next = dir.path().join(format!("log/00/{next:020}.seg"));
    let _failing = faults::fail_flushes(&next);
    let mut maintenance = maintenance::Maintenance::new();
    while let Some(wake) = running.signal.take() {
        maintenance.turn(&running, &wake);
    }
    let poison = running.poison().expect("the failed flush was noted");
    assert_eq!(poison.path(), next);
}

#[test]
fn an_enqueue_that_finds_no_bytes_wakes_nobody_who_waits_for_room() {
    let dir = tempfile::tempdir().unwrap();
    let builder = Builder::new(dir.path())
        .stripes(1)
        .segment_size(16 * 1024)
        .max_bytes(3 * 16 * 1024)
        .max_depth(1000);
    let running = Running::open_idle(&builder).unwrap().0;
    let place = || enqueue::Place::of_this_thread(&running);
    while running.enqueue(place(), &[7; 3000]).is_ok() {}
    // Among those who wait may be the caller itself, which would then not wait.
    let registered = running.room.register();
    assert!(running.enqueue(place(), &[7; 3000]).unwrap_err().is_full());
    let batch = [&[7; 2000]; 2];
    assert!(
        running
            .enqueue_batch(place(), &batch)
            .unwrap_err()
            .is_full()
    );
    assert_eq!(running.room.asleep(), 1);
    running.room.cancel(registered);
}
