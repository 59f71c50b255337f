//! Events: what happens to jobs, told to those who listen.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use logmill_jobs::{
    Event, EventKind, Events, Job, JobResult, Mill, Unique, Workers, cancel, discard, hours,
    retry_in, secs, snooze,
};
use serde::{Deserialize, Serialize};

use crate::common::{Double, Note, PATIENCE, mill, note, until};

/// What a handler is to answer.
#[derive(Serialize, Deserialize, Job)]
#[job(kind = "answer", queue = "answers", max_retries = 1)]
struct Answer {
    with: String,
}

fn answer(with: &str) -> Answer {
    let with = with.to_owned();
    Answer { with }
}

/// The events up to the one that is true for `last`.
fn up_to(events: &Events, last: impl Fn(&EventKind) -> bool) -> Vec<Event> {
    let mut all = Vec::new();
    loop {
        let event = events.recv_timeout(PATIENCE).expect("an event");
        let is_last = last(&event.what);
        all.push(event);
        if is_last {
            return all;
        }
    }
}

fn names(events: &[Event]) -> Vec<(&'static str, u32)> {
    let name = |event: &Event| match event.what {
        EventKind::Enqueued => "enqueued",
        EventKind::Started { .. } => "started",
        EventKind::Done { .. } => "done",
        EventKind::Retried { .. } => "retried",
        EventKind::Snoozed { .. } => "snoozed",
        EventKind::Dead { .. } => "dead",
        EventKind::Cancelled { .. } => "cancelled",
        EventKind::Expired => "expired",
        EventKind::Parked => "parked",
        _ => "another",
    };
    events
        .iter()
        .map(|event| (name(event), event.attempt))
        .collect()
}

#[test]
fn each_thing_that_happens_to_a_job_is_told_in_order() {
    let (mill, _dir) = mill();
    let is_second = AtomicBool::new(false);
    let handler = move |job: Answer| -> JobResult {
        let is_second = is_second.fetch_not(Ordering::SeqCst);
        match job.with.as_str() {
            "retry" if !is_second => Err(retry_in(Duration::ZERO, "busy")),
            "snooze" if !is_second => Err(snooze(Duration::ZERO)),
            "discard" => Err(discard("no")),
            "cancel" => Err(cancel("nobody cares")),
            _ => Ok(()),
        }
    };
    let pool = Workers::new(())
        .on(handler)
        .threads(1)
        .start(&mill)
        .unwrap();
    let is_end = |what: &EventKind| {
        use EventKind::{Cancelled, Dead, Done};
        matches!(what, Done { .. } | Dead { .. } | Cancelled { .. })
    };
    let happens = |with: &str| {
        let events = mill.events(100);
        let handle = mill.enqueue(answer(with)).unwrap();
        let mut told = up_to(&events, is_end);
        // The worker may be faster than the thread that enqueues.
        let is_enqueued = |what: &EventKind| *what == EventKind::Enqueued;
        if !told.iter().any(|event| is_enqueued(&event.what)) {
            told.extend(up_to(&events, is_enqueued));
        }
        told.sort_by_key(|event| event.what != EventKind::Enqueued);
        for event in &told {
            assert_eq!((&event.id, &*event.kind), (handle.id(), "answer"));
        }
        told
    };
    let done = happens("nothing");
    let expected = [("enqueued", 0), ("started", 1), ("done", 1)];
    assert_eq!(names(&done), expected);
    assert!(matches!(
        done[1].what,
        EventKind::Started { waited: Some(_) }
    ));
    assert!(matches!(done[2].what, EventKind::Done { ran: Some(_) }));
    let _ = happens("nothing");

    let retried = happens("retry");
    let expected = [
        ("enqueued", 0),
        ("started", 1),
        ("retried", 1),
        ("started", 2),
        ("done", 2),
    ];
    assert_eq!(names(&retried), expected);
    assert!(matches!(&retried[2].what, EventKind::Retried { reason, .. } if reason == "busy"));
    assert!(matches!(
        retried[3].what,
        EventKind::Started { waited: None }
    ));

    let snoozed = happens("snooze");
    let expected = [
        ("enqueued", 0),
        ("started", 1),
        ("snoozed", 1),
        ("started", 1),
        ("done", 1),
    ];
    assert_eq!(names(&snoozed), expected);

    let dead = happens("discard");
    assert_eq!(names(&dead), [("enqueued", 0), ("started", 1), ("dead", 1)]);
    assert!(matches!(&dead[2].what, EventKind::Dead { reason } if reason == "no"));

    let cancelled = happens("cancel");
    let expected = [("enqueued", 0), ("started", 1), ("cancelled", 1)];
    assert_eq!(names(&cancelled), expected);
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn jobs_that_end_without_a_handler_and_jobs_without_one_are_told() {
    let (mill, _dir) = mill();
    let events = mill.events(100);
    let handle = mill.job(note("x")).after(hours(1)).enqueue().unwrap();
    handle.cancel("not needed").unwrap();
    let told = up_to(&events, |what| matches!(what, EventKind::Cancelled { .. }));
    assert_eq!(names(&told), [("enqueued", 0), ("cancelled", 0)]);

    let expiring = mill.job(note("y")).expires_after(Duration::ZERO);
    expiring.enqueue().unwrap();
    // In the queue of the notes, and of another kind.
    mill.job(Double { number: 1 })
        .queue("notes")
        .enqueue()
        .unwrap();
    let pool = Workers::new(())
        .on(|_: Note| JobResult::Ok(()))
        .start(&mill)
        .unwrap();
    let told = [(); 4].map(|()| events.recv_timeout(PATIENCE).unwrap());
    let mut told = names(&told);
    told.sort_unstable();
    let expected = [
        ("enqueued", 0),
        ("enqueued", 0),
        ("expired", 0),
        ("parked", 1),
    ];
    assert_eq!(told, expected);
    let _ = pool.shutdown(PATIENCE);
}

#[cfg(feature = "testing")]
#[test]
fn a_retry_because_an_end_could_not_be_stored_is_told() {
    #[derive(Serialize, Deserialize, Job)]
    #[job(kind = "huge", output = String, max_retries = 1)]
    struct Huge;

    let mill = logmill_jobs::testing::TestMill::open().unwrap();
    let events = mill.events(100);
    let workers = Workers::new(()).on(|_: Huge| JobResult::Ok("x".repeat(16 << 20)));
    mill.enqueue(Huge).unwrap();
    let _ = mill.run_for(hours(1), &workers).unwrap();
    let told = up_to(&events, |what| matches!(what, EventKind::Dead { .. }));
    let expected = [
        ("enqueued", 0),
        ("started", 1),
        ("retried", 1),
        ("started", 2),
        ("retried", 2),
        ("started", 3),
        ("dead", 3),
    ];
    assert_eq!(names(&told), expected);
    let EventKind::Retried { after, reason, .. } = &told[2].what else {
        panic!("{told:?}");
    };
    assert_eq!(*after, None);
    assert!(
        reason.starts_with("its end could not be stored: "),
        "{reason}"
    );
}

#[test]
fn a_full_receiver_drops_the_newest_and_holds_up_nobody() {
    let (mill, _dir) = mill();
    let (full, other) = (mill.events(3), mill.events(100));
    let ids: Vec<_> = (0..10)
        .map(|_| mill.enqueue(note("x")).unwrap().id().clone())
        .collect();
    let pool = Workers::new(())
        .on(|_: Note| JobResult::Ok(()))
        .start(&mill)
        .unwrap();
    for _ in 0..10 {
        up_to(&other, |what| matches!(what, EventKind::Done { .. }));
    }
    let kept: Vec<_> = (0..3).map(|_| full.try_recv().unwrap().id).collect();
    assert_eq!(kept, ids[..3]);
    assert_eq!(
        (full.try_recv(), full.dropped(), other.dropped()),
        (None, 27, 0)
    );
    let _ = pool.shutdown(PATIENCE);
}

#[test]
fn only_new_jobs_of_a_batch_or_a_unique_kind_are_told_as_enqueued() {
    let (mill, _dir) = mill();
    let events = mill.events(100);
    mill.enqueue_all([note("a"), note("b")]).unwrap();
    for _ in 0..2 {
        let unique = mill.job(note("c")).unique(Unique::by("c"));
        unique.enqueue().unwrap();
    }
    let told: Vec<_> = std::iter::from_fn(|| events.try_recv()).collect();
    assert_eq!(names(&told), [("enqueued", 0); 3]);
}

#[test]
fn a_receiver_ends_with_the_mill_and_one_that_is_dropped_is_told_nothing() {
    let (mill, _dir) = mill();
    drop(mill.events(1));
    let events = mill.events(100);
    let waiting = std::thread::spawn(move || events.count());
    mill.enqueue(note("x")).unwrap();
    let after = mill.clone();
    mill.close().unwrap();
    assert_eq!(waiting.join().unwrap(), 1);
    assert_eq!(after.events(1).recv(), None);

    // Also if it is dropped and not closed.
    let (mill, _dir) = super::common::mill();
    let events = mill.events(100);
    drop(mill);
    assert_eq!(events.recv_timeout(PATIENCE), None);
}

#[test]
fn a_waker_that_panics_or_calls_back_harms_nothing() {
    struct Bomb(Mill, Arc<AtomicBool>);
    impl std::task::Wake for Bomb {
        fn wake(self: Arc<Self>) {
            self.1.store(true, Ordering::SeqCst);
            drop(self.0.events(1));
            self.0.enqueue(Double { number: 1 }).unwrap();
            panic!("of a waker");
        }
    }
    let (mill, _dir) = mill();
    let events = mill.events(100);
    let is_woken = Arc::new(AtomicBool::new(false));
    {
        let waker = Arc::new(Bomb(mill.clone(), Arc::clone(&is_woken))).into();
        let mut cx = std::task::Context::from_waker(&waker);
        let mut receiving = Box::pin(events.recv_async());
        assert!(receiving.as_mut().poll(&mut cx).is_pending());
        mill.enqueue(note("x")).unwrap();
        until("the waker is woken", || is_woken.load(Ordering::SeqCst));
    }
    let told: Vec<_> = std::iter::from_fn(|| events.try_recv()).collect();
    assert_eq!(names(&told), [("enqueued", 0); 2]);
    assert_eq!(events.recv_timeout(Duration::from_millis(1)), None);
    let pool = Workers::new(())
        .on(|_: Note| JobResult::Ok(()))
        .start(&mill)
        .unwrap();
    up_to(&events, |what| matches!(what, EventKind::Done { .. }));
    assert!(pool.shutdown(secs(60)).finished_in_time);
}
