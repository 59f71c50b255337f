//! Runs random operations on a mill, and compares it with a model of what JOBS.md says: when jobs begin
//! and do not, how they end, and what waits for what. There are queues, limits, flows, batches, pauses,
//! unique jobs with all that a second call may do, strict orders, schedules, and a process that is killed
//! or closed and begins again.
//!
//! All runs on one thread, on a clock that the operations move, so a case that fails is the same each
//! time, and proptest makes it short. Jobs run at the same time although there is one thread: a handler
//! may run the jobs of the queues behind its own, three levels deep.
//!
//! Of the order among jobs that may begin the model knows that of `Order`, and that jobs begin in the order
//! of the steps that have enqueued them, unless something has held them up: it does not say which of two
//! priorities, of two jobs of one step, or of two keys that take turns is first, or which of two failures
//! in one step counts. All calls with a key of unique jobs have the same mode. Threads are not among the
//! operations, no process dies within a call, and ticks are those of intervals, in no order with other
//! jobs: those have tests of their own.

mod arrivals;
mod begins;
mod changes;
mod compare;
mod ends;
mod flows;
mod generate;
mod jobs;
mod limits;
mod model;
mod operate;
mod operations;
mod orders;
mod run;
mod schedules;
mod scheduling;
mod unique;

use proptest::test_runner::{Config, TestError, TestRunner};

/// Cases that are run if `PROPTEST_CASES` says nothing.
const CASES: u32 = 12;

#[test]
fn queues_flows_limits_and_clocks_do_what_their_model_does() {
    let mut config = Config {
        failure_persistence: None,
        max_shrink_time: 60_000,
        ..Config::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = CASES;
    }
    let mut runner = TestRunner::new(config);
    let result = runner.run(&generate::case(), |case| {
        run::case(case)
            .map_err(|error| proptest::test_runner::TestCaseError::fail(format!("{error:#}")))
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(why, case)) => panic!("{why}\n{case}"),
        Err(error) => panic!("{error}"),
    }
}
