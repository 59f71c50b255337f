//! The peers' programs: starts them, and reads what their workers noted.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde::Deserialize;
use tempfile::TempDir;

use crate::context::Context;
use crate::peers::servers::{Persistence, Server, redis_version};

/// The directory of the programs.
const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/jobs");
const PYTHON: &str = ".venv/bin/python";
const APALIS: &str = "apalis/target/release/logmill-peers-apalis";
/// What is installed, as the versions are pinned.
const REQUIREMENTS: &str = include_str!("../../jobs/requirements.txt");
const PACKAGES: &str = include_str!("../../jobs/bullmq/package.json");
const APALIS_LOCK: &str = include_str!("../../jobs/apalis/Cargo.lock");

/// Bytes that a worker appends for each job: its number, when it was enqueued and when it began.
const RECORD: u64 = 24;
/// Jobs before those that are measured, which show that the worker is ready.
const WARM_UP: u64 = 20;
/// How long a turn may go on without any job's end.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a worker may take to end.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// A job system, set up in some way.
#[derive(Clone, Copy)]
pub struct Peer {
    /// The directory that its programs are started in.
    pub folder: &'static str,
    /// The server that it needs.
    pub redis: Option<Persistence>,
    pub produce: &'static [&'static str],
    /// How the producer is told to send several jobs in a call, if it is to.
    pub bulk: bool,
    /// None: the producer works as well, or there is nothing to be done.
    pub work: Option<&'static [&'static str]>,
}

impl Peer {
    /// Whether its programs are there.
    pub fn check(&self) -> Result<()> {
        let missing = || anyhow!("not installed: run benches/peers/jobs/install.sh");
        let needed: &[&str] = match self.folder {
            "bullmq" => &["bullmq/node_modules/bullmq"],
            "apalis" => &[APALIS],
            // Each is installed with the others.
            _ => &[PYTHON],
        };
        if self.folder == "bullmq" {
            said("node").ok_or_else(|| anyhow!("no Node.js: install it with npm"))?;
        }
        for path in needed {
            ensure!(Path::new(PROGRAMS).join(path).exists(), missing());
        }
        if self.redis.is_some() {
            redis_version().ok_or_else(|| anyhow!("no Redis: run benches/peers/servers.sh"))?;
        }
        Ok(())
    }

    /// Nanoseconds for each enqueue, with nothing that takes the jobs.
    pub fn enqueue(&self, context: &Context, jobs: u64) -> Result<Vec<f64>> {
        let turn = Turn::start(context, self)?;
        let sent = turn.produce(jobs, 0, self.bulk.then_some("bulk"));
        let (_producer, sent) = sent.with_context(|| turn.last_words())?;
        ensure!(sent.waiting == jobs, "{} of {jobs} wait", sent.waiting);
        Ok(vec![(sent.ended - sent.started) as f64 / jobs as f64])
    }

    /// Nanoseconds for each job, from the first enqueue until the last is in its handler.
    pub fn end_to_end(&self, context: &Context, jobs: u64) -> Result<Vec<f64>> {
        let (sent, records) = self.work_off(context, jobs, self.bulk.then_some("bulk"))?;
        let last = records.iter().map(|record| record.begun).max();
        let took = last.context("no job")?.saturating_sub(sent.started);
        Ok(vec![took as f64 / jobs as f64])
    }

    /// Nanoseconds from each enqueue to the handler, at so many jobs a second.
    pub fn latencies(&self, context: &Context, jobs: u64, rate: u64) -> Result<Vec<f64>> {
        let (_, records) = self.work_off(context, jobs, Some(&rate.to_string()))?;
        let waits = records.iter();
        let waits = waits.map(|record| record.begun.saturating_sub(record.at) as f64);
        Ok(waits.collect())
    }

    fn work_off(
        &self,
        context: &Context,
        jobs: u64,
        how: Option<&str>,
    ) -> Result<(Sent, Vec<Record>)> {
        let turn = Turn::start(context, self)?;
        let worker = self.work.map(|work| turn.work(work)).transpose()?;
        let run = || -> Result<_> {
            if worker.is_some() {
                turn.produce(WARM_UP, 0, None)?;
                turn.wait_for(WARM_UP)?;
            }
            let (_producer, sent) = turn.produce(jobs, WARM_UP, how)?;
            turn.wait_for(WARM_UP + jobs)?;
            Ok((sent, records_of(&fs::read(turn.done())?, jobs)?))
        };
        run().with_context(|| turn.last_words())
    }
}

/// The line that a producer prints.
#[derive(Deserialize)]
struct Sent {
    started: u64,
    ended: u64,
    waiting: u64,
}

/// What a worker noted of a job, times in nanoseconds of the monotonic clock.
struct Record {
    number: u64,
    at: u64,
    begun: u64,
}

/// A peer's turn: its server, and its files.
struct Turn<'a> {
    peer: &'a Peer,
    server: Option<Arc<Server>>,
    dir: TempDir,
}

impl<'a> Turn<'a> {
    fn start(context: &Context, peer: &'a Peer) -> Result<Self> {
        let start = |persistence| Server::redis_with(context, persistence);
        let turn = Self {
            peer,
            server: peer.redis.map(start).transpose()?,
            dir: context.fresh()?,
        };
        File::create(turn.done())?;
        Ok(turn)
    }

    fn done(&self) -> PathBuf {
        self.dir.path().join("done")
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// A program of the peer, with what it has to know.
    fn command(&self, words: &[&str]) -> Result<Command> {
        let port = self.server.as_ref().map_or(0, |server| server.port());
        let dir = self.dir.path().to_string_lossy().into_owned();
        let words = words.iter();
        let mut words = words.map(|word| {
            let word = word.replace("{port}", &port.to_string());
            word.replace("{dir}", &dir)
        });
        let program = words.next().context("no program")?;
        let mut command = if program.contains('/') {
            Command::new(Path::new(PROGRAMS).join(program))
        } else {
            Command::new(program)
        };
        let log = File::options().create(true).append(true).open(self.log())?;
        command
            .args(words)
            .current_dir(Path::new(PROGRAMS).join(self.peer.folder))
            .env("REDIS_PORT", port.to_string())
            .env("DONE", self.done())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stderr(log);
        Ok(command)
    }

    fn work(&self, words: &[&str]) -> Result<Program> {
        let mut command = self.command(words)?;
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Ok(Program(command.spawn().context("starting the worker")?))
    }

    /// Runs a producer until all its calls have returned. One that works as well goes on until the
    /// program is dropped.
    fn produce(&self, jobs: u64, first: u64, how: Option<&str>) -> Result<(Program, Sent)> {
        let mut command = self.command(self.peer.produce)?;
        command.args([jobs.to_string(), first.to_string()]);
        command.args(how);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut program = Program(command.spawn().context("starting the producer")?);
        let mut line = String::new();
        if let Some(stdout) = program.0.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let sent = serde_json::from_str(&line)
            .with_context(|| format!("the producer said {:?}", line.trim()))?;
        Ok((program, sent))
    }

    /// Waits until the worker has noted so many jobs.
    fn wait_for(&self, jobs: u64) -> Result<()> {
        let mut last = (0, Instant::now());
        loop {
            let done = fs::metadata(self.done())?.len() / RECORD;
            if done >= jobs {
                return Ok(());
            }
            if done > last.0 {
                last = (done, Instant::now());
            }
            if last.1.elapsed() > PATIENCE {
                bail!("{done} of {jobs} jobs ended");
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The last line that the programs said.
    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let last = log.trim().lines().next_back().unwrap_or_default();
        last.replace('|', "/")
    }
}

/// What a worker noted of the jobs that are measured: each of them, once.
fn records_of(bytes: &[u8], jobs: u64) -> Result<Vec<Record>> {
    let records = bytes.chunks_exact(RECORD as usize).map(|bytes| {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        Record {
            number: word(0),
            at: word(8),
            begun: word(16),
        }
    });
    let records: Vec<Record> = records.filter(|record| record.number >= WARM_UP).collect();
    let numbers: HashSet<u64> = records.iter().map(|record| record.number).collect();
    let is_all = (WARM_UP..WARM_UP + jobs).all(|number| numbers.contains(&number));
    ensure!(
        is_all && records.len() as u64 == jobs,
        "{} runs of {} jobs, not {jobs}",
        records.len(),
        numbers.len()
    );
    Ok(records)
}

/// A program, which is asked to end when it is dropped, and killed if it does not.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let deadline = Instant::now() + SHUTDOWN;
        while Instant::now() < deadline {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The version of a program, if it is installed.
fn said(program: &str) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Some(text.trim().to_owned())
}

/// The versions of the peers, of what runs them, and of Redis.
pub fn versions() -> String {
    let python = Path::new(PROGRAMS).join(PYTHON);
    let missing = || "not installed".to_owned();
    let pinned = |text: &str, before: &str| {
        let (_, rest) = text.split_once(before)?;
        let end = rest.find(['"', '\n']).unwrap_or(rest.len());
        Some(rest[..end].to_owned())
    };
    let bullmq = pinned(PACKAGES, "\"bullmq\": \"").unwrap_or_default();
    let rq = pinned(REQUIREMENTS, "\nrq==").unwrap_or_default();
    let celery = pinned(REQUIREMENTS, "\ncelery==").unwrap_or_default();
    let apalis = pinned(APALIS_LOCK, "name = \"apalis-sqlite\"\nversion = \"").unwrap_or_default();
    format!(
        "BullMQ {bullmq} on Node.js {}; RQ {rq} and Celery {celery} on {}; apalis-sqlite {apalis}; \
         Redis {}",
        said("node").unwrap_or_else(missing),
        said(&python.to_string_lossy()).unwrap_or_else(missing),
        redis_version().unwrap_or_else(missing),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_did_not_run_or_ran_twice_is_an_error() {
        let noted = |numbers: &[u64]| {
            let words = numbers.iter().flat_map(|number| [*number, 5, 7]);
            let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
            records_of(&bytes, 2).map(|records| records.len())
        };
        // The first is of the warm-up.
        assert_eq!(noted(&[1, 21, 20]).unwrap(), 2);
        for wrong in [&[20][..], &[20, 20], &[20, 21, 21], &[20, 22]] {
            assert!(noted(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_versions_that_are_pinned_are_found() {
        let versions = versions();
        for peer in ["BullMQ ", "RQ ", "Celery ", "apalis-sqlite "] {
            let (_, version) = versions.split_once(peer).unwrap();
            assert!(
                version.starts_with(|c: char| c.is_ascii_digit()),
                "{versions}"
            );
        }
    }
}
