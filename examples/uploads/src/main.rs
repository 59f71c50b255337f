//! Photo uploads: a web handler that answers at once, and workers that resize later.
//!
//! Whoever uploads a picture should not wait while it is resized and a mail is sent. So the handler
//! enqueues two jobs and answers; workers do the rest, retry what fails, and put aside as a dead
//! letter what fails too often. This program is all of that in one process, on real pictures:
//!
//! ```text
//! cargo run --release -p uploads                       # the pictures of this example
//! cargo run --release -p uploads -- ~/Pictures         # your own
//! cargo run --release -p uploads -- --kill-after 10    # die half way ...
//! cargo run --release -p uploads                       # ... and resume
//! ```

mod inbox;
mod mailer;
mod resize;
mod screen;
mod task;

use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use logmill::{DeadLetter, Durability, Failure, Job, Queue, RetryPolicy};

use inbox::Accepted;
use mailer::Mailer;
use screen::{Screen, count, percentiles, short};
use task::{Task, Upload};

/// Accept a folder of pictures as uploads; resize them and send welcome mails in the background.
#[derive(Parser)]
#[command(name = "uploads")]
struct Args {
    /// Folder of pictures (JPEG, PNG) to upload [default: those that come with the example]
    folder: Option<PathBuf>,

    /// Folder for the resized pictures and the outbox [default: target/uploads of this repository]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,

    /// Directory of the queue [default: `queue` in the output folder]
    #[arg(long, value_name = "DIRECTORY")]
    queue: Option<PathBuf>,

    /// Threads that accept uploads
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=256))]
    uploaders: u16,

    /// Threads that work off the jobs; 0 is one a core
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=256))]
    workers: u16,

    /// Upload each picture this many times
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    repeat: u32,

    /// What an accepted upload survives
    #[arg(long, value_enum, default_value_t = Survives::Crash)]
    durable: Survives,

    /// How many of 100 attempts to send a mail fail, until the mailer is fixed
    #[arg(long, value_name = "PERCENT", default_value_t = 65, value_parser = clap::value_parser!(u64).range(0..=100))]
    mail_failures: u64,

    /// Picks the attempts that fail
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,

    /// Abort the process once N jobs are done; run again to see the queue resume
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    kill_after: Option<u64>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Survives {
    /// The death of this process, in whatever way
    Crash,
    /// A power cut as well: every upload is on disk before it is answered
    PowerCut,
}

/// What the workers share.
struct Studio {
    photos: PathBuf,
    mailer: Mailer,
    screen: Screen,
    resized: AtomicU64,
    resize_micros: AtomicU64,
    mailed: AtomicU64,
    kill_after: Option<u64>,
}

impl Studio {
    /// Runs one job. What it returns decides what becomes of the job: acked, retried or dead.
    fn work(&self, job: &Job<'_>) -> Result<(), Failure> {
        match Task::decode(job.payload()).map_err(Failure::dead_letter)? {
            Task::Resize(upload) => {
                let start = Instant::now();
                let id = job.id().to_string();
                resize::make_sizes(&upload.path, &self.folder_of(&upload), &id)?;
                self.resize_micros
                    .fetch_add(start.elapsed().as_micros() as u64, Relaxed);
                self.resized.fetch_add(1, Relaxed);
            }
            Task::Mail(upload) => {
                self.mailer.send(&upload.name(), job.attempts())?;
                self.mailed.fetch_add(1, Relaxed);
            }
        }
        self.die_if_told_to();
        Ok(())
    }

    fn folder_of(&self, upload: &Upload) -> PathBuf {
        self.photos.join(upload.name())
    }

    fn done(&self) -> u64 {
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

fn main() -> Result<()> {
    let args = Args::parse();
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = args.folder.clone();
    let folder = folder.unwrap_or_else(|| package.join("data"));
    let out = args.out.clone();
    let root = package.ancestors().nth(2).unwrap_or(package);
    let out = out.unwrap_or_else(|| root.join("target/uploads"));
    let queue_path = args.queue.clone().unwrap_or_else(|| out.join("queue"));

    let uploads = inbox::uploads_in(&folder, args.repeat)?;
    fs::create_dir_all(&out).with_context(|| format!("making the folder {}", out.display()))?;
    let accepted = Accepted::open(&queue_path)?;
    let queue = open(&queue_path, args.durable)?;

    let outbox = out.join("outbox.txt");
    let studio = Arc::new(Studio {
        photos: out.join("photos"),
        mailer: Mailer::new(&outbox, args.mail_failures, args.seed)
            .with_context(|| format!("opening {}", outbox.display()))?,
        screen: Screen::new(),
        resized: AtomicU64::new(0),
        resize_micros: AtomicU64::new(0),
        mailed: AtomicU64::new(0),
        kill_after: args.kill_after,
    });
    let screen = &studio.screen;

    let new: Vec<_> = uploads
        .iter()
        .filter(|one| !accepted.contains(one))
        .collect();
    greet(&queue, screen, &folder, &uploads, new.len());

    let workers = {
        let studio = Arc::clone(&studio);
        queue
            .workers(args.workers.into())
            .thread_name("studio")
            .run(move |job: &Job<'_>| studio.work(job))?
    };
    let waits = accept_all(&queue, &studio, &accepted, &new, args.uploaders.into())?;
    summarize(&queue, &studio, new.len(), waits)?;
    empty_the_dead_letters(&queue, &studio)?;

    let report = workers.shutdown(Duration::from_secs(30));
    ensure!(report.finished_in_time, "some jobs did not finish in time");
    queue.close()?;
    check_sizes(&studio, &uploads)?;
    if let Some(jobs) = args.kill_after {
        screen.say(format_args!(
            "(--kill-after {jobs} was never reached: this run did only {}.)",
            count(studio.done(), "job")
        ));
    }
    accepted.forget().context("ending the list of uploads")
}

fn open(path: &Path, durable: Survives) -> Result<Queue> {
    let (queue, report) = Queue::builder(path)
        .segment_size(1 << 20) // a few lines of text per job: the default would waste disk space
        .durability(match durable {
            Survives::Crash => Durability::Process,
            Survives::PowerCut => Durability::Sync,
        })
        // Short, so that the whole life of a job fits into a demonstration.
        .retry(
            RetryPolicy::exponential(Duration::from_millis(20), Duration::from_secs(1))
                .max_attempts(4),
        )
        .open()
        .with_context(|| format!("opening the queue {}", path.display()))?;
    ensure!(
        report.is_clean(),
        "the queue {} was damaged: {report:?}",
        path.display()
    );
    Ok(queue)
}

fn greet(queue: &Queue, screen: &Screen, folder: &Path, uploads: &[Upload], new: usize) {
    let total = count(uploads.len() as u64, "upload");
    screen.say(format_args!("{total} from {}", shown(folder)));
    if new < uploads.len() {
        let stats = queue.stats();
        screen.say(format_args!(
            "Resuming: an earlier run accepted {} of them and left {} and {} in {}",
            uploads.len() - new,
            count(stats.depth(), "job"),
            count(stats.dead, "dead letter"),
            shown(queue.path()),
        ));
    }
    screen.say("");
}

/// Plays the web handlers and waits until their jobs are done. Returns how long each enqueue took.
fn accept_all(
    queue: &Queue,
    studio: &Studio,
    accepted: &Accepted,
    uploads: &[&Upload],
    uploaders: usize,
) -> Result<Vec<Duration>> {
    let next = AtomicUsize::new(0);
    let accept = || -> Result<Vec<Duration>> {
        let mut producer = queue.producer();
        let mut waits = Vec::new();
        while let Some(&upload) = uploads.get(next.fetch_add(1, Relaxed)) {
            for task in [Task::Resize(upload.clone()), Task::Mail(upload.clone())] {
                let payload = task.encode();
                let start = Instant::now();
                producer
                    .enqueue(&payload)
                    .with_context(|| format!("accepting {}", upload.name()))?;
                waits.push(start.elapsed());
            }
            accepted.add(upload).context("noting an accepted upload")?;
        }
        Ok(waits)
    };
    let bar = studio.screen.bar("accepted", uploads.len() as u64);
    let waits = thread::scope(|scope| {
        let threads: Vec<_> = (0..uploaders).map(|_| scope.spawn(accept)).collect();
        watch(queue, studio, "done", || {
            bar.set_position(next.load(Relaxed).min(uploads.len()) as u64);
            threads.iter().all(|thread| thread.is_finished())
        });
        let waits = threads.into_iter().map(|thread| {
            let waits = thread.join();
            waits.expect("an uploader does not panic")
        });
        waits.collect::<Result<Vec<_>>>()
    });
    bar.finish_and_clear();
    Ok(waits?.concat())
}

/// Shows the queue's progress until it has no job left, and `no_more` says that none will come.
fn watch(queue: &Queue, studio: &Studio, what: &'static str, mut no_more: impl FnMut() -> bool) {
    let before = queue.stats();
    let settled_before = before.acked + before.dead_lettered;
    let bar = studio.screen.bar(what, before.depth());
    loop {
        let last = no_more();
        let stats = queue.stats();
        let settled = stats.acked + stats.dead_lettered - settled_before;
        let message = format!(
            "{} resized, {} mailed, {}, {}",
            studio.resized.load(Relaxed),
            studio.mailed.load(Relaxed),
            count(stats.retried, "retry").replace("retrys", "retries"),
            count(stats.dead, "dead letter"),
        );
        let total = settled + stats.depth();
        studio.screen.progress(&bar, settled, total, message);
        if last && stats.depth() == 0 {
            break;
        }
        thread::sleep(Duration::from_millis(30));
    }
    bar.finish_and_clear();
}

/// The closing summary: what the accepting side waited, what the workers did, and what is dead.
fn summarize(queue: &Queue, studio: &Studio, new: usize, waits: Vec<Duration>) -> Result<()> {
    let screen = &studio.screen;
    let stats = queue.stats();
    let resized = studio.resized.load(Relaxed);
    if new > 0 {
        screen.say(format_args!(
            "Accepted {}; each enqueue made its web handler wait {}",
            count(new as u64, "upload"),
            percentiles(waits)
        ));
    }
    screen.say(format_args!(
        "Done     {}: {resized} resized to {} sizes each, {} sent",
        count(studio.done(), "job"),
        resize::SIZES.len(),
        count(studio.mailed.load(Relaxed), "mail")
    ));
    if let Some(mean) = studio.resize_micros.load(Relaxed).checked_div(resized) {
        screen.say(format_args!(
            "         a resize takes {} on average, which no web handler waited for",
            short(Duration::from_micros(mean))
        ));
    }
    screen.say(format_args!(
        "Retried  {} failed attempts came back after a backoff",
        stats.retried
    ));
    let letters: Vec<_> = queue.dead_letters().iter().collect();
    screen.say(format_args!(
        "Dead     {}",
        count(letters.len() as u64, "job")
    ));
    screen.letters(&letters);
    Ok(())
}

/// What an operator does in the morning: fix the mailer, replay what it refused, and purge what no
/// replay can help.
fn empty_the_dead_letters(queue: &Queue, studio: &Studio) -> Result<()> {
    let screen = &studio.screen;
    let letters = queue.dead_letters();
    if letters.is_empty() {
        return Ok(());
    }
    studio.mailer.fix();
    let replayed = letters
        .replay_where(|letter| !is_hopeless(letter))
        .context("replaying the dead letters")?;
    watch(queue, studio, "replayed", || true);
    let purged = letters
        .purge_where(is_hopeless)
        .context("purging the files that are no pictures")?;
    screen.say(format_args!(
        "\nThe mailer is fixed: {} replayed, {} purged (not an image), {} left",
        count(replayed.len() as u64, "dead letter"),
        purged,
        letters.len()
    ));
    let left: Vec<_> = letters.iter().collect();
    ensure!(left.is_empty(), "some jobs died again: {left:?}");
    Ok(())
}

/// Whether a job failed because of what its file is.
fn is_hopeless(letter: &DeadLetter) -> bool {
    let last = letter.reasons().last();
    last.is_some_and(|failure| failure.reason.starts_with(resize::NO_IMAGE))
}

/// Every picture has its three sizes, whichever run made them.
fn check_sizes(studio: &Studio, uploads: &[Upload]) -> Result<()> {
    let mut pictures = 0;
    for upload in uploads {
        if resize::is_complete(&studio.folder_of(upload)) {
            pictures += 1;
        } else {
            // Only a file that is no picture may lack its sizes.
            let bytes = fs::read(&upload.path)
                .with_context(|| format!("reading {}", upload.path.display()))?;
            ensure!(
                resize::decode(&upload.path, &bytes).is_err(),
                "{} is a picture and has not all of its sizes",
                upload.path.display()
            );
        }
    }
    studio.screen.say(format_args!(
        "{} in {}, each in {} sizes",
        count(pictures, "picture"),
        shown(&studio.photos),
        resize::SIZES.len()
    ));
    Ok(())
}

/// A path as short as it can be said from here.
fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here)
        .unwrap_or(path)
        .display()
        .to_string()
}
