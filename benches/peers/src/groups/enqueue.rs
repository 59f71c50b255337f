//! The cost of an enqueue for one producer, while nothing receives.

use anyhow::Result;

use super::{SIZES, size_name};
use crate::contender::{Comparison, Contender, Outcome};
use crate::context::Context;
use crate::format::Unit;
use crate::peers::{files, limit, logmill, memory, walrus};

pub fn run(context: &Context) -> Result<Vec<Outcome>> {
    SIZES
        .iter()
        .map(|size| Ok(comparison(context, *size)?.run(context)))
        .collect()
}

fn comparison(context: &Context, size: usize) -> Result<Comparison> {
    let dir = || context.fresh();
    // Each turn of khata-rs fills one of its files, which is then flushed and removed.
    let khata_room = files::khata_room(size);
    Ok(Comparison {
        name: format!("enqueue/{size}"),
        title: format!("Enqueue, {}", size_name(size)),
        note: "Time per job, on one thread unless the row says two. Each burst of 50,000 jobs is \
               drained afterwards, which is not timed; a step to the next segment or file is. \
               khata-rs cannot remove messages: it writes into a new file each turn, and creating \
               and flushing that file is not timed. walrus-rust has a new process and directory \
               each turn; even without flushes of its entries it flushes each block of 10 MiB when \
               it is full. *limit* is a loop over touched anonymous \
               memory: atomic add, header, copy, CRC-32 (crc32fast), release store; with two producers, \
               each in as much memory as a burst takes, which it zeroes before it writes there."
            .to_owned(),
        unit: Unit::Nanoseconds,
        figures: &["per job"],
        rounds: None,
        contenders: vec![
            Contender::jobs("logmill", logmill::PROCESS, logmill::enqueue(dir()?, size)),
            Contender::jobs(
                "logmill, batches of 64",
                logmill::PROCESS,
                logmill::enqueue_batch(dir()?, size),
            ),
            Contender::jobs(
                "logmill, 2 producers",
                logmill::PROCESS,
                logmill::enqueue_by_two(dir()?, size),
            ),
            Contender::jobs("limit", limit::ANONYMOUS, limit::append(size)),
            Contender::jobs(
                "limit, 2 producers",
                limit::ANONYMOUS,
                limit::append_by_two(size),
            ),
            Contender::jobs(
                "crossbeam channel",
                memory::NOTHING,
                memory::channel_send(size),
            ),
            Contender::jobs(
                "crossbeam SegQueue",
                memory::NOTHING,
                memory::seg_queue_push(size),
            ),
            Contender::jobs(
                "khata-rs",
                files::KHATA,
                files::khata_write(dir()?, size, false),
            )
            .at_most(khata_room),
            Contender::jobs(
                "khata-rs, checksums",
                files::KHATA_CHECKED,
                files::khata_write(dir()?, size, true),
            )
            .at_most(khata_room),
            Contender::jobs("yaque", files::YAQUE, files::yaque_send(dir()?, size)),
            Contender::jobs(
                "queue-file",
                files::QUEUE_FILE,
                files::queue_file_add(dir()?, size),
            ),
            Contender::jobs(
                "walrus-rust",
                walrus::UNFLUSHED,
                walrus::append(dir()?, size, false),
            ),
            Contender::jobs(
                "walrus-rust, fsync",
                walrus::FLUSHED,
                walrus::append(dir()?, size, true),
            ),
        ],
    })
}
