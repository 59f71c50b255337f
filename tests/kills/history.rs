//! Derives what must be true of a queue from the journals of the killed children and from what was
//! found after each kill, never from the queue's own files.

use std::collections::{HashMap, HashSet};

use crate::figures::Figures;
use crate::inspection::{FoundJob, FoundLetter, Inspection};
use crate::journal::{Event, Note};
use crate::plan::{CRASHES, Disposal, GROUP, Load, Task};

/// How far a call has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Call {
    #[default]
    NotBegun,
    Begun,
    Returned,
}

impl Call {
    /// Does nothing if another thread has already begun or finished the call.
    fn begin(&mut self) {
        if *self == Self::NotBegun {
            *self = Self::Begun;
        }
    }
}

/// What is known of the tasks, jobs and letters of a queue. A task is something to be enqueued: it
/// becomes one job, and one more for each replay of a letter.
#[derive(Default)]
pub(crate) struct History {
    tasks: HashMap<u64, TaskState>,
    jobs: HashMap<u64, JobState>,
    letters: HashMap<u64, LetterState>,
    /// Tasks that changed since the last inspection.
    touched: HashSet<u64>,
    /// Jobs and letters that were still there at the last inspection, or may come back.
    unsettled_jobs: HashSet<u64>,
    unsettled_letters: HashSet<u64>,
    /// Producers under `max_depth` or `max_bytes`: some of their enqueues may have been refused.
    limited: HashSet<u64>,
    /// How many deliveries since the last inspection may have been counted but not noted.
    may_be_unnoted: u64,
    /// Since the last inspection, lease timeouts may have failed attempts, which no journal notes.
    may_time_out: bool,
    /// The jobs that replays of several letters returned.
    replayed: Vec<u64>,
}

#[derive(Debug, Default)]
struct TaskState {
    /// Whether it was enqueued in one batch with the others of its group.
    in_batch: bool,
    returned: Option<u64>,
    /// The task is known not to be in the queue, so it must never appear there.
    refused: bool,
    jobs: Vec<u64>,
    letters: Vec<u64>,
}

#[derive(Debug, Default)]
struct JobState {
    task: u64,
    /// Failed attempts, as far as they are known.
    failed: u32,
    crashes: u32,
    /// The deliveries that were noted: the attempt, and the crashes before it.
    noted: Vec<(u32, u32)>,
    /// How many handlers have the job.
    handlers: u32,
    /// How far one of these handlers is in reporting a failure.
    failure: Call,
    /// In this process, a lease timeout may have failed attempts of the job.
    may_time_out: bool,
    ack: Call,
    /// A handler may have acked the job after its lease had timed out, which withdraws its letter.
    may_be_acked_late: bool,
    /// The attempts in which a consumer declared the job dead.
    deaths: Vec<u32>,
    /// In this process, its consumer has handed the job over to the dead letter log.
    is_dead: bool,
    /// The death was flushed, so the letter is there and the job is not.
    buried: bool,
    /// A kill between letter and ack left both the job and its letter. The job may get another
    /// letter.
    outlived_its_letter: bool,
    /// The job was found to be gone.
    settled: bool,
    letters: Vec<u64>,
}

#[derive(Debug, Default)]
struct LetterState {
    job: u64,
    task: u64,
    attempts: u32,
    crashes: u32,
    removal: Call,
    /// The letter was found to be gone.
    settled: bool,
}

impl JobState {
    /// A handler has reported that its attempt failed.
    fn end_failure(&mut self) {
        if self.failure == Call::Begun {
            self.failure = Call::NotBegun;
            self.handlers -= 1;
            self.failed += u32::from(!self.may_time_out);
        }
    }

    /// The process has ended, and `found` is what an inspection found of the job. Returns whether a
    /// handler must have had the job without noting it.
    fn end_with_the_process(&mut self, found: &FoundJob, may_time_out: bool) -> bool {
        let (failed, crashes) = (found.failed, found.crashes);
        let known = (self.failed, self.crashes);
        let was_running = (known.0, known.1 + 1);
        let has_failed = (known.0 + 1, known.1);
        let now = (failed, crashes);
        let mut is_unnoted = false;
        let is_possible = if may_time_out {
            // Lease timeouts may have failed attempts.
            failed >= known.0 && (known.1..=was_running.1).contains(&crashes)
        } else if self.failure == Call::Begun {
            now == was_running || now == has_failed
        } else if self.handlers > 0 {
            now == was_running
        } else {
            is_unnoted = now == was_running;
            is_unnoted || now == known
        };
        let job = found.sequence;
        assert!(is_possible, "{job:x} has {now:?} after {self:?}");
        (self.failed, self.crashes) = now;
        self.handlers = 0;
        self.failure = Call::NotBegun;
        self.may_time_out = false;
        is_unnoted
    }
}

impl History {
    /// Processes what a child noted until it ended.
    pub(crate) fn read(&mut self, load: &Load, notes: &[Note], figures: &mut Figures) {
        self.may_be_unnoted += load.most_unnoted();
        self.may_time_out |= load.lease_timeout.is_some();
        let mut deaths = Vec::new();
        let mut last_of_producer = HashMap::new();
        let mut last_delivered = HashMap::new();
        for note in notes {
            match note.event {
                Event::OpenBegins | Event::OpenReturned => {}
                Event::FlushBegins | Event::CloseBegins => {}
                Event::EnqueueBegins { id, in_batch } => {
                    if load.max_depth.is_some() || load.max_bytes.is_some() {
                        self.limited.insert(Task::producer_of(id));
                    }
                    let task = TaskState {
                        in_batch,
                        ..TaskState::default()
                    };
                    let before = self.tasks.insert(id, task);
                    assert!(before.is_none(), "the harness enqueued {id:x} twice");
                    self.touched.insert(id);
                }
                Event::EnqueueReturned { id, job } => {
                    self.job(job, id);
                    self.task(id).returned = Some(job);
                    let last = last_of_producer.insert(Task::producer_of(id), job);
                    assert!(
                        last.is_none_or(|last| last >> 56 == job >> 56 && last < job),
                        "one producer got job {last:x?} and then {job:x}"
                    );
                    figures.enqueued += 1;
                }
                Event::EnqueueRefused { id } => {
                    let task = self.task(id);
                    assert!(
                        task.jobs.is_empty(),
                        "{id:x} was refused, but is in the queue: {task:?}"
                    );
                    task.refused = true;
                    figures.refused += 1;
                }
                Event::Delivered {
                    job,
                    id,
                    attempt,
                    crashes,
                } => {
                    figures.delivered += 1;
                    let state = self.job(job, id);
                    assert!(
                        !state.noted.contains(&(attempt, crashes)),
                        "attempt {attempt} at {job:x} was delivered twice: {state:?}"
                    );
                    assert_eq!(crashes, state.crashes, "crashes of {job:x}: {state:?}");
                    if load.lease_timeout.is_some() {
                        // Two threads may have the job, and note it in any order.
                        state.failed = state.failed.max(attempt - 1);
                        state.may_time_out = true;
                    } else {
                        // The end of the previous attempt may not be noted yet, if another thread
                        // had it.
                        let is_failing = u32::from(state.failure == Call::Begun);
                        let expected = state.failed + is_failing + 1;
                        assert_eq!(attempt, expected, "attempts at {job:x}: {state:?}");
                        state.end_failure();
                        assert!(
                            state.ack != Call::Returned && !state.is_dead,
                            "delivered again after it was settled: {job:x} {state:?}"
                        );
                    }
                    state.noted.push((attempt, crashes));
                    state.handlers += 1;
                    let within = Task::limit(id).is_none_or(|limit| attempt <= limit.into());
                    assert!(within, "attempt {attempt} at {id:x}, {job:x}: {state:?}");
                    let is_first = (attempt, crashes) == (1, 0);
                    if load.delivers_in_order() && is_first && Task::delay(id).is_zero() {
                        let last = last_delivered.insert(job >> 56, job);
                        assert!(
                            last.is_none_or(|last| last < job),
                            "out of order: the only consumer got {last:x?} and then {job:x}"
                        );
                    }
                }
                Event::FailureBegins { job } => self.known_job(job).failure = Call::Begun,
                Event::FailureReturned { job } => self.known_job(job).end_failure(),
                Event::AckBegins { job } => {
                    let state = self.known_job(job);
                    state.ack.begin();
                    state.may_be_acked_late |= load.lease_timeout.is_some();
                }
                Event::AckReturned { job } => {
                    self.known_job(job).ack = Call::Returned;
                    figures.acked += 1;
                }
                Event::DeathBegins { job, attempt } => {
                    let state = self.known_job(job);
                    state.deaths.push(attempt);
                    state.failure = Call::Begun;
                }
                Event::DeathReturned { job } => {
                    self.known_job(job).end_failure();
                    // After a lease timeout, this note proves nothing.
                    if load.lease_timeout.is_none() {
                        self.known_job(job).is_dead = true;
                        deaths.push((note.tick, job));
                    }
                }
                Event::FlushReturned { began } => {
                    figures.flushes += 1;
                    for &(_, job) in deaths.iter().filter(|&&(tick, _)| tick < began) {
                        self.known_job(job).buried = true;
                    }
                }
                Event::LetterSeen {
                    letter,
                    job,
                    id,
                    attempts,
                    crashes,
                } => {
                    let letter = FoundLetter {
                        sequence: letter,
                        job,
                        task: id,
                        attempts,
                        crashes,
                    };
                    self.see_letter(&letter, figures);
                }
                Event::ReplayBegins { letter } => self.begin_removal(letter, Disposal::Replay),
                Event::PurgeBegins { letter } => self.begin_removal(letter, Disposal::Purge),
                Event::ReplayReturned { letter: 0, job } => {
                    self.replayed.push(job);
                    figures.replayed += 1;
                }
                Event::ReplayReturned { letter, job } => {
                    let state = self.known_letter(letter);
                    state.removal = Call::Returned;
                    let task = state.task;
                    self.job(job, task);
                    figures.replayed += 1;
                }
                Event::PurgeReturned { letter } => {
                    self.known_letter(letter).removal = Call::Returned;
                    figures.purged += 1;
                }
            }
        }
        // A death that was not flushed is lost with the process.
        for (_, job) in deaths {
            self.known_job(job).is_dead = false;
        }
        let in_flight = self.tasks.iter().filter(|(id, task)| {
            Task::producer_of(**id) >> 4 == load.generation
                && task.returned.is_none()
                && !task.refused
        });
        figures.in_flight += in_flight.count() as u64;
        let acks = self.unsettled_jobs.iter();
        figures.acks_in_flight += acks
            .filter(|job| self.jobs[*job].ack == Call::Begun)
            .count() as u64;
    }

    /// Compares what an inspection found with the history. Panics if a guarantee was broken.
    pub(crate) fn check(&mut self, found: &Inspection, figures: &mut Figures) {
        let letters: HashSet<u64> = found.letters.iter().map(|letter| letter.sequence).collect();
        let jobs: HashSet<u64> = found.letters.iter().map(|letter| letter.job).collect();
        assert_eq!(
            (letters.len(), jobs.len()),
            (found.letters.len(), found.letters.len()),
            "two letters of one job"
        );
        for letter in &found.letters {
            self.see_letter(letter, figures);
            let state = self.known_letter(letter.sequence);
            assert!(
                state.removal != Call::Returned,
                "a removed letter is still there: {:x} {state:?}",
                letter.sequence
            );
        }
        self.check_letters(&letters, figures);

        let mut present = HashSet::new();
        let mut unnoted = 0;
        let may_time_out = std::mem::take(&mut self.may_time_out);
        for job in &found.jobs {
            let sequence = job.sequence;
            assert!(present.insert(sequence), "delivered twice: {sequence:x}");
            let state = self.job(sequence, job.task);
            assert!(
                state.ack != Call::Returned,
                "an acked job is still there: {sequence:x} {state:?}"
            );
            assert!(
                !state.buried,
                "a dead job is still there: {sequence:x} {state:?}"
            );
            unnoted += u64::from(state.end_with_the_process(job, may_time_out));
            state.outlived_its_letter |= !state.letters.is_empty();
            figures.overlaps += u64::from(!state.letters.is_empty());
        }
        figures.unnoted += unnoted;
        assert!(
            unnoted <= self.may_be_unnoted,
            "{unnoted} deliveries were counted but not noted, at most {} are possible",
            self.may_be_unnoted
        );
        self.check_hidden(found, &present, figures);
        self.check_absent(&present);
        self.check_order(found);
        self.check_producers();
        self.check_tasks(figures);
        for job in std::mem::take(&mut self.replayed) {
            assert!(
                self.jobs.contains_key(&job),
                "a replayed job was lost: {job:x}"
            );
        }
        self.may_be_unnoted = 0;
    }

    /// A job that has a letter and has used up its attempts may still be in the queue without being
    /// delivered, since inspections raise all limits except those of single tasks.
    fn check_hidden(&mut self, found: &Inspection, present: &HashSet<u64>, figures: &mut Figures) {
        let hidden = found.live.checked_sub(found.jobs.len() as u64);
        let hidden = hidden.expect("the report counts all delivered jobs");
        let may_hide: HashSet<u64> = found
            .letters
            .iter()
            .filter(|letter| Task::own_limit(letter.task).flatten().is_some())
            .map(|letter| letter.job)
            .filter(|job| !present.contains(job) && self.jobs[job].ack != Call::Returned)
            .collect();
        assert!(
            hidden <= may_hide.len() as u64,
            "{} jobs in the report, {} delivered, {} may be undelivered",
            found.live,
            found.jobs.len(),
            may_hide.len()
        );
        figures.overlaps += hidden;
        if hidden > 0 {
            for job in may_hide {
                self.known_job(job).outlived_its_letter = true;
            }
        }
    }

    /// Checks that jobs which are no longer there were acked or have letters.
    fn check_absent(&mut self, present: &HashSet<u64>) {
        let unsettled = std::mem::take(&mut self.unsettled_jobs);
        for sequence in unsettled {
            let state = self.jobs.get_mut(&sequence).expect("known");
            if present.contains(&sequence) {
                self.unsettled_jobs.insert(sequence);
                continue;
            }
            assert!(
                state.ack != Call::NotBegun || !state.letters.is_empty(),
                "lost: {sequence:x} {state:?}"
            );
            assert!(
                !state.buried || !state.letters.is_empty(),
                "a dead job has no letter: {sequence:x} {state:?}"
            );
            if state.outlived_its_letter && state.ack == Call::NotBegun {
                // It may still be there, see `check_hidden`.
                self.unsettled_jobs.insert(sequence);
            } else {
                state.settled = true;
            }
        }
    }

    /// Checks that letters which are no longer there were replayed or purged, or withdrawn since
    /// their jobs were acked late.
    fn check_letters(&mut self, present: &HashSet<u64>, figures: &mut Figures) {
        let (letters, jobs) = (&mut self.letters, &self.jobs);
        self.unsettled_letters.retain(|sequence| {
            let state = letters.get_mut(sequence).expect("known");
            let is_present = present.contains(sequence);
            let job = &jobs[&state.job];
            let may_be_gone = state.removal != Call::NotBegun || job.may_be_acked_late;
            assert!(
                is_present || may_be_gone,
                "a letter was lost: {sequence:x} {state:?} of {job:?}"
            );
            let is_withdrawn = !is_present && state.removal == Call::NotBegun;
            figures.withdrawn += u64::from(is_withdrawn);
            state.settled = !is_present;
            is_present
        });
    }

    /// A producer enqueues its tasks one after the other: if one is in the queue, so are those
    /// before it.
    fn check_producers(&self) {
        let mut open: Vec<_> = self
            .touched
            .iter()
            .map(|&id| (Task::producer_of(id), Task::order(id), id))
            .filter(|&(_, _, id)| self.tasks[&id].returned.is_none() && !self.tasks[&id].refused)
            .collect();
        open.sort_unstable();
        let exists = |id: u64| !self.tasks[&id].jobs.is_empty();
        for pair in open.windows(2) {
            let [(producer, _, before), (same, _, after)] = *pair else {
                continue;
            };
            assert!(
                producer != same
                    || self.limited.contains(&producer)
                    || exists(before)
                    || !exists(after),
                "{before:x} is lost, although {after:x} after it was enqueued"
            );
        }
    }

    /// Checks that the tasks of a group, if they were enqueued in one batch, are all in the queue or
    /// none is.
    fn check_batch(&self, first: u64) {
        let tasks = (first..first + GROUP).filter_map(|id| self.tasks.get(&id));
        let tasks: Vec<_> = tasks.filter(|task| task.in_batch).collect();
        let is_enqueued = |task: &&&TaskState| task.returned.is_some() || !task.jobs.is_empty();
        let enqueued = tasks.iter().filter(is_enqueued).count();
        assert!(
            enqueued == 0 || enqueued == tasks.len(),
            "{enqueued} of the {} tasks of a batch are enqueued: {tasks:x?}",
            tasks.len()
        );
    }

    /// Checks that each replayed letter became exactly one more job. Of one that a late ack may have
    /// withdrawn, only a replay that returned is sure.
    fn check_tasks(&mut self, figures: &mut Figures) {
        let groups: HashSet<_> = self.touched.iter().map(|id| id / GROUP).collect();
        for group in groups {
            self.check_batch(group * GROUP);
        }
        for id in std::mem::take(&mut self.touched) {
            let task = &self.tasks[&id];
            let gone = |letter: &&u64| {
                self.letters[*letter].settled && Disposal::of(**letter) == Disposal::Replay
            };
            let is_replayed = |letter: &&u64| {
                let state = &self.letters[*letter];
                let is_sure = !self.jobs[&state.job].may_be_acked_late;
                is_sure || state.removal == Call::Returned
            };
            let gone: Vec<_> = task.letters.iter().filter(gone).collect();
            let replayed = gone.iter().copied().filter(is_replayed).count();
            let enqueued = usize::from(task.returned.is_some() || !task.jobs.is_empty());
            assert!(
                (enqueued + replayed..=enqueued + gone.len()).contains(&task.jobs.len()),
                "wrong number of jobs of {id:x}: {task:x?}, {replayed} to {} of its letters were \
                 replayed",
                gone.len()
            );
            if task.returned.is_none() && !task.refused {
                figures.in_flight_kept += enqueued as u64;
                let task = self.tasks.get_mut(&id).expect("known");
                match task.jobs.first() {
                    // The job is there, so the enqueue counts as returned from here on.
                    Some(&job) => task.returned = Some(job),
                    None => task.refused = true,
                }
            }
        }
    }

    /// Checks that jobs which were not delivered before and not delayed come in the order of their
    /// stripe, and those of one producer in the order in which it enqueued them.
    fn check_order(&self, found: &Inspection) {
        let mut last_of_stripe = HashMap::new();
        let mut last_of_producer = HashMap::new();
        for job in &found.jobs {
            if job.failed + job.crashes > 0 || !Task::delay(job.task).is_zero() {
                continue;
            }
            let last = last_of_stripe.insert(job.sequence >> 56, job.sequence);
            assert!(
                last.is_none_or(|last| last < job.sequence),
                "{last:x?} was delivered before {:x}",
                job.sequence
            );
            if self.tasks[&job.task].jobs.len() == 1 {
                let order = Task::order(job.task);
                let last = last_of_producer.insert(Task::producer_of(job.task), order);
                assert!(
                    last.is_none_or(|last| last < order),
                    "task {last:x?} was delivered before {:x}",
                    job.task
                );
            }
        }
    }

    fn task(&mut self, id: u64) -> &mut TaskState {
        self.touched.insert(id);
        let task = self.tasks.get_mut(&id);
        task.unwrap_or_else(|| panic!("{id:x} was never enqueued"))
    }

    /// The job with this sequence, which must belong to this task.
    fn job(&mut self, sequence: u64, id: u64) -> &mut JobState {
        if !self.jobs.contains_key(&sequence) {
            let task = self.task(id);
            assert!(!task.refused, "{id:x} was refused, but is job {sequence:x}");
            task.jobs.push(sequence);
            self.unsettled_jobs.insert(sequence);
            let job = JobState {
                task: id,
                ..JobState::default()
            };
            self.jobs.insert(sequence, job);
        }
        self.touched.insert(id);
        let job = self.known_job(sequence);
        assert_eq!(
            job.task, id,
            "two jobs have the same sequence: {sequence:x}"
        );
        assert!(
            !job.settled,
            "a job came back after it was gone: {sequence:x} {job:?}"
        );
        job
    }

    fn known_job(&mut self, sequence: u64) -> &mut JobState {
        self.jobs.get_mut(&sequence).expect("noted before")
    }

    fn known_letter(&mut self, letter: u64) -> &mut LetterState {
        self.letters.get_mut(&letter).expect("noted before")
    }

    fn begin_removal(&mut self, letter: u64, disposal: Disposal) {
        assert_eq!(
            disposal,
            Disposal::of(letter),
            "the harness removed a letter in the wrong way"
        );
        self.known_letter(letter).removal.begin();
    }

    /// Notes that a letter was there.
    fn see_letter(&mut self, letter: &FoundLetter, figures: &mut Figures) {
        let &FoundLetter {
            sequence: letter,
            job,
            task: id,
            attempts,
            crashes,
        } = letter;
        self.touched.insert(id);
        if !self.letters.contains_key(&letter) {
            let state = if self.jobs.get(&job).is_some_and(|job| job.settled) {
                panic!("letter {letter:x} appeared after its job {job:x} was gone");
            } else {
                self.job(job, id)
            };
            let limit = Task::limit(id);
            assert!(
                limit.is_some_and(|limit| attempts == limit.into())
                    || state.deaths.contains(&attempts)
                    || crashes >= CRASHES.into(),
                "letter {letter:x}, {job:x} of {id:x}, after {attempts} attempts: {state:?}"
            );
            assert_eq!(
                crashes, state.crashes,
                "crashes in letter {letter:x}: {state:?}"
            );
            assert!(
                state.letters.is_empty() || state.outlived_its_letter,
                "a second letter, {letter:x}, of {job:x}: {state:x?}"
            );
            figures.letters += 1;
            figures.second_letters += u64::from(!state.letters.is_empty());
            state.letters.push(letter);
            self.task(id).letters.push(letter);
            self.unsettled_letters.insert(letter);
            let state = LetterState {
                job,
                task: id,
                attempts,
                crashes,
                ..LetterState::default()
            };
            self.letters.insert(letter, state);
        }
        let state = self.known_letter(letter);
        assert_eq!(
            (state.job, state.task, state.attempts, state.crashes),
            (job, id, attempts, crashes),
            "letter {letter:x} has changed"
        );
        assert!(
            !state.settled,
            "letter {letter:x} came back after it was gone: {state:?}"
        );
    }
}
