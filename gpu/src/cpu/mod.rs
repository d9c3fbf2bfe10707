//! The CPU as a device: the embedded default, and the one whose bits are the same everywhere.

pub mod aligned;
mod attention;
mod cpu_device;
pub mod isa;
mod kv_pool;
pub mod math;
pub mod matmul;
mod pages;
mod peaks;
pub mod pool;
mod rotation;
pub(crate) mod simd;
mod uploaded_step;

pub use cpu_device::{CpuBuffer, CpuDevice, CpuOptions};
pub use isa::Isa;
pub use kv_pool::KvPool;
pub use matmul::PackedMatrix;
pub use peaks::measure_roofline;
pub use pool::ThreadPool;
pub use uploaded_step::UploadedStep;
