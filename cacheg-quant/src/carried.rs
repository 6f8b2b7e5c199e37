//! Calibrated numbers that are kept as bfloat16: two bytes each matter where a chunk carries them, and
//! precision does not, as encoder and decoder read the same numbers.

use cacheg_core::{Dtype, Error, Result, Source, StageData};

/// Rounds to the nearest bfloat16, ties to even; beyond the range to the largest finite one.
pub(crate) fn bf16(v: f64) -> u16 {
    let mut bytes = [0; 2];
    Dtype::Bf16.narrow(&[v as f32], &mut bytes);
    u16::from_le_bytes(bytes)
}

/// The number that bfloat16 bits stand for.
pub(crate) fn widen(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// What is wrong with data, by where they come from.
pub(crate) fn fault(source: Source, why: String) -> Error {
    match source {
        Source::Profile => Error::profile(why),
        Source::Chunk => Error::corrupt(why),
    }
}

/// The `len` numbers of a tensor of bfloat16 bits.
///
/// # Errors
/// If there is no such tensor, of another length, or with numbers that are not finite: a
/// [`Corrupt`](cacheg_core::ErrorKind::Corrupt) or a [`Profile`](cacheg_core::ErrorKind::Profile) error.
pub(crate) fn get(data: &StageData, name: &str, len: usize, source: Source) -> Result<Vec<f32>> {
    let fault = |why| fault(source, why);
    let bits = data.get_u16(name).map_err(|e| fault(e.to_string()))?.1;
    if bits.len() != len {
        return Err(fault(format!("`{name}` has {} numbers, this model needs {len}", bits.len())));
    }
    let values: Vec<f32> = bits.into_iter().map(widen).collect();
    if values.iter().any(|v| !v.is_finite()) {
        return Err(fault(format!("`{name}` holds numbers that are not finite")));
    }
    Ok(values)
}

/// The `len` signed numbers of a tensor of bytes.
///
/// # Errors
/// As [`get`], and if a number is beyond ± `most`.
pub(crate) fn signed(data: &StageData, name: &str, len: usize, most: i8, source: Source) -> Result<Vec<i8>> {
    let fault = |why| fault(source, why);
    let bytes = data.get_u8(name).map_err(|e| fault(e.to_string()))?.1;
    if bytes.len() != len {
        return Err(fault(format!("`{name}` has {} numbers, this model needs {len}", bytes.len())));
    }
    let numbers: Vec<i8> = bytes.into_iter().map(u8::cast_signed).collect();
    match numbers.iter().find(|number| number.unsigned_abs() > most.unsigned_abs()) {
        Some(number) => Err(fault(format!("`{name}` holds {number}, which is beyond ± {most}"))),
        None => Ok(numbers),
    }
}

/// Keeps signed numbers as a tensor of bytes.
pub(crate) fn put_signed(data: &mut StageData, name: &str, numbers: &[i8]) {
    let bytes: Vec<u8> = numbers.iter().map(|number| number.cast_unsigned()).collect();
    data.put_u8(name, &[bytes.len()], &bytes);
}

/// Joins the planes' tensors of bytes of some names.
///
/// # Errors
/// If a plane lacks one.
pub(crate) fn join_bytes(names: &[&str], planes: &[StageData]) -> Result<StageData> {
    let mut data = StageData::new();
    for name in names {
        let mut all = Vec::new();
        for plane in planes {
            all.extend(plane.get_u8(name)?.1);
        }
        data.put_u8(name, &[all.len()], &all);
    }
    Ok(data)
}

/// Joins the planes' tensors of one name.
///
/// # Errors
/// If a plane has none.
pub(crate) fn join(name: &str, planes: &[StageData]) -> Result<StageData> {
    let mut all = Vec::new();
    for plane in planes {
        all.extend(plane.get_u16(name)?.1);
    }
    let mut data = StageData::new();
    data.put_u16(name, &[all.len()], &all);
    Ok(data)
}
