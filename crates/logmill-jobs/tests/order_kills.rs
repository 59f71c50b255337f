//! Strict order per key, while the process is killed: whatever was enqueued first begins first, across
//! all lives of the process, and failures and dead jobs hold their keys back in each of them.

mod killing;

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use logmill_jobs::{
    Backoff, Context, Job, JobResult, Limit, Mill, MillOptions, Order, Pool, Priority, State,
    Workers, discard, secs,
};
use serde::{Deserialize, Serialize};

use killing::{LEAST, length};

const DIRECTORY: &str = "LOGMILL_JOBS_ORDER_KILLS";
const LIFE: &str = "LOGMILL_JOBS_ORDER_LIFE";
/// Far more than it takes, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
const LIVES: u64 = 8;
const KEYS: u64 = 5;

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "apply", queue = "ledger", key = "account", max_retries = 100, backoff = Backoff::fixed(Duration::from_millis(2)))]
struct Apply {
    account: u64,
    number: u64,
}

/// What the processes note of what happened, which survives them.
#[derive(Clone)]
struct Notes(Arc<Mutex<File>>);

impl Notes {
    fn open(dir: &Path) -> Self {
        let path = dir.join("notes");
        let mut options = OpenOptions::new();
        let file = options.create(true).append(true).open(path).unwrap();
        Self(Arc::new(Mutex::new(file)))
    }

    fn note(&self, what: &str, job: &Apply) {
        let line = format!("{what} {} {}\n", job.account, job.number);
        self.0.lock().unwrap().write_all(line.as_bytes()).unwrap();
    }
}

fn apply(job: Apply, State(notes): State<Notes>, cx: Context) -> JobResult {
    notes.note("begun", &job);
    std::thread::yield_now();
    match (job.number % 97, job.number % 7, cx.attempt()) {
        // Its key waits until somebody replays it, which is what the process does from time to time.
        (13, _, _) if cx.enqueued_at().elapsed().unwrap() < Duration::from_millis(20) => {
            Err(discard("not yet"))
        }
        (_, 3, 1) => Err("failed")?,
        _ => Ok(()),
    }
}

fn start(dir: &Path) -> (Mill, Pool, Notes) {
    let options = MillOptions::new()
        .order(Order::on_queue("ledger"))
        .limit(Limit::on_kind("apply").at_once(2));
    let builder = Mill::builder(dir.join("jobs")).options(options);
    let mill = builder.open().unwrap();
    let notes = Notes::open(dir);
    let workers = Workers::new(notes.clone()).on(apply).threads(3);
    let pool = workers.start(&mill).unwrap();
    (mill, pool, notes)
}

fn replay_all(mill: &Mill) {
    let queue = mill.queue("ledger").unwrap();
    for dead in queue.dead_jobs().unwrap() {
        queue.replay(&dead).unwrap();
    }
}

/// Enqueues and works until it is killed.
#[test]
#[ignore = "run by the other test"]
fn child() {
    let dir = PathBuf::from(std::env::var_os(DIRECTORY).expect("run by the other test"));
    let life: u64 = std::env::var(LIFE).unwrap().parse().unwrap();
    let (mill, _pool, notes) = start(&dir);
    // Each key's next number is enqueued by whatever thread comes first.
    let next: Vec<_> = (0..KEYS).map(|_| Mutex::new(life * 1_000_000)).collect();
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (mill, next, notes) = (&mill, &next, &notes);
            scope.spawn(move || {
                for round in thread.. {
                    let account = round % KEYS;
                    let mut number = next[account as usize].lock().unwrap();
                    let job = Apply {
                        account,
                        number: *number,
                    };
                    let level = Priority::ALL[(round % 3) as usize];
                    mill.job(job).priority(level).enqueue().unwrap();
                    let number_of = *number;
                    *number += 1;
                    drop(number);
                    let job = Apply {
                        account,
                        number: number_of,
                    };
                    notes.note("enqueued", &job);
                    if round % 50 == 0 {
                        replay_all(mill);
                    }
                    std::thread::sleep(Duration::from_micros(100));
                }
            });
        }
    });
}

#[test]
fn the_order_of_each_key_holds_however_often_the_process_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    for life in 0..LIVES {
        let noted = length(dir.path());
        killing::kill(
            &[
                (DIRECTORY, dir.path().to_str().unwrap()),
                (LIFE, &life.to_string()),
            ],
            |_| length(dir.path()) > noted + LEAST,
            Duration::from_millis(40 + life * 53 % 97),
        );
    }

    // The rest is done in peace.
    let (mill, pool, _) = start(dir.path());
    let queue = mill.queue("ledger").unwrap();
    let start = Instant::now();
    loop {
        replay_all(&mill);
        let stats = queue.stats().unwrap();
        if stats.left() + stats.dead == 0 {
            break;
        }
        let blocked = mill.blocked_keys();
        assert!(start.elapsed() < PATIENCE, "{stats:?}, {blocked:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(pool.shutdown(secs(60)).finished_in_time);
    let notes = std::fs::read_to_string(dir.path().join("notes")).unwrap();
    let mut begun: HashMap<u64, Vec<u64>> = HashMap::new();
    let mut enqueued: HashMap<u64, Vec<u64>> = HashMap::new();
    for line in notes.lines() {
        let parts: Vec<_> = line.split(' ').collect();
        let (account, number) = (parts[1].parse().unwrap(), parts[2].parse().unwrap());
        match parts[0] {
            "begun" => begun.entry(account).or_default().push(number),
            _ => enqueued.entry(account).or_default().push(number),
        }
    }
    for account in 0..KEYS {
        let (begun, enqueued) = (&begun[&account], &enqueued[&account]);
        // How many there are depends on how soon the disk lets each life begin.
        assert!(enqueued.len() > 5, "{}", enqueued.len());
        // An attempt may be repeated, and nothing before it comes again.
        if let Some(at) = begun.windows(2).position(|pair| pair[0] > pair[1]) {
            let around = &begun[at.saturating_sub(8)..begun.len().min(at + 10)];
            let again = begun[at + 1];
            let first = begun.iter().position(|&number| number == again);
            panic!("account {account}: {again} at {at}, first at {first:?}: {around:?}");
        }
        let lost = enqueued.iter().find(|number| !begun.contains(number));
        assert_eq!(lost, None, "account {account}");
    }
}
