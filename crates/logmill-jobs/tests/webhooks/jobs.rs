//! Webhooks as jobs: they follow from others, have priorities and limits, are cancelled and replayed.

use logmill_jobs::testing::{How, TestMill};
use logmill_jobs::webhooks::{Webhook, Webhooks};
use logmill_jobs::{
    Context, Failure, Job, JobResult, Limit, Mill, MillOptions, Priority, State, Status, Workers,
    secs,
};
use serde::{Deserialize, Serialize};

use crate::server::{Request, Server};
use crate::{attempt, hook, verify, webhooks, workers};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "pay", output = String, max_retries = 1)]
struct Pay {
    url: String,
}

fn pay(job: Pay, cx: Context) -> JobResult<String> {
    let hook = Webhook::new(job.url, "invoice.paid", &17)?;
    let id = hook.id().to_owned();
    cx.then(hook)?;
    match cx.attempt() {
        1 => Err("no connection".into()),
        _ => Ok(id),
    }
}

fn send(hook: Webhook, State(webhooks): State<Webhooks>, cx: Context) -> Result<(), Failure> {
    webhooks.send(&hook, &cx)
}

fn number(request: &Request) -> u64 {
    let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
    body["data"]["number"].as_u64().unwrap()
}

#[test]
fn a_webhook_that_follows_is_sent_once_its_job_is_done() {
    let (mill, server) = (TestMill::open().unwrap(), Server::start());
    // By a handler of the application's own.
    let workers = Workers::new(webhooks()).on(pay).on(send);
    let handle = mill
        .enqueue(Pay {
            url: server.url("/"),
        })
        .unwrap();
    mill.run_until_idle(&workers).unwrap();
    assert_eq!(server.requests().len(), 0);
    mill.advance(secs(2));
    mill.run_until_idle(&workers).unwrap();
    let request = server.request();
    assert_eq!(handle.try_result().unwrap().as_deref(), Some(request.id()));
    verify(&mill, &request);
}

#[test]
fn a_dead_webhook_is_replayed_with_its_id() {
    let (mill, server) = (TestMill::open().unwrap(), Server::start());
    server.answer("500 Oops", "", "");
    let handle = mill
        .job(hook(&server, 17))
        .max_retries(0)
        .enqueue()
        .unwrap();
    assert!(matches!(attempt(&mill, &webhooks()), How::Dead { .. }));
    let queue = mill.queue("webhooks").unwrap();
    let dead = queue.dead_jobs().unwrap();
    assert_eq!((&dead[0].id, &dead[0].kind[..]), (handle.id(), "webhook"));
    assert!(dead[0].reason().contains("answered 500 Internal"));

    queue.replay(&dead[0]).unwrap();
    assert_eq!(attempt(&mill, &webhooks()), How::Done);
    let requests = server.requests();
    assert_eq!(requests[0].id(), requests[1].id());
}

#[test]
fn a_cancelled_webhook_is_not_sent() {
    let (mill, server) = (TestMill::open().unwrap(), Server::start());
    let handle = mill
        .job(hook(&server, 17))
        .after(secs(60))
        .enqueue()
        .unwrap();
    handle.cancel("not paid after all").unwrap();
    mill.advance(secs(60));
    mill.run_until_idle(&workers(&webhooks())).unwrap();
    assert!(matches!(handle.status().unwrap(), Status::Cancelled { .. }));
    assert_eq!(server.requests().len(), 0);
}

#[test]
fn priorities_and_rates_by_host_hold_for_webhooks() {
    let limit = Limit::on_kind("webhook").by_key().rate(1, secs(10));
    let mill = TestMill::with_options(MillOptions::new().limit(limit)).unwrap();
    let (server, other) = (Server::start(), Server::start());
    for number in 1..=2 {
        mill.enqueue(hook(&server, number)).unwrap();
    }
    mill.job(hook(&server, 3))
        .priority(Priority::Highest)
        .enqueue()
        .unwrap();
    mill.enqueue(hook(&other, 4)).unwrap();

    let ran = mill.run_for(secs(60), &workers(&webhooks())).unwrap();
    assert_eq!(ran.done(), 4);
    let numbers: Vec<u64> = server.requests().iter().map(number).collect();
    assert_eq!(numbers, [3, 1, 2]);
    assert_eq!(other.requests().len(), 1);
}

#[test]
fn a_pool_of_threads_sends_many() {
    let dir = tempfile::tempdir().unwrap();
    let mill = Mill::open(dir.path().join("jobs")).unwrap();
    let server = Server::start();
    let pool = workers(&webhooks()).threads(4).start(&mill).unwrap();
    let handles = mill
        .enqueue_all((0..20).map(|number| hook(&server, number)))
        .unwrap();
    for handle in &handles {
        handle.wait_timeout(secs(60)).unwrap();
    }
    let mut numbers: Vec<u64> = server.requests().iter().map(number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..20).collect::<Vec<_>>());
    drop(pool);
}

#[cfg(feature = "schedules")]
#[test]
fn each_tick_of_a_schedule_has_an_id_of_its_own() {
    use logmill_jobs::Schedule;

    let (mill, server) = (TestMill::open().unwrap(), Server::start());
    let hook = hook(&server, 17);
    let id = hook.id().to_owned();
    mill.job(hook)
        .schedule("often", Schedule::every(secs(60)))
        .unwrap();
    // The first tick is tried twice.
    server.answer("500 Oops", "", "");
    mill.run_for(secs(600), &workers(&webhooks())).unwrap();
    let requests = server.requests();
    let ids: Vec<&str> = requests.iter().map(Request::id).collect();
    assert!(ids.len() > 3, "{ids:?}");
    assert!(ids.iter().all(|one| one.starts_with(&id)), "{ids:?}");
    let mut different = ids.clone();
    different.sort_unstable();
    different.dedup();
    assert_eq!(different.len(), ids.len() - 1, "{ids:?}");
}
