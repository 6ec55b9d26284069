//! AdamW (Loshchilov and Hutter 2019) with float32 master weights and moments.
//!
//! Every update is a function of one element's weight, moments and gradient alone, so the same bytes come out on any
//! number of threads. On the CPU in float32 the model's own variables are the master weights and change in place.

use std::ops::{Deref, Range};
use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Storage, StorageRef, Tensor, Var};
use rayon::prelude::*;

use super::gradients::{Sums, floats};
use crate::{Error, Result};

/// Elements that a thread updates at a time; sums are taken over pieces of this size, in order.
pub(super) const PIECE: usize = 1 << 14;

/// What stays the same through a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
}

/// What one update of one parameter is made with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update {
    /// The learning rate.
    pub rate: f64,
    /// The share of the weight, by the learning rate, that is taken away.
    pub weight_decay: f64,
    /// What the gradient is multiplied with, for clipping.
    pub scale: f64,
    /// Number of this update, from 1: moments start at zero, and are divided by what they lack at first.
    pub number: u64,
}

/// The constants of one update in float32.
#[derive(Clone, Copy)]
struct Constants {
    keep: f32,
    scale: f32,
    beta1: f32,
    beta2: f32,
    rate: f32,
    root: f32,
    epsilon: f32,
}

impl AdamW {
    fn constants(&self, update: &Update) -> Constants {
        let number = update.number as f64;
        let first = 1.0 - libm::pow(self.beta1, number);
        let second = 1.0 - libm::pow(self.beta2, number);
        Constants {
            keep: (1.0 - update.rate * update.weight_decay) as f32,
            scale: update.scale as f32,
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            rate: (update.rate / first) as f32,
            root: libm::sqrt(second).recip() as f32,
            epsilon: self.epsilon as f32,
        }
    }
}

/// The state of one parameter: where its master weights are, and its moments.
#[derive(Debug)]
pub(super) struct State {
    var: Var,
    /// Absent where the variable itself is float32.
    master: Option<Slot>,
    first: Slot,
    second: Slot,
}

/// Numbers of the optimiser: on the host, where kernels change them in place, or on the device.
#[derive(Debug)]
enum Slot {
    Host(Vec<f32>),
    Device(Tensor),
}

impl Slot {
    fn zeros(var: &Var) -> candle_core::Result<Self> {
        Ok(match var.device().is_cpu() {
            true => Self::Host(vec![0.0; var.elem_count()]),
            false => Self::Device(Tensor::zeros(var.shape(), DType::F32, var.device())?),
        })
    }

    fn of(values: Vec<f32>, var: &Var) -> candle_core::Result<Self> {
        Ok(match var.device().is_cpu() {
            true => Self::Host(values),
            false => Self::Device(Tensor::from_vec(values, var.shape(), var.device())?),
        })
    }

    fn host(&self) -> candle_core::Result<Host<'_>> {
        Ok(match self {
            Self::Host(values) => Host::Slice(values),
            Self::Device(tensor) => Host::Copy(tensor.flatten_all()?.to_vec1::<f32>()?),
        })
    }
}

/// Numbers of the optimiser, readable on the host.
pub(super) enum Host<'a> {
    Slice(&'a [f32]),
    /// Of a variable on the CPU.
    Held(StorageRef<'a>, Range<usize>),
    /// Of another device.
    Copy(Vec<f32>),
}

impl Deref for Host<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Slice(values) => values,
            Self::Copy(values) => values,
            Self::Held(storage, range) => match &**storage {
                Storage::Cpu(CpuStorage::F32(values)) => &values[range.clone()],
                // `State::host` holds no other.
                _ => &[],
            },
        }
    }
}

/// Which numbers of a parameter's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Master,
    First,
    Second,
}

impl State {
    /// The state before the first update; `master` holds the float32 weights where the variable has another dtype.
    pub(super) fn new(var: &Var, master: Option<Vec<f32>>) -> candle_core::Result<Self> {
        let master = master.map(|values| Slot::of(values, var)).transpose()?;
        Ok(Self {
            var: var.clone(),
            master,
            first: Slot::zeros(var)?,
            second: Slot::zeros(var)?,
        })
    }

    /// Puts back what [`host`](Self::host) gave.
    pub(super) fn restore(&mut self, part: Part, values: Vec<f32>) -> candle_core::Result<()> {
        match part {
            Part::First => self.first = Slot::of(values, &self.var)?,
            Part::Second => self.second = Slot::of(values, &self.var)?,
            Part::Master => {
                let tensor = Tensor::from_slice(&values, self.var.shape(), self.var.device())?;
                self.var.set(&tensor.to_dtype(self.var.dtype())?)?;
                if self.master.is_some() {
                    self.master = Some(Slot::of(values, &self.var)?);
                }
            }
        }
        Ok(())
    }

    /// The numbers, in row-major order.
    pub(super) fn host(&self, part: Part) -> candle_core::Result<Host<'_>> {
        match (part, &self.master) {
            (Part::First, _) => self.first.host(),
            (Part::Second, _) => self.second.host(),
            (Part::Master, Some(master)) => master.host(),
            (Part::Master, None) if self.var.device().is_cpu() => {
                let (storage, layout) = self.var.storage_and_layout();
                match (&*storage, layout.contiguous_offsets()) {
                    (Storage::Cpu(CpuStorage::F32(_)), Some((start, end))) => {
                        Ok(Host::Held(storage, start..end))
                    }
                    _ => candle_core::bail!("expected a contiguous float32 parameter"),
                }
            }
            (Part::Master, None) => Ok(Host::Copy(self.var.flatten_all()?.to_vec1::<f32>()?)),
        }
    }

    /// Adds to the master weights, without moments.
    pub(super) fn shift(&mut self, by: &[f32]) -> candle_core::Result<()> {
        let values = self
            .host(Part::Master)?
            .iter()
            .zip(by)
            .map(|(value, by)| value + by)
            .collect();
        self.restore(Part::Master, values)
    }

    /// Bytes that the states of variables of `dtype` with so many values together take beside them.
    pub(super) fn bytes(dtype: DType, values: u64) -> u64 {
        let slots = if dtype == DType::F32 { 2 } else { 3 };
        4 * slots * values
    }

    /// Updates the parameter with its gradient, zero where there is none.
    ///
    /// Returned are the sums of squares of the weights before, and of their changes, in float64.
    pub(super) fn update(
        &mut self,
        adamw: &AdamW,
        update: &Update,
        gradient: Option<&Tensor>,
    ) -> Result<Sums> {
        self.try_update(adamw, update, gradient)
            .map_err(|e| Error::compute("update the parameters", e))
    }

    fn try_update(
        &mut self,
        adamw: &AdamW,
        update: &Update,
        gradient: Option<&Tensor>,
    ) -> candle_core::Result<Sums> {
        let constants = adamw.constants(update);
        if !self.var.device().is_cpu() {
            return self.update_on_device(&constants, gradient);
        }
        let (Slot::Host(first), Slot::Host(second)) = (&mut self.first, &mut self.second) else {
            candle_core::bail!("moments on another device than the parameter");
        };
        let held = gradient.map(Tensor::storage_and_layout);
        let gradient = held.as_ref().map(floats).transpose()?;
        match &mut self.master {
            None => {
                let update = InPlace {
                    constants,
                    gradient,
                    work: Mutex::new((first, second, Sums::default())),
                };
                self.var.inplace_op1(&update)?;
                Ok(update
                    .work
                    .into_inner()
                    .unwrap_or_else(PoisonError::into_inner)
                    .2)
            }
            Some(Slot::Host(master)) => {
                let sums = kernel(&constants, master, first, second, gradient);
                let rounded = Tensor::from_slice(master, self.var.shape(), self.var.device())?;
                self.var.set(&rounded.to_dtype(self.var.dtype())?)?;
                Ok(sums)
            }
            Some(Slot::Device(_)) => {
                candle_core::bail!("master weights on another device than the parameter")
            }
        }
    }

    /// The same in operations of the device.
    fn update_on_device(
        &mut self,
        c: &Constants,
        gradient: Option<&Tensor>,
    ) -> candle_core::Result<Sums> {
        let (Slot::Device(first), Slot::Device(second)) = (&mut self.first, &mut self.second)
        else {
            candle_core::bail!("moments on another device than the parameter");
        };
        let gradient = match gradient {
            Some(gradient) => (gradient * f64::from(c.scale))?,
            None => first.zeros_like()?,
        };
        *first =
            ((&*first * f64::from(c.beta1))? + (&gradient * f64::from(1.0 - c.beta1))?)?.detach();
        *second = ((&*second * f64::from(c.beta2))?
            + (gradient.sqr()? * f64::from(1.0 - c.beta2))?)?
        .detach();
        let root = ((second.sqrt()? * f64::from(c.root))? + f64::from(c.epsilon))?;
        let old = match &self.master {
            Some(Slot::Device(master)) => master.clone(),
            _ => self.var.as_detached_tensor(),
        };
        let new =
            ((&old * f64::from(c.keep))? - (first.div(&root)? * f64::from(c.rate))?)?.detach();
        let squares = |x: &Tensor| x.sqr()?.sum_all()?.to_scalar::<f32>().map(f64::from);
        let sums = Sums {
            weights: squares(&old)?,
            changes: squares(&(&new - &old)?)?,
        };
        self.var.set(&new.to_dtype(self.var.dtype())?)?;
        if self.master.is_some() {
            self.master = Some(Slot::Device(new));
        }
        Ok(sums)
    }
}

/// The update as candle's operation in place.
struct InPlace<'a> {
    constants: Constants,
    gradient: Option<&'a [f32]>,
    /// The moments, and what the kernel returns.
    work: Mutex<(&'a mut Vec<f32>, &'a mut Vec<f32>, Sums)>,
}

impl InplaceOp1 for InPlace<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
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
) -> Sums {
    let zeros = [0.0; PIECE];
    let pieces = values
        .par_chunks_mut(PIECE)
        .zip(first.par_chunks_mut(PIECE))
        .zip(second.par_chunks_mut(PIECE));
    let sums: Vec<Sums> = pieces
        .enumerate()
        .map(|(number, ((values, first), second))| {
            let start = number * PIECE;
            let gradient = gradient.map_or(&zeros[..values.len()], |gradient| {
                &gradient[start..][..values.len()]
            });
            piece(c, values, first, second, gradient)
        })
        .collect();
    Sums::total(&sums)
}

/// Updates one piece; the sums are kept in as many lanes as vectors have.
fn piece(
    c: &Constants,
    values: &mut [f32],
    first: &mut [f32],
    second: &mut [f32],
    gradient: &[f32],
) -> Sums {
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
    Sums {
        weights: sum(weights),
        changes: sum(changes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

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
            let mut state = State::new(&var, (dtype != DType::F32).then(|| start.clone())).unwrap();
            let updates: Vec<Update> = (1..=20)
                .map(|number| Update {
                    rate: 1e-2 / number as f64,
                    weight_decay: 0.1,
                    scale: 0.5,
                    number,
                })
                .collect();
            for update in &updates {
                let values: Vec<f32> = (0..elements).map(|i| gradient(update.number, i)).collect();
                let values = Tensor::from_vec(values, elements, &Device::Cpu).unwrap();
                let sums = state.update(&adamw, update, Some(&values)).unwrap();
                assert!(sums.weights > 0.0 && sums.changes > 0.0);
            }
            let found = state.host(Part::Master).unwrap().to_vec();
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
        let mut state = State::new(&var, None).unwrap();
        let update = Update {
            rate: 0.5,
            weight_decay: 0.5,
            scale: 1.0,
            number: 1,
        };
        state.update(&adamw, &update, None).unwrap();
        assert_eq!(var.to_vec1::<f32>().unwrap(), [1.5]);
    }
}
