//! A child process that fills a queue and is killed, to leave a queue as a crash does.

use std::fs;
use std::io::{BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use logmill::Queue;

use crate::peers::limit::record_bytes;

/// The child prints this when it has filled the queue.
const FILLED: &str = "filled";
/// How long the child may take to prepare a segment.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the ack file, once it exists, may take to be complete.
const SETTLING: Duration = Duration::from_millis(200);

/// What a queue of one stripe is filled with.
#[derive(clap::Args)]
pub struct Fill {
    #[arg(long)]
    pub dir: PathBuf,
    #[arg(long)]
    pub segment_size: u64,
    /// Bytes of records
    #[arg(long)]
    pub bytes: u64,
    /// Bytes of a payload
    #[arg(long)]
    pub payload: usize,
}

pub type Args = Fill;

/// Runs in the child: fills the queue and waits to be killed.
pub fn run(fill: &Args) -> Result<()> {
    let (queue, _) = Queue::builder(&fill.dir)
        .stripes(1)
        .segment_size(fill.segment_size)
        .open()?;
    let mut producer = queue.producer();
    let payload = vec![7; fill.payload];
    for _ in 0..fill.bytes / record_bytes(fill.payload) as u64 {
        producer.enqueue(&payload)?;
    }
    // Waits until the maintenance thread has prepared the next segment after the open; the ack file
    // is made last.
    let deadline = Instant::now() + PATIENCE;
    while files(&fill.dir, "ack")?.len() < 2 {
        if Instant::now() > deadline {
            bail!("the next segment is not made ready");
        }
        thread::sleep(Duration::from_millis(5));
    }
    thread::sleep(SETTLING);
    println!("{FILLED}");
    // Returns if the parent ends before it kills this process.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    std::process::exit(1);
}

/// The segment files of the only stripe.
pub fn segments(queue_dir: &Path) -> Result<Vec<PathBuf>> {
    files(queue_dir, "seg")
}

fn files(queue_dir: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(queue_dir.join("log/00"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
    Ok(files)
}

/// Runs in the parent: returns when the child has filled the queue and is dead.
pub fn fill_and_kill(fill: &Fill) -> Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("child")
        .arg("--dir")
        .arg(&fill.dir)
        .args(["--segment-size", &fill.segment_size.to_string()])
        .args(["--bytes", &fill.bytes.to_string()])
        .args(["--payload", &fill.payload.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting the child")?;
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut said)?;
    }
    // `kill` sends SIGKILL.
    child.kill()?;
    child.wait()?;
    if said.trim() != FILLED {
        bail!("the child did not fill its queue");
    }
    Ok(())
}
