//! What is due, what is missed, and what a new definition changes.

use std::time::{Duration, SystemTime};

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::time;
use crate::backend::Due;
use crate::prepared::PreparedJob;
use crate::schedules::plan::{Enqueued, Plan, Step};
use crate::schedules::{Misfire, Schedule};

const HOUR: Duration = Duration::from_secs(3600);
const START: &str = "2026-01-01T00:00:00Z";

fn job(payload: &str) -> PreparedJob {
    PreparedJob {
        place: "reports.low".to_owned(),
        kind: "report".to_owned(),
        payload: payload.as_bytes().to_vec(),
        headers: Vec::new(),
        due: Due::Now,
        expires_after: None,
    }
}

fn plan(schedule: Schedule) -> Plan {
    plan_at(START, schedule, "{}")
}

fn plan_at(now: &str, schedule: Schedule, payload: &str) -> Plan {
    Plan::new(schedule, job(payload), false, system(time(now)))
}

fn system(time: Timestamp) -> SystemTime {
    time.try_into().unwrap()
}

/// The ticks that are enqueued at this time, one after the other.
fn run(plan: &mut Plan, now: &str) -> Vec<String> {
    let mut ticks = Vec::new();
    while let Some(Step { tick, next }) = plan.step(time(now)) {
        plan.state.next = next;
        if let Some(tick) = tick {
            plan.ran(tick);
            ticks.push(tick.to_string());
        }
    }
    ticks
}

#[test]
fn ticks_that_are_in_time_run_under_each_policy() {
    for policy in [
        Misfire::Skip,
        Misfire::Once,
        Misfire::All(1),
        Misfire::All(9),
    ] {
        let mut plan = plan(Schedule::every(HOUR).misfire(policy));
        assert_eq!(run(&mut plan, "2026-01-01T00:59:59.999Z"), [""; 0]);
        assert_eq!(
            run(&mut plan, "2026-01-01T01:00:00Z"),
            ["2026-01-01T01:00:00Z"]
        );
        assert_eq!(run(&mut plan, "2026-01-01T01:30:00Z"), [""; 0]);
        assert_eq!(
            run(&mut plan, "2026-01-01T02:00:59Z"),
            ["2026-01-01T02:00:00Z"]
        );
    }
}

#[test]
fn missed_ticks_follow_the_policy() {
    let at = |hour: u32| format!("2026-01-01T{hour:02}:00:00Z");
    for (policy, now, ran) in [
        (Misfire::Skip, "05:30:00", vec![]),
        (Misfire::Skip, "05:00:30", vec![at(5)]),
        (Misfire::Once, "05:30:00", vec![at(5)]),
        (Misfire::All(2), "05:30:00", vec![at(4), at(5)]),
        (Misfire::All(0), "05:30:00", vec![at(5)]),
        (Misfire::All(5), "05:30:00", (1..=5).map(at).collect()),
        (
            Misfire::All(u32::MAX),
            "05:30:00",
            (1..=5).map(at).collect(),
        ),
    ] {
        for schedule in [Schedule::every(HOUR), Schedule::cron("0 * * * *").unwrap()] {
            let mut plan = plan(schedule.starts_at(system(time(&at(1)))).misfire(policy));
            let now = format!("2026-01-01T{now}Z");
            assert_eq!(run(&mut plan, &now), ran, "{policy:?} at {now}");
            assert_eq!(plan.state.next, Some(time(&at(6))), "{policy:?} at {now}");
        }
    }
}

#[test]
fn a_long_absence_costs_little() {
    // A year of seconds.
    let mut plan = plan(
        Schedule::cron("* * * * * *")
            .unwrap()
            .misfire(Misfire::All(3)),
    );
    let ran = run(&mut plan, "2027-01-01T00:00:00Z");
    let last = [
        "2026-12-31T23:59:58Z",
        "2026-12-31T23:59:59Z",
        "2027-01-01T00:00:00Z",
    ];
    assert_eq!(ran, last);
}

#[test]
fn a_clock_that_is_set_back_repeats_no_tick() {
    let mut plan = plan(Schedule::every(HOUR));
    assert_eq!(run(&mut plan, "2026-01-01T03:00:00Z").len(), 1);
    for back in ["2026-01-01T01:00:00Z", "2025-01-01T00:00:00Z"] {
        assert_eq!(run(&mut plan, back), [""; 0]);
    }
    // A pause plans anew, and does not go back either.
    plan.set_paused(true, time("2026-01-01T01:00:00Z"));
    plan.set_paused(false, time("2026-01-01T01:00:00Z"));
    assert_eq!(run(&mut plan, "2026-01-01T03:30:00Z"), [""; 0]);
    assert_eq!(
        run(&mut plan, "2026-01-01T04:00:00Z"),
        ["2026-01-01T04:00:00Z"]
    );
}

#[test]
fn a_schedule_ends() {
    let mut few = plan(Schedule::every(HOUR).at_most(2).misfire(Misfire::All(9)));
    assert_eq!(run(&mut few, "2026-01-01T09:00:00Z").len(), 2);
    assert_eq!(few.state.next, None);
    // The same definition does not begin anew, and a larger number goes on.
    let same = plan(Schedule::every(HOUR).at_most(2).misfire(Misfire::All(9)));
    assert!(few.replaced_by(same).is_none());
    let more = plan_at(
        "2026-01-01T09:00:00Z",
        Schedule::every(HOUR).at_most(3),
        "{}",
    );
    let mut more = few.replaced_by(more).unwrap();
    assert_eq!(run(&mut more, "2026-01-02T09:00:00Z").len(), 1);
    assert_eq!(more.state.next, None);

    let ends = system(time("2026-01-01T02:00:00Z"));
    let mut short = plan(Schedule::every(HOUR).ends_at(ends).misfire(Misfire::All(9)));
    assert_eq!(run(&mut short, "2026-01-01T09:00:00Z").len(), 2);
    assert_eq!(short.state.next, None);
    assert_eq!(plan(Schedule::every(HOUR).at_most(0)).state.next, None);
}

#[test]
fn only_another_timing_changes_the_next_tick() {
    let mut old = plan(Schedule::every(HOUR));
    run(&mut old, "2026-01-01T03:30:00Z");
    let next = old.state.next;
    let now = "2026-01-01T03:45:00Z";
    let every = || Schedule::every(HOUR);
    assert!(old.replaced_by(plan_at(now, every(), "{}")).is_none());
    let others = [
        plan_at(now, every(), "[1]"),
        plan_at(now, every().at_most(7), "{}"),
        plan_at(now, every().misfire(Misfire::Skip).unless_running(), "{}"),
        plan_at(now, every().jitter(HOUR), "{}"),
    ];
    for other in others {
        let replaced = old.replaced_by(other).unwrap();
        assert_eq!((replaced.state.next, replaced.state.runs), (next, 1));
    }
    let half = plan_at(now, Schedule::every(HOUR / 2), "{}");
    let replaced = old.replaced_by(half).unwrap();
    assert_eq!(replaced.state.next, Some(time("2026-01-01T04:15:00Z")));
    old.set_paused(true, time(now));
    let half = plan_at(now, Schedule::every(HOUR / 2), "{}");
    let replaced = old.replaced_by(half).unwrap();
    assert_eq!(
        (replaced.state.is_paused, replaced.state.next),
        (true, None)
    );
}

#[test]
fn the_jitter_follows_from_the_id_and_the_tick() {
    let schedule = Schedule::every(HOUR).jitter(HOUR);
    let ticks = (0..1000).map(|n| time(START) + SignedDuration::from_hours(n));
    let jitters: Vec<_> = ticks
        .map(|tick| schedule.jitter_of("report", tick))
        .collect();
    assert!(jitters.iter().all(|jitter| *jitter < HOUR));
    // Spread over the hour.
    let early = jitters.iter().filter(|jitter| **jitter < HOUR / 4).count();
    assert!((150..350).contains(&early), "{early}");
    // Pinned: the same in each version.
    assert_eq!(jitters[0].as_secs(), JITTER);
    assert_ne!(jitters[0], schedule.jitter_of("other", time(START)));
}

const JITTER: u64 = 2821;

/// Pins the format: a changed one has to read this as well.
const STORED: &str = concat!(
    r#"{"definition":{"timing":{"Cron":"0 3 * * *"},"zone":"Europe/Berlin","#,
    r#""jitter":{"secs":1,"nanos":500000000},"starts":null,"ends":"2030-01-01T00:00:00Z","#,
    r#""at_most":7,"misfire":{"All":5},"unless_running":true},"#,
    r#""state":{"anchor":"2026-01-01T00:00:00Z","next":"2026-01-01T02:00:00Z","last":null,"#,
    r#""decided":null,"runs":0,"skipped":0,"is_paused":false,"sync":false,"#,
    r#""jobs":[{"tick":"2026-01-01T00:00:00Z","place":"reports.low","number":17}]}}"#,
);

#[test]
fn a_plan_is_stored_as_always() {
    let schedule = Schedule::cron("0 3 * * *")
        .unwrap()
        .time_zone("Europe/Berlin")
        .unwrap();
    let ends = system(time("2030-01-01T00:00:00Z"));
    let schedule = schedule
        .ends_at(ends)
        .at_most(7)
        .misfire(Misfire::All(5))
        .unless_running();
    let mut plan = plan(schedule.jitter(Duration::from_millis(1500)));
    plan.state.jobs.push(Enqueued {
        tick: time(START),
        place: "reports.low".to_owned(),
        number: Some(17),
    });
    let bytes = plan.to_bytes().unwrap();
    let parsed = Plan::parse(&bytes).unwrap();
    assert_eq!(parsed.state, plan.state);
    assert_eq!(parsed.job, plan.job);
    assert!(parsed.schedule.definition == plan.schedule.definition);
    let job = plan.job.to_bytes();
    let (state, stored_job) = bytes[5..].split_at(bytes.len() - 5 - job.len());
    assert_eq!(
        bytes[..5],
        [[1].as_slice(), &(state.len() as u32).to_le_bytes()].concat()
    );
    assert_eq!(
        (std::str::from_utf8(state).unwrap(), stored_job),
        (STORED, &job[..])
    );
}

#[test]
fn bytes_that_are_cut_off_or_changed_are_refused_or_parsed_and_never_panic() {
    let bytes = plan(Schedule::every(HOUR)).to_bytes().unwrap();
    for len in 0..bytes.len() {
        assert!(Plan::parse(&bytes[..len]).is_err(), "{len}");
    }
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 0x80;
        let _ = Plan::parse(&changed);
    }
}

proptest! {
    /// The clock goes on, stands still, leaps and is set back, and all is read from its bytes again.
    #[test]
    fn no_tick_comes_twice_whatever_the_clock_does(
        policy in prop_oneof![Just(Misfire::Skip), Just(Misfire::Once), (0..5_u32).prop_map(Misfire::All)],
        is_cron in any::<bool>(),
        moves in prop::collection::vec(-7200..14_400_i64, 1..40),
    ) {
        let schedule = match is_cron {
            true => Schedule::cron("*/20 * * * *").unwrap(),
            false => Schedule::every(Duration::from_secs(1200)),
        };
        let mut plan = plan(schedule.misfire(policy));
        let (mut now, mut last) = (time(START), None);
        for seconds in moves {
            now += SignedDuration::from_secs(seconds);
            while let Some(Step { tick, next }) = plan.step(now) {
                prop_assert!(next.is_none_or(|next| next > plan.state.next.unwrap()));
                plan.state.next = next;
                if let Some(tick) = tick {
                    prop_assert!(tick <= now && last.is_none_or(|last| tick > last));
                    prop_assert_eq!(tick.as_second() % 1200, 0);
                    plan.ran(tick);
                    last = Some(tick);
                }
                plan = Plan::parse(&plan.to_bytes().unwrap()).unwrap();
            }
            prop_assert!(plan.state.next.unwrap() > now);
        }
    }

    #[test]
    fn the_last_tick_is_the_one_after_which_none_is_due(
        minutes in 1..5000_i64,
        until in 0..5000_i64,
        is_cron in any::<bool>(),
    ) {
        let schedule = match is_cron {
            true => Schedule::cron("*/7 2-5 * * *").unwrap(),
            false => Schedule::every(Duration::from_secs(60 * 7)),
        };
        let anchor = time(START);
        let first = schedule.next(anchor + SignedDuration::from_mins(minutes), anchor).unwrap();
        let until = first + SignedDuration::from_mins(until);
        let ticks = std::iter::successors(Some(first), |tick| schedule.next(*tick, anchor));
        let last = ticks.take_while(|tick| *tick <= until).last().unwrap();
        prop_assert_eq!(schedule.last(first, until, anchor), last);
    }
}
