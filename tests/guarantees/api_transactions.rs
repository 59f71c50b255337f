//! Tests of transactions: a job's completion, the jobs that follow from it and keys, all or nothing.

use std::fs;
use std::path::Path;
use std::time::Duration;

use logmill::{
    Builder, Durability, EnqueueError, EnqueueOptions, Failure, Keep, OpenError, Queue, Queues,
    RetryPolicy, TransactionError,
};

use crate::support::*;

const DAY: Duration = Duration::from_secs(86_400);

fn tree(dir: &Path) -> Queues {
    Queues::options(dir)
        .state_segment_size(SEGMENT)
        .open()
        .unwrap()
}

fn small(queues: &Queues, name: &str) -> Builder {
    queues
        .builder(name)
        .stripes(1)
        .segment_size(SEGMENT)
        .retry(RetryPolicy::fixed(Duration::ZERO))
}

fn open_in(queues: &Queues, name: &str) -> Queue {
    open(small(queues, name))
}

#[test]
fn a_job_is_done_and_what_follows_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let queues = tree(dir.path());
    let (orders, mails) = (open_in(&queues, "orders"), open_in(&queues, "mails"));
    orders.enqueue(b"order").unwrap();
    let consumer = orders.consumer();
    let job = consumer.next_timeout(PATIENCE).unwrap();
    let mut transaction = queues.transaction();
    let named = EnqueueOptions::new()
        .name("mail")
        .headers(&[("tenant", b"acme")]);
    transaction
        .enqueue_with(&mails, b"mail", named)
        .enqueue(&orders, b"next")
        .put(b"order", b"done", Keep::For(DAY));
    let committed = job.ack_with(transaction).unwrap();

    let next = consumer.next_timeout(PATIENCE).unwrap();
    assert_eq!(
        (next.payload(), Some(next.id())),
        (&b"next"[..], committed.jobs[1])
    );
    next.ack();
    assert!(consumer.try_next().is_none());
    let consumer = mails.consumer();
    let mail = consumer.next_timeout(PATIENCE).unwrap();
    assert_eq!(
        (mail.payload(), Some(mail.id())),
        (&b"mail"[..], committed.jobs[0])
    );
    assert_eq!(mail.name(), Some("mail"));
    assert_eq!(mail.headers().get("tenant"), Some(&b"acme"[..]));
    mail.ack();
    let value = queues.keys().get(b"order").unwrap();
    assert_eq!(value.as_bytes(), b"done");
    assert!(value.expires_at().is_some());
    let stats = orders.stats();
    assert_eq!((stats.enqueued, stats.acked, stats.depth()), (2, 2, 0));
}

#[test]
fn after_a_close_or_a_kill_all_of_it_is_there_once() {
    let dir = tempfile::tempdir().unwrap();
    let queues = tree(dir.path());
    let (orders, mails) = (open_in(&queues, "orders"), open_in(&queues, "mails"));
    for number in 0..300 {
        orders.enqueue(&payload_of(number, 100)).unwrap();
    }
    let consumer = orders.consumer();
    for number in 0..200 {
        let job = consumer.next_timeout(PATIENCE).unwrap();
        let mut transaction = queues.transaction();
        transaction.enqueue(&mails, &payload_of(number, 100)).put(
            &number.to_le_bytes(),
            b"x",
            Keep::Forever,
        );
        if number % 50 == 0 {
            transaction.durability(Durability::Sync);
        }
        job.ack_with(transaction).unwrap();
    }
    drop(consumer);
    let check = |dir: &Path| {
        let queues = tree(dir);
        assert!(queues.recovery().is_clean(), "{:?}", queues.recovery());
        let (orders, mails) = (open_in(&queues, "orders"), open_in(&queues, "mails"));
        assert_eq!(drain_numbers(&orders), (200..300).collect::<Vec<_>>());
        assert_eq!(drain_numbers(&mails), (0..200).collect::<Vec<_>>());
        for number in 0..200u64 {
            assert!(queues.keys().get(&number.to_le_bytes()).is_some());
        }
    };
    let killed = crash_copy(dir.path());
    check(killed.path());
    drop((orders, mails, queues));
    check(dir.path());
}

#[test]
fn a_queue_that_is_opened_later_finds_what_happened_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let queues = tree(dir.path());
    let (orders, mails) = (open_in(&queues, "orders"), open_in(&queues, "mails"));
    for number in 0..20 {
        orders.enqueue(&payload_of(number, 100)).unwrap();
    }
    let consumer = orders.consumer();
    for number in 0..20 {
        let mut transaction = queues.transaction();
        transaction.enqueue(&mails, &payload_of(number, 100));
        let job = consumer.next_timeout(PATIENCE).unwrap();
        job.ack_with(transaction).unwrap();
    }
    let killed = crash_copy(dir.path());
    // The next process opens one queue, and the one after that the other one.
    let queues = tree(killed.path());
    assert_eq!(drain_numbers(&open_in(&queues, "mails")).len(), 20);
    drop(queues);
    let queues = tree(killed.path());
    assert!(drain_numbers(&open_in(&queues, "orders")).is_empty());
    assert!(drain_numbers(&open_in(&queues, "mails")).is_empty());
}

#[test]
fn a_transaction_that_is_refused_does_nothing_and_the_job_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let queues = tree(dir.path());
    let orders = open_in(&queues, "orders");
    let mails = open(small(&queues, "mails").max_depth(1));
    let other = open(builder(dir.path().join("other")));
    let keys = queues.keys();
    keys.put(b"taken", b"", Keep::Forever).unwrap();
    orders.enqueue(b"order").unwrap();
    let consumer = orders.consumer();
    let check = |add: &dyn Fn(&mut logmill::Transaction),
                 is_expected: &dyn Fn(&TransactionError) -> bool| {
        let job = consumer.next_timeout(PATIENCE).unwrap();
        let attempts = job.attempts();
        let mut transaction = queues.transaction();
        transaction.put(b"new", b"", Keep::Forever);
        add(&mut transaction);
        let error = job.ack_with(transaction).unwrap_err();
        assert!(is_expected(&error), "{error}");
        assert!(keys.get(b"new").is_none());
        assert_eq!(mails.stats().depth(), 0);
        attempts
    };
    check(
        &|transaction| {
            transaction.insert_new(b"taken", b"", Keep::Forever);
        },
        &|error| matches!(error, TransactionError::Conflict { key } if key == b"taken"),
    );
    check(
        &|transaction| {
            transaction.expect(b"taken", Some(7));
        },
        &|error| matches!(error, TransactionError::Conflict { .. }),
    );
    check(
        &|transaction| {
            transaction.enqueue(&mails, b"1").enqueue(&mails, b"2");
        },
        &|error| matches!(error, TransactionError::Enqueue(EnqueueError::Full { .. })),
    );
    check(
        &|transaction| {
            transaction.enqueue(&mails, &[0; 100_000]);
        },
        &|error| {
            matches!(
                error,
                TransactionError::Enqueue(EnqueueError::PayloadTooLarge { .. })
            )
        },
    );
    let attempts = check(
        &|transaction| {
            transaction.put(b"", b"", Keep::Forever);
        },
        &|error| matches!(error, TransactionError::InvalidKey { len: 0 }),
    );
    assert_eq!(attempts, 5);
    let mut transaction = queues.transaction();
    transaction.put(b"large", &[0; 100_000], Keep::Forever);
    let error = transaction.commit().unwrap_err();
    assert!(
        matches!(error, TransactionError::TooLarge { .. }),
        "{error}"
    );
    let mut transaction = queues.transaction();
    transaction.enqueue(&other, b"elsewhere");
    assert!(matches!(
        transaction.commit(),
        Err(TransactionError::OtherTree)
    ));
    other.enqueue(b"alone").unwrap();
    let stranger = other.consumer();
    let job = stranger.next_timeout(PATIENCE).unwrap();
    let error = job.ack_with(queues.transaction()).unwrap_err();
    assert!(matches!(error, TransactionError::OtherTree));
    let letters: Vec<_> = orders.dead_letters().iter().collect();
    assert_eq!(letters.len(), 1);
    let last = &letters[0].reasons()[4].reason;
    assert!(
        last.starts_with("its transaction was not committed"),
        "{last}"
    );
}

#[test]
fn a_worker_completes_a_job_with_the_transaction_that_its_handler_returns() {
    let dir = tempfile::tempdir().unwrap();
    let queues = tree(dir.path());
    let (orders, mails) = (open_in(&queues, "orders"), open_in(&queues, "mails"));
    for number in 0..50 {
        orders.enqueue(&payload_of(number, 100)).unwrap();
    }
    let workers = {
        let (queues, mails) = (queues.clone(), mails.clone());
        orders
            .workers(2)
            .run(move |job| {
                let mut transaction = queues.transaction();
                transaction.enqueue(&mails, job.payload());
                if job.attempts() == 1 && number_in(job.payload()) == 7 {
                    // Refused, so the job comes back.
                    transaction.expect(b"never", Some(1));
                }
                Ok::<_, Failure>(transaction)
            })
            .unwrap()
    };
    eventually("all orders are done", || orders.stats().depth() == 0);
    assert!(workers.shutdown(PATIENCE).finished_in_time);
    assert_eq!((orders.stats().acked, orders.stats().retried), (50, 1));
    let mut mails = drain_numbers(&mails);
    mails.sort_unstable();
    assert_eq!(mails, (0..50).collect::<Vec<_>>());
}

#[test]
fn a_delivery_that_has_timed_out_commits_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let queues = tree(dir.path());
    let orders = open(small(&queues, "orders").lease_timeout(Duration::from_millis(50)));
    orders.enqueue(b"order").unwrap();
    let consumer = orders.consumer();
    let late = consumer.next_timeout(PATIENCE).unwrap();
    let again = orders.consumer();
    let current = again.next_timeout(PATIENCE).unwrap();
    let mut transaction = queues.transaction();
    transaction.put(b"by", b"late", Keep::Forever);
    assert!(matches!(
        late.ack_with(transaction),
        Err(TransactionError::LeaseLost)
    ));
    assert!(queues.keys().get(b"by").is_none());
    let mut transaction = queues.transaction();
    transaction.put(b"by", b"current", Keep::Forever);
    if current.ack_with(transaction).is_ok() {
        assert_eq!(queues.keys().get(b"by").unwrap().as_bytes(), b"current");
        assert_eq!(orders.stats().depth(), 0);
    }
}

#[test]
fn keys_are_replaced_removed_and_expire_and_their_space_is_freed() {
    let dir = tempfile::tempdir().unwrap();
    let queues = tree(dir.path());
    let _mails = open_in(&queues, "mails");
    let keys = queues.keys();
    keys.put(b"stays", b"stays", Keep::Forever).unwrap();
    let version = keys.get(b"stays").unwrap().version();
    for round in 0..200u64 {
        for key in 0..50u64 {
            keys.put(&key.to_le_bytes(), &round.to_le_bytes(), Keep::Forever)
                .unwrap();
        }
    }
    keys.remove(&7u64.to_le_bytes()).unwrap();
    keys.put(b"brief", b"", Keep::For(Duration::from_millis(1)))
        .unwrap();
    std::thread::sleep(Duration::from_millis(5));
    let check = |queues: &Queues| {
        let keys = queues.keys();
        for key in 0..50u64 {
            let value = keys.get(&key.to_le_bytes());
            match key {
                7 => assert!(value.is_none()),
                _ => assert_eq!(value.unwrap().as_bytes(), 199u64.to_le_bytes()),
            }
        }
        assert!(keys.get(b"brief").is_none());
        let stays = keys.get(b"stays").unwrap();
        assert_eq!(
            (stays.as_bytes(), stays.version()),
            (&b"stays"[..], version)
        );
    };
    check(&queues);
    // 10,000 values of 80 bytes were written.
    eventually("the space of replaced values is freed", || {
        let segments = segment_files(&dir.path().join("state"));
        segments.len() <= 8
    });
    check(&queues);
    let killed = crash_copy(dir.path());
    check(&tree(killed.path()));
    drop((_mails, keys, queues));
    let queues = tree(dir.path());
    assert!(queues.recovery().is_clean());
    check(&queues);
    let mut transaction = queues.transaction();
    transaction
        .expect(b"stays", Some(version))
        .put(b"stays", b"changed", Keep::Forever);
    transaction.commit().unwrap();
    let mut transaction = queues.transaction();
    transaction
        .expect(b"stays", Some(version))
        .put(b"stays", b"changed twice", Keep::Forever);
    assert!(transaction.commit().is_err());
    assert_eq!(queues.keys().get(b"stays").unwrap().as_bytes(), b"changed");
}

#[test]
fn a_queue_of_a_tree_is_not_opened_alone_nor_the_other_way_round() {
    let dir = tempfile::tempdir().unwrap();
    let queues = tree(dir.path());
    drop(open_in(&queues, "mails"));
    drop(queues);
    let alone = dir.path().join("queues/mails");
    let error = Queue::builder(&alone).open().unwrap_err();
    assert!(matches!(error, OpenError::Misplaced { .. }), "{error}");
    drop(open(builder(dir.path().join("alone"))));
    fs::rename(dir.path().join("alone"), dir.path().join("queues/moved")).unwrap();
    let error = tree(dir.path()).queue("moved").unwrap_err();
    assert!(matches!(error, OpenError::Misplaced { .. }), "{error}");
}

#[test]
fn a_job_of_a_full_queue_can_be_followed_by_one_in_the_same_queue() {
    let dir = tempfile::tempdir().unwrap();
    let queues = tree(dir.path());
    let orders = open(small(&queues, "orders").max_depth(2));
    orders.enqueue(b"1").unwrap();
    orders.enqueue(b"2").unwrap();
    let consumer = orders.consumer();
    for _ in 0..10 {
        let job = consumer.next_timeout(PATIENCE).unwrap();
        let mut transaction = queues.transaction();
        transaction.enqueue(&orders, job.payload());
        job.ack_with(transaction).unwrap();
        assert!(matches!(
            orders.enqueue(b"3"),
            Err(EnqueueError::Full { .. })
        ));
    }
    let job = consumer.next_timeout(PATIENCE).unwrap();
    let mut transaction = queues.transaction();
    transaction.enqueue(&orders, b"3").enqueue(&orders, b"4");
    assert!(job.ack_with(transaction).is_err());
    let job = consumer.next_timeout(PATIENCE).unwrap();
    job.ack_with(queues.transaction()).unwrap();
    orders.enqueue(b"3").unwrap();
    assert_eq!(orders.stats().depth(), 2);
}
