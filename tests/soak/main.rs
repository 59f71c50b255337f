//! Soak test: a mixed load on one queue for as long as one likes, which must lose no job and leak
//! nothing.
//!
//! The queue is opened, used, and closed or dropped, again and again. A cycle ends when the queue
//! has been drained and closed. Then every job must be accounted for, and the process and the
//! directory must use no more than after the first cycles.
//!
//! `LOGMILL_SOAK_SECONDS` sets the length in seconds; the default is short. `--nocapture` shows the
//! figures.

mod ledger;
mod load;
mod usage;

use std::env;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ledger::{Counts, Ledger};
use load::Plan;
use usage::{MOST_BLOCKS_OF_OPEN_QUEUE, Usage};

const SHORT: Duration = Duration::from_secs(12);
/// Number of openings in an hour, half a minute each. A shorter run has as many short ones as fit.
const OPENINGS: u32 = 120;
const SHORTEST_OPENING: Duration = Duration::from_millis(500);
/// After the first cycles, everything that is kept for reuse has been allocated; the next ones
/// measure how much that is.
const WARM_UP: usize = 2;
const BASELINE: usize = 3;

#[test]
fn a_mixed_load_loses_no_job_and_leaks_nothing() {
    let length = env::var("LOGMILL_SOAK_SECONDS").map_or(SHORT, |seconds| {
        Duration::from_secs(seconds.parse().expect("a number of seconds"))
    });
    let opening = (length / OPENINGS).clamp(SHORTEST_OPENING, Duration::from_secs(30));
    // On the disk with the build directory, since disk use is measured, too.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let empty = dir.path().join("empty");
    fill_and_empty(&empty);
    let empty = Usage::of(&empty, None, 0);
    let dir = dir.path().join("queue");

    // Allocated in advance, so that it does not grow with the cycles.
    let mut cycles: Vec<Usage> = Vec::with_capacity(10_000);
    let counts = Counts::default();
    let mut openings = 0;
    let start = Instant::now();
    while start.elapsed() < length || cycles.len() <= WARM_UP + BASELINE {
        let ledger = Arc::new(Ledger::new(fastrand::u8(..4) == 0));
        let blocks = loop {
            let plan = if cycles.len() < WARM_UP {
                Plan::largest(opening)
            } else {
                Plan::draw(opening)
            };
            openings += 1;
            if let Some(blocks) = load::run(&dir, plan, &ledger) {
                break blocks;
            }
        };
        counts.add(&ledger.counts);
        wait_for_the_last_handle(&dir, ledger);
        let threads = cycles.first().map(Usage::threads);
        cycles.push(Usage::of(&dir, threads, blocks));
    }

    println!(
        "{counts:?}, {openings} openings, {} cycles, {:?}",
        cycles.len(),
        start.elapsed()
    );
    println!("{}", usage::table(&cycles));
    let (first, rest) = cycles[WARM_UP..].split_at(BASELINE);
    let baseline = first.iter().copied().reduce(Usage::max).unwrap();
    for (at, usage) in rest.iter().enumerate() {
        let excess = usage.excess(&baseline);
        assert!(
            excess.is_empty(),
            "above the baseline after {} more cycles: {excess:?}",
            at + 1
        );
    }
    for usage in &cycles {
        assert!(usage.blocks_of_open_queue() <= MOST_BLOCKS_OF_OPEN_QUEUE);
        assert_eq!(
            usage.of_queue(),
            empty.of_queue(),
            "more than a new empty queue uses: {empty:?}"
        );
    }
}

/// Leaves a closed queue that is empty after a job and a letter.
fn fill_and_empty(dir: &Path) {
    let (queue, _) = load::open(load::builder(dir));
    queue.enqueue(b"job").unwrap();
    let consumer = queue.consumer();
    consumer.next().unwrap().dead_letter("not retryable");
    drop(consumer);
    queue.flush().unwrap();
    assert_eq!(queue.dead_letters().purge_all().unwrap(), 1);
    queue.close().unwrap();
    // The files of letters are removed by the next open.
    load::open(load::builder(dir)).0.close().unwrap();
}

/// Opens the queue, which is possible once the last worker has ended, and checks that it is empty.
fn wait_for_the_last_handle(dir: &Path, ledger: Arc<Ledger>) {
    let (queue, report) = load::open(load::builder(dir));
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.jobs, report.dead_letters, ledger.len()), (0, 0, 0));
    queue.close().unwrap();
}
