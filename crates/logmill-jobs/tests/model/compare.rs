//! Compares what the mill says with the model.

use anyhow::{Result, ensure};
use logmill_jobs::testing::enqueued;
use logmill_jobs::{EventKind, NodeStatus, Status, secs};

use crate::flows::State;
use crate::jobs::AnyWork;
use crate::model::{End, Job, Phase};
use crate::operations::QUEUES;
use crate::run::World;

/// So often jobs are listed: one that the engine moves to another place in its log at that moment is
/// left out.
const LOOKS: u32 = 1000;

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
        let jobs = model.jobs.iter().enumerate();
        let there = jobs.filter(|(_, job)| job.is_listed());
        let there: Vec<_> = there.map(|(number, _)| number).collect();
        let mut found = Vec::new();
        for _ in 0..LOOKS {
            let jobs = enqueued::<AnyWork>(&mill)?.into_iter();
            let mut jobs: Vec<_> = jobs.map(|one| (one.job.number, one.id)).collect();
            jobs.sort();
            for (number, id) in &jobs {
                model.know(*number, id);
            }
            found = jobs.iter().map(|(number, _)| *number).collect();
            if found == there {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        ensure!(
            found == there,
            "the jobs {found:?} are there, not {there:?}"
        );
        Ok(())
    }

    /// Compares all that the mill says with the model, while no handler runs.
    pub(crate) fn check(&self) -> Result<()> {
        self.hear()?;
        let mill = self.mill.read().unwrap();
        let model = self.model.lock().unwrap();
        model.check_told()?;
        for (number, job) in model.jobs.iter().enumerate() {
            let Some(id) = &job.id else { continue };
            let due = (job.due > model.now).then(|| self.began_at + secs(job.due));
            let failed = job.failed;
            let status = mill.status(id)?;
            let is_so = match (&status, job.phase) {
                (Status::Waiting { .. }, Phase::Waits) => status == Status::Waiting { failed, due },
                (Status::Done, Phase::Ended(End::Done)) => true,
                (Status::Dead { .. }, Phase::Ended(End::Dead)) => true,
                (Status::Cancelled { .. }, Phase::Ended(End::Cancelled)) => true,
                (Status::Expired, Phase::Ended(End::Expired)) => true,
                _ => false,
            };
            ensure!(is_so, "job {number} is {status:?}, not {job:?}");
        }
        for (queue, name) in QUEUES.into_iter().enumerate() {
            let stats = mill.queue(name)?.stats()?;
            let count = |is_it: &dyn Fn(&Job) -> bool| {
                let jobs = model.jobs.iter().filter(|job| job.new.queue == queue);
                jobs.filter(|job| is_it(job)).count() as u64
            };
            let waiting = count(&|job| job.phase == Phase::Waits);
            let delayed =
                count(&|job| job.phase == Phase::Waits && (job.due > model.now || job.backs_off));
            let dead = count(&|job| job.is_letter);
            // What is held has been taken by a worker.
            let found = (stats.left(), stats.dead);
            ensure!(found == (waiting, dead), "the queue {name}: {stats:?}");
            // One that no worker has come to counts as ready.
            ensure!(stats.delayed <= delayed, "the queue {name}: {stats:?}");
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
}
