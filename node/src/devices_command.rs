//! `relevo devices`: what this machine could compute on, and what it lacks.

use relevo_gpu::cpu::Isa;
use relevo_gpu::devices::{CpuFacts, Devices, RuntimeFacts};

use crate::cli::Failure;
use crate::terminal::{self, Style};

/// Arguments of `relevo devices`.
#[derive(Debug, clap::Args)]
pub struct DevicesArgs {
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// Prints them.
///
/// # Errors
/// stdout is closed.
pub fn run(args: &DevicesArgs) -> Result<(), Failure> {
    let devices = Devices::probe();
    if args.json {
        return Ok(terminal::print(serde_json::to_string(&devices).unwrap_or_default())?);
    }
    Ok(terminal::print(listing(&devices, Style::of_stdout()))?)
}

fn listing(devices: &Devices, style: Style) -> String {
    let mut lines = cpu_lines(&devices.cpu, style);
    lines.extend(runtime_lines("CUDA", &devices.cuda, style));
    lines.extend(runtime_lines("HIP", &devices.hip, style));
    lines.join("\n")
}

fn cpu_lines(cpu: &CpuFacts, style: Style) -> Vec<String> {
    let unknown = || "unknown".to_owned();
    let size = |bytes: Option<u64>| bytes.map_or_else(unknown, terminal::bytes);
    let count = |count: Option<usize>| count.map_or_else(unknown, |count| count.to_string());
    let name = cpu.name.as_deref().unwrap_or(cpu.architecture);
    let kernels: Vec<&str> = Isa::available().map(Isa::name).collect();
    vec![
        format!("{}  {name}", style.strong("CPU")),
        format!(
            "  cores     {} physical, {} threads for this process, {} NUMA nodes",
            count(cpu.physical_cores),
            cpu.available_threads,
            count(cpu.numa_nodes)
        ),
        format!("  memory    {} of {} available", size(cpu.available_memory_bytes), size(cpu.memory_bytes)),
        format!("  kernels   {}; {} is used", kernels.join(", "), cpu.isa),
        format!("  features  {}", cpu.features.join(" ")),
    ]
}

fn runtime_lines(name: &str, facts: &RuntimeFacts, style: Style) -> Vec<String> {
    let version = facts.version.as_deref().map(|version| format!("  version {version}")).unwrap_or_default();
    let mut lines = vec![format!("{}{version}", style.strong(name))];
    for gpu in &facts.devices {
        let memory = terminal::bytes(gpu.memory_bytes);
        lines.push(format!("  {} with {memory}, capability {} (seen, not computed on yet)", gpu.name, gpu.capability));
    }
    lines.extend(facts.missing.iter().map(|missing| format!("  missing: {missing}")));
    lines
}

#[cfg(test)]
mod tests {
    use relevo_gpu::devices::{GpuFacts, GpuRuntime};

    use super::*;

    #[test]
    fn gpus_are_listed_with_what_they_have() {
        let gpu = GpuFacts { name: "H100".into(), memory_bytes: 80 << 30, capability: "9.0".into() };
        let cuda = RuntimeFacts {
            runtime: GpuRuntime::Cuda,
            version: Some("12.9".into()),
            devices: vec![gpu],
            missing: Vec::new(),
        };
        let hip = RuntimeFacts { runtime: GpuRuntime::Hip, version: None, devices: Vec::new(), missing: Vec::new() };
        let text = listing(&Devices { cpu: CpuFacts::default(), cuda, hip }, Style::plain());
        assert!(text.contains("CUDA  version 12.9\n  H100 with 80.0 GiB, capability 9.0"), "{text}");
        assert!(text.contains("unknown physical") && text.contains("portable"), "{text}");
    }
}
