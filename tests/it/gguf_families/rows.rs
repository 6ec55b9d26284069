//! The families, and what is special of each in a GGUF file.

use serde_json::{Value, json};

/// One family.
pub(super) struct Row {
    /// The checkpoint in `fixtures/`.
    pub(super) source: &'static str,
    pub(super) architecture: &'static str,
    /// Tensors of its layers beside [`ATTENTION`].
    pub(super) tensors: &'static [&'static str],
    /// Keys of metadata beside Llama's, with their values.
    pub(super) keys: &'static [(&'static str, f64)],
    /// Endings of biases that llama.cpp does not have, which the checkpoint loses first.
    pub(super) without: &'static [&'static str],
    /// Keys of `config.json` that change with them.
    pub(super) change: fn(&mut Value),
}

const GATED: &[&str] = &["attn_norm", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"];
const PLAIN: &[&str] = &["attn_norm", "ffn_norm", "ffn_up", "ffn_down"];
const FUSED: &[&str] = &["attn_norm", "attn_qkv", "ffn_norm", "ffn_up", "ffn_down"];
const SANDWICH: &[&str] = &[
    "attn_norm",
    "post_attention_norm",
    "ffn_norm",
    "post_ffw_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
];
const NORMED_SANDWICH: &[&str] = &[
    "attn_norm",
    "attn_q_norm",
    "attn_k_norm",
    "post_attention_norm",
    "ffn_norm",
    "post_ffw_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
];
const EXPERTS: &[&str] = &[
    "attn_norm",
    "ffn_norm",
    "ffn_gate_inp",
    "ffn_gate_exps",
    "ffn_up_exps",
    "ffn_down_exps",
];
const NORMED_EXPERTS: &[&str] = &[
    "attn_norm",
    "attn_q_norm",
    "attn_k_norm",
    "ffn_norm",
    "ffn_gate_inp",
    "ffn_gate_exps",
    "ffn_up_exps",
    "ffn_down_exps",
];
const POST: &[&str] = &[
    "post_attention_norm",
    "post_ffw_norm",
    "attn_q_norm",
    "attn_k_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
];

pub(super) fn rows() -> Vec<Row> {
    let row = |source, architecture, tensors| Row {
        source,
        architecture,
        tensors,
        keys: &[],
        without: &[],
        change: |_| (),
    };
    vec![
        row("qwen2/seed", "qwen2", GATED),
        row(
            "qwen3/seed",
            "qwen3",
            &[
                "attn_norm",
                "attn_q_norm",
                "attn_k_norm",
                "ffn_norm",
                "ffn_gate",
                "ffn_up",
                "ffn_down",
            ],
        ),
        Row {
            without: &[".bias"],
            change: |config| config["attention_bias"] = json!(false),
            ..row("families/olmo2", "olmo2", POST)
        },
        row("families/exaone4", "exaone4", POST),
        Row {
            without: &[
                "o_proj.bias",
                "gate_proj.bias",
                "up_proj.bias",
                "down_proj.bias",
            ],
            change: |config| {
                config["attention_out_bias"] = json!(false);
                config["mlp_bias"] = json!(false);
            },
            ..row(
                "families/seed_oss",
                "seed_oss",
                &[
                    "attn_norm",
                    "post_attention_norm",
                    "ffn_gate",
                    "ffn_up",
                    "ffn_down",
                ],
            )
        },
        Row {
            without: &[".bias"],
            change: |config| {
                config["attention_bias"] = json!(false);
                config["mlp_bias"] = json!(false);
            },
            ..row(
                "families/arcee",
                "arcee",
                &["attn_norm", "ffn_norm", "ffn_up", "ffn_down"],
            )
        },
        Row {
            change: |config| {
                config["sliding_window"] = Value::Null;
                config["head_dim"] = json!(8);
            },
            ..row(
                "families/starcoder2",
                "starcoder2",
                &["attn_norm", "ffn_norm", "ffn_up", "ffn_down"],
            )
        },
        Row {
            keys: &[
                ("embedding_scale", 3.0),
                ("residual_scale", 0.4),
                ("attention.scale", 0.2),
                ("logit_scale", 4.0),
            ],
            ..row("families/granite", "granite", GATED)
        },
        // llama.cpp opens no Granite without this key.
        Row {
            keys: &[("logit_scale", 1.0)],
            change: |config| config["logits_scaling"] = json!(1.0),
            ..row("families/granite", "granite", GATED)
        },
        Row {
            without: &[".bias"],
            change: |config| config["attention_bias"] = json!(false),
            ..row(
                "families/hunyuan_v1_dense",
                "hunyuan-dense",
                &[
                    "attn_norm",
                    "attn_q_norm",
                    "attn_k_norm",
                    "ffn_norm",
                    "ffn_gate",
                    "ffn_up",
                    "ffn_down",
                ],
            )
        },
        Row {
            without: &[".bias"],
            change: |config| config["bias"] = json!(false),
            ..row("families/internlm2", "internlm2", GATED)
        },
        Row {
            keys: &[("rope.dimension_count", 6.0)],
            change: |config| {
                config["hidden_act"] = json!("gelu_new");
                own_head(config);
            },
            ..row("families/phi", "phi2", &["attn_norm", "ffn_up", "ffn_down"])
        },
        Row {
            without: &[".bias"],
            change: |config| {
                config["attention_bias"] = json!(false);
                config["mlp_bias"] = json!(false);
                config["use_sliding_window"] = json!(false);
                config["no_rope_layers"] = json!([1, 1, 1, 0]);
                config["layer_types"] = Value::Null;
            },
            ..row("families/smollm3", "smollm3", GATED)
        },
        Row {
            keys: &[("rope.dimension_count", 4.0)],
            change: own_head,
            ..row(
                "families/stablelm",
                "stablelm",
                &["attn_norm", "ffn_gate", "ffn_up", "ffn_down"],
            )
        },
        row("families/stablelm_sequential", "stablelm", GATED),
        Row {
            keys: &[("logit_scale", 0.5), ("attention.sliding_window", 5.0)],
            without: &[".bias", "lm_head.weight"],
            change: |config| {
                let sliding = "sliding_attention";
                config["attention_bias"] = json!(false);
                config["tie_word_embeddings"] = json!(true);
                config["layer_types"] = json!([sliding, sliding, sliding, "full_attention"]);
            },
            ..row(
                "families/cohere2",
                "cohere2",
                &["attn_norm", "ffn_gate", "ffn_up", "ffn_down"],
            )
        },
        Row {
            without: &[".bias"],
            change: |config| config["attention_bias"] = json!(false),
            ..row("families/gemma", "gemma", GATED)
        },
        Row {
            keys: &[
                ("attn_logit_softcapping", 2.0),
                ("final_logit_softcapping", 3.0),
                ("attention.sliding_window", 5.0),
                ("attention.sliding_window_pattern", 2.0),
            ],
            without: &[".bias", "lm_head.weight"],
            change: |config| {
                config["attention_bias"] = json!(false);
                config["query_pre_attn_scalar"] = json!(16);
                config["tie_word_embeddings"] = json!(true);
            },
            ..row("families/gemma2", "gemma2", SANDWICH)
        },
        Row {
            keys: &[
                ("final_logit_softcapping", 4.0),
                ("rope.freq_base_swa", 20000.0),
            ],
            change: |config| {
                config["query_pre_attn_scalar"] = json!(16);
                config["layer_types"] = vec!["sliding_attention"; 4].into();
                config["sliding_window_pattern"] = json!(6);
            },
            ..row("families/gemma3_text", "gemma3", NORMED_SANDWICH)
        },
        Row {
            keys: &[("rope.dimension_count", 6.0)],
            change: |config| {
                own_head(config);
                config["head_dim"] = json!(8);
            },
            ..row("families/nemotron", "nemotron", PLAIN)
        },
        Row {
            keys: &[("rope.dimension_count", 2.0)],
            change: |config| config["head_dim"] = json!(8),
            ..row("families/glm", "chatglm", FUSED)
        },
        Row {
            keys: &[
                ("rope.dimension_count", 6.0),
                ("rope.scaling.original_context_length", 12.0),
                ("attention.sliding_window", 0.0),
            ],
            change: |config| config["sliding_window"] = Value::Null,
            ..row(
                "families/phi3",
                "phi3",
                &[
                    "attn_norm",
                    "attn_qkv",
                    "ffn_norm",
                    "ffn_up",
                    "ffn_down",
                    "rope_factors_long",
                    "rope_factors_short",
                ],
            )
        },
        Row {
            keys: &[("rope.dimension_count", 12.0)],
            ..row(
                "families/glm4",
                "glm4",
                &[
                    "attn_norm",
                    "post_attention_norm",
                    "ffn_norm",
                    "post_ffw_norm",
                    "ffn_up",
                    "ffn_down",
                ],
            )
        },
        Row {
            keys: &[("rope.dimension_count", 6.0), ("rope.scaling.factor", 2.0)],
            ..row("families/gpt_neox", "gptneox", FUSED)
        },
        Row {
            keys: &[("rope.dimension_count", 6.0)],
            change: |config| config["use_parallel_residual"] = json!(false),
            ..row("families/gpt_neox", "gptneox", FUSED)
        },
        Row {
            keys: &[
                ("attention.temperature_scale", 0.4),
                ("rope.scaling.original_context_length", 6.0),
                ("rope.scaling.yarn_log_multiplier", 0.5),
                ("rope.scaling.yarn_beta_fast", 4.0),
            ],
            change: |config| config["sliding_window"] = Value::Null,
            ..row("families/ministral3", "mistral3", GATED)
        },
        Row {
            change: |config| {
                config["clip_qkv"] = Value::Null;
                config["num_key_value_heads"] = json!(4);
            },
            ..row("mixtures/olmoe", "olmoe", NORMED_EXPERTS)
        },
        Row {
            keys: &[("embedding_scale", 3.0), ("expert_used_count", 2.0)],
            ..row("mixtures/granitemoe", "granitemoe", EXPERTS)
        },
        Row {
            keys: &[("expert_feed_forward_length", 24.0)],
            change: |config| {
                config["decoder_sparse_step"] = json!(1);
                config["num_hidden_layers"] = json!(1);
            },
            ..row("mixtures/qwen3_moe", "qwen3moe", NORMED_EXPERTS)
        },
        Row {
            keys: &[("expert_shared_feed_forward_length", 40.0)],
            change: |config| {
                config["mlp_only_layers"] = json!([]);
                config["layer_types"] = json!(["full_attention"]);
                config["num_hidden_layers"] = json!(1);
            },
            ..row(
                "mixtures/qwen2_moe",
                "qwen2moe",
                &[
                    "attn_norm",
                    "ffn_norm",
                    "ffn_gate_inp",
                    "ffn_gate_exps",
                    "ffn_up_exps",
                    "ffn_down_exps",
                    "ffn_gate_shexp",
                    "ffn_up_shexp",
                    "ffn_down_shexp",
                    "ffn_gate_inp_shexp",
                ],
            )
        },
        Row {
            keys: &[("logit_scale", 0.0625)],
            ..row(
                "cohere/seed",
                "command-r",
                &["attn_norm", "ffn_gate", "ffn_up", "ffn_down"],
            )
        },
    ]
}

/// Says that the head is no input embedding.
fn own_head(config: &mut Value) {
    config["tie_word_embeddings"] = json!(false);
}
