//! Where numbers are computed: weights, devices, kernels, the KV pool, the forward pass.

pub mod compute;
pub mod cost;
pub mod cpu;
pub mod description;
pub mod devices;
pub mod model;
pub mod sampling;
pub mod weights;
