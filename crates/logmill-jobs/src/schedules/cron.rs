//! Cron expressions in a time zone, across changes of its clock.
//!
//! The crate croner parses an expression and searches the calendar. What happens where a clock is set
//! forward or back is decided here, by the rules of Vixie cron: an expression whose seconds, minutes or
//! hours begin with a star goes by elapsed time, and each other one runs once for each time that it
//! names. croner takes only a single hour and minute for fixed, and fails at gaps of more than two
//! hours, so it is asked about wall-clock times without a time zone.

use std::cmp::Ordering;

use croner::errors::CronError;
use croner::time::{CivilDate, CivilDateTime, CivilTime, CronDateTime, Resolution, Weekday};
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp};

use crate::user_code;

/// The most bytes of an expression.
const MOST_BYTES: usize = 256;
const SECOND: SignedDuration = SignedDuration::from_secs(1);

/// An expression that matches some time.
#[derive(Clone, Debug)]
pub(super) struct Cron {
    pattern: croner::Cron,
    /// Goes by elapsed time instead of running once for each time that it names.
    is_wildcard: bool,
}

impl Cron {
    /// Parses an expression; the error says what is wrong with it.
    pub(super) fn parse(expression: &str) -> Result<Self, String> {
        if expression.len() > MOST_BYTES {
            return Err(format!("it has more than {MOST_BYTES} bytes"));
        }
        // Guarded: the text may come from an end user.
        let parser = croner::parser::CronParser::new();
        let pattern = user_code::call(|| parser.parse(expression))
            .map_err(|_| "it cannot be parsed".to_owned())?
            .map_err(|error| reason_of(&error))?;
        let cron = Self {
            pattern,
            is_wildcard: is_wildcard(expression),
        };
        // Whatever repeats in the calendar does so within 400 years of this.
        match cron.search(DateTime::constant(1999, 12, 31, 23, 59, 59, 0)) {
            Some(_) => Ok(cron),
            None => Err("no date matches it".to_owned()),
        }
    }

    /// The first tick after a time. None if there is none before the year 5000.
    pub(super) fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self.is_wildcard {
            true => self.next_by_elapsed_time(after, zone),
            false => self.next_by_the_clock(after, zone),
        }
    }

    /// Each wall-clock time once: the first of two that are the same; one that is skipped when the
    /// clock has been set forward.
    fn next_by_the_clock(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut local = zone.to_datetime(after);
        // More than once only within an hour that is repeated, or just after a gap.
        loop {
            local = self.search(local)?;
            let tick = instant_of(local, zone)?;
            if tick > after {
                return Some(tick);
            }
        }
    }

    /// Each second whose wall-clock time matches.
    fn next_by_elapsed_time(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let second = Timestamp::from_second(after.as_nanosecond().div_euclid(1_000_000_000) as i64);
        let mut from = second.ok()?.checked_add(SECOND).ok()?;
        loop {
            // Between two changes of the clock, local time goes as time does.
            let offset = zone.to_offset(from);
            let change = zone.following(from).next().map(|next| next.timestamp());
            let local = offset.to_datetime(from).checked_sub(SECOND).ok()?;
            let tick = offset.to_timestamp(self.search(local)?).ok()?;
            match change {
                Some(change) if tick >= change => from = change,
                _ => return Some(tick),
            }
        }
    }

    /// The first wall-clock time that matches, after another one.
    fn search(&self, after: DateTime) -> Option<DateTime> {
        let found = self.pattern.find_next_occurrence(&Local(after), false);
        found.ok().map(|Local(found)| found)
    }
}

/// The instant at which a wall-clock time runs.
fn instant_of(local: DateTime, zone: &TimeZone) -> Option<Timestamp> {
    let ambiguous = zone.to_ambiguous_timestamp(local);
    match ambiguous.offset() {
        // By the offset of after the gap, a time in it lies before the gap.
        AmbiguousOffset::Gap { after, .. } => {
            let before = after.to_timestamp(local).ok()?;
            zone.following(before).next().map(|gap| gap.timestamp())
        }
        // Of two, the earlier.
        _ => ambiguous.compatible().ok(),
    }
}

fn is_wildcard(expression: &str) -> bool {
    let fields: Vec<_> = expression.split_whitespace().collect();
    match &fields[..] {
        // Of the names, only this one is a wildcard.
        [name] => name.eq_ignore_ascii_case("@hourly"),
        fields => {
            // Minutes and hours, and the seconds before them if they are given.
            let times = if fields.len() == 5 { 2 } else { 3 };
            let mut times = fields.iter().take(times);
            times.any(|field| field.starts_with('*'))
        }
    }
}

fn reason_of(error: &CronError) -> String {
    match error {
        CronError::EmptyPattern => "it is empty".to_owned(),
        CronError::InvalidPattern(why)
        | CronError::IllegalCharacters(why)
        | CronError::ComponentError(why) => why.trim_end_matches('.').to_owned(),
        other => other.to_string(),
    }
}

/// A wall-clock time, as croner asks for it: without a time zone.
#[derive(Clone)]
pub(super) struct Local(pub(super) DateTime);

impl CronDateTime for Local {
    fn to_civil(&self) -> CivilDateTime {
        let Self(local) = self;
        let part = |part: i8| u32::from(part.unsigned_abs());
        CivilDateTime::new(
            CivilDate::from_parts_unchecked(
                i32::from(local.year()),
                part(local.month()),
                part(local.day()),
            ),
            CivilTime::from_parts_unchecked(
                part(local.hour()),
                part(local.minute()),
                part(local.second()),
            ),
        )
    }

    fn civil_weekday(&self) -> Weekday {
        let day = self.0.weekday().to_sunday_zero_offset();
        Weekday::from_days_from_sunday(u32::from(day.unsigned_abs()))
    }

    fn resolve_civil(&self, civil: CivilDateTime) -> Result<Resolution<Self>, CronError> {
        let part = |part: u32| i8::try_from(part).map_err(|_| CronError::InvalidDate);
        let year = i16::try_from(civil.year()).map_err(|_| CronError::InvalidDate)?;
        let (month, day) = (part(civil.month())?, part(civil.day())?);
        let (hour, minute) = (part(civil.hour())?, part(civil.minute())?);
        DateTime::new(year, month, day, hour, minute, part(civil.second())?, 0)
            .map(|local| Resolution::Single(Self(local)))
            .map_err(|_| CronError::InvalidDate)
    }

    fn checked_add_seconds(&self, seconds: i64) -> Option<Self> {
        let moved = self.0.checked_add(SignedDuration::from_secs(seconds));
        moved.ok().map(Self)
    }

    fn cmp_instant(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }
}
