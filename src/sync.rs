//! The atomics and locks of the concurrency protocols: the standard ones, or loom's when a model
//! is being checked (`--cfg loom`). Only the protocols that loom checks import from here.

#[cfg(not(loom))]
pub(crate) use std::sync::{
    Condvar, Mutex,
    atomic::{AtomicU64, AtomicUsize, Ordering, fence},
};

#[cfg(loom)]
pub(crate) use loom::sync::{
    Condvar, Mutex,
    atomic::{AtomicU64, AtomicUsize, Ordering, fence},
};
