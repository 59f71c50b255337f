//! What an application sees of its jobs, through the public API.

mod common;
mod handlers;
mod operators;
mod results;
mod unique;
