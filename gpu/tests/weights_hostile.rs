//! Files that lie: every one is refused with an error that names the tensor or key, none is read beyond its end.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test's helpers fail by panicking")]

mod gguf_writer;
mod hostile;
