//! The CPU: kind, cores, caches, memory, and the instruction set that its kernels will use.

use std::collections::BTreeSet;
use std::fs::read_to_string;
use std::path::Path;

use crate::cpu::Isa;

/// Features that decide how fast this project's kernels are, as Linux spells them.
const FEATURES: [&str; 13] = [
    "avx",
    "f16c",
    "fma",
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
];

/// A CPU. Linux tells all of it; elsewhere what the standard library knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct CpuFacts {
    /// As its maker calls it.
    pub name: Option<String>,
    /// Of the instruction set, such as `x86_64`.
    pub architecture: &'static str,
    /// The kernels that run on it.
    pub isa: String,
    /// Which of the features that matter it has.
    pub features: Vec<String>,
    /// Threads that this process may run at the same time.
    pub available_threads: usize,
    /// Cores of all sockets; hardware threads of a core count once.
    pub physical_cores: Option<usize>,
    /// Memory controllers with cores of their own.
    pub numa_nodes: Option<usize>,
    /// Of the first core, from the nearest.
    pub caches: Vec<CacheFacts>,
    /// Memory of the machine.
    pub memory_bytes: Option<u64>,
    /// Of it, what programs can have without swapping.
    pub available_memory_bytes: Option<u64>,
}

/// A cache.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct CacheFacts {
    /// 1 is the nearest.
    pub level: u32,
    /// `Data`, `Instruction` or `Unified`.
    pub kind: String,
    /// Its size.
    pub byte_len: u64,
}

impl CpuFacts {
    /// Looks at this machine's.
    pub fn probe() -> Self {
        let text = |path: &str| read_to_string(path).unwrap_or_default();
        let available_threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            architecture: std::env::consts::ARCH,
            isa: Isa::detect().name().to_owned(),
            available_threads,
            numa_nodes: count_numa_nodes(Path::new("/sys/devices/system/node")),
            caches: caches(Path::new("/sys/devices/system/cpu/cpu0/cache")),
            ..Self::parse(&text("/proc/cpuinfo"), &text("/proc/meminfo"))
        }
    }

    /// What Linux' `/proc/cpuinfo` and `/proc/meminfo` say.
    pub fn parse(cpuinfo: &str, meminfo: &str) -> Self {
        let fields =
            || cpuinfo.lines().filter_map(|line| line.split_once(':')).map(|(key, value)| (key.trim(), value.trim()));
        let first = |wanted: &str| fields().find(|(key, _)| *key == wanted).map(|(_, value)| value);
        let flags: BTreeSet<&str> =
            first("flags").or_else(|| first("Features")).unwrap_or_default().split(' ').collect();
        let known = FEATURES.into_iter().filter(|feature| flags.contains(feature));
        // A core is a pair (socket, core of it); its hardware threads repeat it.
        let mut cores = BTreeSet::new();
        let mut socket = "";
        for (key, value) in fields() {
            match key {
                "physical id" => socket = value,
                "core id" => _ = cores.insert((socket, value)),
                _ => {}
            }
        }
        Self {
            name: first("model name").map(str::to_owned),
            features: known.map(str::to_owned).collect(),
            physical_cores: (!cores.is_empty()).then_some(cores.len()),
            memory_bytes: meminfo_bytes(meminfo, "MemTotal"),
            available_memory_bytes: meminfo_bytes(meminfo, "MemAvailable"),
            ..Self::default()
        }
    }
}

fn meminfo_bytes(meminfo: &str, wanted: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(wanted)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn count_numa_nodes(folder: &Path) -> Option<usize> {
    let is_node = |name: &str| name.strip_prefix("node").is_some_and(|index| index.parse::<u32>().is_ok());
    let count =
        folder.read_dir().ok()?.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_node)).count();
    (count > 0).then_some(count)
}

fn caches(folder: &Path) -> Vec<CacheFacts> {
    let read = |index: usize, file: &str| read_to_string(folder.join(format!("index{index}")).join(file)).ok();
    let cache = |index| {
        let size = read(index, "size")?;
        let byte_len = size.trim().strip_suffix('K')?.parse::<u64>().ok()?.checked_mul(1024)?;
        Some(CacheFacts {
            level: read(index, "level")?.trim().parse().ok()?,
            kind: read(index, "type")?.trim().to_owned(),
            byte_len,
        })
    };
    (0..).map_while(cache).collect()
}
