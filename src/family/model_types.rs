//! Types of models whose meaning no format file can say, each with the reason.
//!
//! Some classes compute what no key of `config.json` says, and some give absent keys a meaning.
//! The table has every `model_type` with a causal language model in transformers 4.57.6 and 5.24.0 that is no built-in family
//! (`fixtures/config_keys.json`), and known types of remote code.

/// A type whose models are written, though not read.
pub const QWEN3_NEXT: &str = "qwen3_next";

/// What must be known of a `model_type` before a description can read its models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TypeFact {
    /// Names and keys say all that its models compute.
    Described,
    /// A description must say this key, because its absence has a meaning.
    AbsentKey {
        key: &'static str,
        /// Whether null is a value of its own, rather than absence.
        null: bool,
        /// What its absence means.
        means: &'static str,
    },
    /// A description must give this layout a value that is not neutral.
    Layout {
        layout: &'static str,
        /// What the layout means for its models.
        means: &'static str,
    },
    /// No description can say what its models compute: the reason.
    Never(&'static str),
}

impl TypeFact {
    /// The fact of that type, if it is known.
    pub(super) fn of(model_type: &str) -> Option<Self> {
        TYPES
            .iter()
            .find(|(types, _)| types.contains(&model_type))
            .map(|(_, fact)| *fact)
    }

    /// The fact of the type whose class has that name, for a configuration without `model_type`: `Gemma2ForCausalLM` is `gemma2`.
    pub(super) fn of_class(class: &str) -> Option<Self> {
        let plain = |name: &str| name.replace(['_', '-'], "").to_lowercase();
        let class = class.split("For").next().unwrap_or(class);
        let class = plain(class.strip_suffix("LMHeadModel").unwrap_or(class));
        let is_class = |model_type: &&str| {
            let text = model_type.strip_suffix("_text").unwrap_or(model_type);
            plain(model_type) == class || plain(text) == class
        };
        TYPES
            .iter()
            .find(|(types, _)| types.iter().any(&is_class))
            .map(|(_, fact)| *fact)
    }
}

const MLA: TypeFact = TypeFact::Never(
    "attention reads keys and values from compressed ones (MLA), so its experts are not defined",
);
const LINEAR: TypeFact = TypeFact::Never(
    "some of its layers are linear attention or recurrent, so attention experts are not defined",
);
const GATED_LINEAR: TypeFact = TypeFact::Never(
    "its layers are linear attention, or a gate multiplies the output of their attention",
);
const STATE_SPACE: TypeFact = TypeFact::Never(
    "some of its layers are state-space models, so attention experts are not defined",
);
const CONVOLUTION: TypeFact =
    TypeFact::Never("some of its layers are convolutions, so attention experts are not defined");
const FUSED: TypeFact = TypeFact::Never("one tensor holds the rows of several projections");
const NO_ROTATION: TypeFact = TypeFact::Never("some of its layers do not rotate queries and keys");
const LEARNED: TypeFact = TypeFact::Never("positions are learned or added to scores, not rotated");
const NORM_AFTER: TypeFact = TypeFact::Layout {
    layout: "qk_norm_after_rope",
    means: "queries and keys are normalised after their rotation",
};
const ROUTER: TypeFact =
    TypeFact::Never("its router is not a softmax over experts followed by the top k");
const GATED_ATTENTION: TypeFact = TypeFact::Never("a gate multiplies the output of attention");
const INNER_CONFIG: TypeFact =
    TypeFact::Never("the language model is a part of it: its keys are in `text_config`");
const OTHER_BLOCK: TypeFact =
    TypeFact::Never("its blocks are not attention followed by a feed-forward network");
const NOT_DECODER: TypeFact = TypeFact::Never("it is no decoder that looks back only");

/// The table.
const TYPES: &[(&[&str], TypeFact)] = &[
    (
        &["code_llama", "gptj", "stablelm_epoch"],
        TypeFact::Described,
    ),
    (
        &["ministral"],
        TypeFact::AbsentKey {
            key: "sliding_window",
            null: true,
            means: "a window of 4096 positions",
        },
    ),
    (
        &[
            "deepseek_v2",
            "deepseek_v3",
            "deepseek_v32",
            "deepseek_v4",
            "kimi_k2",
            "kimi_k25",
            "glm4_moe_lite",
            "glm_moe_dsa",
            "longcat_flash",
            "minicpm3",
            "youtu",
            "sarvam_mla",
            "axk1",
            "axk2",
            "hy_v4",
            "dots3_note_text",
            "mistral4",
            "solar_open2",
        ],
        MLA,
    ),
    (
        &[QWEN3_NEXT, "qwen3_5_text", "qwen3_5_moe_text"],
        GATED_LINEAR,
    ),
    (
        &[
            "qwen4_exp_text",
            "minimax",
            "minimax_m1",
            "minimax_text_01",
            "MiniMaxText01",
            "MiniMaxM1",
            "olmo_hybrid",
            "lara_mini",
            "kimi_linear",
            "bailing_hybrid",
            "rwkv",
            "rwkv5",
            "rwkv6",
            "rwkv7",
            "recurrent_gemma",
            "xlstm",
            "retnet",
        ],
        LINEAR,
    ),
    (
        &[
            "mamba",
            "mamba2",
            "falcon_mamba",
            "codestral_mamba",
            "jamba",
            "bamba",
            "zamba",
            "zamba2",
            "nemotron_h",
            "falcon_h1",
            "plamo2",
            "hymba",
            "zaya",
            "phi4flash",
        ],
        STATE_SPACE,
    ),
    (
        &[
            "lfm2",
            "lfm2_moe",
            "lfm3",
            "inkling_text",
            "inkling2_text",
            "inkling2_loop_text",
        ],
        CONVOLUTION,
    ),
    (&["step3p5"], GATED_ATTENTION),
    (
        &[
            "phi4_multimodal",
            "gpt_neox_japanese",
            "persimmon",
            "codegen",
            "phi-msft",
            "falcon",
            "chatglm",
            "phi3small",
            "dbrx",
            "RefinedWeb",
            "RefinedWebModel",
            "baichuan",
            "openelm",
            "qwen",
        ],
        FUSED,
    ),
    (
        &["granite_swa", "granitemoe_swa"],
        TypeFact::Never("attention has sinks: the softmax has one more score for each head"),
    ),
    (
        &["minicpm"],
        TypeFact::Never(
            "it scales residuals by its depth, and the last hidden states by its width",
        ),
    ),
    (
        &["cohere_compass_text", "exaone_moe", "llama4_text", "afmoe"],
        NO_ROTATION,
    ),
    (
        &[
            "gpt2",
            "gpt-sw3",
            "gpt_bigcode",
            "gpt_neo",
            "opt",
            "bloom",
            "mpt",
            "biogpt",
            "xglm",
            "openai-gpt",
            "ctrl",
            "cpmant",
            "open-llama",
        ],
        LEARNED,
    ),
    (&["hunyuan"], NORM_AFTER),
    (
        &["olmo", "nanochat"],
        TypeFact::Never("its norms have no weights"),
    ),
    (
        &["apertus", "apertus1p5_text"],
        TypeFact::Never("its activation has trained parameters"),
    ),
    (&["gpt_oss"], TypeFact::Never("attention has sinks")),
    (
        &["gemma3n_text", "gemma4_text", "gemma4_unified_text"],
        TypeFact::Never("layers have inputs of their own"),
    ),
    (
        &[
            "phimoe",
            "dots1",
            "glm4_moe",
            "minimax_m2",
            "minimax_m3_vl_text",
            "solar_open",
            "sarvam_moe",
            "hy_v3",
            "mimo_v2_flash",
            "mellum",
            "flint",
            "kolibri1",
            "beam",
            "jetmoe",
            "aria_text",
            "doge",
            "bailing_moe",
            "bailing_moe_v2",
            "deepseek",
            "arctic",
            "grok-1",
        ],
        ROUTER,
    ),
    (&["laguna"], GATED_ATTENTION),
    (
        &[
            "gemma3",
            "gemma3n",
            "gemma4",
            "gemma4_unified",
            "llama4",
            "mllama",
            "mistral3",
            "qwen3_5",
            "qwen3_5_moe",
            "qwen4_exp",
            "emu3",
            "fuyu",
            "got_ocr2",
            "git",
            "moshi",
            "moss_transcribe_diarize",
            "dots3_note",
            "qwen2_vl",
            "qwen2_5_vl",
            "qwen3_vl",
            "qwen3_vl_moe",
            "llava",
            "idefics3",
            "smolvlm",
            "internvl",
            "kimi_vl",
            "blt",
        ],
        INNER_CONFIG,
    ),
    (
        &[
            "bitnet",
            "diffllama",
            "dory",
            "hrm_text",
            "gemma4_assistant",
            "gemma4_unified_assistant",
            "nemotron-nas",
            "deci",
            "transfo-xl",
            "xlnet",
            "reformer",
            "mega",
        ],
        OTHER_BLOCK,
    ),
    (
        &[
            "bart",
            "bert",
            "bert-generation",
            "big_bird",
            "bigbird_pegasus",
            "blenderbot",
            "blenderbot-small",
            "camembert",
            "data2vec-text",
            "electra",
            "ernie",
            "marian",
            "mbart",
            "megatron-bert",
            "modernbert-decoder",
            "musicgen",
            "musicgen_melody",
            "mvp",
            "pegasus",
            "plbart",
            "prophetnet",
            "qdqbert",
            "rembert",
            "roberta",
            "roberta-prelayernorm",
            "roc_bert",
            "roformer",
            "speech_to_text_2",
            "trocr",
            "whisper",
            "xlm",
            "xlm-prophetnet",
            "xlm-roberta",
            "xlm-roberta-xl",
            "xmod",
            "llada",
            "llada2_moe",
            "Dream",
            "dream",
            "t5",
            "mt5",
            "umt5",
        ],
        NOT_DECODER,
    ),
];
