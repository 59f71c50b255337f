//! `AsyncConsumer`: waiting, being woken, and giving up.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_lite::StreamExt;
use logmill::{AsyncConsumer, EnqueueOptions, Failure, Job, Queue, RetryPolicy};

use super::executors::{ALL, Executor, Task, Wakes, poll_once};
use super::{LONG, queue, queue_with, until};

/// A task that acks jobs until the queue is closed, and closes it itself after the last one.
fn acker(queue: &Queue, last: usize, acked: &Arc<AtomicUsize>) -> Task {
    let mut consumer = queue.async_consumer();
    let (queue, acked) = (queue.clone(), Arc::clone(acked));
    Box::pin(async move {
        while let Some(job) = consumer.next().await {
            job.ack();
            if acked.fetch_add(1, Ordering::Relaxed) + 1 == last {
                queue.clone().close().expect("closed");
            }
        }
    })
}

#[test]
fn tasks_take_all_jobs_and_end_when_the_queue_is_closed_on_any_executor() {
    const JOBS: usize = 2000;
    for executor in ALL {
        let (queue, _dir) = queue();
        let acked = Arc::<AtomicUsize>::default();
        let tasks = (0..4).map(|_| acker(&queue, JOBS, &acked)).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for job in 0..JOBS {
                    queue.enqueue(&job.to_le_bytes()).expect("enqueued");
                    if job % 50 == 0 {
                        // Lets the tasks fall asleep now and then.
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
            });
            executor.run(tasks);
        });
        assert_eq!(queue.stats().acked as usize, JOBS, "{executor:?}");
    }
}

#[test]
fn tasks_and_threads_share_the_jobs() {
    const JOBS: usize = 2000;
    let (queue, _dir) = queue();
    let acked = Arc::<AtomicUsize>::default();
    let tasks = (0..2).map(|_| acker(&queue, usize::MAX, &acked)).collect();
    let workers = queue
        .workers(2)
        .run(|_: &Job<'_>| Ok::<(), Failure>(()))
        .expect("started");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..JOBS {
                queue.enqueue(b"job").expect("enqueued");
            }
            until("all acked", || queue.stats().acked as usize == JOBS);
            queue.clone().close().expect("closed");
        });
        Executor::Tokio.run(tasks);
    });
    assert!(workers.shutdown(LONG).finished_in_time);
}

#[test]
fn a_task_is_woken_for_delayed_jobs_and_retries() {
    let policy = RetryPolicy::fixed(Duration::from_millis(20));
    let (queue, _dir) = queue_with(|builder| builder.retry(policy));
    let options = EnqueueOptions::new().delay(Duration::from_millis(20));
    queue.enqueue_with(b"later", options).expect("enqueued");
    let mut consumer = queue.async_consumer();
    let attempts = futures_lite::future::block_on(async {
        let first = consumer.next().await.expect("open");
        let attempts = first.attempts();
        first.retry("once more");
        let second = consumer.next().await.expect("open");
        let attempts = (attempts, second.attempts());
        second.ack();
        attempts
    });
    assert_eq!(attempts, (1, 2));
}

#[test]
fn a_consumer_is_a_stream_that_ends_when_the_queue_is_closed() {
    let (queue, _dir) = queue();
    queue.enqueue_batch(&[b"1", b"2", b"3"]).expect("enqueued");
    let consumer = queue.async_consumer();
    let payloads = futures_lite::future::block_on(async {
        let taken = consumer.take(3).map(|job| {
            let payload = job.payload().to_vec();
            job.ack();
            payload
        });
        taken.collect::<Vec<_>>().await
    });
    assert_eq!(payloads, [b"1", b"2", b"3"]);
    let consumer = queue.async_consumer();
    queue.close().expect("closed");
    let rest = futures_lite::future::block_on(consumer.collect::<Vec<_>>());
    assert!(rest.is_empty());
}

#[test]
fn try_next_does_not_wait() {
    let (queue, _dir) = queue();
    let mut consumer = queue.async_consumer();
    assert!(consumer.try_next().is_none());
    queue.enqueue(b"job").expect("enqueued");
    consumer.try_next().expect("a job").ack();
    queue.enqueue(b"job").expect("enqueued");
    queue.close().expect("closed");
    assert!(consumer.try_next().is_none());
}

#[test]
fn a_future_that_is_dropped_after_it_was_woken_wakes_another_one() {
    let (queue, _dir) = queue();
    let (mut first, mut second) = (queue.async_consumer(), queue.async_consumer());
    let ((wakes, waker), (other_wakes, other_waker)) = (Wakes::new(), Wakes::new());
    let mut gives_up = Box::pin(first.next());
    let mut waits = Box::pin(second.next());
    let mut context = Context::from_waker(&waker);
    assert!(gives_up.as_mut().poll(&mut context).is_pending());
    let mut context = Context::from_waker(&other_waker);
    assert!(waits.as_mut().poll(&mut context).is_pending());
    queue.enqueue(b"job").expect("enqueued");
    assert_eq!((wakes.so_far(), other_wakes.so_far()), (1, 0));
    drop(gives_up);
    assert_eq!((wakes.so_far(), other_wakes.so_far()), (1, 1));
    let Poll::Ready(Some(job)) = waits.as_mut().poll(&mut context) else {
        panic!("no job");
    };
    job.ack();
}

#[test]
fn a_future_that_is_dropped_after_it_was_woken_wakes_a_thread() {
    let (queue, _dir) = queue();
    let mut consumer = queue.async_consumer();
    let (_, waker) = Wakes::new();
    for _ in 0..100 {
        let mut gives_up = Box::pin(consumer.next());
        let polled = gives_up.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
        queue.enqueue(b"job").expect("enqueued");
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let consumer = queue.consumer();
                consumer.next_timeout(LONG).expect("a job").ack();
            });
            drop(gives_up);
            thread.join().expect("no panic");
        });
    }
}

#[test]
fn a_stream_that_is_dropped_while_it_waits_passes_its_wake_up_and_its_jobs_on() {
    let (queue, _dir) = queue();
    let (mut first, mut second) = (queue.async_consumer(), queue.async_consumer());
    let ((_, waker), (wakes, other_waker)) = (Wakes::new(), Wakes::new());
    queue.enqueue_batch(&[b"1", b"2", b"3"]).expect("enqueued");
    let Poll::Ready(Some(job)) = poll_once(first.next(), &waker) else {
        panic!("no job");
    };
    // The first one has claimed the others, too.
    let Poll::Ready(Some(stolen)) = poll_once(pinned(&mut second), &other_waker) else {
        panic!("nothing stolen");
    };
    drop(stolen);
    job.ack();
    while let Poll::Ready(Some(job)) = poll_once(pinned(&mut second), &other_waker) {
        job.ack();
    }
    assert_eq!(queue.stats().acked, 3);
    assert!(poll_once(pinned(&mut first), &waker).is_pending());
    assert!(poll_once(pinned(&mut second), &other_waker).is_pending());
    let before = wakes.so_far();
    queue.enqueue(b"4").expect("enqueued");
    drop(first);
    assert_eq!(wakes.so_far(), before + 1);
    let polled = poll_once(pinned(&mut second), &other_waker);
    let Poll::Ready(Some(job)) = polled else {
        panic!("no job");
    };
    job.ack();
}

/// The next item of a consumer as a stream, which stays registered when this is dropped.
fn pinned(consumer: &mut AsyncConsumer) -> impl Future<Output = Option<logmill::OwnedJob>> + '_ {
    StreamExt::next(consumer)
}

#[test]
fn timeouts_lose_no_jobs_and_no_wake_ups() {
    const JOBS: usize = 1000;
    let (queue, _dir) = queue();
    let acked = Arc::<AtomicUsize>::default();
    let impatient = |queue: &Queue| -> Task {
        let mut consumer = queue.async_consumer();
        let acked = Arc::clone(&acked);
        Box::pin(async move {
            while acked.load(Ordering::Relaxed) < JOBS {
                let next = tokio::time::timeout(Duration::from_micros(50), consumer.next());
                if let Ok(Some(job)) = next.await {
                    job.ack();
                    acked.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    };
    let tasks = (0..8).map(|_| impatient(&queue)).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..JOBS {
                queue.enqueue(b"job").expect("enqueued");
                std::thread::sleep(Duration::from_micros(20));
            }
        });
        Executor::Tokio.run(tasks);
    });
    assert_eq!(queue.stats().acked as usize, JOBS);
}

#[test]
fn a_thousand_waiting_tasks_are_woken_one_for_each_job_and_all_by_a_close() {
    let (queue, _dir) = queue();
    let mut consumers: Vec<_> = (0..1000).map(|_| queue.async_consumer()).collect();
    let mut waiting: Vec<_> = consumers
        .iter_mut()
        .map(|consumer| {
            let (wakes, waker) = Wakes::new();
            let mut next = Box::pin(consumer.next());
            let polled = next.as_mut().poll(&mut Context::from_waker(&waker));
            assert!(polled.is_pending());
            (next, wakes)
        })
        .collect();
    for _ in 0..10 {
        queue.enqueue(b"job").expect("enqueued");
    }
    let woken = waiting.iter().filter(|(_, wakes)| wakes.so_far() > 0);
    assert_eq!(woken.count(), 10);
    queue.close().expect("closed");
    for (next, wakes) in &mut waiting {
        assert_eq!(wakes.so_far(), 1);
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(matches!(
            next.as_mut().poll(&mut context),
            Poll::Ready(None)
        ));
    }
}

#[test]
fn a_waker_may_use_the_queue_and_drop_consumers() {
    struct Meddles(Queue, std::sync::Mutex<Option<AsyncConsumer>>);
    impl std::task::Wake for Meddles {
        fn wake(self: Arc<Self>) {
            let consumer = self.0.consumer();
            if let Some(job) = consumer.try_next() {
                job.ack();
            }
            self.1.lock().unwrap().take();
            self.0.flush().expect("flushed");
        }
    }
    let (queue, _dir) = queue();
    let mut consumer = queue.async_consumer();
    let other = std::sync::Mutex::new(Some(queue.async_consumer()));
    let waker = std::task::Waker::from(Arc::new(Meddles(queue.clone(), other)));
    let mut next = pin!(consumer.next());
    let mut context = Context::from_waker(&waker);
    assert!(next.as_mut().poll(&mut context).is_pending());
    queue.enqueue(b"job").expect("enqueued");
    assert_eq!(queue.stats().acked, 1);
    assert!(Pin::new(&mut next).poll(&mut context).is_pending());
}

#[test]
fn an_executor_that_is_dropped_with_its_tasks_leaves_the_queue_to_others() {
    let (queue, dir) = queue();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    for _ in 0..3 {
        let mut consumer = queue.async_consumer();
        runtime.spawn(async move { while consumer.next().await.is_some() {} });
    }
    runtime.block_on(tokio::task::yield_now());
    // Two of the tasks are woken, and never polled again.
    queue.enqueue_batch(&[b"1", b"2"]).expect("enqueued");
    let mut consumer = queue.async_consumer();
    drop(runtime);
    for _ in 0..2 {
        consumer.try_next().expect("a job").ack();
    }
    drop((consumer, queue));
    let (_, report) = Queue::builder(dir.path())
        .open()
        .expect("closed, and opened");
    assert_eq!(report.jobs, 0);
}
