//! The modules of the `relevo` binary, as a library so that integration tests reach them.

pub mod http;
