//! What of this machine the devices of `relevo up` may take.

use std::fs;
use std::path::Path;

use relevo_gpu::devices::CpuFacts;

/// Cores and memory that this process may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    /// Cores, hardware threads counted once: a second thread of a core finds its vector units busy.
    pub(super) num_cores: usize,
    /// Memory that can be had without swapping, within the control group's limit.
    pub(super) available_bytes: u64,
}

impl Machine {
    /// As the system tells. What it does not tell counts as unlimited: it will say so itself when it runs out.
    pub(crate) fn facts() -> Self {
        let cpu = CpuFacts::probe();
        let allowed = cpu.available_threads.max(1);
        let group = group_bytes_left(Path::new("/sys/fs/cgroup")).unwrap_or(u64::MAX);
        Self {
            num_cores: cpu.physical_cores.map_or(allowed, |cores| cores.clamp(1, allowed)),
            available_bytes: cpu.available_memory_bytes.unwrap_or(u64::MAX).min(group),
        }
    }

    /// Compute threads of each of `num_devices` that say nothing of their own.
    pub(crate) fn threads_for(self, num_devices: usize) -> usize {
        (self.num_cores / num_devices.max(1)).max(1)
    }
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
    fn devices_share_the_cores() {
        let machine = Machine { num_cores: 5, available_bytes: 0 };
        assert_eq!([1, 2, 6].map(|devices| machine.threads_for(devices)), [5, 2, 1]);
    }
}
