//! `#[debug_handler]` on functions that fit: they are what they would be without it, and nothing is
//! reported of them, whatever the lints.
#![deny(unused, unreachable_code)]

use logmill_jobs::{
    Attempt, Chunk, ChunkOptions, Context, FromAttempt, FromRef, Job, JobResult, State, Workers,
    debug_handler,
};
use serde::{Deserialize, Serialize};

use crate::common::{Double, Note, PATIENCE, mill, note};

#[derive(Clone)]
struct App {
    factor: u64,
}

impl FromRef<App> for u64 {
    fn from_ref(app: &App) -> Self {
        app.factor
    }
}

/// An extractor of the application's own.
struct Tenant(String);

impl FromAttempt<App> for Tenant {
    fn from_attempt(attempt: &Attempt<'_>, app: &App) -> JobResult<Self> {
        Ok(Self(format!("{}-{}", attempt.kind(), app.factor)))
    }
}

#[debug_handler(state = App)]
fn double(
    Double { number }: Double,
    State(factor): State<u64>,
    Tenant(tenant): Tenant,
    State(app): State<App>,
    #[allow(unused_mut)] mut cx: Context,
) -> Result<u64, std::fmt::Error> {
    assert_eq!((factor, &*tenant, cx.attempt()), (2, "double-2", 1));
    cx = cx.clone();
    drop(cx);
    Ok(number * app.factor)
}

#[debug_handler]
fn r#move(_: Note, state: logmill_jobs::State<App>) -> JobResult {
    assert_eq!(state.0.factor, 2);
    Ok(())
}

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "noted", output = String)]
struct Noted;

#[derive(Serialize, Deserialize, Job)]
#[job(kind = "count", output = u64)]
struct Count;

#[debug_handler(state = App)]
fn count(chunk: Chunk<Count>, State(factor): State<u64>, app: State<App>) -> JobResult {
    assert_eq!(factor, app.0.factor);
    for one in &chunk {
        one.done_with(factor);
    }
    Ok(())
}

struct Notes;

impl Notes {
    const TEXT: &'static str = "noted";

    #[debug_handler]
    fn noted(_: Noted) -> anyhow::Result<String> {
        Ok(Self::TEXT.to_owned())
    }
}

// Not there, and neither are its checks.
#[debug_handler]
#[cfg(any())]
fn absent(_: Absent) {}

#[test]
fn a_handler_with_the_attribute_runs_as_without_it() {
    let (mill, _dir) = mill();
    let workers = Workers::new(App { factor: 2 })
        .on(double)
        .on(r#move)
        .on(Notes::noted)
        .on_chunk(count, ChunkOptions::up_to(2));
    let pool = workers.start(&mill).unwrap();
    let handle = mill.enqueue(Double { number: 4 }).unwrap();
    assert_eq!(handle.wait_timeout(PATIENCE).unwrap(), 8);
    let handle = mill.enqueue(note("a")).unwrap();
    handle.wait_timeout(PATIENCE).unwrap();
    let handle = mill.enqueue(Noted).unwrap();
    assert_eq!(handle.wait_timeout(PATIENCE).unwrap(), "noted");
    let handle = mill.enqueue(Count).unwrap();
    assert_eq!(handle.wait_timeout(PATIENCE).unwrap(), 2);
    let _ = pool.shutdown(PATIENCE);
}

#[cfg(feature = "tokio")]
mod awaited {
    use std::future::{Ready, ready};
    use std::pin::Pin;

    use super::{
        App, Chunk, ChunkOptions, Context, Double, JobResult, Note, Noted, Notes, State, Workers,
        debug_handler, mill, note,
    };

    #[debug_handler(state = App)]
    async fn double(mut job: Double, State(factor): State<u64>, _: Context) -> JobResult<u64> {
        tokio::task::yield_now().await;
        job.number *= factor;
        Ok(job.number)
    }

    #[debug_handler]
    fn r#move(_: Note, State(app): State<App>) -> impl Future<Output = JobResult> {
        ready(match app.factor {
            2 => Ok(()),
            factor => Err(format!("{factor}").into()),
        })
    }

    impl Notes {
        #[debug_handler]
        async fn noted_later(_: Noted) -> JobResult<String> {
            Ok(Self::TEXT.to_owned())
        }

        #[debug_handler]
        async fn in_reach_only_by_its_type(_: Noted) -> JobResult<String> {
            Ok(String::new())
        }
    }

    #[debug_handler]
    async fn with_items_of_its_own(_: Note) -> JobResult {
        struct Local;
        impl From<u8> for Local {
            fn from(_: u8) -> Self {
                Self
            }
        }
        drop(Local::from(7));
        Ok(())
    }

    #[debug_handler]
    async fn several(chunk: Chunk<Note>, State(app): State<App>) -> Result<(), String> {
        tokio::task::yield_now().await;
        match chunk.len() == usize::try_from(app.factor).unwrap_or(0) {
            true => Ok(()),
            false => Err("not so many".to_owned()),
        }
    }

    #[debug_handler]
    fn several_at_once(_: logmill_jobs::Chunk<Note>) -> impl Future<Output = JobResult> {
        ready(Ok(()))
    }

    #[debug_handler]
    fn ready_at_once(_: Note) -> Ready<JobResult> {
        ready(Ok(()))
    }

    #[debug_handler]
    fn boxed(_: Note) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> {
        Box::pin(ready(Ok(())))
    }

    #[tokio::test]
    async fn an_async_handler_with_the_attribute_runs_as_without_it() {
        let (mill, _dir) = mill();
        let workers = Workers::new(App { factor: 2 })
            .on_async(double)
            .on_async(r#move)
            .on_async(Notes::noted_later);
        let pool = workers.start(&mill).unwrap();
        let handle = mill.enqueue(Double { number: 4 }).unwrap();
        assert_eq!(handle.wait_async().await.unwrap(), 8);
        mill.enqueue(note("a")).unwrap().wait_async().await.unwrap();
        let handle = mill.enqueue(Noted).unwrap();
        assert_eq!(handle.wait_async().await.unwrap(), "noted");
        drop(pool);
        // Others are handlers as well.
        let two = ChunkOptions::up_to(2);
        let _ = Workers::new(App { factor: 2 }).on_chunk_async(several, two);
        let _ = Workers::new(()).on_chunk_async(several_at_once, two);
        let _ = Workers::new(()).on_async(ready_at_once);
        let _ = Workers::new(()).on_async(boxed);
        let _ = Workers::new(()).on_async(with_items_of_its_own);
        let _ = Workers::new(()).on_async(Notes::in_reach_only_by_its_type);
    }
}
