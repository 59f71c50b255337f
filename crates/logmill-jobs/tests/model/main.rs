//! Runs random operations on a mill with limits, and compares it with a model of what JOBS.md says: when
//! jobs begin and do not, how they end, and what waits for what, in queues, flows, pauses and limits.
//!
//! All runs on one thread, on a clock that the operations move, so a case that fails is the same each
//! time, and proptest makes it short. Jobs run at the same time although there is one thread: a handler
//! may run the jobs of the queues behind its own, three levels deep. The model knows no order among jobs
//! that may begin: it does not say which of two priorities or of two keys that take turns is first.
//! Unique jobs, orders and schedules are not among the operations, nor are threads, and no process dies
//! within a call: those have tests of their own.

mod compare;
mod flows;
mod jobs;
mod limits;
mod model;
mod operate;
mod operations;
mod run;

use proptest::test_runner::{Config, TestError, TestRunner};

/// Cases that are run if `PROPTEST_CASES` says nothing.
const CASES: u32 = 16;

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
    let result = runner.run(&operations::case(), |case| {
        run::case(case)
            .map_err(|error| proptest::test_runner::TestCaseError::fail(format!("{error:#}")))
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(why, case)) => panic!("{why}\n{case}"),
        Err(error) => panic!("{error}"),
    }
}
