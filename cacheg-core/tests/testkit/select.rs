//! A select stage that keeps the first tokens and asks nothing about them.

use std::sync::Arc;

use cacheg_core::testkit::{Suite, select};
use cacheg_core::{BoundSelect, Build, Error, Geometry, Plugin, Result, Select, SelectCx, Stage};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(crate) const PLUGIN: Plugin = Plugin {
    name: "toy.first",
    version: 1,
    origin: "tests",
    summary: "keeps the first half",
    usage: "toy.first(fault=none)",
    build: Build::Select(|config| Ok(Arc::new(cacheg_core::settings::<First>("toy.first", config)?))),
};

#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Fault {
    #[default]
    None,
    /// Leaves the last token as it was.
    Unwritten,
    Descending,
    Beyond,
    Unsteady,
    KeepsNone,
    KeepsTooMany,
    /// Cannot do with tokens that nobody looked at.
    PanicsOnZeros,
    PanicsWithout,
    /// What the kit takes for granted, is an error.
    Fails,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct First {
    #[serde(default)]
    fault: Fault,
}

impl Stage for First {
    fn name(&self) -> &'static str {
        PLUGIN.name
    }

    fn config(&self) -> Value {
        cacheg_core::config(self)
    }
}

impl Select for First {
    fn bind(&self, _: &Geometry) -> Result<Box<dyn BoundSelect>> {
        Ok(Box::new(*self))
    }
}

impl BoundSelect for First {
    fn kept(&self, tokens: usize) -> usize {
        match self.fault {
            Fault::KeepsNone => tokens / 2,
            Fault::KeepsTooMany => tokens + 1,
            _ => tokens.div_ceil(2),
        }
    }

    fn select(&self, cx: &SelectCx<'_>, kept: &mut [u32]) -> Result<()> {
        match self.fault {
            Fault::PanicsWithout => assert!(cx.importance.is_some(), "nothing is known"),
            Fault::PanicsOnZeros => {
                assert!(cx.accumulated()?.iter().any(|sum| *sum > 0.0), "nobody looked");
            }
            Fault::Fails => return Err(Error::data("on purpose")),
            _ => {}
        }
        let skip = usize::from(self.fault == Fault::Unwritten);
        let written = kept.len() - skip.min(kept.len());
        kept[..written].iter_mut().zip(0..).for_each(|(kept, token)| *kept = token);
        match (self.fault, kept) {
            (Fault::Descending, kept) => kept.reverse(),
            (Fault::Beyond, [.., last]) => *last = cx.tokens as u32,
            (Fault::Unsteady, [.., last]) if cx.tokens > 60 => *last += crate::unsteady() % 2,
            _ => {}
        }
        Ok(())
    }
}

mod good {
    cacheg_core::conformance! {
        select: super::PLUGIN,
        specs: ["toy.first", "toy.first(fault=none)"],
    }
}

#[test]
fn faults_are_found() {
    for (fault, check, says) in [
        ("unwritten", select::selects as fn(&Suite) -> _, "not overwritten whole"),
        ("descending", select::selects, "not ascending"),
        ("beyond", select::selects, "beyond the chunk"),
        ("unsteady", select::deterministic, "two calls differ"),
        ("keeps-none", select::selects, "keeps 0 of 1 tokens"),
        ("keeps-too-many", select::survives, "keeps 2 of 1 tokens"),
        ("panics-on-zeros", select::survives, "select panics: nobody looked"),
        ("panics-without", select::selects, "without importance panics"),
        ("fails", select::selects, "on purpose"),
    ] {
        crate::caught(check, &crate::faulty(PLUGIN, fault), says);
    }
    crate::caught(
        select::settings,
        &Suite::new(Plugin { summary: "", ..PLUGIN }, &["toy.first"]),
        "one line",
    );
}
