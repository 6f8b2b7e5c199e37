//! What is raced.

/// A deadline for the first token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Slo {
    /// Seconds.
    Fixed(f64),
    /// A share of what the faster of recomputing and 8 bits took at the same rate.
    Share(f64),
}

/// One way to get a context into the model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Method {
    /// In tables.
    pub(crate) name: String,
    /// Which [context](super::contexts) of the store.
    pub(crate) context: &'static str,
    /// How its chunks are fetched; none: all is recomputed from text.
    pub(crate) policy: Option<String>,
    /// Only adaptive ones have one.
    pub(crate) slo: Option<Slo>,
}

/// Of all: text and 8 bits first, as deadlines depend on them.
pub(crate) fn all(slos: &[f64], share: f64) -> Vec<Method> {
    let fixed = |name: &str, context: &'static str, level: usize| Method {
        name: name.to_owned(),
        context,
        policy: Some(format!("fixed(level={level})")),
        slo: None,
    };
    let mut methods = vec![
        Method { name: TEXT.into(), context: "simple", policy: None, slo: None },
        fixed(Q8, "simple", 1),
        fixed("f16", "simple", 0),
        fixed("q4", "simple", 2),
        fixed("cachegen-release@1", "release", 0),
        fixed(PAPER, "paper", 1),
        fixed("cachegen-paper@2", "paper", 2),
        fixed("fast@1", "fast", 1),
        fixed("fast@1.4", "fast", 2),
        fixed("fast@2", "fast", 3),
    ];
    let adaptive = |policy: &str, context: &'static str, slo: Slo| Method {
        name: match slo {
            Slo::Fixed(_) => format!("{policy} {context}"),
            Slo::Share(_) => format!("{policy} {context}, 1/{:.0}", 1.0 / share),
        },
        context,
        policy: Some(policy.to_owned()),
        slo: Some(slo),
    };
    methods.push(adaptive("plan", "paper", Slo::Share(share)));
    methods.push(adaptive("plan", "fast", Slo::Share(share)));
    // Who has fetched from there before does not begin with the smallest level.
    methods.push(adaptive("plan(first=0.25)", "fast", Slo::Share(share)));
    for slo in slos {
        methods.push(adaptive("cachegen", "paper", Slo::Fixed(*slo)));
        methods.push(adaptive("plan", "paper", Slo::Fixed(*slo)));
        methods.push(adaptive("plan", "fast", Slo::Fixed(*slo)));
    }
    methods
}

pub(crate) const TEXT: &str = "text";
pub(crate) const Q8: &str = "q8";
pub(crate) const PAPER: &str = "cachegen-paper@1";
