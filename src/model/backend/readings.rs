//! Values of a step that the host reads together.
//!
//! On a device each look at a value waits for all work before it. So the tensors of a step say here that their values are
//! wanted, and one copy brings all of them at the end.

use std::ops::Range;

use candle_core::{DType, Result, Tensor};

/// Tensors whose values the host wants.
#[derive(Debug, Default)]
pub struct Readings {
    parts: Vec<Tensor>,
    length: usize,
}

/// Where the values of one tensor are among those that are read.
#[derive(Debug, Clone)]
pub struct Reading(Range<usize>);

/// Values that were read.
#[derive(Debug)]
pub struct ReadValues(Vec<f64>);

impl Readings {
    /// Wants the values of `tensor`, in row-major order. Every dtype of a model has room in float64.
    pub fn want(&mut self, tensor: &Tensor) -> Result<Reading> {
        let values = tensor.detach().flatten_all()?.to_dtype(DType::F64)?;
        let first = self.length;
        self.length += values.elem_count();
        if self.length > first {
            self.parts.push(values);
        }
        Ok(Reading(first..self.length))
    }

    /// Copies all values to the host, which waits for the device.
    pub fn read(self) -> Result<ReadValues> {
        if self.parts.is_empty() {
            return Ok(ReadValues(Vec::new()));
        }
        Ok(ReadValues(Tensor::cat(&self.parts, 0)?.to_vec1()?))
    }
}

impl ReadValues {
    /// The values of one tensor.
    ///
    /// # Panics
    /// If the reading is of other values.
    pub fn of(&self, reading: &Reading) -> &[f64] {
        &self.0[reading.0.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn values_of_all_dtypes_come_back_in_one_piece() {
        let mut readings = Readings::default();
        let floats = Tensor::new(&[[0.1f32, -2.5], [3.0, 4.0]], &Device::Cpu).unwrap();
        let counts = Tensor::new(&[7u32, 1 << 31], &Device::Cpu).unwrap();
        let scalar = Tensor::new(0.3f64, &Device::Cpu).unwrap();
        let none = Tensor::zeros(0, DType::F32, &Device::Cpu).unwrap();
        let [floats, none, counts, scalar] =
            [&floats, &none, &counts, &scalar].map(|tensor| readings.want(tensor).unwrap());
        let read = readings.read().unwrap();
        assert_eq!(read.of(&floats), [f64::from(0.1f32), -2.5, 3.0, 4.0]);
        assert_eq!(read.of(&counts), [7.0, 2_147_483_648.0]);
        assert_eq!(read.of(&scalar), [0.3]);
        assert!(read.of(&none).is_empty());
        let nothing = Readings::default().read().unwrap();
        assert!(nothing.of(&Reading(0..0)).is_empty());
    }
}
