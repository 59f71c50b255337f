//! The schedules of an application: what they are is said at each start, and stored.
//!
//! The first one runs each night in Berlin. Its ticks across the next change of the clock are printed.
//! The second one runs at an interval, and this program waits for three of its jobs.

use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, SystemTime};

use logmill_jobs::{
    Context, Job, JobResult, Mill, Misfire, Priority, Schedule, State, Workers, hours, secs,
};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "report", queue = "reports")]
struct Report {
    recipient: String,
}

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "poll")]
struct Poll;

fn report(job: Report) -> JobResult {
    println!("report for {}", job.recipient);
    Ok(())
}

fn poll(_: Poll, State(polled): State<Sender<SystemTime>>, cx: Context) -> JobResult {
    let (id, tick) = cx.scheduled().ok_or("not scheduled")?;
    println!(
        "{id}: tick of {:?}",
        tick.duration_since(SystemTime::UNIX_EPOCH)?
    );
    polled.send(tick)?;
    Ok(())
}

/// Five minutes in a program that does not end so soon.
const INTERVAL: Duration = Duration::from_millis(50);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let mill = Mill::open(dir.path().join("jobs"))?;

    // At each start of the application: what is there already is left as it is.
    let nightly = Schedule::cron("30 2 * * *")?
        .time_zone("Europe/Berlin")?
        .misfire(Misfire::Once)
        .jitter(secs(60));
    for tick in nightly.next_ticks(SystemTime::now(), 365) {
        // One night of the year has no half past two.
        if !tick.local.contains("T02:30:00") {
            println!("because of the summer time: {}", tick.local);
        }
    }
    let recipient = "Ada".to_owned();
    mill.job(Report { recipient })
        .priority(Priority::Low)
        .expires_after(hours(12))
        .schedule("nightly-report", nightly)?;
    let interval = Schedule::every(INTERVAL)
        .misfire(Misfire::Skip)
        .unless_running();
    let scheduled = mill.job(Poll).schedule("poll", interval)?;
    println!("poll: {scheduled:?}");

    let (polled, polls) = channel();
    let workers = Workers::new(polled).on(report).on(poll).start(&mill)?;
    for _ in 0..3 {
        polls.recv_timeout(secs(60))?;
    }
    for schedule in mill.schedules()? {
        println!(
            "{}: {}, {} runs",
            schedule.id, schedule.timing, schedule.runs
        );
    }
    assert!(workers.shutdown(secs(10)).finished_in_time);
    mill.close()?;
    Ok(())
}
