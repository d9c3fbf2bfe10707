//! GPUs, asked of the drivers' own libraries, which are looked for at run time: a machine without them runs the same program.

#![allow(unsafe_code, reason = "foreign functions of the CUDA driver and the HIP runtime")]

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::fmt;

use libloading::Library;

/// Longest name of a device that is asked for.
const MAX_NAME: usize = 256;

/// Whose GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GpuRuntime {
    /// NVIDIA's.
    Cuda,
    /// AMD's.
    Hip,
}

/// What a runtime says.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct RuntimeFacts {
    /// Which.
    pub runtime: GpuRuntime,
    /// Version of CUDA that the driver offers, or of HIP: major.minor.
    pub version: Option<String>,
    /// In the runtime's order.
    pub devices: Vec<GpuFacts>,
    /// What would have to be there for the devices to be used. Empty if nothing is missing.
    pub missing: Vec<Missing>,
}

/// A GPU.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct GpuFacts {
    /// As its maker calls it.
    pub name: String,
    /// Its own memory.
    pub memory_bytes: u64,
    /// Compute capability (CUDA) or the version of the graphics core (HIP): major.minor.
    pub capability: String,
}

/// What is missing.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// None of these libraries is on the loader's path.
    Library {
        /// Names that were tried.
        names: Vec<String>,
        /// What brings it.
        comes_with: &'static str,
    },
    /// A library without a function that every supported version has.
    Function {
        /// Its name.
        name: &'static str,
    },
    /// The driver refuses.
    Answer {
        /// The function that was called.
        function: &'static str,
        /// What it returned.
        code: i32,
    },
    /// Everything is there but a device.
    Device,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Library { names, comes_with } => {
                write!(f, "{} not found; it comes with {comes_with}", names.join(" or "))
            }
            Self::Function { name } => write!(f, "the driver's library has no function {name}; it is too old"),
            Self::Answer { function, code } => write!(f, "{function} failed with code {code}"),
            Self::Device => f.write_str("the driver is there, it sees no device"),
        }
    }
}

/// The functions of both runtimes that do the same thing, by their names.
struct Names {
    /// The driver's library, newest name first.
    driver: &'static [&'static str],
    driver_comes_with: &'static str,
    /// Further libraries that kernels need: names, and what brings them.
    others: &'static [(&'static [&'static str], &'static str)],
    init: &'static str,
    version: &'static str,
    count: &'static str,
    device: &'static str,
    name: &'static str,
    memory: &'static str,
    capability: Capability,
    /// Digits of the version number that are below the minor one: 1000 × major + 10 × minor, or 10^7 × major + 10^5 × minor.
    version_units: (i32, i32),
}

/// How the capability is asked for.
enum Capability {
    /// `f(value, attribute, device)` for two attributes.
    Attributes(&'static str, [c_int; 2]),
    /// `f(major, minor, device)`.
    Pair(&'static str),
}

const CUDA: Names = Names {
    driver: &["libcuda.so.1", "libcuda.so", "nvcuda.dll"],
    driver_comes_with: "the NVIDIA driver",
    others: &[
        (&["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"], "the CUDA toolkit (kernels are compiled at start)"),
        (&["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"], "the CUDA toolkit (matrix products)"),
    ],
    init: "cuInit",
    version: "cuDriverGetVersion",
    count: "cuDeviceGetCount",
    device: "cuDeviceGet",
    name: "cuDeviceGetName",
    memory: "cuDeviceTotalMem_v2",
    // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
    capability: Capability::Attributes("cuDeviceGetAttribute", [75, 76]),
    version_units: (1000, 10),
};

const HIP: Names = Names {
    driver: &["libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so", "amdhip64.dll"],
    driver_comes_with: "ROCm",
    others: &[
        (&["libhiprtc.so.7", "libhiprtc.so.6", "libhiprtc.so"], "ROCm (kernels are compiled at start)"),
        (&["libhipblaslt.so.1", "libhipblaslt.so.0", "libhipblaslt.so"], "ROCm's hipBLASLt (matrix products)"),
    ],
    init: "hipInit",
    version: "hipRuntimeGetVersion",
    count: "hipGetDeviceCount",
    device: "hipDeviceGet",
    name: "hipDeviceGetName",
    memory: "hipDeviceTotalMem",
    capability: Capability::Pair("hipDeviceComputeCapability"),
    version_units: (10_000_000, 100_000),
};

impl RuntimeFacts {
    /// Asks the runtime.
    pub(super) fn probe(runtime: GpuRuntime) -> Self {
        let names = match runtime {
            GpuRuntime::Cuda => &CUDA,
            GpuRuntime::Hip => &HIP,
        };
        let mut facts = Self { runtime, version: None, devices: Vec::new(), missing: Vec::new() };
        let driver = open(names.driver, names.driver_comes_with).map(|library| Driver { library, names });
        let asked = driver.and_then(|driver| {
            driver.call_init()?;
            facts.version = driver.version().ok();
            for index in 0..driver.count()? {
                facts.devices.push(driver.device_facts(index)?);
            }
            Ok(())
        });
        match asked {
            Err(missing) => facts.missing.push(missing),
            Ok(()) if facts.devices.is_empty() => facts.missing.push(Missing::Device),
            // Only where there is a device does it matter what else its kernels need.
            Ok(()) => facts
                .missing
                .extend(names.others.iter().filter_map(|(names, comes_with)| open(names, comes_with).err())),
        }
        facts
    }
}

fn open(names: &[&str], comes_with: &'static str) -> Result<Library, Missing> {
    // SAFETY: loading runs the library's initialisers. These are the vendors' libraries under their own names, from the system's own path; they may be
    // loaded at any time and from any thread.
    let loaded = names.iter().find_map(|name| unsafe { Library::new(*name) }.ok());
    loaded.ok_or_else(|| Missing::Library { names: names.iter().map(|&name| name.to_owned()).collect(), comes_with })
}

/// A loaded driver library. Every function returns 0 for success.
struct Driver {
    library: Library,
    names: &'static Names,
}

/// Calls function `$name` of the type given, and turns a code other than 0 into [`Missing::Answer`].
macro_rules! call {
    ($driver:expr, $name:expr, fn($($ty:ty),*), ($($arg:expr),*)) => {{
        // SAFETY: this is the function's type in every version of the library (the vendors' headers).
        let function = unsafe { $driver.library.get::<unsafe extern "C" fn($($ty),*) -> c_int>($name.as_bytes()) }
            .map_err(|_| Missing::Function { name: $name })?;
        // SAFETY: pointers are to live variables of the types that the function fills.
        match unsafe { function($($arg),*) } {
            0 => Ok(()),
            code => Err(Missing::Answer { function: $name, code }),
        }
    }};
}

impl Driver {
    fn call_init(&self) -> Result<(), Missing> {
        call!(self, self.names.init, fn(c_uint), (0))
    }

    fn version(&self) -> Result<String, Missing> {
        let mut version = 0;
        call!(self, self.names.version, fn(*mut c_int), (&raw mut version))?;
        let (major, minor) = self.names.version_units;
        Ok(format!("{}.{}", version / major, version % major / minor))
    }

    fn count(&self) -> Result<c_int, Missing> {
        let mut count = 0;
        call!(self, self.names.count, fn(*mut c_int), (&raw mut count))?;
        Ok(count)
    }

    fn device_facts(&self, index: c_int) -> Result<GpuFacts, Missing> {
        let (mut device, mut memory_bytes, mut name) = (0, 0usize, [0u8; MAX_NAME]);
        call!(self, self.names.device, fn(*mut c_int, c_int), (&raw mut device, index))?;
        // One byte is kept back, so that the name ends with a 0 whatever the driver does.
        let name_len = (MAX_NAME - 1) as c_int;
        call!(self, self.names.name, fn(*mut c_char, c_int, c_int), (name.as_mut_ptr().cast(), name_len, device))?;
        call!(self, self.names.memory, fn(*mut usize, c_int), (&raw mut memory_bytes, device))?;
        let name = CStr::from_bytes_until_nul(&name).unwrap_or_default().to_string_lossy().into_owned();
        Ok(GpuFacts { name, memory_bytes: memory_bytes as u64, capability: self.capability(device)? })
    }

    fn capability(&self, device: c_int) -> Result<String, Missing> {
        let (mut major, mut minor) = (0, 0);
        match self.names.capability {
            Capability::Attributes(function, [major_attribute, minor_attribute]) => {
                call!(self, function, fn(*mut c_int, c_int, c_int), (&raw mut major, major_attribute, device))?;
                call!(self, function, fn(*mut c_int, c_int, c_int), (&raw mut minor, minor_attribute, device))?;
            }
            Capability::Pair(function) => {
                call!(self, function, fn(*mut c_int, *mut c_int, c_int), (&raw mut major, &raw mut minor, device))?;
            }
        }
        Ok(format!("{major}.{minor}"))
    }
}
