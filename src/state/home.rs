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
    pub(super) fn open(root: &Directory, segment_size: u64) -> Result<Self, OpenError> {
        let (directory, _) = open_or_create(root, STATE)?;
        let directory = Arc::new(directory);
        let found = Manifest::entry(&directory).read_if_exists()?;
        let (log, is_new) = open_or_create(&directory, LOG)?;
        directory.flush()?;
        let lost = (is_new && found.is_some()).then(|| log.path().to_path_buf());
        let manifest = match found {
            Some(bytes) => {
                Manifest::decode(&bytes).map_err(|refused| refused.into_error(&directory))?
            }
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
                    id: fastrand::u64(1..),
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
