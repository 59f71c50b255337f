//! Guarantee 9, where it is the address space that is short rather than the disk (`RLIMIT_AS`): a
//! backlog needs none, and what does waits for it.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use logmill::EnqueueOptions;
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::support::*;

const LARGE_SEGMENT: u64 = 1024 * 1024;
const LEN: usize = 50_000;
/// Beyond what the process has when its queue is open: some fifteen segments with their ack files.
const ROOM: u64 = 16 * LARGE_SEGMENT;
/// Over forty segments of them.
const JOBS: u64 = 900;

#[test]
fn a_backlog_may_be_larger_than_the_address_space() {
    let dir = tempfile::tempdir().unwrap();
    let command = Command::new(env::current_exe().unwrap());
    Child::start_under(command, "short of address space", dir.path()).finish();
}

/// Child: the limit is the whole process's.
pub(crate) fn exceed_the_address_space(dir: &Path) {
    let small = builder(dir.join("queue")).segment_size(LARGE_SEGMENT);
    let queue = open(small.clone());
    let consumer = queue.consumer();
    // What the threads allocate lazily is there from here on.
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
    eprintln!("{refused} had to wait");
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
