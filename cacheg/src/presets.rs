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
    /// Whether it needs a profile, and that one statistics of the model.
    pub statistics: bool,
    /// Of each level the one at whose steps its predictors are fitted, if levels share them.
    pub fitted_at: &'static [usize],
}

impl Preset {
    /// What a profile for a level is calibrated for, in this order: predictors are made by the first that has them.
    ///
    /// # Errors
    /// If there is no such level.
    pub fn calibrated_for(&self, level: usize) -> Result<Vec<&'static str>> {
        let own = self.spec(Some(level))?;
        let mut specs = vec![own];
        if let Some(first) = self.fitted_at.get(level).filter(|first| **first != level) {
            specs.insert(0, self.spec(Some(*first))?);
        }
        Ok(specs)
    }

    /// The same for all levels.
    pub fn calibrated_for_all(&self) -> Vec<&'static str> {
        let mut specs = Vec::new();
        let levels = (0..self.levels.len()).filter_map(|level| self.calibrated_for(level).ok());
        for spec in levels.flatten() {
            if !specs.contains(&spec) {
                specs.push(spec);
            }
        }
        specs
    }

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
        statistics: false,
        fitted_at: &[],
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
        statistics: false,
        fitted_at: &[],
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
        statistics: false,
        fitted_at: &[],
    },
    Preset {
        name: "klt",
        summary: "a KLT for every head in the metric of what errors cost, finer steps for tokens whose key promises attention; needs a profile made with statistics",
        levels: &[
            "sinks(first=1)|unrope|mean|klt(metric=sensitivity)|steps(step=0.15;unit=sensitivity;reach=127;importance=key;power=0.5)|rans(tables=scale)",
            "sinks(first=1)|unrope|mean|klt(metric=sensitivity)|steps(step=0.4;unit=sensitivity;reach=63;importance=key;power=0.5)|rans(tables=scale)",
            "sinks(first=1)|unrope|mean|klt(metric=sensitivity)|steps(step=0.8;unit=sensitivity;reach=31;importance=key;power=0.5)|rans(tables=scale)",
            "sinks(first=1)|unrope|mean|klt(metric=sensitivity)|steps(step=1.5;unit=sensitivity;reach=31;importance=key;power=0.5)|rans(tables=scale)",
            "sinks(first=1)|unrope|mean|klt(metric=sensitivity)|steps(step=2.5;unit=sensitivity;reach=31;importance=key;power=0.5)|rans(tables=scale)",
            "sinks(first=1)|unrope|mean|klt(metric=sensitivity)|steps(step=4;unit=sensitivity;reach=31;importance=key;power=0.5)|rans(tables=scale)",
        ],
        default_level: 3,
        chunk_tokens: 1_500,
        statistics: true,
        fitted_at: &[],
    },
    Preset {
        name: "predictive",
        summary: "keys and values predicted from the layer before, then that KLT; needs a profile made with statistics",
        levels: &[
            "sinks(first=1)|unrope|mean|predict(fit=0)|klt(metric=sensitivity)|steps(step=0.2;unit=sensitivity;reach=127)|rans(tables=scale)",
            "sinks(first=1)|unrope|mean|predict(fit=0)|klt(metric=sensitivity)|steps(step=0.6;unit=sensitivity;reach=63)|rans(tables=scale)",
            "sinks(first=1)|unrope|mean|predict(fit=0)|klt(metric=sensitivity)|steps(step=1.2;unit=sensitivity;reach=31)|rans(tables=scale)",
            "sinks(first=1)|unrope|mean|predict(fit=1)|klt(metric=sensitivity)|steps(step=2;unit=sensitivity;reach=31)|rans(tables=scale)",
            "sinks(first=1)|unrope|mean|predict(fit=1)|klt(metric=sensitivity)|steps(step=3.2;unit=sensitivity;reach=31)|rans(tables=scale)",
            "sinks(first=1)|unrope|mean|predict(fit=1)|klt(metric=sensitivity)|steps(step=5;unit=sensitivity;reach=31)|rans(tables=scale)",
        ],
        default_level: 3,
        chunk_tokens: 1_500,
        statistics: true,
        fitted_at: &[1, 1, 1, 4, 4, 4],
    },
    Preset {
        name: "predictive-key",
        summary: "the same with finer steps for tokens whose key promises attention: the fewest bits; needs a profile made with statistics",
        levels: &[
            "sinks(first=1)|unrope|mean|predict(fit=0)|klt(metric=sensitivity)|steps(step=0.25;unit=sensitivity;reach=127;importance=key;power=0.5)|rans(tables=scale)",
            "sinks(first=1)|unrope|mean|predict(fit=0)|klt(metric=sensitivity)|steps(step=0.8;unit=sensitivity;reach=63;importance=key;power=0.5)|rans(tables=scale)",
            "sinks(first=1)|unrope|mean|predict(fit=0)|klt(metric=sensitivity)|steps(step=1.8;unit=sensitivity;reach=31;importance=key;power=0.5)|rans(tables=scale)",
            "sinks(first=1)|unrope|mean|predict(fit=1)|klt(metric=sensitivity)|steps(step=3.2;unit=sensitivity;reach=31;importance=key;power=0.5)|rans(tables=scale)",
            "sinks(first=1)|unrope|mean|predict(fit=1)|klt(metric=sensitivity)|steps(step=5;unit=sensitivity;reach=31;importance=key;power=0.5)|rans(tables=scale)",
            "sinks(first=1)|unrope|mean|predict(fit=1)|klt(metric=sensitivity)|steps(step=8;unit=sensitivity;reach=31;importance=key;power=0.5)|rans(tables=scale)",
        ],
        default_level: 3,
        chunk_tokens: 1_500,
        statistics: true,
        fitted_at: &[1, 1, 1, 4, 4, 4],
    },
    Preset {
        name: "predictive-attention",
        summary: "the same by the attention that tokens got, which must come with the KV cache; needs a profile made with statistics",
        levels: &[
            "sinks(first=1)|unrope|mean|predict(fit=0)|klt(metric=sensitivity)|steps(step=0.25;unit=sensitivity;reach=127;importance=attention;power=0.5)|rans(tables=scale)",
            "sinks(first=1)|unrope|mean|predict(fit=0)|klt(metric=sensitivity)|steps(step=0.8;unit=sensitivity;reach=63;importance=attention;power=0.5)|rans(tables=scale)",
            "sinks(first=1)|unrope|mean|predict(fit=0)|klt(metric=sensitivity)|steps(step=1.8;unit=sensitivity;reach=31;importance=attention;power=0.5)|rans(tables=scale)",
            "sinks(first=1)|unrope|mean|predict(fit=1)|klt(metric=sensitivity)|steps(step=3.2;unit=sensitivity;reach=31;importance=attention;power=0.5)|rans(tables=scale)",
            "sinks(first=1)|unrope|mean|predict(fit=1)|klt(metric=sensitivity)|steps(step=5;unit=sensitivity;reach=31;importance=attention;power=0.5)|rans(tables=scale)",
            "sinks(first=1)|unrope|mean|predict(fit=1)|klt(metric=sensitivity)|steps(step=8;unit=sensitivity;reach=31;importance=attention;power=0.5)|rans(tables=scale)",
        ],
        default_level: 3,
        chunk_tokens: 1_500,
        statistics: true,
        fitted_at: &[1, 1, 1, 4, 4, 4],
    },
    Preset {
        name: "q8",
        summary: "8 bits per value and an f16 scale per 32 channels, like llama.cpp's q8_0; no entropy coding",
        levels: &["uniform(bits=8;axis=token;group=32)|raw"],
        default_level: 0,
        chunk_tokens: 1_500,
        statistics: false,
        fitted_at: &[],
    },
    Preset {
        name: "q4",
        summary: "4 bits per value and an f16 scale per 32 channels, like llama.cpp's q4_0; no entropy coding",
        levels: &["uniform(bits=4;axis=token;group=32)|raw"],
        default_level: 0,
        chunk_tokens: 1_500,
        statistics: false,
        fitted_at: &[],
    },
    Preset {
        name: "kivi4",
        summary: "KIVI (arXiv 2402.02750) at 4 bits: keys per channel, values per token, asymmetric, groups of 32",
        levels: &["uniform(bits=4;axis=channel,token;group=32;zero=true)|raw"],
        default_level: 0,
        chunk_tokens: 1_500,
        statistics: false,
        fitted_at: &[],
    },
    Preset {
        name: "kivi2",
        summary: "KIVI at 2 bits",
        levels: &["uniform(bits=2;axis=channel,token;group=32;zero=true)|raw"],
        default_level: 0,
        chunk_tokens: 1_500,
        statistics: false,
        fitted_at: &[],
    },
    Preset {
        name: "hadamard4",
        summary: "a randomised Hadamard rotation of each head, then 4 bits with an f16 scale per 32 channels",
        levels: &["hadamard|uniform(bits=4;axis=token;group=32)|raw"],
        default_level: 0,
        chunk_tokens: 1_500,
        statistics: false,
        fitted_at: &[],
    },
    Preset {
        name: "turboquant4",
        summary: "like TurboQuant (arXiv 2504.19874): that rotation, the best 4-bit codebook, an f16 scale per head",
        levels: &["hadamard|lloyd-max(bits=4)|raw"],
        default_level: 0,
        chunk_tokens: 1_500,
        statistics: false,
        fitted_at: &[],
    },
    Preset {
        name: "turboquant3",
        summary: "the same with 3 bits",
        levels: &["hadamard|lloyd-max(bits=3)|raw"],
        default_level: 0,
        chunk_tokens: 1_500,
        statistics: false,
        fitted_at: &[],
    },
    Preset {
        name: "lossless",
        summary: "every bit as it was, NaN included: byte planes under shared entropy tables",
        levels: &["bytes|rans(tables=class;classes=256)"],
        default_level: 0,
        chunk_tokens: 1_500,
        statistics: false,
        fitted_at: &[],
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
