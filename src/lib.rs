//! Evenkeel: a declarative container reconciler for one host, on containerd.

pub mod backoff;
pub mod desired;
pub mod engine;
pub mod host;
pub mod log;
pub mod manifest;
pub mod observed;
pub mod oci;
pub mod rundir;
pub mod runtime;
pub mod workload;
