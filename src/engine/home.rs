//! The directory of a queue: finds or creates it, locks it, and holds it and its subdirectories
//! open.
//!
//! A new queue gets its subdirectories first, and its MANIFEST only once their names are durable.
//! So if there is a MANIFEST, a missing subdirectory was lost. If creation fails, the options of
//! the new queue do not stay in force.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::OpenError;
use crate::events::event;
use crate::lock::{self, DirectoryLock};
use crate::log::manifest::{self, Manifest};
use crate::options::Builder;
use crate::state::State;
use crate::storage::{self, Directory, StorageError};
use crate::tree::{self, Seat};

const LOG: &str = "log";
const DEAD: &str = "dead";
/// A directory that some file systems have in their root.
const LOST_AND_FOUND: &str = "lost+found";

/// An open queue directory.
pub(crate) struct Home {
    lock: DirectoryLock,
    pub(crate) manifest: Manifest,
    /// Whether this process has just created it.
    is_new: bool,
    /// The lock of the tree that the queue is in, if it was opened alone.
    tree_lock: Option<DirectoryLock>,
    /// Whether its id is claimed in its tree.
    has_claim: bool,
    /// The queue's seat in its tree if it is in one, left after the lock.
    pub(crate) seat: Option<Seat>,
}

/// The subdirectories of a queue, held open.
pub(crate) struct Directories {
    log: Directory,
    /// The directories of the stripes' logs, by stripe number.
    pub(crate) stripes: Vec<Directory>,
    /// The directory of the dead letter log.
    pub(crate) dead: Directory,
    /// Subdirectories that were missing although the queue is not new: their contents are lost.
    pub(crate) lost: Vec<PathBuf>,
}

impl Directories {
    /// Opens the subdirectories of a queue and creates missing ones, whose names are not durable
    /// yet.
    fn make(queue: &Directory, stripes: u32) -> Result<Self, StorageError> {
        let mut lost = Vec::new();
        let mut open = |parent: &Directory, name: &str| {
            if let Some(directory) = parent.subdirectory(name)? {
                return Ok(directory);
            }
            lost.push(parent.path().join(name));
            parent.create_subdirectory(name)
        };
        let log = open(queue, LOG)?;
        let numbers = 0..stripes;
        let directories = numbers.map(|number| open(&log, &stripe_name(number)));
        let stripes = directories.collect::<Result<_, StorageError>>()?;
        let dead = open(queue, DEAD)?;
        Ok(Self {
            log,
            stripes,
            dead,
            lost,
        })
    }

    /// Opens those of an existing queue. New names are durable on return. If an earlier process
    /// died before that, the directory is empty: whoever uses it first makes its name durable.
    fn open(queue: &Directory, stripes: u32) -> Result<Self, StorageError> {
        let directories = Self::make(queue, stripes)?;
        if !directories.lost.is_empty() {
            directories.flush_names(queue)?;
        }
        Ok(directories)
    }

    fn flush_names(&self, queue: &Directory) -> Result<(), StorageError> {
        self.log.flush()?;
        queue.flush()
    }
}

/// The directory of an existing queue, to look at it from outside.
pub(crate) fn look(path: &Path) -> Result<(Arc<Directory>, Manifest), OpenError> {
    let path = storage::absolute(path)?;
    let Some(directory) = find(&path)? else {
        return Err(OpenError::NoQueue { path });
    };
    let directory = Arc::new(directory);
    let found = match read_manifest(&directory) {
        // A queue that is created at this moment has gotten its files after its MANIFEST.
        Err(OpenError::ManifestMissing { .. }) => read_manifest(&directory),
        found => found,
    };
    match found? {
        Some(manifest) => Ok((directory, manifest)),
        None => Err(OpenError::NoQueue { path }),
    }
}

/// The directory of a stripe's log, or without a number that of the dead letter log, in that of the
/// queue; None if it is not there.
pub(crate) fn directory_of_log(
    queue: &Directory,
    stripe: Option<u32>,
) -> Result<Option<Directory>, StorageError> {
    match stripe {
        None => queue.subdirectory(DEAD),
        Some(number) => match queue.subdirectory(LOG)? {
            Some(log) => log.subdirectory(&stripe_name(number)),
            None => Ok(None),
        },
    }
}

/// The directory at this path; None if nothing is there.
fn find(path: &Path) -> Result<Option<Directory>, OpenError> {
    match Directory::open(path) {
        Err(error) if error.io_error().kind() == io::ErrorKind::NotADirectory => {
            Err(OpenError::NotADirectory {
                path: storage::in_the_way(path),
            })
        }
        result => Ok(result?),
    }
}

fn stripe_name(number: u32) -> String {
    format!("{number:02}")
}

impl Home {
    /// Opens or creates the directory that the builder describes. All checks that can refuse the
    /// open come before anything is created or changed.
    pub(crate) fn open(
        builder: &Builder,
        seat: Option<Seat>,
    ) -> Result<(Self, Directories), OpenError> {
        builder.validate()?;
        let directory = match &builder.in_tree {
            Some(place) => match place.directory(builder.file_mode)? {
                Some(directory) => directory,
                None => {
                    Manifest::new_for(builder).check(builder)?;
                    place.create_directory(builder.file_mode)?
                }
            },
            None => Self::directory_alone(builder)?,
        };
        let (lock, tree_lock) = match &builder.in_tree {
            Some(_) => (DirectoryLock::within_tree(directory), None),
            None => {
                let tree = tree::root_above(&directory)?;
                let tree_lock = tree.map(|root| DirectoryLock::take(root, builder.lock_wait));
                let tree_lock = tree_lock.transpose()?;
                (
                    DirectoryLock::take(directory, builder.lock_wait)?,
                    tree_lock,
                )
            }
        };
        let found = read_manifest(lock.directory())?;
        let mut home = Self {
            lock,
            manifest: found.unwrap_or_else(|| Manifest::new_for(builder)),
            is_new: found.is_none(),
            tree_lock,
            has_claim: false,
            seat,
        };
        home.manifest.check(builder)?;
        home.check_place()?;
        home.claim()?;
        if builder.in_tree.is_none() {
            home.lock.note_holder();
        }
        if let Some(lock) = &home.tree_lock {
            lock.note_holder();
        }
        let directories = if home.is_new {
            home.create().inspect_err(|_| home.undo_creation())?
        } else {
            Directories::open(home.directory(), home.manifest.stripes)?
        };
        Ok((home, directories))
    }

    /// Opens or creates the directory of a queue that is in no tree.
    fn directory_alone(builder: &Builder) -> Result<Directory, OpenError> {
        let path = storage::absolute(&builder.path)?;
        match find(&path)? {
            Some(directory) => Ok(directory.with_file_mode(builder.file_mode)),
            None => {
                Manifest::new_for(builder).check(builder)?;
                Ok(storage::create_directories(&path, builder.file_mode)?)
            }
        }
    }

    pub(crate) fn directory(&self) -> &Arc<Directory> {
        self.lock.directory()
    }

    /// A queue of a tree names records of the tree's state log, and is named there. Opened alone, it
    /// would forget that.
    fn check_place(&self) -> Result<(), OpenError> {
        let why = match (&self.seat, self.manifest.id) {
            (None, 0) | (Some(_), 1..) => return Ok(()),
            (None, 1..) => "belongs to a directory of queues: open it with Queues::queue",
            (Some(_), 0) => "is a queue of its own: open it with Queue::builder",
        };
        Err(OpenError::Misplaced {
            path: self.directory().path().to_path_buf(),
            why,
        })
    }

    /// Claims the queue's id in its tree, unless a copy of it is open.
    fn claim(&mut self) -> Result<(), OpenError> {
        let Some((state, id)) = self.state() else {
            return Ok(());
        };
        if !state.claim(id) {
            return Err(OpenError::Misplaced {
                path: self.directory().path().to_path_buf(),
                why: "is a copy of a queue of this directory that is open, or the other way round",
            });
        }
        self.has_claim = true;
        Ok(())
    }

    /// The state log of the tree that the queue is in, and the id by which that log knows the queue.
    pub(crate) fn state(&self) -> Option<(&State, u64)> {
        let seat = self.seat.as_ref()?;
        Some((seat.tree().state(), self.manifest.id))
    }

    pub(crate) fn is_new(&self) -> bool {
        self.is_new
    }

    fn create(&self) -> Result<Directories, StorageError> {
        let mut directories = Directories::make(self.directory(), self.manifest.stripes)?;
        directories.lost.clear();
        // A directory with a MANIFEST has a durable name itself, and so have those in it.
        self.manifest.write(self.directory(), || {
            self.directory().flush_own_name()?;
            directories.flush_names(self.directory())
        })?;
        Ok(directories)
    }

    /// Cleans up if this process has just created the queue and then could not open it: removes all
    /// it created except empty directories, so that its options do not stay in force.
    ///
    /// The MANIFEST is removed last: a crash before that leaves a complete queue.
    pub(crate) fn undo_creation(&self) {
        if self.is_new
            && let Err(error) = try_undo(self.directory(), &self.manifest)
        {
            event!(warn, %error, "something stays of a queue that could not be created");
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if self.has_claim
            && let Some((state, id)) = self.state()
        {
            state.release(id);
        }
    }
}

fn try_undo(queue: &Arc<Directory>, manifest: &Manifest) -> Result<(), StorageError> {
    let mut directories = Vec::new();
    if let Some(log) = queue.subdirectory(LOG)? {
        for number in 0..manifest.stripes {
            directories.extend(log.subdirectory(&stripe_name(number))?);
        }
    }
    directories.extend(queue.subdirectory(DEAD)?);
    for directory in directories {
        let directory = Arc::new(directory);
        for name in directory.list()? {
            directory.entry(&name).remove()?;
        }
    }
    Manifest::entry(queue).remove()
}

/// Reads the MANIFEST; None if the directory is new.
fn read_manifest(queue: &Arc<Directory>) -> Result<Option<Manifest>, OpenError> {
    let entry = Manifest::entry(queue);
    let path = entry.path();
    let Some(bytes) = entry.read_if_exists()? else {
        return match foreign_in(queue)? {
            None => Ok(None),
            Some(found) => Err(OpenError::ManifestMissing {
                path: queue.path().to_path_buf(),
                found,
            }),
        };
    };
    let manifest = Manifest::decode(&bytes).map_err(|refused| refused.into_error(queue))?;
    if !manifest.is_valid() {
        return Err(OpenError::ManifestCorrupt {
            path: path.to_path_buf(),
            why: "its values are out of range",
        });
    }
    Ok(Some(manifest))
}

/// The name of an entry that neither a crash while creating a queue nor a file system's root
/// explains, if there is one.
fn foreign_in(queue: &Directory) -> Result<Option<String>, StorageError> {
    for name in queue.list()? {
        let is_ours = match name.as_str() {
            lock::FILE_NAME | manifest::TEMPORARY_NAME | LOST_AND_FOUND => true,
            DEAD => is_empty(queue, DEAD)?,
            LOG => is_log_without_files(queue)?,
            _ => false,
        };
        if !is_ours {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn is_log_without_files(queue: &Directory) -> Result<bool, StorageError> {
    let Some(log) = queue.subdirectory_only(LOG)? else {
        return Ok(false);
    };
    for name in log.list()? {
        if !is_empty(&log, &name)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_empty(directory: &Directory, name: &str) -> Result<bool, StorageError> {
    match directory.subdirectory_only(name)? {
        Some(directory) => Ok(directory.list()?.is_empty()),
        None => Ok(false),
    }
}
