//! Does operations to the mill and to the model.

use anyhow::{Context as _, Result, ensure};
use logmill_jobs::backend::Cancelled;
use logmill_jobs::{EditError, JobId, Mill, secs};

use crate::flows::{self, Flow};
use crate::jobs::{Work, on_failure, priority, unique_of, with_options};
use crate::model::Phase;
use crate::operations::{
    Batch, Change, KEYS, KINDS, New, Operation, Policy, QUEUES, Shape, UNIQUES, What,
};
use crate::run::{EVENTS, Shared, World};

impl World {
    /// Does an operation; jobs that it runs are of the queues from this one on.
    pub(crate) fn operate(self: &Shared, operation: Operation, from: usize) -> Result<()> {
        match operation {
            Operation::Enqueue(new) => self.enqueue(new),
            Operation::Unique(key, new) => self.enqueue_unique(key, new),
            Operation::Flow(shape, jobs, policies) => match jobs[0].kind {
                0 => self.enqueue_flow::<0>(shape, jobs, &policies),
                _ => self.enqueue_flow::<1>(shape, jobs, &policies),
            },
            Operation::Batch(batch) => self.enqueue_batch(batch),
            Operation::Schedule(schedule, what) => self.operate_schedule(schedule, what),
            Operation::Run(attempts) => self.run(attempts, from),
            Operation::Advance(time) if self.is_punctual && from == 0 => {
                self.advance(time)?;
                self.run(Vec::new(), 0)
            }
            Operation::Advance(_) | Operation::Pause(What::Queue(_)) if self.is_punctual => Ok(()),
            Operation::Advance(time) => self.advance(time),
            Operation::Pause(what) => {
                self.set_paused(what, true)?;
                self.model.lock().unwrap().pause(what);
                Ok(())
            }
            Operation::Resume(what) => {
                self.set_paused(what, false)?;
                self.model.lock().unwrap().resume(what);
                Ok(())
            }
            Operation::Cancel(at) => self.cancel(at),
            Operation::Edit(at, change) => self.edit(at, change),
            Operation::Replay(at) => self.end_letter(at, true),
            Operation::Purge(at) => self.end_letter(at, false),
            Operation::Unblock(at) => self.unblock(at, false).map(|_| ()),
            Operation::Crash => self.restart(),
            Operation::Reopen(after) => {
                Mill::clone(&self.mill.read().unwrap()).close()?;
                self.model.lock().unwrap().now += after;
                self.mill.read().unwrap().advance(secs(after));
                self.restart()
            }
        }
    }

    /// Ends the process as a kill would, and begins another one.
    fn restart(&self) -> Result<()> {
        let mut mill = self.mill.write().unwrap();
        mill.crash()?;
        *self.events.lock().unwrap() = mill.events(EVENTS);
        drop(mill);
        self.model.lock().unwrap().restart();
        self.advance(0)
    }

    /// Lets time pass. Schedules enqueue what is due.
    fn advance(&self, time: u64) -> Result<()> {
        {
            let mut model = self.model.lock().unwrap();
            model.now += time;
            model.tick();
        }
        self.mill.read().unwrap().advance(secs(time));
        self.learn()
    }

    fn enqueue(&self, new: New) -> Result<()> {
        let number = self.model.lock().unwrap().enqueue(new);
        let mill = self.mill.read().unwrap();
        let id = match new.kind {
            0 => {
                let job = with_options!(mill.job(Work::<0, 0> { number }), new);
                job.enqueue()?.id().clone()
            }
            _ => {
                let job = with_options!(mill.job(Work::<0, 1> { number }), new);
                job.enqueue()?.id().clone()
            }
        };
        self.model.lock().unwrap().know(number, &id)
    }

    fn enqueue_unique(&self, key: usize, new: New) -> Result<()> {
        let (number, job, outcome) = self.model.lock().unwrap().call_with_key(key, new);
        let mill = self.mill.read().unwrap();
        let unique = {
            let model = self.model.lock().unwrap();
            unique_of(UNIQUES[key], model.keys.mode(key))
        };
        let (id, found) = match new.kind {
            0 => {
                let job = with_options!(mill.job(Work::<0, 0> { number }), new);
                let handle = job.unique(unique).enqueue()?;
                (handle.id().clone(), handle.outcome())
            }
            _ => {
                let job = with_options!(mill.job(Work::<0, 1> { number }), new);
                let handle = job.unique(unique).enqueue()?;
                (handle.id().clone(), handle.outcome())
            }
        };
        ensure!(
            found == outcome,
            "call {number} with a key: {found:?}, not {outcome:?}"
        );
        self.model.lock().unwrap().called(key, job, &id)
    }

    fn enqueue_flow<const KIND: usize>(
        &self,
        shape: Shape,
        mut jobs: Vec<New>,
        policies: &[Policy],
    ) -> Result<()> {
        jobs.iter_mut().for_each(|new| new.kind = KIND);
        let edges = flows::edges(shape, jobs.len(), policies);
        let numbers = {
            let mut model = self.model.lock().unwrap();
            model.enqueue_flow(&jobs, |numbers| Flow::new(numbers, &edges))
        };
        let mill = self.mill.read().unwrap();
        let mut flow = mill.flow("");
        let nodes = numbers.iter().zip(&jobs);
        let nodes = nodes.map(|(&number, &new)| {
            flow.add_with(|mill| with_options!(mill.job(Work::<0, KIND> { number }), new))
        });
        let nodes: Vec<_> = nodes.collect();
        for (later, earlier, policy) in edges {
            flow.after(&nodes[later], &nodes[earlier], on_failure(policy));
        }
        self.flows.lock().unwrap().push(flow.enqueue()?.id());
        Ok(())
    }

    fn enqueue_batch(&self, batch: Batch) -> Result<()> {
        match (batch.queue, batch.kind) {
            (0, 0) => self.enqueue_batch_of::<0, 0>(batch),
            (0, _) => self.enqueue_batch_of::<0, 1>(batch),
            (1, 0) => self.enqueue_batch_of::<1, 0>(batch),
            (1, _) => self.enqueue_batch_of::<1, 1>(batch),
            (_, 0) => self.enqueue_batch_of::<2, 0>(batch),
            (_, _) => self.enqueue_batch_of::<2, 1>(batch),
        }
    }

    fn enqueue_batch_of<const QUEUE: usize, const KIND: usize>(&self, batch: Batch) -> Result<()> {
        let followers = [
            (batch.on_success, Policy::FailAlone),
            (batch.on_complete, Policy::Ignore),
            (batch.on_death, Policy::AtFailure),
        ];
        let followers = followers.into_iter().filter(|(is_there, _)| *is_there);
        let followers: Vec<_> = followers.map(|(_, policy)| policy).collect();
        let new = New::following(QUEUE, KIND);
        let numbers = {
            let mut model = self.model.lock().unwrap();
            let jobs = vec![new; batch.jobs + followers.len()];
            model.enqueue_flow(&jobs, |numbers| Flow::of_batch(numbers, &followers))
        };
        let mill = self.mill.read().unwrap();
        let mut made = mill.batch("");
        for (at, number) in numbers.into_iter().enumerate() {
            let job = Work::<QUEUE, KIND> { number };
            match at.checked_sub(batch.jobs).map(|at| followers[at]) {
                None => made.add(job),
                Some(Policy::FailAlone) => made.on_success(job),
                Some(Policy::Ignore) => made.on_complete(job),
                Some(_) => made.on_death(job),
            };
        }
        self.flows.lock().unwrap().push(made.enqueue()?.id());
        Ok(())
    }

    /// Has the others pass one of the jobs that block their keys, or of the dead among them. Returns
    /// whether there is one.
    pub(crate) fn unblock(&self, at: usize, is_dead: bool) -> Result<bool> {
        self.look()?;
        let mill = self.mill.read().unwrap();
        let mut blocked = mill.blocked_keys();
        let mut model = self.model.lock().unwrap();
        model.check_blocked(&blocked, true)?;
        blocked.retain(|one| one.is_dead || !is_dead);
        let Some(one) = at.checked_rem(blocked.len()).and_then(|at| blocked.get(at)) else {
            return Ok(false);
        };
        ensure!(mill.unblock(one)?, "{one:?} did not block its key");
        model.unblock(&one.head);
        Ok(true)
    }

    fn set_paused(&self, what: What, is_paused: bool) -> Result<()> {
        let mill = self.mill.read().unwrap();
        match (what, is_paused) {
            (What::Queue(queue), true) => mill.queue(QUEUES[queue])?.pause()?,
            (What::Queue(queue), false) => mill.queue(QUEUES[queue])?.resume()?,
            (What::Kind(kind), true) => _ = mill.pause_kind(KINDS[kind])?,
            (What::Kind(kind), false) => _ = mill.resume_kind(KINDS[kind])?,
            (What::Key(key), true) => _ = mill.pause_key(KEYS[key])?,
            (What::Key(key), false) => _ = mill.resume_key(KEYS[key])?,
        }
        Ok(())
    }

    /// One of the jobs that have an id.
    fn choose(&self, at: usize) -> Option<(usize, JobId, Phase)> {
        let model = self.model.lock().unwrap();
        let jobs = model.jobs.iter().enumerate();
        let jobs = jobs.filter_map(|(number, job)| Some((number, job.id.clone()?, job.phase)));
        let jobs: Vec<_> = jobs.collect();
        jobs.get(at.checked_rem(jobs.len())?).cloned()
    }

    fn cancel(&self, at: usize) -> Result<()> {
        self.learn()?;
        let Some((number, id, phase)) = self.choose(at) else {
            return Ok(());
        };
        self.model.lock().unwrap().cancel(number);
        let cancelled = self.mill.read().unwrap().cancel(&id, "not wanted")?;
        let expected = match phase {
            Phase::Waits => Cancelled::Waiting,
            Phase::Runs => Cancelled::Running,
            Phase::NotYet | Phase::Ended(_) => Cancelled::Gone,
        };
        ensure!(
            cancelled == expected,
            "job {number}, {phase:?}: {cancelled:?}"
        );
        Ok(())
    }

    fn edit(&self, at: usize, change: Change) -> Result<()> {
        self.learn()?;
        let Some((number, id, phase)) = self.choose(at) else {
            return Ok(());
        };
        let mill = self.mill.read().unwrap();
        let (kind, arguments) = {
            let mut model = self.model.lock().unwrap();
            let new = model.jobs[number].new;
            (new.kind, model.call(new))
        };
        let edit = mill.edit(&id);
        let edited = match change {
            Change::Arguments if kind == 0 => edit.arguments(&Work::<0, 0> { number: arguments }),
            Change::Arguments => edit.arguments(&Work::<0, 1> { number: arguments }),
            Change::ExpiresAfter(after) => edit.expires_after(secs(after)),
            Change::Now => edit.now(),
            Change::After(after) => edit.after(secs(after)),
            Change::Priority(is_high) => edit.priority(priority(is_high)),
            Change::Queue(queue) => edit.queue(QUEUES[queue]),
        }
        .apply();
        let mut model = self.model.lock().unwrap();
        let job = &model.jobs[number];
        let has_place = job.is_of_flow || job.place.is_some();
        match (edited, phase) {
            (Ok(id), Phase::Waits) if !has_place => model.edit(number, change, arguments, &id)?,
            (Err(EditError::InPlace(_)), Phase::Waits) if has_place => {}
            (Err(EditError::Running(_)), Phase::Runs) => {}
            (Err(EditError::Gone(_)), Phase::NotYet | Phase::Ended(_)) => {}
            (edited, phase) => anyhow::bail!("job {number}, {phase:?}, is edited: {edited:?}"),
        }
        Ok(())
    }

    /// Replays or purges a dead job.
    fn end_letter(&self, at: usize, is_replayed: bool) -> Result<()> {
        let letters: Vec<_> = {
            let model = self.model.lock().unwrap();
            let jobs = model.jobs.iter().enumerate();
            let letters = jobs.filter(|(_, job)| job.is_letter);
            letters
                .map(|(number, job)| (number, job.new.queue, job.id.clone()))
                .collect()
        };
        let Some((number, queue, id)) =
            at.checked_rem(letters.len()).and_then(|at| letters.get(at))
        else {
            return Ok(());
        };
        let mill = self.mill.read().unwrap();
        let queue = mill.queue(QUEUES[*queue])?;
        let dead = queue.dead_jobs()?.into_iter();
        let dead = dead.into_iter().find(|dead| Some(&dead.id) == id.as_ref());
        let dead = dead.with_context(|| format!("job {number} is dead, and there is no letter"))?;
        let mut model = self.model.lock().unwrap();
        match is_replayed {
            true => {
                let new = queue.replay(&dead)?;
                model.replay(*number, &new.context("it was there")?)?;
            }
            false => {
                ensure!(
                    queue.purge(&dead)?,
                    "job {number} is purged, and was not there"
                );
                model.jobs[*number].is_letter = false;
            }
        }
        Ok(())
    }
}
