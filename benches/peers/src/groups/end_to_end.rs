//! The time from the first enqueue until the last job is acked, with producers and consumers at
//! work together.

use std::sync::Arc;

use anyhow::{Result, anyhow};
use persistent_queue::Durability;

use super::{SIZES, size_name};
use crate::contender::{Comparison, Contender, Outcome};
use crate::context::Context;
use crate::format::Unit;
use crate::peers::servers::{self, PIPELINE, Server};
use crate::peers::{
    databases, files, limit, logmill, memory, persistent_queue as persistent, ring,
};

const NOTE: &str = "Time per job or message, from the first enqueue until the last job is acked or \
                    the last message is received. Producers and consumers run at once; the title \
                    says how many of each. Consumers touch every payload. Each message costs yaque \
                    a send, a receive and a commit; SQLite INSERT, UPDATE .. RETURNING (claim) and \
                    DELETE, each a transaction; fjall an insert, a read of the first key and a \
                    remove; queue-file an add, a peek and a remove; persistent-queue a push, \
                    a reserve and an ack, each a transaction of its database; Redis LPUSH, BLMOVE and LREM; \
                    beanstalkd put, reserve and delete. *limit* is a ring in memory for each producer and \
                    its consumer: what the limit of an enqueue does, and a load, a look at the \
                    payload and one locked add for each record, 256 at a time. *limit, zeroed* is the \
                    same, and another thread zeroes what was read, a third of the ring at a time, \
                    before it is written again.";

pub fn run(context: &Context) -> Result<Vec<Outcome>> {
    // All comparisons use the same instance of each server.
    let servers = Servers {
        redis: Server::redis(context),
        beanstalkd: Server::beanstalkd(context),
    };
    let mut outcomes = Vec::new();
    for threads in [1, 2] {
        for size in SIZES {
            outcomes.push(comparison(context, &servers, threads, size)?.run(context));
        }
    }
    Ok(outcomes)
}

struct Servers {
    redis: Result<Arc<Server>>,
    beanstalkd: Result<Arc<Server>>,
}

fn again(server: &Result<Arc<Server>>) -> Result<Arc<Server>> {
    match server {
        Ok(server) => Ok(Arc::clone(server)),
        Err(error) => Err(anyhow!("{error:#}")),
    }
}

/// persistent-queue with each of its databases, without and with flushes. It has one consumer.
fn persistent_queue(context: &Context, size: usize) -> [Contender; 4] {
    let sled = |durability| persistent::sled_end_to_end(context.fresh()?, size, durability);
    let redb = |durability| persistent::redb_end_to_end(context.fresh()?, size, durability);
    [
        Contender::jobs(
            "persistent-queue, sled",
            persistent::SLED,
            sled(Durability::None),
        ),
        Contender::jobs(
            "persistent-queue, redb",
            persistent::REDB,
            redb(Durability::None),
        ),
        Contender::jobs(
            "persistent-queue, sled, fsync",
            persistent::SYNC,
            sled(Durability::Sync),
        ),
        Contender::jobs(
            "persistent-queue, redb, fsync",
            persistent::SYNC,
            redb(Durability::Sync),
        ),
    ]
}

/// logmill, the channel and the limits alone.
pub fn logmill_and_channel(context: &Context, threads: usize, size: usize) -> Result<Comparison> {
    let contenders = memory_and_logmill(context, threads, size)?;
    Ok(of(contenders.into(), threads, size))
}

fn memory_and_logmill(context: &Context, threads: usize, size: usize) -> Result<[Contender; 4]> {
    Ok([
        Contender::jobs(
            "logmill",
            logmill::PROCESS,
            logmill::end_to_end(context.fresh()?, threads, size),
        ),
        Contender::jobs(
            "crossbeam channel",
            memory::NOTHING,
            memory::channel_end_to_end(threads, size),
        ),
        Contender::jobs(
            "limit",
            limit::ANONYMOUS,
            ring::end_to_end(threads, size, false),
        ),
        Contender::jobs(
            "limit, zeroed",
            limit::ANONYMOUS,
            ring::end_to_end(threads, size, true),
        ),
    ])
}

fn comparison(
    context: &Context,
    servers: &Servers,
    threads: usize,
    size: usize,
) -> Result<Comparison> {
    let dir = || context.fresh();
    let mut contenders = Vec::from(memory_and_logmill(context, threads, size)?);
    contenders.push(Contender::jobs(
        "crossbeam SegQueue",
        memory::NOTHING,
        memory::seg_queue_end_to_end(threads, size),
    ));
    if threads == 1 {
        contenders.push(Contender::jobs(
            "yaque",
            files::YAQUE,
            files::yaque_end_to_end(dir()?, size),
        ));
        contenders.extend(persistent_queue(context, size));
    }
    contenders.extend([
        Contender::jobs(
            "queue-file",
            files::QUEUE_FILE,
            files::queue_file_end_to_end(dir()?, threads, size),
        ),
        Contender::jobs(
            "SQLite",
            databases::SQLITE_NORMAL,
            databases::sqlite_end_to_end(dir()?, threads, size),
        ),
        Contender::jobs(
            "fjall",
            databases::FJALL,
            databases::fjall_end_to_end(dir()?, threads, size),
        ),
        Contender::jobs(
            "Redis",
            servers::REDIS,
            servers::end_to_end(again(&servers.redis), threads, size, 1),
        ),
        Contender::jobs(
            "Redis, 16 in flight",
            servers::REDIS,
            servers::end_to_end(again(&servers.redis), threads, size, PIPELINE),
        ),
        Contender::jobs(
            "beanstalkd",
            servers::BEANSTALKD,
            servers::end_to_end(again(&servers.beanstalkd), threads, size, 1),
        ),
        Contender::jobs(
            "beanstalkd, 16 in flight",
            servers::BEANSTALKD,
            servers::end_to_end(again(&servers.beanstalkd), threads, size, PIPELINE),
        ),
    ]);
    Ok(of(contenders, threads, size))
}

fn of(contenders: Vec<Contender>, threads: usize, size: usize) -> Comparison {
    Comparison {
        name: format!("end-to-end/{threads}x{threads}/{size}"),
        title: format!("End to end, {threads}x{threads}, {}", size_name(size)),
        note: NOTE.to_owned(),
        unit: Unit::Nanoseconds,
        figures: &["per job"],
        rounds: None,
        contenders,
    }
}
