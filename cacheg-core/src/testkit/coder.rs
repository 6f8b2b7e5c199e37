//! Checks of entropy coders.

use super::alloc::{measure, no_allocation, require_counting};
use super::bind::{Setup, concurrently, each};
use super::grid::{POISONS, same_bytes};
use super::models::{Model, classes, model, part_rows};
use super::suite::{Within, ensure, survive};
use super::{Check, Failure, Random, Suite, calibration, settings};
use crate::{Alphabet, BoundCoder, Coder, Part, Role, Segment, Source};

/// Largest allocation that corrupt bytes may cause: an error's message.
const MESSAGE: usize = 4096;

/// What unpacking corrupt tables may allocate at once, even if the tables are tiny.
const UNPACK: usize = 64 << 10;

/// How symbols are distributed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Spread {
    Zeros,
    /// Only the last symbol, which may be the escape.
    Last,
    Flat,
    /// Geometric around the middle; what calibration sees.
    Skewed,
    /// Runs of equal symbols.
    Runs,
}

impl Spread {
    pub(crate) const ALL: [Self; 5] = [Self::Zeros, Self::Last, Self::Flat, Self::Skewed, Self::Runs];

    pub(crate) fn symbols(self, size: u16, len: usize, seed: u64) -> Vec<u8> {
        let mut random = Random::new(seed);
        let size = usize::from(size);
        let mut run = 0;
        let symbol = |_| match self {
            Self::Zeros => 0,
            Self::Last => (size - 1) as u8,
            Self::Flat => random.below(size) as u8,
            Self::Skewed => {
                let away = random.bits().trailing_zeros() as usize;
                let middle = size / 2;
                (if random.below(2) == 0 {
                    middle.saturating_sub(away)
                } else {
                    (middle + away).min(size - 1)
                }) as u8
            }
            Self::Runs => {
                if random.below(8) == 0 {
                    run = random.below(size) as u8;
                }
                run
            }
        };
        (0..len).map(symbol).collect()
    }
}

/// A stream's segments and symbols.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    pub(crate) segments: Vec<Segment>,
    pub(crate) symbols: Vec<u8>,
}

impl Stream {
    /// A tile of `rows` tokens of the planes with these indices.
    pub(crate) fn new(
        parts: &[Vec<Part>],
        planes: std::ops::Range<usize>,
        rows: usize,
        spread: Spread,
        seed: u64,
    ) -> Self {
        let mut stream = Self { segments: Vec::new(), symbols: Vec::new() };
        for plane in planes {
            for (index, part) in parts[plane].iter().enumerate() {
                for (symbol_plane, &alphabet) in part.alphabets.iter().enumerate() {
                    let rows = part_rows(part.role, rows);
                    let segment = Segment::new(plane, index, symbol_plane, rows, part.cols, alphabet);
                    let seed = seed.wrapping_add(stream.segments.len() as u64);
                    stream.symbols.extend(spread.symbols(alphabet.size, segment.len(), seed));
                    stream.segments.push(segment);
                }
            }
        }
        stream
    }

    /// Into a buffer of just `max_len` bytes.
    pub(crate) fn encode(&self, bound: &dyn BoundCoder, poison: u8) -> Result<Vec<u8>, Failure> {
        let mut out = vec![poison; bound.max_len(&self.segments)];
        let len = bound
            .encode(&self.segments, &self.symbols, &mut out, &mut bound.scratch())
            .within(|| "encode".to_owned())?;
        ensure(len <= out.len(), || format!("{len} bytes, but max_len is {}", out.len()))?;
        out.truncate(len);
        Ok(out)
    }

    pub(crate) fn decode(&self, bound: &dyn BoundCoder, bytes: &[u8], poison: u8) -> crate::Result<Vec<u8>> {
        let mut symbols = vec![poison; self.symbols.len()];
        bound.decode(&self.segments, bytes, &mut symbols, &mut bound.scratch())?;
        Ok(symbols)
    }

    fn round_trip(&self, bound: &dyn BoundCoder) -> Check {
        let bytes = self.encode(bound, 0xff)?;
        let symbols = self.decode(bound, &bytes, 0xff).within(|| "decode".to_owned())?;
        same_bytes("symbols", &self.symbols, &symbols)?;
        if let Some(bits) = bound.ideal_bits(&self.segments, &self.symbols) {
            let used = 8.0 * bytes.len() as f64;
            // A percent for tables that are rounded otherwise in the report than in the coder.
            let possible = bits.is_finite() && bits >= 0.0 && used + 64.0 >= 0.99 * bits;
            ensure(possible, || format!("{used} bits written, but an ideal coder would need {bits}"))?;
        }
        Ok(())
    }

    /// Decodes what may be corrupt: an error, or symbols of the alphabets.
    fn decode_corrupt(&self, bound: &dyn BoundCoder, bytes: &[u8]) -> Check {
        let Ok(symbols) = survive("decode", || self.decode(bound, bytes, 0xff))? else { return Ok(()) };
        let mut rest = &symbols[..];
        for segment in &self.segments {
            let (these, later) = rest.split_at(segment.len());
            rest = later;
            let size = segment.alphabet.size;
            let outside = these.iter().position(|&symbol| u16::from(symbol) >= size);
            ensure(outside.is_none(), || {
                format!("corrupt bytes give a symbol outside its alphabet of {size}")
            })?;
        }
        Ok(())
    }
}

/// All streams for one setup: several tile heights (an anchor's first token alone leaves the deltas empty) and
/// distributions, all planes together and the last alone.
fn each_stream(setup: &Setup<'_, dyn Coder>, few: bool, mut check: impl FnMut(&Stream) -> Check) -> Check {
    let planes = setup.model.planes.len();
    let cols: usize = setup.model.planes.iter().map(crate::Plane::channels).sum();
    let rows = if few { setup.suite.few_rows(1) } else { setup.suite.tile_rows(1, cols) };
    for rows in rows {
        for spread in Spread::ALL {
            for range in [0..planes, planes - 1..planes] {
                let place = || format!("{spread:?}, {rows} tokens, planes {range:?}");
                check(&Stream::new(&setup.parts, range.clone(), rows, spread, rows as u64)).within(place)?;
            }
        }
    }
    Ok(())
}

/// Few and short streams, for checks that look at every byte.
fn each_short(setup: &Setup<'_, dyn Coder>, mut check: impl FnMut(&Stream, &[u8]) -> Check) -> Check {
    let last = setup.model.planes.len() - 1;
    let cols = setup.model.planes[last].channels();
    // About a hundred symbols; a row of the wide model has more, and is the longest that there is time for.
    let some = 100 / cols;
    for rows in [0, 1].into_iter().chain((some > 1).then_some(some)) {
        for spread in [Spread::Flat, Spread::Skewed, Spread::Last] {
            let stream = Stream::new(&setup.parts, last..last + 1, rows, spread, 3);
            let bytes = stream.encode(&*setup.bound, 0)?;
            check(&stream, &bytes).within(|| format!("{spread:?}, {rows} tokens, {} bytes", bytes.len()))?;
        }
    }
    Ok(())
}

/// Name, usage line and settings: complete, refused if unknown, named in errors.
///
/// # Errors
/// If the stage does not conform.
pub fn settings(suite: &Suite) -> Check {
    settings::check::<dyn Coder>(suite)
}

/// Symbols come back, within `max_len`.
///
/// # Errors
/// If the stage does not conform.
pub fn round_trips(suite: &Suite) -> Check {
    each::<dyn Coder>(suite, |setup| each_stream(setup, false, |stream| stream.round_trip(&*setup.bound)))
}

/// Round trips over every alphabet, with and without an escape.
///
/// # Errors
/// If the stage does not conform.
pub fn alphabets(suite: &Suite) -> Check {
    let model = model("odd channels")?;
    for case in &suite.cases()? {
        for &source in &suite.sources {
            for size in 2..=256 {
                for escape in [false, true] {
                    let place = || format!("{}, alphabet of {size}, escape {escape}", case.text);
                    let part = |plane: &crate::Plane| {
                        let mut part = Part::new(Role::Whole, plane.channels());
                        part.alphabets.push(Alphabet { size, escape });
                        part.classes = classes(part.cols);
                        vec![part]
                    };
                    let parts = model.planes.iter().map(part).collect();
                    let setup = Setup::<dyn Coder>::new(suite, case, &model, parts, source).within(place)?;
                    Spread::ALL.into_iter().try_for_each(|spread| {
                        let stream = Stream::new(&setup.parts, 0..model.planes.len(), 13, spread, 1);
                        stream.round_trip(&*setup.bound).within(|| format!("{}, {spread:?}", place()))
                    })?;
                }
            }
        }
    }
    Ok(())
}

/// Symbols outside their alphabets are refused.
///
/// # Errors
/// If the stage does not conform.
pub fn bad_symbols(suite: &Suite) -> Check {
    each::<dyn Coder>(suite, |setup| {
        let stream = Stream::new(&setup.parts, 0..setup.model.planes.len(), 5, Spread::Skewed, 1);
        let mut from = 0;
        for segment in &stream.segments {
            let to = from + segment.len();
            for at in [from, usize::midpoint(from, to), to - 1] {
                for symbol in [segment.alphabet.size, 255]
                    .into_iter()
                    .filter(|s| *s < 256 && *s >= segment.alphabet.size)
                {
                    let mut bad = stream.clone();
                    bad.symbols[at] = symbol as u8;
                    let encoded = survive("encode", || bad.encode(&*setup.bound, 0))?;
                    ensure(encoded.is_err(), || {
                        format!("symbol {symbol} of an alphabet of {} is accepted", segment.alphabet.size)
                    })?;
                }
            }
            from = to;
        }
        Ok(())
    })
}

/// Outputs do not depend on what the buffers held, nor on how large they are.
///
/// # Errors
/// If the stage does not conform.
pub fn overwrites(suite: &Suite) -> Check {
    each::<dyn Coder>(suite, |setup| {
        let bound = &*setup.bound;
        each_stream(setup, true, |stream| {
            let [a, b] = POISONS.map(|poison| stream.encode(bound, poison.byte));
            let a = a?;
            same_bytes("the buffer is not overwritten whole", &a, &b?)?;
            let mut large = vec![0x55; bound.max_len(&stream.segments) + 100];
            let len = bound.encode(&stream.segments, &stream.symbols, &mut large, &mut bound.scratch())?;
            same_bytes("a larger buffer", &a, &large[..len.min(large.len())])?;
            POISONS.iter().try_for_each(|poison| {
                same_bytes(
                    "symbols are not overwritten whole",
                    &stream.symbols,
                    &stream.decode(bound, &a, poison.byte)?,
                )
            })
        })
    })
}

/// Repeated calls, used scratch, a second instance and several threads give the same bytes.
///
/// # Errors
/// If the stage does not conform.
pub fn deterministic(suite: &Suite) -> Check {
    each::<dyn Coder>(suite, |setup| {
        let (bound, second) = (&*setup.bound, setup.again()?);
        let mut used = bound.scratch();
        each_stream(setup, true, |stream| {
            let Stream { segments, symbols } = stream;
            let want = stream.encode(bound, 0)?;
            same_bytes("a second call", &want, &stream.encode(bound, 0)?)?;
            same_bytes("a second instance", &want, &stream.encode(&*second, 0)?)?;
            same_bytes("decoding by a second instance", symbols, &stream.decode(&*second, &want, 0)?)?;
            let mut out = vec![0; bound.max_len(segments)];
            // Twice with the same scratch, which by now has seen other streams and corrupt bytes.
            for _ in 0..2 {
                let len = bound.encode(segments, symbols, &mut out, &mut used)?;
                same_bytes("encoding with used scratch", &want, &out[..len])?;
                let mut back = vec![0; symbols.len()];
                bound.decode(segments, &want, &mut back, &mut used)?;
                same_bytes("decoding with used scratch", symbols, &back)?;
                let half = &want[..want.len() / 2];
                let _ = survive("decode", || bound.decode(segments, half, &mut back, &mut used))?;
            }
            Ok(())
        })?;
        let stream = Stream::new(&setup.parts, 0..setup.model.planes.len(), 16, Spread::Skewed, 1);
        let want = stream.encode(bound, 0)?;
        let threads = concurrently(|| stream.encode(bound, 0))?;
        threads.iter().try_for_each(|got| same_bytes("another thread", &want, got))
    })
}

/// Streams that are cut anywhere or continue after their end are refused.
///
/// # Errors
/// If the stage does not conform.
pub fn lengths(suite: &Suite) -> Check {
    each::<dyn Coder>(suite, |setup| {
        let bound = &*setup.bound;
        each_short(setup, |stream, bytes| {
            for len in 0..bytes.len() {
                let decoded = survive("decode", || stream.decode(bound, &bytes[..len], 0))?;
                ensure(decoded.is_err(), || format!("the first {len} bytes alone are accepted"))?;
            }
            for tail in [&[0][..], &[0xff], &[0x80], &[0; 4], &[0xff; 64], bytes]
                .into_iter()
                .filter(|t| !t.is_empty())
            {
                let longer = [bytes, tail].concat();
                let decoded = survive("decode", || stream.decode(bound, &longer, 0))?;
                ensure(decoded.is_err(), || format!("{} trailing bytes are accepted", tail.len()))?;
            }
            Ok(())
        })
    })
}

/// Corrupt bytes of every kind that the check tries, one after the other.
fn each_corruption(bytes: &[u8], mut check: impl FnMut(&[u8]) -> Check) -> Check {
    let mut corrupt = bytes.to_vec();
    for at in 0..bytes.len() {
        // Heads of streams are where lengths and states are: there every bit, later one bit of each byte.
        let bits = (0..8).filter(|bit| at < 128 || at % 8 == *bit).map(|bit| 1 << bit);
        for mask in bits.chain([0xff]) {
            corrupt[at] = bytes[at] ^ mask;
            check(&corrupt).within(|| format!("byte {at} flipped with {mask:#04x}"))?;
        }
        corrupt[at] = bytes[at];
    }
    let mut random = Random::new(13);
    for round in 0..64 {
        let len = [bytes.len(), random.below(bytes.len() + 9)][round % 2];
        let noise: Vec<u8> = match round {
            0 => vec![0; len],
            2 => vec![0xff; len],
            _ => (0..len).map(|_| random.byte()).collect(),
        };
        check(&noise).within(|| format!("{len} random bytes"))?;
    }
    Ok(())
}

/// Whatever bytes hold: an error or symbols of the alphabets, never a panic.
///
/// # Errors
/// If the stage does not conform.
pub fn flips(suite: &Suite) -> Check {
    each::<dyn Coder>(suite, |setup| {
        each_short(setup, |stream, bytes| {
            each_corruption(bytes, |corrupt| stream.decode_corrupt(&*setup.bound, corrupt))
        })
    })
}

pub(crate) fn exercise(bound: &dyn BoundCoder, model: &Model, parts: &[Vec<Part>]) -> Check {
    let stream = Stream::new(parts, 0..model.planes.len(), 5, Spread::Flat, 1);
    // What it answers is its own business here.
    let encoded = survive("encode", || stream.encode(bound, 0))?;
    if let Ok(bytes) = encoded {
        stream.decode_corrupt(bound, &bytes)?;
    }
    let noise: Vec<u8> = std::iter::repeat_n(0x5a, 200).collect();
    stream.decode_corrupt(bound, &noise)
}

/// Calibration, data that do not fit, and data that travel with a chunk.
///
/// # Errors
/// If the stage does not conform.
pub fn calibration(suite: &Suite) -> Check {
    calibration::check::<dyn Coder>(suite)?;
    each::<dyn Coder>(suite, |setup| {
        let (Some(data), Source::Chunk) = (&setup.data, setup.source) else { return Ok(()) };
        let cx = setup.cx(None);
        let unpack = |bytes: &[u8]| survive("unpack", || setup.stage.unpack(&cx, bytes));
        let packed = setup.stage.pack(&cx, data).within(|| "pack".to_owned())?;
        // These data have been packed before, so whatever packing rounds is rounded.
        let back = unpack(&packed)?.within(|| "unpack".to_owned())?;
        ensure(back == *data, || "data change when they are packed and unpacked".to_owned())?;
        // Tables can be long; a few hundred places will do.
        let step = packed.len() / 300 + 1;
        for at in (0..packed.len()).step_by(step) {
            let cut = unpack(&packed[..at])?;
            ensure(cut.is_err(), || format!("the first {at} of {} packed bytes are accepted", packed.len()))?;
            for mask in [0xff, 0x01, 0x80] {
                let mut corrupt = packed.clone();
                corrupt[at] ^= mask;
                let place = || format!("packed byte {at} flipped with {mask:#04x}");
                let Ok(data) = unpack(&corrupt).within(place)? else { continue };
                calibration::check_foreign(setup, &data).within(place)?;
            }
        }
        Ok(())
    })
}

/// Calls do not allocate; corrupt bytes cause no allocation larger than an error's message, and corrupt tables
/// none much larger than good ones do.
///
/// # Errors
/// If the stage does not conform, or if nobody counts.
pub fn allocations(suite: &Suite) -> Check {
    require_counting()?;
    each::<dyn Coder>(suite, |setup| {
        let bound = &*setup.bound;
        let mut scratch = bound.scratch();
        each_stream(setup, true, |Stream { segments, symbols }| {
            let mut out = vec![0; bound.max_len(segments)];
            let mut len = 0;
            no_allocation("encode", || {
                len = bound.encode(segments, symbols, &mut out, &mut scratch)?;
                Ok::<_, Failure>(())
            })?;
            let mut back = vec![0; symbols.len()];
            no_allocation("decode", || bound.decode(segments, &out[..len], &mut back, &mut scratch))
        })?;
        greedy_tables(setup)?;
        each_short(setup, |stream, bytes| {
            let mut back = vec![0; stream.symbols.len()];
            // The scratch is warm only once this stream's segments have been seen.
            bound.decode(&stream.segments, bytes, &mut back, &mut scratch)?;
            each_corruption(bytes, |corrupt| {
                let (_, seen) = measure(|| bound.decode(&stream.segments, corrupt, &mut back, &mut scratch));
                ensure(seen.largest <= MESSAGE, || {
                    format!("corrupt bytes make it allocate {} bytes at once", seen.largest)
                })
            })
        })
    })
}

/// Sizes inside packed tables must be checked before memory is reserved for them.
fn greedy_tables(setup: &Setup<'_, dyn Coder>) -> Check {
    let (Some(data), Source::Chunk) = (&setup.data, setup.source) else { return Ok(()) };
    let cx = setup.cx(None);
    let packed = setup.stage.pack(&cx, data)?;
    let (good, seen) = measure(|| setup.stage.unpack(&cx, &packed));
    good?;
    let limit = UNPACK.max(4 * seen.largest);
    // Sizes are at the front; a few hundred bytes will do.
    for at in 0..packed.len().min(300) {
        for mask in [0xff, 0x01, 0x40, 0x80] {
            let mut corrupt = packed.clone();
            corrupt[at] ^= mask;
            let (_, seen) = measure(|| setup.stage.unpack(&cx, &corrupt));
            ensure(seen.largest <= limit, || {
                format!("corrupt tables make it allocate {} bytes at once; allowed are {limit}", seen.largest)
            })?;
        }
    }
    Ok(())
}
