//! A worker's part in chunks: it adds jobs to them, and runs those that are full or due.

use std::cell::OnceCell;
use std::sync::Arc;
use std::time::Instant;

#[cfg(feature = "tokio")]
use super::task::Begun;
use super::{Member, Ready};
use crate::backend::{Claim, Consumer, Next};
use crate::context::{Attempt, Context};
use crate::handler::{Called, CalledChunk, Part, Route};
use crate::mill::Mill;
use crate::settle::Returned;
use crate::workers::thread::{Routes, Worker};
use crate::{KindOptions, span, user_code};

impl<S: Clone + Send + Sync + 'static> Worker<S> {
    /// Adds a job to the chunk of its kind, and runs that if it is full.
    #[cold]
    pub(in crate::workers) fn gather(
        &mut self,
        kind: &'static str,
        route: &Arc<dyn Route<S>>,
        member: Option<Member>,
    ) {
        let Some(member) = member else {
            return;
        };
        let ready = match member.has_crashed() {
            // Alone: one that kills its process takes no others with it.
            true => self.shared.chunks.of_one(kind, member),
            false => self.shared.chunks.join(kind, member),
        };
        if let Some(full) = ready {
            self.shared.chunks.have_others_run_enough();
            self.run_chunk(route, full);
        }
    }

    /// Takes a job that is there, for chunks that have enough. If none is, one of them runs; if it is not
    /// for a chunk, they run on other threads.
    #[cold]
    pub(in crate::workers) fn fill(
        &mut self,
        consumer: &mut dyn Consumer,
        routes: &Routes<S>,
    ) -> Next {
        let shared = Arc::clone(&self.shared);
        let mut take = |claim: &mut dyn Claim| {
            if !shared.chunks.is_for_chunk(claim.kind()) {
                shared.chunks.have_others_run_enough();
            }
            self.run(routes, claim);
        };
        let next = consumer.next(Some(Instant::now()), &|| shared.is_stopping(), &mut take);
        if next != Next::Nothing || shared.is_stopping() {
            return next;
        }
        if let Some(enough) = shared.chunks.take_enough()
            && let Some(route) = routes.get(enough.kind)
        {
            shared.chunks.have_others_run_enough();
            self.run_chunk(route, enough);
        }
        Next::Taken
    }

    /// Runs a chunk that is due, unless another thread was faster.
    #[cold]
    pub(in crate::workers) fn run_due(&mut self, routes: &Routes<S>) -> Next {
        if let Some(due) = self.shared.chunks.take_due()
            && let Some(route) = routes.get(due.kind)
        {
            self.run_chunk(route, due);
        }
        Next::Taken
    }

    /// Runs an open chunk, if there is one.
    #[cfg(feature = "testing")]
    pub(in crate::workers) fn run_open(&mut self, routes: &Routes<S>) -> Next {
        let Some(open) = self.shared.chunks.take_open() else {
            return Next::Nothing;
        };
        if let Some(route) = routes.get(open.kind) {
            self.run_chunk(route, open);
        }
        Next::Taken
    }

    /// Calls the handler with these jobs, and settles each; or has the runtime do so at the end.
    fn run_chunk(&mut self, route: &Arc<dyn Route<S>>, Ready { kind, members }: Ready) {
        let Some(chunk) = route.of_chunks() else {
            return;
        };
        let is_async = route.is_async();
        #[cfg(feature = "tokio")]
        let task = match is_async {
            false => None,
            true => match self.shared.begin_task_of_chunk() {
                Some(task) => Some(task),
                None => return,
            },
        };
        let mill = self.shared.mill.clone();
        let mut wanted = Vec::with_capacity(members.len());
        for mut member in members {
            if member.is_wanted(&mill) {
                wanted.push(member);
            }
        }
        if wanted.is_empty() {
            return;
        }
        #[cfg(feature = "tokio")]
        if let Some(task) = &task {
            task.runs(wanted.iter().map(|member| member.id.clone()).collect());
        }
        for member in &mut wanted {
            member.begin(&mut self.watch, is_async);
        }
        self.seat
            .begin_chunk(wanted.iter().map(|member| &member.id));
        // What the seat has by then is not what this thread has run last.
        self.is_other_queue = true;
        let timeout = route.options().timeout;
        let deadline = timeout.and_then(|timeout| self.begin_timed(kind, timeout, &**route));
        let attempts: Vec<_> = wanted
            .iter()
            .filter_map(|member| {
                Some(Attempt {
                    mill: &mill,
                    id: &member.id,
                    claim: member.claim()?,
                    deadline,
                    pool_stops: &self.shared.stopping,
                    context: OnceCell::new(),
                })
            })
            .collect();
        let spans = attempts
            .iter()
            .map(|attempt| span::of(attempt).map(Arc::new));
        let spans: Vec<_> = spans.collect();
        let of_chunk = span::of_chunk(kind, attempts.len(), spans.iter().flatten());
        let parts = attempts.iter().zip(&spans);
        let parts: Vec<_> = parts
            .map(|(attempt, span)| Part {
                attempt,
                span: span.as_ref(),
            })
            .collect();
        let how = span::within(of_chunk.as_ref(), || {
            let CalledChunk { called, end } = chunk.call_chunk(&self.state, &parts);
            match called {
                Called::Returned(returned) => How::Ended(end(returned)),
                #[cfg(feature = "tokio")]
                Called::Begun(future) => How::GoesOn(future, end),
            }
        });
        drop(parts);
        let contexts = attempts.into_iter().map(|one| one.context.into_inner());
        let contexts: Vec<_> = contexts.collect();
        let members: Vec<_> = wanted.into_iter().zip(contexts).collect();
        match how {
            How::Ended(returned) => settle(&mill, route.options(), members, returned),
            #[cfg(feature = "tokio")]
            How::GoesOn(future, end) => {
                let Some(task) = task else { return };
                let (route, end) = (Arc::clone(route), Some(end));
                let _spans = spans;
                let begun = Begun {
                    mill,
                    members,
                    end,
                    task,
                    _spans,
                };
                self.have_awaited(deadline, future, of_chunk, move |returned| {
                    begun.end(route.options(), returned);
                });
            }
        }
        self.seat.end_chunk();
        if deadline.is_some() {
            self.end_timed();
        }
    }
}

/// How far the handler of a chunk is.
enum How {
    Ended(Vec<Returned>),
    #[cfg(feature = "tokio")]
    GoesOn(crate::workers::task::Running, crate::handler::EndOfChunk),
}

/// Ends the attempts of a chunk.
pub(super) fn settle(
    mill: &Mill,
    options: &KindOptions,
    members: Vec<(Member, Option<Context>)>,
    returned: Vec<Returned>,
) {
    for ((member, context), returned) in members.into_iter().zip(returned) {
        let id = member.id.clone();
        // A panic is that of a subscriber or a waker, and the others are to be settled all the same.
        let ended = user_code::call(|| member.end(mill, options, returned, context));
        if let Err(panic) = ended {
            tracing::error!(%id, panic, "a worker was interrupted by a panic");
        }
    }
}
