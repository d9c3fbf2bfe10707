//! Who a node is: the cluster's own certificate authority, nodes' certificates, and mutual TLS 1.3 with them.
//!
//! A node's name, roles and cluster stand in its certificate and nowhere else. An [`Authority`] issues and revokes certificates; a node
//! loads the folder that it was given as its [`LiveIdentity`], which makes TLS configurations that look at the present [`NodeIdentity`] in each
//! handshake, so that a folder with a new certificate or list is taken up while the node runs; a connection's verified chain tells the
//! [`PeerIdentity`] of the other side. Why a handshake was refused is a [`Refusal`]. When a certificate's [`Validity`] runs out, a [`Renewal`] asks
//! [`Authority::renew`] for the next one over a connection that the present one has opened.
//!
//! **Invariants**, which `tests/identity` hold it to: no connection without a certificate of this cluster's authority on both sides, in its
//! time and not revoked; no clock is read here; no key is readable by others; nothing is overwritten
//! but the revocation list, and by a renewal the node's key and certificate.

mod authority;
mod certificate_request;
mod live_identity;
mod moment;
mod name;
mod node_identity;
mod peer;
mod present;
mod record;
mod refusal;
mod reload;
mod renewal;
mod revocation;
mod secret;
mod storage;
mod subject;
mod validity;
mod verifier;

pub use authority::{AUTHORITY_LIFETIME, Authority, AuthorityError, Issued, NODE_LIFETIME, NodeRequest};
pub use certificate_request::RequestError;
pub use live_identity::{LiveIdentity, PROTOCOL};
pub use moment::Moment;
pub use name::{BadHost, BadName, ClusterId, Host, Name, Serial};
pub use node_identity::{
    AUTHORITY_FILE, CERTIFICATE_FILE, KEY_FILE, LoadError, NEXT_KEY_FILE, NodeIdentity, REVOCATIONS_FILE, SECRET_FILE,
};
pub use peer::PeerIdentity;
pub use record::{Record, State};
pub use refusal::{Complaint, Refusal};
pub use relevo_wire::{Renewed, Role, Roles, UnknownRole};
pub use reload::{ReloadError, Reloaded};
pub use renewal::{Renewal, RenewalError};
pub use storage::StorageError;
pub use subject::SubjectError;
pub use validity::Validity;
pub use verifier::Expected;
