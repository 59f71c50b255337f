//! Tests of guarantee 8, a failed flush is final, from the side that the public API can reach:
//! flushes that do not fail leave the queue usable.
//!
//! A test of the public API cannot make a flush fail. What follows a failed flush is tested in
//! `src/testing/fault_injection/flushes.rs`.

use std::fs;

use logmill::{Durability, EnqueueOptions};

use crate::support::*;

fn sync() -> EnqueueOptions<'static> {
    EnqueueOptions::new().durability(Durability::Sync)
}

#[test]
fn sync_enqueues_and_flushes_succeed_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let queue = open(builder(dir.path()));
    for _ in 0..20 {
        queue.enqueue_with(&[7; 5000], sync()).unwrap();
        queue.flush().unwrap();
    }
    queue.close().unwrap();
}

#[test]
fn flushes_succeed_although_the_directory_of_a_stripe_is_moved_away() {
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
