//! Photo uploads: a web handler that answers at once, and workers that resize later.
//!
//! Whoever uploads a picture should not wait while it is resized and a mail is sent. So the handler
//! enqueues two jobs and answers; workers do the rest, retry what fails, and keep as dead what fails
//! too often. This program is all of that in one process, on real pictures:
//!
//! ```text
//! cargo run --release -p uploads                       # the pictures of this example
//! cargo run --release -p uploads -- ~/Pictures         # your own
//! cargo run --release -p uploads -- --kill-after 10    # die half way ...
//! cargo run --release -p uploads                       # ... and resume
//! ```

mod inbox;
mod jobs;
mod mailer;
mod resize;
mod screen;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use logmill_jobs::backend::QueueStats;
use logmill_jobs::{DeadJob, EnqueueError, JobQueue, Mill, Workers, secs};

use inbox::{Accepted, Upload};
use jobs::{Mail, QUEUE, Resize, Studio};
use mailer::Mailer;
use screen::{Screen, count, percentiles, short};

/// Accept a folder of pictures as uploads; resize them and send welcome mails in the background.
#[derive(Parser)]
#[command(name = "uploads")]
struct Args {
    /// Folder of pictures (JPEG, PNG) to upload [default: those that come with the example]
    folder: Option<PathBuf>,

    /// Folder for the resized pictures and the outbox [default: target/uploads of this repository]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,

    /// Directory of the queue [default: `jobs` in the output folder]
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

fn main() -> Result<()> {
    let args = Args::parse();
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = args.folder.clone();
    let folder = folder.unwrap_or_else(|| package.join("data"));
    let out = args.out.clone();
    let root = package.ancestors().nth(2).unwrap_or(package);
    let out = out.unwrap_or_else(|| root.join("target/uploads"));
    let path = args.queue.clone().unwrap_or_else(|| out.join("jobs"));

    let uploads = inbox::uploads_in(&folder, args.repeat)?;
    fs::create_dir_all(&out).with_context(|| format!("making the folder {}", out.display()))?;
    let accepted = Accepted::open(&path)?;
    let mill = Mill::builder(&path)
        .sync(matches!(args.durable, Survives::PowerCut))
        .open()
        .with_context(|| format!("opening the queue {}", path.display()))?;
    let queue = mill.queue(QUEUE)?;

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
    let left = queue.stats()?;
    screen.say(format_args!(
        "{} from {}",
        count(uploads.len() as u64, "upload"),
        shown(&folder)
    ));
    if new.len() < uploads.len() {
        screen.say(format_args!(
            "Resuming: an earlier run accepted {} of them and left {} and {} in {}",
            uploads.len() - new.len(),
            count(waiting(&left), "job"),
            count(left.dead, "dead job"),
            shown(&path),
        ));
    }
    screen.say("");

    let mut workers = Workers::new(Arc::clone(&studio))
        .on(jobs::resize)
        .on(jobs::mail)
        .name("studio");
    if args.workers > 0 {
        workers = workers.threads(args.workers.into());
    }
    let workers = workers.start(&mill)?;
    let waits = accept_all(&mill, &queue, &studio, &accepted, &new, args.uploaders)?;
    summarize(&queue, &studio, new.len(), waits)?;
    let purged = empty_the_dead_letters(&queue, &studio)?;

    let report = workers.shutdown(secs(30));
    ensure!(report.finished_in_time, "some jobs did not finish in time");
    mill.close()?;
    let owed = waiting(&left) + left.dead + 2 * new.len() as u64;
    ensure!(
        studio.done() + purged == owed,
        "each of {owed} jobs is to be done once, and {} were done, {purged} purged",
        studio.done()
    );
    check_sizes(&studio, &uploads)?;
    if let Some(jobs) = args.kill_after {
        screen.say(format_args!(
            "(--kill-after {jobs} was never reached: this run did only {}.)",
            count(studio.done(), "job")
        ));
    }
    accepted.forget().context("ending the list of uploads")
}

/// The web handler: what it is sent is stored, here under `upload.path`. It enqueues the work and
/// answers `202 Accepted`. Returns how long each enqueue took.
fn accept(mill: &Mill, upload: &Upload) -> Result<[Duration; 2], EnqueueError> {
    let (name, photo) = (upload.name(), upload.path.clone());
    let mail = Mail { name: name.clone() };
    let start = Instant::now();
    mill.enqueue(Resize { name, photo })?;
    let between = Instant::now();
    mill.enqueue(mail)?;
    Ok([between - start, between.elapsed()])
}

/// Plays the web server and waits until the jobs are done. Returns how long each enqueue took.
fn accept_all(
    mill: &Mill,
    queue: &JobQueue,
    studio: &Studio,
    accepted: &Accepted,
    uploads: &[&Upload],
    uploaders: u16,
) -> Result<Vec<Duration>> {
    let next = AtomicUsize::new(0);
    let serve = || -> Result<Vec<Duration>> {
        let mut waits = Vec::new();
        while let Some(&upload) = uploads.get(next.fetch_add(1, Relaxed)) {
            let took = accept(mill, upload);
            waits.extend(took.with_context(|| format!("accepting {}", upload.name()))?);
            accepted.add(upload).context("noting an accepted upload")?;
        }
        Ok(waits)
    };
    let bar = studio.screen.bar("accepted", uploads.len() as u64);
    let waits = thread::scope(|scope| {
        let threads: Vec<_> = (0..uploaders).map(|_| scope.spawn(serve)).collect();
        watch(queue, studio, "done", || {
            bar.set_position(next.load(Relaxed).min(uploads.len()) as u64);
            threads.iter().all(|thread| thread.is_finished())
        })?;
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
fn watch(
    queue: &JobQueue,
    studio: &Studio,
    what: &'static str,
    mut no_more: impl FnMut() -> bool,
) -> Result<()> {
    let before = queue.stats()?;
    let bar = studio.screen.bar(what, waiting(&before));
    loop {
        let last = no_more();
        let stats = queue.stats()?;
        let ended = (stats.completed + stats.dead).saturating_sub(before.completed + before.dead);
        let message = format!(
            "{} resized, {} mailed, {}, {}",
            studio.resized.load(Relaxed),
            studio.mailed.load(Relaxed),
            count(stats.retried, "retry").replace("retrys", "retries"),
            count(stats.dead, "dead job"),
        );
        let total = ended + waiting(&stats);
        studio.screen.progress(&bar, ended, total, message);
        if last && waiting(&stats) == 0 {
            break;
        }
        thread::sleep(Duration::from_millis(30));
    }
    bar.finish_and_clear();
    Ok(())
}

/// The closing summary: what the accepting side waited, what the workers did, and what is dead.
fn summarize(queue: &JobQueue, studio: &Studio, new: usize, waits: Vec<Duration>) -> Result<()> {
    let screen = &studio.screen;
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
        queue.stats()?.retried
    ));
    let dead = queue.dead_jobs()?;
    screen.say(format_args!("Dead     {}", count(dead.len() as u64, "job")));
    screen.list_dead(&dead);
    Ok(())
}

/// What an operator does in the morning: fix the mailer, replay what it refused, and purge what no
/// replay can help. Returns how many were purged.
fn empty_the_dead_letters(queue: &JobQueue, studio: &Studio) -> Result<u64> {
    let screen = &studio.screen;
    let (hopeless, refused): (Vec<_>, Vec<_>) =
        queue.dead_jobs()?.into_iter().partition(is_hopeless);
    if hopeless.is_empty() && refused.is_empty() {
        return Ok(0);
    }
    studio.mailer.fix();
    for dead in &refused {
        queue.replay(dead).context("replaying a dead job")?;
    }
    watch(queue, studio, "replayed", || true)?;
    for dead in &hopeless {
        queue.purge(dead).context("purging what is not a picture")?;
    }
    let left = queue.dead_jobs()?;
    screen.say(format_args!(
        "\nThe mailer is fixed: {} replayed, {} purged (not an image), {} left",
        count(refused.len() as u64, "dead job"),
        hopeless.len(),
        left.len()
    ));
    ensure!(left.is_empty(), "some jobs died again: {left:?}");
    Ok(hopeless.len() as u64)
}

/// Whether a job failed because of what its file is.
fn is_hopeless(dead: &DeadJob) -> bool {
    dead.reason().starts_with(resize::NO_IMAGE)
}

/// Jobs that are neither done nor dead.
fn waiting(stats: &QueueStats) -> u64 {
    stats.left()
}

/// Every picture has its three sizes, whichever run made them.
fn check_sizes(studio: &Studio, uploads: &[Upload]) -> Result<()> {
    let mut pictures = 0;
    for upload in uploads {
        if resize::is_complete(&studio.folder_of(&upload.name())) {
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
