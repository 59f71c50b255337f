//! What is sent: form, id, time, signatures; again and again until the receiver has it.

use std::time::{SystemTime, UNIX_EPOCH};

use logmill_jobs::testing::{How, TestMill, enqueued, simulate};
use logmill_jobs::webhooks::{Secret, Verifier, Webhook, Webhooks};
use logmill_jobs::{JobResult, secs};

use crate::server::Server;
use crate::{attempt, hook, retried, secret, verify, wait_out, webhooks, workers};

fn seconds(time: SystemTime) -> String {
    time.duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
        .to_string()
}

#[test]
fn a_webhook_is_a_signed_post_request() {
    let (mill, server) = (TestMill::open().unwrap(), Server::start());
    let hook = hook(&server, 17);
    let (id, body) = (hook.id().to_owned(), hook.body().to_owned());
    mill.enqueue(hook).unwrap();
    assert_eq!(attempt(&mill, &webhooks()), How::Done);

    let request = server.request();
    assert_eq!(request.line, "POST /hooks HTTP/1.1");
    assert_eq!(
        request.header("host"),
        Some(&server.address.to_string()[..])
    );
    assert_eq!(request.header("content-type"), Some("application/json"));
    assert_eq!(request.header("webhook-id"), Some(&id[..]));
    let now = seconds(mill.clock().now());
    assert_eq!(request.header("webhook-timestamp"), Some(&now[..]));
    assert_eq!(request.body, body.as_bytes());
    verify(&mill, &request);
}

#[test]
fn any_2xx_is_done_whatever_its_body() {
    let (mill, server) = (TestMill::open().unwrap(), Server::start());
    for status in ["200 OK", "201 Created", "202 Accepted", "299 Fine"] {
        server.answer(status, "", "thanks");
        mill.enqueue(hook(&server, 17)).unwrap();
        assert_eq!(attempt(&mill, &webhooks()), How::Done);
    }
}

#[test]
fn each_attempt_has_the_same_id_and_body_and_its_own_time() {
    let (mill, server) = (TestMill::open().unwrap(), Server::start());
    server
        .answer("500 Oops", "", "")
        .answer("404 Not Found", "", "");
    mill.enqueue(hook(&server, 17)).unwrap();
    for _ in 0..2 {
        retried(&mill, &webhooks());
        wait_out(&mill);
    }
    assert_eq!(attempt(&mill, &webhooks()), How::Done);

    let requests = server.requests();
    assert_eq!(requests.len(), 3);
    for request in &requests {
        assert_eq!(request.id(), requests[0].id());
        assert_eq!(request.body, requests[0].body);
    }
    let times = requests
        .iter()
        .map(|request| request.header("webhook-timestamp"));
    assert!(times.is_sorted_by(|one, next| one < next));
    verify(&mill, &requests[2]);
}

#[test]
fn jobs_of_one_number_in_two_mills_have_two_ids() {
    let server = Server::start();
    for _ in 0..2 {
        let mill = TestMill::open().unwrap();
        mill.enqueue(hook(&server, 17)).unwrap();
        assert_eq!(attempt(&mill, &webhooks()), How::Done);
    }
    let requests = server.requests();
    assert_ne!(requests[0].id(), requests[1].id());
}

#[test]
fn wherever_the_process_dies_the_webhook_arrives_with_one_id() {
    let simulated = simulate(7, |sim| {
        let server = Server::start();
        server.answer("500 Oops", "", "");
        sim.workers(|| workers(&webhooks()));
        let url = server.url("/hooks");
        let enqueue = move |mill: &logmill_jobs::Mill| {
            let hook = Webhook::new(&url, "paid", &17).unwrap().with_id("event-17");
            mill.enqueue(hook.unwrap()).map(drop)
        };
        sim.call(enqueue).unwrap();
        sim.run_until_idle();
        sim.advance(secs(60));
        sim.run_until_idle();
        let requests = server.requests();
        assert!(requests.len() >= 2, "{requests:?}");
        assert!(requests.iter().all(|request| request.id() == "event-17"));
    });
    assert!(simulated.runs > 4);
}

#[test]
fn a_random_id_outlives_a_crash() {
    let (mut mill, server) = (TestMill::open().unwrap(), Server::start());
    server.answer("500 Oops", "", "");
    mill.enqueue(hook(&server, 17)).unwrap();
    retried(&mill, &webhooks());
    mill.crash().unwrap();
    // From its start, the next process lets a backoff pass.
    assert_eq!(mill.run_until_idle(&workers(&webhooks())).unwrap().ran, []);
    wait_out(&mill);
    assert_eq!(attempt(&mill, &webhooks()), How::Done);
    let requests = server.requests();
    assert_eq!(requests[0].id(), requests[1].id());
}

#[test]
fn during_a_rotation_both_secrets_sign() {
    let (mill, server) = (TestMill::open().unwrap(), Server::start());
    let webhooks = webhooks().secret("default", secret(2));
    mill.enqueue(hook(&server, 17)).unwrap();
    assert_eq!(attempt(&mill, &webhooks), How::Done);
    let request = server.request();
    for (byte, is_right) in [(1, true), (2, true), (3, false)] {
        let verifier = Verifier::new([secret(byte)]);
        let now = mill.clock().now();
        let verified = verifier.verify(|name| request.header(name), &request.body, now);
        assert_eq!(verified.is_ok(), is_right, "{byte}");
    }
}

#[test]
fn only_the_name_of_a_secret_is_stored() {
    let (mill, server) = (TestMill::open().unwrap(), Server::start());
    mill.enqueue(hook(&server, 17).secret("billing")).unwrap();
    let found = enqueued::<Webhook>(&mill).unwrap();
    assert_eq!(found[0].job.secret_name(), Some("billing"));
    let stored = serde_json::to_string(&found[0].job).unwrap();
    assert!(!stored.contains("whsec_"), "{stored}");
    let shown = format!("{:?}", webhooks().secret("billing", secret(1)));
    assert!(shown.contains("billing") && !shown.contains("AQEB") && !shown.contains("1, 1"));
}

#[test]
fn a_secret_that_is_not_there_is_a_failed_attempt_until_it_is() {
    let (mill, server) = (TestMill::open().unwrap(), Server::start());
    mill.enqueue(hook(&server, 17).secret("billing")).unwrap();
    assert_eq!(
        retried(&mill, &webhooks()),
        "there is no secret \"billing\" to sign the webhook by; add it to the `Webhooks` of the workers"
    );
    assert_eq!(server.requests().len(), 0);

    wait_out(&mill);
    assert_eq!(
        attempt(&mill, &webhooks().secret("billing", secret(1))),
        How::Done
    );
    verify(&mill, &server.request());
}

#[test]
fn secrets_can_be_looked_up() {
    let (mill, server) = (TestMill::open().unwrap(), Server::start());
    let webhooks = Webhooks::new().allow_private_addresses();
    let webhooks = webhooks.find_secrets(|name| match name {
        "customer-7" => JobResult::Ok(vec![secret(1)]),
        "customer-8" => Err("no connection to the database".into()),
        _ => Ok(Vec::<Secret>::new()),
    });
    mill.enqueue(hook(&server, 1).secret("customer-7")).unwrap();
    assert_eq!(attempt(&mill, &webhooks), How::Done);
    verify(&mill, &server.request());
    mill.enqueue(hook(&server, 1).secret("customer-8")).unwrap();
    assert_eq!(retried(&mill, &webhooks), "no connection to the database");
    let mill = TestMill::open().unwrap();
    mill.enqueue(hook(&server, 1)).unwrap();
    assert!(retried(&mill, &webhooks).starts_with("there is no secret \"default\""));
}

#[test]
fn without_a_signature_there_is_no_such_header() {
    let (mill, server) = (TestMill::open().unwrap(), Server::start());
    let body = "<paid/>";
    let hook = Webhook::with_body(server.url("/xml?key=1"), "text/xml", body).unwrap();
    mill.enqueue(hook.unsigned()).unwrap();
    assert_eq!(
        attempt(&mill, &Webhooks::new().allow_private_addresses()),
        How::Done
    );
    let request = server.request();
    assert_eq!(request.line, "POST /xml?key=1 HTTP/1.1");
    assert_eq!(request.header("content-type"), Some("text/xml"));
    assert_eq!(request.header("webhook-signature"), None);
    assert!(request.header("webhook-id").is_some());
    assert_eq!(request.body, body.as_bytes());
}

#[test]
fn a_connection_is_used_again_by_webhooks_to_the_same_host() {
    let (mill, server) = (TestMill::open().unwrap(), Server::start());
    let webhooks = webhooks();
    for number in 0..3 {
        mill.enqueue(hook(&server, number)).unwrap();
    }
    mill.run_until_idle(&workers(&webhooks)).unwrap();
    mill.enqueue(hook(&server, 3)).unwrap();
    mill.run_until_idle(&workers(&webhooks)).unwrap();
    assert_eq!((server.requests().len(), server.connections()), (4, 1));

    // One with an answer that is not read to its end is not.
    server.answer("500 Oops", "", &"oops ".repeat(10_000));
    mill.enqueue(hook(&server, 4)).unwrap();
    mill.enqueue(hook(&server, 5)).unwrap();
    let report = mill.run_until_idle(&workers(&webhooks)).unwrap();
    assert_eq!((report.retried(), report.done()), (1, 1));
    assert_eq!((server.requests().len(), server.connections()), (6, 2));
}
