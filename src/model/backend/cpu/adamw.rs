//! AdamW in place over float32 on the host, in pieces over all cores.
//!
//! Float32 variables are their own master weights. Variables of other dtypes have master weights here, and are rounded from them.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor, Var};
use rayon::prelude::*;

use crate::model::backend::host::{PIECE, floats};
use crate::model::backend::optimiser::{
    AdamW, Constants, HeldValues, HostValues, MeasuredUpdate, OptimiserState, StatePart, Update,
    UpdateSums,
};

/// The state of a parameter on the CPU.
#[derive(Debug)]
pub(in crate::model::backend) struct HostState {
    var: Var,
    /// Absent where the variable itself is float32.
    master: Option<Vec<f32>>,
    first: Vec<f32>,
    second: Vec<f32>,
}

impl HostState {
    /// The state before the first update; `master` holds the float32 weights of a variable of another dtype.
    pub(in crate::model::backend) fn new(var: &Var, master: Option<Vec<f32>>) -> Self {
        Self {
            var: var.clone(),
            master,
            first: vec![0.0; var.elem_count()],
            second: vec![0.0; var.elem_count()],
        }
    }
}

impl OptimiserState for HostState {
    fn download(&self, part: StatePart) -> Result<HostValues<'_>> {
        Ok(match (part, &self.master) {
            (StatePart::First, _) => HostValues::Slice(&self.first),
            (StatePart::Second, _) => HostValues::Slice(&self.second),
            (StatePart::Master, Some(master)) => HostValues::Slice(master),
            (StatePart::Master, None) => HostValues::Held(HeldValues::of(&self.var)?),
        })
    }

    fn upload(&mut self, part: StatePart, values: Vec<f32>) -> Result<()> {
        match part {
            StatePart::First => self.first = values,
            StatePart::Second => self.second = values,
            StatePart::Master => {
                let tensor = Tensor::from_slice(&values, self.var.shape(), self.var.device())?;
                self.var.set(&tensor.to_dtype(self.var.dtype())?)?;
                if self.master.is_some() {
                    self.master = Some(values);
                }
            }
        }
        Ok(())
    }

    fn update(
        &mut self,
        adamw: &AdamW,
        update: &Update,
        gradient: Option<&Tensor>,
    ) -> Result<MeasuredUpdate> {
        let constants = adamw.constants(update);
        let held = gradient.map(Tensor::storage_and_layout);
        let gradient = held.as_ref().map(floats).transpose()?;
        let (first, second) = (&mut self.first, &mut self.second);
        let Some(master) = &mut self.master else {
            let update = InPlace {
                constants,
                gradient,
                work: Mutex::new((first, second, UpdateSums::default())),
            };
            self.var.inplace_op1(&update)?;
            let work = update.work.into_inner();
            let (.., sums) = work.unwrap_or_else(PoisonError::into_inner);
            return Ok(MeasuredUpdate::Known(sums));
        };

        let sums = kernel(&constants, master, first, second, gradient);
        let rounded = Tensor::from_slice(master, self.var.shape(), self.var.device())?;
        self.var.set(&rounded.to_dtype(self.var.dtype())?)?;
        Ok(MeasuredUpdate::Known(sums))
    }
}

/// The update as candle's operation in place.
struct InPlace<'a> {
    constants: Constants,
    gradient: Option<&'a [f32]>,
    /// The moments, and the sums that the kernel returns.
    work: Mutex<(&'a mut Vec<f32>, &'a mut Vec<f32>, UpdateSums)>,
}

impl InplaceOp1 for InPlace<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets())
        else {
            candle_core::bail!("expected a contiguous float32 parameter");
        };
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let (first, second, sums) = &mut *work;
        *sums = kernel(
            &self.constants,
            &mut values[start..end],
            first,
            second,
            self.gradient,
        );
        Ok(())
    }
}

/// Updates all elements, in pieces over all cores.
fn kernel(
    c: &Constants,
    values: &mut [f32],
    first: &mut [f32],
    second: &mut [f32],
    gradient: Option<&[f32]>,
) -> UpdateSums {
    let zeros = [0.0; PIECE];
    let pieces = values
        .par_chunks_mut(PIECE)
        .zip(first.par_chunks_mut(PIECE))
        .zip(second.par_chunks_mut(PIECE));
    let sums: Vec<UpdateSums> = pieces
        .enumerate()
        .map(|(number, ((values, first), second))| {
            let start = number * PIECE;
            let gradient = gradient.map_or(&zeros[..values.len()], |gradient| {
                &gradient[start..][..values.len()]
            });
            piece(c, values, first, second, gradient)
        })
        .collect();
    UpdateSums::total(&sums)
}

/// Updates one piece; the sums are kept in as many lanes as vectors have.
fn piece(
    c: &Constants,
    values: &mut [f32],
    first: &mut [f32],
    second: &mut [f32],
    gradient: &[f32],
) -> UpdateSums {
    const LANES: usize = 16;
    let (mut weights, mut changes) = ([0f32; LANES], [0f32; LANES]);
    let mut one = |lane: usize, value: &mut f32, m: &mut f32, v: &mut f32, g: f32| {
        let g = g * c.scale;
        *m = c.beta1 * *m + (1.0 - c.beta1) * g;
        *v = c.beta2 * *v + (1.0 - c.beta2) * (g * g);
        let new = *value * c.keep - c.rate * (*m / (v.sqrt() * c.root + c.epsilon));
        let change = new - *value;
        weights[lane] += *value * *value;
        changes[lane] += change * change;
        *value = new;
    };
    let rows = values
        .chunks_mut(LANES)
        .zip(first.chunks_mut(LANES))
        .zip(second.chunks_mut(LANES));
    for (((values, first), second), gradient) in rows.zip(gradient.chunks(LANES)) {
        for (lane, (((value, m), v), g)) in values
            .iter_mut()
            .zip(first)
            .zip(second)
            .zip(gradient)
            .enumerate()
        {
            one(lane, value, m, v, *g);
        }
    }
    let sum = |lanes: [f32; LANES]| lanes.iter().map(|lane| f64::from(*lane)).sum();
    UpdateSums {
        weights: sum(weights),
        changes: sum(changes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    /// The published update in float64.
    fn recomputed(adamw: &AdamW, updates: &[(Update, f64)], start: f64) -> f64 {
        let (mut weight, mut m, mut v) = (start, 0.0, 0.0);
        for (update, gradient) in updates {
            let g = gradient * update.scale;
            weight -= update.rate * update.weight_decay * weight;
            m = adamw.beta1 * m + (1.0 - adamw.beta1) * g;
            v = adamw.beta2 * v + (1.0 - adamw.beta2) * g * g;
            let t = update.number as i32;
            let (m_hat, v_hat) = (
                m / (1.0 - adamw.beta1.powi(t)),
                v / (1.0 - adamw.beta2.powi(t)),
            );
            weight -= update.rate * m_hat / (v_hat.sqrt() + adamw.epsilon);
        }
        weight
    }

    #[test]
    fn updates_are_those_of_a_recomputation_in_float64() {
        let adamw = AdamW {
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
        };
        let elements = PIECE + 37;
        let start: Vec<f32> = (0..elements)
            .map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0)
            .collect();
        let gradient =
            |step: u64, i: usize| ((i * 104_729 + step as usize * 31) % 997) as f32 / 400.0 - 1.2;
        for dtype in [DType::F32, DType::BF16] {
            let tensor = Tensor::from_slice(&start, elements, &Device::Cpu)
                .unwrap()
                .to_dtype(dtype)
                .unwrap();
            let var = Var::from_tensor(&tensor).unwrap();
            let mut state = HostState::new(&var, (dtype != DType::F32).then(|| start.clone()));
            let updates: Vec<Update> = (1..=20)
                .map(|number| Update {
                    rate: 1e-2 / number as f64,
                    weight_decay: 0.1,
                    scale: 0.5,
                    number,
                    measured: true,
                })
                .collect();
            for update in &updates {
                let values: Vec<f32> = (0..elements).map(|i| gradient(update.number, i)).collect();
                let values = Tensor::from_vec(values, elements, &Device::Cpu).unwrap();
                let sums = state.update(&adamw, update, Some(&values)).unwrap();
                let sums = MeasuredUpdate::read_all(&[sums]).unwrap()[0];
                assert!(sums.weights > 0.0 && sums.changes > 0.0);
            }
            let found = state.download(StatePart::Master).unwrap().to_vec();
            for i in (0..elements).step_by(97) {
                let own: Vec<(Update, f64)> = updates
                    .iter()
                    .map(|update| (*update, f64::from(gradient(update.number, i))))
                    .collect();
                let expected = recomputed(&adamw, &own, f64::from(start[i]));
                assert!(
                    (f64::from(found[i]) - expected).abs() < 1e-6,
                    "{i}: {} and {expected}",
                    found[i]
                );
            }
            let rounded = Tensor::from_slice(&found, elements, &Device::Cpu)
                .unwrap()
                .to_dtype(dtype)
                .unwrap();
            let (held, rounded) = (
                var.to_dtype(DType::F32).unwrap(),
                rounded.to_dtype(DType::F32).unwrap(),
            );
            assert_eq!(
                held.to_vec1::<f32>().unwrap(),
                rounded.to_vec1::<f32>().unwrap()
            );
        }
    }

    #[test]
    fn without_a_gradient_moments_fade_and_weights_decay() {
        let adamw = AdamW {
            beta1: 0.5,
            beta2: 0.5,
            epsilon: 1e-8,
        };
        let var = Var::from_tensor(&Tensor::new(&[2f32], &Device::Cpu).unwrap()).unwrap();
        let mut state = HostState::new(&var, None);
        let update = Update {
            rate: 0.5,
            weight_decay: 0.5,
            scale: 1.0,
            number: 1,
            measured: false,
        };
        state.update(&adamw, &update, None).unwrap();
        assert_eq!(var.to_vec1::<f32>().unwrap(), [1.5]);
    }
}
