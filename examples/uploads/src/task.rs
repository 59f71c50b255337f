//! What travels in a job's payload: the kind of work and the upload it is for, as one line of text.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// One accepted upload: the file, and which copy of it (`--repeat` uploads a file several times).
///
/// Written as `<copy> <path>`. The path comes last, so it may contain anything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Upload {
    pub copy: u32,
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
}

impl fmt::Display for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.copy, self.path.display())
    }
}

impl FromStr for Upload {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (copy, path) = text.split_once(' ')?;
            Some(Upload {
                copy: copy.parse().ok()?,
                path: Path::new(path).to_owned(),
            })
        };
        parse().ok_or_else(|| format!("`{text}` is not `<copy> <path>`"))
    }
}

/// The two jobs that every upload causes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    Resize(Upload),
    Mail(Upload),
}

impl Task {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (Task::Resize(upload) | Task::Mail(upload)) = self;
        format!("{} {upload}", self.kind()).into_bytes()
    }

    pub(crate) fn decode(payload: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(payload).map_err(|error| error.to_string())?;
        match text.split_once(' ') {
            Some(("resize", upload)) => Ok(Task::Resize(upload.parse()?)),
            Some(("mail", upload)) => Ok(Task::Mail(upload.parse()?)),
            _ => Err(format!("`{text}` is no task of this program")),
        }
    }

    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Task::Resize(_) => "resize",
            Task::Mail(_) => "mail",
        }
    }

    pub(crate) fn upload(&self) -> &Upload {
        let (Task::Resize(upload) | Task::Mail(upload)) = self;
        upload
    }
}
