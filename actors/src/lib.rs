//! Who does what: the pure decisions of the cluster, and the actors that carry them out.

pub mod clock;
pub mod device;
pub mod gateway;
pub mod policy;
pub mod status;
