//! Enqueues in tasks: waiting for room and for flushes without a thread.

use std::pin::pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use logmill::{Durability, EnqueueError, EnqueueOptions, Failure, Job};

use super::executors::{ALL, Task, Wakes, poll_once};
use super::{LONG, queue, queue_with, until};

fn sync() -> EnqueueOptions<'static> {
    EnqueueOptions::new().durability(Durability::Sync)
}

fn waiting(wait: Duration) -> EnqueueOptions<'static> {
    EnqueueOptions::new().wait(wait)
}

#[test]
fn many_tasks_share_flushes_on_any_executor() {
    const TASKS: usize = 64;
    const JOBS: usize = 20;
    for executor in ALL {
        let (queue, dir) = queue();
        let tasks = (0..TASKS).map(|task| -> Task {
            let queue = queue.clone();
            Box::pin(async move {
                let mut producer = queue.producer();
                for job in 0..JOBS {
                    let enqueued = match task % 2 {
                        0 => queue.enqueue_async(b"job", sync()).await,
                        _ => producer.enqueue_async(b"job", sync()).await,
                    };
                    enqueued.unwrap_or_else(|error| panic!("{task}, {job}: {error}"));
                }
            })
        });
        executor.run(tasks.collect());
        queue.close().expect("closed");
        let (_, report) = logmill::Queue::builder(dir.path()).open().expect("opened");
        assert_eq!(report.jobs as usize, TASKS * JOBS, "{executor:?}");
    }
}

#[test]
fn an_enqueue_without_a_flush_needs_one_poll() {
    let (queue, _dir) = queue();
    let (_, waker) = Wakes::new();
    let interval = EnqueueOptions::new().durability(Durability::Interval(LONG));
    for options in [EnqueueOptions::new(), interval] {
        let polled = poll_once(queue.enqueue_async(b"job", options), &waker);
        assert!(matches!(polled, Poll::Ready(Ok(_))));
        let batch = [(b"one", options), (b"two", options)];
        let Poll::Ready(Ok(jobs)) = poll_once(queue.enqueue_batch_async(&batch), &waker) else {
            panic!("not enqueued");
        };
        assert_eq!(jobs.len(), 2);
    }
    assert_eq!(queue.stats().enqueued, 6);
}

#[test]
fn a_task_that_waits_for_room_is_woken_when_there_is_some() {
    let (queue, _dir) = queue_with(|builder| builder.max_depth(2));
    queue.enqueue_batch(&[b"1", b"2"]).expect("enqueued");
    let (wakes, waker) = Wakes::new();
    let mut context = Context::from_waker(&waker);
    let mut enqueue = Box::pin(queue.enqueue_async(b"3", waiting(LONG)));
    assert!(enqueue.as_mut().poll(&mut context).is_pending());
    queue.consumer().try_next().expect("a job").ack();
    assert!(wakes.so_far() > 0);
    assert!(matches!(
        enqueue.as_mut().poll(&mut context),
        Poll::Ready(Ok(_))
    ));
    assert_eq!(queue.stats().depth(), 2);
}

#[test]
fn a_wait_for_room_ends_at_its_deadline_without_the_timer_of_a_runtime() {
    for executor in ALL {
        let (queue, _dir) = queue_with(|builder| builder.max_depth(1));
        queue.enqueue(b"1").expect("enqueued");
        let task = |queue: logmill::Queue| -> Task {
            Box::pin(async move {
                let start = Instant::now();
                let wait = Duration::from_millis(50);
                let full = queue.enqueue_async(b"2", waiting(wait)).await;
                assert!(matches!(full, Err(EnqueueError::Full { .. })), "{full:?}");
                assert!(start.elapsed() >= wait);
                let batch = [(b"2", waiting(wait))];
                let full = queue.enqueue_batch_async(&batch).await;
                assert!(matches!(full, Err(EnqueueError::Full { .. })), "{full:?}");
                assert!(start.elapsed() >= 2 * wait);
            })
        };
        executor.run(vec![task(queue.clone()), task(queue.clone())]);
        assert_eq!(queue.stats().enqueued, 1);
    }
}

#[test]
fn tasks_that_wait_for_room_all_get_it_while_others_give_up() {
    const JOBS: u32 = 300;
    for executor in ALL {
        let (queue, _dir) = queue_with(|builder| builder.max_depth(3));
        let workers = queue
            .workers(1)
            .run(|_: &Job<'_>| Ok::<(), Failure>(()))
            .expect("started");
        let tasks = (0..10).map(|_| -> Task {
            let queue = queue.clone();
            Box::pin(async move {
                for _ in 0..JOBS / 10 {
                    let given_up = queue.enqueue_async(b"given up", waiting(LONG));
                    if futures_lite::future::poll_once(given_up).await.is_none() {
                        queue
                            .enqueue_async(b"job", waiting(LONG))
                            .await
                            .expect("room");
                    }
                }
            })
        });
        executor.run(tasks.collect());
        until("all acked", || queue.stats().acked == u64::from(JOBS));
        assert!(workers.shutdown(LONG).finished_in_time);
    }
}

#[test]
fn an_enqueue_that_is_dropped_while_it_waits_for_room_passes_its_wake_up_on() {
    let (queue, _dir) = queue_with(|builder| builder.max_depth(1));
    queue.enqueue(b"1").expect("enqueued");
    let (_, waker) = Wakes::new();
    let mut context = Context::from_waker(&waker);
    let mut gives_up = Box::pin(queue.enqueue_async(b"given up", waiting(LONG)));
    assert!(gives_up.as_mut().poll(&mut context).is_pending());
    let (wakes, other_waker) = Wakes::new();
    let mut waits = Box::pin(queue.enqueue_async(b"2", waiting(LONG)));
    let mut other_context = Context::from_waker(&other_waker);
    assert!(waits.as_mut().poll(&mut other_context).is_pending());
    queue.consumer().try_next().expect("a job").ack();
    drop(gives_up);
    assert!(wakes.so_far() > 0);
    assert!(matches!(
        waits.as_mut().poll(&mut other_context),
        Poll::Ready(Ok(_))
    ));
    let consumer = queue.consumer();
    let job = consumer.try_next().expect("a job");
    assert_eq!(job.payload(), b"2");
    job.ack();
}

#[test]
fn an_enqueue_that_is_dropped_while_it_waits_for_the_flush_has_enqueued() {
    let (queue, _dir) = queue();
    let (wakes, waker) = Wakes::new();
    for _ in 0..100 {
        let mut enqueue = pin!(queue.enqueue_async(b"job", sync()));
        let _ = enqueue.as_mut().poll(&mut Context::from_waker(&waker));
    }
    assert_eq!(queue.stats().enqueued, 100);
    queue.flush().expect("flushed");
    assert!(wakes.so_far() <= 100);
}

#[test]
fn a_close_ends_the_wait_for_room() {
    let (queue, _dir) = queue_with(|builder| builder.max_depth(1));
    queue.enqueue(b"1").expect("enqueued");
    let (wakes, waker) = Wakes::new();
    let mut context = Context::from_waker(&waker);
    let other = queue.clone();
    let mut enqueue = Box::pin(other.enqueue_async(b"2", waiting(Duration::MAX)));
    assert!(enqueue.as_mut().poll(&mut context).is_pending());
    queue.close().expect("closed");
    assert!(wakes.so_far() > 0);
    let polled = enqueue.as_mut().poll(&mut context);
    assert!(
        matches!(polled, Poll::Ready(Err(EnqueueError::Closed))),
        "{polled:?}"
    );
}

#[test]
fn a_handler_must_not_wait_for_ever_for_room_in_its_own_queue() {
    let (queue, _dir) = queue_with(|builder| builder.max_depth(1));
    let inner = queue.clone();
    let workers = queue
        .workers(1)
        .run(move |_: &Job<'_>| {
            let enqueue = inner.enqueue_async(b"2", waiting(Duration::MAX));
            let refused = futures_lite::future::block_on(enqueue);
            assert!(matches!(refused, Err(EnqueueError::WaitInHandler { .. })));
            Ok::<(), Failure>(())
        })
        .expect("started");
    queue.enqueue(b"1").expect("enqueued");
    until("acked", || queue.stats().acked == 1);
    assert_eq!(queue.stats().retried, 0);
    assert!(workers.shutdown(LONG).finished_in_time);
}

#[test]
fn invalid_options_and_payloads_are_refused() {
    let (queue, _dir) = queue();
    let (_, waker) = Wakes::new();
    let large = vec![0; queue.max_payload() + 1];
    let polled = poll_once(queue.enqueue_async(&large, sync()), &waker);
    let expected = |error: &EnqueueError| matches!(error, EnqueueError::PayloadTooLarge { .. });
    assert!(matches!(&polled, Poll::Ready(Err(error)) if expected(error)));
    let nameless = EnqueueOptions::new().name("");
    let polled = poll_once(queue.enqueue_async(b"job", nameless), &waker);
    assert!(matches!(
        polled,
        Poll::Ready(Err(EnqueueError::InvalidOption { .. }))
    ));
    assert!(queue.enqueue_ticketed(b"job", nameless).is_err());
    assert!(queue.enqueue_batch_ticketed(&[(&large, sync())]).is_err());
}

/// The name and the headers of each job that is left, in order; they are acked.
fn take_all(queue: &logmill::Queue) -> Vec<(String, usize, Vec<u8>)> {
    let consumer = queue.consumer();
    let mut taken = Vec::new();
    while let Some(job) = consumer.try_next() {
        let name = job.name().unwrap_or("-").to_owned();
        taken.push((name, job.headers().count(), job.payload().to_vec()));
        job.ack();
    }
    taken
}

#[test]
fn names_headers_and_expiry_are_those_of_other_enqueues() {
    let (queue, _dir) = queue();
    let headers = [("trace", &b"7"[..]), ("tenant", b"acme")];
    let named = sync().name("resize").headers(&headers);
    let expired = sync().expires_at(std::time::SystemTime::now());
    let mut producer = queue.producer();
    futures_lite::future::block_on(async {
        for options in [named, expired] {
            queue.enqueue_async(b"1", options).await.expect("enqueued");
            let enqueued = producer.enqueue_async(b"2", options).await;
            enqueued.expect("enqueued");
            let (_, ticket) = queue.enqueue_ticketed(b"3", options).expect("enqueued");
            ticket.await.expect("flushed");
            let (_, ticket) = producer.enqueue_ticketed(b"4", options).expect("enqueued");
            ticket.await.expect("flushed");
            let batch = [(b"5", options), (b"6", sync())];
            queue.enqueue_batch_async(&batch).await.expect("enqueued");
            let (_, ticket) = queue.enqueue_batch_ticketed(&batch).expect("enqueued");
            ticket.await.expect("flushed");
        }
    });
    let of_named = [b"1", b"2", b"3", b"4", b"5", b"6", b"5", b"6"];
    let of_expired = [b"6", b"6"];
    let expected: Vec<_> = of_named
        .into_iter()
        .chain(of_expired)
        .map(|payload| match payload {
            b"6" => ("-".to_owned(), 0, payload.to_vec()),
            _ => ("resize".to_owned(), 2, payload.to_vec()),
        })
        .collect();
    assert_eq!(take_all(&queue), expected);
    let stats = queue.stats();
    assert_eq!((stats.acked, stats.expired, stats.depth()), (10, 6, 0));
}

#[test]
fn a_batch_of_a_task_is_all_or_none() {
    let (queue, dir) = queue_with(|builder| builder.max_depth(3));
    let (_, waker) = Wakes::new();
    let of = |options: EnqueueOptions<'static>| [(b"1", options), (b"2", options)];
    let Poll::Ready(Ok(jobs)) = poll_once(
        queue.enqueue_batch_async(&of(EnqueueOptions::new())),
        &waker,
    ) else {
        panic!("not enqueued");
    };
    assert_eq!(jobs.len(), 2);
    // There is room for one: none is enqueued, whether it fails, waits and is dropped, or waits.
    let polled = poll_once(
        queue.enqueue_batch_async(&of(EnqueueOptions::new())),
        &waker,
    );
    assert!(matches!(
        polled,
        Poll::Ready(Err(EnqueueError::Full { .. }))
    ));
    assert!(queue.enqueue_batch_ticketed(&of(sync())).is_err());
    let waits = of(waiting(LONG));
    let polled = poll_once(queue.enqueue_batch_async(&waits), &waker);
    assert!(polled.is_pending());
    assert_eq!((queue.stats().enqueued, queue.stats().depth()), (2, 2));
    let mut context = Context::from_waker(&waker);
    let mut enqueue = Box::pin(queue.enqueue_batch_async(&waits));
    assert!(enqueue.as_mut().poll(&mut context).is_pending());
    queue.consumer().try_next().expect("a job").ack();
    assert!(matches!(
        enqueue.as_mut().poll(&mut context),
        Poll::Ready(Ok(_))
    ));
    drop(enqueue);
    // A batch with a job that cannot be enqueued, and one that can never be.
    let mut bad = of(sync()).to_vec();
    bad[1].1 = sync().name("");
    let polled = poll_once(queue.enqueue_batch_async(&bad), &waker);
    assert!(matches!(
        polled,
        Poll::Ready(Err(EnqueueError::InvalidOption { .. }))
    ));
    let four = [(b"1", sync()); 4];
    let polled = poll_once(queue.enqueue_batch_async(&four), &waker);
    assert!(matches!(
        polled,
        Poll::Ready(Err(EnqueueError::BatchTooLarge { .. }))
    ));
    let large = vec![0; queue.max_payload()];
    let large = vec![(&large[..], EnqueueOptions::new()); 9];
    assert!(matches!(
        queue.enqueue_batch_ticketed(&large),
        Err(EnqueueError::BatchTooLarge { .. })
    ));
    drop(queue);
    let (_, report) = logmill::Queue::builder(dir.path()).open().expect("opened");
    assert_eq!(report.jobs, 3);
}
