//! Workload → OCI runtime spec. Pure: the same input gives the same spec, and nothing is looked up.

use oci_spec::runtime::Spec;

use crate::observed::{ImageConfig, PublishedPaths};
use crate::workload::{InstanceId, Ipc, Workload};

/// Everything that a spec is made from.
#[derive(Debug, Clone, Copy)]
pub struct Lowering<'a> {
    pub id: &'a InstanceId,
    pub workload: &'a Workload,
    pub ipc: &'a Ipc,
    pub image: &'a ImageConfig,
    /// `/evenkeel` or `/evenkeel-<8 hex of the run directory>`.
    pub cgroup_parent: &'a str,
    /// Where a published /dev/shm and namespace are: the instance's own with [`crate::workload::Shm::Published`],
    /// the root donor's with [`crate::workload::IpcMode::Container`]; not looked at otherwise.
    pub published: &'a PublishedPaths,
}

/// Why no spec can be made of a workload and this image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Unlowerable {
    /// A stable code: `no-command`, `user-not-numeric`.
    pub reason: &'static str,
    pub message: String,
}

/// Makes the spec.
pub fn lower(_: &Lowering<'_>) -> Result<Spec, Unlowerable> {
    Err(Unlowerable { reason: "no-command", message: "not written yet".to_owned() })
}

/// Whether [`lower`] would succeed, without making the spec.
pub fn check(lowering: &Lowering<'_>) -> Result<(), Unlowerable> {
    lower(lowering).map(drop)
}
