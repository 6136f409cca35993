//! How the program is linked.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Without this, every process relocates all tables of the whole program for itself, which is half a megabyte for
    // each of the small processes that write containers' logs. They run for as long as their container does.
    println!("cargo:rustc-link-arg-bins=-no-pie");
}
