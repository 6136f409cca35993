//! Everything that needs no container runtime.

mod r#loop;
mod manifests;
mod oci;
mod source;
mod structure;
