//! What a link is like, as its URL says it.

use std::path::Path;
use std::time::Duration;

use cacheg_core::{Error, Result};

use crate::trace::Trace;

/// A link.
#[derive(Debug, Clone, Default)]
pub struct Shape {
    /// Bytes per second over time, from the first transfer on; `None`: no limit.
    pub trace: Option<Trace>,
    /// How long every request waits.
    pub latency: Duration,
    /// Bytes that pass at once after a pause; `None`: 16 KiB or 4 ms' worth, whichever is more.
    pub burst: Option<u64>,
}

impl Shape {
    /// Reads `rate=20Mbps&latency=30ms&burst=64KiB`, or `trace=FILE&scale=0.1&pick=2&step=100ms`: the factor of all
    /// rates, which one of several traces in the file (from 0), and how long a number holds in CacheGen's.
    ///
    /// # Errors
    /// `InvalidSetting` for anything else; what [`Trace::read`] refuses.
    pub fn parse(text: &str) -> Result<Self> {
        let mut shape = Self::default();
        let (mut rate, mut file, mut scale, mut pick, mut step) = (None, None, None, None, None);
        for setting in text.split('&') {
            let (name, value) = setting.split_once('=').unwrap_or((setting, ""));
            let bad = || Error::setting(format!("a link's `{name}` cannot be `{value}`"));
            let number = |value: &str| value.parse().ok().filter(|x: &f64| x.is_finite() && *x > 0.0);
            match name {
                "rate" => rate = Some(quantity(value, &RATES).ok_or_else(bad)?),
                "latency" => shape.latency = duration(value).ok_or_else(bad)?,
                "burst" => shape.burst = Some(quantity(value, &SIZES).ok_or_else(bad)? as u64),
                "trace" if !value.is_empty() => file = Some(Path::new(value)),
                "scale" => scale = Some(number(value).ok_or_else(bad)?),
                "pick" => pick = Some(value.parse::<usize>().map_err(|_| bad())?),
                "step" => step = Some(duration(value).filter(|step| !step.is_zero()).ok_or_else(bad)?),
                _ => {
                    return Err(Error::setting(format!(
                        "`{setting}` says nothing about a link; that can be rate, latency, burst, trace, scale, pick, step"
                    )));
                }
            }
        }
        if file.is_none() && (pick.is_some() || step.is_some()) {
            return Err(Error::setting("a link's `pick` and `step` belong to a `trace`"));
        }
        let trace = match (rate, file) {
            (Some(_), Some(_)) => return Err(Error::setting("a link has a `rate` or a `trace`, not both")),
            (Some(rate), None) => Some(Trace::steady(rate)?),
            (None, Some(file)) => {
                let all = Trace::read(file, step.unwrap_or(Trace::CACHEGEN_STEP))?;
                let (pick, count) = (pick.unwrap_or(0), all.len());
                let picked = all.into_iter().nth(pick);
                Some(picked.ok_or_else(|| {
                    Error::setting(format!("{} has {count} traces, none has number {pick}", file.display()))
                })?)
            }
            (None, None) => None,
        };
        shape.trace = match (trace, scale) {
            (Some(trace), Some(scale)) => Some(trace.scaled(scale)?),
            (None, Some(_)) => return Err(Error::setting("a link's `scale` needs a `rate` or a `trace`")),
            (trace, None) => trace,
        };
        Ok(shape)
    }
}

/// Bytes per second.
const RATES: [(&str, f64); 8] = [
    ("kbps", 1e3 / 8.0),
    ("Mbps", 1e6 / 8.0),
    ("Gbps", 1e9 / 8.0),
    ("kB/s", 1e3),
    ("MB/s", 1e6),
    ("GB/s", 1e9),
    ("MiB/s", 1_048_576.0),
    ("bps", 1.0 / 8.0),
];
/// Bytes.
const SIZES: [(&str, f64); 5] = [("KiB", 1024.0), ("MiB", 1_048_576.0), ("kB", 1e3), ("MB", 1e6), ("B", 1.0)];
/// Seconds.
const TIMES: [(&str, f64); 3] = [("ms", 1e-3), ("us", 1e-6), ("s", 1.0)];

fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    Duration::try_from_secs_f64(quantity(text, &TIMES)?).ok()
}

/// A number that is not negative, and a unit.
fn quantity(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let (number, factor) = units.iter().find_map(|(unit, factor)| {
        let number = text.strip_suffix(unit)?;
        number.ends_with(|c: char| c.is_ascii_digit()).then_some((number, factor))
    })?;
    let value = number.parse::<f64>().ok()? * factor;
    (value.is_finite() && value >= 0.0).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        let shape = Shape::parse("rate=20Mbps&latency=30ms&burst=64KiB&scale=0.1").unwrap();
        assert_eq!(shape.trace, Some(Trace::steady(250_000.0).unwrap()));
        assert_eq!((shape.latency, shape.burst), (Duration::from_millis(30), Some(65_536)));
        for (rate, expected) in [("8bps", 1.0), ("1.5kbps", 187.5), ("1Gbps", 125e6), ("2MB/s", 2e6)] {
            let shape = Shape::parse(&format!("rate={rate}")).unwrap();
            assert_eq!(shape.trace, Some(Trace::steady(expected).unwrap()), "{rate}");
        }
        assert!(Shape::parse("latency=1.5s").unwrap().trace.is_none());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "{\"bw\": [8, 16]}\n{\"bw\": [80]}\n").unwrap();
        let path = file.path().display();
        let shape = Shape::parse(&format!("trace={path}&pick=1&scale=0.5&step=2s")).unwrap();
        let expected = Trace::new([(Duration::from_secs(2), 5e9)]).unwrap();
        assert_eq!(shape.trace, Some(expected));
        for bad in [
            "",
            "rate",
            "rate=",
            "rate=5",
            "rate=-5Mbps",
            "rate=Mbps",
            "rate=5 parsecs",
            "latency=5",
            "latency=-1s",
            "burst=1",
            "scale=2",
            "rate=1bps&scale=0",
            "rate=1bps&scale=nan",
            "pick=1",
            "step=1s",
            "trace=",
            "trace=/does/not/exist",
            "speed=5Mbps",
            "rate=1bps&rate",
            &format!("trace={path}&pick=2"),
            &format!("trace={path}&rate=1bps"),
            &format!("trace={path}&step=0ms"),
        ] {
            assert!(Shape::parse(bad).is_err(), "{bad}");
        }
    }
}
