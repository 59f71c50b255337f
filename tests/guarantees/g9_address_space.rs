//! Tests of guarantee 9 where the address space is short (`RLIMIT_AS`) rather than the disk: a
//! backlog needs no address space, and an enqueue that does need some can wait for it.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use logmill::EnqueueOptions;
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::support::*;

const LARGE_SEGMENT: u64 = 1024 * 1024;
const LEN: usize = 50_000;
/// Address space on top of what the process uses with the queue open: about fifteen segments with
/// their ack files.
const ROOM: u64 = 16 * LARGE_SEGMENT;
/// These jobs fill over forty segments.
const JOBS: u64 = 900;

#[test]
fn a_backlog_may_be_larger_than_the_address_space() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env::current_exe().unwrap());
    // Room for allocations that is there before the limit, for all threads together (glibc): one that
    // fails aborts the process, whatever the queue does.
    for (name, value) in [
        ("MALLOC_ARENA_MAX", "1"),
        ("MALLOC_TOP_PAD_", "268435456"),
        ("MALLOC_TRIM_THRESHOLD_", "1073741824"),
    ] {
        command.env(name, value);
    }
    Child::start_under(command, "short of address space", dir.path()).finish();
}

/// Child: sets the limit for its whole process, and enqueues a backlog beyond it.
pub(crate) fn exceed_the_address_space(dir: &Path) {
    let small = builder(dir.join("queue")).segment_size(LARGE_SEGMENT);
    let queue = open(small.clone());
    let consumer = queue.consumer();
    // Makes the threads allocate before the limit is set what they allocate lazily.
    queue.enqueue(&payload_of(JOBS, LEN)).unwrap();
    consumer.next_timeout(PATIENCE).unwrap().ack();
    drop(consumer);
    let unlimited = getrlimit(Resource::As);
    let mut limited = unlimited;
    limited.current = Some(address_space() + ROOM);
    setrlimit(Resource::As, limited).unwrap();

    let mut refused = 0;
    for number in 0..JOBS {
        let payload = payload_of(number, LEN);
        if let Err(error) = queue.enqueue(&payload) {
            assert!(error.is_full(), "{error}");
            refused += 1;
            let waiting = EnqueueOptions::new().wait(PATIENCE);
            queue.enqueue_with(&payload, waiting).unwrap();
        }
    }
    eprintln!("{refused} enqueues had to wait");
    assert_eq!(queue.stats().ready, JOBS);
    queue.close().unwrap();
    let queue = open(small);
    let numbers = drain_numbers(&queue);
    assert_eq!(numbers, (0..JOBS).collect::<Vec<_>>());
    setrlimit(Resource::As, unlimited).unwrap();
    queue.enqueue(&payload_of(0, LEN)).unwrap();
}

fn address_space() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
    let kib = kib.and_then(|kib| kib.trim().strip_suffix(" kB"));
    kib.unwrap().parse::<u64>().unwrap() * 1024
}
