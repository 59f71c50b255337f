//! Handlers that take several jobs at once.

#[cfg(feature = "tokio")]
mod awaited;
mod enough;
mod intake;
mod pools;
mod settling;
mod simulation;

use std::sync::Arc;
use std::time::Duration;

use logmill_jobs::testing::TestMill;
use logmill_jobs::{
    Backoff, Chunk, ChunkOptions, Job, JobResult, MillOptions, State, Workers, hours,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Job)]
#[job(kind = "index", queue = "index", key = "shop", max_retries = 1, backoff = Backoff::fixed(Duration::ZERO))]
struct Index {
    shop: u32,
    document: u64,
}

/// A job of one shop.
fn index(document: u64) -> Index {
    Index { shop: 1, document }
}

/// The documents of each chunk that a handler was called with, in their order there.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<Vec<u64>>>>);

impl Seen {
    fn note(&self, chunk: &Chunk<Index>) {
        let mut documents: Vec<_> = chunk.iter().map(|one| one.job.document).collect();
        // Jobs of several threads, or given back, come in no order.
        documents.sort_unstable();
        self.0.lock().push(documents);
    }

    fn chunks(&self) -> Vec<Vec<u64>> {
        self.0.lock().clone()
    }

    fn sizes(&self) -> Vec<usize> {
        self.chunks().iter().map(Vec::len).collect()
    }
}

fn notes(chunk: Chunk<Index>, State(seen): State<Seen>) -> JobResult {
    seen.note(&chunk);
    Ok(())
}

/// Workers whose handler notes what it is called with, and whose chunks wait for an hour.
fn noting(seen: &Seen, most: usize) -> Workers<Seen> {
    let chunks = ChunkOptions::up_to(most).within(hours(1));
    Workers::new(seen.clone()).on_chunk(notes, chunks)
}

fn test_mill(options: MillOptions) -> TestMill {
    TestMill::with_options(options).unwrap()
}
