//! A backend in memory, on the public API alone: what one in a crate of its own looks like, for
//! PostgreSQL, NATS or anything else.
//!
//! All that is stored is in a [`Store`], under one lock. A [`Memory`] is what one process has of it:
//! several on one store are several processes on one server. Nothing survives the store.

mod claim;
mod consumer;
mod jobs;
mod queue;
mod store;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use logmill_jobs::backend::{
    Backend, BackendError, Capabilities, Changes, Choice, Consumer, KeyValue, OnEnd, Queue, Served,
};

use self::consumer::MemoryConsumer;
use self::jobs::Over;
use self::queue::MemoryQueue;
use self::store::{State, Store};

/// A process's access to a store.
#[derive(Clone)]
pub(crate) struct Memory(Arc<Process>);

/// What the handles of a process share.
struct Process {
    store: Arc<Store>,
    capabilities: Capabilities,
    on_end: OnceLock<OnEnd>,
    is_closed: AtomicBool,
}

impl Memory {
    /// A store that one process uses.
    pub(crate) fn new() -> Self {
        Self::on(Arc::default(), Capabilities::new(true, false))
    }

    /// A store that several processes use. Consumers have jobs for the time of this lease, if there
    /// is one.
    pub(crate) fn shared(lease: Option<Duration>) -> Self {
        let capabilities = Capabilities::new(true, true);
        let capabilities = match lease {
            None => capabilities,
            Some(lease) => capabilities.with_lease(lease),
        };
        Self::on(Arc::default(), capabilities)
    }

    /// The same store as another process has it.
    pub(crate) fn in_another_process(&self) -> Self {
        Self::on(Arc::clone(&self.0.store), self.0.capabilities)
    }

    fn on(store: Arc<Store>, capabilities: Capabilities) -> Self {
        Self(Arc::new(Process {
            store,
            capabilities,
            on_end: OnceLock::new(),
            is_closed: AtomicBool::new(false),
        }))
    }
}

impl Process {
    fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::SeqCst)
    }

    fn check_open(&self) -> Result<(), BackendError> {
        match self.is_closed() {
            true => Err(BackendError::Closed),
            false => Ok(()),
        }
    }

    /// Reads what is stored.
    fn read<T>(&self, read: impl FnOnce(&State) -> T) -> Result<T, BackendError> {
        self.check_open()?;
        Ok(read(&self.store.lock()))
    }

    /// Changes what is stored. The jobs that end by that are told once the lock is free, as who is told
    /// may call back.
    fn change<T>(&self, change: impl FnOnce(&mut State, &mut Vec<Over>) -> T) -> T {
        let mut ends = Vec::new();
        let changed = self.store.change(|state| change(state, &mut ends));
        self.tell(&ends);
        changed
    }

    fn tell(&self, ends: &[Over]) {
        if let Some(tell) = self.on_end.get() {
            ends.iter().for_each(|over| tell(&over.as_ended()));
        }
    }

    /// The same, unless the backend is closed.
    fn change_if_open<T>(
        &self,
        change: impl FnOnce(&mut State, &mut Vec<Over>) -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        self.check_open()?;
        self.change(change)
    }
}

impl Backend for Memory {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities
    }

    fn on_end(&self, tell: OnEnd) {
        let _ = self.0.on_end.set(tell);
    }

    fn queue(&self, name: &str) -> Result<Box<dyn Queue>, BackendError> {
        self.0.change_if_open(|state, _| state.create(name))?;
        Ok(Box::new(MemoryQueue {
            process: Arc::clone(&self.0),
            name: name.to_owned(),
        }))
    }

    fn queue_names(&self) -> Result<Vec<String>, BackendError> {
        self.0.read(State::queue_names)
    }

    fn consumer(
        &self,
        queues: &[Served<'_>],
        choice: Choice,
    ) -> Result<Box<dyn Consumer>, BackendError> {
        let create = |state: &mut State, served: &Served<'_>| state.create(served.queue);
        self.0
            .change_if_open(|state, _| queues.iter().try_for_each(|one| create(state, one)))?;
        let process = Arc::clone(&self.0);
        Ok(Box::new(MemoryConsumer::new(process, queues, choice)))
    }

    fn wake_consumers(&self, _queues: &[&str]) {
        // All of them: each looks for itself whether it was meant.
        self.0.change(|_, _| ());
    }

    fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, BackendError> {
        self.0.read(|state| state.get(key))
    }

    fn keys(&self, prefix: &[u8]) -> Result<Vec<(Vec<u8>, KeyValue)>, BackendError> {
        self.0.read(|state| state.keys(prefix))
    }

    fn commit(&self, changes: &Changes<'_>) -> Result<Vec<Option<u64>>, BackendError> {
        self.0.change_if_open(|state, _| state.apply(changes))
    }

    fn flush(&self) -> Result<(), BackendError> {
        self.0.check_open()
    }

    fn close(&self) -> Result<(), BackendError> {
        self.0.is_closed.store(true, Ordering::SeqCst);
        // Consumers that wait find that it is closed.
        self.0.change(|_, _| ());
        Ok(())
    }
}
