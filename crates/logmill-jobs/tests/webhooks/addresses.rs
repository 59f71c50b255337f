//! Which addresses webhooks go to: private ones only if the application allows them.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use logmill_jobs::testing::{How, TestMill};
use logmill_jobs::webhooks::{Webhook, Webhooks};

use crate::server::Server;
use crate::{attempt, hook, secret};

#[test]
fn private_addresses_are_refused_by_default_however_they_are_written() {
    let server = Server::start();
    let port = server.address.port();
    let webhooks = Webhooks::new().secret("default", secret(1));
    for host in [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f.1",
        "0.0.0.0",
        "[::1]",
        "[::ffff:127.0.0.1]",
    ] {
        let mill = TestMill::open().unwrap();
        let url = format!("http://{host}:{port}/");
        mill.enqueue(Webhook::new(url, "paid", &17).unwrap())
            .unwrap();
        let how = attempt(&mill, &webhooks);
        let How::Dead { reason } = how else {
            panic!("{host}: {how:?}");
        };
        assert!(reason.ends_with(" is not allowed for webhooks"), "{reason}");
    }
    assert_eq!(server.requests().len(), 0);
}

#[test]
fn the_application_decides_by_name_and_address() {
    let server = Server::start();
    let asked = Arc::<Mutex<Vec<(String, IpAddr)>>>::default();
    let log = Arc::clone(&asked);
    let webhooks = Webhooks::new().secret("default", secret(1));
    let webhooks = webhooks.allow_addresses_if(move |host, address| {
        log.lock().unwrap().push((host.to_owned(), address));
        host == "localhost" && address.is_ipv4()
    });
    let mill = TestMill::open().unwrap();
    let url = format!("http://localhost:{}/", server.address.port());
    mill.enqueue(Webhook::new(url, "paid", &17).unwrap())
        .unwrap();
    assert_eq!(attempt(&mill, &webhooks), How::Done);
    assert_eq!(server.requests().len(), 1);
    let local = ("localhost".to_owned(), server.address.ip());
    assert!(asked.lock().unwrap().contains(&local));

    mill.enqueue(hook(&server, 17)).unwrap();
    assert!(matches!(attempt(&mill, &webhooks), How::Dead { .. }));
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn a_rule_that_panics_is_a_failed_attempt() {
    let (mill, server) = (TestMill::open().unwrap(), Server::start());
    let webhooks = Webhooks::new().secret("default", secret(1));
    let webhooks = webhooks.allow_addresses_if(|_, _| panic!("no rule"));
    mill.enqueue(hook(&server, 17)).unwrap();
    let how = attempt(&mill, &webhooks);
    assert!(
        matches!(&how, How::Retried { reason, .. } if reason == "no rule"),
        "{how:?}"
    );
}
