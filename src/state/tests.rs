//! Unit tests of the state log.
