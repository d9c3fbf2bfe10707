//! The CPU as a device: the embedded default, and the one whose bits are the same everywhere.

pub mod isa;
#[allow(dead_code, reason = "landed ahead of its users")]
pub mod math;
pub mod pool;
#[allow(dead_code, unused_imports, reason = "landed ahead of its users")]
pub(crate) mod simd;

pub use isa::Isa;
pub use pool::ThreadPool;
