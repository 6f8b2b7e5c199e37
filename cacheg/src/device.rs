//! Where to decode: the CPU, a GPU, or whatever there is.

use std::str::FromStr;

use cacheg_core::{Backend, Cpu, Error, Result};

/// A choice of device, as in `--device`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Device {
    /// A GPU, if this build knows any, if there is one and as far as it can do the plan; else the CPU, which is logged.
    #[default]
    Auto,
    /// All cores.
    Cpu,
    /// A GPU and nothing else; the best, or the best whose name contains this.
    Gpu(Option<String>),
    /// Such a GPU and all cores together.
    Hybrid(Option<String>),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':').map_or((text, None), |(kind, name)| (kind, Some(name))) {
            ("auto", None) => Ok(Self::Auto),
            ("cpu", None) => Ok(Self::Cpu),
            ("gpu", None) => Ok(Self::Gpu(None)),
            ("gpu", Some(name)) if !name.is_empty() => Ok(Self::Gpu(Some(name.to_owned()))),
            ("hybrid", None) => Ok(Self::Hybrid(None)),
            ("hybrid", Some(name)) if !name.is_empty() => Ok(Self::Hybrid(Some(name.to_owned()))),
            _ => Err("`auto`, `cpu`, `gpu`, `hybrid`, `gpu:NAME` or `hybrid:NAME` expected; `cacheg devices` lists GPUs".to_owned()),
        }
    }
}

impl Device {
    /// Opens the device.
    ///
    /// # Errors
    /// If a GPU is asked for and there is none that works, or this build knows none.
    pub fn open(&self) -> Result<Box<dyn Backend>> {
        match self {
            Self::Auto => Ok(auto()),
            Self::Cpu => Ok(Box::new(Cpu)),
            Self::Gpu(name) => gpu(name.as_deref(), false),
            Self::Hybrid(name) => gpu(name.as_deref(), true),
        }
    }
}

#[cfg(not(feature = "gpu"))]
fn auto() -> Box<dyn Backend> {
    Box::new(Cpu)
}

#[cfg(not(feature = "gpu"))]
fn gpu(_: Option<&str>, _: bool) -> Result<Box<dyn Backend>> {
    Err(Error::unsupported("this build decodes on the CPU only; build it with `--features gpu`"))
}

#[cfg(feature = "gpu")]
fn gpu(name: Option<&str>, hybrid: bool) -> Result<Box<dyn Backend>> {
    let gpu = cacheg_gpu::Gpu::open(name).map_err(Error::from)?;
    Ok(if hybrid { Box::new(cacheg_gpu::Hybrid::new(gpu)) } else { Box::new(gpu) })
}

#[cfg(feature = "gpu")]
fn auto() -> Box<dyn Backend> {
    match cacheg_gpu::Gpu::open(None) {
        Ok(gpu) => Box::new(fallback::Fallback::new(gpu)),
        Err(error) => {
            tracing::debug!(%error, "decoding on the CPU");
            Box::new(Cpu)
        }
    }
}

#[cfg(feature = "gpu")]
mod fallback {
    use std::sync::Arc;

    use cacheg_core::{
        Backend, Chunk, Cpu, Decoder, Error, ErrorKind, KvOut, KvViewMut, Plan, Progress, Result,
    };
    use cacheg_gpu::Gpu;

    /// A GPU, and the CPU for what that cannot do or fails at.
    pub(super) struct Fallback {
        gpu: Gpu,
        name: String,
    }

    impl Fallback {
        pub(super) fn new(gpu: Gpu) -> Self {
            let name = format!("{}, cpu", gpu.name());
            Self { gpu, name }
        }
    }

    impl Backend for Fallback {
        fn name(&self) -> &str {
            &self.name
        }

        fn supports(&self, plan: &Plan) -> Result<()> {
            Cpu.supports(plan)
        }

        fn decoder(&self, plan: Arc<Plan>) -> Result<Box<dyn Decoder>> {
            let cpu = Cpu.decoder(plan.clone())?;
            match self.gpu.decoder(plan) {
                Ok(gpu) => Ok(Box::new(Both { gpu: Some(gpu), cpu })),
                Err(error) => {
                    tracing::warn!(%error, "decoding on the CPU");
                    Ok(cpu)
                }
            }
        }
    }

    struct Both {
        /// Until it fails.
        gpu: Option<Box<dyn Decoder>>,
        cpu: Box<dyn Decoder>,
    }

    /// Whether another device may do better.
    fn may_fall_back(error: &Error) -> bool {
        matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Unsupported | ErrorKind::Limit)
    }

    impl Decoder for Both {
        fn decode(&mut self, chunk: &Chunk<'_>, out: KvOut<'_, '_>, progress: Progress<'_>) -> Result<()> {
            let KvOut::Host(view, row) = out else {
                return Err(Error::unsupported("only host memory can be written by either device"));
            };
            if let Some(gpu) = &mut self.gpu {
                match gpu.decode(chunk, KvOut::Host(&mut *view, row), progress) {
                    Err(error) if may_fall_back(&error) => {
                        tracing::warn!(%error, "going on with the CPU");
                        self.gpu = None;
                    }
                    done => return done,
                }
            }
            self.cpu.decode(chunk, KvOut::Host(view, row), progress)
        }

        fn decode_all(
            &mut self,
            chunks: &[(&Chunk<'_>, usize)],
            out: &mut KvViewMut<'_>,
            progress: Progress<'_>,
        ) -> Result<()> {
            if let Some(gpu) = &mut self.gpu {
                match gpu.decode_all(chunks, out, progress) {
                    Err(error) if may_fall_back(&error) => {
                        tracing::warn!(%error, "going on with the CPU");
                        self.gpu = None;
                    }
                    done => return done,
                }
            }
            self.cpu.decode_all(chunks, out, progress)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!("auto".parse(), Ok(Device::Auto));
        assert_eq!("gpu".parse(), Ok(Device::Gpu(None)));
        assert_eq!("gpu:llvmpipe".parse(), Ok(Device::Gpu(Some("llvmpipe".into()))));
        for bad in ["", "gpu:", "cpu:0", "cuda", "hybrid:"] {
            assert!(bad.parse::<Device>().unwrap_err().contains("gpu:NAME"), "{bad}");
        }
    }
}
