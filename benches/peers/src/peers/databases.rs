//! Embedded databases used as a queue: SQLite and fjall.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow};
use fjall::{Database, Keyspace, KeyspaceCreateOptions};
use rusqlite::{Connection, OptionalExtension};
use tempfile::TempDir;

use super::{logmill, payload};
use crate::contender::{Figures, Jobs};
use crate::threads::{self, Others, share};

pub const SQLITE_NORMAL: &str = "each step survives kill -9 (WAL, synchronous=NORMAL)";
pub const SQLITE_FULL: &str = "a row survives a power cut (WAL, synchronous=FULL)";
pub const FJALL: &str = "each step survives kill -9; a claim is in memory";

/// A job's key and payload.
type Claimed = (i64, Vec<u8>);

/// The operations of a queue in a database. Each is a transaction of its own.
trait Table: Sync {
    fn insert(&self, payload: &[u8]) -> Result<()>;
    /// The oldest job that is not claimed.
    fn claim(&self) -> Result<Option<Claimed>>;
    fn delete(&self, key: i64) -> Result<()>;
}

/// Inserts, claims and deletes. A counter in memory tells consumers whether there is anything to
/// claim, so that consumers without jobs cost the database nothing.
fn end_to_end(table: &impl Table, threads: usize, size: usize, jobs: u64) -> Result<Duration> {
    let payload = payload(size);
    let (inserted, taken) = (AtomicU64::new(0), AtomicU64::new(0));
    let wait_for_one = |ticket: u64, others: &Others<'_>| -> Result<()> {
        while inserted.load(Ordering::Acquire) <= ticket {
            others.check()?;
            thread::yield_now();
        }
        Ok(())
    };
    threads::timed(
        threads,
        |thread| {
            for _ in 0..share(jobs, threads, thread) {
                table.insert(&payload)?;
                inserted.fetch_add(1, Ordering::Release);
            }
            Ok(())
        },
        |_, others| {
            loop {
                // Relaxed: each ticket stands for one job, no matter which.
                let ticket = taken.fetch_add(1, Ordering::Relaxed);
                if ticket >= jobs {
                    return Ok(());
                }
                wait_for_one(ticket, others)?;
                let (key, payload) = table.claim()?.ok_or_else(|| anyhow!("a job is missing"))?;
                black_box(payload[size - 1]);
                table.delete(key)?;
            }
        },
    )
}

/// One connection behind a mutex, which holds the file's lock: SQLite has one writer at a time, and
/// several connections would sleep while they wait for each other.
struct Sqlite {
    connection: Mutex<Connection>,
    _dir: TempDir,
}

impl Sqlite {
    fn new(dir: TempDir, synchronous: &str) -> Result<Self> {
        let connection = Connection::open(dir.path().join("queue.db"))?;
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", synchronous)?;
        connection.execute_batch(
            "CREATE TABLE job (
                 id INTEGER PRIMARY KEY,
                 claimed INTEGER NOT NULL DEFAULT 0,
                 payload BLOB NOT NULL
             );
             CREATE INDEX ready ON job (id) WHERE claimed = 0;",
        )?;
        Ok(Self {
            connection: Mutex::new(connection),
            _dir: dir,
        })
    }

    fn with<T>(&self, run: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        let connection = self
            .connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Ok(run(&connection)?)
    }
}

impl Table for Sqlite {
    fn insert(&self, payload: &[u8]) -> Result<()> {
        self.with(|connection| {
            connection
                .prepare_cached("INSERT INTO job (payload) VALUES (?1)")?
                .execute([payload])?;
            Ok(())
        })
    }

    fn claim(&self) -> Result<Option<Claimed>> {
        self.with(|connection| {
            connection
                .prepare_cached(
                    "UPDATE job SET claimed = 1
                     WHERE id = (SELECT id FROM job WHERE claimed = 0 ORDER BY id LIMIT 1)
                     RETURNING id, payload",
                )?
                .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()
        })
    }

    fn delete(&self, key: i64) -> Result<()> {
        self.with(|connection| {
            connection
                .prepare_cached("DELETE FROM job WHERE id = ?1")?
                .execute([key])?;
            Ok(())
        })
    }
}

pub fn sqlite_end_to_end(dir: TempDir, threads: usize, size: usize) -> Result<Jobs> {
    let table = Sqlite::new(dir, "NORMAL")?;
    Ok(Box::new(move |jobs| {
        end_to_end(&table, threads, size, jobs)
    }))
}

/// Latency of a flushed insert.
pub fn sqlite_sync_latency(dir: TempDir, size: usize, inserts: usize) -> Result<Figures> {
    let table = Sqlite::new(dir, "FULL")?;
    let payload = payload(size);
    Ok(Box::new(move || {
        logmill::latencies(inserts, || table.insert(&payload))
    }))
}

/// A keyspace with growing keys. The last claimed key is kept in memory: consumers start their
/// search after it, which also spares them the tombstones of removed jobs.
struct Fjall {
    jobs: Keyspace,
    next: Mutex<i64>,
    claimed: Mutex<i64>,
    _database: Database,
    _dir: TempDir,
}

impl Table for Fjall {
    fn insert(&self, payload: &[u8]) -> Result<()> {
        // Held until the job is inserted: a key that came late would be behind the consumers. fjall
        // writes one entry at a time anyway.
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        *next += 1;
        Ok(self.jobs.insert(next.to_be_bytes(), payload)?)
    }

    fn claim(&self) -> Result<Option<Claimed>> {
        let mut claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(guard) = self.jobs.range(claimed.to_be_bytes()..).next() else {
            return Ok(None);
        };
        let (key, payload) = guard.into_inner()?;
        let key = i64::from_be_bytes(key.as_ref().try_into()?);
        *claimed = key + 1;
        Ok(Some((key, payload.to_vec())))
    }

    fn delete(&self, key: i64) -> Result<()> {
        Ok(self.jobs.remove(key.to_be_bytes())?)
    }
}

pub fn fjall_end_to_end(dir: TempDir, threads: usize, size: usize) -> Result<Jobs> {
    let database = Database::builder(dir.path()).open()?;
    let table = Fjall {
        jobs: database.keyspace("jobs", KeyspaceCreateOptions::default)?,
        next: Mutex::new(0),
        claimed: Mutex::new(0),
        _database: database,
        _dir: dir,
    };
    Ok(Box::new(move |jobs| {
        end_to_end(&table, threads, size, jobs)
    }))
}
