//! What each backend has to do, as checks that an implementation runs in its tests.
//!
//! ```no_run
//! use logmill_jobs::backend::conformance;
//!
//! # fn new_backend() -> logmill_jobs::backend::Embedded { unimplemented!() }
//! #[test]
//! fn it_is_a_backend() {
//!     // Each check gets a backend that is empty.
//!     conformance::check_all(&mut || Box::new(new_backend()));
//! }
//! ```
//!
//! One that is shared runs [`check_shared`] as well. A [lease](super::Capabilities::lease) of some seconds
//! is right for these checks: they wait for the end of one, and other checks keep jobs for a moment
//! without extending them. What they cannot check is what survives the death of a process or a power cut.

mod attempts;
mod changes;
mod consumers;
mod ends;
mod jobs;
mod leases;
mod shared;

use std::time::{Duration, Instant};

use self::ends::told;
use super::{Backend, Choice, Claim, Consumer, Due, NewJob, Next, Served, Settlement};

/// A check and what it checks.
pub type Check = (&'static str, fn(&dyn Backend));

/// All checks, to be run one by one on empty backends.
pub const CHECKS: &[Check] = &[
    (
        "a job comes as it was published",
        jobs::a_job_comes_as_it_was_published,
    ),
    (
        "jobs of a queue come in order, once each",
        jobs::jobs_come_in_order,
    ),
    (
        "a job is not early, and a time that has passed is now",
        jobs::a_job_is_not_early,
    ),
    ("a job shows where it is", jobs::a_job_shows_where_it_is),
    (
        "a walk goes on where it was, and finds each job once",
        jobs::a_walk_goes_on_where_it_was,
    ),
    (
        "a retry counts, a snooze and a hold do not",
        attempts::what_counts_as_an_attempt,
    ),
    (
        "a job comes back when it is to",
        attempts::a_job_comes_back_when_it_is_to,
    ),
    (
        "a claim that is not settled has failed",
        attempts::an_unsettled_claim_has_failed,
    ),
    (
        "a claim whose consumer panics has failed",
        attempts::a_claim_that_panics_has_failed,
    ),
    (
        "a detached claim is settled elsewhere",
        attempts::a_detached_claim,
    ),
    (
        "a dead job is told, kept, replayed and purged",
        ends::dead_jobs,
    ),
    ("dead letters are in order", ends::letters),
    (
        "a cancelled job ends once, and that is told",
        ends::cancelled_jobs,
    ),
    (
        "a job that is cancelled while it runs ends so, unless it is completed",
        ends::cancelled_while_they_run,
    ),
    (
        "a job that is cancelled while it is delayed or held ends so",
        ends::cancelled_while_they_wait,
    ),
    (
        "a job that is completed after it was cancelled is done",
        ends::completed_after_it_was_cancelled,
    ),
    (
        "who is told of an end may call back",
        ends::who_is_told_calls_back,
    ),
    (
        "a commit is all or nothing",
        changes::a_commit_is_all_or_nothing,
    ),
    (
        "conditions are of what was there before",
        changes::conditions_are_of_what_was_there,
    ),
    (
        "a completion and what follows are one step",
        changes::a_completion_is_one_step,
    ),
    (
        "a completion that another process was faster than is made anew",
        changes::a_refused_completion_is_made_anew,
    ),
    (
        "the numbers of a commit are those of its jobs",
        changes::numbers_are_those_of_the_jobs,
    ),
    (
        "values have versions and expire",
        changes::values_have_versions_and_expire,
    ),
    (
        "a value that has expired is none",
        changes::an_expired_value_is_none,
    ),
    ("a paused queue gives no jobs", consumers::a_paused_queue),
    (
        "a consumer of several queues chooses as it is told",
        consumers::several_queues,
    ),
    (
        "a consumer waits, and is woken",
        consumers::a_consumer_waits,
    ),
    (
        "whatever brings a job wakes a consumer",
        consumers::what_wakes_a_consumer,
    ),
    (
        "many consumers get each job once",
        consumers::many_consumers,
    ),
    (
        "a consumer that is dropped keeps no job",
        consumers::a_dropped_consumer,
    ),
    ("an extended lease keeps a job", leases::an_extended_lease),
    (
        "an expired lease gives the job to another consumer",
        leases::an_expired_lease,
    ),
    (
        "a cancelled job whose lease expires ends",
        leases::a_cancelled_job_whose_lease_expires,
    ),
    (
        "a closed backend refuses, and ends its consumers",
        consumers::a_closed_backend,
    ),
    (
        "a claim of a closed backend ends",
        consumers::a_claim_of_a_closed_backend,
    ),
];

/// A check of two handles on one store, and what it checks.
pub type SharedCheck = (&'static str, fn(&dyn Backend, &dyn Backend));

/// The checks of backends that [are shared](super::Capabilities::is_shared), to be run one by one on
/// empty stores.
pub const SHARED_CHECKS: &[SharedCheck] = &[
    ("each job goes to one of two processes", shared::jobs),
    ("one of two who change a key is refused", shared::keys),
    (
        "a job that runs in another process is cancelled",
        shared::cancelled,
    ),
    (
        "a pause is of the queue, a close of the process",
        shared::paused_and_closed,
    ),
];

/// Runs all checks, each with a backend that `make` has made, which has to be empty.
///
/// # Panics
/// At the first that fails, after printing its name.
pub fn check_all(make: &mut dyn FnMut() -> Box<dyn Backend>) {
    for (name, check) in CHECKS {
        eprintln!("conformance: {name}");
        check(&*make());
    }
}

/// Runs the checks of backends that [are shared](super::Capabilities::is_shared), each with two
/// handles on one empty store that `make` has made, as two processes would have them.
///
/// # Panics
/// At the first that fails, after printing its name.
pub fn check_shared(make: &mut dyn FnMut() -> [Box<dyn Backend>; 2]) {
    for (name, check) in SHARED_CHECKS {
        eprintln!("conformance: {name}");
        let [one, other] = make();
        check(&*one, &*other);
    }
}

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
const QUEUE: &str = "conformance";

fn job(payload: &[u8]) -> NewJob<'_> {
    NewJob {
        kind: "kind",
        payload,
        headers: &[],
        due: Due::Now,
        sync: false,
    }
}

fn publish(backend: &dyn Backend, queue: &str, payload: &[u8]) -> u64 {
    let queue = backend.queue(queue).expect("a queue");
    queue.publish(&job(payload)).expect("room for a job")
}

fn consumer(backend: &dyn Backend, queues: &[&str], choice: Choice) -> Box<dyn Consumer> {
    let weights = [3, 1];
    let served = queues.iter().zip(weights);
    let served = served.map(|(queue, weight)| Served { queue, weight });
    let served: Vec<_> = served.collect();
    backend.consumer(&served, choice).expect("a consumer")
}

/// Takes the next job, which there has to be.
fn take<T>(consumer: &mut dyn Consumer, with: impl FnOnce(&mut dyn Claim) -> T) -> T {
    let (mut with, mut taken) = (Some(with), None);
    let until = Instant::now() + PATIENCE;
    let next = consumer.next(Some(until), &|| false, &mut |claim| {
        taken = with.take().map(|with| with(claim));
    });
    assert_eq!(next, Next::Taken, "no job comes");
    taken.expect("one job is taken at a time")
}

fn done(claim: &mut dyn Claim) {
    claim.settle(Settlement::Done(None)).expect("it is done");
}

/// Whether no job comes for a while.
fn nothing_comes(consumer: &mut dyn Consumer) -> bool {
    let until = Instant::now() + Duration::from_millis(100);
    let next = consumer.next(Some(until), &|| false, &mut |_| {});
    next == Next::Nothing
}
