//! The jobs and limits of a case, as the mill knows them.

use logmill_jobs::{Backoff, Job, KindOptions, Limit, OnFailure, Order, Priority, Unique, secs};
use serde::{Deserialize, Serialize};

use crate::model::BACKOFF;
use crate::operations::{KINDS, Keys, LimitOf, Mode, Policy, QUEUES, Scope};

/// A job of a kind, whose handler serves a queue.
#[derive(Serialize, Deserialize)]
pub(crate) struct Work<const QUEUE: usize, const KIND: usize> {
    pub(crate) number: usize,
}

impl<const QUEUE: usize, const KIND: usize> Job for Work<QUEUE, KIND> {
    type Inputs = ();
    type Output = u32;
    const KIND: &'static str = KINDS[KIND];

    fn kind_options() -> KindOptions {
        let options = KindOptions::new().queue(QUEUES[QUEUE]);
        options.backoff(Backoff::fixed(secs(BACKOFF)))
    }
}

/// A job of any kind, to look for.
#[derive(Serialize, Deserialize)]
pub(crate) struct AnyWork {
    pub(crate) number: usize,
}

impl Job for AnyWork {
    type Inputs = ();
    type Output = u32;
    const KIND: &'static str = KINDS[0];
    const ALIASES: &'static [&'static str] = &[KINDS[1]];
}

pub(crate) fn limit_of(limit: &LimitOf) -> Limit {
    let made = match limit.scope {
        Scope::Queue(queue) => Limit::on_queue(QUEUES[queue]),
        Scope::Kind(kind) => Limit::on_kind(KINDS[kind]),
    };
    let made = match limit.keys {
        Keys::Same => made,
        Keys::Apart => made.by_key(),
        Keys::InTurn => made.in_turn(),
    };
    let made = match limit.at_once {
        None => made,
        Some(most) => made.at_once(most),
    };
    match limit.rate {
        None => made,
        Some((interval, burst)) => made.rate(1, secs(interval)).burst(burst),
    }
}

pub(crate) fn order_of(scope: Scope) -> Order {
    match scope {
        Scope::Queue(queue) => Order::on_queue(QUEUES[queue]),
        Scope::Kind(kind) => Order::on_kind(KINDS[kind]),
    }
}

pub(crate) fn priority(is_high: bool) -> Priority {
    match is_high {
        true => Priority::High,
        false => Priority::Normal,
    }
}

pub(crate) fn on_failure(policy: Policy) -> OnFailure {
    match policy {
        Policy::Fail => OnFailure::Fail,
        Policy::FailAlone => OnFailure::FailAlone,
        Policy::Ignore => OnFailure::Ignore,
        Policy::Continue | Policy::AtFailure => OnFailure::Continue,
    }
}

pub(crate) fn unique_of(key: &str, mode: Mode) -> Unique {
    let unique = Unique::by(key);
    match mode {
        Mode::Plain => unique,
        Mode::Period(period) => unique.for_at_least(secs(period)),
        Mode::Replacing => unique.replacing(),
        Mode::KeepLatest => unique.keep_latest(),
        Mode::WhileWaiting { is_replacing } => match is_replacing {
            true => unique.while_waiting().replacing(),
            false => unique.while_waiting(),
        },
        Mode::Debounce {
            time,
            max_wait,
            is_leading,
        } => {
            let unique = unique.debounce(secs(time));
            let unique = match is_leading {
                true => unique.leading(),
                false => unique,
            };
            match max_wait {
                Some(most) => unique.max_wait(secs(most)),
                None => unique,
            }
        }
    }
}

/// A job with its options, whatever its kind.
macro_rules! with_options {
    ($job:expr, $new:expr) => {{
        let (mut job, new): (_, New) = ($job, $new);
        job = job.queue(QUEUES[new.queue]).priority(priority(new.is_high));
        job = job.max_retries(new.retries).after(secs(new.delay));
        if let Some(key) = new.key {
            job = job.key(KEYS[key]);
        }
        if let Some(after) = new.expires {
            job = job.expires_after(secs(after));
        }
        match new.cost {
            None => job,
            Some(cost) => job.cost(cost),
        }
    }};
}
pub(crate) use with_options;
