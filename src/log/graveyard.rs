//! What is left of segments that are done: mappings that may still be read, and files that are to be
//! emptied, reused or removed.

use std::sync::Arc;

use super::names::Names;
use super::poison::Poison;
use super::segment::{Maps, Paths, Segment};
use super::spare::Spare;
use super::tail::Position;
use super::zeroing::Dirty;
use crate::events::event;
use crate::storage::{Entry, StorageError};

/// Retired segments that may still be read, and ack files that are removed later.
#[derive(Default)]
pub(super) struct Graveyard {
    /// Files without contents: found at open, or not removed yet because of an error.
    pub(super) leftovers: Vec<Paths>,
    pub(super) retired: Vec<Retired>,
    /// Files that are reused once they are zeroed.
    pub(super) dirty: Vec<Dirty>,
    /// Ack files whose segment's removal is not durable yet, or that could not be removed.
    pub(super) ack_files: Vec<Entry>,
    /// Whether names were removed or changed since the directory was last flushed.
    pub(super) unflushed_names: bool,
}

/// Mappings that are dropped when they are no longer read.
pub(super) struct Retired {
    pub(super) maps: Option<Arc<Maps>>,
    pub(super) fate: Fate,
}

/// What happens to the files of a retired segment.
pub(super) enum Fate {
    /// They are only unmapped; their names are gone.
    Unmap,
    /// Their space is freed, and they keep their names.
    Empty(Arc<Segment>),
    /// They have been renamed to these paths and are reused; the records end at this position.
    Recycle(Position, Paths),
}

impl Graveyard {
    /// Unmaps retired segments that are no longer read, or has them zeroed if they can be reused.
    pub(super) fn sweep(&mut self, poison: &Poison) {
        for Retired { maps, fate } in std::mem::take(&mut self.retired) {
            // Every share was taken before `retire`; no further ones can be made.
            let maps = match maps.map(Arc::try_unwrap).transpose() {
                Ok(maps) => maps,
                Err(maps) => {
                    let maps = Some(maps);
                    self.retired.push(Retired { maps, fate });
                    continue;
                }
            };
            match fate {
                Fate::Recycle(end, paths) => {
                    let dirty = maps.map(|maps| Dirty::new(maps, end, paths));
                    self.dirty.extend(dirty);
                }
                Fate::Empty(segment) => {
                    drop(maps);
                    if let Err(error) = segment.paths().empty().map_err(Arc::new) {
                        poison.note(&error);
                        // After a failed flush, another one would prove nothing.
                        if !error.is_failed_flush() {
                            let fate = Fate::Empty(segment);
                            self.retired.push(Retired { maps: None, fate });
                        }
                        event!(debug, %error, "a segment that is done keeps its space");
                    }
                }
                Fate::Unmap => {}
            }
        }
    }

    /// Zeroes a piece of each of the files that are reused. Returns those that are ready.
    pub(super) fn zero(&mut self, piece: usize) -> Vec<Spare> {
        let ready = self.dirty.extract_if(.., |dirty| dirty.zero(piece));
        ready.map(Dirty::into_spare).collect()
    }

    /// How many of the retired segments will become spares.
    pub(super) fn future_spares(&self) -> usize {
        let is_spare = |retired: &&Retired| matches!(retired.fate, Fate::Recycle(..));
        self.retired.iter().filter(is_spare).count() + self.dirty.len()
    }

    /// Makes removed and changed names durable.
    pub(super) fn flush_names(&mut self, names: &Names) -> Result<(), StorageError> {
        names.flush().map_err(|error| error.retold())?;
        self.unflushed_names = false;
        Ok(())
    }

    /// Leaves the removal of empty files to the first turn of maintenance, so that the open does
    /// not wait for it.
    pub(super) fn leave(&mut self, leftovers: Vec<Paths>) {
        self.leftovers.extend(leftovers);
    }

    /// Removes files without contents; their ack files are left to
    /// [`remove_ack_files`](Self::remove_ack_files).
    pub(super) fn remove(&mut self, leftovers: Vec<Paths>) {
        for paths in leftovers {
            match paths.segment.remove() {
                Ok(()) => {
                    self.unflushed_names = true;
                    self.ack_files.push(paths.ack);
                }
                Err(error) => {
                    self.leftovers.push(paths);
                    event!(debug, %error, "an empty segment stays for now");
                }
            }
        }
    }

    /// Removes ack files, once the removal of their segments is durable.
    pub(super) fn remove_ack_files(&mut self, names: &Names) -> Result<(), StorageError> {
        if self.ack_files.is_empty() {
            return Ok(());
        }
        self.flush_names(names)?;
        for path in std::mem::take(&mut self.ack_files) {
            if let Err(error) = path.remove() {
                self.ack_files.push(path);
                event!(debug, %error, "an ack file stays for now");
            }
        }
        Ok(())
    }
}
