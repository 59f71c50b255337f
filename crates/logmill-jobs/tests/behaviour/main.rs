//! What an application sees of its jobs, through the public API.

mod common;
mod complaints;
mod ends;
mod events;
mod figures;
mod flows;
mod handlers;
mod limits;
mod middleware;
mod operators;
mod results;
mod unique;
mod waiting;
