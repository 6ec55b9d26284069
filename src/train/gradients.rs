//! Gradients of the trainable parameters, added up in float32 as they come.

use candle_core::{CpuStorage, DType, InplaceOp2, Layout, Storage, StorageRef, Tensor};
use rayon::prelude::*;

use super::adamw::PIECE;

/// Sums of squares of one parameter's update.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Sums {
    /// Of the weights before.
    pub(super) weights: f64,
    /// Of what was added to them.
    pub(super) changes: f64,
}

impl Sums {
    pub(super) fn total(parts: &[Self]) -> Self {
        parts.iter().fold(Self::default(), |sum, part| Self {
            weights: sum.weights + part.weights,
            changes: sum.changes + part.changes,
        })
    }
}

/// One gradient a parameter, absent until something is added.
#[derive(Debug)]
pub(super) struct Gradients {
    slots: Vec<Slot>,
}

#[derive(Debug, Default)]
enum Slot {
    #[default]
    Empty,
    /// As it came: its numbers may be those of another tensor too.
    Taken(Tensor),
    /// A sum that nobody else holds, which changes in place.
    Own(Tensor),
}

impl Gradients {
    pub(super) fn new(parameters: usize) -> Self {
        Self {
            slots: (0..parameters).map(|_| Slot::Empty).collect(),
        }
    }

    /// Adds to the gradient of parameter number `parameter`; the graph behind `gradient` is let go.
    pub(super) fn add(&mut self, parameter: usize, gradient: &Tensor) -> candle_core::Result<()> {
        // A product's gradient often comes transposed.
        let gradient = gradient.detach().to_dtype(DType::F32)?.contiguous()?;
        let slot = &mut self.slots[parameter];
        *slot = match std::mem::take(slot) {
            Slot::Empty => Slot::Taken(gradient),
            Slot::Taken(sum) => Slot::Own((sum + gradient)?.detach()),
            Slot::Own(sum) if sum.device().is_cpu() => {
                sum.inplace_op2(&gradient, &AddInPlace)?;
                Slot::Own(sum)
            }
            Slot::Own(sum) => Slot::Own((sum + gradient)?.detach()),
        };
        Ok(())
    }

    /// The gradient of a parameter, where something was added.
    pub(super) fn get(&self, parameter: usize) -> Option<&Tensor> {
        match &self.slots[parameter] {
            Slot::Empty => None,
            Slot::Taken(tensor) | Slot::Own(tensor) => Some(tensor),
        }
    }

    /// The sum of the squares of each gradient in float64, the same on any number of threads.
    pub(super) fn squares(&self) -> candle_core::Result<Vec<f64>> {
        (0..self.slots.len())
            .map(|parameter| self.get(parameter).map_or(Ok(0.0), squares))
            .collect()
    }
}

fn squares(tensor: &Tensor) -> candle_core::Result<f64> {
    if !tensor.device().is_cpu() {
        return tensor.sqr()?.sum_all()?.to_scalar::<f32>().map(f64::from);
    }
    let values = tensor.storage_and_layout();
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

/// The values of a contiguous float32 tensor on the CPU.
pub(super) fn floats<'a>(
    (storage, layout): &'a (StorageRef<'_>, &Layout),
) -> candle_core::Result<&'a [f32]> {
    match (&**storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => Ok(&values[start..end]),
        _ => candle_core::bail!("expected contiguous float32 on the CPU"),
    }
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
    ) -> candle_core::Result<()> {
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
        let (one, two) = (tensor(1.0), tensor(2.0));
        let mut gradients = Gradients::new(2);
        for part in [&one, &two, &one] {
            gradients.add(0, part).unwrap();
        }
        assert_eq!(
            gradients.get(0).unwrap().to_vec1::<f32>().unwrap(),
            [4.0; 5]
        );
        assert_eq!(gradients.squares().unwrap(), [80.0, 0.0]);
        assert!(gradients.get(1).is_none());
        assert_eq!(one.to_vec1::<f32>().unwrap(), [1.0; 5]);
    }
}
