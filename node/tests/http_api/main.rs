//! The HTTP gateway over real sockets, with a cluster that the tests play.
//!
//! Every answer, event and error is validated against OpenAI's specification and against our own `/openapi.json`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, also in its helpers"
)]

mod answers;
mod byte_text;
mod description;
mod doors;
mod fields;
mod fuzz;
mod harness;
mod limits;
mod plans;
mod rules;
mod schema;
mod shutdown;
mod streams;
mod text;
