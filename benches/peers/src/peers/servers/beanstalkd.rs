//! beanstalkd with its binlog: put, reserve, delete.

use std::io::Write as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use super::{Client, Wire, first_line_of, read_bytes, read_line};

pub const GUARANTEE: &str =
    "each step survives kill -9 of the server; a power cut loses 50 ms (its default)";

/// Milliseconds between two flushes of the binlog; the default.
const FLUSH_EVERY: &str = "50";
/// Seconds after which a reserved job is delivered again; longer than any turn.
const TIME_TO_RUN: u32 = 3600;

/// The version of beanstalkd, if it is installed.
pub fn version() -> Option<String> {
    let line = first_line_of("beanstalkd", "-v")?;
    Some(line.trim_start_matches("beanstalkd ").to_owned())
}

pub fn command(dir: &TempDir, port: u16) -> Command {
    let mut command = Command::new("beanstalkd");
    command
        .args(["-l", "127.0.0.1", "-p", &port.to_string()])
        .args(["-f", FLUSH_EVERY, "-b"])
        .arg(dir.path());
    command
}

pub fn connect(wire: Wire) -> Box<dyn Client> {
    Box::new(Beanstalkd {
        wire,
        requests: Vec::new(),
    })
}

struct Beanstalkd {
    wire: Wire,
    requests: Vec<u8>,
}

impl Beanstalkd {
    fn send(&mut self) -> Result<()> {
        self.wire.send(&self.requests)?;
        self.requests.clear();
        Ok(())
    }

    /// Reads a line that must begin with `start`, and returns the rest.
    fn expect(&mut self, start: &str) -> Result<String> {
        let line = read_line(&mut self.wire.0)?;
        match line.strip_prefix(start) {
            Some(rest) => Ok(rest.trim().to_owned()),
            None => bail!("the server says: {line}"),
        }
    }
}

impl Client for Beanstalkd {
    fn put(&mut self, payloads: &[Vec<u8>]) -> Result<()> {
        for payload in payloads {
            write!(self.requests, "put 0 0 {TIME_TO_RUN} {}\r\n", payload.len())?;
            self.requests.extend_from_slice(payload);
            self.requests.extend_from_slice(b"\r\n");
        }
        self.send()?;
        for _ in payloads {
            self.expect("INSERTED")?;
        }
        Ok(())
    }

    fn exchange(&mut self, done: &[Vec<u8>], want: usize) -> Result<Vec<Vec<u8>>> {
        for id in done {
            self.requests.extend_from_slice(b"delete ");
            self.requests.extend_from_slice(id);
            self.requests.extend_from_slice(b"\r\n");
        }
        for _ in 0..want {
            self.requests.extend_from_slice(b"reserve\r\n");
        }
        self.send()?;
        for _ in done {
            self.expect("DELETED")?;
        }
        let mut taken = Vec::new();
        for _ in 0..want {
            let job = self.expect("RESERVED")?;
            let (id, len) = job
                .split_once(' ')
                .context("a reserved job without length")?;
            read_bytes(&mut self.wire.0, len.parse()?)?;
            taken.push(id.as_bytes().to_vec());
        }
        Ok(taken)
    }
}
