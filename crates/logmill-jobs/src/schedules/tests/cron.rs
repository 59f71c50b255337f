//! Cron expressions across changes of the clock, beside a model that goes from minute to minute.

use std::cmp::Ordering;
use std::collections::HashSet;

use croner::errors::CronError;
use croner::time::{CivilDateTime, CronDateTime, Resolution, Weekday};
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp, ZonedDateTime};
use proptest::prelude::*;

use super::time;
use crate::schedules::cron::{Cron, Local};

/// Zones whose clocks change by an hour, by half an hour, at midnight, a minute after it, by a day, not at
/// all, and with a negative summer time.
const ZONES: [&str; 10] = [
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "America/Sao_Paulo",
    "America/St_Johns",
    "Pacific/Apia",
    "Asia/Kathmandu",
    "Europe/Dublin",
    "Africa/Casablanca",
    "Antarctica/Troll",
];
const MINUTE: SignedDuration = SignedDuration::from_mins(1);

/// A field of an expression: its text, and the values that it stands for.
#[derive(Clone, Debug)]
struct Field {
    text: String,
    values: HashSet<i8>,
}

impl Field {
    fn is_star(&self) -> bool {
        self.text == "*"
    }
}

/// A field of values from `low` to `high`.
fn field(low: i8, high: i8) -> impl Strategy<Value = Field> {
    let range = (low..=high, low..=high, 1..=7_i8);
    let list = prop::collection::vec(low..=high, 1..4);
    (0..6, range, list).prop_map(move |(form, (a, b, step), list)| {
        let (a, b) = (a.min(b), a.max(b));
        let stepped = |a: i8, b: i8, step: i8| (a..=b).step_by(step.unsigned_abs().into());
        let (text, values): (String, HashSet<i8>) = match form {
            0 | 1 => ("*".to_owned(), (low..=high).collect()),
            2 => (format!("*/{step}"), stepped(low, high, step).collect()),
            3 => (format!("{a}-{b}"), (a..=b).collect()),
            4 => (format!("{a}-{b}/{step}"), stepped(a, b, step).collect()),
            _ => {
                let texts: Vec<_> = list.iter().map(i8::to_string).collect();
                (texts.join(","), list.iter().copied().collect())
            }
        };
        Field { text, values }
    })
}

/// An expression of five fields.
#[derive(Clone, Debug)]
struct Expression {
    minute: Field,
    hour: Field,
    day: Field,
    weekday: Field,
}

impl Expression {
    fn text(&self) -> String {
        let Self {
            minute,
            hour,
            day,
            weekday,
        } = self;
        let (minute, hour) = (&minute.text, &hour.text);
        format!("{minute} {hour} {} * {}", day.text, weekday.text)
    }

    fn is_wildcard(&self) -> bool {
        self.minute.text.starts_with('*') || self.hour.text.starts_with('*')
    }

    fn matches(&self, local: DateTime) -> bool {
        let day = self.day.values.contains(&local.day());
        let weekday = local.weekday().to_sunday_zero_offset();
        let weekday = self.weekday.values.contains(&weekday);
        let on_day = match self.day.is_star() || self.weekday.is_star() {
            true => day && weekday,
            false => day || weekday,
        };
        on_day
            && self.hour.values.contains(&local.hour())
            && self.minute.values.contains(&local.minute())
    }

    /// The ticks after a time and before another one, as Vixie cron has them.
    fn model(&self, after: Timestamp, until: Timestamp, zone: &TimeZone) -> Vec<Timestamp> {
        // Early enough to know which times are repeated.
        let mut now = after - SignedDuration::from_hours(26);
        let (mut ticks, mut seen) = (Vec::new(), HashSet::new());
        let mut former = zone.to_datetime(now - MINUTE);
        while now < until {
            let local = zone.to_datetime(now);
            let is_tick = match self.is_wildcard() {
                true => self.matches(local),
                false => {
                    // Those that the clock has skipped, and this one.
                    let mut passed = Vec::new();
                    let mut one = former + MINUTE;
                    while one < local {
                        passed.push(one);
                        one += MINUTE;
                    }
                    passed.push(local);
                    let new = passed.into_iter().filter(|one| seen.insert(*one));
                    new.filter(|one| self.matches(*one)).count() > 0
                }
            };
            if is_tick && now > after {
                ticks.push(now);
            }
            former = local;
            now += MINUTE;
        }
        ticks
    }
}

fn expression() -> impl Strategy<Value = Expression> {
    (field(0, 59), field(0, 23), field(1, 31), field(0, 6)).prop_map(
        |(minute, hour, day, weekday)| Expression {
            minute,
            hour,
            day,
            weekday,
        },
    )
}

/// A time zone and a time in the days around one of the changes of its clock.
fn around_a_change() -> impl Strategy<Value = (TimeZone, Timestamp)> {
    let years = 0..25 * 365_i64;
    (0..ZONES.len(), years, -48 * 60..24 * 60_i64).prop_map(|(zone, day, minutes)| {
        let zone = TimeZone::get(ZONES[zone]).unwrap();
        let from = time("2008-01-01T00:00:00Z") + SignedDuration::from_hours(day * 24);
        let change = zone.following(from).next();
        let change = change.map_or(from, |change| change.timestamp());
        // The model goes by whole minutes.
        let minute = change.as_second().div_euclid(60) + minutes;
        (zone, Timestamp::from_second(minute * 60).unwrap())
    })
}

/// The ticks after a time and before another one.
fn ticks(cron: &Cron, after: Timestamp, until: Timestamp, zone: &TimeZone) -> Vec<Timestamp> {
    let first = cron.next(after, zone);
    let ticks = std::iter::successors(first, |tick| cron.next(*tick, zone));
    ticks.take_while(|tick| *tick < until).collect()
}

proptest! {
    #[test]
    fn ticks_across_changes_of_the_clock_are_those_of_the_model(
        expression in expression(),
        (zone, after) in around_a_change(),
        nanos in 0..60_000_000_000_i64,
    ) {
        // Some match no date, such as 30 in each second month.
        let Ok(cron) = Cron::parse(&expression.text()) else { return Ok(()) };
        let until = after + SignedDuration::from_hours(72);
        let model = expression.model(after, until, &zone);
        prop_assert_eq!(ticks(&cron, after, until, &zone), model.clone());
        // From any moment, also within a minute.
        let moment = after + SignedDuration::from_hours(24) + SignedDuration::from_nanos(nanos);
        let next = model.into_iter().find(|tick| *tick > moment);
        let found = cron.next(moment, &zone).filter(|tick| *tick < until);
        prop_assert_eq!(found, next);
    }

    #[test]
    fn ticks_strictly_increase_and_none_is_passed_over(
        text in "(\\*|0|\\*/7|15,45) (\\*|0,30|59) (\\*|2|1-3) (\\*|L|15W|1,28-31|LW) (\\*|2,3,10,11) (\\*|SUN#L|FRI#2|MON-WED|\\+MON)",
        (zone, mut after) in around_a_change(),
    ) {
        let Ok(cron) = Cron::parse(&text) else { return Ok(()) };
        for _ in 0..50 {
            let Some(tick) = cron.next(after, &zone) else { break };
            prop_assert!(tick > after);
            prop_assert_eq!(tick.subsec_nanosecond(), 0);
            // The same from anywhere before it.
            let middle = after + after.duration_until(tick) / 2;
            prop_assert_eq!(cron.next(middle, &zone), Some(tick));
            prop_assert_eq!(cron.next(tick - SignedDuration::from_nanos(1), &zone), Some(tick));
            after = tick;
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC{0,40}|[0-9*,/#LW+?@A-Z -]{0,40}") {
        if let Ok(cron) = Cron::parse(&text) {
            cron.next(time("2026-01-01T00:00:00Z"), &TimeZone::UTC);
        }
    }
}

fn local_ticks(expression: &str, zone: &str, from: &str, count: usize) -> Vec<String> {
    let zone = TimeZone::get(zone).unwrap();
    let cron = Cron::parse(expression).unwrap();
    let first = cron.next(time(from), &zone);
    let ticks = std::iter::successors(first, |tick| cron.next(*tick, &zone));
    let local = ticks.map(|tick| tick.to_zoned_datetime(zone.clone()).to_string());
    local
        .take(count)
        .map(|text| text[5..22].to_owned())
        .collect()
}

#[test]
fn a_time_that_is_skipped_runs_right_after_the_gap() {
    let nightly = local_ticks("30 2 * * *", "Europe/Berlin", "2026-03-27T12:00:00Z", 3);
    assert_eq!(
        nightly,
        [
            "03-28T02:30:00+01",
            "03-29T03:00:00+02",
            "03-30T02:30:00+02"
        ]
    );
    // Those in the same gap have one tick together.
    let twice = local_ticks("0,30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", 2);
    assert_eq!(twice, ["03-29T03:00:00+02", "03-30T02:00:00+02"]);
    // In Samoa there was no 30 December 2011.
    let noon = local_ticks("0 12 30 12 *", "Pacific/Apia", "2011-06-01T00:00:00Z", 2);
    assert_eq!(noon, ["12-31T00:00:00+14", "12-30T12:00:00+14"]);
}

#[test]
fn a_time_that_is_repeated_runs_once() {
    let nightly = local_ticks("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2);
    assert_eq!(nightly, ["10-25T02:30:00+02", "10-26T02:30:00+01"]);
    let twice = local_ticks("0 2,3 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 3);
    assert_eq!(
        twice,
        [
            "10-25T02:00:00+02",
            "10-25T03:00:00+01",
            "10-26T02:00:00+01"
        ]
    );
}

#[test]
fn wildcards_go_by_elapsed_time() {
    let spring = local_ticks("*/30 * * * *", "Europe/Berlin", "2026-03-29T00:00:00Z", 3);
    assert_eq!(
        spring,
        [
            "03-29T01:30:00+01",
            "03-29T03:00:00+02",
            "03-29T03:30:00+02"
        ]
    );
    let autumn = local_ticks("@hourly", "Europe/Berlin", "2026-10-24T23:30:00Z", 3);
    assert_eq!(
        autumn,
        [
            "10-25T02:00:00+02",
            "10-25T02:00:00+01",
            "10-25T03:00:00+01"
        ]
    );
}

#[test]
fn invalid_expressions_say_what_is_wrong() {
    for (text, part) in [
        ("", "empty"),
        ("* * * *", "between 5 and 7 fields"),
        ("61 * * * *", "out of bounds"),
        ("x * * * *", "illegal character"),
        ("0 0 30 2 *", "no date matches"),
        (&"1,".repeat(200), "256 bytes"),
    ] {
        let error = Cron::parse(text).unwrap_err();
        assert!(error.contains(part), "{text}: {error}");
    }
}

/// A time in a zone, so that croner is asked about changes of the clock itself.
#[derive(Clone)]
struct Zoned(ZonedDateTime);

impl CronDateTime for Zoned {
    fn to_civil(&self) -> CivilDateTime {
        Local(self.0.datetime()).to_civil()
    }

    fn civil_weekday(&self) -> Weekday {
        Local(self.0.datetime()).civil_weekday()
    }

    fn resolve_civil(&self, civil: CivilDateTime) -> Result<Resolution<Self>, CronError> {
        let Resolution::Single(Local(local)) = Local(self.0.datetime()).resolve_civil(civil)?
        else {
            return Err(CronError::InvalidDate);
        };
        let zone = self.0.time_zone();
        let ambiguous = || zone.to_ambiguous_timestamp(local);
        let zoned = |time: Timestamp| Self(time.to_zoned_datetime(zone.clone()));
        let (earlier, later) = (ambiguous().earlier(), ambiguous().later());
        let (earlier, later) = (zoned(earlier.unwrap()), zoned(later.unwrap()));
        Ok(match ambiguous().offset() {
            AmbiguousOffset::Gap { .. } => Resolution::Gap,
            AmbiguousOffset::Fold { .. } => Resolution::Ambiguous(earlier, later),
            _ => Resolution::Single(earlier),
        })
    }

    fn checked_add_seconds(&self, seconds: i64) -> Option<Self> {
        let moved = self.0.checked_add(SignedDuration::from_secs(seconds));
        moved.ok().map(Self)
    }

    fn cmp_instant(&self, other: &Self) -> Ordering {
        self.0.timestamp().cmp(&other.0.timestamp())
    }
}

/// The reason for doing it here. When this fails, croner may do.
#[test]
fn croner_alone_has_other_rules_than_vixie_cron() {
    let ticks = |expression: &str, zone: &str, from: &str| {
        let from = time(from).to_zoned_datetime(TimeZone::get(zone).unwrap());
        let cron: croner::Cron = expression.parse().unwrap();
        let next = |time: &Zoned| cron.find_next_occurrence(time, false).ok();
        let ticks = std::iter::successors(next(&Zoned(from)), next);
        let ticks = ticks.map(|Zoned(tick)| tick.to_string()[5..22].to_owned());
        ticks.take(2).collect::<Vec<_>>()
    };
    // It runs a list of hours twice, and leaves out a list of minutes in a gap.
    let autumn = ticks("0 2,3 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z");
    assert_eq!(autumn, ["10-25T02:00:00+02", "10-25T02:00:00+01"]);
    let spring = ticks("0,30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z");
    assert_eq!(spring, ["03-30T02:00:00+02", "03-30T02:30:00+02"]);
    // It gives up at a gap of a day.
    let day = ticks("0 12 30 12 *", "Pacific/Apia", "2011-06-01T00:00:00Z");
    assert_eq!(day, [""; 0]);
}
