//! Calls with a key, attempts and their ends in any order, beside a model of what each may do.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use logmill_jobs::{Job, JobQueue, JobResult, Mill, Outcome, Unique, Workers, discard, retry_in};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use crate::common::{PATIENCE, mill};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "modelled", queue = "modelled", max_retries = 200)]
struct Modelled {
    number: u32,
}

/// Runs once the thread has ended the attempt before it.
#[derive(Serialize, Deserialize, Job)]
#[job(kind = "barrier", queue = "barrier", output = u32)]
struct Barrier;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Plain,
    Replacing,
    KeepLatest,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Call(Mode),
    Begin,
    End(&'static str),
}

/// The job that has the key.
#[derive(Clone, Copy, Debug)]
struct Model {
    number: u32,
    runs: bool,
    is_plain: bool,
    kept: Option<u32>,
}

/// What a call is to do.
fn call(model: &mut Option<Model>, mode: Mode, number: u32) -> Outcome {
    let Some(job) = model else {
        *model = Some(Model {
            number,
            runs: false,
            is_plain: mode == Mode::Plain,
            kept: None,
        });
        return Outcome::New;
    };
    let is_fixed = job.is_plain || job.runs || job.kept.is_some();
    match (mode, is_fixed) {
        (Mode::KeepLatest, true) => {
            job.kept = Some(number);
            Outcome::Kept
        }
        (Mode::Plain, _) | (Mode::Replacing, true) => Outcome::Existing,
        (Mode::Replacing | Mode::KeepLatest, false) => {
            job.number = number;
            Outcome::Replaced
        }
    }
}

fn end(model: &mut Option<Model>, how: &str) {
    let Some(job) = model else { return };
    job.runs = false;
    if how != "fail" {
        *model = job.kept.map(|number| Model {
            number,
            runs: false,
            is_plain: false,
            kept: None,
        });
    }
}

struct Real {
    mill: Mill,
    queue: JobQueue,
    begins: Receiver<u32>,
    ends: Sender<&'static str>,
}

impl Real {
    fn step(&self, model: &mut Option<Model>, step: Step, key: &str, number: u32) {
        match step {
            Step::Call(mode) => {
                let unique = Unique::by(key);
                let unique = match mode {
                    Mode::Plain => unique,
                    Mode::Replacing => unique.replacing(),
                    Mode::KeepLatest => unique.keep_latest(),
                };
                let handle = self.mill.job(Modelled { number }).unique(unique);
                let outcome = handle.enqueue().unwrap().outcome();
                assert_eq!(outcome, call(model, mode, number));
            }
            Step::Begin => {
                let Some(job) = model.as_mut().filter(|job| !job.runs) else {
                    return;
                };
                self.queue.resume().unwrap();
                assert_eq!(self.begins.recv_timeout(PATIENCE).unwrap(), job.number);
                job.runs = true;
                self.queue.pause().unwrap();
            }
            Step::End(how) => {
                if !model.is_some_and(|job| job.runs) {
                    return;
                }
                self.ends.send(how).unwrap();
                let barrier = self.mill.enqueue(Barrier).unwrap();
                barrier.wait_timeout(PATIENCE).unwrap();
                end(model, how);
            }
        }
    }
}

#[test]
fn a_key_does_what_its_model_does() {
    let (mill, _dir) = mill();
    let (begun, begins) = channel();
    let (ends, end) = channel();
    let end = Arc::new(Mutex::new(end));
    let workers = Workers::new(())
        .on(move |job: Modelled| -> JobResult {
            begun.send(job.number).unwrap();
            match end.lock().unwrap().recv_timeout(PATIENCE).unwrap() {
                "fail" => Err(retry_in(Duration::ZERO, "told to")),
                "die" => Err(discard("told to")),
                _ => Ok(()),
            }
        })
        .on(|_: Barrier| -> JobResult<u32> { Ok(0) });
    let pool = workers.threads(1).start(&mill).unwrap();
    let queue = mill.queue("modelled").unwrap();
    queue.pause().unwrap();
    let real = Real {
        mill,
        queue,
        begins,
        ends,
    };
    const MODES: &[Mode] = &[Mode::Plain, Mode::Replacing, Mode::KeepLatest];
    let step = prop_oneof![
        4 => proptest::sample::select(MODES).prop_map(Step::Call),
        2 => Just(Step::Begin),
        2 => proptest::sample::select(&["done", "fail", "fail", "die"][..]).prop_map(Step::End),
    ];
    let keys = std::cell::Cell::new(0);
    let mut config = ProptestConfig::with_cases(80);
    config.failure_persistence = None;
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let steps = proptest::collection::vec(step, 8..40);
    let result = runner.run(&steps, |steps| {
        let key = keys.get();
        keys.set(key + 1);
        let (mut model, mut number) = (None, 0);
        let last = [
            Step::Begin,
            Step::End("done"),
            Step::Begin,
            Step::End("done"),
        ];
        for step in steps.into_iter().chain(last) {
            number += 1;
            real.step(&mut model, step, &key.to_string(), number);
        }
        // Whatever has happened, the key is free.
        assert!(model.is_none());
        Ok(())
    });
    result.unwrap();
    real.queue.resume().unwrap();
    assert!(real.begins.try_recv().is_err());
    let _ = pool.shutdown(PATIENCE);
}
