//! A set of ids, small where they are consecutive.

use crate::Sequence;
use crate::sequence::SequenceMap;

/// Ids in groups of 64.
#[derive(Default)]
pub(super) struct Ids(SequenceMap<u64>);

impl Ids {
    /// Adds an id; false if it was there before.
    pub(super) fn insert(&mut self, id: Sequence) -> bool {
        let bit = 1 << (id.get() % 64);
        let group = self.0.entry(Sequence::new(id.get() / 64)).or_default();
        let is_new = *group & bit == 0;
        *group |= bit;
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_new_once() {
        let mut ids = Ids::default();
        for id in [0, 1, 63, 64, 1 << 56, u64::MAX] {
            assert!(ids.insert(Sequence::new(id)), "{id}");
        }
        for id in [0, 1, 63, 64, 1 << 56, u64::MAX] {
            assert!(!ids.insert(Sequence::new(id)), "{id}");
        }
    }
}
