use logmill_jobs::Job;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "welcome", retries = 3)]
struct Welcome;

fn main() {}
