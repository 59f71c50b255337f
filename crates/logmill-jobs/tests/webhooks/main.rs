//! Webhooks, sent to a server in the test.

mod addresses;
mod answers;
mod jobs;
#[path = "../killing/mod.rs"]
mod killing;
mod kills;
mod sending;
mod server;

use logmill_jobs::testing::{How, TestMill};
use logmill_jobs::webhooks::{Secret, Verifier, Webhook, Webhooks};
use logmill_jobs::{Workers, hours};

use server::{Request, Server};

/// Webhooks that may go to the server of the test, with a secret named `default`.
pub(crate) fn webhooks() -> Webhooks {
    let secret = secret(1);
    Webhooks::new()
        .allow_private_addresses()
        .secret("default", secret)
}

pub(crate) fn secret(byte: u8) -> Secret {
    Secret::from_key(&[byte; 32]).unwrap()
}

pub(crate) fn workers(webhooks: &Webhooks) -> Workers<()> {
    Workers::new(()).on(webhooks.clone())
}

/// A webhook to the server.
pub(crate) fn hook(server: &Server, number: u64) -> Webhook {
    let data = serde_json::json!({ "number": number });
    Webhook::new(server.url("/hooks"), "invoice.paid", &data).unwrap()
}

/// How the only attempt ends that is due.
#[track_caller]
pub(crate) fn attempt(mill: &TestMill, webhooks: &Webhooks) -> How {
    let report = mill.run_until_idle(&workers(webhooks)).unwrap();
    let [ran] = &report.ran[..] else {
        panic!("{report:?}");
    };
    ran.how.clone()
}

/// The reason of the attempt, which failed and is retried.
#[track_caller]
pub(crate) fn retried(mill: &TestMill, webhooks: &Webhooks) -> String {
    match attempt(mill, webhooks) {
        How::Retried { reason, .. } => reason,
        how => panic!("{how:?}"),
    }
}

/// Lets any backoff pass.
pub(crate) fn wait_out(mill: &TestMill) {
    mill.advance(hours(12));
}

/// Has the receiver verify a request by the secret of [`webhooks`].
#[track_caller]
pub(crate) fn verify(mill: &TestMill, request: &Request) {
    let verifier = Verifier::new([secret(1)]);
    let verified = verifier.verify(
        |name| request.header(name),
        &request.body,
        mill.clock().now(),
    );
    assert_eq!(Some(verified.unwrap().id), request.header("webhook-id"));
}

/// The process that is killed.
#[test]
#[ignore = "run by the other test"]
fn child() {
    kills::child();
}
