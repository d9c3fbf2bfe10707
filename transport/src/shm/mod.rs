//! The carrier between processes of one host: only where the blocks lie goes through a socket; their bytes are read from the sender's own memory.
//!
//! A link is one Unix stream socket with an abstract name. Who dials shows a [`Ticket`] that both ends have agreed on over a connection which knows
//! who they are, and hands over the file that its pool lies in; the receiver maps it, to read. A frame on the wire is what stands in `frame_head.rs`:
//! the header as everywhere, then the place of each block in that file. A block that lies elsewhere follows by its bytes. Answers are those of
//! every other carrier.
//!
//! The one copy goes from the sender's pool to where the sink wants the block, through a buffer that stays in the processor's cache: the checksum is
//! that of what was copied, whatever the sender does to its memory meanwhile. The sender's blocks stay pinned until their frame is answered.
//!
//! **Invariant:** nothing that a peer says is believed before it is checked: a file that could be cut short under a reader is refused, a place outside
//! of it ends the connection, and no other connection notices.

mod frame_head;
mod greeting;
mod guests;
mod listener;
mod peer_memory;
mod receiving;
mod sending;
mod ticket;

pub use listener::{NoShmAddress, ShmAddress, ShmListener};
pub use sending::{ShmDialError, shm_link};
pub use ticket::Ticket;
