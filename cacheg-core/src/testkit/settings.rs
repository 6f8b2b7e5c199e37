//! Names, usage lines and settings.

use serde_json::{Map, Value, json};

use super::bind::{Built, build};
use super::suite::{Within, ensure, survive};
use super::{Check, Failure, Suite};
use crate::spec::{self, StageSpec};
use crate::{ErrorKind, Registry};

/// Settings that no stage has.
const UNKNOWN: &str = "no-such-setting";

pub(crate) fn check<S: Built + ?Sized>(suite: &Suite) -> Check {
    let plugin = &suite.plugin;
    Registry::new([*plugin])?;
    let line = |text: &str| !text.trim().is_empty() && !text.contains('\n');
    ensure(plugin.version > 0, || "format versions count from 1".to_owned())?;
    ensure(line(plugin.summary) && line(plugin.origin), || {
        "summary and origin are one line each".to_owned()
    })?;
    usage::<S>(suite).within(|| format!("usage `{}`", plugin.usage))?;
    for case in suite.cases()? {
        comes_back::<S>(suite, &case.config).within(|| case.text.clone())?;
        refuses::<S>(suite, &case.config).within(|| case.text.clone())?;
    }
    Ok(())
}

/// The usage line is a spec of the stage that spells out the defaults.
fn usage<S: Built + ?Sized>(suite: &Suite) -> Check {
    let stages = spec::parse(suite.plugin.usage)?;
    let [stage] = &stages[..] else { return Err(Failure::new("not one stage")) };
    ensure(stage.name == suite.plugin.name, || format!("names `{}`", stage.name))?;
    let spelled = build::<S>(suite, &stage.config)?.config();
    // Stages with a setting that has no default are the exception.
    if let Ok(default) = build::<S>(suite, &Value::Null) {
        let default = default.config();
        ensure(default == spelled, || format!("gives {spelled}, but the defaults are {default}"))?;
    }
    for (key, _) in object(&spelled)?.iter().filter(|(_, value)| !value.is_null()) {
        ensure(stage.config.get(key).is_some(), || format!("does not mention `{key}`"))?;
    }
    Ok(())
}

/// `config` is complete: the stage can be built from it again, also by way of a spec string.
fn comes_back<S: Built + ?Sized>(suite: &Suite, config: &Value) -> Check {
    let stage = build::<S>(suite, config)?;
    ensure(stage.name() == suite.plugin.name, || format!("the stage calls itself `{}`", stage.name()))?;
    let config = stage.config();
    let again = build::<S>(suite, &config).within(|| format!("from its config {config}"))?.config();
    ensure(again == config, || format!("config {config} becomes {again}"))?;
    let spec = StageSpec { name: suite.plugin.name.to_owned(), version: None, config: config.clone() };
    let text = spec::format(&[spec]);
    let parsed = spec::parse(&text).within(|| format!("config as a spec string, `{text}`"))?;
    let again = parsed.into_iter().next().map_or(Value::Null, |spec| spec.config);
    let again = build::<S>(suite, &again).within(|| format!("from the spec string `{text}`"))?.config();
    ensure(again == config, || format!("config {config} becomes {again} by way of `{text}`"))
}

/// Settings that mean nothing are refused, with the stage and the setting named.
fn refuses<S: Built + ?Sized>(suite: &Suite, config: &Value) -> Check {
    let full = build::<S>(suite, config)?.config();
    let with = |key: &str, value: Value| {
        let mut config = object(&full)?.clone();
        config.insert(key.to_owned(), value);
        Ok::<_, Failure>(Value::Object(config))
    };
    let message = refused::<S>(suite, &with(UNKNOWN, json!(1))?)?;
    ensure(message.contains(UNKNOWN), || format!("an unknown setting is not named in: {message}"))?;
    for key in object(&full)?.keys() {
        refused::<S>(suite, &with(key, json!({"nonsense": []}))?)?;
    }
    for nonsense in [json!(1), json!("text"), json!(true)] {
        refused::<S>(suite, &nonsense)?;
    }
    Ok(())
}

fn refused<S: Built + ?Sized>(suite: &Suite, config: &Value) -> Result<String, Failure> {
    let built = survive("building", || S::build(suite.plugin.build, config)).within(|| config.to_string())?;
    match built {
        Some(Err(error)) => {
            let message = error.to_string();
            let place = format!("error on {config}: {message}");
            ensure(error.kind() == ErrorKind::InvalidSetting, || format!("wrong kind of {place}"))?;
            ensure(message.contains(suite.plugin.name), || format!("the stage is not named in the {place}"))?;
            Ok(message)
        }
        _ => Err(Failure::new(format!("accepts {config}"))),
    }
}

fn object(config: &Value) -> Result<&Map<String, Value>, Failure> {
    config.as_object().ok_or_else(|| Failure::new(format!("config {config} is no object")))
}
