//! Models in GGUF: which Hugging Face tensor each GGUF tensor is, and the `config.json` that its metadata means.
//!
//! Only the architectures in [`ARCHITECTURES`]: llama.cpp's `llama` is Llama, Mistral, SmolLM, Mixtral and all that share their layers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::gguf_rope;
use crate::checkpoint::gguf::REQUANTISE;
use crate::checkpoint::{Encoding, Gguf, TensorEntry, foreign};
use crate::error::{Error, Result, one_of};

/// Values of `general.architecture` that are read.
pub const ARCHITECTURES: [&str; 1] = ["llama"];

/// One tensor of the model under its Hugging Face name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// Hugging Face name: `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Name in the GGUF file: `blk.0.attn_q.weight`.
    pub source: String,
    /// Shape in both: `[out, in]`.
    pub shape: Vec<u64>,
    /// Heads whose rows llama.cpp has permuted for its rotary embedding; see [`source_row`].
    pub unpermute_heads: Option<u64>,
    /// Its number in a tensor that holds all experts of a layer.
    pub expert: Option<u64>,
}

/// The row of a permuted GGUF tensor that is `row` of the Hugging Face one, for a tensor of `rows` rows and `heads`
/// heads: `heads` divides `rows` into an even number of rows a head.
///
/// Hugging Face rotates the halves of a head, llama.cpp neighbouring rows: row `i` of half `j` there is row `2 i + j` here.
pub fn source_row(row: u64, rows: u64, heads: u64) -> u64 {
    let head_dim = (rows / heads.max(1)).max(2);
    let (head, within) = (row / head_dim, row % head_dim);
    let half = head_dim / 2;
    head * head_dim + 2 * (within % half) + within / half
}

/// GGUF and Hugging Face names of a layer's tensors, without `blk.0.` and `model.layers.0.`.
const LAYER: [(&str, &str, Kind); 9] = [
    ("attn_norm", "input_layernorm", Kind::Norm),
    ("attn_q", "self_attn.q_proj", Kind::Query),
    ("attn_k", "self_attn.k_proj", Kind::Key),
    ("attn_v", "self_attn.v_proj", Kind::Value),
    ("attn_output", "self_attn.o_proj", Kind::AttentionOutput),
    ("ffn_norm", "post_attention_layernorm", Kind::Norm),
    ("ffn_gate", "mlp.gate_proj", Kind::Up),
    ("ffn_up", "mlp.up_proj", Kind::Up),
    ("ffn_down", "mlp.down_proj", Kind::Down),
];

/// What a tensor of a layer is, as far as its shape and permutation go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Norm,
    Query,
    Key,
    Value,
    AttentionOutput,
    Up,
    Down,
}

/// The numbers that the shapes of a llama follow from.
#[derive(Debug)]
struct Sizes {
    hidden: u64,
    intermediate: u64,
    layers: u64,
    heads: u64,
    kv_heads: u64,
    head_dim: u64,
    vocabulary: u64,
    /// Experts of a layer, and how many a token goes to; a dense model has none.
    experts: Option<(u64, u64)>,
}

impl Sizes {
    /// Shape of a layer's weight, and its heads where its rows are permuted.
    fn of(&self, kind: Kind) -> (Vec<u64>, Option<u64>) {
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        match kind {
            Kind::Norm => (vec![self.hidden], None),
            Kind::Query => (vec![queries, self.hidden], Some(self.heads)),
            Kind::Key => (vec![keys, self.hidden], Some(self.kv_heads)),
            Kind::Value => (vec![keys, self.hidden], None),
            Kind::AttentionOutput => (vec![self.hidden, queries], None),
            Kind::Up => (vec![self.intermediate, self.hidden], None),
            Kind::Down => (vec![self.hidden, self.intermediate], None),
        }
    }
}

/// Every tensor of the model in layer order, by its Hugging Face name; shapes agree with the metadata.
///
/// # Errors
/// Where the architecture is another than `llama`, or has experts; where a tensor is missing, unknown or of another
/// shape than the metadata says: the error names it.
pub fn tensors(gguf: &Gguf) -> Result<Vec<GgufTensor>> {
    let sizes = sizes(gguf)?;
    let mut found = Found {
        gguf,
        left: gguf.tensors.keys().map(String::as_str).collect(),
        tensors: Vec::new(),
    };
    let table = vec![sizes.vocabulary, sizes.hidden];
    found.take(
        "token_embd.weight",
        "model.embed_tokens.weight",
        table.clone(),
        None,
    )?;
    for layer in 0..sizes.layers {
        for (source, name, kind) in LAYER {
            let (shape, heads) = sizes.of(kind);
            if let (Kind::Up | Kind::Down, Some((experts, _))) = (kind, sizes.experts) {
                found.take_experts(layer, source, experts, &shape)?;
                continue;
            }
            let bias = vec![shape.first().copied().unwrap_or_default()];
            let (source, name) = (
                format!("blk.{layer}.{source}"),
                format!("model.layers.{layer}.{name}"),
            );
            found.take(
                &format!("{source}.weight"),
                &format!("{name}.weight"),
                shape,
                heads,
            )?;
            if kind != Kind::Norm && gguf.tensors.contains_key(&format!("{source}.bias")) {
                found.take(
                    &format!("{source}.bias"),
                    &format!("{name}.bias"),
                    bias,
                    heads,
                )?;
            }
        }
    }
    for layer in (0..sizes.layers).filter(|_| sizes.experts.is_some()) {
        let (source, name) = (
            format!("blk.{layer}.ffn_gate_inp.weight"),
            router_name(layer),
        );
        found.take(
            &source,
            &name,
            vec![
                sizes.experts.map_or(0, |(experts, _)| experts),
                sizes.hidden,
            ],
            None,
        )?;
    }
    found.take(
        "output_norm.weight",
        "model.norm.weight",
        vec![sizes.hidden],
        None,
    )?;
    if gguf.tensors.contains_key("output.weight") {
        found.take("output.weight", "lm_head.weight", table, None)?;
    }
    found
        .left
        .retain(|name| !is_rope_factors(name, sizes.layers));
    match found.left.first() {
        None => Ok(found.tensors),
        Some(name) => Err(Error::tensor(&gguf.path, name, "is no tensor of a llama model")
            .with_hint("dense models of the `llama` architecture are read; convert this one with transformers")),
    }
}

/// GGUF and Hugging Face names of the projections of a Mixtral expert.
const MIXTRAL: [(&str, &str); 3] = [("ffn_gate", "w1"), ("ffn_up", "w3"), ("ffn_down", "w2")];

fn router_name(layer: u64) -> String {
    format!("model.layers.{layer}.block_sparse_moe.gate.weight")
}

/// Whether `name` holds the frequency factors of the rotary embedding, which belong into the configuration.
fn is_rope_factors(name: &str, layers: u64) -> bool {
    name == gguf_rope::FACTORS
        || name
            .strip_prefix("blk.")
            .and_then(|rest| rest.strip_suffix(".rope_freqs.weight"))
            .is_some_and(|layer| layer.parse::<u64>().is_ok_and(|layer| layer < layers))
}

/// Tensors matched so far, and the names that none has asked for.
struct Found<'a> {
    gguf: &'a Gguf,
    left: BTreeSet<&'a str>,
    tensors: Vec<GgufTensor>,
}

impl Found<'_> {
    fn take(
        &mut self,
        source: &str,
        name: &str,
        shape: Vec<u64>,
        unpermute_heads: Option<u64>,
    ) -> Result<()> {
        let entry = self.gguf.tensor(source)?;
        if entry.shape != shape {
            let problem = format!(
                "expected shape {shape:?} from the metadata, found {:?}",
                entry.shape
            );
            return Err(Error::tensor(&self.gguf.path, source, problem));
        }
        self.left.remove(source);
        let (name, source) = (name.to_owned(), source.to_owned());
        self.tensors.push(GgufTensor {
            name,
            source,
            shape,
            unpermute_heads,
            expert: None,
        });
        Ok(())
    }

    /// The projections `stem` of all experts of a layer, each of `shape`, out of the one tensor that holds them.
    fn take_experts(&mut self, layer: u64, stem: &str, experts: u64, shape: &[u64]) -> Result<()> {
        let source = format!("blk.{layer}.{stem}_exps.weight");
        let entry = self.gguf.tensor(&source)?;
        let whole = [&[experts], shape].concat();
        if entry.shape != whole {
            let problem = format!(
                "expected shape {whole:?} from the metadata, found {:?}",
                entry.shape
            );
            return Err(Error::tensor(&self.gguf.path, &source, problem));
        }
        self.left.remove(source.as_str());
        let projection = MIXTRAL
            .iter()
            .find(|(ours, _)| *ours == stem)
            .map_or(stem, |(_, theirs)| theirs);
        self.tensors.extend((0..experts).map(|expert| GgufTensor {
            name: format!(
                "model.layers.{layer}.block_sparse_moe.experts.{expert}.{projection}.weight"
            ),
            source: source.clone(),
            shape: shape.to_vec(),
            unpermute_heads: None,
            expert: Some(expert),
        }));
        Ok(())
    }
}

/// The refusal of a file whose architecture is not among [`ARCHITECTURES`]; `None` for one that is read.
///
/// # Errors
/// Where the file does not say its architecture.
pub fn other_architecture(gguf: &Gguf) -> Result<Option<Error>> {
    let key = "general.architecture";
    let known = one_of(ARCHITECTURES);
    let found = gguf
        .text(key)?
        .ok_or_else(|| Error::key(&gguf.path, key, format!("is missing; expected {known}")))?;
    if ARCHITECTURES.contains(&found) {
        return Ok(None);
    }
    let problem =
        format!("expected {known}, found `{found}`; other architectures of GGUF are not read");
    Ok(Some(Error::key(&gguf.path, key, problem).with_hint(
        "take the model's safetensors, or load the file in transformers with gguf_file=… and save it with save_pretrained; \
         `bam-convert inspect` shows what it holds",
    )))
}

/// Refuses a file where a checkpoint folder is meant; of a GGUF file that `convert` would refuse too, it says why.
///
/// # Errors
/// As [`foreign::expect_folder`].
pub fn expect_folder(path: &Path) -> Result<()> {
    foreign::expect_folder(path).map_err(|error| refusal(path).unwrap_or(error))
}

/// Why `convert` would refuse a file; `None` for one that is no GGUF file, or of an architecture that is read.
pub(super) fn refusal(path: &Path) -> Option<Error> {
    let gguf = Gguf::open(path).ok()?;
    other_architecture(&gguf).ok().flatten()
}

/// Refuses elements whose values cannot be computed.
///
/// # Errors
/// The first such tensor.
pub fn refuse_unreadable(gguf: &Gguf) -> Result<()> {
    let unreadable = |entry: &TensorEntry| match entry.encoding {
        Encoding::Ggml(kind) if !kind.is_readable() => Some(kind.unreadable()),
        _ => None,
    };
    let found = gguf
        .tensors
        .iter()
        .find_map(|(name, entry)| Some((name, unreadable(entry)?)));
    match found {
        Some((name, problem)) => {
            Err(Error::tensor(&gguf.path, name, problem).with_hint(REQUANTISE))
        }
        None => Ok(()),
    }
}

/// Refuses what is no dense llama, naming what it is.
fn check_architecture(gguf: &Gguf) -> Result<()> {
    if let Some(error) = other_architecture(gguf)? {
        return Err(error);
    }
    // Keys of llama.cpp that change what the model computes, with the value that leaves it a llama.
    for (key, neutral) in [
        ("llama.attention.sliding_window", 0.0),
        ("llama.attention.clamp_kqv", 0.0),
        ("llama.attention.scale", 0.0),
        ("llama.logit_scale", 1.0),
        ("llama.residual_scale", 1.0),
        ("llama.embedding_scale", 1.0),
    ] {
        if let Some(value) = gguf
            .float(key)?
            .filter(|value| *value != neutral && *value != 0.0)
        {
            let problem =
                format!("expected it absent, as in the llama architecture, found {value}");
            return Err(Error::key(&gguf.path, key, problem));
        }
    }
    for (key, neutral) in [
        ("llama.attention.causal", true),
        ("llama.use_parallel_residual", false),
    ] {
        if gguf.boolean(key)?.is_some_and(|value| value != neutral) {
            let problem = format!(
                "expected {neutral}, as in the llama architecture, found {}",
                !neutral
            );
            return Err(Error::key(&gguf.path, key, problem));
        }
    }
    Ok(())
}

/// The sizes that the metadata and the embedding say.
fn sizes(gguf: &Gguf) -> Result<Sizes> {
    check_architecture(gguf)?;
    let hidden = size(gguf, "llama.embedding_length")?;
    let heads = size(gguf, "llama.attention.head_count")?;
    let kv_heads = match gguf.metadata.contains_key("llama.attention.head_count_kv") {
        true => size(gguf, "llama.attention.head_count_kv")?,
        false => heads,
    };
    if heads % kv_heads != 0 {
        let problem = format!("expected a divisor of the {heads} query heads, found {kv_heads}");
        return Err(Error::key(
            &gguf.path,
            "llama.attention.head_count_kv",
            problem,
        ));
    }
    let rotated = gguf.unsigned("llama.rope.dimension_count")?;
    let key = "llama.attention.key_length";
    let head_dim = gguf.unsigned(key)?.or(rotated).unwrap_or(hidden / heads);
    // A head is one row of attn_q at least, and attn_q is in the file: more is nonsense.
    if head_dim == 0 || !head_dim.is_multiple_of(2) || head_dim > 1 << 20 {
        return Err(Error::key(
            &gguf.path,
            key,
            format!("expected an even head dimension, found {head_dim}"),
        ));
    }
    for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
        if let Some(found) = gguf.unsigned(key)?.filter(|found| *found != head_dim) {
            return Err(Error::key(
                &gguf.path,
                key,
                format!("expected the head dimension {head_dim}, found {found}"),
            ));
        }
    }
    let vocabulary = gguf
        .tensor("token_embd.weight")?
        .shape
        .first()
        .copied()
        .unwrap_or_default();
    if let Some(found) = gguf
        .unsigned("llama.vocab_size")?
        .filter(|found| *found != vocabulary)
    {
        let problem =
            format!("expected {vocabulary}, the rows of `token_embd.weight`, found {found}");
        return Err(Error::key(&gguf.path, "llama.vocab_size", problem));
    }
    let (layers, intermediate) = (
        size(gguf, "llama.block_count")?,
        size(gguf, "llama.feed_forward_length")?,
    );
    if layers > gguf.tensors.len() as u64 {
        let problem = format!(
            "expected a tensor a layer at least, found {layers} layers, {} tensors",
            gguf.tensors.len()
        );
        return Err(Error::key(&gguf.path, "llama.block_count", problem));
    }
    let experts = experts(gguf)?;
    Ok(Sizes {
        hidden,
        intermediate,
        layers,
        heads,
        kv_heads,
        head_dim,
        vocabulary,
        experts,
    })
}

/// Experts of a layer, and how many a token goes to.
fn experts(gguf: &Gguf) -> Result<Option<(u64, u64)>> {
    let (count_key, used_key) = ("llama.expert_count", "llama.expert_used_count");
    let Some(count) = gguf.unsigned(count_key)?.filter(|count| *count > 0) else {
        return Ok(None);
    };
    // Each expert has rows of its own in the router of each layer.
    if count > 1 << 16 {
        return Err(Error::key(
            &gguf.path,
            count_key,
            format!("expected at most 65536 experts, found {count}"),
        ));
    }
    let used = gguf.unsigned(used_key)?.unwrap_or(0);
    if used == 0 || used > count {
        return Err(Error::key(
            &gguf.path,
            used_key,
            format!("expected 1 to {count_key} = {count}, found {used}"),
        ));
    }
    Ok(Some((count, used)))
}

/// A size above zero; a list of one a layer counts where all are equal.
fn size(gguf: &Gguf, key: &str) -> Result<u64> {
    let value = match gguf.integers(key) {
        Ok(Some(values)) => match values.split_first() {
            Some((first, rest)) if rest.iter().all(|value| value == first) => {
                u64::try_from(*first).ok()
            }
            _ => {
                let problem = format!("expected one size for all layers, found {values:.60?}");
                return Err(Error::key(&gguf.path, key, problem));
            }
        },
        _ => gguf.unsigned(key)?,
    };
    let value = value.ok_or_else(|| {
        Error::key(
            &gguf.path,
            key,
            "is missing; expected a whole number above 0",
        )
    })?;
    // No tensor with such a dimension fits into a file, and products of two sizes stay countable.
    if value == 0 || value > u64::from(u32::MAX) {
        return Err(Error::key(
            &gguf.path,
            key,
            format!("expected a whole number above 0, found {value}"),
        ));
    }
    Ok(value)
}

/// The model's `config.json`, with the keys of transformers 4 and of transformers 5.
///
/// `dtype` is that of the embedding table, and `bfloat16` where any tensor is quantised.
///
/// # Errors
/// As [`tensors`]; and where the scaling of the rotary embedding is none that transformers has.
pub fn config(gguf: &Gguf) -> Result<Map<String, Value>> {
    let sizes = sizes(gguf)?;
    let tensors: BTreeMap<_, _> = tensors(gguf)?
        .into_iter()
        .map(|tensor| (tensor.name, tensor.source))
        .collect();
    let epsilon_key = "llama.attention.layer_norm_rms_epsilon";
    let epsilon = gguf.float(epsilon_key)?.filter(|epsilon| *epsilon >= 0.0);
    let epsilon =
        epsilon.ok_or_else(|| Error::key(&gguf.path, epsilon_key, "is missing or below 0"))?;
    let context = size(gguf, "llama.context_length")?;
    let rope = gguf_rope::read(gguf, sizes.head_dim, context)?;
    let dtype = dtype(gguf);
    let mut config = Map::new();
    let mut set = |key: &str, value: Value| config.insert(key.to_owned(), value);
    match sizes.experts {
        None => {
            set("architectures", json!(["LlamaForCausalLM"]));
            set("model_type", json!("llama"));
        }
        Some((count, used)) => {
            set("architectures", json!(["MixtralForCausalLM"]));
            set("model_type", json!("mixtral"));
            set("num_local_experts", json!(count));
            set("num_experts", json!(count));
            set("num_experts_per_tok", json!(used));
            set("sliding_window", Value::Null);
        }
    }
    set("hidden_size", json!(sizes.hidden));
    set("intermediate_size", json!(sizes.intermediate));
    set("num_hidden_layers", json!(sizes.layers));
    set("num_attention_heads", json!(sizes.heads));
    set("num_key_value_heads", json!(sizes.kv_heads));
    set("head_dim", json!(sizes.head_dim));
    set("hidden_act", json!("silu"));
    set("max_position_embeddings", json!(context));
    set("rms_norm_eps", json!(epsilon));
    set("rope_theta", json!(rope.theta));
    set(
        "rope_scaling",
        rope.scaling.clone().map_or(Value::Null, Value::Object),
    );
    set("rope_parameters", Value::Object(rope.parameters()));
    set("vocab_size", json!(sizes.vocabulary));
    set(
        "tie_word_embeddings",
        json!(!tensors.contains_key("lm_head.weight")),
    );
    set(
        "attention_bias",
        json!(biased(&gguf.path, &tensors, "self_attn", sizes.layers)?),
    );
    set(
        "mlp_bias",
        json!(biased(&gguf.path, &tensors, "mlp", sizes.layers)?),
    );
    set("attention_dropout", json!(0.0));
    set("initializer_range", json!(0.02));
    set("pretraining_tp", json!(1));
    set("use_cache", json!(true));
    for (key, source) in [("bos", "bos"), ("eos", "eos"), ("pad", "padding")] {
        set(&format!("{key}_token_id"), json!(token_id(gguf, source)?));
    }
    set("torch_dtype", json!(dtype));
    set("dtype", json!(dtype));
    Ok(config)
}

/// The id of the `bos`, `eos`, `padding`, `unknown`, … token, where the metadata has one that the vocabulary holds.
pub(super) fn token_id(gguf: &Gguf, which: &str) -> Result<Option<u64>> {
    let key = format!("tokenizer.ggml.{which}_token_id");
    // llama.cpp writes an id of -1 for "none".
    if gguf
        .metadata
        .get(&key)
        .and_then(|value| value.integer())
        .is_some_and(|id| id == -1 || id == u32::MAX.into())
    {
        return Ok(None);
    }
    let id = gguf.unsigned(&key)?;
    let tokens = gguf
        .texts("tokenizer.ggml.tokens")?
        .map(|tokens| tokens.len() as u64);
    if let (Some(id), Some(tokens)) = (id, tokens)
        && id >= tokens
    {
        return Err(Error::key(
            &gguf.path,
            &key,
            format!("expected an id below the {tokens} tokens, found {id}"),
        ));
    }
    Ok(id)
}

/// Whether the projections of this module have biases; transformers knows only all of them in all layers, or none.
fn biased(
    path: &Path,
    tensors: &BTreeMap<String, String>,
    module: &str,
    layers: u64,
) -> Result<bool> {
    let mut missing = None;
    let mut present = None;
    for layer in 0..layers {
        for (source, name, kind) in LAYER {
            if kind != Kind::Norm && name.starts_with(module) {
                let bias = format!("model.layers.{layer}.{name}.bias");
                let seen = if tensors.contains_key(&bias) {
                    &mut present
                } else {
                    &mut missing
                };
                seen.get_or_insert(format!("blk.{layer}.{source}.bias"));
            }
        }
    }
    match (present, missing) {
        (Some(present), Some(missing)) => {
            let problem = format!(
                "is missing though `{present}` is there; a Hugging Face llama has a bias beside each or none"
            );
            Err(Error::tensor(path, &missing, problem))
        }
        (present, _) => Ok(present.is_some()),
    }
}

/// The dtype that the weights become: that of the embedding table, or `bfloat16` from quantised tensors.
fn dtype(gguf: &Gguf) -> &'static str {
    let quantised = gguf
        .tensors
        .values()
        .any(|entry| matches!(entry.encoding, Encoding::Ggml(_)));
    match gguf
        .tensors
        .get("token_embd.weight")
        .map(|entry| entry.encoding)
    {
        Some(Encoding::Plain(crate::checkpoint::Dtype::F32)) if !quantised => "float32",
        Some(Encoding::Plain(crate::checkpoint::Dtype::F16)) if !quantised => "float16",
        _ => "bfloat16",
    }
}

#[cfg(test)]
#[path = "gguf_tests.rs"]
mod tests;
