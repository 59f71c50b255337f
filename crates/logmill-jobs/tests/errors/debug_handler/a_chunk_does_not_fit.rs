use logmill_jobs::{Chunk, Context, Job, JobResult, State, debug_handler};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "welcome")]
struct Welcome;

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "count", output = u64)]
struct Count;

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "sum", inputs = Vec<Count>)]
struct Sum;

#[derive(Clone)]
struct Mailer;

struct NoJob;

#[debug_handler]
fn no_job(_: Chunk<NoJob>) -> JobResult {
    Ok(())
}

#[debug_handler]
fn has_inputs(_: Chunk<Sum>) -> JobResult {
    Ok(())
}

#[debug_handler]
fn no_state(_: Chunk<Welcome>, _: State<Mailer>, _: Context) -> JobResult {
    Ok(())
}

#[debug_handler]
async fn returns_an_output(_: Chunk<Count>) -> JobResult<u64> {
    Ok(0)
}

#[debug_handler]
fn returns_nothing_of_the_kind(_: Chunk<Welcome>) -> Vec<JobResult> {
    Vec::new()
}

#[debug_handler]
fn too_many(
    _: Chunk<Welcome>,
    _: State<Mailer>,
    _: State<Mailer>,
    _: State<Mailer>,
    _: State<Mailer>,
    _: State<Mailer>,
) -> JobResult {
    Ok(())
}

#[debug_handler]
async fn is_not_sent(chunk: Chunk<Welcome>) -> JobResult {
    let text = std::rc::Rc::new(());
    std::future::ready(()).await;
    drop((text, chunk));
    Ok(())
}

/// Has the compiler write `logmill_jobs::Job`, whatever else is named so in the crates that are there.
pub mod another {
    pub struct Job;
}

fn main() {}
