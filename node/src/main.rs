//! The `relevo` binary: parses the command line and runs the command. Everything it does lives in the library.

fn main() {}
