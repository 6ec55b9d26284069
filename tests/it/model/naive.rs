//! The model as the papers write it, in plain float64 loops: the sum over experts term by term, every token on its own.
//! It shares no code with the library but the reading of numbers.

#![allow(clippy::needless_range_loop)] // indices as in the formulas

use std::collections::BTreeMap;
use std::path::Path;

use bam_convert::checkpoint::Checkpoint;
use serde_json::Value;

use super::arithmetic::{Rows, add, dot, softmax, times};

/// Changes to the routing that the config asks for.
#[derive(Default, Clone)]
pub struct Routing {
    pub top_k: Option<usize>,
    pub attention_top_k: Option<usize>,
    pub dropped: Vec<usize>,
}

pub struct Naive {
    tensors: BTreeMap<String, (usize, Vec<f64>)>,
    config: Value,
}

impl Naive {
    pub fn open(folder: &Path) -> Self {
        let checkpoint = Checkpoint::open(folder).unwrap();
        let mut tensors = BTreeMap::new();
        for (name, entry) in &checkpoint.tensors {
            let mut values = vec![0.0; entry.elements() as usize];
            checkpoint
                .read_values(entry, 0, &mut values, &mut Vec::new())
                .unwrap();
            tensors.insert(
                name.clone(),
                (*entry.shape.last().unwrap() as usize, values),
            );
        }
        let config =
            serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
        Self { tensors, config }
    }

    /// A model of these tensors, each with its last extent.
    pub fn new(tensors: BTreeMap<String, (usize, Vec<f64>)>, config: Value) -> Self {
        Self { tensors, config }
    }

    /// Logits `[seq][vocab]`.
    pub fn logits(&self, tokens: &[u32], routing: &Routing) -> Rows {
        let (width, embedding) = &self.tensors["model.embed_tokens.weight"];
        let row = |id: u32| &embedding[id as usize * width..][..*width];
        let by = self.number("embedding_multiplier", 1.0);
        let mut x: Rows = tokens.iter().map(|id| times(row(*id), by)).collect();
        let by = self.number("residual_multiplier", 1.0);
        let residual = |x: Rows| x.iter().map(|x| times(x, by)).collect();
        for layer in 0..self.size("num_hidden_layers") {
            let prefix = format!("model.layers.{layer}.");
            let position = self.text("norm_position");
            let (before, after) = (position != "post", ["post", "sandwich"].contains(&position));
            let norm = |x: &Rows, name: &str, there: bool| {
                if there {
                    self.norms(x, &format!("{prefix}{name}_layernorm.weight"))
                } else {
                    x.clone()
                }
            };
            let (h, input) = (norm(&x, "input", before), x.clone());
            let attended = norm(&self.attention(layer, &h, routing), "post_attention", after);
            let attended = residual(attended);
            x = add(&x, &attended);
            let fed_norm = if after {
                "pre_feedforward"
            } else {
                "post_attention"
            };
            let h = match self.text("block") {
                "parallel" => h,
                _ if self.text("model_type") == "cohere" => h,
                "parallel_two_norms" => norm(&input, fed_norm, before),
                _ => norm(&x, fed_norm, before),
            };
            let fed = norm(
                &self.feed_forward(layer, &h, routing),
                "post_feedforward",
                after,
            );
            x = add(&x, &residual(fed));
        }
        let head = if self.tensors.contains_key("lm_head.weight") {
            "lm_head"
        } else {
            "model.embed_tokens"
        };
        let scale = self.number("logit_scale", 1.0) / self.number("logits_divisor", 1.0);
        // The head may have a bias also where its matrix is the input embedding.
        let bias = self.tensors.get("lm_head.bias");
        let tied_bias = |id: usize| match bias {
            Some((_, bias)) if head != "lm_head" => bias[id],
            _ => 0.0,
        };
        self.norms(&x, "model.norm.weight")
            .iter()
            .map(|x| {
                let logits = self.linear(head, x).into_iter().enumerate();
                logits
                    .map(|(id, logit)| (logit + tied_bias(id)) * scale)
                    .map(|logit| self.capped(logit, "final_logit_softcapping"))
                    .collect()
            })
            .collect()
    }

    fn attention(&self, layer: usize, h: &Rows, routing: &Routing) -> Rows {
        let prefix = format!("model.layers.{layer}.self_attn");
        let Some(gates) = self.gates(
            &format!("{prefix}.router"),
            h,
            "num_attention_experts_per_tok",
            "norm_topk_prob_attention",
            routing.attention_top_k,
            &routing.dropped,
        ) else {
            return self.heads(&prefix, &prefix, h, layer);
        };
        let mut sum = vec![vec![0.0; h[0].len()]; h.len()];
        for expert in 0..gates[0].len() {
            let own = format!("{prefix}.attention_experts.{expert}");
            let keys = if self.text("attention_kv") == "shared" {
                &prefix
            } else {
                &own
            };
            let out = self.adapted(&own, self.heads(&own, keys, h, layer));
            for (t, out) in out.iter().enumerate() {
                for (sum, value) in sum[t].iter_mut().zip(out) {
                    *sum += gates[t][expert] * value;
                }
            }
        }
        sum
    }

    /// One multi-head attention with its output projection.
    fn heads(&self, own: &str, keys: &str, h: &Rows, layer: usize) -> Rows {
        let heads = self.size("num_attention_heads");
        let kv_heads = self.size("num_key_value_heads");
        let head_dim = self
            .config
            .get("head_dim")
            .and_then(Value::as_u64)
            .map_or(h[0].len() / heads, |d| d as usize);
        let window = self.window(layer);
        let scale = self.number("attention_multiplier", (head_dim as f64).powf(-0.5));
        let after = self.config["qk_norm_after_rope"] == true;
        let rotated = |all: Vec<f64>, t: usize| -> Vec<f64> {
            if !self.rotates(layer) {
                return all;
            }
            let heads = all.chunks(head_dim);
            heads.flat_map(|x| self.rotate(x, t, layer)).collect()
        };
        let project = |prefix: &str, name: &str, rotate: bool| -> Vec<Rows> {
            h.iter()
                .enumerate()
                .map(|(t, h)| {
                    let mut all = self.linear(&format!("{prefix}.{name}_proj"), h);
                    let norm = format!("{prefix}.{name}_norm.weight");
                    if rotate && after {
                        all = rotated(all, t);
                    }
                    all = self.norm_of_heads(all, head_dim, &norm);
                    if rotate && !after {
                        all = rotated(all, t);
                    }
                    all.chunks(head_dim).map(<[f64]>::to_vec).collect()
                })
                .collect()
        };
        let (q, k, v) = (
            project(own, "q", true),
            project(keys, "k", true),
            project(keys, "v", false),
        );
        (0..h.len())
            .map(|t| {
                let mut joined = Vec::new();
                for head in 0..heads {
                    let kv = head / (heads / kv_heads);
                    let first = window.map_or(0, |window| (t + 1).saturating_sub(window));
                    let scores: Vec<f64> = (first..=t)
                        .map(|s| dot(&q[t][head], &k[s][kv]) * scale)
                        .map(|score| self.capped(score, "attn_logit_softcapping"))
                        .collect();
                    let weights = softmax(&scores);
                    for i in 0..head_dim {
                        joined.push(
                            (first..=t)
                                .zip(&weights)
                                .map(|(s, weight)| weight * v[s][kv][i])
                                .sum(),
                        );
                    }
                }
                self.linear(&format!("{own}.o_proj"), &joined)
            })
            .collect()
    }

    /// All heads of queries or keys after their norm, where there is one.
    ///
    /// The norm is over all heads (OLMoE), or of each head with one weight for all (Qwen3) or a weight for each (Cohere).
    fn norm_of_heads(&self, all: Vec<f64>, head_dim: usize, norm: &str) -> Vec<f64> {
        let Some((_, weight)) = self.tensors.get(norm) else {
            return all;
        };
        if self.text("qk_norm") == "full" {
            return self.norm_of(&all, weight, false);
        }
        let per_head = weight.len() != head_dim;
        let heads = all.chunks(head_dim).enumerate();
        heads
            .flat_map(|(head, x)| {
                let first = if per_head { head * head_dim } else { 0 };
                self.norm_of(x, &weight[first..][..head_dim], per_head)
            })
            .collect()
    }

    fn feed_forward(&self, layer: usize, h: &Rows, routing: &Routing) -> Rows {
        let prefix = format!("model.layers.{layer}.mlp");
        let gates = self.gates(
            &format!("{prefix}.router"),
            h,
            "num_experts_per_tok",
            "norm_topk_prob",
            routing.top_k,
            &routing.dropped,
        );
        h.iter()
            .enumerate()
            .map(|(t, h)| match &gates {
                None => self.mlp(&prefix, h),
                Some(gates) => {
                    let mut sum = vec![0.0; h.len()];
                    for (expert, gate) in gates[t].iter().enumerate() {
                        let expert = format!("{prefix}.experts.{expert}");
                        let out = self.adapted(&expert, vec![self.mlp(&expert, h)]).remove(0);
                        sum.iter_mut()
                            .zip(&out)
                            .for_each(|(sum, value)| *sum += gate * value);
                    }
                    let shared = format!("{prefix}.shared_expert");
                    if self
                        .tensors
                        .contains_key(&format!("{shared}.up_proj.weight"))
                    {
                        let gate = format!("{shared}_gate");
                        let gate = match self.tensors.contains_key(&format!("{gate}.weight")) {
                            true => 1.0 / (1.0 + (-self.linear(&gate, h)[0]).exp()),
                            false => 1.0,
                        };
                        sum.iter_mut()
                            .zip(&self.mlp(&shared, h))
                            .for_each(|(sum, value)| *sum += gate * value);
                    }
                    times(&sum, self.number("moe_output_multiplier", 1.0))
                }
            })
            .collect()
    }

    /// Outputs of an expert through its adapter, where it has one.
    fn adapted(&self, expert: &str, outputs: Rows) -> Rows {
        let adapter = format!("{expert}.adapter");
        match self.tensors.contains_key(&format!("{adapter}.weight")) {
            true => outputs
                .iter()
                .map(|out| self.linear(&adapter, out))
                .collect(),
            false => outputs,
        }
    }

    fn mlp(&self, prefix: &str, h: &[f64]) -> Vec<f64> {
        let activation = |x: f64| match self.text("hidden_act") {
            "relu2" => x.max(0.0) * x.max(0.0),
            "gelu" => 0.5 * x * (1.0 + libm::erf(x / 2f64.sqrt())),
            "gelu_new" | "gelu_pytorch_tanh" => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            }
            _ => x / (1.0 + (-x).exp()),
        };
        let up = self.linear(&format!("{prefix}.up_proj"), h);
        let inner: Vec<f64> = if self.text("mlp_type") == "plain" {
            up.into_iter().map(activation).collect()
        } else {
            let gate = self.linear(&format!("{prefix}.gate_proj"), h);
            gate.iter()
                .zip(&up)
                .map(|(gate, up)| activation(*gate) * up)
                .collect()
        };
        self.linear(&format!("{prefix}.down_proj"), &inner)
    }

    /// Gates `[token][expert]`, zero where not chosen; `None` without a router of this name.
    fn gates(
        &self,
        router: &str,
        h: &Rows,
        k: &str,
        norm: &str,
        top_k: Option<usize>,
        dropped: &[usize],
    ) -> Option<Rows> {
        self.tensors.get(&format!("{router}.weight"))?;
        let k = top_k.unwrap_or_else(|| self.size(k));
        let normalise = self.config[norm].as_bool().unwrap();
        Some(
            h.iter()
                .map(|h| {
                    let mut logits = self.linear(router, h);
                    let mut choice = vec![0.0; logits.len()];
                    if let (Some("choice"), Some((_, bias))) = (
                        self.config["router_bias"].as_str(),
                        self.tensors.get(&format!("{router}.bias")),
                    ) {
                        logits
                            .iter_mut()
                            .zip(bias)
                            .for_each(|(logit, bias)| *logit -= bias);
                        choice.clone_from(bias);
                    }
                    dropped
                        .iter()
                        .for_each(|expert| logits[*expert] = f64::NEG_INFINITY);
                    if router.ends_with("self_attn.router")
                        && self.text("attention_gate") == "sigmoid"
                    {
                        let left = logits.len() - dropped.len();
                        let scale = self.number("attention_gate_scale", 1.0) * logits.len() as f64
                            / left as f64;
                        return logits
                            .iter()
                            .map(|logit| scale / (1.0 + (-logit).exp()))
                            .collect();
                    }
                    let mut gates = softmax(&logits);
                    let mut order: Vec<usize> = (0..gates.len()).collect();
                    order.sort_by(|a, b| {
                        (gates[*b] + choice[*b]).total_cmp(&(gates[*a] + choice[*a]))
                    });
                    order[k..].iter().for_each(|expert| gates[*expert] = 0.0);
                    let sum: f64 = gates.iter().sum();
                    if normalise {
                        gates.iter().map(|gate| gate / sum).collect()
                    } else {
                        gates
                    }
                })
                .collect(),
        )
    }

    fn norms(&self, x: &Rows, name: &str) -> Rows {
        let bias = self.tensors.get(&name.replace(".weight", ".bias"));
        x.iter()
            .map(|x| {
                let normed = self.norm_of(x, &self.tensors[name].1, self.layer_norm());
                match bias {
                    Some((_, bias)) => normed.iter().zip(bias).map(|(x, b)| x + b).collect(),
                    None => normed,
                }
            })
            .collect()
    }

    fn layer_norm(&self) -> bool {
        self.text("norm_type") == "layer" || self.text("model_type") == "cohere"
    }

    fn norm_of(&self, x: &[f64], weight: &[f64], layer: bool) -> Vec<f64> {
        let key = if self.layer_norm() {
            "layer_norm_eps"
        } else {
            "rms_norm_eps"
        };
        let eps = self.config[key].as_f64().unwrap();
        let offset = f64::from(u8::from(self.config["norm_offset"] == true));
        let mean = if layer {
            x.iter().sum::<f64>() / x.len() as f64
        } else {
            0.0
        };
        let square = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
        x.iter()
            .zip(weight)
            .map(|(x, weight)| (x - mean) / (square + eps).sqrt() * (offset + weight))
            .collect()
    }

    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let (width, weight) = &self.tensors[&format!("{name}.weight")];
        assert_eq!(*width, x.len(), "{name}");
        let bias = self.tensors.get(&format!("{name}.bias"));
        weight
            .chunks(*width)
            .enumerate()
            .map(|(i, row)| dot(row, x) + bias.map_or(0.0, |bias| bias.1[i]))
            .collect()
    }

    fn rotates(&self, layer: usize) -> bool {
        match self.config.get("rope_layers").and_then(Value::as_array) {
            Some(layers) => layers.contains(&Value::from(layer)),
            None => true,
        }
    }

    fn rotate(&self, x: &[f64], position: usize, layer: usize) -> Vec<f64> {
        let kind = self.config["layer_types"].get(layer);
        let kind = kind.and_then(Value::as_str).unwrap_or_default();
        let of_kind = self.config["rope_parameters"].get(kind);
        let rope = |name: &str| {
            of_kind
                .unwrap_or(&self.config["rope_parameters"])
                .get(name)
                .or_else(|| self.config["rope_scaling"].get(name))
        };
        let base = of_kind
            .and_then(|rope| rope.get("rope_theta"))
            .or_else(|| self.config.get("rope_theta"))
            .or_else(|| rope("rope_theta"))
            .and_then(Value::as_f64)
            .unwrap();
        let interleaved = self
            .config
            .get("rope_interleaved")
            .and_then(Value::as_bool)
            .unwrap_or(self.text("model_type") == "cohere");
        let part = rope("partial_rotary_factor").and_then(Value::as_f64);
        let rotated = (x.len() as f64 * part.unwrap_or(1.0)) as usize;
        let pairs = rotated / 2;
        let mut out = x.to_vec();
        for pair in 0..pairs {
            let mut frequency = base.powf(-2.0 * pair as f64 / rotated as f64);
            if rope("rope_type").and_then(Value::as_str) == Some("llama3") {
                let value = |name| rope(name).and_then(Value::as_f64).unwrap();
                let context = value("original_max_position_embeddings");
                let (low, high) = (value("low_freq_factor"), value("high_freq_factor"));
                // How many waves fit into the old context, between `low` (stretch) and `high` (keep).
                let waves = context * frequency / (2.0 * std::f64::consts::PI);
                let keep = ((waves - low) / (high - low)).clamp(0.0, 1.0);
                frequency *= keep + (1.0 - keep) / value("factor");
            }
            if rope("rope_type").and_then(Value::as_str) == Some("linear") {
                frequency /= rope("factor").and_then(Value::as_f64).unwrap();
            }
            let angle = position as f64 * frequency;
            let (a, b) = if interleaved {
                (2 * pair, 2 * pair + 1)
            } else {
                (pair, pair + pairs)
            };
            out[a] = x[a] * angle.cos() - x[b] * angle.sin();
            out[b] = x[b] * angle.cos() + x[a] * angle.sin();
        }
        out
    }

    fn window(&self, layer: usize) -> Option<usize> {
        let key = |name: &str| self.config.get(name);
        let sliding = match key("layer_types").filter(|types| types.is_array()) {
            Some(types) => types[layer] == "sliding_attention",
            None => {
                layer as u64
                    >= key("max_window_layers")
                        .and_then(Value::as_u64)
                        .unwrap_or(0)
            }
        };
        key("sliding_window")
            .and_then(Value::as_u64)
            .filter(|_| {
                sliding
                    && key("use_sliding_window")
                        .and_then(Value::as_bool)
                        .unwrap_or(true)
            })
            .map(|window| window as usize)
    }

    /// A number that has a value where the config does not say it.
    fn number(&self, name: &str, usual: f64) -> f64 {
        self.config
            .get(name)
            .and_then(Value::as_f64)
            .unwrap_or(usual)
    }

    fn capped(&self, x: f64, name: &str) -> f64 {
        let cap = self.number(name, f64::INFINITY);
        if cap.is_finite() {
            cap * (x / cap).tanh()
        } else {
            x
        }
    }

    fn size(&self, name: &str) -> usize {
        self.config[name].as_u64().unwrap() as usize
    }

    fn text(&self, name: &str) -> &str {
        self.config
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or_default()
    }
}
