//! A job of a chunk: what a worker has of it from when it takes it until it settles it.

use std::sync::Arc;

use crate::backend::Claim;
use crate::context::Context;
use crate::context::followed_by;
use crate::figures::{self, Cell, Watch};
use crate::limits::Permit;
use crate::mill::Mill;
use crate::workers::leases::Kept;
use crate::workers::thread::give_back;
use crate::{JobId, KindOptions, settle, user_code};

/// A job of a chunk. Dropped before the handler is called, it is given back without an attempt; after
/// that, its attempt has failed.
pub(in crate::workers) struct Member {
    pub(super) id: JobId,
    /// Taken at the end; the first field, so that the job has ended when the rest is dropped.
    claim: Option<Box<dyn Claim + Send>>,
    permit: Permit<'static>,
    kept: Option<Kept>,
    /// Once its attempt has begun.
    watched: Option<(figures::Begun, Arc<Cell>)>,
}

impl Member {
    /// A job that may run: its limits have let it through. None if it is not to be had on its own.
    pub(in crate::workers) fn new(
        id: &JobId,
        claim: &mut dyn Claim,
        permit: Permit<'static>,
        kept: Option<Kept>,
    ) -> Option<Self> {
        Some(Self {
            id: id.clone(),
            claim: Some(claim.detach()?),
            permit,
            kept,
            watched: None,
        })
    }

    pub(super) fn claim(&self) -> Option<&(dyn Claim + Send)> {
        self.claim.as_deref()
    }

    /// Whether its process died during an attempt at it.
    pub(super) fn has_crashed(&self) -> bool {
        self.claim().is_some_and(|claim| claim.crashes() > 0)
    }

    /// Whether it still runs: not if it was cancelled while it waited, if its flow has ended it, or if
    /// the backend has taken it back.
    pub(super) fn is_wanted(&mut self, mill: &Mill) -> bool {
        let Some(claim) = &mut self.claim else {
            return false;
        };
        let is_lost = self.kept.as_ref().is_some_and(Kept::is_lost);
        // One that was cancelled ends when it is given back.
        let is_wanted = !is_lost && !claim.is_cancelled();
        if is_wanted && !mill.inner.flows.admit(mill, &self.id, &mut **claim) {
            // It is settled.
            self.claim = None;
            return false;
        }
        is_wanted
    }

    /// The attempt begins, on this thread or as a task.
    pub(super) fn begin(&mut self, watch: &mut Watch, is_task: bool) {
        let Some(claim) = &self.claim else {
            return;
        };
        self.permit.begin();
        let begun = watch.begin(&self.id, claim.kind(), &**claim, true);
        let cell = match is_task {
            #[cfg(feature = "tokio")]
            true => watch.shared_cell(),
            _ => Arc::clone(watch.cell()),
        };
        self.watched = Some((begun, cell));
    }

    /// Gives the job back although its attempt has begun: it has not failed.
    #[cfg(feature = "tokio")]
    pub(super) fn give_back(mut self) {
        self.watched = None;
    }

    /// Ends the attempt.
    pub(super) fn end(
        mut self,
        mill: &Mill,
        options: &KindOptions,
        returned: settle::Returned,
        context: Option<Context>,
    ) {
        let followed = followed_by(context);
        if let (Some(mut claim), Some((begun, cell))) = (self.claim.take(), self.watched.take()) {
            let ran = begun.end(mill, &cell, &*claim);
            settle::settle(
                mill,
                &mut *claim,
                &self.id,
                options,
                returned,
                followed,
                &ran,
            );
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let Some(mut claim) = self.claim.take() else {
            return;
        };
        let has_begun = self.watched.is_some();
        // To give it back may tell of its end, and so call the application.
        let given_back = user_code::call(move || {
            if !has_begun {
                give_back(&mut *claim);
            }
        });
        if let Err(panic) = given_back {
            tracing::error!(id = %self.id, panic, "a panic while a job was given back");
        }
    }
}
