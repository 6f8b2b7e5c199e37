//! What can go wrong with a GPU.

use cacheg_core::Error;

/// Errors of devices, and of what they find in streams.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// No adapter fits what was asked for.
    #[error("no GPU {wanted}; {found}")]
    NoAdapter {
        /// What was asked for.
        wanted: String,
        /// What there is instead, and what to do.
        found: String,
    },
    /// The adapter lacks something.
    #[error("{adapter} lacks {feature}")]
    MissingFeature {
        /// Its name.
        adapter: String,
        /// What it lacks.
        feature: String,
    },
    /// More than the device can bind or dispatch.
    #[error("{what} of {size} bytes is beyond the device's limit of {limit}")]
    Limit {
        /// What is too large.
        what: &'static str,
        /// Its bytes.
        size: u64,
        /// What the device allows.
        limit: u64,
    },
    /// No memory left on the device.
    #[error("the GPU is out of memory: {0}")]
    OutOfMemory(String),
    /// The device is gone: unplugged, reset, or its driver crashed.
    #[error("the GPU was lost: {0}")]
    DeviceLost(String),
    /// The device does not answer.
    #[error("the GPU has not answered for {seconds} s")]
    Timeout {
        /// How long it was waited for.
        seconds: u64,
    },
    /// A tile of a chunk is corrupt.
    #[error("{tile}: {reason}")]
    Corrupt {
        /// Index among the tiles of the window that was decoded.
        index: usize,
        /// Planes and tokens of the tile.
        tile: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The driver refuses a program or a command: a mistake of this crate, of a stage's WGSL, or of the driver.
    #[error("the GPU's driver refuses: {0}")]
    Validation(String),
    /// The device does not compute what it should.
    #[error("{adapter} fails the self-test: {what}")]
    SelfTest {
        /// Its name.
        adapter: String,
        /// Which test.
        what: String,
    },
    /// The simulator cannot execute a program, or finds that it must not be executed.
    #[cfg(feature = "simulate")]
    #[error("simulated: {0}")]
    Simulator(String),
}

impl From<GpuError> for Error {
    fn from(error: GpuError) -> Self {
        let message = error.to_string();
        match error {
            GpuError::Corrupt { .. } => Self::corrupt(message),
            GpuError::Limit { .. } => Self::limit(message),
            GpuError::MissingFeature { .. } | GpuError::Validation(_) | GpuError::SelfTest { .. } => {
                Self::unsupported(message)
            }
            #[cfg(feature = "simulate")]
            GpuError::Simulator(_) => Self::unsupported(message),
            GpuError::NoAdapter { .. }
            | GpuError::OutOfMemory(_)
            | GpuError::DeviceLost(_)
            | GpuError::Timeout { .. } => Self::unavailable(message),
        }
    }
}

/// What the bits of a tile's fault word say; see prelude.wgsl.
pub(crate) fn fault(bits: u32) -> &'static str {
    const REASONS: [&str; 7] = [
        "a stream is cut short",
        "a stream does not end where it should",
        "a symbol outside its alphabet",
        "an escape symbol without its value",
        "an escaped value without its symbol",
        "an impossible scale",
        "a stage refuses it",
    ];
    REASONS.get(bits.trailing_zeros() as usize).unwrap_or(&"a stage refuses it")
}
