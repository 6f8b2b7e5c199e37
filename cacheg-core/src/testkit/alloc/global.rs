//! The allocator: the system's, with a tally.

use std::alloc::{GlobalAlloc, Layout, System};

use super::COUNTERS;

/// The system's allocator, counting per thread. Install it in a test binary:
///
/// ```
/// #[global_allocator]
/// static ALLOCATOR: cacheg_core::testkit::CountingAllocator = cacheg_core::testkit::CountingAllocator;
/// assert!(cacheg_core::testkit::is_counting());
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct CountingAllocator;

// SAFETY: every call goes to `System` with the caller's own arguments and its answer is returned unchanged.
// The tally is a few `Cell`s in a `const` thread-local without destructor: using it neither allocates nor
// unwinds, and `try_with` covers threads that are going away.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = COUNTERS.try_with(|c| c.allocated(layout.size()));
        // SAFETY: the caller keeps `alloc`'s contract, which is `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let _ = COUNTERS.try_with(|c| c.allocated(layout.size()));
        // SAFETY: the caller keeps `alloc_zeroed`'s contract, which is `System`'s.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let _ = COUNTERS.try_with(|c| {
            c.allocated(new_size);
            c.freed(layout.size());
        });
        // SAFETY: `ptr` came from `System` with this layout, as all our pointers do.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        let _ = COUNTERS.try_with(|c| c.freed(layout.size()));
        // SAFETY: `ptr` came from `System` with this layout, as all our pointers do.
        unsafe { System.dealloc(ptr, layout) }
    }
}
