//! The target `manifest`: arbitrary bytes in a MANIFEST.

use std::fs;
use std::path::Path;

use logmill::OpenError;

use crate::format::{self, Manifest};
use crate::{SEGMENT_SIZE, STRIPES, builder, directory};

/// Tests the bytes of a MANIFEST, once as they are and once with a correct check.
pub fn manifest(bytes: &[u8]) {
    open_with(bytes);
    let mut mended = bytes.to_vec();
    format::mend_manifest(&mut mended);
    if mended != bytes {
        open_with(&mended);
    }
}

fn open_with(bytes: &[u8]) {
    let dir = directory();
    let path = dir.path().join("MANIFEST");
    fs::write(&path, bytes).expect("written");
    for directory in ["log", "log/00", "dead"] {
        fs::create_dir(dir.path().join(directory)).expect("created");
    }
    let opened = builder(dir.path()).open();
    match format::manifest(bytes) {
        Manifest::Corrupt => {
            assert!(matches!(opened, Err(OpenError::ManifestCorrupt { .. })));
            assert_untouched(dir.path());
        }
        Manifest::OtherVersion => {
            assert!(matches!(opened, Err(OpenError::ManifestVersion { .. })));
            assert_untouched(dir.path());
        }
        Manifest::Of {
            stripes,
            segment_size,
            ..
        } if (stripes as usize, segment_size) != (STRIPES, SEGMENT_SIZE) => {
            assert!(matches!(opened, Err(OpenError::OptionMismatch { .. })));
            assert_untouched(dir.path());
        }
        Manifest::Of {
            is_in_tree: true, ..
        } => {
            assert!(matches!(opened, Err(OpenError::Misplaced { .. })));
            assert_untouched(dir.path());
        }
        Manifest::Of { .. } => {
            let (queue, report) = opened.expect("opened");
            assert!(report.is_clean(), "{report:?}");
            queue.close().expect("closed");
        }
    }
    assert_eq!(fs::read(path).expect("there"), bytes);
}

fn assert_untouched(dir: &Path) {
    let names = fs::read_dir(dir).expect("listed");
    let mut names = names.map(|entry| entry.expect("an entry").file_name());
    let known = ["MANIFEST", "LOCK", "log", "dead"];
    assert!(names.all(|name| known.iter().any(|known| name == *known)));
}
