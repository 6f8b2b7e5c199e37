//! The built-in estimators: file = name.

pub(super) mod last;

use super::estimator::Estimator;
use super::registry::{Plugin, Registry};

/// The built-in estimators.
pub fn estimators() -> Registry<dyn Estimator> {
    const ALL: &[Plugin<dyn Estimator>] = &[last::PLUGIN];
    Registry::builtin("estimator", ALL)
}
