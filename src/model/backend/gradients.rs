//! Gradients of the trainable parameters, added up in float32 as they come.

use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, D, DType, InplaceOp2, Layout, Result, Tensor, TensorId, Var};
use rayon::prelude::*;

use super::host::{PIECE, Residence, floats};
use super::readings::{ReadValues, Reading, Readings};

/// One gradient per trainable parameter, absent until something is added.
#[derive(Debug)]
pub struct Gradients {
    places: HashMap<TensorId, usize>,
    slots: Vec<Slot>,
    residence: Residence,
}

#[derive(Debug, Default)]
enum Slot {
    #[default]
    Empty,
    /// The first gradient, which may share its numbers with another tensor.
    Shared(Tensor),
    /// A sum that nobody else holds, which changes in place.
    Own(Tensor),
}

impl Gradients {
    /// Empty buffers of these parameters, numbered in their order.
    pub(super) fn new<'a>(
        parameters: impl IntoIterator<Item = &'a Var>,
        residence: Residence,
    ) -> Self {
        let places: HashMap<TensorId, usize> = parameters
            .into_iter()
            .enumerate()
            .map(|(number, var)| (var.id(), number))
            .collect();
        let slots = (0..places.len()).map(|_| Slot::Empty).collect();
        Self {
            places,
            slots,
            residence,
        }
    }

    /// Adds to the gradient of `parameter`; a tensor that is not trained has no buffer, and nothing happens.
    pub(super) fn add(&mut self, parameter: &Tensor, gradient: &Tensor) -> Result<()> {
        match self.places.get(&parameter.id()) {
            Some(number) => self.add_to(*number, gradient),
            None => Ok(()),
        }
    }

    /// Adds the gradients of parameters that candle's autograd has found.
    pub(super) fn add_all(&mut self, store: &GradStore) -> Result<()> {
        let found: Vec<(usize, &Tensor)> = store
            .get_ids()
            .filter_map(|id| Some((*self.places.get(id)?, store.get_id(*id)?)))
            .collect();
        found
            .into_iter()
            .try_for_each(|(number, gradient)| self.add_to(number, gradient))
    }

    fn add_to(&mut self, number: usize, gradient: &Tensor) -> Result<()> {
        // The gradient of a matmul's second factor often comes transposed.
        let gradient = gradient.detach().to_dtype(DType::F32)?.contiguous()?;
        let slot = &mut self.slots[number];
        *slot = match std::mem::take(slot) {
            Slot::Empty => Slot::Shared(gradient),
            Slot::Shared(sum) => Slot::Own((sum + gradient)?.detach()),
            Slot::Own(sum) if self.residence == Residence::Host => {
                sum.inplace_op2(&gradient, &AddInPlace)?;
                Slot::Own(sum)
            }
            Slot::Own(sum) => Slot::Own((sum + gradient)?.detach()),
        };
        Ok(())
    }

    /// The gradient of parameter `number` in float32, if anything was added.
    pub fn get(&self, number: usize) -> Option<&Tensor> {
        match &self.slots[number] {
            Slot::Empty => None,
            Slot::Shared(tensor) | Slot::Own(tensor) => Some(tensor),
        }
    }

    /// The sum of the squares of each gradient, the same on any number of threads. It is taken in float64 on the host, and in
    /// float32 on a device, where the values wait among `readings`.
    pub fn squares(&self, readings: &mut Readings) -> Result<GradientSquares> {
        let gradients = (0..self.slots.len()).map(|number| self.get(number));
        match self.residence {
            Residence::Host => gradients
                .map(|gradient| gradient.map_or(Ok(0.0), square_on_host))
                .collect::<Result<_>>()
                .map(GradientSquares::Known),
            Residence::Device => gradients
                .map(|gradient| {
                    gradient
                        .map(|gradient| readings.want(&sum_of_squares(gradient)?))
                        .transpose()
                })
                .collect::<Result<_>>()
                .map(GradientSquares::Waiting),
        }
    }
}

/// The sum of the squares of each gradient, zero for a parameter without one.
#[derive(Debug)]
pub enum GradientSquares {
    /// Values on the host.
    Known(Vec<f64>),
    /// Values that wait among readings.
    Waiting(Vec<Option<Reading>>),
}

impl GradientSquares {
    /// The values, out of those that were read.
    pub fn values(self, read: &ReadValues) -> Vec<f64> {
        match self {
            Self::Known(values) => values,
            Self::Waiting(readings) => readings
                .iter()
                .map(|reading| {
                    reading
                        .as_ref()
                        .map_or(0.0, |reading| read.of(reading).iter().sum())
                })
                .collect(),
        }
    }
}

/// The sum of the squares of a float32 tensor, a scalar on its device.
///
/// Rows are summed first: a device sums a whole tensor at once on one of its many processors.
pub(super) fn sum_of_squares(x: &Tensor) -> Result<Tensor> {
    let squares = x.sqr()?;
    if squares.rank() < 2 {
        return squares.sum_all();
    }
    squares.sum(D::Minus1)?.sum_all()
}

fn square_on_host(gradient: &Tensor) -> Result<f64> {
    let values = gradient.storage_and_layout();
    let pieces: Vec<f64> = floats(&values)?
        .par_chunks(PIECE)
        .map(|piece| {
            const LANES: usize = 16;
            let mut lanes = [0f64; LANES];
            for row in piece.chunks(LANES) {
                for (lane, value) in lanes.iter_mut().zip(row) {
                    *lane += f64::from(*value) * f64::from(*value);
                }
            }
            lanes.iter().sum()
        })
        .collect();
    Ok(pieces.iter().sum())
}

struct AddInPlace;

impl InplaceOp2 for AddInPlace {
    fn name(&self) -> &'static str {
        "add-in-place"
    }

    fn cpu_fwd(
        &self,
        sum: &mut CpuStorage,
        sum_layout: &Layout,
        part: &CpuStorage,
        part_layout: &Layout,
    ) -> Result<()> {
        let places = (
            sum_layout.contiguous_offsets(),
            part_layout.contiguous_offsets(),
        );
        let (CpuStorage::F32(sum), CpuStorage::F32(part), (Some((a, b)), Some((c, d)))) =
            (sum, part, places)
        else {
            candle_core::bail!("expected contiguous float32");
        };
        sum[a..b]
            .par_chunks_mut(PIECE)
            .zip(part[c..d].par_chunks(PIECE))
            .for_each(|(sum, part)| {
                sum.iter_mut()
                    .zip(part)
                    .for_each(|(sum, part)| *sum += part);
            });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn gradients_add_up_without_touching_what_was_given() {
        let tensor = |value: f32| Tensor::full(value, 5, &Device::Cpu).unwrap();
        let vars = [0.0, 0.0].map(|value| Var::from_tensor(&tensor(value)).unwrap());
        for residence in [Residence::Host, Residence::Device] {
            let (one, two) = (tensor(1.0), tensor(2.0));
            let mut gradients = Gradients::new(&vars, residence);
            for part in [&one, &two, &one] {
                gradients.add(&vars[0], part).unwrap();
            }
            gradients.add(&one, &two).unwrap();
            let sum = gradients.get(0).unwrap();
            assert_eq!(sum.to_vec1::<f32>().unwrap(), [4.0; 5]);
            let mut readings = Readings::default();
            let squares = gradients.squares(&mut readings).unwrap();
            let read = readings.read().unwrap();
            assert_eq!(squares.values(&read), [80.0, 0.0]);
            assert!(gradients.get(1).is_none());
            assert_eq!(one.to_vec1::<f32>().unwrap(), [1.0; 5]);
        }
    }

    #[test]
    fn sums_of_rows_are_sums_of_the_whole() {
        for shape in [&[7usize][..], &[300, 70], &[3, 5, 11], &[1, 1]] {
            let count: usize = shape.iter().product();
            let values: Vec<f32> = (1..=count).map(|i| (i as f32 * 0.37).sin()).collect();
            let exact: f64 = values.iter().map(|x| f64::from(*x).powi(2)).sum();
            let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
            let found = sum_of_squares(&tensor).unwrap();
            let found = f64::from(found.to_scalar::<f32>().unwrap());
            assert!(
                (found / exact - 1.0).abs() < 1e-6,
                "{shape:?}: {found} {exact}"
            );
        }
    }
}
