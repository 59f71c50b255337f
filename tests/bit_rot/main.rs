//! Bit rot: damages each byte of each file of a small queue in turn, each time in a fresh copy.
//! Whatever is damaged, every other job must be delivered with its exact name, headers and payload,
//! and what is lost must be reported and set aside.
//!
//! By default a part of the cases runs, a different part for each kind of damage. This runs all of
//! them:
//!
//! `cargo test --release --test bit_rot -- --ignored --nocapture`

mod damage;
mod expectation;
#[path = "../model/files.rs"]
#[expect(
    dead_code,
    reason = "only the model copies queues with background work in progress"
)]
mod files;
mod layout;
mod sample;
mod trial;

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use damage::{Case, Kind};
use sample::Sample;
use trial::Outcome;

const THREADS: usize = 2;
/// The short form tries one case of this many.
const STRIDE: usize = 97;
/// A thread stops at a failure once there are this many.
const MOST_FAILURES: usize = 20;

#[test]
fn what_is_damaged_anywhere_is_reported_and_all_else_is_whole() {
    let sample = Sample::make();
    trial::run(&sample, None);
    let mut residues = BTreeMap::new();
    let cases: Vec<_> = Case::all(&sample.files, false)
        .into_iter()
        .filter(|case| {
            // Each kind of damage starts at a different offset.
            let next = residues.len() * STRIDE / Kind::ALL.len();
            let turn = residues.entry(case.kind).or_insert(next);
            *turn += 1;
            (*turn).is_multiple_of(STRIDE) || matches!(case.kind, Kind::ZeroSector | Kind::ZeroPage)
        })
        .collect();
    try_all(&sample, &cases);
}

#[test]
#[ignore = "takes many minutes"]
fn what_is_damaged_at_any_byte_is_reported_and_all_else_is_whole() {
    let sample = Sample::make();
    trial::run(&sample, None);
    try_all(&sample, &Case::all(&sample.files, true));
}

/// Runs the cases, prints the outcomes, and fails if a case or a thread of a queue has failed.
fn try_all(sample: &Sample, cases: &[Case<'_>]) {
    static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let thread = thread::current();
        let name = thread.name().unwrap_or_default();
        if name.starts_with("logmill") {
            PANICS.lock().unwrap().push(format!("{name}: {panic}"));
        }
        report(panic);
    }));
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    let table = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let tried = catch_unwind(AssertUnwindSafe(|| trial::run(sample, Some(case))));
                    match tried {
                        Ok(outcome) => {
                            let place = (case.file, case.kind);
                            table
                                .lock()
                                .unwrap()
                                .entry(place)
                                .or_insert_with(Row::default)
                                .add(outcome);
                        }
                        Err(panic) => {
                            let mut failures = failures.lock().unwrap();
                            failures.push(format!("{case}: {}", message_of(&*panic)));
                            if failures.len() >= MOST_FAILURES {
                                return;
                            }
                        }
                    }
                }
            });
        }
    });
    print(&table.into_inner().unwrap());
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{failures:#?}");
    let panics = PANICS.lock().unwrap();
    assert!(panics.is_empty(), "{panics:#?}");
}

fn message_of(panic: &(dyn Any + Send)) -> &str {
    let formatted = panic.downcast_ref::<String>().map(String::as_str);
    let literal = panic.downcast_ref::<&str>().copied();
    formatted.or(literal).unwrap_or("a panic")
}

/// The sum of the outcomes of some cases.
#[derive(Default)]
struct Row {
    cases: usize,
    sum: Outcome,
}

impl Row {
    fn add(&mut self, outcome: Outcome) {
        self.cases += 1;
        let sum = &mut self.sum;
        sum.unchanged += outcome.unchanged;
        sum.refused += outcome.refused;
        sum.reported += outcome.reported;
        sum.regions += outcome.regions;
        sum.lost += outcome.lost;
        sum.unreported += outcome.unreported;
        sum.again += outcome.again;
    }
}

fn print(table: &BTreeMap<(&Path, Kind), Row>) {
    println!(
        "| file | damage | cases | no change | refused | reported | regions | records damaged | of these, zero and unreported | done jobs and letters again |"
    );
    println!("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|");
    for ((file, kind), Row { cases, sum }) in table {
        let Outcome {
            unchanged,
            refused,
            reported,
            regions,
            lost,
            unreported,
            again,
        } = sum;
        println!(
            "| {} | {kind:?} | {cases} | {unchanged} | {refused} | {reported} | {regions} | {lost} | {unreported} | {again} |",
            file.display()
        );
    }
    let cases: usize = table.values().map(|row| row.cases).sum();
    println!("{cases} cases");
}
