//! What an application sees of its jobs, through the public API.

mod common;
mod complaints;
mod ends;
mod flows;
mod handlers;
mod limits;
mod operators;
mod results;
#[cfg(feature = "schedules")]
mod schedules;
mod unique;
