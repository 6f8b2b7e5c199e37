//! Long KV caches: the embedded real one again and again, each time a little different.

use std::fs::File;
use std::path::Path;

use cacheg::core::{KvFileMut, kv_metadata};
use cacheg::{Error, KvFile, KvView, Result};

/// Writes a safetensors file of so many tokens, and never holds more than a repetition.
pub(crate) fn write(path: &Path, tokens: usize) -> Result<()> {
    let sample = cacheg::sample()?;
    let view = sample.view();
    let mut options = File::options();
    let file = options.read(true).write(true).create_new(true).open(path);
    let file = file.map_err(|e| Error::io("cannot make", path, e))?;
    let metadata = kv_metadata(&KvFile::view(&sample));
    let mut out = KvFileMut::open(&file, path, view.geometry(), tokens, 0, &metadata)?;
    let mut values = Vec::new();
    for (turn, first) in (0..tokens).step_by(view.tokens()).enumerate() {
        copy(&view, turn, first, view.tokens().min(tokens - first), &mut out, &mut values)?;
    }
    Ok(())
}

fn copy(
    view: &KvView<'_>,
    turn: usize,
    first: usize,
    rows: usize,
    out: &mut KvFileMut,
    values: &mut Vec<f32>,
) -> Result<()> {
    // Exact in f16's ten bits for few values: almost all are rounded another way in each repetition.
    let factor = 1.0 + (turn % 61) as f32 / 1_024.0;
    let mut target = out.view_mut()?;
    for plane in target.planes_mut() {
        let (index, channels) = (plane.plane().index, plane.plane().channels());
        values.resize(rows * channels, 0.0);
        view.load(index, 0, rows, values);
        values.iter_mut().for_each(|value| *value *= factor);
        plane.store(first, rows, values);
    }
    Ok(())
}
