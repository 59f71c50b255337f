//! The MANIFEST of a queue: how it follows from the options of an open.

use crate::Timestamp;
use crate::error::OpenError;
use crate::log::manifest::Manifest;
use crate::options::{self, Builder, DEFAULT_SEGMENT_SIZE, MAX_DEFAULT_STRIPES, MAX_STRIPES};

impl Manifest {
    /// The manifest of a new queue with these options.
    pub(super) fn new_for(options: &Builder) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            stripes: options.stripes.unwrap_or(cores.min(MAX_DEFAULT_STRIPES)) as u32,
            segment_size: options.segment_size.unwrap_or(DEFAULT_SEGMENT_SIZE),
            created_at: Timestamp::now(),
            id: match options.in_tree {
                Some(_) => crate::identity::new(),
                None => 0,
            },
        }
    }

    /// Checks the options of an open against those in force.
    pub(super) fn check(&self, options: &Builder) -> Result<(), OpenError> {
        let fixed = [
            (
                "stripes",
                u64::from(self.stripes),
                options.stripes.map(|stripes| stripes as u64),
            ),
            ("segment_size", self.segment_size, options.segment_size),
        ];
        for (option, on_disk, asked) in fixed {
            if let Some(asked) = asked
                && asked != on_disk
            {
                return Err(OpenError::OptionMismatch {
                    option,
                    on_disk,
                    asked,
                });
            }
        }
        let least = 3 * u64::from(self.stripes) * self.segment_size;
        if options.max_bytes.is_some_and(|max| max < least) {
            return Err(OpenError::InvalidOption {
                option: "max_bytes",
                why: format!("must be at least three segments a stripe, {least} bytes"),
            });
        }
        Ok(())
    }

    /// Whether this library can have written these values.
    pub(super) fn is_valid(&self) -> bool {
        (1..=MAX_STRIPES).contains(&(self.stripes as usize))
            && options::is_valid_segment_size(self.segment_size)
    }
}
