//! Traces of what a link carries over time, for simulators and for shaped transports.
//!
//! A [`Trace`] is a rate that is constant between points in time. It is read from the formats in use:
//!
//! | format | a file |
//! |---|---|
//! | [CacheGen](https://github.com/UChi-JCL/CacheGen) | JSON lines `{"bw": [3.2, 0.7]}`, Gbit/s, one number per chunk; several traces in a file |
//! | [Mahimahi](http://mahimahi.mit.edu) | lines of milliseconds, each an opportunity to send 1,500 bytes |
//! | rates | lines `seconds Mbit/s`, each rate holding until the next line; `#` begins a comment |
//!
//! ```
//! use std::time::Duration;
//! use cacheg_net::trace::Trace;
//!
//! let trace = Trace::parse("0 80\n2 8\n3 80\n", Trace::CACHEGEN_STEP)?.remove(0);
//! // Ten megabytes a second for two seconds, then one for a second.
//! assert_eq!(trace.bytes_between(Duration::from_secs(1), Duration::from_secs(3)), 11e6);
//! assert_eq!(trace.time_to_send(Duration::from_secs(1), 10_500_000), Some(Duration::from_millis(1_500)));
//! # Ok::<(), cacheg_core::Error>(())
//! ```

use std::path::Path;
use std::time::Duration;

use cacheg_core::{Error, Result, ResultExt};
use serde::Deserialize;

/// Larger files are refused.
const MAX_BYTES: u64 = 64 << 20;
/// More points than this are refused.
const MAX_POINTS: usize = 4_000_000;
/// Longer traces are refused: a year.
const MAX_SECONDS: f64 = 366.0 * 86_400.0;
/// Higher rates are refused: a petabyte a second.
const MAX_RATE: f64 = 1e15;
/// What Mahimahi sends at an opportunity.
const PACKET: f64 = 1_500.0;

const SECOND: f64 = 1e9;

/// A rate over time, from the start of the trace on. After its end it begins anew, unless it is
/// [`once`](Self::once): then its last rate goes on for ever.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// Where each piece ends, nanoseconds.
    ends: Vec<u64>,
    /// Bytes per second in each.
    rates: Vec<f64>,
    /// Bytes from the start to the end of each.
    sums: Vec<f64>,
    repeats: bool,
}

impl Trace {
    /// How long a number of CacheGen's traces holds, when they are read as time series. The artifact has no time: a
    /// number belongs to a chunk, however long that takes.
    pub const CACHEGEN_STEP: Duration = Duration::from_millis(100);

    /// The same rate for ever, in bytes per second.
    ///
    /// # Errors
    /// If it is negative, not a number, or above a petabyte per second.
    pub fn steady(rate: f64) -> Result<Self> {
        Self::new([(Duration::from_secs(1), rate)])
    }

    /// Pieces of (length, bytes per second), repeating.
    ///
    /// # Errors
    /// If there are none, more than 4 million, one has no length, all are longer than a year, or a rate is negative, not
    /// a number, or above a petabyte per second.
    pub fn new(pieces: impl IntoIterator<Item = (Duration, f64)>) -> Result<Self> {
        let mut trace = Self { ends: Vec::new(), rates: Vec::new(), sums: Vec::new(), repeats: true };
        let (mut end, mut sum) = (0_u64, 0.0);
        for (index, (length, rate)) in pieces.into_iter().enumerate() {
            let bad = |what: String| Error::data(what).at(format!("piece {index} of a trace"));
            if !(0.0..=MAX_RATE).contains(&rate) {
                return Err(bad(format!("a rate of {rate} bytes per second")));
            }
            if length.is_zero() || length.as_secs_f64() + end as f64 / SECOND > MAX_SECONDS {
                return Err(bad(format!(
                    "a length of {length:?}; all together last more than 0 and at most a year"
                )));
            }
            if index >= MAX_POINTS {
                return Err(Error::Limit(format!("a trace of more than {MAX_POINTS} pieces")));
            }
            // Below 2^55: a year.
            let nanos = length.as_nanos() as u64;
            end += nanos;
            sum += rate * (nanos as f64 / SECOND);
            trace.ends.push(end);
            trace.rates.push(rate);
            trace.sums.push(sum);
        }
        if trace.ends.is_empty() { Err(Error::data("an empty trace")) } else { Ok(trace) }
    }

    /// The traces in a file, whose format shows in its text. `step` is how long a number of CacheGen's holds.
    ///
    /// # Errors
    /// If it cannot be read, is larger than 64 MiB, or as [`parse`](Self::parse).
    pub fn read(path: &Path, step: Duration) -> Result<Vec<Self>> {
        let size = std::fs::metadata(path).map_err(|error| Error::io("read", path, error))?.len();
        if size > MAX_BYTES {
            return Err(Error::Limit(format!(
                "{}: a trace of {size} bytes, at most {MAX_BYTES}",
                path.display()
            )));
        }
        let text = std::fs::read_to_string(path).map_err(|error| Error::io("read", path, error))?;
        Self::parse(&text, step).at(|| path.display())
    }

    /// The traces in a text, whose format shows: `{` begins CacheGen's, one number a line is Mahimahi's, two are times
    /// and rates.
    ///
    /// # Errors
    /// If it is none of these or empty; numbers are negative, not finite or too large; times decrease.
    pub fn parse(text: &str, step: Duration) -> Result<Vec<Self>> {
        let lines = || {
            let numbered = text.lines().enumerate().map(|(index, line)| (index + 1, line));
            let bare =
                numbered.map(|(number, line)| (number, line.split('#').next().unwrap_or_default().trim()));
            bare.filter(|(_, line)| !line.is_empty())
        };
        match lines().next() {
            None => Err(Error::data("an empty trace")),
            Some((_, first)) if first.starts_with('{') => {
                lines().map(|(number, line)| cachegen(line, step).at(|| format!("line {number}"))).collect()
            }
            Some((_, first)) if first.split_whitespace().count() == 1 => Ok(vec![mahimahi(lines())?]),
            Some(_) => Ok(vec![rates(lines())?]),
        }
    }

    /// The same trace that does not begin anew: its last rate goes on.
    #[must_use]
    pub fn once(mut self) -> Self {
        self.repeats = false;
        self
    }

    /// All rates times a factor.
    ///
    /// # Errors
    /// If the factor is negative or not finite, or a rate becomes too high.
    pub fn scaled(&self, factor: f64) -> Result<Self> {
        if !(factor.is_finite() && factor >= 0.0) {
            return Err(Error::setting(format!("a trace cannot be scaled by {factor}")));
        }
        let mut scaled = Self::new(self.pieces().map(|(length, rate)| (length, rate * factor)))?;
        scaled.repeats = self.repeats;
        Ok(scaled)
    }

    /// Its pieces: length and bytes per second.
    pub fn pieces(&self) -> impl ExactSizeIterator<Item = (Duration, f64)> + '_ {
        self.rates.iter().enumerate().map(|(index, rate)| {
            let start = if index == 0 { 0 } else { self.ends[index - 1] };
            (Duration::from_nanos(self.ends[index] - start), *rate)
        })
    }

    /// How long it is before it begins anew.
    pub fn period(&self) -> Duration {
        Duration::from_nanos(self.length())
    }

    /// Its mean rate in bytes per second over one period.
    pub fn mean_rate(&self) -> f64 {
        self.total() / (self.length() as f64 / SECOND)
    }

    /// The rate at a time, bytes per second.
    pub fn rate_at(&self, time: Duration) -> f64 {
        let (_, within) = self.split(time);
        self.rates[self.piece(within)]
    }

    /// Bytes that the link carries between two times; 0 if the second is not later.
    pub fn bytes_between(&self, from: Duration, to: Duration) -> f64 {
        if to <= from {
            return 0.0;
        }
        let ((rounds_from, within_from), (rounds_to, within_to)) = (self.split(from), self.split(to));
        // Subtract whole periods first: a late interval is as precise as an early one.
        let rounds = (rounds_to - rounds_from) as f64;
        rounds * self.total() + (self.sum_until(within_to) - self.sum_until(within_from))
    }

    /// How long a transfer of so many bytes takes that begins at `from`, rounded up to a nanosecond; `None` if it never
    /// ends.
    pub fn time_to_send(&self, from: Duration, bytes: u64) -> Option<Duration> {
        if bytes == 0 {
            return Some(Duration::ZERO);
        }
        let (_, within) = self.split(from);
        let before = self.sum_until(within);
        let mut left = bytes as f64;
        let mut elapsed = 0.0;
        let mut start = within;
        if self.total() - before < left {
            // Not in this round.
            left -= (self.total() - before).max(0.0);
            elapsed += (self.length().saturating_sub(within)) as f64;
            start = 0;
            if !self.repeats {
                let rate = self.rates[self.rates.len() - 1];
                return duration(elapsed + left / rate * SECOND);
            }
            if self.total() <= 0.0 {
                return None;
            }
            let rounds = (left / self.total()).floor();
            left -= rounds * self.total();
            elapsed += rounds * self.length() as f64;
            if left <= 0.0 {
                // The last byte leaves with the last byte of a round, perhaps before an idle end.
                elapsed -= self.length() as f64;
                left = self.total();
            }
        }
        let base = self.sum_until(start);
        let index = self.sums.partition_point(|sum| *sum - base < left).min(self.sums.len() - 1);
        let piece_start = if index == 0 { 0 } else { self.ends[index - 1] };
        let done = if piece_start <= start { 0.0 } else { self.sums[index - 1] - base };
        let wait = piece_start.saturating_sub(start) as f64;
        duration(elapsed + wait + (left - done).max(0.0) / self.rates[index] * SECOND)
    }

    fn length(&self) -> u64 {
        self.ends[self.ends.len() - 1]
    }

    fn total(&self) -> f64 {
        self.sums[self.sums.len() - 1]
    }

    /// How many whole rounds, and the time within the next one.
    fn split(&self, time: Duration) -> (u64, u64) {
        let (nanos, length) = (time.as_nanos(), u128::from(self.length()));
        if self.repeats {
            ((nanos / length).min(u128::from(u64::MAX)) as u64, (nanos % length) as u64)
        } else {
            (0, nanos.min(u128::from(u64::MAX)) as u64)
        }
    }

    fn piece(&self, within: u64) -> usize {
        self.ends.partition_point(|end| *end <= within).min(self.ends.len() - 1)
    }

    /// Bytes from the start to here.
    fn sum_until(&self, within: u64) -> f64 {
        let index = self.piece(within);
        let (start, before) =
            if index == 0 { (0, 0.0) } else { (self.ends[index - 1], self.sums[index - 1]) };
        before + self.rates[index] * (within.saturating_sub(start) as f64 / SECOND)
    }
}

/// Nanoseconds, rounded up; `None` beyond what a `Duration` of this use can hold.
fn duration(nanos: f64) -> Option<Duration> {
    // A rounding error of a millionth of a nanosecond must not cost a whole one.
    let nanos = (nanos - 1e-6).ceil();
    (nanos < u64::MAX as f64).then(|| Duration::from_nanos(nanos.max(0.0) as u64))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CacheGen {
    bw: Vec<f64>,
}

fn cachegen(line: &str, step: Duration) -> Result<Trace> {
    let CacheGen { bw } = serde_json::from_str(line)
        .map_err(|error| Error::data(format!("not a trace of CacheGen's: {error}")))?;
    Trace::new(bw.into_iter().map(|gbps| (step, gbps * 1e9 / 8.0)))
}

fn mahimahi<'a>(lines: impl Iterator<Item = (usize, &'a str)>) -> Result<Trace> {
    const MILLI: Duration = Duration::from_millis(1);
    // (length in milliseconds, packets in each): runs of equal milliseconds.
    let mut pieces: Vec<(u32, u32)> = Vec::new();
    // Opportunities of the millisecond that ends at `time`.
    let (mut time, mut packets) = (1_u64, 0_u32);
    let mut push = |milliseconds: u64, packets: u32| -> Result<()> {
        let milliseconds =
            u32::try_from(milliseconds).map_err(|_| Error::Limit("a gap of more than 49 days".into()))?;
        match pieces.last_mut() {
            Some((length, same)) if *same == packets => *length = length.saturating_add(milliseconds),
            _ if milliseconds > 0 => pieces.push((milliseconds, packets)),
            _ => {}
        }
        Ok(())
    };
    for (number, line) in lines {
        let bad =
            |what: &str| Error::data(format!("{what}: `{}`", shortened(line))).at(format!("line {number}"));
        let stamp: u64 = line.parse().map_err(|_| bad("not a time in milliseconds"))?;
        // The first millisecond may be called 0 or 1.
        let stamp = stamp.max(1);
        if stamp < time {
            return Err(bad("time runs backwards"));
        }
        if stamp > time {
            push(1, packets)?;
            push(stamp - time - 1, 0)?;
            (time, packets) = (stamp, 0);
        }
        packets = packets.saturating_add(1);
    }
    push(1, packets)?;
    Trace::new(
        pieces.into_iter().map(|(length, packets)| (MILLI * length, f64::from(packets) * PACKET * 1e3)),
    )
}

fn rates<'a>(lines: impl Iterator<Item = (usize, &'a str)>) -> Result<Trace> {
    let mut points: Vec<(f64, f64)> = Vec::new();
    for (number, line) in lines {
        let bad =
            |what: &str| Error::data(format!("{what}: `{}`", shortened(line))).at(format!("line {number}"));
        let numbers: Vec<f64> = line
            .split_whitespace()
            .map(|word| word.parse().map_err(|_| bad("not `seconds Mbit/s`")))
            .collect::<Result<_>>()?;
        let &[time, mbps] = numbers.as_slice() else { return Err(bad("not `seconds Mbit/s`")) };
        if !(0.0..=MAX_SECONDS).contains(&time) || !(0.0..=MAX_RATE).contains(&(mbps * 1e6 / 8.0)) {
            return Err(bad("out of range"));
        }
        if points.last().is_some_and(|(last, _)| *last >= time) {
            return Err(bad("time does not increase"));
        }
        points.push((time, mbps * 1e6 / 8.0));
    }
    // The last rate holds as long as the one before it.
    let last = match points.as_slice() {
        [.., (before, _), (last, _)] => last - before,
        _ => 1.0,
    };
    let ends = points.iter().skip(1).map(|(time, _)| *time).chain(points.last().map(|(time, _)| time + last));
    let nanos = |time: f64| Duration::from_nanos((time * SECOND).round() as u64);
    Trace::new(
        points.iter().zip(ends).map(|((time, rate), end)| (nanos(end).saturating_sub(nanos(*time)), *rate)),
    )
}

fn shortened(line: &str) -> String {
    line.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_secs(1);

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn one(text: &str) -> Trace {
        Trace::parse(text, STEP).unwrap().remove(0)
    }

    #[test]
    fn cachegen_lines_are_traces_of_gigabits() {
        let traces = Trace::parse("{\"bw\": [8, 0.8]}\n{\"bw\": [1.5] }  ", STEP).unwrap();
        assert_eq!(traces.len(), 2);
        assert_eq!(traces[0].pieces().collect::<Vec<_>>(), [(STEP, 1e9), (STEP, 1e8)]);
        assert_eq!(traces[0].mean_rate(), 0.55e9);
    }

    #[test]
    fn mahimahi_lines_are_packets_of_a_millisecond() {
        // Two in the first millisecond, none in the second, one each in the third and fourth.
        let trace = one("1\n1\n3\n4\n");
        assert_eq!(trace.pieces().collect::<Vec<_>>(), [(ms(1), 3e6), (ms(1), 0.0), (ms(2), 1.5e6)]);
        assert_eq!(trace.bytes_between(ms(0), ms(4)), 6_000.0);
        assert_eq!(trace.bytes_between(ms(0), ms(8)), 12_000.0);
        assert_eq!(trace.time_to_send(ms(1), 1_500), Some(ms(2)));
        assert_eq!(one("0").pieces().collect::<Vec<_>>(), [(ms(1), 1.5e6)]);
    }

    #[test]
    fn rates_hold_until_the_next_line() {
        let trace = one("# a comment\n0 8\n\n0.5 16 # another\n2 0\n");
        assert_eq!(trace.pieces().collect::<Vec<_>>(), [(ms(500), 1e6), (ms(1500), 2e6), (ms(1500), 0.0)]);
        assert_eq!(trace.rate_at(ms(500)), 2e6);
        assert_eq!(trace.rate_at(ms(3_500)), 1e6);
        assert_eq!(trace.clone().once().rate_at(ms(99_999)), 0.0);
        assert_eq!(trace.scaled(2.0).unwrap().rate_at(ms(0)), 2e6);
    }

    #[test]
    fn hostile_text_is_an_error() {
        for bad in [
            "",
            "\n\n",
            "# only\n",
            "{",
            "{}",
            "{\"bw\": []}",
            "{\"bw\": [-1]}",
            "{\"bw\": [1e300]}",
            "{\"bw\": [null]}",
            "{\"bw\": [1]}\nx",
            "{\"bw\": [1], \"x\": 1}",
            "1\n0.5\n",
            "2\n1\n",
            "-1",
            "x",
            "1 2 3",
            "0 NaN",
            "0 -1",
            "0 inf",
            "NaN 1",
            "-1 1",
            "0 1\n0 1",
            "1 1\n0 1",
            "0 1e300",
            "1e300 1",
            "0 1\n1",
            "99999999999999999999",
            "18446744073709551615",
            "1\n18446744073709551615",
            "5000000000\n9999999999",
        ] {
            let error = Trace::parse(bad, STEP).unwrap_err();
            assert!(!error.to_string().is_empty(), "{bad}");
        }
        assert!(Trace::parse("{\"bw\": [1]}", Duration::ZERO).is_err());
        assert!(Trace::steady(f64::NAN).is_err() && Trace::new([]).is_err());
        assert!(one("0 1").scaled(f64::NAN).is_err() && one("0 1").scaled(f64::INFINITY).is_err());
    }

    #[test]
    fn sending_and_counting_are_inverse() {
        let mut state = 1_u64;
        let mut random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state >> 40
        };
        for repeats in [true, false] {
            for _ in 0..2_000 {
                let pieces: Vec<_> = (0..1 + random() % 6)
                    .map(|_| (Duration::from_nanos(1 + random() * 100), ((random() % 4) * random()) as f64))
                    .chain([(ms(1), 1e6)])
                    .collect();
                let trace = Trace::new(pieces).unwrap();
                let trace = if repeats { trace } else { trace.once() };
                let (from, bytes) = (Duration::from_nanos(random() * 1000), 1 + random());
                let time = trace.time_to_send(from, bytes).unwrap();
                let tolerance = 1e-6 * bytes as f64;
                let sent = trace.bytes_between(from, from + time);
                assert!(sent + tolerance >= bytes as f64, "{trace:?} {from:?} {bytes} {time:?} {sent}");
                if let Some(shorter) = time.checked_sub(Duration::from_nanos(2)) {
                    let sent = trace.bytes_between(from, from + shorter);
                    assert!(sent <= bytes as f64 + tolerance, "{trace:?} {from:?} {bytes} {time:?} {sent}");
                }
            }
        }
    }

    #[test]
    fn a_dead_link_never_ends() {
        let dead = Trace::steady(0.0).unwrap();
        assert_eq!(dead.time_to_send(ms(5), 1), None);
        assert_eq!(dead.time_to_send(ms(5), 0), Some(Duration::ZERO));
        assert_eq!(dead.bytes_between(Duration::ZERO, Duration::MAX), 0.0);
        assert_eq!(dead.clone().once().time_to_send(ms(5), 1), None);
        let slow = Trace::steady(1e-300).unwrap();
        assert_eq!(slow.time_to_send(ms(0), u64::MAX), None);
        assert_eq!(one("0 8\n1 0\n").once().time_to_send(ms(500), 500_001), None);
        assert_eq!(one("0 8\n1 0\n").once().time_to_send(ms(500), 500_000), Some(ms(500)));
        assert_eq!(
            one("0 8\n1 0\n").time_to_send(ms(500), 500_001),
            Some(Duration::from_nanos(1_500_001_000))
        );
        assert_eq!(one("0 8\n1 0\n").time_to_send(ms(0), 2_000_000), Some(ms(3_000)));
    }
}
