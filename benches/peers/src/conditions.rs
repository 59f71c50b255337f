//! The conditions of a measurement: machine, system and versions.

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::peers::servers;

/// The lock file, with the versions of all libraries, compiled into the program.
const LOCK: &str = include_str!("../Cargo.lock");
/// The libraries whose versions are reported.
const PEERS: [&str; 13] = [
    "crossbeam-channel",
    "crossbeam-queue",
    "fjall",
    "khata-rs",
    "persistent-queue",
    "queue-file",
    "raft-engine",
    "redb",
    "rusqlite",
    "sled",
    "walrus-rust",
    "yaque",
    "crc32fast",
];

/// Names and values, in the order of the report.
#[derive(Serialize)]
pub struct Conditions(Vec<(&'static str, String)>);

impl Conditions {
    /// The conditions on this machine, and on the file system of this directory.
    pub fn of(data: &Path) -> Self {
        let missing = || "not installed".to_owned();
        let mut peers: Vec<String> = PEERS
            .iter()
            .filter_map(|name| Some(format!("{name} {}", version_of(LOCK, name)?)))
            .collect();
        peers.push(format!("SQLite {}", rusqlite::version()));
        let redis = servers::redis_version().unwrap_or_else(missing);
        peers.push(format!("Redis {redis}"));
        let beanstalkd = servers::beanstalkd_version().unwrap_or_else(missing);
        peers.push(format!("beanstalkd {beanstalkd}"));
        Self(vec![
            ("CPU", cpu()),
            ("memory", memory()),
            ("kernel", format!("Linux {}", kernel())),
            ("file system", file_system(data)),
            ("load before", load()),
            ("compiler", compiler().to_owned()),
            (
                "logmill",
                version_of(LOCK, "logmill").unwrap_or_else(unknown),
            ),
            ("peers", peers.join(", ")),
        ])
    }

    pub fn markdown(&self) -> String {
        let mut text = String::from("| | |\n|---|---|\n");
        for (name, value) in &self.0 {
            text.push_str(&format!("| {name} | {value} |\n"));
        }
        text
    }
}

fn unknown() -> String {
    "unknown".to_owned()
}

/// The compiler of this program.
pub fn compiler() -> &'static str {
    env!("PEERS_RUSTC")
}

pub fn cpu() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = field(&info, "model name").unwrap_or("unknown model");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let cache = fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index3/size")
        .map(|size| format!(", last-level cache {}", size.trim()))
        .unwrap_or_default();
    // Hypervisors set this flag.
    let machine = if info.contains(" hypervisor") {
        ", virtual machine"
    } else {
        ""
    };
    format!("{model}, {cores} cores{cache}{machine}")
}

fn memory() -> String {
    fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|info| {
            let kib: u64 = field(&info, "MemTotal")?
                .trim_end_matches(" kB")
                .parse()
                .ok()?;
            Some(format!("{:.1} GiB", kib as f64 / (1024.0 * 1024.0)))
        })
        .unwrap_or_else(unknown)
}

/// The number of threads that ran or were ready to run, averaged over the last minute.
pub fn load() -> String {
    fs::read_to_string("/proc/loadavg")
        .ok()
        .and_then(|load| Some(load.split_whitespace().next()?.to_owned()))
        .unwrap_or_else(unknown)
}

/// The value of the first line `name : value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        (found.trim() == name).then_some(value.trim())
    })
}

pub fn kernel() -> String {
    rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned()
}

pub fn file_system(dir: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    dir.canonicalize()
        .ok()
        .and_then(|dir| type_of_mount(&mounts, &dir))
        .unwrap_or_else(unknown)
}

/// The type of the file system on which this path is.
fn type_of_mount(mountinfo: &str, path: &Path) -> Option<String> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (mount, device) = line.split_once(" - ")?;
            let point = Path::new(mount.split(' ').nth(4)?);
            path.starts_with(point)
                .then_some((point.components().count(), device.split(' ').next()?))
        })
        // Of two mounts at the same place, the later one hides the other.
        .max_by_key(|(depth, _)| *depth)
        .map(|(_, kind)| kind.to_owned())
}

/// The version of a package in a lock file.
fn version_of(lock: &str, package: &str) -> Option<String> {
    let entry = format!("name = \"{package}\"\nversion = \"");
    let (_, rest) = lock.split_once(&entry)?;
    Some(rest.split_once('"')?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_peers_have_a_version() {
        for peer in PEERS {
            assert!(version_of(LOCK, peer).is_some(), "{peer}");
        }
        assert_eq!(version_of(LOCK, "no-such-crate"), None);
    }

    #[test]
    fn the_deepest_and_latest_mount_counts() {
        let mounts = "1 0 8:1 / / rw - ext4 /dev/a rw\n\
                      2 1 8:2 / /data rw,noatime shared:1 - xfs /dev/b rw\n\
                      3 1 8:3 / /data rw - btrfs /dev/c rw\n\
                      4 1 8:4 / /database rw - tmpfs none rw\n";
        let kind = |path: &str| type_of_mount(mounts, Path::new(path)).unwrap();
        assert_eq!(kind("/home"), "ext4");
        assert_eq!(kind("/data/x"), "btrfs");
        assert_eq!(kind("/database"), "tmpfs");
    }

    #[test]
    fn a_field_is_the_first_of_its_name() {
        assert_eq!(field("a\t: 1\nab : 2\na : 3\n", "a"), Some("1"));
        assert_eq!(field("ab : 2\n", "a"), None);
    }
}
