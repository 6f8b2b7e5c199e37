//! JSON as our files hold it.

use serde::Serialize;

use crate::{Error, Result};

/// JSON as all our files hold it: without white space, the keys of every object sorted, whatever serde_json's features
/// say.
///
/// # Errors
/// If the value has no JSON: a map whose keys are not strings, a number that is not finite.
pub fn canonical(value: &impl Serialize) -> Result<Vec<u8>> {
    let json = |e: serde_json::Error| Error::data(format!("cannot be written as JSON: {e}"));
    let mut value = serde_json::to_value(value).map_err(json)?;
    value.sort_all_objects();
    serde_json::to_vec(&value).map_err(json)
}
