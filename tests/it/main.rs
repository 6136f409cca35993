//! Everything that needs no container runtime.

mod cli;
mod defects;
mod docs;
mod manifests;
mod oci;
mod reconcile;
mod source;
mod status;
mod structure;
