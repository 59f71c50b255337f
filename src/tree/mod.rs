//! A tree: a directory with many queues in it, which one process owns.
//!
//! The lock is on the root directory. The queues are in the directory `queues`, each under its
//! name. A queue that is open has a *seat* here, so that a second open of the same name finds its
//! handles rather than its files. The queues keep the tree open: it is unlocked when the last
//! handle of the tree and of any of its queues is gone.

mod names;

use std::any::Any;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

pub(crate) use self::names::{is_valid_name, names_in};
use crate::error::OpenError;
use crate::events::event;
use crate::lock::{self, DirectoryLock};
use crate::log::recovery::RecoveryReport;
use crate::runtime::{Runtime, Serve, Task};
use crate::state::State;
use crate::storage::{self, Directory, StorageError};
use crate::time::Clock;
use crate::user_code;

/// The directory of the queues.
pub(crate) const QUEUES: &str = "queues";
/// A directory that some file systems have in their root.
const LOST_AND_FOUND: &str = "lost+found";

/// A directory of queues, open and locked.
pub(crate) struct Tree {
    lock: DirectoryLock,
    queues: Arc<Directory>,
    runtime: Arc<Runtime>,
    /// The queues that are open, being opened or being closed, by name.
    seats: Mutex<HashMap<String, Arc<Place>>>,
    state: Arc<State>,
    /// Maintains the state log. None once the tree is being closed.
    task: Option<Task>,
    /// What the open found in the state log.
    report: RecoveryReport,
    clock: Clock,
    #[cfg(test)]
    is_dead: std::sync::atomic::AtomicBool,
}

impl Tree {
    /// Opens or creates a tree, without its threads, waiting up to `wait` for another owner to close it.
    pub(crate) fn open(
        path: &Path,
        file_mode: u32,
        wait: Duration,
        state_segment_size: Option<u64>,
        clock: Clock,
    ) -> Result<Self, OpenError> {
        let path = storage::absolute(path)?;
        let root = match Directory::open(&path) {
            Ok(Some(root)) => root.with_file_mode(file_mode),
            Ok(None) => storage::create_directories(&path, file_mode)?,
            Err(error) if error.io_error().kind() == io::ErrorKind::NotADirectory => {
                return Err(OpenError::NotADirectory {
                    path: storage::in_the_way(&path),
                });
            }
            Err(error) => return Err(error.into()),
        };
        let lock = DirectoryLock::take(root, wait)?;
        let root = lock.directory();
        let queues = match root.subdirectory(QUEUES) {
            Ok(Some(queues)) => queues,
            Ok(None) => {
                if let Some(found) = foreign_in(root)? {
                    return Err(OpenError::NotQueues {
                        path: root.path().to_path_buf(),
                        found,
                    });
                }
                root.flush_own_name()?;
                let queues = root.create_subdirectory(QUEUES)?;
                root.flush()?;
                queues
            }
            Err(error) => return Err(not_a_directory(error, &root.path().join(QUEUES))),
        };
        lock.note_holder();
        let runtime = Arc::new(Runtime::for_many());
        let task = runtime.maintenance_task();
        let has_queues = !queues.list()?.is_empty();
        let waker = task.waker();
        let (state, report) =
            State::open(root, has_queues, state_segment_size, waker, clock.clone())?;
        state.pass_over_missing(|| names::ids_in(&queues))?;
        let state = Arc::new(state);
        Ok(Self {
            queues: Arc::new(queues.with_cache()),
            lock,
            runtime,
            seats: Mutex::default(),
            task: Some(task),
            state,
            report,
            clock,
            #[cfg(test)]
            is_dead: std::sync::atomic::AtomicBool::new(false),
        })
    }

    /// Starts the threads, which maintain the state log.
    pub(crate) fn start(&self) -> Result<(), OpenError> {
        self.runtime.start().map_err(OpenError::Thread)?;
        if let Some(task) = &self.task {
            task.serve(StateTask(Arc::downgrade(&self.state)));
        }
        Ok(())
    }

    /// The log of transactions and keys.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// What the open found in the state log.
    pub(crate) fn report(&self) -> &RecoveryReport {
        &self.report
    }

    /// Simulates the death of the process: nothing more is done to the files.
    #[cfg(test)]
    pub(crate) fn die(&self) {
        self.is_dead
            .store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// The root directory.
    pub(crate) fn root(&self) -> &Arc<Directory> {
        self.lock.directory()
    }

    /// The clock of the directory and of its queues.
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The threads that serve the queues.
    pub(crate) fn runtime(&self) -> &Arc<Runtime> {
        &self.runtime
    }

    /// The directory of the queues.
    pub(crate) fn queues(&self) -> &Arc<Directory> {
        &self.queues
    }

    /// The directory of the queue of this name.
    pub(crate) fn path_of(&self, name: &str) -> PathBuf {
        self.queues.path().join(name)
    }

    /// Takes the seat of the queue of this name, to open it. If the queue is open, being opened or
    /// being closed, waits for that until the deadline; None if it passes.
    pub(crate) fn take_seat(
        self: &Arc<Self>,
        name: &str,
        deadline: Option<Instant>,
    ) -> Option<Seat> {
        match self.seat(name, deadline, |_| None::<Found>) {
            Seated::Taken(seat) => Some(seat),
            Seated::Found(_) | Seated::InUse => None,
        }
    }

    /// The handle of the open queue of this name, or else its seat. Waits while the queue is being
    /// opened or closed. None if it is this thread that does so.
    pub(crate) fn find<T: Any + Send + Sync>(
        self: &Arc<Self>,
        name: &str,
    ) -> Option<Result<Arc<T>, Seat>> {
        match self.seat(name, None, |open| open.clone().downcast().ok()) {
            Seated::Taken(seat) => Some(Err(seat)),
            Seated::Found(found) => Some(Ok(found)),
            Seated::InUse => None,
        }
    }

    fn seat<T>(
        self: &Arc<Self>,
        name: &str,
        deadline: Option<Instant>,
        find: impl Fn(&Found) -> Option<T>,
    ) -> Seated<T> {
        let place = {
            let mut seats = self.seats.lock();
            match seats.get(name) {
                Some(place) => Arc::clone(place),
                None => Arc::clone(seats.entry(name.to_owned()).or_default()),
            }
        };
        let this = thread::current().id();
        let mut state = place.state.lock();
        loop {
            if !state.is_taken {
                state.is_taken = true;
                state.busy = Some(this);
                drop(state);
                let (tree, name) = (Arc::clone(self), name.to_owned());
                return Seated::Taken(Seat { tree, name, place });
            }
            // The upgraded handle may turn out to be the last one, so it is dropped unlocked.
            let open = state.open.as_ref().and_then(Weak::upgrade);
            if let Some(open) = open {
                let found = find(&open);
                drop(state);
                drop(open);
                match found {
                    Some(found) => return Seated::Found(found),
                    None => state = place.state.lock(),
                }
            }
            if state.busy == Some(this) {
                return Seated::InUse;
            }
            if !state.is_taken {
                continue;
            }
            match deadline {
                None => place.changed.wait(&mut state),
                Some(deadline) => {
                    if place.changed.wait_until(&mut state, deadline).timed_out() {
                        return Seated::InUse;
                    }
                }
            }
        }
    }
}

/// The maintenance of the state log, as a task of the runtime.
struct StateTask(Weak<State>);

impl Serve for StateTask {
    fn turn(&self) -> Option<Instant> {
        let state = self.0.upgrade()?;
        user_code::call_here(|| state.turn()).unwrap_or_else(|panic| {
            event!(error, panic, "maintenance has panicked: a bug in logmill");
            None
        })
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        // Waits for a turn of it.
        self.task = None;
        #[cfg(test)]
        if self.is_dead.load(std::sync::atomic::Ordering::Relaxed) {
            return;
        }
        if let Err(error) = self.state.close() {
            // Everything is in the page cache, and the next open scans what was not sealed.
            event!(error, %error, "the state log was not closed cleanly");
        }
    }
}

/// A handle of an open queue.
type Found = Arc<dyn Any + Send + Sync>;

enum Seated<T> {
    /// The caller has the seat.
    Taken(Seat),
    /// Another one has it, with this result.
    Found(T),
    /// Another one has it.
    InUse,
}

/// The place of a queue in a tree, taken or not.
#[derive(Default)]
struct Place {
    state: Mutex<Occupancy>,
    changed: Condvar,
}

#[derive(Default)]
struct Occupancy {
    is_taken: bool,
    /// The queue, once it is open.
    open: Option<Weak<dyn Any + Send + Sync>>,
    /// The thread that is opening or closing the queue.
    busy: Option<ThreadId>,
}

/// The seat of an open queue in its tree. It is left when this is dropped, with the last of the
/// queue's files and locks.
pub(crate) struct Seat {
    tree: Arc<Tree>,
    name: String,
    place: Arc<Place>,
}

impl Seat {
    pub(crate) fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    /// Lets others [find](Tree::find) the queue, as long as it has handles.
    pub(crate) fn show<T: Any + Send + Sync>(&self, open: &Arc<T>) {
        let open: Weak<T> = Arc::downgrade(open);
        let mut state = self.place.state.lock();
        state.open = Some(open);
        state.busy = None;
        drop(state);
        self.place.changed.notify_all();
    }

    /// Records that this thread closes the queue: user code that it calls must not wait for that.
    pub(crate) fn note_closing(&self) {
        self.place.state.lock().busy = Some(thread::current().id());
        self.place.changed.notify_all();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.tree.seats.lock();
        *self.place.state.lock() = Occupancy::default();
        self.place.changed.notify_all();
        // One is in the map, one is here, and nobody can get another one from the map.
        if Arc::strong_count(&self.place) == 2 {
            seats.remove(&self.name);
        }
    }
}

/// The root of the tree that a queue's directory is in, if it is in one.
pub(crate) fn root_above(queue: &Directory) -> Result<Option<Directory>, StorageError> {
    let find = || {
        let queues = queue.parent()?;
        let root = queues.parent()?;
        let is_tree = match root.subdirectory(QUEUES)? {
            Some(found) => found.is_same_as(&queues)?,
            None => false,
        };
        Ok(is_tree.then_some(root))
    };
    find().or_else(|error: StorageError| match error.io_error().kind() {
        // Whoever may not look above a queue's directory cannot open a tree there either.
        io::ErrorKind::PermissionDenied
        | io::ErrorKind::NotFound
        | io::ErrorKind::NotADirectory => Ok(None),
        _ => Err(error),
    })
}

/// Which queue of a tree an open is for.
#[derive(Clone)]
pub(crate) struct InTree {
    pub(crate) tree: Arc<Tree>,
    pub(crate) name: String,
}

impl InTree {
    /// Opens the directory of the queue; None if it does not exist.
    pub(crate) fn directory(&self, file_mode: u32) -> Result<Option<Directory>, OpenError> {
        let found = self.tree.queues().subdirectory(&self.name);
        let found =
            found.map_err(|error| not_a_directory(error, &self.tree.path_of(&self.name)))?;
        Ok(found.map(|found| found.with_file_mode(file_mode)))
    }

    /// Creates the directory of the queue. The name is not durable yet.
    pub(crate) fn create_directory(&self, file_mode: u32) -> Result<Directory, OpenError> {
        let queues = self.tree.queues();
        Ok(queues.create_subdirectory_for(&self.name, file_mode)?)
    }
}

/// The error of opening a directory; links are not followed.
fn not_a_directory(error: StorageError, path: &Path) -> OpenError {
    match error.io_error().kind() {
        io::ErrorKind::NotADirectory => OpenError::NotADirectory {
            path: path.to_path_buf(),
        },
        _ => error.into(),
    }
}

/// The name of an entry that neither a crash while creating a tree nor a file system's root
/// explains, if there is one.
fn foreign_in(root: &Directory) -> Result<Option<String>, StorageError> {
    let names = root.list()?;
    let is_ours = |name: &String| [lock::FILE_NAME, LOST_AND_FOUND].contains(&name.as_str());
    Ok(names.into_iter().find(|name| !is_ours(name)))
}
