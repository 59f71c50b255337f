//! Tests of delays and due times when the wall clock jumps: before a job is claimed, while it
//! waits, and across a restart.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tempfile::TempDir;

use crate::dispatch::source::Source;
use crate::engine::Running;
use crate::engine::enqueue::Place;
use crate::options::Builder;
use crate::time::stopped;
use crate::{EnqueueOptions, JobId};

const DAY: Duration = Duration::from_secs(86_400);
const YEAR: Duration = Duration::from_secs(365 * 86_400);
/// What both clocks show at the start.
const START: Duration = Duration::from_secs(1_000_000_000);
const SECOND: Duration = Duration::from_secs(1);
const AFTER_A_SECOND: EnqueueOptionsFn = || EnqueueOptions::new().delay(SECOND);

type EnqueueOptionsFn = fn() -> EnqueueOptions<'static>;

/// A queue without threads, and a consumer of it.
struct Fixture {
    dir: TempDir,
    open: Option<(Arc<Running>, Source<Arc<Running>>)>,
}

impl Fixture {
    /// A new queue, with both clocks at [`START`].
    fn new() -> Self {
        stopped::set(Some(START));
        let mut fixture = Self {
            dir: tempfile::tempdir().unwrap(),
            open: None,
        };
        fixture.reopen();
        fixture
    }

    fn reopen(&mut self) {
        self.open = None;
        let builder = Builder::new(self.dir.path()).stripes(1);
        let running = Arc::new(
            Running::open_idle(&builder.segment_size(16 * 1024))
                .unwrap()
                .0,
        );
        self.open = Some((Arc::clone(&running), Source::new(running)));
    }

    fn running(&self) -> &Running {
        &self.open.as_ref().unwrap().0
    }

    fn enqueue(&self, options: EnqueueOptions) -> JobId {
        let place = Place::on(&self.running().dispatch().stripes()[0]);
        self.running()
            .enqueue_with(place, b"job", &options)
            .unwrap()
    }

    /// Whether a job is delivered. Acks it.
    fn delivers(&self) -> bool {
        let running = self.running();
        running.turn_timer();
        let Some(lease) = self.open.as_ref().unwrap().1.try_next() else {
            return false;
        };
        let (lease, attempt, delivery) = running.begin(lease).unwrap();
        running.ack(lease, delivery, attempt);
        true
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.open = None;
        stopped::set(None);
    }
}

/// Sets both clocks to `time` after [`START`].
fn pass(time: Duration) {
    stopped::set(Some(START + time));
}

/// Sets the monotonic clock to `time` after [`START`], and the wall clock to `wall`.
fn pass_with_wall_at(time: Duration, wall: Duration) {
    pass(time);
    stopped::set_wall(wall);
}

fn at(time: Duration) -> SystemTime {
    UNIX_EPOCH + time
}

#[test]
fn a_delay_is_no_longer_than_asked_for_however_far_the_clock_is_set_back() {
    let fixture = Fixture::new();
    fixture.enqueue(AFTER_A_SECOND());
    // Set back before a consumer comes to the job.
    stopped::set_wall(START - DAY);
    assert!(!fixture.delivers());
    pass_with_wall_at(SECOND - Duration::from_millis(1), START - DAY);
    assert!(!fixture.delivers());
    pass_with_wall_at(SECOND, START - DAY);
    assert!(fixture.delivers());
    // Set back after that.
    pass(Duration::ZERO);
    fixture.enqueue(AFTER_A_SECOND());
    assert!(!fixture.delivers());
    pass_with_wall_at(SECOND, START - DAY);
    assert!(fixture.delivers());
}

#[test]
fn a_delay_asked_for_while_the_clock_was_far_ahead_ends_after_the_restart_that_finds_it_right() {
    let mut fixture = Fixture::new();
    stopped::set_wall(START + YEAR);
    fixture.enqueue(AFTER_A_SECOND());
    assert!(!fixture.delivers());
    pass(Duration::ZERO);
    fixture.reopen();
    assert!(!fixture.delivers());
    pass(SECOND);
    assert!(fixture.delivers());
}

#[test]
fn a_delay_asked_for_before_the_epoch_is_kept() {
    let fixture = Fixture::new();
    // A timestamp cannot be earlier than the epoch.
    stopped::set_wall(Duration::ZERO);
    fixture.enqueue(AFTER_A_SECOND());
    assert!(!fixture.delivers());
    pass_with_wall_at(SECOND, Duration::ZERO);
    assert!(fixture.delivers());
}

#[test]
fn a_clock_set_forward_ends_a_delay_only_if_no_consumer_has_come_to_the_job() {
    let fixture = Fixture::new();
    fixture.enqueue(AFTER_A_SECOND());
    assert!(!fixture.delivers());
    stopped::set_wall(START + DAY);
    assert!(!fixture.delivers());
    pass(SECOND);
    assert!(fixture.delivers());
    fixture.enqueue(AFTER_A_SECOND());
    stopped::set_wall(START + DAY);
    assert!(fixture.delivers());
}

#[test]
fn a_due_time_follows_the_clock_wherever_that_jumps() {
    let mut fixture = Fixture::new();
    let tomorrow = || EnqueueOptions::new().due_at(at(START + DAY));
    fixture.enqueue(tomorrow());
    assert!(!fixture.delivers());
    // Set back while the job waits, which would have been due by then.
    pass_with_wall_at(DAY, START);
    assert!(!fixture.delivers());
    // And forward again.
    stopped::set_wall(START + DAY);
    assert!(fixture.delivers());
    // The clock is wrong while the job is enqueued and claimed, and is then set right.
    pass(Duration::ZERO);
    stopped::set_wall(START - YEAR);
    fixture.enqueue(tomorrow());
    assert!(!fixture.delivers());
    pass(Duration::ZERO);
    assert!(!fixture.delivers());
    fixture.reopen();
    assert!(!fixture.delivers());
    pass(DAY);
    assert!(fixture.delivers());
}
