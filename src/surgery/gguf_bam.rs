//! The tensors of a BAM as a GGUF file for llama.cpp; `family/gguf_bam.rs` says which BAMs fit.

use std::collections::BTreeMap;

use super::export_error::ExportError;
use super::fit_error::FitError;
use super::gguf::FileTensors;
use super::model::Model;
use crate::Result;
use crate::checkpoint::GgufDtype;
use crate::checkpoint::expression::Expression;
use crate::family::gguf_bam::{SPARE_WIDTH, WideAttention, dense_width, has_spare_layer};
use crate::family::{
    Architecture, AttentionGate, Mixture, Place, QkNorm, Role, RouterBias, TensorSpec,
};

/// The tensors of the model by what they are for.
struct Parts<'a> {
    model: &'a Model,
    by_place: BTreeMap<Place, &'a TensorSpec>,
}

/// Adds every tensor, layer by layer.
pub(super) fn add(file: &mut FileTensors) -> Result<()> {
    let model = file.model;
    let a = &model.architecture;
    let specs = model.specs.iter();
    let parts = Parts {
        model,
        by_place: specs.map(|spec| (spec.place(), spec)).collect(),
    };
    let table = [a.vocab_size, a.hidden_size];
    let vector = [a.hidden_size];
    let embedding = parts.copy(Role::Embedding, None, None)?;
    file.add("token_embd.weight", &table, embedding)?;
    for layer in 0..a.num_layers {
        parts.attention(file, layer)?;
        parts.feed_forward(file, layer)?;
    }
    if has_spare_layer(a) {
        add_spare_layer(file, a)?;
    }
    let norm = parts.copy(Role::FinalNorm, None, None)?;
    file.add_exact("output_norm.weight", &vector, norm)?;
    // The architecture requires a head.
    let head = if a.tie_word_embeddings {
        Role::Embedding
    } else {
        Role::Head
    };
    let head = parts.copy(head, None, None)?;
    file.add("output.weight", &table, head)
}

/// What a user should know of a file whose matrices are in `matrices`.
pub(super) fn notes(architecture: &Architecture, matrices: GgufDtype) -> Vec<String> {
    let mixture = architecture.mixture.as_ref();
    let scale = mixture.and_then(|mixture| mixture.attention_gate_scale);
    let rounds = |scale: &f64| matrices != GgufDtype::F32 && scale.log2().fract() != 0.0;
    let scale = scale.filter(rounds);
    let note = scale.map(|scale| {
        format!(
            "output projections of attention hold attention_gate_scale {scale:.4}, so that their values are rounded once more; \
             --dtype f32 keeps them"
        )
    });
    note.into_iter().collect()
}

/// The layer that changes nothing: a layer of zeros adds zeros.
fn add_spare_layer(file: &mut FileTensors, a: &Architecture) -> Result<()> {
    let name = |part: &str| format!("blk.{}.{part}.weight", a.num_layers);
    let (d, width) = (a.hidden_size, dense_width(a));
    for norm in ["attn_norm", "ffn_norm"] {
        file.add_exact(&name(norm), &[d], zeros())?;
    }
    for (part, shape) in [
        ("attn_q", [a.head_dim, d]),
        ("attn_k", [a.head_dim, d]),
        ("attn_v", [a.head_dim, d]),
        ("attn_output", [d, a.head_dim]),
        ("ffn_gate", [width, d]),
        ("ffn_up", [width, d]),
        ("ffn_down", [d, width]),
    ] {
        file.add(&name(part), &shape, zeros())?;
    }
    Ok(())
}

impl Parts<'_> {
    fn find(&self, role: Role, layer: Option<u64>, expert: Option<u64>) -> Result<&TensorSpec> {
        let spec = self.by_place.get(&(role, false, layer, expert)).copied();
        spec.ok_or_else(|| {
            FitError::NoCounterpart {
                path: self.model.source.checkpoint.path.clone(),
                tensor: role.to_string(),
            }
            .into()
        })
    }

    fn copy(&self, role: Role, layer: Option<u64>, expert: Option<u64>) -> Result<Expression> {
        let spec = self.find(role, layer, expert)?;
        Ok(self.model.source.copy(&spec.name))
    }

    /// The tensors of all experts, or the one of a layer without any.
    fn of_experts(&self, role: Role, layer: u64, experts: Option<u64>) -> Result<Vec<Expression>> {
        let numbers: Vec<Option<u64>> = match experts {
            None => vec![None],
            Some(experts) => (0..experts).map(Some).collect(),
        };
        let copies = numbers.into_iter();
        copies
            .map(|expert| self.copy(role, Some(layer), expert))
            .collect()
    }

    fn attention(&self, file: &mut FileTensors, layer: u64) -> Result<()> {
        let a = &self.model.architecture;
        let wide = WideAttention::of(a, layer);
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        let router = (Role::AttentionRouter, false, Some(layer), None);
        let router = self.by_place.get(&router).copied();
        let experts = router.map(|_| wide.experts);
        let own_keys = experts.filter(|_| wide.groups == 1);

        let norm = self.copy(Role::InputNorm, Some(layer), None)?;
        file.add_exact(&name("attn_norm"), &[a.hidden_size], norm)?;
        for (role, part, heads, experts, groups) in [
            (
                Role::Q,
                "attn_q",
                wide.experts * a.num_heads,
                experts,
                wide.groups,
            ),
            (Role::K, "attn_k", wide.sets * a.num_kv_heads, own_keys, 1),
            (Role::V, "attn_v", wide.sets * a.num_kv_heads, own_keys, 1),
        ] {
            let mut rows = side_by_side(self.of_experts(role, layer, experts)?, 0, groups);
            // llama.cpp rotates the halves of a head.
            if a.rope_interleaved && role != Role::V {
                let of = Box::new(rows);
                rows = Expression::Permute { of, heads };
            }
            file.add(&name(part), &[heads * a.head_dim, a.hidden_size], rows)?;
        }
        if a.qk_norm != QkNorm::None {
            for (role, part, experts) in [
                (Role::QNorm, "attn_q_norm", experts),
                (Role::KNorm, "attn_k_norm", own_keys),
            ] {
                let mut norm = self.one_norm(role, layer, experts)?;
                // The weights of a head follow its rows.
                if a.rope_interleaved {
                    let of = Box::new(norm);
                    norm = Expression::Permute { of, heads: 1 };
                }
                file.add_exact(&name(part), &[a.head_dim], norm)?;
            }
        }
        if let (Some(mixture), Some(router)) = (&a.mixture, router)
            && let Some(gate) = gate(self.model, mixture, router, wide)
        {
            let shape = [wide.experts * a.num_heads, a.hidden_size];
            file.add_exact(&name("attn_gate"), &shape, gate)?;
        }
        let columns = self.of_experts(Role::O, layer, experts)?;
        let mut output = side_by_side(columns, 1, wide.groups);
        let scale = a
            .mixture
            .as_ref()
            .and_then(|mixture| mixture.attention_gate_scale);
        if let (Some(by), Some(_)) = (scale, router) {
            let of = Box::new(output);
            output = Expression::Scale { of, by };
        }
        let shape = [a.hidden_size, wide.experts * a.num_heads * a.head_dim];
        file.add(&name("attn_output"), &shape, output)
    }

    /// The norm of queries or keys, which llama.cpp has once for all heads.
    fn one_norm(&self, role: Role, layer: u64, experts: Option<u64>) -> Result<Expression> {
        let Some(experts) = experts else {
            return self.copy(role, Some(layer), None);
        };
        let first = self.find(role, Some(layer), Some(0))?;
        let checkpoint = &self.model.source.checkpoint;
        for expert in 1..experts {
            let other = self.find(role, Some(layer), Some(expert))?;
            let (a, b) = (self.model.entry(first)?, self.model.entry(other)?);
            if !checkpoint.same_bytes(a, b)? {
                return Err(ExportError::DifferentNorms {
                    path: checkpoint.path.clone(),
                    tensor: other.name.clone(),
                    first: first.name.clone(),
                }
                .into());
            }
        }
        Ok(self.model.source.copy(&first.name))
    }

    fn feed_forward(&self, file: &mut FileTensors, layer: u64) -> Result<()> {
        let a = &self.model.architecture;
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        let norm = self.copy(Role::PostAttentionNorm, Some(layer), None)?;
        file.add_exact(&name("ffn_norm"), &[a.hidden_size], norm)?;
        let d = a.hidden_size;
        let has_experts = |mixture: &&Mixture| mixture.moe_layers.contains(layer);
        let Some(mixture) = a.mixture.as_ref().filter(has_experts) else {
            let width = a.intermediate_size;
            for (role, part, shape) in [
                (Role::Gate, "ffn_gate", [width, d]),
                (Role::Up, "ffn_up", [width, d]),
                (Role::Down, "ffn_down", [d, width]),
            ] {
                let one = self.copy(role, Some(layer), None)?;
                file.add(&name(part), &shape, one)?;
            }
            return Ok(());
        };
        let (experts, width) = (mixture.num_experts, mixture.moe_intermediate_size);
        let router = self.copy(Role::FfnRouter, Some(layer), None)?;
        file.add_exact(&name("ffn_gate_inp"), &[experts, d], router)?;
        if mixture.router_bias == RouterBias::Choice
            && let Some(bias) = self
                .by_place
                .get(&(Role::FfnRouter, true, Some(layer), None))
        {
            let bias = self.model.source.copy(&bias.name);
            file.add_exact(&format!("blk.{layer}.exp_probs_b.bias"), &[experts], bias)?;
        }
        for (role, part, shape) in [
            (Role::Gate, "ffn_gate_exps", [experts, width, d]),
            (Role::Up, "ffn_up_exps", [experts, width, d]),
            (Role::Down, "ffn_down_exps", [experts, d, width]),
        ] {
            let of = self.of_experts(role, layer, Some(experts))?;
            file.add(&name(part), &shape, Expression::Stack { of })?;
        }
        // The architecture requires a shared expert.
        let shared = mixture.shared_expert_intermediate_size;
        let width = shared.unwrap_or(SPARE_WIDTH);
        for (role, part, shape) in [
            (Role::SharedGate, "ffn_gate_shexp", [width, d]),
            (Role::SharedUp, "ffn_up_shexp", [width, d]),
            (Role::SharedDown, "ffn_down_shexp", [d, width]),
        ] {
            let one = match shared {
                Some(_) => self.copy(role, Some(layer), None)?,
                None => zeros(),
            };
            file.add(&name(part), &shape, one)?;
        }
        Ok(())
    }
}

/// Tensors of all experts along an axis, group by group.
fn side_by_side(mut of: Vec<Expression>, axis: u64, blocks: u64) -> Expression {
    match of.len() {
        1 => of.swap_remove(0),
        _ => Expression::Concat { of, axis, blocks },
    }
}

/// The rows of the gates of all heads; none where the only gate is 1.
fn gate(
    model: &Model,
    mixture: &Mixture,
    router: &TensorSpec,
    wide: WideAttention,
) -> Option<Expression> {
    let logits = model.source.copy(&router.name);
    let by_expert = match (mixture.attention_gate, wide.experts) {
        (AttentionGate::Sigmoid, _) => logits,
        (AttentionGate::Softmax, 1) => return None,
        (AttentionGate::Softmax, experts) => {
            let row = |start: u64| Expression::Slice {
                of: Box::new(logits.clone()),
                axis: 0,
                start,
                length: 1,
                blocks: 1,
            };
            // Of two experts, as `check` says.
            let against_other = |expert: u64| Expression::Sum {
                of: vec![row(expert), row(experts - 1 - expert)],
                weights: vec![1.0, -1.0],
            };
            Expression::Concat {
                of: (0..experts).map(against_other).collect(),
                axis: 0,
                blocks: 1,
            }
        }
    };
    Some(Expression::Repeat {
        of: Box::new(by_expert),
        each: model.architecture.num_heads / wide.groups,
        times: wide.groups,
    })
}

fn zeros() -> Expression {
    Expression::Constant { value: 0.0 }
}
