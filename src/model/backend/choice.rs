//! Which backend a model computes with, and why.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use candle_core::Var;
use serde::Serialize;

use super::cpu;
use super::gradients::Gradients;
use super::host::Residence;
use super::operations::TensorOperations;
use super::optimiser::OptimiserState;
use super::reference::{DeviceState, Reference};
use crate::model::modules::{Attention, FeedForward};
use crate::model::params::{Computation, LoadOptions, Mode};

/// The backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendName {
    /// Kernels for float32 on the CPU.
    Cpu,
    /// candle's operations, on any device and dtype.
    Reference,
}

/// The backend that was chosen for a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackendChoice {
    /// The backend.
    pub name: BackendName,
    /// Why the reference computes some of it or all, which is slower.
    pub reasons: BTreeSet<String>,
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Reference => "reference",
        })
    }
}

impl fmt::Display for BackendChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        if self.reasons.is_empty() {
            return Ok(());
        }
        let reasons: Vec<&str> = self.reasons.iter().map(String::as_str).collect();
        write!(f, " ({})", reasons.join("; "))
    }
}

/// The operations of a model, its gradients and its optimiser.
#[derive(Debug, Clone)]
pub(in crate::model) struct Backend {
    operations: Arc<TensorOperations>,
    residence: Residence,
    choice: BackendChoice,
}

impl Backend {
    /// The fastest backend that computes with these options and sublayers.
    pub(in crate::model) fn choose<'a>(
        options: &LoadOptions,
        sublayers: impl IntoIterator<Item = (&'a Attention, &'a FeedForward)>,
    ) -> Self {
        let residence = match options.computation {
            Computation::Fastest if options.device.is_cpu() => Residence::Host,
            Computation::Fastest | Computation::AsOnGpu => Residence::Device,
        };
        if let Some(reason) = without_kernels(options) {
            return Self {
                operations: Arc::new(Reference::new(options.mode, residence)),
                residence,
                choice: BackendChoice {
                    name: BackendName::Reference,
                    reasons: [reason].into(),
                },
            };
        }
        let (operations, reasons): (Arc<TensorOperations>, _) = match options.mode {
            Mode::Infer => (Arc::new(cpu::INFERENCE), BTreeSet::new()),
            Mode::Train => {
                let reasons = sublayers
                    .into_iter()
                    .flat_map(|(attention, feed_forward)| slower(attention, feed_forward))
                    .collect();
                (Arc::new(cpu::Training), reasons)
            }
        };
        Self {
            operations,
            residence,
            choice: BackendChoice {
                name: BackendName::Cpu,
                reasons,
            },
        }
    }

    pub(in crate::model) fn operations(&self) -> &TensorOperations {
        &*self.operations
    }

    pub(in crate::model) fn choice(&self) -> &BackendChoice {
        &self.choice
    }

    /// Empty gradients of these parameters, numbered in their order.
    pub(in crate::model) fn gradients<'a>(
        &self,
        parameters: impl IntoIterator<Item = &'a Var>,
    ) -> Gradients {
        Gradients::new(parameters, self.residence)
    }

    /// The optimiser's state of a parameter before the first update.
    pub(in crate::model) fn optimiser_state(
        &self,
        var: &Var,
        master: Option<Vec<f32>>,
    ) -> candle_core::Result<Box<dyn OptimiserState>> {
        Ok(match self.residence {
            Residence::Host => Box::new(cpu::HostState::new(var, master)),
            Residence::Device => Box::new(DeviceState::new(var, master)?),
        })
    }
}

/// Why a device and dtype have no kernels; `None` where they have.
fn without_kernels(options: &LoadOptions) -> Option<String> {
    if options.has_kernels() {
        None
    } else if options.computation == Computation::AsOnGpu {
        Some("the model computes as on a GPU".to_owned())
    } else if options.device.is_cpu() {
        let name = options.dtype.as_str();
        Some(format!("kernels compute in f32, and the dtype is {name}"))
    } else {
        Some("kernels exist for the CPU only".to_owned())
    }
}

/// Why the reference computes a layer's sublayers in training.
fn slower(attention: &Attention, feed_forward: &FeedForward) -> Vec<String> {
    let networks: Vec<_> = match feed_forward {
        FeedForward::Dense(mlp) => vec![mlp],
        FeedForward::Experts(layer) => {
            let shared = layer.shared.iter().map(|shared| &shared.mlp);
            layer.experts.iter().chain(shared).collect()
        }
    };
    let attention = cpu::unsupported_attention(attention)
        .map(|reason| format!("attention by reference, because {reason}"));
    let feed_forward = networks
        .into_iter()
        .find_map(cpu::unsupported_mlp)
        .map(|reason| format!("feed-forward by reference, because {reason}"));
    attention.into_iter().chain(feed_forward).collect()
}
