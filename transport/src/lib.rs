//! How bytes move between Relevo's devices and nodes: frames of KV blocks over carriers that share one contract.
//!
//! A *link* carries frames one way: a [`FrameSender`] on the prefill side, [`serve_frames`] on the decode side. Between the two sits a carrier:
//! [`in_process`] hands the buffers over; others will put a connection there. Whatever the carrier, a frame is the same (a rkyv header,
//! then the blocks as they lie in the pool, each with its checksum), it is validated in place by the receiver, and it is answered.
//!
//! **Contract**, which `tests/carrier_contract.rs` holds each carrier to:
//! * frames arrive in the order they were sent, each once, or are answered [`PushError::Closed`];
//! * every frame is answered within its deadline, once;
//! * a link holds a bounded number of frames; a sender waits for room, within its deadline;
//! * blocks that do not match their checksum never reach the sink: [`PushError::Corrupt`];
//! * the sender's bytes are let go of once the frame is answered.
//!
//! Between nodes nothing moves without [`identity`]: both ends of a connection show a certificate of the cluster's own authority.

pub mod identity;

mod frame;
mod link;
mod receive;

pub use frame::Frame;
pub use link::{Delivery, FrameReceiver, FrameSender, PushError, in_process};
pub use receive::{FrameSink, Refusal, check_blocks, receive_frame, serve_frames};
