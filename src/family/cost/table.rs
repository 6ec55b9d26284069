//! The report as a person reads it.

use super::{LayerKind, Parameters, Report};
use crate::family::{Architecture, AttentionGate, AttentionKv};
use crate::printable::printable;
use crate::table::{self, Align, grouped};

/// The report as aligned tables, every number with its unit.
pub fn table(report: &Report) -> String {
    let mut parts = vec![
        summary(&report.architecture) + "\n",
        parameters(&report.parameters, "parameters of the model"),
    ];
    for kind in &report.layer_kinds {
        let rows: Vec<Parameters> = kind
            .parameters
            .iter()
            .filter(|row| row.total > 0)
            .copied()
            .collect();
        let title = match &report.layer_kinds[..] {
            [_] => format!("each of the {} layers", kind.layers.len()),
            _ => format!(
                "each of the {} layers {} ({})",
                kind.layers.len(),
                ranges(&kind.layers),
                describe(kind)
            ),
        };
        parts.push(parameters(&rows, &format!("parameters of {title}")));
        parts.push(flops(
            kind,
            report.context,
            &format!("FLOPs per token of {title}"),
        ));
    }
    parts.push(totals(report));
    parts.join("\n")
}

/// One line on what the model is.
pub fn summary(a: &Architecture) -> String {
    let heads = match a.num_heads == a.num_kv_heads {
        true => format!("{} heads", a.num_heads),
        false => format!("{} heads on {} KV heads", a.num_heads, a.num_kv_heads),
    };
    let mut line = format!(
        "{}: {} layers, {} block, hidden size {}, {heads} of {}, vocabulary {}, {}",
        printable(&a.family),
        a.num_layers,
        a.block,
        a.hidden_size,
        a.head_dim,
        grouped(a.vocab_size),
        if a.tie_word_embeddings {
            "tied embeddings"
        } else {
            "untied embeddings"
        },
    );
    if let Some(mixture) = &a.mixture {
        let routing = |per_token: u64, experts: u64| match per_token == experts {
            true => "soft".to_owned(),
            false => format!("top-{per_token}"),
        };
        let ffn = routing(mixture.num_experts_per_tok, mixture.num_experts);
        line += &format!("\n{} FFN experts ({ffn}), ", mixture.num_experts);
        line += &match mixture.attention_kv {
            AttentionKv::Merged => "merged attention".to_owned(),
            kv => {
                let attention = match mixture.attention_gate {
                    AttentionGate::Softmax => routing(
                        mixture.num_attention_experts_per_tok,
                        mixture.num_attention_experts,
                    ),
                    AttentionGate::Sigmoid => "soft, sigmoid gates".to_owned(),
                };
                format!(
                    "{} attention experts ({attention}, KV {kv})",
                    mixture.num_attention_experts
                )
            }
        };
        line += if mixture.shared_expert_intermediate_size.is_some() {
            ", a shared FFN expert"
        } else {
            ""
        };
        line += if mixture.expert_adapters {
            ", adapters"
        } else {
            ""
        };
    }
    line
}

fn parameters(rows: &[Parameters], title: &str) -> String {
    let row = |name: String, total: u64, active: u64| vec![name, grouped(total), grouped(active)];
    let (total, active) = rows
        .iter()
        .fold((0, 0), |sum, row| (sum.0 + row.total, sum.1 + row.active));
    let listed = rows
        .iter()
        .map(|each| row(each.component.to_string(), each.total, each.active));
    let columns = [
        (title, Align::Left),
        ("total", Align::Right),
        ("active", Align::Right),
    ];
    table::render(
        &columns,
        listed.chain([row("sum".to_owned(), total, active)]),
    )
}

fn flops(kind: &LayerKind, context: u64, title: &str) -> String {
    let flops = &kind.flops_per_token;
    let mask = format!("attention mask, {} tokens of context", grouped(context));
    let rows = [
        ("attention router", flops.attention_router),
        ("QKV projection", flops.qkv_projection),
        (mask.as_str(), flops.attention_mask),
        ("output projection", flops.output_projection),
        ("FFN router", flops.ffn_router),
        ("FFN", flops.ffn),
        ("shared expert", flops.shared_expert),
        ("adapters", flops.adapters),
        ("attention without router", flops.attention),
        ("sum", flops.total),
    ];
    let rows = rows
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| vec![name.to_owned(), grouped(count)]);
    table::render(&[(title, Align::Left), ("FLOPs", Align::Right)], rows)
}

fn totals(report: &Report) -> String {
    let bytes = format!("bytes per token ({})", report.dtype);
    let size = format!("bytes ({})", report.dtype);
    let rows = [
        ("total parameters", report.total_parameters, "parameters"),
        ("active parameters", report.active_parameters, "parameters"),
        ("size", report.parameter_bytes, size.as_str()),
        (
            "output head",
            report.head_flops_per_token,
            "FLOPs per token",
        ),
        (
            "all layers and head",
            report.flops_per_token,
            "FLOPs per token",
        ),
        (
            "KV cache",
            report.kv_cache_values_per_token,
            "values per token",
        ),
        ("KV cache", report.kv_cache_bytes_per_token, bytes.as_str()),
    ];
    let rows = rows
        .into_iter()
        .map(|(name, count, unit)| vec![name.to_owned(), grouped(count), unit.to_owned()]);
    table::render(
        &[
            ("whole model", Align::Left),
            ("", Align::Right),
            ("", Align::Left),
        ],
        rows,
    )
}

fn describe(kind: &LayerKind) -> &'static str {
    match (kind.attention_experts, kind.ffn_experts) {
        (true, true) => "attention and FFN experts",
        (true, false) => "attention experts",
        (false, true) => "FFN experts",
        (false, false) => "no experts",
    }
}

/// `0-3, 5` for sorted layers.
fn ranges(layers: &[u64]) -> String {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for layer in layers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *layer => *last = *layer,
            _ => runs.push((*layer, *layer)),
        }
    }
    let show = |(first, last): &(u64, u64)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    runs.iter().map(show).collect::<Vec<_>>().join(", ")
}
