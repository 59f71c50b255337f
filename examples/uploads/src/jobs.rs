//! The two jobs that every upload causes, and the functions that run them.

use std::path::PathBuf;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use logmill_jobs::{Backoff, Context, Job, JobResult, State, secs};
use serde::{Deserialize, Serialize};

use crate::mailer::Mailer;
use crate::resize::make_sizes;
use crate::screen::{Screen, count};

/// The queue of both kinds.
pub(crate) const QUEUE: &str = "uploads";

/// Short, so that the whole life of a job fits into a demonstration.
const BACKOFF: Backoff = Backoff::exponential(Duration::from_millis(20), secs(1));

/// Makes the sizes of a photo.
#[derive(Serialize, Deserialize, Job)]
#[job(kind = "resize", queue = QUEUE, max_retries = 3, backoff = BACKOFF)]
pub(crate) struct Resize {
    pub name: String,
    pub photo: PathBuf,
}

/// Thanks for an upload.
#[derive(Serialize, Deserialize, Job)]
#[job(kind = "mail", queue = QUEUE, max_retries = 3, backoff = BACKOFF)]
pub(crate) struct Mail {
    pub name: String,
}

pub(crate) fn resize(job: Resize, State(studio): State<Arc<Studio>>, cx: Context) -> JobResult {
    let start = Instant::now();
    make_sizes(&job.photo, &studio.folder_of(&job.name), cx.id().number())?;
    let micros = start.elapsed().as_micros() as u64;
    studio.resize_micros.fetch_add(micros, Relaxed);
    studio.resized.fetch_add(1, Relaxed);
    studio.die_if_told_to();
    Ok(())
}

pub(crate) fn mail(job: Mail, State(studio): State<Arc<Studio>>, cx: Context) -> JobResult {
    studio.mailer.send(&job.name, cx.attempt())?;
    studio.mailed.fetch_add(1, Relaxed);
    studio.die_if_told_to();
    Ok(())
}

/// What the handlers share.
pub(crate) struct Studio {
    pub photos: PathBuf,
    pub mailer: Mailer,
    pub screen: Screen,
    pub resized: AtomicU64,
    pub resize_micros: AtomicU64,
    pub mailed: AtomicU64,
    pub kill_after: Option<u64>,
}

impl Studio {
    pub(crate) fn folder_of(&self, upload: &str) -> PathBuf {
        self.photos.join(upload)
    }

    pub(crate) fn done(&self) -> u64 {
        self.resized.load(Relaxed) + self.mailed.load(Relaxed)
    }

    /// Dies at the worst moment: the job's work is done, and the queue does not know it yet.
    fn die_if_told_to(&self) {
        if self.kill_after.is_some_and(|jobs| self.done() >= jobs) {
            let done = count(self.done(), "job");
            self.screen.say(format_args!(
                "\nAborting after {done}, as told by --kill-after. Run again without it to resume."
            ));
            process::abort();
        }
    }
}
