//! The `relevo` binary: everything it does is in the library, so that tests reach it.

use std::process::ExitCode;

/// Packets and requests come and go on many threads: the C library's would give their pages back each time (docs/benchmarks.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    relevo::cli::main()
}
