//! Everything that needs a real containerd: the rig starts its own, in a temporary directory.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod adoption;
mod attach;
mod away;
mod beside;
mod cni;
mod commands;
mod contract;
mod crash;
mod cycles;
mod documents;
mod engine;
mod events;
mod examples;
mod exec;
mod faults;
mod hands;
mod host;
mod idle;
mod images;
mod ipc;
mod lifecycle;
mod log;
mod looking;
mod means;
mod others;
mod output;
mod program;
mod pulls;
mod reboot;
mod refusals;
mod registry;
mod rig;
mod rigs;
mod safety;
mod sealed;
mod shutdown;
mod stuck;
