//! The module that PyTorch trains: one code for all families, because every architecture is one of a BAM.
//!
//! A dense model is a BAM without a layer of experts, and a stock mixture is a BAM without attention experts.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::error::TorchError;
use crate::Result;
use crate::family::{Architecture, AttentionKv, Config, Layers, Mixture, TensorSpec, bam_config};

/// A model as `modeling_bam.py` has it.
pub(in crate::train) struct Module {
    /// Its `config.json`.
    pub(super) config: Map<String, Value>,
    /// Every parameter of the checkpoint with its name in the module, in the checkpoint's order.
    pub(super) parameters: Vec<(TensorSpec, String)>,
}

impl Module {
    /// The module of the model in `checkpoint`.
    ///
    /// # Errors
    /// A tensor that the module has no place for.
    pub(in crate::train) fn of(checkpoint: &Path, architecture: &Architecture) -> Result<Self> {
        let mixture = architecture.mixture.clone();
        let target = architecture.upcycled(mixture.unwrap_or_else(|| no_experts(architecture)));
        let places: BTreeMap<_, String> = target
            .tensors()?
            .into_iter()
            .map(|spec| (spec.place(), spec.name))
            .collect();
        let named = architecture.tensors()?.into_iter().map(|spec| {
            let name = places.get(&spec.place()).cloned();
            match name {
                Some(name) => Ok((spec, name)),
                None => Err(TorchError::NoPlace {
                    path: checkpoint.to_path_buf(),
                    tensor: spec.name,
                }
                .into()),
            }
        });
        Ok(Self {
            parameters: named.collect::<Result<_>>()?,
            config: bam_config(&Config::read(checkpoint)?, architecture, &target)?,
        })
    }
}

/// A mixture without a layer of experts.
fn no_experts(dense: &Architecture) -> Mixture {
    Mixture {
        num_attention_experts: 1,
        moe_layers: Layers::List(Vec::new()),
        attention_moe_layers: Layers::List(Vec::new()),
        attention_kv: AttentionKv::Merged,
        num_attention_experts_per_tok: 1,
        ..Mixture::new(dense, 1)
    }
}
