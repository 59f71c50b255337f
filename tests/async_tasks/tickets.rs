//! Tickets: what is known of a job's durability after its enqueue.

use std::time::Duration;

use logmill::{Durability, EnqueueOptions, Queue};

use super::executors::{ALL, Task};
use super::{queue, queue_with, until};

fn with(durability: Durability) -> EnqueueOptions<'static> {
    EnqueueOptions::new().durability(durability)
}

#[test]
fn a_ticket_of_a_sync_job_becomes_durable_by_itself() {
    let (queue, _dir) = queue();
    let (job, ticket) = queue
        .enqueue_ticketed(b"job", with(Durability::Sync))
        .expect("enqueued");
    until("durable", || ticket.is_durable());
    assert!(matches!(ticket.result(), Some(Ok(()))));
    let consumer = queue.consumer();
    let delivered = consumer.try_next().expect("a job");
    assert_eq!(delivered.id(), job);
    delivered.ack();
}

#[test]
fn a_ticket_of_an_interval_job_becomes_durable_within_the_interval() {
    let (queue, _dir) = queue();
    let interval = Durability::Interval(Duration::from_millis(20));
    let (_, ticket) = queue
        .enqueue_ticketed(b"job", with(interval))
        .expect("enqueued");
    until("durable", || ticket.is_durable());
}

#[test]
fn a_ticket_of_a_process_job_is_flushed_for_whoever_waits() {
    let (queue, _dir) = queue();
    let (_, ticket) = queue
        .enqueue_ticketed(b"job", with(Durability::Process))
        .expect("enqueued");
    std::thread::sleep(Duration::from_millis(20));
    assert!(!ticket.is_durable() && ticket.result().is_none());
    ticket.wait().expect("flushed");
    assert!(ticket.is_durable());
}

#[test]
fn any_flush_makes_tickets_durable_and_so_does_the_close_by_the_last_handle() {
    let (queue, _dir) = queue();
    let enqueue = |queue: &Queue| {
        let enqueued = queue.enqueue_ticketed(b"job", with(Durability::Process));
        enqueued.expect("enqueued").1
    };
    let ticket = enqueue(&queue);
    queue.flush().expect("flushed");
    assert!(ticket.is_durable());
    let ticket = enqueue(&queue);
    queue
        .enqueue_with(b"job", with(Durability::Sync))
        .expect("enqueued");
    assert!(ticket.is_durable());
    let (ticket, waited_for) = (enqueue(&queue), enqueue(&queue));
    drop(queue);
    assert!(ticket.is_durable());
    waited_for.wait().expect("flushed");
}

#[test]
fn a_batch_has_one_ticket_and_an_empty_one_too() {
    let (queue, _dir) = queue();
    let sync = with(Durability::Sync);
    let (jobs, ticket) = queue
        .enqueue_batch_ticketed(&[(b"1", sync), (b"2", EnqueueOptions::new())])
        .expect("enqueued");
    assert_eq!(jobs.len(), 2);
    ticket.wait().expect("flushed");
    let mut producer = queue.producer();
    let (jobs, ticket) = producer
        .enqueue_batch_ticketed(&[(b"3", sync)])
        .expect("enqueued");
    assert_eq!(jobs.len(), 1);
    ticket.wait().expect("flushed");
    let none: [(&[u8], EnqueueOptions<'_>); 0] = [];
    let (jobs, ticket) = queue
        .enqueue_batch_ticketed(&none)
        .expect("nothing to enqueue");
    assert!(jobs.is_empty());
    ticket.wait().expect("flushed");
}

#[test]
fn tickets_are_awaited_on_any_executor_and_some_are_dropped() {
    for executor in ALL {
        let (queue, _dir) = queue_with(|builder| builder.durability(Durability::Sync));
        let tasks = (0..8).map(|task| -> Task {
            let queue = queue.clone();
            Box::pin(async move {
                let mut producer = queue.producer();
                for job in 0..20 {
                    let enqueued = producer.enqueue_ticketed(b"job", EnqueueOptions::new());
                    let (_, mut ticket) = enqueued.expect("enqueued");
                    match (task + job) % 3 {
                        0 => ticket.await.expect("flushed"),
                        1 => {
                            let mut polled = std::pin::pin!(&mut ticket);
                            let first = futures_lite::future::poll_once(&mut polled).await;
                            assert!(first.is_none_or(|result| result.is_ok()));
                        }
                        _ => drop(ticket),
                    }
                }
            })
        });
        executor.run(tasks.collect());
        assert_eq!(queue.stats().enqueued, 160, "{executor:?}");
    }
}

#[test]
fn a_waker_may_drop_the_last_handle_on_the_thread_that_flushes() {
    struct Last(std::sync::Mutex<Option<Queue>>);
    impl std::task::Wake for Last {
        fn wake(self: std::sync::Arc<Self>) {
            drop(self.0.lock().unwrap().take());
        }
    }
    let (queue, dir) = queue();
    let (_, mut ticket) = queue
        .enqueue_ticketed(b"job", with(Durability::Process))
        .expect("enqueued");
    let last = std::sync::Arc::new(Last(std::sync::Mutex::new(Some(queue))));
    let waker = std::task::Waker::from(std::sync::Arc::clone(&last));
    let mut context = std::task::Context::from_waker(&waker);
    assert!(
        std::pin::Pin::new(&mut ticket)
            .poll(&mut context)
            .is_pending()
    );
    ticket.wait().expect("flushed");
    until("closed", || Queue::builder(dir.path()).open().is_ok());
}
