//! Kills processes that put a queue under load, with `kill -9`, again and again. Each child
//! continues with what the one before it left. After each kill, a copy of the directory is compared
//! with the journals that the children wrote.
//!
//! `LOGMILL_KILLS` sets the number of kills, `LOGMILL_SEED` repeats the loads and delays of a run,
//! and `TMPDIR` sets the place of the directories:
//!
//! `LOGMILL_KILLS=1000 cargo test --release --test kills -- --nocapture`

mod figures;
mod history;
mod inspection;
mod journal;
#[path = "../model/labels.rs"]
mod labels;
mod load;
mod plan;
mod site;
#[path = "../guarantees/support.rs"]
#[allow(dead_code, reason = "other tests use the rest")]
mod support;

use std::env;
use std::time::Instant;

use figures::Figures;
use site::{Run, Site};

/// Number of kills by default, for a run of half a minute.
const KILLS: u64 = 50;
/// One kill in this many is the last one in its directory.
const LAST: u32 = 15;
/// Figures are printed after this many kills.
const PRINTED: u64 = 50;

/// The entry point of child processes, see [`support::Child`]. Does nothing in a normal test run.
#[test]
#[ignore = "the entry point of child processes, not a test"]
fn child() {
    support::play_role(&[("load", load::run)]);
}

#[test]
fn no_kill_loses_or_repeats_or_invents_a_job_or_a_letter() {
    let number = |name| {
        let text = env::var(name).ok()?;
        Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}")))
    };
    let kills = number("LOGMILL_KILLS").unwrap_or(KILLS);
    let seed = number("LOGMILL_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("LOGMILL_SEED={seed} LOGMILL_KILLS={kills}");
    let begun = Instant::now();
    let mut run = Run {
        seed,
        rng: plan::rng(&[seed]),
        children: 0,
        figures: Figures::default(),
    };
    let mut next_print = PRINTED;
    while run.figures.kills < kills {
        let mut site = Site::new(&mut run);
        loop {
            site.go_on();
            let figures = site.figures();
            let is_enough = figures.kills >= kills;
            if figures.kills >= next_print || is_enough {
                next_print = figures.kills + PRINTED;
                println!("{:.1?}: {figures}\n", begun.elapsed());
            }
            if is_enough || site.is_last(LAST) {
                break;
            }
        }
        site.finish();
    }
}
