use logmill_jobs::Job;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "welcome", unique = "user_id")]
struct Welcome {
    user: u64,
}

fn main() {}
