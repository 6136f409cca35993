//! Everything that needs a real containerd: the rig starts its own, in a temporary directory.

mod contract;
mod engine;
mod host;
mod ipc;
mod log;
mod rig;
