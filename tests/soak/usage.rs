//! Measures what this process and the queue directory use: memory, descriptors, mappings, threads,
//! disk.

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static HEAP: &StatsAlloc<std::alloc::System> = &INSTRUMENTED_SYSTEM;

/// How long a thread that has done its work may take to disappear.
const PATIENCE: Duration = Duration::from_secs(60);

/// A figure, and how far it may exceed the baseline.
struct Figure {
    name: &'static str,
    slack: i64,
}

/// The slacks allow for what varies without being leaked: on the heap, what `crossbeam-epoch` frees
/// only when it is used again; among the mappings that are not the queue's, the stacks and arenas
/// that the C library keeps for the next thread. Heap memory that is not live counts as resident.
const FIGURES: [Figure; 10] = [
    figure("heap bytes", 32 * 1024),
    figure("heap blocks", 100),
    figure("descriptors", 0),
    figure("mappings of the queue", 0),
    figure("mappings in all", 100),
    figure("threads", 0),
    figure("resident KiB", 64 * 1024),
    figure("files", 0),
    figure("disk KiB", 0),
    figure("heap blocks of an open queue", MOST_BLOCKS_OF_OPEN_QUEUE),
];

/// An open and empty queue keeps as much as it ever needed, but in few blocks; in an hour the most
/// were 1,399. If it remembered one job in a hundred, there would be thousands.
pub(crate) const MOST_BLOCKS_OF_OPEN_QUEUE: i64 = 2000;

const fn figure(name: &'static str, slack: i64) -> Figure {
    Figure { name, slack }
}

/// The figures at one moment, in the order of [`FIGURES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage([i64; FIGURES.len()]);

impl Usage {
    /// Measures while the queue in `dir` is closed. `blocks_while_open` is the number of heap
    /// blocks when the queue was drained but still open.
    ///
    /// The kernel lists a thread for a while after its work is done, so this waits until there are
    /// at most `threads`.
    pub(crate) fn of(dir: &Path, threads: Option<usize>, blocks_while_open: i64) -> Self {
        let start = Instant::now();
        while threads.is_some_and(|threads| count("/proc/self/task") > threads)
            && start.elapsed() < PATIENCE
        {
            thread::sleep(Duration::from_millis(1));
        }
        // The heap first, since the other measurements allocate.
        let heap = HEAP.stats();
        let blocks = heap_blocks();
        let of_usize = |figure: usize| figure as i64;
        let maps = fs::read_to_string("/proc/self/maps").expect("readable");
        let of_queue = |line: &&str| line.contains(dir.to_str().expect("Unicode"));
        let (files, disk) = disk_use(dir);
        Self([
            of_usize(heap.bytes_allocated) - of_usize(heap.bytes_deallocated),
            blocks,
            of_usize(count("/proc/self/fd")),
            of_usize(maps.lines().filter(of_queue).count()),
            of_usize(maps.lines().count()),
            of_usize(count("/proc/self/task")),
            resident_kib(),
            files,
            disk,
            blocks_while_open - blocks,
        ])
    }

    /// The higher value of each figure.
    pub(crate) fn max(self, other: Self) -> Self {
        Self(std::array::from_fn(|at| self.0[at].max(other.0[at])))
    }

    pub(crate) fn threads(&self) -> usize {
        self.0[5] as usize
    }

    pub(crate) fn blocks_of_open_queue(&self) -> i64 {
        self.0[9]
    }

    /// Mappings of the queue, files, and disk use.
    pub(crate) fn of_queue(&self) -> [i64; 3] {
        [self.0[3], self.0[7], self.0[8]]
    }

    /// The figures that exceed the baseline by more than their slack.
    pub(crate) fn excess(&self, baseline: &Self) -> Vec<String> {
        let figures = FIGURES.iter().zip(self.0.iter().zip(baseline.0));
        figures
            .filter(|(figure, (is, was))| **is > was + figure.slack)
            .map(|(figure, (is, was))| format!("{}: {is}, from {was}", figure.name))
            .collect()
    }
}

/// The number of live blocks on the heap.
pub(crate) fn heap_blocks() -> i64 {
    let heap = HEAP.stats();
    heap.allocations as i64 - heap.deallocations as i64
}

fn count(directory: &str) -> usize {
    fs::read_dir(directory).expect("listed").count()
}

fn resident_kib() -> i64 {
    let status = fs::read_to_string("/proc/self/status").expect("readable");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.expect("a size in kB").parse().expect("a number")
}

/// The number of files below `dir`, and the KiB that their blocks use.
fn disk_use(dir: &Path) -> (i64, i64) {
    let (mut files, mut blocks) = (0, 0);
    for entry in fs::read_dir(dir).expect("listed") {
        let entry = entry.expect("an entry");
        let metadata = entry.metadata().expect("readable");
        if metadata.is_dir() {
            let (more_files, more_kib) = disk_use(&entry.path());
            files += more_files;
            blocks += 2 * more_kib as u64;
        } else {
            files += 1;
            blocks += metadata.blocks();
        }
    }
    (files, (blocks / 2) as i64)
}

/// A table of the figures: the least, the median and the most, and the first and the last.
pub(crate) fn table(usages: &[Usage]) -> String {
    let mut table =
        String::from("| | min | median | max | first | last |\n|---|---:|---:|---:|---:|---:|\n");
    for (at, figure) in FIGURES.iter().enumerate() {
        let column: Vec<_> = usages.iter().map(|usage| usage.0[at]).collect();
        let mut sorted = column.clone();
        sorted.sort_unstable();
        let (Some(first), Some(last)) = (column.first(), column.last()) else {
            continue;
        };
        let median = sorted[sorted.len() / 2];
        let (min, max) = (sorted[0], sorted[sorted.len() - 1]);
        let name = figure.name;
        let _ = writeln!(
            table,
            "| {name} | {min} | {median} | {max} | {first} | {last} |"
        );
    }
    table
}
