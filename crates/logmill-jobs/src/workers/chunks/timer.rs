//! The thread that sleeps until the first chunk is due, and then has a worker of the pool run it. A
//! pool without handlers of chunks has none.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::{Chunks, DUE};
use crate::error::StartError;
use crate::user_code;
use crate::workers::pool::Shared;

impl Chunks {
    /// Starts the thread, if one is needed.
    pub(in crate::workers) fn start(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        name: &str,
    ) -> Result<(), StartError> {
        if self.by_kind.is_empty() {
            return Ok(());
        }
        let shared = Arc::downgrade(shared);
        // Who advances a manual clock does the thread's work.
        let advanced = Weak::clone(&shared);
        let advances = self.clock.on_advance(move || {
            if let Some(shared) = advanced.upgrade() {
                shared.chunks.look(&shared);
            }
        });
        let _ = self.advances.set(advances);
        let chunks = Arc::clone(self);
        let thread = std::thread::Builder::new().name(format!("{name}-chunks"));
        thread
            .spawn(move || {
                while chunks.sleep() {
                    let Some(shared) = shared.upgrade() else {
                        return;
                    };
                    chunks.look(&shared);
                }
            })
            .map_err(StartError::Thread)?;
        Ok(())
    }

    /// Sleeps until a chunk is due that was not; false if the pool has ended.
    fn sleep(&self) -> bool {
        let mut state = self.state.lock();
        loop {
            if state.is_closed {
                return false;
            }
            state.looks_again = false;
            let now = self.clock.now();
            // What is due by then was told, and threads go on to ask for it.
            let next = match self.has_due() {
                true => state.first_after(now),
                false => state.first_due(),
            };
            if next.is_some_and(|next| next <= now) {
                return true;
            }
            state.looks_at = next;
            while !state.looks_again && !state.is_closed {
                match next.and_then(|next| self.clock.sleeps_until(next)) {
                    Some(time) => {
                        if self.changed.wait_until(&mut state, time).timed_out() {
                            break;
                        }
                    }
                    None => self.changed.wait(&mut state),
                }
            }
        }
    }

    /// Has a worker run what is due.
    fn look(&self, shared: &Shared) {
        let is_due = {
            let state = self.state.lock();
            let now = self.clock.now();
            let is_due = state.first_due().is_some_and(|due| due <= now);
            if is_due {
                self.calls.fetch_or(DUE, Ordering::SeqCst);
            }
            is_due
        };
        if is_due {
            // The backend may call wakers of the application.
            let woken = user_code::call(|| shared.have_chunks_looked_at());
            if let Err(panic) = woken {
                tracing::error!(panic, "the backend panicked");
            }
        }
    }
}

impl super::State {
    /// When the first chunk is due of those that are not.
    fn first_after(&self, now: Instant) -> Option<Instant> {
        let due = self.open.iter().filter_map(|open| open.due);
        due.filter(|due| *due > now).min()
    }
}
