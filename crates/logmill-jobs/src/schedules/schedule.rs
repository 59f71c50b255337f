//! What a user says about when a job is enqueued again and again.

use std::fmt;
use std::time::{Duration, SystemTime};

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::cron::Cron;
use super::error::ScheduleError;
use crate::keys;

/// When a job is enqueued again and again, for [`Enqueue::schedule`](crate::Enqueue::schedule). Each
/// such time is a *tick*.
///
/// ```
/// use logmill_jobs::{Misfire, Schedule, minutes};
/// use std::time::{Duration, UNIX_EPOCH};
///
/// let nightly = Schedule::cron("30 2 * * *")?.time_zone("Europe/Berlin")?;
/// let poll = Schedule::every(minutes(5)).misfire(Misfire::Skip).unless_running();
///
/// // The clock in Berlin goes from 2:00 to 3:00 in that night, so the tick comes right after that.
/// let friday = UNIX_EPOCH + Duration::from_secs(1_774_569_600);
/// let ticks = nightly.next_ticks(friday, 3);
/// let ticks: Vec<_> = ticks.iter().map(|tick| tick.local.as_str()).collect();
/// assert_eq!(ticks, [
///     "2026-03-27T02:30:00+01:00[Europe/Berlin]",
///     "2026-03-28T02:30:00+01:00[Europe/Berlin]",
///     "2026-03-29T03:00:00+02:00[Europe/Berlin]",
/// ]);
/// # Ok::<(), logmill_jobs::ScheduleError>(())
/// ```
#[derive(Clone)]
#[must_use]
pub struct Schedule {
    pub(super) definition: Definition,
    /// If it is a cron expression.
    cron: Option<Cron>,
    zone: TimeZone,
}

/// What is stored of a schedule: all that its user has said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Definition {
    timing: Timing,
    zone: String,
    jitter: Duration,
    starts: Option<Timestamp>,
    ends: Option<Timestamp>,
    pub(super) at_most: Option<u64>,
    pub(super) misfire: Misfire,
    pub(super) unless_running: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Timing {
    Cron(String),
    Every(Duration),
}

/// What becomes of ticks that were missed, as nothing ran at their time: the process was down, the
/// machine slept, the storage failed, or the clock was set forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Misfire {
    /// They are left out. A tick is missed if it is more than a minute late, or if the next one is due
    /// as well.
    Skip,
    /// One job is enqueued for all of them, with the time of the last. The default.
    #[default]
    Once,
    /// One job is enqueued for each of the last of them, at most this many (0 is taken as 1, and more
    /// than 1000 as 1000), the oldest first.
    All(u32),
}

/// A time at which a schedule enqueues its job, from [`Schedule::next_ticks`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tick {
    /// When that is.
    pub at: SystemTime,
    /// The same as local time, with its offset and time zone.
    pub local: String,
}

/// The longest period: with a longer one, there is no tick that anybody lives to see.
const LONGEST: Duration = Duration::from_secs(1000 * 366 * 86_400);
/// The shortest one.
const SHORTEST: Duration = Duration::from_millis(1);

impl Schedule {
    fn new(timing: Timing, cron: Option<Cron>) -> Self {
        let definition = Definition {
            timing,
            zone: "UTC".to_owned(),
            jitter: Duration::ZERO,
            starts: None,
            ends: None,
            at_most: None,
            misfire: Misfire::default(),
            unless_running: false,
        };
        Self {
            definition,
            cron,
            zone: TimeZone::UTC,
        }
    }

    /// Ticks by a cron expression: `minute hour day month weekday`, in UTC unless a
    /// [time zone](Self::time_zone) is named.
    ///
    /// Lists, ranges, steps and names work as in Vixie cron; so do `@hourly`, `@daily`, `@weekly`,
    /// `@monthly` and `@yearly`. A sixth field in front stands for the second, and a seventh at the
    /// end for the year. A day has also `L` (the last one) and `15W` (the weekday nearest to the 15th), a
    /// weekday `FRI#2` (the second Friday) and `FRI#L`. If both the day and the weekday are given, one of
    /// them has to match; with `+` before the weekday, both.
    ///
    /// Where the clock is set forward or back, the rules are those of Vixie cron. If the seconds,
    /// minutes or hours begin with `*`, ticks go by elapsed time: every minute stays every minute.
    /// Otherwise each time that is named has one tick: a time that is skipped comes right after the
    /// gap, and of a time that is repeated, the first counts. Times in the same gap have one tick
    /// together.
    ///
    /// # Errors
    /// The expression is not valid, or no date matches it.
    pub fn cron(expression: impl Into<String>) -> Result<Self, ScheduleError> {
        let expression = expression.into();
        match Cron::parse(&expression) {
            Ok(cron) => Ok(Self::new(Timing::Cron(expression), Some(cron))),
            Err(reason) => Err(ScheduleError::Cron { expression, reason }),
        }
    }

    /// Ticks each time that this has passed, by the wall clock, since the schedule was first stored; or
    /// since the time of [`starts_at`](Self::starts_at), which is the first tick then.
    ///
    /// Starting the application again does not shift them. At least a millisecond.
    pub fn every(period: Duration) -> Self {
        Self::new(Timing::Every(period), None)
    }

    /// Sets the time zone of a cron expression by its name in the IANA database, such as
    /// `Europe/Berlin`. Default: UTC.
    ///
    /// # Errors
    /// Neither the system's database nor the one in this program has it.
    pub fn time_zone(mut self, name: impl Into<String>) -> Result<Self, ScheduleError> {
        let name = name.into();
        match zone_of(&name) {
            Some(zone) => {
                self.definition.zone = name;
                self.zone = zone;
                Ok(self)
            }
            None => Err(ScheduleError::TimeZone(name)),
        }
    }

    /// Has each job begin a random time of less than this after its tick, so that schedules with the
    /// same times do not all begin at once.
    ///
    /// The time follows from the schedule's id and the tick, so it is the same after a restart. The job
    /// is enqueued at the tick, and waits until then.
    pub fn jitter(mut self, most: Duration) -> Self {
        self.definition.jitter = most;
        self
    }

    /// Has no tick before this time. Ticks that lie in the past when the schedule is stored first are
    /// not made up for.
    pub fn starts_at(mut self, time: SystemTime) -> Self {
        self.definition.starts = Some(timestamp_of(time));
        self
    }

    /// Has no tick after this time.
    pub fn ends_at(mut self, time: SystemTime) -> Self {
        self.definition.ends = Some(timestamp_of(time));
        self
    }

    /// Ends after this many jobs.
    pub fn at_most(mut self, runs: u64) -> Self {
        self.definition.at_most = Some(runs);
        self
    }

    /// Sets what becomes of ticks that were missed. Default: [`Misfire::Once`].
    pub fn misfire(mut self, policy: Misfire) -> Self {
        self.definition.misfire = policy;
        self
    }

    /// Enqueues no job at a tick while the one of an earlier tick waits, runs or is to be tried again.
    /// [`ScheduleInfo::skipped`](crate::ScheduleInfo::skipped) counts such ticks.
    pub fn unless_running(mut self) -> Self {
        self.definition.unless_running = true;
        self
    }

    /// A dry run: the first ticks after a time, as they come if the schedule is stored at that time.
    ///
    /// Without the [jitter](Self::jitter). A schedule that ends before has fewer. Takes microseconds for
    /// each tick.
    pub fn next_ticks(&self, from: SystemTime, count: usize) -> Vec<Tick> {
        let anchor = timestamp_of(from);
        let most = self.definition.at_most.unwrap_or(u64::MAX);
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let first = self.next(anchor, anchor);
        let ticks = std::iter::successors(first, |tick| self.next(*tick, anchor));
        let ticks = ticks.take(count.min(most)).filter_map(|tick| {
            let local = tick.to_zoned_datetime(self.zone.clone());
            Some(Tick {
                at: system_time_of(tick)?,
                local: local.to_string(),
            })
        });
        ticks.collect()
    }

    /// The schedule of a definition that was stored.
    pub(super) fn of(definition: Definition) -> Result<Self, ScheduleError> {
        let cron = match &definition.timing {
            Timing::Cron(expression) => Self::cron(expression.clone())?.cron,
            Timing::Every(_) => None,
        };
        let zone = zone_of(&definition.zone)
            .ok_or_else(|| ScheduleError::TimeZone(definition.zone.clone()))?;
        Ok(Self {
            definition,
            cron,
            zone,
        })
    }

    /// Whether it can be stored.
    pub(super) fn check(&self) -> Result<(), ScheduleError> {
        match self.definition.timing {
            Timing::Every(period) if !(SHORTEST..=LONGEST).contains(&period) => {
                let why = "the period of a schedule is a millisecond to a thousand years";
                Err(ScheduleError::Invalid(format!("{why}: {period:?}")))
            }
            _ => Ok(()),
        }
    }

    /// Whether both have the same ticks.
    pub(super) fn has_timing_of(&self, other: &Self) -> bool {
        let of = |Self { definition, .. }: &Self| {
            let Definition { timing, zone, .. } = definition.clone();
            (timing, zone, definition.starts, definition.ends)
        };
        of(self) == of(other)
    }

    /// The first tick after a time, of a schedule stored at `anchor`.
    pub(super) fn next(&self, after: Timestamp, anchor: Timestamp) -> Option<Timestamp> {
        let starts = self.definition.starts;
        let next = match (&self.definition.timing, &self.cron) {
            (Timing::Every(period), _) => next_in_grid(*period, starts, anchor, after)?,
            (Timing::Cron(_), Some(cron)) => {
                let nano = SignedDuration::from_nanos(1);
                let before = starts.and_then(|starts| starts.checked_sub(nano).ok());
                cron.next(before.map_or(after, |before| before.max(after)), &self.zone)?
            }
            (Timing::Cron(_), None) => return None,
        };
        let ends = self.definition.ends;
        ends.is_none_or(|ends| next <= ends).then_some(next)
    }

    /// The last tick up to a time, of which `first` is one.
    pub(super) fn last(&self, first: Timestamp, until: Timestamp, anchor: Timestamp) -> Timestamp {
        if let Timing::Every(period) = self.definition.timing {
            let period = i128::try_from(period.as_nanos())
                .unwrap_or(i128::MAX)
                .max(1);
            let past = until.as_nanosecond() - first.as_nanosecond();
            let last = until.as_nanosecond() - past.rem_euclid(period);
            let last = Timestamp::from_nanosecond(last).unwrap_or(first).max(first);
            return self.definition.ends.map_or(last, |ends| match last > ends {
                true => self.last(first, ends.max(first), anchor),
                false => last,
            });
        }
        // No tick lies after `high`.
        let (mut low, mut high) = (first, until);
        while low < high {
            let middle = low + low.duration_until(high) / 2;
            match self.next(middle, anchor) {
                Some(tick) if tick <= until => low = tick,
                _ => high = middle,
            }
        }
        low
    }

    /// How long after its tick a job begins.
    pub(super) fn jitter_of(&self, id: &str, tick: Timestamp) -> Duration {
        let most = self.definition.jitter.as_nanos();
        let seed = [id.as_bytes(), &tick.as_nanosecond().to_le_bytes()].concat();
        let hash = keys::fnv_1a(&seed);
        // The last steps of SplitMix64, as the hashes of neighbouring ticks differ in few bits.
        let mut random = (hash ^ (hash >> 64)) as u64;
        random = (random ^ (random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        random = (random ^ (random >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        random ^= random >> 31;
        let nanos = most.saturating_mul(u128::from(random)) >> 64;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// The first tick of a period after a time.
fn next_in_grid(
    period: Duration,
    starts: Option<Timestamp>,
    anchor: Timestamp,
    after: Timestamp,
) -> Option<Timestamp> {
    let period = i128::try_from(period.as_nanos()).ok()?.max(1);
    let first = match starts {
        Some(starts) => starts.as_nanosecond(),
        None => anchor.as_nanosecond().checked_add(period)?,
    };
    let after = after.as_nanosecond();
    let next = match after < first {
        true => first,
        false => first.checked_add(((after - first) / period + 1).checked_mul(period)?)?,
    };
    Timestamp::from_nanosecond(next).ok()
}

fn zone_of(name: &str) -> Option<TimeZone> {
    match name.eq_ignore_ascii_case("utc") {
        true => Some(TimeZone::UTC),
        false => TimeZone::get(name).ok(),
    }
}

/// A time within the range of the calendar.
pub(super) fn timestamp_of(time: SystemTime) -> Timestamp {
    Timestamp::try_from(time).unwrap_or(match time < SystemTime::UNIX_EPOCH {
        true => Timestamp::MIN,
        false => Timestamp::MAX,
    })
}

/// A time as the application sees it. None if the system cannot tell it.
pub(super) fn system_time_of(time: Timestamp) -> Option<SystemTime> {
    SystemTime::try_from(time).ok()
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Definition { timing, zone, .. } = &self.definition;
        match timing {
            Timing::Cron(expression) => write!(f, "cron {expression} in {zone}"),
            Timing::Every(period) => match SignedDuration::try_from(*period) {
                Ok(period) => write!(f, "every {period:#}"),
                Err(_) => write!(f, "every {period:?}"),
            },
        }
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Schedule").field(&self.definition).finish()
    }
}
