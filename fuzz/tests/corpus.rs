//! Runs each fuzz target over its corpus: seeds, and whatever was once found.

use std::fs;
use std::path::Path;

fn run(target: &str, body: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    let mut inputs = 0;
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        body(&fs::read(&path).unwrap());
        inputs += 1;
    }
    assert!(inputs > 0, "no inputs in {}", dir.display());
}

#[test]
fn segment_bytes_never_panic_nor_deliver_what_nobody_enqueued() {
    run("segment", logmill_fuzz::segment);
}

#[test]
fn ack_bytes_never_panic_nor_deliver_what_nobody_enqueued() {
    run("ack", logmill_fuzz::ack);
}

#[test]
fn manifest_bytes_are_a_queue_or_an_error() {
    run("manifest", logmill_fuzz::manifest);
}

#[test]
fn operations_agree_with_the_model() {
    run("operations", logmill_fuzz::operations);
}
