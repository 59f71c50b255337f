//! What the benchmarks share: jobs of 64 bytes, and a count of those that are done.

// Each suite uses only some of it.
#![allow(dead_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use logmill_jobs::Job;
use serde::{Deserialize, Serialize};

/// 64 bytes as JSON.
#[derive(Serialize, Deserialize, Job)]
#[job(kind = "touch", key = "tenant")]
pub(crate) struct Touch {
    pub(crate) tenant: String,
    pub(crate) user: u64,
    pub(crate) text: String,
}

/// The same without a key.
#[derive(Serialize, Deserialize, Job)]
#[job(kind = "plain")]
pub(crate) struct Plain {
    pub(crate) tenant: String,
    pub(crate) user: u64,
    pub(crate) text: String,
}

pub(crate) fn plain(user: u64) -> Plain {
    Plain {
        tenant: "Ada".to_owned(),
        user: 1_000_000 + user % 1_000_000,
        text: "twenty letters, more".to_owned(),
    }
}

pub(crate) fn touch(user: u64) -> Touch {
    let Plain { tenant, user, text } = plain(user);
    Touch { tenant, user, text }
}

pub(crate) type Done = Arc<AtomicU64>;

/// Waits until so many are done.
pub(crate) fn until(done: &AtomicU64, count: u64) {
    while done.load(Ordering::Relaxed) < count {
        std::hint::spin_loop();
    }
}
