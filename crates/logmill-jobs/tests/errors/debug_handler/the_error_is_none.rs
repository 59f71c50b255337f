use logmill_jobs::{Job, debug_handler};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "welcome")]
struct Welcome;

#[derive(Debug)]
struct Silent;

#[debug_handler]
fn welcome(_: Welcome) -> Result<(), Silent> {
    Err(Silent)
}

#[debug_handler]
async fn later(_: Welcome) -> Result<(), Silent> {
    Err(Silent)
}

fn main() {}
