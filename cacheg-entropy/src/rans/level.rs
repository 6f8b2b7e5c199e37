//! Which instructions the processor has.

/// A set of kernels. All of them read and write the same bytes.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Level {
    /// Portable code, the reference.
    Scalar,
    /// x86-64 with AVX2, BMI and FMA: 16 × u16.
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL, VBMI and VBMI2: 32 × u16.
    Avx512,
}

impl Level {
    /// All of them, the slowest first.
    pub const ALL: [Self; 3] = [Self::Scalar, Self::Avx2, Self::Avx512];

    /// Whether this machine can run it.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        let available = match self {
            Self::Scalar => true,
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("popcnt")
                    && is_x86_feature_detected!("bmi1")
                    && is_x86_feature_detected!("bmi2")
            }
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vbmi")
                    && is_x86_feature_detected!("avx512vbmi2")
            }
        };
        #[cfg(not(target_arch = "x86_64"))]
        let available = self == Self::Scalar;
        available
    }

    /// The best of this machine, or what the environment variable `CACHEG_SIMD` (`scalar`, `avx2`, `avx512`)
    /// asks for if that is less.
    pub fn detect() -> Self {
        let most = match std::env::var("CACHEG_SIMD").as_deref() {
            Ok("scalar") => Self::Scalar,
            Ok("avx2") => Self::Avx2,
            _ => Self::Avx512,
        };
        let usable = |level: &Self| *level <= most && level.is_available();
        Self::ALL.into_iter().rev().find(usable).unwrap_or(Self::Scalar)
    }
}
