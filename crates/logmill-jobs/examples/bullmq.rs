//! The first program of BullMQ's documentation: a queue `emails`, jobs with a name and data, and a
//! worker that looks at the name.
//!
//! ```js
//! const emails = new Queue('emails');
//! await emails.add('welcome', { userId: 42 });
//!
//! new Worker('emails', async job => {
//!   switch (job.name) {
//!     case 'welcome': return sendWelcome(job.data.userId);
//!     case 'goodbye': return sendGoodbye(job.data.userId);
//!   }
//! });
//! ```
//!
//! Here a name is a type, and each has a handler: the compiler checks what a job carries, and a name
//! without a handler is parked where operators see it, rather than completed.

use logmill_jobs::{Job, JobResult, Mill, Priority, State, Workers, secs};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "welcome", queue = "emails", output = String)]
struct Welcome {
    user_id: u64,
}

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "goodbye", queue = "emails")]
struct Goodbye {
    user_id: u64,
}

#[derive(Clone)]
struct Mailer;

impl Mailer {
    fn send(&self, text: &str) {
        println!("mail: {text}");
    }
}

fn welcome(job: Welcome, State(mailer): State<Mailer>) -> JobResult<String> {
    mailer.send(&format!("welcome, user {}", job.user_id));
    Ok(format!("mail-{}", job.user_id))
}

fn goodbye(job: Goodbye, State(mailer): State<Mailer>) -> JobResult {
    mailer.send(&format!("goodbye, user {}", job.user_id));
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let mill = Mill::open(dir.path().join("jobs"))?;
    let workers = Workers::new(Mailer)
        .on(welcome)
        .on(goodbye)
        .threads(5) // `concurrency: 5`
        .start(&mill)?;

    let first = mill.enqueue(Welcome { user_id: 42 })?;
    let second = mill
        .job(Goodbye { user_id: 7 })
        .after(secs(1)) // `delay: 1000`
        .priority(Priority::High)
        .enqueue()?;
    println!("{} returned {}", first.id(), first.wait()?);
    second.wait()?;

    assert!(workers.shutdown(secs(10)).finished_in_time);
    mill.close()?;
    Ok(())
}
