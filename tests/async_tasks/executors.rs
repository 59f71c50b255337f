//! The executors that the tests run on.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll, Wake, Waker};

pub(crate) type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Executor {
    Tokio,
    TokioOnOneThread,
    Smol,
    HandWritten,
}

pub(crate) const ALL: [Executor; 4] = [
    Executor::Tokio,
    Executor::TokioOnOneThread,
    Executor::Smol,
    Executor::HandWritten,
];

impl Executor {
    /// Runs tasks side by side until all have ended.
    pub(crate) fn run(self, tasks: Vec<Task>) {
        match self {
            Self::Tokio => on_tokio(tokio::runtime::Builder::new_multi_thread(), tasks),
            Self::TokioOnOneThread => {
                on_tokio(tokio::runtime::Builder::new_current_thread(), tasks)
            }
            Self::Smol => {
                let executor = async_executor::Executor::new();
                let tasks: Vec<_> = tasks.into_iter().map(|task| executor.spawn(task)).collect();
                futures_lite::future::block_on(executor.run(async {
                    for task in tasks {
                        task.await;
                    }
                }));
            }
            Self::HandWritten => by_hand(tasks),
        }
    }
}

fn on_tokio(mut builder: tokio::runtime::Builder, tasks: Vec<Task>) {
    let runtime = builder.enable_time().build().expect("a runtime");
    runtime.block_on(async {
        let tasks: Vec<_> = tasks.into_iter().map(tokio::spawn).collect();
        for task in tasks {
            task.await.expect("no panic");
        }
    });
}

/// The tasks that are to be polled, by number.
#[derive(Default)]
struct Ready {
    tasks: Mutex<VecDeque<usize>>,
    some: Condvar,
}

struct WakeOne {
    ready: Arc<Ready>,
    task: usize,
}

impl Wake for WakeOne {
    fn wake(self: Arc<Self>) {
        self.ready.tasks.lock().unwrap().push_back(self.task);
        self.ready.some.notify_one();
    }
}

fn by_hand(mut tasks: Vec<Task>) {
    let ready = Arc::<Ready>::default();
    ready.tasks.lock().unwrap().extend(0..tasks.len());
    let wakers: Vec<_> = (0..tasks.len())
        .map(|task| {
            let ready = Arc::clone(&ready);
            Waker::from(Arc::new(WakeOne { ready, task }))
        })
        .collect();
    let mut has_ended = vec![false; tasks.len()];
    while has_ended.contains(&false) {
        let mut queued = ready.tasks.lock().unwrap();
        let task = loop {
            match queued.pop_front() {
                Some(task) => break task,
                None => queued = ready.some.wait(queued).unwrap(),
            }
        };
        drop(queued);
        if !has_ended[task] {
            let context = &mut Context::from_waker(&wakers[task]);
            has_ended[task] = tasks[task].as_mut().poll(context).is_ready();
        }
    }
}

/// A waker that counts.
#[derive(Default)]
pub(crate) struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Wakes {
    pub(crate) fn new() -> (Arc<Self>, Waker) {
        let wakes = Arc::<Self>::default();
        (Arc::clone(&wakes), Waker::from(wakes))
    }

    pub(crate) fn so_far(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// Polls a future once and drops it.
pub(crate) fn poll_once<F: Future>(future: F, waker: &Waker) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(waker))
}
