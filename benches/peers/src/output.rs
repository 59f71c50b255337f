//! The options of every subcommand that say where data and results go.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tempfile::TempDir;

use crate::docs;

/// The default directory of the results.
const RESULTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/results");
/// The directory of the document's pictures.
const PICTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/benchmarks");
/// The document whose generated blocks can be replaced.
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/BENCHMARKS.md");

#[derive(Clone, clap::Args)]
pub struct Output {
    /// Directory for the queues' data, on the disk to be measured [default: beside the results]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Directory for tables and raw figures [default: benches/peers/results]
    #[arg(long)]
    results: Option<PathBuf>,
    /// Replace the generated blocks and pictures of docs/BENCHMARKS.md
    #[arg(long)]
    write_docs: bool,
}

impl Output {
    /// A new directory for data, removed when it is dropped.
    pub fn data(&self) -> anyhow::Result<TempDir> {
        let parent = match &self.dir {
            Some(dir) => dir.clone(),
            None => self.results().to_path_buf(),
        };
        fs::create_dir_all(&parent).with_context(|| format!("making {}", parent.display()))?;
        tempfile::Builder::new()
            .prefix("data-")
            .tempdir_in(&parent)
            .with_context(|| format!("making a directory in {}", parent.display()))
    }

    /// Writes a file into the directory of results.
    pub fn write(&self, name: &str, content: &str) -> anyhow::Result<PathBuf> {
        fs::create_dir_all(self.results())?;
        let path = self.results().join(name);
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// The content of a file in the directory of results; empty if there is none.
    pub fn read(&self, name: &str) -> anyhow::Result<String> {
        let path = self.results().join(name);
        match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
            read => read.with_context(|| format!("reading {}", path.display())),
        }
    }

    /// Writes a picture into the directory of results and, if asked for, beside the document.
    pub fn write_picture(&self, name: &str, content: &str) -> anyhow::Result<()> {
        self.write(name, content)?;
        if self.write_docs {
            fs::create_dir_all(PICTURES).context("making docs/benchmarks")?;
            let path = Path::new(PICTURES).join(name);
            fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }

    /// Replaces these blocks (name, body) of the document, if asked for. Skips a block that the
    /// document does not have, with a message.
    pub fn write_blocks(&self, blocks: &[(String, String)]) -> anyhow::Result<()> {
        if !self.write_docs {
            return Ok(());
        }
        let mut text = fs::read_to_string(DOCUMENT).context("reading docs/BENCHMARKS.md")?;
        for (name, body) in blocks {
            match docs::replace_block(&text, name, body) {
                Some(replaced) => text = replaced,
                None => eprintln!("docs/BENCHMARKS.md has no block `{name}`: left out"),
            }
        }
        fs::write(DOCUMENT, text).context("writing docs/BENCHMARKS.md")
    }

    /// Puts a section with a generated block before this heading of the document, if asked for and if
    /// the document does not have the block.
    pub fn write_section(&self, block: &str, heading: &str, section: &str) -> anyhow::Result<()> {
        if !self.write_docs {
            return Ok(());
        }
        let text = fs::read_to_string(DOCUMENT).context("reading docs/BENCHMARKS.md")?;
        if text.contains(&format!("<!-- generated: {block} -->")) {
            return Ok(());
        }
        match docs::insert_before(&text, heading, section) {
            Some(text) => fs::write(DOCUMENT, text).context("writing docs/BENCHMARKS.md"),
            None => anyhow::bail!("docs/BENCHMARKS.md has no heading `{heading}`"),
        }
    }

    fn results(&self) -> &Path {
        self.results.as_deref().unwrap_or(Path::new(RESULTS))
    }
}
