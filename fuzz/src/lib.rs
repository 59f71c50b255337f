//! The bodies of the fuzz targets. Each takes arbitrary bytes and checks that the library neither
//! panics nor hangs, and that it agrees with a second implementation of the format, or with the
//! model.
//!
//! `cargo +nightly fuzz run segment --features libfuzzer` fuzzes a target. `cargo test` in this
//! directory runs the bodies over the corpus, with the stable toolchain.

mod damage;
// The model and its driver are shared with the model test, so that there is one definition of the
// contract.
#[path = "../../tests/model/driver.rs"]
mod driver;
#[path = "../../tests/model/files.rs"]
mod files;
mod format;
mod good_queue;
#[path = "../../tests/model/labels.rs"]
mod labels;
mod manifest;
#[path = "../../tests/model/model.rs"]
mod model;
#[path = "../../tests/model/operation.rs"]
#[expect(dead_code, reason = "the fuzzer never pauses for seconds")]
mod operation;
mod operations;
mod record;

use std::path::Path;
use std::time::Duration;

use logmill::{Queue, RetryPolicy};

pub use damage::{ack, segment};
pub use manifest::manifest;
pub use operations::operations;
pub use record::record;

const STRIPES: usize = 1;
const SEGMENT_SIZE: u64 = 16 * 1024;

/// A directory in memory, if there is such a file system, so that flushes take no time.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a temporary directory")
}

fn builder(dir: &Path) -> logmill::Builder {
    Queue::builder(dir)
        .stripes(STRIPES)
        .segment_size(SEGMENT_SIZE)
        .retry(RetryPolicy::fixed(Duration::ZERO))
}

/// Whether an input gets the slow checks: one input of this many under a fuzzer, chosen by a hash
/// so that the fuzzer does not prefer them; all inputs otherwise.
fn is_one_in(inputs: u32, bytes: &[u8]) -> bool {
    !cfg!(feature = "libfuzzer") || crc32fast::hash(bytes).is_multiple_of(inputs)
}
