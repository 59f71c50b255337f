//! Compares what the mill says with the model.

use anyhow::{Result, ensure};
use logmill_jobs::testing::enqueued;
use logmill_jobs::{EventKind, NodeStatus, Status, secs};

use crate::flows::State;
use crate::jobs::AnyWork;
use crate::model::{End, Job, Phase};
use crate::operations::QUEUES;
use crate::run::World;

impl World {
    /// Tells the model of the ends that were told.
    pub(crate) fn hear(&self) -> Result<()> {
        let events = self.events.lock().unwrap();
        let mut model = self.model.lock().unwrap();
        while let Some(event) = events.try_recv() {
            let end = match event.what {
                EventKind::Done { .. } => End::Done,
                EventKind::Dead { .. } => End::Dead,
                EventKind::Cancelled { .. } => End::Cancelled,
                EventKind::Expired => End::Expired,
                _ => continue,
            };
            model.told(&event.id, end)?;
        }
        ensure!(events.dropped() == 0, "events were dropped");
        Ok(())
    }

    /// Learns the ids of jobs that flows and other jobs have enqueued.
    pub(crate) fn learn(&self) -> Result<()> {
        let knows_all = {
            let model = self.model.lock().unwrap();
            let mut jobs = model.jobs.iter();
            jobs.all(|job| job.id.is_some() || !job.is_listed())
        };
        match knows_all {
            true => Ok(()),
            // It reads all that is stored.
            false => self.look(),
        }
    }

    /// Checks which jobs are there, and learns their ids.
    pub(crate) fn look(&self) -> Result<()> {
        let mill = self.mill.read().unwrap();
        let mut model = self.model.lock().unwrap();
        let mut numbers = Vec::new();
        for one in enqueued::<AnyWork>(&mill)? {
            let number = model.job_of(&one.id, one.job.number);
            model.know(number, &one.id)?;
            // One that has just died may be listed beside its letter, until the engine has settled it.
            if model.jobs[number].phase != Phase::Ended(End::Dead) {
                numbers.push(number);
            }
        }
        numbers.sort();
        let jobs = model.jobs.iter().enumerate();
        let listed = jobs.filter(|(_, job)| job.is_listed());
        let there: Vec<_> = listed.map(|(number, _)| number).collect();
        ensure!(
            numbers == there,
            "the jobs {numbers:?} are there, not {there:?}"
        );
        Ok(())
    }

    /// Compares all that the mill says with the model, while no handler runs.
    pub(crate) fn check(&self) -> Result<()> {
        self.hear()?;
        self.check_schedules()?;
        if self.check_queues().is_err() {
            // A flow has enqueued what has ended in it.
            self.look()?;
            self.check_queues()?;
        }
        let mill = self.mill.read().unwrap();
        let model = self.model.lock().unwrap();
        model.check_told()?;
        model.check_blocked(&mill.blocked_keys(), false)?;
        for (number, job) in model.jobs.iter().enumerate() {
            let Some(id) = &job.id else { continue };
            let time = |at| (at > model.now).then(|| self.began_at + secs(at));
            let failed = job.failed;
            let status = mill.status(id)?;
            let is_so = match (&status, job.phase) {
                // A job that was put off is due as before until a worker comes to it, and so each time.
                (&Status::Waiting { failed: found, due }, Phase::Waits) => {
                    let is_due = due >= time(job.due) && due <= time(job.begins());
                    found == failed && is_due
                }
                (Status::Done, Phase::Ended(End::Done)) => true,
                (Status::Dead { .. }, Phase::Ended(End::Dead)) => true,
                (Status::Cancelled { .. }, Phase::Ended(End::Cancelled)) => true,
                (Status::Expired, Phase::Ended(End::Expired)) => true,
                _ => false,
            };
            ensure!(is_so, "job {number} is {status:?}, not {job:?}");
        }
        for (flow, id) in model.flows.iter().zip(&*self.flows.lock().unwrap()) {
            let tree = mill.flow_handle(*id).tree()?;
            for (node, found) in flow.nodes.iter().zip(&tree.jobs) {
                let state = match &found.status {
                    NodeStatus::Waiting(_) => Some(State::Waits),
                    NodeStatus::Enqueued => Some(State::Enqueued),
                    NodeStatus::Done => Some(State::Ended(End::Done)),
                    NodeStatus::Dead(_) => Some(State::Ended(End::Dead)),
                    NodeStatus::Cancelled(_) => Some(State::Ended(End::Cancelled)),
                    NodeStatus::Expired => Some(State::Ended(End::Expired)),
                    NodeStatus::NotNeeded => Some(State::Ended(End::NotNeeded)),
                    _ => None,
                };
                let (number, status) = (node.job, &found.status);
                ensure!(
                    state == Some(node.state),
                    "job {number} of a flow: {status}, {:?}",
                    node.state
                );
            }
        }
        Ok(())
    }

    fn check_queues(&self) -> Result<()> {
        let mill = self.mill.read().unwrap();
        let model = self.model.lock().unwrap();
        for (queue, name) in QUEUES.into_iter().enumerate() {
            let stats = mill.queue(name)?.stats()?;
            let count = |is_it: &dyn Fn(&Job) -> bool| {
                let jobs = model.jobs.iter().filter(|job| job.new.queue == queue);
                jobs.filter(|job| is_it(job)).count() as u64
            };
            let waiting = count(&|job| job.phase == Phase::Waits);
            let delayed = count(&|job| {
                job.phase == Phase::Waits && (job.begins() > model.now || job.backs_off)
            });
            let dead = count(&|job| job.is_letter);
            // What is held has been taken by a worker.
            let found = (stats.left(), stats.dead);
            ensure!(found == (waiting, dead), "the queue {name}: {stats:?}");
            // One that no worker has come to counts as ready.
            ensure!(stats.delayed <= delayed, "the queue {name}: {stats:?}");
        }
        Ok(())
    }
}
