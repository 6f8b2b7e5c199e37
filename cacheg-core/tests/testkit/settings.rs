//! Plug-ins whose stage is good, but not its name, usage line or settings.

use std::sync::Arc;

use cacheg_core::testkit::{Suite, coder};
use cacheg_core::{Build, Coder, Error, Plugin};

use crate::coder::{Fault, PLUGIN, Raw};

/// Settings are not read at all.
const LENIENT: Build = Build::Coder(|_| Ok(Arc::new(Raw { fault: Fault::None })));

/// Errors do not say which stage they are about.
const NAMELESS: Build = Build::Coder(|config| {
    let stage: Arc<dyn Coder> = match cacheg_core::settings::<Raw>("", config) {
        Ok(stage) => Arc::new(stage),
        Err(_) => return Err(Error::setting("`no-such-setting` is wrong")),
    };
    Ok(stage)
});

/// Errors blame the bytes.
const BLAMES_BYTES: Build = Build::Coder(|config| match cacheg_core::settings::<Raw>("toy.raw", config) {
    Ok(stage) => Ok(Arc::new(stage)),
    Err(e) => Err(Error::corrupt(e.to_string())),
});

/// Whatever the settings, the stage is another one.
const FORGETFUL: Build = Build::Coder(|config| {
    let Raw { fault } = cacheg_core::settings("toy.raw", config)?;
    let fault = if fault == Fault::None { Fault::Unsteady } else { Fault::None };
    Ok(Arc::new(Raw { fault }))
});

#[test]
fn faults_are_found() {
    for (plugin, says) in [
        (Plugin { build: LENIENT, ..PLUGIN }, "accepts"),
        (Plugin { build: NAMELESS, ..PLUGIN }, "the stage is not named"),
        (Plugin { build: BLAMES_BYTES, ..PLUGIN }, "wrong kind of error"),
        (Plugin { build: FORGETFUL, usage: "toy.raw(fault=none)", ..PLUGIN }, "becomes"),
        (Plugin { usage: "toy.raw", ..PLUGIN }, "does not mention `fault`"),
        (Plugin { usage: "toy.raw(fault=wrong)", ..PLUGIN }, "but the defaults are"),
        (Plugin { usage: "toy.other", ..PLUGIN }, "names `toy.other`"),
        (Plugin { usage: "toy.raw(", ..PLUGIN }, "no closing"),
        (Plugin { version: 0, ..PLUGIN }, "count from 1"),
        (Plugin { summary: "two\nlines", ..PLUGIN }, "one line each"),
    ] {
        crate::caught(coder::settings, &Suite::new(plugin, &["toy.raw"]), says);
    }
    let renamed = Plugin { name: "toy.renamed", usage: "toy.renamed(fault=none)", ..PLUGIN };
    crate::caught(coder::settings, &Suite::new(renamed, &["toy.renamed"]), "calls itself `toy.raw`");
}
