//! Counting allocations of one thread.

#[expect(unsafe_code, reason = "`GlobalAlloc` is an unsafe trait; the module does nothing else")]
mod global;

use std::cell::Cell;
use std::hint::black_box;

pub use global::CountingAllocator;

use super::suite::{Check, Failure, ensure};

thread_local! {
    // `const` and without a destructor: the allocator may use it at any time of the thread's life.
    static COUNTERS: Counters = const { Counters::new() };
}

struct Counters {
    count: Cell<u64>,
    largest: Cell<usize>,
    live: Cell<isize>,
    peak: Cell<isize>,
}

impl Counters {
    const fn new() -> Self {
        Self { count: Cell::new(0), largest: Cell::new(0), live: Cell::new(0), peak: Cell::new(0) }
    }

    fn allocated(&self, size: usize) {
        self.count.set(self.count.get() + 1);
        self.largest.set(self.largest.get().max(size));
        self.live.set(self.live.get().saturating_add_unsigned(size));
        self.peak.set(self.peak.get().max(self.live.get()));
    }

    fn freed(&self, size: usize) {
        self.live.set(self.live.get().saturating_sub_unsigned(size));
    }

    fn reset(&self) {
        self.count.set(0);
        self.largest.set(0);
        self.live.set(0);
        self.peak.set(0);
    }
}

/// What a closure allocated on its thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Allocations {
    /// How often.
    pub count: u64,
    /// Bytes of the largest single allocation.
    pub largest: usize,
    /// Most bytes held at once, over what was held before.
    pub peak: usize,
}

/// Runs `f` and counts its allocations on this thread; does not nest. Counts nothing unless the program has
/// installed [`CountingAllocator`].
pub fn measure<T>(f: impl FnOnce() -> T) -> (T, Allocations) {
    COUNTERS.with(Counters::reset);
    let result = f();
    let seen = COUNTERS.with(|c| Allocations {
        count: c.count.get(),
        largest: c.largest.get(),
        peak: c.peak.get().unsigned_abs(),
    });
    (result, seen)
}

/// Whether [`CountingAllocator`] is the program's allocator.
pub fn is_counting() -> bool {
    measure(|| black_box(Box::new(black_box(1u8)))).1.count > 0
}

/// Fails if the allocator is not there to count.
pub(crate) fn require_counting() -> Check {
    ensure(is_counting(), || {
        "allocations cannot be counted: put `#[global_allocator] static ALLOCATOR: \
         cacheg_core::testkit::CountingAllocator = cacheg_core::testkit::CountingAllocator;` into the test binary"
            .to_owned()
    })
}

/// Runs `f` once to warm up, then once more without any allocation.
///
/// # Errors
/// If it does allocate, if `f` fails, or if nobody counts.
pub fn no_allocation<T, E: Into<Failure>>(what: &str, mut f: impl FnMut() -> Result<T, E>) -> Check {
    require_counting()?;
    f().map_err(Into::into)?;
    let (result, seen) = measure(&mut f);
    result.map_err(Into::into)?;
    ensure(seen.count == 0, || {
        format!("{what} allocates: {} times, at most {} bytes at once", seen.count, seen.largest)
    })
}
