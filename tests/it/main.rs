//! Everything that needs no container runtime.

mod manifests;
mod oci;
mod source;
mod structure;
