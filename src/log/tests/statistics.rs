//! Tests of the statistics of a log, and of producers, consumers and maintenance working at the
//! same time.

use super::*;

#[test]
fn statistics_add_up_from_append_to_retirement() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    let check = |stripe: &Log, live, unclaimed, appended, done, segments| {
        let stats = stripe.stats();
        assert_eq!(
            (
                stats.live,
                stats.unclaimed,
                stats.appended,
                stats.done,
                stats.segments
            ),
            (live, unclaimed, appended, done, segments)
        );
    };
    check(&stripe, 0, 0, 0, 0, 1);
    fill_segments(&stripe, 2);
    check(&stripe, 30, 30, 30, 0, 2);
    let mut leases = Vec::new();
    claim(&stripe, 10, usize::MAX, &mut leases);
    check(&stripe, 30, 20, 30, 0, 2);
    leases.into_iter().for_each(|lease| _ = lease.ack());
    check(&stripe, 20, 20, 30, 10, 2);
    append(&stripe, b"");
    let leases = claim_all(&stripe);
    check(&stripe, 21, 0, 31, 10, 3);
    leases.into_iter().for_each(|lease| _ = lease.ack());
    check(&stripe, 0, 0, 31, 31, 3);
    stripe.reclaim().unwrap();
    check(&stripe, 0, 0, 31, 31, 1);
}

#[test]
fn statistics_after_reopening_count_what_is_left_and_what_is_done_since() {
    let fixture = Fixture::new();
    let appended = {
        let stripe = fixture.open();
        let appended = fill_segments(&stripe, 2);
        let mut leases = claim_all(&stripe);
        // Acks three jobs of the first segment and two of the second.
        leases.drain(15..17).for_each(|lease| _ = lease.ack());
        leases.drain(0..3).for_each(|lease| _ = lease.ack());
        appended
    };
    let stripe = fixture.open();
    let counts = |stripe: &Log| {
        let stats = stripe.stats();
        (stats.live, stats.unclaimed, stats.appended, stats.done)
    };
    assert_eq!(counts(&stripe), (25, 25, 0, 0));
    // A job that no consumer has claimed yet is marked done.
    assert!(stripe.mark_done(appended[20]).unwrap());
    assert!(!stripe.mark_done(appended[20]).unwrap());
    assert_eq!(counts(&stripe), (24, 24, 0, 0));
    let mut leases = Vec::new();
    // Of the five records that this claims, three are done already.
    claim(&stripe, 5, usize::MAX, &mut leases);
    assert_eq!(counts(&stripe), (24, 22, 0, 0));
    leases.into_iter().for_each(|lease| _ = lease.ack());
    assert_eq!(counts(&stripe), (22, 22, 0, 2));
    let leases = claim_all(&stripe);
    assert_eq!(leases.len(), 22);
    assert_eq!(counts(&stripe), (22, 0, 0, 2));
    leases.into_iter().for_each(|lease| _ = lease.ack());
    stripe.reclaim().unwrap();
    assert_eq!(counts(&stripe), (0, 0, 0, 24));
}

#[test]
fn only_records_that_are_there_can_be_marked_done() {
    let fixture = Fixture::new();
    let stripe = fixture.open();
    let last = append(&stripe, b"job");
    for wrong in [
        last.plus(1),
        last.plus(600),
        origin().plus_wide(1 << 40),
        Sequence::first_of_stripe(1),
        Sequence::first_of_stripe(3),
        Sequence::new(u64::MAX),
        Sequence::new(0),
    ] {
        assert!(!stripe.mark_done(wrong).unwrap(), "{wrong}");
        assert!(stripe.pin_containing(wrong).unwrap().is_none() || wrong > last);
    }
    assert!(stripe.mark_done(last).unwrap());
    assert_eq!(stripe.stats().live, 0);
}

#[test]
fn the_oldest_job_is_found_without_a_scan() {
    let fixture = Fixture::new();
    {
        let stripe = fixture.open();
        for at in 0..40 {
            let one = NewRecord {
                enqueued_at: Timestamp::from_nanos(100 + at),
                ..record(&LARGE)
            };
            stripe.append_shared(&one).unwrap();
        }
        stripe.close();
        stripe.seal(true).unwrap();
        assert_eq!(
            stripe.oldest_enqueued_at(&|_| false),
            Some(Timestamp::from_nanos(100))
        );
    }
    let stripe = fixture.open();
    assert_eq!(
        stripe.oldest_enqueued_at(&|_| false),
        Some(Timestamp::from_nanos(100))
    );
    let unscanned = |stripe: &Log| -> usize {
        let segments = stripe.segments.read();
        segments
            .iter()
            .filter(|segment| segment.is_unscanned())
            .count()
    };
    assert_eq!(unscanned(&stripe), 3);
    let mut leases = claim_all(&stripe);
    leases.drain(..20).for_each(|lease| _ = lease.ack());
    assert_eq!(
        stripe.oldest_enqueued_at(&|_| false),
        Some(Timestamp::from_nanos(120))
    );
    leases.into_iter().for_each(|lease| _ = lease.ack());
    assert_eq!(stripe.oldest_enqueued_at(&|_| false), None);
}

#[test]
fn producers_consumers_and_maintenance_together_lose_nothing_and_deliver_nothing_twice() {
    const PRODUCERS: u64 = 3;
    const JOBS: u64 = 3000;
    let fixture = Fixture::new();
    let stripe = fixture.open();
    let seen = Mutex::new(vec![0u8; (PRODUCERS * JOBS) as usize]);
    let acked = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for producer in 0..PRODUCERS {
            let stripe = &stripe;
            scope.spawn(move || {
                let mut cached = stripe.active();
                for job in 0..JOBS {
                    let payload = (producer * JOBS + job).to_le_bytes();
                    stripe.append(&mut cached, &record(&payload)).unwrap();
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                let mut leases = Vec::new();
                while acked.load(Ordering::Relaxed) < PRODUCERS * JOBS {
                    if let Claim::Taken { .. } = claim(&stripe, 64, 4096, &mut leases) {
                        for lease in leases.drain(..) {
                            let payload = lease.record().payload().try_into().unwrap();
                            seen.lock()[u64::from_le_bytes(payload) as usize] += 1;
                            lease.ack();
                            acked.fetch_add(1, Ordering::Relaxed);
                        }
                    } else {
                        std::thread::yield_now();
                    }
                }
            });
        }
        scope.spawn(|| {
            while acked.load(Ordering::Relaxed) < PRODUCERS * JOBS {
                stripe.prepare();
                stripe.reclaim().unwrap();
                stripe.seal(false).unwrap();
                let stats = stripe.stats();
                assert!(stats.unclaimed <= stats.live && stats.done <= stats.appended);
                assert_eq!(stats.live, stats.appended - stats.done);
            }
        });
    });
    assert!(seen.lock().iter().all(|&times| times == 1));
    stripe.reclaim().unwrap();
    let stats = stripe.stats();
    assert_eq!((stats.live, stats.segments), (0, 1));
    assert_eq!(
        (stats.appended, stats.done),
        (PRODUCERS * JOBS, PRODUCERS * JOBS)
    );
}
