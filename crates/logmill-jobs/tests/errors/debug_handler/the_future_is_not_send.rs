use logmill_jobs::{Job, JobResult, debug_handler};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "welcome")]
struct Welcome;

use std::pin::Pin;
use std::rc::Rc;

#[debug_handler]
async fn holds(_: Welcome) -> JobResult {
    let name = Rc::new("Ada");
    std::future::ready(()).await;
    println!("{name}");
    Ok(())
}

#[debug_handler]
fn made(_: Welcome) -> impl Future<Output = JobResult> {
    async {
        let name = Rc::new("Ada");
        std::future::ready(()).await;
        println!("{name}");
        Ok(())
    }
}

#[debug_handler]
fn boxed(_: Welcome) -> Pin<Box<dyn Future<Output = JobResult>>> {
    Box::pin(holds(Welcome))
}

struct Mailer;

impl Mailer {
    #[debug_handler]
    async fn associated(_: Welcome) -> JobResult {
        let mailer = Rc::new(Self);
        std::future::ready(()).await;
        drop(mailer);
        Ok(())
    }
}

fn main() {}
