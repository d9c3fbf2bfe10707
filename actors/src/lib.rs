//! Who does what: the pure decisions of the cluster, and the actors that carry them out.

pub mod clock;
pub mod cluster;
pub mod coordinator;
pub mod decode;
pub mod device;
pub mod faults;
pub mod gateway;
pub mod link_bench;
pub mod peers;
pub mod policy;
pub mod prefill;
pub mod router;
pub mod status;
pub mod traces;
