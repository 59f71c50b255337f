//! Opening a queue after a clean close, after `kill -9`, and with a cold cache; and the heap that
//! draining a backlog needs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ::logmill::Queue;
use anyhow::{Context as _, Result, anyhow, bail};
use rustix::fs::{Advice, fadvise};
use tempfile::TempDir;

use super::{SIZES, size_name};
use crate::child::{self, Fill};
use crate::contender::{Comparison, Contender, Figures, Outcome};
use crate::context::Context;
use crate::format::Unit;
use crate::peers::{limit, logmill};

const MIB: u64 = 1024 * 1024;
/// A large backlog, and one to compare its heap with.
const BACKLOG: u64 = 1024 * MIB;
const SMALL_BACKLOG: u64 = 256 * MIB;
/// Payload of the jobs of a backlog.
const SIZE: usize = 1024;
/// Rounds of the heap comparison: it counts bytes, which do not depend on noise.
const HEAP_ROUNDS: usize = 3;
/// The program that measures the heap; a separate one, since its allocator would slow down all
/// contenders.
const HEAP: &str = "logmill-peers-heap";

pub fn run(context: &Context) -> Result<Vec<Outcome>> {
    let mut outcomes = vec![clean(context)?.run(context)];
    let large = context.pace.pick(256, 16) * MIB;
    for segment in [8 * MIB, large] {
        for size in SIZES {
            outcomes.push(after_kill(context, segment, size, Cache::Warm)?.run(context));
        }
    }
    outcomes.push(after_kill(context, large, SIZE, Cache::Cold)?.run(context));
    outcomes.push(heap(context).run(context));
    Ok(outcomes)
}

fn clean(context: &Context) -> Result<Comparison> {
    let backlog = context.pace.pick(BACKLOG, BACKLOG / 16);
    let full = context.fresh()?;
    let (queue, _) = Queue::builder(full.path()).open()?;
    let mut producer = queue.producer();
    let payload = vec![7; SIZE];
    for _ in 0..backlog / limit::record_bytes(SIZE) as u64 {
        producer.enqueue(&payload)?;
    }
    drop(producer);
    queue.close()?;
    let empty = context.fresh()?;
    logmill::timed_open(empty.path())?;
    let open = |dir: TempDir| -> Figures {
        Box::new(move || Ok(vec![logmill::timed_open(dir.path())?.as_nanos() as f64]))
    };
    Ok(Comparison {
        name: "open/clean".to_owned(),
        title: format!(
            "Open after a clean close, backlog of {}",
            Unit::Bytes.show(backlog as f64)
        ),
        note: "Time of the call that opens the queue; segments of 8 MiB, jobs of 1 KiB, the \
               default number of stripes (one for each core, at most 8)."
            .to_owned(),
        unit: Unit::Nanoseconds,
        figures: &["open"],
        rounds: None,
        contenders: vec![
            Contender::figures("logmill, backlog", logmill::PROCESS, Ok(open(full))),
            Contender::figures("logmill, empty", logmill::PROCESS, Ok(open(empty))),
        ],
    })
}

#[derive(Clone, Copy)]
enum Cache {
    Warm,
    Cold,
}

impl Cache {
    /// Brings the files of a queue into this state of the cache.
    fn prepare(self, dir: &Path) -> Result<()> {
        for path in files_below(dir)? {
            match self {
                Self::Warm => {
                    limit::timed_read(&path)?;
                }
                // Drops only these files: dropping all caches would affect everything on the
                // machine.
                Self::Cold => {
                    let file = File::open(&path)?;
                    file.sync_all()?;
                    fadvise(&file, 0, None, Advice::DontNeed)?;
                }
            }
        }
        Ok(())
    }
}

/// A killed process has filled half of its first segment and prepared the next one. Opening that is
/// compared with reading these files.
fn after_kill(context: &Context, segment: u64, size: usize, cache: Cache) -> Result<Comparison> {
    let killed = {
        let data = context.data.clone();
        move || -> Result<TempDir> {
            let dir = tempfile::tempdir_in(&data)?;
            child::fill_and_kill(&Fill {
                dir: dir.path().to_path_buf(),
                segment_size: segment,
                bytes: segment / 2,
                payload: size,
            })?;
            cache.prepare(dir.path())?;
            Ok(dir)
        }
    };
    let killed_too = killed.clone();
    let data = context.data.clone();
    let (name, heading) = match cache {
        Cache::Warm => ("warm", "warm page cache"),
        Cache::Cold => ("cold", "cold page cache"),
    };
    Ok(Comparison {
        name: format!("open/killed/{name}/{}/{size}", segment / MIB),
        title: format!(
            "Open after kill -9, a segment of {} MiB half full of {} jobs, {heading}",
            segment / MIB,
            size_name(size)
        ),
        note: "One stripe. *read(2)* is one thread that reads the files of the two unsealed \
               segments, the one with the jobs and the one prepared to follow it, as a whole into \
               a buffer of 256 KiB; recovery scans both as a whole, too. *logmill, empty* opens a \
               queue without jobs that was closed: the part that is not recovery."
            .to_owned(),
        unit: Unit::Nanoseconds,
        figures: &["time"],
        rounds: None,
        contenders: vec![
            Contender::figures(
                "logmill",
                logmill::PROCESS,
                Ok(Box::new(move || {
                    let dir = killed()?;
                    Ok(vec![logmill::timed_open(dir.path())?.as_nanos() as f64])
                })),
            ),
            Contender::figures(
                "read(2)",
                "only reads",
                Ok(Box::new(move || {
                    let dir = killed_too()?;
                    let mut took = Duration::ZERO;
                    for path in child::segments(dir.path())? {
                        took += limit::timed_read(&path)?;
                    }
                    Ok(vec![took.as_nanos() as f64])
                })),
            ),
            Contender::figures(
                "logmill, empty",
                logmill::PROCESS,
                Ok(Box::new(move || {
                    let dir = tempfile::tempdir_in(&data)?;
                    let builder = Queue::builder(dir.path());
                    let (queue, _) = builder.stripes(1).segment_size(segment).open()?;
                    queue.close()?;
                    cache.prepare(dir.path())?;
                    Ok(vec![logmill::timed_open(dir.path())?.as_nanos() as f64])
                })),
            ),
        ],
    })
}

fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(files_below(&path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

fn heap(context: &Context) -> Comparison {
    let built = build_heap_program();
    let draining = |backlog: u64| -> Result<Figures> {
        let program = match &built {
            Ok(program) => program.clone(),
            Err(error) => bail!("{error:#}"),
        };
        let backlog = context.pace.pick(backlog, backlog / 16);
        let data = context.data.clone();
        Ok(Box::new(move || {
            let dir = tempfile::tempdir_in(&data)?;
            let output = Command::new(&program)
                .arg(dir.path())
                .args([backlog.to_string(), SIZE.to_string()])
                .output()?;
            let peak = String::from_utf8(output.stdout)?;
            let peak = peak
                .trim()
                .parse::<f64>()
                .with_context(|| format!("{HEAP}: {}", String::from_utf8_lossy(&output.stderr)))?;
            Ok(vec![peak])
        }))
    };
    let large = draining(BACKLOG);
    let small = draining(SMALL_BACKLOG);
    Comparison {
        name: "open/heap".to_owned(),
        title: "Heap in use while a backlog is drained".to_owned(),
        note: "The most bytes allocated at any moment from before the open until the last ack, \
               counted by the allocator; jobs of 1 KiB, one consumer. Mapped segments are not \
               heap: the kernel can reclaim their pages."
            .to_owned(),
        unit: Unit::Bytes,
        figures: &["peak"],
        rounds: Some(HEAP_ROUNDS),
        contenders: vec![
            Contender::figures("logmill, 1 GiB", logmill::PROCESS, large),
            Contender::figures("logmill, 256 MiB", logmill::PROCESS, small),
        ],
    }
}

/// `cargo run` builds only the program that it runs, so this builds the other one.
fn build_heap_program() -> Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name(HEAP);
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo
        .args(["build", "--quiet", "--locked", "--bin", HEAP])
        .args([
            "--manifest-path",
            concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
        ]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    match cargo.status() {
        // Built now, or before.
        _ if program.exists() => Ok(program),
        Ok(status) if status.success() => Err(anyhow!(
            "{HEAP} is not in the directory of this program, which was moved"
        )),
        Ok(status) => Err(anyhow!("{HEAP} was not built: {status}")),
        Err(error) => Err(anyhow!("{HEAP} was not built: {error}")),
    }
}
