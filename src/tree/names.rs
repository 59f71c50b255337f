//! The names of the queues in a tree: which are allowed, and which exist.

use std::collections::HashSet;
use std::sync::Arc;

use crate::log::manifest::Manifest;
use crate::storage::{Directory, StorageError};

/// The longest name of a queue, in bytes.
const MAX_NAME_BYTES: usize = 100;

/// Whether a queue can have this name.
pub(crate) fn is_valid_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(is_allowed)
}

/// The names of the queues in a directory of queues, open or not, sorted. Those whose creation a
/// crash has cut short are none.
pub(crate) fn names_in(queues: &Directory) -> Result<Vec<String>, StorageError> {
    let mut names = Vec::new();
    for name in queues.list()? {
        if is_valid_name(&name)
            && let Some(queue) = queues.subdirectory_only(&name)?
            && Manifest::entry(&Arc::new(queue)).kind()?.is_some()
        {
            names.push(name);
        }
    }
    Ok(names)
}

/// The ids of all queues in a directory of queues. None if one of them cannot be told.
pub(crate) fn ids_in(queues: &Directory) -> Result<Option<HashSet<u64>>, StorageError> {
    let mut ids = HashSet::new();
    for name in names_in(queues)? {
        if let Some(queue) = queues.subdirectory_only(&name)?
            && let Some(bytes) = Manifest::entry(&Arc::new(queue)).read_if_exists()?
        {
            match Manifest::decode(&bytes) {
                Ok(manifest) => ids.insert(manifest.id),
                Err(_) => return Ok(None),
            };
        }
    }
    Ok(Some(ids))
}
