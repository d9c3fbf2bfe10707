//! Facts about devices: right where Linux tells them, absent where it does not, and never a panic.

use relevo_gpu::cpu::Isa;
use relevo_gpu::devices::{CpuFacts, Devices, GpuRuntime, Missing};

const TWO_SOCKETS: &str = "\
processor\t: 0
model name\t: Some CPU @ 2.00GHz
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu avx avx2 fma f16c avx512f

processor\t: 1
model name\t: Some CPU @ 2.00GHz
physical id\t: 0
core id\t\t: 0
flags\t\t: fpu avx avx2 fma f16c avx512f

processor\t: 2
model name\t: Some CPU @ 2.00GHz
physical id\t: 1
core id\t\t: 0
flags\t\t: fpu avx avx2 fma f16c avx512f
";

#[test]
fn hardware_threads_of_a_core_count_once_and_sockets_apart() {
    let facts = CpuFacts::parse(TWO_SOCKETS, "MemTotal:       24000000 kB\nMemAvailable:   12000000 kB\n");
    assert_eq!(facts.physical_cores, Some(2));
    assert_eq!(facts.name.as_deref(), Some("Some CPU @ 2.00GHz"));
    assert_eq!(facts.features, ["avx", "f16c", "fma", "avx2", "avx512f"]);
    assert_eq!((facts.memory_bytes, facts.available_memory_bytes), (Some(24_576_000_000), Some(12_288_000_000)));
}

#[test]
fn unknown_texts_leave_facts_out() {
    for text in [
        "",
        ":",
        "core id",
        "MemTotal: lots kB",
        "MemTotal:99999999999999999999 kB",
        "MemTotal: 18446744073709551615 kB",
    ] {
        let facts = CpuFacts::parse(text, text);
        assert_eq!((facts.physical_cores, facts.memory_bytes, facts.name), (None, None, None), "{text:?}");
    }
}

#[test]
fn this_machine_is_described_with_what_runs_on_it_and_what_is_missing() {
    let devices = Devices::probe();
    assert_eq!(devices.cpu.isa, Isa::detect().name());
    assert!(devices.cpu.available_threads > 0);
    #[cfg(target_os = "linux")]
    assert!(devices.cpu.memory_bytes.unwrap() > devices.cpu.available_memory_bytes.unwrap());
    for (facts, runtime) in [(&devices.cuda, GpuRuntime::Cuda), (&devices.hip, GpuRuntime::Hip)] {
        assert_eq!(facts.runtime, runtime);
        // Either there are devices, or it is said why not.
        assert!(facts.devices.is_empty() != facts.missing.is_empty() || !facts.devices.is_empty(), "{facts:?}");
        for device in &facts.devices {
            assert!(!device.name.is_empty() && device.memory_bytes > 1 << 30, "{device:?}");
        }
        println!("{facts:?}");
    }
    println!("{:?}", devices.cpu);
}

#[test]
fn what_is_missing_is_said_with_what_brings_it() {
    let missing = Missing::Library { names: vec!["liba.so".into(), "libb.so".into()], comes_with: "the driver" };
    assert_eq!(missing.to_string(), "liba.so or libb.so not found; it comes with the driver");
    assert_eq!(Missing::Answer { function: "cuInit", code: 100 }.to_string(), "cuInit failed with code 100");
}
