//! What `cacheg-bench` measures with; a library so that its parts can be tested and used from elsewhere.

#[cfg(feature = "llm")]
pub mod calibration;
#[cfg(feature = "llm")]
pub mod llm;
