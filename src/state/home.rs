//! The directory of a state log: finds or creates it.
//!
//! As with a queue, the MANIFEST comes last, so that a log without one was not created as a whole.

use std::path::PathBuf;
use std::sync::Arc;

use crate::Timestamp;
use crate::error::OpenError;
use crate::log::manifest::Manifest;
use crate::storage::{Directory, StorageError};

/// The directory in that of the tree.
pub(crate) const STATE: &str = "state";
const LOG: &str = "log";

pub(super) struct Home {
    pub(super) directory: Arc<Directory>,
    pub(super) log: Directory,
    pub(super) manifest: Manifest,
    /// What was missing although it was created before.
    pub(super) lost: Option<PathBuf>,
}

fn open_or_create(parent: &Directory, name: &str) -> Result<(Directory, bool), StorageError> {
    match parent.subdirectory(name)? {
        Some(found) => Ok((found, false)),
        None => Ok((parent.create_subdirectory(name)?, true)),
    }
}

impl Home {
    /// Opens the state log's directory in that of a tree, or creates it, for segments of this size.
    /// Its name is durable on return.
    pub(super) fn open(
        root: &Directory,
        has_queues: bool,
        segment_size: u64,
    ) -> Result<Self, OpenError> {
        let (directory, is_new) = open_or_create(root, STATE)?;
        let directory = Arc::new(directory);
        let found = Manifest::entry(&directory).read_if_exists()?;
        let mut lost = None;
        if is_new && has_queues {
            // Queues are only created once there is a whole state log.
            lost = Some(directory.path().to_path_buf());
        }
        let found = match found {
            Some(bytes) => {
                let manifest = Manifest::decode(&bytes);
                Some(manifest.map_err(|refused| refused.into_error(&directory))?)
            }
            None => None,
        };
        let is_log_lost = directory.subdirectory(LOG)?.is_none();
        let found = match found {
            Some(manifest) if is_log_lost => {
                // Its sequences begin anew, so records in queues must not name them by the old id.
                let manifest = Manifest {
                    id: crate::identity::new(),
                    ..manifest
                };
                manifest.write(&directory, || Ok(()))?;
                Some(manifest)
            }
            found => found,
        };
        let (log, _) = open_or_create(&directory, LOG)?;
        directory.flush()?;
        if is_log_lost && found.is_some() {
            lost = Some(log.path().to_path_buf());
        }
        let manifest = match found {
            Some(manifest) => manifest,
            None => {
                if let Some(found) = log.list()?.into_iter().next() {
                    return Err(OpenError::ManifestMissing {
                        path: directory.path().to_path_buf(),
                        found: format!("{LOG}/{found}"),
                    });
                }
                let manifest = Manifest {
                    stripes: 1,
                    segment_size,
                    created_at: Timestamp::now(),
                    id: crate::identity::new(),
                };
                manifest.write(&directory, || Ok(()))?;
                manifest
            }
        };
        root.flush()?;
        Ok(Self {
            directory,
            log,
            manifest,
            lost,
        })
    }
}
