//! What becomes of the job by the answer, or without one.

use std::net::TcpListener;

use logmill_jobs::testing::{How, TestMill};
use logmill_jobs::webhooks::Webhook;
use logmill_jobs::{Status, days, hours, minutes, secs};

use crate::server::{Answer, Server};
use crate::{attempt, hook, retried, wait_out, webhooks, workers};

#[test]
fn another_status_is_retried_with_the_begin_of_what_was_said() {
    let (mill, server) = (TestMill::open().unwrap(), Server::start());
    server.answer("404 Not Found", "", "no such\r\nhook");
    server.answer("500 Internal Server Error", "", &"oops ".repeat(100_000));
    server.answer("429 Too Many Requests", "", "");
    server.answer("503 Service Unavailable", "retry-after: soon\r\n", "");
    mill.enqueue(hook(&server, 17)).unwrap();

    let host = server.address;
    let first = retried(&mill, &webhooks());
    assert_eq!(
        first,
        format!("{host} answered 404 Not Found: no such hook")
    );
    wait_out(&mill);
    let second = retried(&mill, &webhooks());
    assert!(second.starts_with(&format!(
        "{host} answered 500 Internal Server Error: oops oops"
    )));
    assert!(second.len() < 700, "{}", second.len());
    wait_out(&mill);
    let third = retried(&mill, &webhooks());
    assert_eq!(third, format!("{host} answered 429 Too Many Requests"));
    wait_out(&mill);
    let fourth = retried(&mill, &webhooks());
    assert_eq!(fourth, format!("{host} answered 503 Service Unavailable"));
    wait_out(&mill);
    assert_eq!(attempt(&mill, &webhooks()), How::Done);
}

#[test]
fn a_receiver_that_is_gone_gets_no_more() {
    let (mill, server) = (TestMill::open().unwrap(), Server::start());
    server.answer("410 Gone", "", "unsubscribed");
    let handle = mill.enqueue(hook(&server, 17)).unwrap();
    let reason = format!("{} answered 410 Gone: unsubscribed", server.address);
    assert_eq!(attempt(&mill, &webhooks()), How::Dead { reason });
    assert!(matches!(handle.status().unwrap(), Status::Dead { .. }));
}

#[test]
fn a_redirect_is_not_followed() {
    let (server, other) = (Server::start(), Server::start());
    let location = format!("location: {}\r\n", other.url("/moved"));
    for status in [
        "301 Moved Permanently",
        "302 Found",
        "303 See Other",
        "307 Temporary Redirect",
        "308 Permanent Redirect",
    ] {
        server.answer(status, &location, "");
        let mill = TestMill::open().unwrap();
        mill.enqueue(hook(&server, 17)).unwrap();
        let reason = retried(&mill, &webhooks());
        let code = &status[..3];
        assert!(
            reason.contains(code) && reason.contains("redirects are not followed"),
            "{reason}"
        );
    }
    assert_eq!(other.requests().len(), 0);
}

#[test]
fn retry_after_holds_all_of_the_host_back_and_spends_no_attempt() {
    let (mill, slow, other) = (TestMill::open().unwrap(), Server::start(), Server::start());
    slow.answer("429 Too Many Requests", "retry-after: 90\r\n", "");
    let first = mill.enqueue(hook(&slow, 1)).unwrap();
    mill.enqueue(hook(&slow, 2)).unwrap();
    mill.enqueue(hook(&other, 3)).unwrap();
    let report = mill.run_until_idle(&workers(&webhooks())).unwrap();
    assert_eq!((report.done(), report.retried()), (1, 0));
    assert_eq!((slow.requests().len(), other.requests().len()), (1, 1));

    mill.advance(secs(89));
    mill.run_until_idle(&workers(&webhooks())).unwrap();
    assert_eq!(slow.requests().len(), 1);
    mill.advance(secs(1));
    let report = mill.run_until_idle(&workers(&webhooks())).unwrap();
    assert_eq!(report.done(), 2);
    let again = report.ran.iter().find(|ran| ran.id == *first.id()).unwrap();
    assert_eq!(again.attempt, 1);
}

#[test]
fn retry_after_can_be_a_date() {
    let (mill, server) = (TestMill::open().unwrap(), Server::start());
    let date = httpdate::fmt_http_date(mill.clock().now() + minutes(10));
    server.answer(
        "503 Service Unavailable",
        &format!("Retry-After: {date}\r\n"),
        "",
    );
    mill.enqueue(hook(&server, 17)).unwrap();
    mill.run_until_idle(&workers(&webhooks())).unwrap();
    mill.advance(minutes(10) - secs(2));
    mill.run_until_idle(&workers(&webhooks())).unwrap();
    assert_eq!(server.requests().len(), 1);
    mill.advance(secs(2));
    let report = mill.run_until_idle(&workers(&webhooks())).unwrap();
    assert_eq!(report.done(), 1);
}

#[test]
fn retry_after_holds_for_an_hour_at_most_or_as_long_as_it_may() {
    for (webhooks, most) in [
        (webhooks(), hours(1)),
        (webhooks().retry_after_at_most(minutes(5)), minutes(5)),
    ] {
        let (mill, server) = (TestMill::open().unwrap(), Server::start());
        server.answer("429 Too Many Requests", "retry-after: 86400\r\n", "");
        mill.enqueue(hook(&server, 17)).unwrap();
        mill.run_until_idle(&workers(&webhooks)).unwrap();
        mill.advance(most - secs(1));
        mill.run_until_idle(&workers(&webhooks)).unwrap();
        assert_eq!(server.requests().len(), 1);
        mill.advance(secs(1));
        let report = mill.run_until_idle(&workers(&webhooks)).unwrap();
        assert_eq!(report.done(), 1);
    }
}

#[test]
fn after_three_days_a_hold_spends_attempts() {
    let (mill, server) = (TestMill::open().unwrap(), Server::start());
    mill.enqueue(hook(&server, 17)).unwrap();
    mill.advance(days(3));
    server.answer("429 Too Many Requests", "retry-after: 90\r\n", "");
    let how = attempt(&mill, &webhooks());
    assert!(
        matches!(how, How::Retried { after, .. } if after == secs(90)),
        "{how:?}"
    );
}

#[test]
fn no_answer_in_time_is_a_failed_attempt() {
    let (mill, server) = (TestMill::open().unwrap(), Server::start());
    let webhooks = webhooks().timeout(std::time::Duration::from_millis(50));
    server.then(Answer::Stall(String::new()));
    server.then(Answer::Stall(
        "HTTP/1.1 500 Oops\r\ncontent-length: 9\r\n\r\nslow".to_owned(),
    ));
    mill.enqueue(hook(&server, 17)).unwrap();
    let reason = format!("{} gave no answer within 50ms", server.address);
    assert_eq!(retried(&mill, &webhooks), reason);
    wait_out(&mill);
    // The status is there, and the body is not.
    let reason = retried(&mill, &webhooks);
    assert!(reason.contains("answered 500"), "{reason}");
}

#[test]
fn a_connection_that_fails_is_a_failed_attempt() {
    let (mill, server) = (TestMill::open().unwrap(), Server::start());
    // Nobody listens any more where this one did.
    let address = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let nowhere = Webhook::new(format!("http://{address}/"), "paid", &17).unwrap();
    mill.enqueue(nowhere).unwrap();
    let reason = retried(&mill, &webhooks());
    assert!(reason.starts_with(&format!("{address}: ")), "{reason}");

    let mill = TestMill::open().unwrap();
    server
        .then(Answer::Close)
        .then(Answer::Bytes("no HTTP at all".to_owned()));
    mill.enqueue(hook(&server, 17)).unwrap();
    for _ in 0..2 {
        let reason = retried(&mill, &webhooks());
        assert!(
            reason.starts_with(&format!("{}: ", server.address)),
            "{reason}"
        );
        wait_out(&mill);
    }
    assert_eq!(attempt(&mill, &webhooks()), How::Done);
}

#[test]
fn https_is_spoken_with_tls() {
    let (mill, server) = (TestMill::open().unwrap(), Server::start());
    let url = format!("https://{}/", server.address);
    mill.enqueue(Webhook::new(url, "paid", &17).unwrap())
        .unwrap();
    // The server cannot, and sees no request.
    let reason = retried(&mill, &webhooks());
    assert!(
        reason.starts_with(&format!("{}: ", server.address)),
        "{reason}"
    );
    assert!(
        server
            .requests()
            .iter()
            .all(|request| !request.line.starts_with("POST"))
    );
}
