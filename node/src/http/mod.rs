//! The HTTP gateway: an OpenAI-compatible API over the cluster.
//!
//! **Invariant:** every failure leaves as OpenAI's error object, and every route declares the role it needs.
//!
//! **Invariant:** text exists only here. Requests go to the cluster as token ids and come back as token ids.

mod access;
mod answer;
mod api_error;
mod body;
mod choice;
mod events;
mod generate;
mod generation;
mod guard;
mod listener;
mod mint;
mod models;
mod objects;
mod openapi;
mod operations;
mod options;
mod request;
mod routes;
mod service;
mod socket;
mod tokens;
mod traced;
mod words;

pub use access::{ApiKeys, KeyFileError};
pub use listener::{ServeError, bind, check_listen_address, serve};
pub use options::{HttpOptions, Limits};
pub use service::{Backend, ServedModel, Service, StatusReader, TraceReader};
