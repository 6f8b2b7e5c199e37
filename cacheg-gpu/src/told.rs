//! Verdicts on chunks that take several windows.

use std::sync::{Arc, Mutex, PoisonError};

use crate::GpuError;

/// Somebody who is told once, when all windows of a chunk are done; or never, if one of them could not be started.
pub(crate) struct Told<F> {
    state: Mutex<(usize, Result<(), GpuError>, Option<F>)>,
}

impl<F: FnOnce(Result<(), GpuError>)> Told<F> {
    pub(crate) fn new(windows: usize, done: F) -> Arc<Self> {
        if windows == 0 {
            // Nothing is coded: an empty chunk, or all of its tokens are exact.
            done(Ok(()));
            return Arc::new(Self { state: Mutex::new((0, Ok(()), None)) });
        }
        Arc::new(Self { state: Mutex::new((windows, Ok(()), Some(done))) })
    }

    pub(crate) fn forget(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).2 = None;
    }

    pub(crate) fn tell(&self, verdict: Result<(), GpuError>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 -= 1;
        if state.1.is_ok() {
            state.1 = verdict;
        }
        if state.0 == 0 {
            let (done, verdict) = (state.2.take(), state.1.clone());
            drop(state);
            if let Some(done) = done {
                done(verdict);
            }
        }
    }
}
