//! What this machine has for devices: cores and memory.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Cores and memory that this process may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Machine {
    /// Cores, hyper-threads counted once: a second thread of a core finds its vector units busy.
    pub(super) num_cores: usize,
    /// Memory that can be had without swapping, within the control group's limit.
    pub(super) available_bytes: u64,
}

impl Machine {
    /// As Linux tells. Without `/proc` memory counts as unlimited: the system will say itself when it runs out.
    pub(super) fn facts() -> Self {
        let allowed = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        let num_cores =
            physical_cores(Path::new("/sys/devices/system/cpu")).map_or(allowed, |cores| cores.min(allowed));
        let memory =
            fs::read_to_string("/proc/meminfo").ok().and_then(|text| available_bytes(&text)).unwrap_or(u64::MAX);
        let group = group_bytes_left(Path::new("/sys/fs/cgroup")).unwrap_or(u64::MAX);
        Self { num_cores, available_bytes: memory.min(group) }
    }

    /// Compute threads of each of `num_devices` that say nothing of their own.
    pub(super) fn threads_for(&self, num_devices: usize) -> usize {
        (self.num_cores / num_devices.max(1)).max(1)
    }
}

/// Distinct (package, core) pairs; `None` where the system does not tell.
fn physical_cores(folder: &Path) -> Option<usize> {
    let number =
        |path: &Path, name: &str| fs::read_to_string(path.join("topology").join(name)).ok()?.trim().parse::<i64>().ok();
    let mut cores = BTreeSet::new();
    for entry in fs::read_dir(folder).ok()?.flatten() {
        let path = entry.path();
        if let (Some(package), Some(core)) = (number(&path, "physical_package_id"), number(&path, "core_id")) {
            cores.insert((package, core));
        }
    }
    (!cores.is_empty()).then_some(cores.len())
}

/// `MemAvailable` of `/proc/meminfo`.
fn available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// What the control group (version 2) of a container leaves; its file cache can be given back and does not count.
fn group_bytes_left(folder: &Path) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
    let limit: u64 = read("memory.max")?.trim().parse().ok()?;
    let used: u64 = read("memory.current")?.trim().parse().ok()?;
    let statistics = read("memory.stat").unwrap_or_default();
    let cache = statistics.lines().find_map(|line| line.strip_prefix("inactive_file ")?.trim().parse::<u64>().ok());
    Some(limit.saturating_sub(used.saturating_sub(cache.unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_in_kibibytes() {
        assert_eq!(available_bytes("MemTotal: 9 kB\nMemAvailable:   21 kB\n"), Some(21 * 1024));
        assert_eq!(available_bytes("MemTotal: 9 kB\n"), None);
        assert_eq!(available_bytes("MemAvailable: 99999999999999999999 kB"), None);
    }

    #[test]
    fn a_control_group_leaves_its_limit_less_what_is_used_beside_cache() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        assert_eq!(group_bytes_left(folder.path()), None);
        write("memory.max", "max\n");
        write("memory.current", "700\n");
        assert_eq!(group_bytes_left(folder.path()), None);
        write("memory.max", "1000\n");
        write("memory.stat", "anon 500\ninactive_file 200\n");
        assert_eq!(group_bytes_left(folder.path()), Some(500));
    }

    #[test]
    fn threads_of_one_core_count_once_and_devices_share_the_cores() {
        let folder = tempfile::tempdir().unwrap();
        for (cpu, core) in [("cpu0", "0"), ("cpu1", "1"), ("cpu2", "0"), ("cpu3", "1")] {
            let topology = folder.path().join(cpu).join("topology");
            fs::create_dir_all(&topology).unwrap();
            fs::write(topology.join("core_id"), core).unwrap();
            fs::write(topology.join("physical_package_id"), "0").unwrap();
        }
        assert_eq!(physical_cores(folder.path()), Some(2));
        let machine = Machine { num_cores: 5, available_bytes: 0 };
        assert_eq!([1, 2, 6].map(|devices| machine.threads_for(devices)), [5, 2, 1]);
    }
}
