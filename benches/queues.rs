//! What a thousand queues cost: time to create and to open, heap, disk, threads and descriptors, and
//! whether one busy queue among them is as fast as alone.
//!
//! `cargo bench --bench queues`. The number of queues can be set with `LOGMILL_QUEUES`. The queues
//! have one stripe and segments of 16 KiB, the smallest. They are in one `Queues`.
//!
//! - **create**: all queues of an empty directory, one after the other.
//! - **open**: existing queues, after each had 100 jobs that were acked and one that waits. *closed*:
//!   their process closed them. *killed*: it was killed; the files are in the page cache.
//! - **heap**: allocated by the opens and not freed, without the allocator's own overhead.
//! - **disk**: the blocks of all files and directories, as `stat` counts them.
//! - **busy**: jobs of 64 B, enqueued in bursts and acked, by one thread, in a queue with default
//!   options: alone, and then in a directory with the idle queues. The two alternate, and the
//!   medians are compared.

#[path = "common/mod.rs"]
mod common;

use std::alloc::System;
use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, abort};
use std::time::{Duration, Instant};

use common::scratch;
use logmill::{Queue, Queues};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static HEAP: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const QUEUES: usize = 1000;
const CHILD: &str = "LOGMILL_QUEUES_CHILD";
const KIB: f64 = 1024.0;

/// Opens all queues, and returns them with the time that this took.
fn open(dir: &Path, count: usize) -> (Queues, Vec<Queue>, Duration) {
    let start = Instant::now();
    let queues = Queues::open(dir).expect("opened");
    let opened = (0..count).map(|number| {
        let builder = queues.builder(&format!("queue-{number}"));
        let opened = builder.stripes(1).segment_size(16 * 1024).open();
        opened.expect("opened").0
    });
    let opened = opened.collect();
    (queues, opened, start.elapsed())
}

/// Has each queue do some jobs, and leaves one in it.
fn use_them(opened: &[Queue]) {
    for queue in opened {
        let consumer = queue.consumer();
        for _ in 0..100 {
            queue.enqueue(&[7; 64]).expect("enqueued");
            consumer.next().expect("a job").ack();
        }
        queue.enqueue(&[7; 64]).expect("enqueued");
    }
}

/// The bytes of the blocks of a directory and everything in it.
fn blocks(path: &Path) -> u64 {
    let own = fs::symlink_metadata(path).expect("there");
    let below: u64 = match own.is_dir() {
        true => fs::read_dir(path)
            .expect("listed")
            .map(|entry| blocks(&entry.expect("an entry").path()))
            .sum(),
        false => 0,
    };
    own.blocks() * 512 + below
}

fn entries(path: &str) -> usize {
    fs::read_dir(path).map_or(0, Iterator::count)
}

fn mappings() -> usize {
    fs::read_to_string("/proc/self/maps").map_or(0, |maps| maps.lines().count())
}

/// Opens the queues, and prints what they cost.
fn open_and_tell(what: &str, dir: &Path, count: usize) -> (Queues, Vec<Queue>) {
    let (threads, files, maps) = (
        entries("/proc/self/task"),
        entries("/proc/self/fd"),
        mappings(),
    );
    let region = Region::new(HEAP);
    let (queues, opened, time) = open(dir, count);
    // What the background threads prepare counts, too.
    std::thread::sleep(Duration::from_millis(500));
    let change = region.change();
    let heap = change.bytes_allocated as f64 - change.bytes_deallocated as f64;
    println!(
        "{what:>7}: {:7.1} ms, heap {:5.1} KiB and disk {:5.1} KiB a queue, {} threads, {:.2} descriptors and {:.2} mappings a queue",
        time.as_secs_f64() * 1000.0,
        heap / KIB / count as f64,
        blocks(dir) as f64 / KIB / count as f64,
        entries("/proc/self/task") - threads,
        (entries("/proc/self/fd") - files) as f64 / count as f64,
        (mappings() - maps) as f64 / count as f64,
    );
    (queues, opened)
}

/// The time of a job in a queue: enqueue, delivery and ack.
fn busy(queue: &Queue, bursts: usize) -> f64 {
    const BURST: u32 = 50_000;
    let consumer = queue.consumer();
    let start = Instant::now();
    for _ in 0..bursts {
        for _ in 0..BURST {
            queue.enqueue(&[7; 64]).expect("enqueued");
        }
        for _ in 0..BURST {
            consumer.next().expect("a job").ack();
        }
    }
    start.elapsed().as_secs_f64() * 1e9 / (bursts as f64 * f64::from(BURST))
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn compare(queues: &Queues, rounds: usize) {
    let dir = scratch();
    let (alone, _) = Queue::builder(dir.path()).open().expect("opened");
    let among = queues.queue("busy").expect("opened");
    let (mut of_alone, mut of_among) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        of_alone.push(busy(&alone, 10));
        of_among.push(busy(&among, 10));
    }
    let (alone, among) = (median(of_alone), median(of_among));
    println!("   busy: {alone:.1} ns a job alone, {among:.1} ns among the idle queues");
}

fn main() {
    let mut args = env::args().skip(1);
    let is_test = args.any(|arg| arg == "--test");
    let filter = env::args().skip(1).find(|arg| !arg.starts_with('-'));
    if filter.is_some_and(|filter| !"queues".contains(&filter)) {
        return;
    }
    let count = match env::var("LOGMILL_QUEUES") {
        Ok(count) => count.parse().expect("a number of queues"),
        Err(_) if is_test => 20,
        Err(_) => QUEUES,
    };
    if let Some(dir) = env::var_os(CHILD) {
        let (_queues, opened, _) = open(Path::new(&dir), count);
        use_them(&opened);
        abort();
    }
    let dir = scratch();
    println!("{count} queues");
    let created = open_and_tell("create", dir.path(), count);
    use_them(&created.1);
    drop(created);
    drop(open_and_tell("closed", dir.path(), count));
    let exe = env::current_exe().expect("known");
    let mut child = Command::new(exe);
    let child = child
        .env(CHILD, dir.path())
        .env("LOGMILL_QUEUES", count.to_string());
    let status = child.status().expect("the child runs");
    assert!(status.signal().is_some(), "the child has failed: {status}");
    let (queues, opened) = open_and_tell("killed", dir.path(), count);
    compare(&queues, if is_test { 1 } else { 11 });
    drop((queues, opened));
}
