use logmill_jobs::{Job, debug_handler};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "welcome")]
struct Welcome;

#[debug_handler]
fn nothing(_: Welcome) {}

#[debug_handler]
fn number(_: Welcome) -> u64 {
    7
}

#[debug_handler]
async fn later(_: Welcome) -> Option<()> {
    None
}

#[debug_handler]
fn future(_: Welcome) -> impl Future<Output = u64> {
    std::future::ready(7)
}

fn main() {}
