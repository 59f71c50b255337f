//! Checks that each module of the library depends only on modules below it.
//!
//! Reads the `use` lines and paths of the library, without its tests. Each must name a module that
//! is further down in [`LAYERS`] than the module that it is in.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The modules of the crate, top layer first. Modules of the same layer do not use each other.
const LAYERS: &[&[&str]] = &[
    &["queues"],
    &["keys", "queue_set"],
    &["queue"],
    &["view"],
    &[
        "async_consumer",
        "consumer",
        "dead_letters",
        "producer",
        "workers",
    ],
    &["several"],
    &["job"],
    &["transaction"],
    &["engine"],
    &["dispatch", "stats"],
    &["options"],
    &["observer", "retry", "tree"],
    &["lock", "state", "simulated_disk"],
    &["log"],
    &["lasting", "error"],
    &["storage", "event_count", "turns", "id"],
    &["planned_flush", "failure", "time", "sequence"],
    &["manual_clock"],
    &["events"],
    &["user_code"],
    &["runtime"],
    &["sync", "identity"],
];

fn layer_of(module: &str) -> usize {
    let is_it = |layer: &&[&str]| layer.contains(&module);
    let layer = LAYERS.iter().position(is_it);
    layer.unwrap_or_else(|| panic!("{module} is in no layer"))
}

/// The content of a file without comments, and without its tests, which come last.
fn code_of(file: &Path) -> String {
    let text = fs::read_to_string(file).expect("a source file");
    let lines = text.lines();
    let lines = lines.take_while(|line| !line.starts_with("mod tests {"));
    let lines = lines.map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

fn source_files(dir: &Path, files: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(dir).expect("a source directory") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().and_then(|name| name.to_str());
        let for_tests = ["tests", "testing", "loom_models", "faults", "fuzzing"];
        if name.is_some_and(|name| for_tests.contains(&name)) {
            continue;
        }
        match path.is_dir() {
            true => source_files(&path, files),
            false => files.push(path),
        }
    }
}

/// The names that the crate root exports, each with its module.
fn exports(root: &str) -> Vec<(String, String)> {
    let mut exports = Vec::new();
    let uses = root.split("use ").skip(1);
    for line in uses.filter_map(|rest| rest.split(';').next()) {
        let Some((module, _)) = line.split_once("::") else {
            continue;
        };
        let names = line.rsplit("::").next().unwrap_or_default();
        for name in names.trim_matches(['{', '}']).split(',') {
            let name = name.trim().trim_matches(['{', '}', '\n']);
            exports.push((name.to_owned(), module.to_owned()));
        }
    }
    exports
}

/// The names that follow `crate::`.
fn names_in(code: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let group = match rest.strip_prefix('{') {
            Some(group) => group.split('}').next().unwrap_or_default(),
            None => rest,
        };
        let is_group = rest.starts_with('{');
        for item in group.split(',').take(if is_group { usize::MAX } else { 1 }) {
            let end = |c: char| !c.is_alphanumeric() && c != '_';
            let name = item.trim().split(end).next().unwrap_or_default();
            names.extend((!name.is_empty()).then(|| name.to_owned()));
        }
    }
    names
}

#[test]
fn modules_use_only_modules_below_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let exports = exports(&code_of(&root.join("lib.rs")));
    let mut files = Vec::new();
    source_files(&root, &mut files);
    assert!(files.len() > 50);
    let mut seen = 0;
    for file in files {
        let inner = file.strip_prefix(&root).expect("below the root");
        let first = inner.components().next().expect("a name");
        let own = first.as_os_str().to_string_lossy().replace(".rs", "");
        if own == "lib" {
            continue;
        }
        for name in names_in(&code_of(&file)) {
            let exported = exports.iter().find(|(export, _)| *export == name);
            let other = exported.map_or(&name, |(_, module)| module);
            if *other != own {
                seen += 1;
                let is_below = layer_of(other) > layer_of(&own);
                assert!(
                    is_below,
                    "{} uses {other}, which is not in a lower layer",
                    file.display()
                );
            }
        }
    }
    assert!(seen > 100);
}
