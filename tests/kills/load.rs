//! The child process: its threads put a queue under load and note what they do, until they are
//! killed.

use std::cell::RefCell;
use std::fs;
use std::panic;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use logmill::{Consumer, DeadLetter, DeadLetterError, EnqueueError, Failure, Job, JobId, Queue};
use rustix::process::{Signal, getpid, kill_process};

use crate::journal::{Event, Journal, Journals};
use crate::plan::{Consumers, Disposal, GROUP, Kind, Load, Outcome, Shape, TAKEN, Task, rng};
use crate::support::PATIENCE;

/// The parameters of a child, which it reads from a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Orders {
    pub seed: u64,
    pub generation: u64,
    pub shape: Shape,
    pub kind: Kind,
}

const KINDS: [Kind; 3] = [Kind::Usual, Kind::Fat, Kind::Opening];

impl Orders {
    fn path(dir: &Path) -> PathBuf {
        dir.join("orders")
    }

    pub(crate) fn write(self, dir: &Path) {
        let Self {
            seed,
            generation,
            shape,
            kind,
        } = self;
        let Shape {
            stripes,
            segment_size,
        } = shape;
        let kind = KINDS.iter().position(|&one| one == kind).expect("listed");
        let text = format!("{seed} {generation} {stripes} {segment_size} {kind}");
        fs::write(Self::path(dir), text).expect("writable");
    }

    fn read(dir: &Path) -> Self {
        let text = fs::read_to_string(Self::path(dir)).expect("readable");
        let mut numbers = text
            .split(' ')
            .map(|word| word.parse::<u64>().expect("a number"));
        let mut next = || numbers.next().expect("five numbers");
        Self {
            seed: next(),
            generation: next(),
            shape: Shape {
                stripes: next() as usize,
                segment_size: next(),
            },
            kind: KINDS[next() as usize],
        }
    }

    pub(crate) fn load(self) -> Load {
        Load::draw(self.seed, self.generation, self.shape, self.kind)
    }
}

/// The queue directory, within the directory of a child.
pub(crate) fn queue_dir(dir: &Path) -> PathBuf {
    dir.join("queue")
}

/// The directory of a child's journals.
pub(crate) fn journal_dir(dir: &Path, generation: u64) -> PathBuf {
    dir.join(format!("journal-{generation}"))
}

/// Child: runs the load that its orders describe.
pub(crate) fn run(dir: &Path) {
    // A panic in one thread ends the process, so that the parent notices.
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        print(panic);
        process::exit(1);
    }));
    let orders = Orders::read(dir);
    let load = orders.load();
    let journals = Journals::create(journal_dir(dir, load.generation));
    let mut journal = journals.open();
    journal.note(Event::OpenBegins);
    let opened = load.builder(&queue_dir(dir)).open();
    let (queue, report) = opened.unwrap_or_else(|error| panic!("the queue must open: {error}"));
    assert!(report.is_clean(), "{report:?}");
    journal.note(Event::OpenReturned);

    let stopping = AtomicBool::new(false);
    let hand = |salt| Hand {
        queue: &queue,
        load: &load,
        journal: journals.open(),
        rng: rng(&[orders.seed, load.generation, salt]),
        stopping: &stopping,
    };
    let pool = match load.consumers {
        Consumers::Pool(threads) => Some(pool(&queue, &load, &journals, threads)),
        _ => None,
    };
    thread::scope(|scope| {
        for number in 0..load.producers {
            let hand = hand(100 + number);
            scope.spawn(move || hand.produce(number));
        }
        if let Consumers::ByHand(threads) = load.consumers {
            for number in 0..threads as u64 {
                let hand = hand(200 + number);
                scope.spawn(move || hand.consume());
            }
        }
        for number in 0..load.custodians as u64 {
            let hand = hand(300 + number);
            scope.spawn(move || hand.keep());
        }
        match load.closes_after {
            None => loop {
                thread::park();
            },
            Some(time) => thread::sleep(time),
        }
        stopping.store(true, Ordering::Relaxed);
    });
    if let Some(pool) = pool {
        assert!(pool.shutdown(PATIENCE).finished_in_time);
    }
    let began = journal.note(Event::CloseBegins);
    queue.close().expect("flushed");
    journal.note(Event::FlushReturned { began });
}

/// Starts workers that note what they do.
fn pool(queue: &Queue, load: &Load, journals: &Journals, threads: usize) -> logmill::Workers {
    thread_local! {
        /// The journal of the thread, and the event to note once its last handler has ended.
        static JOURNAL: RefCell<Option<(Journal, Option<Event>)>> = const { RefCell::new(None) };
    }
    let journals = journals.clone();
    let shape = load.shape;
    let handler = move |job: &Job<'_>| {
        JOURNAL.with_borrow_mut(|journal| {
            let (journal, ended) = journal.get_or_insert_with(|| (journals.open(), None));
            if let Some(event) = ended.take() {
                journal.note(event);
            }
            let (delivered, id) = receive(job, shape);
            journal.note(delivered);
            let sequence = job.id().get();
            let outcome = Task::outcome(id, job.attempts());
            begin(journal, outcome, job);
            match outcome {
                Outcome::Ack | Outcome::SlowAck(_) => {
                    *ended = Some(Event::AckReturned { job: sequence });
                    return Ok(());
                }
                Outcome::DeadLetter => return Err(Failure::dead_letter("not retryable")),
                _ => *ended = Some(Event::FailureReturned { job: sequence }),
            }
            match outcome {
                Outcome::RetryAfter(delay) => Err(Failure::retry_after(delay, "later")),
                _ => Err("not now".into()),
            }
        })
    };
    queue.workers(threads).run(handler).expect("threads start")
}

/// The event to note for a delivered job, and the id of its task.
fn receive(job: &Job<'_>, shape: Shape) -> (Event, u64) {
    let id = Task::id_of(job, shape);
    let delivered = Event::Delivered {
        job: job.id().get(),
        id,
        attempt: job.attempts(),
        crashes: job.crashes(),
    };
    (delivered, id)
}

/// Notes that a job is about to be settled, after what the outcome needs to happen before.
fn begin(journal: &mut Journal, outcome: Outcome, job: &Job<'_>) {
    let sequence = job.id().get();
    match outcome {
        Outcome::Ack => {
            journal.note(Event::AckBegins { job: sequence });
        }
        Outcome::SlowAck(time) => {
            thread::sleep(time);
            journal.note(Event::AckBegins { job: sequence });
        }
        Outcome::DeadLetter => {
            journal.note(Event::DeathBegins {
                job: sequence,
                attempt: job.attempts(),
            });
        }
        Outcome::Kill => {
            kill_process(getpid(), Signal::KILL).expect("permitted");
            loop {
                thread::park();
            }
        }
        Outcome::Retry | Outcome::RetryAfter(_) | Outcome::Drop => {
            journal.note(Event::FailureBegins { job: sequence });
        }
    }
}

/// What a thread of the child works with.
struct Hand<'a> {
    queue: &'a Queue,
    load: &'a Load,
    journal: Journal,
    rng: Rng,
    stopping: &'a AtomicBool,
}

impl Hand<'_> {
    fn goes_on(&self) -> bool {
        !self.stopping.load(Ordering::Relaxed)
    }

    fn produce(mut self, number: u64) {
        let shape = self.load.shape;
        // Some producers enqueue through the queue, some through a handle; each stays on its
        // stripe.
        let mut producer = self.rng.bool().then(|| self.queue.producer());
        let poison_at = match self.load.poison && number == 0 {
            true => self.rng.u64(..100),
            false => u64::MAX,
        };
        for group in 0.. {
            while self.queue.stats().depth() >= self.load.backlog && self.goes_on() {
                thread::sleep(Duration::from_millis(1));
            }
            if !self.goes_on() {
                return;
            }
            let id = self.load.first_id(number, group);
            let ids = match group == poison_at {
                true => vec![Task::poison(id)],
                false => (id..id + self.rng.u64(1..=GROUP)).collect(),
            };
            let options = Task::options(ids[0]);
            let payloads: Vec<_> = ids.iter().map(|&id| Task::of(id, shape).payload).collect();
            let mut enqueue = |payload: &[u8]| match &mut producer {
                Some(producer) => producer.enqueue_with(payload, options),
                None => self.queue.enqueue_with(payload, options),
            };
            let begins = |&id: &u64| Event::EnqueueBegins {
                id,
                in_batch: false,
            };
            let returned = |id: u64, result: Result<JobId, EnqueueError>| match result {
                Ok(job) => Event::EnqueueReturned { id, job: job.get() },
                Err(error) => {
                    expect_no_room(error);
                    Event::EnqueueRefused { id }
                }
            };
            // With what is beside the payload in a record.
            let beside = Task::labels(ids[0]).len() + 256;
            let bytes: usize = payloads.iter().map(|one| one.len() + beside).sum();
            let max_depth = self.load.max_depth.unwrap_or(u64::MAX);
            let fits_a_batch = bytes <= self.queue.max_payload() && ids.len() as u64 <= max_depth;
            match self.rng.u32(..4) {
                0 if fits_a_batch => {
                    let begins = |&id| Event::EnqueueBegins { id, in_batch: true };
                    self.journal.note_all(ids.iter().map(begins));
                    let batch: Vec<_> = payloads.iter().map(|one| (one, options)).collect();
                    let result = match &mut producer {
                        Some(producer) => producer.enqueue_batch_with(&batch),
                        None => self.queue.enqueue_batch_with(&batch),
                    };
                    let results = match result {
                        Ok(jobs) => jobs.into_iter().map(Ok).collect(),
                        Err(error) => vec![Err(error); ids.len()],
                    };
                    let all = ids.into_iter().zip(results);
                    self.journal
                        .note_all(all.map(|(id, result)| returned(id, result)));
                }
                1 => {
                    for (id, payload) in ids.into_iter().zip(&payloads) {
                        self.journal.note(begins(&id));
                        let result = enqueue(payload);
                        self.journal.note(returned(id, result));
                    }
                }
                // Notes only before and after the group, so that a kill is likely to hit an
                // enqueue, not a note.
                _ => {
                    self.journal.note_all(ids.iter().map(begins));
                    let results: Vec<_> = payloads.iter().map(|one| enqueue(one)).collect();
                    let all = ids.into_iter().zip(results);
                    self.journal
                        .note_all(all.map(|(id, result)| returned(id, result)));
                }
            }
        }
    }

    fn consume(mut self) {
        let consumer = self.queue.consumer();
        let takes_several = self.rng.bool();
        while self.goes_on() {
            let jobs = self.take(&consumer, takes_several);
            let mut delivered = Vec::new();
            let mut to_ack = Vec::new();
            let mut others = Vec::new();
            for job in jobs {
                let (event, id) = receive(&job, self.load.shape);
                delivered.push(event);
                match Task::outcome(id, job.attempts()) {
                    Outcome::Ack => to_ack.push(job),
                    outcome => others.push((job, outcome)),
                }
            }
            if delivered.is_empty() {
                continue;
            }
            self.journal.note_all(delivered);
            let acked: Vec<_> = to_ack.iter().map(|job| job.id().get()).collect();
            let events = acked.iter().map(|&job| Event::AckBegins { job });
            self.journal.note_all(events);
            to_ack.into_iter().for_each(Job::ack);
            let events = acked.iter().map(|&job| Event::AckReturned { job });
            self.journal.note_all(events);
            for (job, outcome) in others {
                self.settle(job, outcome);
            }
        }
    }

    fn take<'a>(&mut self, consumer: &'a Consumer, several: bool) -> Vec<Job<'a>> {
        let timeout = Duration::from_millis(3);
        match several {
            true => consumer.next_batch(self.rng.usize(1..=TAKEN), timeout),
            false => consumer.next_timeout(timeout).into_iter().collect(),
        }
    }

    fn settle(&mut self, job: Job<'_>, outcome: Outcome) {
        let sequence = job.id().get();
        begin(&mut self.journal, outcome, &job);
        match outcome {
            Outcome::Ack | Outcome::SlowAck(_) => {
                job.ack();
                self.journal.note(Event::AckReturned { job: sequence });
            }
            Outcome::DeadLetter => {
                job.dead_letter("not retryable");
                self.journal.note(Event::DeathReturned { job: sequence });
            }
            Outcome::Retry => job.retry("not now"),
            Outcome::RetryAfter(delay) => job.retry_after(delay, "later"),
            Outcome::Drop | Outcome::Kill => drop(job),
        }
        if let Outcome::Retry | Outcome::RetryAfter(_) | Outcome::Drop = outcome {
            self.journal.note(Event::FailureReturned { job: sequence });
        }
    }

    /// Replays and purges letters, flushes, and verifies the queue.
    fn keep(mut self) {
        let longest_pause = [1, 300, 4000][self.rng.usize(..3)];
        while self.goes_on() {
            thread::sleep(Duration::from_micros(self.rng.u64(..longest_pause)));
            let letters = self.queue.dead_letters();
            match self.rng.u32(..10) {
                0 => {
                    let mut begin = beginning(&mut self.journal, self.load.shape);
                    let replayed = letters.replay_where(|letter| begin(letter, Disposal::Replay));
                    drop(begin);
                    let jobs = match replayed {
                        Ok(jobs) => jobs,
                        Err(DeadLetterError::Partial { replayed, error }) => {
                            expect_refusal(*error);
                            replayed
                        }
                        Err(error) => panic!("{error}"),
                    };
                    let returned = |job: JobId| Event::ReplayReturned {
                        letter: 0,
                        job: job.get(),
                    };
                    self.journal.note_all(jobs.into_iter().map(returned));
                }
                1 => {
                    let mut begin = beginning(&mut self.journal, self.load.shape);
                    let purged = letters.purge_where(|letter| begin(letter, Disposal::Purge));
                    purged.expect("flushed");
                }
                2 => {
                    let began = self.journal.note(Event::FlushBegins);
                    self.queue.flush().expect("flushed");
                    self.journal.note(Event::FlushReturned { began });
                }
                3 if self.rng.u32(..20) == 0 => {
                    let report = self.queue.verify().expect("readable");
                    assert!(report.damaged.is_empty(), "{report:?}");
                }
                _ => {
                    let shape = self.load.shape;
                    for letter in letters.iter().take(10) {
                        let sequence = letter.id();
                        let disposal = Disposal::of(sequence.get());
                        beginning(&mut self.journal, shape)(&letter, disposal);
                        let letter = sequence.get();
                        let result = match disposal {
                            Disposal::Keep => continue,
                            Disposal::Replay => letters.replay(sequence).map(|job| {
                                let job = job.get();
                                Event::ReplayReturned { letter, job }
                            }),
                            Disposal::Purge => letters
                                .purge(sequence)
                                .map(|()| Event::PurgeReturned { letter }),
                        };
                        match result {
                            Ok(returned) => {
                                self.journal.note(returned);
                            }
                            Err(error) => expect_refusal(error),
                        }
                    }
                }
            }
        }
    }
}

/// A filter that picks the letters with the given disposal, and notes that it begins.
fn beginning(journal: &mut Journal, shape: Shape) -> impl FnMut(&DeadLetter, Disposal) -> bool {
    move |letter, disposal| {
        let sequence = letter.id().get();
        if Disposal::of(sequence) != disposal {
            return false;
        }
        let seen = Event::LetterSeen {
            letter: sequence,
            job: letter.job_id().get(),
            id: Task::id_of_letter(letter, shape),
            attempts: letter.attempts(),
            crashes: letter.crashes(),
        };
        let begins = match disposal {
            Disposal::Keep => None,
            Disposal::Replay => Some(Event::ReplayBegins { letter: sequence }),
            Disposal::Purge => Some(Event::PurgeBegins { letter: sequence }),
        };
        journal.note_all([seen].into_iter().chain(begins));
        true
    }
}

fn expect_no_room(error: EnqueueError) {
    let is_expected = error.is_full() || matches!(error, EnqueueError::Closed);
    assert!(is_expected, "{error}");
}

/// A replay or purge may find that another thread removed the letter, or that there is no room.
fn expect_refusal(error: DeadLetterError) {
    match error {
        DeadLetterError::NotFound { .. } => {}
        DeadLetterError::Enqueue(error) => expect_no_room(error),
        other => panic!("{other}"),
    }
}
