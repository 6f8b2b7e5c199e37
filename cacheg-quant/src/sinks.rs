//! `sinks`: the tokens at a context's ends are stored bit for bit.
//!
//! The first tokens get a large share of everybody's attention (attention sinks: StreamingLLM, arXiv 2309.17453,
//! section 3.1), so that an error in them costs as much as one in hundreds of others; KVTC (arXiv 2511.01815) leaves
//! the first 4 and the last 128 tokens alone. The tokens are those with positions below `first`, whatever chunk they
//! are in, and the `last` ones of the KV cache. They travel beside the tiles and no other stage sees them: not while
//! calibrating either. For all other tokens the stage is the identity.
//!
//! ```
//! let stages = cacheg_core::spec::parse("sinks(first=4)")?;
//! let cacheg_core::Build::Transform(build) = cacheg_quant::sinks::PLUGIN.build else { unreachable!() };
//! let tokens = build(&stages[0].config)?.exact_tokens();
//! assert_eq!((tokens.first, tokens.last), (4, 0));
//! # Ok::<(), cacheg_core::Error>(())
//! ```

use std::sync::Arc;

use cacheg_core::{
    BindCx, BoundTransform, Build, ExactTokens, Plugin, Result, Stage, Transform, config, settings,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::identity::Identity;
use crate::settings::refuse;

/// The stage's registration.
pub const PLUGIN: Plugin = Plugin {
    name: "sinks",
    version: 1,
    origin: "cacheg-quant",
    summary: "the first and last tokens of a context bit for bit: all others attend to the first ones",
    usage: "sinks(first=4;last=0)",
    build: Build::Transform(build),
};

/// More are better served by `lossless`.
const MOST: u32 = 4_096;

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    first: u32,
    last: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { first: 4, last: 0 }
    }
}

fn build(value: &Value) -> Result<Arc<dyn Transform>> {
    let settings: Settings = settings(PLUGIN.name, value)?;
    for (name, tokens) in [("first", settings.first), ("last", settings.last)] {
        if tokens > MOST {
            return Err(refuse(PLUGIN.name, name, format!("is at most {MOST} tokens")));
        }
    }
    Ok(Arc::new(Sinks(settings)))
}

#[derive(Debug)]
struct Sinks(Settings);

impl Stage for Sinks {
    fn name(&self) -> &'static str {
        PLUGIN.name
    }

    fn config(&self) -> Value {
        config(&self.0)
    }
}

impl Transform for Sinks {
    fn bind(&self, _: &BindCx<'_>) -> Result<Box<dyn BoundTransform>> {
        Ok(Box::new(Identity))
    }

    fn exact_tokens(&self) -> ExactTokens {
        ExactTokens { first: self.0.first, last: self.0.last }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_checked() {
        let of = |text: &str| build(&cacheg_core::spec::parse(text).unwrap()[0].config);
        assert_eq!(of("sinks").unwrap().exact_tokens(), ExactTokens { first: 4, last: 0 });
        assert_eq!(
            of("sinks(first=0;last=128)").unwrap().exact_tokens(),
            ExactTokens { first: 0, last: 128 }
        );
        for bad in ["sinks(first=4097)", "sinks(last=-1)", "sinks(middle=1)"] {
            assert!(of(bad).unwrap_err().to_string().contains("sinks"), "{bad}");
        }
    }
}
