//! Conditions that last, such as a full disk. However often they occur, they are reported when they
//! begin, then rarely, and when they are over.

use std::time::{Duration, Instant};

use crate::events::Mutex;
use crate::storage::StorageError;
use crate::time;

/// Shortest time between two reports of a condition.
const REPEAT: Duration = Duration::from_secs(60);
/// Most conditions that are tracked separately; beyond that, the one that occurred least recently
/// is dropped.
const MAX_KINDS: usize = 64;

/// The conditions that one place in the code reports.
#[derive(Default)]
pub(crate) struct Lasting(Mutex<Vec<Condition>>);

struct Condition {
    kind: String,
    /// How often it occurred since it was last reported.
    untold: u64,
    told_at: Instant,
    met_at: Instant,
    /// Whether it was reported, but its end was not.
    is_on: bool,
}

impl Lasting {
    /// Records that a condition occurred. If it should be reported, returns how often it occurred
    /// since the last report, including this time.
    pub(crate) fn met(&self, kind: String) -> Option<u64> {
        let now = time::now();
        let mut conditions = self.0.lock();
        let Some(condition) = conditions.iter_mut().find(|one| one.kind == kind) else {
            let oldest = conditions
                .iter()
                .enumerate()
                .min_by_key(|(_, one)| one.met_at);
            if let Some((oldest, _)) = oldest
                && conditions.len() >= MAX_KINDS
            {
                conditions.swap_remove(oldest);
            }
            conditions.push(Condition {
                kind,
                untold: 0,
                told_at: now,
                met_at: now,
                is_on: true,
            });
            return Some(1);
        };
        condition.untold += 1;
        condition.met_at = now;
        if now.duration_since(condition.told_at) < REPEAT {
            return None;
        }
        condition.told_at = now;
        condition.is_on = true;
        Some(std::mem::take(&mut condition.untold))
    }

    /// Like [`met`](Self::met), for an error. The same error on another file in the same directory
    /// is the same condition.
    pub(crate) fn met_error(&self, error: &StorageError) -> Option<u64> {
        let dir = error.path().parent().unwrap_or(error.path());
        self.met(format!("{}: {}", dir.display(), error.io_error()))
    }

    /// Whether the end of some reported condition has not been reported.
    pub(crate) fn is_on(&self) -> bool {
        self.0.lock().iter().any(|one| one.is_on)
    }

    /// Ends the conditions that have not occurred for this long. Returns those whose end should be
    /// reported.
    pub(crate) fn over_since(&self, quiet: Duration) -> Vec<String> {
        let now = time::now();
        let mut conditions = self.0.lock();
        let mut over = Vec::new();
        for one in conditions.iter_mut() {
            if one.is_on && now.duration_since(one.met_at) >= quiet {
                one.is_on = false;
                over.push(one.kind.clone());
            }
        }
        // A condition that comes back is reported no sooner than if it had gone on.
        conditions.retain(|one| one.is_on || now.duration_since(one.told_at) < REPEAT);
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::stopped;

    const SECOND: Duration = Duration::from_secs(1);

    fn met(lasting: &Lasting, kind: &str) -> Option<u64> {
        lasting.met(kind.to_owned())
    }

    #[test]
    fn a_condition_is_told_when_it_begins_then_once_a_minute_and_when_it_is_over() {
        let lasting = Lasting::default();
        let mut told = Vec::new();
        for second in 0..150 {
            stopped::set(Some(second * SECOND));
            told.extend(met(&lasting, "full").map(|times| (second, times)));
            assert!(lasting.over_since(2 * SECOND).is_empty() && lasting.is_on());
        }
        assert_eq!(told, [(0, 1), (60, 60), (120, 60)]);
        stopped::set(Some(152 * SECOND));
        assert_eq!(lasting.over_since(2 * SECOND), ["full"]);
        assert!(lasting.over_since(2 * SECOND).is_empty() && !lasting.is_on());
        // Last reported at second 120, so not again for another 28 s.
        stopped::set(Some(153 * SECOND));
        assert_eq!(met(&lasting, "full"), None);
        assert!(!lasting.is_on());
        stopped::set(Some(180 * SECOND));
        assert_eq!(met(&lasting, "full"), Some(31));
        assert_eq!(lasting.over_since(Duration::ZERO), ["full"]);
        // Forgotten.
        stopped::set(Some(240 * SECOND));
        lasting.over_since(Duration::ZERO);
        assert_eq!(met(&lasting, "full"), Some(1));
        stopped::set(None);
    }

    #[test]
    fn conditions_are_told_apart_as_far_as_there_is_room() {
        let lasting = Lasting::default();
        stopped::set(Some(SECOND));
        for kind in 0..MAX_KINDS {
            assert_eq!(lasting.met(kind.to_string()), Some(1));
            assert_eq!(lasting.met(kind.to_string()), None);
        }
        stopped::set(Some(2 * SECOND));
        assert_eq!(met(&lasting, "one more"), Some(1));
        assert_eq!(met(&lasting, "one more"), None);
        stopped::set(None);
    }
}
