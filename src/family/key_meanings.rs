//! The one table of configuration keys that change what a model computes, beyond the numbers that every description names.
//!
//! Format files that users bring are checked against it ([`super::unsaid`]).
//! The keys are from the configuration classes of decoders in transformers 4.57.6 and 5.24.0 (`fixtures/config_keys.json`),
//! and from the remote code of older models.
//! A key that is in no row and not among [`HARMLESS`] counts as one that changes the computation, because nobody knows what it does.
//! Only a text is allowed there, unless a word of the key's name is in [`WORDS`].

use super::keys::Field;

/// A value that leaves the computation as the description says it. Null and empty lists and objects always do.
#[derive(Debug, Clone, Copy)]
pub(super) enum Neutral {
    /// This boolean.
    Bool(bool),
    /// This number.
    Number(f64),
    /// This text.
    Text(&'static str),
    /// A list of this text alone.
    Each(&'static str),
    /// A list of ones alone.
    Ones,
    /// The value that the description reads for this number.
    As(Field),
    /// The width of a head.
    HeadDim,
    /// One divided by the root of the width of a head.
    HeadScale,
    /// Whether the block is parallel.
    Parallel,
    /// Whether rotary pairs are neighbours.
    Interleaved,
    /// Whether norms multiply by one plus their weight, as a boolean or as 0 and 1.
    NormOffset,
    /// Whether norms are root mean squares.
    Rms,
    /// Whether q, k and v have biases.
    Biased,
    /// Anything, where the configuration has no value under this other key.
    Without(&'static str),
    /// Anything, where the configuration has a value under this other key, which counts instead.
    Beside(&'static str),
    /// Any text.
    AnyText,
}

/// Keys with one meaning.
pub(super) struct KeyMeaning {
    keys: &'static [&'static str],
    /// Values that change nothing.
    pub(super) neutral: &'static [Neutral],
    /// What other values do, as a clause.
    pub(super) because: &'static str,
}

impl KeyMeaning {
    /// The meaning of a key, if it may change what is computed.
    pub(super) fn of(key: &str) -> Option<&'static Self> {
        let named = |row: &&Self| row.keys.contains(&key);
        if let Some(row) = MEANINGS.iter().find(named) {
            return Some(row);
        }
        let words = words(key);
        let has = |listed: &[&str]| words.iter().any(|word| listed.contains(&word.as_str()));
        let is_token = key.ends_with("token_id") || key.ends_with("token_ids");
        if HARMLESS.contains(&key) || is_token || has(&HARMLESS_WORDS) {
            None
        } else if has(&WORDS) {
            Some(&LIKELY)
        } else {
            Some(&UNKNOWN)
        }
    }
}

/// The words of a key in lower case: `attnScale` and `attn_scale` have the same.
fn words(key: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut after_lower = false;
    for letter in key.chars() {
        if letter == '_' || letter.is_uppercase() && after_lower {
            words.push(String::new());
        }
        if let (Some(word), true) = (words.last_mut(), letter != '_') {
            word.extend(letter.to_lowercase());
        }
        after_lower = letter.is_lowercase() || letter.is_ascii_digit();
    }
    words
}

macro_rules! meanings {
    ($($because:literal: [$($neutral:expr),*] $($key:literal)*;)*) => {
        /// The table.
        static MEANINGS: &[KeyMeaning] = {
            use Neutral::*;
            &[$(KeyMeaning { keys: &[$($key),*], neutral: &[$($neutral),*], because: $because },)*]
        };
    };
}

meanings! {
    // ---- multipliers
    "it multiplies activations": [Number(1.0)]
        "embedding_multiplier" "residual_multiplier" "embedding_scale" "embed_scale" "scale_emb" "lm_head_multiplier"
        "key_multiplier" "attention_in_multiplier" "attention_out_multiplier" "ssm_in_multiplier" "ssm_out_multiplier"
        "logits_mup_width_multiplier" "attention_value_scale" "residual_scale" "mlp_multipliers" "ssm_multipliers";
    "it scales logits": [Number(1.0)] "logits_scaling" "logit_scale" "output_multiplier_scale";
    "it scales the sublayers' outputs": [] "scale_depth";
    "it scales the last hidden states": [As(Field::HiddenSize)] "dim_model_base";
    "it scales embeddings": [Bool(false)] "scale_embedding" "normalize_embedding" "mup_enabled";
    "it replaces the scale of attention scores": [HeadScale] "attention_multiplier" "softmax_scale";
    "it replaces the scale of attention scores": [HeadDim] "query_pre_attn_scalar";
    "it scales queries by their position": [Bool(false), Number(0.0)]
        "attn_temperature_tuning" "use_logn_attn" "llama_4_scaling_beta" "log_scaling_alpha";
    "it scales queries by their position": [Without("attn_temperature_tuning")]
        "attn_scale" "floor_scale" "log_scaling_n_floor";
    // ---- soft caps and clips
    "it bounds scores or logits": [Number(0.0)]
        "attn_logit_softcapping" "final_logit_softcapping" "attn_logit_softcap" "final_logit_softcap" "logits_soft_cap"
        "output_logit_soft_cap" "gate_soft_cap" "moe_router_logit_softcapping" "mlp_gate_softcap" "mlp_up_softcap"
        "qk_l2_clip_threshold" "rel_l2_clip_threshold";
    "it bounds queries, keys and values": [As(Field::ClipQkv)] "clip_qkv";
    "it bounds the feed-forward network's inner values": [] "swiglu_limit" "swiglu_alpha" "gegelu_limit";
    // ---- positions
    "some layers do not rotate": [Ones] "no_rope_layers";
    "some layers do not rotate": [Beside("no_rope_layers"), Number(0.0)] "no_rope_layer_interval";
    "positions do not rotate queries and keys": [Text("rope"), Text("rotary"), Text("rope_with_yarn")]
        "position_embedding_type" "pos_emb_type" "position_encoding_type";
    "positions do not rotate queries and keys": [Bool(true)] "use_rope" "rotary" "use_rotary" "apply_rotary_pos_emb";
    "positions are added otherwise": [Bool(false)]
        "alibi" "use_alibi" "learned_pos_emb" "use_mem_rope" "use_learned_position_embeddings";
    "it rotates a part of each head": [Number(1.0)] "rotary_pct" "rope_pct" "rotary_percent" "rope_percentage";
    "it rotates a part of each head": [HeadDim] "rotary_dim" "rotary_ndims";
    "it is the base of rotary positions": [As(Field::RopeTheta)]
        "rope_theta" "rotary_emb_base" "rotary_base" "rope_base" "rope_emb_base" "rope_freq_base" "global_rope_theta" "layer_rope_theta";
    "it is the base of rotary positions in layers with a window": [Without("sliding_window"), As(Field::RopeTheta)]
        "rope_local_base_freq" "local_rope_theta" "swa_rope_theta" "compress_rope_theta";
    "it scales rotary positions": [Number(1.0)] "rope_ratio" "rope_factor" "rope_scaling_factor" "rotary_scale_base";
    "it pairs the rows that rotate": [Interleaved]
        "rope_interleave" "rope_interleaved" "rotary_interleaved" "interleaved_rope" "mrope_interleaved";
    "it scales rotary positions": [Bool(false)] "use_dynamic_ntk" "use_long_context" "use_mrope";
    // ---- which positions and layers
    "some layers see other positions": [Each("full_attention"), Each("attention"), As(Field::LayerTypes)] "layer_types";
    "it limits how far attention looks back": [As(Field::SlidingWindow)] "sliding_window";
    "it limits how far attention looks back": [Bool(false)] "use_sliding_window";
    "it limits how far attention looks back": []
        "attention_chunk_size" "window_size" "sliding_window_size" "attention_window_size" "local_attention_window_len"
        "attention_types" "local_layer_ids" "global_attn_every_n_layers" "keep_window_size";
    "some layers have a window": [Without("sliding_window")]
        "sliding_window_pattern" "prefix_dense_sliding_window_pattern" "max_window_layers" "_sliding_window_pattern";
    "attention looks ahead": [Bool(true)] "is_causal" "causal" "causal_attention";
    "attention looks ahead": [Bool(false)]
        "use_bidirectional_attention" "bidirectional" "is_bidirectional" "prefix_lm" "is_encoder_decoder"
        "add_cross_attention" "is_prefix_lm";
    "some layers look at other inputs": [] "cross_attention_layers" "cross_attn_k";
    "attention has a sink": [Bool(false), Number(0.0)]
        "attention_sink" "attention_sinks" "use_attention_sink" "use_sinks" "add_full_attention_sink_bias"
        "add_swa_attention_sink_bias" "learnable_sink_init" "shared_expert_sink";
    // ---- norms and the block
    "it normalises queries and keys": [Bool(false)]
        "use_qk_norm" "qk_layernorm" "qk_norm" "use_query_key_norm" "query_key_norm" "use_qk_layernorm" "attention_qk_norm";
    "it joins attention and feed-forward network": [Parallel]
        "use_parallel_residual" "parallel_attn" "parallel_residual" "use_parallel_block" "parallel_block";
    "it moves norms": [Bool(false)]
        "use_post_norm" "post_norm" "use_sandwich_norm" "sandwich_norm" "apply_residual_connection_post_layernorm"
        "add_out_norm" "post_attn_norm" "chain_hidden_post_norm" "mamba_norm_before_gate" "_remove_final_layer_norm";
    "it moves norms": [Bool(true)] "do_layer_norm_before" "layer_norm_elementwise_affine" "pre_norm" "final_norm";
    "it adds norms": [] "num_ln_in_parallel_attn" "gated_norm_rank";
    "it is the epsilon of norms": [As(Field::NormEps)]
        "layer_norm_eps" "layer_norm_epsilon" "norm_eps" "norm_epsilon" "layernorm_epsilon" "rms_norm_eps"
        "rms_norm_epsilon" "rmsnorm_eps" "layernorm_eps" "eps";
    "it says which norm": [Rms] "rms_norm" "rmsnorm" "use_rms_norm" "use_rmsnorm" "mamba_rms_norm";
    "it says which norm": [Text("rms"), Text("rmsnorm"), Text("rms_norm"), Text("RMSNorm")]
        "norm_type" "normalization" "normalization_type" "norm_class";
    "norms multiply by one plus their weight": [NormOffset]
        "norm_offset" "rms_norm_offset" "add_unit_offset" "norm_weight_offset" "zero_centered_gamma"
        "layernorm_zero_centered_gamma" "apply_layernorm_1p" "use_layernorm_1p";
    // ---- biases and ties
    "it adds biases": [Biased] "attention_bias";
    "it adds biases": [Bool(false)]
        "use_bias" "qkv_bias" "bias" "mlp_bias" "add_bias_linear" "attention_out_bias" "use_qkv_bias" "add_qkv_bias"
        "attn_qkv_bias" "attn_bias" "o_bias" "fc_bias" "ffn_bias" "feed_forward_bias" "lm_head_bias" "head_bias" "norm_bias"
        "enable_bias" "projectors_bias" "use_conv_bias" "conv_bias" "use_expert_bias" "bias_in_linear" "linear_bias";
    "it adds biases": [Bool(true)] "no_bias";
    "it ties the head to the input embedding": [As(Field::TieWordEmbeddings)]
        "tie_word_embeddings" "tie_embedding" "tie_embeddings" "tied_embeddings" "tie_weights" "tie_lm_head" "share_embeddings"
        "share_input_output_embedding" "tie_encoder_decoder";
    // ---- the feed-forward network
    "it is an activation": [As(Field::HiddenAct)]
        "hidden_act" "hidden_activation" "activation_function" "activation" "mlp_hidden_act" "act_fn" "activation_fn"
        "hidden_act_fn" "mlp_activation" "ffn_activation";
    "it is an activation": [Bool(false)] "use_gegelu" "use_swiglu_limit" "gating" "use_attention_gate";
    "it is an attention gate": [] "output_gate_type" "gate_type" "attn_output_gate" "use_gated_attention";
    "its feed-forward network differs by layer": [Bool(false)]
        "use_double_wide_mlp" "activation_sparsity_pattern" "is_moe" "enable_moe_block";
    // ---- experts
    "it adds experts": [Number(0.0)]
        "num_experts" "num_local_experts" "n_routed_experts" "moe_num_experts" "num_routed_experts" "n_experts"
        "n_shared_experts" "num_shared_experts" "moe_num_shared_experts" "zero_expert_num" "moe_latent_size";
    "it adds experts": [Number(0.0), As(Field::IntermediateSize)]
        "shared_intermediate_size" "shared_expert_intermediate_size" "shared_experts_intermediate_size";
    "it weights experts": [Number(1.0)]
        "routed_scaling_factor" "route_scale" "router_scaling_factor" "moe_routed_scaling_factor" "n_group" "topk_group";
    "it weights experts": [Text("softmax"), Text("greedy")]
        "scoring_func" "score_function" "expert_selection_fn" "topk_method" "moe_router_score_function" "score_func";
    "it weights experts": [Bool(false)] "moe_apply_router_weight_on_input" "moe_router_enable_expert_bias";
    "some layers have no experts": [Number(0.0)] "first_k_dense_replace" "num_dense_layers" "moe_layer_offset";
    // ---- other widths
    "it is a width": [As(Field::HiddenSize)]
        "hidden_size" "d_model" "n_embd" "hidden_dim" "word_embed_proj_dim" "embedding_dim" "embedding_size" "dim" "model_dim";
    "it is a number of layers": [As(Field::NumLayers)]
        "n_layer" "n_layers" "num_layers" "num_hidden_layers" "num_blocks" "num_decoder_layers";
    "it is a number of heads": [As(Field::NumHeads)]
        "n_head" "n_heads" "num_heads" "attention_heads" "num_attention_heads" "num_query_heads";
    "it is a number of heads": [As(Field::NumKvHeads)]
        "num_key_value_heads" "num_kv_heads" "n_head_kv" "n_kv_heads" "multi_query_group_num";
    "all heads have one key": [Bool(false)] "multi_query" "multi_query_attention";
    "it is the width of a head": [HeadDim]
        "attention_head_dim" "v_head_dim" "value_head_dim" "qk_head_dim" "kv_channels" "head_size" "d_kv" "swa_head_dim"
        "swa_v_head_dim";
    "it is a width": [As(Field::IntermediateSize)]
        "intermediate_size" "d_ff" "ffn_dim" "n_inner" "ffn_hidden_size" "intermediate_size_mlp" "dense_intermediate_size"
        "ffn_intermediate_size" "prefix_dense_intermediate_size";
    "heads differ by layer": []
        "num_attention_heads_per_layer" "swa_num_attention_heads" "swa_num_key_value_heads" "block_configs"
        "per_layer_config" "num_query_heads_per_layer";
    "it is a width": [As(Field::VocabSize)] "output_vocab_size" "unpadded_vocab_size" "vocab_size";
    // ---- other kinds of layers
    "attention reads compressed keys and values": [Number(0.0)]
        "kv_lora_rank" "q_lora_rank" "o_lora_rank" "qk_nope_head_dim" "qk_rope_head_dim" "o_groups";
    "some layers are no attention": []
        "layers_block_type" "block_types" "attn_layer_indices" "full_attn_idxs" "attn_layer_period" "attn_layer_offset"
        "full_attention_interval" "layer_group_size" "linear_attn_config" "hybrid_override_pattern" "lru_width"
        "state_size" "ssm_state_size" "ssm_cfg" "rescale_every" "hybrid_layer_ids";
    "layers have inputs of their own": [Number(0.0)]
        "hidden_size_per_layer_input" "vocab_size_per_layer_input" "num_kv_shared_layers" "laurel_rank" "altup_num_inputs"
        "ple_embed_dim" "ple_layer_ids";
    "keys are values": [Bool(false)] "attention_k_eq_v";
    "layers run more than once": []
        "n_recurrent_loops" "n_recurrent_layers" "H_cycles" "L_cycles" "L_bp_cycles" "loop_num_passes" "num_loops";
    "residual streams are mixed": [Number(0.0), Number(1.0)] "hc_mult" "hc_count" "num_residual_streams";
    "the language model is an object in the configuration": []
        "text_config" "llm_config" "language_config" "thinker_config" "attn_config" "ffn_config";
}

/// A key that is not in the table, and whose name says that it may matter.
static LIKELY: KeyMeaning = KeyMeaning {
    keys: &[],
    neutral: &[Neutral::Bool(false)],
    because: "by its name it may change what the model computes",
};

/// A key that nobody here knows.
static UNKNOWN: KeyMeaning = KeyMeaning {
    keys: &[],
    neutral: &[Neutral::Bool(false), Neutral::AnyText],
    because: "bam-convert does not know the key",
};

/// Words of keys that may change what a model computes.
const WORDS: [&str; 66] = [
    "act",
    "activation",
    "adapter",
    "alibi",
    "alpha",
    "altup",
    "attention",
    "attn",
    "beta",
    "bias",
    "cap",
    "causal",
    "chunk",
    "clip",
    "compress",
    "conv",
    "cycles",
    "delta",
    "eps",
    "expert",
    "experts",
    "ffn",
    "floor",
    "gate",
    "gated",
    "global",
    "head",
    "heads",
    "hc",
    "hyper",
    "index",
    "indexer",
    "interleave",
    "kda",
    "kv",
    "latent",
    "layer",
    "layers",
    "linear",
    "local",
    "lora",
    "loop",
    "mamba",
    "mixer",
    "mlp",
    "moe",
    "multiplier",
    "mup",
    "ngram",
    "norm",
    "nope",
    "position",
    "qk",
    "qkv",
    "recurrent",
    "residual",
    "rope",
    "rotary",
    "router",
    "scale",
    "scaling",
    "sink",
    "softcap",
    "ssm",
    "swiglu",
    "window",
];

/// Words of keys that change nothing in inference, whatever else is in their names.
const HARMLESS_WORDS: [&str; 11] = [
    "dropout",
    "layerdrop",
    "pdrop",
    "drop",
    "initializer",
    "loss",
    "jitter",
    "dtype",
    "summary",
    "mtp",
    "nextn",
];

/// Keys that change nothing by themselves.
///
/// Most are those that every configuration in transformers may have, or settings of generation and training.
/// Keys of experts matter only beside a number of experts. A rotary object, the rotated part, and the width of a head are read
/// in every family. Quantised weights are recognised by their tensors.
const HARMLESS: [&str; 128] = [
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_attn_implementation_internal",
    "_commit_hash",
    "_flash_attn_2_enabled",
    "_name_or_path",
    "architectures",
    "attention_softmax_in_fp32",
    "attn_implementation",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bi_data",
    "chunk_size",
    "chunk_size_feed_forward",
    "context_length",
    "cross_attention_hidden_size",
    "decoder_sparse_step",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "emb_init_std",
    "embed_init_std",
    "enable_thinking",
    "encoder_no_repeat_ngram_size",
    "expert_ffn_hidden_size",
    "expert_layer_offset",
    "expert_layer_period",
    "expert_names",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "head_dim",
    "id2label",
    "init_device",
    "init_method",
    "init_std",
    "initial_context_length",
    "interleave_moe_layer_step",
    "is_composition",
    "is_decoder",
    "is_encoder",
    "label2id",
    "layer_norm_type",
    "length_penalty",
    "max_length",
    "max_position_embeddings",
    "max_seq_len",
    "max_sequence_length",
    "max_shard_size",
    "min_length",
    "mlp_layer_types",
    "mlp_only_layers",
    "model_max_length",
    "model_type",
    "moe_intermediate_size",
    "moe_k",
    "moe_layer_end_index",
    "moe_layer_freq",
    "moe_layer_interval",
    "moe_layer_start_index",
    "moe_layers",
    "moe_norm_min",
    "moe_shared_expert_intermediate_size",
    "moe_shared_expert_overlap",
    "moe_topk",
    "n_ctx",
    "n_positions",
    "no_repeat_ngram_size",
    "norm_topk_prob",
    "num_beam_groups",
    "num_beams",
    "num_experts_per_tok",
    "num_labels",
    "num_logits_to_keep",
    "num_return_sequences",
    "original_max_position_embeddings",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "output_scores",
    "padding_side",
    "partial_rotary_factor",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "pruned_heads",
    "quantization_config",
    "remove_invalid_values",
    "remove_position_embeddings",
    "repetition_penalty",
    "residual_in_fp32",
    "return_dict",
    "return_dict_in_generate",
    "rope_parameters",
    "rope_scaling",
    "router_hidden_size",
    "sample_softmax",
    "scale_attention_softmax_in_fp32",
    "seed",
    "seq_aux",
    "seq_length",
    "shared_expert_combination_strategy",
    "slow_but_exact",
    "softmax_in_fp32",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tokenizer_class",
    "top_k",
    "top_k_experts",
    "top_p",
    "torchscript",
    "trained_tokens",
    "training_stage",
    "transformers_version",
    "typical_p",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "use_flash_attention",
    "use_flash_attention_2",
    "use_flash_attn",
    "use_flash_cross_entropy",
    "use_flash_rmsnorm",
    "use_flash_rotary",
    "use_mems_eval",
    "verbose",
];
