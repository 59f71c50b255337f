//! What an application sees of its jobs, through the public API.

mod common;
mod complaints;
mod ends;
mod flows;
mod handlers;
mod limits;
mod operators;
mod results;
#[cfg(feature = "testing")]
mod simulation;
#[cfg(feature = "testing")]
mod testing;
mod unique;
