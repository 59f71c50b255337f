//! Chunks of async handlers, which go on as tasks of the runtime.

use std::sync::Arc;

use super::Member;
use super::run::settle;
use crate::KindOptions;
use crate::context::Context;
use crate::context::followed_by;
use crate::handler::EndOfChunk;
use crate::mill::Mill;
use crate::settle::Returned;
use crate::span::Entering;
use crate::user_code;
use crate::workers::pool::Task;

/// A chunk that goes on as a task. Dropped before it has ended, as the runtime ends, it gives its jobs
/// back without a failed attempt, and stops its pool, which could not run another one.
pub(super) struct Begun {
    pub(super) mill: Mill,
    /// Taken at the end.
    pub(super) members: Vec<(Member, Option<Context>)>,
    /// Taken at the end.
    pub(super) end: Option<EndOfChunk>,
    /// The attempts end within these.
    pub(super) _spans: Vec<Option<Arc<Entering>>>,
    /// Before it is dropped, all else has ended.
    pub(super) task: Task,
}

impl Begun {
    pub(super) fn end(mut self, options: &KindOptions, returned: Returned) {
        if let Some(end) = self.end.take() {
            let members = std::mem::take(&mut self.members);
            settle(&self.mill, options, members, end(returned));
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let Some(end) = self.end.take() else {
            return;
        };
        // Middleware is told.
        user_code::discard(end);
        self.task.stop_pool();
        for (member, context) in self.members.drain(..) {
            followed_by(context);
            member.give_back();
        }
    }
}
