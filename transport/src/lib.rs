//! How bytes move between Relevo's devices and nodes: frames of KV blocks over carriers that share one contract.
//!
//! A *link* carries frames one way: a [`FrameSender`] on the prefill side, a [`FrameSink`] on the decode side. Between the two sits a carrier:
//! [`in_process`] hands the buffers over, [`QuicEndpoint`] puts a connection there, [`shm_link`] lets the receiver read the
//! sender's memory. Whatever the carrier, a frame is the same (a rkyv header,
//! then the blocks as they lie in the pool, each with its checksum), it is validated in place by the receiver, and it is answered.
//!
//! **Contract**, which `tests/carrier_contract.rs` holds each carrier to:
//! * frames arrive in the order they were sent, each once, or are answered [`PushError::Closed`];
//! * every frame is answered within its deadline, once;
//! * a link holds a bounded number of frames; a sender waits for room, within its deadline;
//! * a frame with a block that does not match its checksum does not arrive: [`PushError::Corrupt`];
//! * the sender's bytes are let go of when the frame is answered; over a network, as soon as the peer's acknowledgement is in.
//!
//! Between nodes nothing moves without [`identity`]: both ends of a connection show a certificate of the cluster's own authority.

pub mod identity;

mod answer;
mod crypto;
mod frame;
mod link;
mod quic;
mod receive;
#[cfg_attr(not(target_os = "linux"), path = "shm/elsewhere.rs")]
mod shm;

pub use frame::Frame;
pub use link::{Delivery, FrameReceiver, FrameSender, PushError, in_process};
pub use quic::{
    ALPN, BareError, BareLink, BareRoom, CONGESTION, ControlConnection, ControlError, DialError, EphemeralAuthority,
    EphemeralError, LinkFacts, MessageReader, MessageWriter, NodeEndpoint, PathFacts, Patience, QuicEndpoint,
    QuicError, SocketBuffers,
};
pub use receive::{FrameSink, FrameWriter, Refusal, receive_frame, serve_frames};
pub use shm::{NoShmAddress, ShmAddress, ShmDialError, ShmListener, Ticket, shm_link};
