//! Evenkeel: a declarative container reconciler for one host, on containerd.

pub mod backoff;
pub mod content;
pub mod desired;
pub mod host;
pub mod image;
pub mod manifest;
pub mod observed;
pub mod oci;
pub mod runtime;
pub mod workload;
