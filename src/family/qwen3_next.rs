//! A BAM in the words of Qwen3-Next: the class `Qwen3NextForCausalLM`, whose attention has a sigmoid gate for each value.
//!
//! All layers are ordinary attention. `wide_attention.rs` says how attention experts become heads with gates.

use serde_json::{Map, Value, json};

use super::architecture::Architecture;
use super::cannot_hold::{NEUTRAL_WIDTH, reasons};
use super::config::Config;
use super::error::FamilyError;
use super::format::Family;
use super::gguf_bam;
use super::layout::{AttentionGate, AttentionKv, Layers};
use super::mixture::Mixture;
use super::model_types::QWEN3_NEXT;
use super::role::Role;
use super::stock::{Output, output};
use super::tensors::TensorSpec;
use super::wide_attention::{WideAttention, expert_layers, gates_that_differ};
use crate::{Error, Result};

/// Its class.
const CLASS: &str = "Qwen3NextForCausalLM";

/// The family that calls all else as it does, but for the shared expert.
const BASE: &str = "qwen3_moe";

/// The family that calls the shared expert as it does.
const SHARED: &str = "qwen2_moe";

/// A BAM as a checkpoint of Qwen3-Next.
#[derive(Debug)]
pub struct Qwen3Next {
    /// The checkpoint without gates and shared experts, as a stock mixture with the heads of all experts.
    pub base: Architecture,
    /// Inner width of the shared expert, which every layer with experts has.
    pub shared_width: u64,
    /// Its `config.json`.
    pub config: Map<String, Value>,
    /// What a user should know: keys of the source that its family does not have.
    pub notes: Vec<String>,
}

impl Qwen3Next {
    /// The checkpoint for `model`, a mixture, which `source` describes.
    ///
    /// # Errors
    /// Whatever about the model the class has no place for, each reason named.
    pub fn of(model: &Architecture, source: &Config, mixture: &Mixture) -> Result<Self> {
        let wide = side_by_side(model);
        let plain = without_attention_experts(mixture);
        let family = Family::named(BASE)?;
        let mut refused: Vec<String> = gates_that_differ(mixture, model.num_layers).collect();
        if model.attention_bias || model.attention_output_bias {
            refused.push("its gates would weight biases of attention, too".to_owned());
        }
        let experts = expert_layers(mixture, model.num_layers);
        if ![0, model.num_layers].contains(&experts) {
            refused.push(
                "its layers have as many heads each, so attention experts are in all of them or in none".to_owned(),
            );
        }
        if model.partial_rotary_factor.is_some() && model.rope_scaling.is_some() {
            refused.push("it scales rotary positions of whole heads only".to_owned());
        }
        if let Some(keys) = &family.mixture {
            refused.extend(reasons(&wide, &plain, &family, keys));
        }
        if !refused.is_empty() {
            return Err(refusal(model, source, refused));
        }
        let Output {
            architecture: base,
            mut config,
            notes,
        } = output(&wide, source, plain, BASE)?;
        let width = mixture.shared_expert_intermediate_size;
        let shared_width = width.unwrap_or(NEUTRAL_WIDTH.min(mixture.moe_intermediate_size));
        let rotated = model.partial_rotary_factor.unwrap_or(1.0);
        let kinds = vec!["full_attention"; model.num_layers as usize];
        for (key, value) in [
            ("model_type", json!(QWEN3_NEXT)),
            ("architectures", json!([CLASS])),
            ("layer_types", json!(kinds)),
            ("shared_expert_intermediate_size", json!(shared_width)),
            // The class rotates a quarter of each head by default; versions differ in the place that they read.
            ("partial_rotary_factor", json!(rotated)),
        ] {
            config.insert(key.to_owned(), value);
        }
        if let Some(Value::Object(rope)) = config.get_mut("rope_parameters") {
            rope.insert("partial_rotary_factor".to_owned(), json!(rotated));
        }
        Ok(Self {
            base,
            shared_width,
            config,
            notes,
        })
    }

    /// Every tensor of the checkpoint. In a query projection, the rows of each head come before the rows of its gates.
    pub fn tensors(&self) -> Result<Vec<TensorSpec>> {
        let names = Family::named(SHARED)?;
        let mut specs = Vec::new();
        for mut spec in self.base.tensors()? {
            if spec.role == Role::Q {
                spec.shape[0] *= 2;
            }
            let layer = spec.layer.filter(|_| spec.role == Role::FfnRouter);
            specs.push(spec);
            if let Some(layer) = layer {
                specs.extend(self.shared_expert(&names, layer)?);
            }
        }
        Ok(specs)
    }

    fn shared_expert(&self, names: &Family, layer: u64) -> Result<Vec<TensorSpec>> {
        let (d, width) = (self.base.hidden_size, self.shared_width);
        let tensor = |(role, shape): (Role, [u64; 2])| {
            let name = names.tensors.name(role, Some(layer), None);
            let name = name.ok_or_else(|| FamilyError::NoTensorName {
                family: QWEN3_NEXT.to_owned(),
                role,
            })?;
            Ok(TensorSpec {
                name,
                shape: shape.to_vec(),
                role,
                bias: false,
                layer: Some(layer),
                expert: None,
            })
        };
        let roles = [
            (Role::SharedGate, [width, d]),
            (Role::SharedUp, [width, d]),
            (Role::SharedDown, [d, width]),
            (Role::SharedExpertGate, [1, d]),
        ];
        roles.into_iter().map(tensor).collect()
    }

    /// What the checkpoint is, for its card: the mixture with the class's own name and its shared expert.
    pub fn described(&self, model: &Architecture) -> Architecture {
        let mixture = model.mixture.clone().map(|mixture| Mixture {
            shared_expert_intermediate_size: Some(self.shared_width),
            shared_expert_gate: true,
            ..mixture
        });
        Architecture {
            family: QWEN3_NEXT.to_owned(),
            mixture,
            format: None,
            ..model.clone()
        }
    }
}

/// The refusal of a model, with the forms that hold it.
fn refusal(model: &Architecture, source: &Config, reasons: Vec<String>) -> Error {
    let target = QWEN3_NEXT.to_owned();
    let error = Error::from(FamilyError::CannotHold { target, reasons });
    match gguf_bam::check(&source.path, model) {
        Ok(()) => error.with_hint(
            "the family `bam` holds it, and a GGUF file does: bam-convert convert BAM OUT.gguf",
        ),
        Err(_) => error,
    }
}

/// The model with the heads of all attention experts, and with norms and rotations as in the family `BASE`.
fn side_by_side(model: &Architecture) -> Architecture {
    let wide = WideAttention::of(model, 0);
    Architecture {
        num_heads: model.num_heads.saturating_mul(wide.experts),
        num_kv_heads: model.num_kv_heads.saturating_mul(wide.sets),
        norm_offset: false,
        partial_rotary_factor: None,
        ..model.clone()
    }
}

/// The feed-forward experts alone; the class has a shared expert of any width.
fn without_attention_experts(mixture: &Mixture) -> Mixture {
    Mixture {
        num_attention_experts: 1,
        num_attention_experts_per_tok: 1,
        attention_moe_layers: Layers::All,
        attention_kv: AttentionKv::Merged,
        norm_topk_prob_attention: false,
        attention_gate: AttentionGate::Softmax,
        attention_gate_scale: None,
        shared_expert_intermediate_size: None,
        shared_expert_gate: false,
        ..mixture.clone()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::small;
    use super::*;

    /// What is wrong with a BAM of three experts with sigmoid gates, after a change.
    fn refusal(change: impl FnOnce(&mut Mixture)) -> Option<String> {
        let source = small("qwen3", json!({}));
        let dense = Architecture::of(&source).unwrap();
        let mut mixture = Mixture {
            attention_gate: AttentionGate::Sigmoid,
            norm_topk_prob: true,
            ..Mixture::new(&dense, 3)
        };
        change(&mut mixture);
        let model = dense.upcycled(mixture.clone());
        let made = Qwen3Next::of(&model, &source, &mixture);
        made.err().map(|error| error.to_string())
    }

    #[test]
    fn attention_experts_are_in_all_layers_or_in_none() {
        assert_eq!(refusal(|_| ()), None);
        let some = refusal(|mixture| mixture.attention_moe_layers = Layers::List(vec![0]));
        assert!(some.is_some_and(|error| error.contains("in all of them or in none")));
        let none = refusal(|mixture| mixture.attention_moe_layers = Layers::List(Vec::new()));
        assert_eq!(none, None);
    }
}
