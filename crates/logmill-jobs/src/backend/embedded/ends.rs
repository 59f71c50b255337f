//! Jobs that end without a completion, as the engine tells of them.

use std::sync::Weak;

use logmill::{ObservedJob, Observer};

use super::Shared;
use crate::backend::{End, Ended, FLOW_HEADER, KEY_HEADER, ORDER_HEADER, UNIQUE_HEADER};

/// The observer of a queue.
pub(super) struct Ends {
    pub(super) shared: Weak<Shared>,
    pub(super) queue: String,
}

impl Ends {
    fn tell(&self, job: &ObservedJob, how: End<'_>) {
        let Some(shared) = self.shared.upgrade() else {
            return;
        };
        if let Some(tell) = shared.on_end.get() {
            let kind = job.name().unwrap_or_default();
            let unique = job.headers().get(UNIQUE_HEADER);
            let header = |name| job.headers().get(name);
            let ended = Ended::new(&self.queue, job.id().get(), kind, unique, how);
            let ended = ended.flow(header(FLOW_HEADER)).key(header(KEY_HEADER));
            let ended = ended.order(header(ORDER_HEADER));
            tell(&ended.attempt(job.attempts()));
        }
    }
}

impl Observer for Ends {
    fn observes_completions(&self) -> bool {
        false
    }

    fn dead(&self, job: &ObservedJob, reason: &str) {
        self.tell(job, End::Dead(reason));
    }

    fn cancelled(&self, job: &ObservedJob) {
        self.tell(job, End::Cancelled);
    }
}
