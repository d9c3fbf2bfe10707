//! Who gets in: real TLS handshakes between nodes, and the authority that makes them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod authority;
mod cluster;
mod forged;
mod handshakes;
mod hostile;
mod meeting;
mod node_folders;
mod reloads;
mod renewals;
