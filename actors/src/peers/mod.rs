//! The other nodes of the cluster: who can be reached, how messages, heartbeats and tokens go there, and what may come from them.
//!
//! A *link* is what two nodes have while both live: one control connection with mutual TLS. On its one stream runs a session of `ractor_cluster`, by
//! which each side reaches the other's [`facade`] and nothing else; heartbeats are datagrams; tokens have a stream of their own.
//!
//! **Invariants**
//! * A link is whole or it is over: a message that is not acknowledged in time, a frame that breaks the rules, half a second of silence end it, and
//!   both sides then let go of everything that they did for each other. So nothing waits for an answer that was lost.
//! * Who a peer is stands in its certificate; each message carries a secret of its connection, so that no peer can use another's facade, and
//!   [`own_words`] lets none take another's name or join another's group.
//! * Every queue here has a bound; who is slower than it is cut off.

mod facade;
mod hello;
mod inbound;
mod mesh;
mod network;
mod own_words;
mod peer_link;
mod permission;
mod remote_ref;
mod session;
mod table;
mod token_streams;

pub(crate) use mesh::{MeshActor, MeshArguments, MeshMessage, NAME};
pub use network::{Network, Renewer};
pub(crate) use peer_link::GOODBYE;
pub(crate) use remote_ref::AskError;
pub(crate) use table::{Peer, Peers};
