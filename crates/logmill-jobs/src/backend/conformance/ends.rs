//! Jobs that end without being completed: dead letters, cancelled jobs, and who is told.

use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use super::{PATIENCE, QUEUE, consumer, done, job, nothing_comes, publish, take};
use crate::backend::{
    Backend, Cancelled, Changes, Choice, Claim, Due, EXPIRES_HEADER, End, FLOW_HEADER, KEY_HEADER,
    Keep, KeyChange, NewJob, ORDER_HEADER, Queue, Settlement, UNIQUE_HEADER,
};

pub(super) fn told(backend: &dyn Backend) -> mpsc::Receiver<(u64, String)> {
    let (tells, told) = mpsc::channel();
    backend.on_end(Box::new(move |ended| {
        let headers = (
            ended.unique.map(<[u8]>::to_vec),
            ended.flow.map(<[u8]>::to_vec),
            ended.key.map(<[u8]>::to_vec),
            ended.order.map(<[u8]>::to_vec),
        );
        let how = match ended.how {
            End::Dead(reason) => format!("dead: {reason}"),
            End::Cancelled => "cancelled".to_owned(),
        };
        let what = format!("{} {} {headers:?} {how}", ended.queue, ended.kind);
        let _ = tells.send((ended.number, what));
    }));
    told
}

pub(super) fn dead_jobs(backend: &dyn Backend) {
    let told = told(backend);
    let queue = backend.queue(QUEUE).expect("a queue");
    let headers: [(&str, &[u8]); 5] = [
        (EXPIRES_HEADER, b"e"),
        (UNIQUE_HEADER, b"u"),
        (FLOW_HEADER, b"f"),
        (KEY_HEADER, b"k"),
        (ORDER_HEADER, b"\0\0\0\0\0\0\0\x01"),
    ];
    let new = NewJob {
        headers: &headers,
        ..job(b"job")
    };
    let number = queue.publish(&new).expect("room for a job");
    let mut consumer = consumer(backend, &[QUEUE], Choice::Priority);
    let after = Duration::ZERO;
    take(&mut *consumer, |claim| {
        let reason = "first";
        let retry = Settlement::Retry { after, reason };
        claim.settle(retry).expect("it is retried");
    });
    take(&mut *consumer, |claim| {
        let reason = "second";
        claim
            .settle(Settlement::Dead { reason })
            .expect("it is dead");
    });
    let (ended, what) = told.recv_timeout(PATIENCE).expect("its end is told");
    let expected = format!(
        "{QUEUE} kind (Some([117]), Some([102]), Some([107]), Some([0, 0, 0, 0, 0, 0, 0, 1])) dead: second"
    );
    assert_eq!((ended, what), (number, expected));
    let letters = queue.dead_letters().expect("letters");
    let [letter] = &letters[..] else {
        panic!("not one letter: {letters:?}");
    };
    assert_eq!((letter.number, letter.kind.as_str()), (number, "kind"));
    assert_eq!((&letter.payload[..], letter.attempts), (&b"job"[..], 2));
    assert_eq!(letter.reasons.last().map(String::as_str), Some("second"));
    assert_eq!(letter.flow.as_deref(), Some(&b"f"[..]));
    let key = letter.headers.iter().find(|(key, _)| key == KEY_HEADER);
    assert_eq!(key.map(|(_, value)| &value[..]), Some(&b"k"[..]));
    let same = queue.dead_letter(letter.letter).expect("a look at it");
    assert_eq!(same.as_ref(), Some(letter));
    let again = queue.replay(letter.letter).ok().flatten();
    assert!(again.is_some_and(|again| again != number));
    assert_eq!(queue.replay(letter.letter).ok(), Some(None));
    take(&mut *consumer, |claim| {
        assert_eq!((claim.payload(), claim.attempt()), (&b"job"[..], 1));
        assert_eq!(claim.header(UNIQUE_HEADER), Some(&b"u"[..]));
        assert_eq!(claim.header(EXPIRES_HEADER), None);
        let reason = "again";
        claim
            .settle(Settlement::Dead { reason })
            .expect("it is dead");
    });
    let letters = queue.dead_letters().expect("letters");
    assert_eq!(letters.len(), 1);
    assert_eq!(queue.purge(letters[0].letter).ok(), Some(true));
    assert_eq!(queue.purge(letters[0].letter).ok(), Some(false));
    assert_eq!(queue.dead_letter(letters[0].letter).ok(), Some(None));
    assert!(queue.dead_letters().expect("letters").is_empty());
}

pub(super) fn cancelled_jobs(backend: &dyn Backend) {
    let told = told(backend);
    let queue = backend.queue(QUEUE).expect("a queue");
    let waiting = publish(backend, QUEUE, b"waits");
    assert_eq!(queue.cancel(waiting).ok(), Some(Cancelled::Waiting));
    assert_eq!(queue.contains(waiting).ok(), Some(false));
    assert_eq!(queue.cancel(waiting).ok(), Some(Cancelled::Gone));
    let running = publish(backend, QUEUE, b"runs");
    let mut consumer = consumer(backend, &[QUEUE], Choice::Priority);
    take(&mut *consumer, |claim| {
        assert_eq!(claim.number(), running, "a cancelled job comes");
        assert_eq!(queue.cancel(running).ok(), Some(Cancelled::Running));
        assert!(claim.is_cancelled());
        let retry = Settlement::Retry {
            after: Duration::ZERO,
            reason: "late",
        };
        let _ = claim.settle(retry);
    });
    assert!(nothing_comes(&mut *consumer), "a cancelled job comes back");
    for number in [waiting, running] {
        let (ended, what) = told.recv_timeout(PATIENCE).expect("its end is told");
        assert_eq!(
            (ended, what),
            (
                number,
                format!("{QUEUE} kind (None, None, None, None) cancelled")
            )
        );
    }
    assert!(told.try_recv().is_err(), "an end was told twice");
}

pub(super) fn letters(backend: &dyn Backend) {
    let queue = backend.queue(QUEUE).expect("a queue");
    let mut consumer = consumer(backend, &[QUEUE], Choice::Priority);
    for payload in [b"0", b"1", b"2", b"3"] {
        publish(backend, QUEUE, payload);
        take(&mut *consumer, |claim| {
            let dead = claim.settle(Settlement::Dead { reason: "broken" });
            dead.expect("it is dead");
        });
    }
    let letters = queue.dead_letters().expect("letters");
    let payloads = letters.iter().map(|letter| letter.payload[0]);
    assert_eq!(payloads.collect::<Vec<_>>(), b"0123", "oldest first");
    let numbers: Vec<_> = letters.iter().map(|letter| letter.letter).collect();
    assert!(numbers.is_sorted_by(|one, other| one < other));
    let after = |after, most: usize| {
        let mut seen = Vec::new();
        let walked = queue.each_dead_letter(after, &mut |letter| {
            seen.push(letter.letter);
            seen.len() < most
        });
        walked.expect("a walk");
        seen
    };
    assert_eq!(after(None, 9), numbers);
    assert_eq!(after(None, 2), numbers[..2]);
    assert_eq!(after(Some(numbers[1]), 9), numbers[2..]);
    let none = numbers[3] + 1000;
    let replayed = queue.replay_all(&[numbers[0], none]).expect("replayed");
    assert_eq!(replayed.len(), 1);
    take(&mut *consumer, |claim| {
        assert_eq!((claim.number(), claim.payload()), (replayed[0], &b"0"[..]));
        done(claim);
    });
    let purged = queue.purge_all(&[numbers[1], numbers[2], none]);
    assert_eq!(purged.expect("purged"), 2);
    assert_eq!(after(None, 9), numbers[3..]);
    assert_eq!(queue.stats().expect("figures").dead, 1);
}

/// A cancelled job ends as that, however its attempt ends but by its completion.
pub(super) fn cancelled_while_they_run(backend: &dyn Backend) {
    type Ends<'a> = dyn Fn(&mut dyn Claim) + 'a;
    let told = told(backend);
    let queue = backend.queue(QUEUE).expect("a queue");
    let mut consumer = consumer(backend, &[QUEUE], Choice::Priority);
    let (after, reason) = (Duration::ZERO, "late");
    let ends: [&Ends<'_>; 5] = [
        &|claim| _ = claim.settle(Settlement::Snooze { after }),
        &|claim| _ = claim.settle(Settlement::Dead { reason }),
        &|claim| _ = claim.settle(Settlement::Retry { after, reason }),
        &|claim| drop(claim.hold()),
        &|_| {},
    ];
    for (at, end) in ends.iter().enumerate() {
        let number = publish(backend, QUEUE, b"job");
        take(&mut *consumer, |claim| {
            assert!(!claim.is_cancelled());
            for _ in 0..2 {
                assert_eq!(queue.cancel(number).ok(), Some(Cancelled::Running));
            }
            assert!(claim.is_cancelled());
            assert!(told.try_recv().is_err(), "told before its handler ends");
            end(claim);
        });
        assert!(nothing_comes(&mut *consumer), "end {at}: it comes back");
        let (ended, what) = told.recv_timeout(PATIENCE).expect("its end is told");
        assert!(
            ended == number && what.ends_with("cancelled"),
            "end {at}: {what}"
        );
        assert_eq!(queue.contains(number).ok(), Some(false));
        assert_eq!(queue.cancel(number).ok(), Some(Cancelled::Gone));
    }
    assert!(queue.dead_letters().expect("letters").is_empty());
    assert!(told.try_recv().is_err(), "an end was told twice");
}

pub(super) fn cancelled_while_they_wait(backend: &dyn Backend) {
    let told = told(backend);
    let queue = backend.queue(QUEUE).expect("a queue");
    let due = Due::After(PATIENCE);
    let late = queue.publish(&NewJob {
        due,
        ..job(b"late")
    });
    let late = late.expect("room for a job");
    assert_eq!(queue.cancel(late).ok(), Some(Cancelled::Waiting));
    let (ended, _) = told.recv_timeout(PATIENCE).expect("its end is told");
    assert_eq!(ended, late);
    let number = publish(backend, QUEUE, b"job");
    let mut consumer = consumer(backend, &[QUEUE], Choice::Priority);
    let Some(held) = take(&mut *consumer, |claim| claim.hold()) else {
        return;
    };
    let cancelled = queue.cancel(number).expect("cancelled");
    assert_ne!(cancelled, Cancelled::Gone, "a job that is held is there");
    drop(held);
    assert!(nothing_comes(&mut *consumer), "a cancelled job comes back");
    let (ended, _) = told.recv_timeout(PATIENCE).expect("its end is told");
    assert_eq!(ended, number);
    assert_eq!(queue.contains(number).ok(), Some(false));
    assert!(told.try_recv().is_err(), "an end was told twice");
}

/// Who is told of an end may use the backend.
pub(super) fn who_is_told_calls_back(backend: &dyn Backend) {
    type Kept = Arc<Mutex<Option<Box<dyn Queue>>>>;
    let kept = Kept::default();
    let (tells, told) = mpsc::channel();
    let queue = Arc::clone(&kept);
    backend.on_end(Box::new(move |ended| {
        let queue = queue.lock().expect("no panic");
        if let Some(queue) = &*queue {
            let follows = queue.publish(&job(b"follows"));
            let looked = queue.contains(ended.number);
            let _ = tells.send((looked.is_ok(), follows.is_ok()));
        }
    }));
    *kept.lock().expect("no panic") = backend.queue(QUEUE).ok();
    let waiting = publish(backend, QUEUE, b"waits");
    let queue = backend.queue(QUEUE).expect("a queue");
    assert_eq!(queue.cancel(waiting).ok(), Some(Cancelled::Waiting));
    let mut consumer = consumer(backend, &[QUEUE], Choice::Priority);
    take(&mut *consumer, |claim| {
        assert_eq!(claim.payload(), b"follows");
        let reason = "broken";
        let _ = claim.settle(Settlement::Dead { reason });
    });
    take(&mut *consumer, |claim| {
        assert_eq!(claim.payload(), b"follows");
        done(claim);
    });
    for _ in 0..2 {
        let told = told.recv_timeout(PATIENCE).expect("its end is told");
        assert_eq!(told, (true, true), "a call back fails");
    }
    // The backend does not keep a queue of its own alive.
    kept.lock().expect("no panic").take();
}

/// The handler of a cancelled job that completes it is not too late.
pub(super) fn completed_after_it_was_cancelled(backend: &dyn Backend) {
    let told = told(backend);
    let queue = backend.queue(QUEUE).expect("a queue");
    let mut consumer = consumer(backend, &[QUEUE], Choice::Priority);
    let changes = Changes {
        keys: vec![KeyChange::Put(b"result", b"1", Keep::Forever)],
        ..Changes::default()
    };
    for changes in [None, Some(&changes)] {
        let number = publish(backend, QUEUE, b"job");
        take(&mut *consumer, |claim| {
            assert_eq!(queue.cancel(number).ok(), Some(Cancelled::Running));
            let completed = claim.settle(Settlement::Done(changes));
            completed.expect("it is done");
        });
        assert!(nothing_comes(&mut *consumer), "a cancelled job comes back");
        assert_eq!(queue.contains(number).ok(), Some(false));
    }
    assert!(backend.get(b"result").expect("a look").is_some());
    assert_eq!(queue.stats().expect("figures").completed, 2);
    assert!(told.try_recv().is_err(), "a completion was told");
}
