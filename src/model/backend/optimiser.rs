//! The optimiser step: AdamW (Loshchilov and Hutter 2019) with float32 master weights and moments.
//!
//! Every update is a function of one element's weight, moments and gradient alone, so the same bytes come out on any
//! number of threads.

use std::fmt::Debug;
use std::ops::{Deref, Range};

use candle_core::{CpuStorage, DType, Result, Storage, StorageRef, Tensor};

use super::readings::{Reading, Readings};

/// The settings of AdamW, which stay the same through a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
}

/// The settings of one update of one parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update {
    /// The learning rate.
    pub rate: f64,
    /// Each update takes away this share of the weight, times the learning rate.
    pub weight_decay: f64,
    /// Factor on the gradient, for clipping.
    pub scale: f64,
    /// Number of this update, from 1, for the bias correction of the moments.
    pub number: u64,
    /// Whether the caller reads the sums of the update, which a device would otherwise compute in vain.
    pub measured: bool,
}

/// The constants of one update in float32.
#[derive(Clone, Copy)]
pub(super) struct Constants {
    pub(super) keep: f32,
    pub(super) scale: f32,
    pub(super) beta1: f32,
    pub(super) beta2: f32,
    pub(super) rate: f32,
    pub(super) root: f32,
    pub(super) epsilon: f32,
}

impl AdamW {
    pub(super) fn constants(&self, update: &Update) -> Constants {
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

/// Sums of squares of one parameter's update, in float64.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct UpdateSums {
    /// Of the weights before.
    pub weights: f64,
    /// Of the changes of the weights.
    pub changes: f64,
}

impl UpdateSums {
    /// The sum of several, in their order.
    pub fn total(parts: &[Self]) -> Self {
        parts.iter().fold(Self::default(), |sum, part| Self {
            weights: sum.weights + part.weights,
            changes: sum.changes + part.changes,
        })
    }
}

/// The sums of an update that was measured.
#[derive(Debug)]
pub enum MeasuredUpdate {
    /// Sums on the host.
    Known(UpdateSums),
    /// Sums on a device: of the weights before, and of their changes.
    Waiting([Tensor; 2]),
}

impl MeasuredUpdate {
    /// The sums of many updates, in their order. A device is waited for once.
    pub fn read_all(updates: &[Self]) -> Result<Vec<UpdateSums>> {
        let mut readings = Readings::default();
        let wanted = updates.iter().map(|update| match update {
            Self::Known(_) => Ok(None),
            Self::Waiting(sums) => {
                let [weights, changes] = sums;
                Ok(Some((readings.want(weights)?, readings.want(changes)?)))
            }
        });
        let wanted: Vec<Option<(Reading, Reading)>> = wanted.collect::<Result<_>>()?;
        let read = readings.read()?;
        let sum = |reading: &Reading| read.of(reading).iter().sum();
        let sums = updates.iter().zip(&wanted).map(|pair| match pair {
            (_, Some((weights, changes))) => UpdateSums {
                weights: sum(weights),
                changes: sum(changes),
            },
            (Self::Known(sums), None) => *sums,
            (Self::Waiting(_), None) => UpdateSums::default(),
        });
        Ok(sums.collect())
    }
}

/// One part of a parameter's optimiser state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatePart {
    /// The weights in float32.
    Master,
    /// The first moment.
    First,
    /// The second moment.
    Second,
}

/// The optimiser's state of one parameter: where its master weights are, and its moments.
pub trait OptimiserState: Debug + Send + Sync {
    /// The numbers of one part, in row-major order.
    fn download(&self, part: StatePart) -> Result<HostValues<'_>>;

    /// Puts back what [`download`](Self::download) gave.
    fn upload(&mut self, part: StatePart, values: Vec<f32>) -> Result<()>;

    /// Updates the parameter with its gradient. Without one, the gradient is zero. Returns sums over the parameter, which are
    /// zero if the update is not measured and the sums are no by-product.
    fn update(
        &mut self,
        adamw: &AdamW,
        update: &Update,
        gradient: Option<&Tensor>,
    ) -> Result<MeasuredUpdate>;

    /// Adds to the master weights, without moments.
    fn shift(&mut self, by: &[f32]) -> Result<()> {
        let values = self
            .download(StatePart::Master)?
            .iter()
            .zip(by)
            .map(|(value, by)| value + by)
            .collect();
        self.upload(StatePart::Master, values)
    }
}

/// Bytes of the optimiser's state for a number of values of `dtype`, beside the parameters themselves.
pub fn optimiser_bytes(dtype: DType, values: u64) -> u64 {
    // Parameters in float32 are their own master weights.
    let slots = if dtype == DType::F32 { 2 } else { 3 };
    4 * slots * values
}

/// Numbers of the optimiser on the host.
pub enum HostValues<'a> {
    /// Numbers that are there already.
    Slice(&'a [f32]),
    /// Numbers of a variable on the CPU.
    Held(HeldValues<'a>),
    /// A copy from another device.
    Copy(Vec<f32>),
}

/// The values of a contiguous float32 tensor on the CPU.
pub struct HeldValues<'a> {
    storage: StorageRef<'a>,
    range: Range<usize>,
}

impl<'a> HeldValues<'a> {
    pub(super) fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        match (&*storage, layout.contiguous_offsets()) {
            (Storage::Cpu(CpuStorage::F32(_)), Some((start, end))) => Ok(Self {
                storage,
                range: start..end,
            }),
            _ => candle_core::bail!("expected a contiguous float32 parameter"),
        }
    }
}

impl Deref for HostValues<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Slice(values) => values,
            Self::Copy(values) => values,
            Self::Held(held) => match &*held.storage {
                Storage::Cpu(CpuStorage::F32(values)) => &values[held.range.clone()],
                // `HeldValues::of` holds no other.
                _ => &[],
            },
        }
    }
}
