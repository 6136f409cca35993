//! Evenkeel: a declarative container reconciler for one host, on containerd.

pub mod backoff;
pub mod cli;
pub mod config;
pub mod content;
pub mod controller;
pub mod desired;
pub mod engine;
pub mod host;
pub mod image;
pub mod log;
pub mod manifest;
pub mod observed;
pub mod oci;
pub mod plan;
pub mod rundir;
pub mod runtime;
pub mod schema;
pub mod source;
pub mod status;
pub mod workload;
