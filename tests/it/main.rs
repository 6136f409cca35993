//! Everything that needs no container runtime.

mod r#loop;
mod cli;
mod docs;
mod manifests;
mod oci;
mod source;
mod structure;
