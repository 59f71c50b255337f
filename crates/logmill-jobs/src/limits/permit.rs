//! The places that a job has at limits while its attempt goes on: given back when that has ended, in
//! whatever way.

use std::sync::Arc;

use smallvec::SmallVec;

use super::gate::Ended;
use super::{Grant, Limits};

/// The places that a job has at gates, until its attempt has ended.
pub(crate) struct Permit<'a> {
    pub(super) limits: Option<Of<'a>>,
    pub(super) has_begun: bool,
    pub(super) places: SmallVec<[Grant; 2]>,
    /// The place that was kept for it, until it has come to that gate.
    pub(super) granted: Option<Grant>,
}

/// The limits that a permit is of. A blocking attempt borrows them, which spares it two locked additions.
pub(super) enum Of<'a> {
    Borrowed(&'a Arc<Limits>),
    Shared(Arc<Limits>),
}

impl Of<'_> {
    fn get(&self) -> &Limits {
        match self {
            Self::Borrowed(limits) => limits,
            Self::Shared(limits) => limits,
        }
    }
}

impl Permit<'_> {
    /// The attempt begins: it has had its turn.
    pub(crate) fn begin(&mut self) {
        self.has_begun = true;
    }

    #[inline]
    pub(crate) fn none() -> Self {
        Self {
            limits: None,
            has_begun: false,
            places: SmallVec::new(),
            granted: None,
        }
    }

    /// The places for an attempt that goes on elsewhere.
    pub(crate) fn detach(mut self) -> Permit<'static> {
        let limits = self.limits.as_ref().map(|limits| match limits {
            Of::Borrowed(limits) => Arc::clone(limits),
            Of::Shared(limits) => Arc::clone(limits),
        });
        Permit {
            limits: limits.map(Of::Shared),
            has_begun: self.has_begun,
            places: std::mem::take(&mut self.places),
            granted: self.granted.take(),
        }
    }
}

impl Drop for Permit<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Some(limits) = &self.limits {
            let ended = match self.has_begun {
                true => Ended::Begun,
                false => Ended::AboutToBegin,
            };
            for place in self.places.drain(..) {
                limits.get().give_back(place, ended);
            }
            if let Some(granted) = self.granted.take() {
                limits.get().give_back(granted, Ended::LetThrough);
            }
        }
    }
}
