//! Mills that are not `sync`: a power cut may lose what it may lose, and nothing else.

use std::sync::atomic::{AtomicU64, Ordering};

use logmill_jobs::{Context, Job, JobResult, State, Unique, hours};
use serde::{Deserialize, Serialize};

use crate::{World, crash, go_on, pass, workers};

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "mail", queue = "mail")]
struct Mail {
    text: String,
}

fn mail(text: &str) -> Mail {
    let text = text.to_owned();
    Mail { text }
}

fn mails(job: Mail, State(world): State<World>, cx: Context) -> JobResult {
    world.note(job.text, cx.id());
    Ok(())
}

#[test]
fn a_power_cut_loses_what_was_not_flushed_and_keeps_what_was() {
    let lost = AtomicU64::new(0);
    crash(|sim| {
        sim.power_cuts();
        let world = World::default();
        let state = world.clone();
        sim.workers(move || workers(&state).on(mails));
        for text in ["one", "two"] {
            let plain = |mill: &logmill_jobs::Mill| {
                let job = mill.job(mail(&format!("plain {text}")));
                job.after(hours(1)).enqueue().map(drop)
            };
            sim.call_once(plain).unwrap_or(Ok(())).unwrap();
            let answer = sim.call_once(|mill| {
                let job = mill.job(mail(text)).sync();
                job.after(hours(1)).enqueue().map(drop)
            });
            if answer.is_none() {
                // Nobody knows whether it is there.
                world.note(text, &"mail/0".parse().unwrap());
            }
        }
        go_on(sim);
        pass(sim, hours(2));
        let ran = world.0.lock();
        assert!(
            ran.contains_key("one") && ran.contains_key("two"),
            "{ran:?}"
        );
        for text in ["plain one", "plain two"] {
            lost.fetch_add(u64::from(!ran.contains_key(text)), Ordering::Relaxed);
        }
    });
    assert!(lost.into_inner() > 0);
}

#[test]
fn a_call_that_asks_for_durability_has_it_also_if_the_job_was_there() {
    crash(|sim| {
        sim.power_cuts();
        let world = World::default();
        let state = world.clone();
        sim.workers(move || workers(&state).on(mails));
        let call = |text: &'static str, is_sync: bool| {
            move |mill: &logmill_jobs::Mill| {
                let key = Unique::by(text).replacing();
                let key = if text == "existing" {
                    Unique::by(text)
                } else {
                    key
                };
                let job = mill.job(mail(&format!("{text} {is_sync}"))).unique(key);
                let job = if is_sync { job.sync() } else { job };
                job.after(hours(1)).enqueue().map(drop)
            }
        };
        for text in ["existing", "replaced"] {
            sim.call(call(text, false)).unwrap();
            sim.call(call(text, true)).unwrap();
        }
        go_on(sim);
        pass(sim, hours(2));
        let ran = world.0.lock();
        let is_there = |text: &str| ran.keys().any(|ran| ran.starts_with(text));
        assert!(is_there("existing"), "{ran:?}");
        assert!(ran.contains_key("replaced true"), "{ran:?}");
    });
}

#[test]
fn an_edit_of_a_durable_job_loses_it_never() {
    crash(|sim| {
        sim.power_cuts();
        let world = World::default();
        let state = world.clone();
        sim.workers(move || workers(&state).on(mails));
        let enqueued = sim.call(|mill| {
            let key = Unique::by("mail").for_at_least(hours(100));
            let job = mill.job(mail("first")).unique(key).sync();
            let handle = job.after(hours(1)).enqueue()?;
            Ok::<_, logmill_jobs::EnqueueError>(handle.id().clone())
        });
        let id = enqueued.unwrap();
        let edited = sim.call(|mill| mill.edit(&id).arguments(&mail("second")).apply());
        edited.unwrap();
        sim.call(|mill| mill.enqueue(mail("other")).map(drop))
            .unwrap();
        pass(sim, hours(2));
        let ran = world.0.lock();
        let which = ["first", "second"].map(|text| ran.contains_key(text));
        assert!(which[0] != which[1], "{ran:?}");
    });
}
