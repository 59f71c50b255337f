//! What an application sees of its jobs, through the public API.

#[cfg(feature = "testing")]
mod begins;
#[cfg(feature = "testing")]
mod chunks;
mod common;
mod complaints;
mod dead_jobs;
mod debounce;
mod debug_handler;
mod edit;
mod ends;
mod events;
mod figures;
mod flows;
mod handlers;
mod kind_load;
mod limits;
mod listing;
mod middleware;
mod operators;
mod order;
mod own_options;
mod pause;
#[cfg(feature = "testing")]
mod rates;
mod results;
mod retention;
mod running;
#[cfg(feature = "testing")]
mod scale;
#[cfg(feature = "schedules")]
mod schedules;
#[cfg(feature = "testing")]
mod simulation;
#[cfg(feature = "testing")]
mod testing;
mod together;
mod turns;
mod unique;
mod unique_model;
mod waiting;
