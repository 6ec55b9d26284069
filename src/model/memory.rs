//! How the allocator treats the memory of activations.

/// Keeps freed memory for the next tensor instead of giving it back to the system.
///
/// candle allocates the result of every operation anew. Beyond a size the C library asks the system for each of them,
/// and the system clears the pages again and again: a fifth of the time of a pass.
pub(super) fn keep_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            // SAFETY: `mallopt` sets parameters of the allocator, which guards them by its own lock.
            unsafe {
                libc::mallopt(libc::M_MMAP_MAX, 0);
                libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
                libc::mallopt(libc::M_TOP_PAD, 64 << 20);
            }
        });
    }
}
