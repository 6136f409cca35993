//! Evenkeel: a declarative container reconciler for one host, on containerd.
//!
//! Manifests in a directory say which containers should run. Evenkeel looks at them and at what there is, makes a plan
//! of steps with a cause each, takes the steps, and looks again. What to do is a function of values ([`plan::diff`]);
//! everything that touches the world is at the edge and decides nothing.
//!
//! ```text
//! source ──▶ DesiredState ──┐
//!                           ├──▶ plan::diff ──▶ Plan ──▶ controller ──▶ runtime, host, image
//! runtime ─┐                │                                │
//! host ────┼─▶ ObservedState┘                                └──▶ Status
//! rundir ──┘
//! ```
//!
//! # Reading order
//!
//! The core, values in and values out:
//!
//! * [`workload`]: what a manifest means, with every built-in default;
//! * [`manifest`] and [`schema`]: text to workloads, or to problems with their places;
//! * [`desired`]: all workloads together, and what may be hidden by what could not be read;
//! * [`observed`]: all that is ours on this host;
//! * [`refusal`]: why a start failed, from what the runtime said;
//! * [`backoff`]: when a failed start is tried again;
//! * [`plan`]: the policy, the diff, steps and causes;
//! * [`oci`]: a workload as an OCI runtime spec;
//! * [`content`]: image manifests and which of them this machine needs;
//! * [`status`]: how everything stands, and the exit codes.
//!
//! The edge, effects without policy:
//!
//! * [`controller`]: the loop, and the executor of plans; read it first of these;
//! * [`runtime`] and [`host`]: the two seams, each with a real implementation and one in memory;
//! * [`registry`]: the seam to where images come from;
//! * [`cni`]: the programs that put namespaces onto networks;
//! * [`source`]: directories as published states;
//! * [`image`]: archives into the runtime's store;
//! * [`rundir`]: the small files under the run directory;
//! * [`engine`]: which containerd, and a private one;
//! * [`log`]: what containers print;
//! * [`config`] and [`cli`]: settings and commands.
//!
//! ARCHITECTURE.md has the invariants and the vocabulary.

pub mod backoff;
pub mod cli;
pub mod cni;
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
pub mod refusal;
pub mod registry;
pub mod rundir;
pub mod runtime;
pub mod schema;
pub mod source;
pub mod status;
pub mod workload;
