//! Weights that were quantised for inference: which scheme, by the tensors that only it stores and what `config.json` says of it.

use serde_json::{Map, Value};

use super::config::Config;
use super::error::{FamilyError, PlainNeed};
use crate::checkpoint::{Checkpoint, Encoding, TensorEntry, dtype, json};
use crate::{Error, Result};

/// Ends of tensor names that one scheme alone stores, and its name; the more specific end first.
const SCHEMES: [(&str, &str); 24] = [
    (".SCB", "bitsandbytes, 8 bits"),
    (".absmax", "bitsandbytes, 4 bits"),
    (".quant_map", "bitsandbytes, 4 bits"),
    (".nested_absmax", "bitsandbytes, 4 bits"),
    (".weight_packed", "compressed-tensors"),
    (".g_idx", "GPTQ"),
    (".qweight", "GPTQ or AWQ"),
    (".qzeros", "GPTQ or AWQ"),
    (".weight_scale_inv", "FP8 in blocks"),
    (".weight_scale", "FP8 or compressed-tensors"),
    (".input_scale", "FP8 or compressed-tensors"),
    (".weight_scales", "EETQ"),
    (".W_q", "HQQ"),
    (".weight._data", "quanto"),
    (".weight._scale", "quanto"),
    ("_proj_blocks", "MXFP4"),
    ("_proj_scales", "MXFP4"),
    (".q_weight", "EXL2"),
    (".trellis", "EXL3"),
    (".codebooks", "AQLM"),
    (".Qidxs", "QuIP#"),
    (".biases", "MLX"),
    (".scales", "MLX"),
    (".scale", "FP8"),
];

/// How the weights of a checkpoint are quantised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantised {
    /// The scheme, as in "GPTQ, 4 bits".
    pub scheme: String,
    /// A tensor that shows it.
    pub tensor: String,
    /// The weight that it belongs to, where that is another tensor.
    weight: Option<String>,
}

impl Quantised {
    /// The scheme of weights under Hugging Face names; `None` where all are plain numbers, whatever `config.json` says.
    pub fn of(checkpoint: &Checkpoint) -> Option<Self> {
        if checkpoint.described.is_some() {
            return None;
        }
        // Other models have tensors of these names too, but no narrow ones beside them.
        let narrow = |name: &String| is_narrow(checkpoint.tensors.get(name));
        checkpoint.tensors.keys().find(|name| narrow(name))?;
        let scheme = SCHEMES.iter().find_map(|(end, scheme)| {
            let belonging = checkpoint.tensors.keys().find_map(|name| {
                let stem = name.strip_suffix(end)?;
                let weight = [format!("{stem}.weight"), stem.to_owned()]
                    .into_iter()
                    .find(|name| checkpoint.tensors.contains_key(name));
                // `norm.scale` is a common name.
                (*end != ".scale" || weight.as_ref().is_some_and(narrow)).then_some((name, weight))
            })?;
            Some((*scheme, belonging))
        });
        let packed = || {
            let matrix = checkpoint.tensors.iter().find(|(name, entry)| {
                name.ends_with(".weight") && entry.shape.len() > 1 && is_packed(entry)
            });
            matrix.map(|(name, _)| ("integers", (name, None)))
        };
        let (scheme, (tensor, weight)) = scheme.or_else(packed)?;
        Some(Self {
            scheme: said(checkpoint).unwrap_or_else(|| scheme.to_owned()),
            tensor: tensor.clone(),
            weight,
        })
    }

    /// The refusal of quantised weights where plain numbers are needed.
    pub fn refusal(&self, checkpoint: &Checkpoint, need: PlainNeed) -> Error {
        let file = checkpoint
            .tensors
            .get(&self.tensor)
            .map_or(checkpoint.path.as_path(), |entry| {
                checkpoint.files[entry.file].path()
            });
        FamilyError::Quantised {
            path: file.to_path_buf(),
            tensor: self.tensor.clone(),
            weight: self.weight.as_deref().map(Box::from),
            scheme: self.scheme.as_str().into(),
            need,
        }
        .into()
    }

    /// Refuses quantised weights.
    ///
    /// # Errors
    /// As [`Self::refusal`].
    pub fn refuse(checkpoint: &Checkpoint) -> Result<()> {
        Self::of(checkpoint).map_or(Ok(()), |quantised| {
            Err(quantised.refusal(checkpoint, PlainNeed::Compute))
        })
    }
}

/// Keys of `config.json` that describe quantised weights.
pub(crate) const KEYS: [&str; 3] = ["quantization_config", "compression_config", "quantization"];

/// The part of `config.json` for the language model of a model with images, which may have these keys, too.
pub(crate) const TEXT: &str = "text_config";

/// What a `config.json` says of quantised weights, in the form of transformers.
pub(crate) fn settings(config: &Map<String, Value>) -> Option<&Map<String, Value>> {
    let [first, second, _] = KEYS;
    let text = config.get(TEXT).and_then(Value::as_object);
    let mut configs = [Some(config), text].into_iter().flatten();
    configs.find_map(|config| config.get(first).or(config.get(second))?.as_object())
}

/// The key that says how weights are quantised, in the configuration of weights that are plain numbers.
///
/// Programs that write plain weights again may leave it there. A loader that obeys it takes the weights for quantised ones.
pub fn leftover_quantisation(config: &Config, checkpoint: &Checkpoint) -> Option<&'static str> {
    let said = |key: &&str| config.json.get(*key).is_some_and(|value| !value.is_null());
    let key = KEYS.into_iter().find(said)?;
    Quantised::of(checkpoint).is_none().then_some(key)
}

/// Removes a leftover description of quantised weights from `json`, a configuration to write; returns a note about it.
pub(crate) fn drop_leftover(
    config: &Config,
    checkpoint: &Checkpoint,
    json: &mut Map<String, Value>,
) -> Option<String> {
    let key = leftover_quantisation(config, checkpoint)?;
    json.shift_remove(key);
    Some(format!(
        "{}: `{key}` is left out, because the weights are plain numbers",
        config.path.display()
    ))
}

/// Whether a tensor holds integers, or floats of less than 8 bits.
pub(crate) fn is_packed(entry: &TensorEntry) -> bool {
    match entry.encoding {
        Encoding::Plain(stored) => !dtype::is_float(stored) || stored.bitsize() < 8,
        Encoding::Ggml(_) => false,
    }
}

/// Whether a tensor may hold quantised values: packed, or floats of 8 bits.
fn is_narrow(entry: Option<&TensorEntry>) -> bool {
    entry.is_some_and(|entry| {
        is_packed(entry)
            || entry
                .encoding
                .plain()
                .is_some_and(|stored| stored.bitsize() <= 8)
    })
}

/// The scheme that `config.json` names.
fn said(checkpoint: &Checkpoint) -> Option<String> {
    let config = json::read_object(&checkpoint.folder()?.join("config.json")).ok()?;
    let object = |key: &str| config.get(key).and_then(Value::as_object);
    if let Some(quantisation) = settings(&config) {
        let method = quantisation.get("quant_method").and_then(Value::as_str)?;
        return Some(with_bits(named(method), quantisation));
    }
    Some(with_bits("MLX", object("quantization")?))
}

/// The usual spelling of a `quant_method`.
fn named(method: &str) -> &str {
    match method {
        "gptq" => "GPTQ",
        "awq" => "AWQ",
        "fp8" => "FP8",
        "mxfp4" => "MXFP4",
        other => other,
    }
}

fn with_bits(scheme: &str, quantisation: &Map<String, Value>) -> String {
    let is = |key: &str| quantisation.get(key) == Some(&Value::Bool(true));
    let bits = match quantisation.get("bits").or(quantisation.get("w_bit")) {
        Some(Value::Number(bits)) => bits.as_u64(),
        _ if is("load_in_4bit") => Some(4),
        _ if is("load_in_8bit") => Some(8),
        _ => None,
    };
    bits.map_or_else(
        || scheme.to_owned(),
        |bits| format!("{scheme}, {bits} bits"),
    )
}
