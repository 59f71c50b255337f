//! A process that is killed while the receiver has its request: the webhook comes again, as the
//! same.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use logmill_jobs::webhooks::{Verifier, Webhook};
use logmill_jobs::{Mill, Pool, secs};

use crate::killing::kill;
use crate::server::{Answer, Server};
use crate::{secret, webhooks, workers};

const DIRECTORY: &str = "LOGMILL_JOBS_WEBHOOKS_DIRECTORY";
const URL: &str = "LOGMILL_JOBS_WEBHOOKS_URL";
/// Far more than anything takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// One less than after which the job would count as one that kills its process.
const LIVES: usize = 2;

fn start(dir: &Path) -> (Mill, Pool) {
    let mill = Mill::open(dir.join("jobs")).unwrap();
    let pool = workers(&webhooks()).threads(1).start(&mill).unwrap();
    (mill, pool)
}

/// Sends until it is killed. The first life enqueues.
pub(crate) fn child() {
    let dir = PathBuf::from(std::env::var_os(DIRECTORY).expect("run by the other test"));
    let is_first = !dir.join("jobs").exists();
    let (mill, _pool) = start(&dir);
    if is_first {
        let url = std::env::var(URL).unwrap();
        mill.enqueue(Webhook::new(url, "invoice.paid", &17).unwrap())
            .unwrap();
    }
    loop {
        std::thread::park();
    }
}

#[test]
fn a_kill_during_a_request_has_the_webhook_come_again_with_the_same_id() {
    let (dir, server) = (tempfile::tempdir().unwrap(), Server::start());
    let (path, url) = (dir.path().to_str().unwrap(), server.url("/hooks"));
    for life in 0..LIVES {
        server.then(Answer::Stall(String::new()));
        kill(
            &[(DIRECTORY, path), (URL, &url)],
            |_| server.requests().len() > life,
            Duration::ZERO,
        );
    }

    // The next one gets an answer.
    let (mill, pool) = start(dir.path());
    let is_done = || {
        let stats = mill.queue("webhooks").unwrap().stats().unwrap();
        stats.left() == 0
    };
    let start = Instant::now();
    while !is_done() {
        assert!(start.elapsed() < PATIENCE, "it is not sent");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(
        mill.queue("webhooks")
            .unwrap()
            .dead_jobs()
            .unwrap()
            .is_empty()
    );
    let requests = server.requests();
    assert_eq!(requests.len(), LIVES + 1);
    for request in &requests {
        assert_eq!(request.id(), requests[0].id());
        assert_eq!(request.body, requests[0].body);
        let verifier = Verifier::new([secret(1)]);
        let now = SystemTime::now();
        assert!(
            verifier
                .verify(|name| request.header(name), &request.body, now)
                .is_ok()
        );
    }
    let _ = pool.shutdown(secs(60));
}
