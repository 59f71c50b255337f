//! The bodies of the fuzz targets: each takes bytes that anybody could have written, and demands
//! that there is no panic and no hang, and that the library makes of them just what a second
//! implementation of the format does, or the model.
//!
//! `cargo +nightly fuzz run segment --features libfuzzer` fuzzes; `cargo test`, in this directory,
//! runs the bodies over the corpus, with the stable toolchain.

mod damage;
// The model-based test's own model and driver, so that there is one notion of the contract.
#[path = "../../tests/model/driver.rs"]
mod driver;
#[path = "../../tests/model/files.rs"]
mod files;
mod format;
mod good_queue;
mod manifest;
#[path = "../../tests/model/model.rs"]
mod model;
#[path = "../../tests/model/operation.rs"]
#[expect(dead_code, reason = "pauses of seconds are not for a fuzzer")]
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

/// In memory, if there is such a file system: a fuzzer's time is not for flushes.
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

/// Whether an input gets the checks that take long: one in so many under a fuzzer, which prefers
/// no input for it, and all of them without.
fn is_one_in(inputs: u32, bytes: &[u8]) -> bool {
    !cfg!(feature = "libfuzzer") || crc32fast::hash(bytes).is_multiple_of(inputs)
}
