//! The tensors of a BAM as a GGUF file for llama.cpp; `family/gguf_bam.rs` says which BAMs fit.

use super::gguf::FileTensors;
use super::wide::{WideModel, scaled, zeros};
use crate::Result;
use crate::checkpoint::GgufDtype;
use crate::checkpoint::expression::Expression;
use crate::family::gguf_bam::{SPARE_WIDTH, dense_width, has_spare_layer};
use crate::family::{Architecture, Mixture, QkNorm, Role, RouterBias};

/// Adds every tensor, layer by layer.
pub(super) fn add(file: &mut FileTensors) -> Result<()> {
    let model = file.model;
    let a = &model.architecture;
    let parts = WideModel::new(model);
    let table = [a.vocab_size, a.hidden_size];
    let vector = [a.hidden_size];
    let embedding = parts.copy(Role::Embedding, None, None)?;
    file.add("token_embd.weight", &table, embedding)?;
    for layer in 0..a.num_layers {
        attention(&parts, file, layer)?;
        feed_forward(&parts, file, layer)?;
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

fn attention(parts: &WideModel, file: &mut FileTensors, layer: u64) -> Result<()> {
    let a = &parts.model.architecture;
    let of = parts.layer(layer);
    let wide = of.wide;
    let name = |part: &str| format!("blk.{layer}.{part}.weight");
    let (queries, keys) = (wide.experts * a.num_heads, wide.sets * a.num_kv_heads);

    let norm = parts.copy(Role::InputNorm, Some(layer), None)?;
    file.add_exact(&name("attn_norm"), &[a.hidden_size], norm)?;
    for (role, part, heads) in [
        (Role::Q, "attn_q", queries),
        (Role::K, "attn_k", keys),
        (Role::V, "attn_v", keys),
    ] {
        let rows = parts.rows(of, role)?;
        let rows = halves(rows, heads, a.rope_interleaved && role != Role::V);
        file.add(&name(part), &[heads * a.head_dim, a.hidden_size], rows)?;
    }
    if a.qk_norm != QkNorm::None {
        for (role, part) in [(Role::QNorm, "attn_q_norm"), (Role::KNorm, "attn_k_norm")] {
            // The weights of a head follow its rows.
            let norm = halves(parts.norm(of, role)?, 1, a.rope_interleaved);
            file.add_exact(&name(part), &[a.head_dim], norm)?;
        }
    }
    if let Some(gates) = parts.gates(of, 1) {
        file.add_exact(&name("attn_gate"), &[queries, a.hidden_size], gates)?;
    }
    let mut output = parts.columns(of)?;
    if let Some(by) = parts.gate_scale(of) {
        output = scaled(output, by);
    }
    let shape = [a.hidden_size, queries * a.head_dim];
    file.add(&name("attn_output"), &shape, output)
}

/// Rows of heads as llama.cpp rotates them, which are two halves.
fn halves(rows: Expression, heads: u64, is_interleaved: bool) -> Expression {
    if is_interleaved {
        let of = Box::new(rows);
        Expression::Permute { of, heads }
    } else {
        rows
    }
}

fn feed_forward(parts: &WideModel, file: &mut FileTensors, layer: u64) -> Result<()> {
    let a = &parts.model.architecture;
    let name = |part: &str| format!("blk.{layer}.{part}.weight");
    let norm = parts.copy(Role::PostAttentionNorm, Some(layer), None)?;
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
            let one = parts.copy(role, Some(layer), None)?;
            file.add(&name(part), &shape, one)?;
        }
        return Ok(());
    };
    let (experts, width) = (mixture.num_experts, mixture.moe_intermediate_size);
    let router = parts.copy(Role::FfnRouter, Some(layer), None)?;
    file.add_exact(&name("ffn_gate_inp"), &[experts, d], router)?;
    if mixture.router_bias == RouterBias::Choice
        && let Some(bias) = parts.get((Role::FfnRouter, true, Some(layer), None))
    {
        let bias = parts.model.source.copy(&bias.name);
        file.add_exact(&format!("blk.{layer}.exp_probs_b.bias"), &[experts], bias)?;
    }
    for (role, part, shape) in [
        (Role::Gate, "ffn_gate_exps", [experts, width, d]),
        (Role::Up, "ffn_up_exps", [experts, width, d]),
        (Role::Down, "ffn_down_exps", [experts, d, width]),
    ] {
        let of = parts.of_experts(role, layer, Some(experts))?;
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
            Some(_) => parts.copy(role, Some(layer), None)?,
            None => zeros(),
        };
        file.add(&name(part), &shape, one)?;
    }
    Ok(())
}
