//! Jobs that survive a power cut: many producers that share flushes, and one that waits for each
//! flush.

use anyhow::Result;

use super::{SIZES, size_name};
use crate::contender::{Comparison, Contender, Outcome};
use crate::context::Context;
use crate::format::Unit;
use crate::peers::{databases, files, group, limit, logmill, raft_engine};

/// Threads that enqueue with `Sync` at once.
const PRODUCERS: usize = 64;
/// Calls from which a turn's median and 99th percentile are taken.
const CALLS: usize = 2000;

pub fn run(context: &Context) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for size in SIZES {
        outcomes.push(group_commit(context, size)?.run(context));
    }
    for size in SIZES {
        outcomes.push(one_producer(context, size)?.run(context));
    }
    Ok(outcomes)
}

fn group_commit(context: &Context, size: usize) -> Result<Comparison> {
    let dir = || context.fresh();
    let logmill = |stripes| logmill::group_commit(dir()?, stripes, PRODUCERS, size);
    Ok(Comparison {
        name: format!("durable/group/{size}"),
        title: format!("Group commit, {PRODUCERS} producers, {}", size_name(size)),
        note: format!(
            "Time per job; the ratios are also those of the bytes per second. Each producer waits \
             for the flush of its job. *write + fdatasync* is a loop that writes {PRODUCERS} \
             records of the same size at once into a preallocated file and flushes it. That is one \
             record of each producer, the largest batch that they can share; the library does not \
             count its flushes. *shared write + fdatasync* has as many threads as there are \
             producers, which share such writes and flushes through a mutex and a condition \
             variable, without a log: what the loop costs once each record has a thread to be \
             woken. In *raft-engine* each producer writes to a Raft group of its own, into files \
             of 8 MiB that were written in advance; reading and removing the entries after each \
             turn is not timed."
        ),
        unit: Unit::Nanoseconds,
        figures: &["per job"],
        rounds: None,
        contenders: vec![
            Contender::jobs("logmill, 1 stripe", logmill::SYNC, logmill(1)),
            Contender::jobs("logmill, 2 stripes", logmill::SYNC, logmill(2)),
            Contender::jobs(
                "write + fdatasync",
                limit::FLUSHED,
                limit::write_and_flush(dir()?, size, PRODUCERS),
            ),
            Contender::jobs(
                "shared write + fdatasync",
                limit::FLUSHED,
                group::shared_flushes(dir()?, size, PRODUCERS),
            ),
            Contender::jobs(
                "raft-engine",
                raft_engine::SYNC,
                raft_engine::group_commit(dir()?, size, PRODUCERS),
            ),
        ],
    })
}

fn one_producer(context: &Context, size: usize) -> Result<Comparison> {
    let dir = || context.fresh();
    let calls = context.pace.pick(CALLS, 100);
    Ok(Comparison {
        name: format!("durable/one/{size}"),
        title: format!("Flush for each job, one producer, {}", size_name(size)),
        note: format!(
            "Time of a call: median and 99th percentile of {calls} calls per turn. *write + \
             fdatasync* is a loop that writes the same record into a preallocated file and flushes \
             it."
        ),
        unit: Unit::Nanoseconds,
        figures: &["median", "p99"],
        rounds: None,
        contenders: vec![
            Contender::figures(
                "logmill",
                logmill::SYNC,
                logmill::sync_latency(dir()?, size, calls),
            ),
            Contender::figures(
                "write + fdatasync",
                limit::FLUSHED,
                limit::write_and_flush_latency(dir()?, size, calls),
            ),
            Contender::figures(
                "queue-file",
                files::QUEUE_FILE_SYNC,
                files::queue_file_sync_latency(dir()?, size, calls),
            ),
            Contender::figures(
                "SQLite",
                databases::SQLITE_FULL,
                databases::sqlite_sync_latency(dir()?, size, calls),
            ),
        ],
    })
}
