//! What calibration makes of a stage: named tensors.

use std::collections::BTreeMap;

use safetensors::tensor::{Dtype, TensorView};

use crate::tensor_file::{self, Header, quoted};
use crate::{Error, Limits, Result};

/// A stage's calibrated data.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StageData {
    tensors: BTreeMap<String, Tensor>,
}

/// One tensor, little-endian.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tensor {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

macro_rules! typed {
    ($($type:ty, $dtype:ident, $put:ident, $get:ident, $name:literal;)*) => { $(
        #[doc = concat!("Adds a tensor of `", $name, "`.")]
        ///
        /// # Panics
        /// If the shape does not fit the number of values.
        pub fn $put(&mut self, name: &str, shape: &[usize], values: &[$type]) {
            assert_eq!(shape.iter().product::<usize>(), values.len(), "shape of `{name}`");
            let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            self.tensors.insert(name.to_owned(), Tensor { dtype: Dtype::$dtype, shape: shape.to_vec(), bytes });
        }

        #[doc = concat!("A tensor of `", $name, "`: its shape and values.")]
        ///
        /// # Errors
        /// If there is none of that name and type.
        pub fn $get(&self, name: &str) -> Result<(&[usize], Vec<$type>)> {
            let tensor = self.tensors.get(name).filter(|t| t.dtype == Dtype::$dtype)
                .ok_or_else(|| Error::profile(format!("no tensor `{name}` of {}", $name)))?;
            let values = tensor.bytes.as_chunks().0.iter().map(|b| <$type>::from_le_bytes(*b)).collect();
            Ok((&tensor.shape, values))
        }
    )* };
}

impl StageData {
    /// No tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    typed! {
        u8, U8, put_u8, get_u8, "u8";
        u16, U16, put_u16, get_u16, "u16";
        u32, U32, put_u32, get_u32, "u32";
        f32, F32, put_f32, get_f32, "f32";
        f64, F64, put_f64, get_f64, "f64";
    }

    pub(crate) fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Adds a tensor of a file.
    pub(crate) fn insert(&mut self, name: &str, tensor: &tensor_file::Tensor, file: &[u8]) -> Result<()> {
        let dtype = match tensor.dtype.as_str() {
            "U8" => Dtype::U8,
            "U16" => Dtype::U16,
            "U32" => Dtype::U32,
            "F32" => Dtype::F32,
            "F64" => Dtype::F64,
            other => {
                return Err(Error::corrupt(format!("stage data {} of type {}", quoted(name), quoted(other))));
            }
        };
        // They were multiplied when the header was read; only an empty tensor's may be beyond memory.
        let shape =
            tensor.shape.iter().map(|n| usize::try_from(*n)).collect::<std::result::Result<Vec<_>, _>>();
        let shape = shape.map_err(|_| Error::corrupt(format!("the shape of stage data {}", quoted(name))))?;
        let bytes = file[tensor.range.clone()].to_vec();
        self.tensors.insert(name.to_owned(), Tensor { dtype, shape, bytes });
        Ok(())
    }

    /// As a safetensors file.
    ///
    /// # Errors
    /// If there are more tensors than such a file can hold.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let views = self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.view()));
        safetensors::serialize(views.collect::<Vec<_>>(), None).map_err(|e| Error::data(e.to_string()))
    }

    /// From a safetensors file.
    ///
    /// # Errors
    /// If it is none.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let header = Header::parse(bytes, &Limits::default())?;
        let mut data = Self::new();
        for (name, tensor) in &header.tensors {
            data.insert(name, tensor, bytes)?;
        }
        Ok(data)
    }
}

impl Tensor {
    pub(crate) fn view(&self) -> TensorView<'_> {
        #[expect(clippy::expect_used, reason = "constructors check the length against the shape")]
        TensorView::new(self.dtype, self.shape.clone(), &self.bytes).expect("shape fits the bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_come_back_and_types_are_checked() {
        let mut data = StageData::new();
        data.put_f32("mean", &[2, 1], &[1.5, -2.0]);
        data.put_u16("freq", &[3], &[1, 2, 65535]);
        let back = StageData::from_bytes(&data.to_bytes().unwrap()).unwrap();
        assert_eq!(back, data);
        assert_eq!(back.get_u16("freq").unwrap(), (&[3][..], vec![1, 2, 65535]));
        assert!(back.get_u8("freq").is_err() && back.get_f32("other").is_err());
        assert!(StageData::from_bytes(&[1, 2, 3]).is_err());
    }
}
