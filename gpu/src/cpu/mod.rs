//! The CPU as a device: the embedded default, and the one whose bits are the same everywhere.

pub mod isa;
pub mod pool;

pub use isa::Isa;
pub use pool::ThreadPool;
