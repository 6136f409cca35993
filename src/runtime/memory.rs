//! A model of containerd in memory.
