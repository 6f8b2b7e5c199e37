//! Presets: pipelines with a name.

use cacheg_core::{Error, Result};

/// A named pipeline, at one or several levels.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Preset {
    /// Its name.
    pub name: &'static str,
    /// What it is and what it costs.
    pub summary: &'static str,
    /// Spec strings; level 0 is the best quality.
    pub levels: &'static [&'static str],
    /// The level that is used when none is asked for.
    pub default_level: usize,
    /// Tokens of a chunk.
    pub chunk_tokens: usize,
}

impl Preset {
    /// The spec string of a level, by default the preset's own.
    ///
    /// # Errors
    /// If there is no such level.
    pub fn spec(&self, level: Option<usize>) -> Result<&'static str> {
        let level = level.unwrap_or(self.default_level);
        self.levels.get(level).copied().ok_or_else(|| {
            Error::setting(match self.levels.len() {
                1 => format!("preset `{}` has only level 0", self.name),
                count => format!("preset `{}` has levels 0 to {}", self.name, count - 1),
            })
        })
    }
}

/// All presets.
///
/// Of `cachegen-paper` the step of the deltas is level × (0.5, 1, 1.5 by layer third) × their standard
/// deviation; `cachegen-release` has the three levels of the public code's artifact (all 32 bins; its
/// default; 16/16/12), chunks of 256 tokens and a 16-bit CDF per layer and channel in every chunk.
pub const PRESETS: &[Preset] = &[
    Preset {
        name: "cachegen-paper",
        summary: "CacheGen as published (SIGCOMM'24): anchors, deltas, steps by layer, range coder; best with a profile",
        levels: &[
            "anchor-delta(group=10)|bins(step=0.5,1,1.5;level=0.25)|range(tables=channel;carried=class)",
            "anchor-delta(group=10)|bins(step=0.5,1,1.5;level=0.5)|range(tables=channel;carried=class)",
            "anchor-delta(group=10)|bins(step=0.5,1,1.5;level=1)|range(tables=channel;carried=class)",
            "anchor-delta(group=10)|bins(step=0.5,1,1.5;level=2)|range(tables=channel;carried=class)",
        ],
        default_level: 1,
        chunk_tokens: 1_500,
    },
    Preset {
        name: "cachegen-release",
        summary: "what the public CacheGen code does: no prediction, 256-token chunks, tables in every chunk",
        levels: &[
            "identity|bins(k=32;v=32;scale=f16)|range(tables=channel;streams=channel;cdf=33)",
            "identity|bins(k=32,16,16;k-at=10,20;v=32,16;v-at=2;scale=f16)|range(tables=channel;streams=channel;cdf=33)",
            "identity|bins(k=16,16,12;k-at=10,20;v=16,12;v-at=2;scale=f16)|range(tables=channel;streams=channel;cdf=17)",
        ],
        default_level: 1,
        chunk_tokens: 256,
    },
    Preset {
        name: "fast",
        summary: "decoded near the speed of copying: first tokens exact, means removed, a step per layer, vector rANS; best with a profile",
        levels: &[
            "sinks(first=4)|mean|bins(step=0.4;level=0.5;reach=31)|rans(tables=channel;carried=class)",
            "sinks(first=4)|mean|bins(step=0.4;level=1;reach=15)|rans(tables=channel;carried=class)",
            "sinks(first=4)|mean|bins(step=0.4;level=2;reach=15)|rans(tables=channel;carried=class)",
            "sinks(first=4)|mean|bins(step=0.4;level=4;reach=7)|rans(tables=channel;carried=class)",
        ],
        default_level: 1,
        chunk_tokens: 1_500,
    },
    Preset {
        name: "q8",
        summary: "8 bits per value and an f16 scale per 32 channels, like llama.cpp's q8_0; no entropy coding",
        levels: &["uniform(bits=8;axis=token;group=32)|raw"],
        default_level: 0,
        chunk_tokens: 1_500,
    },
    Preset {
        name: "q4",
        summary: "4 bits per value and an f16 scale per 32 channels, like llama.cpp's q4_0; no entropy coding",
        levels: &["uniform(bits=4;axis=token;group=32)|raw"],
        default_level: 0,
        chunk_tokens: 1_500,
    },
    Preset {
        name: "kivi4",
        summary: "KIVI (arXiv 2402.02750) at 4 bits: keys per channel, values per token, asymmetric, groups of 32",
        levels: &["uniform(bits=4;axis=channel,token;group=32;zero=true)|raw"],
        default_level: 0,
        chunk_tokens: 1_500,
    },
    Preset {
        name: "kivi2",
        summary: "KIVI at 2 bits",
        levels: &["uniform(bits=2;axis=channel,token;group=32;zero=true)|raw"],
        default_level: 0,
        chunk_tokens: 1_500,
    },
    Preset {
        name: "hadamard4",
        summary: "a randomised Hadamard rotation of each head, then 4 bits with an f16 scale per 32 channels",
        levels: &["hadamard|uniform(bits=4;axis=token;group=32)|raw"],
        default_level: 0,
        chunk_tokens: 1_500,
    },
    Preset {
        name: "turboquant4",
        summary: "like TurboQuant (arXiv 2504.19874): that rotation, the best 4-bit codebook, an f16 scale per head",
        levels: &["hadamard|lloyd-max(bits=4)|raw"],
        default_level: 0,
        chunk_tokens: 1_500,
    },
    Preset {
        name: "turboquant3",
        summary: "the same with 3 bits",
        levels: &["hadamard|lloyd-max(bits=3)|raw"],
        default_level: 0,
        chunk_tokens: 1_500,
    },
    Preset {
        name: "lossless",
        summary: "every bit as it was, NaN included: byte planes under shared entropy tables",
        levels: &["bytes|rans(tables=class;classes=256)"],
        default_level: 0,
        chunk_tokens: 1_500,
    },
];

/// The preset of that name.
///
/// # Errors
/// If there is none; the message lists them.
pub fn preset(name: &str) -> Result<&'static Preset> {
    PRESETS.iter().find(|preset| preset.name == name).ok_or_else(|| {
        let names: Vec<&str> = PRESETS.iter().map(|preset| preset.name).collect();
        Error::setting(format!("unknown preset `{name}`; there are {}", names.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cacheg_core::Pipeline;

    #[test]
    fn every_level_of_every_preset_builds() {
        let registry = crate::builtins().unwrap();
        for preset in PRESETS {
            assert!(preset.default_level < preset.levels.len());
            for level in preset.levels {
                let pipeline = Pipeline::parse(&registry, level).unwrap();
                let again = Pipeline::parse(&registry, &pipeline.to_string()).unwrap();
                assert_eq!(again.specs(), pipeline.specs(), "{level}");
            }
        }
        assert!(preset("q8").unwrap().spec(Some(1)).is_err());
        assert!(preset("q9").unwrap_err().to_string().contains("cachegen-paper"));
    }
}
