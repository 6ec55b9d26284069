//! Blocks that no dense fixture has: every norm position with either block, norm and feed-forward network.

use std::collections::BTreeMap;
use std::path::Path;

use bam_convert::family::{Architecture, Config};
use bam_convert::model::{CausalLm, Forward, LoadOptions, Params};
use candle_core::{Device, Tensor};
use serde_json::{Value, json};

use super::gradients::{check, trainable};
use super::naive::{Naive, Routing};
use super::{difference, golden_tokens, in_f64, run, ways};

/// A mixture of two experts over 24 dimensions; `number` varies the rest.
fn config(block: &str, position: &str, norm: &str, mlp: &str, number: usize) -> Value {
    let mut config = json!({
        "model_type": "bam", "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 384, "rope_theta": 1000.0,
        "tie_word_embeddings": number.is_multiple_of(3), "rms_norm_eps": 1e-5, "layer_norm_eps": 1e-5,
        "hidden_act": "silu", "attention_bias": number.is_multiple_of(2), "attention_output_bias": true,
        "mlp_bias": number.is_multiple_of(2), "block": block, "norm_type": norm, "norm_position": position,
        "mlp_type": mlp, "rope_interleaved": number % 2 == 1,
        "qk_norm": (["none", "head_dim", "per_head"][number % 3]), "num_experts": 3, "num_attention_experts": 3,
        "moe_layers": if number.is_multiple_of(4) { json!([1]) } else { json!("all") },
        "attention_moe_layers": if number % 4 == 1 { json!([0]) } else { json!("all") },
        "attention_kv": (["expert", "shared"][number / 2 % 2]), "num_experts_per_tok": 1 + number % 3,
        "num_attention_experts_per_tok": 3, "norm_topk_prob": number % 5 == 1, "norm_topk_prob_attention": false,
        "logit_scale": 0.5, "norm_offset": number % 4 < 2, "norm_bias": !number.is_multiple_of(3), "head_bias": number % 4 > 1,
        "qk_norm_after_rope": number % 5 < 2,
    });
    let multipliers = json!({
        "logits_divisor": (number % 2 == 1).then_some(0.7),
        "embedding_multiplier": (number % 3 == 1).then_some(1.5),
        "residual_multiplier": (number % 4 == 2).then_some(0.6),
        "attention_multiplier": (number % 5 == 2).then_some(0.3),
        "attn_logit_softcapping": (number % 3 == 2).then_some(0.8),
        "final_logit_softcapping": (number % 4 == 1).then_some(1.5),
    });
    for (key, value) in multipliers.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

/// A model of a configuration alone, with its tensors in two forms.
struct Assembled {
    config: Config,
    architecture: Architecture,
    tensors: BTreeMap<String, Tensor>,
    plain: BTreeMap<String, (usize, Vec<f64>)>,
}

impl Assembled {
    fn new(json: &Value) -> Self {
        let config = Config::from_json("config.json", json.as_object().unwrap().clone());
        let architecture = Architecture::of(&config).unwrap();
        let (mut tensors, mut plain) = (BTreeMap::new(), BTreeMap::new());
        for (index, spec) in architecture.tensors().unwrap().into_iter().enumerate() {
            let shape: Vec<usize> = spec.shape.iter().map(|extent| *extent as usize).collect();
            let count: usize = shape.iter().product();
            let values: Vec<f64> = (0..count)
                .map(|i| ((i * 31 + index * 17) as f64).sin() * 0.4 + 0.1)
                .collect();
            plain.insert(spec.name.clone(), (shape[shape.len() - 1], values.clone()));
            let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
            tensors.insert(spec.name, tensor);
        }
        Self {
            config,
            architecture,
            tensors,
            plain,
        }
    }

    fn load(&self, options: &LoadOptions) -> CausalLm {
        let (path, tensors) = (Path::new("assembled"), self.tensors.clone());
        let params = Params::from_tensors(path, &self.architecture, tensors, options).unwrap();
        CausalLm::new(self.architecture.clone(), &self.config, params, options).unwrap()
    }
}

/// Soft routing, so that every expert gets tokens.
#[test]
fn gradients_of_blocks_with_two_input_norms_are_right() {
    for (number, position) in [(2, "pre"), (5, "post"), (8, "sandwich")] {
        let json = config("parallel_two_norms", position, "layer", "gated", number);
        let model = Assembled::new(&json).load(&trainable());
        check(&model, position);
    }
}

#[test]
fn every_layout_is_the_sum_over_its_experts() {
    let tokens = golden_tokens();
    let mut number = 0;
    for block in ["sequential", "parallel", "parallel_two_norms"] {
        for position in ["pre", "post", "sandwich"] {
            for norm in ["rms", "layer"] {
                for mlp in ["gated", "plain"] {
                    number += 1;
                    let name = format!("{block}, {position}, {norm}, {mlp} ({number})");
                    let json = config(block, position, norm, mlp, number);
                    let model = Assembled::new(&json);
                    let plain = model.plain.clone();
                    let expected = Naive::new(plain, json).logits(&tokens, &Routing::default());
                    for (way, options) in ways().into_iter().chain([("f64", in_f64())]) {
                        let found = run(&model.load(&options), &tokens, &Forward::default());
                        let difference = difference(&found, &expected);
                        let tolerance = if way == "f64" { 1e-5 } else { 1e-4 };
                        assert!(difference < tolerance, "{name}, {way}: {difference}");
                    }
                }
            }
        }
    }
}
