//! JSON as our files hold it.

use serde::Serialize;

use crate::{Error, Result};

/// Without white space, the keys of every object sorted, whatever serde_json's features say.
pub(crate) fn canonical(value: &impl Serialize) -> Result<Vec<u8>> {
    let json = |e: serde_json::Error| Error::data(format!("cannot be written as JSON: {e}"));
    let mut value = serde_json::to_value(value).map_err(json)?;
    value.sort_all_objects();
    serde_json::to_vec(&value).map_err(json)
}
