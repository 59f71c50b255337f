//! The accepting side's bookkeeping: which uploads there are, and which of them were accepted.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// One upload: the file, and which copy of it (`--repeat` uploads a file several times).
#[derive(Clone, Debug)]
pub(crate) struct Upload {
    copy: u32,
    /// Absolute, so that a later run finds it from any directory.
    pub path: PathBuf,
}

impl Upload {
    /// A name no other upload of the folder has: `tiles.png`, and `tiles.png.2` for a second copy.
    pub(crate) fn name(&self) -> String {
        let file = self.path.file_name().unwrap_or(self.path.as_os_str());
        match self.copy {
            1 => file.to_string_lossy().into_owned(),
            copy => format!("{}.{copy}", file.to_string_lossy()),
        }
    }

    /// How it is listed: on one line, whatever is in its path.
    fn line(&self) -> String {
        format!("{} {:?}", self.copy, self.path)
    }
}

/// Every file of `folder`, `copies` times over, in the order a busy site would see them: mixed.
pub(crate) fn uploads_in(folder: &Path, copies: u32) -> Result<Vec<Upload>> {
    let folder = match folder.canonicalize() {
        Ok(folder) => folder,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("there is no folder `{}`", folder.display())
        }
        Err(error) => return Err(error).with_context(|| format!("opening {}", folder.display())),
    };
    ensure!(
        folder.is_dir(),
        "`{}` is a file: name the folder it is in",
        folder.display()
    );
    let mut files = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        // A job is JSON here, so a path that is not text can't be part of one.
        if !hidden && path.is_file() && path.to_str().is_some() {
            files.push(path);
        }
    }
    ensure!(
        !files.is_empty(),
        "`{}` has no files to upload",
        folder.display()
    );
    files.sort();
    let uploads = |copy| {
        files.iter().map(move |path| Upload {
            copy,
            path: path.clone(),
        })
    };
    Ok((1..=copies).flat_map(uploads).collect())
}

/// The uploads that are in the queue's care, kept beside the queue while a run lasts.
///
/// An upload is listed after the queue has taken its jobs. A crash in between makes the next run
/// upload it again: one job too many, never one too few, which is the queue's own promise too.
pub(crate) struct Accepted {
    path: PathBuf,
    file: File,
    known: HashSet<String>,
}

impl Accepted {
    /// Opens the list of an interrupted run, or starts one. Call it before the queue is opened: a
    /// list without a queue is worth nothing, as its jobs are gone.
    pub(crate) fn open(queue: &Path) -> Result<Self> {
        let mut path = queue.as_os_str().to_owned();
        path.push(".accepted");
        let path = PathBuf::from(path);
        let open = || {
            if !queue.exists() && path.exists() {
                fs::remove_file(&path)?;
            }
            let file = OpenOptions::new().create(true).append(true).open(&path)?;
            let known = fs::read_to_string(&path)?
                .lines()
                .map(str::to_owned)
                .collect();
            io::Result::Ok((file, known))
        };
        let (file, known) = open().with_context(|| format!("opening {}", path.display()))?;
        Ok(Accepted { path, file, known })
    }

    pub(crate) fn contains(&self, upload: &Upload) -> bool {
        self.known.contains(&upload.line())
    }

    /// Uploaders share the list: one `write` of one line in append mode needs no lock.
    pub(crate) fn add(&self, upload: &Upload) -> io::Result<()> {
        (&self.file).write_all(format!("{}\n", upload.line()).as_bytes())
    }

    /// The run is complete, so the next one starts from nothing.
    pub(crate) fn forget(self) -> io::Result<()> {
        fs::remove_file(self.path)
    }
}
