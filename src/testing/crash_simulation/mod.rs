//! Simulates power cuts and kills between any two file operations of a queue, and checks what the
//! queue guarantees after each: see `docs/TESTING.md`.
//!
//! A seed determines the whole run, including the time. A run that fails prints its seed.

mod check;
mod transactions;
mod truth;
mod world;

use std::env;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

pub(crate) use self::check::copy_tree;
use self::world::World;

/// How many steps a run has.
const STEPS: usize = 250;

/// Prints the seed of a run that panics, and stops the other threads from starting new runs.
struct Named<'a> {
    seed: u64,
    has_failed: &'a AtomicBool,
}

impl Drop for Named<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.has_failed.store(true, Ordering::Relaxed);
            eprintln!("power cuts: seed {} has failed", self.seed);
        }
    }
}

/// What one or several runs have covered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Reached {
    /// Crashes that were checked.
    cuts: u64,
    /// Jobs that compaction has moved.
    moves: u64,
    /// How often compaction used the reserve segment because the disk was full.
    on_full_disks: u64,
    /// How often compaction used it because `max_bytes` was reached.
    at_max_bytes: u64,
}

fn run(seed: u64, has_failed: &AtomicBool) -> Reached {
    let _named = Named { seed, has_failed };
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step();
    }
    let [on_full_disks, at_max_bytes] = world.reserves_used();
    Reached {
        cuts: world.cuts(),
        moves: world.moves(),
        on_full_disks,
        at_max_bytes,
    }
}

fn number_from(variable: &str) -> Option<u64> {
    env::var(variable).ok()?.parse().ok()
}

/// Runs consecutive seeds until `enough` crashes have been checked. The first seed is
/// `LOGMILL_SEED`, or 0.
fn run_until(enough: u64) {
    let first = number_from("LOGMILL_SEED").unwrap_or(0);
    let next = AtomicU64::new(first);
    let cuts = AtomicU64::new(0);
    let all = Mutex::new(Reached::default());
    let has_failed = AtomicBool::new(false);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while cuts.load(Ordering::Relaxed) < enough && !has_failed.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let reached = run(seed, &has_failed);
                    cuts.fetch_add(reached.cuts, Ordering::Relaxed);
                    let mut all = all.lock().expect("no run panics here");
                    all.cuts += reached.cuts;
                    all.moves += reached.moves;
                    all.on_full_disks += reached.on_full_disks;
                    all.at_max_bytes += reached.at_max_bytes;
                }
            });
        }
    });
    let runs = next.load(Ordering::Relaxed) - first;
    let Reached {
        cuts,
        moves,
        on_full_disks,
        at_max_bytes,
    } = all.into_inner().expect("no run panics here");
    println!("{cuts} crashes and {moves} moved jobs in {runs} runs, from seed {first}");
    println!(
        "the reserve segment was used {on_full_disks} times on a full disk, {at_max_bytes} times at max_bytes"
    );
}

#[test]
fn every_promise_is_kept_after_a_crash_at_any_file_operation() {
    run_until(number_from("LOGMILL_CUTS").unwrap_or(3_000));
}

#[test]
fn a_run_depends_on_its_seed_alone() {
    let has_failed = AtomicBool::new(false);
    assert_eq!(run(7, &has_failed), run(7, &has_failed));
}
