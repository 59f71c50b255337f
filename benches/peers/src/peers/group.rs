//! Threads that only share flushes, to show what it costs to wake them.

use std::sync::{Condvar, Mutex, PoisonError};

use anyhow::{Result, anyhow, bail};
use tempfile::TempDir;

use super::limit::{Preallocated, record_bytes};
use crate::contender::Jobs;
use crate::threads::{self, share};

/// A buffer that all threads add to. One of the waiting threads writes and flushes it for all.
struct Group {
    state: Mutex<State>,
    flushed: Condvar,
    log: Mutex<Preallocated>,
}

#[derive(Default)]
struct State {
    pending: Vec<u8>,
    /// The number of batches taken to be written, and of those flushed.
    taken: u64,
    flushed: u64,
    is_flushing: bool,
    failed: bool,
}

impl Group {
    fn commit(&self, record: &[u8]) -> Result<()> {
        let mut state = self
            .state
            .lock()
            .map_err(|_| anyhow!("a thread panicked"))?;
        state.pending.extend_from_slice(record);
        let mine = state.taken + 1;
        while state.flushed < mine {
            if state.failed {
                bail!("another thread failed");
            }
            if state.is_flushing {
                state = self
                    .flushed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.is_flushing = true;
            state.taken += 1;
            let batch = std::mem::take(&mut state.pending);
            drop(state);
            let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
            let result = log.write_and_flush(&batch);
            drop(log);
            state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.is_flushing = false;
            state.flushed = state.taken;
            state.failed |= result.is_err();
            self.flushed.notify_all();
            result?;
        }
        Ok(())
    }
}

/// This many threads, each of which waits for the flush of each of its records.
pub fn shared_flushes(dir: TempDir, size: usize, producers: usize) -> Result<Jobs> {
    let group = Group {
        state: Mutex::default(),
        flushed: Condvar::new(),
        log: Mutex::new(Preallocated::new(dir)?),
    };
    let record = vec![7; record_bytes(size)];
    Ok(Box::new(move |jobs| {
        threads::timed_each(0..producers, |thread, _| {
            for _ in 0..share(jobs, producers, thread) {
                group.commit(&record)?;
            }
            Ok(())
        })
    }))
}
