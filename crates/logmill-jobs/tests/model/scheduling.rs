//! Does to the mill and to the model what applications and operators do with schedules, and compares.

use anyhow::{Result, ensure};
use logmill_jobs::{Mill, Misfire, Schedule, ScheduleError, Scheduled, secs};

use crate::jobs::{Work, priority, with_options};
use crate::operations::{KEYS, Missed, New, OfSchedule, QUEUES, SCHEDULES};
use crate::run::World;
use crate::schedules::{Definition, Plan, is_unless_running};

impl World {
    pub(crate) fn operate_schedule(&self, schedule: usize, operation: OfSchedule) -> Result<()> {
        self.change_schedule(schedule, operation)?;
        // What is due by that is enqueued by a thread, or here.
        self.mill.read().unwrap().advance(secs(0));
        self.learn()
    }

    fn change_schedule(&self, schedule: usize, operation: OfSchedule) -> Result<()> {
        let (mill, id) = (self.mill.read().unwrap(), SCHEDULES[schedule]);
        let mut model = self.model.lock().unwrap();
        let (found, expected) = match operation {
            OfSchedule::Store(said) => {
                let now = model.now;
                let definition = said.map(|said| Definition {
                    starts: said.starts.map(|after| now + after),
                    ends: said.ends.map(|after| now + after),
                    ..said
                });
                let Some((plan, expected)) = model.schedule(schedule, definition) else {
                    return Ok(());
                };
                drop(model);
                let found = self.store(&mill, schedule, &plan)?;
                ensure!(found == expected, "{found:?}, not {expected:?}");
                return Ok(());
            }
            OfSchedule::Pause => (
                mill.pause_schedule(id)?,
                model.set_schedule_paused(schedule, true),
            ),
            OfSchedule::Resume => (
                mill.resume_schedule(id)?,
                model.set_schedule_paused(schedule, false),
            ),
            OfSchedule::Remove => (mill.remove_schedule(id)?, model.remove_schedule(schedule)),
            OfSchedule::RunNow => {
                let (found, number) = (mill.run_schedule_now(id)?, model.run_now(schedule));
                if let (Some(id), Some(number)) = (&found, number) {
                    model.know(number, id)?;
                }
                (found.is_some(), number.is_some())
            }
        };
        ensure!(
            found == expected,
            "whether {id} is there: {found}, not {expected}"
        );
        Ok(())
    }

    fn store(&self, mill: &Mill, schedule: usize, plan: &Plan) -> Result<Scheduled, ScheduleError> {
        let Definition {
            new,
            every,
            starts,
            ends,
            at_most,
            missed,
        } = plan.definition;
        let mut timing = Schedule::every(secs(every));
        if let Some(starts) = starts {
            timing = timing.starts_at(self.began_at + secs(starts));
        }
        if let Some(ends) = ends {
            timing = timing.ends_at(self.began_at + secs(ends));
        }
        if let Some(most) = at_most {
            timing = timing.at_most(most);
        }
        timing = timing.misfire(match missed {
            Missed::Skip => Misfire::Skip,
            Missed::Once => Misfire::Once,
            Missed::All(most) => Misfire::All(most),
        });
        if is_unless_running(schedule) {
            timing = timing.unless_running();
        }
        let (id, number) = (SCHEDULES[schedule], plan.number);
        match new.kind {
            0 => with_options!(mill.job(Work::<0, 0> { number }), new).schedule(id, timing),
            _ => with_options!(mill.job(Work::<0, 1> { number }), new).schedule(id, timing),
        }
    }

    /// Compares the schedules that are stored with those of the model.
    pub(crate) fn check_schedules(&self) -> Result<()> {
        let mill = self.mill.read().unwrap();
        let model = self.model.lock().unwrap();
        let time = |at: Option<u64>| at.map(|at| self.began_at + secs(at));
        for (id, plan) in SCHEDULES.into_iter().zip(&model.plans) {
            let found = mill.schedule(id)?.map(|found| {
                let times = (found.next_tick, found.last_tick);
                (times, found.runs, found.skipped, found.is_paused)
            });
            let expected = plan.as_ref().map(|plan| {
                let times = (time(plan.next), time(plan.last));
                (times, plan.runs, plan.skipped, plan.is_paused)
            });
            ensure!(
                found == expected,
                "the schedule {id} is {found:?}, not {plan:?} at {}",
                model.now
            );
        }
        Ok(())
    }
}
