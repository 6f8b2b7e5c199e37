//! The stages and transports that cacheg brings: explicit lists, since linkers drop what nobody names.

use cacheg_core::{Registry, Result};

/// All built-in stages and those that linked third-party crates have registered. The program must name such
/// a crate (`use acme_codec as _;`).
///
/// # Errors
/// If a third-party stage has a malformed name, or one that is taken.
pub fn builtins() -> Result<Registry> {
    Registry::new(cacheg_quant::PLUGINS.iter().chain(cacheg_entropy::PLUGINS).copied())?.with_linked()
}

/// All built-in transports (under the features of this build) and those that linked third-party crates have registered.
///
/// # Errors
/// If a third-party transport has a URL scheme that is taken.
#[cfg(feature = "net")]
pub fn transports() -> Result<cacheg_core::Transports> {
    cacheg_core::Transports::new(cacheg_net::transport::TRANSPORTS.iter().copied())?.with_linked()
}
