//! The queues that workers serve, with those levels of priority that were ever used.

use std::collections::BTreeMap;

use crate::Priority;
use crate::backend::{self, Backend, BackendError, Choice, Consumer, name_of_level};
use crate::error::StartError;

/// How many turns the levels of a queue get while jobs of all of them wait.
const LEVELS: [(Priority, u32); 5] = [
    (Priority::Highest, 81),
    (Priority::High, 27),
    (Priority::Normal, 9),
    (Priority::Low, 3),
    (Priority::Lowest, 1),
];
/// The largest weight that each backend takes.
const MAX_WEIGHT: u64 = 1000;

/// The queues that workers serve, as their application names them.
#[derive(Debug)]
pub(crate) struct Served {
    /// With their weights, the highest first.
    queues: Vec<(String, u32)>,
    choice: Choice,
}

impl Served {
    pub(super) fn new(queues: &BTreeMap<String, u32>, choice: Choice) -> Result<Self, StartError> {
        for queue in queues.keys() {
            crate::enqueue::check_name(queue)
                .map_err(|error| StartError::InvalidQueue(error.to_string()))?;
        }
        let mut queues: Vec<_> = queues
            .iter()
            .map(|(queue, weight)| (queue.clone(), *weight))
            .collect();
        queues.sort_by_key(|(_, weight)| std::cmp::Reverse(*weight));
        Ok(Self { queues, choice })
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.queues.iter().map(|(queue, _)| &**queue)
    }

    /// The queues of the backend, in the order of choice, with their weights.
    pub(super) fn levels(&self, existing: &[String]) -> Vec<(String, u32)> {
        let exists = |name: &String| existing.contains(name);
        let levels = self.queues.iter().flat_map(|(queue, weight)| {
            LEVELS.iter().map(move |(level, turns)| {
                let weight = u64::from(*weight) * u64::from(*turns);
                (name_of_level(queue, *level), weight, *level)
            })
        });
        let levels: Vec<_> = levels
            .filter(|(name, _, level)| *level == Priority::Normal || exists(name))
            .collect();
        let most = levels.iter().map(|(_, weight, _)| *weight).max();
        let scale = most.unwrap_or(1).max(MAX_WEIGHT);
        let scaled = |weight: u64| (weight * MAX_WEIGHT / scale).max(1);
        levels
            .into_iter()
            .map(|(name, weight, _)| (name, u32::try_from(scaled(weight)).unwrap_or(1)))
            .collect()
    }

    /// A consumer of these queues.
    pub(super) fn consumer(
        &self,
        backend: &dyn Backend,
    ) -> Result<Box<dyn Consumer>, BackendError> {
        // Another process may use a level for the first time, and nobody would say so here.
        let existing = match backend.capabilities().is_shared {
            true => self.all_levels(),
            false => backend.queue_names()?,
        };
        let levels = self.levels(&existing);
        let served: Vec<_> = levels
            .iter()
            .map(|(queue, weight)| backend::Served {
                queue,
                weight: *weight,
            })
            .collect();
        backend.consumer(&served, self.choice)
    }

    fn all_levels(&self) -> Vec<String> {
        let names = self.queues.iter();
        let levels =
            names.flat_map(|(queue, _)| LEVELS.map(|(level, _)| name_of_level(queue, level)));
        levels.collect()
    }

    /// Has the consumers look whether they are to stop.
    pub(crate) fn wake(&self, backend: &dyn Backend) {
        let levels = self.all_levels();
        let levels: Vec<_> = levels.iter().map(String::as_str).collect();
        backend.wake_consumers(&levels);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels(queues: &[(&str, u32)], existing: &[&str]) -> Vec<(String, u32)> {
        let queues = queues
            .iter()
            .map(|(queue, weight)| ((*queue).to_owned(), *weight));
        let served = Served::new(&queues.collect(), Choice::Weight).unwrap();
        let existing: Vec<_> = existing.iter().map(|name| (*name).to_owned()).collect();
        served.levels(&existing)
    }

    #[test]
    fn levels_that_were_never_used_cost_nothing() {
        assert_eq!(levels(&[("mail", 1)], &[]), [("mail".to_owned(), 9)]);
        let used = levels(&[("mail", 1)], &["mail.low", "mail.highest", "other.high"]);
        let expected = [("mail.highest", 81), ("mail", 9), ("mail.low", 3)];
        assert_eq!(
            used,
            expected.map(|(name, weight)| (name.to_owned(), weight))
        );
    }

    #[test]
    fn weights_keep_their_proportion_as_far_as_they_can() {
        let both = levels(&[("a", 1000), ("b", 10)], &["a.highest", "b.highest"]);
        let expected = [("a.highest", 1000), ("a", 111), ("b.highest", 10), ("b", 1)];
        assert_eq!(
            both,
            expected.map(|(name, weight)| (name.to_owned(), weight))
        );
    }
}
