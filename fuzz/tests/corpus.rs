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

/// Writes the seeds of `segment` and `ack`: what hits the header, the records and the end of the
/// files, of a queue that died and of one that was closed.
#[test]
#[ignore = "only when the form of the inputs changes"]
fn write_seeds() {
    let changes: [(&str, &[u8]); 5] = [
        ("byte", &[0x55]),
        ("zeros", &[0; 64]),
        ("ones", &[0xff; 16]),
        ("length", &[0x20, 0, 0, 0]),
        ("many-zeros", &[0; 3000]),
    ];
    for (target, offsets) in [
        // The last record starts at 4,888.
        ("segment", [0, 8, 48, 64, 68, 76, 96, 1000, 4000, 4888]),
        ("ack", [0, 8, 40, 64, 68, 72, 100, 192, 212, 300]),
    ] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("corpus")
            .join(target);
        for sealed in [0, 2] {
            for offset in offsets {
                for (name, bytes) in changes {
                    if bytes.len() > 1000 && offset > 100 {
                        continue;
                    }
                    let mut input = vec![sealed];
                    input.extend_from_slice(&u16::to_le_bytes(offset));
                    input.extend_from_slice(bytes);
                    let name = format!("{name}-at-{offset}-of-{sealed}");
                    fs::write(dir.join(name), input).unwrap();
                }
            }
            for (name, bytes) in [
                ("empty", &[][..]),
                ("short", &[1; 40]),
                ("zeros", &[0; 2000]),
            ] {
                let input = [&[1 | sealed, 0, 0], bytes].concat();
                fs::write(dir.join(format!("replaced-{name}-{sealed}")), input).unwrap();
            }
        }
    }
}
