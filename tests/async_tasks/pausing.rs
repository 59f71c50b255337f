//! Pauses: a paused queue gives no jobs to tasks, and a resume wakes them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_lite::StreamExt;
use logmill::{AsyncConsumer, OwnedJob, Queue};

use super::executors::{ALL, Executor, Task, Wakes, poll_once};
use super::{queue, until};

fn poll(consumer: &mut AsyncConsumer) -> Poll<Option<OwnedJob>> {
    poll_once(consumer.next(), Waker::noop())
}

/// Takes a job that must be there, and acks it.
fn ack_one(consumer: &mut AsyncConsumer) {
    match poll(consumer) {
        Poll::Ready(Some(job)) => job.ack(),
        other => panic!("no job: {other:?}"),
    }
}

#[test]
fn a_paused_queue_gives_no_jobs_to_tasks() {
    let (queue, dir) = queue();
    queue.enqueue_batch(&[b"1", b"2", b"3"]).expect("enqueued");
    let mut consumer = queue.async_consumer();
    ack_one(&mut consumer);
    queue.pause().expect("paused");
    assert!(consumer.try_next().is_none());
    assert!(poll(&mut consumer).is_pending());
    assert!(poll_once(StreamExt::next(&mut consumer), Waker::noop()).is_pending());
    let stats = queue.stats();
    assert_eq!((stats.ready, stats.in_flight), (2, 0));
    queue.resume().expect("resumed");
    consumer.try_next().expect("a job").ack();
    queue.pause().expect("paused");
    drop((queue, consumer));
    // Also after a restart.
    let (queue, _) = Queue::builder(dir.path()).open().expect("opened");
    let mut consumer = queue.async_consumer();
    assert!(consumer.try_next().is_none() && poll(&mut consumer).is_pending());
    queue.resume().expect("resumed");
    ack_one(&mut consumer);
    assert_eq!(queue.stats().depth(), 0);
}

#[test]
fn jobs_that_come_during_a_pause_wake_nobody_and_a_resume_wakes_all() {
    let (queue, _dir) = queue();
    let (mut early, mut late) = (queue.async_consumer(), queue.async_consumer());
    let ((wakes, waker), (late_wakes, late_waker)) = (Wakes::new(), Wakes::new());
    let mut context = Context::from_waker(&waker);
    let mut next = Box::pin(early.next());
    assert!(next.as_mut().poll(&mut context).is_pending());
    // One waits already: it is woken to wait for the resume instead.
    queue.pause().expect("paused");
    assert_eq!(wakes.so_far(), 1);
    assert!(next.as_mut().poll(&mut context).is_pending());
    let mut late_context = Context::from_waker(&late_waker);
    let mut late_next = Box::pin(late.next());
    assert!(late_next.as_mut().poll(&mut late_context).is_pending());
    queue.enqueue_batch(&[b"1", b"2"]).expect("enqueued");
    assert_eq!((wakes.so_far(), late_wakes.so_far()), (1, 0));
    queue.resume().expect("resumed");
    assert_eq!((wakes.so_far(), late_wakes.so_far()), (2, 1));
    for (next, context) in [(&mut next, context), (&mut late_next, late_context)] {
        let mut context = context;
        match next.as_mut().poll(&mut context) {
            Poll::Ready(Some(job)) => job.ack(),
            other => panic!("no job: {other:?}"),
        }
    }
    assert_eq!(queue.stats().acked, 2);
}

#[test]
fn a_close_ends_the_wait_for_a_resume() {
    let (queue, _dir) = queue();
    queue.enqueue(b"job").expect("enqueued");
    queue.pause().expect("paused");
    let mut consumer = queue.async_consumer();
    let (wakes, waker) = Wakes::new();
    let mut context = Context::from_waker(&waker);
    let mut next = Box::pin(consumer.next());
    assert!(next.as_mut().poll(&mut context).is_pending());
    queue.close().expect("closed");
    assert_eq!(wakes.so_far(), 1);
    assert!(matches!(
        next.as_mut().poll(&mut context),
        Poll::Ready(None)
    ));
    drop(next);
    assert!(matches!(poll(&mut consumer), Poll::Ready(None)));
    assert!(consumer.try_next().is_none());
}

#[test]
fn a_future_that_is_dropped_during_a_pause_loses_nothing() {
    let (queue, _dir) = queue();
    let (mut first, mut second) = (queue.async_consumer(), queue.async_consumer());
    let ((wakes, waker), (other_wakes, other_waker)) = (Wakes::new(), Wakes::new());
    let mut context = Context::from_waker(&waker);
    let mut gives_up = Box::pin(first.next());
    assert!(gives_up.as_mut().poll(&mut context).is_pending());
    // Woken for a job, and then for the pause.
    queue.enqueue(b"1").expect("enqueued");
    queue.pause().expect("paused");
    assert!(gives_up.as_mut().poll(&mut context).is_pending());
    let mut other_context = Context::from_waker(&other_waker);
    let mut waits = Box::pin(second.next());
    assert!(waits.as_mut().poll(&mut other_context).is_pending());
    // One is dropped while it waits, another one after the resume has woken it.
    drop(gives_up);
    let before = wakes.so_far();
    let mut woken = Box::pin(first.next());
    assert!(woken.as_mut().poll(&mut context).is_pending());
    queue.resume().expect("resumed");
    assert_eq!((wakes.so_far(), other_wakes.so_far()), (before + 1, 1));
    drop(woken);
    drop(first);
    match waits.as_mut().poll(&mut other_context) {
        Poll::Ready(Some(job)) => job.ack(),
        other => panic!("no job: {other:?}"),
    }
    assert_eq!(queue.stats().depth(), 0);
}

#[test]
fn jobs_that_a_task_has_claimed_go_to_others_after_a_pause() {
    let (queue, _dir) = queue();
    queue.enqueue_batch(&[b"1", b"2", b"3"]).expect("enqueued");
    let mut consumer = queue.async_consumer();
    ack_one(&mut consumer);
    queue.pause().expect("paused");
    assert!(poll(&mut consumer).is_pending());
    drop(consumer);
    queue.resume().expect("resumed");
    let mut consumer = queue.async_consumer();
    ack_one(&mut consumer);
    ack_one(&mut consumer);
    assert_eq!(queue.stats().depth(), 0);
}

#[test]
fn tasks_take_all_jobs_whatever_the_pauses_on_any_executor() {
    const JOBS: usize = 600;
    for executor in ALL {
        let (queue, _dir) = queue();
        let acked = Arc::<AtomicUsize>::default();
        let task = |_| -> Task {
            let mut consumer = queue.async_consumer();
            let acked = Arc::clone(&acked);
            Box::pin(async move {
                while let Some(job) = consumer.next().await {
                    job.ack();
                    acked.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let tasks = (0..4).map(task).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for job in 0..JOBS {
                    match job % 20 {
                        5 => queue.pause().expect("paused"),
                        15 => queue.resume().expect("resumed"),
                        _ => {}
                    }
                    queue.enqueue(b"job").expect("enqueued");
                }
                until("all acked", || acked.load(Ordering::Relaxed) == JOBS);
                queue.clone().close().expect("closed");
            });
            executor.run(tasks);
        });
        assert_eq!(queue.stats().acked as usize, JOBS, "{executor:?}");
    }
}

#[test]
fn timeouts_across_pauses_lose_no_jobs_and_no_wake_ups() {
    const JOBS: usize = 400;
    let (queue, _dir) = queue();
    let acked = Arc::<AtomicUsize>::default();
    let task = |_| -> Task {
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
    let tasks = (0..8).map(task).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for job in 0..JOBS {
                match job % 10 {
                    2 => queue.pause().expect("paused"),
                    7 => queue.resume().expect("resumed"),
                    _ => {}
                }
                queue.enqueue(b"job").expect("enqueued");
                std::thread::sleep(Duration::from_micros(20));
            }
        });
        Executor::Tokio.run(tasks);
    });
    assert_eq!(queue.stats().acked as usize, JOBS);
}
