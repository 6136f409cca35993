//! Memory that was freed, given back to the kernel.
//!
//! glibc keeps what was freed below something that is still in use, in each of its arenas, for as long as the process
//! lives. A program that has a lot to do now and then, and nothing for hours, holds two thirds of its heap for nothing.

/// Gives back every whole page of the heap that is free. Takes time in proportion to the heap, about a millisecond for
/// each few MB, during which no thread can allocate. Does nothing with another C library than glibc.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it has no precondition, takes the locks of the arenas, and moves nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}
