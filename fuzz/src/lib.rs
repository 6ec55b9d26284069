//! What the targets share: a folder in memory to put their input in, and a bound on what a reader may allocate.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bam_convert::checkpoint::Checkpoint;
use tempfile::TempDir;

/// Bytes that a reader may take whatever its input is: tables, buffers, the embedded formats.
const FREE: usize = 32 << 20;
/// Bytes that it may take for each byte of its input: a JSON value of two bytes is some hundred in memory, and there
/// may be a copy.
const PER_BYTE: usize = 400;

static HELD: AtomicUsize = AtomicUsize::new(0);
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

/// The system's allocator, which refuses what the size of the input does not justify: the process then aborts, and the
/// fuzzer keeps the input.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if HELD.fetch_add(layout.size(), Relaxed) + layout.size() > LIMIT.load(Relaxed) {
            return std::ptr::null_mut();
        }
        // SAFETY: as promised to us.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as promised to us.
        unsafe { System.dealloc(place, layout) }
    }
}

/// Does `work` with the memory that `length` bytes of input justify.
pub fn bounded<T>(length: usize, work: impl FnOnce() -> T) -> T {
    within(FREE + PER_BYTE * length, work)
}

/// Does `work` with this many bytes of memory.
pub fn within<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    LIMIT.store(HELD.load(Relaxed) + bytes, Relaxed);
    let done = work();
    LIMIT.store(usize::MAX, Relaxed);
    done
}

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    folder.expect("a temporary folder")
});

/// The folder, with this file in it.
pub fn folder_with(name: &str, bytes: &[u8]) -> &'static Path {
    std::fs::write(FOLDER.path().join(name), bytes).expect("the temporary folder is written to");
    FOLDER.path()
}

/// This file in the folder.
pub fn file(name: &str, bytes: &[u8]) -> PathBuf {
    folder_with(name, bytes).join(name)
}

/// Reads the first values of the first tensors; what cannot be decoded is refused.
pub fn read_first_values(checkpoint: &Checkpoint) {
    let mut values = [0.0; 256];
    for entry in checkpoint.tensors.values().take(8) {
        let count = entry.elements().min(256) as usize;
        let _ = checkpoint.read_values(entry, 0, &mut values[..count], &mut Vec::new());
    }
}
