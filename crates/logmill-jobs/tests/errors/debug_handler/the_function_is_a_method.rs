use logmill_jobs::{Job, JobResult, debug_handler};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "welcome")]
struct Welcome;

struct Mailer;

impl Mailer {
    #[debug_handler]
    fn welcome(&self, _: Welcome) -> JobResult {
        Ok(())
    }

    #[debug_handler]
    async fn later(self: std::sync::Arc<Self>, _: Welcome) -> JobResult {
        Ok(())
    }
}

#[debug_handler]
unsafe fn risky(_: Welcome) -> JobResult {
    Ok(())
}

fn main() {}
