//! A model of the host in memory.
