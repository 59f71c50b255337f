//! Queue servers over the loopback interface: private instances that this program starts and stops.

mod beanstalkd;
mod redis;

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use tempfile::TempDir;

use super::payload;
use crate::contender::Jobs;
use crate::context::Context;
use crate::threads::{self, share};

pub use beanstalkd::{GUARANTEE as BEANSTALKD, version as beanstalkd_version};
pub use redis::{GUARANTEE as REDIS, Persistence, version as redis_version};

/// Requests that a pipelining client has under way at once.
pub const PIPELINE: usize = 16;
/// How long a server may take from its start until it listens.
const START: Duration = Duration::from_secs(10);
/// How long to wait for a reply before giving up.
const REPLY: Duration = Duration::from_secs(30);

/// The operations of a client of a queue server.
pub trait Client: Send {
    /// Puts jobs into the queue: all requests in one write, then all replies.
    fn put(&mut self, payloads: &[Vec<u8>]) -> Result<()>;

    /// Acks jobs and asks for up to `want` others: all requests in one write, then all replies.
    /// Waits only if it has nothing to ack. Returns what identifies the new jobs for their ack.
    fn exchange(&mut self, done: &[Vec<u8>], want: usize) -> Result<Vec<Vec<u8>>>;
}

/// A private server, which ends when it is dropped.
pub struct Server {
    process: Mutex<Child>,
    address: SocketAddr,
    connect: fn(Wire) -> Box<dyn Client>,
    _dir: TempDir,
}

impl Server {
    pub fn redis(context: &Context) -> Result<Arc<Self>> {
        Self::redis_with(context, Persistence::OnlyEverySecond)
    }

    /// Redis with what a user chose for the durability of its data.
    pub fn redis_with(context: &Context, persistence: Persistence) -> Result<Arc<Self>> {
        let command = |dir: &TempDir, port| redis::command(dir, port, persistence);
        Self::start(context.fresh()?, command, redis::connect)
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn beanstalkd(context: &Context) -> Result<Arc<Self>> {
        Self::start(context.fresh()?, beanstalkd::command, beanstalkd::connect)
    }

    fn start(
        dir: TempDir,
        command: impl Fn(&TempDir, u16) -> Command,
        connect: fn(Wire) -> Box<dyn Client>,
    ) -> Result<Arc<Self>> {
        // The port is free at this moment; if another program takes it first, the start fails with
        // a message.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
            .local_addr()?
            .port();
        let process = command(&dir, port)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => {
                    anyhow!("not installed: run benches/peers/servers.sh")
                }
                _ => anyhow!("not started: {error}"),
            })?;
        let server = Self {
            process: Mutex::new(process),
            address: (Ipv4Addr::LOCALHOST, port).into(),
            connect,
            _dir: dir,
        };
        let deadline = Instant::now() + START;
        while TcpStream::connect(server.address).is_err() {
            if let Some(status) = server.process().try_wait()? {
                bail!("ended at once: {status}");
            }
            if Instant::now() > deadline {
                bail!("does not listen");
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(Arc::new(server))
    }

    fn process(&self) -> std::sync::MutexGuard<'_, Child> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn client(&self) -> Result<Box<dyn Client>> {
        let stream = TcpStream::connect(self.address).context("connecting")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(REPLY))?;
        Ok((self.connect)(Wire(BufReader::new(stream))))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut process = self.process();
        // Its data is removed next, so a kill loses nothing.
        let _ = process.kill();
        let _ = process.wait();
    }
}

/// A connection: requests are written whole, and replies are read by lines and lengths.
pub struct Wire(BufReader<TcpStream>);

impl Wire {
    fn send(&mut self, requests: &[u8]) -> Result<()> {
        Ok(self.0.get_mut().write_all(requests)?)
    }
}

/// Reads a line without its CR LF.
fn read_line(reader: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    match line.strip_suffix("\r\n") {
        Some(text) => Ok(text.to_owned()),
        None => bail!("the connection ended in the middle of a reply"),
    }
}

/// Reads this many bytes and the CR LF after them.
fn read_bytes(reader: &mut impl BufRead, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len + 2];
    reader.read_exact(&mut bytes)?;
    if bytes.split_off(len) != b"\r\n" {
        bail!("no end of line after {len} bytes");
    }
    Ok(bytes)
}

/// Put, take and ack with this many requests under way at once; 1: one request per round trip.
pub fn end_to_end(
    server: Result<Arc<Server>>,
    threads: usize,
    size: usize,
    pipeline: usize,
) -> Result<Jobs> {
    let server = server?;
    let clients = || -> Result<Vec<Mutex<Box<dyn Client>>>> {
        (0..threads)
            .map(|_| Ok(Mutex::new(server.client()?)))
            .collect()
    };
    let (producers, consumers) = (clients()?, clients()?);
    let mut number = 0u64;
    Ok(Box::new(move |jobs| {
        let _keep = &server;
        let first = number;
        number += jobs;
        threads::timed(
            threads,
            |thread| {
                let mut client = lock(&producers[thread]);
                let before: u64 = (0..thread).map(|other| share(jobs, threads, other)).sum();
                let start = first + before;
                let end = start + share(jobs, threads, thread);
                let mut at = start;
                while at < end {
                    let batch = (end - at).min(pipeline as u64);
                    let payloads: Vec<_> = (at..at + batch)
                        .map(|number| numbered(number, size))
                        .collect();
                    client.put(&payloads)?;
                    at += batch;
                }
                Ok(())
            },
            |thread, others| {
                let mut client = lock(&consumers[thread]);
                let mut left = share(jobs, threads, thread) as usize;
                let mut held = Vec::new();
                while left > 0 || !held.is_empty() {
                    others.check()?;
                    if pipeline == 1 {
                        held = client.exchange(&[], 1)?;
                        client.exchange(&held, 0)?;
                        left -= held.len();
                        held.clear();
                    } else {
                        held = client.exchange(&held, left.min(pipeline))?;
                        left -= held.len();
                    }
                }
                Ok(())
            },
        )
    }))
}

/// A payload that no other job has, since Redis acks by value.
fn numbered(number: u64, size: usize) -> Vec<u8> {
    let mut payload = payload(size);
    payload[..8].copy_from_slice(&number.to_be_bytes());
    payload
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The first line that a program prints.
fn first_line_of(program: &str, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().next().map(str::to_owned)
}
