//! Runs each fuzz target over its corpus: the seeds and all inputs that a fuzzer found.

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
fn records_and_acks_are_decoded_as_the_format_says() {
    run("record", logmill_fuzz::record);
}

#[test]
fn only_jobs_that_pass_their_checks_are_delivered_from_any_segment_bytes() {
    run("segment", logmill_fuzz::segment);
}

#[test]
fn only_acks_that_pass_their_checks_count_in_any_ack_bytes() {
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
