//! Child processes: this benchmark, started again in a role.

use std::env;
use std::fs;
use std::hint::black_box;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use logmill::Queue;
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::backlog::{End, segment_files};
use crate::bound::Bound;

/// What a child does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Enqueues a backlog and closes the queue.
    Fill,
    /// Enqueues a backlog and waits to be killed.
    FillAndWait,
    /// Drains the queue and prints how long that took.
    Drain,
    /// Reads the segment files and prints how long that took.
    Read,
}

const ROLES: [(Role, &str); 4] = [
    (Role::Fill, "fill"),
    (Role::FillAndWait, "fill-and-wait"),
    (Role::Drain, "drain"),
    (Role::Read, "read"),
];

/// The environment variables that set the role, the directory of the queue, and the parameters of
/// the role.
const ROLE: &str = "LOGMILL_BENCH_ROLE";
const DIR: &str = "LOGMILL_BENCH_QUEUE";
const JOBS: &str = "LOGMILL_BENCH_JOBS";
const PAYLOAD: &str = "LOGMILL_BENCH_PAYLOAD";
const JOIN: &str = "LOGMILL_BENCH_JOIN";

/// A child prints this when it is done, followed by a number of nanoseconds.
const DONE: &str = "done ";

/// Makes a backlog in `dir`, in a child process.
pub(crate) fn fill(dir: &Path, jobs: u64, payload: usize, end: End) {
    let role = match end {
        End::Closed => Role::Fill,
        End::Killed => Role::FillAndWait,
    };
    let mut command = command(role, dir);
    command.env(JOBS, jobs.to_string());
    command.env(PAYLOAD, payload.to_string());
    let mut child = command.spawn().expect("the child starts");
    wait_for_done(&mut child);
    if end == End::Killed {
        child.kill().expect("killable");
    }
    child.wait().expect("waitable");
}

/// Runs a role on the queue in `dir` in a child process, with its memory bounded if a bound is
/// given; returns how long that took.
pub(crate) fn timed(role: Role, dir: &Path, bound: Option<&Bound>) -> Duration {
    let mut command = command(role, dir);
    if let Some(bound) = bound {
        command.env(JOIN, bound.members());
    }
    let mut child = command.spawn().expect("the child starts");
    let time = wait_for_done(&mut child);
    child.wait().expect("waitable");
    time
}

fn command(role: Role, dir: &Path) -> Command {
    let name = ROLES.iter().find(|(one, _)| *one == role);
    let (_, name) = name.expect("every role has a name");
    let mut command = Command::new(env::current_exe().expect("known"));
    command.env(ROLE, name).env(DIR, dir).stdout(Stdio::piped());
    command
}

fn wait_for_done(child: &mut Child) -> Duration {
    let stdout = child.stdout.take().expect("piped");
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).expect("read");
    let nanos = line.trim_end().strip_prefix(DONE);
    Duration::from_nanos(nanos.and_then(|nanos| nanos.parse().ok()).expect("done"))
}

/// Runs the role if this is a child process. Returns whether it is one.
pub(crate) fn play() -> bool {
    let Ok(role) = env::var(ROLE) else {
        return false;
    };
    set_parent_process_death_signal(Some(Signal::KILL)).expect("permitted");
    if let Some(members) = env::var_os(JOIN) {
        // 0 stands for the process that writes it.
        fs::write(members, "0").expect("joined the cgroup");
    }
    let dir = env::var_os(DIR).expect("given");
    let dir = Path::new(&dir);
    let role = ROLES.iter().find(|(_, name)| *name == role);
    match role.expect("known").0 {
        Role::Fill => {
            let (queue, time) = fill_here(dir);
            queue.close().expect("closed");
            done(time);
        }
        Role::FillAndWait => {
            let (_queue, time) = fill_here(dir);
            done(time);
            loop {
                thread::park();
            }
        }
        Role::Drain => done(drain_here(dir)),
        Role::Read => done(read_here(dir)),
    }
    true
}

fn done(time: Duration) {
    println!("{DONE}{}", time.as_nanos());
}

fn number(name: &str) -> u64 {
    let text = env::var(name).expect("given");
    text.parse().expect("a number")
}

fn fill_here(dir: &Path) -> (Queue, Duration) {
    let (queue, _) = Queue::builder(dir).stripes(1).open().expect("a new queue");
    let payload = vec![7; number(PAYLOAD) as usize];
    let mut producer = queue.producer();
    let start = Instant::now();
    for _ in 0..number(JOBS) {
        producer.enqueue(&payload).expect("enqueued");
    }
    (queue, start.elapsed())
}

fn drain_here(dir: &Path) -> Duration {
    let (queue, report) = Queue::builder(dir).open().expect("a queue");
    assert!(report.is_clean(), "{report:?}");
    let consumer = queue.consumer();
    let start = Instant::now();
    for _ in 0..report.jobs {
        let job = consumer.next().expect("open");
        black_box(job.payload().last());
        job.ack();
    }
    start.elapsed()
}

fn read_here(dir: &Path) -> Duration {
    let mut buffer = vec![0; 1024 * 1024];
    let start = Instant::now();
    for mut file in segment_files(dir) {
        while file.read(&mut buffer).expect("read") > 0 {
            black_box(&buffer);
        }
    }
    start.elapsed()
}
