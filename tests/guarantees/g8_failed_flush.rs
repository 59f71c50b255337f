//! Guarantee 8, a failed flush is final, and nothing else is: what is no failed flush ends with its
//! cause.
//!
//! No flush can be made to fail from outside; what follows when one does is tested where calls can
//! be, in `src/failing_disks/flushes.rs`.

use std::fs;

use logmill::{Durability, EnqueueOptions};

use crate::support::*;

fn sync() -> EnqueueOptions {
    EnqueueOptions::new().durability(Durability::Sync)
}

#[test]
fn without_a_failure_sync_enqueues_and_flushes_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    for _ in 0..20 {
        queue.enqueue_with(&[7; 5000], sync()).unwrap();
        queue.flush().unwrap();
    }
    queue.close().unwrap();
}

#[test]
fn a_directory_that_is_moved_away_keeps_no_flush_from_being_made() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    let (from, to) = (dir.path().join("log/00"), dir.path().join("log/away"));
    fs::rename(&from, &to).unwrap();
    for number in 0..200 {
        queue
            .enqueue_with(&payload_of(number, 1000), sync())
            .unwrap();
    }
    queue.flush().unwrap();
    assert!(files(&to, "seg").len() > 2);
    fs::rename(&to, &from).unwrap();
    queue.close().unwrap();
    let queue = open(builder(dir.path()));
    assert_eq!(drain_numbers(&queue), (0..200).collect::<Vec<_>>());
}
