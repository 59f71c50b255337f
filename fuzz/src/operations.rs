//! The target `operations`: turns bytes into operations on a queue, and runs them with the driver
//! of the model.

use std::time::Duration;

use arbitrary::{Result, Unstructured};
use logmill::Durability;

use crate::driver;
use crate::operation::{Due, Held, Limit, Operation, Outcome, Setup, Size};

/// The most operations in a case.
const MOST: usize = 200;
/// The most operations that end the process; each takes as long as all others of a case together.
const MOST_ENDS: usize = 10;

/// Tests a sequence of operations, comparing the queue with the model after each.
pub fn operations(bytes: &[u8]) {
    let mut bytes = Unstructured::new(bytes);
    let Ok(setup) = setup(&mut bytes) else {
        return;
    };
    let mut operations = Vec::new();
    while operations.len() < MOST && !bytes.is_empty() {
        match operation(&mut bytes) {
            Ok(operation) => operations.push(operation),
            Err(_) => break,
        }
    }
    let mut ends = 0;
    operations.retain(|operation| {
        ends += usize::from(ends_process(operation));
        !ends_process(operation) || ends <= MOST_ENDS
    });
    driver::run(setup, &operations);
}

fn ends_process(operation: &Operation) -> bool {
    matches!(
        operation,
        Operation::Reopen(_)
            | Operation::CrashWhenQuiet
            | Operation::CrashAtOnce
            | Operation::CrashBetweenLettersAndAcks
    )
}

fn setup(bytes: &mut Unstructured<'_>) -> Result<Setup> {
    Ok(Setup {
        stripes: bytes.int_in_range(1..=3)?,
        durability: *bytes.choose(&[
            Durability::Process,
            Durability::Interval(Duration::from_millis(1)),
            Durability::Sync,
        ])?,
        lease_timeout: bytes.arbitrary()?,
        max_bytes: bytes.ratio(1u8, 5u8)?,
        max_depth: if bytes.ratio(1u8, 5u8)? {
            Some(bytes.int_in_range(5..=60)?)
        } else {
            None
        },
        far: None,
    })
}

fn size(bytes: &mut Unstructured<'_>) -> Result<Size> {
    Ok(match bytes.int_in_range(0..=16u8)? {
        0..=9 => Size::Bytes(bytes.arbitrary()?),
        10..=15 => Size::Part(bytes.arbitrary()?),
        _ => Size::TooLarge,
    })
}

fn due(bytes: &mut Unstructured<'_>) -> Result<Due> {
    Ok(match bytes.int_in_range(0..=10u8)? {
        0 => Due::Past,
        1 => Due::Soon(Duration::from_micros(bytes.int_in_range(0..=3000)?)),
        2 => Due::Far,
        _ => Due::AtOnce,
    })
}

fn limit(bytes: &mut Unstructured<'_>) -> Result<Limit> {
    Ok(match bytes.int_in_range(0..=6u8)? {
        0 => Limit::None,
        1 | 2 => Limit::Of(bytes.int_in_range(1..=4)?),
        _ => Limit::Policy,
    })
}

fn outcome(bytes: &mut Unstructured<'_>) -> Result<Outcome> {
    Ok(match bytes.int_in_range(0..=9u8)? {
        0 => Outcome::DeadLetter,
        1 => Outcome::Drop,
        2 => Outcome::RetryAfter(due(bytes)?),
        3 | 4 => Outcome::Retry,
        _ => Outcome::Ack,
    })
}

fn operation(bytes: &mut Unstructured<'_>) -> Result<Operation> {
    Ok(match bytes.int_in_range(0..=99u8)? {
        0..=23 => Operation::Enqueue {
            size: size(bytes)?,
            due: due(bytes)?,
            limit: limit(bytes)?,
            by_producer: bytes.arbitrary()?,
        },
        24..=29 => {
            let count = bytes.int_in_range(0..=12usize)?;
            Operation::EnqueueBatch {
                sizes: (0..count).map(|_| size(bytes)).collect::<Result<_>>()?,
                due: due(bytes)?,
                limit: limit(bytes)?,
                by_producer: bytes.arbitrary()?,
            }
        }
        30..=53 => Operation::Claim,
        54 => Operation::Cancel(bytes.arbitrary()?),
        55..=58 => Operation::ClaimBatch(bytes.int_in_range(0..=60)?),
        59..=80 => Operation::Settle {
            which: bytes.arbitrary()?,
            outcome: outcome(bytes)?,
        },
        81..=84 => Operation::SettleAll(outcome(bytes)?),
        85 => Operation::NewConsumer,
        86 | 87 => Operation::Replay(bytes.arbitrary()?),
        88 => Operation::ReplayAll,
        89 => Operation::Purge(bytes.arbitrary()?),
        90 => Operation::PurgeAll,
        91 => Operation::CheckStats,
        92 => Operation::CheckLetters,
        93 => Operation::Verify,
        94 => Operation::Flush,
        95 | 96 => Operation::Reopen(*bytes.choose(&[
            Held::DropBefore,
            Held::DropAfter,
            Held::AckAfter,
        ])?),
        97 => Operation::CrashWhenQuiet,
        98 => Operation::CrashAtOnce,
        _ => Operation::CrashBetweenLettersAndAcks,
    })
}
