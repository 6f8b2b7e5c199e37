//! Files that hold what a stage once made of fixed inputs: changed bytes need a new format version.
//!
//! A file is named after the spec and the stage's format version, and holds inputs as well as outputs (it is a
//! safetensors file), so that it goes on working when the kit's inputs change. With `CACHEG_WRITE_GOLDEN=1`
//! missing files are written; files that exist are never written again.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use ndarray::Array2;
use serde_json::Value;

use super::bind::{Setup, Unbound};
use super::coder::{Spread, Stream};
use super::grid::{Lie, POISONS};
use super::models::{CODED, Layout, PARTS, PLANES, model};
use super::quantizer::Piece;
use super::suite::{Case, Within, ensure};
use super::transform::{PLAIN, drive};
use super::{Check, Failure, Suite, kv_like};
use crate::data::Tensor;
use crate::spec::{self, StageSpec};
use crate::{Alphabet, Coder, Error, Quantizer, Role, Segment, StageData, TileCx, Transform};

/// Set to `1` to write the files that are missing.
pub const WRITE: &str = "CACHEG_WRITE_GOLDEN";

/// Tokens of the inputs.
const ROWS: usize = 21;

/// Golden files of a transform: parts and inverse of some tiles.
///
/// # Errors
/// If results have changed, or a file is missing.
pub fn transform(suite: &Suite, dir: &Path) -> Check {
    check::<dyn Transform>(suite, dir, &PLANES[0], |setup, old, new| {
        for plane in &setup.model.planes {
            let tile = TileCx::new(plane, 0, ROWS, 1000);
            let name = |what: &str| format!("{}.{what}", plane.name());
            let x = input(old, &name("input"), (ROWS, plane.channels()), || {
                kv_like(plane.shape.dtype, Role::Whole, ROWS, plane.channels(), plane.index as u64)
            })?;
            let driven = drive((&*setup.bound, &setup.model.planes), &tile, &x, PLAIN)?;
            put(new, &name("input"), &x);
            for (index, part) in driven.parts.iter().enumerate() {
                put(new, &name(&format!("part.{index}")), part);
            }
            put(new, &name("inverse"), &driven.back);
        }
        Ok(())
    })
}

/// Golden files of a quantizer: symbols, side information, escapes and reconstructions of some parts.
///
/// # Errors
/// If results have changed, or a file is missing.
pub fn quantizer(suite: &Suite, dir: &Path) -> Check {
    check::<dyn Quantizer>(suite, dir, &PARTS[1], |setup, old, new| {
        for plane in &setup.model.planes {
            for (index, part) in setup.parts[plane.index].iter().enumerate() {
                let piece = Piece::new(&*setup.bound, TileCx::new(plane, 0, ROWS, 1000), index, part);
                let name = |what: &str| format!("{}.part.{index}.{what}", plane.name());
                let shape = (piece.cx.rows, piece.cx.cols);
                let x = input(old, &name("input"), shape, || piece.sample())?;
                let coded = piece.quantize(&x, Lie::RowMajor, POISONS[0])?;
                put(new, &name("input"), &x);
                put(new, &name("output"), &piece.dequantize(&coded, Lie::RowMajor, POISONS[0])?);
                new.put_u8(&name("symbols"), &[coded.symbols.len()], &coded.symbols);
                new.put_u8(&name("side"), &[coded.side.len()], &coded.side);
                let escapes: Vec<u32> = coded
                    .escapes
                    .items()
                    .iter()
                    .flat_map(|&(at, value)| [at, value.cast_unsigned()])
                    .collect();
                new.put_u32(&name("escapes"), &[escapes.len()], &escapes);
            }
        }
        Ok(())
    })
}

/// Golden files of a coder: streams of several distributions, and the tables that travel with a chunk.
///
/// # Errors
/// If bytes have changed, or a file is missing.
pub fn coder(suite: &Suite, dir: &Path) -> Check {
    check::<dyn Coder>(suite, dir, &CODED[1], |setup, old, new| {
        if let Some(data) = &setup.data {
            let packed = setup.stage.pack(&setup.cx(Some(data)), data)?;
            new.put_u8("packed", &[packed.len()], &packed);
        }
        for (index, spread) in Spread::ALL.into_iter().enumerate() {
            let name = |what: &str| format!("stream.{index}.{what}");
            let stream = match old {
                None => Stream::new(&setup.parts, 0..setup.model.planes.len(), ROWS, spread, 1),
                Some(old) => Stream {
                    segments: segments(&old.get_u32(&name("segments"))?.1)?,
                    symbols: old.get_u8(&name("symbols"))?.1,
                },
            };
            let bytes = stream.encode(&*setup.bound, 0)?;
            let back = stream.decode(&*setup.bound, &bytes, 0)?;
            let numbers: Vec<u32> = stream.segments.iter().flat_map(numbers).collect();
            new.put_u32(&name("segments"), &[stream.segments.len(), 7], &numbers);
            new.put_u8(&name("symbols"), &[back.len()], &back);
            new.put_u8(&name("bytes"), &[bytes.len()], &bytes);
        }
        Ok(())
    })
}

fn numbers(segment: &Segment) -> [u32; 7] {
    let Segment { plane, part, symbol_plane, rows, cols, alphabet, .. } = *segment;
    let [plane, part, symbol_plane, rows, cols] = [plane, part, symbol_plane, rows, cols].map(|n| n as u32);
    [plane, part, symbol_plane, rows, cols, alphabet.size.into(), alphabet.escape.into()]
}

fn segments(numbers: &[u32]) -> Result<Vec<Segment>, Failure> {
    let segment = |&[plane, part, symbol_plane, rows, cols, size, escape]: &[u32; 7]| {
        let [plane, part, symbol_plane, rows, cols] =
            [plane, part, symbol_plane, rows, cols].map(|n| n as usize);
        let size = u16::try_from(size).map_err(|e| Failure::new(format!("alphabet: {e}")))?;
        let alphabet = Alphabet { size, escape: escape == 1 };
        Ok(Segment::new(plane, part, symbol_plane, rows, cols, alphabet))
    };
    numbers.as_chunks().0.iter().map(segment).collect()
}

/// Computes everything anew, from the inputs of the file if there is one, and compares.
fn check<S: Unbound + ?Sized>(
    suite: &Suite,
    dir: &Path,
    layout: &Layout,
    trace: impl Fn(&Setup<'_, S>, Option<&StageData>, &mut StageData) -> Check,
) -> Check {
    // Both are part of every file ever written: change neither.
    let model = model("different layers")?;
    let parts = || model.planes.iter().map(layout.parts).collect();
    for case in &suite.cases()? {
        let path = dir.join(file_name(suite, case));
        let place = || path.display().to_string();
        let source = suite.sources[0];
        let old = read(&path).within(place)?;
        let setup: Setup<'_, S> = match old.as_ref().map(|old| old.get_u8("data")) {
            None => Setup::new(suite, case, &model, parts(), source),
            Some(data) => {
                let data = data.ok().map(|(_, bytes)| StageData::from_bytes(&bytes)).transpose()?;
                Setup::with_data(suite, case, &model, parts(), source, data)
            }
        }
        .within(place)?;
        let mut new = StageData::new();
        if let Some(data) = &setup.data {
            let bytes = data.to_bytes()?;
            new.put_u8("data", &[bytes.len()], &bytes);
        }
        trace(&setup, old.as_ref(), &mut new).within(place)?;
        match old {
            Some(old) => compare(&old, &new, suite.golden_bound).within(place)?,
            None => write(&path, &new).within(place)?,
        }
    }
    Ok(())
}

/// `acme.gamma(k=3)` of version 1 is `acme.gamma_k=3.v1.safetensors`: no character that a file system minds,
/// and the same for a spec string and for JSON, whatever the order of the settings.
fn file_name(suite: &Suite, case: &Case) -> String {
    let sorted: BTreeMap<_, _> = case.config.as_object().into_iter().flatten().collect();
    let config = sorted.into_iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    let spec = StageSpec { name: suite.plugin.name.to_owned(), version: None, config: Value::Object(config) };
    let plain = |c: char| if c.is_ascii_alphanumeric() || ".-=".contains(c) { c } else { '_' };
    let text: String = spec::format(&[spec]).chars().map(plain).collect();
    format!("{}.v{}.safetensors", text.trim_matches('_'), suite.plugin.version)
}

fn read(path: &Path) -> Result<Option<StageData>, Failure> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(StageData::from_bytes(&bytes)?)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("read", path, e).into()),
    }
}

fn write(path: &Path, data: &StageData) -> Check {
    if std::env::var_os(WRITE).is_none_or(|value| value != "1") {
        return Err(Failure::new(format!(
            "there is no such golden file. If the stage, the spec or the format version is new, run the test \
             once with {WRITE}=1 and commit the file. Otherwise it was lost: restore it"
        )));
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
    }
    let bytes = data.to_bytes()?;
    // Not `fs::write`, which would replace a file that another test has just written.
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    file.and_then(|mut file| file.write_all(&bytes)).map_err(|e| Error::io("write", path, e))?;
    Ok(())
}

fn compare(old: &StageData, new: &StageData, bound: f32) -> Check {
    let names = |data: &StageData| data.tensors().map(|(name, _)| name.to_owned()).collect::<Vec<_>>();
    let advice = "if that is intended, raise the plug-in's version and write new golden files";
    ensure(names(old) == names(new), || format!("holds {:?}, not {:?}; {advice}", names(old), names(new)))?;
    for ((name, old), (_, new)) in old.tensors().zip(new.tensors()) {
        let same = old == new || near(old, new, bound);
        let at = old.bytes.iter().zip(&new.bytes).position(|(old, new)| old != new);
        ensure(same, || format!("`{name}` has changed, first at byte {at:?}; {advice}"))?;
    }
    Ok(())
}

fn near(old: &Tensor, new: &Tensor, bound: f32) -> bool {
    let floats =
        |t: &Tensor| -> Vec<f32> { t.bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect() };
    let comparable =
        (old.dtype, &old.shape) == (new.dtype, &new.shape) && old.dtype == safetensors::Dtype::F32;
    if !comparable || bound == 0.0 {
        return false;
    }
    let (old, new) = (floats(old), floats(new));
    let allowed = bound * old.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    old.iter().zip(&new).all(|(old, new)| (old - new).abs() <= allowed)
}

fn input(
    old: Option<&StageData>,
    name: &str,
    shape: (usize, usize),
    make: impl FnOnce() -> Array2<f32>,
) -> Result<Array2<f32>, Failure> {
    let Some(old) = old else { return Ok(make()) };
    let (_, values) = old.get_f32(name)?;
    Array2::from_shape_vec(shape, values).map_err(|e| Failure::new(format!("`{name}`: {e}")))
}

fn put(data: &mut StageData, name: &str, values: &Array2<f32>) {
    let (rows, cols) = values.dim();
    data.put_f32(name, &[rows, cols], &values.iter().copied().collect::<Vec<_>>());
}
