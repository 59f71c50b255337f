//! Draws everything that a run decides in advance: the shape of a queue, the load of a child, and
//! the tasks. All properties of a task follow from its id, so that every byte of a delivered
//! payload can be checked.

use std::path::Path;
use std::time::Duration;

use fastrand::Rng;
use logmill::{Builder, DeadLetter, Durability, EnqueueOptions, Job, Queue, RetryPolicy};

use crate::labels::Labels;

/// Attempts of a task without a limit of its own.
pub(crate) const ATTEMPTS: u8 = 4;
/// Crashes after which a job is dead.
pub(crate) const CRASHES: u8 = 3;
/// Largest number of tasks in a batch, and number of ids in a group with the same options.
pub(crate) const GROUP: u64 = 64;
/// Largest number of jobs that a consumer takes at a time.
pub(crate) const TAKEN: usize = 8;

/// A random source that depends on all of `numbers`.
pub(crate) fn rng(numbers: &[u64]) -> Rng {
    let mix = |mixed: u64, &number: &u64| Rng::with_seed(mixed ^ number).u64(..);
    Rng::with_seed(numbers.iter().fold(0x6b69_6c6c, mix))
}

fn millis(rng: &mut Rng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_micros(rng.u64(range.start * 1000..range.end * 1000))
}

/// The options that are fixed when a queue is created.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub stripes: usize,
    pub segment_size: u64,
}

impl Shape {
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        // Small segments, so that rolls, retirement and recycling happen often.
        let sizes = [16, 16, 32, 64, 256];
        Self {
            stripes: rng.usize(1..=4),
            segment_size: sizes[rng.usize(..sizes.len())] * 1024,
        }
    }

    pub(crate) fn builder(self, queue_dir: &Path) -> Builder {
        Queue::builder(queue_dir)
            .stripes(self.stripes)
            .segment_size(self.segment_size)
    }

    /// The most bytes of name, headers and payload, as `Queue::max_payload` reports it.
    fn max_payload(self) -> usize {
        self.segment_size as usize / 4 - 560
    }
}

/// How a child takes jobs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Consumers {
    None,
    /// This many threads, each with a consumer from which it takes one or several jobs at a time.
    ByHand(usize),
    Pool(usize),
}

/// The kinds of children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Usual,
    /// Only enqueues, as much as it can.
    Fat,
    /// Opens the queue and does nothing else.
    Opening,
}

/// What a child does until it is killed.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub generation: u64,
    pub shape: Shape,
    pub durability: Durability,
    pub producers: u64,
    pub consumers: Consumers,
    /// Number of threads that replay and purge letters, and flush.
    pub custodians: usize,
    /// Producers pause while the queue has this many jobs.
    pub backlog: u64,
    pub lease_timeout: Option<Duration>,
    pub max_depth: Option<u64>,
    pub max_bytes: Option<u64>,
    /// The child closes the queue and ends after this time, if it is not killed before.
    pub closes_after: Option<Duration>,
    /// One of the tasks kills the process that works on it.
    pub poison: bool,
    /// Properties that all of its tasks have: some of the bits of an id below.
    traits: u64,
}

impl Load {
    pub(crate) fn draw(seed: u64, generation: u64, shape: Shape, kind: Kind) -> Self {
        let mut rng = rng(&[seed, generation]);
        let rng = &mut rng;
        let one_in = |rng: &mut Rng, n| rng.u32(..n) == 0;
        let durability = match rng.u32(..4) {
            0 => Durability::Sync,
            1 => Durability::Interval(millis(rng, 1..20)),
            _ => Durability::Process,
        };
        let consumers = match rng.u32(..8) {
            0 => Consumers::None,
            1 | 2 => Consumers::ByHand(1),
            3..=5 => Consumers::ByHand(rng.usize(2..=3)),
            _ => Consumers::Pool(rng.usize(1..=3)),
        };
        let load = Self {
            generation,
            shape,
            durability,
            producers: if one_in(rng, 10) { 0 } else { rng.u64(1..=4) },
            consumers,
            custodians: rng.usize(..=2),
            backlog: [30, 300, 1500][rng.usize(..3)],
            lease_timeout: one_in(rng, 6).then(|| millis(rng, 2..30)),
            max_depth: one_in(rng, 6).then(|| rng.u64(10..1000)),
            max_bytes: one_in(rng, 8)
                .then(|| rng.u64(3..20) * shape.segment_size * shape.stripes as u64),
            closes_after: one_in(rng, 6).then(|| millis(rng, 10..250)),
            poison: one_in(rng, 8),
            traits: 0,
        };
        match kind {
            Kind::Usual if one_in(rng, 4) => Self {
                traits: HEAVY,
                backlog: 30,
                ..load
            },
            Kind::Usual if one_in(rng, 3) => Self {
                traits: GRIM,
                ..load
            },
            Kind::Usual if one_in(rng, 6) => Self {
                traits: LATE,
                lease_timeout: Some(millis(rng, 2..8)),
                custodians: 2,
                ..load
            },
            Kind::Usual => load,
            Kind::Fat => Self {
                producers: 4,
                consumers: Consumers::None,
                backlog: 6_000,
                durability: Durability::Process,
                max_depth: None,
                max_bytes: None,
                closes_after: None,
                ..load
            },
            Kind::Opening => Self {
                producers: 0,
                consumers: Consumers::None,
                custodians: 0,
                closes_after: None,
                ..load
            },
        }
    }

    pub(crate) fn builder(&self, queue_dir: &Path) -> Builder {
        let mut rng = rng(&[self.generation, 1]);
        let retry = match rng.u32(..3) {
            0 => RetryPolicy::fixed(Duration::ZERO),
            1 => RetryPolicy::fixed(millis(&mut rng, 1..5)),
            _ => RetryPolicy::exponential(Duration::from_millis(1), Duration::from_millis(8)),
        };
        let mut builder = self
            .shape
            .builder(queue_dir)
            .durability(self.durability)
            .retry(retry.max_attempts(ATTEMPTS).max_crashes(CRASHES));
        if let Some(timeout) = self.lease_timeout {
            builder = builder.lease_timeout(timeout);
        }
        if let Some(jobs) = self.max_depth {
            builder = builder.max_depth(jobs);
        }
        if let Some(bytes) = self.max_bytes {
            builder = builder.max_bytes(bytes);
        }
        builder
    }

    /// The first id of a group of tasks of one producer. All tasks of a group have the same
    /// options.
    pub(crate) fn first_id(&self, producer: u64, group: u64) -> u64 {
        self.traits | (self.generation << 40) | (producer << 36) | (group * GROUP)
    }

    /// The largest number of deliveries that may have begun but not been noted when the child dies.
    pub(crate) fn most_unnoted(&self) -> u64 {
        match self.consumers {
            Consumers::None => 0,
            Consumers::ByHand(threads) => (threads * TAKEN) as u64,
            Consumers::Pool(threads) => threads as u64,
        }
    }

    /// Whether jobs on their first delivery are delivered in the order of their stripe.
    pub(crate) fn delivers_in_order(&self) -> bool {
        matches!(self.consumers, Consumers::ByHand(1) | Consumers::Pool(1))
    }
}

/// How an attempt at a job ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Ack,
    SlowAck(Duration),
    Retry,
    RetryAfter(Duration),
    Drop,
    DeadLetter,
    Kill,
}

/// Something to be enqueued, derived from its id.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub id: u64,
    pub payload: Vec<u8>,
}

/// A bit of an id: the task kills the process that works on it.
const POISON: u64 = 1 << 63;
/// A bit of an id: the task is likely to die.
const GRIM: u64 = 1 << 62;
/// A bit of an id: the payload is large.
const HEAVY: u64 = 1 << 61;
/// A bit of an id: the task has one attempt, which is likely to outlast its lease, so that its ack
/// comes when there is a letter.
const LATE: u64 = 1 << 60;
/// All bits of an id that say such things.
const TRAITS: u64 = POISON | GRIM | HEAVY | LATE;

/// Payloads repeat after this many bytes, a prime number.
const BLOCK: usize = 241;

impl Task {
    pub(crate) fn poison(id: u64) -> u64 {
        POISON | id
    }

    /// Identifies the child and the producer of a task.
    pub(crate) fn producer_of(id: u64) -> u64 {
        (id & !TRAITS) >> 36
    }

    /// The position of a task among the tasks of its producer.
    pub(crate) fn order(id: u64) -> u64 {
        id & ((1 << 36) - 1)
    }

    pub(crate) fn of(id: u64, shape: Shape) -> Self {
        let mut rng = rng(&[id]);
        let max = shape.max_payload() - Self::labels(id).len();
        let len = match rng.u32(..40) {
            0..36 if id & HEAVY != 0 => rng.usize(max / 2..=max),
            0..20 => rng.usize(8..40),
            20..36 => rng.usize(8..400),
            36..39 => rng.usize(8..=max),
            _ => max,
        };
        let mut block = [0; BLOCK];
        rng.fill(&mut block);
        block[..8].copy_from_slice(&id.to_le_bytes());
        let mut payload = block.repeat(len.div_ceil(BLOCK));
        payload.truncate(len);
        Self { id, payload }
    }

    /// The id of the task that was delivered; panics if anything differs from what was enqueued.
    pub(crate) fn id_of(job: &Job<'_>, shape: Shape) -> u64 {
        let task = Self::from_payload(job.payload(), shape);
        let labels = Self::labels(task.id);
        labels.check(job.name(), job.headers(), job.id());
        task.id
    }

    /// The id of the task that a letter is of; panics if anything differs from what was enqueued.
    pub(crate) fn id_of_letter(letter: &DeadLetter, shape: Shape) -> u64 {
        let task = Self::from_payload(letter.payload(), shape);
        let labels = Self::labels(task.id);
        labels.check(letter.name(), letter.headers(), letter.id());
        task.id
    }

    /// The task that has this payload; panics if any byte differs.
    fn from_payload(payload: &[u8], shape: Shape) -> Self {
        let id = payload.first_chunk().expect("a payload of 8 bytes or more");
        let task = Self::of(u64::from_le_bytes(*id), shape);
        assert!(
            task.payload == payload,
            "a payload is not what was enqueued: {:x}",
            task.id
        );
        task
    }

    fn options_rng(id: u64) -> Rng {
        rng(&[id / GROUP, 2])
    }

    /// The delay before the task is due.
    pub(crate) fn delay(id: u64) -> Duration {
        let mut rng = Self::options_rng(id);
        match rng.u32(..30) {
            0..3 => millis(&mut rng, 1..30),
            3 => millis(&mut rng, 30..200),
            _ => Duration::ZERO,
        }
    }

    /// Its name and headers.
    pub(crate) fn labels(id: u64) -> Labels {
        Labels::of(rng(&[id / GROUP, 7]).u64(..))
    }

    /// How often the task may be delivered; `None`: without limit.
    pub(crate) fn limit(id: u64) -> Option<u8> {
        Self::own_limit(id).unwrap_or(Some(ATTEMPTS))
    }

    /// The limit that the task itself sets, if it sets one.
    pub(crate) fn own_limit(id: u64) -> Option<Option<u8>> {
        if id & POISON != 0 {
            return Some(Some(2));
        }
        if id & LATE != 0 {
            return Some(Some(1));
        }
        let mut rng = rng(&[id / GROUP, 3]);
        match rng.u32(..20) {
            0..3 => Some(Some(rng.u8(1..=3))),
            3 => Some(None),
            _ => None,
        }
    }

    /// The options it is enqueued with.
    pub(crate) fn options(id: u64) -> EnqueueOptions<'static> {
        let mut rng = rng(&[id / GROUP, 4]);
        let mut options = Self::labels(id).add_to(EnqueueOptions::new());
        if !Self::delay(id).is_zero() {
            options = options.delay(Self::delay(id));
        }
        options = match Self::own_limit(id) {
            None => options,
            Some(None) => options.unlimited_attempts(),
            Some(Some(limit)) => options.max_attempts(limit),
        };
        options = match rng.u32(..20) {
            0 => options.durability(Durability::Sync),
            1 | 2 => options.durability(Durability::Interval(millis(&mut rng, 1..10))),
            3 | 4 => options.durability(Durability::Process),
            _ => options,
        };
        if rng.u32(..4) == 0 {
            options = options.wait(Duration::from_millis(5));
        }
        options
    }

    /// How this attempt at the task ends.
    pub(crate) fn outcome(id: u64, attempt: u32) -> Outcome {
        if id & POISON != 0 {
            return Outcome::Kill;
        }
        let mut rng = rng(&[id, 5]);
        // These outcomes are limited to the first attempt; otherwise tasks without a limit would
        // never end.
        let first = attempt == 1;
        match rng.u32(..100) {
            0..8 if first => Outcome::Retry,
            8..11 if first => Outcome::RetryAfter(millis(&mut rng, 0..20)),
            11..14 if first => Outcome::Drop,
            14..20 if Self::limit(id).is_some() => Outcome::Retry,
            20..60 if id & GRIM != 0 => Outcome::DeadLetter,
            20..24 => Outcome::DeadLetter,
            24..80 if id & LATE != 0 => Outcome::SlowAck(millis(&mut rng, 2..14)),
            24..27 => Outcome::SlowAck(millis(&mut rng, 0..12)),
            _ => Outcome::Ack,
        }
    }
}

/// What custodians do with a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disposal {
    Keep,
    Replay,
    Purge,
}

impl Disposal {
    /// The disposal of the letter with this sequence; always the same one.
    pub(crate) fn of(letter: u64) -> Self {
        match rng(&[letter, 6]).u32(..20) {
            0 | 1 => Self::Keep,
            2..=12 => Self::Replay,
            _ => Self::Purge,
        }
    }
}
