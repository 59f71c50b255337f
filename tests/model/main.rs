//! Runs random operations on a queue and compares it with a model of the contract: at every moment,
//! every job ever enqueued is exactly one of waiting, delayed, leased, done and dead, across
//! restarts and crashes of the process, and is delivered accordingly.

mod driver;
mod files;
mod labels;
mod model;
mod operation;

use std::time::Duration;

use logmill::Durability;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, TestRunner};

use operation::{Due, Held, Limit, Operation, Outcome, Setup, Size};

fn setup() -> impl Strategy<Value = Setup> {
    let durability = prop_oneof![
        6 => Just(Durability::Process),
        1 => Just(Durability::Interval(Duration::from_millis(1))),
        1 => Just(Durability::Sync),
    ];
    (
        prop_oneof![2 => Just(1usize), 1 => 2..=3usize],
        durability,
        any::<bool>(),
        prop::bool::weighted(0.2),
        prop::option::weighted(0.2, 5..60u64),
    )
        .prop_map(
            |(stripes, durability, lease_timeout, max_bytes, max_depth)| Setup {
                stripes,
                durability,
                lease_timeout,
                max_bytes,
                max_depth,
                far: None,
            },
        )
}

fn size() -> impl Strategy<Value = Size> {
    prop_oneof![
        8 => (0..40u8).prop_map(Size::Bytes),
        3 => any::<u8>().prop_map(Size::Bytes),
        4 => any::<u8>().prop_map(Size::Part),
        2 => Just(Size::Part(u8::MAX)),
    ]
}

fn due() -> impl Strategy<Value = Due> {
    prop_oneof![
        8 => Just(Due::AtOnce),
        1 => Just(Due::Past),
        1 => (0..3000u64).prop_map(|micros| Due::Soon(Duration::from_micros(micros))),
        1 => Just(Due::Far),
    ]
}

fn limit() -> impl Strategy<Value = Limit> {
    prop_oneof![
        4 => Just(Limit::Policy),
        2 => (1..=4u8).prop_map(Limit::Of),
        1 => Just(Limit::None),
    ]
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        5 => Just(Outcome::Ack),
        2 => Just(Outcome::Retry),
        1 => due().prop_map(Outcome::RetryAfter),
        1 => Just(Outcome::Drop),
        1 => Just(Outcome::DeadLetter),
    ]
}

fn held() -> impl Strategy<Value = Held> {
    prop_oneof![
        Just(Held::DropBefore),
        Just(Held::DropAfter),
        Just(Held::AckAfter)
    ]
}

fn operation() -> impl Strategy<Value = Operation> {
    let enqueue = (
        prop_oneof![30 => size(), 1 => Just(Size::TooLarge)],
        due(),
        limit(),
        any::<bool>(),
    )
        .prop_map(|(size, due, limit, by_producer)| Operation::Enqueue {
            size,
            due,
            limit,
            by_producer,
        });
    let sizes = prop_oneof![
        8 => vec(size(), 0..12),
        1 => vec((0..8u8).prop_map(Size::Bytes), 0..400),
        1 => vec(prop_oneof![8 => size(), 1 => Just(Size::TooLarge)], 0..12),
    ];
    let enqueue_batch =
        (sizes, due(), limit(), any::<bool>()).prop_map(|(sizes, due, limit, by_producer)| {
            Operation::EnqueueBatch {
                sizes,
                due,
                limit,
                by_producer,
            }
        });
    let settle =
        (any::<u8>(), outcome()).prop_map(|(which, outcome)| Operation::Settle { which, outcome });
    prop_oneof![
        24 => enqueue,
        6 => enqueue_batch,
        30 => Just(Operation::Claim),
        4 => (0..60u8).prop_map(Operation::ClaimBatch),
        24 => settle,
        4 => outcome().prop_map(Operation::SettleAll),
        2 => Just(Operation::NewConsumer),
        4 => any::<u8>().prop_map(Operation::Cancel),
        2 => any::<u8>().prop_map(Operation::Replay),
        1 => Just(Operation::ReplayAll),
        1 => any::<u8>().prop_map(Operation::Purge),
        1 => Just(Operation::PurgeAll),
        2 => Just(Operation::CheckStats),
        2 => Just(Operation::CheckLetters),
        1 => Just(Operation::Verify),
        1 => Just(Operation::Flush),
        1 => held().prop_map(Operation::Reopen),
        1 => Just(Operation::CrashWhenQuiet),
        1 => Just(Operation::CrashAtOnce),
        1 => Just(Operation::CrashBetweenLettersAndAcks),
    ]
}

/// Operations that leave a segment in which only a few long-delayed jobs are not done. Compaction
/// moves these jobs if there are several such segments.
fn filled_segment() -> impl Strategy<Value = Vec<Operation>> {
    let enqueue = |sizes, due, limit| Operation::EnqueueBatch {
        sizes,
        due,
        limit,
        by_producer: true,
    };
    let parts = (
        (vec(size(), 0..2), limit()),
        (vec((100..=255u8).prop_map(Size::Part), 8..12), limit()),
        vec((any::<u8>(), outcome()), 0..3),
        vec(any::<u8>(), 0..2),
    );
    parts.prop_map(move |(delayed, due, outcomes, cancelled)| {
        let mut operations = vec![
            enqueue(delayed.0, Due::Far, delayed.1),
            enqueue(due.0, Due::AtOnce, due.1),
            Operation::ClaimBatch(u8::MAX),
        ];
        for (which, outcome) in outcomes {
            let outcome = match outcome {
                Outcome::Retry | Outcome::RetryAfter(_) => Outcome::RetryAfter(Due::Far),
                other => other,
            };
            operations.push(Operation::Settle { which, outcome });
        }
        operations.push(Operation::SettleAll(Outcome::Ack));
        operations.extend(cancelled.into_iter().map(Operation::Cancel));
        operations
    })
}

/// Many such segments, and time for compaction to find them. The only crashes are quiet ones, since
/// a crash during a move may deliver the job twice.
fn filled_segments() -> impl Strategy<Value = Vec<Operation>> {
    let end = prop_oneof![
        held().prop_map(Operation::Reopen),
        Just(Operation::CrashWhenQuiet),
        Just(Operation::CheckStats),
    ];
    let part = (vec(filled_segment(), 6..12), end);
    vec(part, 2..4).prop_map(|parts| {
        let mut operations = Vec::new();
        for (segments, end) in parts {
            operations.extend(segments.into_iter().flatten());
            operations.extend([Operation::Pause, end]);
        }
        operations
    })
}

/// Runs the number of cases asked for (`PROPTEST_CASES`), divided by `share`.
fn check(
    share: u32,
    setup: impl Strategy<Value = Setup>,
    operations: impl Strategy<Value = Vec<Operation>>,
) {
    let mut config = ProptestConfig::default();
    config.cases = (config.cases / share).max(1);
    config.max_shrink_time = 120_000;
    config.source_file = Some(file!());
    config.failure_persistence = Some(Box::new(FileFailurePersistence::WithSource("regressions")));
    TestRunner::new(config)
        .run(&(setup, operations), |(setup, operations)| {
            driver::run(setup, &operations);
            Ok(())
        })
        .unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn every_job_is_where_the_contract_says() {
    check(1, setup(), vec(operation(), 0..200));
}

#[test]
fn jobs_that_are_moved_out_of_finished_segments_keep_their_state() {
    let setup = setup().prop_map(|setup| Setup {
        // Longer than the delay from which on the queue moves a job.
        far: Some(Duration::from_secs(12)),
        ..setup
    });
    // Each case waits that long, so there are fewer of them.
    check(256, setup, filled_segments());
}
