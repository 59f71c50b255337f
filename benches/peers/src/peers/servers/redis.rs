//! Redis as a reliable queue: LPUSH, a move to a list of jobs in work, and LREM from there.

use std::io::{BufRead, Write as _};
use std::process::Command;

use anyhow::{Result, bail};
use tempfile::TempDir;

use super::{Client, Wire, first_line_of, read_bytes, read_line};

pub const GUARANTEE: &str =
    "each step survives kill -9 of the server; a power cut loses a second (appendfsync everysec)";

const JOBS: &[u8] = b"jobs";
const TAKEN: &[u8] = b"taken";

/// The version of Redis, if it is installed.
pub fn version() -> Option<String> {
    let line = first_line_of("redis-server", "--version")?;
    let version = line
        .split_whitespace()
        .find_map(|word| word.strip_prefix("v="))?;
    Some(version.to_owned())
}

/// How a server keeps its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// As it comes: snapshots after an hour, or after fewer minutes with many changes.
    Default,
    /// Also an append-only file, flushed each second.
    EverySecond,
    /// Also an append-only file, flushed before each reply.
    Always,
    /// The append-only file, flushed each second, without snapshots beside it.
    OnlyEverySecond,
}

impl Persistence {
    fn args(self) -> &'static [&'static str] {
        match self {
            Self::Default => &[],
            Self::EverySecond => &["--appendonly", "yes", "--appendfsync", "everysec"],
            Self::Always => &["--appendonly", "yes", "--appendfsync", "always"],
            Self::OnlyEverySecond => &[
                "--appendonly",
                "yes",
                "--appendfsync",
                "everysec",
                "--save",
                "",
            ],
        }
    }
}

pub fn command(dir: &TempDir, port: u16, persistence: Persistence) -> Command {
    let mut command = Command::new("redis-server");
    command
        .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
        .args(persistence.args())
        .args(["--daemonize", "no", "--dir"])
        .arg(dir.path());
    command
}

pub fn connect(wire: Wire) -> Box<dyn Client> {
    Box::new(Redis {
        wire,
        requests: Vec::new(),
    })
}

struct Redis {
    wire: Wire,
    requests: Vec<u8>,
}

impl Redis {
    fn send(&mut self) -> Result<()> {
        self.wire.send(&self.requests)?;
        self.requests.clear();
        Ok(())
    }

    fn reply(&mut self) -> Result<Reply> {
        read_reply(&mut self.wire.0)
    }
}

impl Client for Redis {
    fn put(&mut self, payloads: &[Vec<u8>]) -> Result<()> {
        for payload in payloads {
            write_request(&mut self.requests, &[b"LPUSH", JOBS, payload]);
        }
        self.send()?;
        for _ in payloads {
            self.reply()?;
        }
        Ok(())
    }

    fn exchange(&mut self, done: &[Vec<u8>], want: usize) -> Result<Vec<Vec<u8>>> {
        for payload in done {
            write_request(&mut self.requests, &[b"LREM", TAKEN, b"-1", payload]);
        }
        for request in 0..want {
            // Waits for the first job if there is nothing else to do, and takes the ones after it.
            if request == 0 && done.is_empty() {
                let wait_for_ever: &[u8] = b"0";
                write_request(
                    &mut self.requests,
                    &[b"BLMOVE", JOBS, TAKEN, b"RIGHT", b"LEFT", wait_for_ever],
                );
            } else {
                write_request(
                    &mut self.requests,
                    &[b"LMOVE", JOBS, TAKEN, b"RIGHT", b"LEFT"],
                );
            }
        }
        self.send()?;
        for _ in done {
            match self.reply()? {
                Reply::Integer(1) => {}
                other => bail!("LREM: {other:?}"),
            }
        }
        let mut taken = Vec::new();
        for _ in 0..want {
            if let Reply::Bytes(payload) = self.reply()? {
                taken.push(payload);
            }
        }
        Ok(taken)
    }
}

#[derive(Debug, PartialEq)]
enum Reply {
    Text(String),
    Integer(i64),
    Bytes(Vec<u8>),
    Nothing,
}

/// A request is an array of byte strings.
fn write_request(to: &mut Vec<u8>, words: &[&[u8]]) {
    // Writing to memory does not fail.
    let _ = write!(to, "*{}\r\n", words.len());
    for word in words {
        let _ = write!(to, "${}\r\n", word.len());
        to.extend_from_slice(word);
        to.extend_from_slice(b"\r\n");
    }
}

/// Reads a reply; an error reply of the server becomes an `Err`.
fn read_reply(reader: &mut impl BufRead) -> Result<Reply> {
    let line = read_line(reader)?;
    let Some((kind, rest)) = line.split_at_checked(1) else {
        bail!("an empty reply");
    };
    match (kind, rest) {
        ("+", text) => Ok(Reply::Text(text.to_owned())),
        ("-", error) => bail!("the server says: {error}"),
        (":", number) => Ok(Reply::Integer(number.parse()?)),
        ("$" | "*", "-1") => Ok(Reply::Nothing),
        ("$", len) => Ok(Reply::Bytes(read_bytes(reader, len.parse()?)?)),
        _ => bail!("a reply that no request here has: {line}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_counts_its_words_and_their_bytes() {
        let mut request = Vec::new();
        write_request(&mut request, &[b"LPUSH", b"jobs", b"a\r\nb"]);
        assert_eq!(
            request,
            b"*3\r\n$5\r\nLPUSH\r\n$4\r\njobs\r\n$4\r\na\r\nb\r\n"
        );
    }

    #[test]
    fn replies_are_read_one_after_the_other() {
        let mut bytes: &[u8] = b"+OK\r\n:-7\r\n$4\r\na\r\nb\r\n$0\r\n\r\n$-1\r\n*-1\r\n-ERR no\r\n";
        let mut next = || read_reply(&mut bytes);
        assert_eq!(next().unwrap(), Reply::Text("OK".to_owned()));
        assert_eq!(next().unwrap(), Reply::Integer(-7));
        assert_eq!(next().unwrap(), Reply::Bytes(b"a\r\nb".to_vec()));
        assert_eq!(next().unwrap(), Reply::Bytes(Vec::new()));
        assert_eq!(next().unwrap(), Reply::Nothing);
        assert_eq!(next().unwrap(), Reply::Nothing);
        assert_eq!(next().unwrap_err().to_string(), "the server says: ERR no");
        assert!(next().is_err(), "nothing is left");
    }

    #[test]
    fn a_reply_that_is_cut_off_is_an_error() {
        for cut in ["", ":1", "$4\r\nab", "$2\r\nabcd", "?\r\n", "\r\n"] {
            assert!(read_reply(&mut cut.as_bytes()).is_err(), "{cut:?}");
        }
    }
}
