//! The carrier between hosts: frames over QUIC, both ends known by their certificates.
//!
//! A link is one connection with one bidirectional stream: frames go one way, their answers come back in the same order. What a frame is on the
//! wire stands in `prefix.rs`; the header is validated in place before the first byte of the blocks is read, and these go from quinn's packets
//! straight to where the sink wants them. On the way out the pool's own bytes are handed to quinn, which copies them into packets.
//!
//! **Invariant:** nothing that a peer says is believed before it is checked: no allocation is larger than a header may be, a frame that does not
//! come within its time or cannot be told from the next ends its connection, and no other connection notices.

mod bare;
mod control;
mod dial;
mod endpoint;
mod ephemeral;
mod link_facts;
mod node_endpoint;
mod prefix;
mod serve;
mod settings;
mod socket;

pub use bare::{BareError, BareLink, BareRoom};
pub use control::{ControlConnection, ControlError, MessageReader, MessageWriter, PathFacts};
pub use endpoint::{QuicEndpoint, QuicError};
pub use ephemeral::{EphemeralAuthority, EphemeralError};
pub use link_facts::LinkFacts;
pub use node_endpoint::{DialError, NodeEndpoint};
pub use settings::{ALPN, CONGESTION, Patience};
pub use socket::SocketBuffers;
