//! Generates cases.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::operations::{
    Attempt, Batch, Case, Change, KEYS, KINDS, Keys, LimitOf, Missed, Mode, New, OfSchedule,
    Operation, Outcome, Policy, QUEUES, SCHEDULES, Scope, Shape, UNIQUES, What,
};
use crate::schedules::Definition;

fn scope() -> impl Strategy<Value = Scope> {
    prop_oneof![
        (0..QUEUES.len()).prop_map(Scope::Queue),
        (0..KINDS.len()).prop_map(Scope::Kind),
    ]
}

fn limit() -> impl Strategy<Value = LimitOf> {
    let scope = scope();
    let keys = select(&[Keys::Same, Keys::Apart, Keys::InTurn][..]);
    let at_once = prop::option::weighted(0.6, 1..3_u32);
    let rate = prop::option::weighted(0.5, (1..8_u64, 1..4_u32));
    (scope, keys, at_once, rate).prop_map(|(scope, keys, at_once, rate)| LimitOf {
        scope,
        keys,
        at_once,
        rate,
    })
}

fn schedule() -> impl Strategy<Value = OfSchedule> {
    let missed = prop_oneof![
        Just(Missed::Skip),
        Just(Missed::Once),
        (1..4_u32).prop_map(Missed::All),
    ];
    let bounds = (
        prop::option::weighted(0.2, 0..20_u64),
        prop::option::weighted(0.2, 0..60_u64),
        prop::option::weighted(0.2, 1..5_u64),
    );
    // Mostly so often that several ticks are missed at once.
    let every = prop_oneof![2 => 2..8_u64, 1 => 8..25_u64];
    let definition =
        (new(), every, bounds, missed).prop_map(|(new, every, (starts, ends, at_most), missed)| {
            Definition {
                new,
                every,
                starts,
                ends,
                at_most,
                missed,
            }
        });
    prop_oneof![
        4 => definition.prop_map(|definition| OfSchedule::Store(Some(definition))),
        1 => Just(OfSchedule::Store(None)),
        1 => Just(OfSchedule::Pause),
        2 => Just(OfSchedule::Resume),
        1 => Just(OfSchedule::Remove),
        1 => Just(OfSchedule::RunNow),
    ]
}

fn mode() -> impl Strategy<Value = Mode> {
    let max_wait = prop::option::weighted(0.5, 1..30_u64);
    let debounce = (1..15_u64, max_wait, any::<bool>());
    prop_oneof![
        1 => Just(Mode::Plain),
        1 => (1..30_u64).prop_map(Mode::Period),
        1 => Just(Mode::Replacing),
        1 => Just(Mode::KeepLatest),
        1 => any::<bool>().prop_map(|is_replacing| Mode::WhileWaiting { is_replacing }),
        2 => debounce.prop_map(|(time, max_wait, is_leading)| Mode::Debounce {
            time,
            max_wait,
            is_leading,
        }),
    ]
}

fn new() -> impl Strategy<Value = New> {
    let delay = prop_oneof![4 => Just(0), 1 => 1..20_u64];
    (
        (0..QUEUES.len(), 0..KINDS.len()),
        prop::option::weighted(0.7, 0..KEYS.len()),
        prop::bool::weighted(0.2),
        delay,
        prop::option::weighted(0.15, 1..30_u64),
        prop::option::weighted(0.2, 1..5_u32),
        0..3_u32,
    )
        .prop_map(
            |((queue, kind), key, is_high, delay, expires, cost, retries)| New {
                queue,
                kind,
                key,
                is_high,
                delay,
                expires,
                cost,
                retries,
            },
        )
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        4 => Just(Outcome::Done),
        1 => Just(Outcome::Follow),
        2 => Just(Outcome::Error),
        1 => (0..20_u64).prop_map(Outcome::RetryIn),
        1 => (0..20_u64).prop_map(Outcome::Snooze),
        2 => Just(Outcome::Discard),
        1 => Just(Outcome::Cancel),
        2 => (1..20_u64).prop_map(Outcome::RateLimited),
        1 => Just(Outcome::Panic),
    ]
}

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        (0..QUEUES.len()).prop_map(What::Queue),
        (0..KINDS.len()).prop_map(What::Kind),
        (0..KEYS.len()).prop_map(What::Key),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        Just(Change::Now),
        (1..20_u64).prop_map(Change::After),
        any::<bool>().prop_map(Change::Priority),
        (0..QUEUES.len()).prop_map(Change::Queue),
        Just(Change::Arguments),
        (1..20_u64).prop_map(Change::ExpiresAfter),
    ]
}

fn flow() -> impl Strategy<Value = Operation> {
    let shape = prop_oneof![Just(Shape::Chain), Just(Shape::Diamond)];
    let policies = [
        Policy::Fail,
        Policy::FailAlone,
        Policy::Ignore,
        Policy::Continue,
    ];
    let policies = select(policies.to_vec());
    (shape, vec(new(), 2..5), vec(policies, 5)).prop_map(|(shape, jobs, mut policies)| {
        // If two jobs fail in one step, either may count for one that waits for both.
        let last = policies.iter_mut().skip(jobs.len() - 2);
        let to_last = last.filter(|policy| **policy == Policy::Continue);
        if let Shape::Diamond = shape {
            to_last.for_each(|policy| *policy = Policy::Ignore);
        }
        Operation::Flow(shape, jobs, policies)
    })
}

fn batch() -> impl Strategy<Value = Operation> {
    let of = (0..QUEUES.len(), 0..KINDS.len(), 0..4_usize);
    let followers = (any::<bool>(), any::<bool>(), any::<bool>());
    (of, followers).prop_map(
        |((queue, kind, jobs), (on_success, on_complete, on_death))| {
            Operation::Batch(Batch {
                queue,
                kind,
                jobs,
                on_success,
                on_complete,
                on_death,
            })
        },
    )
}

/// An operation that may go on while a handler runs.
fn simple() -> BoxedStrategy<Operation> {
    prop_oneof![
        6 => new().prop_map(Operation::Enqueue),
        6 => (0..UNIQUES.len(), new()).prop_map(|(key, new)| {
            // Those of one kind, so that keys meet.
            Operation::Unique(key, New { kind: key, ..new })
        }),
        2 => (0..SCHEDULES.len(), schedule()).prop_map(|(at, what)| Operation::Schedule(at, what)),
        3 => flow(),
        1 => batch(),
        3 => (1..15_u64).prop_map(Operation::Advance),
        1 => what().prop_map(Operation::Pause),
        2 => what().prop_map(Operation::Resume),
        1 => (0..64_usize).prop_map(Operation::Cancel),
        1 => (0..64_usize, change()).prop_map(|(job, change)| Operation::Edit(job, change)),
        2 => (0..8_usize).prop_map(Operation::Replay),
        1 => (0..8_usize).prop_map(Operation::Purge),
        1 => (0..8_usize).prop_map(Operation::Unblock),
    ]
    .boxed()
}

/// Attempts, whose handlers may run others, so many levels deep.
fn run(levels: u32) -> BoxedStrategy<Operation> {
    let meanwhile = match levels {
        0 => vec(simple(), 0..3).boxed(),
        _ => vec(prop_oneof![3 => simple(), 2 => run(levels - 1)], 0..5).boxed(),
    };
    let meanwhile = prop_oneof![2 => Just(Vec::new()), 1 => meanwhile];
    let attempt = (meanwhile, outcome());
    let attempt = attempt.prop_map(|(meanwhile, outcome)| Attempt { meanwhile, outcome });
    vec(attempt, 0..6).prop_map(Operation::Run).boxed()
}

pub(crate) fn case() -> impl Strategy<Value = Case> {
    let operation = prop_oneof![
        12 => simple(),
        6 => run(2),
        1 => Just(Operation::Crash),
        1 => prop_oneof![Just(0), 1..20_u64].prop_map(Operation::Reopen),
    ];
    let (limits, modes) = (vec(limit(), 0..4), vec(mode(), UNIQUES.len()));
    let orders = prop_oneof![Just(Vec::new()), vec(scope(), 1..3)];
    let operations = vec(operation, 1..40);
    (any::<bool>(), limits, orders, modes, operations).prop_map(
        |(is_punctual, limits, orders, modes, operations)| Case {
            is_punctual,
            limits,
            orders,
            modes,
            operations,
        },
    )
}
